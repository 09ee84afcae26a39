// Life: what this client maps of one daemon life, from a hello to the loss of that daemon: its
// channel, the directory, the arenas.
//
// Owned together by the client (the present one), by readers, and by whatever was pinned or granted
// in it: mappings stay until the last of them is gone, also when the daemon is. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "libclient/arena_map.h"
#include "libclient/directory_view.h"
#include "libclient/fork_word.h"
#include "libclient/lane.h"
#include "libclient/mapped_range.h"
#include "libclient/messages.h"
#include "libclient/page_range.h"
#include "libclient/pin_pool.h"

namespace terrace::client {

// A mapped directory; shared by the readers that look things up in it.
struct Directory {
  MappedRange mapping;
  DirectoryView<> view;

  static Result<std::shared_ptr<const Directory>> Map(const UniqueFd& fd);
};

// What lives of one client share.
struct LifeParts {
  std::shared_ptr<PageRanges> ranges;
  std::shared_ptr<const ForkWord> fork_word;
};

class Life {
 public:
  // `hello` is the daemon's answer; `epoch` this client's number for the life.
  static Result<std::shared_ptr<Life>> Make(uint64_t epoch, const messages::HelloReply& hello,
                                            const UniqueFd& channel, const UniqueFd& directory,
                                            LifeParts parts);
  Life(const Life&) = delete;
  Life& operator=(const Life&) = delete;

  uint64_t epoch() const { return epoch_; }
  // In a forked child nothing of it is mapped.
  bool in_child() const { return fork_word_->in_child(); }
  const messages::HelloReply& hello() const { return hello_; }
  PinPool<>& pins() { return pins_; }
  ArenaMap& arenas() { return arenas_; }
  const ArenaMap& arenas() const { return arenas_; }

  std::shared_ptr<const Directory> directory() const EXCLUDES(mu_);
  Status SetDirectory(const UniqueFd& fd) EXCLUDES(mu_);

  // Lanes are numbers below kMaxLanes; nullopt: all are in use.
  std::optional<uint32_t> TakeLane() EXCLUDES(mu_);
  void ReturnLane(uint32_t lane) EXCLUDES(mu_);

  // Grants that somebody in this process still knows: the others are to be given back when the
  // daemon says that their deadline passed.
  void KnowGrants(std::span<const uint64_t> grants) EXCLUDES(mu_);
  void ForgetGrants(std::span<const uint64_t> grants) EXCLUDES(mu_);
  std::vector<uint64_t> UnknownOf(std::span<const uint64_t> grants) const EXCLUDES(mu_);

  // The daemon gave an arena of a device once more; how often it has, from then on counted anew.
  void Given(uint32_t arena, uint32_t times = 1) EXCLUDES(mu_);
  uint32_t TakeGiven(uint32_t arena) EXCLUDES(mu_);
  // The client was taken up again: whatever was on its way with the connection before, the daemon
  // counts each arena that was given as given once.
  void GivenOnce() EXCLUDES(mu_);

  // The daemon says that these arenas are gone.
  void RemoveArenas(std::span<const uint32_t> arenas);

  // Sums over all lanes.
  struct Counts {
    uint64_t lookups = 0;
    uint64_t hits = 0;
    uint64_t misses = 0;
  };
  Counts counts() const;
  // Arenas that pin words name now; tells what to keep, and how many pins there are.
  struct Pins {
    std::set<uint32_t> arenas;
    uint64_t count = 0;
    uint64_t bytes = 0;
  };
  Pins PinsNow() const;

 private:
  Life(uint64_t epoch, const messages::HelloReply& hello, MappedRange channel, LifeParts parts);
  const shm::Channel& channel() const {
    return *reinterpret_cast<const shm::Channel*>(channel_.data());
  }

  const uint64_t epoch_;
  const messages::HelloReply hello_;
  const std::shared_ptr<const ForkWord> fork_word_;
  const MappedRange channel_;
  PinPool<> pins_;
  ArenaMap arenas_;

  mutable Mutex mu_;
  std::shared_ptr<const Directory> directory_ GUARDED_BY(mu_);
  uint64_t lanes_ GUARDED_BY(mu_) = 0;  // A bit a lane in use.
  std::set<uint64_t> grants_ GUARDED_BY(mu_);
  std::map<uint32_t, uint32_t> given_ GUARDED_BY(mu_);
};

}  // namespace terrace::client
