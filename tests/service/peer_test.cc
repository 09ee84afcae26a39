// Who a peer is, on kernels and in namespaces that say less. What the kernel lacks is taken from it
// by a seccomp filter of the one thread or process that asks.
#include "daemon/service/peer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <thread>

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr uint32_t kPeerPidfd = 77;  // SO_PEERPIDFD, since Linux 6.5.

// From here on getsockopt(SO_PEERPIDFD) of this thread fails with `error`, as where there is none.
bool TakePeerPidfdAway(int error) {
  const auto jump = [](uint32_t value, uint8_t otherwise) {
    return sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, otherwise);
  };
  const auto load = [](size_t offset) {
    return sock_filter BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<uint32_t>(offset));
  };
  std::array filter = {
      load(offsetof(seccomp_data, nr)),
      jump(SYS_getsockopt, 5),
      load(offsetof(seccomp_data, args[1])),
      jump(SOL_SOCKET, 3),
      load(offsetof(seccomp_data, args[2])),
      jump(kPeerPidfd, 1),
      sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<uint32_t>(error)),
      sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{static_cast<uint16_t>(filter.size()), filter.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

// Runs `body` on a thread without SO_PEERPIDFD.
void WithoutPeerPidfd(int error, const std::function<void()>& body) {
  std::thread([&] {
    ASSERT_TRUE(TakePeerPidfdAway(error)) << "seccomp filters are needed here";
    body();
  }).join();
}

// A process that connected, and its end at this side. It ends with the object.
class PeerProcess {
 public:
  PeerProcess() {
    // Bound without a name, it gets one from the kernel.
    const UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    auto* const named = reinterpret_cast<sockaddr*>(&address);
    EXPECT_EQ(::bind(listener.get(), named, sizeof address.sun_family), 0);
    socklen_t bytes = sizeof address;
    EXPECT_EQ(::getsockname(listener.get(), named, &bytes), 0);
    EXPECT_EQ(::listen(listener.get(), 1), 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      const int socket = ::socket(AF_UNIX, SOCK_STREAM, 0);
      if (::connect(socket, named, bytes) != 0) ::_exit(1);
      for (;;)
        ::pause();
    }
    socket_.Reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    EXPECT_TRUE(socket_);
  }
  ~PeerProcess() { End(); }
  PeerProcess(const PeerProcess&) = delete;
  PeerProcess& operator=(const PeerProcess&) = delete;

  pid_t pid() const { return pid_; }
  int socket() const { return socket_.get(); }
  // Reaped as well: its number may be given to another.
  void End() {
    if (pid_ < 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
  UniqueFd socket_;
};

// The process that a pidfd stands for, as the kernel says it.
pid_t PidOf(int pidfd) {
  std::ifstream info("/proc/self/fdinfo/" + std::to_string(pidfd));
  const std::string text{std::istreambuf_iterator<char>(info), {}};
  const size_t at = text.find("Pid:");
  return at == std::string::npos ? 0 : std::stoi(text.substr(at + 4));
}

void ExpectToldUntilItEnds(PeerProcess& process) {
  const Result<Peer> peer = PeerOf(process.socket());
  ASSERT_EQ(peer.status(), Status());
  EXPECT_EQ(peer->pid, process.pid());
  EXPECT_EQ(peer->uid, ::geteuid());
  EXPECT_EQ(PidOf(peer->process.get()), process.pid());
  EXPECT_FALSE(ProcessIsGone(peer->process.get()));
  process.End();
  EXPECT_TRUE(ProcessIsGone(peer->process.get()));
}

TEST(Peer, AProcessIsToldUntilItEnds) {
  PeerProcess process;
  ExpectToldUntilItEnds(process);
}

TEST(Peer, OnAKernelWithoutPeerPidfdAProcessIsToldUntilItEnds) {
  PeerProcess process;
  WithoutPeerPidfd(ENOPROTOOPT, [&] { ExpectToldUntilItEnds(process); });
}

TEST(Peer, OnAKernelWithoutPeerPidfdWhoIsGoneIsNobody) {
  PeerProcess process;
  process.End();
  WithoutPeerPidfd(ENOPROTOOPT, [&] {
    const Status status = PeerOf(process.socket()).status();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(status.message(), HasSubstr("pidfd_open of the peer"));
  });
}

TEST(Peer, AnotherErrorIsNoReasonToTakeTheWeakerWay) {
  PeerProcess process;
  WithoutPeerPidfd(EMFILE, [&] {
    const Status status = PeerOf(process.socket()).status();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(status.message(), HasSubstr("SO_PEERPIDFD"));
  });
}

// ---- User namespaces

enum Outcome { kPassed, kFailed, kNoNamespaces };

// The exit code of a child that runs `body` in a user namespace of its own, where this user is root
// if it is `mapped`, and nobody else is anybody.
Outcome InUserNamespace(bool mapped, const std::function<bool()>& body) {
  const std::string map = "0 " + std::to_string(::geteuid()) + " 1";
  const pid_t child = ::fork();
  if (child == 0) {
    if (::unshare(CLONE_NEWUSER) != 0) ::_exit(kNoNamespaces);
    if (mapped && !(std::ofstream("/proc/self/uid_map") << map << std::flush)) {
      ::_exit(kNoNamespaces);
    }
    ::_exit(body() ? kPassed : kFailed);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? static_cast<Outcome>(WEXITSTATUS(status)) : kFailed;
}

#define SKIP_WITHOUT_NAMESPACES(outcome)                              \
  if ((outcome) == kNoNamespaces) {                                   \
    GTEST_SKIP() << "this machine lets nobody make a user namespace"; \
  }

TEST(Peer, AUserWhomTheDaemonsNamespaceDoesNotMapIsRefusedByThatReason) {
  PeerProcess process;
  const Outcome outcome = InUserNamespace(false, [&] {
    const Status status = PeerOf(process.socket()).status();
    return status.code() == Code::kPermissionDenied &&
           status.message().find("user namespace, which does not map it") != std::string::npos;
  });
  SKIP_WITHOUT_NAMESPACES(outcome);
  EXPECT_EQ(outcome, kPassed);
}

TEST(Peer, AUserWhomTheDaemonsNamespaceMapsIsWhoItIsThereAndHasNoUnmappedGroup) {
  PeerProcess process;
  const Outcome outcome = InUserNamespace(true, [&] {
    const Result<Peer> peer = PeerOf(process.socket());
    const auto groups = GroupsOf(process.socket());
    // Its group is not mapped, for only users are.
    return peer && peer->uid == 0 && peer->pid == process.pid() && peer->gid == kNoGroup &&
           groups && groups->empty();
  });
  SKIP_WITHOUT_NAMESPACES(outcome);
  EXPECT_EQ(outcome, kPassed);
}

TEST(Peer, WhereEverybodyIsMappedTheUserNobodyIsSomebody) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, to be another user";
  std::ifstream map("/proc/self/uid_map");
  uint64_t inside = 0;
  uint64_t outside = 0;
  uint64_t count = 0;
  map >> inside >> outside >> count;
  if (count != UINT32_MAX) GTEST_SKIP() << "this is a user namespace of some users alone";
  const pid_t child = ::fork();
  if (child == 0) {
    int pair[2];
    if (::setresgid(65534, 65534, 65534) != 0 || ::setresuid(65534, 65534, 65534) != 0 ||
        ::socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) {
      ::_exit(kFailed);
    }
    const Result<Peer> peer = PeerOf(pair[0]);
    ::_exit(peer && peer->uid == 65534 && peer->gid == 65534 ? kPassed : kFailed);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), kPassed);
}

}  // namespace
}  // namespace terrace
