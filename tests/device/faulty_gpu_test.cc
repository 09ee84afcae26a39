// The GPUs of faults make those that they are told, and what is broken stays so.
#include "tiers/sim/faulty_gpu.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <functional>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "tests/device/gpu_fixture.h"
#include "tiers/device/host_gpu.h"

namespace terrace {
namespace {

constexpr uint64_t kGranule = 2u << 20;

class FaultyGpuTest : public testing::Test {
 protected:
  void SetUp() override {
    auto host = OpenHostGpus({.devices = {{.uuid = HostGpuUuid(0)}, {.uuid = HostGpuUuid(1)}}});
    ASSERT_TRUE(host);
    gpus_ = std::make_unique<FaultyGpus>(*std::move(host), clock_);
    gpu_ = Open(0);
  }
  std::unique_ptr<Gpu> Open(uint32_t index) {
    auto gpu = gpus_->Open(HostGpuUuid(index));
    EXPECT_OK(gpu.status());
    return gpu ? *std::move(gpu) : nullptr;
  }

  ManualClock clock_;
  std::unique_ptr<FaultyGpus> gpus_;
  std::unique_ptr<Gpu> gpu_;
};

// Each verb with arguments that name nothing: sound, it refuses them.
std::vector<std::pair<GpuVerb, std::function<Code(Gpu&)>>> Verbs() {
  static constexpr GpuStream kStream{77};
  static constexpr GpuEvent kEvent{77};
  static constexpr GpuSlab kSlab{77};
  const auto of = [](GpuVerb verb, auto call) {
    return std::pair<GpuVerb, std::function<Code(Gpu&)>>(verb, [call](Gpu& gpu) {
      if constexpr (std::is_same_v<decltype(call(gpu)), Status>) {
        return call(gpu).code();
      } else {
        return call(gpu).status().code();
      }
    });
  };
  static const std::vector<uint64_t> bases = {0};
  static const PagedLayout layout = {
      .bases = bases, .block_stride = 16, .block_bytes = 16, .segment_stride = 16};
  static const PagedBlock block = {.page = 0, .block = 0, .bytes = 16};
  return {
      of(GpuVerb::kMemory, [](Gpu& gpu) { return gpu.Memory(); }),
      of(GpuVerb::kCreateSlab, [](Gpu& gpu) { return gpu.CreateSlab(1); }),
      of(GpuVerb::kExportSlab, [](Gpu& gpu) { return gpu.ExportSlab(kSlab); }),
      of(GpuVerb::kImportSlab, [](Gpu& gpu) { return gpu.ImportSlab(-1, kGranule); }),
      of(GpuVerb::kReleaseSlab, [](Gpu& gpu) { return gpu.ReleaseSlab(kSlab); }),
      of(GpuVerb::kReserveRange, [](Gpu& gpu) { return gpu.ReserveRange(1); }),
      of(GpuVerb::kFreeRange, [](Gpu& gpu) { return gpu.FreeRange(1); }),
      of(GpuVerb::kMapSlab, [](Gpu& gpu) { return gpu.MapSlab(0, kSlab); }),
      of(GpuVerb::kSetAccess, [](Gpu& gpu) { return gpu.SetAccess(0, 1, GpuAccess::kRead); }),
      of(GpuVerb::kUnmapSlab, [](Gpu& gpu) { return gpu.UnmapSlab(0); }),
      of(GpuVerb::kAllocate, [](Gpu& gpu) { return gpu.Allocate(1); }),
      of(GpuVerb::kFreeAllocation, [](Gpu& gpu) { return gpu.FreeAllocation(0); }),
      of(GpuVerb::kExportAllocation, [](Gpu& gpu) { return gpu.ExportAllocation(0); }),
      of(GpuVerb::kOpenAllocation, [](Gpu& gpu) { return gpu.OpenAllocation({}, kGranule); }),
      of(GpuVerb::kCloseAllocation, [](Gpu& gpu) { return gpu.CloseAllocation(0); }),
      of(GpuVerb::kShareForeign, [](Gpu& gpu) { return gpu.ShareForeign(0).status(); }),
      of(GpuVerb::kRegisterHost, [](Gpu& gpu) { return gpu.RegisterHost({}, GpuAccess::kRead); }),
      of(GpuVerb::kUnregisterHost, [](Gpu& gpu) { return gpu.UnregisterHost(HostRegion{77}); }),
      of(GpuVerb::kCreateStream, [](Gpu& gpu) { return gpu.CreateStream(); }),
      of(GpuVerb::kDestroyStream, [](Gpu& gpu) { return gpu.DestroyStream(kStream); }),
      of(GpuVerb::kCreateEvent, [](Gpu& gpu) { return gpu.CreateEvent(); }),
      of(GpuVerb::kDestroyEvent, [](Gpu& gpu) { return gpu.DestroyEvent(kEvent); }),
      of(GpuVerb::kRecordEvent, [](Gpu& gpu) { return gpu.RecordEvent(kEvent, kStream); }),
      of(GpuVerb::kWaitEvent, [](Gpu& gpu) { return gpu.WaitEvent(kStream, kEvent); }),
      of(GpuVerb::kQueryEvent, [](Gpu& gpu) { return gpu.QueryEvent(kEvent); }),
      of(GpuVerb::kNotify, [](Gpu& gpu) { return gpu.Notify(kStream, -1); }),
      of(GpuVerb::kCopy, [](Gpu& gpu) { return gpu.Copy(kStream, {}, SourceOrder::kAny); }),
      of(GpuVerb::kClear, [](Gpu& gpu) { return gpu.Clear(kStream, 0, 1); }),
      of(GpuVerb::kGatherPages,
         [](Gpu& gpu) {
           return gpu.GatherPages(kStream, layout, {&block, 1});
         }),
      of(GpuVerb::kScatterPages,
         [](Gpu& gpu) {
           return gpu.ScatterPages(kStream, layout, {&block, 1});
         }),
  };
}

bool NeedsNothing(GpuVerb verb) {
  return verb == GpuVerb::kMemory || verb == GpuVerb::kCreateStream ||
         verb == GpuVerb::kCreateEvent;
}

TEST_F(FaultyGpuTest, EachVerbFailsWhenItIsNamedAndNoOther) {
  const auto verbs = Verbs();
  EXPECT_EQ(verbs.size() + 1, kGpuVerbs);  // All but kOpen.
  for (const auto& [named, call] : verbs) {
    gpus_->ClearRules();
    gpus_->Add({.fault = GpuFault::kOutOfMemory, .verb = named});
    for (const auto& [verb, other] : verbs) {
      const Code sound = NeedsNothing(verb)               ? Code::kOk
                         : verb == GpuVerb::kShareForeign ? Code::kMismatch  // Of the host's.
                                                          : Code::kInvalidArgument;
      EXPECT_EQ(other(*gpu_), verb == named ? Code::kExhausted : sound)
          << static_cast<int>(named) << " " << static_cast<int>(verb);
    }
  }
  EXPECT_EQ(gpus_->made(GpuFault::kOutOfMemory), verbs.size());
}

TEST_F(FaultyGpuTest, AfterAStickyErrorNothingWorksBeforeTheDeviceIsOpenedAnew) {
  const auto verbs = Verbs();
  for (const auto& [named, call] : verbs) {
    std::unique_ptr<Gpu> gpu = Open(0);
    ASSERT_OK(MapNewSlab(*gpu, kGranule).status());
    gpus_->Add({.fault = GpuFault::kSticky, .verb = named, .times = 1});
    EXPECT_EQ(call(*gpu), Code::kStale);
    for (const auto& [verb, other] : verbs)
      EXPECT_EQ(other(*gpu), Code::kStale) << static_cast<int>(verb);
    gpu = Open(0);
    EXPECT_OK(MapNewSlab(*gpu, kGranule).status());
    gpus_->ClearRules();
  }
  EXPECT_EQ(gpus_->made(GpuFault::kSticky), verbs.size());
  // What the dead ones had is free.
  EXPECT_EQ(gpu_->Memory()->free_bytes, gpu_->Memory()->total_bytes);
}

TEST_F(FaultyGpuTest, ALostDeviceIsLostToAllOfItAndOthersAreNot) {
  const std::unique_ptr<Gpu> same = Open(0);
  const std::unique_ptr<Gpu> other = Open(1);
  gpus_->Add({.fault = GpuFault::kLost, .verb = GpuVerb::kCreateSlab, .skip = 1, .times = 1});
  EXPECT_OK(gpu_->CreateSlab(kGranule).status());
  EXPECT_EQ(gpu_->CreateSlab(kGranule).status().code(), Code::kUnavailable);
  for (const auto& [verb, call] : Verbs()) {
    EXPECT_EQ(call(*gpu_), Code::kUnavailable);
    EXPECT_EQ(call(*same), Code::kUnavailable);
  }
  EXPECT_EQ(gpus_->Open(HostGpuUuid(0)).status().code(), Code::kUnavailable);
  EXPECT_OK(other->CreateSlab(kGranule).status());
  gpus_->Restore();
  EXPECT_OK(Open(0)->CreateSlab(kGranule).status());
  EXPECT_EQ(gpu_->Memory().status().code(), Code::kUnavailable);
}

TEST_F(FaultyGpuTest, OpeningFailsAsItIsTold) {
  gpus_->Add({.fault = GpuFault::kOutOfMemory, .verb = GpuVerb::kOpen, .times = 1});
  gpus_->Add({.fault = GpuFault::kSticky, .verb = GpuVerb::kOpen, .times = 1});
  EXPECT_EQ(gpus_->Open(HostGpuUuid(0)).status().code(), Code::kExhausted);
  EXPECT_EQ(gpus_->Open(HostGpuUuid(0)).status().code(), Code::kStale);
  EXPECT_OK(gpus_->Open(HostGpuUuid(0)).status());
}

TEST_F(FaultyGpuTest, WhatHangsIsNotDoneBeforeItIsReleased) {
  const auto stream = gpu_->CreateStream();
  const auto event = gpu_->CreateEvent();
  ASSERT_OK(stream.status());
  ASSERT_OK(event.status());
  UniqueFd bell(::eventfd(0, EFD_CLOEXEC));
  gpus_->Add({.fault = GpuFault::kNever, .times = 2});
  ASSERT_OK(gpu_->RecordEvent(*event, *stream));
  ASSERT_OK(gpu_->Notify(*stream, bell.get()));
  EXPECT_EQ(*gpu_->QueryEvent(*event), false);
  clock_.Advance(3600 * kNsPerSecond);
  EXPECT_EQ(*gpu_->QueryEvent(*event), false);
  ASSERT_OK(gpu_->DestroyStream(*stream));  // All that was on it is done.
  EXPECT_EQ(*gpu_->QueryEvent(*event), false);
  const auto second = gpu_->CreateStream();
  ASSERT_OK(second.status());
  gpus_->Release();
  EXPECT_EQ(*gpu_->QueryEvent(*event), true);

  gpus_->Add({.fault = GpuFault::kNever, .times = 1});
  ASSERT_OK(gpu_->Notify(*second, bell.get()));
  pollfd wait{.fd = bell.get(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(::poll(&wait, 1, 0), 0);
  gpus_->Release();
  EXPECT_EQ(::poll(&wait, 1, 60'000), 1);
}

TEST_F(FaultyGpuTest, WhatIsSlowIsDoneWhenItsTimeHasCome) {
  const auto stream = gpu_->CreateStream();
  const auto event = gpu_->CreateEvent();
  ASSERT_OK(stream.status());
  ASSERT_OK(event.status());
  gpus_->Add({.fault = GpuFault::kLate,
              .verb = GpuVerb::kRecordEvent,
              .times = 1,
              .late_ns = 5 * kNsPerMs});
  ASSERT_OK(gpu_->RecordEvent(*event, *stream));
  ASSERT_OK(gpu_->DestroyStream(*stream));
  EXPECT_EQ(*gpu_->QueryEvent(*event), false);
  clock_.Advance(5 * kNsPerMs - 1);
  EXPECT_EQ(*gpu_->QueryEvent(*event), false);
  clock_.Advance(1);
  EXPECT_EQ(*gpu_->QueryEvent(*event), true);
}

TEST_F(FaultyGpuTest, CallsAreCounted) {
  ASSERT_OK(gpu_->CreateSlab(kGranule).status());
  ASSERT_OK(gpu_->CreateSlab(kGranule).status());
  EXPECT_EQ(gpus_->calls(GpuVerb::kCreateSlab), 2u);
  EXPECT_EQ(gpus_->calls(GpuVerb::kOpen), 1u);
}

}  // namespace
}  // namespace terrace
