#include "daemon/service/options.h"

#include <CLI/CLI.hpp>

namespace terrace {

namespace {

constexpr int kExitUsage = 2;

}  // namespace

std::optional<CommandLine> ParseCommandLine(int argc, char** argv, int* exit_code) {
  CLI::App app(
      "The owner of a host's cache memory for model weights and KV pages.\n"
      "Without options it serves the user who starts it: a quarter of the memory limit, a socket "
      "in\n"
      "$XDG_RUNTIME_DIR/terrace and state in $XDG_STATE_HOME/terrace. SIGTERM ends it.",
      "terraced");
  app.set_version_flag("--version", std::string("terraced ") + TERRACE_VERSION);
  CommandLine command_line;
  bool check_config = false;
  bool check_host = false;
  app.add_option("--config", command_line.config_file,
                 "TOML file; every field is in docs/configuration.md. SIGHUP reads it again");
  app.add_flag("--check-config", check_config,
               "check the configuration, print it with every default, and exit");
  app.add_flag("--check-host", check_host,
               "say in words what this host lacks for the configuration, and exit")
      ->excludes("--check-config");
  std::string fsck;
  app.add_option(
         "--fsck", fsck,
         "check the page store of the configuration, which no daemon may be using, and exit: "
         "\"index\" reads headers, \"data\" every byte; \"repair\" drops what does not "
         "check, \"rebuild\" builds the index anew from the pages")
      ->check(CLI::IsMember({"index", "data", "repair", "rebuild"}))
      ->excludes("--check-config")
      ->excludes("--check-host");
  struct Option {
    const char* name;
    const char* field;
    const char* help;
    std::string text;
  };
  Option options[] = {
      {"--socket", "daemon.socket", "path of the Unix socket", {}},
      {"--state-dir", "daemon.state_dir", "folder of what outlives the daemon", {}},
      {"--host-capacity",
       "host.capacity",
       "host memory: 16GiB, or a fraction of the limit: 0.25",
       {}},
      {"--log-level", "daemon.log_level", "debug, info, warning, error or off", {}},
      {"--log-format", "daemon.log_format", "auto, text, json or journal", {}},
  };
  for (Option& option : options)
    app.add_option(option.name, option.text, option.help);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    *exit_code = app.exit(error) == 0 ? 0 : kExitUsage;
    return std::nullopt;
  }

  for (Option& option : options) {
    if (app.count(option.name) > 0) {
      command_line.overrides.push_back({option.name, option.field, std::move(option.text)});
    }
  }
  if (check_config) command_line.job = CommandLine::Job::kCheckConfig;
  if (check_host) command_line.job = CommandLine::Job::kCheckHost;
  if (!fsck.empty()) command_line.job = CommandLine::Job::kFsck;
  command_line.fsck.read_data = fsck == "data";
  if (fsck == "repair") command_line.fsck.repair = FsckRepair::kMend;
  if (fsck == "rebuild") command_line.fsck.repair = FsckRepair::kRebuild;
  return command_line;
}

Result<Config> ReadConfig(const CommandLine& command_line) {
  Config config;
  if (!command_line.config_file.empty()) {
    RETURN_IF_ERROR(ReadConfigFile(command_line.config_file, &config));
  }
  for (const CommandLine::Override& item : command_line.overrides) {
    RETURN_IF_ERROR(SetConfigField(&config, item.field, item.text).WithContext(item.option));
  }
  RETURN_IF_ERROR(CheckConfig(config));
  return config;
}

}  // namespace terrace
