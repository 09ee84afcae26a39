#include "tiers/device/mover/socket.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <vector>

#include "tests/device/mover/raw_packet.h"

namespace terrace {
namespace {

class MoverSocketTest : public testing::Test {
 protected:
  void SetUp() override {
    auto pair = MoverSocket::Pair();
    ASSERT_TRUE(pair);
    sockets_.emplace(*std::move(pair));
  }
  const MoverSocket& daemon() const { return sockets_->first; }
  const MoverSocket& mover() const { return sockets_->second; }
  void CloseMover() {
    auto [daemon, mover] = *std::move(sockets_);
    sockets_.emplace(std::move(daemon), MoverSocket(UniqueFd()));
  }
  static int LowestFreeDescriptor() {
    const UniqueFd fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    return fd.get();
  }

  std::optional<std::pair<MoverSocket, MoverSocket>> sockets_;
};

TEST_F(MoverSocketTest, PacketsComeWholeAndInOrder) {
  const auto nothing = mover().Receive();
  ASSERT_TRUE(nothing);
  EXPECT_FALSE(nothing->has_value());
  for (const size_t bytes : {size_t{1}, size_t{100}, kMostMoverBytes}) {
    std::vector<uint8_t> packet(bytes);
    for (size_t i = 0; i < bytes; ++i)
      packet[i] = static_cast<uint8_t>(i * 7 + bytes);
    ASSERT_EQ(daemon().Send(packet), Status());
    ASSERT_EQ(mover().Send(std::vector<uint8_t>{9}), Status());
    const auto got = mover().Receive();
    ASSERT_TRUE(got && got->has_value());
    EXPECT_EQ((*got)->bytes, packet);
    EXPECT_FALSE((*got)->fd);
    const auto back = daemon().Receive();
    ASSERT_TRUE(back && back->has_value());
    EXPECT_EQ((*back)->bytes, std::vector<uint8_t>{9});
  }
}

TEST_F(MoverSocketTest, ADescriptorComesWithItsPacketAndClosesOnExec) {
  const auto memfd = CreateMemfd("socket-test", 12'345);
  ASSERT_TRUE(memfd);
  ASSERT_EQ(daemon().Send(std::vector<uint8_t>{1}), Status());
  ASSERT_EQ(daemon().Send(std::vector<uint8_t>{2}, memfd->get()), Status());
  const auto first = mover().Receive();
  ASSERT_TRUE(first && first->has_value());
  EXPECT_FALSE((*first)->fd);
  const auto second = mover().Receive();
  ASSERT_TRUE(second && second->has_value());
  struct stat file {};
  ASSERT_EQ(::fstat((*second)->fd.get(), &file), 0);
  EXPECT_EQ(file.st_size, 12'345);
  EXPECT_NE(::fcntl((*second)->fd.get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_F(MoverSocketTest, WhatIsTooMuchIsRefusedAndLeavesNoDescriptors) {
  const int lowest = LowestFreeDescriptor();
  ASSERT_TRUE(SendRaw(daemon(), kMostMoverBytes + 1, 0));
  ASSERT_TRUE(SendRaw(daemon(), 10, 2));
  ASSERT_TRUE(SendRaw(daemon(), 10, 9));
  ASSERT_TRUE(SendRaw(daemon(), kMostMoverBytes + 1, 1));
  for (int i = 0; i < 4; ++i)
    EXPECT_EQ(mover().Receive().status().code(), Code::kInvalidArgument) << i;
  EXPECT_EQ(LowestFreeDescriptor(), lowest);
  ASSERT_EQ(daemon().Send(std::vector<uint8_t>{3}), Status());
  EXPECT_TRUE(mover().Receive()->has_value());
}

TEST_F(MoverSocketTest, AFullSocketIsExhaustedAndGoesOnWhenItIsRead) {
  const std::vector<uint8_t> packet(kMostMoverBytes, 5);
  size_t sent = 0;
  Status status;
  while (sent < 10'000 && (status = daemon().Send(packet)).ok())
    ++sent;
  EXPECT_EQ(status.code(), Code::kExhausted);
  EXPECT_GE(sent, 1u);
  for (size_t i = 0; i < sent; ++i)
    ASSERT_TRUE(mover().Receive()->has_value());
  EXPECT_FALSE(mover().Receive()->has_value());
  EXPECT_EQ(daemon().Send(packet), Status());
}

TEST_F(MoverSocketTest, AClosedEndIsToldAfterWhatItSent) {
  for (const bool unread : {false, true}) {
    SetUp();
    if (unread) {
      ASSERT_EQ(daemon().Send(std::vector<uint8_t>{3}), Status());
    }
    ASSERT_EQ(mover().Send(std::vector<uint8_t>{4}), Status());
    CloseMover();
    const auto last = daemon().Receive();
    ASSERT_TRUE(last && last->has_value()) << unread << last.status().ToString();
    EXPECT_EQ((*last)->bytes, std::vector<uint8_t>{4});
    EXPECT_EQ(daemon().Receive().status().code(), Code::kUnavailable);
    EXPECT_EQ(daemon().Send(std::vector<uint8_t>{5}).code(), Code::kUnavailable);
  }
}

}  // namespace
}  // namespace terrace
