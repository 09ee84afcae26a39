// DaemonProcess: a real terraced for a test, with a socket, a state folder and a little memory of
// its own. The process ends with the object, and with the test program whatever happens to that.
//
// One thread at a time, and one that outlives it: the kernel ends the daemon with the thread that
// started it. Nothing here asserts: a test does that with what is returned.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"

namespace terrace {

struct DaemonProcessOptions {
  std::string capacity = "64MiB";
  std::string slab = "2MiB";
  std::string block = "2MiB";
  std::string pretouch = "none";
  std::string log_level = "debug";
  std::string limits{};  // Lines of the [limits] section.
  bool metrics = false;  // Served on a Unix socket.
  // [[socket]] and [[peer]] in place of daemon.socket. "@" is the daemon's folder, which others may
  // enter then; one socket has to be @/terraced.sock.
  std::string tables{};
  std::string store{};  // [store] and [[nvme]], whose directories are made; "@" likewise.
  // Not 0: the daemon runs as this user and group, without capabilities. Takes root.
  uid_t user = 0;
  uint64_t descriptors = 0;              // Not 0: its RLIMIT_NOFILE.
  std::vector<std::string> arguments{};  // After --config FILE.
};

class DaemonProcess {
 public:
  // Serving when it returns.
  static Result<std::unique_ptr<DaemonProcess>> Start(const DaemonProcessOptions& options = {});
  ~DaemonProcess();  // Kills it, and removes the folder.
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;

  const std::string& folder() const { return folder_; }
  std::string socket() const { return folder_ + "/terraced.sock"; }
  std::string state_dir() const { return folder_ + "/state"; }
  // As metrics.listen has it.
  std::string metrics() const { return "unix:" + folder_ + "/metrics.sock"; }
  std::string config_file() const { return folder_ + "/terraced.toml"; }
  pid_t pid() const { return pid_; }

  bool Running() const;
  // SIGTERM, and the exit code; 128 + N after signal N. An error when it does not end in 20 s.
  Result<int> Stop();
  // SIGKILL, and waits for the end.
  void Kill();
  // Starts it again, after Stop or Kill, with the same configuration.
  Status Launch();
  // Waits for its end without a signal from here.
  Result<int> AwaitExit();
  // What it has written to standard error, of all its lives.
  std::string Log() const;

 private:
  DaemonProcess() = default;
  Status AwaitServing();

  std::string folder_;
  uid_t user_ = 0;
  uint64_t descriptors_ = 0;
  std::vector<std::string> arguments_;
  pid_t pid_ = -1;
  UniqueFd process_;
};

// A new folder of mode 0700 for one test, removed with everything in it at the end.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Runs terraced with these arguments until it ends by itself (at most 20 s).
struct CommandOutput {
  int exit_code = -1;
  std::string standard_output;
  std::string standard_error;
};
CommandOutput RunTerraced(const std::vector<std::string>& arguments);
// Kills it after so long. False: it had ended by itself.
bool KillTerracedWithin(const std::vector<std::string>& arguments, std::chrono::microseconds time);

}  // namespace terrace
