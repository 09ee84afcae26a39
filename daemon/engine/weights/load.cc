#include "daemon/engine/weights/load.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

namespace terrace::weights {
namespace {

// Populated at a time; a turn's budget is looked at in between.
constexpr uint64_t kPopulatePieceBytes = 4u << 20;

}  // namespace

Load::Load(const WeightsOptions& options, const WeightsParts& parts,
           std::shared_ptr<Version> version, Events events)
    : options_(options), parts_(parts), version_(std::move(version)), events_(std::move(events)) {}

template <typename Value, typename Then>
std::function<void(Value)> Load::Expect(Then then) {
  ++expected_;
  return [weak = weak_from_this(), then](Value value) {
    const std::shared_ptr<Load> self = weak.lock();
    if (self == nullptr) return;
    --self->expected_;
    if (self->outcome_.ok()) then(*self, std::move(value));
    self->Advance();
  };
}

void Load::Start() {
  if (version_->source != nullptr) return TakeStamp();
  SourceRequest request;
  for (const SourceFile& file : version_->files)
    request.paths.push_back(file.path);
  using Source = Result<std::shared_ptr<WeightSource>>;
  parts_.sources->Open(std::move(request), Expect<Source>([](Load& load, Source source) {
                         load.Opened(std::move(source));
                       }));
}

void Load::Opened(Result<std::shared_ptr<WeightSource>> source) {
  if (!source) return Fail(std::move(source).error());
  PlanOf(*source, options_.block_bytes,
         Expect<Result<Plan>>([source = *source](Load& load, Result<Plan> plan) {
           load.Planned(source, std::move(plan));
         }));
}

void Load::Planned(std::shared_ptr<WeightSource> source, Result<Plan> plan) {
  if (!plan) return Fail(std::move(plan).error());
  if (plan->listing != version_->listing) {
    return Fail(
        {Code::kDataLoss,
         "the files hold other tensors than when they were added; add them as a new version"});
  }
  version_->source = std::move(source);
  version_->image = std::make_shared<const Image>(std::move(plan->image));
  version_->blocks.resize(version_->image->blocks());
  TakeStamp();
}

void Load::TakeStamp() {
  if (version_->checks != nullptr && version_->checks->Fit(*version_->image)) {
    checks_ = version_->checks;
  }
  version_->source->Stamp(
      Expect<Result<Digest>>([](Load& load, const Result<Digest>& stamp) { load.Stamped(stamp); }));
}

void Load::Stamped(const Result<Digest>& stamp) {
  if (!stamp) return Fail(stamp.error());
  stamp_ = *stamp;
  const bool imported = version_->checks != nullptr && version_->checks->imported;
  if (!imported || parts_.images == nullptr) return Prepare();
  using Opened = Result<std::shared_ptr<WeightImage>>;
  parts_.images->Open(
      {.label = version_->ImageLabel(),
       .listing = version_->listing,
       .content = version_->digest,
       .image_bytes = version_->image->bytes,
       .block_bytes = version_->image->block_bytes},
      Expect<Opened>([](Load& load, Opened image) { load.ImageOpened(std::move(image)); }));
}

void Load::ImageOpened(Result<std::shared_ptr<WeightImage>> image) {
  if (!image) {
    image_problem_ = image.error().ToString();
  } else if (checks_ == nullptr || (*image)->crcs() != checks_->crcs) {
    image_problem_ = "its checks are not those on record";
  } else {
    file_ = *std::move(image);
  }
  Prepare();
}

void Load::Prepare() {
  const Image& image = *version_->image;
  crcs_.resize(UnitsOfImage(image.bytes, image.block_bytes));
  arenas_.resize(image.blocks());
  filled_.resize(image.blocks());
  for (uint32_t block = 0; block < image.blocks(); ++block) {
    arenas_[block] = version_->blocks[block].arena;
    filled_[block] = arenas_[block] != 0;
    if (filled_[block]) {
      done_bytes_ += image.BlockEnd(block) - image.BlockBegin(block);
    } else {
      missing_.push_back(block);
    }
  }
  digests_ = version_->tensor_digests;
  const bool believed = checks_ != nullptr && (file_ != nullptr || stamp_ == checks_->stamp);
  if (!believed) RequireHashes();
  if (version_->digest.IsZero()) ListFilesToHash();
  planned_ = true;
  if (Status fits = CheckFits(); !fits.ok()) return Fail(std::move(fits));
  const bool early = std::any_of(waiters_.begin(), waiters_.end(),
                                 [](const Waiter& waiter) { return waiter.early; });
  if (early) Draft();
}

void Load::Draft() {
  if (!planned_ || drafting_ || finishing_ || drafted_ || !outcome_.ok()) return;
  if (version_->manifest != 0) {
    drafted_ = true;
    return events_.drafted(*this);
  }
  drafting_ = true;
  auto manifest = std::make_shared<std::vector<uint8_t>>();
  version_->source->Run(
      [manifest, source = version_->source, image = version_->image, digest = version_->digest] {
        *manifest = BuildManifest(source->tensors(), *image, digest);
      },
      Expect<Status>([manifest](Load& load, Status status) {
        load.drafting_ = false;
        if (status.ok()) status = load.WriteManifest(*manifest);
        if (!status.ok()) return load.Fail(std::move(status));
        load.drafted_ = true;
        load.events_.drafted(load);
      }));
}

void Load::HandOverManifest() {
  arena_bytes_ -= RoundUpToBlockGranularity(manifest_bytes_);
  manifest_ = 0;
}

void Load::ListFilesToHash() {
  const std::vector<SourceFile>& files = version_->source->files();
  const std::vector<TensorSpec>& specs = version_->source->tensors();
  std::vector<uint32_t> places(specs.size());
  for (uint32_t tensor = 0; tensor < specs.size(); ++tensor)
    places[version_->image->tensors[tensor].spec] = tensor;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (files[specs[i].file].published.IsZero() || specs[i].bytes == 0) continue;
    files_to_hash_[specs[i].file].tensors.push_back(places[i]);
  }
}

void Load::RequireHashes() {
  if (std::exchange(hashes_, true)) return;
  const Image& image = *version_->image;
  std::vector<uint32_t> blocks = missing_;
  if (digests_.empty()) {
    digests_.assign(image.tensors.size(), Sha256::Of({}));  // That of empty tensors stays.
    blocks.resize(image.blocks());
    std::iota(blocks.begin(), blocks.end(), 0);
  }
  // Each tensor that has a byte in one of them, once.
  size_t tensor = 0;
  for (const uint32_t block : blocks) {
    tensor = std::max(tensor, image.FirstEndingAfter(image.BlockBegin(block)));
    for (; tensor < image.tensors.size() && image.tensors[tensor].offset < image.BlockEnd(block);
         ++tensor) {
      if (image.tensors[tensor].bytes > 0) to_hash_.push_back(static_cast<uint32_t>(tensor));
    }
  }
}

Status Load::CheckFits() const {
  uint64_t memory = 0;
  for (uint32_t block = 0; block < version_->image->blocks(); ++block)
    memory += version_->image->BlockMemory(block);
  const uint64_t capacity = parts_.memory->capacity_bytes();
  if (memory <= capacity) return {};
  return {Code::kExhausted, "its blocks need " + std::to_string(memory) +
                                " bytes of host memory, of which the daemon has " +
                                std::to_string(capacity)};
}

void Load::Advance() {
  if (is_over_) return;
  if (planned_ && outcome_.ok()) {
    StartBlocks();
    StartHashes();
    StartFileHashes();
    const bool all_read = next_missing_ == missing_.size() && blocks_in_work_ == 0;
    const bool all_hashed = next_hash_ == to_hash_.size() && hashes_in_work_ == 0 &&
                            files_to_hash_.empty() && file_hashes_in_work_ == 0;
    if (outcome_.ok() && all_read && all_hashed && !drafting_ && !finishing_) {
      finishing_ = true;
      if (Status finished = Finish(); !finished.ok()) Fail(std::move(finished));
    }
  }
  EndIfQuiet();
}

Result<HostTier::Created> Load::CreateArena(uint64_t bytes) {
  auto created = parts_.memory->CreateBlock(bytes);
  if (created) arena_bytes_ += bytes;
  return created;
}

void Load::StartBlocks() {
  const Image& image = *version_->image;
  while (outcome_.ok() && blocks_in_work_ < kBlocksAtOnce && next_missing_ < missing_.size()) {
    const uint32_t block = missing_[next_missing_];
    auto created = CreateArena(image.BlockMemory(block));
    if (!created) {
      return Fail(std::move(created).error().WithContext("block " + std::to_string(block) + " of " +
                                                         std::to_string(image.blocks())));
    }
    ++next_missing_;
    ++blocks_in_work_;
    arenas_[block] = created->id;
    fresh_.push_back({.block = block, .arena = created->id});
    if (created->resident) {
      ReadBlock(block);
    } else {
      populating_.push_back({.block = block});
    }
  }
}

bool Load::Populate(uint64_t& budget) {
  const std::shared_ptr<Load> self = shared_from_this();  // The end drops the load.
  while (outcome_.ok() && !populating_.empty() && budget > 0) {
    Populating& next = populating_.front();
    const uint64_t memory = version_->image->BlockMemory(next.block);
    const uint64_t bytes = std::min({kPopulatePieceBytes, memory - next.done_bytes, budget});
    Status populated = parts_.host->Populate(
        {.arena = arenas_[next.block], .offset = next.done_bytes, .bytes = bytes});
    if (!populated.ok()) {
      Fail(std::move(populated));
      break;
    }
    next.done_bytes += bytes;
    budget -= bytes;
    if (next.done_bytes < memory) continue;
    const uint32_t block = next.block;
    populating_.pop_front();
    ReadBlock(block);
  }
  if (!outcome_.ok()) Advance();
  return outcome_.ok() && !populating_.empty();
}

void Load::ReadBlock(uint32_t block) {
  reading_[block] = parts_.clock->Now();
  file_ != nullptr ? ReadImage(block) : ReadFiles(block);
}

void Load::ReadImage(uint32_t block) {
  const Image& image = *version_->image;
  const ArenaId arena = arenas_[block];
  with_device_.insert(arena);
  file_->Read({.offset = image.BlockBegin(block),
               .bytes = image.BlockEnd(block) - image.BlockBegin(block),
               .memory = parts_.host->Bytes(arena).first(image.BlockMemory(block))},
              Expect<Result<BlockBytes>>([block](Load& load, Result<BlockBytes> read) {
                load.ImageCame(block, std::move(read));
              }),
              [weak = weak_from_this(), let_go = events_.let_go, arena] {
                if (const auto load = weak.lock()) load->with_device_.erase(arena);
                let_go(arena);
              });
}

void Load::ImageCame(uint32_t block, Result<BlockBytes> read) {
  Status status = read ? CompareCrcs(block, read->crcs, true) : read.error();
  if (status.ok()) {
    read->direct_bytes += std::exchange(read->cached_bytes, 0);
    loaded_.image_bytes += std::exchange(read->direct_bytes, 0);
    return BlockCame(block, read);
  }
  // A device that hangs would hang the files too, and may still write into the block.
  const bool hangs = status.code() == Code::kDeadlineExceeded ||
                     status.code() == Code::kUnavailable || status.code() == Code::kExhausted;
  if (hangs) return Fail(std::move(status));
  // Others of it may be under way, and find the same.
  if (file_ != nullptr) image_problem_ = status.message();
  file_ = nullptr;
  if (stamp_ != checks_->stamp) RequireHashes();
  // What the image put between the tensors must be zeros again.
  const std::span<uint8_t> memory = parts_.host->Bytes(arenas_[block]);
  version_->source->Run([memory] { std::memset(memory.data(), 0, memory.size()); },
                        Expect<Status>([block](Load& load, Status cleared) {
                          if (!cleared.ok()) return load.Fail(std::move(cleared));
                          load.ReadFiles(block);
                        }));
}

void Load::ReadFiles(uint32_t block) {
  const Image& image = *version_->image;
  const uint64_t begin = image.BlockBegin(block);
  const uint64_t end = image.BlockEnd(block);
  const std::span<uint8_t> memory = parts_.host->Bytes(arenas_[block]);
  std::vector<WeightPiece> pieces;
  for (size_t i = image.FirstEndingAfter(begin);
       i < image.tensors.size() && image.tensors[i].offset < end; ++i) {
    const ImageTensor& tensor = image.tensors[i];
    const uint64_t from = std::max(tensor.offset, begin);
    const uint64_t to = std::min(tensor.offset + tensor.bytes, end);
    if (from >= to) continue;
    pieces.push_back({.tensor = tensor.spec,
                      .offset = from - tensor.offset,
                      .into = memory.subspan(from - begin, to - from)});
  }
  version_->source->Read(
      {.memory = memory.first(end - begin), .pieces = std::move(pieces)},
      Expect<Result<BlockBytes>>(
          [block](Load& load, const Result<BlockBytes>& read) { load.BlockCame(block, read); }));
}

Status Load::CompareCrcs(uint32_t block, const std::vector<uint32_t>& crcs, bool of_image) const {
  if (checks_ == nullptr) return {};
  const Image& image = *version_->image;
  const size_t before = UnitsBefore(image, block);
  for (size_t i = 0; i < crcs.size(); ++i) {
    if (crcs[i] == checks_->crcs[before + i]) continue;
    const uint64_t begin = image.BlockBegin(block) + i * kCheckedBytes;
    return DiffersAt(begin, std::min(begin + kCheckedBytes, image.BlockEnd(block)), of_image);
  }
  return {};
}

Status Load::DiffersAt(uint64_t begin, uint64_t end, bool of_image) const {
  const Image& image = *version_->image;
  const size_t first = image.FirstEndingAfter(begin);
  size_t last = first;
  while (last + 1 < image.tensors.size() && image.tensors[last + 1].offset < end)
    ++last;
  const TensorSpec& tensor = version_->source->tensors()[image.tensors[first].spec];
  std::string what = of_image ? "the image" : version_->source->files()[tensor.file].path;
  what += ": holds other bytes than when the model was first loaded: tensor '" + tensor.name + "'";
  if (last > first) what += " or one of the " + std::to_string(last - first) + " after it";
  return {Code::kDataLoss, std::move(what)};
}

void Load::BlockCame(uint32_t block, const Result<BlockBytes>& read) {
  Status status = read ? CompareCrcs(block, read->crcs, false) : read.error();
  if (status.ok()) status = parts_.host->Seal(arenas_[block]);
  if (!status.ok()) return Fail(std::move(status));
  const Image& image = *version_->image;
  std::copy(read->crcs.begin(), read->crcs.end(),
            crcs_.begin() + static_cast<ptrdiff_t>(UnitsBefore(image, block)));
  loaded_.direct_bytes += read->direct_bytes;
  loaded_.cached_bytes += read->cached_bytes;
  loaded_.buffered_bytes += read->buffered_bytes;
  if (loaded_.why_buffered.empty()) loaded_.why_buffered = read->why_buffered;
  --blocks_in_work_;
  filled_[block] = true;
  read_times_.Add(parts_.clock->Now() - reading_.extract(block).mapped());
  done_bytes_ += image.BlockEnd(block) - image.BlockBegin(block);
  read_bytes_ += image.BlockEnd(block) - image.BlockBegin(block);
  // A callback may add waiters, take some away, or cancel the load.
  for (size_t i = 0; i < waiters_.size() && outcome_.ok(); ++i) {
    const Progress progress = waiters_[i].progress;
    if (progress) progress(done_bytes_, image.bytes);
  }
  if (drafted_ && outcome_.ok()) events_.came(*this);
}

void Load::ReportProgress(const Waiter& waiter) const {
  if (planned_ && waiter.progress) waiter.progress(done_bytes_, version_->image->bytes);
}

std::vector<std::span<const uint8_t>> Load::TensorSpans(uint32_t index) const {
  const Image& image = *version_->image;
  const ImageTensor& tensor = image.tensors[index];
  std::vector<std::span<const uint8_t>> spans;
  for (uint64_t at = tensor.offset; at < tensor.offset + tensor.bytes;) {
    const auto block = static_cast<uint32_t>(at / image.block_bytes);
    if (!filled_[block]) return {};
    const uint64_t to = std::min(tensor.offset + tensor.bytes, image.BlockEnd(block));
    spans.push_back(
        parts_.host->Bytes(arenas_[block]).subspan(at - image.BlockBegin(block), to - at));
    at = to;
  }
  return spans;
}

void Load::StartHashes() {
  while (hashes_in_work_ < kHashesAtOnce && next_hash_ < to_hash_.size()) {
    const uint32_t tensor = to_hash_[next_hash_];
    std::vector<std::span<const uint8_t>> spans = TensorSpans(tensor);
    if (spans.empty()) return;
    ++next_hash_;
    ++hashes_in_work_;
    version_->source->Hash(std::move(spans),
                           Expect<Result<Digest>>([tensor](Load& load, Result<Digest> digest) {
                             load.Hashed(tensor, std::move(digest));
                           }));
  }
}

void Load::Hashed(uint32_t tensor, Result<Digest> digest) {
  if (!digest) return Fail(std::move(digest).error());
  --hashes_in_work_;
  digests_[tensor] = *digest;
}

bool Load::IsThere(uint32_t index) const {
  const ImageTensor& tensor = version_->image->tensors[index];
  const uint64_t block_bytes = version_->image->block_bytes;
  const auto first = static_cast<ptrdiff_t>(tensor.offset / block_bytes);
  const auto last = static_cast<ptrdiff_t>((tensor.offset + tensor.bytes - 1) / block_bytes);
  return std::all_of(filled_.begin() + first, filled_.begin() + last + 1,
                     [](bool filled) { return filled; });
}

void Load::StartFileHashes() {
  for (auto next = files_to_hash_.begin(); next != files_to_hash_.end();) {
    const auto entry = next++;
    auto& [file, waiting] = *entry;
    while (waiting.there < waiting.tensors.size() && IsThere(waiting.tensors[waiting.there]))
      ++waiting.there;
    if (waiting.there < waiting.tensors.size()) continue;
    if (file_hashes_in_work_ == kHashesAtOnce) return;
    std::vector<std::span<const uint8_t>> data;
    for (const uint32_t tensor : waiting.tensors) {
      const auto spans = TensorSpans(tensor);
      data.insert(data.end(), spans.begin(), spans.end());
    }
    ++file_hashes_in_work_;
    version_->source->HashFile(
        file, std::move(data),
        [weak = weak_from_this()] {
          const auto load = weak.lock();
          return load != nullptr && load->outcome_.ok();
        },
        Expect<Result<Digest>>([index = file](Load& load, const Result<Digest>& digest) {
          load.FileHashed(index, digest);
        }));
    files_to_hash_.erase(entry);
  }
}

void Load::FileHashed(uint32_t file, const Result<Digest>& digest) {
  --file_hashes_in_work_;
  if (!digest) return Fail(digest.error());
  const SourceFile& source = version_->source->files()[file];
  if (*digest == source.published) return;
  Fail({Code::kDataLoss, source.path + ": is not what was published: its SHA-256 is " +
                             digest->Hex() + ", and its blob is named " + source.published.Hex()});
}

Status Load::Finish() {
  const std::vector<TensorSpec>& specs = version_->source->tensors();
  loaded_.checked_by = hashes_ ? "sha256" : "crc32c";
  const bool known = !version_->tensor_digests.empty();
  if (known) {
    for (const uint32_t tensor : to_hash_) {
      if (digests_[tensor] == version_->tensor_digests[tensor]) continue;
      return {Code::kDataLoss,
              "the files hold other bytes than when they were first loaded: tensor "
              "'" +
                  specs[version_->image->tensors[tensor].spec].name + "' differs"};
    }
  }
  auto finished = std::make_shared<Finished>();
  finished->content = version_->digest;
  version_->source->Run(
      [finished, digests_too = hashes_ && !known, with_manifest = version_->manifest == 0,
       source = version_->source, image = version_->image, digests = digests_] {
        if (digests_too) finished->content = ContentDigest(source->tensors(), *image, digests);
        if (with_manifest) {
          finished->manifest = BuildManifest(source->tensors(), *image, finished->content);
        }
      },
      Expect<Status>([finished](Load& load, Status status) {
        if (status.ok()) status = load.Complete(*finished);
        load.complete_ = status.ok();
        if (!status.ok()) load.Fail(std::move(status));
      }));
  return {};
}

Status Load::Complete(const Finished& finished) {
  content_ = finished.content;
  if (!version_->digest.IsZero() && version_->digest != content_) {
    return {Code::kDataLoss,
            "the files hold other bytes than when they were first loaded: their digest is " +
                content_.Hex() + " and was " + version_->digest.Hex()};
  }
  return finished.manifest.empty() ? Status() : WriteManifest(finished.manifest);
}

Status Load::WriteManifest(const std::vector<uint8_t>& bytes) {
  const uint64_t memory_bytes = RoundUpToBlockGranularity(bytes.size());
  auto created = CreateArena(memory_bytes);
  if (!created) return std::move(created).error().WithContext("the manifest");
  manifest_ = created->id;
  manifest_bytes_ = bytes.size();
  if (!created->resident) {
    RETURN_IF_ERROR(
        parts_.host->Populate({.arena = manifest_, .offset = 0, .bytes = memory_bytes}));
  }
  std::memcpy(parts_.host->Bytes(manifest_).data(), bytes.data(), bytes.size());
  return parts_.host->Seal(manifest_);
}

std::optional<Checks> Load::NewChecks() const {
  const Image& image = *version_->image;
  if (!hashes_ || missing_.size() != image.blocks()) return std::nullopt;
  return Checks{.imported = version_->checks != nullptr && version_->checks->imported,
                .image_bytes = image.bytes,
                .block_bytes = image.block_bytes,
                .content = content_,
                .stamp = stamp_,
                .crcs = crcs_};
}

void Load::Fail(Status status) {
  if (outcome_.ok()) outcome_ = std::move(status);
}

void Load::Cancel(Status why) {
  Fail(std::move(why));
  EndIfQuiet();
}

void Load::EndIfQuiet() {
  if (is_over_ || expected_ > 0 || (outcome_.ok() && !complete_)) return;
  is_over_ = true;
  events_.ended(shared_from_this(), outcome_);
}

}  // namespace terrace::weights
