// Blocks: the memory of weights, between Weights, which decides what a block holds, and the budget
// and policy that it shares with the pages.
#pragma once

#include <string>

#include "daemon/engine/placement/evictor.h"
#include "daemon/engine/placement/host_memory.h"
#include "daemon/engine/placement/placement.h"
#include "daemon/engine/placement/residents.h"
#include "daemon/engine/weights/weights.h"

namespace terrace {

// What Weights asks for.
class Blocks final : public BlockMemory {
 public:
  Blocks(HostMemory& memory, Residents& residents, Placement& placement)
      : memory_(memory), residents_(residents), placement_(placement) {}

  Result<HostTier::Created> CreateBlock(size_t bytes) override {
    if (!placement_.MakeRoom(bytes)) {
      return Status(Code::kExhausted,
                    "host memory: " + std::to_string(bytes) +
                        " bytes of weights do not fit beside what is pinned, granted or attached");
    }
    return memory_.CreateBlock(bytes);
  }
  uint64_t capacity_bytes() const override { return memory_.capacity(); }
  void BlockReady(ArenaId arena) override {
    residents_.AddBlock(arena, *memory_.BlockBytes(arena));
  }
  void TouchBlock(ArenaId arena) override { residents_.TouchBlock(arena); }
  void ReleaseBlock(ArenaId arena) override {
    residents_.RemoveBlock(arena);
    memory_.ReleaseBlock(arena);
  }

 private:
  HostMemory& memory_;
  Residents& residents_;
  Placement& placement_;
};

// What the evictor asks of Weights, which is made after it.
class WeightBlocks final : public BlockOwner {
 public:
  void SetWeights(Weights* weights) { weights_ = weights; }
  bool Held(ArenaId arena) const override { return weights_->Held(arena); }
  void Evict(ArenaId arena) override { weights_->Evict(arena); }

 private:
  Weights* weights_ = nullptr;
};

}  // namespace terrace
