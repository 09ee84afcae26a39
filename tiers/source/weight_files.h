// The WeightSources of the daemon: safetensors files on a file system, whole or in shards.
//
// Files come as descriptors that a client opened (so that a confined daemon reads what its user
// can), or are opened by path. Either way they must be regular files. Headers are parsed and bytes
// are hashed on a WorkerPool; the files themselves are hostile input throughout: they may
// be malformed, and may be changed or cut while we read.
//
// Bytes of blocks are read by a BlockReader, past the page cache where that is possible.
//
// A request without an index may still name several files: their tensors' names must differ.
//
// Limits: kMaxSourceFiles a request, kMaxSourceTensors (safetensors.h) a file and in all.
// Thread safety: owner thread only. Results are posted to `executor`; those that the pool drops
// when it stops never come. A source may be destroyed while it reads: files stay open until the end
// of the read.
#pragma once

#include <cstddef>
#include <memory>

#include "base/executor.h"
#include "base/worker_pool.h"
#include "tiers/source/block_reader.h"
#include "tiers/tier.h"

namespace terrace {

inline constexpr size_t kMaxSourceFiles = 4096;

// All outlive what is returned, and every source that it opened. `pool` opens and hashes.
std::unique_ptr<WeightSources> MakeWeightFiles(WorkerPool& pool, Executor& executor,
                                               BlockReader& reader);

}  // namespace terrace
