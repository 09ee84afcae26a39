#include "bench/store_pages.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "bench/content.h"
#include "bench/statistics.h"

namespace terrace::bench {
namespace {

constexpr int32_t kLongMs = 120'000;

}  // namespace

Result<uint64_t> StoreNumber(kvc_client* client, const char* pointer) {
  ASSIGN_OR_RETURN(const nlohmann::json report, Report(client, "tiers"));
  const nlohmann::json::json_pointer path(pointer);
  for (const auto& tier : report.value("tiers", nlohmann::json::array())) {
    if (tier.value("tier", "") != "nvme" || !tier.contains(path)) continue;
    if (tier[path].is_number_unsigned()) return tier[path].get<uint64_t>();
  }
  return Status(Code::kDataLoss,
                "the daemon's report of its page store has no number at " + std::string(pointer));
}

Status Persist(const Engine& engine, std::span<const kvc_key> keys) {
  for (size_t first = 0; first < keys.size(); first += kMaxBatch) {
    kvc_error error{};
    RETURN_IF_ERROR(
        ToStatus(kvc_persist(engine.client.get(), engine.space.get(), keys.data() + first,
                             std::min(kMaxBatch, keys.size() - first), kLongMs, nullptr, &error),
                 error));
  }
  return {};
}

Status Drop(const Engine& engine, std::span<const kvc_key> keys) {
  for (size_t first = 0; first < keys.size(); first += kMaxBatch) {
    kvc_error error{};
    RETURN_IF_ERROR(
        ToStatus(kvc_drop(engine.client.get(), engine.space.get(), keys.data() + first,
                          std::min(kMaxBatch, keys.size() - first), kLongMs, nullptr, &error),
                 error));
  }
  return {};
}

Status PutDurable(const Engine& engine, const DurableOptions& options) {
  for (uint64_t done = 0; done < options.pages; done += options.batch) {
    std::vector<kvc_key> keys;
    const uint64_t count = std::min<uint64_t>(options.batch, options.pages - done);
    for (uint64_t i = 0; i < count; ++i)
      keys.push_back(SyntheticKey(options.first + done + i));
    ASSIGN_OR_RETURN(
        const Published published,
        Put(engine.client.get(), engine.space.get(), {.keys = keys},
            [&](size_t index, std::span<uint8_t> page) { FillContent(keys[index], page); }));
    if (published.committed != count) return {Code::kExhausted, "a page was not taken"};
    RETURN_IF_ERROR(Persist(engine, keys));
  }
  return {};
}

Result<Fetch> Prefetch(const Engine& engine, const kvc_key& key) {
  kvc_prefetch_options options{};
  options.struct_size = sizeof options;
  options.deadline_ms = 60'000;
  kvc_fetch* fetch = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(ToStatus(kvc_prefetch(engine.client.get(), engine.space.get(), &key, 1, &options,
                                        kLongMs, &fetch, &error),
                           error));
  return Fetch(fetch);
}

Status Await(kvc_fetch* fetch) {
  kvc_error error{};
  kvc_code code = KVC_OK;
  RETURN_IF_ERROR(ToStatus(kvc_wait(fetch, kLongMs, nullptr, &code, &error), error));
  if (code == KVC_OK) return {};
  return {static_cast<Code>(code), "a page did not come back from the store"};
}

Status AwaitAny(std::vector<Fetch>* fetches) {
  std::vector<kvc_fetch*> waiting;
  for (const Fetch& fetch : *fetches)
    waiting.push_back(fetch.get());
  size_t index = 0;
  kvc_error error{};
  RETURN_IF_ERROR(
      ToStatus(kvc_wait_any(waiting.data(), waiting.size(), kLongMs, &index, &error), error));
  RETURN_IF_ERROR(Await(waiting[index]));
  fetches->erase(fetches->begin() + static_cast<ptrdiff_t>(index));
  return {};
}

Result<bool> Resident(const Engine& engine, const kvc_key& key, bool check_bytes) {
  kvc_page page{};
  kvc_reader* reader = engine.reader.get();
  const kvc_ticket ticket = kvc_pin(reader, engine.space.get(), &key, &page, nullptr);
  if (ticket == 0) return false;
  const auto* bytes = static_cast<const uint8_t*>(page.data);
  const bool wrong = check_bytes && WrongBytes(key, {bytes, page.bytes}) > 0;
  kvc_unpin(reader, ticket);
  if (wrong) return Status(Code::kDataLoss, "a page came back with wrong bytes");
  return true;
}

void AddSpread(Figures* figures, const std::string& name, const std::vector<double>& values,
               const std::string& unit) {
  figures->push_back({name, Median(values), unit});
  figures->push_back({name + "_low", Percentile(values, 0.25), unit});
  figures->push_back({name + "_high", Percentile(values, 0.75), unit});
}

}  // namespace terrace::bench
