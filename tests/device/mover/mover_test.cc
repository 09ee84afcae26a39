// The mover as the daemon sees it: requests and answers over the socket, on the host's devices.
#include "tiers/device/mover/mover.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/unique_fd.h"
#include "tests/device/gpu_fixture.h"
#include "tiers/device/host_gpu.h"
#include "tiers/device/mover/messages.h"
#include "tiers/sim/faulty_gpu.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr uint64_t kGranule = 2u << 20;
constexpr uint64_t kStagingBytes = 128u << 10;  // In pieces of 16 KiB.
constexpr uint64_t kPieceBytes = 256u << 10;

struct Got {
  MoverMessage message;
  UniqueFd fd;
  const Status& status() const { return std::get<MoverAnswer>(message.body).status; }
};

class MoverTest : public testing::Test {
 protected:
  void SetUp() override {
    auto host =
        OpenHostGpus({.devices = {{.uuid = HostGpuUuid(0), .bytes = 64u << 20}}, .dirty = true});
    ASSERT_TRUE(host);
    gpus_ = std::make_unique<FaultyGpus>(*std::move(host), clock_);
  }
  void TearDown() override { (void)Stop(); }

  void Start(MoverOptions options = {}) {
    auto gpu = gpus_->Open(HostGpuUuid(0));
    ASSERT_TRUE(gpu);
    auto pair = MoverSocket::Pair();
    ASSERT_TRUE(pair);
    options.staging.bytes = kStagingBytes;
    options.registration_bytes = kPieceBytes;
    ours_.emplace(std::move(pair->first));
    theirs_.emplace(std::move(pair->second));
    thread_ = std::thread([this, options, gpu = *std::move(gpu)]() mutable {
      ended_ = ServeMover(std::move(gpu), *theirs_, options);
    });
    const Got ready = Receive();
    ASSERT_TRUE(std::holds_alternative<MoverReady>(ready.message.body));
    EXPECT_EQ(std::get<MoverReady>(ready.message.body).facts.uuid, HostGpuUuid(0));
  }
  // The daemon closes its end; how the mover ended.
  Status Stop() {
    if (!thread_.joinable()) return ended_;
    ours_.reset();
    thread_.join();
    return ended_;
  }

  Got Receive() {
    for (;;) {
      pollfd wait{.fd = ours_->fd(), .events = POLLIN, .revents = 0};
      EXPECT_GE(::poll(&wait, 1, 600'000), 1);
      auto packet = ours_->Receive();
      EXPECT_TRUE(packet) << packet.status().ToString();
      if (!packet) return {};
      if (!packet->has_value()) continue;
      auto message = DecodeMover((*packet)->bytes);
      EXPECT_TRUE(message) << message.status().ToString();
      return {*std::move(message), std::move((*packet)->fd)};
    }
  }
  uint64_t Ask(MoverBody body, int fd = -1) {
    const uint64_t request = ++last_request_;
    EXPECT_OK(ours_->Send(EncodeMover({.request = request,
                                       .descriptors = static_cast<uint16_t>(fd >= 0 ? 1 : 0),
                                       .body = std::move(body)}),
                          fd));
    return request;
  }
  // The answer to that request; those of others are kept for theirs.
  Got AnswerTo(uint64_t request) {
    while (!answers_.contains(request)) {
      Got got = Receive();
      const uint64_t of = got.message.request;
      answers_.emplace(of, std::move(got));
    }
    Got got = std::move(answers_.extract(request).mapped());
    return got;
  }
  Got Call(MoverBody body, int fd = -1) { return AnswerTo(Ask(std::move(body), fd)); }
  Status Do(MoverBody body, int fd = -1) { return Call(std::move(body), fd).status(); }

  // A device arena, mapped here too: the host's slabs are memfds.
  Mapping Create(ArenaId arena, uint64_t bytes) {
    Got got = Call(MoverCreate{.arena = arena, .bytes = bytes});
    EXPECT_OK(got.status());
    EXPECT_TRUE(got.fd);
    auto mapping = Mapping::Of(got.fd.get(), 0, bytes, Protection::kReadWrite);
    EXPECT_OK(mapping.status());
    return mapping ? *std::move(mapping) : Mapping();
  }
  Mapping AddHost(ArenaId arena, uint64_t bytes) {
    const auto fd = CreateMemfd("mover-test", bytes);
    EXPECT_TRUE(fd);
    EXPECT_OK(Do(MoverHost{.arena = arena, .bytes = bytes, .writable = true}, fd->get()));
    auto mapping = Mapping::Of(fd->get(), 0, bytes, Protection::kReadWrite);
    return mapping ? *std::move(mapping) : Mapping();
  }
  MoverFigures Figures() { return std::get<MoverAnswer>(Call(MoverReport{}).message.body).figures; }
  // Asks until that much is registered.
  void AwaitRegistered(uint64_t bytes) {
    while (Figures().registered_bytes != bytes)
      ASSERT_FALSE(HasFailure());
  }
  static MoverCopies OneCopy(MoverPlace dst, MoverPlace src, uint64_t bytes) {
    return {.any_order = false, .copies = {{.dst = dst, .src = src, .bytes = bytes}}};
  }

  ManualClock clock_;
  std::unique_ptr<FaultyGpus> gpus_;
  std::optional<MoverSocket> ours_;
  std::optional<MoverSocket> theirs_;  // The mover's, while it runs.
  std::thread thread_;
  Status ended_;
  uint64_t last_request_ = 0;
  std::map<uint64_t, Got> answers_;
};

TEST_F(MoverTest, ANewArenaIsClearBeforeAnybodyHasIt) {
  Start();
  const Mapping slab = Create(1, 2 * kGranule);
  EXPECT_TRUE(std::ranges::all_of(slab.bytes(), [](uint8_t byte) { return byte == 0; }));
  EXPECT_EQ(Do(MoverCreate{.arena = 1, .bytes = kGranule}).code(), Code::kAlreadyExists);
  EXPECT_EQ(Do(MoverCreate{.arena = 2, .bytes = 100}).code(), Code::kInvalidArgument);
  EXPECT_OK(Stop());
}

TEST_F(MoverTest, BytesGoInAndOutAndWithin) {
  Start();
  const Mapping slab = Create(1, kGranule);
  const Mapping host = AddHost(2, 1u << 20);
  const std::vector<uint8_t> bytes = RandomBytes(100'000, 1);
  std::ranges::copy(bytes, host.bytes().begin() + 7);
  EXPECT_OK(Do(OneCopy({.arena = 1, .offset = 3}, {.arena = 2, .offset = 7}, bytes.size())));
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), slab.data() + 3));
  EXPECT_OK(Do(OneCopy({.arena = 1, .offset = 1u << 20}, {.arena = 1, .offset = 3}, bytes.size())));
  EXPECT_OK(
      Do(OneCopy({.arena = 2, .offset = 500'000}, {.arena = 1, .offset = 1u << 20}, bytes.size())));
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), host.data() + 500'000));
  EXPECT_OK(Do(MoverClear{.at = {.arena = 1, .offset = 3}, .bytes = bytes.size()}));
  EXPECT_TRUE(std::all_of(slab.data(), slab.data() + 110'000, [](uint8_t b) { return b == 0; }));
}

TEST_F(MoverTest, PagesAreGatheredAndScattered) {
  Start();
  const Mapping pool = Create(1, kGranule);
  const Mapping page = Create(2, kGranule);
  std::ranges::copy(RandomBytes(kGranule, 2), pool.data());
  MoverPages pages{.gather = true,
                   .block_stride = 4096,
                   .block_bytes = 4096,
                   .segment_stride = 4096,
                   .bases = {{.arena = 1, .offset = 0}, {.arena = 1, .offset = 1u << 20}},
                   .blocks = {{.page = {.arena = 2, .offset = 8192}, .block = 5, .bytes = 4096}}};
  EXPECT_OK(Do(pages));
  EXPECT_TRUE(std::equal(pool.data() + 5 * 4096, pool.data() + 6 * 4096, page.data() + 8192));
  EXPECT_TRUE(std::equal(pool.data() + (1u << 20) + 5 * 4096, pool.data() + (1u << 20) + 6 * 4096,
                         page.data() + 12'288));
  pages.gather = false;
  pages.blocks[0].block = 9;
  EXPECT_OK(Do(pages));
  EXPECT_TRUE(std::equal(pool.data() + 9 * 4096, pool.data() + 10 * 4096, page.data() + 8192));
}

TEST_F(MoverTest, WorkStaysInsideTheArenasThatItNames) {
  Start();
  for (ArenaId arena = 1; arena <= 4; ++arena)
    Create(arena, kGranule);
  const auto refused = [&](MoverBody body, const char* words) {
    const Status status = Do(std::move(body));
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << status.ToString();
    EXPECT_THAT(status.message(), HasSubstr(words));
  };
  const MoverPlace begin{.arena = 1, .offset = 0};
  const MoverPlace near_end{.arena = 2, .offset = kGranule - 16};
  refused(OneCopy(near_end, begin, 17), "copies[0].dst");
  refused(OneCopy(begin, near_end, 17), "copies[0].src");
  refused(OneCopy({.arena = 1, .offset = ~uint64_t{0}}, begin, 2), "copies[0].dst");
  refused(MoverClear{.at = near_end, .bytes = 32}, "clear: at");
  MoverPages pages{.gather = false,
                   .block_stride = 4096,
                   .block_bytes = 4096,
                   .segment_stride = 4096,
                   .bases = {begin, begin},
                   .blocks = {{.page = {.arena = 2, .offset = 0}, .block = 0, .bytes = 4096}}};
  MoverPages wrong = pages;
  wrong.blocks[0].block = kGranule / 4096;
  refused(wrong, "bases[0]");
  wrong = pages;
  wrong.blocks[0].page.offset = kGranule - 4096;
  refused(wrong, "blocks[0].page");
  wrong = pages;
  wrong.block_stride = uint64_t{1} << 60;
  wrong.blocks[0].block = 4'000'000'000;
  refused(wrong, "bases[0]");
  wrong = pages;
  wrong.segment_stride = ~uint64_t{0};
  refused(wrong, "blocks[0].page");
  EXPECT_EQ(Do(OneCopy(begin, {.arena = 9, .offset = 0}, 1)).code(), Code::kNotFound);
  EXPECT_OK(Do(pages));
}

TEST_F(MoverTest, AReleaseWaitsForTheWorkBeforeItAndEndsTheArena) {
  Start();
  const Mapping slab = Create(1, 8 * kGranule);
  Create(2, 8 * kGranule);
  std::vector<uint64_t> copies;
  for (int i = 0; i < 20; ++i) {
    copies.push_back(
        Ask(OneCopy({.arena = 2, .offset = 0}, {.arena = 1, .offset = 0}, 8 * kGranule)));
  }
  const uint64_t release = Ask(MoverRelease{.arena = 1});
  const uint64_t late = Ask(OneCopy({.arena = 2, .offset = 0}, {.arena = 1, .offset = 0}, 1));
  EXPECT_OK(AnswerTo(release).status());
  // It came after theirs.
  for (const uint64_t copy : copies) {
    ASSERT_TRUE(answers_.contains(copy));
    EXPECT_OK(AnswerTo(copy).status());
  }
  EXPECT_EQ(AnswerTo(late).status().code(), Code::kNotFound);
  EXPECT_EQ(Do(MoverRelease{.arena = 1}).code(), Code::kNotFound);
  EXPECT_OK(Do(MoverRelease{.arena = 2}));
  EXPECT_EQ(Figures().memory.free_bytes, 64u << 20);
}

TEST_F(MoverTest, WhatIsTooMuchIsRefusedAndTheRestGoesOn) {
  Start({.in_flight = 4, .arenas = 2, .staging = {}});
  EXPECT_EQ(Do(MoverCreate{.arena = 1, .bytes = 1u << 30}).code(), Code::kExhausted);
  Create(1, kGranule);
  Create(2, kGranule);
  EXPECT_EQ(Do(MoverCreate{.arena = 3, .bytes = kGranule}).code(), Code::kExhausted);
  gpus_->Add({.fault = GpuFault::kNever, .verb = GpuVerb::kRecordEvent, .times = 4});
  std::vector<uint64_t> held;
  for (int i = 0; i < 4; ++i)
    held.push_back(Ask(MoverClear{.at = {.arena = 1, .offset = 0}, .bytes = 16}));
  EXPECT_EQ(Do(MoverReport{}).code(), Code::kExhausted);
  gpus_->Release();
  for (const uint64_t request : held)
    EXPECT_OK(AnswerTo(request).status());
  EXPECT_OK(Do(MoverReport{}));
}

TEST_F(MoverTest, RubbishIsAnsweredAndForgotten) {
  Start();
  std::vector<uint8_t> packet =
      EncodeMover({.request = 77, .descriptors = 0, .body = MoverClear{.at = {}, .bytes = 5}});
  packet.pop_back();
  ASSERT_OK(ours_->Send(packet));
  const Got got = AnswerTo(77);
  EXPECT_EQ(got.status().code(), Code::kInvalidArgument);
  EXPECT_THAT(got.status().message(), HasSubstr("clear"));
  EXPECT_THAT(Do(MoverImport{.arena = 1, .bytes = kGranule}).message(), HasSubstr("descriptors"));
  MoverReady ready;
  ready.facts.granularity = 1;
  EXPECT_EQ(Do(ready).code(), Code::kInvalidArgument);
  const auto fd = CreateMemfd("mover-test", 4096);
  EXPECT_THAT(Do(MoverHost{.arena = 1, .bytes = 8192}, fd->get()).message(), HasSubstr("4096"));
  EXPECT_THAT(Do(MoverHost{.arena = 1, .bytes = 100}, fd->get()).message(), HasSubstr("multiple"));
  // A descriptor that the header does not tell of.
  ASSERT_OK(ours_->Send(EncodeMover({.request = 78, .descriptors = 0, .body = MoverReport{}}),
                        fd->get()));
  EXPECT_THAT(AnswerTo(78).status().message(), HasSubstr("descriptors"));
  EXPECT_OK(Do(MoverReport{}));
}

TEST_F(MoverTest, WhatIsNotRegisteredIsStaged) {
  Start();
  gpus_->Add({.fault = GpuFault::kOutOfMemory, .verb = GpuVerb::kRegisterHost});
  const Mapping slab = Create(1, kGranule);
  const Mapping host = AddHost(2, kGranule);
  std::ranges::copy(RandomBytes(kGranule, 3), host.data());
  // Two requests of many pieces each, one of small copies, at the same time.
  constexpr uint64_t kHalf = kGranule / 2;
  MoverCopies small;
  for (uint64_t at = 0; at < 100'000; at += 1000) {
    small.copies.push_back({.dst = {.arena = 1, .offset = kHalf + at},
                            .src = {.arena = 2, .offset = kHalf + at},
                            .bytes = 1000});
  }
  const uint64_t large = Ask(OneCopy({.arena = 1, .offset = 0}, {.arena = 2, .offset = 0}, kHalf));
  const uint64_t many = Ask(small);
  EXPECT_OK(AnswerTo(large).status());
  EXPECT_OK(AnswerTo(many).status());
  EXPECT_TRUE(std::equal(slab.data(), slab.data() + kHalf + 100'000, host.data()));
  EXPECT_OK(
      Do(OneCopy({.arena = 2, .offset = kHalf + 5}, {.arena = 1, .offset = 17}, kHalf - 100'000)));
  EXPECT_TRUE(
      std::equal(slab.data() + 17, slab.data() + 17 + kHalf - 100'000, host.data() + kHalf + 5));
  const MoverFigures figures = Figures();
  EXPECT_EQ(figures.staged_bytes, kGranule);
  EXPECT_EQ(figures.direct_bytes, 0u);
  EXPECT_EQ(figures.host_bytes, kGranule);
  EXPECT_EQ(figures.registered_bytes, 0u);
  EXPECT_THAT(figures.registration, HasSubstr("out of memory"));
}

TEST_F(MoverTest, CopiesInAndOutShareTheRing) {
  Start();
  gpus_->Add({.fault = GpuFault::kOutOfMemory, .verb = GpuVerb::kRegisterHost});
  const Mapping slab = Create(1, kGranule);
  const Mapping from = AddHost(2, kGranule);
  const Mapping to = AddHost(3, kGranule);
  std::ranges::copy(RandomBytes(kGranule, 4), from.data());
  std::ranges::copy(RandomBytes(kGranule / 2, 5), slab.data());
  MoverCopies both;
  for (uint64_t at = 0; at < kGranule / 2; at += 64u << 10) {
    both.copies.push_back({.dst = {.arena = 1, .offset = kGranule / 2 + at},
                           .src = {.arena = 2, .offset = at},
                           .bytes = 64u << 10});
    both.copies.push_back(
        {.dst = {.arena = 3, .offset = at}, .src = {.arena = 1, .offset = at}, .bytes = 64u << 10});
  }
  EXPECT_OK(Do(both));
  EXPECT_TRUE(std::equal(slab.data() + kGranule / 2, slab.data() + kGranule, from.data()));
  EXPECT_TRUE(std::equal(slab.data(), slab.data() + kGranule / 2, to.data()));
}

TEST_F(MoverTest, ACopyOverPiecesOfBothKindsIsWhole) {
  Start();
  // Three of the eight pieces are registered, the fourth is refused.
  gpus_->Add({.fault = GpuFault::kOutOfMemory, .verb = GpuVerb::kRegisterHost, .skip = 3});
  const Mapping slab = Create(1, kGranule);
  const Mapping host = AddHost(2, kGranule);
  AwaitRegistered(3 * kPieceBytes);
  while (Figures().registration.empty())
    ASSERT_FALSE(HasFailure());
  std::ranges::copy(RandomBytes(kGranule, 6), host.data());
  EXPECT_OK(Do(OneCopy({.arena = 1, .offset = 0}, {.arena = 2, .offset = 100}, kGranule - 100)));
  EXPECT_TRUE(std::equal(host.data() + 100, host.data() + kGranule, slab.data()));
  const MoverFigures figures = Figures();
  EXPECT_EQ(figures.direct_bytes, 3 * kPieceBytes - 100);
  EXPECT_EQ(figures.staged_bytes, 5 * kPieceBytes);
  EXPECT_EQ(figures.registered_bytes, 3 * kPieceBytes);
  EXPECT_OK(Do(MoverRelease{.arena = 2}));
  EXPECT_EQ(Figures().host_bytes, 0u);
  EXPECT_EQ(Figures().registered_bytes, 0u);
}

TEST_F(MoverTest, StagingThatFailsFailsItsRequestAlone) {
  Start();
  gpus_->Add({.fault = GpuFault::kOutOfMemory, .verb = GpuVerb::kRegisterHost});
  const Mapping slab = Create(1, kGranule);
  const Mapping host = AddHost(2, kGranule);
  const MoverCopies copies =
      OneCopy({.arena = 1, .offset = 0}, {.arena = 2, .offset = 0}, kGranule);
  gpus_->Add({.fault = GpuFault::kOutOfMemory, .verb = GpuVerb::kCopy, .skip = 5, .times = 1});
  EXPECT_EQ(Do(copies).code(), Code::kExhausted);
  std::ranges::copy(RandomBytes(kGranule, 7), host.data());
  EXPECT_OK(Do(copies));
  EXPECT_TRUE(std::equal(host.data(), host.data() + kGranule, slab.data()));
}

TEST_F(MoverTest, AReleaseWaitsForWhatIsStaged) {
  Start();
  gpus_->Add({.fault = GpuFault::kOutOfMemory, .verb = GpuVerb::kRegisterHost});
  Create(1, kGranule);
  const Mapping host = AddHost(2, kGranule);
  const uint64_t copy =
      Ask(OneCopy({.arena = 2, .offset = 0}, {.arena = 1, .offset = 0}, kGranule));
  const uint64_t release = Ask(MoverRelease{.arena = 2});
  EXPECT_OK(AnswerTo(release).status());
  ASSERT_TRUE(answers_.contains(copy));
  EXPECT_OK(AnswerTo(copy).status());
}

TEST_F(MoverTest, HostArenasTakePartInCopiesAloneAndOnlyAsTheyMay) {
  Start();
  Create(1, kGranule);
  const auto fd = CreateMemfd("mover-test", kGranule);
  EXPECT_OK(Do(MoverHost{.arena = 2, .bytes = kGranule, .writable = false}, fd->get()));
  AddHost(3, kGranule);
  const auto refused = [&](MoverBody body, const char* words) {
    const Status status = Do(std::move(body));
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << status.ToString();
    EXPECT_THAT(status.message(), HasSubstr(words));
  };
  refused(OneCopy({.arena = 2, .offset = 0}, {.arena = 1, .offset = 0}, 16), "only read");
  refused(OneCopy({.arena = 3, .offset = 0}, {.arena = 2, .offset = 0}, 16), "no side");
  refused(MoverClear{.at = {.arena = 3, .offset = 0}, .bytes = 16}, "of the device");
  EXPECT_OK(Do(OneCopy({.arena = 1, .offset = 0}, {.arena = 2, .offset = 0}, 16)));
}

TEST_F(MoverTest, AHostArenaThatIsNotToBeRegisteredIsCopiedByStaging) {
  Start();
  const Mapping device = Create(1, kGranule);
  const auto fd = CreateMemfd("mover-test", kGranule);
  EXPECT_OK(Do(MoverHost{.arena = 2, .bytes = kGranule, .writable = true, .registered = false},
               fd->get()));
  const Mapping host = *Mapping::Of(fd->get(), 0, kGranule, Protection::kReadWrite);
  host.bytes()[kGranule - 1] = 7;
  EXPECT_OK(Do(OneCopy({.arena = 1, .offset = 0}, {.arena = 2, .offset = 0}, kGranule)));
  EXPECT_EQ(device.bytes()[kGranule - 1], 7);
  const MoverFigures figures = Figures();
  EXPECT_EQ(figures.registered_bytes, 0u);
  EXPECT_EQ(figures.host_bytes, kGranule);
  EXPECT_EQ(figures.staged_bytes, kGranule);
}

TEST_F(MoverTest, WhatCannotStartIsTold) {
  gpus_->Add({.fault = GpuFault::kOutOfMemory, .verb = GpuVerb::kRegisterHost});
  auto gpu = gpus_->Open(HostGpuUuid(0));
  auto pair = MoverSocket::Pair();
  ASSERT_TRUE(gpu && pair);
  EXPECT_EQ(ServeMover(*std::move(gpu), pair->second, {}).code(), Code::kExhausted);
  const auto packet = pair->first.Receive();
  ASSERT_TRUE(packet && packet->has_value());
  const auto message = DecodeMover((*packet)->bytes);
  ASSERT_TRUE(message);
  const auto* ready = std::get_if<MoverReady>(&message->body);
  ASSERT_NE(ready, nullptr);
  EXPECT_EQ(ready->status.code(), Code::kExhausted);
  EXPECT_THAT(ready->status.message(), HasSubstr("staging"));
}

TEST_F(MoverTest, ARegistrationLeavesTheNumberFreeWhenItIsReleased) {
  Start();
  const auto fd = CreateMemfd("mover-test", 1u << 20);
  // Released while it is being registered, it is gone when both are answered.
  const uint64_t second =
      Ask(MoverHost{.arena = 2, .bytes = 1u << 20, .writable = false}, fd->get());
  const uint64_t release = Ask(MoverRelease{.arena = 2});
  EXPECT_OK(AnswerTo(second).status());
  EXPECT_OK(AnswerTo(release).status());
  EXPECT_OK(Do(MoverHost{.arena = 2, .bytes = 1u << 20, .writable = false}, fd->get()));
}

TEST_F(MoverTest, ADeadContextAnswersEverythingAndEndsTheMover) {
  for (const GpuVerb verb :
       {GpuVerb::kCopy, GpuVerb::kQueryEvent, GpuVerb::kRecordEvent, GpuVerb::kMemory,
        GpuVerb::kRegisterHost, GpuVerb::kCreateSlab, GpuVerb::kUnmapSlab}) {
    SCOPED_TRACE(static_cast<int>(verb));
    Start();
    Create(1, kGranule);
    Create(2, kGranule);
    const auto fd = CreateMemfd("mover-test", 1u << 20);
    gpus_->Add({.fault = GpuFault::kSticky, .verb = verb, .times = 1});
    std::vector<uint64_t> asked;
    asked.push_back(Ask(OneCopy({.arena = 1, .offset = 0}, {.arena = 2, .offset = 0}, kGranule)));
    asked.push_back(Ask(MoverHost{.arena = 5, .bytes = 1u << 20}, fd->get()));
    asked.push_back(Ask(MoverRelease{.arena = 1}));
    asked.push_back(Ask(MoverReport{}));
    asked.push_back(Ask(MoverCreate{.arena = 6, .bytes = kGranule}));
    // It ends by itself; what it did not take any more has no answer but the end.
    thread_.join();
    EXPECT_EQ(ended_.code(), Code::kStale);
    for (auto packet = ours_->Receive(); packet && packet->has_value(); packet = ours_->Receive()) {
      const auto message = DecodeMover((*packet)->bytes);
      ASSERT_TRUE(message);
      EXPECT_EQ(std::erase(asked, message->request), 1u);
      const Code code = std::get<MoverAnswer>(message->body).status.code();
      EXPECT_TRUE(code == Code::kOk || code == Code::kStale) << CodeName(code);
    }
    answers_.clear();
    gpus_->ClearRules();
  }
}

TEST_F(MoverTest, WhatHangsHoldsNobodyElseUp) {
  Start();
  Create(1, kGranule);
  gpus_->Add({.fault = GpuFault::kNever, .verb = GpuVerb::kRecordEvent, .times = 1});
  const uint64_t hung = Ask(MoverClear{.at = {.arena = 1, .offset = 0}, .bytes = 16});
  const uint64_t release = Ask(MoverRelease{.arena = 1});
  EXPECT_OK(Do(MoverReport{}));
  Create(2, kGranule);
  EXPECT_FALSE(answers_.contains(hung));
  EXPECT_FALSE(answers_.contains(release));
  gpus_->Release();
  EXPECT_OK(AnswerTo(hung).status());
  EXPECT_OK(AnswerTo(release).status());
}

}  // namespace
}  // namespace terrace
