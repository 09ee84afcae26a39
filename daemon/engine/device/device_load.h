// DeviceLoad: brings one version of a model into the memory of one device, through host memory.
//
// It is a client of Weights: attached early, so that blocks are copied while others are still read.
// Several blocks go through these steps at once:
//   wait until the block is in host memory and its arena of the device is there -> give the host
//   arena to the tier -> copy it, piece by piece -> take it from the tier again -> let go of it, so
//   that it may be evicted from host memory.
// It has come when all blocks have, and the load of host memory has checked out: a block's bytes
// are copied before their digest is known, and nobody sees them before.
//
// Room for all of it is taken at once: two loads that each had half of what they need would wait
// for each other. A load that fails tells its waiters at once, asks for nothing more, waits until
// the tier works for it no more, and gives back everything.
//
// Part of DeviceWeights: owner thread only. Completions hold the load weakly.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "daemon/engine/device/device_arenas.h"
#include "daemon/engine/weights/image.h"
#include "daemon/engine/weights/weights.h"
#include "tiers/tier.h"

namespace terrace {

struct DeviceWaiter {
  ClientId client = 0;
  TenantId tenant = 0;
  MonotonicNs deadline = 0;  // 0: none.
  Progress progress;         // May be empty.
  std::function<void(Status)> done;
};

class DeviceLoad final : public std::enable_shared_from_this<DeviceLoad> {
 public:
  // As many as are read at once: so many host blocks wait for the device, and no more.
  static constexpr size_t kBlocksAtOnce = 4;
  // Of one request. At 25 GB/s it takes 0.7 ms, which outweighs the hundred microseconds of asking;
  // one a block is under way, so that a page which is asked for meanwhile waits for 3 ms of them.
  static constexpr uint64_t kPieceBytes = 16u << 20;

  struct Parts {
    Weights* weights = nullptr;
    HostTier* host = nullptr;
    DeviceArenas* arenas = nullptr;
    const Clock* clock = nullptr;
  };
  // What it is of, and the client of Weights that it is: one of its own.
  struct Of {
    std::string name;
    std::string version;
    uint64_t ordinal = 0;  // Weights::Registration.
    ClientId holder = 0;
  };
  using Ended = std::function<void(const std::shared_ptr<DeviceLoad>& load)>;
  DeviceLoad(const Parts& parts, Of of, Ended ended);

  void Start();
  void Cancel(Status why);
  // Takes up what the tier refused to take back.
  void Turn();

  // ---- Room: its blocks are known, and there are no arenas for them yet.
  bool WantsRoom() const { return image_ != nullptr && blocks_.empty() && outcome_.ok(); }
  uint64_t bytes() const { return bytes_; }  // What it needs of the device.
  // Since when it waits; set by who decides.
  MonotonicNs waits_since = 0;
  void TakeRoom();

  // Waiters that come after a failure are for the next load.
  std::vector<DeviceWaiter>& waiters() { return waiters_; }
  void ReportProgress(const DeviceWaiter& waiter) const;
  bool Uses(ArenaId arena) const;

  const Of& of() const { return of_; }
  const Status& outcome() const { return outcome_; }
  // ---- Of one that has come: the attachment is its successor's, which detaches.
  const Attached& attached() const { return attached_; }
  const ModelLoaded& loaded() const { return loaded_; }
  const std::shared_ptr<const weights::Image>& image() const { return image_; }
  std::vector<ArenaId> Arenas() const;

 private:
  struct Block {
    ArenaId arena = 0;  // Of the device.
    bool came = false;  // It is in host memory.
    ArenaId host = 0;   // While the tier has it, or is asked for that.
    uint64_t copied = 0;
  };
  std::string Label() const;
  uint64_t BlockBytes(uint32_t block) const {
    return image_->BlockEnd(block) - image_->BlockBegin(block);
  }
  // The completion of a call into the tier, which is counted until it comes.
  template <typename Then>
  std::function<void(Status)> Expect(Then then);

  void OnAttached(Result<Attached> attached);
  void OnHostLoaded(Result<ModelLoaded> loaded);
  Status CheckFits();
  void Advance();
  void AwaitHost(uint32_t block);
  void Begin(uint32_t block);
  Status GiveToTier(uint32_t block);
  void CopyNext(uint32_t block);
  void TakeFromTier(uint32_t block);
  void BlockDone(uint32_t block);
  void Fail(Status status);
  void EndIfQuiet();

  const Parts parts_;
  const Of of_;
  const Ended ended_;
  std::vector<DeviceWaiter> waiters_;

  Attached attached_;  // While attachment is not 0.
  std::shared_ptr<const weights::Image> image_;
  ModelLoaded loaded_;
  bool host_loaded_ = false;
  uint64_t bytes_ = 0;

  std::vector<Block> blocks_;  // Empty: there is no room yet.
  uint32_t next_block_ = 0;
  size_t blocks_in_work_ = 0;
  uint64_t copied_bytes_ = 0;
  size_t expected_ = 0;            // Completions of the tier that have not come.
  std::vector<uint32_t> retries_;  // Blocks whose host arenas the tier did not let go of.
  Status outcome_;
  bool is_over_ = false;
};

}  // namespace terrace
