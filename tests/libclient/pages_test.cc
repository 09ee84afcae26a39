// Publishing and looking up, against the real daemon.
#include "tests/libclient/client_fixture.h"

namespace terrace {
namespace {

class PagesTest : public ClientTest {};

TEST_F(PagesTest, WhatIsPublishedIsFoundByteForByte) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  EXPECT_EQ(space.info().page_bytes, 16384u);
  const auto keys = KeysOf(space, 0, 40);
  const kvc::Published published = Publish(client, space, SpanOf(keys), 100);
  for (size_t i = 0; i < keys.size(); ++i)
    EXPECT_EQ(published[i], KVC_OK);

  kvc::Reader reader = Take(client.NewReader());
  kvc_miss why = KVC_MISS_ABSENT;
  const kvc::Pages pages = Take(reader.LookupPrefix(space, SpanOf(keys), &why));
  EXPECT_EQ(why, KVC_MISS_NONE);
  ASSERT_EQ(pages.size(), keys.size());
  EXPECT_EQ(pages.found(), keys.size());
  EXPECT_EQ(pages.tokens(), 40u * 16);
  EXPECT_EQ(pages.epoch(), 1u);
  for (size_t i = 0; i < keys.size(); ++i) {
    EXPECT_EQ(pages[i].bytes.size(), 16384u);
    EXPECT_EQ(pages[i].valid_tokens, 16u);
    EXPECT_TRUE(Holds(pages[i].bytes, 100 + i)) << i;
  }
  const kvc::Page page = reader.Pin(space, keys[7], &why);
  ASSERT_TRUE(page);
  EXPECT_EQ(why, KVC_MISS_NONE);
  EXPECT_TRUE(Holds(page.bytes(), 107));
  EXPECT_EQ(page.bytes().data(), pages[7].bytes.data()) << "one page has one address";
}

TEST_F(PagesTest, TwoClientsReadTheSamePhysicalPages) {
  kvc::Client writer = Connect();
  kvc::Client other = Connect([](kvc_client_options& o) { o.read_only = 1; });
  const kvc::Space space = Take(writer.OpenSpace(SpaceOptions()));
  const kvc::Space same = Take(other.OpenSpace(SpaceOptions()));
  EXPECT_TRUE(SameKey(space.info().id, same.info().id));
  const auto keys = KeysOf(space, 0, 3);
  Publish(writer, space, SpanOf(keys), 0);
  kvc::Reader reader = Take(other.NewReader());
  const kvc::Pages pages = Take(reader.LookupPrefix(same, SpanOf(keys)));
  ASSERT_EQ(pages.found(), 3u);
  for (size_t i = 0; i < 3; ++i)
    EXPECT_TRUE(Holds(pages[i].bytes, i));
  kvc::Reader own = Take(writer.NewReader());
  EXPECT_TRUE(Holds(own.Pin(space, keys[1]).bytes(), 1));
}

TEST_F(PagesTest, GrantedPageIsInvisibleUntilItsCommit) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  const auto keys = KeysOf(space, 0, 1);
  kvc::Reader reader = Take(client.NewReader());
  kvc::Grants grants = Take(client.Grant(space, SpanOf(keys)));
  kvc_miss why = KVC_MISS_NONE;
  EXPECT_FALSE(reader.Pin(space, keys[0], &why));
  EXPECT_EQ(why, KVC_MISS_ABSENT);
  EXPECT_EQ(Take(kvc::Grants::Commit(std::move(grants)))[0], KVC_OK);
  EXPECT_TRUE(reader.Pin(space, keys[0]));
}

TEST_F(PagesTest, TheFirstCommitOfAKeyStays) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  const auto keys = KeysOf(space, 0, 2);
  kvc::Grants late = Take(client.Grant(space, SpanOf(keys)));
  Publish(client, space, {keys.data(), 1}, 5);
  const kvc::Published published = Take(kvc::Grants::Commit(std::move(late)));
  EXPECT_EQ(published[0], KVC_ALREADY_EXISTS);
  EXPECT_EQ(published[1], KVC_OK);
  kvc::Reader reader = Take(client.NewReader());
  EXPECT_TRUE(Holds(reader.Pin(space, keys[0]).bytes(), 5));
  kvc::Grants again = Take(client.Grant(space, SpanOf(keys)));
  EXPECT_EQ(again[0].code(), KVC_ALREADY_EXISTS);
  EXPECT_FALSE(again[0]);
}

TEST_F(PagesTest, GrantsThatAreNotCommittedGiveTheirMemoryBack) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  // 64 MiB hold 4096 pages of 16 KiB; ten times as many are asked for and given back.
  for (uint32_t round = 0; round < 80; ++round) {
    const auto keys = KeysOf(space, round * 100'000, 512);
    kvc::Grants grants = Take(client.Grant(space, SpanOf(keys)));
    ASSERT_EQ(grants.size(), 512u);
    for (size_t i = 0; i < 512; ++i)
      ASSERT_EQ(grants[i].code(), KVC_OK) << round << " " << i;
  }
}

TEST_F(PagesTest, PrefixEndsBeforeTheFirstMissingPage) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  const auto keys = KeysOf(space, 0, 10);
  Publish(client, space, {keys.data(), 4}, 0);
  Publish(client, space, {keys.data() + 6, 4}, 6);
  kvc::Reader reader = Take(client.NewReader());
  kvc_miss why = KVC_MISS_NONE;
  {
    const kvc::Pages prefix = Take(reader.LookupPrefix(space, SpanOf(keys), &why));
    EXPECT_EQ(prefix.size(), 4u);
    EXPECT_EQ(why, KVC_MISS_ABSENT);
    EXPECT_EQ(client.info().pinned_pages, 4u) << "none beyond the gap is pinned";
  }
  EXPECT_EQ(client.info().pinned_pages, 0u);
  const kvc::Pages each = Take(reader.LookupEach(space, SpanOf(keys)));
  EXPECT_EQ(each.size(), 10u);
  EXPECT_EQ(each.found(), 8u);
  EXPECT_TRUE(each[4].bytes.empty());
  EXPECT_TRUE(Holds(each[9].bytes, 9));
  const kvc_client_info info = client.info();
  EXPECT_EQ(info.lookups, 20u);
  EXPECT_EQ(info.hits, 12u);
  EXPECT_EQ(info.misses, 8u);
  EXPECT_EQ(info.pinned_bytes, 8u * 16384);
}

TEST_F(PagesTest, PartialPageCarriesItsValidTokens) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  kvc::Sequence sequence = Take(space.NewSequence());
  ASSERT_TRUE(sequence.Append(SpanOf(Tokens(0, 37))).ok());
  std::vector<kvc_key> keys(sequence.keys().begin(), sequence.keys().end());
  ASSERT_EQ(keys.size(), 2u);
  const auto partial = sequence.partial();
  EXPECT_EQ(partial.valid_tokens, 5u);
  keys.push_back(partial.key);
  const std::vector<uint32_t> valid = {16, 16, 5};
  Publish(client, space, SpanOf(keys), 0, SpanOf(valid));
  kvc::Reader reader = Take(client.NewReader());
  const kvc::Pages pages = Take(reader.LookupPrefix(space, SpanOf(keys)));
  ASSERT_EQ(pages.found(), 3u);
  EXPECT_EQ(pages[2].valid_tokens, 5u);
  EXPECT_EQ(pages.tokens(), 37u);
}

TEST_F(PagesTest, ForeignKeysNamePagesOfTheirSpaceOnly) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  kvc_space_options salted = SpaceOptions();
  salted.salt = "other";
  salted.salt_bytes = 5;
  const kvc::Space other = Take(client.OpenSpace(salted));
  EXPECT_FALSE(SameKey(space.info().id, other.info().id));
  const uint8_t engine_key[32] = {1, 2, 3};
  const std::vector<kvc_key> keys = {space.ForeignKey(engine_key)};
  Publish(client, space, SpanOf(keys), 9);
  kvc::Reader reader = Take(client.NewReader());
  EXPECT_TRUE(Holds(reader.Pin(space, keys[0]).bytes(), 9));
  EXPECT_FALSE(SameKey(other.ForeignKey(engine_key), keys[0]));
  EXPECT_FALSE(reader.Pin(other, keys[0])) << "not even under the same key";
}

TEST_F(PagesTest, DroppedPagesAreFoundNoMore) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  const auto keys = KeysOf(space, 0, 4);
  Publish(client, space, SpanOf(keys), 0);
  kvc::Reader reader = Take(client.NewReader());
  const kvc::Page held = reader.Pin(space, keys[0]);
  EXPECT_EQ(Take(client.Drop(space, {keys.data(), 2})), 2u);
  EXPECT_EQ(Take(client.Drop(space, {keys.data(), 2})), 0u);
  EXPECT_FALSE(reader.Pin(space, keys[0]));
  EXPECT_TRUE(reader.Pin(space, keys[2]));
  EXPECT_TRUE(Holds(held.bytes(), 0)) << "what is pinned stays";
}

TEST_F(PagesTest, BlockTablesAddressEveryPage) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  const kvc_space_info info = space.info();
  const auto keys = KeysOf(space, 0, 100);
  Publish(client, space, {keys.data(), 60}, 0);
  Publish(client, space, {keys.data() + 70, 30}, 70);
  kvc::Reader reader = Take(client.NewReader());
  const kvc::Pages pages = Take(reader.LookupEach(space, SpanOf(keys)));
  std::vector<uint64_t> addresses(100);
  std::vector<int32_t> blocks(100);
  EXPECT_EQ(Take(pages.Table(kvc::Span<uint64_t>(addresses.data(), 100))), 100u);
  EXPECT_EQ(Take(pages.Table(kvc::Span<int32_t>(blocks.data(), 100))), 100u);
  for (size_t i = 0; i < 100; ++i) {
    const bool there = i < 60 || i >= 70;
    EXPECT_EQ(addresses[i], there ? reinterpret_cast<uint64_t>(pages[i].bytes.data()) : 0);
    if (there) {
      const auto* page =
          static_cast<const std::byte*>(info.base) + uint64_t(blocks[i]) * info.page_bytes;
      EXPECT_EQ(page, pages[i].bytes.data());
    } else {
      EXPECT_EQ(blocks[i], -1);
    }
  }
}

TEST_F(PagesTest, TwoLevelTablesAndPartsOfASet) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  const auto keys = KeysOf(space, 0, 50);
  Publish(client, space, SpanOf(keys), 0);
  kvc::Reader reader = Take(client.NewReader());
  const kvc::Pages pages = Take(reader.LookupPrefix(space, SpanOf(keys)));
  std::vector<uint64_t> leaves[3];
  void* table[3];
  for (int i = 0; i < 3; ++i) {
    leaves[i].assign(16, ~uint64_t{0});
    table[i] = leaves[i].data();
  }
  kvc_table_options options{};
  options.struct_size = sizeof options;
  options.format = KVC_TABLE_ADDRESS;
  options.first = 5;
  options.count = 40;
  options.leaf_size = 16;
  size_t written = 0;
  ASSERT_EQ(kvc_pages_table(pages.get(), &options, table, 3, &written), KVC_OK);
  EXPECT_EQ(written, 40u);
  for (size_t i = 0; i < 40; ++i) {
    EXPECT_EQ(leaves[i / 16][i % 16], reinterpret_cast<uint64_t>(pages[5 + i].bytes.data()));
  }
  EXPECT_EQ(leaves[2][8], ~uint64_t{0}) << "nothing beyond what was asked for is written";
  EXPECT_EQ(kvc_pages_table(pages.get(), &options, table, 2, &written), KVC_EXHAUSTED);
  EXPECT_EQ(written, 32u);
  options.first = 51;
  EXPECT_EQ(kvc_pages_table(pages.get(), &options, table, 3, &written), KVC_INVALID_ARGUMENT);
}

TEST_F(PagesTest, ExportedSetIsPinnedAgainByAnotherClient) {
  kvc::Client first = Connect();
  kvc::Client second = Connect();
  const kvc::Space space = Take(first.OpenSpace(SpaceOptions()));
  const kvc::Space same = Take(second.OpenSpace(SpaceOptions()));
  const auto keys = KeysOf(space, 0, 6);
  Publish(first, space, SpanOf(keys), 0);
  kvc::Reader reader = Take(first.NewReader());
  kvc::Pages pages = Take(reader.LookupPrefix(space, SpanOf(keys)));
  const auto refs = pages.Export();
  ASSERT_EQ(refs.size(), 6u);
  pages = Take(reader.LookupPrefix(space, {keys.data(), 0}));  // Releases.
  EXPECT_EQ(Take(first.Drop(space, {keys.data() + 2, 1})), 1u);

  kvc::Reader other = Take(second.NewReader());
  {
    const kvc::Pages again = Take(other.Import(same, {refs.data(), refs.size()}));
    EXPECT_EQ(again.found(), 5u);
    EXPECT_TRUE(again[2].bytes.empty());
    for (const size_t i : {0, 1, 3, 4, 5})
      EXPECT_TRUE(Holds(again[i].bytes, i));
  }
  kvc_space_options salted = SpaceOptions();
  salted.salt = "x";
  salted.salt_bytes = 1;
  const kvc::Space foreign = Take(second.OpenSpace(salted));
  EXPECT_EQ(other.Import(foreign, {refs.data(), refs.size()}).error().code(), KVC_MISMATCH);
}

TEST_F(PagesTest, SpaceOfAnotherLayoutIsAnotherSpace) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  const kvc::Space existing = Take(client.OpenExistingSpace(space.info().id));
  EXPECT_EQ(existing.info().page_tokens, 16u);
  EXPECT_EQ(existing.info().page_bytes, 16384u);
  const kvc_key nothing{};
  EXPECT_EQ(client.OpenExistingSpace(nothing).error().code(), KVC_NOT_FOUND);
  kvc_space_options bad = SpaceOptions();
  bad.layout.page_tokens = 3;
  const auto refused = client.OpenSpace(bad);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), KVC_INVALID_ARGUMENT);
  EXPECT_NE(refused.error().message().find("page_tokens"), std::string::npos);
}

TEST_F(PagesTest, ClosingOneOfTwoHandlesLeavesTheSpaceOpen) {
  kvc::Client client = Connect();
  const kvc::Space kept = Take(client.OpenSpace(SpaceOptions()));
  { const kvc::Space closed = Take(client.OpenSpace(SpaceOptions())); }
  const auto keys = KeysOf(kept, 0, 1);
  EXPECT_EQ(Publish(client, kept, SpanOf(keys), 0)[0], KVC_OK);
}

TEST_F(PagesTest, RanksHaveTheirOwnPartOfAPageUnderOneKey) {
  kvc::Client client = Connect();
  std::vector<kvc::Space> ranks;
  for (uint8_t rank = 0; rank < 2; ++rank) {
    kvc_space_options options = SpaceOptions();
    options.tp_rank = rank;
    options.tp_size = 2;
    ranks.push_back(Take(client.OpenSpace(options)));
    EXPECT_EQ(ranks.back().info().page_bytes, 8192u);
  }
  EXPECT_TRUE(SameKey(ranks[0].info().id, ranks[1].info().id));
  const auto keys = KeysOf(ranks[0], 0, 1);
  Publish(client, ranks[0], SpanOf(keys), 1);
  kvc::Reader reader = Take(client.NewReader());
  EXPECT_FALSE(reader.Pin(ranks[1], keys[0]));
  Publish(client, ranks[1], SpanOf(keys), 2);
  EXPECT_TRUE(Holds(reader.Pin(ranks[0], keys[0]).bytes(), 1));
  EXPECT_TRUE(Holds(reader.Pin(ranks[1], keys[0]).bytes(), 2));
  kvc_space_options bad = SpaceOptions();
  bad.tp_size = 3;
  EXPECT_EQ(client.OpenSpace(bad).error().code(), KVC_INVALID_ARGUMENT);
}

TEST_F(PagesTest, PinBudgetEndsInAMissNotInAnError) {
  kvc::Client client = Connect([](kvc_client_options& o) { o.max_pins = 64; });
  ASSERT_EQ(client.info().max_pins, 64u);
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  const auto keys = KeysOf(space, 0, 100);
  Publish(client, space, SpanOf(keys), 0);
  kvc::Reader reader = Take(client.NewReader());
  kvc_miss why = KVC_MISS_NONE;
  const kvc::Pages pages = Take(reader.LookupPrefix(space, SpanOf(keys), &why));
  EXPECT_EQ(why, KVC_MISS_BUDGET);
  EXPECT_EQ(pages.found(), 64u);
}

TEST_F(PagesTest, ReaderFollowsAGrowingDirectory) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  kvc::Reader reader = Take(client.NewReader());
  // The first directory has 1024 entries.
  std::vector<std::vector<kvc_key>> batches;
  for (uint32_t batch = 0; batch < 6; ++batch) {
    batches.push_back(KeysOf(space, batch * 1'000'000, 512));
    Publish(client, space, SpanOf(batches.back()), batch * 512);
    for (uint32_t earlier = 0; earlier <= batch; ++earlier) {
      const kvc::Pages pages = Take(reader.LookupPrefix(space, SpanOf(batches[earlier])));
      ASSERT_EQ(pages.found(), 512u) << "batch " << earlier << " after " << batch;
      EXPECT_TRUE(Holds(pages[511].bytes, earlier * 512 + 511));
    }
  }
}

TEST_F(PagesTest, PagesSurviveTheirReader) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  const auto keys = KeysOf(space, 0, 3);
  Publish(client, space, SpanOf(keys), 0);
  std::unique_ptr<kvc::Pages> pages;
  {
    kvc::Reader reader = Take(client.NewReader());
    pages = std::make_unique<kvc::Pages>(Take(reader.LookupPrefix(space, SpanOf(keys))));
  }
  EXPECT_EQ(client.info().pinned_pages, 3u);
  EXPECT_TRUE(Holds((*pages)[2].bytes, 2));
  pages.reset();
  EXPECT_EQ(client.info().pinned_pages, 0u);
}

TEST_F(PagesTest, SixtyFourReadersAndNoMore) {
  kvc::Client client = Connect();
  std::vector<kvc::Reader> readers;
  for (int i = 0; i < 64; ++i)
    readers.push_back(Take(client.NewReader()));
  EXPECT_EQ(client.NewReader().error().code(), KVC_EXHAUSTED);
  readers.pop_back();
  EXPECT_TRUE(client.NewReader());
}

TEST_F(PagesTest, PinnedPagesSurviveMemoryPressure) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  const auto kept = KeysOf(space, 0, 100);
  Publish(client, space, SpanOf(kept), 0);
  kvc::Reader reader = Take(client.NewReader());
  const kvc::Pages pages = Take(reader.LookupPrefix(space, SpanOf(kept)));
  // Three times what the daemon holds.
  for (uint32_t batch = 1; batch <= 24; ++batch) {
    const auto keys = KeysOf(space, batch * 1'000'000, 512);
    const kvc::Published published = Publish(client, space, SpanOf(keys), batch * 1000);
    for (size_t i = 0; i < keys.size(); ++i)
      ASSERT_EQ(published[i], KVC_OK);
  }
  for (size_t i = 0; i < 100; ++i)
    EXPECT_TRUE(Holds(pages[i].bytes, i)) << i;
  const auto early = KeysOf(space, 1'000'000, 1);
  EXPECT_FALSE(reader.Pin(space, early[0])) << "something had to go";
}

TEST_F(PagesTest, ReadOnlyClientPublishesNothing) {
  kvc::Client client = Connect([](kvc_client_options& o) { o.read_only = 1; });
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  const auto keys = KeysOf(space, 0, 1);
  EXPECT_EQ(client.Grant(space, SpanOf(keys)).error().code(), KVC_PERMISSION_DENIED);
  EXPECT_EQ(client.Drop(space, SpanOf(keys)).error().code(), KVC_PERMISSION_DENIED);
}

TEST_F(PagesTest, GrantWhoseDeadlinePassedIsRefusedAtCommit) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  const auto keys = KeysOf(space, 0, 1);
  kvc::Grants grants = Take(client.Grant(space, SpanOf(keys), /*deadline_ms=*/1));
  std::this_thread::sleep_for(std::chrono::milliseconds(2));  // The deadline itself.
  ASSERT_TRUE(Await([&] { return client.Ping().ok(); }));
  const kvc::Published published = Take(kvc::Grants::Commit(std::move(grants)));
  EXPECT_EQ(published[0], KVC_DEADLINE_EXCEEDED);
  kvc::Reader reader = Take(client.NewReader());
  EXPECT_FALSE(reader.Pin(space, keys[0]));
  // Its memory is back: the page can be published after all.
  EXPECT_EQ(Publish(client, space, SpanOf(keys), 3)[0], KVC_OK);
}

}  // namespace
}  // namespace terrace
