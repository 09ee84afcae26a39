// Who is at the other end of a socket, as the kernel says it.
//
// The process is named by a pidfd, which cannot come to mean another process as a pid can. Values;
// any thread.
#pragma once

#include <sys/types.h>

#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"

namespace terrace {

inline constexpr gid_t kNoGroup = static_cast<gid_t>(-1);  // No group has that number.

struct Peer {
  pid_t pid = 0;
  uid_t uid = 0;     // Effective, at the time of connect().
  gid_t gid = 0;     // kNoGroup: one that the daemon's user namespace does not map.
  UniqueFd process;  // A pidfd: readable when the process is gone.
};

// By SO_PEERCRED, and SO_PEERPIDFD where the kernel has it. Elsewhere by pidfd_open, which could
// hit a process that took over the pid of one that died since connect(): hence every message is
// compared with the pid again, and ProcessIsGone is asked once more before anything is handed out.
//
// The kernel tells users as the daemon's own user namespace maps them. Those that it does not map
// look all the same, and like the user of kernel.overflowuid: `permission_denied`.
Result<Peer> PeerOf(int socket);

// Its supplementary groups at the time of connect(), by SO_PEERGROUPS, but those that the daemon's
// user namespace does not map. Asked for when needed and
// not kept: a process may have 65536 of them.
Result<std::vector<gid_t>> GroupsOf(int socket);

// Whether a pidfd's process has ended (a zombie has).
bool ProcessIsGone(int pidfd);

}  // namespace terrace
