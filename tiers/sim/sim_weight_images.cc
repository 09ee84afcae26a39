#include "tiers/sim/sim_weight_images.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "kernels/crc32c.h"

namespace terrace {

class SimWeightImages::Image final : public WeightImage {
 public:
  Image(SimWeightImages* images, std::shared_ptr<File> file)
      : images_(images), file_(std::move(file)) {}

  const std::vector<uint32_t>& crcs() const override { return file_->crcs; }

  void Read(const ImageRead& read, std::function<void(Result<BlockBytes>)> done,
            std::function<void()> ended) override {
    images_->pending_.push_back(
        [images = images_, file = file_, read, done = std::move(done), ended = std::move(ended)] {
          if (images->hanging_) {
            images->hung_.push_back([file, read, ended] {
              (void)ReadNow(*file, read);
              ended();
            });
            return done(Status(Code::kDeadlineExceeded, "simulated: the device hangs"));
          }
          const Status fault = images->read_faults.Next();
          done(fault.ok() ? Result<BlockBytes>(ReadNow(*file, read)) : Result<BlockBytes>(fault));
          ended();
        });
  }

 private:
  static BlockBytes ReadNow(const File& file, const ImageRead& read) {
    TERRACE_CHECK(read.offset + read.bytes <= file.bytes.size() &&
                  read.bytes <= read.memory.size());
    std::memcpy(read.memory.data(), file.bytes.data() + read.offset, read.bytes);
    BlockBytes result;
    result.direct_bytes = read.bytes;
    const std::span<const uint8_t> bytes = read.memory.first(read.bytes);
    for (size_t at = 0; at < bytes.size(); at += kCheckedBytes)
      result.crcs.push_back(
          Crc32c(bytes.subspan(at, std::min<size_t>(kCheckedBytes, bytes.size() - at))));
    return result;
  }

  SimWeightImages* const images_;
  const std::shared_ptr<File> file_;
};

void SimWeightImages::Open(ImageFacts facts,
                           std::function<void(Result<std::shared_ptr<WeightImage>>)> done) {
  pending_.push_back([this, facts = std::move(facts), done = std::move(done)] {
    if (Status fault = open_faults.Next(); !fault.ok()) return done(std::move(fault));
    const auto file = files_.find(facts.label);
    if (file == files_.end()) return done(Status(Code::kNotFound, "simulated: no image"));
    if (file->second->facts.content != facts.content) {
      return done(Status(Code::kMismatch, "simulated: an image of something else"));
    }
    done(std::shared_ptr<WeightImage>(std::make_shared<Image>(this, file->second)));
  });
}

void SimWeightImages::Write(ImageFacts facts, std::vector<std::span<const uint8_t>> blocks,
                            std::vector<uint32_t> crcs, std::function<void(Status)> done) {
  pending_.push_back([this, facts = std::move(facts), blocks = std::move(blocks),
                      crcs = std::move(crcs), done = std::move(done)] {
    files_.erase(facts.label);
    if (Status fault = write_faults.Next(); !fault.ok()) return done(std::move(fault));
    auto file = std::make_shared<File>();
    file->facts = facts;
    file->crcs = crcs;
    for (const std::span<const uint8_t> block : blocks)
      file->bytes.insert(file->bytes.end(), block.begin(), block.end());
    TERRACE_CHECK(file->bytes.size() == facts.image_bytes);
    files_[facts.label] = std::move(file);
    done(Status());
  });
}

void SimWeightImages::Remove(const std::string& label, std::function<void(Status)> done) {
  pending_.push_back([this, label, done = std::move(done)] {
    files_.erase(label);
    done(Status());
  });
}

void SimWeightImages::Keep(const std::vector<std::string>& labels) {
  std::erase_if(files_, [&labels](const auto& file) {
    return std::find(labels.begin(), labels.end(), file.first) == labels.end();
  });
}

size_t SimWeightImages::RunPending() {
  size_t ran = 0;
  for (; !pending_.empty(); ++ran) {
    const std::function<void()> completion = std::move(pending_.front());
    pending_.pop_front();
    completion();
  }
  return ran;
}

void SimWeightImages::DropPending() {
  // Completions own things whose destructors may come back here.
  std::exchange(pending_, {}).clear();
  std::exchange(hung_, {}).clear();
}

void SimWeightImages::Damage(const std::string& label, uint64_t byte) {
  const auto file = files_.find(label);
  TERRACE_CHECK(file != files_.end());
  file->second->bytes.at(byte) ^= 1;
}

void SimWeightImages::Release() {
  hanging_ = false;
  for (const std::function<void()>& ends : std::exchange(hung_, {}))
    ends();
}

}  // namespace terrace
