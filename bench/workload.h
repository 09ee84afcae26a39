// What `play` and `chat` have in common: one request of an engine (find the longest prefix, check
// every byte of it, compute and publish the rest), and the count of what came of all of them.
//
// An EngineWorker belongs to one process and thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "bench/client.h"
#include "bench/figures.h"
#include "bench/processes.h"

namespace terrace::bench {

struct WorkTotals {
  uint64_t requests = 0;
  uint64_t pages = 0;  // Asked for: hits + misses.
  uint64_t hits = 0;
  uint64_t tokens = 0;  // In all prompts.
  uint64_t tokens_reused = 0;
  uint64_t published = 0;
  uint64_t already_present = 0;  // Another process published the page first.
  uint64_t not_stored = 0;       // No memory for them.
  uint64_t verified_bytes = 0;
  uint64_t wrong_bytes = 0;
  uint64_t wrong_tokens = 0;  // Pages with another number of valid tokens than demanded.

  void Add(const WorkTotals& other);
};

class EngineWorker {
 public:
  // All outlive the worker.
  EngineWorker(kvc_client* client, const kvc_space* space, kvc_reader* reader)
      : client_(client), space_(space), reader_(reader) {}

  // One prompt: `tokens[i]` are in the page of `keys[i]`.
  Status Serve(std::span<const kvc_key> keys, std::span<const uint32_t> tokens);
  // Pages that the engine computed beyond the prompt; not counted as asked for.
  Status Publish(std::span<const kvc_key> keys, std::span<const uint32_t> tokens);

  WorkTotals& totals() { return totals_; }
  // Totals and lookup times to the parent, which receives them with WorkOutcome.
  Status Tell(Link& link) const;

 private:
  void Verify(const kvc_pages* pages, std::span<const kvc_key> keys,
              std::span<const uint32_t> tokens);

  kvc_client* const client_;
  const kvc_space* const space_;
  kvc_reader* const reader_;
  WorkTotals totals_;
  std::vector<double> lookup_us_;  // One a request.
  std::vector<double> hit_us_;     // One a request that found all it could: time a page found.
};

// What all workers together did.
class WorkOutcome {
 public:
  Status Hear(Link& link);
  const WorkTotals& totals() const { return totals_; }
  // Hits, tokens not recomputed, latencies, wrong bytes.
  Figures ToFigures() const;
  // data_loss if a byte was wrong.
  Status Check() const;

 private:
  WorkTotals totals_;
  std::vector<double> lookup_us_;
  std::vector<double> hit_us_;
};

// Memory of the host tier, as figures.
Result<Figures> MemoryFigures(kvc_client* client);

}  // namespace terrace::bench
