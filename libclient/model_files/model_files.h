// Which files make up a model: what `terracectl model add --from PATH` opens.
//
// PATH may be
//   - a .safetensors file;
//   - a directory as Hugging Face lays it out: model.safetensors, or else
//     model.safetensors.index.json with the shards that it names, or else a single .safetensors
//     file;
//   - model.safetensors.index.json itself;
//   - a model's folder of the hub cache (models--ORG--NAME): the snapshot that refs/main names, or
//     the only one there is.
// The hub cache keeps symbolic links to blobs: paths are those of the links, whose names the index
// uses, and opening follows them.
//
// Runs in the client's process, with its user's rights. Thread safety: functions without state.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"

namespace terrace {

struct ModelFiles {
  std::vector<std::string> paths;  // Absolute; shards in the order of their names, each once.
  std::string index;               // Contents of model.safetensors.index.json, or empty.
};

// The daemon takes no more files of a model; above 253, the descriptors of one message, it opens
// them itself by their paths.
inline constexpr size_t kMaxModelFiles = 1024;
// The index goes in one message (8 MiB), and leaves room for the paths.
inline constexpr size_t kMaxModelIndexBytes = 7u << 20;

// Errors name the path and say what was looked for.
Result<ModelFiles> FindModelFiles(const std::string& path);

// Opens every file for reading, in order. Whether they hold what they should is for the daemon.
Result<std::vector<UniqueFd>> OpenModelFiles(const ModelFiles& files);

}  // namespace terrace
