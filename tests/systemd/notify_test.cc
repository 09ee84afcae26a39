#include "daemon/service/systemd/notify.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/support/daemon_process.h"
#include "tests/systemd/datagram_receiver.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr pid_t kSelf = 4711;

std::string AbstractName() {
  return "@terrace-test-" + std::to_string(::getpid());
}

TEST(Notify, WithoutAManagerItIsSilent) {
  Result<Notifier> notifier = Notifier::Open({}, kSelf);
  ASSERT_EQ(notifier.status(), Status());
  EXPECT_FALSE(notifier->speaks());
  EXPECT_EQ(notifier->alive_every().count(), 0);
  notifier->Ready("nobody hears it");
}

TEST(Notify, MessagesReachAPathAndAnAbstractAddress) {
  const TemporaryFolder folder;
  for (const std::string& address : {folder.path() + "/notify", AbstractName()}) {
    const DatagramReceiver manager(address);
    ASSERT_TRUE(manager.bound()) << address;
    Result<Notifier> notifier = Notifier::Open({address, "", ""}, kSelf);
    ASSERT_EQ(notifier.status(), Status());
    EXPECT_TRUE(notifier->speaks());
    notifier->Ready("up");
    EXPECT_EQ(manager.Receive(), "READY=1\nSTATUS=up");
    notifier->Reloading(1'234'567'890);
    EXPECT_EQ(manager.Receive(), "RELOADING=1\nMONOTONIC_USEC=1234567");
    notifier->Describe("3 clients");
    EXPECT_EQ(manager.Receive(), "STATUS=3 clients");
    notifier->Alive();
    EXPECT_EQ(manager.Receive(), "WATCHDOG=1");
    notifier->Stopping();
    EXPECT_EQ(manager.Receive(), "STOPPING=1\nSTATUS=Stopping");
  }
}

TEST(Notify, AStatusCannotSpeakAsAnotherVariable) {
  const DatagramReceiver manager(AbstractName());
  ASSERT_TRUE(manager.bound());
  Result<Notifier> notifier = Notifier::Open({AbstractName(), "", ""}, kSelf);
  ASSERT_EQ(notifier.status(), Status());
  notifier->Describe("one\nMAINPID=1");
  EXPECT_EQ(manager.Receive(), "STATUS=one MAINPID=1");
}

TEST(Notify, AnAddressThatCannotBeIsRefused) {
  for (const std::string& address :
       {std::string("relative"), std::string("@"), "/" + std::string(108, 'x'),
        "@" + std::string(108, 'x'), std::string("vsock:2:1")}) {
    const Result<Notifier> notifier = Notifier::Open({address, "", ""}, kSelf);
    EXPECT_EQ(notifier.status().code(), Code::kInvalidArgument) << address;
    EXPECT_THAT(notifier.status().message(), HasSubstr("NOTIFY_SOCKET"));
  }
}

TEST(Notify, TheLongestAddressesAreTaken) {
  const std::string name = AbstractName() + std::string(108, 'x');
  const DatagramReceiver manager(name.substr(0, 108));
  ASSERT_TRUE(manager.bound());
  Result<Notifier> notifier = Notifier::Open({name.substr(0, 108), "", ""}, kSelf);
  ASSERT_EQ(notifier.status(), Status());
  notifier->Alive();
  EXPECT_EQ(manager.Receive(), "WATCHDOG=1");
}

TEST(Notify, AManagerThatIsGoneHarmsNobody) {
  Result<Notifier> notifier = Notifier::Open({AbstractName(), "", ""}, kSelf);
  ASSERT_EQ(notifier.status(), Status());
  notifier->Ready("nobody is there");
}

TEST(Notify, AManagerThatIsBehindDoesNotHoldUpTheLoop) {
  const DatagramReceiver manager(AbstractName());
  ASSERT_TRUE(manager.bound());
  Result<Notifier> notifier = Notifier::Open({AbstractName(), "", ""}, kSelf);
  ASSERT_EQ(notifier.status(), Status());
  // More than any queue of it takes; were each waited for, this would take hours.
  for (int i = 0; i < 20'000; ++i) {
    notifier->Alive();
    notifier->Describe("busy");
  }
  EXPECT_EQ(manager.Receive(), "WATCHDOG=1");
}

TEST(Notify, TheWatchdogIsFedTwiceAsOftenAsAsked) {
  const auto every = [](const std::string& usec, const std::string& pid) {
    return Notifier::Open({"/n", usec, pid}, kSelf);
  };
  EXPECT_EQ(every("", "")->alive_every().count(), 0);
  EXPECT_EQ(every("30000000", "")->alive_every().count(), 15'000);
  EXPECT_EQ(every("30000000", "4711")->alive_every().count(), 15'000);
  EXPECT_EQ(every("30000000", "4712")->alive_every().count(), 0);
  EXPECT_EQ(every("1", "")->alive_every().count(), 1);
  EXPECT_EQ(every("18446744073709551615", "")->alive_every().count(), 3'600'000);
  for (const char* bad : {"0", "-1", "soon", "1s", "18446744073709551616"}) {
    EXPECT_THAT(every(bad, "").status().message(), HasSubstr("WATCHDOG_USEC")) << bad;
  }
}

TEST(Notify, TheEnvironmentIsNotLeftToChildren) {
  ::setenv("NOTIFY_SOCKET", "/run/n", 1);
  ::setenv("WATCHDOG_USEC", "5", 1);
  ::setenv("WATCHDOG_PID", "6", 1);
  const Notifier::Environment taken = Notifier::TakeEnvironment();
  EXPECT_EQ(taken.notify_socket, "/run/n");
  EXPECT_EQ(taken.watchdog_usec, "5");
  EXPECT_EQ(taken.watchdog_pid, "6");
  for (const char* name : {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}) {
    EXPECT_EQ(std::getenv(name), nullptr) << name;
  }
  EXPECT_EQ(Notifier::TakeEnvironment().notify_socket, "");
}

}  // namespace
}  // namespace terrace
