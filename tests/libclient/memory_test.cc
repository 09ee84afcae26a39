// Where arenas lie in this process, and the checks of a manifest before it is used.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "libclient/arena_map.h"
#include "libclient/manifest_view.h"
#include "libclient/page_range.h"

namespace terrace::client {
namespace {

constexpr uint32_t kPage = 16 << 10;
constexpr uint64_t kArenaBytes = 4 << 20;

// An arena whose page i begins with `mark` + i.
UniqueFd MakeArena(uint64_t mark, uint64_t bytes = kArenaBytes, uint32_t page_bytes = kPage) {
  auto fd = CreateMemfd("arena", bytes);
  auto mapping = Mapping::Of(fd->get(), 0, bytes, Protection::kReadWrite);
  for (uint64_t page = 0; page < bytes / page_bytes; ++page) {
    const uint64_t word = mark + page;
    std::memcpy(mapping->data() + page * page_bytes, &word, sizeof word);
  }
  return *std::move(fd);
}
messages::Arena Describe(uint32_t id, uint64_t bytes = kArenaBytes, uint32_t page_bytes = kPage) {
  return {.id = id,
          .bytes = bytes,
          .page_bytes = page_bytes,
          .tier = 1,
          .writable = false,
          .device = 0,
          .handle = {}};
}
uint64_t MarkAt(const uint8_t* page) {
  uint64_t word = 0;
  std::memcpy(&word, page, sizeof word);
  return word;
}
bool IsMapped(const void* address) {
  // Addresses without memory are PROT_NONE: madvise for reading cannot populate them.
  return ::madvise(const_cast<void*>(address), 4096, MADV_POPULATE_READ) == 0;
}

class ArenaMapTest : public testing::Test {
 protected:
  std::shared_ptr<PageRanges> ranges_ = std::make_shared<PageRanges>();
  ArenaMap map_{ranges_, 64 << 20};
};

TEST_F(ArenaMapTest, PagesAreFoundByHandle) {
  ASSERT_TRUE(map_.Add(Describe(3), MakeArena(300)).ok());
  ASSERT_TRUE(map_.Add(Describe(1'000'000), MakeArena(900)).ok());
  EXPECT_EQ(MarkAt(map_.PageAt(shm::MakeHandle(3, 0, 1))), 300u);
  EXPECT_EQ(MarkAt(map_.PageAt(shm::MakeHandle(3, 255, 9))), 555u);
  EXPECT_EQ(MarkAt(map_.PageAt(shm::MakeHandle(1'000'000, 7, 1))), 907u);
  EXPECT_EQ(map_.PageAt(shm::MakeHandle(3, 256, 1)), nullptr) << "the arena has 256 pages";
  EXPECT_EQ(map_.PageAt(shm::MakeHandle(4, 0, 1)), nullptr);
  EXPECT_TRUE(map_.Has(3));
  EXPECT_FALSE(map_.Has(2));
  // Adding what is there changes nothing.
  const uint8_t* before = map_.PageAt(shm::MakeHandle(3, 0, 1));
  ASSERT_TRUE(map_.Add(Describe(3), MakeArena(0)).ok());
  EXPECT_EQ(map_.PageAt(shm::MakeHandle(3, 0, 1)), before);
}

TEST_F(ArenaMapTest, PagesOfASizeHaveWholeNumbersInOneRange) {
  // 64-byte granules make places of odd size.
  for (const uint32_t page_bytes : {kPage, 16448u, 2u << 20, 4'000'000u / 64 * 64}) {
    const uint64_t bytes = (kArenaBytes + page_bytes - 1) / page_bytes * page_bytes;
    for (uint32_t id = 0; id < 8; ++id) {
      const uint32_t arena = page_bytes + id;
      ASSERT_TRUE(map_.Add(Describe(arena % shm::kMaxArenas, bytes, page_bytes),
                           MakeArena(id, bytes, page_bytes))
                      .ok());
      const uint8_t* page = map_.PageAt(shm::MakeHandle(arena % shm::kMaxArenas, 0, 1));
      const PageRange& range = **ranges_->Of(page_bytes, 0);
      ASSERT_GE(page, range.base());
      EXPECT_EQ(static_cast<uint64_t>(page - range.base()) % page_bytes, 0u) << page_bytes;
      EXPECT_EQ(MarkAt(page), id);
    }
  }
}

TEST_F(ArenaMapTest, ArenasThatAreGoneAreUnmappedAndTheirPlaceIsUsedAgain) {
  ASSERT_TRUE(map_.Add(Describe(1), MakeArena(100)).ok());
  ASSERT_TRUE(map_.Add(Describe(2), MakeArena(200)).ok());
  ASSERT_TRUE(map_.AddWritable(Describe(1), MakeArena(100)).ok());
  const uint8_t* place = map_.PageAt(shm::MakeHandle(1, 0, 1));
  const uint8_t* writable = map_.Borrow(shm::MakeHandle(1, 0, 0));
  ASSERT_TRUE(IsMapped(place));
  map_.Remove(std::vector<uint32_t>{1, 77, shm::kMaxArenas}, {});
  EXPECT_EQ(map_.PageAt(shm::MakeHandle(1, 0, 1)), nullptr);
  EXPECT_EQ(map_.Borrow(shm::MakeHandle(1, 0, 0)), nullptr);
  EXPECT_FALSE(IsMapped(place));
  EXPECT_FALSE(IsMapped(writable));
  EXPECT_EQ(MarkAt(map_.PageAt(shm::MakeHandle(2, 0, 1))), 200u);
  ASSERT_TRUE(map_.Add(Describe(3), MakeArena(300)).ok());
  EXPECT_EQ(map_.PageAt(shm::MakeHandle(3, 0, 1)), place);
}

TEST_F(ArenaMapTest, PinnedArenasStayUntilALaterCall) {
  ASSERT_TRUE(map_.Add(Describe(1), MakeArena(100)).ok());
  map_.Remove(std::vector<uint32_t>{1}, {1});
  EXPECT_EQ(MarkAt(map_.PageAt(shm::MakeHandle(1, 0, 1))), 100u);
  map_.Remove({}, {});
  EXPECT_EQ(map_.PageAt(shm::MakeHandle(1, 0, 1)), nullptr);
}

TEST_F(ArenaMapTest, ArenaIsLetGoOnlyWhenNobodyUsesIt) {
  const messages::Arena arena = Describe(1);
  const auto fd = CreateMemfd("arena", kArenaBytes);
  ASSERT_TRUE(map_.Add(arena, *fd).ok());
  ASSERT_TRUE(map_.AddWritable(arena, *fd).ok());
  const shm::Handle handle = shm::MakeHandle(1, 0, 1);
  const uint8_t* data = map_.PageAt(handle);
  const auto pinned = [] { return true; };
  const auto free = [] { return false; };
  EXPECT_FALSE(map_.LetGo(1, pinned));
  EXPECT_EQ(map_.PageAt(handle), data);
  // A pin that comes between the two looks: the address is back as if nothing had been.
  int looks = 0;
  EXPECT_FALSE(map_.LetGo(1, [&] { return ++looks == 2; }));
  EXPECT_EQ(looks, 2);
  EXPECT_EQ(map_.PageAt(handle), data);
  ASSERT_NE(map_.Borrow(handle), nullptr);
  EXPECT_FALSE(map_.LetGo(1, free)) << "somebody writes it";
  map_.Return(handle);
  EXPECT_TRUE(map_.LetGo(1, free));
  EXPECT_EQ(map_.PageAt(handle), nullptr);
  EXPECT_EQ(map_.Borrow(handle), nullptr);
  EXPECT_EQ(map_.Add(arena, *fd).code(), Code::kUnavailable) << "a reply from before";
  EXPECT_EQ(map_.AddWritable(arena, *fd).code(), Code::kUnavailable);
}

TEST_F(ArenaMapTest, ArenaThatIsAskedBackBeforeItWasMappedIsNotMappedAnyMore) {
  const auto fd = CreateMemfd("arena", kArenaBytes);
  EXPECT_TRUE(map_.LetGo(1, [] { return false; }));
  EXPECT_EQ(map_.Add(Describe(1), *fd).code(), Code::kUnavailable);
}

TEST_F(ArenaMapTest, LostArenaIsFoundNoMoreAndStaysUntilItIsLetGo) {
  const auto fd = CreateMemfd("arena", kArenaBytes);
  ASSERT_TRUE(map_.Add(Describe(1), *fd).ok());
  const shm::Handle handle = shm::MakeHandle(1, 0, 1);
  const uint8_t* data = map_.PageAt(handle);
  map_.Lose(1);
  EXPECT_EQ(map_.PageAt(handle), nullptr);
  EXPECT_TRUE(IsMapped(data));
  EXPECT_EQ(map_.Add(Describe(1), *fd).code(), Code::kUnavailable);
  EXPECT_TRUE(map_.LetGo(1, [] { return false; }));
  EXPECT_FALSE(IsMapped(data));
}

TEST_F(ArenaMapTest, WrongDescriptionsAreRefused) {
  EXPECT_EQ(map_.Add(Describe(shm::kMaxArenas), MakeArena(0)).code(), Code::kDataLoss);
  EXPECT_EQ(map_.Add(Describe(1, kArenaBytes, 0), MakeArena(0)).code(), Code::kDataLoss);
  EXPECT_EQ(map_.Add(Describe(1, 100), MakeArena(0)).code(), Code::kDataLoss);
  EXPECT_EQ(map_.Add(Describe(1, uint64_t{1} << 50), MakeArena(0)).code(), Code::kDataLoss);
  // Reading beyond the end of a file kills the reader.
  EXPECT_EQ(map_.Add(Describe(1, 2 * kArenaBytes), MakeArena(0)).code(), Code::kDataLoss);
  EXPECT_EQ(map_.AddWritable(Describe(1, 2 * kArenaBytes), MakeArena(0)).code(), Code::kDataLoss);
  EXPECT_FALSE(map_.Has(1));
}

TEST_F(ArenaMapTest, LivesShareTheRangeAndNotThePlaces) {
  ASSERT_TRUE(map_.Add(Describe(1), MakeArena(100)).ok());
  const uint8_t* first = map_.PageAt(shm::MakeHandle(1, 0, 1));
  const uint8_t* second = nullptr;
  {
    ArenaMap other(ranges_, 64 << 20);
    ASSERT_TRUE(other.Add(Describe(1), MakeArena(500)).ok());
    second = other.PageAt(shm::MakeHandle(1, 0, 1));
    EXPECT_NE(first, second);
    EXPECT_EQ(MarkAt(first), 100u);
    EXPECT_EQ(MarkAt(second), 500u);
  }
  EXPECT_FALSE(IsMapped(second));
  EXPECT_EQ(MarkAt(first), 100u);
}

TEST(PageRange, RunsOutOfPlacesWithAnErrorAndRecovers) {
  auto range = PageRange::Reserve(kPage, 1 << 20);
  ASSERT_TRUE(range);
  std::vector<const uint8_t*> places;
  const UniqueFd arena = MakeArena(0);
  for (;;) {
    const auto place = (*range)->Map(arena.get(), kArenaBytes);
    if (!place) {
      EXPECT_EQ(place.status().code(), Code::kExhausted);
      break;
    }
    places.push_back(*place);
  }
  ASSERT_GT(places.size(), 2u);
  (*range)->Unmap(places[1]);
  const auto again = (*range)->Map(arena.get(), kArenaBytes);
  ASSERT_TRUE(again);
  EXPECT_EQ(*again, places[1]);
}

// ---- Manifest

using manifest::ManifestHeader;
using manifest::TensorRecord;

// Three tensors over two blocks of 8 KiB: "a" in both, "b" empty, "c" in the second.
std::vector<uint8_t> GoodManifest() {
  const std::string names = "abc";
  std::vector<uint8_t> bytes(sizeof(ManifestHeader) + 3 * sizeof(TensorRecord) + names.size());
  auto& header = *reinterpret_cast<ManifestHeader*>(bytes.data());
  header.magic = manifest::kManifestMagic;
  header.version = manifest::kManifestVersion;
  header.tensors = 3;
  header.image_bytes = 12'000;
  header.block_bytes = 8192;
  header.blocks = 2;
  header.layers = 2;
  header.strings_offset = bytes.size() - names.size();
  header.strings_bytes = names.size();
  auto* records = reinterpret_cast<TensorRecord*>(bytes.data() + sizeof header);
  records[0].bytes = 9000;
  records[1].offset = 9216;
  records[2].offset = 9216;
  records[2].bytes = 2000;
  for (uint32_t i = 0; i < 3; ++i) {
    records[i].rank = 1;
    records[i].shape[0] = records[i].bytes;
    records[i].name_offset = i;
    records[i].name_bytes = 1;
    records[i].layer = i;
    std::memcpy(records[i].dtype, "U8", 2);
  }
  std::memcpy(bytes.data() + header.strings_offset, names.data(), names.size());
  return bytes;
}

TEST(ManifestView, FindsTensorsByName) {
  const auto bytes = GoodManifest();
  const auto view = ManifestView::Of(bytes);
  ASSERT_TRUE(view) << view.status().ToString();
  ASSERT_NE(view->Find("c"), nullptr);
  EXPECT_EQ(view->Find("c")->bytes, 2000u);
  EXPECT_EQ(view->Find("a"), &view->records()[0]);
  EXPECT_EQ(view->Find(""), nullptr);
  EXPECT_EQ(view->Find("bb"), nullptr);
  EXPECT_EQ(view->Find("d"), nullptr);
  const auto a = view->BlocksOf(view->records()[0]);
  EXPECT_EQ(a.first, 0u);
  EXPECT_EQ(a.end, 2u);
  const auto b = view->BlocksOf(view->records()[1]);
  EXPECT_EQ(b.first, b.end);
  EXPECT_EQ(view->BlockBytes(0), 8192u);
  EXPECT_EQ(view->BlockBytes(1), 12'000u - 8192);
}

TEST(ManifestView, EveryWrongNumberIsRefused) {
  struct Case {
    const char* name;
    std::function<void(ManifestHeader&, TensorRecord*)> spoil;
  };
  const std::vector<Case> cases = {
      {"magic", [](auto& h, auto*) { h.magic ^= 1; }},
      {"version", [](auto& h, auto*) { h.version = 2; }},
      {"tensors", [](auto& h, auto*) { h.tensors = 4; }},
      {"tensors over all bounds", [](auto& h, auto*) { h.tensors = 0xffffffff; }},
      {"strings_offset in the records", [](auto& h, auto*) { h.strings_offset = 100; }},
      {"strings_offset beyond", [](auto& h, auto*) { h.strings_offset = ~uint64_t{0}; }},
      {"strings_bytes", [](auto& h, auto*) { h.strings_bytes += 1; }},
      {"block_bytes zero", [](auto& h, auto*) { h.block_bytes = 0; }},
      {"block_bytes odd", [](auto& h, auto*) { h.block_bytes = 8000; }},
      {"blocks", [](auto& h, auto*) { h.blocks = 3; }},
      {"blocks of a huge image", [](auto& h, auto*) { h.image_bytes = ~uint64_t{0}; }},
      {"name beyond the strings", [](auto&, auto* r) { r[1].name_offset = 3; }},
      {"name that wraps", [](auto&, auto* r) { r[1].name_bytes = 0xffffffff; }},
      {"bytes beyond the image", [](auto&, auto* r) { r[2].bytes = 3000; }},
      {"offset beyond the image", [](auto&, auto* r) { r[2].offset = ~uint64_t{0} - 255; }},
      {"offset not aligned", [](auto&, auto* r) { r[2].offset = 9217; }},
      {"rank", [](auto&, auto* r) { r[0].rank = 9; }},
      {"dtype without an end", [](auto&, auto* r) { std::memset(r[0].dtype, 'x', 16); }},
      {"names out of order", [](auto&, auto* r) { r[0].name_offset = 2; }},
      {"name twice", [](auto&, auto* r) { r[1].name_offset = 0; }},
  };
  for (const Case& c : cases) {
    auto bytes = GoodManifest();
    c.spoil(*reinterpret_cast<ManifestHeader*>(bytes.data()),
            reinterpret_cast<TensorRecord*>(bytes.data() + sizeof(ManifestHeader)));
    const auto view = ManifestView::Of(bytes);
    EXPECT_FALSE(view) << c.name;
    if (!view) {
      EXPECT_FALSE(view.status().message().empty()) << c.name;
    }
  }
  auto bytes = GoodManifest();
  bytes.resize(sizeof(ManifestHeader) - 1);
  EXPECT_FALSE(ManifestView::Of(bytes));
  EXPECT_FALSE(ManifestView::Of({}));
}

}  // namespace
}  // namespace terrace::client
