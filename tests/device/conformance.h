// The fixture of the conformance suite: a Gpu of the parameter's implementation, and other
// processes on the same device.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/hex.h"
#include "base/unique_fd.h"
#include "tests/device/gpu_fixture.h"
#include "tests/device/implementations.h"

namespace terrace {

// A process that was started; it is waited for.
class Peer {
 public:
  explicit Peer(pid_t process) : process_(process) {}
  Peer(Peer&& other) noexcept : process_(std::exchange(other.process_, -1)) {}
  Peer& operator=(Peer&&) = delete;
  ~Peer() {
    if (process_ > 0) Wait();
  }
  // Its exit code, or 128 and the signal.
  int Wait() {
    int status = 0;
    EXPECT_EQ(::waitpid(std::exchange(process_, -1), &status, 0) > 0, true);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  pid_t process_ = -1;
};

class SocketPair {
 public:
  SocketPair() {
    int fds[2] = {-1, -1};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    ours_.Reset(fds[0]);
    theirs_.Reset(fds[1]);
  }
  // For the peer, which has a copy once it was started.
  int theirs() const { return theirs_.get(); }
  void Close() { ours_.Reset(); }

  UniqueFd ReceiveFd() {
    theirs_.Reset();
    char byte = 0;
    iovec data{.iov_base = &byte, .iov_len = 1};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    if (::recvmsg(ours_.get(), &message, MSG_CMSG_CLOEXEC) != 1) return {};
    const cmsghdr* header = CMSG_FIRSTHDR(&message);
    if (header == nullptr) return {};
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
    return UniqueFd(fd);
  }
  bool Receive(std::span<uint8_t> into) {
    theirs_.Reset();
    while (!into.empty()) {
      const ssize_t got = ::read(ours_.get(), into.data(), into.size());
      if (got <= 0) return false;
      into = into.subspan(static_cast<size_t>(got));
    }
    return true;
  }

 private:
  UniqueFd ours_;
  UniqueFd theirs_;
};

class GpuConformance : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto gpus = OpenImplementation(GetParam());
    if (!gpus) GTEST_SKIP() << gpus.error().ToString();
    gpus_ = *std::move(gpus);
    ASSERT_FALSE(gpus_->devices().empty());
    auto gpu = gpus_->Open(gpus_->devices().front().uuid);
    ASSERT_OK(gpu.status());
    gpu_ = *std::move(gpu);
    if (!gpu_->facts().slabs) GTEST_SKIP() << gpu_->facts().name << " has no slabs";
    bench_ = std::make_unique<GpuBench>(*gpu_);
  }

  uint64_t granule() const { return gpu_->facts().granularity; }
  GpuSlab MakeSlab(uint64_t bytes) {
    const auto slab = gpu_->CreateSlab(bytes);
    EXPECT_OK(slab.status());
    return slab ? *slab : GpuSlab{};
  }
  MappedSlab NewSlab(uint64_t bytes) {
    const auto slab = MapNewSlab(*gpu_, bytes);
    EXPECT_OK(slab.status());
    return slab ? *slab : MappedSlab{};
  }
  std::vector<uint8_t> Read(GpuAddress at, size_t bytes) {
    auto got = bench_->Read(at, bytes);
    EXPECT_OK(got.status());
    return got ? *std::move(got) : std::vector<uint8_t>();
  }

  // device_peer, which has `fd` as a descriptor of its own.
  Peer StartPeer(const std::string& verb, int fd, uint64_t bytes, uint64_t seed) {
    static constexpr int kTheirs = 99;
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, fd, kTheirs);
    Peer peer = Spawn(verb, std::to_string(kTheirs), bytes, seed, &actions);
    ::posix_spawn_file_actions_destroy(&actions);
    return peer;
  }
  int RunPeer(const std::string& verb, int fd, uint64_t bytes, uint64_t seed) {
    return StartPeer(verb, fd, bytes, seed).Wait();
  }
  int RunPeer(const std::string& verb, const std::string& argument, uint64_t bytes, uint64_t seed) {
    return Spawn(verb, argument, bytes, seed, nullptr).Wait();
  }

  std::unique_ptr<Gpus> gpus_;
  std::unique_ptr<Gpu> gpu_;
  std::unique_ptr<GpuBench> bench_;

 private:
  Peer Spawn(const std::string& verb, const std::string& argument, uint64_t bytes, uint64_t seed,
             const posix_spawn_file_actions_t* actions) {
    // Beside this program, wherever both are put.
    char self[4096] = {};
    EXPECT_GT(::readlink("/proc/self/exe", self, sizeof self - 1), 0);
    const std::string path(self);
    const std::string program = path.substr(0, path.rfind('/') + 1) + "device_peer";
    std::vector<std::string> words = {program,
                                      GetParam(),
                                      gpu_->facts().uuid.Text(),
                                      verb,
                                      argument,
                                      std::to_string(bytes),
                                      std::to_string(seed)};
    std::vector<char*> argv;
    for (std::string& word : words)
      argv.push_back(word.data());
    argv.push_back(nullptr);
    pid_t process = -1;
    EXPECT_EQ(::posix_spawn(&process, program.c_str(), actions, nullptr, argv.data(), environ), 0);
    return Peer(process);
  }
};

}  // namespace terrace
