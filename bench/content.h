// What a key demands: deterministic bytes, so that whoever maps a page can tell whether every byte
// of it is the right one, and synthetic page keys.
//
// Pure functions; any thread.
#pragma once

#include <kvclient/kvclient.h>

#include <cstdint>
#include <cstring>
#include <span>

namespace terrace::bench {

// The finalizer of splitmix64 (Steele, Lea and Flood, 2014): a bijection that scatters.
constexpr uint64_t Mix(uint64_t z) {
  z += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// The page key number `index`: as uniform as a digest where the directory looks (its first word),
// and computed in a few nanoseconds without touching memory, so that a chain of lookups waits for
// lookups only. For every k the low k bits of the second word are a bijection of the low k bits of
// `index`: a table that is addressed by them has no collisions.
inline kvc_key SyntheticKey(uint64_t index) {
  const uint64_t words[4] = {Mix(index), index * 0x9e3779b97f4a7c15, Mix(~index), ~index};
  kvc_key key;
  std::memcpy(key.bytes, words, sizeof key.bytes);
  return key;
}

inline uint64_t SeedOf(const kvc_key& key) {
  uint64_t words[4];
  std::memcpy(words, key.bytes, sizeof words);
  return Mix(words[0] ^ Mix(words[1] ^ Mix(words[2] ^ Mix(words[3]))));
}

// `bytes` is a multiple of 8 long, as every page is.
inline void FillContent(const kvc_key& key, std::span<uint8_t> bytes) {
  const uint64_t seed = SeedOf(key);
  for (size_t i = 0; i < bytes.size() / 8; ++i) {
    const uint64_t word = Mix(seed + i);
    std::memcpy(bytes.data() + 8 * i, &word, sizeof word);
  }
}

// How many of `bytes` differ from what the key demands.
inline uint64_t WrongBytes(const kvc_key& key, std::span<const uint8_t> bytes) {
  const uint64_t seed = SeedOf(key);
  uint64_t difference = 0;
  for (size_t i = 0; i < bytes.size() / 8; ++i) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + 8 * i, sizeof word);
    difference |= word ^ Mix(seed + i);
  }
  if (difference == 0) return 0;
  uint64_t wrong = 0;  // The slow way, for a count: this is a failure already.
  for (size_t i = 0; i < bytes.size(); ++i) {
    const uint64_t word = Mix(seed + i / 8);
    if (bytes[i] != static_cast<uint8_t>(word >> (i % 8 * 8))) ++wrong;
  }
  return wrong;
}

}  // namespace terrace::bench
