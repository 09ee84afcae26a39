// DeviceWorld: an EngineWorld with simulated devices, for the tests of what lies in their memory.
#pragma once

#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "tests/engine/engine_world.h"
#include "tiers/sim/sim_device_tier.h"

namespace terrace {

struct DeviceWorld {
  static constexpr uint32_t kPage = EngineWorld::kPage;
  static constexpr uint64_t kSlab = 4 * kPage;

  explicit DeviceWorld(EngineOptions options = EngineWorld::SmallOptions(),
                       DeviceOptions of_device = Slabs(4), SimPageStore* store = nullptr)
      : device_options(of_device),
        world(options, store, [this](EngineParts& parts) { Add(parts); }) {}

  // Room for so many slabs, of four pages each.
  static DeviceOptions Slabs(uint64_t count) {
    DeviceOptions options;
    options.capacity_bytes = count * kSlab;
    options.slab_bytes = kSlab;
    return options;
  }
  GpuReport Device() const { return world.engine->Devices().front(); }
  // Turns, and what the devices were asked for, until nothing more comes of it.
  void Settle() {
    for (int turn = 0; turn < 50; ++turn) {
      world.clock.Advance(10 * kNsPerMs);
      const bool more = world.engine->Turn();
      size_t ran = world.journal.RunPending();
      if (world.page_store != nullptr) ran += world.page_store->RunPending();
      for (const auto& tier : tiers)
        ran += tier->RunPending();
      if (ran == 0 && !more && turn > 2) return;
    }
  }
  void Lose() {
    tiers[0]->LoseDevice([this](ArenaId arena) { world.engine->DeviceArenaLost(arena); });
  }

  const DeviceOptions device_options;
  std::vector<std::unique_ptr<SimDeviceTier>> tiers;
  EngineWorld world;

 private:
  void Add(EngineParts& parts) {
    tiers.clear();
    for (int i = 0; i < 2; ++i) {
      tiers.push_back(
          std::make_unique<SimDeviceTier>(device_options.capacity_bytes, kSlab, [this](ArenaId id) {
            return world.tier.Map(id) == nullptr ? std::span<uint8_t>() : world.tier.Bytes(id);
          }));
      parts.devices.push_back(
          {.options = device_options, .tier = tiers.back().get(), .policy = MakeLru()});
    }
  }
};

// A client whose pages have bytes of their own, in the memory of device 1.
class DeviceClient : public ClientOfTest {
 public:
  explicit DeviceClient(DeviceWorld& of, const std::string& tenant = "t")
      : ClientOfTest(of.world, tenant), of_(of) {}

  static uint64_t WordOf(uint64_t key) { return key * 0x9e3779b97f4a7c15 + 1; }
  std::span<uint8_t> BytesOf(shm::Handle handle, uint32_t bytes) {
    const ArenaId arena = shm::ArenaOf(handle);
    const std::span<uint8_t> all =
        arena < kFirstDeviceSlabId ? of_.world.tier.Bytes(arena) : of_.tiers[0]->Bytes(arena);
    TERRACE_CHECK(!all.empty());
    return all.subspan(uint64_t{shm::SlotOf(handle)} * bytes, bytes);
  }
  // Asks as the service does, until all have an answer or nothing moves any more.
  std::vector<GrantGiven> GrantHere(const SpaceGiven& space, const std::vector<uint64_t>& numbers,
                                    uint32_t deadline_ms = 0) {
    std::vector<Digest> keys;
    for (const uint64_t number : numbers)
      keys.push_back(KeyOf(number));
    std::vector<GrantGiven> all;
    for (int tries = 0; tries < 100 && all.size() < keys.size(); ++tries) {
      std::vector<GrantGiven> more;
      const Status status =
          of_.world.engine->Grant(given.id,
                                  {.slot = space.slot,
                                   .epoch = space.epoch,
                                   .deadline_ms = deadline_ms,
                                   .keys = std::span<const Digest>(keys).subspan(all.size()),
                                   .device = 1},
                                  &more);
      TERRACE_CHECK(status.ok());
      all.insert(all.end(), more.begin(), more.end());
      if (all.size() < keys.size()) of_.Settle();
    }
    return all;
  }
  void Write(const SpaceGiven& space, shm::Handle handle, uint64_t number) {
    const std::span<uint8_t> bytes = BytesOf(handle, space.page_bytes);
    const uint64_t word = WordOf(number);
    for (size_t at = 0; at < bytes.size(); at += sizeof word)
      std::memcpy(bytes.data() + at, &word, sizeof word);
  }
  // The handle in the device's memory, or none.
  std::optional<shm::Handle> PutHere(const SpaceGiven& space, uint64_t number) {
    const std::vector<GrantGiven> granted = GrantHere(space, {number});
    if (granted.empty() || granted[0].code != Code::kOk) return std::nullopt;
    Write(space, granted[0].handle, number);
    if (Commit(granted[0].grant) != Code::kOk) return std::nullopt;
    return FindAt(space, number, 1);
  }
  std::optional<shm::Handle> FindAt(const SpaceGiven& space, uint64_t number, uint32_t place) {
    const std::optional<LinkedPage> page =
        of_.world.engine->index(tenant()).Find({space.slot, space.epoch, 0, KeyOf(number), place});
    if (!page) return std::nullopt;
    return page->handle;
  }
  // Whether the page is there, with its own bytes; aborts where it has others.
  bool ReadsAt(const SpaceGiven& space, uint64_t number, uint32_t place) {
    const std::optional<shm::Handle> handle = FindAt(space, number, place);
    if (!handle) return false;
    const std::span<uint8_t> bytes = BytesOf(*handle, space.page_bytes);
    const uint64_t word = WordOf(number);
    for (size_t at = 0; at < bytes.size(); at += sizeof word)
      TERRACE_CHECK(std::memcmp(bytes.data() + at, &word, sizeof word) == 0);
    return true;
  }
  uint32_t Drop(const SpaceGiven& space, uint64_t number) {
    const std::vector<Digest> keys = {KeyOf(number)};
    return *of_.world.engine->Drop(given.id, space.slot, space.epoch, 0, keys);
  }
  struct Fetch {
    std::vector<Digest> keys;
    std::optional<Result<Prefetched>> answer;
  };
  // To device 1; the answer is filled in when it comes.
  std::shared_ptr<Fetch> FetchHere(const SpaceGiven& space, const std::vector<uint64_t>& numbers,
                                   uint32_t deadline_ms = 0) {
    auto fetch = std::make_shared<Fetch>();
    for (const uint64_t number : numbers)
      fetch->keys.push_back(KeyOf(number));
    PrefetchSpec spec;
    spec.slot = space.slot;
    spec.epoch = space.epoch;
    spec.keys = fetch->keys;
    spec.deadline_ms = deadline_ms;
    spec.device = 1;
    of_.world.engine->Prefetch(given.id, spec, [fetch](Result<Prefetched> answer) {
      TERRACE_CHECK(!fetch->answer.has_value());
      fetch->answer = std::move(answer);
    });
    return fetch;
  }

 private:
  DeviceWorld& of_;
};

}  // namespace terrace
