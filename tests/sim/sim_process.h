// SimProcess: a client process of the simulation, one life after the other.
//
// It does what an engine does: opens spaces, asks for grants, writes pages in pieces, commits,
// looks up, reads while others go on, releases, drops, attaches weights; and it says goodbye or is
// killed. A hostile one does the same and besides writes anything into its channel.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "libclient/lookup.h"
#include "tests/sim/engine_simulation.h"

namespace terrace {

// Thrown at an access to shared memory by a process that was killed, up to the end of its fiber's
// present life.
struct Killed {};

class SimProcess {
 public:
  SimProcess(EngineSimulation& sim, bool hostile) : sim_(sim), hostile_(hostile) {}

  // The fiber: lives until the simulation is over.
  void Body();

  bool alive() const { return life_ != nullptr; }
  bool killable() const { return alive() && !in_verb_ && !killed_; }
  bool killed() const { return killed_; }
  bool hostile() const { return hostile_; }
  ClientId client() const;
  TenantId tenant() const;
  // Its process is gone: the engine has been told, and the fiber will notice.
  void Kill() { killed_ = true; }
  bool in_verb() const { return in_verb_; }
  void SetInVerb(bool in_verb) { in_verb_ = in_verb; }

  // The slots it has grants for, and their bytes.
  std::vector<std::pair<uint64_t, uint32_t>> WritingExtents() const;
  // After the simulation, from outside of it: a last look at what it reads, then it is gone.
  void Leave();

  // ---- Events
  void GrantsExpired(std::span<const uint64_t> grants);
  void ArenasGone(std::span<const ArenaId> arenas);
  void Cut();

 private:
  struct OpenSpace {
    SpaceGiven given;
    SpaceRef ref;
    size_t kind = 0;
  };
  struct Writing {
    uint64_t grant = 0;
    shm::Handle handle = 0;
    OracleName name;
    uint32_t epoch = 0;  // Of the space.
    uint32_t bytes = 0;
    uint64_t nonce = 0;
    bool told_expired = false;
  };
  struct Reading {
    Pinned page;
    OracleName name;
    uint64_t nonce = 0;
  };
  struct Attachment {
    uint64_t id = 0;
    int model = 0;
    std::vector<std::shared_ptr<const SimArena>> blocks;
  };
  // All that ends with the process.
  struct Life {
    ClientGiven given;
    TenantId tenant = 0;
    PlainChannel channel;
    std::unique_ptr<PinPool<SimAtomics>> pool;
    std::unique_ptr<Lane<SimAtomics>> lane;
    DirectoryView<SimAtomics> view;
    std::map<Digest, OpenSpace> spaces;
    std::vector<Writing> writings;
    std::vector<Reading> readings;
    std::vector<Attachment> attachments;
    std::map<ArenaId, std::shared_ptr<const SimArena>> arenas;
    bool cut = false;
  };

  void Live();
  void Arrive();
  void Act();
  void Goodbye();
  void Open();
  void Close();
  void Grant();
  void Write(Writing& writing);
  void Commit();
  void Committed(const Writing& writing, Code code, uint64_t began);
  void Abort();
  void LookUp();
  void Take(const OpenSpace& space, const Digest& key, const Pinned& page, uint64_t began);
  void Verify(const Reading& reading);
  void VerifySome();
  void Release();
  void Drop();
  void Attach();
  void VerifyAttached();
  void Detach();
  void Garble();
  void FetchDirectory();

  OpenSpace* SomeSpace();
  Digest SomeKey();
  OracleName NameOf(const OpenSpace& space, const Digest& key) const;
  std::span<const uint8_t> BytesOf(shm::Handle handle, uint32_t bytes);
  uint64_t Below(uint64_t bound) { return sim_.random().Below(bound); }

  EngineSimulation& sim_;
  const bool hostile_;
  bool killed_ = false;
  bool in_verb_ = false;
  std::unique_ptr<Life> life_;
  // Until the engine is sure to have forgotten their channels.
  std::vector<std::unique_ptr<Life>> ended_;
};

}  // namespace terrace
