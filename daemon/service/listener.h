// Listener: one Unix socket of the daemon in the file system.
//
// A lock file beside the socket (PATH.lock, flock) says which daemon owns the path, for as long as
// it lives; a socket that nobody answers on is removed, a live one is never taken over. The socket
// is never wider open than its mode, from the moment it exists.
//
// A socket that was made by somebody else (socket activation) is taken as it is: its path, owner,
// mode and end are that one's. Owner thread only.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/status.h"
#include "base/unique_fd.h"
#include "daemon/service/owner_loop.h"
#include "daemon/service/systemd/activation.h"

namespace terrace {

struct ListenerOptions {
  std::string path;
  mode_t mode = 0600;
  std::optional<uid_t> owner = {};  // None: the daemon's. Another one takes CAP_CHOWN.
  std::optional<gid_t> group = {};  // Likewise, or to be in that group.
  // Already listening, here or elsewhere: nothing is bound, changed or removed.
  std::optional<ActivatedSocket> given = {};
};

class Listener {
 public:
  using Accepted = std::function<void(UniqueFd, const std::string& path)>;

  // Creates the missing last folder of the path with mode 0700. `accepted` gets each connection:
  // non-blocking, close-on-exec, with SO_PASSCRED since before its first byte. (The kernel adds
  // credentials to what is sent to a given socket before it is accepted.)
  static Result<std::unique_ptr<Listener>> Open(ListenerOptions options, OwnerLoop& loop,
                                                Accepted accepted);
  ~Listener();  // Removes the socket and the lock file, unless it was given.

  // As it is configured: a given one may be bound elsewhere. Of one that is no configured one a
  // text that is nobody's path.
  const std::string& path() const { return path_; }
  // A given socket as it was given, but for its descriptor.
  const std::optional<ActivatedSocket>& given() const { return given_; }
  // From now on a given socket is the configured one of this path; empty: none, whatever it is
  // bound to.
  void ServeAs(const std::string& path);
  // Accepts again after accept() had failed for want of descriptors. To be called about once a
  // second.
  void Sweep();

 private:
  Listener(std::string path, UniqueFd lock, Accepted accepted)
      : path_(std::move(path)), lock_(std::move(lock)), accepted_(std::move(accepted)) {}
  Status Bind(const ListenerOptions& options, int socket);
  Status Watch(UniqueFd socket, OwnerLoop& loop);
  void OnReadable();

  std::string path_;
  const UniqueFd lock_;  // None for a given socket.
  std::optional<ActivatedSocket> given_;
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
