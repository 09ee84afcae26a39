// The command line of terraced (options.cc, the one door to CLI11).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "daemon/service/config.h"
#include "tiers/nvme/fsck.h"

namespace terrace {

// Of --fsck: what it looks at and what it may change.
struct FsckChoice {
  bool read_data = false;
  FsckRepair repair = FsckRepair::kNothing;
};

struct CommandLine {
  struct Override {
    std::string option;  // "--socket"
    std::string field;   // "daemon.socket"
    std::string text;
  };
  std::string config_file;  // Empty: none.
  std::vector<Override> overrides;
  enum class Job : uint8_t { kServe, kCheckConfig, kCheckHost, kFsck };
  Job job = Job::kServe;
  FsckChoice fsck;
};

// When the command line asks for nothing of ours (--help, --version) or cannot be right, prints
// what there is to say and returns the exit code in `exit_code`.
std::optional<CommandLine> ParseCommandLine(int argc, char** argv, int* exit_code);

// The file as it is now, and over it what the options say. Errors name the field, and where it
// stands.
Result<Config> ReadConfig(const CommandLine& command_line);

}  // namespace terrace
