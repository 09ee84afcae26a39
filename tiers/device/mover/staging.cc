#include "tiers/device/mover/staging.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

namespace terrace {
namespace {

constexpr uint64_t kPage = 4096;

}  // namespace

Result<std::unique_ptr<MoverStaging>> MoverStaging::Start(Gpu& gpu,
                                                          const MoverStagingOptions& options,
                                                          MoverLane in, MoverLane out, int bell) {
  if (options.pieces == 0 || options.bytes == 0 || options.bytes % (options.pieces * kPage) != 0) {
    return Status(Code::kInvalidArgument, "staging: " + std::to_string(options.bytes) +
                                              " bytes are not " + std::to_string(options.pieces) +
                                              " pieces of a multiple of 4096");
  }
  std::unique_ptr<MoverStaging> staging(new MoverStaging(gpu, in, out, bell));
  ASSIGN_OR_RETURN(const UniqueFd fd, CreateMemfd("terrace-staging", options.bytes));
  ASSIGN_OR_RETURN(staging->ring_, Mapping::Of(fd.get(), 0, options.bytes, Protection::kReadWrite));
  const Result<HostRegion> region = gpu.RegisterHost(staging->ring_.bytes(), GpuAccess::kReadWrite);
  if (!region) return Status(region.error()).WithContext("staging");
  const uint64_t each = options.bytes / options.pieces;
  for (size_t i = 0; i < options.pieces; ++i) {
    Piece piece;
    piece.memory = staging->ring_.bytes().subspan(i * each, each);
    ASSIGN_OR_RETURN(piece.event, gpu.CreateEvent());
    staging->pieces_.push_back(std::move(piece));
  }
  ASSIGN_OR_RETURN(staging->threads_, WorkerPool::Start({.name = "mover-staging",
                                                         .threads = options.threads,
                                                         .queue_limit = options.pieces}));
  return staging;
}

void MoverStaging::Add(uint64_t request, std::deque<Copy> copies, SourceOrder order) {
  requests_.emplace(
      request, Request{.waiting = std::move(copies), .order = order, .pieces = 0, .status = {}});
  turns_.push_back(request);
}

Result<std::vector<MoverStaging::Ended>> MoverStaging::Turn() {
  RETURN_IF_ERROR(CollectPieces());
  RETURN_IF_ERROR(CollectEvents());
  RETURN_IF_ERROR(Distribute());
  return std::exchange(ended_, {});
}

Status MoverStaging::CollectPieces() {
  std::vector<size_t> back;
  {
    MutexLock lock(mu_);
    back.swap(handed_back_);
  }
  for (const size_t index : back) {
    Piece& piece = pieces_[index];
    if (piece.state == State::kFilling) {
      RETURN_IF_ERROR(Move(piece));
    } else {
      Free(piece);
    }
  }
  return {};
}

Status MoverStaging::CollectEvents() {
  for (size_t i = 0; i < pieces_.size(); ++i) {
    Piece& piece = pieces_[i];
    if (piece.state != State::kMoving) continue;
    ASSIGN_OR_RETURN(const bool done, gpu_.QueryEvent(piece.event));
    if (!done) continue;
    if (piece.in || !requests_.at(piece.request).status.ok()) {
      Free(piece);
    } else {
      RETURN_IF_ERROR(HandOver(i, State::kEmptying));
    }
  }
  return {};
}

Status MoverStaging::Distribute() {
  for (size_t i = 0; i < pieces_.size() && !turns_.empty(); ++i) {
    Piece& piece = pieces_[i];
    if (piece.state != State::kFree) continue;
    const uint64_t next = turns_.front();
    turns_.pop_front();
    Request& request = requests_.at(next);
    piece.request = next;
    Take(piece, request);
    if (!request.waiting.empty()) turns_.push_back(next);
    RETURN_IF_ERROR(piece.in ? HandOver(i, State::kFilling) : Move(piece));
  }
  return {};
}

// Copies of one direction, until the piece is full.
void MoverStaging::Take(Piece& piece, Request& request) {
  piece.copies.clear();
  piece.in = request.waiting.front().in;
  ++request.pieces;
  uint64_t room = piece.memory.size();
  while (room > 0 && !request.waiting.empty() && request.waiting.front().in == piece.in) {
    Copy& next = request.waiting.front();
    Copy part = next;
    part.bytes = std::min(room, next.bytes);
    room -= part.bytes;
    piece.copies.push_back(part);
    if (part.bytes == next.bytes) {
      request.waiting.pop_front();
    } else {
      next.device += part.bytes;
      next.host += part.bytes;
      next.bytes -= part.bytes;
    }
  }
}

Status MoverStaging::HandOver(size_t index, State state) {
  Piece& piece = pieces_[index];
  piece.state = state;
  // The piece is the thread's until it is handed back.
  return threads_->Submit([this, index, &piece] {
    uint8_t* at = piece.memory.data();
    for (const Copy& copy : piece.copies) {
      if (piece.in) {
        std::memcpy(at, copy.host, copy.bytes);
      } else {
        std::memcpy(copy.host, at, copy.bytes);
      }
      at += copy.bytes;
    }
    {
      MutexLock lock(mu_);
      handed_back_.push_back(index);
    }
    const uint64_t one = 1;
    (void)!::write(bell_, &one, sizeof one);
  });
}

// What is refused by its arguments is not on the stream; of what fails otherwise some may be, and
// the piece is free when the stream is past it.
Status MoverStaging::Move(Piece& piece) {
  Request& request = requests_.at(piece.request);
  const MoverLane& lane = piece.in ? in_ : out_;
  GpuAddress at = reinterpret_cast<GpuAddress>(piece.memory.data());
  std::vector<GpuCopy> copies;
  copies.reserve(piece.copies.size());
  for (const Copy& copy : piece.copies) {
    copies.push_back(piece.in ? GpuCopy{.dst = copy.device, .src = at, .bytes = copy.bytes}
                              : GpuCopy{.dst = at, .src = copy.device, .bytes = copy.bytes});
    at += copy.bytes;
    moved_bytes_ += copy.bytes;
  }
  // Nobody writes into a piece that was filled.
  Status status = gpu_.Copy(lane.work, copies, piece.in ? SourceOrder::kAny : request.order);
  if (status.code() == Code::kStale || status.code() == Code::kUnavailable) return status;
  if (!status.ok()) {
    const bool nothing = status.code() == Code::kInvalidArgument;
    request.waiting.clear();
    std::erase(turns_, piece.request);
    request.status = std::move(status);
    if (nothing) {
      Free(piece);
      return {};
    }
  }
  if (Status lost = gpu_.RecordEvent(piece.event, lane.work); !lost.ok()) {
    // When it may be used again would never be known.
    return {Code::kStale, "staging cannot be followed: " + lost.message()};
  }
  piece.state = State::kMoving;
  // Only a hint: events are looked at without, too.
  if (gpu_.WaitEvent(lane.bell, piece.event).ok()) (void)gpu_.Notify(lane.bell, bell_);
  return {};
}

void MoverStaging::Free(Piece& piece) {
  piece.state = State::kFree;
  const auto found = requests_.find(piece.request);
  Request& request = found->second;
  if (--request.pieces > 0 || !request.waiting.empty()) return;
  ended_.push_back({.request = piece.request, .status = std::move(request.status)});
  requests_.erase(found);
}

}  // namespace terrace
