#include "daemon/service/listener.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

namespace terrace {
namespace {

using testing::HasSubstr;

class ListenerTest : public testing::Test {
 protected:
  ListenerTest() {
    std::string name = "/tmp/terrace-test-XXXXXX";
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  ~ListenerTest() override { std::filesystem::remove_all(folder_); }

  std::string path() const { return folder_ + "/t.sock"; }
  Result<std::unique_ptr<Listener>> Open(const std::string& path, mode_t mode = 0600) {
    return Listener::Open({path, mode}, loop_, [](UniqueFd, const std::string&) {});
  }
  Result<std::unique_ptr<Listener>> Take(UniqueFd given) {
    ListenerOptions options;
    options.path = path();
    options.given = ActivatedSocket{"given", path(), std::move(given)};
    return Listener::Open(std::move(options), loop_, [this](UniqueFd socket, const std::string&) {
      accepted_.push_back(std::move(socket));
      loop_.Stop();
    });
  }
  UniqueFd Connect() {
    UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path().c_str(), path().size());
    EXPECT_EQ(::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    return socket;
  }
  // A bound socket at path(), which stays there when the descriptor is closed.
  UniqueFd Bind() {
    UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path().c_str(), path().size());
    EXPECT_EQ(::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(socket.get(), 5), 0);
    return socket;
  }

  std::string folder_;
  OwnerLoop loop_;
  std::vector<UniqueFd> accepted_;
};

TEST_F(ListenerTest, TheSocketHasItsModeAndGoesWithItsListener) {
  for (const mode_t mode : {0600, 0660, 0666}) {
    Result<std::unique_ptr<Listener>> listener = Open(path(), mode);
    ASSERT_EQ(listener.status(), Status());
    struct stat info {};
    ASSERT_EQ(::stat(path().c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, mode);
    listener->reset();
    EXPECT_TRUE(std::filesystem::is_empty(folder_));
  }
}

TEST_F(ListenerTest, AStaleSocketIsReplaced) {
  Bind();
  ASSERT_TRUE(std::filesystem::exists(path()));
  EXPECT_EQ(Open(path()).status(), Status());
}

TEST_F(ListenerTest, ALiveSocketIsNotStolenEvenWithoutItsLock) {
  const UniqueFd live = Bind();
  const Status status = Open(path()).status();
  EXPECT_EQ(status.code(), Code::kAlreadyExists);
  EXPECT_THAT(status.message(), HasSubstr("in use"));
  EXPECT_TRUE(std::filesystem::exists(path()));
}

TEST_F(ListenerTest, TwoListenersCannotHaveOnePath) {
  const Result<std::unique_ptr<Listener>> first = Open(path());
  ASSERT_EQ(first.status(), Status());
  const Status status = Open(path()).status();
  EXPECT_EQ(status.code(), Code::kAlreadyExists);
  EXPECT_THAT(status.message(), HasSubstr("another terraced"));
  EXPECT_TRUE(std::filesystem::exists(path()));
  EXPECT_TRUE(std::filesystem::exists(path() + ".lock"));
}

TEST_F(ListenerTest, AFileThatIsNoSocketStays) {
  std::ofstream(path()) << "precious";
  EXPECT_THAT(Open(path()).status().message(), HasSubstr("not a socket"));
  EXPECT_EQ(std::filesystem::file_size(path()), 8u);
}

TEST_F(ListenerTest, ALockThatIsALinkIsNotFollowed) {
  std::filesystem::create_symlink(folder_ + "/elsewhere", path() + ".lock");
  EXPECT_FALSE(Open(path()).has_value());
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/elsewhere"));
}

TEST_F(ListenerTest, APathThatNoSocketCanHaveIsRefused) {
  const Status status = Open(folder_ + "/" + std::string(120, 'x')).status();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("1 to 107"));
}

TEST_F(ListenerTest, TheSocketGoesToItsOwnerAndGroup) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs CAP_CHOWN";
  ListenerOptions options;
  options.path = path();
  options.mode = 0660;
  options.owner = 1234;
  options.group = 4321;
  const auto listener =
      Listener::Open(std::move(options), loop_, [](UniqueFd, const std::string&) {});
  ASSERT_EQ(listener.status(), Status());
  struct stat info {};
  ASSERT_EQ(::stat(path().c_str(), &info), 0);
  EXPECT_EQ(info.st_uid, 1234u);
  EXPECT_EQ(info.st_gid, 4321u);
  EXPECT_EQ(info.st_mode & 07777, mode_t{0660});
}

TEST_F(ListenerTest, AGivenSocketIsServedAndLeftAlone) {
  UniqueFd made = Bind();
  const UniqueFd early = Connect();  // Before the daemon is there at all.
  ASSERT_EQ(::send(early.get(), "early", 5, 0), 5);
  Result<std::unique_ptr<Listener>> listener = Take(std::move(made));
  ASSERT_EQ(listener.status(), Status());
  EXPECT_FALSE(std::filesystem::exists(path() + ".lock"));
  loop_.Run();
  ASSERT_EQ(accepted_.size(), 1u);
  // What was sent before anybody listened with SO_PASSCRED carries its sender all the same.
  char bytes[16];
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(ucred))];
  iovec vector{bytes, sizeof bytes};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ASSERT_EQ(::recvmsg(accepted_[0].get(), &message, MSG_DONTWAIT), 5);
  const cmsghdr* item = CMSG_FIRSTHDR(&message);
  ASSERT_NE(item, nullptr);
  ASSERT_EQ(item->cmsg_type, SCM_CREDENTIALS);
  ucred credentials{};
  std::memcpy(&credentials, CMSG_DATA(item), sizeof credentials);
  EXPECT_EQ(credentials.pid, ::getpid());
  EXPECT_NE(::fcntl(accepted_[0].get(), F_GETFL) & O_NONBLOCK, 0);
  listener->reset();
  EXPECT_TRUE(std::filesystem::exists(path()));
}

TEST_F(ListenerTest, WhatIsNoListeningUnixSocketIsNotTaken) {
  const auto refused = [&](UniqueFd given) {
    const Status status = Take(std::move(given)).status();
    return status.code() == Code::kInvalidArgument;
  };
  EXPECT_TRUE(refused(UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0))));
  EXPECT_TRUE(refused(UniqueFd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0))));
  EXPECT_TRUE(refused(UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC))));
  UniqueFd internet(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::listen(internet.get(), 1), 0);
  EXPECT_TRUE(refused(std::move(internet)));
}

TEST_F(ListenerTest, TheLastFolderIsMadePrivate) {
  const Result<std::unique_ptr<Listener>> listener = Open(folder_ + "/new/t.sock");
  ASSERT_EQ(listener.status(), Status());
  struct stat info {};
  ASSERT_EQ(::stat((folder_ + "/new").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, mode_t{0700});
}

TEST_F(ListenerTest, APrivateFolderMustBeOursAlone) {
  EXPECT_EQ(MakePrivateFolder(folder_ + "/a/b/c"), Status());
  EXPECT_EQ(MakePrivateFolder(folder_ + "/a/b/c"), Status());
  std::filesystem::create_directory(folder_ + "/open");
  ASSERT_EQ(::chmod((folder_ + "/open").c_str(), 0777), 0);
  EXPECT_THAT(MakePrivateFolder(folder_ + "/open").message(), HasSubstr("writable by others"));
  std::filesystem::create_directory_symlink(folder_ + "/a", folder_ + "/link");
  EXPECT_THAT(MakePrivateFolder(folder_ + "/link").message(), HasSubstr("not a folder"));
  std::ofstream(folder_ + "/file") << "x";
  EXPECT_FALSE(MakePrivateFolder(folder_ + "/file").ok());
  EXPECT_FALSE(MakePrivateFolder(folder_ + "/file/below").ok());
  if (::geteuid() == 0) {
    std::filesystem::create_directory(folder_ + "/other");
    ASSERT_EQ(::chown((folder_ + "/other").c_str(), 1234, 1234), 0);
    EXPECT_THAT(MakePrivateFolder(folder_ + "/other").message(), HasSubstr("belongs to user 1234"));
  }
}

}  // namespace
}  // namespace terrace
