// The server alone: what it answers, and that nobody who connects can hold it
// up.
#include "daemon/service/metrics/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>

#include "base/mutex.h"
#include "bench/scrape.h"

namespace terrace {
namespace {

using bench::HttpAnswer;
using bench::HttpExchange;
using bench::HttpGet;
using testing::HasSubstr;
using testing::StartsWith;

// An owner thread that can be made to hang: its tasks run when the test says
// so, or at once.
class FakeOwner final : public Executor {
 public:
  void Post(std::function<void()> task) override {
    {
      MutexLock lock(mu_);
      if (hangs_) {
        tasks_.push_back(std::move(task));
        return;
      }
    }
    task();
  }
  void Hang() {
    MutexLock lock(mu_);
    hangs_ = true;
  }
  size_t waiting() {
    MutexLock lock(mu_);
    return tasks_.size();
  }
  void Recover() {
    std::vector<std::function<void()>> tasks;
    {
      MutexLock lock(mu_);
      hangs_ = false;
      tasks.swap(tasks_);
    }
    for (const auto& task : tasks)
      task();
  }

 private:
  Mutex mu_;
  bool hangs_ GUARDED_BY(mu_) = false;
  std::vector<std::function<void()>> tasks_ GUARDED_BY(mu_);
};

class MetricsServerTest : public testing::Test {
 protected:
  void SetUp() override { Start("127.0.0.1:0"); }
  void Start(const std::string& address) {
    server_.reset();
    auto started = MetricsServer::Start(*ParseListenAddress(address), owner_, [this](auto done) {
      ++collected_;
      auto snapshot = std::make_shared<Snapshot>();
      snapshot->service.connections = 7;
      done(snapshot);
    });
    ASSERT_TRUE(started) << started.error().ToString();
    server_ = *std::move(started);
    server_->SetStage(MetricsServer::Stage::kServing);
  }
  HttpAnswer Get(const std::string& target) {
    Result<HttpAnswer> answer = HttpGet(server_->address(), target);
    if (answer) return *std::move(answer);
    ADD_FAILURE() << answer.error().ToString();
    return {};
  }
  std::string Send(std::string_view request) {
    Result<std::string> answer = HttpExchange(server_->address(), request);
    return answer ? *answer : answer.error().ToString();
  }
  UniqueFd Connect() {
    Result<UniqueFd> socket = bench::ConnectTo(server_->address());
    return socket ? *std::move(socket) : UniqueFd();
  }
  // Whether the other end has closed.
  static bool Closed(const UniqueFd& socket) {
    pollfd entry{socket.get(), POLLIN, 0};
    char byte = 0;
    return ::poll(&entry, 1, 10'000) == 1 && ::recv(socket.get(), &byte, 1, 0) <= 0;
  }

  FakeOwner owner_;
  std::unique_ptr<MetricsServer> server_;
  std::atomic<int> collected_ = 0;
};

TEST_F(MetricsServerTest, MetricsAreAScrape) {
  const HttpAnswer answer = Get("/metrics");
  EXPECT_EQ(answer.status, 200);
  EXPECT_THAT(answer.head, HasSubstr("text/plain; version=0.0.4"));
  const Result<bench::Scrape> scrape = bench::Scrape::Parse(answer.body);
  ASSERT_TRUE(scrape) << scrape.error().ToString();
  EXPECT_EQ(scrape->Sum("terrace_connections"), 7);
  EXPECT_EQ(Get("/metrics?x=y").status, 200);
}

TEST_F(MetricsServerTest, HeadHasTheHeaderAlone) {
  const std::string answer = Send("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(answer, HasSubstr("Content-Length: "));
  EXPECT_EQ(answer.find("\r\n\r\n"), answer.size() - 4);
}

TEST_F(MetricsServerTest, NothingElseIsThere) {
  EXPECT_EQ(Get("/").status, 404);
  EXPECT_EQ(Get("/metricsx").status, 404);
  EXPECT_THAT(Send("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"),
              StartsWith("HTTP/1.1 405"));
  EXPECT_THAT(Send("DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), StartsWith("HTTP/1.1 405"));
  EXPECT_EQ(collected_, 0);
}

TEST_F(MetricsServerTest, WhatIsNoRequestIsRefused) {
  EXPECT_THAT(Send("\x16\x03\x01 no http at all\r\n\r\n"), StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(Send("GET /metrics\r\n\r\n"), StartsWith("HTTP/1.1 400"));
  EXPECT_EQ(Get("/healthz").status, 200);
}

TEST_F(MetricsServerTest, AHeaderOfMoreThanItsBoundIsRefused) {
  const auto with_header = [](size_t bytes) {
    const std::string begin = "GET /readyz HTTP/1.1\r\nX: ";
    const std::string end = "\r\n\r\n";
    return begin + std::string(bytes - begin.size() - end.size(), 'a') + end;
  };
  // Beast counts a line when it is over, so the bound is not exact to the byte.
  EXPECT_THAT(Send(with_header(MetricsServer::kMaxHeaderBytes - 100)), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Send(with_header(MetricsServer::kMaxHeaderBytes + 100)), StartsWith("HTTP/1.1 400"));
  // Without an end at all: at most what is sent before it closes.
  const UniqueFd socket = Connect();
  const std::string part(4096, 'a');
  size_t sent = 0;
  while (sent < (64u << 20) && ::send(socket.get(), part.data(), part.size(), MSG_NOSIGNAL) > 0)
    sent += part.size();
  EXPECT_LT(sent, 64u << 20);
}

TEST_F(MetricsServerTest, ConnectionsThatAskNothingGiveWay) {
  std::vector<UniqueFd> idle;
  for (size_t i = 0; i < MetricsServer::kMaxConnections; ++i)
    idle.push_back(Connect());
  EXPECT_EQ(Get("/readyz").status, 200);
  EXPECT_TRUE(Closed(idle.front())) << "the oldest";
  // The reply freed a place: only one had to go.
  pollfd entry{idle[1].get(), POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 0), 0);
}

TEST_F(MetricsServerTest, ConnectionsThatWaitForTheOwnerDoNotGiveWay) {
  owner_.Hang();
  const std::string_view request = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
  std::vector<UniqueFd> waiting;
  for (size_t i = 0; i + 1 < MetricsServer::kMaxConnections; ++i) {
    waiting.push_back(Connect());
    ASSERT_EQ(::send(waiting.back().get(), request.data(), request.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(request.size()));
  }
  // Two exchanges later their requests have been read.
  EXPECT_EQ(Get("/readyz").status, 200);
  EXPECT_EQ(Get("/readyz").status, 200);
  std::vector<UniqueFd> idle;
  for (int i = 0; i < 40; ++i)
    idle.push_back(Connect());
  EXPECT_EQ(Get("/readyz").status, 200);
  EXPECT_EQ(owner_.waiting(), 1u) << "asked for one snapshot, whoever many want it";
  owner_.Recover();
  for (const UniqueFd& socket : waiting) {
    char begin[12] = {};
    EXPECT_EQ(::recv(socket.get(), begin, sizeof begin, MSG_WAITALL), 12);
    EXPECT_EQ(std::string_view(begin, sizeof begin), "HTTP/1.1 200");
  }
  EXPECT_EQ(collected_, 1);
}

TEST_F(MetricsServerTest, HealthIsTheOwnersAnswer) {
  EXPECT_EQ(Get("/healthz").body, "ok\n");
  owner_.Hang();
  const HttpAnswer answer = Get("/healthz");
  EXPECT_EQ(answer.status, 503);
  EXPECT_THAT(answer.body, HasSubstr("has not answered"));
  EXPECT_EQ(Get("/healthz").status, 503);
  EXPECT_EQ(owner_.waiting(), 1u) << "asked once, however many want to know";
  EXPECT_EQ(Get("/readyz").status, 200) << "needs no owner";
  owner_.Recover();
  EXPECT_EQ(Get("/healthz").status, 200);
}

TEST_F(MetricsServerTest, ReadinessFollowsTheStage) {
  server_->SetStage(MetricsServer::Stage::kStarting);
  EXPECT_EQ(Get("/readyz").status, 503);
  EXPECT_EQ(Get("/readyz").body, "starting\n");
  EXPECT_EQ(Get("/healthz").status, 200);
  EXPECT_EQ(Get("/metrics").status, 503);
  EXPECT_EQ(collected_, 0);
  server_->SetStage(MetricsServer::Stage::kStopping);
  EXPECT_EQ(Get("/readyz").body, "stopping\n");
}

TEST_F(MetricsServerTest, ItEndsWithConnectionsOpenAndTheOwnerHanging) {
  owner_.Hang();
  const UniqueFd idle = Connect();
  const UniqueFd asks = Connect();
  const std::string_view request = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
  ASSERT_EQ(::send(asks.get(), request.data(), request.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(request.size()));
  while (owner_.waiting() == 0)
    std::this_thread::yield();
  server_.reset();
  EXPECT_TRUE(Closed(idle));
  EXPECT_TRUE(Closed(asks));
  owner_.Recover();  // Too late, and harmless.
  EXPECT_EQ(collected_, 1);
}

TEST_F(MetricsServerTest, AUnixSocketIsForOwnerAndGroup) {
  std::string folder = "/tmp/terrace-test-XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  const std::string path = folder + "/m.sock";
  Start("unix:" + path);
  EXPECT_EQ(server_->address(), "unix:" + path);
  struct stat info {};
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0660u);
  EXPECT_EQ(Get("/readyz").status, 200);
  // One that is served is not taken over.
  const auto second = MetricsServer::Start(*ParseListenAddress("unix:" + path), owner_, {});
  EXPECT_EQ(second.status().code(), Code::kAlreadyExists);
  server_.reset();
  EXPECT_NE(::stat(path.c_str(), &info), 0) << "it is removed";
  ::rmdir(folder.c_str());
}

TEST_F(MetricsServerTest, AStaleSocketIsReplacedAndAFileIsNot) {
  std::string folder = "/tmp/terrace-test-XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  const std::string path = folder + "/m.sock";
  const ListenAddress address = *ParseListenAddress("unix:" + path);
  {
    const UniqueFd stale(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(
        ::bind(stale.get(), reinterpret_cast<const sockaddr*>(&address.address), address.bytes), 0);
  }
  Start("unix:" + path);
  EXPECT_EQ(Get("/readyz").status, 200);
  server_.reset();
  std::fclose(std::fopen(path.c_str(), "w"));
  EXPECT_EQ(MetricsServer::Start(address, owner_, {}).status().code(), Code::kAlreadyExists);
  ::unlink(path.c_str());
  ::rmdir(folder.c_str());
}

}  // namespace
}  // namespace terrace
