// DirectoryView: a tenant's directory as a reader sees it, and where a page lies in it.
//
// A view is a value over memory that somebody else keeps mapped (read-only); it allocates nothing,
// makes no system call and may be used by any number of threads. What Find answers is a guess that
// holds only once it is confirmed after a pin: lookup.h does that.
#pragma once

#include <cstdint>
#include <span>

#include "base/digest.h"
#include "base/status.h"
#include "proto/shared_memory.h"

namespace terrace {

// An open space, as the daemon described it when it was opened.
struct SpaceRef {
  uint32_t slot = 0;              // Below shm::kMaxSpaces.
  uint32_t epoch = 0;             // Not 0.
  uint32_t generation_index = 0;  // Below shm::kMaxGenerations.
  uint64_t generation = 0;

  // Of the pages of one place.
  uint64_t word(uint32_t place = 0) const { return shm::SpaceWord(slot, epoch, place); }
};

// Whether a directory still answers for a space.
enum class Standing : uint8_t {
  kCurrent,
  kStale,       // The generation or the space moved on: open the space again.
  kSuperseded,  // There is a newer directory: fetch it and look again.
};

template <class Atomics = shm::StdAtomics>
class DirectoryView {
 public:
  DirectoryView() = default;

  // Checks the header once, so that no later access can leave the mapping.
  static Result<DirectoryView> Of(std::span<const uint8_t> memory) {
    if (memory.size() < shm::DirectoryBytes(shm::kMinCapacity)) {
      return Status(Code::kInvalidArgument, "directory: smaller than the smallest one");
    }
    const auto* header = reinterpret_cast<const shm::DirectoryHeader*>(memory.data());
    const auto constant = [](const shm::Word& word) {
      return Atomics::Load(word, std::memory_order_acquire);
    };
    if (constant(header->magic) != shm::kDirectoryMagic) {
      return Status(Code::kInvalidArgument, "directory: magic is not that of a directory");
    }
    if (constant(header->version) != shm::kLayoutVersion) {
      return Status(Code::kMismatch, "directory: another layout version");
    }
    const uint64_t capacity = constant(header->capacity);
    if (!std::has_single_bit(capacity) || capacity < shm::kMinCapacity ||
        capacity > (memory.size() - shm::kEntriesOffset) / sizeof(shm::Entry)) {
      return Status(Code::kInvalidArgument, "directory: capacity does not fit its memory");
    }
    DirectoryView view;
    view.header_ = header;
    view.entries_ = reinterpret_cast<const shm::Entry*>(memory.data() + shm::kEntriesOffset);
    view.capacity_ = capacity;
    view.id_ = constant(header->directory_id);
    return view;
  }

  explicit operator bool() const { return header_ != nullptr; }
  uint64_t id() const { return id_; }
  uint64_t capacity() const { return capacity_; }

  // Whether `space` can be looked up here at all; to be checked once, when a space is opened.
  static bool Valid(const SpaceRef& space) {
    return space.slot < shm::kMaxSpaces && space.epoch != 0 &&
           space.generation_index < shm::kMaxGenerations;
  }

  Standing StandingOf(const SpaceRef& space) const {
    // Each of these is read after the pin in the total order, and every change of them comes before
    // a scan: a lookup that sees no change holds a pin that the scan sees.
    if (Atomics::Load(header_->superseded, std::memory_order_seq_cst) != 0) {
      return Standing::kSuperseded;
    }
    const uint64_t generation =
        Atomics::Load(header_->generations[space.generation_index], std::memory_order_seq_cst);
    const uint64_t epoch =
        Atomics::Load(header_->spaces[space.slot].epoch, std::memory_order_seq_cst);
    return generation == space.generation && epoch == space.epoch ? Standing::kCurrent
                                                                  : Standing::kStale;
  }

  struct Match {
    const shm::Entry* entry = nullptr;  // nullptr: no such page.
    shm::Handle handle = 0;
    uint32_t bytes = 0;
    uint32_t tokens = 0;  // shm::PackTokens
  };

  // `place`: 0, host memory; else that of the device of this number.
  uint64_t Home(const SpaceRef& space, uint32_t part, const Digest& key, uint32_t place = 0) const {
    return shm::HomeLine(key.Word(0), space.word(place), part, capacity_);
  }
  void Prefetch(uint64_t home) const { __builtin_prefetch(&entries_[home]); }

  // The entry of a page, whose fields were read after the handle. They belong to it if the handle
  // is still there when it is read again.
  Match Find(uint64_t home, const SpaceRef& space, uint32_t part, const Digest& key,
             uint32_t place = 0) const {
    constexpr auto kAcquire = std::memory_order_acquire;
    const uint64_t space_word = space.word(place);
    for (uint64_t distance = 0; distance < shm::kMaxProbe; ++distance) {
      const shm::Entry& entry = entries_[(home + distance) & (capacity_ - 1)];
      const shm::Handle handle = Atomics::Load(entry.handle, kAcquire);
      if (handle != 0 && SameKey(entry, key) &&
          Atomics::Load(entry.space, kAcquire) == space_word) {
        const uint64_t part_bytes = Atomics::Load(entry.part_bytes, kAcquire);
        if (shm::LowOf(part_bytes) == part) {
          const uint64_t tokens = Atomics::Load(entry.tokens_passed, kAcquire);
          return {&entry, handle, shm::HighOf(part_bytes), shm::LowOf(tokens)};
        }
      }
      // No linked page has gone over this line: the one asked for would have.
      if (shm::HighOf(Atomics::Load(entry.tokens_passed, kAcquire)) == 0) break;
    }
    return {};
  }

 private:
  static bool SameKey(const shm::Entry& entry, const Digest& key) {
    for (int word = 0; word < 4; ++word) {
      if (Atomics::Load(entry.key[word], std::memory_order_acquire) != key.Word(word)) {
        return false;
      }
    }
    return true;
  }

  const shm::DirectoryHeader* header_ = nullptr;
  const shm::Entry* entries_ = nullptr;
  uint64_t capacity_ = 0;
  uint64_t id_ = 0;
};

}  // namespace terrace
