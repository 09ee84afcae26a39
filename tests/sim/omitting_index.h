// OmittingIndex: the shared memory of a tenant, with one step of the evictor's protocol left out.
//
// It stands between the engine and the index that the engine ships with, so that the engine's own
// code (Evictor, Pins, Residents) works as if it had not taken the step: what it is told of pins,
// when its unlinks take place and which handles it links are falsified here; single stores and
// loads of the index below by LeavesOut and Loaded, which the atomics policy asks. Everything else
// is passed on. One verb of the engine at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <ostream>
#include <set>
#include <utility>
#include <vector>

#include "daemon/engine/tenant_index.h"
#include "tests/heart/plain_memory.h"

namespace terrace {

// The step that is not taken.
enum class Omission : uint8_t {
  kNothing,
  kScanBeforeVictims,       // Pinned pages are chosen as victims.
  kUnlinkBeforeScan,        // Victims are unlinked only after the second scan.
  kScanAfterUnlink,         // The second scan does not see the pins on victims.
  kScanComparesExtents,     // A pin counts only under the slot's latest sequence.
  kNewSequence,             // All pages of a slot are linked under the same handle.
  kLimbo,                   // Dropped pages are freed whether they are pinned or not.
  kHandleGoneBeforeKey,     // The key is stored while the old handle still stands.
  kKeyBeforeHandle,         // The handle is stored before the key.
  kSupersededBeforeUnlink,  // `superseded` is set long after the new directory is in use.
};

class OmittingIndex final : public TenantIndex {
 public:
  // `pause` lets others go on, perhaps.
  OmittingIndex(Omission omission, std::unique_ptr<TenantIndex> index, PlainDirectory& memory,
                std::function<void()> pause)
      : omission_(omission), index_(std::move(index)), memory_(memory), pause_(std::move(pause)) {}

  // ---- From the atomics policy, of what the daemon does
  // Whether the store is not to be made, now or at all.
  bool LeavesOut(shm::Word& word, uint64_t value);
  // What the daemon believes to have loaded.
  uint64_t Loaded(const shm::Word& word, uint64_t value) const;
  // Somebody, anybody, accesses shared memory.
  void Accessed();
  // A verb of the engine is over: what it unlinked and did not scan for since was no victim.
  void VerbEnded();

  // ---- TenantIndex
  Result<uint32_t> AddSpace(const Digest& id, uint32_t generation_index, uint64_t page_bytes,
                            uint32_t* epoch) override {
    return index_->AddSpace(id, generation_index, page_bytes, epoch);
  }
  void RetireSpace(uint32_t slot) override { index_->RetireSpace(slot); }
  uint64_t generation(uint32_t index) const override { return index_->generation(index); }
  void SetGeneration(uint32_t index, uint64_t value) override {
    index_->SetGeneration(index, value);
  }
  std::optional<LinkedPage> Find(const PageName& name) const override;
  Status Link(const LinkedPage& page) override;
  bool Unlink(const PageName& name, shm::Handle handle) override;
  uint64_t linked() const override { return index_->linked(); }
  uint64_t linked_in_space(uint32_t slot) const override { return index_->linked_in_space(slot); }
  void Visit(std::optional<uint32_t> slot,
             const std::function<bool(const LinkedPage&)>& visitor) const override;
  void AddChannel(ClientId client, std::span<uint8_t> channel, uint32_t pin_lines) override;
  void RemoveChannel(ClientId client) override;
  std::vector<ClientPins> ScanPins(
      const std::function<void(ClientId client, std::span<const uint64_t> extents)>& pinned)
      override;
  uint64_t DrainRings(uint64_t limit,
                      const std::function<void(const RingVisit&)>& visitor) override;
  void DrainRingsOf(ClientId client, const std::function<void(const RingVisit&)>& visitor) override;
  ChannelTotals totals() const override { return index_->totals(); }
  ChannelTotals totals_of(ClientId client) const override { return index_->totals_of(client); }
  ReadStep Reread(ClientId after, size_t lines) override { return index_->Reread(after, lines); }
  Told told() const override { return index_->told(); }
  uint64_t directory_id() const override { return index_->directory_id(); }
  uint64_t capacity() const override { return index_->capacity(); }
  Result<UniqueFd> DirectoryDescriptor() const override { return index_->DirectoryDescriptor(); }

 private:
  // With the handle that the engine gave, where another is shown.
  RingVisit AsTheEngineKnows(RingVisit visit) const;
  struct Stay {
    shm::Handle given = 0;  // By the engine.
    shm::Handle shown = 0;  // In the directory.
  };

  bool Hidden(uint64_t extent) const;
  shm::Handle Shown(shm::Handle given) const;
  LinkedPage AsGiven(LinkedPage page) const;
  void UnlinkDeferred();
  // The entry that a word of a directory in use belongs to; null if it belongs to none.
  shm::Entry* EntryOf(const shm::Word& word) const;
  bool IsSuperseded(const shm::Word& word) const;
  bool LeavesOutInEntry(shm::Entry& entry, shm::Word& word, uint64_t value);

  const Omission omission_;
  const std::unique_ptr<TenantIndex> index_;
  PlainDirectory& memory_;
  const std::function<void()> pause_;
  std::map<ClientId, std::span<uint8_t>> channels_;

  std::map<uint64_t, Stay> linked_;  // By extent.
  std::map<uint64_t, Stay> last_;    // By extent: its last stay, over or not.
  std::set<uint64_t> victims_;       // Unlinked in this verb, no scan since.
  bool scanning_ = false;
  std::vector<std::pair<PageName, shm::Handle>> deferred_unlinks_;
  std::map<shm::Entry*, shm::Handle> emptied_;  // Since the last scan: what stood there.
  std::vector<std::pair<shm::Word*, uint64_t>> deferred_words_;  // Of the entry being written.
  shm::Word* superseded_ = nullptr;  // To be set after so many accesses:
  uint64_t accesses_left_ = 0;
};

}  // namespace terrace
