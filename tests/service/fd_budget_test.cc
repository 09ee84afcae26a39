// Descriptors in flight over socket pairs: what is charged, to whom, and until when.
#include "daemon/service/fd_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <cstdarg>
#include <cstring>

#include "tests/service/wire_client.h"

namespace {

thread_local size_t looks = 0;  // At what a peer has not taken.

}  // namespace

// In place of the C library's, which is this call and nothing else.
extern "C" int ioctl(int fd, unsigned long request, ...) noexcept {
  va_list arguments;
  va_start(arguments, request);
  void* argument = va_arg(arguments, void*);
  va_end(arguments);
  if (request == SIOCOUTQ) ++looks;
  return static_cast<int>(::syscall(SYS_ioctl, fd, request, argument));
}

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
  link.account.Look(kNow);
  EXPECT_EQ(budget.used(), 5u);
  link.Take();
  link.account.Look(kNow);
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
  budget.Sweep();
  EXPECT_EQ(budget.used(), 6u);
  EXPECT_EQ(budget.ends_kept(), 1u);
  handed_on.Reset();
  budget.Sweep();
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
  budget.Sweep();
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

TEST(FdBudget, WhoTookSomeBetweenTwoSendsIsNotIdle) {
  FdBudget budget;
  Link link(budget, kAlice);
  link.Send(1);
  link.account.Queue(1);
  link.Take();
  link.account.Sent(link.daemon.fd(), 1, 5 * kNow);
  EXPECT_EQ(link.account.idle_since(), 5 * kNow);
}

// Of a user: connections whose descriptors nobody takes, every second of which has ended.
std::vector<std::unique_ptr<Link>> Hoard(FdBudget& budget, uid_t user, int connections) {
  std::vector<std::unique_ptr<Link>> links;
  for (int i = 0; i < connections; ++i) {
    links.push_back(std::make_unique<Link>(budget, user));
    Link& link = *links.back();
    while (link.account.held() < 4 && link.account.MayQueue(1, kNow))
      link.Send(1);
    if (i % 2 == 0) link.Leave();
  }
  return links;
}

TEST(FdBudget, HoardersTakeHalfFromOtherUsersAndAllFromTheirOwn) {
  FdBudget budget;
  budget.SetTotal(800);
  std::vector<std::unique_ptr<Link>> hoarders = Hoard(budget, kAlice, 200);
  EXPECT_GT(budget.ends_kept(), 30u);
  EXPECT_LE(budget.used(), 400u + budget.ends_kept());
  Link same(budget, kAlice);
  EXPECT_FALSE(same.account.MayQueue(4, kNow));
  EXPECT_THAT(same.account.WhyShort().message(),
              testing::HasSubstr("connections of user " + std::to_string(kAlice)));
  Link other(budget, kBob);
  EXPECT_TRUE(other.account.MayQueue(wire::kMaxFds, kNow));

  hoarders.clear();
  budget.Sweep();
  EXPECT_EQ(budget.used(), 0u);
  EXPECT_TRUE(same.account.MayQueue(wire::kMaxFds, kNow));
}

TEST(FdBudget, AUserWithTooManyEndsKeptIsGivenNothing) {
  FdBudget budget;
  std::vector<std::unique_ptr<Link>> ended;
  Link open(budget, kAlice);
  while (open.account.MayQueue(1, kNow)) {
    ASSERT_LE(ended.size(), FdBudget::kMaxEndsKept);
    ended.push_back(std::make_unique<Link>(budget, kAlice));
    ended.back()->Send(1);
    ended.back()->Leave();
    ended.back()->daemon.Close();
  }
  EXPECT_EQ(budget.ends_kept(), FdBudget::kMaxEndsKept);
  EXPECT_TRUE(open.account.TooManyEnds());
  Link other(budget, kBob);
  EXPECT_TRUE(other.account.MayQueue(wire::kMaxFds, kNow));
  ended.pop_back();
  budget.Sweep();
  EXPECT_FALSE(open.account.TooManyEnds());
  EXPECT_TRUE(open.account.MayQueue(1, kNow));
}

// A look is a system call of the thread that everybody waits for.
TEST(FdBudget, WhoIsShortLooksAtFewAndNeverAtEndsOrOtherUsers) {
  FdBudget budget;
  budget.SetTotal(1600);
  const std::vector<std::unique_ptr<Link>> alices = Hoard(budget, kAlice, 300);
  const std::vector<std::unique_ptr<Link>> bobs = Hoard(budget, kBob, 6);
  Link link(budget, kAlice);
  const size_t before = looks;
  constexpr MonotonicNs kLater = 2 * kNow;
  for (int i = 0; i < 1000; ++i)
    EXPECT_FALSE(link.account.MayQueue(100, kLater));
  EXPECT_GT(looks, before);
  EXPECT_LE(looks, before + FdBudget::kLooksAtATime);
}

TEST(FdBudget, WhatSomebodyOfItsUserTookIsFoundInSoManyLooks) {
  FdBudget budget;
  budget.SetTotal(1600);
  const std::vector<std::unique_ptr<Link>> hoarders = Hoard(budget, kAlice, 300);
  Link link(budget, kAlice);
  for (const std::unique_ptr<Link>& hoarder : hoarders) {
    if (hoarder->account.in_flight() > 0) hoarder->peer.Reset();
  }
  MonotonicNs now = 2 * kNow;
  bool found = false;
  for (size_t i = 0; i <= hoarders.size() / FdBudget::kLooksAtATime && !found; ++i)
    found = link.account.MayQueue(100, now += FdBudget::kLookEvery);
  EXPECT_TRUE(found);
}

TEST(FdBudget, EndsAreLookedAtSoManyATimeAndAllInTurn) {
  FdBudget budget;
  std::vector<std::unique_ptr<Link>> ended;
  for (uid_t user = kBob; ended.size() < 2 * FdBudget::kEndsAtATime + 10; ++user) {
    ended.push_back(std::make_unique<Link>(budget, user));
    ended.back()->Send(1);
    ended.back()->Leave();
    ended.back()->daemon.Close();
  }
  for (int sweep = 0; sweep < 2; ++sweep) {
    const size_t before = looks;
    budget.Sweep();
    EXPECT_EQ(looks, before + FdBudget::kEndsAtATime);
  }
  ended.clear();
  for (int sweep = 0; sweep < 3; ++sweep)
    budget.Sweep();
  EXPECT_EQ(budget.ends_kept(), 0u);
  EXPECT_EQ(budget.used(), 0u);
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
