// A daemon's part for the crash test: writes, writes anew and erases pages of a small store until
// it is killed. Usage: store_writer SEED DURABILITY DIRECTORY...
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>

#include "base/check.h"
#include "tests/nvme/store_fixture.h"
#include "tests/nvme/writer_records.h"

namespace terrace {
namespace {

constexpr uint64_t kIds = 120;
constexpr size_t kAtOnce = 12;

void Tell(WriterEvent event, const StoredPage& page) {
  WriterRecord record;
  record.id = page.position;
  record.version = static_cast<uint64_t>(page.committed_ms);
  record.event = event;
  // Smaller than a pipe takes at once: whole or not at all.
  TERRACE_CHECK(::write(STDOUT_FILENO, &record, sizeof record) == sizeof record);
}

class Writer {
 public:
  Writer(uint64_t seed, OpenStore& open, const Clock& clock)
      : random_(seed), open_(open), clock_(clock), next_version_(seed * 1'000'000) {
    for (const StoredPage& page : open.found)
      pages_[page.position] = page;
  }

  [[noreturn]] void Run() {
    for (;;) {
      while (busy_.size() < kAtOnce)
        Begin();
      const size_t before = finished_;
      TERRACE_CHECK(open_.Run([&] { return finished_ > before; }));
      if (random_.Chance(1, 50)) open_.store->Turn();
    }
  }

 private:
  struct Busy {
    nvme::AlignedBuffer memory;
  };

  void Begin() {
    const uint64_t id = random_.Below(kIds);
    if (busy_.contains(id)) return;
    const bool known = pages_.contains(id);
    if (known && random_.Chance(1, 3)) return Erase(id, pages_[id]);
    const uint32_t bytes = WriterBytes(id);
    const auto places = open_.store->Allocate(bytes, 1);
    if (!places.empty()) return Write(id, places[0]);
    // Full: something goes, of whatever size.
    for (const auto& [other, page] : pages_)
      if (!busy_.contains(other)) return Erase(other, page);
  }

  void Write(uint64_t id, PlaceId place) {
    StoredPage page = PageOf(id, WriterBytes(id));
    page.place = place;
    page.committed_ms = static_cast<int64_t>(++next_version_);
    Busy& busy = busy_[id];
    busy.memory = nvme::AlignedBuffer(nvme::RoundUp(page.bytes));
    const auto bytes = busy.memory.bytes().first(page.bytes);
    FillPage(bytes, id, next_version_);
    Tell(WriterEvent::kWriteBegun, page);
    const auto serial = std::make_shared<uint64_t>(0);
    open_.store->Write(
        {{page, bytes}}, clock_.Now() + kLong,
        [page, serial](size_t, Result<uint64_t> given) {
          TERRACE_CHECK(given.has_value());
          *serial = *given;
          Tell(WriterEvent::kWritten, page);
        },
        [this, id, page, serial](size_t) mutable {
          page.serial = *serial;
          Replace(id, page);
        });
  }

  // The writing before goes when the new one is there.
  void Replace(uint64_t id, const StoredPage& page) {
    const auto finish = [this, id, page](const Status& status) {
      TERRACE_CHECK(status.ok());
      pages_[id] = page;
      busy_.erase(id);
      ++finished_;
    };
    const auto old = pages_.find(id);
    if (old == pages_.end()) return finish({});
    open_.store->Erase({old->second}, finish);
  }

  void Erase(uint64_t id, const StoredPage& page) {
    busy_[id];
    Tell(WriterEvent::kEraseBegun, page);
    open_.store->Erase({page}, [this, id, page](const Status& status) {
      TERRACE_CHECK(status.ok());
      Tell(WriterEvent::kErased, page);
      pages_.erase(id);
      busy_.erase(id);
      ++finished_;
    });
  }

  Random random_;
  OpenStore& open_;
  const Clock& clock_;
  uint64_t next_version_;
  std::map<uint64_t, StoredPage> pages_;
  std::map<uint64_t, Busy> busy_;
  size_t finished_ = 0;
};

}  // namespace

int RunWriter(int argc, char** argv) {
  const SystemClock clock;
  NvmeStoreOptions options;
  options.durability = static_cast<Durability>(std::atoi(argv[2]));
  options.keep_empty_ns = 0;
  for (int i = 3; i < argc; ++i)
    options.directories.push_back({argv[i], 2u << 20});
  OpenStore open(options, clock);
  if (!open.status.ok()) {
    std::fprintf(stderr, "%s\n", open.status.ToString().c_str());
    return 1;
  }
  Writer(std::strtoull(argv[1], nullptr, 10), open, clock).Run();
}

}  // namespace terrace

int main(int argc, char** argv) {
  return argc < 4 ? 2 : terrace::RunWriter(argc, argv);
}
