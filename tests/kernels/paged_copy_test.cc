// Gather and scatter against their definition, byte by byte: by the processor, and the GPU's
// kernels run on the processor.
#include "kernels/paged_copy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/random.h"
#include "kernels/cuda_kernels.h"
#include "kernels/paged_copy_launch.h"
#include "tests/kernels/paged_copy_on_cpu.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr uint8_t kPoison = 0xa5;

struct Shape {
  const char* name = "";
  size_t segments = 0;
  uint64_t block_bytes = 0;
  uint32_t pool_blocks = 0;
  uint32_t page_blocks = 1;  // Of a page.
  uint32_t pages = 1;
  bool joined = false;      // In the pool: blocks of a segment have others between them.
  bool page_first = false;  // The page's order.
  bool partial = false;     // The last block of each page is filled in part.
};

const Shape kShapes[] = {
    {.name = "Llama8BBlock", .segments = 64, .block_bytes = 32'768, .pool_blocks = 5, .pages = 3},
    {.name = "OneOfSixteenBytes", .segments = 1, .block_bytes = 16, .pool_blocks = 1},
    {.name = "NoMultipleOfATile",
     .segments = 3,
     .block_bytes = 16'400,
     .pool_blocks = 4,
     .pages = 4},
    {.name = "LatentOfManyLayers",
     .segments = 61,
     .block_bytes = 18'432,
     .pool_blocks = 6,
     .pages = 2},
    {.name = "LayerFirstPages",
     .segments = 8,
     .block_bytes = 2048,
     .pool_blocks = 64,
     .page_blocks = 16,
     .pages = 3},
    {.name = "PageFirstPages",
     .segments = 8,
     .block_bytes = 2048,
     .pool_blocks = 64,
     .page_blocks = 16,
     .pages = 3,
     .page_first = true},
    {.name = "JoinedPartial",
     .segments = 5,
     .block_bytes = 4096,
     .pool_blocks = 40,
     .page_blocks = 4,
     .pages = 5,
     .joined = true,
     .partial = true},
    {.name = "PageFirstPartial",
     .segments = 4,
     .block_bytes = 1008,
     .pool_blocks = 9,
     .page_blocks = 3,
     .pages = 3,
     .page_first = true,
     .partial = true},
    {.name = "MoreSegmentsThanALaunch",
     .segments = 2 * kSegmentsOfALaunch + 1,
     .block_bytes = 48,
     .pool_blocks = 7,
     .page_blocks = 2,
     .pages = 3},
    {.name = "MoreBlocksThanALaunch",
     .segments = 2,
     .block_bytes = 528,
     .pool_blocks = 3 * kBlocksOfALaunch,
     .page_blocks = 1,
     .pages = 2 * kBlocksOfALaunch + 5},
};

// Bytes at a multiple of 16.
class Buffer {
 public:
  explicit Buffer(size_t bytes)
      : memory_(new(std::align_val_t{16}) uint8_t[bytes]), bytes_(bytes) {}
  uint64_t address() const { return reinterpret_cast<uint64_t>(memory_.get()); }
  std::span<uint8_t> bytes() const { return {memory_.get(), bytes_}; }
  void FillRandom(uint64_t seed) {
    Random random(seed);
    std::ranges::generate(bytes(), [&] { return static_cast<uint8_t>(random()); });
  }
  void Poison() { std::ranges::fill(bytes(), kPoison); }
  std::vector<uint8_t> Copy() const { return {bytes().begin(), bytes().end()}; }

 private:
  struct Free {
    void operator()(uint8_t* memory) const { operator delete[](memory, std::align_val_t{16}); }
  };
  std::unique_ptr<uint8_t[], Free> memory_;
  size_t bytes_;
};

// A pool and pages of a shape, and which block goes where.
struct World {
  explicit World(const Shape& shape, uint64_t seed)
      : pool(PoolBytes(shape)), pages(PageBytes(shape) * shape.pages) {
    const uint64_t stride = Stride(shape);
    bases = EvenBases(pool.address(), shape.segments, shape.pool_blocks * stride);
    // An engine's layers need not come in the order of their addresses.
    Random random(seed);
    for (size_t i = bases.size(); i > 1; --i)
      std::swap(bases[i - 1], bases[random.Below(i)]);
    layout = {.bases = bases,
              .block_stride = stride,
              .block_bytes = shape.block_bytes,
              .segment_stride =
                  shape.page_first ? shape.block_bytes : shape.block_bytes * shape.page_blocks};
    std::vector<uint32_t> numbers(shape.pool_blocks);
    for (uint32_t i = 0; i < shape.pool_blocks; ++i)
      numbers[i] = i;
    for (size_t i = numbers.size(); i > 1; --i)
      std::swap(numbers[i - 1], numbers[random.Below(i)]);
    for (uint32_t page = 0; page < shape.pages; ++page) {
      for (uint32_t i = 0; i < shape.page_blocks; ++i) {
        const uint64_t step =
            shape.page_first ? shape.segments * shape.block_bytes : shape.block_bytes;
        const bool cut = shape.partial && i + 1 == shape.page_blocks;
        blocks.push_back(
            {.page = pages.address() + page * PageBytes(shape) + i * step,
             .block = numbers[page * shape.page_blocks + i],
             .bytes = static_cast<uint32_t>(cut ? 16 + 16 * random.Below(shape.block_bytes / 16 - 1)
                                                : shape.block_bytes)});
      }
    }
  }
  static uint64_t Stride(const Shape& shape) {
    return shape.joined ? 2 * shape.block_bytes : shape.block_bytes;
  }
  static size_t PoolBytes(const Shape& shape) {
    return shape.segments * shape.pool_blocks * Stride(shape);
  }
  static size_t PageBytes(const Shape& shape) {
    return shape.segments * shape.page_blocks * shape.block_bytes;
  }

  // The definition in the header, a byte at a time.
  template <typename Move>
  void EachByte(Move move) const {
    for (const PagedBlock& block : blocks) {
      for (size_t s = 0; s < bases.size(); ++s) {
        for (uint64_t i = 0; i < block.bytes; ++i) {
          move(bases[s] + block.block * layout.block_stride + i - pool.address(),
               block.page + s * layout.segment_stride + i - pages.address());
        }
      }
    }
  }

  Buffer pool;
  Buffer pages;
  std::vector<uint64_t> bases;
  PagedLayout layout;
  std::vector<PagedBlock> blocks;
};

using Copy = void (*)(const PagedLayout&, std::span<const PagedBlock>);

void RunKernel(const char* kernel, const PagedLayout& layout, std::span<const PagedBlock> blocks) {
  ForEachPagedLaunch(
      layout, blocks,
      [kernel](const PagedCopyLaunch& launch, uint32_t threads, uint32_t tiles, uint32_t segments,
               uint32_t some) {
        EXPECT_TRUE(RunPagedCopyOnCpu(
            kernel, {.threads = threads, .tiles = tiles, .segments = segments, .blocks = some},
            launch));
        return 0;
      });
}

struct Way {
  const char* name;
  Copy gather;
  Copy scatter;
};
const Way kWays[] = {
    {"Processor", GatherPages, ScatterPages},
    {"Kernel",
     [](const PagedLayout& layout, std::span<const PagedBlock> blocks) {
       RunKernel(kGatherKernel, layout, blocks);
     },
     [](const PagedLayout& layout, std::span<const PagedBlock> blocks) {
       RunKernel(kScatterKernel, layout, blocks);
     }},
};

class PagedCopy : public testing::TestWithParam<std::tuple<Shape, Way>> {};

TEST_P(PagedCopy, GatherIsTheDefinitionAndTouchesNothingElse) {
  const auto& [shape, way] = GetParam();
  World world(shape, 1);
  world.pool.FillRandom(2);
  world.pages.Poison();
  ASSERT_STREQ(PagedCopyProblem(world.layout, world.blocks), nullptr);
  std::vector<uint8_t> wanted = world.pages.Copy();
  const std::vector<uint8_t> pool = world.pool.Copy();
  world.EachByte([&](size_t in_pool, size_t in_pages) { wanted[in_pages] = pool[in_pool]; });
  way.gather(world.layout, world.blocks);
  EXPECT_TRUE(std::ranges::equal(world.pages.bytes(), wanted));
  EXPECT_TRUE(std::ranges::equal(world.pool.bytes(), pool));
}

TEST_P(PagedCopy, ScatterIsTheDefinitionAndTouchesNothingElse) {
  const auto& [shape, way] = GetParam();
  World world(shape, 3);
  world.pages.FillRandom(4);
  world.pool.Poison();
  std::vector<uint8_t> wanted = world.pool.Copy();
  const std::vector<uint8_t> pages = world.pages.Copy();
  world.EachByte([&](size_t in_pool, size_t in_pages) { wanted[in_pool] = pages[in_pages]; });
  way.scatter(world.layout, world.blocks);
  EXPECT_TRUE(std::ranges::equal(world.pool.bytes(), wanted));
  EXPECT_TRUE(std::ranges::equal(world.pages.bytes(), pages));
}

INSTANTIATE_TEST_SUITE_P(Shapes, PagedCopy,
                         testing::Combine(testing::ValuesIn(kShapes), testing::ValuesIn(kWays)),
                         [](const auto& param) {
                           return std::string(std::get<0>(param.param).name) +
                                  std::get<1>(param.param).name;
                         });

TEST(PagedCopyProblem, NamesTheFieldThatIsWrong) {
  std::vector<uint64_t> bases = {4096, 8192};
  const PagedLayout sound = {
      .bases = bases, .block_stride = 256, .block_bytes = 128, .segment_stride = 128};
  const PagedBlock block = {.page = 65'536, .block = 3, .bytes = 128};
  const auto problem = [](const PagedLayout& layout, const PagedBlock& one) {
    const char* words = PagedCopyProblem(layout, {&one, 1});
    return std::string(words == nullptr ? "none" : words);
  };
  const auto changed = [&](auto change) {
    PagedLayout layout = sound;
    PagedBlock one = block;
    change(layout, one);
    return problem(layout, one);
  };
  constexpr uint64_t kEnd = std::numeric_limits<uint64_t>::max() - 15;
  EXPECT_EQ(problem(sound, block), "none");
  EXPECT_STREQ(PagedCopyProblem(sound, {}), nullptr);
  EXPECT_THAT(changed([](auto& layout, auto&) { layout.bases = {}; }), HasSubstr("bases"));
  EXPECT_THAT(changed([](auto& layout, auto&) { layout.block_bytes = 0; }),
              HasSubstr("block_bytes"));
  EXPECT_THAT(changed([](auto& layout, auto&) { layout.block_bytes = 120; }),
              HasSubstr("block_bytes"));
  EXPECT_THAT(changed([](auto& layout, auto&) { layout.block_stride = 112; }),
              HasSubstr("block_stride"));
  EXPECT_THAT(changed([](auto& layout, auto&) { layout.block_stride = 260; }),
              HasSubstr("block_stride"));
  EXPECT_THAT(changed([](auto& layout, auto&) { layout.segment_stride = 64; }),
              HasSubstr("segment_stride"));
  EXPECT_THAT(changed([](auto&, auto& one) { one.bytes = 0; }), HasSubstr("bytes"));
  EXPECT_THAT(changed([](auto&, auto& one) { one.bytes = 144; }), HasSubstr("bytes"));
  EXPECT_THAT(changed([](auto&, auto& one) { one.bytes = 8; }), HasSubstr("bytes"));
  EXPECT_THAT(changed([](auto&, auto& one) { one.page += 8; }), HasSubstr("page"));
  EXPECT_THAT(changed([](auto&, auto& one) { one.page = kEnd; }), HasSubstr("page"));
  bases[1] += 4;
  EXPECT_THAT(problem(sound, block), HasSubstr("bases"));
  bases[1] = kEnd - 240;
  EXPECT_THAT(problem(sound, block), HasSubstr("block: ends"));
  PagedLayout far = sound;
  far.block_stride = uint64_t{1} << 62;
  EXPECT_THAT(problem(far, {.page = 0, .block = 4, .bytes = 16}), HasSubstr("block: ends"));
  const std::vector<PagedBlock> many(kMostPagedBlocks + 1, block);
  EXPECT_THAT(std::string(PagedCopyProblem(sound, many)), HasSubstr("blocks"));
  const std::vector<uint64_t> layers(kMostPagedSegments + 1, 4096);
  PagedLayout tall = sound;
  tall.bases = layers;
  EXPECT_THAT(problem(tall, block), HasSubstr("bases"));
}

TEST(PagedCopyFatbin, IsAFatbinWhereTheBuildHadItsCompiler) {
  const std::span<const std::byte> fatbin = PagedCopyFatbin();
  if (fatbin.empty()) GTEST_SKIP() << "this build had no nvcc";
  // fatbinary_section.h and what nvcc writes: the magic number of the container.
  const std::byte magic[] = {std::byte{0x50}, std::byte{0xed}, std::byte{0x55}, std::byte{0xba}};
  ASSERT_GT(fatbin.size(), sizeof magic);
  EXPECT_TRUE(std::ranges::equal(fatbin.first(4), magic));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(fatbin.data()) % 8, 0u);
}

}  // namespace
}  // namespace terrace
