#include "libclient/life.h"

#include <bit>
#include <string>
#include <utility>

namespace terrace::client {

Result<std::shared_ptr<const Directory>> Directory::Map(const UniqueFd& fd) {
  ASSIGN_OR_RETURN(const uint64_t bytes, FileBytes(fd.get()));
  auto directory = std::make_shared<Directory>();
  ASSIGN_OR_RETURN(directory->mapping, MappedRange::Of(fd.get(), bytes, Protection::kRead));
  ASSIGN_OR_RETURN(directory->view, DirectoryView<>::Of(directory->mapping.bytes()));
  return std::shared_ptr<const Directory>(std::move(directory));
}

Result<std::shared_ptr<Life>> Life::Make(uint64_t epoch, const messages::HelloReply& hello,
                                         const UniqueFd& channel, const UniqueFd& directory,
                                         LifeParts parts) {
  ASSIGN_OR_RETURN(MappedRange mapping,
                   MappedRange::Of(channel.get(), shm::kChannelBytes, Protection::kReadWrite));
  const auto& words = *reinterpret_cast<const shm::Channel*>(mapping.data());
  if (words.magic.load(std::memory_order_acquire) != shm::kChannelMagic ||
      words.version.load(std::memory_order_acquire) != shm::kLayoutVersion) {
    return Status(Code::kMismatch, "the daemon's channel has another layout than this library");
  }
  std::shared_ptr<Life> life(new Life(epoch, hello, std::move(mapping), std::move(parts)));
  RETURN_IF_ERROR(life->SetDirectory(directory));
  return life;
}

Life::Life(uint64_t epoch, const messages::HelloReply& hello, MappedRange channel, LifeParts parts)
    : epoch_(epoch),
      hello_(hello),
      fork_word_(std::move(parts.fork_word)),
      channel_(std::move(channel)),
      pins_(*reinterpret_cast<shm::Channel*>(channel_.data()), hello.max_pinned_bytes),
      arenas_(std::move(parts.ranges), hello.host_capacity_bytes) {}

std::shared_ptr<const Directory> Life::directory() const {
  MutexLock lock(mu_);
  return directory_;
}

Status Life::SetDirectory(const UniqueFd& fd) {
  ASSIGN_OR_RETURN(std::shared_ptr<const Directory> directory, Directory::Map(fd));
  MutexLock lock(mu_);
  // Two readers may have asked; the answer to the first may come last.
  if (directory_ == nullptr || directory_->view.id() <= directory->view.id()) {
    directory_.swap(directory);
  }
  return {};
}

std::optional<uint32_t> Life::TakeLane() {
  MutexLock lock(mu_);
  const auto lane = static_cast<uint32_t>(std::countr_one(lanes_));
  if (lane >= shm::kMaxLanes) return std::nullopt;
  lanes_ |= uint64_t{1} << lane;
  return lane;
}

void Life::ReturnLane(uint32_t lane) {
  MutexLock lock(mu_);
  lanes_ &= ~(uint64_t{1} << lane);
}

void Life::KnowGrants(std::span<const uint64_t> grants) {
  MutexLock lock(mu_);
  grants_.insert(grants.begin(), grants.end());
}

void Life::ForgetGrants(std::span<const uint64_t> grants) {
  MutexLock lock(mu_);
  for (const uint64_t grant : grants)
    grants_.erase(grant);
}

std::vector<uint64_t> Life::UnknownOf(std::span<const uint64_t> grants) const {
  MutexLock lock(mu_);
  std::vector<uint64_t> unknown;
  for (const uint64_t grant : grants) {
    if (!grants_.contains(grant)) unknown.push_back(grant);
  }
  return unknown;
}

void Life::Given(uint32_t arena, uint32_t times) {
  MutexLock lock(mu_);
  given_[arena] += times;
}

void Life::GivenOnce() {
  MutexLock lock(mu_);
  for (auto& [arena, times] : given_)
    times = 1;
}

uint32_t Life::TakeGiven(uint32_t arena) {
  MutexLock lock(mu_);
  const auto given = given_.find(arena);
  if (given == given_.end()) return 0;
  const uint32_t count = given->second;
  given_.erase(given);
  return count;
}

void Life::RemoveArenas(std::span<const uint32_t> arenas) {
  arenas_.Remove(arenas, PinsNow().arenas);
}

Life::Counts Life::counts() const {
  constexpr auto kRelaxed = std::memory_order_relaxed;
  Counts counts;
  const uint64_t used = channel().lanes.load(kRelaxed);
  for (uint32_t lane = 0; lane < shm::kMaxLanes; ++lane) {
    if ((used >> lane & 1) == 0) continue;
    const shm::LaneCounters& counters = channel().counters[lane];
    for (const shm::Word& hits : counters.hits)
      counts.hits += hits.load(kRelaxed);
    for (const shm::Word& misses : counters.misses)
      counts.misses += misses.load(kRelaxed);
  }
  counts.lookups = counts.hits + counts.misses;
  return counts;
}

Life::Pins Life::PinsNow() const {
  // In the total order with the pins, for ArenaMap::LetGo.
  constexpr auto kTotal = std::memory_order_seq_cst;
  Pins pins;
  for (uint32_t line = 0; line < shm::kMaxPinLines; ++line) {
    if ((channel().summary[line / 64].load(kTotal) >> line % 64 & 1) == 0) continue;
    for (const shm::Word& word : channel().lines[line].pins) {
      const shm::Handle handle = word.load(kTotal);
      if (handle == 0) continue;
      pins.arenas.insert(shm::ArenaOf(handle));
      ++pins.count;
      pins.bytes += arenas_.PageBytes(shm::ArenaOf(handle));
    }
  }
  return pins;
}

}  // namespace terrace::client
