// What a client lives through: the daemon's death, a cut connection, a fork, a daemon that is
// stuck.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>

#include "tests/libclient/client_fixture.h"

namespace terrace {
namespace {

class LossTest : public ClientTest {
 protected:
  // Cuts every connection of this process, as a fault of the network would.
  void CutConnections() {
    const std::vector<int> fds = ConnectionFds();
    ASSERT_FALSE(fds.empty());
    for (const int fd : fds)
      ASSERT_EQ(::shutdown(fd, SHUT_RDWR), 0);
  }
};

TEST_F(LossTest, PinnedPagesStayReadableWhenTheDaemonIsKilled) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  const auto keys = KeysOf(space, 0, 50);
  Publish(client, space, SpanOf(keys), 0);
  kvc::Reader reader = Take(client.NewReader());
  kvc::Pages pages = Take(reader.LookupPrefix(space, SpanOf(keys)));
  kvc::Page page = reader.Pin(space, keys[3]);
  daemon().Kill();
  ASSERT_TRUE(Await([&] { return client.epoch() == 0; }));

  kvc_miss why = KVC_MISS_NONE;
  EXPECT_FALSE(reader.Pin(space, keys[0], &why));
  EXPECT_EQ(why, KVC_MISS_DISCONNECTED);
  EXPECT_EQ(Take(reader.LookupPrefix(space, SpanOf(keys), &why)).found(), 0u);
  EXPECT_EQ(why, KVC_MISS_DISCONNECTED);
  EXPECT_EQ(Take(reader.LookupEach(space, SpanOf(keys))).size(), 50u);
  EXPECT_EQ(client.Ping().code(), KVC_UNAVAILABLE);
  EXPECT_EQ(client.Grant(space, SpanOf(keys)).error().code(), KVC_UNAVAILABLE);
  for (size_t i = 0; i < 50; ++i)
    EXPECT_TRUE(Holds(pages[i].bytes, i));
  EXPECT_TRUE(Holds(page.bytes(), 3));

  ASSERT_TRUE(daemon().Launch().ok());
  ASSERT_TRUE(client.WaitConnected().ok());
  EXPECT_EQ(client.epoch(), 2u);
  EXPECT_EQ(pages.epoch(), 1u);
  // The new life knows nothing of the old pages, and the space is open again.
  EXPECT_FALSE(reader.Pin(space, keys[0], &why));
  EXPECT_EQ(why, KVC_MISS_ABSENT);
  Publish(client, space, SpanOf(keys), 1000);
  {
    const kvc::Pages now = Take(reader.LookupPrefix(space, SpanOf(keys)));
    ASSERT_EQ(now.found(), 50u);
    EXPECT_EQ(now.epoch(), 2u);
    for (size_t i = 0; i < 50; ++i) {
      EXPECT_TRUE(Holds(now[i].bytes, 1000 + i));
      EXPECT_TRUE(Holds(pages[i].bytes, i)) << "the old life's page is another one";
    }
  }
  // Releases of the old life's pins reach the old life.
  EXPECT_EQ(client.info().pinned_pages, 0u);
  page = {};
  const kvc::Page pinned_now = reader.Pin(space, keys[3]);
  EXPECT_TRUE(Holds(pinned_now.bytes(), 1003));
  EXPECT_EQ(client.info().pinned_pages, 1u);
}

// A lane's number goes from the reader that ends to the next one only when the pool has let go of
// the lane: else the budget leaks, or the library falls over an account that is not there.
TEST_F(LossTest, ReadersThatComeAndGoOnTwoThreadsLoseNothingOfTheBudget) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  const auto keys = KeysOf(space, 0, 100);
  Publish(client, space, SpanOf(keys), 0);
  std::atomic<uint64_t> misses = 0;
  const auto come_and_go = [&] {
    for (int i = 0; i < 3000; ++i) {
      kvc::Reader reader = Take(client.NewReader());
      for (int k = 0; k < 3; ++k)
        misses += reader.Pin(space, keys[static_cast<size_t>(i + k) % keys.size()]) ? 0 : 1;
    }
  };
  std::thread other(come_and_go);
  come_and_go();
  other.join();
  EXPECT_EQ(misses, 0u);
  EXPECT_EQ(client.info().pinned_pages, 0u);
  kvc::Reader reader = Take(client.NewReader());
  EXPECT_EQ(Take(reader.LookupPrefix(space, SpanOf(keys))).found(), 100u);
}

TEST_F(LossTest, PageNumbersKeepTheirBaseOverDaemonLives) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  const void* base = space.info().base;
  const auto keys = KeysOf(space, 0, 300);
  Publish(client, space, SpanOf(keys), 0);
  kvc::Reader reader = Take(client.NewReader());
  const kvc::Pages before = Take(reader.LookupPrefix(space, SpanOf(keys)));
  daemon().Kill();
  ASSERT_TRUE(daemon().Launch().ok());
  ASSERT_TRUE(Await([&] { return client.epoch() == 2; }));
  EXPECT_EQ(space.info().base, base);
  Publish(client, space, SpanOf(keys), 500);
  const kvc::Pages after = Take(reader.LookupPrefix(space, SpanOf(keys)));
  std::vector<int32_t> old_blocks(300);
  std::vector<int32_t> new_blocks(300);
  ASSERT_EQ(Take(before.Table(kvc::Span<int32_t>(old_blocks.data(), 300))), 300u);
  ASSERT_EQ(Take(after.Table(kvc::Span<int32_t>(new_blocks.data(), 300))), 300u);
  for (size_t i = 0; i < 300; ++i) {
    const auto* first = static_cast<const std::byte*>(base);
    EXPECT_TRUE(Holds({first + uint64_t(old_blocks[i]) * 16384, 16384}, i));
    EXPECT_TRUE(Holds({first + uint64_t(new_blocks[i]) * 16384, 16384}, 500 + i));
  }
}

TEST_F(LossTest, GrantsOfAnOldLifeAreStale) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  const auto keys = KeysOf(space, 0, 2);
  kvc::Grants grants = Take(client.Grant(space, SpanOf(keys)));
  daemon().Kill();
  ASSERT_TRUE(daemon().Launch().ok());
  ASSERT_TRUE(Await([&] { return client.epoch() == 2; }));
  std::memset(grants[0].writable().data(), 1, 16384);  // Still writable.
  EXPECT_EQ(kvc::Grants::Commit(std::move(grants)).error().code(), KVC_STALE);
}

TEST_F(LossTest, CutConnectionIsResumedWithPinsAndGrants) {
  kvc::Client client = Connect();
  const uint64_t id = client.info().client_id;
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  const auto keys = KeysOf(space, 0, 20);
  Publish(client, space, {keys.data(), 10}, 0);
  kvc::Reader reader = Take(client.NewReader());
  const kvc::Pages pages = Take(reader.LookupPrefix(space, {keys.data(), 10}));
  kvc::Grants grants = Take(client.Grant(space, {keys.data() + 10, 10}));
  for (int round = 0; round < 5; ++round) {
    CutConnections();
    // The loss may be over before it is seen.
    ASSERT_TRUE(Await([&] { return client.WaitConnected().ok() && client.Ping().ok(); }));
    EXPECT_EQ(client.epoch(), 1u);
    EXPECT_EQ(client.info().client_id, id);
  }
  EXPECT_EQ(client.info().pinned_pages, 10u);
  for (size_t i = 0; i < 10; ++i) {
    const auto content = ContentOf(10 + i, 16384);
    std::memcpy(grants[i].writable().data(), content.data(), content.size());
  }
  const kvc::Published published = Take(kvc::Grants::Commit(std::move(grants)));
  for (size_t i = 0; i < 10; ++i)
    EXPECT_EQ(published[i], KVC_OK);
  const kvc::Pages all = Take(reader.LookupPrefix(space, SpanOf(keys)));
  ASSERT_EQ(all.found(), 20u);
  for (size_t i = 0; i < 20; ++i)
    EXPECT_TRUE(Holds(all[i].bytes, i));
}

TEST_F(LossTest, WithoutReconnectTheClientStaysDisconnected) {
  kvc::Client client = Connect([](kvc_client_options& o) { o.no_reconnect = 1; });
  daemon().Kill();
  ASSERT_TRUE(Await([&] { return client.epoch() == 0; }));
  ASSERT_TRUE(daemon().Launch().ok());
  EXPECT_EQ(client.WaitConnected().code(), KVC_UNAVAILABLE);
}

TEST_F(LossTest, NobodyListeningIsUnavailable) {
  daemon().Kill();
  kvc_client_options options{};
  options.socket_path = socket().c_str();
  const auto client = kvc::Client::Connect(options);
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().code(), KVC_UNAVAILABLE);
  EXPECT_NE(client.error().message().find(socket()), std::string::npos);
}

TEST_F(LossTest, CallsOfAStuckDaemonEndAtTheirDeadline) {
  kvc::Client client = Connect();
  ASSERT_EQ(::kill(daemon().pid(), SIGSTOP), 0);
  EXPECT_EQ(client.Ping(50).code(), KVC_DEADLINE_EXCEEDED);
  EXPECT_EQ(client.OpenSpace(SpaceOptions(), 50).error().code(), KVC_DEADLINE_EXCEEDED);
  ASSERT_EQ(::kill(daemon().pid(), SIGCONT), 0);
  // The late replies disturb nobody.
  EXPECT_TRUE(client.Ping().ok());
  EXPECT_TRUE(client.OpenSpace(SpaceOptions()));
  EXPECT_EQ(client.epoch(), 1u);
}

TEST_F(LossTest, GrantsThatCameTooLateAreGivenBack) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  // All of the daemon's memory, in replies that nobody waits for.
  ASSERT_EQ(::kill(daemon().pid(), SIGSTOP), 0);
  for (uint32_t batch = 0; batch < 8; ++batch) {
    const auto keys = KeysOf(space, batch * 1'000'000, 512);
    EXPECT_EQ(client.Grant(space, SpanOf(keys), 0, 1).error().code(), KVC_DEADLINE_EXCEEDED);
  }
  ASSERT_EQ(::kill(daemon().pid(), SIGCONT), 0);
  const auto keys = KeysOf(space, 99'000'000, 512);
  ASSERT_TRUE(Await([&] {
    kvc::Grants grants = Take(client.Grant(space, SpanOf(keys)));
    for (size_t i = 0; i < grants.size(); ++i) {
      if (grants[i].code() != KVC_OK) return false;
    }
    return true;
  }));
}

TEST_F(LossTest, ForkedChildIsRefusedAndTheParentUnharmed) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  const auto keys = KeysOf(space, 0, 5);
  Publish(client, space, SpanOf(keys), 0);
  kvc::Reader reader = Take(client.NewReader());
  kvc::Pages pages = Take(reader.LookupPrefix(space, SpanOf(keys)));
  kvc::Page page = reader.Pin(space, keys[1]);
  kvc::Grants grants = Take(client.Grant(space, {KeysOf(space, 900, 1).data(), 1}));
  const void* mapped = pages[0].bytes.data();
  const pid_t child = ::fork();
  if (child == 0) {
    int wrong = 0;
    kvc_miss why = KVC_MISS_NONE;
    wrong |= client.Ping().code() == KVC_PERMISSION_DENIED ? 0 : 1;
    wrong |= !reader.Pin(space, keys[0], &why) && why == KVC_MISS_DISCONNECTED ? 0 : 2;
    wrong |= client.epoch() == 0 ? 0 : 4;
    kvc_page view{};
    wrong |= kvc_pages_get(pages.get(), 0, &view) == KVC_PERMISSION_DENIED ? 0 : 8;
    wrong |= grants[0].writable().empty() ? 0 : 16;
    unsigned char resident = 0;
    // Nothing of the daemon's memory is mapped here.
    wrong |=
        ::mincore(const_cast<void*>(mapped), 4096, &resident) == -1 && errno == ENOMEM ? 0 : 32;
    const auto grant = client.Grant(space, SpanOf(keys));
    wrong |= !grant && grant.error().code() == KVC_PERMISSION_DENIED ? 0 : 64;
    const auto looked = reader.LookupPrefix(space, SpanOf(keys));
    wrong |= !looked && looked.error().code() == KVC_PERMISSION_DENIED ? 0 : 128;
    // Every destructor runs in the child, and does nothing.
    { kvc::Pages gone = std::move(pages); }
    page = {};
    { kvc::Grants gone = std::move(grants); }
    { kvc::Reader gone = std::move(reader); }
    { kvc::Client gone = std::move(client); }
    ::_exit(wrong);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_TRUE(client.Ping().ok());
  EXPECT_EQ(client.info().pinned_pages, 6u);
  EXPECT_TRUE(Holds(pages[4].bytes, 4));
}

TEST_F(LossTest, ClosingWaitsForNothing) {
  kvc::Client client = Connect([](kvc_client_options& o) { o.timeout_ms = 3'600'000; });
  daemon().Kill();
  ASSERT_TRUE(Await([&] { return client.epoch() == 0; }));
  const auto begin = std::chrono::steady_clock::now();
  { kvc::Client closed = std::move(client); }
  // Not a promise of speed: an hour is what it would take to wait for the daemon.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::minutes(1));
}

TEST_F(LossTest, NoDescriptorIsLeftBehind) {
  const auto count = [] {
    int open = 0;
    for (int fd = 0; fd < 1024; ++fd)
      open += ::fcntl(fd, F_GETFD) >= 0 ? 1 : 0;
    return open;
  };
  const int before = count();
  for (int round = 0; round < 3; ++round) {
    kvc::Client client = Connect();
    const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
    const auto keys = KeysOf(space, 0, 300);
    Publish(client, space, SpanOf(keys), 0);
    kvc::Reader reader = Take(client.NewReader());
    EXPECT_EQ(Take(reader.LookupPrefix(space, SpanOf(keys))).found(), 300u);
    CutConnections();
    ASSERT_TRUE(Await([&] { return client.WaitConnected().ok() && client.Ping().ok(); }));
    EXPECT_EQ(count(), before + 3) << "a socket, an epoll and an eventfd";
  }
  EXPECT_EQ(count(), before);
}

// ---- Threads

TEST_F(LossTest, ThreadsShareAClientThroughLossesOfTheDaemon) {
  kvc::Client client = Connect();
  const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
  const auto keys = KeysOf(space, 0, 64);
  std::atomic<bool> stop = false;
  std::atomic<uint64_t> wrong = 0;
  std::atomic<uint64_t> read = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      auto reader = Take(client.NewReader());
      while (!stop.load()) {
        const kvc::Pages pages = Take(reader.LookupPrefix(space, SpanOf(keys)));
        for (size_t i = 0; i < pages.size(); ++i) {
          uint64_t word;
          std::memcpy(&word, pages[i].bytes.data() + 8 * 100, 8);
          wrong += word == (i + 1) * 0x9e3779b97f4a7c15 + 800 ? 0 : 1;
          ++read;
        }
        kvc::Page page = reader.Pin(space, keys[5]);
        // Released by another thread.
        if (page) std::thread([moved = std::move(page)]() mutable { moved = {}; }).join();
      }
    });
  }
  threads.emplace_back([&] {
    while (!stop.load()) {
      auto grants = client.Grant(space, SpanOf(keys));
      if (!grants) continue;
      for (size_t i = 0; i < grants->size(); ++i) {
        const kvc::Bytes bytes = (*grants)[i].writable();
        const auto content = ContentOf(i, 16384);
        if (!bytes.empty()) std::memcpy(bytes.data(), content.data(), content.size());
      }
      static_cast<void>(kvc::Grants::Commit(*std::move(grants)));
      static_cast<void>(client.Drop(space, {keys.data() + 32, 32}));
    }
  });
  for (int round = 0; round < 3; ++round) {
    const uint64_t seen = read.load();
    EXPECT_TRUE(Await([&] { return read.load() > seen + 1000; }));
    daemon().Kill();
    ASSERT_TRUE(daemon().Launch().ok());
    EXPECT_TRUE(client.WaitConnected().ok());
    CutConnections();
    EXPECT_TRUE(client.WaitConnected().ok());
  }
  EXPECT_TRUE(Await([&, seen = read.load()] { return read.load() > seen + 1000; }));
  stop = true;
  for (std::thread& thread : threads)
    thread.join();
  EXPECT_EQ(wrong.load(), 0u);
}

}  // namespace
}  // namespace terrace
