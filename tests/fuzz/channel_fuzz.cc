// What a hostile client writes into its channel, beside an honest one that reads.
//
// The input is a list of writes to the hostile channel and of things that the engine does: the
// books must hold after each, the honest client's pinned page must stay, and its counters must add
// up.
#include <iterator>

#include "base/check.h"
#include "tests/engine/engine_world.h"
#include "tests/fuzz/fuzz.h"

namespace terrace {
namespace {

constexpr size_t kMaxSteps = 512;

class ChannelFuzz {
 public:
  void Run(FuzzInput input) {
    const SpaceGiven space = honest_.Open();
    for (uint64_t key = 0; key < 16; ++key)
      handles_.push_back(honest_.Put(space, key).value());
    (void)honest_.channel.Pin(handles_[0]);
    for (size_t step = 0; step < kMaxSteps && !input.empty(); ++step)
      Step(input);
    Check();
  }

 private:
  void Step(FuzzInput& input) {
    const auto kind = input.Take<uint8_t>();
    switch (kind % 16) {
      case 0:
        (void)world_.engine->Turn();
        break;
      case 1:
        (void)world_.engine->Clients();
        break;
      case 2:
        (void)world_.engine->Evict(1 + input.Take<uint16_t>(), UINT64_MAX);
        break;
      case 3:
        (void)world_.engine->Summary();
        break;
      case 4:
        Check();
        break;
      default:
        Write(input, kind / 16);
    }
  }

  // Anywhere in the channel, but mostly where the daemon looks.
  void Write(FuzzInput& input, unsigned kind) {
    shm::Channel& channel = hostile_.channel.channel();
    const std::span<shm::Word> words(reinterpret_cast<shm::Word*>(&channel),
                                     sizeof channel / sizeof(shm::Word));
    const uint32_t at = input.Take<uint16_t>();
    shm::Word* const places[] = {
        &channel.magic,
        &channel.client_id,
        &channel.pin_lines,
        &channel.lanes,
        &channel.upper_summary[at % shm::kUpperSummaryWords],
        &channel.summary[at % shm::kSummaryWords],
        &channel.lines[at / 8 % shm::kMaxPinLines].pins[at % 8],
        &channel.lines[at / 8 % 64].pins[at % 8],
        &channel.counters[at % shm::kMaxLanes].lookups,
        &channel.counters[at % shm::kMaxLanes].hits[at / 64 % shm::kTiers],
        &channel.counters[at % shm::kMaxLanes].misses[at / 64 % shm::kMisses],
        &channel.counters[at % shm::kMaxLanes].dropped,
        &channel.rings[at % shm::kMaxLanes].head,
        &channel.rings[at % shm::kMaxLanes].tail,
        &channel.rings[at % 4].records[at / 4 % shm::kRingRecords].tag,
        &words[at * 5 % words.size()]};
    places[kind % std::size(places)]->store(Value(input));
    if (kind % std::size(places) == 14) {
      channel.rings[at % 4].records[at / 4 % shm::kRingRecords].handle.store(Value(input));
    }
  }

  uint64_t Value(FuzzInput& input) {
    const auto kind = input.Take<uint8_t>();
    switch (kind % 4) {
      case 0:
        return kind / 4;
      case 1:
        return handles_[kind / 4 % handles_.size()];
      case 2:
        return ~uint64_t{kind / 4u};
      default:
        return input.Take<uint64_t>();
    }
  }

  void Check() {
    const Status books = world_.engine->CheckInvariants();
    TERRACE_CHECK(books.ok());
    const StatusReport report = world_.engine->Summary();
    uint64_t answers = 0;
    for (const uint64_t hits : report.lookups.hits)
      answers += hits;
    for (const uint64_t misses : report.lookups.misses)
      answers += misses;
    TERRACE_CHECK(answers == report.lookups.lookups);
    TERRACE_CHECK(!world_.events.cut.contains(honest_.given.id));
    // Whatever was evicted, the page that the honest client reads is where it was.
    bool found = false;
    for (const PageReport& page : world_.engine->Pages("", 64, 0))
      found |= page.arena == shm::ArenaOf(handles_[0]) && page.slot == shm::SlotOf(handles_[0]);
    TERRACE_CHECK(found);
  }

  EngineWorld world_;
  ClientOfTest honest_{world_};
  ClientOfTest hostile_{world_};
  std::vector<shm::Handle> handles_;
};

}  // namespace
}  // namespace terrace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  terrace::ChannelFuzz().Run(terrace::FuzzInput(data, size));
  return 0;
}
