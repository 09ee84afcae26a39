// What Weights tells about itself, and the recount that checks it.
#include <algorithm>
#include <set>
#include <unordered_map>
#include <utility>

#include "daemon/engine/weights/load.h"
#include "daemon/engine/weights/version.h"
#include "daemon/engine/weights/weights.h"

namespace terrace {

using weights::Version;

namespace {

std::string StateOf(const Version& version) {
  if (version.loading) return "loading";
  if (version.Complete()) return version.let_go ? "unloaded, held by clients" : "resident";
  if (version.resident_blocks > 0) {
    return version.let_go ? "unloaded, held by clients" : "partly evicted";
  }
  return version.failure.empty() ? "registered" : "failed: " + version.failure;
}

Status Differs(const Version& version, std::string what) {
  return {Code::kInternal, version.Label() + ": " + std::move(what)};
}

}  // namespace

std::vector<ModelReport> Weights::Models() const {
  std::vector<ModelReport> models;
  std::unordered_map<std::string_view, size_t> by_name;
  for (const VersionPtr& version : versions_) {
    const auto [model, fresh] = by_name.emplace(version->name, models.size());
    if (fresh) models.push_back({.name = version->name, .tenants = {}, .versions = {}});
    ModelVersionReport report;
    report.version = version->version;
    report.tensors = version->tensors;
    report.bytes = version->tensor_bytes;
    const uint64_t block_bytes =
        weights::ChooseBlockBytes(version->image_bytes, options_.block_bytes);
    report.blocks = static_cast<uint32_t>((version->image_bytes + block_bytes - 1) / block_bytes);
    report.blocks_resident = version->resident_blocks;
    report.state = StateOf(*version);
    for (const LoadPtr& load : loads_) {
      if (load->version() == version) report.loading_done_bytes = load->done_bytes();
    }
    report.attachments = version->attachments;
    report.durable = version->durable;
    report.digest = version->digest;
    report.files = version->files;
    report.imported = version->checks != nullptr && version->checks->imported;
    report.image_problem = version->image_problem;
    report.loaded = version->loaded;
    models[model->second].versions.push_back(std::move(report));
  }
  return models;
}

WeightsTotals Weights::totals() const {
  WeightsTotals totals;
  totals.evicted_blocks = evicted_blocks_;
  for (const auto& [arena, place] : places_) {
    const Version& version = *place.version;
    if (place.block == kManifest) {
      totals.resident_bytes += weights::RoundUpToBlockGranularity(version.manifest_bytes);
      continue;
    }
    const uint64_t bytes = version.image->BlockMemory(place.block);
    totals.resident_bytes += bytes;
    if (version.blocks[place.block].holds > 0) totals.held_bytes += bytes;
    if (version.let_go && version.blocks[place.block].holds > 0) totals.let_go_bytes += bytes;
  }
  for (const Orphan& orphan : orphans_)
    totals.resident_bytes += orphan.bytes;
  for (const auto& [arena, bytes] : overdue_)
    totals.resident_bytes += bytes;
  for (const auto& [arena, given] : given_) {
    totals.resident_bytes += given.bytes;
    totals.held_bytes += given.bytes;
    totals.let_go_bytes += given.bytes;
  }
  for (const LoadPtr& load : loads_) {
    totals.resident_bytes += load->arena_bytes();
    totals.held_bytes += load->arena_bytes();
  }
  return totals;
}

WeightsFigures Weights::Figures() const {
  WeightsFigures figures;
  figures.versions = versions_.size();
  for (const auto& [client, holder] : holders_)
    figures.attachments += holder.attachments.size();
  figures.loads = loads_.size();
  figures.waiters = block_waiters_.size();
  figures.read_bytes = read_bytes_;
  figures.read_times = read_times_;
  for (const auto& [arena, place] : places_) {
    const Version& version = *place.version;
    if (place.block == kManifest) {
      figures.held.Add(weights::RoundUpToBlockGranularity(version.manifest_bytes));
      continue;
    }
    const bool held = version.blocks[place.block].holds > 0;
    Amount& amount = version.let_go ? figures.gone : held ? figures.held : figures.idle;
    amount.Add(version.image->BlockMemory(place.block));
  }
  for (const auto& [arena, given] : given_)
    figures.gone.Add(given.bytes);
  for (const Orphan& orphan : orphans_)
    figures.gone.Add(orphan.bytes);
  for (const auto& [arena, bytes] : overdue_)
    figures.gone.Add(bytes);
  for (const LoadPtr& load : loads_) {
    figures.waiters += load->waiters().size();
    figures.read_bytes += load->read_bytes();
    figures.read_times += load->read_times();
    figures.held.extents += load->arena_count();
    figures.held.bytes += load->arena_bytes();
  }
  return figures;
}

Status Weights::CheckInvariants() const {
  std::set<const Version*> versions;
  std::unordered_map<const Version*, std::vector<uint32_t>> holds;
  std::unordered_map<const Version*, uint32_t> attachments;
  for (const VersionPtr& version : versions_)
    versions.insert(version.get());
  std::set<const Version*> leaving;
  for (const VersionPtr& version : leaving_) {
    versions.insert(version.get());
    leaving.insert(version.get());
  }
  for (const auto& [client, holder] : holders_) {
    Holder counted;
    for (const auto& [id, attachment] : holder.attachments) {
      const Version* version = attachment.version.get();
      versions.insert(version);
      ++attachments[version];
      holds[version].resize(version->blocks.size());
      for (uint32_t block = 0; block < version->blocks.size(); ++block) {
        if (!attachment.holds[block]) continue;
        ++holds[version][block];
        counted.Take(version->blocks[block].arena, version->image->BlockMemory(block));
      }
      for (const auto& [block, arena] : attachment.given)
        counted.Take(arena, version->image->BlockMemory(block));
    }
    if (counted.holds != holder.holds || counted.bytes != holder.bytes) {
      return {Code::kInternal,
              "weights: miscounts what client " + std::to_string(client) + " holds"};
    }
  }
  for (const LoadPtr& load : loads_) {
    versions.insert(load->version().get());
    holds[load->version().get()].resize(load->version()->blocks.size());
    for (const uint32_t block : load->held)
      ++holds[load->version().get()][block];
  }
  for (const auto& [version, waiters] : importing_) {
    versions.insert(version.get());
    holds[version.get()].resize(version->blocks.size(), 0);
    for (uint32_t& count : holds[version.get()])
      ++count;
  }
  size_t places = 0;
  for (const Version* version : versions) {
    std::vector<uint32_t>& held = holds[version];
    held.resize(version->blocks.size());
    uint32_t resident = 0;
    for (uint32_t block = 0; block < version->blocks.size(); ++block) {
      const weights::Block& place = version->blocks[block];
      if (place.holds != held[block]) {
        return Differs(*version, "block " + std::to_string(block) + " counts " +
                                     std::to_string(place.holds) + " holds of " +
                                     std::to_string(held[block]));
      }
      if (place.arena == 0 && place.holds > 0) return Differs(*version, "holds a gone block");
      if (place.arena != 0 && version->let_go && place.holds == 0 && !version->loading &&
          !leaving.contains(version)) {
        return Differs(*version, "keeps a block that was let go");
      }
      resident += place.arena != 0 ? 1 : 0;
      if (place.arena != 0 && places_.count(place.arena) == 0) {
        return Differs(*version, "has a block without a place");
      }
    }
    if (resident != version->resident_blocks) return Differs(*version, "resident_blocks is wrong");
    if (attachments[version] != version->attachments) {
      return Differs(*version, "attachments is wrong");
    }
    const bool needs_manifest = resident > 0 || version->attachments > 0;
    if (needs_manifest && version->manifest == 0) return Differs(*version, "has no manifest");
    if (!needs_manifest && !version->loading && version->manifest != 0) {
      return Differs(*version, "keeps a manifest without need");
    }
    places += resident + (version->manifest != 0 ? 1 : 0);
  }
  if (places != places_.size()) return {Code::kInternal, "weights: places without a block"};
  return {};
}

}  // namespace terrace
