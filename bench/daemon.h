// A terraced of our own: started in a temporary folder, ended by its pid.
//
// One thread uses it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <utility>

#include "base/status.h"
#include "base/unique_fd.h"
#include "bench/temporary_folder.h"

namespace terrace::bench {

struct DaemonOptions {
  std::string binary;  // terraced; empty: the one beside this program, or of its build tree.
  uint64_t capacity_bytes = 1u << 30;
  uint64_t pretouch_bytes = UINT64_MAX;  // Of the capacity, made ready before Start returns.
  // Not 0: so many tenants, each with a socket of its own (socket_of), and metrics are served. The
  // first tenant's socket is socket().
  uint32_t tenants = 0;
  uint64_t store_bytes = 0;  // Not 0: it has a page store, in its folder.
  std::string devices = {};  // Lines of its configuration: [devices] and the [[device]]s.
};

class Daemon {
 public:
  // Returns when it accepts connections and has made its reserve ready, so that what is measured
  // does not share the processor with that.
  static Result<Daemon> Start(const DaemonOptions& options);
  Daemon(Daemon&& other) noexcept
      : pid_(std::exchange(other.pid_, -1)),
        pidfd_(std::move(other.pidfd_)),
        folder_(std::move(other.folder_)),
        binary_(std::move(other.binary_)) {}
  Daemon& operator=(Daemon&&) = delete;
  ~Daemon();  // Stop, whatever comes of it.

  pid_t pid() const { return pid_; }
  std::string socket() const { return folder() + "/terraced.sock"; }
  std::string socket_of(uint32_t tenant) const {
    return tenant == 0 ? socket() : folder() + "/tenant-" + std::to_string(tenant) + ".sock";
  }
  // As Scrape::From takes it.
  std::string metrics() const { return "unix:" + folder() + "/metrics.sock"; }
  // The temporary folder; gone with the daemon.
  const std::string& folder() const { return folder_.path(); }
  // Processor time of all its threads so far, from /proc.
  Result<double> ProcessorSeconds() const;
  // SIGKILL, and the same again on what that left. Returns when it is started, and accepts
  // connections some time later.
  Status KillAndLaunch();
  // Until it has made its reserve ready again, so that its threads leave the processor alone: of at
  // least so many bytes, for it takes the daemon a moment to begin with what was let go.
  Status AwaitReserve(uint64_t bytes) const;
  // SIGTERM, and SIGKILL after ten seconds. Ok if it ended by itself with exit code 0.
  Status Stop();

 private:
  Daemon() = default;
  Status WriteConfig(const DaemonOptions& options) const;
  Status Launch();
  void AwaitEnd(int* state);
  Status AwaitReady(const DaemonOptions& options) const;

  pid_t pid_ = -1;
  UniqueFd pidfd_;
  TemporaryFolder folder_;
  std::string binary_;
};

// The terraced that belongs to this program: beside it, or where the build tree has it.
Result<std::string> FindTerraced();

}  // namespace terrace::bench
