// The main job: engines of one host share weights and KV pages.
#include <unistd.h>

#include <map>

#include "bench/memory_maps.h"
#include "bench/model_writer.h"
#include "tests/integration/integration_test.h"

namespace terrace {
namespace {

constexpr const char* kModel = "many";
constexpr uint64_t kSeed = 20;
constexpr uint32_t kTokens = 16;
constexpr size_t kMaxInodes = 64;

// What a process has resident of an image, and which files that is.
struct ImageMemory {
  uint64_t pss_bytes = 0;
  uint64_t rss_bytes = 0;
  uint64_t inodes[kMaxInodes] = {};
  uint64_t inode_count = 0;
};

ImageMemory MemoryOf(const std::vector<bench::MappedRange>& ranges,
                     const std::function<bool(const bench::MappedRange&)>& chosen) {
  ImageMemory memory;
  for (const bench::MappedRange& range : ranges) {
    if (!chosen(range)) continue;
    memory.pss_bytes += range.pss_bytes;
    memory.rss_bytes += range.rss_bytes;
    if (memory.inode_count < kMaxInodes) memory.inodes[memory.inode_count++] = range.inode;
  }
  return memory;
}

// Attaches, checks all tensors, tells its memory when asked and holds on until told to go.
Status AttachAndTell(kvc_client* client, bench::Link& link,
                     const std::vector<ModelTensor>& tensors) {
  ASSIGN_OR_RETURN(const bench::Weights weights, Attach(client, kModel));
  RETURN_IF_ERROR(CheckTensors(weights.get(), tensors, kSeed));
  kvc_weights_info info{};
  info.struct_size = sizeof info;
  RETURN_UNLESS(kvc_weights_get_info(weights.get(), &info) == KVC_OK, "info");
  RETURN_UNLESS(info.mapped_bytes >= info.bytes, "all blocks were asked for");
  RETURN_IF_ERROR(link.Send(info.bytes));
  RETURN_IF_ERROR(link.Receive<bench::Go>().status());
  const auto base = reinterpret_cast<uint64_t>(info.base);
  ASSIGN_OR_RETURN(const std::vector<bench::MappedRange> ranges, bench::MapsOf(::getpid()));
  RETURN_IF_ERROR(link.Send(MemoryOf(ranges, [&](const bench::MappedRange& range) {
    return range.start >= base && range.start < base + info.bytes;
  })));
  RETURN_IF_ERROR(link.Receive<bench::Go>().status());
  return CheckTensors(weights.get(), tensors, kSeed);
}

class EnginesTest : public IntegrationTest {
 protected:
  // Writes a model and registers it.
  void AddModel(const std::vector<ModelTensor>& tensors) {
    const std::string path = models_.path() + "/many";
    const Result<Written> written =
        WriteModel(path, tensors, {.seed = kSeed, .shards = 3, .config_json = ""});
    ASSERT_TRUE(written) << written.error().ToString();
    bench::Child adder = StartClient("adder", [&](kvc_client* client, bench::Link&) {
      return terrace::AddModel(client, kModel, path);
    });
    ExpectDone(adder);
  }

 private:
  TemporaryFolder models_;
};

TEST_F(EnginesTest, TwoEnginesShareOneCopyOfTheWeights) {
  StartDaemon("128MiB");
  const std::vector<ModelTensor> tensors = ManyTensors(3000);  // 24 MB, in 12 blocks.
  AddModel(tensors);
  std::vector<bench::Child> engines;
  for (const char* name : {"engine-0", "engine-1"}) {
    engines.push_back(StartClient(name, [&](kvc_client* client, bench::Link& link) {
      return AttachAndTell(client, link, tensors);
    }));
  }
  uint64_t image_bytes = 0;
  for (bench::Child& engine : engines) {
    image_bytes = Hear<uint64_t>(engine);
  }
  const Json status = Report("status");
  EXPECT_GE(status["host"]["block_bytes"], image_bytes);
  EXPECT_LE(status["host"]["block_bytes"], image_bytes * 105 / 100) << "one copy, and a manifest";

  // While both have it: PSS counts a page that n processes map as an n-th for each.
  for (bench::Child& engine : engines)
    Tell(engine);
  uint64_t pss_bytes = 0;
  std::map<uint64_t, int> mapped_by;
  for (bench::Child& engine : engines) {
    const auto memory = Hear<ImageMemory>(engine);
    EXPECT_GE(memory.rss_bytes, image_bytes) << "it has read every tensor";
    pss_bytes += memory.pss_bytes;
    for (uint64_t i = 0; i < memory.inode_count; ++i)
      ++mapped_by[memory.inodes[i]];
  }
  for (const auto& [inode, engines_mapping] : mapped_by)
    EXPECT_EQ(engines_mapping, 2) << "memfd " << inode << " is mapped by one engine only";
  const auto ranges = bench::MapsOf(daemon().pid());
  ASSERT_TRUE(ranges) << ranges.error().ToString();
  pss_bytes += MemoryOf(*ranges, [&](const bench::MappedRange& range) {
                 return mapped_by.contains(range.inode);
               }).pss_bytes;
  EXPECT_LE(pss_bytes, image_bytes * 105 / 100);
  EXPECT_GE(pss_bytes, image_bytes * 95 / 100);

  for (bench::Child& engine : engines) {
    Tell(engine);
    ExpectDone(engine);
  }
}

// ---- KV pages

bench::SpaceOptions SpaceOf(const kvc_weights* weights) {
  kvc_layout layout{};
  layout.dtype = "bf16";
  layout.layers = 2;
  layout.kv_heads = 4;
  layout.head_size = 32;
  layout.page_tokens = kTokens;
  layout.planes = 2;
  return {.layout = layout, .weights = weights, .salt = ""};
}

// The prompt that both engines see: 40 full pages and a part of one more.
constexpr size_t kFullPages = 40;
constexpr uint32_t kPartialTokens = 7;
std::vector<uint32_t> Prompt() {
  std::vector<uint32_t> tokens(kFullPages * kTokens + kPartialTokens);
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<uint32_t>(bench::Mix(i) % 128'256);
  return tokens;
}

// Keys of the prompt's pages, the partial one last.
Result<std::vector<kvc_key>> KeysOfPrompt(const kvc_space* space) {
  kvc_sequence* made = nullptr;
  RETURN_UNLESS(kvc_sequence_create(space, &made) == KVC_OK, "sequence");
  const bench::Sequence sequence(made);
  const std::vector<uint32_t> tokens = Prompt();
  RETURN_UNLESS(kvc_sequence_append(made, tokens.data(), tokens.size()) == KVC_OK, "append");
  size_t count = 0;
  const kvc_key* keys = kvc_sequence_keys(made, &count);
  RETURN_UNLESS(count == kFullPages, "full pages");
  std::vector<kvc_key> all(keys, keys + count);
  kvc_key partial{};
  uint32_t valid = 0;
  RETURN_UNLESS(kvc_sequence_partial(made, &partial, &valid) == KVC_OK, "partial page");
  RETURN_UNLESS(valid == kPartialTokens, "partial page");
  all.push_back(partial);
  return all;
}

Status Publish(kvc_client* client, const kvc_space* space, const std::vector<kvc_key>& keys) {
  std::vector<uint32_t> valid(keys.size(), kTokens);
  valid.back() = kPartialTokens;
  const auto fill = [&](size_t i, std::span<uint8_t> page) { bench::FillContent(keys[i], page); };
  ASSIGN_OR_RETURN(
      const bench::Published published,
      bench::Put(client, space, {.keys = keys, .valid_tokens = valid, .batch = 16}, fill));
  RETURN_UNLESS(published.committed == keys.size(), "all committed");
  return {};
}

Status CheckPrompt(const kvc_pages* pages, const std::vector<kvc_key>& keys) {
  RETURN_IF_ERROR(CheckPages(pages, keys));
  for (size_t i = 0; i < keys.size(); ++i) {
    kvc_page page{};
    RETURN_UNLESS(kvc_pages_get(pages, i, &page) == KVC_OK, "page");
    RETURN_UNLESS(page.valid_tokens == (i + 1 < keys.size() ? kTokens : kPartialTokens),
                  "valid tokens");
  }
  return {};
}

Status CheckBlockTable(const kvc_pages* pages, const kvc_space* space) {
  const size_t count = kvc_pages_count(pages);
  kvc_space_info info{};
  info.struct_size = sizeof info;
  RETURN_UNLESS(kvc_space_get_info(space, &info) == KVC_OK, "info");
  kvc_table_options options{};
  options.struct_size = sizeof options;
  std::vector<uint64_t> addresses(count);
  size_t written = 0;
  options.format = KVC_TABLE_ADDRESS;
  RETURN_UNLESS(kvc_pages_table(pages, &options, addresses.data(), count, &written) == KVC_OK &&
                    written == count,
                "addresses");
  // In two levels, leaves of 16.
  constexpr size_t kLeaf = 16;
  std::vector<std::vector<int32_t>> leaves((count + kLeaf - 1) / kLeaf,
                                           std::vector<int32_t>(kLeaf, -7));
  std::vector<int32_t*> table;
  for (auto& leaf : leaves)
    table.push_back(leaf.data());
  options.format = KVC_TABLE_BLOCK;
  options.leaf_size = kLeaf;
  RETURN_UNLESS(kvc_pages_table(pages, &options, table.data(), table.size(), &written) == KVC_OK &&
                    written == count,
                "leaves");
  for (size_t i = 0; i < count; ++i) {
    kvc_page page{};
    RETURN_UNLESS(kvc_pages_get(pages, i, &page) == KVC_OK, "page");
    const auto address = reinterpret_cast<uint64_t>(page.data);
    RETURN_UNLESS(addresses[i] == address, "address");
    const int32_t block = leaves[i / kLeaf][i % kLeaf];
    RETURN_UNLESS(block >= 0, "block");
    RETURN_UNLESS(
        reinterpret_cast<uint64_t>(info.base) + static_cast<uint64_t>(block) * info.page_bytes ==
            address,
        "block");
  }
  for (size_t i = count; i < leaves.size() * kLeaf; ++i)
    RETURN_UNLESS(leaves[i / kLeaf][i % kLeaf] == -7, "nothing is written beyond the set");
  return {};
}

TEST_F(EnginesTest, PagesPublishedByOneEngineAreReadByAnother) {
  StartDaemon();
  const std::vector<ModelTensor> tensors = ManyTensors(50);
  AddModel(tensors);
  bench::Child writer = StartClient("writer", [](kvc_client* client, bench::Link& link) -> Status {
    ASSIGN_OR_RETURN(const bench::Weights weights, Attach(client, kModel));
    ASSIGN_OR_RETURN(const bench::Space space, bench::OpenSpace(client, SpaceOf(weights.get())));
    ASSIGN_OR_RETURN(const std::vector<kvc_key> keys, KeysOfPrompt(space.get()));
    RETURN_IF_ERROR(Publish(client, space.get(), keys));
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    return link.Receive<bench::Go>().status();
  });
  Hear<bench::Go>(writer);
  bench::Child engine = StartClient("reader", [](kvc_client* client, bench::Link&) -> Status {
    ASSIGN_OR_RETURN(const bench::Weights weights, Attach(client, kModel));
    ASSIGN_OR_RETURN(const bench::Space space, bench::OpenSpace(client, SpaceOf(weights.get())));
    ASSIGN_OR_RETURN(const std::vector<kvc_key> keys, KeysOfPrompt(space.get()));
    ASSIGN_OR_RETURN(const bench::Reader reader, bench::NewReader(client));
    ASSIGN_OR_RETURN(const bench::Pages pages, PinAll(reader.get(), space.get(), keys));
    RETURN_IF_ERROR(CheckPrompt(pages.get(), keys));
    RETURN_UNLESS(kvc_pages_tokens(pages.get()) == kFullPages * kTokens + kPartialTokens,
                  "tokens not computed again");
    RETURN_IF_ERROR(CheckBlockTable(pages.get(), space.get()));
    // A second request with this prefix maps the same bytes.
    ASSIGN_OR_RETURN(const bench::Pages again, PinAll(reader.get(), space.get(), keys));
    for (size_t i = 0; i < keys.size(); ++i) {
      kvc_page first{};
      kvc_page second{};
      RETURN_UNLESS(kvc_pages_get(pages.get(), i, &first) == KVC_OK, "page");
      RETURN_UNLESS(kvc_pages_get(again.get(), i, &second) == KVC_OK, "page");
      RETURN_UNLESS(first.data == second.data, "one copy");
    }
    return {};
  });
  ExpectDone(engine);
  // What the one had published before its weights' space was closed by the other is still there.
  EXPECT_EQ(StatusNumber("/pages/count"), kFullPages + 1);
  Tell(writer);
  ExpectDone(writer);
}

// ---- Ranks of one request

constexpr size_t kRankPages = 12;
constexpr size_t kDroppedPage = 7;
using Refs = std::array<kvc_page_ref, kRankPages>;

// What rank `rank` has computed for `key`: its own heads.
kvc_key ContentOf(const kvc_key& key, uint8_t rank) {
  kvc_key content = key;
  content.bytes[31] = static_cast<uint8_t>(content.bytes[31] ^ (0x80 | rank));
  return content;
}

Result<bench::Space> OpenPart(kvc_client* client, uint8_t rank, uint8_t ranks) {
  kvc_space_options options{};
  options.struct_size = sizeof options;
  options.layout = SpaceOf(nullptr).layout;
  options.tp_rank = rank;
  options.tp_size = ranks;
  kvc_space* space = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(bench::ToStatus(kvc_space_open(client, &options, 0, &space, &error), error));
  return bench::Space(space);
}

Status PublishPart(kvc_client* client, const kvc_space* space, uint8_t rank) {
  const std::vector<kvc_key> keys = Keys(0, kRankPages);
  const auto fill = [&](size_t i, std::span<uint8_t> page) {
    bench::FillContent(ContentOf(keys[i], rank), page);
  };
  ASSIGN_OR_RETURN(const bench::Published published,
                   bench::Put(client, space, {.keys = keys}, fill));
  RETURN_UNLESS(published.committed == keys.size(), "committed");
  return {};
}

// Rank 0 finds the pages of a request and tells the others which.
Status LeadRank(kvc_client* client, bench::Link& link) {
  ASSIGN_OR_RETURN(const bench::Space space, OpenPart(client, 0, 2));
  RETURN_IF_ERROR(PublishPart(client, space.get(), 0));
  const std::vector<kvc_key> keys = Keys(0, kRankPages);
  ASSIGN_OR_RETURN(const bench::Reader reader, bench::NewReader(client));
  ASSIGN_OR_RETURN(const bench::Pages pages, PinAll(reader.get(), space.get(), keys));
  Refs refs{};
  size_t written = 0;
  RETURN_UNLESS(kvc_pages_export(pages.get(), refs.data(), refs.size(), &written) == KVC_OK,
                "export");
  RETURN_UNLESS(written == keys.size(), "export");
  RETURN_IF_ERROR(link.Send(refs));
  RETURN_IF_ERROR(link.Receive<bench::Go>().status());
  // The other rank has dropped a page of its own part; this one's is what it was.
  for (size_t i = 0; i < keys.size(); ++i) {
    kvc_page page{};
    RETURN_UNLESS(kvc_pages_get(pages.get(), i, &page) == KVC_OK, "page");
    RETURN_IF_ERROR(CheckPage(ContentOf(keys[i], 0), page));
  }
  return {};
}

// Rank 1 pins its own part of the pages it is told of, and learns which are gone.
Status FollowRank(kvc_client* client, bench::Link& link) {
  ASSIGN_OR_RETURN(const bench::Space space, OpenPart(client, 1, 2));
  RETURN_IF_ERROR(PublishPart(client, space.get(), 1));
  const std::vector<kvc_key> keys = Keys(0, kRankPages);
  uint32_t dropped = 0;
  RETURN_UNLESS(
      kvc_drop(client, space.get(), &keys[kDroppedPage], 1, 0, &dropped, nullptr) == KVC_OK &&
          dropped == 1,
      "drop");
  ASSIGN_OR_RETURN(const Refs refs, link.Receive<Refs>());
  ASSIGN_OR_RETURN(const bench::Reader reader, bench::NewReader(client));
  kvc_pages* imported = nullptr;
  uint8_t gone[kRankPages] = {};
  kvc_error error{};
  RETURN_IF_ERROR(bench::ToStatus(kvc_pages_import(reader.get(), space.get(), refs.data(),
                                                   refs.size(), &imported, gone, &error),
                                  error));
  const bench::Pages pages(imported);
  for (size_t i = 0; i < keys.size(); ++i) {
    RETURN_UNLESS((gone[i] != 0) == (i == kDroppedPage), "gone");
    if (i == kDroppedPage) continue;
    kvc_page page{};
    RETURN_UNLESS(kvc_pages_get(pages.get(), i, &page) == KVC_OK, "page");
    RETURN_IF_ERROR(CheckPage(ContentOf(keys[i], 1), page));
  }
  // Refs of another space are none of this one.
  Refs foreign = refs;
  foreign[0].space.bytes[0] = static_cast<uint8_t>(foreign[0].space.bytes[0] + 1);
  kvc_pages* none = nullptr;
  RETURN_UNLESS(kvc_pages_import(reader.get(), space.get(), foreign.data(), foreign.size(), &none,
                                 nullptr, nullptr) == KVC_MISMATCH,
                "a ref of another space");
  return {};
}

TEST_F(EnginesTest, RanksOfARequestPinTheSamePages) {
  StartDaemon();
  bench::Child lead = StartClient("rank-0", LeadRank);
  bench::Child follow = StartClient("rank-1", FollowRank);
  ASSERT_TRUE(follow.link().Send(Hear<Refs>(lead)).ok());
  ExpectDone(follow);
  Tell(lead);
  ExpectDone(lead);
  // One page of each key and part, less the dropped one.
  EXPECT_EQ(StatusNumber("/pages/count"), 2 * kRankPages - 1);
}

}  // namespace
}  // namespace terrace
