// The directories of a store: whose they are, and that one process has them. Blocking; at the start
// and in fsck only.
//
// A directory is ours by its marker (format.h). What is not ours, or of a format that this program
// does not know, is refused by name and left as it is.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "tiers/nvme/format.h"

namespace terrace::nvme {

struct StoreDirectory {
  std::string path;
  UniqueFd lock;    // Held until it closes.
  UniqueFd marker;  // O_DIRECT, for probes. None of a directory that is off.
  std::string off;  // Why it is not used; empty where it is.
};

struct StoreDirectories {
  StoreUuid store{};
  std::vector<StoreDirectory> devices;  // As they were given.
};

struct OpenDirectoriesOptions {
  // Empty directories become a store when all are, and further devices of one beyond those it had.
  bool make = true;
  // An empty directory where a device of the store was becomes that device again, without pages.
  // Only where somebody asked for it: it may be the place of a disk that is not mounted.
  bool adopt_empty = false;
};

// The first directory holds the index: without it there is no store. A further device of the store
// whose directory is gone, empty, another user's, or cannot be read is off; that the first one is
// so is an error.
//   not_found    the first directory, or one that the store never had, is not there; or it is empty
//                and none is to be made;
//   mismatch     something else's, another store's, another number of devices, another format;
//   permission_denied  another user's, or others may write there;
//   data_loss    a marker is damaged;
//   unavailable  another process has it; the message names it where it is known.
Result<StoreDirectories> OpenDirectories(std::span<const std::string> paths,
                                         const OpenDirectoriesOptions& options, const Clock& clock);

// All entries but "." and "..".
Result<std::vector<std::string>> NamesIn(const std::string& directory);
// Of a file system mounted read-only there is nothing to make durable.
Status SyncDirectory(const std::string& directory);

}  // namespace terrace::nvme
