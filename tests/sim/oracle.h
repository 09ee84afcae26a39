// Oracle: what a read may legally return.
//
// Every writing of a page has a nonce, and its bytes follow from name and nonce. A writing may be
// read from the moment its commit began until a drop of it ended or a later writing of the same
// name was committed; eviction may end it sooner, for a miss is always legal. Time is the count of
// accesses to shared memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "base/digest.h"

namespace terrace {

// A page, whatever directory slot its space has at the moment.
struct OracleName {
  uint32_t tenant = 0;
  Digest space;
  uint32_t part = 0;
  Digest key;
  friend auto operator<=>(const OracleName&, const OracleName&) = default;
};

class Oracle {
 public:
  static constexpr uint64_t kForever = UINT64_MAX;

  uint64_t NewNonce() { return ++last_nonce_; }

  // The bytes of the writing, from `offset`.
  static void Fill(const OracleName& name, uint64_t nonce, uint64_t offset,
                   std::span<uint8_t> out) {
    for (size_t i = 0; i < out.size(); i += sizeof(uint64_t)) {
      const uint64_t word = WordAt(name, nonce, offset + i);
      std::memcpy(out.data() + i, &word, sizeof word);
    }
  }
  // The nonce that the bytes claim to be of.
  static uint64_t NonceIn(std::span<const uint8_t> page) {
    uint64_t nonce;
    std::memcpy(&nonce, page.data(), sizeof nonce);
    return nonce;
  }
  static bool Matches(const OracleName& name, uint64_t nonce, uint64_t offset,
                      std::span<const uint8_t> bytes) {
    for (size_t i = 0; i < bytes.size(); i += sizeof(uint64_t)) {
      uint64_t word;
      std::memcpy(&word, bytes.data() + i, sizeof word);
      if (word != WordAt(name, nonce, offset + i)) return false;
    }
    return true;
  }

  // A commit of the writing was asked for at `began` and answered ok at `ended`.
  void Committed(const OracleName& name, uint64_t nonce, uint64_t began, uint64_t ended) {
    std::vector<Writing>& writings = writings_[name];
    for (Writing& writing : writings)
      writing.until = std::min(writing.until, ended);
    writings.push_back({nonce, began, kForever});
  }
  // A commit is being carried out; whether it succeeds is not known yet.
  void Committing(const OracleName& name, uint64_t nonce, uint64_t began) {
    pending_[name].push_back({nonce, began, kForever});
  }
  void CommitAnswered(const OracleName& name, uint64_t nonce) {
    std::erase_if(pending_[name], [&](const Writing& writing) { return writing.nonce == nonce; });
  }
  void Dropped(const OracleName& name, uint64_t ended) {
    for (Writing& writing : writings_[name])
      writing.until = std::min(writing.until, ended);
  }
  // Whether a lookup during [began, ended] may have found this writing.
  bool Legal(const OracleName& name, uint64_t nonce, uint64_t began, uint64_t ended) const {
    for (const auto* of : {&writings_, &pending_}) {
      const auto found = of->find(name);
      if (found == of->end()) continue;
      for (const Writing& writing : found->second) {
        if (writing.nonce == nonce) return writing.from <= ended && writing.until >= began;
      }
    }
    return false;
  }

 private:
  struct Writing {
    uint64_t nonce = 0;
    uint64_t from = 0;
    uint64_t until = kForever;
  };
  static uint64_t WordAt(const OracleName& name, uint64_t nonce, uint64_t offset) {
    if (offset == 0) return nonce;
    return (nonce ^ name.key.Word(0) ^ name.space.Word(1) ^ name.part) * 0x9e3779b97f4a7c15 +
           offset * 0xbf58476d1ce4e5b9 + name.tenant;
  }

  std::map<OracleName, std::vector<Writing>> writings_;
  std::map<OracleName, std::vector<Writing>> pending_;
  uint64_t last_nonce_ = 0;
};

}  // namespace terrace
