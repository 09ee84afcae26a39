// terraced: see docs/architecture.md, docs/configuration.md and docs/operations.md.
#include <unistd.h>

#include <cstdio>

#include "daemon/service/daemon.h"
#include "daemon/service/host_check.h"
#include "daemon/service/log.h"
#include "daemon/service/options.h"
#include "daemon/service/systemd/activation.h"
#include "daemon/service/systemd/notify.h"

namespace terrace {
namespace {

constexpr int kExitCannotStart = 1;
constexpr int kExitUsage = 2;

int Fail(const Status& why, int exit_code) {
  std::fprintf(stderr, "terraced: %s\n", why.message().c_str());
  return exit_code;
}

int PrintConfig(Config config) {
  if (config.socket.empty() && config.sockets.empty()) config.socket = DefaultSocketPath();
  if (config.state_dir.empty()) config.state_dir = DefaultStateDir();
  std::fputs(ConfigText(config).c_str(), stdout);
  return 0;
}

int PrintHostCheck(const Config& config) {
  for (const HostFinding& finding : CheckHost(config, ReadHostFacts())) {
    std::printf("%-12s %s: %s\n", finding.lacking ? "lacking" : "good",
                std::string(finding.subject).c_str(), finding.text.c_str());
  }
  return 0;
}

int Serve(DaemonStart start) {
  SetLogLevel(start.config.log_level);
  SetLogFormat(start.config.log_format);
  const ListenEnvironment listen = TakeListenEnvironment();
  const Notifier::Environment notify = Notifier::TakeEnvironment();
  Result<Notifier> notifier = Notifier::Open(notify, ::getpid());
  if (!notifier) return Fail(notifier.error(), kExitCannotStart);
  start.notifier = *std::move(notifier);
  Result<std::vector<ActivatedSocket>> sockets = TakeActivatedSockets(listen, ::getpid());
  if (!sockets) return Fail(sockets.error(), kExitCannotStart);
  start.sockets = *std::move(sockets);
  Daemon daemon(std::move(start));
  const Status status = daemon.Start();
  if (!status.ok()) return Fail(status, kExitCannotStart);
  daemon.Run();
  return 0;
}

int Main(int argc, char** argv) {
  int exit_code = 0;
  const std::optional<CommandLine> command_line = ParseCommandLine(argc, argv, &exit_code);
  if (!command_line) return exit_code;
  Result<Config> config = ReadConfig(*command_line);
  if (!config) return Fail(config.error(), kExitUsage);
  switch (command_line->job) {
    case CommandLine::Job::kCheckConfig:
      return PrintConfig(*std::move(config));
    case CommandLine::Job::kCheckHost:
      return PrintHostCheck(*config);
    case CommandLine::Job::kServe:
      break;
  }
  DaemonStart start;
  start.config = *std::move(config);
  // Without a file there is nothing to read again.
  if (!command_line->config_file.empty()) {
    start.read_config = [command_line] { return ReadConfig(*command_line); };
  }
  return Serve(std::move(start));
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  return terrace::Main(argc, argv);
}
