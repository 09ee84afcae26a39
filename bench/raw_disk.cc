#include "bench/raw_disk.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <numeric>

#include "bench/statistics.h"

namespace terrace::bench {

HugeMemory::~HugeMemory() {
  if (!memory_.empty()) munmap(memory_.data(), memory_.size());
}

Result<HugeMemory> HugeMemory::Allocate(size_t bytes) {
  constexpr size_t kHuge = 2u << 20;
  const size_t rounded = (bytes + kHuge - 1) / kHuge * kHuge;
  void* memory = mmap(nullptr, rounded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return SystemError("mmap", errno);
  madvise(memory, rounded, MADV_HUGEPAGE);
  HugeMemory huge;
  huge.memory_ = {static_cast<uint8_t*>(memory), rounded};
  Random random(rounded);
  for (size_t at = 0; at < rounded; at += 8) {
    const uint64_t word = random();
    std::memcpy(huge.memory_.data() + at, &word, sizeof word);
  }
  return huge;
}

Shuffled::Shuffled(uint64_t count, uint64_t seed) : order_(count) {
  std::iota(order_.begin(), order_.end(), 0);
  Random random(seed);
  for (size_t i = order_.size(); i > 1; --i)
    std::swap(order_[i - 1], order_[random.Below(i)]);
}

uint64_t Shuffled::Take() {
  if (next_ == order_.size()) next_ = 0;
  return order_[next_++];
}

RawDisk::Mapping::~Mapping() {
  if (!memory_.empty()) munmap(memory_.data(), memory_.size());
}

Status RawDisk::Mapping::Map(int ring, uint64_t offset, size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring,
                      static_cast<off_t>(offset));
  if (memory == MAP_FAILED) return SystemError("mmap of an io_uring", errno);
  memory_ = {static_cast<uint8_t*>(memory), bytes};
  return {};
}

Result<RawDisk> RawDisk::Make(const RawDiskOptions& options) {
  RawDisk disk(options);
  disk.file_.Reset(
      open(options.path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_DIRECT | O_CLOEXEC, 0600));
  if (!disk.file_) return SystemError("open " + options.path, errno);
  const uint64_t bytes = options.transfer_bytes * options.transfers;
  if (fallocate(disk.file_.get(), 0, 0, static_cast<off_t>(bytes)) != 0) {
    return SystemError("fallocate " + options.path, errno);
  }
  ASSIGN_OR_RETURN(disk.memory_, HugeMemory::Allocate(std::max(
                                     options.memory_bytes, options.transfer_bytes * kMaxDepth)));
  RETURN_IF_ERROR(disk.OpenRing());
  std::vector<uint64_t> all(options.transfers);
  std::iota(all.begin(), all.end(), 0);
  RETURN_IF_ERROR(disk.Move(Verb::kWrite, all, 8).status());
  if (fsync(disk.file_.get()) != 0) return SystemError("fsync " + options.path, errno);
  return disk;
}

Status RawDisk::OpenRing() {
  params_.flags = IORING_SETUP_COOP_TASKRUN;
  ring_.Reset(static_cast<int>(syscall(SYS_io_uring_setup, kMaxDepth, &params_)));
  if (!ring_) return SystemError("io_uring_setup", errno);
  if ((params_.features & IORING_FEAT_SINGLE_MMAP) == 0) {
    return {Code::kUnavailable, "this kernel's io_uring is too old to measure with"};
  }
  const size_t submissions = params_.sq_off.array + params_.sq_entries * sizeof(uint32_t);
  const size_t completions = params_.cq_off.cqes + params_.cq_entries * sizeof(io_uring_cqe);
  RETURN_IF_ERROR(queue_.Map(ring_.get(), IORING_OFF_SQ_RING, std::max(submissions, completions)));
  return entries_.Map(ring_.get(), IORING_OFF_SQES, params_.sq_entries * sizeof(io_uring_sqe));
}

// Of the submission queue: its tail is ours, and there is room for every transfer of the depth.
void RawDisk::Prepare(Verb verb, uint64_t transfer) {
  auto* tail = queue_.At<uint32_t>(params_.sq_off.tail);
  const uint32_t index = *tail & *queue_.At<uint32_t>(params_.sq_off.ring_mask);
  io_uring_sqe& entry = entries_.At<io_uring_sqe>(0)[index];
  entry = {};
  entry.opcode = verb == Verb::kRead ? IORING_OP_READ : IORING_OP_WRITE;
  entry.fd = file_.get();
  entry.off = transfer * options_.transfer_bytes;
  const uint64_t pieces = memory_.bytes().size() / options_.transfer_bytes;
  entry.addr = reinterpret_cast<uintptr_t>(memory_.bytes().data() +
                                           next_piece_++ % pieces * options_.transfer_bytes);
  entry.len = static_cast<uint32_t>(options_.transfer_bytes);
  queue_.At<uint32_t>(params_.sq_off.array)[index] = index;
  // The kernel reads the entry after it has seen the tail.
  std::atomic_ref(*tail).store(*tail + 1, std::memory_order_release);
}

// Hands over what is prepared and waits for one completion.
Status RawDisk::Enter(uint32_t submit) {
  while (syscall(SYS_io_uring_enter, ring_.get(), submit, 1, IORING_ENTER_GETEVENTS, nullptr, 0) <
         0) {
    if (errno != EINTR) return SystemError("io_uring_enter", errno);
  }
  return {};
}

Result<double> RawDisk::Move(Verb verb, std::span<const uint64_t> transfers, uint32_t depth) {
  auto* head = queue_.At<uint32_t>(params_.cq_off.head);
  auto* tail = queue_.At<uint32_t>(params_.cq_off.tail);
  const uint32_t mask = *queue_.At<uint32_t>(params_.cq_off.ring_mask);
  const Stopwatch watch;
  size_t begun = 0;
  uint32_t prepared = 0;
  while (begun < std::min<size_t>(std::min(depth, kMaxDepth), transfers.size())) {
    Prepare(verb, transfers[begun++]);
    ++prepared;
  }
  for (size_t ended = 0; ended < transfers.size();) {
    RETURN_IF_ERROR(Enter(std::exchange(prepared, 0)));
    // What the kernel wrote before it moved the tail is seen with it.
    const uint32_t end = std::atomic_ref(*tail).load(std::memory_order_acquire);
    for (uint32_t at = *head; at != end; ++at) {
      const io_uring_cqe& completion = queue_.At<io_uring_cqe>(params_.cq_off.cqes)[at & mask];
      if (completion.res != static_cast<int32_t>(options_.transfer_bytes)) {
        return Status(Code::kUnavailable,
                      "a bare transfer came to " + std::to_string(completion.res));
      }
      ++ended;
      if (begun == transfers.size()) continue;
      Prepare(verb, transfers[begun++]);
      ++prepared;
    }
    std::atomic_ref(*head).store(end, std::memory_order_release);
  }
  return watch.Seconds();
}

}  // namespace terrace::bench
