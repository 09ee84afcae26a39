// Collector: takes a snapshot for a scrape on the owner thread, a bounded step a turn of the loop,
// so that clients are served in between.
//
// A step reads kLinesAStep lines of clients' channels; the last one takes the rest, which costs by
// tenant and space. Whoever asks while a snapshot is being taken gets that one. Owner thread only;
// it outlives its tasks in the loop.
#pragma once

#include <functional>
#include <vector>

#include "daemon/engine/engine.h"
#include "daemon/service/metrics/snapshot.h"
#include "daemon/service/owner_loop.h"

namespace terrace {

class Collector {
 public:
  // A line that another processor wrote last takes some 100 ns. One client has 64 lanes of 5 lines
  // and 8,192 lines of pins: a step may overshoot by that.
  static constexpr size_t kLinesAStep = 2048;

  struct Parts {
    OwnerLoop* loop = nullptr;
    Engine* engine = nullptr;
    std::function<ServiceFigures()> service;
    std::function<QueueFigures()> queues;
  };
  using Done = std::function<void(SnapshotPtr)>;

  explicit Collector(Parts parts) : parts_(std::move(parts)) {}
  // Calls `done` once, later.
  void Collect(Done done);

 private:
  void Step();
  void Finish();

  const Parts parts_;
  Engine::FiguresCursor cursor_;
  std::vector<Done> waiting_;  // Not empty: a snapshot is being taken.
};

}  // namespace terrace
