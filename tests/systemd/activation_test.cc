#include "daemon/service/systemd/activation.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstdlib>
#include <cstring>

#include "tests/support/daemon_process.h"

namespace terrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr pid_t kSelf = 4711;
using Names = std::vector<std::string>;

Names NamesOf(const ListenEnvironment& environment) {
  Result<Names> names = ActivatedNames(environment, kSelf);
  EXPECT_EQ(names.status(), Status());
  return names ? *names : Names();
}

UniqueFd Bound(int type, const std::string& path, bool listening) {
  UniqueFd socket(::socket(AF_UNIX, type, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  EXPECT_EQ(::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  if (listening) {
    EXPECT_EQ(::listen(socket.get(), 1), 0);
  }
  return socket;
}

TEST(Activation, NamesComeInTheOrderOfTheDescriptors) {
  EXPECT_THAT(NamesOf({"4711", "2", "engines:admin"}), ElementsAre("engines", "admin"));
  EXPECT_THAT(NamesOf({"4711", "1", "engines"}), ElementsAre("engines"));
  EXPECT_THAT(NamesOf({"4711", "3", "a::c"}), ElementsAre("a", "", "c"));
  EXPECT_THAT(NamesOf({"4711", "2", ""}), ElementsAre("unknown", "unknown"));
  EXPECT_THAT(NamesOf({"4711", "0", ""}), IsEmpty());
}

TEST(Activation, WhatIsMeantForAnotherProcessIsLeftAlone) {
  EXPECT_THAT(NamesOf({"", "", ""}), IsEmpty());
  EXPECT_THAT(NamesOf({"4712", "2", "a:b"}), IsEmpty());
  EXPECT_THAT(NamesOf({"", "2", "a:b"}), IsEmpty());
  EXPECT_THAT(NamesOf({"me", "2", "a:b"}), IsEmpty());
}

TEST(Activation, CountsAndNamesThatCannotBeAreRefused) {
  for (const char* count : {"", "-1", "257", "two", "2x", "99999999999999999999"}) {
    EXPECT_THAT(ActivatedNames({"4711", count, ""}, kSelf).status().message(),
                HasSubstr("LISTEN_FDS"))
        << count;
  }
  for (const char* names : {"a", "a:b:c"}) {
    EXPECT_THAT(ActivatedNames({"4711", "2", names}, kSelf).status().message(),
                HasSubstr("LISTEN_FDNAMES"))
        << names;
  }
}

TEST(Activation, AListeningSocketIsReadied) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/s";
  Result<ActivatedSocket> socket = AdoptListening(Bound(SOCK_STREAM, path, true), "engines");
  ASSERT_EQ(socket.status(), Status());
  EXPECT_EQ(socket->name, "engines");
  EXPECT_EQ(socket->path, path);
  EXPECT_EQ(::fcntl(socket->fd.get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  EXPECT_EQ(::fcntl(socket->fd.get(), F_GETFL) & O_NONBLOCK, O_NONBLOCK);
}

TEST(Activation, WhatIsNoListeningUnixStreamIsNamed) {
  const TemporaryFolder folder;
  const auto refusal = [](UniqueFd fd) {
    return AdoptListening(std::move(fd), "mine").status().message();
  };
  EXPECT_THAT(refusal(Bound(SOCK_STREAM, folder.path() + "/a", false)),
              HasSubstr("'mine' of the service manager does not listen"));
  EXPECT_THAT(refusal(Bound(SOCK_DGRAM, folder.path() + "/b", false)),
              HasSubstr("is not a Unix stream socket"));
  EXPECT_THAT(refusal(UniqueFd(::socket(AF_INET, SOCK_STREAM, 0))),
              HasSubstr("is not a Unix stream socket"));
  EXPECT_THAT(refusal(UniqueFd(::open("/dev/null", O_RDWR))),
              HasSubstr("is not a Unix stream socket"));
  EXPECT_THAT(refusal(UniqueFd()), HasSubstr("is not an open descriptor"));
}

TEST(Activation, TheEnvironmentIsNotLeftToChildren) {
  ::setenv("LISTEN_PID", "1", 1);
  ::setenv("LISTEN_FDS", "2", 1);
  ::setenv("LISTEN_FDNAMES", "a:b", 1);
  const ListenEnvironment taken = TakeListenEnvironment();
  EXPECT_EQ(taken.pid, "1");
  EXPECT_EQ(taken.count, "2");
  EXPECT_EQ(taken.names, "a:b");
  for (const char* name : {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}) {
    EXPECT_EQ(std::getenv(name), nullptr) << name;
  }
}

}  // namespace
}  // namespace terrace
