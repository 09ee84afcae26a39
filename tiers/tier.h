// What the engine asks of the tiers and sources below it. The engine decides, these move bytes:
// none of them knows of tenants, keys or policies.
//
// Calls are made on the owner thread. Work that takes long runs on threads of the implementation;
// its `done` is called on the owner thread, never from within the call that started it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/digest.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "tiers/extent.h"

namespace terrace {

// ---- Host memory --------------------------------------------------------------------------------
enum class ArenaUse : uint8_t {
  kSlab,   // KV pages: sealed against resizing at birth, holes can be punched.
  kBlock,  // A block of weights: written once by the daemon, then sealed against every later write.
};

// A plain word for reports: how much of the memory stands on which kind of page.
struct HostReport {
  size_t arena_bytes = 0;  // Of arenas in use: their sizes, holes included.
  size_t blank_bytes = 0;  // Of the reserve of pre-touched, never used memfds.
  size_t blank_target_bytes = 0;
  size_t hugetlb_bytes = 0;  // Of populated memory, by the means that gave it.
  size_t thp_bytes = 0;
  size_t small_page_bytes = 0;
  size_t locked_bytes = 0;  // By mlock, or by nature (hugetlb).
  std::string huge_pages;   // One sentence: what was obtained and by which means, or why not.
  std::string locking;      // Likewise for mlock.
  std::string reserve;      // "complete", "being filled", or "stopped: " and why.
};

class HostTier {
 public:
  virtual ~HostTier() = default;

  struct Created {
    ArenaId id = 0;
    bool resident = false;  // Came whole from the reserve; else nothing of it is populated yet.
  };
  // A new arena of exactly `bytes` (a multiple of 4096), all zeros, never used before.
  virtual Result<Created> Create(size_t bytes, ArenaUse use) = 0;
  // The daemon's own writable mapping; valid until Release.
  virtual std::span<uint8_t> Bytes(ArenaId arena) = 0;
  // Makes the range resident, on huge pages where possible. What is resident already costs little.
  // A range that is not resident must not be written or handed out before: its memory may go with
  // that of its neighbours.
  virtual Status Populate(const Extent& extent) = 0;
  // Gives the range's memory back; it reads as zeros. Slabs only. The engine has made sure that
  // nobody reads, writes or has registered it: whoever touches it, even reading, brings memory back
  // that no report counts.
  virtual Status Punch(const Extent& extent) = 0;
  // Blocks only: from here on nobody can make a writable mapping, whatever its uid.
  virtual Status Seal(ArenaId arena) = 0;
  // Forgets the arena; its memory is free when the last client unmaps it.
  virtual void Release(ArenaId arena) = 0;
  // A descriptor to hand to a client. Read access to a slab is a read-only reopening; a sealed
  // block has only read access.
  virtual Result<UniqueFd> Descriptor(ArenaId arena, Protection protection) = 0;
  // Keeps about `bytes` of blank arenas of Create's usual size ready, made by background threads;
  // gives up blanks beyond it at once.
  virtual void SetReserve(size_t bytes) = 0;
  // The size of a blank: slabs and blocks of at most this size, and not much smaller, come from the
  // reserve.
  virtual size_t blank_bytes() const = 0;
  virtual HostReport Report() const = 0;
};

// ---- Weight sources -----------------------------------------------------------------------------
inline constexpr size_t kMaxTensorRank = 8;
inline constexpr size_t kMaxTensorNameBytes = 4096;

struct TensorSpec {
  std::string name;             // UTF-8 without control characters, unique in its source.
  std::string dtype;            // The safetensors word, e.g. "BF16"; at most 15 bytes.
  std::vector<uint64_t> shape;  // At most kMaxTensorRank.
  uint32_t file = 0;            // Index into WeightSource::files().
  uint64_t file_offset = 0;     // Of the tensor's first byte in that file.
  uint64_t bytes = 0;
};

struct SourceFile {
  std::string path;  // Absolute; as it was given.
  uint64_t bytes = 0;
  bool reopenable = false;  // The daemon itself can open `path` and finds the same file there.
  std::string why_not;      // If not.
  Digest published;  // SHA-256 that the layout gives the file: the name of its blob; or zeros.
};

// Bytes [offset, offset + into.size()) of tensor `tensor`, to be read into `into`.
struct WeightPiece {
  uint32_t tensor = 0;
  uint64_t offset = 0;
  std::span<uint8_t> into;
};

// The image of a weight set is checked by CRC32C over every so many bytes of each of its blocks.
inline constexpr uint64_t kCheckedBytes = 2u << 20;

struct BlockRead {
  std::span<uint8_t> memory;  // All of the block: zeros where no piece goes. Empty: no checks.
  std::vector<WeightPiece> pieces;  // Within `memory`, where that is given.
};

// What came of a read, and which way the bytes came.
struct BlockBytes {
  std::vector<uint32_t>
      crcs;                   // CRC32C of every kCheckedBytes of `memory`, the rest at its end too.
  uint64_t direct_bytes = 0;  // Past the page cache.
  uint64_t cached_bytes = 0;  // Out of it.
  uint64_t buffered_bytes = 0;  // Through it, for want of O_DIRECT.
  std::string why_buffered;     // The first reason, where there is one.
};

// An opened set of weight files: checked headers and a way to read. Files stay open as long as it
// lives.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // Those of a file in the order of their data, which they cover.
  virtual const std::vector<TensorSpec>& tensors() const = 0;
  virtual const std::vector<SourceFile>& files() const = 0;
  // Reads all pieces; `done` gets the first error (data_loss for a file that became shorter,
  // deadline_exceeded for a device that does not answer). Nobody writes into them after it.
  virtual void Read(BlockRead read, std::function<void(Result<BlockBytes>)> done) = 0;
  // What changes when somebody writes to one of the files: a digest of their inode numbers, sizes
  // and times of change.
  virtual void Stamp(std::function<void(Result<Digest>)> done) = 0;
  // SHA-256 of the concatenation of `spans`. `exhausted` when too much work is waiting already.
  virtual void Hash(std::vector<std::span<const uint8_t>> spans,
                    std::function<void(Result<Digest>)> done) = 0;
  // SHA-256 of the whole file, whose bytes behind its header are `data`, in the order of the file:
  // only the header is read again. `wanted` is asked in between, before `done`: where it says no,
  // that gets `unavailable`, and `data` is read no more.
  virtual void HashFile(uint32_t file, std::vector<std::span<const uint8_t>> data,
                        std::function<bool()> wanted, std::function<void(Result<Digest>)> done) = 0;
  // Runs `work` where reads and hashes run: for what would hold up the owner thread, such as
  // sorting the names of 100,000s of tensors. It owns, or shares and does not change, all that it
  // touches. `exhausted`, and `work` did not run, when too much work is waiting already.
  virtual void Run(std::function<void()> work, std::function<void(Status)> done) = 0;
};

// ---- Images of weight sets ----------------------------------------------------------------------
// What an image is of.
struct ImageFacts {
  std::string label;  // NAME@VERSION: what it is kept by.
  Digest listing;     // Of the tensors' names, dtypes and shapes.
  Digest content;
  uint64_t image_bytes = 0;
  uint64_t block_bytes = 0;  // A multiple of 4096. What is checked are units of such blocks.
};

struct ImageRead {
  uint64_t offset = 0;        // Of the block in the image.
  uint64_t bytes = 0;         // Of the block.
  std::span<uint8_t> memory;  // The same, rounded up to 4096, at a multiple of 4096.
};

// An opened image file of the daemon.
class WeightImage {
 public:
  virtual ~WeightImage() = default;
  // CRC32C of every kCheckedBytes of each block, as they were when it was written.
  virtual const std::vector<uint32_t>& crcs() const = 0;
  // `done` as that of WeightSource::Read. A device that is overdue may write into the memory even
  // then: until `ended`, which comes after `done`.
  virtual void Read(const ImageRead& read, std::function<void(Result<BlockBytes>)> done,
                    std::function<void()> ended) = 0;
};

// Image files of weight sets, kept by the daemon: written once, read straight into blocks.
class WeightImages {
 public:
  virtual ~WeightImages() = default;
  // mismatch for a file of something else or of another format, data_loss for one that is torn.
  virtual void Open(ImageFacts facts,
                    std::function<void(Result<std::shared_ptr<WeightImage>>)> done) = 0;
  // Replaces what there was by that label; durable, whole and by that name when `done` says ok, and
  // else not there. `blocks` are read until then.
  virtual void Write(ImageFacts facts, std::vector<std::span<const uint8_t>> blocks,
                     std::vector<uint32_t> crcs, std::function<void(Status)> done) = 0;
  // Ok where there is none.
  virtual void Remove(const std::string& label, std::function<void(Status)> done) = 0;
  // At the start: removes what is there by other labels, and what was being written.
  virtual void Keep(const std::vector<std::string>& labels) = 0;
};

struct SourceRequest {
  std::vector<std::string> paths;
  std::vector<UniqueFd> fds;  // One a path, opened by the caller; or empty: open the paths.
  std::string index;          // Contents of model.safetensors.index.json, or empty.
};

class WeightSources {
 public:
  virtual ~WeightSources() = default;
  // Parses and checks every header; errors name the file and the field.
  virtual void Open(SourceRequest request,
                    std::function<void(Result<std::shared_ptr<WeightSource>>)> done) = 0;
};

// ---- Journal ------------------------------------------------------------------------------------
// What must outlive the daemon: a small ordered map of records.
class Journal {
 public:
  virtual ~Journal() = default;
  struct Record {
    std::string key;
    std::string value;
  };
  // All records whose key starts with `prefix`, in key order. For the start of the daemon: blocks.
  virtual Result<std::vector<Record>> Load(std::string_view prefix) = 0;
  // Durable (synced) when `done` is called. Calls take effect in their order.
  virtual void Put(std::string key, std::string value, std::function<void(Status)> done) = 0;
  virtual void Delete(std::string key, std::function<void(Status)> done) = 0;
};

}  // namespace terrace
