#include "tiers/source/block_job.h"

#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "kernels/crc32c.h"

namespace terrace {
namespace {

// Tensors that are not wanted, or paddings, up to so many bytes are read along: a request more
// costs about as much.
constexpr uint64_t kMaxGapBytes = 64u << 10;

uint64_t AlignDown(uint64_t value) {
  return value - value % kDirectAlignment;
}

}  // namespace

Status ReadAt(int fd, uint64_t offset, std::span<uint8_t> into) {
  size_t read = 0;
  while (read < into.size()) {
    const ssize_t got =
        pread(fd, into.data() + read, into.size() - read, static_cast<off_t>(offset + read));
    if (got < 0) {
      if (errno == EINTR) continue;
      return SystemError("reading at byte " + std::to_string(offset + read), errno);
    }
    if (got == 0) {
      return {Code::kDataLoss,
              "the file became shorter: nothing is left at byte " + std::to_string(offset + read)};
    }
    read += static_cast<size_t>(got);
  }
  return {};
}

bool ReadCachedAt(int fd, uint64_t offset, std::span<uint8_t> into) {
  size_t read = 0;
  while (read < into.size()) {
    const iovec left{.iov_base = into.data() + read, .iov_len = into.size() - read};
    const ssize_t got = preadv2(fd, &left, 1, static_cast<off_t>(offset + read), RWF_NOWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    read += static_cast<size_t>(got);
  }
  return true;
}

void BlockJob::Plan() {
  PlanUnits();
  std::sort(pieces.begin(), pieces.end(), [](const FilePiece& a, const FilePiece& b) {
    return std::pair(a.file, a.offset) < std::pair(b.file, b.offset);
  });
  for (FilePiece piece : pieces) {
    while (!piece.into.empty()) {
      // A unit's border, and, where it is read past the page cache, the last whole page of the file
      // are borders of parts.
      uint64_t most = piece.into.size();
      if (unit_count > 0) {
        const auto at = static_cast<uint64_t>(piece.into.data() - memory.data());
        most = std::min(most, kCheckedBytes - at % kCheckedBytes);
      }
      const JobFile& file = files[piece.file];
      const uint64_t whole = AlignDown(file.bytes);
      if (file.direct != nullptr && kind == Kind::kPlaced && piece.offset < whole) {
        most = std::min(most, whole - piece.offset);
      }
      // A chunk's buffer begins with the page that it begins in.
      const Chunk* last = chunks.empty() ? nullptr : &chunks.back();
      const bool tail = file.direct != nullptr && kind == Kind::kPlaced && piece.offset >= whole;
      const bool joins = last != nullptr && last->file == piece.file && last->cached_only == tail &&
                         piece.offset <= last->end + kMaxGapBytes &&
                         piece.offset < AlignDown(last->offset) + kChunkBytes &&
                         kind != Kind::kStraight;
      const uint64_t begin = joins ? last->offset : piece.offset;
      if (!joins) {
        chunks.push_back({.file = piece.file,
                          .offset = piece.offset,
                          .end = piece.offset,
                          .first_part = parts.size(),
                          .parts = 0,
                          .cached_only = tail});
      }
      most = std::min(most, AlignDown(begin) + kChunkBytes - piece.offset);
      AddPart(piece.offset, piece.into.first(most));
      piece.offset += most;
      piece.into = piece.into.subspan(most);
    }
  }
}

void BlockJob::AddPart(uint64_t offset, std::span<uint8_t> into) {
  Chunk& chunk = chunks.back();
  const auto unit =
      unit_count == 0 ? 0 : static_cast<uint32_t>((into.data() - memory.data()) / kCheckedBytes);
  parts.push_back({.unit = unit, .offset = offset, .into = into});
  ++chunk.parts;
  chunk.end = std::max(chunk.end, offset + into.size());
}

void BlockJob::PlanUnits() {
  unit_count = (memory.size() + kCheckedBytes - 1) / kCheckedBytes;
  units = std::make_unique<Unit[]>(unit_count);
  if (unit_count == 0) return;
  for (const FilePiece& piece : pieces) {
    auto at = static_cast<uint64_t>(piece.into.data() - memory.data());
    for (uint64_t left = piece.into.size(); left > 0;) {
      const uint64_t here = std::min<uint64_t>(left, kCheckedBytes - at % kCheckedBytes);
      units[at / kCheckedBytes].left += here;
      at += here;
      left -= here;
    }
  }
  for (size_t i = 0; i < unit_count; ++i) {
    const size_t begin = i * kCheckedBytes;
    if (units[i].left > 0) continue;
    units[i].crc =
        Crc32c(memory.subspan(begin, std::min<size_t>(kCheckedBytes, memory.size() - begin)));
  }
}

void BlockJob::Arrived(const Chunk& chunk) {
  if (unit_count == 0) return;
  for (const ChunkPart& part : PartsOf(chunk)) {
    Unit& unit = units[part.unit];
    // Whoever brings the last part sees what the others copied: they released it by this.
    if (unit.left.fetch_sub(part.into.size(), std::memory_order_acq_rel) != part.into.size()) {
      continue;
    }
    const size_t begin = part.unit * kCheckedBytes;
    unit.crc =
        Crc32c(memory.subspan(begin, std::min<size_t>(kCheckedBytes, memory.size() - begin)));
  }
}

}  // namespace terrace
