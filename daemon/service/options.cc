#include "daemon/service/options.h"

#include <CLI/CLI.hpp>
#include <cstdio>

namespace terrace {

namespace {

constexpr int kExitUsage = 2;

std::optional<CommandLine> Refuse(const Status& status, int* exit_code) {
  std::fprintf(stderr, "terraced: %s\n", status.message().c_str());
  *exit_code = kExitUsage;
  return std::nullopt;
}

}  // namespace

std::optional<CommandLine> ParseCommandLine(int argc, char** argv, int* exit_code) {
  CLI::App app(
      "The owner of a host's cache memory for model weights and KV pages.\n"
      "Without options it serves the user who starts it: a quarter of the memory limit, a socket "
      "in\n"
      "$XDG_RUNTIME_DIR/terrace and state in $XDG_STATE_HOME/terrace. SIGTERM ends it.",
      "terraced");
  app.set_version_flag("--version", std::string("terraced ") + TERRACE_VERSION);
  std::string file;
  bool check_config = false;
  app.add_option("--config", file, "TOML file; every field is in docs/configuration.md");
  app.add_flag("--check-config", check_config,
               "check the configuration, print it with every default, and exit");
  struct Override {
    const char* option;
    const char* field;
    const char* help;
    std::string value;
  };
  Override overrides[] = {
      {"--socket", "daemon.socket", "path of the Unix socket", {}},
      {"--state-dir", "daemon.state_dir", "folder of what outlives the daemon", {}},
      {"--host-capacity",
       "host.capacity",
       "host memory: 16GiB, or a fraction of the limit: 0.25",
       {}},
      {"--log-level", "daemon.log_level", "debug, info, warning, error or off", {}},
  };
  for (Override& item : overrides)
    app.add_option(item.option, item.value, item.help);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    *exit_code = app.exit(error) == 0 ? 0 : kExitUsage;
    return std::nullopt;
  }

  CommandLine command_line;
  command_line.check_config = check_config;
  if (!file.empty()) {
    const Status status = ReadConfigFile(file, &command_line.config);
    if (!status.ok()) return Refuse(status, exit_code);
  }
  for (const Override& item : overrides) {
    if (app.count(item.option) == 0) continue;
    const Status status = SetConfigField(&command_line.config, item.field, item.value);
    if (!status.ok()) return Refuse(Status(status).WithContext(item.option), exit_code);
  }
  const Status status = CheckConfig(command_line.config);
  if (!status.ok()) return Refuse(status, exit_code);
  return command_line;
}

}  // namespace terrace
