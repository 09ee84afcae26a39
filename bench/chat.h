// A multi-turn conversation workload: several engine processes serve conversations that share a
// system prompt, with KV pages of the Llama-3.2-1B layout; each turn is served by another process
// than the turn before, so that what one computed another maps.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "bench/figures.h"

namespace terrace::bench {

struct ChatOptions {
  std::string socket;                    // Empty: a daemon of our own.
  std::string terraced;                  // For a daemon of our own.
  uint64_t capacity_bytes = 4ull << 30;  // Likewise.
  std::string model;  // Attached, and the KV belongs to its weights; empty: none.
  uint32_t clients = 4;
  uint32_t conversations = 24;
  uint32_t turns = 6;
  uint32_t system_tokens = 1024;
  uint32_t page_tokens = 32;  // 16 to 64: pages of 512 KiB to 2 MiB.
  uint64_t seed = 1;
};

// Fails when a mapped byte was wrong.
Result<Figures> Chat(const ChatOptions& options);

}  // namespace terrace::bench
