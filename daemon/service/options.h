// The command line of terraced (options.cc, the one door to CLI11).
#pragma once

#include <optional>
#include <string>

#include "daemon/service/config.h"

namespace terrace {

struct CommandLine {
  Config config;
  bool check_config = false;
};

// The file that --config names, and over it what other options say. When the command line asks for
// no daemon (--help, --version) or cannot be right, prints what there is to say and returns the
// exit code in `exit_code`.
std::optional<CommandLine> ParseCommandLine(int argc, char** argv, int* exit_code);

}  // namespace terrace
