// Load: brings the missing blocks of one version into memory.
//
// It goes through these steps, several blocks at a time:
//   open the source (only after a restart), take its stamp, open the image file if there is one ->
//   for each missing block: create its arena, populate it (in turns, unless it came resident), read
//   its tensors, compare its CRC32C with those on record, seal it -> without such, or where the
//   files were touched since they were made: hash each tensor once all its blocks are there, and
//   compare with the digests on record -> write the manifest.
// Blocks are sealed as they are read: sealing all at the end would hold up the owner thread. Names
// are sorted, and digest and manifest computed, on the source's threads for the same reason.
// Reading runs ahead of hashing by nothing but what is in memory anyway. The outcome is published
// by Weights, all at once. A load that fails or is cancelled asks for nothing more and waits until
// no tier writes into its blocks; then Weights releases them.
//
// A later load reads only the blocks that were evicted. They must then have the bytes they had:
// their checks are compared (checks.h), and, where those are not enough, the digests of the tensors
// in them, or that of all tensors where this life of the daemon has not hashed them yet.
//
// For who waits early the manifest is written as soon as the plan is there, and told by `drafted`;
// then each block that came by `came`. It has the digest on record, or zeros where there is none.
//
// A file whose layout names its SHA-256 (SourceFile::published) is hashed as a whole when the set
// is loaded for the first time: out of the blocks, so that nothing but its header is read twice.
//
// A block that the image file does not give, or not as it was, is read from the safetensors files.
// A device that does not answer fails the load; blocks that it may still write into stay until it
// has let go.
//
// Part of Weights: owner thread only. Completions of tiers hold the load weakly.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "daemon/engine/durations.h"
#include "daemon/engine/weights/checks.h"
#include "daemon/engine/weights/version.h"
#include "daemon/engine/weights/weights.h"

namespace terrace::weights {

inline constexpr MonotonicNs kNoDeadline = INT64_MAX;

// Someone who waits for the load.
struct Waiter {
  ClientId client = 0;
  TenantId tenant = 0;
  MonotonicNs deadline = kNoDeadline;
  Progress progress;  // May be empty.
  std::function<void(Status)> done;
  bool early = false;  // Waits for the manifest only.
};

class Load final : public std::enable_shared_from_this<Load> {
 public:
  // Blocks that are being populated or read at once, and tensors that are being hashed.
  static constexpr size_t kBlocksAtOnce = 4;
  static constexpr size_t kHashesAtOnce = 8;

  struct Events {
    // Once, when no tier works for the load any more.
    std::function<void(const std::shared_ptr<Load>& load, Status status)> ended;
    // For each arena of with_device() at the end, maybe long after that of the load.
    std::function<void(ArenaId)> let_go;
    // The plan is there, and a manifest: that of the version, or manifest() to be taken over.
    // Called once if anybody waits early.
    std::function<void(Load& load)> drafted;
    // A block has come; after `drafted`.
    std::function<void(Load& load)> came;
  };
  Load(const WeightsOptions& options, const WeightsParts& parts, std::shared_ptr<Version> version,
       Events events);

  void Start();
  // A waiter was added that waits early.
  void Draft();
  void Cancel(Status why);
  // Populates up to `budget` bytes and takes them off it. True if more is waiting.
  bool Populate(uint64_t& budget);

  // The block's arena, once it is complete and sealed; else 0.
  ArenaId ArenaOf(uint32_t block) const { return filled_[block] ? arenas_[block] : 0; }
  bool drafted() const { return drafted_; }
  // The manifest belongs to the version now.
  void HandOverManifest();

  const std::shared_ptr<Version>& version() const { return version_; }
  std::vector<Waiter>& waiters() { return waiters_; }
  uint64_t done_bytes() const { return done_bytes_; }
  uint64_t read_bytes() const { return read_bytes_; }  // From its files.
  const Durations& read_times() const { return read_times_; }
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
  // Where a device that is overdue may still write.
  const std::set<ArenaId>& with_device() const { return with_device_; }
  const std::string& image_problem() const { return image_problem_; }  // Empty: none was found.
  // Every block came out of the image file.
  bool from_image() const { return file_ != nullptr && missing_.size() == filled_.size(); }
  const LoadedBy& loaded() const { return loaded_; }
  // Of a load that read and hashed everything.
  std::optional<Checks> NewChecks() const;
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
  void TakeStamp();
  void Stamped(const Result<Digest>& stamp);
  void ImageOpened(Result<std::shared_ptr<WeightImage>> image);
  void Prepare();
  Status CheckFits() const;
  // Starts everything that can be started now, and ends the load when all is done.
  void Advance();
  void StartBlocks();
  void ReadBlock(uint32_t block);
  void ReadImage(uint32_t block);
  void ReadFiles(uint32_t block);
  void ImageCame(uint32_t block, Result<BlockBytes> read);
  void BlockCame(uint32_t block, const Result<BlockBytes>& read);
  // Names the first tensor that differs, and its file.
  Status CompareCrcs(uint32_t block, const std::vector<uint32_t>& crcs, bool of_image) const;
  Status DiffersAt(uint64_t begin, uint64_t end, bool of_image) const;
  // What is there and what comes is not enough to be believed: the tensors are hashed.
  void RequireHashes();
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
  // Files that have a published digest, once all their tensors are there.
  void ListFilesToHash();
  void StartFileHashes();
  bool IsThere(uint32_t tensor) const;  // It has bytes.
  void FileHashed(uint32_t file, const Result<Digest>& digest);
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
  const Events events_;
  std::vector<Waiter> waiters_;

  std::shared_ptr<const Checks> checks_;  // Null: there are none that fit.
  std::shared_ptr<WeightImage> file_;     // Null: there is no image, or it is of no use.
  std::string image_problem_;
  Digest stamp_;
  bool hashes_ = false;         // The tensors of to_hash_ are hashed.
  std::vector<uint32_t> crcs_;  // Of the image's units; zero of blocks that were not read.
  std::set<ArenaId> with_device_;
  LoadedBy loaded_;

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
  // Files to be hashed as a whole.
  struct FileToHash {
    std::vector<uint32_t> tensors;  // Those that have bytes, in the order of the file.
    size_t there = 0;               // The first so many of them are.
  };
  std::map<uint32_t, FileToHash> files_to_hash_;
  size_t file_hashes_in_work_ = 0;

  std::vector<Fresh> fresh_;
  ArenaId manifest_ = 0;
  uint64_t manifest_bytes_ = 0;
  Digest content_;
  uint64_t done_bytes_ = 0;
  uint64_t read_bytes_ = 0;
  std::map<uint32_t, MonotonicNs> reading_;  // Blocks, since when.
  Durations read_times_;
  uint64_t arena_bytes_ = 0;
  size_t expected_ = 0;  // Completions of tiers that have not come.
  Status outcome_;
  bool planned_ = false;
  bool drafting_ = false;  // The manifest is being written for who waits early.
  bool drafted_ = false;
  bool finishing_ = false;
  bool complete_ = false;
  bool is_over_ = false;
};

}  // namespace terrace::weights
