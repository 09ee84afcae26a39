// Image files give back what was written, or say why not.
#include "tiers/source/image_files.h"

#include <gmock/gmock.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <filesystem>
#include <optional>

#include "kernels/crc32c.h"
#include "tests/source/disk_fixture.h"
#include "tiers/source/image_format.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr uint64_t kMiB = 1u << 20;

// Memory for a block, as arenas have it.
class Block {
 public:
  explicit Block(size_t bytes)
      : bytes_(image_file::RoundUp(bytes)),
        memory_(static_cast<uint8_t*>(std::aligned_alloc(4096, bytes_))) {
    std::memset(memory_, 0, bytes_);
  }
  ~Block() { std::free(memory_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  std::span<uint8_t> all() const { return {memory_, bytes_}; }

 private:
  size_t bytes_;
  uint8_t* memory_;
};

class ImageFilesTest : public DiskFixture {
 protected:
  static constexpr uint64_t kImageBytes = 9 * kMiB + 512;
  static constexpr uint64_t kBlockBytes = 4 * kMiB;

  void SetUp() override {
    DiskFixture::SetUp();
    if (IsSkipped()) return;
    image_ = RandomText(kImageBytes, 1);
    facts_ = {.label = "m@1",
              .listing = Sha256::Of(Bytes().first(10)),
              .content = Sha256::Of(Bytes()),
              .image_bytes = kImageBytes,
              .block_bytes = kBlockBytes};
    Begin({});
  }
  void TearDown() override {
    images_.reset();
    DiskFixture::TearDown();
  }
  void Begin(const BlockReaderOptions& reader) {
    images_.reset();
    Restart(reader);
    images_ = MakeImageFiles(folder(), opener_.pool(), opener_.reader());
  }
  std::string folder() const { return directory_ / "images"; }
  std::span<const uint8_t> Bytes() const {
    return {reinterpret_cast<const uint8_t*>(image_.data()), image_.size()};
  }
  std::vector<std::span<const uint8_t>> Blocks() const {
    std::vector<std::span<const uint8_t>> blocks;
    for (uint64_t at = 0; at < kImageBytes; at += kBlockBytes)
      blocks.push_back(Bytes().subspan(at, std::min(kBlockBytes, kImageBytes - at)));
    return blocks;
  }
  std::vector<uint32_t> Crcs() const {
    std::vector<uint32_t> crcs;
    for (const auto block : Blocks()) {
      for (size_t at = 0; at < block.size(); at += kCheckedBytes)
        crcs.push_back(
            Crc32c(block.subspan(at, std::min<size_t>(kCheckedBytes, block.size() - at))));
    }
    return crcs;
  }
  template <typename Value>
  Value Await(std::optional<Value>& value) {
    TERRACE_CHECK(opener_.executor().RunUntil([&] { return value.has_value(); }));
    return *std::move(value);
  }
  Status Write() {
    std::optional<Status> written;
    images_->Write(facts_, Blocks(), Crcs(), [&](Status status) { written = std::move(status); });
    return Await(written);
  }
  Result<std::shared_ptr<WeightImage>> Open() {
    std::optional<Result<std::shared_ptr<WeightImage>>> opened;
    images_->Open(facts_, [&](auto result) { opened = std::move(result); });
    return Await(opened);
  }
  // The block, its CRCs compared.
  Status Read(WeightImage& image, uint64_t offset, BlockBytes* way = nullptr) {
    const uint64_t bytes = std::min(kBlockBytes, kImageBytes - offset);
    const Block block(bytes);
    std::optional<Result<BlockBytes>> read;
    bool ended = false;
    image.Read(
        {.offset = offset, .bytes = bytes, .memory = block.all()},
        [&](Result<BlockBytes> result) { read = std::move(result); }, [&] { ended = true; });
    TERRACE_CHECK(opener_.executor().RunUntil([&] { return read.has_value(); }));
    if (!*read && faulty_ != nullptr) faulty_->Release();
    TERRACE_CHECK(opener_.executor().RunUntil([&] { return ended; }));
    if (!*read) return read->error();
    if (way != nullptr) *way = **read;
    const std::vector<uint32_t> expected = Crcs();
    const auto first = expected.begin() + static_cast<ptrdiff_t>(offset / kCheckedBytes);
    if (!std::equal((*read)->crcs.begin(), (*read)->crcs.end(), first)) {
      return {Code::kDataLoss, "the CRCs differ"};
    }
    EXPECT_TRUE(std::ranges::equal(block.all().first(bytes), Bytes().subspan(offset, bytes)));
    return {};
  }
  std::string File() {
    for (const auto& entry : std::filesystem::directory_iterator(folder()))
      return entry.path().string();
    return "";
  }
  void Overwrite(uint64_t at, const std::string& bytes) {
    const UniqueFd fd(open(File().c_str(), O_WRONLY | O_CLOEXEC));
    ASSERT_EQ(pwrite(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(at)),
              static_cast<ssize_t>(bytes.size()));
    ASSERT_EQ(fdatasync(fd.get()), 0);
    ASSERT_EQ(posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED), 0);
  }
  void ExpectRefused(Code code, const std::string& why) {
    const auto opened = Open();
    ASSERT_FALSE(opened.has_value());
    EXPECT_EQ(opened.error().code(), code) << opened.error().ToString();
    EXPECT_THAT(opened.error().message(), HasSubstr(why));
  }

  std::string image_;
  ImageFacts facts_;
  std::unique_ptr<WeightImages> images_;
};

TEST_P(ImageFilesTest, ReadsBackWhatWasWritten) {
  ASSERT_EQ(Write(), Status());
  struct stat facts {};
  ASSERT_EQ(stat(File().c_str(), &facts), 0);
  EXPECT_EQ(facts.st_mode & 07777, 0600u);
  const auto image = Open();
  ASSERT_TRUE(image.has_value()) << image.error().ToString();
  EXPECT_EQ((*image)->crcs(), Crcs());
  BlockBytes way;
  for (uint64_t at = 0; at < kImageBytes; at += kBlockBytes)
    ASSERT_EQ(Read(**image, at, &way), Status());
  EXPECT_GT(way.direct_bytes, 0u);
  EXPECT_EQ(way.buffered_bytes, 0u);
}

TEST_P(ImageFilesTest, WithoutFileIoItIsWrittenAndReadAllTheSame) {
  images_.reset();
  opener_.Begin(nullptr, {});
  images_ = MakeImageFiles(folder(), opener_.pool(), opener_.reader());
  ASSERT_EQ(Write(), Status());
  const auto image = Open();
  ASSERT_TRUE(image.has_value()) << image.error().ToString();
  BlockBytes way;
  for (uint64_t at = 0; at < kImageBytes; at += kBlockBytes)
    ASSERT_EQ(Read(**image, at, &way), Status());
  EXPECT_THAT(way.why_buffered, HasSubstr("there is none"));
  images_.reset();
}

TEST_P(ImageFilesTest, AFlippedBitShowsInTheChecks) {
  ASSERT_EQ(Write(), Status());
  const char other = static_cast<char>(image_[5 * kMiB] ^ 1);
  Overwrite(4096 + 5 * kMiB, std::string(1, other));
  const auto image = Open();
  ASSERT_TRUE(image.has_value()) << image.error().ToString();
  EXPECT_EQ(Read(**image, 0), Status());
  EXPECT_EQ(Read(**image, kBlockBytes).code(), Code::kDataLoss);
}

TEST_P(ImageFilesTest, AnUnknownVersionIsRefusedByItsNumber) {
  ASSERT_EQ(Write(), Status());
  Overwrite(8, std::string("\x02", 1));
  ExpectRefused(Code::kMismatch, "is of format 2, and this daemon reads 1");
}

TEST_P(ImageFilesTest, WhatIsNotItsImageIsRefused) {
  ASSERT_EQ(Write(), Status());
  facts_.content.bytes[0] ^= 1;
  ExpectRefused(Code::kMismatch, "is of the weights");
  facts_.content.bytes[0] ^= 1;
  facts_.block_bytes = 4096;
  ExpectRefused(Code::kMismatch, "in blocks of 4194304 bytes, not 4096");
  facts_.block_bytes = 16 * kMiB;
  EXPECT_TRUE(Open().has_value());
  Overwrite(0, "safetens");
  ExpectRefused(Code::kMismatch, "is no image of Terrace");
}

TEST_P(ImageFilesTest, ADamagedOrTornFileIsRefused) {
  ASSERT_EQ(Write(), Status());
  Overwrite(380, "x");
  ExpectRefused(Code::kDataLoss, "the header is damaged: its checksum");
  ASSERT_EQ(Write(), Status());
  ASSERT_EQ(truncate(File().c_str(), 5 * kMiB), 0);
  ExpectRefused(Code::kDataLoss, "is torn");
  ASSERT_EQ(truncate(File().c_str(), 100), 0);
  ExpectRefused(Code::kDataLoss, "is torn");
  ASSERT_EQ(unlink(File().c_str()), 0);
  ExpectRefused(Code::kNotFound, "cannot be opened");
}

TEST_P(ImageFilesTest, AWriteThatFailsLeavesNothing) {
  ASSERT_EQ(Write(), Status());
  faulty_->Add({.fault = IoFault::kError, .verb = IoVerb::kWrite, .skip = 2, .error = ENOSPC});
  EXPECT_EQ(Write().code(), Code::kExhausted);
  EXPECT_EQ(File(), "");
}

TEST_P(ImageFilesTest, ADeviceThatHangsFailsReadAndWrite) {
  ASSERT_EQ(Write(), Status());
  Begin({.buffers = 4, .deadline_ns = 20 * kNsPerMs});
  if (IsSkipped()) return;
  {
    const auto image = Open();
    ASSERT_TRUE(image.has_value());
    faulty_->Add({.fault = IoFault::kHang, .verb = IoVerb::kRead});
    EXPECT_EQ(Read(**image, 0).code(), Code::kDeadlineExceeded);
  }
  faulty_->Add({.fault = IoFault::kHang, .verb = IoVerb::kWrite});
  EXPECT_EQ(Write().code(), Code::kDeadlineExceeded);
  EXPECT_EQ(File(), "");
}

// Who is told of an error may read something else into the block at once, but not of a device that
// hangs.
TEST_P(ImageFilesTest, AnErrorDoesNotHideThatTheDeviceHasTheBlock) {
  ASSERT_EQ(Write(), Status());
  Begin({.deadline_ns = 300 * kNsPerMs});
  if (IsSkipped()) return;
  auto image = Open();
  ASSERT_TRUE(image.has_value());
  DropFromCache(File());
  faulty_->Add({.fault = IoFault::kHang, .verb = IoVerb::kRead, .times = 1});
  faulty_->Add({.fault = IoFault::kError, .verb = IoVerb::kRead, .times = 1});
  EXPECT_EQ(Read(**image, 0).code(), Code::kDeadlineExceeded);
}

TEST_P(ImageFilesTest, RemovesWhatItIsTold) {
  ASSERT_EQ(Write(), Status());
  const auto remove = [&] {
    std::optional<Status> removed;
    images_->Remove("m@1", [&](Status status) { removed = std::move(status); });
    return Await(removed);
  };
  EXPECT_EQ(remove(), Status());
  EXPECT_EQ(File(), "");
  EXPECT_EQ(remove(), Status());
}

TEST_P(ImageFilesTest, KeepsAtTheStartWhatIsWantedAndWhatIsNotItsOwn) {
  ASSERT_EQ(Write(), Status());
  const std::string ours = File();
  directory_.Write("images/" + std::string(64, 'a') + ".image", "x");
  directory_.Write("images/" + std::string(64, 'b') + ".image.new", "x");
  directory_.Write("images/notes", "x");
  directory_.Write("images/boot.image", "x");
  images_->Keep({"m@1"});
  std::vector<std::string> left;
  for (const auto& entry : std::filesystem::directory_iterator(folder()))
    left.push_back(entry.path());
  EXPECT_THAT(left,
              testing::UnorderedElementsAre(ours, folder() + "/notes", folder() + "/boot.image"));
}

// A header alone is no image: whatever moment an import is killed at, its name is not there.
TEST_P(ImageFilesTest, AnImportThatIsKilledLeavesNoImage) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "TSan lets no child of threads start threads of its own";
#endif
  images_.reset();
  EndDisk();
  for (int round = 0; round < 8; ++round) {
    int ready[2];
    ASSERT_EQ(pipe(ready), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      SourceOpener opener;
      const SystemClock clock;
      auto io = StartDiskIo({.allow_io_uring = GetParam()}, clock);
      opener.Begin(io->get(), {.buffers = 2});
      const auto images = MakeImageFiles(folder(), opener.pool(), opener.reader());
      for (;;) {
        std::optional<Status> written;
        images->Write(facts_, Blocks(), Crcs(), [&](Status status) { written = status; });
        (void)!write(ready[1], "x", 1);
        (void)opener.executor().RunUntil([&] { return written.has_value(); });
      }
    }
    close(ready[1]);
    char byte = 0;
    for (int i = 0; i <= round; ++i)
      ASSERT_EQ(read(ready[0], &byte, 1), 1);
    ASSERT_EQ(kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    close(ready[0]);
    opener_.Begin(nullptr, {});
    images_ = MakeImageFiles(folder(), opener_.pool(), opener_.reader());
    images_->Keep({"m@1"});
    // It is whole, or it is not there.
    const auto image = Open();
    if (!image) {
      EXPECT_EQ(image.error().code(), Code::kNotFound) << image.error().ToString();
      continue;
    }
    for (uint64_t at = 0; at < kImageBytes; at += kBlockBytes)
      EXPECT_EQ(Read(**image, at), Status());
  }
  images_.reset();
}

INSTANTIATE_TEST_SUITE_P(Engine, ImageFilesTest, testing::Bool(), DiskEngineName);

}  // namespace
}  // namespace terrace
