// IndexOn: TenantIndex over directory memory and an atomics policy.
//
// Joins the present table, the larger one that is being filled while the tenant grows, the space
// slots and the channels. Owner thread only.
//
// Growth. Every eighth Link carries it one bounded step further: memory is made resident 2 MiB at a
// time, then kLinesAStep lines are copied. Until it is complete readers know the present table
// alone, and links and unlinks are made in both: the one being filled has what lies in the lines
// below copied_lines_. When all lines are copied the present table is marked superseded, which is
// before anything can be unlinked in the new one only. A growth that finds no memory or no place
// for a page is given up and tried again some links later; links go on until the table is full to
// kRefuseAt.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "daemon/engine/index/channels_on.h"
#include "daemon/engine/index/table_on.h"
#include "daemon/engine/tenant_index.h"

namespace terrace {

template <class Atomics>
class IndexOn final : public TenantIndex {
 public:
  static Result<std::unique_ptr<TenantIndex>> Make(DirectoryMemory& memory) {
    ASSIGN_OR_RETURN(DirectoryMemory::Region region,
                     memory.Allocate(shm::DirectoryBytes(shm::kMinCapacity)));
    return std::unique_ptr<TenantIndex>(
        new IndexOn(memory, std::make_unique<Table>(region, 1, shm::kMinCapacity)));
  }
  ~IndexOn() override {
    memory_.Free(table_->token());
    if (next_) memory_.Free(next_->token());
  }

  // ---- Spaces and generations
  Result<uint32_t> AddSpace(const Digest& id, uint32_t generation_index, uint64_t page_bytes,
                            uint32_t* epoch) override {
    if (generation_index >= shm::kMaxGenerations) {
      return Status(Code::kInvalidArgument, "generation index " + std::to_string(generation_index) +
                                                " is beyond the last generation word");
    }
    if (free_spaces_.empty()) {
      return Status(Code::kExhausted, "all space slots of the tenant are in use");
    }
    const uint32_t slot = free_spaces_.back();
    free_spaces_.pop_back();
    Space& space = spaces_[slot];
    space.open = true;
    ++space.epoch;
    ForTables([&](Table& table) {
      table.OpenSpace(slot, space.epoch, id, generation_index, page_bytes);
    });
    *epoch = space.epoch;
    return slot;
  }

  void RetireSpace(uint32_t slot) override {
    Space& space = spaces_[slot];
    if (!space.open) return;
    space.open = false;
    ForTables([&](Table& table) { table.CloseSpace(slot); });
    FreeIfEmpty(slot);
  }

  uint64_t generation(uint32_t index) const override { return table_->generation(index); }
  void SetGeneration(uint32_t index, uint64_t value) override {
    ForTables([&](Table& table) { table.SetGeneration(index, value); });
  }

  // ---- Pages
  std::optional<LinkedPage> Find(const PageName& name) const override {
    const std::optional<uint64_t> line = table_->Find(name);
    if (!line) return std::nullopt;
    return table_->At(*line);
  }

  Status Link(const LinkedPage& page) override {
    const PageName& name = page.name;
    TERRACE_CHECK(page.handle != 0 && name.space_slot < shm::kMaxSpaces);
    Space& space = spaces_[name.space_slot];
    if (!space.open || space.epoch != name.space_epoch) {
      return Status(Code::kStale, "the page's space is closed");
    }
    if (table_->Find(name)) return Status(Code::kAlreadyExists, "the key is linked");
    Grow();
    const std::optional<uint64_t> line = table_->Place(name);
    if (!line || linked_ >= Share(kRefuseAt)) {
      return Status(Code::kExhausted, "the directory has no place for the key");
    }
    if (next_ && *line < copied_lines_ && !LinkIn(*next_, page)) {
      return Status(Code::kExhausted, "the growing directory has no place for the key");
    }
    table_->Link(*line, page);
    ++linked_;
    ++space.linked;
    return {};
  }

  bool Unlink(const PageName& name, shm::Handle handle) override {
    const std::optional<uint64_t> line = table_->Find(name);
    if (!line || table_->HandleAt(*line) != handle) return false;
    table_->Unlink(*line);
    if (next_ && *line < copied_lines_) next_->Unlink(*next_->Find(name));
    --linked_;
    --spaces_[name.space_slot].linked;
    FreeIfEmpty(name.space_slot);
    return true;
  }

  uint64_t linked() const override { return linked_; }
  uint64_t linked_in_space(uint32_t slot) const override { return spaces_[slot].linked; }

  void Visit(std::optional<uint32_t> slot,
             const std::function<bool(const LinkedPage&)>& visitor) const override {
    for (uint64_t line = 0; line < table_->capacity(); ++line) {
      if (table_->HandleAt(line) == 0) continue;
      const LinkedPage page = table_->At(line);
      if (slot && page.name.space_slot != *slot) continue;
      if (!visitor(page)) return;
    }
  }

  // ---- Channels
  void AddChannel(ClientId client, std::span<uint8_t> channel, uint32_t pin_lines) override {
    channels_.Add(client, channel, pin_lines);
  }
  void RemoveChannel(ClientId client) override { channels_.Remove(client); }
  std::vector<ClientPins> ScanPins(
      const std::function<void(ClientId, std::span<const uint64_t>)>& pinned) override {
    return channels_.ScanPins(pinned);
  }
  uint64_t DrainRings(uint64_t limit,
                      const std::function<void(const RingVisit&)>& visitor) override {
    return channels_.DrainRings(limit, visitor);
  }
  void DrainRingsOf(ClientId client,
                    const std::function<void(const RingVisit&)>& visitor) override {
    channels_.DrainRingsOf(client, visitor);
  }
  ChannelTotals totals() const override { return channels_.totals(); }
  ChannelTotals totals_of(ClientId client) const override { return channels_.totals_of(client); }
  ReadStep Reread(ClientId after, size_t lines) override { return channels_.Reread(after, lines); }
  Told told() const override { return channels_.told(); }

  // ---- The directory itself
  uint64_t directory_id() const override { return table_->id(); }
  uint64_t capacity() const override { return table_->capacity(); }
  Result<UniqueFd> DirectoryDescriptor() const override {
    return memory_.Descriptor(table_->token());
  }

 private:
  using Table = TableOn<Atomics>;

  struct Space {
    uint32_t epoch = 0;  // The last one given.
    bool open = false;
    uint64_t linked = 0;
  };

  // Linear probing: at 45% a search ends after one or two lines and no probe sequence of a million
  // pages comes near kMaxProbe. Only some links carry a step, so that a batch of commits does not
  // pay for 2 MiB of fresh memory with each page; all steps are done before the load has risen by
  // four percent (a small table: ten). Shares are of 1024 parts of the capacity.
  static constexpr uint64_t kGrowAt = 460;
  static constexpr uint64_t kRefuseAt = 768;
  static constexpr uint64_t kRetryAfter = 32;  // Links, as a share, after a growth was given up.
  static constexpr uint64_t kLinksAStep = 8;
  static constexpr uint64_t kLinesAStep = 256;

  IndexOn(DirectoryMemory& memory, std::unique_ptr<Table> table)
      : memory_(memory), table_(std::move(table)), spaces_(shm::kMaxSpaces) {
    for (uint32_t slot = shm::kMaxSpaces; slot > 0; --slot)
      free_spaces_.push_back(slot - 1);
  }

  uint64_t Share(uint64_t parts) const { return table_->capacity() / 1024 * parts; }

  template <class Visitor>
  void ForTables(const Visitor& visitor) {
    visitor(*table_);
    if (next_) visitor(*next_);
  }

  static bool LinkIn(Table& table, const LinkedPage& page) {
    const std::optional<uint64_t> line = table.Place(page.name);
    if (line) table.Link(*line, page);
    return line.has_value();
  }

  // A slot is free again when its last entry is gone; one that used up its epochs stays unused.
  void FreeIfEmpty(uint32_t slot) {
    const Space& space = spaces_[slot];
    if (!space.open && space.linked == 0 && space.epoch != UINT32_MAX) free_spaces_.push_back(slot);
  }

  // One step of growth, if one is due.
  void Grow() {
    if (!next_ && linked_ < Share(kGrowAt)) return;
    if (links_to_wait_ > 0) {
      --links_to_wait_;
      return;
    }
    links_to_wait_ = kLinksAStep - 1;
    if (!next_) {
      StartGrowth();
    } else if (populated_bytes_ < next_->bytes()) {
      memory_.Populate(next_->token(), populated_bytes_);
      populated_bytes_ += DirectoryMemory::kStepBytes;
    } else {
      CopyLines();
    }
  }

  void StartGrowth() {
    const uint64_t capacity = table_->capacity() * 2;
    Result<DirectoryMemory::Region> region = memory_.Allocate(shm::DirectoryBytes(capacity));
    if (!region) return PutOffGrowth();
    next_ = std::make_unique<Table>(*region, table_->id() + 1, capacity);
    next_->CopyHeader(*table_);
    populated_bytes_ = 0;
    copied_lines_ = 0;
  }

  void PutOffGrowth() { links_to_wait_ = Share(kRetryAfter); }

  void CopyLines() {
    for (uint64_t step = 0; step < kLinesAStep; ++step, ++copied_lines_) {
      if (copied_lines_ == table_->capacity()) return FinishGrowth();
      if (table_->HandleAt(copied_lines_) == 0) continue;
      if (!LinkIn(*next_, table_->At(copied_lines_))) {
        memory_.Free(next_->token());
        next_.reset();
        return PutOffGrowth();
      }
    }
  }

  void FinishGrowth() {
    table_->Supersede();
    memory_.Free(table_->token());
    table_ = std::move(next_);
  }

  DirectoryMemory& memory_;
  std::unique_ptr<Table> table_;
  std::unique_ptr<Table> next_;   // While growing.
  uint64_t populated_bytes_ = 0;  // Of next_.
  uint64_t copied_lines_ = 0;     // Of table_, into next_.
  uint64_t links_to_wait_ = 0;    // Before the next step of growth.

  uint64_t linked_ = 0;
  std::vector<Space> spaces_;
  std::vector<uint32_t> free_spaces_;
  ChannelsOn<Atomics> channels_;
};

}  // namespace terrace
