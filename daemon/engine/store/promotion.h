// Promotion: the operator's way to bring stored pages back into memory before somebody asks: those
// used last first, and only into memory that is free, so that nothing leaves for them; until
// somebody reads them they are the first to leave for others.
//
// It walks the store's order from its best end and gives what it finds to Promote. A page that is
// in memory already, of another generation, of a tenant or model that is not there, or on a device
// that is not read from is passed over. The spaces are kept open meanwhile, by nobody's client id.
// Owned by the engine; owner thread only.
//
// Limits: one at a time; kPagesUnderWay pages and half of the bytes that may be read, kLooksAStep
// records a step; as many spaces as a client may have open; it ends after kStallNs without a page
// that came, be it that the device does not answer or that clients read too much.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>

#include "base/clock.h"
#include "daemon/engine/engine.h"
#include "daemon/engine/store/promote.h"
#include "daemon/engine/store/spill.h"

namespace terrace {

class Promotion {
 public:
  static constexpr size_t kPagesUnderWay = 256;
  static constexpr uint64_t kBytesAStep = 32u << 20;
  static constexpr uint64_t kLooksAStep = 4096;
  static constexpr MonotonicNs kStallNs = 30 * kNsPerSecond;

  Promotion(const StoreParts& parts, Promote& promote) : parts_(parts), promote_(promote) {}

  // Whether a model of that name is registered.
  using KnowsModel = std::function<bool(const std::string&)>;
  using Done = std::function<void(Result<Promoted>)>;
  void Start(const PromoteSpec& spec, KnowsModel knows_model, Progress progress, Done done);
  // True if more could be done now.
  bool Turn();

 private:
  struct OpenSpace {
    TenantId tenant = 0;
    uint32_t slot = 0;
    uint32_t epoch = 0;
  };
  struct Run {
    PromoteSpec spec;
    KnowsModel knows_model;
    Progress progress;
    Done done;
    uint64_t total_bytes = 0;  // About.
    uint64_t taken_bytes = 0;
    uint64_t looked = 0;
    ItemId after = kNoItem;
    bool over = false;  // No further page is begun with.
    std::shared_ptr<Promote::Raised> raised;
    uint64_t told_pages = 0;
    MonotonicNs progress_at = 0;
    std::map<SpaceNo, std::optional<OpenSpace>> spaces;  // None: of no use.
  };

  Status Check(const PromoteSpec& spec) const;
  uint64_t TotalOf(const PromoteSpec& spec) const;
  void Step(const Amount& room);
  std::optional<StoredItem> Wanted(ItemId id);
  const std::optional<OpenSpace>& Opened(SpaceNo number);
  void Finish();

  const StoreParts parts_;
  Promote& promote_;
  std::unique_ptr<Run> run_;
};

}  // namespace terrace
