// What the store costs: the start with many pages, and writes and reads of pages beside the same
// transfers without the store. Usage: store_figures DIRECTORY; it must not exist.
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/unique_fd.h"
#include "tests/nvme/store_fixture.h"
#include "tiers/nvme/format.h"
#include "tiers/nvme/index.h"

namespace terrace {
namespace {

double SecondsOf(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Of this thread: what a start costs where the processor is not its own.
double ProcessorSeconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

nvme::StoreUuid UuidOf(const std::string& directory) {
  std::ifstream file(directory + "/TERRACE-STORE", std::ios::binary);
  const std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(file), {}};
  return nvme::DecodeMarker(bytes)->store;
}

// Entries for places that there are, put into the index without their pages.
void MeasureRestore(const std::string& directory, size_t count, const Clock& clock) {
  std::filesystem::create_directories(directory);
  NvmeStoreOptions options{.directories = {{directory, 16ull << 30}}};
  std::vector<PlaceId> places;
  {
    OpenStore open(options, clock);
    places = open.store->Allocate(4096, count);
    TERRACE_CHECK(places.size() == count);
    (void)open.Write(PageOf(0, 60'000), 1);  // Waits for the files.
  }
  {
    const auto index = *nvme::OpenIndex(directory + "/index", UuidOf(directory));
    std::vector<nvme::IndexEntry> entries;
    for (size_t i = 0; i < count; ++i) {
      nvme::IndexEntry& entry = entries.emplace_back();
      entry.page = PageOf(i + 1, 4096);
      entry.page.place = places[i];
      entry.page.serial = i + 10;
      if (entries.size() < 1000 && i + 1 < count) continue;
      TERRACE_CHECK(index->Put(entries, false).ok());
      entries.clear();
    }
  }
  for (int run = 0; run < 5; ++run) {
    const auto io = *StartDiskIo({}, clock);
    ManualExecutor owner;
    std::unique_ptr<PageStore> store;
    const double opened = SecondsOf([&] { store = *OpenNvmeStore(options, *io, owner, clock); });
    size_t found = 0;
    const double before = ProcessorSeconds();
    const double restored =
        SecondsOf([&] { TERRACE_CHECK(store->Restore([&](const StoredPage&) { ++found; }).ok()); });
    std::printf("start with %zu pages: open %.3f s, restore %.3f s (processor %.3f s)\n", found,
                opened, restored, ProcessorSeconds() - before);
    store.reset();
  }
}

class Transfers {
 public:
  Transfers(const std::string& directory, uint32_t bytes, size_t count, bool check_data,
            const Clock& clock)
      : bytes_(bytes), count_(count), clock_(clock), io_(*StartDiskIo({}, clock)) {
    NvmeStoreOptions options{.directories = {{directory, 16ull << 30}}};
    options.in_flight_per_device = 16;
    options.check_data = check_data;
    store_ = *OpenNvmeStore(options, *io_, owner_, clock);
    TERRACE_CHECK(store_->Restore([](const StoredPage&) {}).ok());
    for (size_t i = 0; i < kBuffers; ++i) {
      memory_.emplace_back(bytes);
      FillPage(memory_.back().bytes(), i, 1);
    }
  }
  const char* engine() const { return engine_.c_str(); }

  void Write() {
    const auto places = store_->Allocate(bytes_, count_);
    TERRACE_CHECK(places.size() == count_);
    std::vector<PageStore::PageWrite> writes;
    for (size_t i = 0; i < count_; ++i) {
      StoredPage page = PageOf(i, bytes_);
      page.place = places[i];
      pages_.push_back(page);
      writes.push_back({page, memory_[i % kBuffers].bytes()});
    }
    size_t ended = 0;
    store_->Write(
        std::move(writes), clock_.Now() + kLong,
        [&](size_t i, Result<uint64_t> serial) {
          TERRACE_CHECK(serial.has_value());
          pages_[i].serial = *serial;
        },
        [&](size_t) { ++ended; });
    TERRACE_CHECK(owner_.RunUntil([&] { return ended == count_; }));
  }

  // As many pages at a time as there are buffers.
  void Read() {
    for (size_t begin = 0; begin < count_; begin += kBuffers) {
      std::vector<PageStore::PageRead> reads;
      for (size_t i = begin; i < std::min(count_, begin + kBuffers); ++i)
        reads.push_back({pages_[i], memory_[i % kBuffers].bytes()});
      const size_t wanted = reads.size();
      size_t ended = 0;
      store_->Read(
          std::move(reads), clock_.Now() + kLong,
          [](size_t, ReadFault fault, const Status&) { TERRACE_CHECK(fault == ReadFault::kNone); },
          [&](size_t) { ++ended; });
      TERRACE_CHECK(owner_.RunUntil([&] { return ended == wanted; }));
    }
  }

  void Erase() {
    bool done = false;
    store_->Erase(pages_, [&](const Status& status) { done = status.ok(); });
    TERRACE_CHECK(owner_.RunUntil([&] { return done; }));
    pages_.clear();
  }

  // The same transfers, of the same slots, by DiskIo alone.
  void Raw(const std::string& directory, IoVerb verb) {
    std::map<uint32_t, std::pair<UniqueFd, IoFileId>> files;
    for (const auto& entry : std::filesystem::directory_iterator(directory)) {
      const auto name = nvme::ParseSlotFileName(entry.path().filename().string());
      if (!name) continue;
      UniqueFd fd(::open(entry.path().c_str(), O_RDWR | O_DIRECT));
      const IoFileId id = *io_->AddFile(fd.get());
      files.emplace(name->number, std::pair(std::move(fd), id));
    }
    nvme::AlignedBuffer headers(kBuffers * nvme::kHeaderBytes);
    for (size_t begin = 0; begin < count_; begin += kBuffers) {
      std::vector<IoRequest> requests;
      const size_t wanted = std::min(count_ - begin, kBuffers);
      const auto ended = std::make_shared<std::atomic<size_t>>(0);
      for (size_t i = begin; i < std::min(count_, begin + kBuffers); ++i) {
        const nvme::Place place = nvme::FromPlaceId(pages_[i].place);
        IoRequest& request = requests.emplace_back();
        request.verb = verb;
        request.file = files.at(place.file).second;
        request.offset = nvme::SlotBytes(bytes_) * place.slot;
        request.memory = {
            {headers.data() + (i % kBuffers) * nvme::kHeaderBytes, nvme::kHeaderBytes},
            {memory_[i % kBuffers].data(), bytes_}};
        request.deadline = clock_.Now() + kLong;
        request.done = [](const Status& status) { TERRACE_CHECK(status.ok()); };
        request.ended = [ended, wanted] {
          if (++*ended == wanted) ended->notify_one();
        };
      }
      TERRACE_CHECK(io_->Submit(std::move(requests)).ok());
      for (size_t now = *ended; now < wanted; now = *ended)
        ended->wait(now);
    }
    for (auto& [number, file] : files)
      io_->RemoveFile(file.second);
  }

 private:
  static constexpr size_t kBuffers = 16;
  const uint32_t bytes_;
  const size_t count_;
  const Clock& clock_;
  const std::unique_ptr<DiskIo> io_;
  const std::string engine_ = io_->Report().engine;
  ManualExecutor owner_;
  std::vector<nvme::AlignedBuffer> memory_;
  std::vector<StoredPage> pages_;
  std::unique_ptr<PageStore> store_;
};

void MeasureTransfers(const std::string& directory, uint32_t bytes, size_t count, bool check,
                      const Clock& clock) {
  std::filesystem::create_directories(directory);
  Transfers transfers(directory, bytes, count, check, clock);
  const double gigabytes = static_cast<double>(bytes) * static_cast<double>(count) / 1e9;
  const auto rate = [&](const std::function<void()>& work) { return gigabytes / SecondsOf(work); };
  const double fresh = rate([&] { transfers.Write(); });
  std::printf("%u KiB, %s, data %s: into fresh files %.2f GB/s\n", bytes >> 10, transfers.engine(),
              check ? "checked" : "not checked", fresh);
  for (int run = 0; run < 5; ++run) {
    const double read = rate([&] { transfers.Read(); });
    const double raw_read = rate([&] { transfers.Raw(directory, IoVerb::kRead); });
    transfers.Erase();
    const double write = rate([&] { transfers.Write(); });
    const double read_again = rate([&] { transfers.Read(); });
    const double raw_write = rate([&] { transfers.Raw(directory, IoVerb::kWrite); });
    transfers.Erase();
    transfers.Write();
    std::printf("  read %.2f, again %.2f, raw %.2f; write %.2f, raw %.2f GB/s\n", read, read_again,
                raw_read, write, raw_write);
  }
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  using namespace terrace;
  if (argc != 2 || std::filesystem::exists(argv[1])) {
    std::fprintf(stderr, "usage: store_figures DIRECTORY\n");
    return 2;
  }
  (void)std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const std::string directory = argv[1];
  const SystemClock clock;
  MeasureRestore(directory + "/restore", 1'000'000, clock);
  std::filesystem::remove_all(directory + "/restore");
  for (const bool check : {true, false}) {
    for (const uint32_t bytes : {2u << 20, 256u << 10, 64u << 10}) {
      MeasureTransfers(directory + "/transfers", bytes, std::min((512u << 20) / bytes, 2048u),
                       check, clock);
      std::filesystem::remove_all(directory + "/transfers");
    }
  }
  std::filesystem::remove_all(directory);
  return 0;
}
