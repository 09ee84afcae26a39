// StepsWorld: one simulated run of readers against an evictor, from one seed.
//
// One fiber is the owner thread: Pager, the test's own small evictor, over IndexOn<SimAtomics>. The
// others are readers with libclient's own lookups, two of them lanes of one client. The seed
// decides at each access of shared memory who goes on. Two oracles judge every hit:
//  - its bytes are those of the key asked for, of the generation asked for, of one writing, and do
//    not change until it is released;
//  - it was pinned while its generation and its space were still current: what a scan after a
//    fence finds pinned is all that will ever be read of the old generation.
// `Omitted` leaves one step of the reader's out, by falsifying the access that is that step. What
// the evictor's steps are good for is shown on the engine itself (engine_simulation.h). The
// simulation is sequentially consistent; that the orders in the code suffice is argued in
// docs/shared_memory.md and tried by the race tests.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "daemon/engine/index/index_on.h"
#include "libclient/lookup.h"
#include "tests/heart/pager.h"
#include "tests/heart/plain_memory.h"
#include "tests/sim/steps/fibers.h"
#include "tests/sim/steps/sim_atomics.h"

namespace terrace {

enum class Omitted : uint8_t {
  kNothing,
  kHandleNotReadAgain,
  kSupersededNotReadAgain,
  kGenerationNotReadAgain,
  kSpaceNotReadAgain,
  kPinAfterConfirmation,
  kMarkNotRaised,
  kMarkRaisedAfterPin,
  kMarkClearedBeforeLastPin,
  kPinStoredOverAnother,
};

struct StepsResult {
  std::string wrong;  // Empty: nothing was.
  uint64_t hits = 0;
  uint64_t misses = 0;
  uint64_t evicted = 0;
  uint64_t linked_again = 0;
  uint64_t growths = 0;
  uint64_t accesses = 0;
};

class StepsWorld final : public SharedAccess {
 public:
  StepsWorld(uint64_t seed, Omitted omitted);
  ~StepsWorld() override;

  StepsResult Run();

  // ---- SharedAccess
  uint64_t Load(const shm::Word& word, std::memory_order order) override;
  void Store(shm::Word& word, uint64_t value, std::memory_order order) override;
  uint64_t FetchOr(shm::Word& word, uint64_t bits) override;
  uint64_t FetchAnd(shm::Word& word, uint64_t bits) override;
  bool CompareExchange(shm::Word& word, uint64_t expected, uint64_t wanted) override;
  void GiveWay() override { fibers_.GiveWay(); }

  // ---- Pages, for Pager: two words each, written and read one after the other. All keys have one
  // home line in every table, so that they meet in the same entries.
  static constexpr uint32_t kPageBytes = 16;
  static Digest Key(uint64_t number);
  void Write(uint32_t slot, const PageContent& content);
  std::array<uint64_t, 2> Read(uint32_t slot);

 private:
  static constexpr int kReaders = 3;
  static constexpr uint32_t kSlots = 5;
  static constexpr uint64_t kKeys = 6;
  static constexpr int kOwner = 0;  // Fiber; readers are 1 and up.

  // What a word is, from its address.
  enum class Kind : uint8_t { kOther, kHandle, kSuperseded, kGeneration, kEpoch, kMark, kPin };
  struct Place {
    Kind kind = Kind::kOther;
    shm::Word* summary = nullptr;  // Of the line that a pin belongs to, and its bit there.
    uint64_t mark = 0;
    bool shared = false;  // Whether anybody else can see the word.
  };
  // What was true when a pin was stored.
  struct Truth {
    uint64_t generation = 0;
    uint64_t epoch = 0;
  };
  struct Held {
    Pinned page;
    std::array<uint64_t, 2> content{};
  };
  struct Reader {
    std::unique_ptr<Lane<SimAtomics>> lane;
    DirectoryView<SimAtomics> view;
    SpaceRef space;
    std::vector<Held> held;
    uint64_t pins_of_lookup = 0;
    uint64_t last_pin = 0;
    std::vector<std::pair<shm::Word*, uint64_t>> delayed_marks;  // By an omission.
    std::pair<shm::Word*, shm::Handle> delayed_pin{};            // Likewise.
  };

  void Owner();
  void ReaderBody(int index);
  void MakeLane(int index);
  void LookUp(int index);
  void Verify(int index, uint64_t key, const Pinned& page);
  void ReleaseOne(int index);
  void Fetch(int index);
  void Post();
  void Fail(const std::string& what);

  Place PlaceOf(const shm::Word& word) const;
  static void PlaceInDirectory(std::span<uint8_t> region, const shm::Word& word, Place* place);
  static void PlaceInChannel(shm::Channel& channel, const shm::Word& word, Place* place);
  Reader& reader() { return readers_[static_cast<size_t>(fibers_.current() - 1)]; }
  bool outside() const { return fibers_.current() < 0; }
  bool owner() const { return fibers_.current() == kOwner; }
  const shm::DirectoryHeader& published() const;
  void BeforeAccess(const Place& place);
  uint64_t LoadOfReader(Reader& reader, const Place& place, const shm::Word& word,
                        std::memory_order order);
  void StoreOfReader(Reader& reader, const Place& place, shm::Word& word, uint64_t value);
  void StorePin(Reader& reader, shm::Word& word, shm::Handle handle);

  const Omitted omitted_;
  Random random_;
  Fibers fibers_;
  PlainDirectory memory_;
  std::unique_ptr<TenantIndex> index_;
  std::array<shm::Word, 2 * kSlots> page_words_{};
  std::unique_ptr<Pager<StepsWorld>> pager_;
  std::unique_ptr<Growth> growth_;
  std::array<PlainChannel, 2> channels_;
  std::vector<std::unique_ptr<PinPool<SimAtomics>>> pools_;
  std::array<Reader, kReaders> readers_;

  // What a message to the daemon answers: as of its last completed verb.
  DirectoryView<SimAtomics> posted_view_;
  SpaceRef posted_space_;
  bool in_verb_ = false;

  std::map<const shm::Word*, Truth> truth_;  // By pin word.
  StepsResult result_;
};

}  // namespace terrace
