// The shared-memory layout: what the daemon and its clients read and write without a message.
//
// Two kinds of memory are shared. A *directory* is a tenant's index of resident pages: the daemon
// alone writes it, every client of the tenant maps it read-only (the descriptor is sealed
// FUTURE_WRITE). A *channel* belongs to one client, which writes its pins, counters and rings
// there; to the daemon every word of a channel is hostile input. docs/shared_memory.md specifies
// both, with the protocol between reader and evictor and the argument why a pinned page cannot
// move; this header and that page change together, with kLayoutVersion.
//
// All shared words are std::atomic<uint64_t>, little-endian. Code that takes part in the protocol
// reaches them through a policy class with the functions of StdAtomics, so that the simulation can
// interleave the two sides at every single access.
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "base/mutex.h"

namespace terrace::shm {

using Word = std::atomic<uint64_t>;
static_assert(sizeof(Word) == 8 && Word::is_always_lock_free);
static_assert(std::endian::native == std::endian::little);

// Of the protocol version that brought this layout (frame.h): a new layout is a new version.
inline constexpr uint32_t kLayoutVersion = 2;
inline constexpr size_t kLineBytes = 64;

// The production policy. Another policy has the same static functions, and a mutex for what the
// threads of one process share beside the shared words.
struct StdAtomics {
  using Mutex = terrace::Mutex;
  using MutexLock = terrace::MutexLock;

  static uint64_t Load(const Word& word, std::memory_order order) { return word.load(order); }
  static void Store(Word& word, uint64_t value, std::memory_order order) {
    word.store(value, order);
  }
  static uint64_t FetchOr(Word& word, uint64_t bits, std::memory_order order) {
    return word.fetch_or(bits, order);
  }
  static uint64_t FetchAnd(Word& word, uint64_t bits, std::memory_order order) {
    return word.fetch_and(bits, order);
  }
  // Stores `wanted` if the word is `expected`; false: it is not.
  static bool CompareExchange(Word& word, uint64_t expected, uint64_t wanted,
                              std::memory_order order) {
    return word.compare_exchange_strong(expected, wanted, order);
  }
};

// ---- Handles ------------------------------------------------------------------------------------
// A handle names one stay of one page in one place: arena (20 bits) | slot (20 bits) | sequence (24
// bits), arena highest. 0 is no handle: sequences start at 1. A handle is linked into a directory
// at most once in that directory's life, so reading the same handle twice means that nothing
// happened in between. Arena ids are never reused in a daemon's life; a slot whose sequence would
// wrap is retired.
using Handle = uint64_t;
inline constexpr int kSequenceBits = 24;
inline constexpr int kSlotBits = 20;
inline constexpr int kArenaBits = 20;
inline constexpr uint32_t kMaxSequence = (1u << kSequenceBits) - 1;
inline constexpr uint32_t kMaxSlots = 1u << kSlotBits;
inline constexpr uint32_t kMaxArenas = 1u << kArenaBits;

constexpr Handle MakeHandle(uint32_t arena, uint32_t slot, uint32_t sequence) {
  return uint64_t{arena} << (kSlotBits + kSequenceBits) | uint64_t{slot} << kSequenceBits |
         sequence;
}
constexpr uint32_t ArenaOf(Handle handle) {
  return static_cast<uint32_t>(handle >> (kSlotBits + kSequenceBits));
}
constexpr uint32_t SlotOf(Handle handle) {
  return static_cast<uint32_t>(handle >> kSequenceBits) & (kMaxSlots - 1);
}
constexpr uint32_t SequenceOf(Handle handle) {
  return static_cast<uint32_t>(handle) & kMaxSequence;
}
// Pins name extents, not stays: scans compare this and ignore the sequence.
constexpr uint64_t ExtentOf(Handle handle) {
  return handle >> kSequenceBits;
}

// ---- Directory ----------------------------------------------------------------------------------
// One page in one place: a cache line of its own.
struct alignas(kLineBytes) Entry {
  Word handle;  // 0 while there is no page here. Written last when linking, first when unlinking.
  Word key[4];  // The page key, 32 bytes.
  Word space;   // SpaceWord
  Word part_bytes;     // Part (low 32) | bytes of the page (high 32).
  Word tokens_passed;  // PackTokens (low 32) | passed (high 32): how many linked entries have this
                       // line on their probe sequence before their own line.
};
static_assert(sizeof(Entry) == kLineBytes);

constexpr uint64_t PackPair(uint32_t low, uint32_t high) {
  return uint64_t{high} << 32 | low;
}
constexpr uint32_t LowOf(uint64_t pair) {
  return static_cast<uint32_t>(pair);
}
constexpr uint32_t HighOf(uint64_t pair) {
  return static_cast<uint32_t>(pair >> 32);
}

// A page may lie in several places at once: in host memory (place 0), and in the memory of device n
// (place n). Each is an entry of its own, by which it is looked up: space slot (16 bits) | place
// (16 bits) | slot epoch (high 32 bits). Who asks for place 0 alone meets no memory of a device.
inline constexpr int kPlaceShift = 16;
inline constexpr uint32_t kMaxPlaces = 256;
constexpr uint64_t SpaceWord(uint32_t slot, uint32_t epoch, uint32_t place) {
  return PackPair(slot | place << kPlaceShift, epoch);
}
constexpr uint32_t SlotOfSpaceWord(uint64_t word) {
  return LowOf(word) & ((1u << kPlaceShift) - 1);
}
constexpr uint32_t PlaceOfSpaceWord(uint64_t word) {
  return LowOf(word) >> kPlaceShift;
}

// Which memory a page lies in, so that a hit is counted by tier. Numbers are part of the layout.
enum class Tier : uint32_t { kDevice = 0, kHost = 1, kNvme = 2, kRemote = 3 };
inline constexpr uint32_t kTiers = 4;

// Valid tokens (low 24 bits) | tier (high 8).
constexpr uint32_t PackTokens(uint32_t valid_tokens, Tier tier) {
  return (valid_tokens & 0xffffff) | static_cast<uint32_t>(tier) << 24;
}
constexpr uint32_t TokensOf(uint32_t packed) {
  return packed & 0xffffff;
}
constexpr Tier TierOf(uint32_t packed) {
  return static_cast<Tier>(packed >> 24 & (kTiers - 1));
}

// slot -> space. A slot is reused only when its last entry is reclaimed, and then with a new epoch.
struct alignas(kLineBytes) SpaceLine {
  Word id[4];       // The space's SHA-256.
  Word epoch;       // The slot's present epoch; 0 while the slot is free.
  Word generation;  // Index of the space's generation word.
  Word page_bytes;  // Of the undivided page; a rank's part has fewer.
  Word reserved;
};
static_assert(sizeof(SpaceLine) == kLineBytes);

inline constexpr uint64_t kDirectoryMagic = 0x3152494443525254;  // "TRRCDIR1" in memory order.
inline constexpr uint32_t kMaxSpaces = 4096;                     // Space slots a directory.
static_assert(kMaxSpaces <= 1u << kPlaceShift);
inline constexpr uint32_t kMaxGenerations =
    1024;                                   // Generation words a directory. Word 0 never moves.
inline constexpr uint32_t kMaxProbe = 128;  // Lines of one probe sequence, the home line included.
inline constexpr uint64_t kMinCapacity = 1024;  // Entries; capacities are powers of two.

// At offset 0 of a directory; the rest of its memory follows in the order of the members below.
// Constant words are written before the descriptor is handed out.
struct alignas(4096) DirectoryHeader {
  alignas(kLineBytes) Word magic;  // kDirectoryMagic
  Word version;                    // kLayoutVersion
  Word directory_id;               // Grows by one with every directory of the tenant.
  Word capacity;                   // Entries, a power of two.
  Word bytes;                      // Of the whole memfd.
  // 0; not 0 from the moment that a newer directory may unlink what this one still shows.
  alignas(kLineBytes) Word superseded;
  alignas(kLineBytes) Word generations[kMaxGenerations];
  SpaceLine spaces[kMaxSpaces];
};
inline constexpr size_t kEntriesOffset = sizeof(DirectoryHeader);
static_assert(kEntriesOffset % 4096 == 0);

constexpr size_t DirectoryBytes(uint64_t capacity) {
  return kEntriesOffset + capacity * sizeof(Entry);
}

// The home line of (space, part, key). Keys are SHA-256 and need no more mixing than to tell spaces
// and parts apart; the constant is 2^64 / golden ratio, and the high half of the product, which
// depends on every bit of the tag, is what moves the line.
constexpr uint64_t HomeLine(uint64_t key_word0, uint64_t space_word, uint32_t part,
                            uint64_t capacity) {
  const uint64_t tag = (space_word ^ uint64_t{part} << 20) * 0x9e3779b97f4a7c15;
  return (key_word0 ^ tag >> 32) & (capacity - 1);
}

// ---- Channel ------------------------------------------------------------------------------------
// A pin word holds the handle of a page that the client is reading, or 0. Pin words come in lines
// of eight; a line is leased by a reader (one thread), or by several when lines are short, and only
// they store a handle into a zero word of it, by an exchange that fails if the word is not zero any
// more; any thread of the client may store 0 to release. While a line is leased its summary bit is
// set, and while any of 64 lines is, their bit of the upper summary: the scan looks only there. A
// summary bit may be set without need, never clear while a pin below it may be set.
inline constexpr uint32_t kPinsPerLine = 8;
inline constexpr uint32_t kMaxPinLines = 8192;  // 65,536 pins a client.
inline constexpr uint32_t kSummaryWords = kMaxPinLines / 64;
inline constexpr uint32_t kUpperSummaryWords = kSummaryWords / 64;

// A lane belongs to one reader of the client: counters that it alone increments (plain load and
// store) and a ring that it alone fills.
inline constexpr uint32_t kMaxLanes = 64;
inline constexpr uint32_t kRingRecords = 1024;

// Why a page was not found. Numbers are part of the layout.
enum class Miss : uint32_t {
  kAbsent = 0,        // No such page in the directory.
  kBeyond = 1,        // After the first missing page of a prefix: not looked at.
  kStale = 2,         // The generation or the space moved on.
  kBusy = 3,          // The entry changed at each of kMaxRetries tries.
  kBudget = 4,        // The client's own pin budget is used up.
  kDisconnected = 5,  // No daemon at the other end.
  kUnmapped = 6,      // The page's arena could not be mapped.
};
inline constexpr uint32_t kMisses = 7;
inline constexpr int kMaxRetries = 64;

struct alignas(kLineBytes) LaneCounters {
  Word lookups;  // Pages asked for = sum of hits + sum of misses.
  Word hits[kTiers];
  Word misses[kMisses];
  Word dropped;  // Ring records that found the ring full.
  Word reserved[3];
};
static_assert(sizeof(LaneCounters) == 2 * kLineBytes);

// How long hits took, by the lane's own clock: of a lookup that is timed, one sample, the time of a
// page in it. A reader times a lookup about each kTimedEvery pages that it asked for.
inline constexpr uint32_t kTimedEvery = 1024;
inline constexpr uint32_t kHitTimeBuckets = 15;
// Bucket i counts samples below this many nanoseconds and not below the bound before; the last
// bucket has no bound.
constexpr uint64_t HitTimeBoundNs(uint32_t bucket) {
  return uint64_t{32} << bucket;
}
struct alignas(kLineBytes) LaneTimes {
  Word total_ns;  // Of all samples.
  Word buckets[kHitTimeBuckets];
};
static_assert(sizeof(LaneTimes) == 2 * kLineBytes);

// What the daemon is told of lookups: which page was touched, which key was missed.
struct RingRecord {
  Word tag;     // PackTag
  Word key[2];  // The first 16 bytes of the key.
  Word handle;  // Of a touch; 0 for a miss.
};
static_assert(sizeof(RingRecord) == 32);
enum class RingKind : uint8_t { kTouch = 1, kMiss = 2 };
// RingKind (low 8 bits) | space slot (bits 8 to 31) | part (high 32).
constexpr uint64_t PackTag(RingKind kind, uint32_t space_slot, uint32_t part) {
  return static_cast<uint64_t>(kind) | uint64_t{space_slot & 0xffffff} << 8 | uint64_t{part} << 32;
}

// Single producer (the lane's reader), single consumer (the daemon). Positions only grow; record i
// lies at i % kRingRecords. The producer stores `head` with release after the record; the daemon
// stores `tail` with release after reading and keeps its own copy, for the client could write it.
struct alignas(kLineBytes) Ring {
  alignas(kLineBytes) Word head;
  alignas(kLineBytes) Word tail;
  alignas(kLineBytes) RingRecord records[kRingRecords];
};

struct alignas(kLineBytes) PinLine {
  Word pins[kPinsPerLine];
};
static_assert(sizeof(PinLine) == kLineBytes);

inline constexpr uint64_t kChannelMagic = 0x314e4e4843525254;  // "TRRCHNN1" in memory order.

struct alignas(4096) Channel {
  alignas(kLineBytes) Word magic;
  Word version;
  Word client_id;
  Word pin_lines;  // Lines this client may lease: its pin budget / 8, at most kMaxPinLines.
  // Bit i is set by the client before it first uses lane i, and stays: the daemon looks at the
  // counters and rings of these lanes only.
  alignas(kLineBytes) Word lanes;
  alignas(kLineBytes) Word upper_summary[kUpperSummaryWords];
  alignas(kLineBytes) Word summary[kSummaryWords];
  alignas(kLineBytes) PinLine lines[kMaxPinLines];
  LaneCounters counters[kMaxLanes];
  Ring rings[kMaxLanes];
  LaneTimes times[kMaxLanes];
};
inline constexpr size_t kChannelBytes = sizeof(Channel);
static_assert(kChannelBytes % 4096 == 0);

}  // namespace terrace::shm
