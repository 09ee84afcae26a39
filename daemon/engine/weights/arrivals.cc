// Weights, attachments to what is still being loaded: they are given each block as it comes.
//
// What came belongs to the load until all of it is published. A client may have mapped it by then:
// of a load that fails, such blocks are charged until the last who was given them has let go.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "daemon/engine/weights/load.h"
#include "daemon/engine/weights/version.h"
#include "daemon/engine/weights/weights.h"

namespace terrace {

using weights::Version;
using weights::Waiter;

namespace {

// A wait that is over because of the client, its deadline, its limits or the daemon's end has these
// codes: the failure of a load must not look like one of them.
Status FailureOf(const Status& status) {
  const bool of_a_wait = status.code() == Code::kDeadlineExceeded ||
                         status.code() == Code::kUnavailable || status.code() == Code::kExhausted ||
                         status.code() == Code::kPermissionDenied;
  return of_a_wait ? Status(Code::kInternal, status.message()) : status;
}

}  // namespace

void Weights::AttachEarly(ClientId client, const std::string& name, const std::string& version,
                          uint32_t deadline_ms, std::function<void(Result<Attached>)> done) {
  auto found = Find(name, version);
  if (!found) return done(std::move(found).error());
  const VersionPtr target = *found;
  if (target->Complete()) return done(AttachNow(client, target));
  Waiter waiter;
  waiter.client = client;
  waiter.early = true;
  if (deadline_ms > 0) waiter.deadline = parts_.clock->Now() + deadline_ms * kNsPerMs;
  waiter.done = [this, client, target, done](const Status& status) {
    if (!status.ok()) return done(status);
    for (const LoadPtr& load : loads_) {
      if (load->version() == target) return done(AttachArriving(client, load));
    }
    done(AttachNow(client, target));
  };
  if (Status status = Await(target, std::move(waiter)); !status.ok()) done(std::move(status));
}

void Weights::LoadDrafted(weights::Load& load) {
  PublishManifest(load.version(), load);
  std::vector<Waiter>& waiters = load.waiters();
  const auto early = std::stable_partition(waiters.begin(), waiters.end(),
                                           [](const Waiter& waiter) { return !waiter.early; });
  const std::vector<Waiter> attaching(std::make_move_iterator(early),
                                      std::make_move_iterator(waiters.end()));
  waiters.erase(early, waiters.end());
  for (const Waiter& waiter : attaching)
    waiter.done(Status());
}

Result<Attached> Weights::AttachArriving(ClientId client, const LoadPtr& load) {
  const VersionPtr& version = load->version();
  ASSIGN_OR_RETURN(Holder* const holder, HolderOf(client));
  Attachment attachment;
  attachment.version = version;
  attachment.holds.assign(version->blocks.size(), false);
  attachment.wanted.assign(version->blocks.size(), true);
  attachment.arriving = load;
  ++version->attachments;
  const uint64_t id = ++last_attachment_;
  holder->attachments.emplace(id, std::move(attachment));
  return Attached{.attachment = id,
                  .version = version->version,
                  .digest = version->digest,
                  .manifest_bytes = version->manifest_bytes,
                  .manifest = version->manifest,
                  .arriving = true};
}

std::vector<ArenaId> Weights::ArrivedOf(Holder& holder, Attachment& attached,
                                        std::span<const uint32_t> blocks) {
  Version& version = *attached.version;
  if (!std::exchange(attached.chosen, true)) {
    attached.wanted.assign(version.blocks.size(), false);
  }
  std::vector<ArenaId> arenas;
  for (const uint32_t block : blocks) {
    attached.wanted[block] = true;
    const uint64_t bytes = version.image->BlockMemory(block);
    const ArenaId arena = attached.arriving->ArenaOf(block);
    arenas.push_back(arena);
    if (arena == 0) continue;
    if (version.blocks[block].arena == 0) {
      if (attached.given.emplace(block, arena).second) holder.Take(arena, bytes);
    } else if (!attached.holds[block]) {
      attached.holds[block] = true;
      Hold(version, block);
      holder.Take(arena, bytes);
    }
  }
  return arenas;
}

void Weights::AwaitBlocks(ClientId client, uint64_t attachment, std::span<const uint32_t> blocks,
                          uint32_t deadline_ms, std::function<void(Result<Arrival>)> done) {
  const Attachment* const attached = FindAttachment(client, attachment);
  if (attached == nullptr) {
    return done(Status(Code::kNotFound,
                       "attachment " + std::to_string(attachment) + " is not one of this client"));
  }
  const Version& version = *attached->version;
  for (const uint32_t block : blocks) {
    if (block < version.blocks.size()) continue;
    return done(Status(Code::kInvalidArgument, "blocks: " + std::to_string(block) +
                                                   " is beyond the blocks of " + version.Label()));
  }
  if (!attached->failure.ok()) return done(attached->failure);
  if (attached->arriving == nullptr) {
    return done(Arrival{.arriving = false, .digest = version.digest});
  }
  BlockWaiter waiter;
  waiter.client = client;
  waiter.attachment = attachment;
  waiter.deadline =
      deadline_ms > 0 ? parts_.clock->Now() + deadline_ms * kNsPerMs : weights::kNoDeadline;
  waiter.blocks.assign(blocks.begin(), blocks.end());
  if (HaveCome(*attached, waiter)) {
    return done(Arrival{.arriving = true, .digest = version.digest});
  }
  waiter.tenant = parts_.tenant_of(client);
  size_t theirs = 0;
  size_t of_tenant = 0;
  for (const BlockWaiter& other : block_waiters_) {
    theirs += other.client == client ? 1 : 0;
    of_tenant += other.tenant == waiter.tenant ? 1 : 0;
  }
  if (theirs >= kMaxClientWaiters) {
    return done(Status(Code::kExhausted, "this client waits for blocks " +
                                             std::to_string(kMaxClientWaiters) + " times already"));
  }
  if (Status share = CheckShare(of_tenant, block_waiters_.size()); !share.ok()) {
    return done(std::move(share).WithContext("blocks of " + version.Label()));
  }
  waiter.done = std::move(done);
  block_waiters_.push_back(std::move(waiter));
}

bool Weights::HaveCome(const Attachment& attached, BlockWaiter& waiter) const {
  while (waiter.come < waiter.blocks.size() &&
         attached.arriving->ArenaOf(waiter.blocks[waiter.come]) != 0) {
    ++waiter.come;
  }
  return !waiter.blocks.empty() && waiter.come == waiter.blocks.size();
}

std::vector<Weights::BlockWaiter> Weights::TakeBlockWaiters(
    const std::function<bool(const BlockWaiter&)>& ended) {
  std::vector<BlockWaiter> taken;
  std::vector<BlockWaiter> left;
  for (BlockWaiter& waiter : block_waiters_)
    (ended(waiter) ? taken : left).push_back(std::move(waiter));
  block_waiters_ = std::move(left);
  return taken;
}

void Weights::BlocksCame(const weights::Load& load) {
  const Digest digest = load.version()->digest;
  std::vector<BlockWaiter> left;
  std::vector<BlockWaiter> served;
  for (BlockWaiter& waiter : block_waiters_) {
    const Attachment& attached = *FindAttachment(waiter.client, waiter.attachment);
    const bool come = attached.arriving.get() == &load && HaveCome(attached, waiter);
    (come ? served : left).push_back(std::move(waiter));
  }
  block_waiters_ = std::move(left);
  for (const BlockWaiter& waiter : served)
    waiter.done(Arrival{.arriving = true, .digest = digest});
}

std::vector<Weights::BlockWaiter> Weights::EndArrivals(const LoadPtr& load, const Status& status) {
  std::vector<BlockWaiter> waiters = TakeBlockWaiters([&](const BlockWaiter& waiter) {
    return FindAttachment(waiter.client, waiter.attachment)->arriving == load;
  });
  for (auto& [client, holder] : holders_) {
    for (auto& [id, attached] : holder.attachments) {
      if (attached.arriving != load) continue;
      status.ok() ? Complete(holder, attached) : FailArrival(attached, FailureOf(status));
      attached.arriving = nullptr;
    }
  }
  return waiters;
}

void Weights::TellArrived(const std::vector<BlockWaiter>& waiters, const Version& version,
                          const Status& status) {
  for (const BlockWaiter& waiter : waiters) {
    status.ok() ? waiter.done(Arrival{.arriving = false, .digest = version.digest})
                : waiter.done(FailureOf(status));
  }
}

void Weights::Complete(Holder& holder, Attachment& attached) {
  Version& version = *attached.version;
  for (uint32_t block = 0; block < version.blocks.size(); ++block) {
    const bool given = attached.given.count(block) > 0;
    if (attached.holds[block] || !(given || attached.wanted[block])) continue;
    const ArenaId arena = version.blocks[block].arena;
    Hold(version, block);
    attached.holds[block] = true;
    if (!given) holder.Take(arena, version.image->BlockMemory(block));
    parts_.memory->TouchBlock(arena);
  }
  attached.given.clear();
  attached.wanted.clear();
}

void Weights::FailArrival(Attachment& attached, const Status& status) {
  attached.failure = status;
  attached.wanted.clear();
  for (const auto& [block, arena] : attached.given) {
    Given& given = given_[arena];
    given.bytes = attached.version->image->BlockMemory(block);
    ++given.attachments;
  }
}

void Weights::ReleaseGiven(const Attachment& ended) {
  for (const auto& [block, arena] : ended.given) {
    const auto given = given_.find(arena);
    TERRACE_CHECK(given != given_.end());
    if (--given->second.attachments > 0) continue;
    orphans_.push_back({arena, given->second.bytes});
    given_.erase(given);
  }
}

}  // namespace terrace
