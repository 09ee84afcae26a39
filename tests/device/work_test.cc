// What tiers/device/gpu.h promises, for every implementation: copies, host memory, streams, events
// and kernels.
#include <gmock/gmock.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>

#include "tests/device/conformance.h"

namespace terrace {
namespace {

using testing::HasSubstr;

class GpuWork : public GpuConformance {
 protected:
  void SetUp() override {
    GpuConformance::SetUp();
    if (bench_ == nullptr) return;
    memory_ = NewSlab(kGranules * granule());
  }
  Status CopyNow(std::vector<GpuCopy> copies, SourceOrder order = SourceOrder::kStream) {
    RETURN_IF_ERROR(gpu_->Copy(bench_->stream(), copies, order));
    return bench_->Finish();
  }

  static constexpr uint64_t kGranules = 8;
  MappedSlab memory_;
};

TEST_P(GpuWork, BatchesOfOddSizesPutEachByteWhereItBelongs) {
  const HostPages pages(4u << 20);
  const auto region = gpu_->RegisterHost(pages.bytes(), GpuAccess::kReadWrite);
  ASSERT_OK(region.status());
  Random random(40);
  std::ranges::generate(pages.bytes(), [&] { return static_cast<uint8_t>(random()); });
  const std::vector<uint8_t> source(pages.bytes().begin(), pages.bytes().end());
  const size_t half = memory_.bytes / 2;
  std::vector<uint8_t> wanted = RandomBytes(memory_.bytes, 41);
  ASSERT_OK(bench_->Write(memory_.at, wanted));

  // Pieces of 1 byte to 20,000 at any address, from the host to the first half of the device's
  // memory, and from there to the second, some thousand bytes apart so that none overlap.
  std::vector<GpuCopy> in;
  std::vector<GpuCopy> across;
  constexpr size_t kSlot = 25'000;
  for (size_t i = 0; (i + 1) * kSlot < half; ++i) {
    const size_t bytes = 1 + random.Below(i % 3 == 0 ? 17 : 20'000);
    const size_t from = random.Below(source.size() - bytes);
    const size_t to = i * kSlot + random.Below(4000);
    in.push_back({.dst = memory_.at + to, .src = pages.address() + from, .bytes = bytes});
    std::copy_n(source.begin() + static_cast<ptrdiff_t>(from), bytes,
                wanted.begin() + static_cast<ptrdiff_t>(to));
    const size_t again = half + i * kSlot + random.Below(4000);
    across.push_back({.dst = memory_.at + again, .src = memory_.at + to, .bytes = bytes});
    std::copy_n(wanted.begin() + static_cast<ptrdiff_t>(to), bytes,
                wanted.begin() + static_cast<ptrdiff_t>(again));
  }
  ASSERT_GT(in.size(), 300u);
  ASSERT_OK(gpu_->Copy(bench_->stream(), in, SourceOrder::kAny));
  ASSERT_OK(gpu_->Copy(bench_->stream(), across, SourceOrder::kStream));
  ASSERT_OK(bench_->Finish());
  EXPECT_EQ(Read(memory_.at, memory_.bytes), wanted);

  std::vector<GpuCopy> out;
  for (size_t i = 0; i < in.size(); ++i) {
    out.push_back({.dst = pages.address() + i * 20'000 % (source.size() - 20'000),
                   .src = across[i].dst,
                   .bytes = across[i].bytes});
  }
  out.resize(source.size() / 20'000 - 1);
  std::ranges::fill(pages.bytes(), uint8_t{0});
  ASSERT_OK(CopyNow(out));
  std::vector<uint8_t> back(source.size(), 0);
  for (const GpuCopy& copy : out) {
    std::copy_n(wanted.begin() + static_cast<ptrdiff_t>(copy.src - memory_.at), copy.bytes,
                back.begin() + static_cast<ptrdiff_t>(copy.dst - pages.address()));
  }
  EXPECT_TRUE(std::ranges::equal(pages.bytes(), back));
}

TEST_P(GpuWork, ACopyThatIsRefusedCopiesNothingOfItsBatch) {
  const HostPages loose(4096);
  const GpuAddress host = bench_->window().address();
  const std::vector<uint8_t> before = RandomBytes(4096, 42);
  ASSERT_OK(bench_->Write(memory_.at, before));
  const GpuCopy sound{.dst = memory_.at, .src = host + 8192, .bytes = 100};
  const uint64_t end = memory_.at + memory_.bytes;
  const GpuCopy wrong[] = {
      {.dst = memory_.at, .src = loose.address(), .bytes = 100},  // Not registered.
      {.dst = end - 50, .src = host, .bytes = 100},
      {.dst = host, .src = end - 50, .bytes = 100},
      {.dst = host + GpuBench::kWindow - 50, .src = memory_.at, .bytes = 100},
      {.dst = memory_.at, .src = host, .bytes = 0},
      {.dst = memory_.at, .src = host, .bytes = ~uint64_t{0}},
      {.dst = 0, .src = host, .bytes = 1},
  };
  for (const GpuCopy& copy : wrong) {
    const Status status = CopyNow({sound, copy});
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_THAT(status.message(), HasSubstr("copies[1]"));
  }
  EXPECT_EQ(CopyNow(std::vector<GpuCopy>(kMostCopies + 1, sound)).code(), Code::kInvalidArgument);
  EXPECT_EQ(Read(memory_.at, 4096), before);
  EXPECT_OK(CopyNow({}));
  const GpuStream nobody{1'000'000};
  EXPECT_EQ(gpu_->Copy(nobody, {&sound, 1}, SourceOrder::kStream).code(), Code::kInvalidArgument);
}

TEST_P(GpuWork, CopiesCrossThePiecesOfARegistration) {
  const uint64_t piece = gpu_->facts().registration_bytes;
  const HostPages pages(3 * piece + 8192);
  const auto region = gpu_->RegisterHost(pages.bytes(), GpuAccess::kReadWrite);
  ASSERT_OK(region.status());
  std::ranges::copy(RandomBytes(pages.bytes().size(), 43), pages.bytes().begin());
  const std::vector<uint8_t> source(pages.bytes().begin(), pages.bytes().end());
  ASSERT_OK(CopyNow({{.dst = memory_.at + 5, .src = pages.address() + 3, .bytes = 3 * piece}}));
  std::ranges::fill(pages.bytes(), uint8_t{0});
  ASSERT_OK(
      CopyNow({{.dst = pages.address() + piece - 7, .src = memory_.at + 5, .bytes = piece + 20}}));
  EXPECT_TRUE(std::equal(source.begin() + 3,
                         source.begin() + 3 + static_cast<ptrdiff_t>(piece) + 20,
                         pages.bytes().begin() + static_cast<ptrdiff_t>(piece) - 7));
  EXPECT_OK(gpu_->UnregisterHost(*region));
}

TEST_P(GpuWork, HostMemoryIsUsedAsItWasRegistered) {
  const HostPages pages(65'536);
  const GpuCopy in{.dst = memory_.at, .src = pages.address(), .bytes = 65'536};
  const GpuCopy out{.dst = pages.address(), .src = memory_.at, .bytes = 65'536};
  EXPECT_EQ(CopyNow({in}).code(), Code::kInvalidArgument);
  const auto region = gpu_->RegisterHost(pages.bytes(), GpuAccess::kReadWrite);
  ASSERT_OK(region.status());
  EXPECT_OK(CopyNow({in}));
  EXPECT_OK(CopyNow({out}));
  EXPECT_EQ(gpu_->RegisterHost(pages.bytes(), GpuAccess::kReadWrite).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(gpu_->RegisterHost(pages.bytes().first(4096), GpuAccess::kRead).status().code(),
            Code::kInvalidArgument);
  EXPECT_OK(gpu_->UnregisterHost(*region));
  EXPECT_EQ(gpu_->UnregisterHost(*region).code(), Code::kInvalidArgument);
  EXPECT_EQ(CopyNow({in}).code(), Code::kInvalidArgument);

  if (!gpu_->facts().read_only_registration) return;
  ASSERT_EQ(::mprotect(pages.bytes().data(), pages.bytes().size(), PROT_READ), 0);
  const auto read_only = gpu_->RegisterHost(pages.bytes(), GpuAccess::kRead);
  ASSERT_OK(read_only.status());
  EXPECT_OK(CopyNow({in}));
  EXPECT_EQ(CopyNow({out}).code(), Code::kInvalidArgument);
  EXPECT_OK(gpu_->UnregisterHost(*read_only));
}

TEST_P(GpuWork, ARegistrationThatFailsHalfWayLeavesNothing) {
  const uint64_t piece = gpu_->facts().registration_bytes;
  HostPages pages(3 * piece);
  // The last piece has a hole.
  ASSERT_EQ(::munmap(pages.bytes().data() + 3 * piece - 8192, 4096), 0);
  EXPECT_FALSE(gpu_->RegisterHost(pages.bytes(), GpuAccess::kReadWrite));
  const auto whole = gpu_->RegisterHost(pages.bytes().first(2 * piece), GpuAccess::kReadWrite);
  EXPECT_OK(whole.status());
  EXPECT_OK(CopyNow({{.dst = memory_.at, .src = pages.address(), .bytes = 2 * piece}}));
  EXPECT_OK(gpu_->UnregisterHost(*whole));
}

TEST_P(GpuWork, WhatCannotBeRegisteredIsRefused) {
  const HostPages pages(16'384);
  const std::span<uint8_t> all = pages.bytes();
  EXPECT_EQ(gpu_->RegisterHost({}, GpuAccess::kRead).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(gpu_->RegisterHost(all.subspan(1, 4096), GpuAccess::kRead).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(gpu_->RegisterHost(all.first(4000), GpuAccess::kRead).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(gpu_->RegisterHost(all, GpuAccess::kNone).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(gpu_->UnregisterHost(HostRegion{1'000'000}).code(), Code::kInvalidArgument);
}

TEST_P(GpuWork, AnEventIsDoneWhenAllBeforeItIs) {
  const auto event = gpu_->CreateEvent();
  ASSERT_OK(event.status());
  EXPECT_EQ(*gpu_->QueryEvent(*event), true);  // Never recorded.
  const HostPages pages(4096);
  const auto region = gpu_->RegisterHost(pages.bytes(), GpuAccess::kReadWrite);
  ASSERT_OK(region.status());
  for (uint8_t round = 1; round <= 50; ++round) {
    ASSERT_OK(bench_->Write(memory_.at, std::vector<uint8_t>(4096, round)));
    const GpuCopy out{.dst = pages.address(), .src = memory_.at, .bytes = 4096};
    ASSERT_OK(gpu_->Copy(bench_->stream(), {&out, 1}, SourceOrder::kStream));
    ASSERT_OK(gpu_->RecordEvent(*event, bench_->stream()));
    while (!*gpu_->QueryEvent(*event))
      std::this_thread::yield();
    ASSERT_TRUE(std::ranges::all_of(pages.bytes(), [&](uint8_t byte) { return byte == round; }));
  }
  EXPECT_OK(gpu_->DestroyEvent(*event));
  EXPECT_EQ(gpu_->QueryEvent(*event).status().code(), Code::kInvalidArgument);
  EXPECT_OK(gpu_->UnregisterHost(*region));
}

TEST_P(GpuWork, AStreamWaitsForTheEventOfAnother) {
  const auto first = gpu_->CreateStream();
  const auto second = gpu_->CreateStream();
  const auto event = gpu_->CreateEvent();
  const auto back = gpu_->CreateEvent();
  ASSERT_OK(first.status());
  ASSERT_OK(second.status());
  ASSERT_OK(event.status());
  ASSERT_OK(back.status());
  ASSERT_OK(gpu_->WaitEvent(*second, *event));  // Never recorded: no wait.
  // A value goes round through two streams that wait for each other; each hop moves much.
  const uint64_t bytes = granule();
  const GpuAddress places[] = {memory_.at, memory_.at + bytes, memory_.at + 2 * bytes};
  const std::vector<uint8_t> value = RandomBytes(bytes, 44);
  ASSERT_OK(bench_->Write(places[0], value));
  for (int round = 0; round < 20; ++round) {
    const GpuCopy there{.dst = places[1], .src = places[0], .bytes = bytes};
    const GpuCopy here{.dst = places[2], .src = places[1], .bytes = bytes};
    const GpuCopy home{.dst = places[0], .src = places[2], .bytes = bytes};
    ASSERT_OK(gpu_->WaitEvent(*first, *back));
    ASSERT_OK(gpu_->Clear(*first, places[1], bytes));
    ASSERT_OK(gpu_->Copy(*first, {&there, 1}, SourceOrder::kStream));
    ASSERT_OK(gpu_->RecordEvent(*event, *first));
    ASSERT_OK(gpu_->WaitEvent(*second, *event));
    ASSERT_OK(gpu_->Clear(*second, places[2], bytes));
    ASSERT_OK(gpu_->Copy(*second, {&here, 1}, SourceOrder::kStream));
    ASSERT_OK(gpu_->Clear(*second, places[0], bytes));
    ASSERT_OK(gpu_->Copy(*second, {&home, 1}, SourceOrder::kStream));
    ASSERT_OK(gpu_->RecordEvent(*back, *second));
  }
  ASSERT_OK(bench_->Finish(*second));
  EXPECT_EQ(Read(places[0], bytes), value);
  EXPECT_OK(gpu_->DestroyStream(*first));
  EXPECT_EQ(gpu_->DestroyStream(*first).code(), Code::kInvalidArgument);
  EXPECT_EQ(gpu_->RecordEvent(*event, *first).code(), Code::kInvalidArgument);
  EXPECT_EQ(gpu_->WaitEvent(*first, *event).code(), Code::kInvalidArgument);
  EXPECT_OK(gpu_->DestroyStream(*second));
}

TEST_P(GpuWork, AStreamTakesMoreThanItsQueueHolds) {
  const GpuCopy copy{.dst = memory_.at + 4096, .src = memory_.at, .bytes = 4096};
  ASSERT_OK(bench_->Write(memory_.at, RandomBytes(4096, 45)));
  for (int i = 0; i < 5000; ++i)
    ASSERT_OK(gpu_->Copy(bench_->stream(), {&copy, 1}, SourceOrder::kStream));
  ASSERT_OK(bench_->Finish());
  EXPECT_EQ(Read(memory_.at + 4096, 4096), RandomBytes(4096, 45));
}

TEST_P(GpuWork, ANotificationComesAfterTheWorkBeforeIt) {
  UniqueFd eventfd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  const auto event = gpu_->CreateEvent();
  const auto bell = gpu_->CreateStream();
  ASSERT_OK(event.status());
  ASSERT_OK(bell.status());
  ASSERT_OK(gpu_->Clear(bench_->stream(), memory_.at, memory_.bytes));
  ASSERT_OK(gpu_->RecordEvent(*event, bench_->stream()));
  ASSERT_OK(gpu_->WaitEvent(*bell, *event));
  ASSERT_OK(gpu_->Notify(*bell, eventfd.get()));
  pollfd wait{.fd = eventfd.get(), .events = POLLIN, .revents = 0};
  ASSERT_EQ(::poll(&wait, 1, 60'000), 1);
  EXPECT_EQ(*gpu_->QueryEvent(*event), true);
  uint64_t count = 0;
  EXPECT_EQ(::read(eventfd.get(), &count, sizeof count), static_cast<ssize_t>(sizeof count));
  EXPECT_EQ(count, 1u);
  EXPECT_EQ(gpu_->Notify(*bell, -1).code(), Code::kInvalidArgument);
  // The caller's descriptor may be gone before it comes.
  ASSERT_OK(gpu_->Notify(*bell, eventfd.get()));
  eventfd.Reset();
  EXPECT_OK(gpu_->DestroyStream(*bell));
}

TEST_P(GpuWork, ClearedMemoryIsZeroAndItsNeighboursStay) {
  std::vector<uint8_t> wanted = RandomBytes(memory_.bytes, 46);
  ASSERT_OK(bench_->Write(memory_.at, wanted));
  ASSERT_OK(gpu_->Clear(bench_->stream(), memory_.at + 3, granule() + 1));
  ASSERT_OK(bench_->Finish());
  std::fill_n(wanted.begin() + 3, granule() + 1, uint8_t{0});
  EXPECT_EQ(Read(memory_.at, memory_.bytes), wanted);
  EXPECT_EQ(gpu_->Clear(bench_->stream(), memory_.at, 0).code(), Code::kInvalidArgument);
  EXPECT_EQ(gpu_->Clear(bench_->stream(), memory_.at + 1, memory_.bytes).code(),
            Code::kInvalidArgument);
  EXPECT_EQ(gpu_->Clear(bench_->stream(), bench_->window().address(), 16).code(),
            Code::kInvalidArgument);
}

// The processor's gather and scatter, which tests/kernels holds against the definition, over the
// same bytes.
class Pages {
 public:
  static constexpr size_t kSegments = 6;
  static constexpr uint64_t kBlockBytes = 8192;
  static constexpr uint32_t kPoolBlocks = 20;
  static constexpr uint32_t kBlocks = 7;
  static constexpr size_t kPoolBytes = kSegments * kPoolBlocks * kBlockBytes;
  static constexpr size_t kPageBytes = kSegments * kBlockBytes;

  // With the pool, and pages that each have one block, at these addresses.
  Pages(uint64_t pool, uint64_t pages)
      : bases(EvenBases(pool, kSegments, kPoolBlocks * kBlockBytes)) {
    for (uint32_t i = 0; i < kBlocks; ++i) {
      blocks.push_back(
          {.page = pages + i * kPageBytes,
           .block = (i * 11 + 3) % kPoolBlocks,
           .bytes = static_cast<uint32_t>(i % 3 == 2 ? kBlockBytes / 2 + 16 : kBlockBytes)});
    }
    layout = {.bases = bases,
              .block_stride = kBlockBytes,
              .block_bytes = kBlockBytes,
              .segment_stride = kBlockBytes};
  }
  std::vector<uint64_t> bases;
  PagedLayout layout;
  std::vector<PagedBlock> blocks;
};

class Aligned {
 public:
  explicit Aligned(std::vector<uint8_t> from) : pages((from.size() + 4095) / 4096 * 4096) {
    std::ranges::copy(from, pages.bytes().begin());
    bytes = pages.bytes().first(from.size());
  }
  std::vector<uint8_t> Copy() const { return {bytes.begin(), bytes.end()}; }
  HostPages pages;
  std::span<uint8_t> bytes;
};

TEST_P(GpuWork, GatherAndScatterDoWhatTheProcessorDoes) {
  if (!gpu_->facts().paged_copies) GTEST_SKIP() << "no kernels";
  const size_t pages_bytes = Pages::kBlocks * Pages::kPageBytes;
  const GpuAddress pool_at = memory_.at;
  const GpuAddress pages_at = memory_.at + 4 * granule();
  const Pages device(pool_at, pages_at);
  for (const bool gather : {true, false}) {
    const Aligned pool(RandomBytes(Pages::kPoolBytes, 47));
    const Aligned pages(RandomBytes(pages_bytes, 48));
    ASSERT_OK(bench_->Write(pool_at, pool.Copy()));
    ASSERT_OK(bench_->Write(pages_at, pages.Copy()));
    const Pages host(pool.pages.address(), pages.pages.address());
    if (gather) {
      GatherPages(host.layout, host.blocks);
      ASSERT_OK(gpu_->GatherPages(bench_->stream(), device.layout, device.blocks));
    } else {
      ScatterPages(host.layout, host.blocks);
      ASSERT_OK(gpu_->ScatterPages(bench_->stream(), device.layout, device.blocks));
    }
    ASSERT_OK(bench_->Finish());
    EXPECT_EQ(Read(pool_at, Pages::kPoolBytes), pool.Copy());
    EXPECT_EQ(Read(pages_at, pages_bytes), pages.Copy());
  }
}

TEST_P(GpuWork, PagesThatAreNotOfTheDeviceAreRefused) {
  if (!gpu_->facts().paged_copies) GTEST_SKIP() << "no kernels";
  const GpuAddress pages_at = memory_.at + 4 * granule();
  const GpuStream stream = bench_->stream();
  Pages sound(memory_.at, pages_at);
  EXPECT_OK(gpu_->GatherPages(stream, sound.layout, {}));
  const auto both_refuse = [&](Pages& pages, const char* words) {
    for (const Status& status : {gpu_->GatherPages(stream, pages.layout, pages.blocks),
                                 gpu_->ScatterPages(stream, pages.layout, pages.blocks)}) {
      EXPECT_EQ(status.code(), Code::kInvalidArgument);
      EXPECT_THAT(status.message(), HasSubstr(words));
    }
  };
  Pages beyond(memory_.at, memory_.at + memory_.bytes - Pages::kPageBytes + 16);
  both_refuse(beyond, "blocks[0].page");
  Pages on_host(bench_->window().address(), pages_at);
  both_refuse(on_host, "bases[0]");
  Pages far(memory_.at, pages_at);
  far.blocks[3].block = 1'000'000;
  both_refuse(far, "bases[0]");
  Pages odd(memory_.at, pages_at);
  odd.layout.block_bytes = 8000 + 8;
  both_refuse(odd, "block_bytes");

  ASSERT_OK(gpu_->SetAccess(memory_.at, memory_.bytes, GpuAccess::kRead));
  EXPECT_EQ(gpu_->GatherPages(stream, sound.layout, sound.blocks).code(), Code::kInvalidArgument);
  EXPECT_EQ(gpu_->ScatterPages(stream, sound.layout, sound.blocks).code(), Code::kInvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(Every, GpuWork, testing::ValuesIn(ImplementationNames()),
                         [](const auto& name) { return name.param; });

}  // namespace
}  // namespace terrace
