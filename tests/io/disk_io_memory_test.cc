// Registered memory: an economy that nobody sees, whatever happens to it under traffic.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <string>
#include <thread>

#include "tests/io/io_fixture.h"
#include "tiers/io/disk_io.h"

namespace terrace {
namespace {

constexpr size_t kMiB = 1u << 20;

// What the kernel counts as pinned by this process.
uint64_t PinnedBytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmPin:")) return std::stoull(line.substr(6)) * 1024;
  }
  return 0;
}

class DiskIoMemoryTest : public DiskIoTest {
 protected:
  bool ring() const { return GetParam(); }
};

TEST_P(DiskIoMemoryTest, RegisteredMemoryIsReadAndWritten) {
  const Memory memory = Memory::Random(4 * kMiB, 1);
  const Memory into(4 * kMiB);
  io_->RegisterMemory(memory.bytes());
  io_->RegisterMemory(into.bytes());
  EXPECT_EQ(io_->Report().registered_bytes, ring() ? 8 * kMiB : 0);
  ASSERT_EQ(Do(WriteFrom(file_, 0, {memory.all()})), Status());
  // One piece, several, and one across the end of what is registered.
  ASSERT_EQ(Do(ReadInto(file_, 0, {into.piece(0, kMiB)})), Status());
  ASSERT_EQ(Do(ReadInto(file_, kMiB, {into.piece(kMiB, kMiB), into.piece(2 * kMiB, kMiB)})),
            Status());
  io_->UnregisterMemory(into.bytes());
  io_->RegisterMemory(into.bytes().first(3 * kMiB + 4096));
  ASSERT_EQ(Do(ReadInto(file_, 3 * kMiB, {into.piece(3 * kMiB, kMiB)})), Status());
  EXPECT_TRUE(std::ranges::equal(memory.bytes(), into.bytes()));
}

TEST_P(DiskIoMemoryTest, TheKernelLetsGoOfWhatIsUnregistered) {
  const uint64_t before = PinnedBytes();
  const Memory memory(8 * kMiB);
  io_->RegisterMemory(memory.bytes());
  EXPECT_EQ(PinnedBytes(), before + (ring() ? 8 * kMiB : 0));
  ASSERT_EQ(Do(WriteFrom(file_, 0, {memory.all()})), Status());
  io_->UnregisterMemory(memory.bytes());
  EXPECT_EQ(io_->Report().registered_bytes, 0u);
  EXPECT_EQ(PinnedBytes(), before);
  // Its memory can go, and what comes in its place is what requests see.
  ASSERT_EQ(::fallocate(memory.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 8 * kMiB), 0);
  const Memory from = Memory::Random(8 * kMiB, 2);
  ASSERT_EQ(Do(WriteFrom(file_, 0, {from.all()})), Status());
  ASSERT_EQ(Do(ReadInto(file_, 0, {memory.all()})), Status());
  EXPECT_TRUE(std::ranges::equal(memory.bytes(), from.bytes()));
}

TEST_P(DiskIoMemoryTest, RegionsHaveABoundAndTheRestWorksWithout) {
  Restart({.regions = 2});
  const Memory memory = Memory::Random(3 * kMiB, 3);
  for (size_t i = 0; i < 3; ++i)
    io_->RegisterMemory(memory.bytes().subspan(i * kMiB, kMiB));
  EXPECT_EQ(io_->Report().registered_bytes, ring() ? 2 * kMiB : 0);
  for (size_t i = 0; i < 3; ++i)
    EXPECT_EQ(Do(WriteFrom(file_, i * kMiB, {memory.piece(i * kMiB, kMiB)})), Status());
  // What overlaps something registered is left out, and what was not registered may be taken back.
  io_->RegisterMemory(memory.bytes().subspan(kMiB / 2, kMiB));
  io_->UnregisterMemory(memory.bytes().subspan(2 * kMiB, kMiB));
  EXPECT_EQ(io_->Report().registered_bytes, ring() ? 2 * kMiB : 0);
  io_->UnregisterMemory(memory.bytes());
  EXPECT_EQ(io_->Report().registered_bytes, 0u);
  io_->RegisterMemory(memory.bytes());
  EXPECT_EQ(io_->Report().registered_bytes, ring() ? 3 * kMiB : 0);
}

TEST_P(DiskIoMemoryTest, MemoryComesAndGoesUnderTraffic) {
  constexpr size_t kPiece = 65'536;
  constexpr size_t kPieces = 16;
  const Memory from = Memory::Random(kPieces * kPiece, 4);
  const Memory into(kPieces * kPiece);
  ASSERT_EQ(Do(WriteFrom(file_, 0, {from.all()})), Status());
  std::atomic<bool> stop = false;
  // Of another thread: the memory of others, and that of requests that are queued right now.
  std::thread changes([&] {
    const Memory other(kMiB);
    while (!stop) {
      io_->RegisterMemory(into.bytes());
      io_->RegisterMemory(other.bytes());
      io_->UnregisterMemory(into.bytes());
      io_->UnregisterMemory(other.bytes());
    }
  });
  for (int round = 0; round < 100; ++round) {
    std::ranges::fill(into.bytes(), uint8_t{0});
    Account account;
    std::vector<IoRequest> batch;
    for (size_t i = 0; i < kPieces; ++i)
      batch.push_back(
          account.Watch(ReadInto(file_, i * kPiece, {into.piece(i * kPiece, kPiece)}), Soon()));
    ASSERT_EQ(io_->Submit(std::move(batch)), Status());
    account.WaitForEnds(kPieces);
    for (const Account::Entry& entry : account.entries())
      ASSERT_EQ(entry.answers, std::vector<Status>{Status()});
    ASSERT_TRUE(std::ranges::equal(from.bytes(), into.bytes())) << round;
  }
  stop = true;
  changes.join();
  EXPECT_EQ(io_->Report().registered_bytes, 0u);
}

INSTANTIATE_TEST_SUITE_P(Engines, DiskIoMemoryTest, testing::Bool(), EngineName);

}  // namespace
}  // namespace terrace
