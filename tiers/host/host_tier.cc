#include "tiers/host/host_tier.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/check.h"
#include "tiers/host/host_arena.h"
#include "tiers/host/host_report.h"

namespace terrace {
namespace {

class MemfdHostTier final : public HostTier {
 public:
  MemfdHostTier(const HostTierOptions& options, HostSystem& system, Executor& owner,
                WorkerPool& pool)
      : options_(options),
        system_(system),
        owner_(owner),
        pool_(pool),
        life_(std::make_shared<Life>()) {
    life_->tier = this;
  }

  ~MemfdHostTier() override {
    life_->ended.store(true, std::memory_order_relaxed);
    life_->tier = nullptr;
  }

  Result<Created> Create(size_t bytes, ArenaUse use) override;
  std::span<uint8_t> Bytes(ArenaId arena) override { return Find(arena).bytes(); }
  Status Populate(const Extent& extent) override {
    return Find(extent.arena).Populate(extent.offset, extent.bytes);
  }
  Status Punch(const Extent& extent) override {
    return Find(extent.arena).Punch(extent.offset, extent.bytes);
  }
  Status Seal(ArenaId arena) override { return Find(arena).SealWrites(); }
  void Release(ArenaId arena) override;
  Result<UniqueFd> Descriptor(ArenaId arena, Protection protection) override {
    return Find(arena).Descriptor(protection);
  }
  void SetReserve(size_t bytes) override;
  size_t blank_bytes() const override { return options_.blank_bytes; }
  HostReport Report() const override;

 private:
  using ArenaPtr = std::unique_ptr<HostArena>;

  // What blanks in the making share with the tier: they may finish after it is gone.
  struct Life {
    MemfdHostTier* tier = nullptr;   // Owner thread only.
    std::atomic<bool> ended{false};  // Only saves work: a late reader makes one blank in vain.
  };

  HostArena& Find(ArenaId arena) const {
    const auto found = arenas_.find(arena);
    TERRACE_CHECK(found != arenas_.end());
    return *found->second;
  }
  HostArenaOptions arena_options() const {
    return {.huge_pages = options_.huge_pages, .lock = options_.lock_memory};
  }
  ArenaPtr TakeBlank(size_t bytes);
  void MakeBlanks();
  void BlankArrived(Result<ArenaPtr> blank, uint64_t request);
  std::string ReserveSentence() const;

  const HostTierOptions options_;
  HostSystem& system_;
  Executor& owner_;
  WorkerPool& pool_;
  const std::shared_ptr<Life> life_;

  std::unordered_map<ArenaId, ArenaPtr> arenas_;
  ArenaId last_slab_id_ = 0;
  ArenaId last_block_id_ = kFirstBlockId - 1;
  size_t arena_bytes_ = 0;

  std::vector<ArenaPtr> blanks_;
  size_t blank_target_ = 0;  // Blanks wanted.
  size_t making_ = 0;        // Blanks being made now.
  Status reserve_error_;     // Why no more are being made; cleared by the next SetReserve.
  uint64_t request_ = 0;     // Of SetReserve: failures of an older one's blanks stop nothing.
};

Result<HostTier::Created> MemfdHostTier::Create(size_t bytes, ArenaUse use) {
  if (bytes == 0 || bytes % kSmallPageBytes != 0) {
    return Status(Code::kInvalidArgument,
                  "arena of " + std::to_string(bytes) + " bytes: not a multiple of 4096");
  }
  const bool slab = use == ArenaUse::kSlab;
  ArenaId& last_id = slab ? last_slab_id_ : last_block_id_;
  if (last_id >= (slab ? options_.max_slab_id : std::numeric_limits<ArenaId>::max())) {
    return Status(Code::kExhausted, "all arena numbers of this daemon's life are used");
  }
  ArenaPtr arena = TakeBlank(bytes);
  const bool from_reserve = arena != nullptr;
  if (!from_reserve) {
    ASSIGN_OR_RETURN(arena, HostArena::Make(system_, bytes, arena_options()));
  }
  if (slab) RETURN_IF_ERROR(arena->SealSize());
  arena_bytes_ += bytes;
  arenas_.emplace(++last_id, std::move(arena));
  return Created{.id = last_id, .resident = from_reserve};
}

MemfdHostTier::ArenaPtr MemfdHostTier::TakeBlank(size_t bytes) {
  // A small arena (a manifest) would cut most of a blank away: populating it afresh costs less.
  if (blanks_.empty() || bytes > options_.blank_bytes || bytes < options_.blank_bytes / 8) {
    return nullptr;
  }
  // One that stands on reserved huge pages serves sizes of 2 MiB multiples only.
  const bool any = bytes % kHugePageBytes == 0;
  const auto fits = std::find_if(blanks_.rbegin(), blanks_.rend(), [&](const ArenaPtr& blank) {
    return any || bytes == blank->bytes().size() || !blank->hugetlb();
  });
  if (fits == blanks_.rend()) return nullptr;
  ArenaPtr blank = std::move(*fits);
  blanks_.erase(std::next(fits).base());
  // One that cannot be cut to size is no use to anybody.
  if (!blank->ShrinkTo(bytes).ok()) return nullptr;
  blank->ClaimAll();
  return blank;
}

void MemfdHostTier::Release(ArenaId arena) {
  arena_bytes_ -= Find(arena).bytes().size();
  arenas_.erase(arena);
}

// ---- The reserve --------------------------------------------------------------------------------

void MemfdHostTier::SetReserve(size_t bytes) {
  blank_target_ = bytes / options_.blank_bytes;
  if (blanks_.size() > blank_target_) blanks_.resize(blank_target_);
  reserve_error_ = Status();
  ++request_;
  MakeBlanks();
}

void MemfdHostTier::MakeBlanks() {
  // At most one a thread is on its way: a lower target takes effect after as many.
  while (reserve_error_.ok() && blanks_.size() + making_ < blank_target_ &&
         making_ < static_cast<size_t>(pool_.threads())) {
    auto task = [life = life_, &system = system_, &owner = owner_, bytes = options_.blank_bytes,
                 options = arena_options(), request = request_] {
      if (life->ended.load(std::memory_order_relaxed)) return;
      Result<ArenaPtr> made = HostArena::Make(system, bytes, options);
      if (made) {
        if (Status status = (*made)->Populate(0, bytes); !status.ok()) made = std::move(status);
      }
      // std::function wants something that can be copied.
      auto blank = std::make_shared<Result<ArenaPtr>>(std::move(made));
      owner.Post([life, blank, request] {
        if (life->tier != nullptr) life->tier->BlankArrived(std::move(*blank), request);
      });
    };
    reserve_error_ = pool_.Submit(std::move(task));
    if (reserve_error_.ok()) ++making_;
  }
}

void MemfdHostTier::BlankArrived(Result<ArenaPtr> blank, uint64_t request) {
  --making_;
  if (!blank) {
    if (request == request_) reserve_error_ = std::move(blank).error();
  } else if (blanks_.size() < blank_target_) {
    blanks_.push_back(*std::move(blank));
  }
  MakeBlanks();
}

// ---- Reports ------------------------------------------------------------------------------------

std::string MemfdHostTier::ReserveSentence() const {
  if (!reserve_error_.ok()) return "stopped: " + reserve_error_.ToString();
  return blanks_.size() >= blank_target_ ? "complete" : "being filled";
}

HostReport MemfdHostTier::Report() const {
  HostReportBuilder builder;
  for (const auto& [id, arena] : arenas_)
    builder.Add(*arena);
  for (const auto& blank : blanks_)
    builder.Add(*blank);
  HostReport report = builder.Build(options_.huge_pages, options_.lock_memory, system_);
  report.arena_bytes = arena_bytes_;
  report.blank_bytes = blanks_.size() * options_.blank_bytes;
  report.blank_target_bytes = blank_target_ * options_.blank_bytes;
  report.reserve = ReserveSentence();
  return report;
}

}  // namespace

Result<std::unique_ptr<HostTier>> MakeHostTier(const HostTierOptions& options, Executor& owner,
                                               WorkerPool& pool) {
  if (options.blank_bytes == 0 || options.blank_bytes % kSmallPageBytes != 0) {
    return Status(Code::kInvalidArgument, "host tier: blank_bytes must be a multiple of 4096");
  }
  HostSystem& system = options.system != nullptr ? *options.system : KernelHostSystem();
  return std::unique_ptr<HostTier>(std::make_unique<MemfdHostTier>(options, system, owner, pool));
}

}  // namespace terrace
