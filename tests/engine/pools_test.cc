// Pools of engines, through the verbs of Engine: blocks gathered into pages and scattered from
// them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>
#include <vector>

#include "tests/engine/device_world.h"

namespace terrace {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint32_t kPage = EngineWorld::kPage;
constexpr uint32_t kBlocksPerPage = 2;
constexpr uint32_t kSegments = 2;
constexpr uint64_t kBlockBytes = kPage / kBlocksPerPage / kSegments;
constexpr uint32_t kBlocks = 64;
constexpr uint64_t kPoolBytes = 2 * kSegments * kBlocks * kBlockBytes;

struct PoolCall {
  std::vector<Digest> keys;
  std::vector<uint32_t> blocks;
  std::vector<uint32_t> valid_tokens;
  PoolPages pages;
  std::optional<Result<std::vector<Code>>> answer;
};

class PoolsTest : public testing::Test {
 protected:
  PoolsTest() : client(of), space(client.Open()) {}
  ~PoolsTest() override { Check(); }
  void Check() { ASSERT_EQ(of.world.engine->CheckInvariants(), Status()); }
  Engine& engine() { return *of.world.engine; }
  SimDeviceTier& tier() { return *of.tiers[0]; }

  Result<uint64_t> Add(DeviceClient& whose, uint32_t device = 1) {
    std::optional<Result<uint64_t>> pool;
    PoolSpec spec;
    spec.device = device;
    spec.bytes = kPoolBytes;
    engine().AddPool(whose.given.id, std::move(spec),
                     [&](Result<uint64_t> added) { pool = added; });
    of.Settle();
    return pool.value_or(Status(Code::kInternal, "no answer"));
  }
  uint64_t AddOwn() {
    const Result<uint64_t> pool = Add(client);
    TERRACE_CHECK(pool.has_value());
    return *pool;
  }
  // Of pages whose blocks follow each other from `first`.
  std::shared_ptr<PoolCall> CallOf(uint64_t pool, const std::vector<uint64_t>& numbers,
                                   uint32_t first = 0) {
    auto call = std::make_shared<PoolCall>();
    for (const uint64_t number : numbers)
      call->keys.push_back(KeyOf(number));
    for (uint32_t i = 0; i < numbers.size() * kBlocksPerPage; ++i)
      call->blocks.push_back((first + 3 * i) % kBlocks);
    call->pages.pool = pool;
    for (uint64_t s = 0; s < kSegments; ++s)
      call->pages.layout.bases.push_back(64 + s * kBlocks * kBlockBytes);
    call->pages.layout.block_stride = kBlockBytes;
    call->pages.layout.block_bytes = kBlockBytes;
    call->pages.slot = space.slot;
    call->pages.epoch = space.epoch;
    call->pages.keys = call->keys;
    call->pages.blocks = call->blocks;
    call->pages.blocks_per_page = kBlocksPerPage;
    return call;
  }
  std::shared_ptr<PoolCall> Store(std::shared_ptr<PoolCall> call, DeviceClient* whose = nullptr) {
    engine().StoreFromPool((whose == nullptr ? client : *whose).given.id, call->pages,
                           [call](Result<std::vector<Code>> codes) {
                             TERRACE_CHECK(!call->answer.has_value());
                             call->answer = std::move(codes);
                           });
    return call;
  }
  std::shared_ptr<PoolCall> Fetch(std::shared_ptr<PoolCall> call, DeviceClient* whose = nullptr) {
    engine().FetchIntoPool((whose == nullptr ? client : *whose).given.id, call->pages,
                           [call](Result<std::vector<Code>> codes) {
                             TERRACE_CHECK(!call->answer.has_value());
                             call->answer = std::move(codes);
                           });
    return call;
  }
  static std::vector<Code> CodesOf(const PoolCall& call) {
    if (!call.answer.has_value() || !call.answer->has_value()) return {};
    return **call.answer;
  }
  static Code ErrorOf(const PoolCall& call) {
    return call.answer.has_value() ? call.answer->status().code() : Code::kInternal;
  }
  // What a page has at [segment][block], or [block][segment].
  std::span<uint8_t> InPool(const PoolCall& call, size_t page, uint32_t block, uint32_t segment) {
    const uint64_t number = call.blocks[page * kBlocksPerPage + block];
    const uint64_t at = call.pages.layout.bases[segment] + number * call.pages.layout.block_stride;
    return tier().Bytes(static_cast<ArenaId>(call.pages.pool)).subspan(at, kBlockBytes);
  }
  void ForEachPiece(const PoolCall& call,
                    const std::function<void(size_t page, std::span<uint8_t>, size_t at)>& piece) {
    for (size_t page = 0; page < call.keys.size(); ++page) {
      for (uint32_t block = 0; block < kBlocksPerPage; ++block) {
        for (uint32_t segment = 0; segment < kSegments; ++segment) {
          const uint64_t place = call.pages.layout.page_first ? block * kSegments + segment
                                                              : segment * kBlocksPerPage + block;
          piece(page, InPool(call, page, block, segment), place * kBlockBytes);
        }
      }
    }
  }
  // Every byte of a page differs by its place.
  static uint8_t ByteOf(const Digest& key, size_t at) {
    return static_cast<uint8_t>(key.bytes[0] * 31 + at * 7 + at / 256 + 1);
  }
  void FillPool(const PoolCall& call) {
    ForEachPiece(call, [&](size_t page, std::span<uint8_t> bytes, size_t at) {
      for (size_t i = 0; i < bytes.size(); ++i)
        bytes[i] = ByteOf(call.keys[page], at + i);
    });
  }
  bool PoolHas(const PoolCall& call) {
    bool same = true;
    ForEachPiece(call, [&](size_t page, std::span<uint8_t> bytes, size_t at) {
      for (size_t i = 0; i < bytes.size(); ++i)
        same = same && bytes[i] == ByteOf(call.keys[page], at + i);
    });
    return same;
  }
  bool PageHas(uint64_t number, uint32_t place) {
    const auto handle = client.FindAt(space, number, place);
    if (!handle) return false;
    const std::span<uint8_t> bytes = client.BytesOf(*handle, kPage);
    for (size_t i = 0; i < bytes.size(); ++i) {
      if (bytes[i] != ByteOf(KeyOf(number), i)) return false;
    }
    return true;
  }
  void EndGeneration() {
    TenantIndex& index = engine().index(client.tenant());
    index.SetGeneration(space.generation_index, index.generation(space.generation_index) + 1);
  }

  DeviceWorld of;
  DeviceClient client;
  SpaceGiven space;
};

TEST_F(PoolsTest, BlocksBecomePagesAndPagesOtherBlocks) {
  const uint64_t pool = AddOwn();
  for (const bool page_first : {false, true}) {
    const uint64_t base = page_first ? 10 : 0;
    const auto store = CallOf(pool, {base + 1, base + 2, base + 3}, 5);
    store->pages.layout.page_first = page_first;
    FillPool(*store);
    Store(store);
    EXPECT_FALSE(client.FindAt(space, base + 1, 1).has_value());
    Check();
    of.Settle();
    EXPECT_THAT(CodesOf(*store), ElementsAre(Code::kOk, Code::kOk, Code::kOk));
    EXPECT_TRUE(PageHas(base + 1, 1) && PageHas(base + 2, 1) && PageHas(base + 3, 1));
    const auto fetch = CallOf(pool, {base + 1, base + 2, base + 3}, 30);
    fetch->pages.layout.page_first = page_first;
    EXPECT_FALSE(PoolHas(*fetch));
    Fetch(fetch);
    Check();
    of.Settle();
    EXPECT_THAT(CodesOf(*fetch), ElementsAre(Code::kOk, Code::kOk, Code::kOk));
    EXPECT_TRUE(PoolHas(*fetch));
  }
}

TEST_F(PoolsTest, APageThatIsThereStays) {
  const uint64_t pool = AddOwn();
  ASSERT_TRUE(client.PutHere(space, 1).has_value());
  const auto store = CallOf(pool, {1, 2});
  FillPool(*store);
  Store(store);
  of.Settle();
  EXPECT_THAT(CodesOf(*store), ElementsAre(Code::kAlreadyExists, Code::kOk));
  EXPECT_TRUE(client.ReadsAt(space, 1, 1));
}

TEST_F(PoolsTest, OfTwoStoresOfOneKeyOneIsLinked) {
  const uint64_t pool = AddOwn();
  const auto first = CallOf(pool, {1}, 0);
  const auto second = CallOf(pool, {1}, 20);
  FillPool(*first);
  FillPool(*second);
  Store(first);
  Store(second);
  of.Settle();
  EXPECT_THAT(CodesOf(*first), ElementsAre(Code::kOk));
  EXPECT_THAT(CodesOf(*second), ElementsAre(Code::kAlreadyExists));
}

TEST_F(PoolsTest, PagesOfHostMemoryComeByWayOfTheDevice) {
  const uint64_t pool = AddOwn();
  const auto store = CallOf(pool, {1, 2});
  FillPool(*store);
  Store(store);
  of.Settle();
  std::optional<Result<Demoted>> down;
  engine().DemoteDevice(1, 0, {}, [&](const Result<Demoted>& demoted) { down = demoted; });
  of.Settle();
  ASSERT_FALSE(client.FindAt(space, 1, 1).has_value());
  const auto fetch = CallOf(pool, {1, 2, 3}, 30);
  Fetch(fetch);
  of.Settle();
  EXPECT_THAT(CodesOf(*fetch), ElementsAre(Code::kOk, Code::kOk, Code::kNotFound));
  fetch->keys.pop_back();
  EXPECT_TRUE(PoolHas(*fetch));
  EXPECT_TRUE(client.FindAt(space, 1, 1).has_value());
}

TEST_F(PoolsTest, WhatIsFetchedIsHeldNoLonger) {
  const uint64_t pool = AddOwn();
  const auto store = CallOf(pool, {1, 2});
  FillPool(*store);
  Store(store);
  of.Settle();
  Fetch(CallOf(pool, {1, 2}, 30));
  of.Settle();
  std::optional<Result<Demoted>> down;
  engine().DemoteDevice(1, 0, {}, [&](const Result<Demoted>& demoted) { down = demoted; });
  of.Settle();
  ASSERT_TRUE(down.has_value() && down->has_value());
  EXPECT_EQ((*down)->pages, 2u);
}

TEST_F(PoolsTest, WhatIsScatteredStaysWhateverIsAskedMeanwhile) {
  const uint64_t pool = AddOwn();
  const auto store = CallOf(pool, {1, 2});
  FillPool(*store);
  Store(store);
  of.Settle();
  const auto fetch = CallOf(pool, {1, 2}, 30);
  Fetch(fetch);
  // Dropped while it is scattered: its memory is nobody else's before that is done.
  EXPECT_EQ(client.Drop(space, 1), 1u);
  engine().DemoteDevice(1, 0, {}, [](const Result<Demoted>&) {});
  (void)engine().Turn();
  Check();
  of.Settle();
  EXPECT_THAT(CodesOf(*fetch), ElementsAre(Code::kOk, Code::kOk));
  EXPECT_TRUE(PoolHas(*fetch));
  EXPECT_EQ(of.Device().limbo_bytes, 0u);
}

TEST_F(PoolsTest, OnlyBlocksWithTokensAreCopied) {
  const uint64_t pool = AddOwn();
  const auto store = CallOf(pool, {1});
  FillPool(*store);
  store->valid_tokens = {1};
  store->pages.valid_tokens = store->valid_tokens;
  Store(store);
  of.Settle();
  ASSERT_THAT(CodesOf(*store), ElementsAre(Code::kOk));
  const auto page = engine().index(client.tenant()).Find({space.slot, space.epoch, 0, KeyOf(1), 1});
  ASSERT_TRUE(page.has_value());
  EXPECT_EQ(page->valid_tokens, 1u);
  const auto fetch = CallOf(pool, {1}, 30);
  for (const uint32_t block : {0u, 1u}) {
    for (uint32_t segment = 0; segment < kSegments; ++segment)
      std::ranges::fill(InPool(*fetch, 0, block, segment), 0xee);
  }
  Fetch(fetch);
  of.Settle();
  EXPECT_EQ(InPool(*fetch, 0, 0, 1)[0], InPool(*store, 0, 0, 1)[0]);
  EXPECT_THAT(InPool(*fetch, 0, 1, 0), Each(0xee));
  EXPECT_THAT(InPool(*fetch, 0, 1, 1), Each(0xee));
}

TEST_F(PoolsTest, WhatDoesNotFitIsNamed) {
  const uint64_t pool = AddOwn();
  struct Case {
    const char* names;
    std::function<void(PoolCall&)> spoil;
  };
  const uint64_t most = UINT64_MAX / 16 * 16;
  const std::vector<Case> cases = {
      {"pool", [&](PoolCall& call) { call.pages.pool = pool + 1; }},
      {"pool", [&](PoolCall& call) { call.pages.pool = pool + (uint64_t{1} << 32); }},
      {"bases", [](PoolCall& call) { call.pages.layout.bases.clear(); }},
      {"bases", [](PoolCall& call) { call.pages.layout.bases.assign(4097, 0); }},
      {"bases", [](PoolCall& call) { call.pages.layout.bases[1] = kPoolBytes; }},
      {"bases", [=](PoolCall& call) { call.pages.layout.bases[1] = most; }},
      {"bases", [](PoolCall& call) { call.pages.layout.bases[1] += 8; }},
      {"block_bytes", [](PoolCall& call) { call.pages.layout.block_bytes *= 2; }},
      {"block_bytes", [](PoolCall& call) { call.pages.layout.block_bytes = 0; }},
      {"block_bytes", [=](PoolCall& call) { call.pages.layout.block_bytes = most; }},
      {"block_stride", [](PoolCall& call) { call.pages.layout.block_stride = 0; }},
      {"blocks", [=](PoolCall& call) { call.pages.layout.block_stride = most; }},
      {"blocks", [](PoolCall& call) { call.blocks[1] = UINT32_MAX; }},
      {"blocks", [](PoolCall& call) { call.pages.blocks = {}; }},
      {"blocks_per_page", [](PoolCall& call) { call.pages.blocks_per_page = 0; }},
      {"blocks_per_page", [](PoolCall& call) { call.pages.blocks_per_page = UINT32_MAX; }},
      {"valid_tokens",
       [](PoolCall& call) {
         call.valid_tokens = {1u << 20};
         call.pages.valid_tokens = call.valid_tokens;
       }},
      {"valid_tokens",
       [](PoolCall& call) {
         call.valid_tokens = {0, 0, 0};
         call.pages.valid_tokens = call.valid_tokens;
       }},
      {"space", [](PoolCall& call) { ++call.pages.epoch; }},
      {"part", [](PoolCall& call) { call.pages.part = 5; }},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    for (const bool store : {true, false}) {
      const auto call = CallOf(pool, {1});
      // The second block is asked for, so that its stride matters.
      call->blocks[0] = 1;
      cases[i].spoil(*call);
      if (store) {
        Store(call);
      } else {
        Fetch(call);
      }
      ASSERT_TRUE(call->answer.has_value()) << i;
      EXPECT_FALSE(call->answer->has_value()) << i;
      EXPECT_THAT(call->answer->status().message(), HasSubstr(cases[i].names)) << i;
    }
  }
  EXPECT_EQ(tier().pending(), 0u);
}

TEST_F(PoolsTest, PoolsAreTheirOwners) {
  const uint64_t pool = AddOwn();
  DeviceClient other(of, "u");
  (void)other.Open();
  EXPECT_EQ(ErrorOf(*Store(CallOf(pool, {1}), &other)), Code::kNotFound);
  EXPECT_EQ(ErrorOf(*Fetch(CallOf(pool, {1}), &other)), Code::kNotFound);
  Status removed;
  engine().RemovePool(other.given.id, pool, [&](const Status& status) { removed = status; });
  EXPECT_EQ(removed.code(), Code::kNotFound);
  EXPECT_EQ(Add(client, 3).status().code(), Code::kInvalidArgument);
}

TEST_F(PoolsTest, AClientHasAtMostSoMany) {
  for (size_t i = 0; i < kMaxPools; ++i)
    ASSERT_TRUE(Add(client, i % 2 == 0 ? 1 : 2).has_value()) << i;
  EXPECT_EQ(Add(client).status().code(), Code::kExhausted);
}

TEST_F(PoolsTest, APoolThatCannotBeImportedIsNone) {
  tier().import_faults.FailAfter(0, Status(Code::kMismatch, "no slab"));
  EXPECT_EQ(Add(client).status().code(), Code::kMismatch);
  EXPECT_EQ(tier().arena_count(), 0u);
}

TEST_F(PoolsTest, RemovingWaitsForTheCopyAndAnswersWhatWaits) {
  const uint64_t pool = AddOwn();
  const auto store = CallOf(pool, {1});
  FillPool(*store);
  // The memory is there, so that the first is under way at once.
  ASSERT_TRUE(client.PutHere(space, 100).has_value());
  Store(store);
  ASSERT_EQ(tier().pending(), 1u);
  std::optional<Status> removed;
  engine().RemovePool(client.given.id, pool, [&](const Status& status) { removed = status; });
  EXPECT_FALSE(removed.has_value());
  EXPECT_EQ(ErrorOf(*Store(CallOf(pool, {2}))), Code::kNotFound);
  Check();
  tier().RunPending(1);
  EXPECT_FALSE(removed.has_value()) << "the tier has it still";
  of.Settle();
  ASSERT_TRUE(removed.has_value());
  EXPECT_EQ(*removed, Status());
  EXPECT_EQ(ErrorOf(*store), Code::kNotFound);
  EXPECT_TRUE(PageHas(1, 1)) << "it was gathered whole";
}

TEST_F(PoolsTest, ARemovalThatTheTierRefusesIsTriedAgain) {
  const uint64_t pool = AddOwn();
  tier().release_faults.FailAfter(0, Status(Code::kExhausted, "too much waits"));
  std::optional<Status> removed;
  engine().RemovePool(client.given.id, pool, [&](const Status& status) { removed = status; });
  of.Settle();
  ASSERT_TRUE(removed.has_value());
  EXPECT_EQ(*removed, Status());
  EXPECT_EQ(tier().arena_count(), 0u);
}

TEST_F(PoolsTest, NothingOfAClientThatIsGoneBecomesVisible) {
  const uint64_t pool = AddOwn();
  ASSERT_TRUE(client.PutHere(space, 100).has_value());
  const auto moving = CallOf(pool, {1, 2});
  FillPool(*moving);
  Store(moving);
  const size_t arenas = tier().arena_count();
  DeviceClient reader(of);
  const SpaceGiven same = reader.Open();
  engine().ClientGone(client.given.id);
  Check();
  of.Settle();
  EXPECT_FALSE(reader.FindAt(same, 1, 1).has_value());
  EXPECT_FALSE(reader.FindAt(same, 2, 1).has_value());
  EXPECT_EQ(of.Device().filling_bytes, 0u);
  EXPECT_EQ(tier().arena_count(), arenas - 1) << "the pool";
}

TEST_F(PoolsTest, AClientThatGoesWhileItsPoolComesLeavesNone) {
  std::optional<Result<uint64_t>> pool;
  PoolSpec spec;
  spec.device = 1;
  spec.bytes = kPoolBytes;
  engine().AddPool(client.given.id, std::move(spec), [&](Result<uint64_t> added) { pool = added; });
  engine().ClientGone(client.given.id);
  of.Settle();
  ASSERT_TRUE(pool.has_value());
  EXPECT_EQ(pool->status().code(), Code::kNotFound);
  EXPECT_EQ(tier().arena_count(), 0u);
}

TEST_F(PoolsTest, WhatFailsIsNotVisibleAndItsMemoryIsFree) {
  const uint64_t pool = AddOwn();
  ASSERT_TRUE(client.PutHere(space, 100).has_value());
  tier().copy_faults.FailAfter(0, Status(Code::kUnavailable, "the mover ended"));
  const auto store = CallOf(pool, {1, 2});
  Store(store);
  of.Settle();
  EXPECT_THAT(CodesOf(*store), ElementsAre(Code::kUnavailable, Code::kUnavailable));
  EXPECT_FALSE(client.FindAt(space, 1, 1).has_value());
  EXPECT_EQ(of.Device().filling_bytes, 0u);
  FillPool(*store);
  const auto again = CallOf(pool, {1, 2});
  Store(again);
  of.Settle();
  EXPECT_THAT(CodesOf(*again), ElementsAre(Code::kOk, Code::kOk));
  EXPECT_TRUE(PageHas(1, 1));
  tier().copy_faults.FailAfter(0, Status(Code::kDeadlineExceeded, "too slow"));
  const auto fetch = CallOf(pool, {1, 2}, 30);
  Fetch(fetch);
  of.Settle();
  EXPECT_THAT(CodesOf(*fetch), ElementsAre(Code::kDeadlineExceeded, Code::kDeadlineExceeded));
}

TEST_F(PoolsTest, AGenerationThatEndsMeanwhileMakesBothStale) {
  const uint64_t pool = AddOwn();
  const auto there = CallOf(pool, {1});
  FillPool(*there);
  Store(there);
  of.Settle();
  const auto store = CallOf(pool, {2}, 20);
  const auto fetch = CallOf(pool, {1}, 30);
  Store(store);
  Fetch(fetch);
  ASSERT_EQ(tier().pending(), 2u);
  EndGeneration();
  of.Settle();
  EXPECT_THAT(CodesOf(*store), ElementsAre(Code::kStale));
  EXPECT_THAT(CodesOf(*fetch), ElementsAre(Code::kStale));
  EXPECT_FALSE(client.FindAt(space, 2, 1).has_value());
}

TEST_F(PoolsTest, ALostPoolIsStaleUntilItIsAddedAnew) {
  const uint64_t pool = AddOwn();
  ASSERT_TRUE(client.PutHere(space, 100).has_value());
  const auto store = CallOf(pool, {1});
  Store(store);
  of.Lose();
  of.Settle();
  EXPECT_EQ(ErrorOf(*store), Code::kStale);
  EXPECT_FALSE(client.FindAt(space, 1, 1).has_value());
  EXPECT_EQ(ErrorOf(*Store(CallOf(pool, {1}))), Code::kStale);
  EXPECT_EQ(ErrorOf(*Fetch(CallOf(pool, {1}))), Code::kStale);
  std::optional<Status> removed;
  engine().RemovePool(client.given.id, pool, [&](const Status& status) { removed = status; });
  of.Settle();
  EXPECT_EQ(removed, Status());
  const uint64_t anew = AddOwn();
  const auto again = CallOf(anew, {1});
  FillPool(*again);
  Store(again);
  of.Settle();
  EXPECT_THAT(CodesOf(*again), ElementsAre(Code::kOk));
  EXPECT_TRUE(PageHas(1, 1));
}

TEST_F(PoolsTest, AStoreWaitsForMemoryUntilItsDeadline) {
  const uint64_t pool = AddOwn();
  std::vector<uint64_t> numbers;
  for (uint64_t i = 0; i < 16; ++i) {
    ASSERT_TRUE(client.PutHere(space, 100 + i).has_value());
    client.channel.Pin(client.FindAt(space, 100 + i, 1).value());
  }
  const auto full = CallOf(pool, {1});
  Store(full);
  of.Settle();
  EXPECT_THAT(CodesOf(*full), ElementsAre(Code::kExhausted)) << "nothing can leave";
}

TEST_F(PoolsTest, WhatHasNoMemoryInTimeIsAnsweredSo) {
  const uint64_t pool = AddOwn();
  const auto store = CallOf(pool, {1});
  store->pages.deadline_ms = 20;
  Store(store);
  EXPECT_FALSE(store->answer.has_value()) << "a slab is on its way";
  of.world.clock.Advance(30 * kNsPerMs);
  (void)engine().Turn();
  EXPECT_THAT(CodesOf(*store), ElementsAre(Code::kDeadlineExceeded));
}

TEST_F(PoolsTest, MoreBlocksThanOneRequestOfTheTierTakesGoInSeveral) {
  const uint64_t pool = AddOwn();
  ASSERT_TRUE(client.PutHere(space, 1).has_value());
  const auto fetch = CallOf(pool, std::vector<uint64_t>(kMaxBatch, 1));
  constexpr uint32_t kSmall = 16;
  fetch->pages.blocks_per_page = kSmall;
  fetch->pages.layout.block_bytes = kPage / kSegments / kSmall;
  fetch->pages.layout.block_stride = kPage / kSegments / kSmall;
  fetch->blocks.assign(kMaxBatch * kSmall, 3);
  fetch->pages.blocks = fetch->blocks;
  const uint64_t before = tier().copy_faults.calls();
  Fetch(fetch);
  of.Settle();
  EXPECT_THAT(CodesOf(*fetch), testing::AllOf(testing::SizeIs(kMaxBatch), Each(Code::kOk)));
  EXPECT_EQ(tier().copy_faults.calls() - before, kMaxBatch * kSmall / kMostDeviceBlocks);
}

TEST_F(PoolsTest, MoreThanTheDeviceHasGoesThroughItInSteps) {
  const uint64_t pool = AddOwn();
  std::vector<uint64_t> numbers;
  for (uint64_t i = 0; i < 24; ++i)
    numbers.push_back(i);
  const auto store = CallOf(pool, numbers);
  FillPool(*store);
  Store(store);
  for (int i = 0; i < 20 && !store->answer.has_value(); ++i)
    of.Settle();
  ASSERT_TRUE(store->answer.has_value() && store->answer->has_value());
  size_t stored = 0;
  for (size_t i = 0; i < numbers.size(); ++i) {
    if ((**store->answer)[i] != Code::kOk) continue;
    ++stored;
    EXPECT_TRUE(PageHas(i, 1) || PageHas(i, 0)) << i;
  }
  EXPECT_GE(stored, 16u) << "what the device has room for";
  EXPECT_LE(of.Device().bytes.used(), of.device_options.capacity_bytes);
}

}  // namespace
}  // namespace terrace
