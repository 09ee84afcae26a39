// Pin against evict, with threads: readers verify every byte that they look up while one thread
// evicts, reuses, drops, fences and grows without rest. Also run under ThreadSanitizer, which sees
// whether the protocol orders a reader's last read and the next writing of the page.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "tests/heart/page_reader.h"

namespace terrace {
namespace {

#if defined(__SANITIZE_THREAD__)
constexpr uint64_t kStepsARound = 60'000;
constexpr int kRounds = 3;
#elif defined(__SANITIZE_ADDRESS__)
constexpr uint64_t kStepsARound = 15'000;
constexpr int kRounds = 3;
#elif defined(__OPTIMIZE__) && defined(NDEBUG)
constexpr uint64_t kStepsARound = 150'000;
constexpr int kRounds = 6;
#else
constexpr uint64_t kStepsARound = 60'000;
constexpr int kRounds = 4;
#endif
constexpr int kReaders = 3;
constexpr uint64_t kHotLookups = 20 * kStepsARound;
// A step looks four or five keys up: at least so many lookups and evictions are raced together.
constexpr uint64_t kOperations = 4 * kReaders * kRounds * kStepsARound;
constexpr uint32_t kHotSlots = 2;
// However the machine shares its cores out, a round is not over before the owner has done so many
// turns and each reader has had so many hits.
constexpr uint64_t kTurnsARound = 5'000;
constexpr uint64_t kHitsARound = 100;
constexpr uint32_t kSlots = 64;
constexpr uint64_t kKeys = 80;
// Where every other page lies. One of the readers looks in host memory alone.
constexpr uint32_t kDevice = 5;

// In this process: what the owner thread posts under a mutex.
class ThreadBoard final : public Board {
 public:
  void Post(const DirectoryView<>& view, const SpaceRef& space) {
    const std::lock_guard lock(mutex_);
    view_ = view;
    space_ = space;
  }
  void Fetch(DirectoryView<>* view, SpaceRef* space) override {
    const std::lock_guard lock(mutex_);
    *view = view_;
    *space = space_;
  }

 private:
  std::mutex mutex_;
  DirectoryView<> view_;
  SpaceRef space_;
};

// Pages that one reader found and another thread releases.
class Mailbox {
 public:
  void Put(const PageReader::Held& held, PageReader* owner) {
    const std::lock_guard lock(mutex_);
    mail_.emplace_back(held, owner);
  }
  void ReleaseOne() {
    std::pair<PageReader::Held, PageReader*> mail;
    {
      const std::lock_guard lock(mutex_);
      if (mail_.empty()) return;
      mail = mail_.back();
      mail_.pop_back();
    }
    mail.second->ReleaseFromElsewhere(mail.first);
  }

 private:
  std::mutex mutex_;
  std::vector<std::pair<PageReader::Held, PageReader*>> mail_;
};

struct RoundFigures {
  ReaderFigures readers;
  ChannelTotals counted;
  uint64_t evicted = 0;
  uint64_t linked_again = 0;
  uint64_t growths = 0;
  uint64_t fences = 0;
};

RoundFigures RunRound(uint64_t seed) {
  PlainDirectory memory;
  auto index = *MakeTenantIndex(memory);
  PlainBytes bytes(kSlots * PlainPages::kPageBytes);
  PlainPages pages(bytes.span());
  Pager<PlainPages> pager(*index, pages, kSlots, seed, kDevice);
  Growth growth(*index, 20'000);
  ThreadBoard board;
  uint64_t posted = 0;
  const auto post = [&] {
    // The newest complete one: a table being filled has a higher id than the index says.
    for (size_t i = memory.regions(); i > 0; --i) {
      const auto view = *DirectoryView<>::Of(memory.region(i - 1));
      if (view.id() == index->directory_id()) board.Post(view, pager.space());
    }
    posted = index->directory_id();
  };
  post();

  // Two readers are lanes of one client, the third is a client of its own.
  PlainChannel channels[2];
  index->AddChannel(1, channels[0].span(), 40);
  index->AddChannel(2, channels[1].span(), 20);
  PinPool<> pools[2] = {{channels[0].channel(), 1u << 20}, {channels[1].channel(), 1u << 20}};
  std::vector<std::unique_ptr<Lane<>>> lanes;
  std::vector<std::unique_ptr<PageReader>> readers;
  for (int i = 0; i < kReaders; ++i) {
    lanes.push_back(std::make_unique<Lane<>>(pools[i / 2], static_cast<uint32_t>(i % 2)));
    readers.push_back(std::make_unique<PageReader>(board, pages, *lanes[i], kKeys, seed * 10 + i,
                                                   i == 0 ? 0 : kDevice));
  }

  Mailbox mailbox;
  std::atomic<int> running = kReaders;
  std::atomic<uint64_t> turns = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < kReaders; ++i) {
    threads.emplace_back([&, i] {
      for (uint64_t step = 0; step < kStepsARound || turns.load() < kTurnsARound ||
                              readers[i]->figures().hits < kHitsARound;
           ++step) {
        readers[i]->Step();
        if (step % 16 == 0 && readers[i]->holds_any()) {
          mailbox.Put(readers[i]->TakeHeld(), readers[i].get());
        }
        if (step % 8 == 0) mailbox.ReleaseOne();
      }
      running.fetch_sub(1);
    });
  }

  RoundFigures figures;
  Random random(seed);
  for (uint64_t turn = 0; running.load() > 0; turns.store(++turn)) {
    pager.Publish(random.Below(kKeys));
    if (turn % 32 == 0) pager.Evict(8);
    if (turn % 32 == 7) pager.Drop(random.Below(kKeys));
    if (turn % 16 == 1) pager.ReapLimbo();
    if (turn % 4096 == 4095) {
      pager.Fence();
      ++figures.fences;
      post();
    }
    growth.Link(4);
    if (index->directory_id() != posted) post();
    if (turn % 64 == 0) index->DrainRings(1 << 20, [](const auto&) {});
  }
  for (std::thread& thread : threads)
    thread.join();
  for (int i = 0; i < 1 << 20; ++i)
    mailbox.ReleaseOne();
  for (const auto& reader : readers) {
    reader->ReleaseAll();
    figures.readers.lookups += reader->figures().lookups;
    figures.readers.hits += reader->figures().hits;
    figures.readers.wrong += reader->figures().wrong + reader->wrong_elsewhere();
  }
  EXPECT_EQ(pager.Scan(), 0u);
  pager.ReapLimbo();
  EXPECT_EQ(pager.in_limbo(), 0u);
  figures.counted = index->totals();
  figures.evicted = pager.evicted();
  figures.linked_again = pager.linked_again();
  figures.growths = index->directory_id() - 1;
  return figures;
}

TEST(Race, PinnedPagesNeverChangeWhileEverythingElseDoes) {
  uint64_t hits = 0;
  uint64_t linked_again = 0;
  uint64_t operations = 0;
  for (int round = 0; round < kRounds; ++round) {
    const RoundFigures figures = RunRound(static_cast<uint64_t>(round) + 1);
    ASSERT_EQ(figures.readers.wrong, 0u) << "of " << figures.readers.hits << " in round " << round;
    // It was a race at all.
    EXPECT_GT(figures.evicted, 0u);
    EXPECT_GT(figures.growths, 0u);
    EXPECT_GT(figures.readers.hits, 0u);
    hits += figures.readers.hits;
    linked_again += figures.linked_again;
    operations += figures.readers.lookups + figures.evicted;
    // Promise 6, from the channels' counters.
    uint64_t counted_hits = 0;
    for (const uint64_t count : figures.counted.hits)
      counted_hits += count;
    uint64_t counted_misses = 0;
    for (const uint64_t count : figures.counted.misses)
      counted_misses += count;
    EXPECT_EQ(figures.counted.lookups, figures.readers.lookups);
    EXPECT_EQ(counted_hits, figures.readers.hits);
    EXPECT_EQ(counted_hits + counted_misses, figures.counted.lookups);
  }
  EXPECT_GT(operations, kOperations);
  RecordProperty("operations", std::to_string(operations));
  RecordProperty("hits", std::to_string(hits));
  RecordProperty("linked_again", std::to_string(linked_again));
}

// A few hot pages, one line of pins, one victim at a time: the moment between an unlink and the
// scan is as close as can be to that between a pin and its confirmation. A pin that were not
// ordered before its confirmation would be caught here.
TEST(Race, PinIsSeenBetweenUnlinkAndScan) {
  PlainDirectory memory;
  auto index = *MakeTenantIndex(memory);
  PlainBytes bytes(kHotSlots * PlainPages::kPageBytes);
  PlainPages pages(bytes.span());
  Pager<PlainPages> pager(*index, pages, kHotSlots, 1, kDevice);
  ThreadBoard board;
  board.Post(*DirectoryView<>::Of(memory.region(0)), pager.space());
  PlainChannel channel;
  index->AddChannel(1, channel.span(), 1);
  PinPool<> pool(channel.channel(), 1u << 20);
  Lane<> lane(pool, 0);
  PageReader reader(board, pages, lane, kHotSlots, 2, kDevice);
  std::atomic<bool> running = true;
  std::atomic<uint64_t> turns = 0;
  std::thread thread([&] {
    for (uint64_t i = 0; i < kHotLookups || turns.load() < kTurnsARound; ++i)
      reader.Touch();
    running.store(false);
  });
  Random random(3);
  while (running.load()) {
    pager.Publish(random.Below(kHotSlots));
    pager.Evict(1);
    turns.fetch_add(1);
  }
  thread.join();
  EXPECT_EQ(reader.figures().wrong, 0u) << "of " << reader.figures().hits;
  EXPECT_GT(reader.figures().hits, 0u);
  EXPECT_GT(pager.evicted(), 0u);
  RecordProperty("hits", std::to_string(reader.figures().hits));
  RecordProperty("evicted", std::to_string(pager.evicted()));
}

}  // namespace
}  // namespace terrace
