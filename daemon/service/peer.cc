#include "daemon/service/peer.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <fstream>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77  // Since Linux 6.5; Debian 12's headers are older.
#endif

namespace terrace {

namespace {

// As whom the kernel shows every user, or group, that the daemon's user namespace does not map.
uint32_t ReadUnmapped(const char* setting) {
  std::ifstream in(setting);
  uint32_t id = 0;
  return in >> id ? id : 65534;  // The kernel's default.
}
uid_t UnmappedUser() {
  static const uid_t user = ReadUnmapped("/proc/sys/kernel/overflowuid");
  return user;
}
gid_t UnmappedGroup() {
  static const gid_t group = ReadUnmapped("/proc/sys/kernel/overflowgid");
  return group;
}

// Of /proc/self/uid_map or gid_map. Where all are mapped, as outside of containers, that number is
// somebody: nobody, nogroup.
bool MapsEverybody(const char* map) {
  std::ifstream in(map);
  uint64_t inside = 0;
  uint64_t outside = 0;
  uint64_t count = 0;
  return in >> inside >> outside >> count && count == UINT32_MAX;
}

bool IsUnmappedGroup(gid_t group) {
  return group == UnmappedGroup() && !MapsEverybody("/proc/self/gid_map");
}

}  // namespace

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
  if (credentials.uid == UnmappedUser() && !MapsEverybody("/proc/self/uid_map")) {
    return Status(Code::kPermissionDenied,
                  "peer: its user cannot be told from others in the daemon's user namespace, which "
                  "does not map it");
  }
  const gid_t group = IsUnmappedGroup(credentials.gid) ? kNoGroup : credentials.gid;
  Peer peer{credentials.pid, credentials.uid, group, UniqueFd()};
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
    if (!whole) continue;
    const gid_t unmapped = UnmappedGroup();
    if (std::find(groups.begin(), groups.end(), unmapped) != groups.end() &&
        IsUnmappedGroup(unmapped)) {
      std::erase(groups, unmapped);
    }
    return groups;
  }
}

bool ProcessIsGone(int pidfd) {
  pollfd entry{pidfd, POLLIN, 0};
  return ::poll(&entry, 1, 0) == 1;
}

}  // namespace terrace
