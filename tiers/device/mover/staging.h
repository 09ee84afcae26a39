// MoverStaging: copies between the device and host memory that is not registered, through a ring of
// memory that is.
//
// The ring has a few pieces. A piece takes as many copies of a request as it holds, or a part of
// one; between the ring and host arenas bytes are moved by threads of its own, between the ring and
// the device by the streams, so that pieces of one request are on both ways at once. Requests take
// turns piece by piece: a small one does not wait for a large one. What the ring has no room for
// waits here, within the requests that the mover takes.
//
// Thread safety: the mover's one thread.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "base/worker_pool.h"
#include "tiers/device/gpu.h"

namespace terrace {

// A stream of work, and one beside it that rings the mover's bell, so that no work waits for that.
struct MoverLane {
  GpuStream work{};
  GpuStream bell{};
};

struct MoverStagingOptions {
  uint64_t bytes = 64u << 20;  // Of the ring: `pieces` times a multiple of 4096.
  size_t pieces = 8;
  int threads = 2;
};

class MoverStaging {
 public:
  // The ring is registered when it returns. `gpu` is there until Stop; the ring until after it, for
  // its streams. `bell` is an eventfd, which is rung when Turn has something to do.
  static Result<std::unique_ptr<MoverStaging>> Start(Gpu& gpu, const MoverStagingOptions& options,
                                                     MoverLane in, MoverLane out, int bell);

  struct Copy {
    GpuAddress device = 0;
    uint8_t* host = nullptr;
    uint64_t bytes = 0;
    bool in = false;  // Into the device.
  };
  // At least one copy. The memory stays until Turn says that the request is done.
  void Add(uint64_t request, std::deque<Copy> copies, SourceOrder order);

  struct Ended {
    uint64_t request = 0;
    Status status;  // If not ok, some of its copies may have happened; none will.
  };
  // Moves all of it on as far as it can. A dead context is the only error.
  Result<std::vector<Ended>> Turn();

  uint64_t moved_bytes() const { return moved_bytes_; }

  // Waits for its threads. Nothing is called after it.
  void Stop() { threads_.reset(); }

 private:
  enum class State : uint8_t { kFree, kFilling, kMoving, kEmptying };
  struct Piece {
    State state = State::kFree;
    std::span<uint8_t> memory;
    GpuEvent event{};
    uint64_t request = 0;
    bool in = false;
    std::vector<Copy> copies;
  };
  struct Request {
    std::deque<Copy> waiting;
    SourceOrder order = SourceOrder::kStream;
    size_t pieces = 0;  // That it has.
    Status status;
  };

  MoverStaging(Gpu& gpu, MoverLane in, MoverLane out, int bell)
      : gpu_(gpu), in_(in), out_(out), bell_(bell) {}
  // What the threads have done.
  Status CollectPieces();
  Status CollectEvents();
  Status Distribute();
  void Take(Piece& piece, Request& request);
  // By a thread, from host memory into the ring or back.
  Status HandOver(size_t index, State state);
  // By a stream.
  Status Move(Piece& piece);
  void Free(Piece& piece);

  Gpu& gpu_;
  const MoverLane in_;
  const MoverLane out_;
  const int bell_;
  Mapping ring_;
  std::vector<Piece> pieces_;
  std::map<uint64_t, Request> requests_;
  std::deque<uint64_t> turns_;  // Requests with copies that wait; whose turn it is first.
  std::vector<Ended> ended_;
  uint64_t moved_bytes_ = 0;

  Mutex mu_;
  std::vector<size_t> handed_back_ GUARDED_BY(mu_);
  std::unique_ptr<WorkerPool> threads_;
};

}  // namespace terrace
