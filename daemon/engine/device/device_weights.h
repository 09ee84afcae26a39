// DeviceWeights: which versions of models are in the memory of one device, and who has them
// attached there.
//
// A version is on a device whole or not at all: its image in the same blocks as in host memory, an
// arena each. It comes by a DeviceLoad, single flight, and leaves when it is unloaded, removed,
// evicted for another because nobody has it attached, or lost. Whoever has it attached when it
// leaves is told (TakeWanted); its attachment answers `stale` from then on but for Detach, and what
// it was given is charged until that, or until the client is gone. While a version is here, or
// attached here, its manifest stays in host memory.
//
// It is a client of Weights, which knows nothing of devices: an attachment a version. Owned by the
// engine; owner thread only. Completions are called exactly once, possibly before the verb returns,
// and may call verbs.
//
// Limits: those of Weights for waiters and attachments, beside what Weights has itself.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "daemon/engine/device/device_arenas.h"
#include "daemon/engine/device/device_load.h"
#include "daemon/engine/device/item_numbers.h"
#include "daemon/engine/weights/weights.h"
#include "daemon/policy/policy.h"
#include "tiers/tier.h"

namespace terrace {

class DeviceWeights {
 public:
  struct Parts {
    Weights* weights = nullptr;
    HostTier* host = nullptr;
    DeviceArenas* arenas = nullptr;
    Policy* policy = nullptr;  // Shared with the device's pages, by `items`.
    ItemNumbers* items = nullptr;
    const Clock* clock = nullptr;
    std::function<TenantId(ClientId)> tenant_of;
  };
  explicit DeviceWeights(const Parts& parts) : parts_(parts) {}

  // ---- Verbs of Engine
  void Load(ClientId client, const std::string& name, const std::string& version, Progress progress,
            std::function<void(Result<ModelLoaded>)> done);
  Result<Unloaded> Unload(const std::string& name, const std::string& version);
  void Attach(ClientId client, const std::string& name, const std::string& version, bool load,
              uint32_t deadline_ms, std::function<void(Result<Attached>)> done);
  Result<std::vector<ArenaId>> BlocksOf(ClientId client, uint64_t attachment,
                                        std::span<const uint32_t> blocks) const;
  Result<Arrival> ArrivalOf(ClientId client, uint64_t attachment) const;
  Status Detach(ClientId client, uint64_t attachment);
  // `not_found` for what is no block of the client's attachments.
  Result<DeviceMemory> Give(ClientId client, ArenaId arena);
  // The name of what is attached; null if it is not one of this client here.
  const std::string* ModelOf(ClientId client, uint64_t attachment) const;

  // ---- What happens
  // Weights has forgotten versions.
  void ModelsRemoved();
  void ClientGone(ClientId client);
  // DeviceArenas knows already.
  void Lost(ArenaId arena);
  void Turn();
  // Attachments whose version leaves, since the last call.
  struct Wanted {
    std::vector<uint64_t> asked_back;
    std::vector<uint64_t> lost;
  };
  std::map<ClientId, Wanted> TakeWanted() { return std::exchange(wanted_, {}); }
  // All such attachments of the client that it has not detached.
  Wanted WantedOf(ClientId client) const;

  // ---- Room
  // `unavailable` while nothing can be brought here.
  Status CheckServing() const;
  // Whether the version is here, or on its way.
  bool Has(uint64_t ordinal) const { return Resident(ordinal) || Loading(ordinal); }
  // What a load may find here at most: beside what is attached, mapped or kept for pages.
  uint64_t RoomToMake() const;
  // What takes pages out of the device's memory: asked for `bytes` in each turn that they lack.
  // False: no more can leave.
  using PageRoom = std::function<bool(uint64_t bytes)>;
  void SetPageRoom(PageRoom room) { page_room_ = std::move(room); }
  // Versions that nobody has attached leave, those used last the last, until `bytes` of them are on
  // their way; says how many are.
  uint64_t EvictIdle(uint64_t bytes);

  // ---- Reports
  uint64_t loaded_bytes() const { return loaded_bytes_; }
  uint64_t evicted_blocks() const { return evicted_blocks_; }
  // Recounts; an error names the first difference.
  Status CheckInvariants() const;

 private:
  // A client that has the version attached. What it was given counts for all of its attachments,
  // for nobody knows by which it maps a block: it lets go with the last of them.
  struct Holder {
    std::vector<uint64_t> attachments;
    std::map<ArenaId, uint32_t> given;  // How often.
  };
  struct OnDevice {
    DeviceLoad::Of of;
    Attached attached;  // That of `of.holder`.
    ModelLoaded loaded;
    std::vector<ArenaId> arenas;  // By block.
    uint64_t bytes = 0;
    ItemId item = kNoItem;  // While it is not leaving.
    bool leaving = false;   // Given up; clients still have it attached.
    bool lost = false;      // And it is, for the device has lost it.
    bool to_leave = false;  // Its model was removed: it goes with the last attachment.
    std::map<ClientId, Holder> holders;
  };
  using OnDevicePtr = std::shared_ptr<OnDevice>;
  using LoadPtr = std::shared_ptr<DeviceLoad>;

  OnDevicePtr Resident(uint64_t ordinal) const;  // Null if it is not.
  LoadPtr Loading(uint64_t ordinal) const;       // Likewise.
  OnDevicePtr Attachment(ClientId client, uint64_t attachment) const;
  Status Await(const std::string& name, const Weights::Registration& facts, DeviceWaiter waiter);
  void Start(DeviceLoad::Of of, std::vector<DeviceWaiter> waiters);
  void LoadEnded(const LoadPtr& load);
  Result<Attached> AttachNow(ClientId client, OnDevice& version);
  // Gives it up; who has it attached is told. Says how much is held.
  Unloaded Leave(const OnDevicePtr& version, bool lost);
  void LetGo(const OnDevicePtr& version, ClientId client);
  void EndWaits(const std::function<bool(const DeviceWaiter&)>& ended, const Status& why);
  void GiveRoom();
  // False: it waits.
  bool GiveRoomTo(DeviceLoad& load);
  uint64_t IdleBytes() const;

  const Parts parts_;
  PageRoom page_room_;
  std::vector<OnDevicePtr> versions_;  // Resident ones, and those that are leaving and attached.
  std::unordered_map<ArenaId, OnDevicePtr> places_;  // Of resident ones.
  std::unordered_map<ItemId, OnDevicePtr> by_item_;
  std::map<std::pair<ClientId, uint64_t>, OnDevicePtr> attachments_;
  std::vector<LoadPtr> loads_;  // In the order in which they get room.
  std::map<ClientId, Wanted> wanted_;
  uint64_t last_holder_ = 0;
  uint64_t loaded_bytes_ = 0;
  uint64_t evicted_blocks_ = 0;
};

}  // namespace terrace
