#include "daemon/service/peer.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77  // Since Linux 6.5; Debian 12's headers are older.
#endif

namespace terrace {

Result<Peer> PeerOf(int socket) {
  ucred credentials{};
  socklen_t bytes = sizeof credentials;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) != 0) {
    return SystemError("SO_PEERCRED", errno);
  }
  if (credentials.pid <= 0) {
    return Status(Code::kPermissionDenied,
                  "peer: its process cannot be seen from the daemon's pid namespace");
  }
  Peer peer{credentials.pid, credentials.uid, credentials.gid, UniqueFd()};
  int pidfd = -1;
  bytes = sizeof pidfd;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &bytes) == 0) {
    peer.process.Reset(pidfd);
    return peer;
  }
  if (errno != ENOPROTOOPT) return SystemError("SO_PEERPIDFD", errno);
  peer.process.Reset(static_cast<int>(::syscall(SYS_pidfd_open, peer.pid, 0)));
  if (!peer.process) return SystemError("pidfd_open of the peer", errno);
  return peer;
}

Result<std::vector<gid_t>> GroupsOf(int socket) {
  std::vector<gid_t> groups(64);
  for (;;) {
    auto bytes = static_cast<socklen_t>(groups.size() * sizeof(gid_t));
    const bool whole = ::getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &bytes) == 0;
    const size_t count = bytes / sizeof(gid_t);
    // They never change, so at most one more try is needed.
    if (!whole && (errno != ERANGE || count <= groups.size())) {
      return SystemError("SO_PEERGROUPS", errno);
    }
    groups.resize(count);
    if (whole) return groups;
  }
}

bool ProcessIsGone(int pidfd) {
  pollfd entry{pidfd, POLLIN, 0};
  return ::poll(&entry, 1, 0) == 1;
}

}  // namespace terrace
