// What the client processes of many tests do: steps of an engine, each with its check.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "bench/client.h"
#include "bench/content.h"
#include "bench/model_writer.h"

namespace terrace {

// Status of a failed expectation in a client process, where gtest's have no effect.
Status Unexpected(const std::string& what);
#define RETURN_UNLESS(condition, what)                                              \
  do {                                                                              \
    if (!(condition)) return Unexpected(std::string(what) + ": not " + #condition); \
  } while (false)

// ---- Pages whose content follows from their keys (bench/content.h)

// Synthetic keys [first, first + count), around the end of `of` keys.
std::vector<kvc_key> Keys(uint64_t first, uint64_t count, uint64_t of = UINT64_MAX);
// A space of plain pages, of its own for each size.
Result<bench::Space> OpenPlainSpace(kvc_client* client, uint64_t page_bytes);
Result<bench::Published> PutPages(kvc_client* client, const kvc_space* space,
                                  const std::vector<kvc_key>& keys);
// All must be new and find room.
Status PutNewPages(kvc_client* client, const kvc_space* space, const std::vector<kvc_key>& keys);
// All must be there.
Result<bench::Pages> PinAll(kvc_reader* reader, const kvc_space* space,
                            const std::vector<kvc_key>& keys);
// The page that `key` demands is in `page`, all of it.
Status CheckPage(const kvc_key& key, const kvc_page& page);
// Every page of the set that is there is what its key demands; `found` may be null.
Status CheckPages(const kvc_pages* pages, const std::vector<kvc_key>& keys,
                  uint64_t* found = nullptr);

// ---- Weights that follow from a seed (bench/model_writer.h)

Status AddModel(kvc_client* client, const std::string& name, const std::string& path,
                kvc_model_added* added = nullptr);
Result<bench::Weights> Attach(kvc_client* client, const std::string& model, bool load = true);
// Every tensor is there, and every byte of it is what the seed demands.
Status CheckTensors(const kvc_weights* weights, const std::vector<ModelTensor>& tensors,
                    uint64_t seed);

}  // namespace terrace
