// Pages in the page store of a daemon: what the suites on it have in common.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "bench/client.h"
#include "bench/figures.h"
#include "bench/residents.h"

namespace terrace::bench {

// One number of the page store's report, by its JSON pointer: "/pages".
Result<uint64_t> StoreNumber(kvc_client* client, const char* pointer);

// Waits until all of `keys`, any number, are durable.
Status Persist(const Engine& engine, std::span<const kvc_key> keys);
// Out of memory and store alike.
Status Drop(const Engine& engine, std::span<const kvc_key> keys);
// Publishes pages with the bytes that their keys demand (content.h), each batch durable before the
// next begins, so that nothing is left out for want of room in the queue.
struct DurableOptions {
  uint64_t first = 0;  // SyntheticKey of first to first + pages - 1.
  uint64_t pages = 0;
  size_t batch = kMaxBatch;
};
Status PutDurable(const Engine& engine, const DurableOptions& options);

// Asks for one page; it stays for this client for a minute, or until it was pinned.
Result<Fetch> Prefetch(const Engine& engine, const kvc_key& key);
// That one page is in memory now.
Status Await(kvc_fetch* fetch);
// Of several fetches, whichever is answered first; it is taken out.
Status AwaitAny(std::vector<Fetch>* fetches);
// Whether the page is in memory, and its bytes are what its key demands: data_loss if they are not.
Result<bool> Resident(const Engine& engine, const kvc_key& key, bool check_bytes);

// `name`, and its quartiles as name_low and name_high.
void AddSpread(Figures* figures, const std::string& name, const std::vector<double>& values,
               const std::string& unit);

}  // namespace terrace::bench
