// Steps of an engine whose pages go to the store and come back, and the fixture of a daemon with
// one.
#pragma once

#include <string>
#include <vector>

#include "tests/integration/integration_test.h"

namespace terrace {

using Fetch = std::unique_ptr<kvc_fetch, bench::Closer<kvc_fetch_destroy>>;

// ---- Steps of a client process

// What became of a fetch.
struct Fetched {
  size_t worth = 0;
  std::vector<kvc_code> codes;
};

// A space, a reader, and what is done with pages of the space by one client.
class StoreSteps {
 public:
  // Pages of so many bytes, whose content follows from their keys.
  static Result<StoreSteps> Open(kvc_client* client, uint64_t page_bytes,
                                 const std::string& salt = "pages");

  kvc_client* client() const { return client_; }
  const kvc_space* space() const { return space_.get(); }

  Status Put(const std::vector<kvc_key>& keys) const;
  // All of them are durable.
  Status Persist(const std::vector<kvc_key>& keys) const;
  // None of them is in memory any more.
  Status Demote(const std::vector<kvc_key>& keys) const;
  Status PutPersistAndDemote(const std::vector<kvc_key>& keys) const;

  Result<Fetch> Ask(const std::vector<kvc_key>& keys, kvc_prefetch_options options = {}) const;
  Result<Fetched> Prefetch(const std::vector<kvc_key>& keys,
                           kvc_prefetch_options options = {}) const;
  // How many of them a lookup finds, each with the right bytes.
  Result<uint64_t> Found(const std::vector<kvc_key>& keys) const;
  // All of them come back from the store, in batches, each with the right bytes. A device that is
  // slow is asked again.
  Status ExpectStored(const std::vector<kvc_key>& keys) const;

 private:
  Status ExpectBatchStored(const std::vector<kvc_key>& keys) const;

  kvc_client* client_ = nullptr;
  bench::Space space_;
  bench::Reader reader_;
};

// ---- The daemon

inline constexpr const char* kOneDirectory = R"(
[[nvme]]
path = "@/nvme"
capacity = "256MiB"
)";

class StoreTest : public IntegrationTest {
 protected:
  // A daemon with a store; `store` as DaemonProcessOptions has it.
  void StartStore(const std::string& store = kOneDirectory, const std::string& capacity = "32MiB");
  std::string store_folder() { return daemon().folder() + "/nvme"; }
  // Its tier in the report; null, and a failure of the test, when there is none.
  Json StoreTier();
  // A number of it by its JSON pointer; 0 when there is none: reports leave out counts that are 0.
  static uint64_t At(const Json& tier, const std::string& pointer);
  // A client process that runs to its end.
  void Run(const std::function<Status(kvc_client*)>& body);
  void KillAndLaunch();
};

}  // namespace terrace
