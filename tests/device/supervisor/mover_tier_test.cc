// The device tier over real processes: what is asked is done, or said not to be, whatever becomes
// of them.
#include "tiers/device/supervisor/mover_tier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/unique_fd.h"
#include "tests/device/gpu_fixture.h"
#include "tests/support/process_facts.h"
#include "tiers/device/host_gpu.h"
#include "tiers/sim/faulty_gpu.h"
#include "tiers/sim/sim_executor.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr uint64_t kGranule = 2u << 20;
constexpr uint64_t kPiece = 512u << 10;  // That is registered at once.
constexpr MonotonicNs kLong = 600 * kNsPerSecond;

class MoverTierTest : public testing::Test {
 protected:
  void SetUp() override {
    schedule_ = testing::TempDir() + "mover-schedule-" + std::to_string(::getpid());
    Schedule({});
    ASSERT_EQ(::setenv("MOVER_SCHEDULE", schedule_.c_str(), 1), 0);
    options_.program = FAULTY_MOVER;
    options_.mover.kind = MoverKind::kHost;
    options_.mover.device = HostGpuUuid(0);
    options_.mover.host_bytes = 64u << 20;
    options_.mover.options.staging.bytes = 256u << 10;
    options_.mover.options.registration_bytes = kPiece;
    options_.attempts = 10;
    options_.pause_ns = kNsPerMs;
    options_.most_pause_ns = 10 * kNsPerMs;
    options_.starts = 1000;
    options_.report_every_ns = 20 * kNsPerMs;
    facts_ = FactsOf(::getpid());
  }
  void TearDown() override {
    Stop();
    ::unlink(schedule_.c_str());
    ::unsetenv("MOVER_SCHEDULE");
    ::unsetenv("MOVER_NO_SLABS");
  }

  // A line a life, the others are sound.
  void Schedule(const std::vector<std::string>& lines) {
    std::ofstream file(schedule_, std::ios::trunc);
    for (const std::string& line : lines)
      file << line << "\n";
  }
  static std::string Fault(GpuVerb verb, GpuFault fault, uint64_t skip = 0) {
    return "fault " + std::to_string(static_cast<int>(verb)) + " " +
           std::to_string(static_cast<int>(fault)) + " " + std::to_string(skip) + " 1";
  }

  void Start() {
    auto tier = StartMoverTier(options_, owner_, clock_,
                               [this](ArenaId arena) { EXPECT_TRUE(lost_.insert(arena).second); });
    ASSERT_TRUE(tier) << tier.status().ToString();
    tier_ = *std::move(tier);
  }
  // Nothing is left of it: descriptors, mappings, processes.
  void Stop() {
    if (!tier_) return;
    tier_.reset();
    owner_.RunAll();
    slabs_.clear();
    maps_.clear();
    EXPECT_EQ(FactsOf(::getpid()), facts_);
    EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);
    EXPECT_EQ(errno, ECHILD);
  }

  MonotonicNs In(MonotonicNs ns) const { return clock_.Now() + ns; }
  // What a call says in the end.
  template <typename Call>
  Status Await(const Call& call) {
    std::optional<Status> status;
    call([&status](Status said) {
      EXPECT_FALSE(status) << "said twice";
      status = std::move(said);
    });
    EXPECT_TRUE(owner_.RunUntil([&] { return status.has_value(); }));
    return status.value_or(Status(Code::kInternal, "not done"));
  }
  void AwaitReport(const std::function<bool(const DeviceTierReport&)>& reached) {
    EXPECT_TRUE(owner_.RunUntil([&] { return reached(tier_->Report()); }));
  }

  // A device arena, mapped here: slabs of the host are memfds.
  Status Create(ArenaId arena, uint64_t bytes = kGranule, MonotonicNs within = kLong) {
    std::optional<Result<DeviceMemory>> memory;
    tier_->Create(arena, bytes, In(within),
                  [&](Result<DeviceMemory> made) { memory = std::move(made); });
    EXPECT_TRUE(owner_.RunUntil([&] { return memory.has_value(); }));
    if (!*memory) return memory->error();
    if ((*memory)->slab != nullptr) {
      slabs_[arena] = (*memory)->slab;
      auto map = Mapping::Of((*memory)->slab->get(), 0, bytes, Protection::kReadWrite);
      EXPECT_OK(map.status());
      maps_[arena] = *std::move(map);
      EXPECT_TRUE(std::ranges::all_of(maps_[arena].bytes(), [](uint8_t b) { return b == 0; }));
    }
    return {};
  }
  Status AddHost(ArenaId arena, uint64_t bytes = kGranule, MonotonicNs within = kLong) {
    auto fd = CreateMemfd("tier-test", bytes);
    EXPECT_TRUE(fd);
    auto map = Mapping::Of(fd->get(), 0, bytes, Protection::kReadWrite);
    maps_[arena] = *std::move(map);
    return Await([&](auto done) {
      tier_->AddHost(arena, bytes, *std::move(fd), Protection::kReadWrite,
                     Registration::kInBackground, In(within), done);
    });
  }
  Status Copy(ArenaId dst, ArenaId src, MonotonicNs within = kLong, uint64_t bytes = kGranule) {
    return Await([&](auto done) {
      tier_->Copy({{.dst = {.arena = dst, .offset = 0},
                    .src = {.arena = src, .offset = 0},
                    .bytes = bytes}},
                  true, In(within), done);
    });
  }
  Status Release(ArenaId arena) {
    return Await([&](auto done) { tier_->Release(arena, In(kLong), done); });
  }
  void Fill(ArenaId arena, uint64_t seed) {
    std::ranges::copy(RandomBytes(maps_.at(arena).size(), seed), maps_.at(arena).data());
  }
  bool Same(ArenaId one, ArenaId other) {
    return std::ranges::equal(maps_.at(one).bytes(), maps_.at(other).bytes());
  }

  // All that a tier does, once: in, within, out, with bytes looked at after each.
  void GoRound(uint64_t seed) {
    ASSERT_OK(Create(1));
    ASSERT_OK(Create(2));
    ASSERT_OK(AddHost(3));
    ASSERT_OK(AddHost(4));
    Fill(3, seed);
    ASSERT_OK(Copy(1, 3));
    EXPECT_TRUE(Same(1, 3));
    ASSERT_OK(Copy(2, 1));
    EXPECT_TRUE(Same(2, 3));
    ASSERT_OK(Copy(4, 2));
    EXPECT_TRUE(Same(4, 3));
    ASSERT_OK(Await(
        [&](auto done) { tier_->Clear({.arena = 1, .offset = 0}, kGranule, In(kLong), done); }));
    EXPECT_EQ(std::ranges::count(maps_.at(1).bytes(), 0), static_cast<int64_t>(kGranule));
    for (const ArenaId arena : {1, 2, 3, 4})
      ASSERT_OK(Release(arena));
    EXPECT_EQ(Copy(1, 3).code(), Code::kNotFound);
  }

  const SystemClock clock_;
  ManualExecutor owner_;
  MoverTierOptions options_;
  std::string schedule_;
  ProcessFacts facts_;
  std::set<ArenaId> lost_;
  std::map<ArenaId, std::shared_ptr<const UniqueFd>> slabs_;
  std::map<ArenaId, Mapping> maps_;
  std::unique_ptr<DeviceTier> tier_;
};

TEST_F(MoverTierTest, BytesGoRoundAndNothingIsLeft) {
  options_.program = TERRACE_MOVER;
  Start();
  GoRound(1);
  AwaitReport([](const DeviceTierReport& report) { return report.total_bytes != 0; });
  const DeviceTierReport report = tier_->Report();
  EXPECT_EQ(report.state, DeviceTierState::kServing);
  EXPECT_EQ(report.name, "host memory");
  EXPECT_EQ(report.starts, 1u);
  EXPECT_EQ(report.arenas, 0u);
  EXPECT_EQ(report.why, "");
  const pid_t pid = report.process;
  Stop();
  EXPECT_NE(::kill(pid, 0), 0);
}

// Where a mover may end: each verb of a life as GoRound has it, and of one that was told what there
// is.
constexpr GpuVerb kVerbs[] = {
    GpuVerb::kOpen,         GpuVerb::kMemory,       GpuVerb::kCreateSlab,
    GpuVerb::kExportSlab,   GpuVerb::kReleaseSlab,  GpuVerb::kReserveRange,
    GpuVerb::kFreeRange,    GpuVerb::kMapSlab,      GpuVerb::kSetAccess,
    GpuVerb::kUnmapSlab,    GpuVerb::kRegisterHost, GpuVerb::kUnregisterHost,
    GpuVerb::kCreateStream, GpuVerb::kCreateEvent,  GpuVerb::kDestroyEvent,
    GpuVerb::kRecordEvent,  GpuVerb::kWaitEvent,    GpuVerb::kQueryEvent,
    GpuVerb::kNotify,       GpuVerb::kCopy,         GpuVerb::kClear};

TEST_F(MoverTierTest, ACrashOrABrokenContextAtAnyVerbIsSurvived) {
  uint64_t seed = 10;
  for (const GpuFault fault : {GpuFault::kCrash, GpuFault::kSticky}) {
    for (const GpuVerb verb : kVerbs) {
      for (const uint64_t skip : {0, 1, 3}) {
        SCOPED_TRACE(Fault(verb, fault, skip));
        Schedule({Fault(verb, fault, skip), Fault(verb, fault, skip + 4)});
        Start();
        GoRound(++seed);
        // Each of them is called at least once.
        if (skip == 0)
          AwaitReport([](const DeviceTierReport& report) { return report.starts > 1; });
        EXPECT_TRUE(lost_.empty());
        Stop();
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(MoverTierTest, AHangAtAnyVerbIsSurvived) {
  options_.report_ns = 300 * kNsPerMs;
  options_.start_ns = kNsPerSecond;
  uint64_t seed = 1000;
  for (const GpuVerb verb : kVerbs) {
    SCOPED_TRACE(Fault(verb, GpuFault::kStop));
    Schedule({Fault(verb, GpuFault::kStop)});
    Start();
    GoRound(++seed);
    AwaitReport([](const DeviceTierReport& report) { return report.hangs == 1; });
    EXPECT_TRUE(lost_.empty());
    Stop();
    if (HasFatalFailure()) return;
  }
}

TEST_F(MoverTierTest, SlabsAndTheirBytesOutliveTheirMover) {
  Start();
  ASSERT_OK(Create(1));
  ASSERT_OK(AddHost(2));
  Fill(2, 5);
  ASSERT_OK(Copy(1, 2));
  for (uint64_t life = 1; life <= 3; ++life) {
    ASSERT_EQ(::kill(tier_->Report().process, SIGKILL), 0);
    AwaitReport([&](const DeviceTierReport& report) {
      return report.crashes == life && report.state == DeviceTierState::kServing;
    });
    EXPECT_THAT(tier_->Report().why, HasSubstr("signal 9"));
    ASSERT_OK(AddHost(10 + static_cast<ArenaId>(life)));
    ASSERT_OK(Copy(10 + static_cast<ArenaId>(life), 1));
    EXPECT_TRUE(Same(10 + static_cast<ArenaId>(life), 2));
  }
  EXPECT_TRUE(lost_.empty());
}

// Also while a next one is told what there is.
TEST_F(MoverTierTest, AMoverThatEndsWhileItIsToldWhatThereIsIsFollowedByAnother) {
  Schedule({"-", Fault(GpuVerb::kImportSlab, GpuFault::kCrash),
            Fault(GpuVerb::kImportSlab, GpuFault::kSticky, 1),
            Fault(GpuVerb::kMapSlab, GpuFault::kCrash, 1)});
  Start();
  ASSERT_OK(Create(1));
  ASSERT_OK(Create(2));
  ASSERT_OK(AddHost(3));
  Fill(3, 6);
  ASSERT_OK(Copy(1, 3));
  ASSERT_EQ(::kill(tier_->Report().process, SIGKILL), 0);
  AwaitReport([](const DeviceTierReport& report) {
    return report.starts == 5 && report.state == DeviceTierState::kServing;
  });
  ASSERT_OK(Copy(2, 1));
  EXPECT_TRUE(Same(2, 3));
  EXPECT_TRUE(lost_.empty());
}

TEST_F(MoverTierTest, ASlabThatCannotBeImportedAgainIsLostAndSaidSoFirst) {
  Schedule({"-", Fault(GpuVerb::kImportSlab, GpuFault::kOutOfMemory)});
  Start();
  ASSERT_OK(Create(1));
  ASSERT_OK(AddHost(2));
  ASSERT_EQ(::kill(tier_->Report().process, SIGKILL), 0);
  AwaitReport([](const DeviceTierReport& report) { return report.lost_arenas == 1; });
  EXPECT_EQ(Copy(1, 2).code(), Code::kStale);
  EXPECT_EQ(lost_, std::set<ArenaId>({1}));
  EXPECT_OK(Release(1));
  EXPECT_OK(Create(3));
  EXPECT_OK(Copy(3, 2));
}

TEST_F(MoverTierTest, AllocationsGoWithTheirMover) {
  ASSERT_EQ(::setenv("MOVER_NO_SLABS", "1", 1), 0);
  Start();
  ASSERT_OK(Create(1));
  ASSERT_OK(AddHost(2));
  ASSERT_OK(Copy(1, 2));
  ASSERT_EQ(::kill(tier_->Report().process, SIGKILL), 0);
  AwaitReport([](const DeviceTierReport& report) {
    return report.crashes == 1 && report.state == DeviceTierState::kServing;
  });
  EXPECT_EQ(Copy(1, 2).code(), Code::kStale);
  EXPECT_EQ(lost_, std::set<ArenaId>({1}));
  EXPECT_OK(Release(1));
  EXPECT_OK(Create(3));
  EXPECT_OK(Copy(3, 2));
}

TEST_F(MoverTierTest, MemoryOfEnginesIsFoundAgainByTheNextMover) {
  // This process is the engine.
  auto gpus = OpenHostGpus({});
  ASSERT_TRUE(gpus);
  {
    auto engine = (*gpus)->Open(HostGpuUuid(0));
    ASSERT_TRUE(engine);
    const auto slab = (*engine)->CreateSlab(kGranule);
    const auto allocation = (*engine)->Allocate(kGranule);
    ASSERT_TRUE(slab && allocation);
    const auto handle = (*engine)->ExportAllocation(*allocation);
    auto fd = (*engine)->ExportSlab(*slab);
    ASSERT_TRUE(handle && fd);
    Start();
    ASSERT_OK(
        Await([&](auto done) { tier_->Import(1, kGranule, *std::move(fd), In(kLong), done); }));
    ASSERT_OK(Await([&](auto done) { tier_->Open(2, kGranule, *handle, In(kLong), done); }));
    ASSERT_OK(AddHost(3));
    ASSERT_OK(AddHost(4));
    Fill(3, 8);
    for (uint64_t life = 1; life <= 2; ++life) {
      ASSERT_OK(Copy(1, 3));
      ASSERT_EQ(::kill(tier_->Report().process, SIGKILL), 0);
      ASSERT_OK(Copy(2, 1));
      EXPECT_EQ(
          std::memcmp(reinterpret_cast<const void*>(*allocation), maps_.at(3).data(), kGranule), 0);
      AwaitReport([&](const DeviceTierReport& report) { return report.crashes == life; });
    }
    EXPECT_TRUE(lost_.empty());
  }
  // The engine is gone, and with it what it allocated; its slab the daemon has.
  ASSERT_EQ(::kill(tier_->Report().process, SIGKILL), 0);
  AwaitReport([](const DeviceTierReport& report) { return report.lost_arenas == 1; });
  EXPECT_EQ(Copy(4, 2).code(), Code::kStale);
  EXPECT_EQ(lost_, std::set<ArenaId>({2}));
  EXPECT_OK(Copy(4, 1));
  EXPECT_TRUE(Same(4, 3));
  EXPECT_OK(Release(2));
}

TEST_F(MoverTierTest, ADeviceThatIsLostTakesItsArenasAndNoOthers) {
  Schedule({Fault(GpuVerb::kCopy, GpuFault::kLost)});
  Start();
  ASSERT_OK(Create(1));
  ASSERT_OK(AddHost(2));
  EXPECT_EQ(Copy(1, 2).code(), Code::kStale);
  EXPECT_EQ(lost_, std::set<ArenaId>({1}));
  EXPECT_EQ(tier_->Report().broken, 1u);
  EXPECT_OK(Release(1));
  EXPECT_OK(Create(3));
  EXPECT_OK(Copy(3, 2));
}

TEST_F(MoverTierTest, WhatIsNotDoneByItsDeadlineFailsWhenItsMoverIsGone) {
  Schedule({Fault(GpuVerb::kRecordEvent, GpuFault::kNever, 1)});
  Start();
  ASSERT_OK(Create(1));
  ASSERT_OK(AddHost(2));
  const pid_t pid = tier_->Report().process;
  // Its work hangs; it says how it is all the same.
  EXPECT_EQ(Copy(1, 2, 200 * kNsPerMs).code(), Code::kDeadlineExceeded);
  EXPECT_NE(::kill(pid, 0), 0);
  EXPECT_EQ(tier_->Report().hangs, 1u);
  Fill(2, 7);
  EXPECT_OK(Copy(1, 2));
  EXPECT_TRUE(Same(1, 2));
}

TEST_F(MoverTierTest, ARequestThatEndsEveryMoverFailsAndOthersDoNot) {
  options_.attempts = 3;
  Schedule({Fault(GpuVerb::kGatherPages, GpuFault::kCrash),
            Fault(GpuVerb::kGatherPages, GpuFault::kSticky),
            Fault(GpuVerb::kGatherPages, GpuFault::kCrash)});
  Start();
  ASSERT_OK(Create(1));
  ASSERT_OK(Create(2));
  const DevicePages pages{
      .gather = true,
      .block_stride = 4096,
      .block_bytes = 4096,
      .segment_stride = 4096,
      .bases = {{.arena = 1, .offset = 0}},
      .blocks = {{.page = {.arena = 2, .offset = 0}, .block = 0, .bytes = 4096}}};
  const Status status = Await([&](auto done) { tier_->MovePages(pages, In(kLong), done); });
  EXPECT_EQ(status.code(), Code::kUnavailable) << status.ToString();
  EXPECT_THAT(status.message(), HasSubstr("3 movers"));
  EXPECT_OK(Copy(1, 2));
  EXPECT_OK(Await([&](auto done) { tier_->MovePages(pages, In(kLong), done); }));
  EXPECT_EQ(tier_->Report().replayed, 2u);
}

TEST_F(MoverTierTest, TooManyEndsMakeTheTierRest) {
  options_.starts = 3;
  Schedule({Fault(GpuVerb::kMemory, GpuFault::kCrash), Fault(GpuVerb::kMemory, GpuFault::kCrash),
            Fault(GpuVerb::kMemory, GpuFault::kCrash)});
  Start();
  EXPECT_EQ(Create(1).code(), Code::kUnavailable);
  EXPECT_EQ(tier_->Report().state, DeviceTierState::kResting);
  EXPECT_EQ(tier_->Report().starts, 3u);
  EXPECT_EQ(AddHost(2).code(), Code::kUnavailable);
  EXPECT_EQ(Release(1).code(), Code::kNotFound);
}

TEST_F(MoverTierTest, ARestEndsWhenAMoverCanBeHadAgain) {
  options_.starts = 2;
  options_.window_ns = 300 * kNsPerMs;
  Schedule({Fault(GpuVerb::kOpen, GpuFault::kCrash), Fault(GpuVerb::kOpen, GpuFault::kCrash)});
  Start();
  AwaitReport(
      [](const DeviceTierReport& report) { return report.state == DeviceTierState::kResting; });
  AwaitReport(
      [](const DeviceTierReport& report) { return report.state == DeviceTierState::kServing; });
  EXPECT_OK(Create(1));
}

TEST_F(MoverTierTest, WhatAMoverLacksIsSaid) {
  options_.program = TERRACE_MOVER;
  options_.mover.kind = MoverKind::kCuda;
  options_.mover.device = *ParseGpuUuid("GPU-01234567-89ab-cdef-0123-456789abcdef");
  Start();
  AwaitReport(
      [](const DeviceTierReport& report) { return report.state == DeviceTierState::kResting; });
  // No driver, no such device, or a build without CUDA.
  EXPECT_THAT(tier_->Report().why, testing::AnyOf(HasSubstr("not_found"), HasSubstr("mismatch"),
                                                  HasSubstr("permission_denied")));
  EXPECT_EQ(Create(1).code(), Code::kUnavailable);
  Stop();
  options_.program = "/nowhere/terrace-mover";
  Start();
  EXPECT_EQ(Create(1).code(), Code::kUnavailable);
  EXPECT_THAT(tier_->Report().why, HasSubstr("/nowhere/terrace-mover"));
}

TEST_F(MoverTierTest, AMoverIsNotBelieved) {
  for (const char* lie :
       {"uuid", "answer-first", "rubbish", "short", "long", "descriptors", "no-request",
        "ready-again", "daemon's", "no-descriptor", "hidden-descriptor", "no-such-descriptor"}) {
    SCOPED_TRACE(lie);
    Schedule({std::string("hostile ") + lie});
    Start();
    EXPECT_OK(Create(1));
    const DeviceTierReport report = tier_->Report();
    EXPECT_EQ(report.distrusted, 1u);
    EXPECT_THAT(report.why, HasSubstr("cannot be"));
    EXPECT_EQ(report.name.find('\x1b'), std::string::npos);
    Stop();
  }
  Schedule({"hostile closes"});
  Start();
  EXPECT_OK(Create(1));
  EXPECT_EQ(tier_->Report().crashes, 1u);
}

TEST_F(MoverTierTest, ATierThatEndsMidwayLeavesNothing) {
  for (const GpuFault fault : {GpuFault::kStop, GpuFault::kNever}) {
    options_.stop_ns = 100 * kNsPerMs;
    Schedule({Fault(GpuVerb::kRecordEvent, fault)});
    Start();
    bool called = false;
    tier_->Create(1, kGranule, In(kLong), [&](const Result<DeviceMemory>&) { called = true; });
    auto fd = CreateMemfd("tier-test", kGranule);
    tier_->AddHost(2, kGranule, *std::move(fd), Protection::kReadWrite, Registration::kInBackground,
                   In(kLong), [](const Status&) {});
    AwaitReport([](const DeviceTierReport& report) { return report.in_flight >= 1; });
    Stop();
    EXPECT_FALSE(called);
  }
}

TEST_F(MoverTierTest, ATierThatBeganToEndNeedsNobodyToWaitForIt) {
  Start();
  ASSERT_OK(Create(1));
  UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, tier_->Report().process, 0)));
  ASSERT_TRUE(process);
  bool called = false;
  tier_->BeginEnd();
  tier_->Create(2, kGranule, In(kLong), [&](const Result<DeviceMemory>&) { called = true; });
  pollfd ended{.fd = process.get(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(::poll(&ended, 1, 60'000), 1);
  process.Reset();
  Stop();
  EXPECT_FALSE(called);
}

TEST_F(MoverTierTest, WhatIsTooMuchIsRefused) {
  options_.requests = 2;
  Schedule({Fault(GpuVerb::kOpen, GpuFault::kStop)});
  Start();
  std::vector<Code> said;
  for (ArenaId arena = 1; arena <= 3; ++arena) {
    tier_->Create(arena, kGranule, In(kLong),
                  [&](const Result<DeviceMemory>& made) { said.push_back(made.status().code()); });
  }
  owner_.RunAll();
  EXPECT_EQ(said, std::vector<Code>({Code::kExhausted}));
  Stop();
  options_.requests = 100;
  Schedule({});
  Start();
  EXPECT_EQ(Create(1, uint64_t{1} << 40).code(), Code::kExhausted);
  EXPECT_EQ(Create(1, 100).code(), Code::kInvalidArgument);
  EXPECT_OK(Create(1));
  EXPECT_EQ(Create(1).code(), Code::kAlreadyExists);
  const Status many = Await([&](auto done) {
    tier_->Copy(std::vector<DeviceCopy>(kMostDeviceCopies + 1), true, In(kLong), done);
  });
  EXPECT_EQ(many.code(), Code::kInvalidArgument);
  EXPECT_EQ(Release(2).code(), Code::kNotFound);
}

}  // namespace
}  // namespace terrace
