// A directory for a test's files, safetensors files made by hand, and a source that opens them.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/worker_pool.h"
#include "tiers/sim/sim_executor.h"
#include "tiers/source/weight_files.h"

namespace terrace {

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "terrace-test-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) std::abort();
    path_ = pattern;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

  // Returns the file's path; makes its directory if needed.
  std::string Write(const std::string& name, const std::string& contents) const {
    const std::filesystem::path file = *this / name;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file, std::ios::binary | std::ios::trunc) << contents;
    return file.string();
  }

 private:
  std::string path_;
};

// The bytes of a safetensors file. `length` says another header length than the header has.
inline std::string FileOf(const std::string& header, const std::string& data,
                          std::optional<uint64_t> length = std::nullopt) {
  const uint64_t bytes = length.value_or(header.size());
  std::string file(8, '\0');
  std::memcpy(file.data(), &bytes, 8);
  return file + header + data;
}

// One entry of a header.
inline std::string Entry(const std::string& name, const std::string& dtype,
                         const std::string& shape, uint64_t begin, uint64_t end) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
}

// Opens sources on two real threads and waits for what they post.
class SourceOpener {
 public:
  SourceOpener() : SourceOpener(WorkerPoolOptions{.name = "test", .threads = 2}) {}
  explicit SourceOpener(WorkerPoolOptions options) {
    auto pool = WorkerPool::Start(std::move(options));
    if (!pool) std::abort();
    pool_ = *std::move(pool);
    Begin(nullptr, {});
  }
  // Reads past the page cache from here on.
  void Begin(DiskIo* disk, const BlockReaderOptions& reader) {
    sources_.reset();
    reader_ = std::make_unique<BlockReader>(
        BlockReaderParts{
            .pool = pool_.get(), .executor = &executor_, .clock = &clock_, .disk = disk},
        reader);
    sources_ = MakeWeightFiles(*pool_, executor_, *reader_);
  }

  // The end of the daemon: of the pool, at last.
  void Stop() {
    sources_.reset();
    reader_.reset();
    pool_.reset();
  }

  Result<std::shared_ptr<WeightSource>> Open(SourceRequest request) {
    std::optional<Result<std::shared_ptr<WeightSource>>> opened;
    sources_->Open(std::move(request), [&opened](Result<std::shared_ptr<WeightSource>> result) {
      opened = std::move(result);
    });
    if (!executor_.RunUntil([&] { return opened.has_value(); })) std::abort();
    return *std::move(opened);
  }
  Result<std::shared_ptr<WeightSource>> OpenPaths(std::vector<std::string> paths,
                                                  std::string index = "") {
    return Open({.paths = std::move(paths), .fds = {}, .index = std::move(index)});
  }

  Result<BlockBytes> ReadBlock(WeightSource& source, BlockRead block) {
    std::optional<Result<BlockBytes>> read;
    source.Read(std::move(block), [&read](Result<BlockBytes> result) { read = std::move(result); });
    if (!executor_.RunUntil([&] { return read.has_value(); })) std::abort();
    return *std::move(read);
  }
  Status Read(WeightSource& source, std::vector<WeightPiece> pieces) {
    const auto read = ReadBlock(source, {.memory = {}, .pieces = std::move(pieces)});
    return read ? Status() : read.error();
  }
  Result<Digest> Hash(WeightSource& source, std::vector<std::span<const uint8_t>> spans) {
    std::optional<Result<Digest>> hashed;
    source.Hash(std::move(spans), [&hashed](Result<Digest> digest) { hashed = digest; });
    if (!executor_.RunUntil([&] { return hashed.has_value(); })) std::abort();
    return *hashed;
  }

  ManualExecutor& executor() { return executor_; }
  BlockReader& reader() { return *reader_; }
  const Clock& clock() const { return clock_; }
  WorkerPool& pool() { return *pool_; }

 private:
  ManualExecutor executor_;
  const SystemClock clock_;
  std::unique_ptr<WorkerPool> pool_;
  std::unique_ptr<BlockReader> reader_;
  std::unique_ptr<WeightSources> sources_;
};

}  // namespace terrace
