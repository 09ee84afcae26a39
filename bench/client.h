// libkvclient's handles as values that close themselves, and what every suite does with them.
//
// The suites use the C interface itself, so that what they time is what an engine calls.
#pragma once

#include <kvclient/admin.h>
#include <kvclient/kvclient.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"

namespace terrace::bench {

template <auto Close>
struct Closer {
  template <typename T>
  void operator()(T* handle) const {
    Close(handle);
  }
};
using Client = std::unique_ptr<kvc_client, Closer<kvc_close>>;
using Space = std::unique_ptr<kvc_space, Closer<kvc_space_close>>;
using Reader = std::unique_ptr<kvc_reader, Closer<kvc_reader_destroy>>;
using Sequence = std::unique_ptr<kvc_sequence, Closer<kvc_sequence_destroy>>;
using Pages = std::unique_ptr<kvc_pages, Closer<kvc_pages_release>>;
using Grants = std::unique_ptr<kvc_grants, Closer<kvc_grants_destroy>>;
using Weights = std::unique_ptr<kvc_weights, Closer<kvc_detach>>;
using Fetch = std::unique_ptr<kvc_fetch, Closer<kvc_fetch_destroy>>;

inline constexpr size_t kMaxBatch = 512;  // Pages of one message (kvclient.h).

Status ToStatus(kvc_code code, const kvc_error& error);

struct ConnectOptions {
  std::string socket;
  std::string name;
  bool read_only = false;
  uint32_t max_pins = 0;
};
Result<Client> Connect(const ConnectOptions& options);
Result<Reader> NewReader(kvc_client* client);

// The smallest layout with pages of so many bytes and tokens: one layer, one plane, one head of
// bytes. `bytes` must be a multiple of `tokens`.
kvc_layout PlainLayout(uint64_t bytes, uint32_t tokens);
struct SpaceOptions {
  kvc_layout layout{};
  const kvc_weights* weights = nullptr;
  std::string salt;  // Tells spaces of one layout apart.
};
Result<Space> OpenSpace(kvc_client* client, const SpaceOptions& options);

Result<Grants> Grant(kvc_client* client, const kvc_space* space, std::span<const kvc_key> keys);

struct Published {
  uint64_t committed = 0;
  uint64_t present = 0;  // Another writer's page of that key was first.
  uint64_t refused = 0;  // No memory, or too late.
};
// Grants, fills and commits any number of pages, in batches. `fill` writes the page of keys[index];
// `valid_tokens` is empty (all full) or has one number a key.
using Fill = std::function<void(size_t index, std::span<uint8_t> page)>;
struct PutOptions {
  std::span<const kvc_key> keys = {};
  std::span<const uint32_t> valid_tokens = {};
  size_t batch = kMaxBatch;
};
Result<Published> Put(kvc_client* client, const kvc_space* space, const PutOptions& options,
                      const Fill& fill);

uint64_t PageBytes(const kvc_space* space);
// One number of the daemon's status, by its JSON pointer: "/pages/evicted".
Result<uint64_t> StatusNumber(kvc_client* client, const char* pointer);
// Requests that the daemon has received from all clients, by its own counters, without those for
// reports: asking does not change the answer.
Result<uint64_t> FramesReceived(kvc_client* client);
// A report of the daemon, parsed.
Result<nlohmann::json> Report(kvc_client* client, const char* what);
// Asks for the daemon's status until it is so, two minutes at most; `otherwise` says in the error
// what is wrong if it never is.
Status AwaitStatus(kvc_client* client, const std::function<bool(const nlohmann::json&)>& is_so,
                   const std::string& otherwise);

}  // namespace terrace::bench
