// Starts terrace-mover as a child. Any thread, which lives as long as the child: its end kills it.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"

namespace terrace {

inline constexpr int kMoverSocket = STDERR_FILENO + 1;  // The child's number for its socket.

// Descriptors of this process that the child has too; -1: no socket, this process's own output.
struct SpawnDescriptors {
  int socket = -1;
  int output = -1;
  int error = -1;
};
struct SpawnedMover {
  pid_t pid = 0;  // Not reaped.
  UniqueFd pidfd;
};
// Runs command[0] with nothing open but these and /dev/null as standard input; with this process's
// environment, default signals, and a process group of its own, so that a terminal's signals go to
// the daemon alone. not_found and permission_denied: of the file.
Result<SpawnedMover> SpawnMover(const std::vector<std::string>& command,
                                const SpawnDescriptors& descriptors);

}  // namespace terrace
