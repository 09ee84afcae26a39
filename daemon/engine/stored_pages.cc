// The verbs of HostEngine on stored pages: prefetch, persist, demote, promote, check, flush.
#include <utility>

#include "daemon/engine/host_engine.h"

namespace terrace {
namespace {

Status NoStore() {
  return {Code::kUnavailable, "the daemon has no store"};
}

Status CheckKeys(size_t keys) {
  if (keys <= kMaxBatch) return {};
  return {Code::kInvalidArgument, "a batch of " + std::to_string(keys) + " pages, at most " +
                                      std::to_string(kMaxBatch) + " are allowed"};
}

}  // namespace

void HostEngine::Prefetch(ClientId id, const PrefetchSpec& spec,
                          std::function<void(Result<Prefetched>)> done) {
  const Result<Client*> client = clients_.Serving(id);
  if (!client) return done(client.error());
  if (Status batch = CheckKeys(spec.keys.size()); !batch.ok()) return done(std::move(batch));
  // Also refuses what is no number.
  if (!(spec.min_fraction >= 0 && spec.min_fraction <= 1)) {
    return done(Status(Code::kInvalidArgument, "min_fraction is not between 0 and 1"));
  }
  const Result<Space*> space = OpenedSpace(**client, spec.slot, spec.epoch);
  if (!space) return done(space.error());
  if (spec.device != 0) return PrefetchToDevice(**client, spec, std::move(done));
  if (store_ != nullptr) return store_->Prefetch(**client, **space, spec, std::move(done));
  done(FoundInMemory(catalog_.At((*client)->spec.tenant), spec));
}

Prefetched HostEngine::FoundInMemory(const Tenant& tenant, const PrefetchSpec& spec) {
  Prefetched found;
  for (const Digest& key : spec.keys) {
    const bool there = tenant.index->Find({spec.slot, spec.epoch, spec.part, key}).has_value();
    if (there && found.worth == found.codes.size()) ++found.worth;
    found.codes.push_back(there ? Code::kOk : Code::kNotFound);
  }
  const double wanted = spec.min_fraction * static_cast<double>(spec.keys.size());
  if (static_cast<double>(found.worth) < wanted) found.worth = 0;
  return found;
}

void HostEngine::Persist(ClientId id, const PersistSpec& spec,
                         std::function<void(Result<std::vector<Code>>)> done) {
  const Result<Client*> client = clients_.Writing(id);
  if (!client) return done(client.error());
  if (Status batch = CheckKeys(spec.keys.size()); !batch.ok()) return done(std::move(batch));
  const Result<Space*> space = OpenedSpace(**client, spec.slot, spec.epoch);
  if (!space) return done(space.error());
  if (store_ == nullptr) return done(NoStore());
  store_->Persist(**client, **space, spec, std::move(done));
}

void HostEngine::Demote(uint64_t bytes, Progress progress,
                        std::function<void(Result<Demoted>)> done) {
  if (store_ == nullptr) return done(NoStore());
  store_->Demote(bytes, std::move(progress), std::move(done));
}

void HostEngine::Promote(const PromoteSpec& spec, Progress progress,
                         std::function<void(Result<Promoted>)> done) {
  if (store_ == nullptr) return done(NoStore());
  store_->PromoteByHand(
      spec, [this](const std::string& model) { return weights_.Knows(model); }, std::move(progress),
      std::move(done));
}

void HostEngine::CheckStore(ClientId id, const StoreCheckSpec& spec, Progress progress,
                            std::function<void(Result<StoreCheckReport>)> done) {
  const Result<Client*> client = clients_.Serving(id);
  if (!client) return done(client.error());
  if (store_ == nullptr) return done(NoStore());
  store_->Check(id, spec, std::move(progress), std::move(done));
}

void HostEngine::Flush(Progress progress, std::function<void(Status)> done) {
  if (store_ == nullptr) return done(NoStore());
  store_->Flush(std::move(progress), std::move(done));
}

}  // namespace terrace
