// The server's thread when memory runs out: operator new of this program fails once, on that
// thread, when a test says so. What that thread closes twice is counted.
#include <gtest/gtest.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>

#include "base/executor.h"
#include "bench/scrape.h"
#include "daemon/service/metrics/server.h"

namespace {

constexpr int kNever = -1;
std::atomic<int> fails_after{kNever};  // So many allocations succeed yet.
std::atomic<int> closed_twice{0};

bool OnTheServersThread() {
  char name[16] = {};
  return ::pthread_getname_np(::pthread_self(), name, sizeof name) == 0 &&
         std::strcmp(name, "metrics") == 0;
}

}  // namespace

// In place of the C library's, which is this call and nothing else.
extern "C" int close(int fd) {
  const auto result = static_cast<int>(::syscall(SYS_close, fd));
  if (result != 0 && errno == EBADF && OnTheServersThread()) {
    ++closed_twice;
    errno = EBADF;
  }
  return result;
}

void* operator new(size_t bytes) {
  if (fails_after >= 0 && OnTheServersThread() && fails_after-- == 0) throw std::bad_alloc();
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}

namespace terrace {
namespace {

class NoOwner final : public Executor {
 public:
  void Post(std::function<void()>) override {}
};

TEST(MetricsMemory, WhatOneConnectionCannotHaveTheNextOneGets) {
  NoOwner owner;
  auto server = MetricsServer::Start(*ParseListenAddress("127.0.0.1:0"), owner, [](auto) {});
  ASSERT_TRUE(server) << server.error().ToString();
  (*server)->SetStage(MetricsServer::Stage::kServing);
  int refused = 0;
  // The first is the reactor's, which reuses what it made: then the first is the connection's own.
  for (const int allocation : {0, 0, 1, 2, 3, 4, 5, 6, 7}) {
    fails_after = allocation;
    Result<UniqueFd> socket = bench::ConnectTo((*server)->address());
    ASSERT_EQ(socket.status(), Status());
    // Closed at once where that allocation was one for the connection.
    pollfd entry{socket->get(), POLLIN, 0};
    refused += ::poll(&entry, 1, 100);
    fails_after = kNever;
    const Result<bench::HttpAnswer> answer = bench::HttpGet((*server)->address(), "/readyz");
    ASSERT_EQ(answer.status(), Status()) << "after a failure of allocation " << allocation;
    EXPECT_EQ(answer->status, 200);
  }
  EXPECT_GT(refused, 0);
  EXPECT_EQ(closed_twice, 0);
}

}  // namespace
}  // namespace terrace
