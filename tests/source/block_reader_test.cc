// Blocks that are read past the page cache have the bytes of their files, whatever goes wrong on
// the way is said, and a device that hangs holds nobody up.
#include "tiers/source/block_reader.h"

#include <gmock/gmock.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <future>
#include <optional>

#include "kernels/crc32c.h"
#include "tests/source/disk_fixture.h"

namespace terrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint64_t kMiB = 1u << 20;

class BlockReaderTest : public DiskFixture {
 protected:
  // All tensors one behind the other at multiples of 256 bytes, as an image has them, in the
  // opposite order of the file.
  struct Laid {
    std::vector<uint8_t> memory;
    std::vector<uint8_t> expected;
    std::vector<WeightPiece> pieces;

    BlockRead Read() { return {.memory = memory, .pieces = pieces}; }
  };
  static Laid LayOut(const std::vector<std::string>& tensors) {
    Laid laid;
    std::vector<size_t> begins;
    size_t bytes = 0;
    for (size_t i = tensors.size(); i > 0; --i) {
      begins.push_back(bytes);
      bytes = (bytes + tensors[i - 1].size() + 255) / 256 * 256;
    }
    laid.memory.resize(bytes);
    laid.expected.resize(bytes);
    for (size_t i = 0; i < tensors.size(); ++i) {
      const size_t begin = begins[tensors.size() - 1 - i];
      std::copy(tensors[i].begin(), tensors[i].end(),
                laid.expected.begin() + static_cast<ptrdiff_t>(begin));
      laid.pieces.push_back({.tensor = static_cast<uint32_t>(i),
                             .offset = 0,
                             .into = std::span(laid.memory).subspan(begin, tensors[i].size())});
    }
    return laid;
  }
  static std::vector<uint32_t> CrcsOf(std::span<const uint8_t> bytes) {
    std::vector<uint32_t> crcs;
    for (size_t at = 0; at < bytes.size(); at += kCheckedBytes)
      crcs.push_back(Crc32c(bytes.subspan(at, std::min<size_t>(kCheckedBytes, bytes.size() - at))));
    return crcs;
  }
  // The page cache has the file of the last OpenCold. False where the kernel does not tell.
  bool WarmCache() const {
    std::ifstream file(path_, std::ios::binary);
    const std::string all((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    const UniqueFd fd(open(path_.c_str(), O_RDONLY | O_CLOEXEC));
    return IsCached(fd.get(), 0, all.size());
  }
  static std::vector<std::string> SomeTensors() {
    return {RandomText(3 * kMiB + 77, 1), RandomText(5, 2),   RandomText(300'001, 3), "",
            RandomText(4 * kMiB, 4),      RandomText(4095, 5)};
  }
};

TEST_P(BlockReaderTest, WhatThePageCacheHasNotIsReadPastIt) {
  const std::vector<std::string> tensors = SomeTensors();
  const auto source = OpenCold("m", tensors);
  Laid laid = LayOut(tensors);
  const auto read = opener_.ReadBlock(*source, laid.Read());
  ASSERT_TRUE(read.has_value()) << read.error().ToString();
  EXPECT_TRUE(laid.memory == laid.expected);
  EXPECT_EQ(read->crcs, CrcsOf(laid.expected));
  EXPECT_GT(read->direct_bytes, 0u);
  EXPECT_EQ(read->cached_bytes, 0u);
  // The file's last page is not whole.
  EXPECT_LT(read->buffered_bytes, 4096u);
  EXPECT_EQ(read->why_buffered, "");
}

// The process gets no memory of its own but for small pieces.
class LittleMemory {
 public:
  LittleMemory() {
    std::ifstream status("/proc/self/status");
    std::string word;
    uint64_t data_kib = 0;
    while (status >> word)
      if (word == "VmData:") status >> data_kib;
    EXPECT_EQ(getrlimit(RLIMIT_DATA, &before_), 0);
    rlimit little = before_;
    little.rlim_cur = data_kib * 1024 + 16 * kMiB;
    EXPECT_EQ(setrlimit(RLIMIT_DATA, &little), 0);
  }
  ~LittleMemory() { EXPECT_EQ(setrlimit(RLIMIT_DATA, &before_), 0); }
  LittleMemory(const LittleMemory&) = delete;
  LittleMemory& operator=(const LittleMemory&) = delete;

 private:
  rlimit before_{};
};

TEST_P(BlockReaderTest, WithoutMemoryForBuffersReadsFailAndLaterOnesTryAgain) {
  const std::vector<std::string> tensors = SomeTensors();
  const auto source = OpenCold("m", tensors);
  Laid laid = LayOut(tensors);
  {
    const LittleMemory little;
    for (int i = 0; i < 2; ++i) {
      const auto read = opener_.ReadBlock(*source, laid.Read());
      ASSERT_FALSE(read.has_value());
      EXPECT_EQ(read.error().code(), Code::kExhausted);
      EXPECT_THAT(read.error().message(), HasSubstr("memory for buffers"));
    }
  }
  const auto read = opener_.ReadBlock(*source, laid.Read());
  ASSERT_TRUE(read.has_value()) << read.error().ToString();
  EXPECT_TRUE(laid.memory == laid.expected);
  EXPECT_GT(read->direct_bytes, 0u);
}

TEST_P(BlockReaderTest, WhatThePageCacheHasIsTakenFromThere) {
  const std::vector<std::string> tensors = SomeTensors();
  const auto source = OpenCold("m", tensors);
  if (!WarmCache()) GTEST_SKIP() << "the kernel does not tell what is cached";
  Laid laid = LayOut(tensors);
  const auto read = opener_.ReadBlock(*source, laid.Read());
  ASSERT_TRUE(read.has_value()) << read.error().ToString();
  EXPECT_TRUE(laid.memory == laid.expected);
  EXPECT_EQ(read->crcs, CrcsOf(laid.expected));
  EXPECT_EQ(read->direct_bytes, 0u);
  EXPECT_GT(read->cached_bytes, 0u);
}

// Else who reads from the device would wait for all that others find in the page cache, for work of
// theirs is looked for first.
TEST_P(BlockReaderTest, CachedChunksLeaveWhatTheDeviceBroughtItsTurn) {
  SourceOpener one({.name = "test", .threads = 1});
  one.Begin(disk_.get(), {});
  const std::vector<std::string> cold_tensors = {RandomText(kMiB, 1)};
  (void)OpenCold("cold", cold_tensors);
  const auto cold = *one.OpenPaths({path_});
  DropFromCache(path_);
  // The end of the file is not asked for: it would be read when nothing else is to be done.
  const std::vector<std::string> cached_tensors = {RandomText(8 * kMiB, 2)};
  (void)OpenCold("cached", {cached_tensors[0], RandomText(8192, 3)});
  const auto cached = *one.OpenPaths({path_});
  if (!WarmCache()) GTEST_SKIP() << "the kernel does not tell what is cached";

  Laid from_device = LayOut(cold_tensors);
  Laid from_cache = LayOut(cached_tensors);
  std::vector<std::string> order;
  std::promise<void> waits;
  std::promise<void> go;
  faulty_->Add({.fault = IoFault::kHang, .verb = IoVerb::kRead});
  cold->Read(from_device.Read(), [&](const Result<BlockBytes>& read) {
    order.push_back("cold");
    EXPECT_GT(read->direct_bytes, 0u);
  });
  // The only worker waits while the device answers and the other read begins.
  ASSERT_TRUE(one.pool()
                  .Submit([&waits, gone = go.get_future().share()] {
                    waits.set_value();
                    gone.wait();
                  })
                  .ok());
  waits.get_future().wait();
  faulty_->ClearRules();
  faulty_->Release();
  ASSERT_TRUE(one.executor().RunUntil([&] { return one.pool().queued() == 1; }));
  cached->Read(from_cache.Read(), [&](const Result<BlockBytes>& read) {
    order.push_back("cached");
    EXPECT_EQ(read->direct_bytes, 0u);
  });
  go.set_value();
  ASSERT_TRUE(one.executor().RunUntil([&] { return order.size() == 2; }));
  EXPECT_THAT(order, ElementsAre("cold", "cached"));
  EXPECT_TRUE(from_device.memory == from_device.expected);
  EXPECT_TRUE(from_cache.memory == from_cache.expected);
}

TEST_P(BlockReaderTest, ManyBlocksAtOnceShareTheBuffers) {
  Restart({.buffers = 3});
  if (IsSkipped()) return;
  const std::vector<std::string> tensors = SomeTensors();
  const auto source = OpenCold("m", tensors);
  std::vector<Laid> blocks;
  for (int i = 0; i < 6; ++i)
    blocks.push_back(LayOut(tensors));
  std::vector<std::optional<Result<BlockBytes>>> results(blocks.size());
  for (size_t i = 0; i < blocks.size(); ++i)
    source->Read(blocks[i].Read(),
                 [&results, i](Result<BlockBytes> read) { results[i] = std::move(read); });
  ASSERT_TRUE(opener_.executor().RunUntil([&] {
    return std::all_of(results.begin(), results.end(), [](const auto& r) { return r.has_value(); });
  }));
  for (size_t i = 0; i < blocks.size(); ++i) {
    ASSERT_TRUE((*results[i]).has_value());
    EXPECT_TRUE(blocks[i].memory == blocks[i].expected);
    EXPECT_EQ((*results[i])->crcs, CrcsOf(blocks[i].expected));
  }
}

TEST_P(BlockReaderTest, AnErrorOfTheDeviceNamesTheFile) {
  const std::vector<std::string> tensors = SomeTensors();
  const auto source = OpenCold("m", tensors);
  faulty_->Add({.fault = IoFault::kError, .verb = IoVerb::kRead, .skip = 2, .times = 1});
  Laid laid = LayOut(tensors);
  const auto failed = opener_.ReadBlock(*source, laid.Read());
  ASSERT_FALSE(failed.has_value());
  EXPECT_THAT(failed.error().message(), HasSubstr(path_ + ": at byte "));
  EXPECT_THAT(failed.error().message(), HasSubstr("Input/output error"));
  EXPECT_TRUE(opener_.ReadBlock(*source, laid.Read()).has_value());
}

TEST_P(BlockReaderTest, AFileThatBecomesShorterIsDataLoss) {
  const std::vector<std::string> tensors = SomeTensors();
  const auto source = OpenCold("m", tensors);
  ASSERT_EQ(truncate(path_.c_str(), static_cast<off_t>(2 * kMiB + 1000)), 0);
  DropFromCache(path_);
  Laid laid = LayOut(tensors);
  const auto failed = opener_.ReadBlock(*source, laid.Read());
  ASSERT_FALSE(failed.has_value());
  EXPECT_EQ(failed.error().code(), Code::kDataLoss);
  // Whichever read comes first: one past the page cache, or that of the last page through it.
  EXPECT_THAT(failed.error().message(), HasSubstr(path_ + ": "));
  EXPECT_THAT(failed.error().message(),
              AnyOf(HasSubstr("the file ends before"), HasSubstr("the file became shorter")));
}

TEST_P(BlockReaderTest, BitsThatTheDeviceFlipsShowInTheChecks) {
  const std::vector<std::string> tensors = SomeTensors();
  const auto source = OpenCold("m", tensors);
  faulty_->Add({.fault = IoFault::kFlip, .verb = IoVerb::kRead, .times = 1, .bit = 100'000});
  Laid laid = LayOut(tensors);
  const auto read = opener_.ReadBlock(*source, laid.Read());
  ASSERT_TRUE(read.has_value());
  EXPECT_NE(read->crcs, CrcsOf(laid.expected));
}

TEST_P(BlockReaderTest, ADeviceThatHangsFailsTheReadAndThoseThatFindNoBuffer) {
  Restart({.buffers = 2, .deadline_ns = 20 * kNsPerMs});
  if (IsSkipped()) return;
  const std::vector<std::string> tensors = SomeTensors();
  const auto source = OpenCold("m", tensors);
  faulty_->Add({.fault = IoFault::kHang, .verb = IoVerb::kRead});
  Laid laid = LayOut(tensors);
  const auto late = opener_.ReadBlock(*source, laid.Read());
  ASSERT_FALSE(late.has_value());
  EXPECT_EQ(late.error().code(), Code::kDeadlineExceeded);
  EXPECT_THAT(late.error().message(), HasSubstr(path_ + ": the device did not answer in time"));
  ASSERT_TRUE(opener_.executor().RunUntil([&] { return faulty_->Report().overdue == 2; }));
  const auto none = opener_.ReadBlock(*source, laid.Read());
  ASSERT_FALSE(none.has_value());
  EXPECT_EQ(none.error().code(), Code::kUnavailable);
  EXPECT_THAT(none.error().message(), HasSubstr("all 2 buffers"));
  // What the device brings long after nobody wants it goes nowhere.
  EXPECT_TRUE(
      std::all_of(laid.memory.begin(), laid.memory.end(), [](uint8_t b) { return b == 0; }));
  faulty_->ClearRules();
  faulty_->Release();
  ASSERT_TRUE(opener_.executor().RunUntil([&] { return faulty_->Report().in_flight == 0; }));
  EXPECT_TRUE(
      std::all_of(laid.memory.begin(), laid.memory.end(), [](uint8_t b) { return b == 0; }));
}

// The end of a file comes through the page cache and needs no buffer: what comes behind it does.
TEST_P(BlockReaderTest, WhoFindsNoBufferLaterFailsToo) {
  Restart({.buffers = 1, .deadline_ns = 20 * kNsPerMs});
  if (IsSkipped()) return;
  const std::vector<std::string> tensors = SomeTensors();
  const auto large = OpenCold("m", tensors);
  faulty_->Add({.fault = IoFault::kHang, .verb = IoVerb::kRead});
  Laid laid = LayOut(tensors);
  ASSERT_FALSE(opener_.ReadBlock(*large, laid.Read()).has_value());
  ASSERT_TRUE(opener_.executor().RunUntil([&] { return faulty_->Report().overdue == 1; }));

  const std::string small =
      directory_.Write("small", FileOf("{" + Entry("s", "U8", "[9]", 0, 9) + "}", "123456789"));
  const auto both = opener_.OpenPaths({small, path_});
  ASSERT_TRUE(both.has_value());
  std::vector<uint8_t> memory(9 + tensors[0].size());
  const auto none = opener_.ReadBlock(
      **both, {.memory = memory,
               .pieces = {{.tensor = 0, .offset = 0, .into = std::span(memory).first(9)},
                          {.tensor = 1, .offset = 0, .into = std::span(memory).subspan(9)}}});
  ASSERT_FALSE(none.has_value());
  EXPECT_EQ(none.error().code(), Code::kUnavailable);
}

TEST_P(BlockReaderTest, EndsWhileADeviceHangs) {
  Restart({.buffers = 2, .deadline_ns = 20 * kNsPerMs, .stop_ns = 20 * kNsPerMs});
  if (IsSkipped()) return;
  const std::vector<std::string> tensors = SomeTensors();
  const auto source = OpenCold("m", tensors);
  faulty_->Add({.fault = IoFault::kHang, .verb = IoVerb::kRead});
  Laid laid = LayOut(tensors);
  ASSERT_FALSE(opener_.ReadBlock(*source, laid.Read()).has_value());
  opener_.Begin(nullptr, {});  // The reader ends while the device has its buffers.
  EndDisk();
}

TEST_P(BlockReaderTest, WithoutFileIoItReadsThroughThePageCacheAndSaysSo) {
  opener_.Begin(nullptr, {});
  const std::vector<std::string> tensors = SomeTensors();
  const auto source = OpenCold("m", tensors);
  Laid laid = LayOut(tensors);
  const auto read = opener_.ReadBlock(*source, laid.Read());
  ASSERT_TRUE(read.has_value()) << read.error().ToString();
  EXPECT_TRUE(laid.memory == laid.expected);
  EXPECT_EQ(read->crcs, CrcsOf(laid.expected));
  EXPECT_EQ(read->direct_bytes, 0u);
  EXPECT_THAT(read->why_buffered, HasSubstr(path_ + ": file I/O: there is none"));
}

TEST_P(BlockReaderTest, TheStampIsOfTheFilesAndNotOfTheirNames) {
  const auto source = OpenCold("m", {"abcd"});
  const auto stamp = [&] {
    std::optional<Result<Digest>> result;
    source->Stamp([&result](Result<Digest> digest) { result = digest; });
    EXPECT_TRUE(opener_.executor().RunUntil([&] { return result.has_value(); }));
    return **result;
  };
  const Digest before = stamp();
  EXPECT_EQ(stamp(), before);
  ASSERT_EQ(truncate(path_.c_str(), 10), 0);
  EXPECT_NE(stamp(), before);
}

INSTANTIATE_TEST_SUITE_P(Engine, BlockReaderTest, testing::Bool(), DiskEngineName);

}  // namespace
}  // namespace terrace
