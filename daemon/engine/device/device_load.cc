#include "daemon/engine/device/device_load.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace terrace {

DeviceLoad::DeviceLoad(const Parts& parts, Of of, Ended ended)
    : parts_(parts), of_(std::move(of)), ended_(std::move(ended)) {}

std::string DeviceLoad::Label() const {
  return "model '" + of_.name + "' version '" + of_.version + "' on device " +
         std::to_string(parts_.arenas->device());
}

template <typename Then>
std::function<void(Status)> DeviceLoad::Expect(Then then) {
  ++expected_;
  return [weak = weak_from_this(), then](Status status) {
    const std::shared_ptr<DeviceLoad> self = weak.lock();
    if (self == nullptr) return;
    // What it calls may end the load, which is not before it has returned.
    then(*self, std::move(status));
    --self->expected_;
    self->Advance();
  };
}

// ---- Host memory

void DeviceLoad::Start() {
  parts_.weights->AttachEarly(of_.holder, of_.name, of_.version, 0,
                              [weak = weak_from_this()](Result<Attached> attached) {
                                if (const auto self = weak.lock()) {
                                  self->OnAttached(std::move(attached));
                                }
                              });
  if (!outcome_.ok()) return EndIfQuiet();
  // Who waits for blocks is not told why a load failed, who waits for a load is.
  parts_.weights->Load(of_.holder, of_.name, of_.version, {},
                       [weak = weak_from_this()](Result<ModelLoaded> loaded) {
                         if (const auto self = weak.lock()) self->OnHostLoaded(std::move(loaded));
                       });
}

void DeviceLoad::OnAttached(Result<Attached> attached) {
  if (!attached) {
    Fail(attached.error());
    return EndIfQuiet();
  }
  attached_ = *attached;
  // From here on each block is held, and can be let go of by itself.
  const auto held = parts_.weights->BlocksOf(of_.holder, attached_.attachment, {});
  TERRACE_CHECK(held.has_value());
  image_ = parts_.weights->ImageOf(of_.holder, attached_.attachment);
  if (Status fits = CheckFits(); !fits.ok()) {
    Fail(std::move(fits));
    return EndIfQuiet();
  }
  for (const DeviceWaiter& waiter : waiters_)
    ReportProgress(waiter);
}

void DeviceLoad::OnHostLoaded(Result<ModelLoaded> loaded) {
  if (!loaded) {
    Fail(loaded.error());
  } else {
    loaded_ = *std::move(loaded);
    host_loaded_ = true;
  }
  Advance();
}

Status DeviceLoad::CheckFits() {
  if (parts_.arenas->Rounded(image_->block_bytes) != image_->block_bytes) {
    return {Code::kMismatch, "its blocks of " + std::to_string(image_->block_bytes) +
                                 " bytes are no multiple of the device's granularity"};
  }
  for (uint32_t block = 0; block < image_->blocks(); ++block)
    bytes_ += parts_.arenas->Rounded(BlockBytes(block));
  const uint64_t most = parts_.arenas->MostFor(DeviceArenas::Use::kWeights);
  if (bytes_ <= most) return {};
  return {Code::kExhausted, "it needs " + std::to_string(bytes_) +
                                " bytes of the device, of which weights may have " +
                                std::to_string(most)};
}

// ---- The device

void DeviceLoad::TakeRoom() {
  blocks_.resize(image_->blocks());
  for (uint32_t block = 0; block < blocks_.size() && outcome_.ok(); ++block) {
    const Result<ArenaId> arena =
        parts_.arenas->Create(BlockBytes(block), 0, DeviceArenas::Use::kWeights,
                              [weak = weak_from_this(), block](const Status& status) {
                                const auto self = weak.lock();
                                if (self == nullptr) return;
                                if (!status.ok()) {
                                  self->blocks_[block].arena = 0;
                                  self->Fail(status);
                                } else if (self->blocks_[block].came) {
                                  self->Begin(block);
                                }
                                self->Advance();
                              });
    if (!arena) {
      Fail(arena.error());
    } else {
      blocks_[block].arena = *arena;
    }
  }
  Advance();
}

void DeviceLoad::Advance() {
  while (outcome_.ok() && blocks_in_work_ < kBlocksAtOnce && next_block_ < blocks_.size()) {
    ++blocks_in_work_;
    AwaitHost(next_block_++);
  }
  EndIfQuiet();
}

void DeviceLoad::AwaitHost(uint32_t block) {
  parts_.weights->AwaitBlocks(of_.holder, attached_.attachment, {&block, 1}, 0,
                              [weak = weak_from_this(), block](const Result<Arrival>& arrival) {
                                const auto self = weak.lock();
                                if (self == nullptr || !self->outcome_.ok()) return;
                                if (!arrival) {
                                  self->Fail(arrival.error());
                                  return self->EndIfQuiet();
                                }
                                self->blocks_[block].came = true;
                                if (self->parts_.arenas->Ready(self->blocks_[block].arena))
                                  self->Begin(block);
                              });
}

void DeviceLoad::Begin(uint32_t block) {
  if (!outcome_.ok()) return;
  if (Status given = GiveToTier(block); !given.ok()) {
    Fail(std::move(given));
    EndIfQuiet();
  }
}

Status DeviceLoad::GiveToTier(uint32_t block) {
  ASSIGN_OR_RETURN(const std::vector<ArenaId> host,
                   parts_.weights->BlocksOf(of_.holder, attached_.attachment, {&block, 1}));
  ASSIGN_OR_RETURN(UniqueFd file, parts_.host->Descriptor(host.front(), Protection::kRead));
  blocks_[block].host = host.front();
  parts_.arenas->tier().AddHost(host.front(), image_->BlockMemory(block), std::move(file),
                                Protection::kRead, Registration::kInBackground,
                                parts_.arenas->Deadline(),
                                Expect([block](DeviceLoad& load, Status status) {
                                  if (status.ok()) return load.CopyNext(block);
                                  load.blocks_[block].host = 0;
                                  load.Fail(std::move(status));
                                }));
  return {};
}

void DeviceLoad::CopyNext(uint32_t index) {
  Block& block = blocks_[index];
  const uint64_t left = BlockBytes(index) - block.copied;
  if (left == 0 || !outcome_.ok()) return TakeFromTier(index);
  const uint64_t bytes = std::min(left, kPieceBytes);
  parts_.arenas->tier().Copy(
      {{.dst = {block.arena, block.copied}, .src = {block.host, block.copied}, .bytes = bytes}},
      /*complete=*/true, parts_.arenas->Deadline(),
      Expect([index, bytes](DeviceLoad& load, Status status) {
        if (!status.ok()) {
          load.Fail(std::move(status));
          return load.TakeFromTier(index);
        }
        load.blocks_[index].copied += bytes;
        load.copied_bytes_ += bytes;
        // A callback may add waiters, take some away, or end the load.
        for (size_t i = 0; i < load.waiters_.size(); ++i)
          load.ReportProgress(DeviceWaiter(load.waiters_[i]));
        load.CopyNext(index);
      }));
}

void DeviceLoad::TakeFromTier(uint32_t block) {
  parts_.arenas->tier().Release(blocks_[block].host, parts_.arenas->Deadline(),
                                Expect([block](DeviceLoad& load, const Status& status) {
                                  // What it does not know it does not have.
                                  if (status.ok() || status.code() == Code::kNotFound) {
                                    return load.BlockDone(block);
                                  }
                                  load.retries_.push_back(block);
                                }));
}

void DeviceLoad::BlockDone(uint32_t block) {
  blocks_[block].host = 0;
  --blocks_in_work_;
  parts_.weights->LetGoBlock(of_.holder, attached_.attachment, block);
}

void DeviceLoad::Turn() {
  for (const uint32_t block : std::exchange(retries_, {}))
    TakeFromTier(block);
}

// ---- The end

void DeviceLoad::Fail(Status status) {
  if (!outcome_.ok() || is_over_) return;
  outcome_ = std::move(status).WithContext(Label());
  const std::vector<DeviceWaiter> waiters = std::exchange(waiters_, {});
  for (const DeviceWaiter& waiter : waiters)
    waiter.done(outcome_);
}

void DeviceLoad::Cancel(Status why) {
  Fail(std::move(why));
  EndIfQuiet();
}

void DeviceLoad::EndIfQuiet() {
  if (is_over_ || expected_ > 0 || !retries_.empty()) return;
  const bool came =
      host_loaded_ && !blocks_.empty() && blocks_in_work_ == 0 && next_block_ == blocks_.size();
  if (outcome_.ok() && !came) return;
  is_over_ = true;
  const std::shared_ptr<DeviceLoad> self = shared_from_this();
  if (!outcome_.ok()) {
    for (const Block& block : blocks_) {
      if (block.arena != 0) parts_.arenas->Release(block.arena);
    }
    // Its waits end as well, and find that it is over.
    parts_.weights->ClientGone(of_.holder);
  }
  ended_(self);
}

void DeviceLoad::ReportProgress(const DeviceWaiter& waiter) const {
  if (image_ != nullptr && waiter.progress) waiter.progress(copied_bytes_, image_->bytes);
}

bool DeviceLoad::Uses(ArenaId arena) const {
  return std::any_of(blocks_.begin(), blocks_.end(),
                     [arena](const Block& block) { return block.arena == arena; });
}

std::vector<ArenaId> DeviceLoad::Arenas() const {
  std::vector<ArenaId> arenas;
  for (const Block& block : blocks_)
    arenas.push_back(block.arena);
  return arenas;
}

}  // namespace terrace
