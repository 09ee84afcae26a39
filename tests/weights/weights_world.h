// A world for Weights: simulated tiers, a budget with eviction in the place of the engine, and a
// reader that looks at a model as a client does: by its manifest and its blocks.
#pragma once

#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/random.h"
#include "daemon/engine/weights/weights.h"
#include "proto/manifest.h"
#include "tiers/sim/sim_host_tier.h"
#include "tiers/sim/sim_journal.h"
#include "tiers/sim/sim_weight_images.h"
#include "tiers/sim/sim_weight_sources.h"

namespace terrace {

// The engine's part: one budget, the least recently used unheld block goes first.
class BudgetMemory final : public BlockMemory {
 public:
  BudgetMemory(SimHostTier& host, uint64_t capacity) : host_(host), capacity_(capacity) {}
  void SetWeights(Weights* weights) { weights_ = weights; }

  Result<HostTier::Created> CreateBlock(size_t bytes) override {
    while (used_ + bytes > capacity_) {
      if (!EvictOne()) return Status(Code::kExhausted, "test budget: everything is held");
    }
    ASSIGN_OR_RETURN(const HostTier::Created created, host_.Create(bytes, ArenaUse::kBlock));
    sizes_[created.id] = bytes;
    used_ += bytes;
    return created;
  }
  void BlockReady(ArenaId arena) override {
    TERRACE_CHECK(sizes_.count(arena) == 1 && host_.Map(arena)->sealed());
    ready_.push_back(arena);
  }
  void TouchBlock(ArenaId arena) override {
    const auto place = std::find(ready_.begin(), ready_.end(), arena);
    TERRACE_CHECK(place != ready_.end());
    ready_.splice(ready_.end(), ready_, place);
  }
  uint64_t capacity_bytes() const override { return capacity_; }
  void ReleaseBlock(ArenaId arena) override {
    const auto size = sizes_.find(arena);
    TERRACE_CHECK(size != sizes_.end());
    used_ -= size->second;
    sizes_.erase(size);
    ready_.remove(arena);
    host_.Release(arena);
  }

  bool EvictOne() {
    for (const ArenaId arena : ready_) {
      if (weights_->Held(arena)) continue;
      weights_->Evict(arena);
      return true;
    }
    return false;
  }
  uint64_t used() const { return used_; }
  size_t arenas() const { return sizes_.size(); }

 private:
  SimHostTier& host_;
  const uint64_t capacity_;
  Weights* weights_ = nullptr;
  std::map<ArenaId, size_t> sizes_;
  std::list<ArenaId> ready_;  // Least recently used first.
  uint64_t used_ = 0;
};

struct WorldOptions {
  uint64_t capacity = 64u << 20;
  uint64_t block_bytes = 16384;
};

class WeightsWorld {
 public:
  static constexpr ClientId kClient = 1;
  static constexpr ClientId kClientsOfTenant = 1000;  // The first ones are of the first tenant.

  explicit WeightsWorld(const WorldOptions& options = {})
      : options_(options), memory(host, options.capacity) {
    Restart();
  }
  ~WeightsWorld() {
    sources.DropPending();
    images.DropPending();
    weights.reset();
  }

  // A new daemon on the same journal and files. Memory of the old one is gone.
  void Restart(uint64_t block_bytes = 0) {
    sources.DropPending();
    images.DropPending();
    if (block_bytes == 0) block_bytes = options_.block_bytes;
    if (weights != nullptr) {
      journal.Crash(journal.pending());
      weights.reset();
    }
    weights = std::make_unique<Weights>(
        WeightsOptions{.block_bytes = block_bytes},
        WeightsParts{.clock = &clock,
                     .host = &host,
                     .sources = &sources,
                     .images = &images,
                     .journal = &journal,
                     .memory = &memory,
                     .tenant_of = [](ClientId client) {
                       return static_cast<TenantId>(1 + client / kClientsOfTenant);
                     }});
    memory.SetWeights(weights.get());
    problems.clear();
    const Status restored = weights->Restore(&problems);
    TERRACE_CHECK(restored.ok());
  }

  // Until nothing moves any more.
  void Run() {
    while (Step() || images.RunPending() > 0) {
    }
  }
  // A bit of it, without images. False when there was nothing to do.
  bool Step() {
    bool more = weights->Turn();
    more = sources.RunPending() > 0 || more;
    return journal.RunPending() > 0 || more;
  }

  static std::vector<SimTensor> MakeTensors(uint64_t seed, size_t layers = 4,
                                            size_t tensor_bytes = 10'000) {
    Random random(seed);
    std::vector<SimTensor> tensors;
    const auto add = [&](const std::string& name, size_t bytes) {
      SimTensor tensor{.name = name, .dtype = "U8", .shape = {bytes}, .bytes = {}};
      tensor.bytes.resize(bytes);
      for (uint8_t& byte : tensor.bytes)
        byte = static_cast<uint8_t>(random());
      tensors.push_back(std::move(tensor));
    };
    add("model.embed", 3 * tensor_bytes + 7);
    for (size_t i = 0; i < layers; ++i) {
      add("model.layers." + std::to_string(i) + ".empty", 0);
      add("model.layers." + std::to_string(i) + ".norm", 96);
      add("model.layers." + std::to_string(i) + ".w", tensor_bytes);
    }
    return tensors;
  }
  // The file and what it holds.
  void MakeFile(const std::string& path, std::vector<SimTensor> tensors, bool reopenable = true) {
    contents[path] = tensors;
    sources.AddFile(path, std::move(tensors), reopenable);
  }

  static ModelSpec SpecOf(const std::string& name, const std::string& version,
                          std::vector<std::string> paths) {
    ModelSpec spec{.name = name, .version = version, .source = {}};
    spec.source.paths = std::move(paths);
    return spec;
  }
  Result<ModelAdded> Add(const std::string& name, const std::string& version,
                         std::vector<std::string> paths) {
    std::optional<Result<ModelAdded>> added;
    weights->AddModel(SpecOf(name, version, std::move(paths)),
                      [&added](Result<ModelAdded> result) { added = std::move(result); });
    Run();
    TERRACE_CHECK(added.has_value());
    return *added;
  }
  // A registered model of one file of random contents.
  void AddRandom(const std::string& name, uint64_t seed, size_t layers = 4) {
    MakeFile("/" + name, MakeTensors(seed, layers));
    TERRACE_CHECK(Add(name, "1", {"/" + name}).has_value());
  }
  Result<ModelLoaded> Load(const std::string& name, const std::string& version = "") {
    std::optional<Result<ModelLoaded>> loaded;
    weights->Load(kClient, name, version, {},
                  [&loaded](Result<ModelLoaded> result) { loaded = std::move(result); });
    Run();
    TERRACE_CHECK(loaded.has_value());
    return *loaded;
  }
  Result<Attached> Attach(const std::string& name, bool load = true, ClientId client = kClient) {
    std::optional<Result<Attached>> attached;
    weights->Attach(client, name, "", load, 0,
                    [&attached](Result<Attached> result) { attached = std::move(result); });
    Run();
    TERRACE_CHECK(attached.has_value());
    return *attached;
  }
  Status Remove(const std::string& name, const std::string& version = "") {
    std::optional<Status> removed;
    weights->RemoveModel(name, version, [&removed](Status status) { removed = std::move(status); });
    Run();
    TERRACE_CHECK(removed.has_value());
    return *removed;
  }
  ModelVersionReport ReportOf(const std::string& name) {
    for (const ModelReport& model : weights->Models()) {
      if (model.name == name) return model.versions.back();
    }
    return {};
  }
  std::string StateOf(const std::string& name) { return ReportOf(name).state; }

  uint64_t images_bytes(const std::string& name) {
    uint64_t bytes = 0;
    for (const SimTensor& tensor : contents["/" + name])
      bytes += (tensor.bytes.size() + 255) / 256 * 256;
    return bytes;
  }

  manifest::ManifestHeader HeaderOf(const Attached& attached) {
    manifest::ManifestHeader header;
    std::memcpy(&header, host.Map(attached.manifest)->bytes().data(), sizeof header);
    return header;
  }

  // What a client sees: every tensor of the manifest, in sealed memory, has the bytes of the file.
  void ExpectContents(const Attached& attached, const std::string& path,
                      ClientId client = kClient) {
    const auto arenas = weights->BlocksOf(client, attached.attachment, {});
    ASSERT_TRUE(arenas.has_value()) << arenas.error().ToString();
    const auto manifest = host.Map(attached.manifest);
    ASSERT_NE(manifest, nullptr);
    EXPECT_TRUE(manifest->sealed());
    const manifest::ManifestHeader header = HeaderOf(attached);
    EXPECT_EQ(header.magic, manifest::kManifestMagic);
    ASSERT_EQ(header.blocks, arenas->size());
    std::vector<uint8_t> image(header.blocks * header.block_bytes);
    for (uint32_t block = 0; block < header.blocks; ++block) {
      const auto arena = host.Map((*arenas)[block]);
      ASSERT_NE(arena, nullptr);
      EXPECT_TRUE(arena->sealed());
      ASSERT_LE(arena->bytes().size(), header.block_bytes);
      std::memcpy(image.data() + block * header.block_bytes, arena->bytes().data(),
                  arena->bytes().size());
    }
    ASSERT_EQ(header.tensors, contents[path].size());
    const uint8_t* const bytes = manifest->bytes().data();
    for (uint32_t i = 0; i < header.tensors; ++i) {
      manifest::TensorRecord record;
      std::memcpy(&record, bytes + sizeof header + i * sizeof record, sizeof record);
      const std::string name(
          reinterpret_cast<const char*>(bytes) + header.strings_offset + record.name_offset,
          record.name_bytes);
      const auto tensor = std::find_if(contents[path].begin(), contents[path].end(),
                                       [&](const SimTensor& t) { return t.name == name; });
      ASSERT_NE(tensor, contents[path].end()) << name;
      ASSERT_EQ(record.bytes, tensor->bytes.size());
      ASSERT_TRUE(std::equal(tensor->bytes.begin(), tensor->bytes.end(),
                             image.begin() + static_cast<ptrdiff_t>(record.offset)))
          << name;
    }
  }

  // Nothing is resident and nothing leaked.
  void ExpectNoMemory() {
    EXPECT_EQ(memory.arenas(), 0u);
    EXPECT_EQ(host.arena_count(), 0u);
    EXPECT_EQ(weights->totals().resident_bytes, 0u);
  }
  void ExpectConsistent() {
    const Status status = weights->CheckInvariants();
    EXPECT_TRUE(status.ok()) << status.ToString();
    EXPECT_EQ(weights->totals().resident_bytes, memory.used());
  }

 private:
  const WorldOptions options_;

 public:
  ManualClock clock;
  SimHostTier host{{.blank_bytes = 4096, .capacity_bytes = SIZE_MAX, .blanks_per_step = 1}};
  SimWeightSources sources;
  SimWeightImages images;
  SimJournal journal;
  BudgetMemory memory;
  std::unique_ptr<Weights> weights;
  std::map<std::string, std::vector<SimTensor>> contents;  // By path.
  std::vector<std::string> problems;                       // Of the last Restart.
};

}  // namespace terrace
