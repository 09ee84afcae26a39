#include "tiers/sim/sim_weight_sources.h"

#include <cstring>
#include <utility>

#include "base/check.h"

namespace terrace {

struct SimWeightSources::File {
  std::vector<SimTensor> tensors;
  uint64_t bytes = 0;  // The file is its tensors, one after the other.
  uint64_t end = 0;    // Less than `bytes` when it was truncated.
  bool reopenable = true;
};

class SimWeightSources::Source final : public WeightSource,
                                       public std::enable_shared_from_this<Source> {
 public:
  Source(SimWeightSources* sources,
         std::vector<std::pair<std::string, std::shared_ptr<File>>> files)
      : sources_(sources) {
    for (uint32_t index = 0; index < files.size(); ++index) {
      auto& [path, file] = files[index];
      facts_.push_back({.path = path,
                        .bytes = file->bytes,
                        .reopenable = file->reopenable,
                        .why_not = file->reopenable ? "" : "simulated: not readable"});
      uint64_t offset = 0;
      for (const SimTensor& tensor : file->tensors) {
        specs_.push_back({.name = tensor.name,
                          .dtype = tensor.dtype,
                          .shape = tensor.shape,
                          .file = index,
                          .file_offset = offset,
                          .bytes = tensor.bytes.size()});
        contents_.push_back(&tensor);
        offset += tensor.bytes.size();
      }
      files_.push_back(std::move(file));
    }
  }

  const std::vector<TensorSpec>& tensors() const override { return specs_; }
  const std::vector<SourceFile>& files() const override { return facts_; }

  void Read(std::vector<WeightPiece> pieces, std::function<void(Status)> done) override {
    sources_->pending_.push_back([self = shared_from_this(), pieces = std::move(pieces),
                                  done = std::move(done)] { done(self->ReadNow(pieces)); });
  }

  void Hash(std::vector<std::span<const uint8_t>> spans,
            std::function<void(Result<Digest>)> done) override {
    sources_->pending_.push_back(
        [self = shared_from_this(), spans = std::move(spans), done = std::move(done)] {
          if (Status fault = self->sources_->hash_faults.Next(); !fault.ok()) {
            return done(std::move(fault));
          }
          Sha256 hash;
          for (const auto& span : spans)
            hash.Update(span);
          done(hash.Finish());
        });
  }

  void Run(std::function<void()> work, std::function<void(Status)> done) override {
    sources_->pending_.push_back(
        [self = shared_from_this(), work = std::move(work), done = std::move(done)] {
          Status fault = self->sources_->run_faults.Next();
          if (fault.ok()) work();
          done(std::move(fault));
        });
  }

 private:
  Status ReadNow(const std::vector<WeightPiece>& pieces) const {
    RETURN_IF_ERROR(sources_->read_faults.Next());
    for (const WeightPiece& piece : pieces) {
      TERRACE_CHECK(piece.tensor < specs_.size());
      const TensorSpec& spec = specs_[piece.tensor];
      TERRACE_CHECK(piece.offset <= spec.bytes && piece.into.size() <= spec.bytes - piece.offset);
      if (spec.file_offset + piece.offset + piece.into.size() > files_[spec.file]->end) {
        return {Code::kDataLoss, facts_[spec.file].path + ": became shorter"};
      }
      if (piece.into.empty()) continue;
      std::memcpy(piece.into.data(), contents_[piece.tensor]->bytes.data() + piece.offset,
                  piece.into.size());
    }
    return {};
  }

  SimWeightSources* const sources_;
  std::vector<std::shared_ptr<File>> files_;
  std::vector<const SimTensor*> contents_;  // By tensor; owned by files_.
  std::vector<TensorSpec> specs_;
  std::vector<SourceFile> facts_;
};

SimWeightSources::SimWeightSources() = default;
SimWeightSources::~SimWeightSources() = default;

void SimWeightSources::AddFile(const std::string& path, std::vector<SimTensor> tensors,
                               bool reopenable) {
  auto file = std::make_shared<File>();
  file->tensors = std::move(tensors);
  for (const SimTensor& tensor : file->tensors)
    file->bytes += tensor.bytes.size();
  file->end = file->bytes;
  file->reopenable = reopenable;
  files_[path] = std::move(file);
}

void SimWeightSources::Truncate(const std::string& path, uint64_t bytes) {
  const auto file = files_.find(path);
  TERRACE_CHECK(file != files_.end());
  file->second->end = bytes;
}

void SimWeightSources::Open(SourceRequest request,
                            std::function<void(Result<std::shared_ptr<WeightSource>>)> done) {
  pending_.push_back([this, paths = std::move(request.paths), done = std::move(done)] {
    if (Status fault = open_faults.Next(); !fault.ok()) return done(std::move(fault));
    std::vector<std::pair<std::string, std::shared_ptr<File>>> found;
    for (const std::string& path : paths) {
      const auto file = files_.find(path);
      if (file == files_.end()) return done(Status(Code::kNotFound, path + ": no such file"));
      if (file->second->end < file->second->bytes) {
        return done(Status(Code::kDataLoss, path + ": shorter than its header says"));
      }
      found.emplace_back(path, file->second);
    }
    done(std::shared_ptr<WeightSource>(std::make_shared<Source>(this, std::move(found))));
  });
}

size_t SimWeightSources::RunPending(size_t limit) {
  size_t ran = 0;
  while (ran < limit && !pending_.empty()) {
    const std::function<void()> completion = std::move(pending_.front());
    pending_.pop_front();
    completion();
    ++ran;
  }
  return ran;
}

size_t SimWeightSources::pending() const {
  return pending_.size();
}

void SimWeightSources::DropPending() {
  // Completions own things whose destructors may come back here.
  std::exchange(pending_, {}).clear();
}

}  // namespace terrace
