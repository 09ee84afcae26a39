// Pin against evict, with processes: readers in processes of their own, over sealed memfds, are
// stopped and killed at any moment while the owner evicts, reuses, drops, fences and grows.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "daemon/service/memfd/memfd_directory.h"
#include "tests/heart/page_reader.h"

namespace terrace {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr uint64_t kHits = 100'000;
constexpr int kKills = 10;
#elif defined(__OPTIMIZE__) && defined(NDEBUG)
constexpr uint64_t kHits = 5'000'000;
constexpr int kKills = 100;
#else
constexpr uint64_t kHits = 500'000;
constexpr int kKills = 20;
#endif
constexpr int kChildren = 3;
constexpr uint32_t kSlots = 64;
constexpr uint64_t kKeys = 80;
constexpr auto kDeadline = std::chrono::seconds(600);

// Memory that forked children share.
class Shared {
 public:
  explicit Shared(size_t bytes)
      : data_(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)),
        bytes_(bytes) {
    TERRACE_CHECK(data_ != MAP_FAILED);
  }
  ~Shared() { ::munmap(data_, bytes_); }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  std::span<uint8_t> span() const { return {static_cast<uint8_t*>(data_), bytes_}; }

 private:
  void* data_;
  size_t bytes_;
};

// What the owner posts: fields between two reads of `version`, which is odd while they change.
struct Posted {
  std::atomic<uint64_t> version;
  std::atomic<uint64_t> descriptor;  // Of the directory, in the owner's process.
  std::atomic<uint64_t> bytes;
  std::atomic<uint64_t> slot_epoch;
  std::atomic<uint64_t> generation_index;
  std::atomic<uint64_t> generation;
  std::atomic<uint64_t> stop;
};

struct ChildFigures {
  std::atomic<uint64_t> hits;
  std::atomic<uint64_t> wrong;
};

class ProcessBoard final : public Board {
 public:
  ProcessBoard(const Posted& posted, pid_t owner) : posted_(posted), owner_(owner) {}

  // Opens the owner's descriptor by its number. The owner may close it at any moment: try again.
  void Fetch(DirectoryView<>* view, SpaceRef* space) override {
    while (!TryFetch(view, space))
      ::sched_yield();
  }

 private:
  bool TryFetch(DirectoryView<>* view, SpaceRef* space) {
    const uint64_t version = posted_.version;
    if (version % 2 == 1) return false;
    const std::string path =
        "/proc/" + std::to_string(owner_) + "/fd/" + std::to_string(posted_.descriptor);
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) return false;
    auto mapping = Mapping::Of(fd.get(), 0, posted_.bytes, Protection::kRead);
    const SpaceRef posted_space = {shm::LowOf(posted_.slot_epoch), shm::HighOf(posted_.slot_epoch),
                                   static_cast<uint32_t>(posted_.generation_index),
                                   posted_.generation};
    if (!mapping || posted_.version != version) return false;
    auto fetched = DirectoryView<>::Of((*mapping).bytes());
    if (!fetched) return false;
    mapping_ = *std::move(mapping);
    *view = *fetched;
    *space = posted_space;
    return true;
  }

  const Posted& posted_;
  const pid_t owner_;
  Mapping mapping_;
};

class Owner {
 public:
  Owner()
      : index_(*MakeTenantIndex(memory_)),
        page_memory_(kSlots * PlainPages::kPageBytes),
        pages_(page_memory_.span()),
        pager_(*index_, pages_, kSlots, 1),
        growth_(*index_, 60'000),
        posted_memory_(4096),
        posted_(*new(posted_memory_.span().data()) Posted()) {
    Post();
    for (Child& child : children_)
      Spawn(&child);
  }
  ~Owner() {
    for (Child& child : children_)
      Kill(&child);
  }

  void Turn() {
    ++turn_;
    pager_.Publish(random_.Below(kKeys));
    if (turn_ % 32 == 0) pager_.Evict(8);
    if (turn_ % 32 == 7) pager_.Drop(random_.Below(kKeys));
    if (turn_ % 16 == 1) pager_.ReapLimbo();
    if (turn_ % 4096 == 4095) pager_.Fence();
    if (turn_ % 4 == 0) growth_.Link(1);
    if (turn_ % 4096 == 4095 || index_->directory_id() != posted_id_) Post();
    if (turn_ % 64 == 0) index_->DrainRings(1 << 20, [](const auto&) {});
    if (turn_ % 2000 == 0) Disturb();
  }

  uint64_t hits() const {
    uint64_t hits = ended_hits_;
    for (const Child& child : children_)
      hits += figures(child).hits;
    return hits;
  }
  uint64_t wrong() const {
    uint64_t wrong = ended_wrong_;
    for (const Child& child : children_)
      wrong += figures(child).wrong;
    return wrong;
  }
  int kills() const { return kills_; }
  uint64_t growths() const { return index_->directory_id() - 1; }

  // Lets the children end by themselves. Whether all of them did.
  bool Finish() {
    posted_.stop = 1;
    bool clean = true;
    for (Child& child : children_) {
      ::kill(child.pid, SIGCONT);
      int status = 0;
      clean &= ::waitpid(child.pid, &status, 0) == child.pid && WIFEXITED(status) &&
               WEXITSTATUS(status) == 0;
      Bury(&child);
    }
    return clean;
  }
  // After Finish: nobody pins anything, and nothing stays behind.
  uint64_t pages_left_over() {
    const uint64_t pins = pager_.Scan();
    pager_.ReapLimbo();
    return pins + pager_.in_limbo();
  }

 private:
  struct Child {
    pid_t pid = 0;
    ClientId client = 0;
    bool stopped = false;
    std::unique_ptr<Shared> channel;
    std::unique_ptr<Shared> figures;
  };

  static ChildFigures& figures(const Child& child) {
    return *reinterpret_cast<ChildFigures*>(child.figures->span().data());
  }

  void Post() {
    UniqueFd fd = *index_->DirectoryDescriptor();
    ++posted_.version;
    posted_.descriptor = static_cast<uint64_t>(fd.get());
    posted_.bytes = shm::DirectoryBytes(index_->capacity());
    posted_.slot_epoch = shm::PackPair(pager_.space().slot, pager_.space().epoch);
    posted_.generation_index = pager_.space().generation_index;
    posted_.generation = pager_.space().generation;
    ++posted_.version;
    posted_fd_ = std::move(fd);
    posted_id_ = index_->directory_id();
  }

  void Spawn(Child* child) {
    child->client = ++last_client_;
    child->stopped = false;
    child->channel = std::make_unique<Shared>(shm::kChannelBytes);
    child->figures = std::make_unique<Shared>(4096);
    index_->AddChannel(child->client, child->channel->span(), 16);
    const pid_t owner = ::getpid();
    child->pid = ::fork();
    TERRACE_CHECK(child->pid >= 0);
    if (child->pid == 0) Read(*child, owner);
  }

  [[noreturn]] void Read(const Child& child, pid_t owner) {
    auto& channel = *reinterpret_cast<shm::Channel*>(child.channel->span().data());
    ChildFigures& told = figures(child);
    ProcessBoard board(posted_, owner);
    PinPool<> pool(channel, 1u << 20);
    Lane<> lane(pool, 0);
    PageReader reader(board, pages_, lane, kKeys, child.client);
    while (posted_.stop == 0) {
      for (int step = 0; step < 64; ++step)
        reader.Step();
      told.hits = reader.figures().hits;
      told.wrong = reader.figures().wrong;
    }
    reader.ReleaseAll();
    told.wrong = reader.figures().wrong;
    ::_exit(lane.pins() == 0 ? 0 : 1);
  }

  // Something bad happens to one of the children.
  void Disturb() {
    Child& child = children_[random_.Below(kChildren)];
    if (child.stopped) {
      ::kill(child.pid, SIGCONT);
      child.stopped = false;
    } else if (random_.Chance(1, 2)) {
      ::kill(child.pid, SIGSTOP);
      child.stopped = true;
    } else {
      Kill(&child);
      Spawn(&child);
      ++kills_;
    }
  }
  void Kill(Child* child) {
    if (child->pid == 0) return;
    ::kill(child->pid, SIGKILL);
    ::waitpid(child->pid, nullptr, 0);
    Bury(child);
  }
  void Bury(Child* child) {
    index_->RemoveChannel(child->client);
    ended_hits_ += figures(*child).hits;
    ended_wrong_ += figures(*child).wrong;
    figures(*child).hits = 0;
    figures(*child).wrong = 0;
    child->pid = 0;
  }

  MemfdDirectory memory_;
  std::unique_ptr<TenantIndex> index_;
  Shared page_memory_;
  PlainPages pages_;
  Pager<PlainPages> pager_;
  Growth growth_;
  Shared posted_memory_;
  Posted& posted_;
  UniqueFd posted_fd_;
  uint64_t posted_id_ = 0;
  Random random_{1};
  uint64_t turn_ = 0;
  Child children_[kChildren];
  ClientId last_client_ = 0;
  uint64_t ended_hits_ = 0;
  uint64_t ended_wrong_ = 0;
  int kills_ = 0;
};

TEST(RaceOfProcesses, StoppedAndKilledReadersNeverSeeOrCauseAWrongByte) {
  Owner owner;
  const auto end = std::chrono::steady_clock::now() + kDeadline;
  while ((owner.hits() < kHits || owner.kills() < kKills || owner.growths() < 5) &&
         std::chrono::steady_clock::now() < end) {
    owner.Turn();
    ASSERT_EQ(owner.wrong(), 0u) << "of " << owner.hits();
  }
  EXPECT_GE(owner.hits(), kHits);
  EXPECT_GE(owner.kills(), kKills);
  EXPECT_TRUE(owner.Finish());
  EXPECT_EQ(owner.wrong(), 0u) << "of " << owner.hits();
  EXPECT_EQ(owner.pages_left_over(), 0u);
}

}  // namespace
}  // namespace terrace
