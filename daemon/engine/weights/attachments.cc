// Weights, what clients hold of it: attachments, and the blocks that each keeps in memory.
#include <utility>

#include "base/check.h"
#include "daemon/engine/weights/load.h"
#include "daemon/engine/weights/version.h"
#include "daemon/engine/weights/weights.h"

namespace terrace {

using weights::Version;
using weights::Waiter;

namespace {

Status NotTheirs(uint64_t attachment) {
  return {Code::kNotFound,
          "attachment " + std::to_string(attachment) + " is not one of this client"};
}

Status CheckBlock(const Version& version, uint32_t block) {
  if (block < version.blocks.size()) return {};
  return {Code::kInvalidArgument, "blocks: " + std::to_string(block) + " is beyond the " +
                                      std::to_string(version.blocks.size()) + " blocks of " +
                                      version.Label()};
}

}  // namespace

void Weights::Holder::Take(ArenaId block, uint64_t block_bytes) {
  if (++holds[block] == 1) bytes += block_bytes;
}

void Weights::Holder::Drop(ArenaId block, uint64_t block_bytes) {
  const auto held = holds.find(block);
  TERRACE_CHECK(held != holds.end());
  if (--held->second > 0) return;
  bytes -= block_bytes;
  holds.erase(held);
}

void Weights::Attach(ClientId client, const std::string& name, const std::string& version,
                     bool load, uint32_t deadline_ms, std::function<void(Result<Attached>)> done) {
  auto found = Find(name, version);
  if (!found) return done(std::move(found).error());
  const VersionPtr target = *found;
  if (target->Complete() && (load || !target->let_go)) {
    return done(AttachNow(client, target));
  }
  if (!load) {
    const char* why = target->loading                ? "is being loaded"
                      : target->resident_blocks == 0 ? "is not loaded"
                      : target->let_go               ? "was unloaded"
                                                     : "was partly evicted";
    return done(Status(Code::kNotFound, target->Label() + " " + why));
  }
  Waiter waiter;
  waiter.client = client;
  if (deadline_ms > 0) waiter.deadline = parts_.clock->Now() + deadline_ms * kNsPerMs;
  waiter.done = [this, client, target, done](const Status& status) {
    if (!status.ok()) return done(status);
    done(AttachNow(client, target));
  };
  if (Status status = Await(target, std::move(waiter)); !status.ok()) done(std::move(status));
}

Result<Weights::Holder*> Weights::HolderOf(ClientId client) {
  Holder& holder = holders_[client];
  if (holder.attachments.size() < kMaxAttachments) return &holder;
  return Status(Code::kExhausted, "more than " + std::to_string(kMaxAttachments) +
                                      " attachments of one client; detach some");
}

Result<Attached> Weights::AttachNow(ClientId client, const VersionPtr& version) {
  ASSIGN_OR_RETURN(Holder* const of_client, HolderOf(client));
  Holder& holder = *of_client;
  version->let_go = false;
  Attachment attachment;
  attachment.version = version;
  attachment.holds.assign(version->blocks.size(), true);
  for (uint32_t block = 0; block < version->blocks.size(); ++block) {
    Hold(*version, block);
    holder.Take(version->blocks[block].arena, version->image->BlockMemory(block));
    parts_.memory->TouchBlock(version->blocks[block].arena);
  }
  ++version->attachments;
  const uint64_t id = ++last_attachment_;
  holder.attachments.emplace(id, std::move(attachment));
  return Attached{.attachment = id,
                  .version = version->version,
                  .digest = version->digest,
                  .manifest_bytes = version->manifest_bytes,
                  .manifest = version->manifest,
                  .arriving = false};
}

Result<std::vector<ArenaId>> Weights::BlocksOf(ClientId client, uint64_t attachment,
                                               std::span<const uint32_t> blocks) {
  if (FindAttachment(client, attachment) == nullptr) return NotTheirs(attachment);
  Holder& holder = holders_.at(client);
  Attachment& attached = holder.attachments.at(attachment);
  Version& version = *attached.version;
  std::vector<uint32_t> wanted(blocks.begin(), blocks.end());
  if (wanted.empty()) {
    for (uint32_t block = 0; block < version.blocks.size(); ++block)
      wanted.push_back(block);
  }
  if (wanted.size() > version.blocks.size()) {
    return Status(Code::kInvalidArgument, "blocks: more of them than the model has");
  }
  for (const uint32_t block : wanted)
    RETURN_IF_ERROR(CheckBlock(version, block));
  if (!attached.failure.ok()) return attached.failure;
  if (attached.arriving != nullptr) return ArrivedOf(holder, attached, wanted);
  std::vector<ArenaId> arenas;
  for (const uint32_t block : wanted) {
    if (version.blocks[block].arena == 0) {
      return Status(Code::kUnavailable, "block " + std::to_string(block) + " of " +
                                            version.Label() + " was evicted; attach again");
    }
    arenas.push_back(version.blocks[block].arena);
  }
  std::vector<bool> holds(version.blocks.size(), false);
  if (attached.chosen) holds = attached.holds;
  for (const uint32_t block : wanted) {
    if (!attached.holds[block]) {
      Hold(version, block);
      holder.Take(version.blocks[block].arena, version.image->BlockMemory(block));
    }
    attached.holds[block] = true;
    holds[block] = true;
    parts_.memory->TouchBlock(version.blocks[block].arena);
  }
  for (uint32_t block = 0; block < version.blocks.size(); ++block) {
    if (!attached.holds[block] || holds[block]) continue;
    holder.Drop(version.blocks[block].arena, version.image->BlockMemory(block));
    Unhold(attached.version, block);
  }
  ReleaseLeaving();
  attached.holds = std::move(holds);
  attached.chosen = true;
  return arenas;
}

const Weights::Attachment* Weights::FindAttachment(ClientId client, uint64_t attachment) const {
  const auto holder = holders_.find(client);
  if (holder == holders_.end()) return nullptr;
  const auto found = holder->second.attachments.find(attachment);
  return found != holder->second.attachments.end() ? &found->second : nullptr;
}

const std::string* Weights::ModelOf(ClientId client, uint64_t attachment) const {
  const Attachment* const found = FindAttachment(client, attachment);
  return found != nullptr ? &found->version->name : nullptr;
}

std::shared_ptr<const weights::Image> Weights::ImageOf(ClientId client, uint64_t attachment) const {
  const Attachment* const found = FindAttachment(client, attachment);
  return found != nullptr ? found->version->image : nullptr;
}

void Weights::LetGoBlock(ClientId client, uint64_t attachment, uint32_t block) {
  if (FindAttachment(client, attachment) == nullptr) return;
  Holder& holder = holders_.at(client);
  Attachment& attached = holder.attachments.at(attachment);
  Version& version = *attached.version;
  // What a load that failed gave goes with the attachment.
  if (!attached.failure.ok()) return;
  const uint64_t bytes = version.image->BlockMemory(block);
  if (attached.arriving != nullptr) attached.wanted[block] = false;
  if (const auto given = attached.given.extract(block)) holder.Drop(given.mapped(), bytes);
  if (attached.holds[block]) {
    holder.Drop(version.blocks[block].arena, bytes);
    attached.holds[block] = false;
    Unhold(attached.version, block);
    ReleaseLeaving();
  }
}

Status Weights::Detach(ClientId client, uint64_t attachment) {
  if (FindAttachment(client, attachment) == nullptr) return NotTheirs(attachment);
  Holder& holder = holders_.at(client);
  const Attachment ended = std::move(holder.attachments.extract(attachment).mapped());
  const Version& version = *ended.version;
  for (uint32_t block = 0; block < version.blocks.size(); ++block) {
    if (!ended.holds[block]) continue;
    holder.Drop(version.blocks[block].arena, version.image->BlockMemory(block));
  }
  for (const auto& [block, arena] : ended.given)
    holder.Drop(arena, version.image->BlockMemory(block));
  if (holder.attachments.empty()) holders_.erase(client);
  EndAttachment(ended);
  ReleaseLeaving();
  const std::vector<BlockWaiter> waiters = TakeBlockWaiters([&](const BlockWaiter& waiter) {
    return waiter.client == client && waiter.attachment == attachment;
  });
  for (const BlockWaiter& waiter : waiters)
    waiter.done(NotTheirs(attachment));
  return {};
}

void Weights::EndAttachment(const Attachment& ended) {
  Version& version = *ended.version;
  --version.attachments;
  for (uint32_t block = 0; block < version.blocks.size(); ++block) {
    if (ended.holds[block]) Unhold(ended.version, block);
  }
  if (!ended.failure.ok()) ReleaseGiven(ended);
  ReleaseManifestIfIdle(version);
}

Weights::Holdings Weights::HoldingsOf(ClientId client) const {
  const auto holder = holders_.find(client);
  if (holder == holders_.end()) return {};
  return {.attachments = holder->second.attachments.size(), .bytes = holder->second.bytes};
}

}  // namespace terrace
