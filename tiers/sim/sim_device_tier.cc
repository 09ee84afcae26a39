#include "tiers/sim/sim_device_tier.h"

#include <sys/eventfd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace terrace {

SimDeviceTier::Arena& SimDeviceTier::Find(ArenaId arena) {
  const auto found = arenas_.find(arena);
  TERRACE_CHECK(found != arenas_.end());
  return found->second;
}

std::span<uint8_t> SimDeviceTier::At(DevicePlace place, uint64_t bytes) {
  Arena& arena = Find(place.arena);
  TERRACE_CHECK(bytes > 0 && place.offset <= arena.bytes && bytes <= arena.bytes - place.offset);
  const std::span<uint8_t> memory =
      arena.of_host ? host_bytes_(place.arena) : std::span<uint8_t>(arena.memory);
  return memory.subspan(place.offset, bytes);
}

void SimDeviceTier::Ask(std::vector<ArenaId> uses, Status fault, std::function<void(Status)> run) {
  for (const ArenaId arena : uses)
    ++Find(arena).uses;
  pending_.push_back({std::move(uses), std::move(run), std::move(fault)});
}

size_t SimDeviceTier::RunPending(size_t limit) {
  size_t ran = 0;
  // What completions ask for is done as well, but behind what was asked for before.
  while (serving && ran < limit && !pending_.empty()) {
    Pending next = std::move(pending_.front());
    pending_.pop_front();
    bool lost = false;
    for (const ArenaId arena : next.uses) {
      Arena& of = Find(arena);
      --of.uses;
      lost |= of.lost;
    }
    ++ran;
    if (resting) next.fault = Status(Code::kUnavailable, "no process can be had");
    next.run(lost ? Status(Code::kStale, "an arena was lost") : next.fault);
  }
  return ran;
}

void SimDeviceTier::Add(ArenaId id, uint64_t bytes, bool of_host, Protection protection,
                        FaultPlan& faults, std::function<void(Status)> done) {
  TERRACE_CHECK(!arenas_.contains(id));
  Arena& arena = arenas_[id];
  arena.bytes = bytes;
  arena.of_host = of_host;
  arena.protection = protection;
  Ask({}, faults.Next(), [this, id, done = std::move(done)](const Status& status) {
    if (!status.ok()) {
      arenas_.erase(id);
    } else {
      Find(id).coming = false;
    }
    done(status);
  });
}

void SimDeviceTier::Create(ArenaId id, uint64_t bytes, MonotonicNs,
                           std::function<void(Result<DeviceMemory>)> done) {
  TERRACE_CHECK(bytes > 0 && bytes % granularity_ == 0);
  Add(id, bytes, false, Protection::kReadWrite, create_faults,
      [this, id, bytes, done = std::move(done)](const Status& status) {
        if (!status.ok()) return done(status);
        if (used_bytes_ + bytes > total_bytes_) {
          arenas_.erase(id);
          return done(Status(Code::kExhausted, "no memory of the device"));
        }
        used_bytes_ += bytes;
        Find(id).memory.resize(bytes);
        DeviceMemory memory;
        if (slabs) {
          memory.slab =
              std::make_shared<const UniqueFd>(descriptors ? ::eventfd(0, EFD_CLOEXEC) : -1);
        }
        memory.handle[0] = static_cast<uint8_t>(id);
        done(std::move(memory));
      });
}

void SimDeviceTier::Import(ArenaId id, uint64_t bytes, UniqueFd, MonotonicNs, Done done) {
  Add(id, bytes, false, Protection::kReadWrite, import_faults,
      [this, id, bytes, done = std::move(done)](const Status& status) {
        if (status.ok()) Find(id).memory.resize(bytes);
        done(status);
      });
}

void SimDeviceTier::Open(ArenaId id, uint64_t bytes, const DeviceHandle&, MonotonicNs deadline,
                         Done done) {
  Import(id, bytes, UniqueFd(), deadline, std::move(done));
}

void SimDeviceTier::AddHost(ArenaId id, uint64_t bytes, UniqueFd, Protection protection,
                            Registration, MonotonicNs, Done done) {
  TERRACE_CHECK(bytes > 0 && bytes % 4096 == 0 && host_bytes_(id).size() >= bytes);
  Add(id, bytes, true, protection, host_faults, std::move(done));
}

void SimDeviceTier::Release(ArenaId id, MonotonicNs, Done done) {
  TERRACE_CHECK(Find(id).uses == 0 && !Find(id).coming);
  Ask({}, release_faults.Next(), [this, id, done = std::move(done)](const Status& status) {
    if (status.ok()) {
      used_bytes_ -= std::min<uint64_t>(used_bytes_, Find(id).memory.size());
      arenas_.erase(id);
    }
    done(status);
  });
}

void SimDeviceTier::Copy(std::vector<DeviceCopy> copies, bool, MonotonicNs, Done done) {
  TERRACE_CHECK(!copies.empty() && copies.size() <= kMostDeviceCopies);
  std::vector<ArenaId> uses;
  for (const DeviceCopy& copy : copies) {
    uses.push_back(copy.dst.arena);
    uses.push_back(copy.src.arena);
    TERRACE_CHECK(!Find(copy.dst.arena).coming && !Find(copy.src.arena).coming);
    TERRACE_CHECK(!Find(copy.dst.arena).of_host || !Find(copy.src.arena).of_host);
    TERRACE_CHECK(Find(copy.dst.arena).protection == Protection::kReadWrite);
  }
  ++copy_calls;
  Ask(std::move(uses), copy_faults.Next(),
      [this, copies = std::move(copies), done = std::move(done)](const Status& status) {
        for (const DeviceCopy& copy : copies) {
          if (!status.ok()) break;
          std::memcpy(At(copy.dst, copy.bytes).data(), At(copy.src, copy.bytes).data(), copy.bytes);
          copied_bytes += copy.bytes;
        }
        done(status);
      });
}

void SimDeviceTier::Clear(DevicePlace at, uint64_t bytes, MonotonicNs, Done done) {
  Ask({at.arena}, {}, [this, at, bytes, done = std::move(done)](const Status& status) {
    if (status.ok()) std::memset(At(at, bytes).data(), 0, bytes);
    done(status);
  });
}

void SimDeviceTier::MovePages(DevicePages pages, MonotonicNs, Done done) {
  TERRACE_CHECK(!pages.blocks.empty() && pages.blocks.size() <= kMostDeviceBlocks);
  std::vector<ArenaId> uses;
  for (const DevicePlace& base : pages.bases)
    uses.push_back(base.arena);
  for (const DevicePages::Block& block : pages.blocks)
    uses.push_back(block.page.arena);
  Ask(std::move(uses), copy_faults.Next(),
      [this, pages = std::move(pages), done = std::move(done)](const Status& status) {
        if (!status.ok()) return done(status);
        for (const DevicePages::Block& block : pages.blocks) {
          for (size_t segment = 0; segment < pages.bases.size(); ++segment) {
            DevicePlace in_pool = pages.bases[segment];
            in_pool.offset += block.block * pages.block_stride;
            DevicePlace in_page = block.page;
            in_page.offset += segment * pages.segment_stride;
            const std::span<uint8_t> pool = At(in_pool, block.bytes);
            const std::span<uint8_t> page = At(in_page, block.bytes);
            const std::span<uint8_t> from = pages.gather ? pool : page;
            const std::span<uint8_t> to = pages.gather ? page : pool;
            std::memcpy(to.data(), from.data(), block.bytes);
          }
        }
        done({});
      });
}

void SimDeviceTier::LoseDevice(const std::function<void(ArenaId)>& lost) {
  for (auto& [id, arena] : arenas_) {
    if (arena.of_host || arena.coming) continue;
    arena.lost = true;
    lost(id);
  }
}

std::span<uint8_t> SimDeviceTier::Bytes(ArenaId id) {
  const auto found = arenas_.find(id);
  if (found == arenas_.end() || found->second.of_host) return {};
  return found->second.memory;
}

DeviceTierReport SimDeviceTier::Report() const {
  DeviceTierReport report;
  report.state = serving ? DeviceTierState::kServing : DeviceTierState::kStarting;
  if (resting) report.state = DeviceTierState::kResting;
  report.uuid = "GPU-00000000-0000-0000-0000-000000000001";
  report.name = "simulated";
  report.slabs = slabs;
  report.granularity = granularity_;
  report.total_bytes = total_bytes_;
  report.free_bytes = total_bytes_ - used_bytes_;
  report.arenas = arenas_.size();
  report.waiting = pending_.size();
  return report;
}

}  // namespace terrace
