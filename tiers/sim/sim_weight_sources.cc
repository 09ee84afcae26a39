#include "tiers/sim/sim_weight_sources.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "kernels/crc32c.h"

namespace terrace {

struct SimWeightSources::File {
  std::vector<SimTensor> tensors;
  uint64_t bytes = 0;  // The file is its tensors, one after the other.
  uint64_t end = 0;    // Less than `bytes` when it was truncated.
  bool reopenable = true;
  uint64_t stamp = 0;
  Digest published;
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
                        .why_not = file->reopenable ? "" : "simulated: not readable",
                        .published = file->published});
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

  void Read(BlockRead read, std::function<void(Result<BlockBytes>)> done) override {
    sources_->pending_.push_back([self = shared_from_this(), read = std::move(read),
                                  done = std::move(done)] { done(self->ReadNow(read)); });
  }

  void Stamp(std::function<void(Result<Digest>)> done) override {
    sources_->pending_.push_back([self = shared_from_this(), done = std::move(done)] {
      Sha256 hash;
      for (const auto& file : self->files_)
        hash.UpdateU64(file->stamp);
      done(hash.Finish());
    });
  }

  void Hash(std::vector<std::span<const uint8_t>> spans,
            std::function<void(Result<Digest>)> done) override {
    sources_->pending_.push_back([self = shared_from_this(), spans = std::move(spans),
                                  done = std::move(done)] { done(self->HashNow(spans)); });
  }

  // The file has no header.
  void HashFile(uint32_t, std::vector<std::span<const uint8_t>> data, std::function<bool()> wanted,
                std::function<void(Result<Digest>)> done) override {
    sources_->pending_.push_back([self = shared_from_this(), data = std::move(data),
                                  wanted = std::move(wanted), done = std::move(done)] {
      if (!wanted()) return done(Status(Code::kUnavailable, "simulated: wanted no more"));
      done(self->HashNow(data));
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
  Result<Digest> HashNow(const std::vector<std::span<const uint8_t>>& spans) const {
    RETURN_IF_ERROR(sources_->hash_faults.Next());
    ++sources_->hashes_;
    Sha256 hash;
    for (const auto& span : spans)
      hash.Update(span);
    return hash.Finish();
  }
  Result<BlockBytes> ReadNow(const BlockRead& read) const {
    RETURN_IF_ERROR(sources_->read_faults.Next());
    ++sources_->reads_;
    BlockBytes result;
    for (const WeightPiece& piece : read.pieces) {
      TERRACE_CHECK(piece.tensor < specs_.size());
      const TensorSpec& spec = specs_[piece.tensor];
      TERRACE_CHECK(piece.offset <= spec.bytes && piece.into.size() <= spec.bytes - piece.offset);
      if (spec.file_offset + piece.offset + piece.into.size() > files_[spec.file]->end) {
        return Status(Code::kDataLoss, facts_[spec.file].path + ": became shorter");
      }
      if (piece.into.empty()) continue;
      std::memcpy(piece.into.data(), contents_[piece.tensor]->bytes.data() + piece.offset,
                  piece.into.size());
      result.buffered_bytes += piece.into.size();
    }
    for (size_t at = 0; at < read.memory.size(); at += kCheckedBytes) {
      result.crcs.push_back(Crc32c(
          read.memory.subspan(at, std::min<size_t>(kCheckedBytes, read.memory.size() - at))));
    }
    return result;
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
  file->stamp = ++last_stamp_;
  files_[path] = std::move(file);
}

void SimWeightSources::Truncate(const std::string& path, uint64_t bytes) {
  const auto file = files_.find(path);
  TERRACE_CHECK(file != files_.end());
  file->second->end = bytes;
}

void SimWeightSources::Change(const std::string& path, const std::string& tensor, size_t byte,
                              bool by_rot) {
  const auto file = files_.find(path);
  TERRACE_CHECK(file != files_.end());
  for (SimTensor& candidate : file->second->tensors) {
    if (candidate.name == tensor) candidate.bytes.at(byte) ^= 1;
  }
  if (!by_rot) Touch(path);
}

void SimWeightSources::Publish(const std::string& path, const Digest& digest) {
  const auto file = files_.find(path);
  TERRACE_CHECK(file != files_.end());
  file->second->published = digest;
}

void SimWeightSources::Touch(const std::string& path) {
  const auto file = files_.find(path);
  TERRACE_CHECK(file != files_.end());
  file->second->stamp = ++last_stamp_;
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
