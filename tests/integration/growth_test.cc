// The directory grows from its smallest size while clients read it.
#include <array>
#include <atomic>
#include <thread>

#include "base/random.h"
#include "tests/integration/effort.h"
#include "tests/integration/integration_test.h"

namespace terrace {
namespace {

constexpr uint64_t kPageBytes = 256;
constexpr int kThreads = 2;
constexpr uint64_t kBatch = 512;

struct Words {
  std::atomic<uint64_t> published{};  // Keys below this number were committed.
  std::atomic<uint64_t> lookups{};
  std::atomic<uint64_t> failures{};
  std::atomic<bool> stop{};
};

// A page whose commit was answered is found by every lookup that begins later, growing or not:
// the memory has room for all.
Status FindWhatWasPublished(kvc_client* client, const kvc_space* space, uint64_t seed,
                            Words& words) {
  ASSIGN_OR_RETURN(const bench::Reader reader, bench::NewReader(client));
  Random random(seed);
  while (!words.stop) {
    const uint64_t published = words.published;
    if (published == 0) continue;
    std::vector<kvc_key> keys(8);
    for (kvc_key& key : keys)
      key = bench::SyntheticKey(random.Below(published));
    const Result<bench::Pages> pages = PinAll(reader.get(), space, keys);
    if (!pages) return pages.error();
    RETURN_IF_ERROR(CheckPages(pages->get(), keys));
    words.lookups += 8;
  }
  return {};
}

Status ReadWhileItGrows(kvc_client* client, uint64_t seed, Words& words) {
  ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kPageBytes));
  std::array<Status, kThreads> ends;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      ends[i] = FindWhatWasPublished(client, space.get(), seed + i, words);
      if (!ends[i].ok()) words.stop = true;
    });
  }
  for (std::thread& thread : threads)
    thread.join();
  for (const Status& end : ends)
    RETURN_IF_ERROR(end);
  return {};
}

using GrowthTest = IntegrationTest;

TEST_F(GrowthTest, PublishedPagesAreFoundWhileTheDirectoryGrows) {
  StartDaemon("64MiB");
  const uint64_t pages = Effort(80, 16) * kBatch;
  SharedWords<Words> shared;
  Words& words = *shared;
  std::vector<bench::Child> readers;
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    readers.push_back(StartClient("reader", [&, seed](kvc_client* client, bench::Link&) {
      const Status status = ReadWhileItGrows(client, 100 * seed, words);
      if (!status.ok()) ++words.failures;
      return status;
    }));
  }
  bench::Child writer = StartClient("writer", [&](kvc_client* client, bench::Link&) -> Status {
    ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kPageBytes));
    while (words.published < pages) {
      RETURN_IF_ERROR(PutNewPages(client, space.get(), Keys(words.published, kBatch)));
      words.published += kBatch;
    }
    return {};
  });
  ExpectDone(writer);
  // Until every reader has looked into the last directory for a while.
  const uint64_t seen = words.lookups;
  EXPECT_TRUE(Await([&] { return words.lookups > seen + 5000 || words.failures > 0; }));
  words.stop = true;
  for (bench::Child& reader : readers)
    ExpectDone(reader);
  const Json status = Report("status");
  EXPECT_EQ(status["pages"]["count"], pages);
  EXPECT_EQ(status["pages"]["evicted"], 0);
  EXPECT_GE(status["pages"]["directory_growths"], 3);
}

}  // namespace
}  // namespace terrace
