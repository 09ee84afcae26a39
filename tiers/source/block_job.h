// BlockJob: one reading of a block, or one writing of an image, cut into chunks of at most
// kChunkBytes: what is asked of the device at a time. It holds everything that its chunks touch.
//
// Made by one thread, then of the BlockReader: `chunks` and what it points to do not change once it
// is planned; the counters are the reader's, under its mutex, but for Unit::left.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "tiers/source/direct_file.h"
#include "tiers/tier.h"

namespace terrace {

inline constexpr size_t kChunkBytes = kCheckedBytes;
inline constexpr uint64_t kDirectAlignment = kIoAlignment;

// A file of a job. `fd` and `path` belong to what `BlockJob::keep` holds.
struct JobFile {
  int fd = -1;
  uint64_t bytes = 0;
  const std::string* path = nullptr;
  std::shared_ptr<DirectFile> direct;  // Null: read through the page cache.
};

// Bytes of a file and where they go; of a job that writes, where they come from.
struct FilePiece {
  size_t file = 0;  // Of the job.
  uint64_t offset = 0;
  std::span<uint8_t> into;
};

// A part of a piece that lies in one chunk and in one unit of the memory.
struct ChunkPart {
  uint32_t unit = 0;
  uint64_t offset = 0;  // In the file.
  std::span<uint8_t> into;
};

struct Chunk {
  size_t file = 0;
  uint64_t offset = 0;  // In the file, of the first part.
  uint64_t end = 0;     // Of the last one.
  size_t first_part = 0;
  size_t parts = 0;
  bool cached_only = false;  // Beyond the last whole page of the file: never past the page cache.
};

struct BlockJob {
  enum class Kind : uint8_t {
    kPlaced,    // Parts are copied from a buffer to where they belong.
    kStraight,  // Chunks are units, whole and aligned: the device writes into their memory.
    kWrite,     // Parts are copied into a buffer that is written.
  };
  Kind kind = Kind::kPlaced;
  std::span<uint8_t> memory;  // To be checked by units of kCheckedBytes; may be empty.
  std::vector<FilePiece> pieces;
  std::vector<JobFile> files;
  std::shared_ptr<const void> keep;
  std::function<void(BlockJob&)> prepare;  // May be empty. On a worker, before it is planned.
  // On the owner thread: `done` once nobody works for the job but a device that is overdue, `ended`
  // after it, once that has let go too.
  std::function<void(Result<BlockBytes>)> done;
  std::function<void()> ended;

  // ---- Planned (block_job.cc)
  std::vector<Chunk> chunks;
  std::vector<ChunkPart> parts;
  struct Unit {
    std::atomic<uint64_t> left = 0;  // Bytes that have not come.
    uint32_t crc = 0;
  };
  std::unique_ptr<Unit[]> units;
  size_t unit_count = 0;

  // ---- Under the reader's mutex
  bool planned = false;
  size_t next = 0;     // The first chunk that nobody took.
  size_t busy = 0;     // Chunks taken, and neither done nor overdue; the planning counts.
  size_t overdue = 0;  // Answered, but still with the device.
  bool finished = false;
  Status status;
  BlockBytes result;

  // Cuts the pieces into chunks; computes the CRC of units that nothing goes into.
  void Plan();
  std::span<const ChunkPart> PartsOf(const Chunk& chunk) const {
    return std::span(parts).subspan(chunk.first_part, chunk.parts);
  }
  // All parts of the chunk are in memory. Units that are complete by that get their CRC.
  void Arrived(const Chunk& chunk);

 private:
  void PlanUnits();
  void AddPart(uint64_t offset, std::span<uint8_t> into);
};

// Reads all of `into` from `offset` on with pread, or says why not: data_loss when the file ends
// before it. Errors do not name the file.
Status ReadAt(int fd, uint64_t offset, std::span<uint8_t> into);
// The same, but only what the page cache has: false when that is not all.
bool ReadCachedAt(int fd, uint64_t offset, std::span<uint8_t> into);

}  // namespace terrace
