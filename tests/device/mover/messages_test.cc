#include "tiers/device/mover/messages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"

namespace terrace {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

MoverReady Ready() {
  MoverReady ready;
  ready.facts.uuid.bytes.fill(7);
  ready.facts.name = "a GPU";
  ready.facts.driver = "CUDA driver 13.0";
  ready.facts.total_bytes = uint64_t{80} << 30;
  ready.facts.slabs = true;
  ready.facts.granularity = 2u << 20;
  ready.facts.registration_bytes = uint64_t{8} << 30;
  return ready;
}

MoverAnswer Answer() {
  MoverAnswer answer;
  answer.status = Status(Code::kExhausted, "device memory: 8 bytes asked for");
  answer.figures.memory = {.free_bytes = 5, .total_bytes = 9};
  answer.handle.fill(3);
  return answer;
}

// One of each, in the order of their numbers, with names as errors have them.
std::vector<std::pair<const char*, MoverBody>> EachBody() {
  IpcHandle handle{};
  handle.fill(0x5c);
  return {
      {"ready", Ready()},
      {"answer", Answer()},
      {"create", MoverCreate{.arena = 3, .bytes = 4096}},
      {"import", MoverImport{.arena = 4, .bytes = uint64_t{1} << 40}},
      {"allocate", MoverAllocate{.arena = 5, .bytes = 1}},
      {"open", MoverOpen{.arena = 6, .bytes = 12, .handle = handle}},
      {"host", MoverHost{.arena = 7, .bytes = 1u << 30, .writable = true}},
      {"release", MoverRelease{.arena = 8}},
      {"copies", MoverCopies{.any_order = true,
                             .copies = {{.dst = {.arena = 1, .offset = 2},
                                         .src = {.arena = 3, .offset = 4},
                                         .bytes = 5},
                                        {.dst = {.arena = 6, .offset = 7},
                                         .src = {.arena = 8, .offset = 9},
                                         .bytes = 10}}}},
      {"clear", MoverClear{.at = {.arena = 1, .offset = 1u << 30}, .bytes = 77}},
      {"pages",
       MoverPages{.gather = false,
                  .block_stride = 64,
                  .block_bytes = 32,
                  .segment_stride = 48,
                  .bases = {{.arena = 1, .offset = 2}, {.arena = 3, .offset = 4}},
                  .blocks = {{.page = {.arena = 5, .offset = 6}, .block = 7, .bytes = 16}}}},
      {"report", MoverReport{}},
  };
}

std::vector<uint8_t> PacketOf(MoverBody body) {
  return EncodeMover({.request = 0x0102030405060708, .descriptors = 1, .body = std::move(body)});
}

// With the header's count of bytes made right, so that only the body is wrong.
Result<MoverMessage> DecodeBody(std::vector<uint8_t> packet) {
  const auto bytes = static_cast<uint32_t>(packet.size() - kMoverHeaderBytes);
  std::memcpy(packet.data(), &bytes, sizeof bytes);
  return DecodeMover(packet);
}

TEST(MoverMessages, ComeBackAsTheyWereSent) {
  const auto bodies = EachBody();
  ASSERT_EQ(bodies.size(), std::variant_size_v<MoverBody>);
  for (size_t i = 0; i < bodies.size(); ++i) {
    const auto& [name, body] = bodies[i];
    ASSERT_EQ(body.index(), i);
    const std::vector<uint8_t> packet = PacketOf(body);
    const auto message = DecodeMover(packet);
    ASSERT_TRUE(message) << name << ": " << message.error().ToString();
    EXPECT_EQ(message->request, 0x0102030405060708u);
    EXPECT_EQ(message->descriptors, 1);
    EXPECT_EQ(message->body.index(), i);
    // All of it: what was decoded is sent as the same bytes.
    EXPECT_EQ(EncodeMover(*message), packet) << name;
  }
  const auto copies = DecodeMover(PacketOf(bodies[8].second));
  EXPECT_EQ(std::get<MoverCopies>(copies->body), std::get<MoverCopies>(bodies[8].second));
  const auto answer = DecodeMover(PacketOf(Answer()));
  EXPECT_EQ(std::get<MoverAnswer>(answer->body).status, Answer().status);
}

TEST(MoverMessages, OneThatEndsEarlyNamesTheFieldThatIsMissing) {
  for (const auto& [name, body] : EachBody()) {
    const std::vector<uint8_t> whole = PacketOf(body);
    for (size_t bytes = kMoverHeaderBytes; bytes < whole.size(); ++bytes) {
      const auto message =
          DecodeBody({whole.begin(), whole.begin() + static_cast<ptrdiff_t>(bytes)});
      ASSERT_FALSE(message);
      EXPECT_EQ(message.error().code(), Code::kInvalidArgument);
      EXPECT_THAT(message.error().message(), StartsWith(std::string(name) + ": "));
    }
    for (size_t bytes = 0; bytes < kMoverHeaderBytes; ++bytes)
      EXPECT_FALSE(DecodeMover({whole.data(), bytes}));
  }
  const std::vector<uint8_t> copies = PacketOf(EachBody()[8].second);
  const auto cut = DecodeBody({copies.begin(), copies.end() - 1});
  EXPECT_EQ(cut.error().message(), "copies: copies[1].bytes: the message ends before it");
}

TEST(MoverMessages, WhatCannotBeIsRefusedByItsName) {
  const auto changed = [](size_t body, size_t at, std::vector<uint8_t> bytes) {
    std::vector<uint8_t> packet = PacketOf(EachBody()[body].second);
    std::copy(bytes.begin(), bytes.end(),
              packet.begin() + static_cast<ptrdiff_t>(kMoverHeaderBytes + at));
    const auto message = DecodeBody(packet);
    return message ? std::string("taken") : message.error().message();
  };
  const std::vector<uint8_t> zeros(8, 0);
  EXPECT_EQ(changed(0, 0, {2}), "ready: version: is another build's");
  EXPECT_EQ(changed(1, 0, {kCodeCount}), "answer: status: is no code");
  EXPECT_EQ(changed(1, 0, {0}), "answer: status: is ok and has words");
  EXPECT_EQ(changed(2, 4, zeros), "create: bytes: is 0");
  EXPECT_EQ(changed(6, 12, {2}), "host: writable: is neither 0 nor 1");
  EXPECT_EQ(changed(8, 0, {7}), "copies: any_order: is neither 0 nor 1");
  EXPECT_EQ(changed(8, 5 + 24, zeros), "copies: copies[0].bytes: is 0");
  EXPECT_EQ(changed(8, 1, {0xff, 0xff, 0, 0}), "copies: copies: are too many");
  EXPECT_EQ(changed(8, 1, {0, 8, 0, 0}), "copies: copies: are more than the message has");
  EXPECT_EQ(changed(8, 1, {1, 0, 0, 0}), "copies: end: bytes behind the last field");
  EXPECT_EQ(changed(10, 25, {0, 0xff, 0, 0}), "pages: bases: are too many");
}

TEST(MoverMessages, AHeaderIsHeldAgainstItsPacket) {
  std::vector<uint8_t> packet = PacketOf(MoverRelease{.arena = 1});
  EXPECT_EQ(RequestOfMover(packet), 0x0102030405060708u);
  EXPECT_EQ(RequestOfMover({packet.data(), 10}), 0u);
  std::vector<uint8_t> other = packet;
  other[0] = 5;
  EXPECT_THAT(DecodeMover(other).error().message(), HasSubstr("release: bytes: 5"));
  other = packet;
  other[4] = 99;
  EXPECT_THAT(DecodeMover(other).error().message(), HasSubstr("type: 99"));
  other = packet;
  other[6] = 2;
  EXPECT_THAT(DecodeMover(other).error().message(), HasSubstr("release: descriptors: 2"));
  EXPECT_THAT(DecodeMover(std::vector<uint8_t>(kMostMoverBytes + 1)).error().message(),
              HasSubstr("packet"));
}

TEST(MoverMessages, TheLargestFitIntoAPacketAndLongTextsAreCut) {
  MoverCopies copies;
  copies.copies.assign(kMostDeviceCopies, {.dst = {}, .src = {}, .bytes = 1});
  EXPECT_LE(PacketOf(copies).size(), kMostMoverBytes);
  MoverPages pages;
  pages.bases.resize(kMostPagedSegments);
  pages.blocks.resize(kMostDeviceBlocks);
  EXPECT_LE(PacketOf(pages).size(), kMostMoverBytes);
  EXPECT_TRUE(DecodeMover(PacketOf(pages)));
  MoverAnswer answer;
  answer.status = Status(Code::kInternal, std::string(5000, 'x'));
  const auto cut = DecodeMover(PacketOf(answer));
  ASSERT_TRUE(cut);
  EXPECT_EQ(std::get<MoverAnswer>(cut->body).status.message(), std::string(kMostMoverText, 'x'));
}

TEST(MoverMessages, RubbishIsRefusedOrIsAMessage) {
  Random random(1);
  const auto bodies = EachBody();
  size_t taken = 0;
  for (int i = 0; i < 50'000; ++i) {
    std::vector<uint8_t> packet = PacketOf(bodies[random.Below(bodies.size())].second);
    for (uint64_t flips = 1 + random.Below(4); flips > 0; --flips)
      packet[random.Below(packet.size())] = static_cast<uint8_t>(random());
    const auto message = DecodeMover(packet);
    if (!message) continue;
    ++taken;
    // What is taken is what was sent.
    ASSERT_EQ(EncodeMover(*message), packet);
  }
  EXPECT_GT(taken, 1000u);
}

}  // namespace
}  // namespace terrace
