// Load: brings the missing blocks of one version into memory.
//
// It goes through these steps, several blocks at a time:
//   open the source (only after a restart) -> for each missing block: create its arena, populate it
//   (in turns, unless it came resident), read its tensors, seal it -> hash each tensor once all its
//   blocks are there -> compare with the digests on record -> write the manifest.
// Blocks are sealed as they are read: sealing all at the end would hold up the owner thread. Names
// are sorted, and digest and manifest computed, on the source's threads for the same reason.
// Reading runs ahead of hashing by nothing but what is in memory anyway. The outcome is published
// by Weights, all at once. A load that fails or is cancelled asks for nothing more and waits until
// no tier writes into its blocks; then Weights releases them.
//
// A later load reads only the blocks that were evicted. The tensors in them must then have the
// bytes they had: their own digests are compared, or, in the first load of a daemon's life, the
// digest of all of them with that of the journal.
//
// Part of Weights: owner thread only. Completions of tiers hold the load weakly.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "daemon/engine/weights/version.h"
#include "daemon/engine/weights/weights.h"

namespace terrace::weights {

inline constexpr MonotonicNs kNoDeadline = INT64_MAX;

// Someone who waits for the load.
struct Waiter {
  ClientId client = 0;
  MonotonicNs deadline = kNoDeadline;
  Engine::Progress progress;  // May be empty.
  std::function<void(Status)> done;
};

class Load final : public std::enable_shared_from_this<Load> {
 public:
  // Blocks that are being populated or read at once, and tensors that are being hashed.
  static constexpr size_t kBlocksAtOnce = 4;
  static constexpr size_t kHashesAtOnce = 8;

  using Ended = std::function<void(const std::shared_ptr<Load>& load, Status status)>;
  // `ended` is called once, when no tier works for the load any more.
  Load(const WeightsOptions& options, const WeightsParts& parts, std::shared_ptr<Version> version,
       Ended ended);

  void Start();
  void Cancel(Status why);
  // Populates up to `budget` bytes and takes them off it. True if more is waiting.
  bool Populate(uint64_t& budget);

  const std::shared_ptr<Version>& version() const { return version_; }
  std::vector<Waiter>& waiters() { return waiters_; }
  uint64_t done_bytes() const { return done_bytes_; }
  uint64_t read_bytes() const { return read_bytes_; }  // From its files.
  // Of the arenas that the load created and has not handed over.
  uint64_t arena_bytes() const { return arena_bytes_; }
  uint64_t arena_count() const { return fresh_.size() + (manifest_ != 0 ? 1 : 0); }
  void ReportProgress(const Waiter& waiter) const;

  // Blocks of the version that were resident at the start, and are held by the load for Weights.
  std::vector<uint32_t> held;

  // ---- After the end: what was loaded, to be taken over by the version or released.
  struct Fresh {
    uint32_t block = 0;
    ArenaId arena = 0;
  };
  const std::vector<Fresh>& fresh() const { return fresh_; }
  std::vector<Digest>& digests() { return digests_; }
  const Digest& content() const { return content_; }
  ArenaId manifest() const { return manifest_; }  // 0: the version has one.
  uint64_t manifest_bytes() const { return manifest_bytes_; }
  // The arenas belong to the version now.
  void HandOver() {
    fresh_.clear();
    manifest_ = 0;
    arena_bytes_ = 0;
  }

 private:
  // The completion of a call into a tier, which is counted until it comes.
  template <typename Value, typename Then>
  std::function<void(Value)> Expect(Then then);

  void Opened(Result<std::shared_ptr<WeightSource>> source);
  void Planned(std::shared_ptr<WeightSource> source, Result<Plan> plan);
  void Prepare();
  Status CheckFits() const;
  // Starts everything that can be started now, and ends the load when all is done.
  void Advance();
  void StartBlocks();
  void ReadBlock(uint32_t block);
  void BlockCame(uint32_t block, Status status);
  void StartHashes();
  // The tensor's bytes, piece by piece; empty if one of its blocks is not there yet.
  std::vector<std::span<const uint8_t>> TensorSpans(uint32_t tensor) const;
  void Hashed(uint32_t tensor, Result<Digest> digest);
  // Everything was read and hashed: checks it, and has digest and manifest computed.
  Status Finish();
  struct Finished {
    Digest content;
    std::vector<uint8_t> manifest;  // Empty: the version has one.
  };
  Status Complete(const Finished& finished);
  Status WriteManifest(const std::vector<uint8_t>& bytes);
  void Fail(Status status);
  void EndIfQuiet();
  Result<HostTier::Created> CreateArena(uint64_t bytes);

  struct Populating {
    uint32_t block = 0;
    uint64_t done_bytes = 0;
  };

  const WeightsOptions options_;
  const WeightsParts parts_;
  const std::shared_ptr<Version> version_;
  const Ended ended_;
  std::vector<Waiter> waiters_;

  std::vector<ArenaId> arenas_;    // By block: published ones and fresh ones.
  std::vector<bool> filled_;       // By block.
  std::vector<uint32_t> missing_;  // Blocks to read, in order.
  size_t next_missing_ = 0;
  size_t blocks_in_work_ = 0;
  std::deque<Populating> populating_;
  std::vector<uint32_t> to_hash_;  // Tensors, in image order.
  size_t next_hash_ = 0;
  size_t hashes_in_work_ = 0;
  std::vector<Digest> digests_;  // By tensor, in image order.

  std::vector<Fresh> fresh_;
  ArenaId manifest_ = 0;
  uint64_t manifest_bytes_ = 0;
  Digest content_;
  uint64_t done_bytes_ = 0;
  uint64_t read_bytes_ = 0;
  uint64_t arena_bytes_ = 0;
  size_t expected_ = 0;  // Completions of tiers that have not come.
  Status outcome_;
  bool planned_ = false;
  bool finishing_ = false;
  bool complete_ = false;
  bool is_over_ = false;
};

}  // namespace terrace::weights
