// Socket activation: the listening sockets that the service manager opened before it started the
// daemon (sd_listen_fds(3)). They are there from boot on, survive the daemon, and have whatever
// owner, group and mode the unit says without the daemon having any privilege.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "daemon/service/config.h"

namespace terrace {

inline constexpr int kFirstActivatedFd = 3;
inline constexpr int kMostActivatedSockets = 256;

struct ActivatedSocket {
  std::string name;  // FileDescriptorName= of its unit; the unit's own name if it says none.
  std::string path;  // Where it is bound; empty in the abstract namespace.
  UniqueFd fd;       // Close-on-exec, non-blocking.
};

// What the manager put into the environment; texts as they are there.
struct ListenEnvironment {
  std::string pid;    // LISTEN_PID
  std::string count;  // LISTEN_FDS
  std::string names;  // LISTEN_FDNAMES
};
// Reads the environment and removes these variables. To be called before there are threads.
ListenEnvironment TakeListenEnvironment();

// The names of the descriptors from kFirstActivatedFd on; none if they are meant for another
// process.
Result<std::vector<std::string>> ActivatedNames(const ListenEnvironment& environment, pid_t self);

// Checks that it is a listening Unix stream socket, and readies it.
Result<ActivatedSocket> AdoptListening(UniqueFd fd, std::string name);

// Both, for all.
Result<std::vector<ActivatedSocket>> TakeActivatedSockets(const ListenEnvironment& environment,
                                                          pid_t self);

// The number of the one of `wanted` that a given socket is for: by the name it is configured with,
// else by its path. Their count if it is for none.
size_t PlaceOf(const ActivatedSocket& given, const std::vector<SocketConfig>& wanted);

// The error of a second given socket for the configured one of this path.
Status SecondFor(const std::string& path, const ActivatedSocket& given);

struct MatchedSockets {
  std::vector<std::optional<ActivatedSocket>> wanted;  // For each of the configuration, or none.
  std::vector<ActivatedSocket> others;                 // Which the configuration does not know.
};
// An error when two are for the same one.
Result<MatchedSockets> MatchSockets(const std::vector<SocketConfig>& wanted,
                                    std::vector<ActivatedSocket> given);

}  // namespace terrace
