// ChannelsOn: the channels of a tenant's clients, as the daemon reads them.
//
// Every word of a channel is written by a client that may be hostile: it is used as a number only,
// clamped or masked before it indexes anything. Counters are believed as far as an honest reader
// can have written them: a client can tell lies within that, which stay in the totals, but none
// that overflow them or contradict themselves. Owner thread only.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/check.h"
#include "daemon/engine/tenant_index.h"
#include "proto/shared_memory.h"

namespace terrace {

template <class Atomics>
class ChannelsOn {
 public:
  using ClientPins = TenantIndex::ClientPins;
  using RingVisit = TenantIndex::RingVisit;
  using PinVisitor = std::function<void(ClientId, std::span<const uint64_t>)>;

  void Add(ClientId client, std::span<uint8_t> memory, uint32_t pin_lines) {
    TERRACE_CHECK(memory.size() >= shm::kChannelBytes);
    TERRACE_CHECK(Find(client) == channels_.end());
    Member member;
    member.client = client;
    member.channel = reinterpret_cast<shm::Channel*>(memory.data());
    member.pin_lines = std::min(pin_lines, shm::kMaxPinLines);
    shm::Channel& channel = *member.channel;
    constexpr auto kRelease = std::memory_order_release;
    Atomics::Store(channel.version, shm::kLayoutVersion, kRelease);
    Atomics::Store(channel.client_id, client, kRelease);
    Atomics::Store(channel.pin_lines, member.pin_lines, kRelease);
    Atomics::Store(channel.magic, shm::kChannelMagic, kRelease);
    channels_.push_back(member);
  }

  void Remove(ClientId client) {
    const auto member = Find(client);
    if (member == channels_.end()) return;
    Fold(*member, &ended_);
    channels_.erase(member);
  }

  std::vector<ClientPins> ScanPins(const PinVisitor& pinned) const {
    std::vector<ClientPins> held;
    held.reserve(channels_.size());
    for (const Member& member : channels_) {
      Batch batch(member.client, pinned);
      ScanChannel(member, &batch);
      held.push_back({member.client, batch.Finish()});
    }
    return held;
  }

  uint64_t DrainRings(uint64_t limit, const std::function<void(const RingVisit&)>& visitor) {
    uint64_t visited = 0;
    // Starts where the last call stopped, so that a busy client does not keep the others waiting.
    for (size_t step = 0; step < channels_.size() && visited < limit; ++step) {
      drain_from_ = (drain_from_ + 1) % channels_.size();
      visited += DrainMember(channels_[drain_from_], limit - visited, visitor);
    }
    return visited;
  }

  // A ring may be full again as soon as it was drained: that must not keep others waiting.
  static constexpr uint64_t kRecordsAsked = 4096;
  void DrainRingsOf(ClientId client, const std::function<void(const RingVisit&)>& visitor) {
    const auto member = Find(client);
    if (member != channels_.end()) (void)DrainMember(*member, kRecordsAsked, visitor);
  }

  ChannelTotals totals() const {
    ChannelTotals totals = ended_;
    for (const Member& member : channels_)
      Fold(member, &totals);
    return totals;
  }
  ChannelTotals totals_of(ClientId client) const {
    ChannelTotals totals;
    for (const Member& member : channels_) {
      if (member.client == client) Fold(member, &totals);
    }
    return totals;
  }

  TenantIndex::ReadStep Reread(ClientId after, size_t lines) {
    TenantIndex::ReadStep step;
    auto next = std::find_if(channels_.begin(), channels_.end(),
                             [after](const Member& member) { return member.client > after; });
    for (; next != channels_.end() && step.lines < lines; ++next) {
      Member& member = *next;
      member.told = {};
      Fold(member, &member.told.totals);
      member.told.ring_records = Waiting(member);
      step.lines += 1 + kLinesOfLane * static_cast<size_t>(std::popcount(member.lanes_seen));
      EachLeasedLine(member, [&](const shm::PinLine& line) {
        for (const shm::Word& pin : line.pins)
          member.told.pins += Atomics::Load(pin, std::memory_order_relaxed) != 0 ? 1 : 0;
        ++step.lines;
      });
      step.last = member.client;
    }
    return step;
  }
  TenantIndex::Told told() const {
    TenantIndex::Told all;
    all.totals = ended_;
    for (const Member& member : channels_) {
      all.totals.Add(member.told.totals);
      all.ring_records += member.told.ring_records;
      all.pins += member.told.pins;
    }
    return all;
  }

 private:
  struct Member {
    ClientId client = 0;
    shm::Channel* channel = nullptr;
    uint32_t pin_lines = 0;
    uint64_t lanes_seen = 0;
    uint64_t skipped = 0;  // Records of rings whose head made no sense, or of no known kind.
    std::array<uint64_t, shm::kMaxLanes> tails = {};
    TenantIndex::Told told;  // As Reread found it last.
  };

  // Hands the extents of one client out many at a time, for an indirect call costs as much as
  // reading a pin.
  class Batch {
   public:
    Batch(ClientId client, const PinVisitor& pinned) : client_(client), pinned_(pinned) {}
    void Add(uint64_t extent) {
      extents_[count_++] = extent;
      if (count_ == extents_.size()) Flush();
    }
    // How many there were.
    uint64_t Finish() {
      if (count_ > 0) Flush();
      return flushed_;
    }

   private:
    void Flush() {
      pinned_(client_, std::span(extents_).first(count_));
      flushed_ += count_;
      count_ = 0;
    }

    const ClientId client_;
    const PinVisitor& pinned_;
    std::array<uint64_t, 1024> extents_;
    size_t count_ = 0;
    uint64_t flushed_ = 0;
  };

  auto Find(ClientId client) {
    return std::find_if(channels_.begin(), channels_.end(),
                        [client](const Member& member) { return member.client == client; });
  }

  // Each load comes after the unlinks that precede the scan, and a reader's pin before the read
  // that confirms it, in one total order: a confirmed pin is seen. Marks are set before pins.
  static void ScanChannel(const Member& member, Batch* batch) {
    EachLeasedLine(member, [batch](const shm::PinLine& line) {
      for (const shm::Word& pin : line.pins) {
        const shm::Handle handle = Atomics::Load(pin, std::memory_order_seq_cst);
        if (handle != 0) batch->Add(shm::ExtentOf(handle));
      }
    });
  }
  template <typename Visit>
  static void EachLeasedLine(const Member& member, const Visit& visit) {
    constexpr auto kOrdered = std::memory_order_seq_cst;
    const shm::Channel& channel = *member.channel;
    const uint32_t words = (member.pin_lines + 63) / 64;
    for (uint32_t upper = 0; upper < shm::kUpperSummaryWords; ++upper) {
      uint64_t marked = Atomics::Load(channel.upper_summary[upper], kOrdered);
      for (; marked != 0; marked &= marked - 1) {
        const uint32_t word = upper * 64 + static_cast<uint32_t>(std::countr_zero(marked));
        if (word >= words) break;
        uint64_t leased = Atomics::Load(channel.summary[word], kOrdered);
        for (; leased != 0; leased &= leased - 1) {
          const uint32_t line = word * 64 + static_cast<uint32_t>(std::countr_zero(leased));
          if (line >= member.pin_lines) break;
          visit(channel.lines[line]);
        }
      }
    }
  }

  static uint64_t DrainMember(Member& member, uint64_t limit,
                              const std::function<void(const RingVisit&)>& visitor) {
    uint64_t visited = 0;
    member.lanes_seen |= Atomics::Load(member.channel->lanes, std::memory_order_acquire);
    for (uint64_t lanes = member.lanes_seen; lanes != 0 && visited < limit; lanes &= lanes - 1) {
      visited += DrainRing(member, std::countr_zero(lanes), limit - visited, visitor);
    }
    return visited;
  }

  static uint64_t DrainRing(Member& member, int lane, uint64_t limit,
                            const std::function<void(const RingVisit&)>& visitor) {
    shm::Ring& ring = member.channel->rings[lane];
    uint64_t& tail = member.tails[lane];
    const uint64_t head = Atomics::Load(ring.head, std::memory_order_acquire);
    if (head == tail) return 0;
    if (head - tail > shm::kRingRecords) {
      // Behind the tail, or further ahead than the ring is long: nothing in it can be believed.
      ++member.skipped;
      tail = head;
      Atomics::Store(ring.tail, tail, std::memory_order_release);
      return 0;
    }
    const uint64_t end = tail + std::min(limit, head - tail);
    const uint64_t visited = end - tail;
    for (; tail != end; ++tail) {
      const shm::RingRecord& record = ring.records[tail % shm::kRingRecords];
      if (!VisitRecord(member.client, record, visitor)) ++member.skipped;
    }
    Atomics::Store(ring.tail, tail, std::memory_order_release);
    return visited;
  }

  static bool VisitRecord(ClientId client, const shm::RingRecord& record,
                          const std::function<void(const RingVisit&)>& visitor) {
    constexpr auto kRelaxed = std::memory_order_relaxed;
    const uint64_t tag = Atomics::Load(record.tag, kRelaxed);
    const auto kind = static_cast<shm::RingKind>(tag & 0xff);
    if (kind != shm::RingKind::kTouch && kind != shm::RingKind::kMiss) return false;
    RingVisit visit;
    visit.client = client;
    visit.kind = kind;
    visit.space_slot = static_cast<uint32_t>(tag >> 8) & 0xffffff;
    visit.part = shm::HighOf(tag);
    visit.key[0] = Atomics::Load(record.key[0], kRelaxed);
    visit.key[1] = Atomics::Load(record.key[1], kRelaxed);
    visit.handle = Atomics::Load(record.handle, kRelaxed);
    visitor(visit);
    return true;
  }

  static void Fold(const Member& member, ChannelTotals* totals) {
    uint64_t lanes =
        member.lanes_seen | Atomics::Load(member.channel->lanes, std::memory_order_acquire);
    for (; lanes != 0; lanes &= lanes - 1) {
      FoldLane(*member.channel, std::countr_zero(lanes), totals);
    }
    totals->dropped += member.skipped;
  }

  // Ring records that are not drained yet.
  static uint64_t Waiting(const Member& member) {
    uint64_t records = 0;
    for (uint64_t lanes = member.lanes_seen; lanes != 0; lanes &= lanes - 1) {
      const int lane = std::countr_zero(lanes);
      const uint64_t head =
          Atomics::Load(member.channel->rings[lane].head, std::memory_order_acquire);
      records += std::min<uint64_t>(head - member.tails[lane], shm::kRingRecords);
    }
    return records;
  }

  // The lane's counters, or, where no reader can have counted so, one record as dropped.
  static void FoldLane(const shm::Channel& channel, int index, ChannelTotals* totals) {
    ChannelTotals lane;
    bool believed = false;
    // A reader that counts meanwhile makes a difference, which another reading does not have.
    for (int reading = 0; reading < kReadings && !believed; ++reading)
      believed = ReadLane(channel.counters[index], &lane);
    if (!believed) {
      ++totals->dropped;
      return;
    }
    ReadTimes(channel.times[index], &lane);
    totals->Add(lane);
  }

  // Of a lane whose counters are believed; left at zero where no reader can have written them. (A
  // lookup is timed before or after its pages are counted.)
  static void ReadTimes(const shm::LaneTimes& times, ChannelTotals* lane) {
    ChannelTotals read;
    uint64_t samples = 0;
    bool believed = true;
    for (uint32_t i = 0; i < shm::kHitTimeBuckets; ++i) {
      read.hit_times[i] = Atomics::Load(times.buckets[i], std::memory_order_relaxed);
      believed = believed && read.hit_times[i] <= lane->lookups;
      samples += read.hit_times[i];
    }
    read.hit_ns = Atomics::Load(times.total_ns, std::memory_order_relaxed);
    if (!believed || samples > lane->lookups || read.hit_ns > kMaxCount) return;
    lane->Add(read);
  }

  // False if an honest reader cannot have written what was read.
  static bool ReadLane(const shm::LaneCounters& counters, ChannelTotals* lane) {
    bool believed = true;
    const auto value = [&believed](const shm::Word& word) {
      const uint64_t count = Atomics::Load(word, std::memory_order_relaxed);
      believed = believed && count <= kMaxCount;
      return count;
    };
    lane->lookups = value(counters.lookups);
    lane->dropped = value(counters.dropped);
    uint64_t outcomes = 0;
    for (uint32_t i = 0; i < shm::kTiers; ++i)
      outcomes += lane->hits[i] = value(counters.hits[i]);
    for (uint32_t i = 0; i < shm::kMisses; ++i)
      outcomes += lane->misses[i] = value(counters.misses[i]);
    const uint64_t difference =
        std::max(lane->lookups, outcomes) - std::min(lane->lookups, outcomes);
    // Without those of a call in which its reader is now, or was killed: what is told adds up.
    lane->lookups = outcomes;
    return believed && difference <= kMaxUnsettled;
  }

  // More than a lane can count in the life of a machine.
  static constexpr uint64_t kMaxCount = uint64_t{1} << 56;
  // Keys that are counted as looked up but not yet as found or missed: of one call, in which the
  // reader is now or in which it was killed.
  static constexpr uint64_t kMaxUnsettled = uint64_t{1} << 20;
  static constexpr int kReadings = 4;
  // Counters and times of a lane, and the head of its ring.
  static constexpr size_t kLinesOfLane = 5;

  std::vector<Member> channels_;
  size_t drain_from_ = 0;
  ChannelTotals ended_;
};

}  // namespace terrace
