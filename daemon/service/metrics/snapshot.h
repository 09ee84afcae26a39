// Snapshot: what one scrape tells. Filled on the owner thread, read on the server's.
#pragma once

#include <cstdint>
#include <memory>

#include "daemon/engine/figures.h"
#include "daemon/service/owner_loop.h"
#include "daemon/service/reports.h"

namespace terrace {

// Work that waits for a thread of the daemon.
struct QueueFigures {
  uint64_t touch_tasks = 0;
  uint64_t read_tasks = 0;
  uint64_t journal_writes = 0;
};

struct Snapshot {
  EngineFigures engine;
  ServiceFigures service;
  QueueFigures queues;
  LoopTimes loop;
};
using SnapshotPtr = std::shared_ptr<const Snapshot>;

}  // namespace terrace
