// TableOn: one directory in its memory, as the daemon writes it.
//
// A hash table with bounded linear probing. A page lies in the first free line of its probe
// sequence when it is linked, and stays there: nothing is moved inside a table, so an unlink leaves
// no tombstone but takes the page's own `passed` counts back, and a search ends at the first line
// that no page has gone over.
//
// The daemon reads its own words directly, for nobody else writes them; what it writes goes through
// the atomics policy. Owner thread only.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

#include "base/check.h"
#include "daemon/engine/tenant_index.h"
#include "proto/shared_memory.h"

namespace terrace {

template <class Atomics>
class TableOn {
 public:
  // Writes the header into zeroed memory of DirectoryBytes(capacity) or more.
  TableOn(DirectoryMemory::Region region, uint64_t id, uint64_t capacity)
      : region_(region), id_(id), capacity_(capacity) {
    TERRACE_CHECK(region.bytes.size() >= shm::DirectoryBytes(capacity));
    Write(header().version, shm::kLayoutVersion);
    Write(header().directory_id, id);
    Write(header().capacity, capacity);
    Write(header().bytes, region.bytes.size());
    Write(header().magic, shm::kDirectoryMagic);
  }

  uint64_t id() const { return id_; }
  uint64_t capacity() const { return capacity_; }
  uint64_t token() const { return region_.token; }
  size_t bytes() const { return region_.bytes.size(); }

  // From here on no lookup in this directory can succeed that has not stored its pin yet.
  void Supersede() { Atomics::Store(header().superseded, 1, std::memory_order_seq_cst); }

  uint64_t generation(uint32_t index) const { return Read(header().generations[index]); }
  void SetGeneration(uint32_t index, uint64_t value) {
    Atomics::Store(header().generations[index], value, std::memory_order_seq_cst);
  }

  void OpenSpace(uint32_t slot, uint32_t epoch, const Digest& id, uint32_t generation_index,
                 uint64_t page_bytes) {
    shm::SpaceLine& line = header().spaces[slot];
    for (int word = 0; word < 4; ++word)
      Write(line.id[word], id.Word(word));
    Write(line.generation, generation_index);
    Write(line.page_bytes, page_bytes);
    Atomics::Store(line.epoch, epoch, std::memory_order_seq_cst);
  }
  void CloseSpace(uint32_t slot) {
    Atomics::Store(header().spaces[slot].epoch, 0, std::memory_order_seq_cst);
  }
  // Spaces and generations as they are in `other`.
  void CopyHeader(const TableOn& other) {
    const shm::DirectoryHeader& from = other.header();
    for (uint32_t i = 0; i < shm::kMaxGenerations; ++i) {
      if (Read(from.generations[i]) != 0) SetGeneration(i, Read(from.generations[i]));
    }
    for (uint32_t slot = 0; slot < shm::kMaxSpaces; ++slot) {
      const shm::SpaceLine& line = from.spaces[slot];
      if (Read(line.epoch) == 0) continue;
      OpenSpace(slot, static_cast<uint32_t>(Read(line.epoch)), DigestOf(line.id),
                static_cast<uint32_t>(Read(line.generation)), Read(line.page_bytes));
    }
  }

  // The line of a linked page.
  std::optional<uint64_t> Find(const PageName& name) const {
    const uint64_t space = shm::SpaceWord(name.space_slot, name.space_epoch, name.place);
    const uint64_t home = Home(name);
    for (uint64_t distance = 0; distance < shm::kMaxProbe; ++distance) {
      const uint64_t line = (home + distance) & (capacity_ - 1);
      const shm::Entry& e = entry(line);
      if (Read(e.handle) != 0 && Read(e.key[0]) == name.key.Word(0) && Read(e.space) == space &&
          shm::LowOf(Read(e.part_bytes)) == name.part && DigestOf(e.key) == name.key) {
        return line;
      }
      if (shm::HighOf(Read(e.tokens_passed)) == 0) break;
    }
    return std::nullopt;
  }

  // The first free line of a page's probe sequence; nullopt: there is none.
  std::optional<uint64_t> Place(const PageName& name) const {
    const uint64_t home = Home(name);
    for (uint64_t distance = 0; distance < shm::kMaxProbe; ++distance) {
      const uint64_t line = (home + distance) & (capacity_ - 1);
      if (Read(entry(line).handle) == 0) return line;
    }
    return std::nullopt;
  }

  // `line` is the page's Place.
  void Link(uint64_t line, const LinkedPage& page) {
    const PageName& name = page.name;
    PassOver(Home(name), line, +1);
    shm::Entry& e = entry(line);
    // With release, after the handle that was here before is gone: a reader that matches one of
    // these words under that handle finds it gone when it looks again.
    constexpr auto kRelease = std::memory_order_release;
    for (int word = 0; word < 4; ++word)
      Atomics::Store(e.key[word], name.key.Word(word), kRelease);
    Atomics::Store(e.space, shm::SpaceWord(name.space_slot, name.space_epoch, name.place),
                   kRelease);
    Atomics::Store(e.part_bytes, shm::PackPair(name.part, page.bytes), kRelease);
    Atomics::Store(e.tokens_passed,
                   shm::PackPair(shm::PackTokens(page.valid_tokens, page.tier),
                                 shm::HighOf(Read(e.tokens_passed))),
                   kRelease);
    Atomics::Store(e.handle, page.handle, std::memory_order_seq_cst);
  }

  void Unlink(uint64_t line) {
    const PageName name = At(line).name;
    Atomics::Store(entry(line).handle, 0, std::memory_order_seq_cst);
    PassOver(Home(name), line, -1);
  }

  // 0: nothing is linked in this line.
  shm::Handle HandleAt(uint64_t line) const { return Read(entry(line).handle); }
  LinkedPage At(uint64_t line) const {
    const shm::Entry& e = entry(line);
    LinkedPage page;
    page.name.space_slot = shm::SlotOfSpaceWord(Read(e.space));
    page.name.place = shm::PlaceOfSpaceWord(Read(e.space));
    page.name.space_epoch = shm::HighOf(Read(e.space));
    page.name.part = shm::LowOf(Read(e.part_bytes));
    page.name.key = DigestOf(e.key);
    page.handle = Read(e.handle);
    page.bytes = shm::HighOf(Read(e.part_bytes));
    page.valid_tokens = shm::TokensOf(shm::LowOf(Read(e.tokens_passed)));
    page.tier = shm::TierOf(shm::LowOf(Read(e.tokens_passed)));
    return page;
  }

 private:
  static uint64_t Read(const shm::Word& word) { return word.load(std::memory_order_relaxed); }
  static void Write(shm::Word& word, uint64_t value) {
    Atomics::Store(word, value, std::memory_order_release);
  }
  static Digest DigestOf(const shm::Word (&words)[4]) {
    Digest digest;
    for (int i = 0; i < 4; ++i) {
      const uint64_t word = Read(words[i]);
      std::memcpy(digest.bytes.data() + 8 * i, &word, sizeof word);
    }
    return digest;
  }

  uint64_t Home(const PageName& name) const {
    return shm::HomeLine(name.key.Word(0),
                         shm::SpaceWord(name.space_slot, name.space_epoch, name.place), name.part,
                         capacity_);
  }
  // Every line from `home` up to `line` is passed over by one page more or less. Before the handle
  // is stored and after it is gone: a page that stays linked can always be reached.
  void PassOver(uint64_t home, uint64_t line, int by) {
    for (uint64_t at = home; at != line; at = (at + 1) & (capacity_ - 1)) {
      shm::Word& word = entry(at).tokens_passed;
      const uint64_t pair = Read(word);
      Atomics::Store(word,
                     shm::PackPair(shm::LowOf(pair), shm::HighOf(pair) + static_cast<uint32_t>(by)),
                     std::memory_order_release);
    }
  }

  shm::DirectoryHeader& header() const {
    return *reinterpret_cast<shm::DirectoryHeader*>(region_.bytes.data());
  }
  shm::Entry& entry(uint64_t line) const {
    return reinterpret_cast<shm::Entry*>(region_.bytes.data() + shm::kEntriesOffset)[line];
  }

  DirectoryMemory::Region region_;
  uint64_t id_;
  uint64_t capacity_;
};

}  // namespace terrace
