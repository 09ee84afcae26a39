// SimWeightImages: image files in memory, whose work completes only when told. They outlive the
// engine, as files do. Owner thread only.
//
// A read copies at the moment it completes, not when it is asked for, and one that hangs when it is
// released: an engine that frees its memory too early is found.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tiers/sim/sim_faults.h"
#include "tiers/tier.h"

namespace terrace {

class SimWeightImages final : public WeightImages {
 public:
  void Open(ImageFacts facts,
            std::function<void(Result<std::shared_ptr<WeightImage>>)> done) override;
  void Write(ImageFacts facts, std::vector<std::span<const uint8_t>> blocks,
             std::vector<uint32_t> crcs, std::function<void(Status)> done) override;
  void Remove(const std::string& label, std::function<void(Status)> done) override;
  void Keep(const std::vector<std::string>& labels) override;

  size_t RunPending();
  size_t pending() const { return pending_.size(); }
  void DropPending();
  bool Has(const std::string& label) const { return files_.contains(label); }
  // A bit of the image is the other.
  void Damage(const std::string& label, uint64_t byte);
  // Reads from now on are answered with deadline_exceeded, and end at Release.
  void Hang() { hanging_ = true; }
  void Release();

  FaultPlan open_faults;
  FaultPlan read_faults;
  FaultPlan write_faults;

 private:
  struct File {
    ImageFacts facts;
    std::vector<uint8_t> bytes;
    std::vector<uint32_t> crcs;
  };
  class Image;

  std::map<std::string, std::shared_ptr<File>> files_;
  std::deque<std::function<void()>> pending_;
  std::vector<std::function<void()>> hung_;
  bool hanging_ = false;
};

}  // namespace terrace
