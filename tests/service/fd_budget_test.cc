// Descriptors in flight over socket pairs: what is charged, to whom, and until when.
#include "daemon/service/fd_budget.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <cstring>

#include "tests/service/wire_client.h"

namespace terrace {
namespace {

constexpr uid_t kAlice = 64301;
constexpr uid_t kBob = 64302;
constexpr MonotonicNs kNow = kNsPerSecond;

// One connection of a user: its account, the daemon's end and the peer's.
struct Link {
  Link(FdBudget& budget, uid_t user) : account(budget, user) {
    int ends[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    daemon = WireClient(UniqueFd(ends[0]));
    peer = UniqueFd(ends[1]);
  }
  // One frame with so many copies of a descriptor.
  void Send(size_t count) {
    account.Queue(count);
    account.Look(kNow);
    EXPECT_TRUE(daemon.SendBytes("x", std::vector<int>(count, STDERR_FILENO)));
    account.Sent(daemon.fd(), count, kNow);
  }
  void Leave() { account.Leave(UniqueFd(::dup(daemon.fd())), kNow); }
  void Take() {
    char bytes[64];
    EXPECT_GT(::recv(peer.get(), bytes, sizeof bytes, MSG_DONTWAIT), 0);
  }

  FdBudget::Account account;
  WireClient daemon;
  UniqueFd peer;
};

TEST(FdBudget, WhatIsInFlightIsChargedUntilItIsTaken) {
  FdBudget budget;
  Link link(budget, kAlice);
  link.Send(5);
  budget.Recount(kNow);
  EXPECT_EQ(budget.used(), 5u);
  link.Take();
  budget.Recount(kNow);
  EXPECT_EQ(budget.used(), 0u);
}

TEST(FdBudget, AnEndIsKeptUntilNobodyHasThePeersQueue) {
  FdBudget budget;
  Link link(budget, kAlice);
  link.Send(5);
  link.Leave();
  link.daemon.Close();
  EXPECT_EQ(budget.used(), 6u) << "the end that is kept counts too";
  // Handed on, as to another process.
  UniqueFd handed_on(::dup(link.peer.get()));
  link.peer.Reset();
  budget.Recount(kNow);
  EXPECT_EQ(budget.used(), 6u);
  EXPECT_EQ(budget.ends_kept(), 1u);
  handed_on.Reset();
  budget.Recount(kNow);
  EXPECT_EQ(budget.used(), 0u);
  EXPECT_EQ(budget.ends_kept(), 0u);
}

TEST(FdBudget, APeerThatSentItsOwnSocketIsNotKeptForEver) {
  FdBudget budget;
  Link link(budget, kAlice);
  link.Send(1);
  EXPECT_TRUE(WireClient(UniqueFd(::dup(link.peer.get()))).SendBytes("x", {link.peer.get()}));
  link.Leave();
  link.daemon.Close();
  link.peer.Reset();
  budget.Recount(kNow);
  EXPECT_EQ(budget.used(), 0u);
}

TEST(FdBudget, WhoTookNothingIsKnownByTheTime) {
  FdBudget budget;
  Link link(budget, kAlice);
  link.Send(1);
  link.account.Look(kNow);
  link.Send(1);
  link.account.Look(3 * kNow);
  EXPECT_EQ(link.account.idle_since(), kNow);
  char byte;
  EXPECT_EQ(::recv(link.peer.get(), &byte, 1, MSG_DONTWAIT), 1);
  link.account.Look(4 * kNow);
  EXPECT_EQ(link.account.in_flight(), 2u) << "which of them it took is not known";
  EXPECT_EQ(link.account.idle_since(), 4 * kNow);
}

TEST(FdBudget, HoardersLeaveRoomForAnotherConnectionAndMoreForAnotherUser) {
  FdBudget budget;
  budget.SetTotal(4000);
  std::vector<std::unique_ptr<Link>> hoarders;
  for (int i = 0; i < 100; ++i) {
    hoarders.push_back(std::make_unique<Link>(budget, kAlice));
    Link& hoarder = *hoarders.back();
    while (hoarder.account.MayQueue(1, kNow))
      hoarder.account.Queue(1);
  }
  EXPECT_LE(budget.used(), 2000u);
  Link same(budget, kAlice);
  EXPECT_TRUE(same.account.MayQueue(FdBudget::kFewFds, kNow));
  Link other(budget, kBob);
  EXPECT_TRUE(other.account.MayQueue(wire::kMaxFds, kNow));
}

TEST(FdBudget, AUserThatHoldsNothingHasAReplyOfAnySize) {
  FdBudget budget;
  budget.SetTotal(wire::kMaxFds);
  Link link(budget, kAlice);
  EXPECT_TRUE(link.account.MayQueue(wire::kMaxFds, kNow));
  link.Send(wire::kMaxFds);
  Link second(budget, kAlice);
  EXPECT_FALSE(second.account.MayQueue(1, kNow));
  link.Take();
  EXPECT_TRUE(second.account.MayQueue(wire::kMaxFds, kNow + kNsPerSecond));
}

}  // namespace
}  // namespace terrace
