// SimWeightSources: weight files in memory, whose reads complete only when told.
//
// A read copies at the moment it completes, not when it is asked for, so that an engine that frees
// the destination too early is found (by ASan, or by wrong bytes). Owner thread only.
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

struct SimTensor {
  std::string name;
  std::string dtype;
  std::vector<uint64_t> shape;
  std::vector<uint8_t> bytes;
};

class SimWeightSources final : public WeightSources {
 public:
  SimWeightSources();
  ~SimWeightSources() override;

  // A file that Open finds under `path`; replaces one of that name. Sources that are open keep the
  // old contents, as open descriptors would.
  void AddFile(const std::string& path, std::vector<SimTensor> tensors, bool reopenable = true);
  // From now on the file ends after `bytes`, also for who has it open: reads beyond are data_loss.
  void Truncate(const std::string& path, uint64_t bytes);
  // From now on a byte of the tensor is another, also for who has the file open. A disk that rots
  // leaves the stamp of the file as it was; who writes to it does not.
  void Change(const std::string& path, const std::string& tensor, size_t byte, bool by_rot);
  // Whoever opens the file from now on finds that it was published with this digest.
  void Publish(const std::string& path, const Digest& digest);
  // The file's stamp is another; its bytes are not.
  void Touch(const std::string& path);

  // Descriptors and the index of the request are ignored: a path that was added opens, another is
  // not_found.
  void Open(SourceRequest request,
            std::function<void(Result<std::shared_ptr<WeightSource>>)> done) override;

  // Completes up to `limit` of what is pending, oldest first; returns how many. Completions may ask
  // for more, which counts too.
  size_t RunPending(size_t limit = SIZE_MAX);
  size_t pending() const;
  // Forgets what is pending without completing it: the daemon died.
  void DropPending();

  // Answered so far.
  uint64_t reads() const { return reads_; }
  uint64_t hashes() const { return hashes_; }

  FaultPlan open_faults;
  FaultPlan read_faults;
  FaultPlan hash_faults;
  FaultPlan run_faults;

 private:
  struct File;
  class Source;

  std::map<std::string, std::shared_ptr<File>> files_;
  std::deque<std::function<void()>> pending_;
  uint64_t last_stamp_ = 0;
  uint64_t reads_ = 0;
  uint64_t hashes_ = 0;
};

}  // namespace terrace
