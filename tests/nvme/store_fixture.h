// A store on real files: a temporary folder, file I/O as the daemon has it, pages whose bytes
// follow from their seed, and calls that wait for their answer.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "tiers/io/disk_io.h"
#include "tiers/nvme/aligned_buffers.h"
#include "tiers/nvme/nvme_store.h"
#include "tiers/sim/sim_executor.h"

namespace terrace {

class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "terrace-nvme-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::string& path() const { return path_; }
  // A new directory in it.
  std::string Make(const std::string& name) const {
    const std::string path = path_ + "/" + name;
    std::filesystem::create_directory(path);
    std::filesystem::permissions(path, std::filesystem::perms::owner_all);
    return path;
  }

 private:
  std::string path_;
};

// For as long as it lives no write reaches a file of this process.
class NoFileGrows {
 public:
  NoFileGrows() {
    std::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit none{0, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &none);
  }
  ~NoFileGrows() { ::setrlimit(RLIMIT_FSIZE, &before_); }
  NoFileGrows(const NoFileGrows&) = delete;
  NoFileGrows& operator=(const NoFileGrows&) = delete;

 private:
  rlimit before_{};
};

inline constexpr MonotonicNs kLong = 120 * kNsPerSecond;

inline Digest DigestOf(uint64_t seed) {
  Random random(seed);
  Digest digest;
  for (uint8_t& byte : digest.bytes)
    byte = static_cast<uint8_t>(random());
  return digest;
}

// Page `id` in its writing `version`: different bytes each.
inline void FillPage(std::span<uint8_t> bytes, uint64_t id, uint64_t version) {
  Random random(id * 1'000'003 + version);
  size_t at = 0;
  for (; at + 8 <= bytes.size(); at += 8) {
    const uint64_t word = random();
    std::memcpy(bytes.data() + at, &word, 8);
  }
  for (; at < bytes.size(); ++at)
    bytes[at] = static_cast<uint8_t>(random());
}

inline StoredPage PageOf(uint64_t id, uint32_t bytes) {
  StoredPage page;
  page.name = {.space = DigestOf(1 + id % 3), .key = DigestOf(1000 + id), .part = uint32_t(id % 2)};
  page.bytes = bytes;
  page.valid_tokens = 16;
  page.generation = 7;
  page.layout = 0x1234567890abcdef;
  page.parent = DigestOf(999 + id);
  page.position = static_cast<uint32_t>(id);
  page.item_class = 2;
  page.committed_ms = 1'700'000'000'000 + static_cast<int64_t>(id);
  return page;
}

struct ReadAnswer {
  ReadFault fault = ReadFault::kNone;
  Status status;
  std::vector<uint8_t> bytes;
};

// The store and what it stands on, for one life of it.
class OpenStore {
 public:
  OpenStore(const NvmeStoreOptions& options, const Clock& clock,
            std::function<std::unique_ptr<DiskIo>(std::unique_ptr<DiskIo>)> wrap = {})
      : OpenStore(options, clock, NvmeIoOptions(options), std::move(wrap)) {}
  OpenStore(const NvmeStoreOptions& options, const Clock& clock, const DiskIoOptions& io_options,
            std::function<std::unique_ptr<DiskIo>(std::unique_ptr<DiskIo>)> wrap = {})
      : clock_(clock) {
    io = *StartDiskIo(io_options, clock);
    if (wrap) io = wrap(std::move(io));
    auto opened = OpenNvmeStore(options, *io, owner, clock);
    status = opened.status();
    if (!opened) return;
    store = *std::move(opened);
    status = store->Restore([this](const StoredPage& page) { found.push_back(page); });
  }

  // Writes pages at places that it allocates; answers come in `serials`, in order.
  struct Wanted {
    StoredPage page;
    uint64_t version = 0;
    size_t misaligned = 0;  // Of the memory's address.
  };
  struct WriteAnswer {
    Status status;
    StoredPage page;  // With place and serial.
  };
  std::vector<WriteAnswer> Write(const std::vector<Wanted>& wanted) {
    std::vector<WriteAnswer> answers;
    std::vector<PageStore::PageWrite> writes;
    std::vector<nvme::AlignedBuffer> memory;
    for (const Wanted& want : wanted) {
      WriteAnswer answer{.status = {}, .page = want.page};
      const auto places = store->Allocate(want.page.bytes, 1);
      if (places.empty()) {
        answer.status = Status(Code::kExhausted, "no place");
        answers.push_back(answer);
        continue;
      }
      answer.page.place = places[0];
      memory.emplace_back(nvme::RoundUp(want.page.bytes + want.misaligned));
      const auto bytes = memory.back().bytes().subspan(want.misaligned, want.page.bytes);
      FillPage(bytes, want.page.position, want.version);
      writes.push_back({answer.page, bytes});
      answer.page.serial = answers.size();  // For now: finds the answer of the write.
      answers.push_back(answer);
    }
    std::vector<size_t> answer_of;
    for (size_t i = 0; i < answers.size(); ++i)
      if (answers[i].status.ok()) answer_of.push_back(i);
    size_t done = 0;
    size_t ended = 0;
    const size_t count = writes.size();
    store->Write(
        std::move(writes), clock_.Now() + kLong,
        [&](size_t i, Result<uint64_t> serial) {
          answers[answer_of[i]].status = serial.status();
          answers[answer_of[i]].page.serial = serial ? *serial : 0;
          ++done;
        },
        [&](size_t) { ++ended; });
    EXPECT_TRUE(Run([&] { return done == count && ended == count; }));
    return answers;
  }
  WriteAnswer Write(const StoredPage& page, uint64_t version) {
    return Write(std::vector<Wanted>{{page, version, 0}})[0];
  }

  std::vector<ReadAnswer> Read(const std::vector<StoredPage>& pages, size_t misaligned = 0,
                               MonotonicNs within = kLong) {
    std::vector<ReadAnswer> answers(pages.size());
    std::vector<nvme::AlignedBuffer> memory;
    std::vector<PageStore::PageRead> reads;
    for (const StoredPage& page : pages) {
      memory.emplace_back(nvme::RoundUp(page.bytes + misaligned));
      reads.push_back({page, memory.back().bytes().subspan(misaligned, page.bytes)});
    }
    size_t done = 0;
    size_t ended = 0;
    store->Read(
        reads, clock_.Now() + within,
        [&](size_t i, ReadFault fault, const Status& why) {
          answers[i].fault = fault;
          answers[i].status = why;
          if (fault == ReadFault::kNone) {
            answers[i].bytes.assign(reads[i].into.begin(), reads[i].into.end());
          }
          ++done;
        },
        [&](size_t) { ++ended; });
    EXPECT_TRUE(Run([&] { return done == pages.size() && ended == pages.size(); }));
    return answers;
  }
  ReadAnswer Read(const StoredPage& page) { return Read(std::vector<StoredPage>{page})[0]; }

  Status Erase(const std::vector<StoredPage>& pages) {
    return Answer([&](auto done) { store->Erase(pages, done); });
  }
  Status Flush(const std::function<void(uint64_t, uint64_t)>& progress = {}) {
    return Answer([&](auto done) { store->Flush(progress, done); });
  }
  uint64_t allocated() const {
    uint64_t bytes = 0;
    for (const DeviceReport& device : store->Report().devices)
      bytes += device.allocated_bytes;
    return bytes;
  }
  uint64_t faults(ReadFault fault) const {
    return store->Report().faults[static_cast<size_t>(fault)];
  }

  bool Run(const std::function<bool()>& reached) {
    return owner.RunUntil(reached, std::chrono::seconds(60));
  }
  void Turn() {
    store->Turn();
    owner.RunAll();
  }

  Status status;
  std::vector<StoredPage> found;  // By Restore.
  ManualExecutor owner;
  std::unique_ptr<DiskIo> io;
  std::unique_ptr<PageStore> store;  // Goes before them.

 private:
  Status Answer(const std::function<void(std::function<void(Status)>)>& ask) {
    bool answered = false;
    Status answer;
    ask([&](const Status& given) {
      answer = given;
      answered = true;
    });
    EXPECT_TRUE(Run([&] { return answered; }));
    return answer;
  }

  const Clock& clock_;
};

inline std::vector<uint8_t> BytesOf(const StoredPage& page, uint64_t version) {
  std::vector<uint8_t> bytes(page.bytes);
  FillPage(bytes, page.position, version);
  return bytes;
}

}  // namespace terrace
