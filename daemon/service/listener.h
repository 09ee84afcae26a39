// Listener: the daemon's Unix socket in the file system.
//
// A lock file beside the socket (PATH.lock, flock) says which daemon owns the path, for as long as
// it lives; a socket that nobody answers on is removed, a live one is never taken over. The socket
// has its mode from the moment it exists. Owner thread only.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "base/unique_fd.h"
#include "daemon/service/owner_loop.h"

namespace terrace {

struct ListenerOptions {
  std::string path;
  mode_t mode = 0600;
};

class Listener {
 public:
  using Accepted = std::function<void(UniqueFd)>;

  // Creates the missing last folder of the path with mode 0700. `accepted` gets each connection:
  // non-blocking, close-on-exec, with SO_PASSCRED since before its first byte.
  static Result<std::unique_ptr<Listener>> Open(const ListenerOptions& options, OwnerLoop& loop,
                                                Accepted accepted);
  ~Listener();  // Removes the socket and the lock file.

  const std::string& path() const { return path_; }
  // Accepts again after accept() had failed for want of descriptors. To be called about once a
  // second.
  void Sweep();

 private:
  Listener(std::string path, UniqueFd lock, Accepted accepted)
      : path_(std::move(path)), lock_(std::move(lock)), accepted_(std::move(accepted)) {}
  Status Listen(mode_t mode, OwnerLoop& loop);
  void OnReadable();

  const std::string path_;
  const UniqueFd lock_;
  const Accepted accepted_;
  OwnerLoop::Watch watch_;
  bool bound_ = false;
  bool out_of_descriptors_ = false;
};

// Where the file of this path lies; "." if the path names no folder.
std::string FolderOf(const std::string& path);

// A folder of the daemon's own: created with mode 0700 if missing (its parents too), else it must
// belong to this user and be writable by nobody else.
Status MakePrivateFolder(const std::string& path);

}  // namespace terrace
