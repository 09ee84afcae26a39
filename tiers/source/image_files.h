// The WeightImages of the daemon: image files in a folder of its own (docs/block_image.md), read by
// O_DIRECT straight into blocks, written once under a temporary name.
//
// Names of files are hashes of labels: a label cannot lead anywhere else. What is read is not
// believed: who has access to the folder may have put it there.
//
// Thread safety: owner thread only. Results are posted to the reader's executor.
#pragma once

#include <memory>
#include <string>

#include "base/worker_pool.h"
#include "tiers/source/block_reader.h"
#include "tiers/tier.h"

namespace terrace {

// `folder` is made by the first Write. `pool` opens, syncs and removes: as long as the file system
// takes. Both outlive it and every image that it opened.
std::unique_ptr<WeightImages> MakeImageFiles(std::string folder, WorkerPool& pool,
                                             BlockReader& reader);

}  // namespace terrace
