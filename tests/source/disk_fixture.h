// What tests of reading past the page cache share: a DiskIo of faults under a SourceOpener, and
// files that the page cache has not.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "tests/source/files.h"
#include "tiers/sim/faulty_disk_io.h"

namespace terrace {

inline std::string RandomText(size_t count, uint64_t seed) {
  Random random(seed);
  std::string bytes(count, '\0');
  for (char& byte : bytes)
    byte = static_cast<char>(random());
  return bytes;
}

// The page cache forgets the file, as far as the file system does that.
inline void DropFromCache(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(static_cast<bool>(fd)) << path;
  ASSERT_EQ(fdatasync(fd.get()), 0);
  ASSERT_EQ(posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED), 0);
}

// By io_uring, or by threads.
class DiskFixture : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    const UniqueFd probe(
        open(directory_.path().c_str(), O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600));
    if (!probe) GTEST_SKIP() << directory_.path() << " takes no O_DIRECT";
    Restart({});
  }
  // Readers end before the DiskIo that they use.
  void TearDown() override { EndDisk(); }
  // From here on files are read through the page cache.
  void EndDisk() {
    if (faulty_ != nullptr) faulty_->Release();
    opener_.Begin(nullptr, {});
    faulty_ = nullptr;
    disk_.reset();
  }
  void Restart(const BlockReaderOptions& reader) {
    const DiskIoOptions options{.allow_io_uring = GetParam()};
    EndDisk();
    auto io = StartDiskIo(options, opener_.clock());
    ASSERT_TRUE(io.has_value()) << io.error().ToString();
    if (GetParam() && (*io)->Report().engine != "io_uring") GTEST_SKIP() << (*io)->Report().engine;
    auto faulty = std::make_unique<FaultyDiskIo>(
        *std::move(io), FaultyDiskIo::Options{.io = options}, opener_.clock());
    faulty_ = faulty.get();
    disk_ = std::move(faulty);
    opener_.Begin(disk_.get(), reader);
  }

  // A file of tensors "t0", "t1"..., which the page cache has not, opened.
  std::shared_ptr<WeightSource> OpenCold(const std::string& name,
                                         const std::vector<std::string>& tensors) {
    std::string header = "{";
    std::string data;
    for (size_t i = 0; i < tensors.size(); ++i) {
      header += (i > 0 ? "," : "") + Entry("t" + std::to_string(i), "U8",
                                           "[" + std::to_string(tensors[i].size()) + "]",
                                           data.size(), data.size() + tensors[i].size());
      data += tensors[i];
    }
    path_ = directory_.Write(name, FileOf(header + "}", data));
    auto opened = opener_.OpenPaths({path_});
    EXPECT_TRUE(opened.has_value()) << opened.error().ToString();
    DropFromCache(path_);
    return *std::move(opened);
  }

  const TemporaryDirectory directory_;
  SourceOpener opener_;
  FaultyDiskIo* faulty_ = nullptr;  // Is disk_.
  std::unique_ptr<DiskIo> disk_;
  std::string path_;  // Of the last OpenCold.
};

inline std::string DiskEngineName(const testing::TestParamInfo<bool>& engine) {
  return engine.param ? "Ring" : "Threads";
}

}  // namespace terrace
