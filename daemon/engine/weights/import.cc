// What outlives a load: the checks that later ones go by, and image files.
#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "base/check.h"
#include "daemon/engine/weights/load.h"
#include "daemon/engine/weights/version.h"
#include "daemon/engine/weights/weights.h"

namespace terrace {

using weights::Checks;
using weights::Version;

namespace {

ImageFacts FactsOf(const Version& version) {
  return {.label = version.ImageLabel(),
          .listing = version.listing,
          .content = version.digest,
          .image_bytes = version.image->bytes,
          .block_bytes = version.image->block_bytes};
}

}  // namespace

void Weights::RestoreChecks(const std::set<std::string>& known,
                            const std::set<std::string>& unreadable,
                            std::vector<std::string>* problems) {
  auto records = parts_.journal->Load(weights::kChecksPrefix);
  if (!records) return problems->push_back(records.error().ToString());
  std::map<std::string, std::shared_ptr<const Checks>> by_key;
  std::vector<std::string> imported;
  for (const Journal::Record& record : *records) {
    const std::string label = record.key.substr(weights::kChecksPrefix.size());
    if (known.count(label) == 0) {
      // The daemon ended while the model was being removed.
      parts_.journal->Delete(record.key, [](const Status&) {});
      continue;
    }
    auto checks = weights::DecodeChecks(record.key, record.value);
    if (checks) {
      by_key.emplace(record.key, std::make_shared<const Checks>(*std::move(checks)));
    } else {
      problems->push_back(checks.error().ToString());
    }
    // A record that this daemon cannot read may be of one that comes back: so may the image.
    if (!checks || unreadable.count(label) > 0) imported.push_back(label);
  }
  for (const VersionPtr& version : versions_) {
    const auto found = by_key.find(weights::ChecksKey(version->name, version->version));
    // Of a load whose digest never reached the journal, or of a model that had this name before.
    if (found == by_key.end() || found->second->content != version->digest) continue;
    version->checks = found->second;
    if (version->checks->imported) imported.push_back(version->ImageLabel());
  }
  if (parts_.images != nullptr) parts_.images->Keep(imported);
}

void Weights::SetChecks(const VersionPtr& version, Checks checks,
                        std::function<void(Status)> done) {
  version->checks = std::make_shared<const Checks>(std::move(checks));
  if (!version->recorded || version->removed) return done(Status());
  parts_.journal->Put(weights::ChecksKey(version->name, version->version),
                      weights::EncodeChecks(*version->checks),
                      [alive = std::weak_ptr(alive_), done = std::move(done)](Status saved) {
                        if (!alive.expired()) done(std::move(saved).WithContext("the journal"));
                      });
}

void Weights::Import(const std::string& name, const std::string& label, ModelAdded added,
                     Progress progress, std::function<void(Result<ModelAdded>)> done) {
  const auto found = Find(name, label);  // It may have been removed meanwhile.
  if (!found) return done(found.error());
  const VersionPtr version = *found;
  const auto told = [added, done](const Status& status) {
    ModelAdded result = added;
    result.imported = status.ok();
    result.why_not_imported = status.message();
    done(std::move(result));
  };
  if (parts_.images == nullptr) {
    return told({Code::kUnavailable, "this daemon keeps no images"});
  }
  if (!version->durable) {
    return told({Code::kUnavailable, "the model would not survive a restart: " + version->why_not});
  }
  const auto loaded = [this, version, told](const Status& status) {
    if (!status.ok()) return told(status);
    WriteImage(version, told);
  };
  if (version->Complete() && !version->let_go) return loaded(Status());
  weights::Waiter waiter;
  waiter.progress = std::move(progress);
  waiter.done = loaded;
  if (Status status = Await(version, std::move(waiter)); !status.ok()) told(status);
}

void Weights::WriteImage(const VersionPtr& version, std::function<void(Status)> done) {
  const weights::Image& image = *version->image;
  if (version->checks == nullptr || !version->checks->Fit(image)) {
    return done({Code::kUnavailable, "it has no checks; unload it, and add it again"});
  }
  for (Importing& other : importing_) {
    if (other.version == version) return other.waiters.push_back(std::move(done));
    // Of a model that was removed meanwhile: its file has the same name.
    if (other.version->ImageLabel() == version->ImageLabel()) {
      return done(
          {Code::kUnavailable,
           "an image of a model of this name that was removed is still being written; retry"});
    }
  }
  if (importing_.size() >= kMaxImporting) {
    return done({Code::kExhausted,
                 std::to_string(kMaxImporting) + " images are being written already; retry"});
  }
  for (uint32_t block = 0; block < image.blocks(); ++block)
    Hold(*version, block);
  importing_.push_back({.version = version, .waiters = {}});
  importing_.back().waiters.push_back(std::move(done));
  if (!version->checks->imported || !version->image_problem.empty()) return PutImage(version);
  // It is on record; whether it is there still is not.
  parts_.images->Open(FactsOf(*version), [this, alive = std::weak_ptr(alive_), version](
                                             const Result<std::shared_ptr<WeightImage>>& opened) {
    if (alive.expired()) return;
    const bool right = opened && (*opened)->crcs() == version->checks->crcs;
    if (version->removed || right) return ImageFound(version, Status());
    // Whether it is right could not be seen: that is no reason to give up what may be.
    const Code code = opened ? Code::kDataLoss : opened.error().code();
    if (code == Code::kExhausted || code == Code::kUnavailable || code == Code::kDeadlineExceeded) {
      return ImageFound(version, opened.error());
    }
    PutImage(version);
  });
}

void Weights::ImageFound(const VersionPtr& version, const Status& status) {
  const auto done = ImportEnded(version);
  done(version->removed ? Status(Code::kNotFound, version->Label() + " was removed") : status);
}

void Weights::PutImage(const VersionPtr& version) {
  const weights::Image& image = *version->image;
  std::vector<std::span<const uint8_t>> blocks;
  for (uint32_t block = 0; block < image.blocks(); ++block) {
    blocks.push_back(parts_.host->Bytes(version->blocks[block].arena)
                         .first(image.BlockEnd(block) - image.BlockBegin(block)));
  }
  parts_.images->Write(FactsOf(*version), std::move(blocks), version->checks->crcs,
                       [this, alive = std::weak_ptr(alive_), version](Status written) {
                         if (!alive.expired()) ImageWritten(version, std::move(written));
                       });
}

void Weights::ImageWritten(const VersionPtr& version, Status written) {
  if (version->removed) {
    // Also where that name is somebody's again: until this has ended no other image of it is made.
    parts_.images->Remove(
        version->ImageLabel(), [this, alive = std::weak_ptr(alive_), version](const Status&) {
          if (alive.expired()) return;
          ImportEnded(version)(Status(Code::kNotFound, version->Label() + " was removed"));
        });
    return;
  }
  const std::function<void(const Status&)> done = ImportEnded(version);
  version->image_problem = written.message();
  Checks checks = *version->checks;
  // Also where nothing came of it: what was there before may be gone.
  checks.imported = written.ok();
  SetChecks(version, std::move(checks), [written = std::move(written), done](const Status& saved) {
    done(written.ok() ? saved : written);
  });
}

std::function<void(const Status&)> Weights::ImportEnded(const VersionPtr& version) {
  const auto ended =
      std::find_if(importing_.begin(), importing_.end(),
                   [&](const Importing& importing) { return importing.version == version; });
  const auto done = [waiters = std::move(ended->waiters)](const Status& status) {
    for (const std::function<void(Status)>& waiter : waiters)
      waiter(status);
  };
  importing_.erase(ended);
  for (uint32_t block = 0; block < version->blocks.size(); ++block)
    Unhold(version, block);
  ReleaseLeaving();
  ReleaseManifestIfIdle(*version);
  return done;
}

void Weights::DeviceLetGo(ArenaId arena) {
  const auto overdue = overdue_.find(arena);
  if (overdue == overdue_.end()) return;
  orphans_.push_back({arena, overdue->second});
  overdue_.erase(overdue);
}

}  // namespace terrace
