#include "tests/integration/store_steps.h"

#include <algorithm>

namespace terrace {

namespace {

constexpr uint32_t kPageTokens = 16;
constexpr uint32_t kLongMs = 60'000;
// Of pages that are in memory at a time.
constexpr size_t kBatch = 64;

// The device did not answer in time, or there was no memory for a moment.
bool IsPassing(kvc_code code) {
  return code == KVC_DEADLINE_EXCEEDED || code == KVC_UNAVAILABLE || code == KVC_EXHAUSTED;
}

}  // namespace

Result<StoreSteps> StoreSteps::Open(kvc_client* client, uint64_t page_bytes,
                                    const std::string& salt) {
  StoreSteps steps;
  steps.client_ = client;
  ASSIGN_OR_RETURN(steps.space_,
                   bench::OpenSpace(client, {.layout = bench::PlainLayout(page_bytes, kPageTokens),
                                             .weights = nullptr,
                                             .salt = salt + std::to_string(page_bytes)}));
  ASSIGN_OR_RETURN(steps.reader_, bench::NewReader(client));
  return steps;
}

Status StoreSteps::Put(const std::vector<kvc_key>& keys) const {
  return PutNewPages(client_, space(), keys);
}

Status StoreSteps::Persist(const std::vector<kvc_key>& keys) const {
  for (size_t first = 0; first < keys.size(); first += bench::kMaxBatch) {
    kvc_error error{};
    const size_t count = std::min(bench::kMaxBatch, keys.size() - first);
    const kvc_code code =
        kvc_persist(client_, space(), keys.data() + first, count, kLongMs, nullptr, &error);
    RETURN_IF_ERROR(bench::ToStatus(code, error));
  }
  return {};
}

Status StoreSteps::Demote(const std::vector<kvc_key>& keys) const {
  // A hold of an earlier fetch ends when the daemon has been told of the hit.
  Status failed;
  const bool gone = Await([&] {
    kvc_demoted demoted{};
    demoted.struct_size = sizeof demoted;
    kvc_error error{};
    failed = bench::ToStatus(kvc_demote(client_, 0, kLongMs, &demoted, &error), error);
    const Result<uint64_t> found = Found(keys);
    if (failed.ok()) failed = found.status();
    return !failed.ok() || *found == 0;
  });
  RETURN_IF_ERROR(failed);
  RETURN_UNLESS(gone, "pages stay in memory");
  return {};
}

Status StoreSteps::PutPersistAndDemote(const std::vector<kvc_key>& keys) const {
  RETURN_IF_ERROR(Put(keys));
  RETURN_IF_ERROR(Persist(keys));
  return Demote(keys);
}

Result<Fetch> StoreSteps::Ask(const std::vector<kvc_key>& keys,
                              kvc_prefetch_options options) const {
  options.struct_size = sizeof options;
  if (options.deadline_ms == 0) options.deadline_ms = kLongMs;
  kvc_fetch* fetch = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(bench::ToStatus(
      kvc_prefetch(client_, space(), keys.data(), keys.size(), &options, 0, &fetch, &error),
      error));
  return Fetch(fetch);
}

Result<Fetched> StoreSteps::Prefetch(const std::vector<kvc_key>& keys,
                                     kvc_prefetch_options options) const {
  ASSIGN_OR_RETURN(const Fetch fetch, Ask(keys, options));
  Fetched fetched;
  fetched.codes.resize(keys.size());
  kvc_error error{};
  RETURN_IF_ERROR(bench::ToStatus(
      kvc_wait(fetch.get(), kLongMs, &fetched.worth, fetched.codes.data(), &error), error));
  return fetched;
}

Result<uint64_t> StoreSteps::Found(const std::vector<kvc_key>& keys) const {
  uint64_t found = 0;
  for (size_t first = 0; first < keys.size(); first += bench::kMaxBatch) {
    const std::vector<kvc_key> batch(
        keys.begin() + static_cast<ptrdiff_t>(first),
        keys.begin() + static_cast<ptrdiff_t>(std::min(keys.size(), first + bench::kMaxBatch)));
    kvc_pages* set = nullptr;
    RETURN_UNLESS(
        kvc_lookup_each(reader_.get(), space(), batch.data(), batch.size(), &set) == KVC_OK,
        "lookup");
    const bench::Pages pages(set);
    RETURN_IF_ERROR(CheckPages(set, batch, &found));
  }
  return found;
}

Status StoreSteps::ExpectStored(const std::vector<kvc_key>& keys) const {
  for (size_t first = 0; first < keys.size(); first += kBatch) {
    RETURN_IF_ERROR(ExpectBatchStored(
        {keys.begin() + static_cast<ptrdiff_t>(first),
         keys.begin() + static_cast<ptrdiff_t>(std::min(keys.size(), first + kBatch))}));
  }
  return {};
}

Status StoreSteps::ExpectBatchStored(const std::vector<kvc_key>& keys) const {
  Status failed;
  const bool here = Await([&] {
    const Result<Fetched> fetched = Prefetch(keys);
    failed = fetched.status();
    if (!failed.ok()) return true;
    size_t good = 0;
    for (size_t i = 0; i < keys.size() && failed.ok(); ++i) {
      const kvc_code code = fetched->codes[i];
      good += code == KVC_OK;
      if (code != KVC_OK && !IsPassing(code)) {
        failed = Unexpected("page " + std::to_string(i) + " of a batch: " + kvc_code_name(code));
      }
    }
    return !failed.ok() || good == keys.size();
  });
  RETURN_IF_ERROR(failed);
  RETURN_UNLESS(here, "pages come back");
  // Held for this client until it has pinned them.
  ASSIGN_OR_RETURN(const uint64_t found, Found(keys));
  RETURN_UNLESS(found == keys.size(), std::to_string(found) + " of " + std::to_string(keys.size()));
  return {};
}

void StoreTest::StartStore(const std::string& store, const std::string& capacity) {
  DaemonProcessOptions options;
  options.capacity = capacity;
  options.store = store;
  // What a test damages it finds itself.
  if (store.find("[store]") == std::string::npos) {
    options.store += "[store]\nscrub_bytes_per_second = 0\n";
  }
  StartDaemon(options);
}

Json StoreTest::StoreTier() {
  const Json report = Report("tiers");
  if (report.contains("tiers")) {
    for (const Json& tier : report["tiers"]) {
      if (tier["tier"] == "nvme") return tier;
    }
  }
  ADD_FAILURE() << "no tier nvme in " << report.dump();
  return {};
}

uint64_t StoreTest::At(const Json& tier, const std::string& pointer) {
  const Json::json_pointer path(pointer);
  return tier.contains(path) ? tier[path].get<uint64_t>() : 0;
}

void StoreTest::Run(const std::function<Status(kvc_client*)>& body) {
  bench::Child client =
      StartClient("engine", [&](kvc_client* connected, bench::Link&) { return body(connected); });
  ExpectDone(client);
}

void StoreTest::KillAndLaunch() {
  daemon().Kill();
  const Status launched = daemon().Launch();
  ASSERT_TRUE(launched.ok()) << launched.ToString();
}

}  // namespace terrace
