// terraced: see docs/architecture.md, docs/configuration.md and docs/operations.md.
#include <cstdio>

#include "daemon/service/daemon.h"
#include "daemon/service/options.h"

int main(int argc, char** argv) {
  int exit_code = 0;
  auto command_line = terrace::ParseCommandLine(argc, argv, &exit_code);
  if (!command_line) return exit_code;
  if (command_line->check_config) {
    terrace::Config& config = command_line->config;
    if (config.socket.empty() && config.sockets.empty())
      config.socket = terrace::DefaultSocketPath();
    if (config.state_dir.empty()) config.state_dir = terrace::DefaultStateDir();
    std::fputs(terrace::ConfigText(config).c_str(), stdout);
    return 0;
  }
  terrace::Daemon daemon(command_line->config);
  const terrace::Status status = daemon.Start();
  if (!status.ok()) {
    std::fprintf(stderr, "terraced: %s\n", status.message().c_str());
    return 1;
  }
  daemon.Run();
  return 0;
}
