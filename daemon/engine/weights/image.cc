#include "daemon/engine/weights/image.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "base/check.h"
#include "proto/manifest.h"

namespace terrace::weights {
namespace {

static_assert(kMaxTensorRank == manifest::kMaxRank);

constexpr size_t kMaxLayerDigits = 6;

bool IsDigit(char c) {
  return c >= '0' && c <= '9';
}

// The run of digits at the start of `text`, and the same without leading zeros.
std::string_view Digits(std::string_view text) {
  size_t end = 0;
  while (end < text.size() && IsDigit(text[end]))
    ++end;
  return text.substr(0, end);
}
std::string_view WithoutZeros(std::string_view digits) {
  return digits.substr(std::min(digits.find_first_not_of('0'), digits.size()));
}

uint64_t AlignUp(uint64_t value, uint64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

void UpdateListing(Sha256& hash, const TensorSpec& spec) {
  hash.UpdateField(spec.name).UpdateField(spec.dtype);
  hash.UpdateU32(static_cast<uint32_t>(spec.shape.size()));
  for (const uint64_t count : spec.shape)
    hash.UpdateU64(count);
}

Status TooLarge(std::string what) {
  return {Code::kInvalidArgument, "tensors: " + std::move(what)};
}

}  // namespace

std::string NaturalKey(std::string_view name) {
  std::string key;
  key.reserve(name.size() + 16);
  while (!name.empty()) {
    const std::string_view digits = Digits(name);
    if (digits.empty()) {
      key += name.front();
      name.remove_prefix(1);
      continue;
    }
    // A digit first, so that numbers keep their place among the other characters; then the longer
    // number is the larger one.
    const std::string_view number = WithoutZeros(digits);
    key += '0';
    key += static_cast<char>(number.size() >> 8);
    key += static_cast<char>(number.size() & 0xff);
    key += number;
    name.remove_prefix(digits.size());
  }
  return key;
}

uint32_t LayerOf(std::string_view name) {
  // Components are separated by dots: the one after "layers", "h" or "blocks" is the number.
  bool after_keyword = false;
  while (true) {
    const size_t dot = name.find('.');
    const std::string_view component = name.substr(0, dot);
    if (after_keyword && !component.empty() && component.size() <= kMaxLayerDigits &&
        Digits(component).size() == component.size()) {
      uint32_t layer = 0;
      for (const char c : component)
        layer = 10 * layer + static_cast<uint32_t>(c - '0');
      return layer;
    }
    after_keyword = component == "layers" || component == "h" || component == "blocks";
    if (dot == std::string_view::npos) return manifest::kNoLayer;
    name.remove_prefix(dot + 1);
  }
}

size_t Image::FirstEndingAfter(uint64_t offset) const {
  const auto first =
      std::partition_point(tensors.begin(), tensors.end(), [offset](const ImageTensor& tensor) {
        return tensor.offset + std::max<uint64_t>(tensor.bytes, 1) <= offset;
      });
  return static_cast<size_t>(first - tensors.begin());
}

uint64_t ChooseBlockBytes(uint64_t image_bytes, uint64_t wanted) {
  uint64_t block_bytes = wanted;
  while (block_bytes < kMaxBlockBytes && image_bytes > kBlocksAMessage * block_bytes)
    block_bytes = std::min(2 * block_bytes, kMaxBlockBytes);
  return block_bytes;
}

Result<Image> PlanImage(const std::vector<TensorSpec>& specs, uint64_t wanted_block_bytes) {
  TERRACE_CHECK(wanted_block_bytes > 0 && wanted_block_bytes % kBlockGranularity == 0);
  constexpr uint64_t kMaxU32 = std::numeric_limits<uint32_t>::max();
  // Keys that differ only in leading zeros are equal: the names decide.
  std::vector<std::pair<std::string, uint32_t>> order;
  order.reserve(specs.size());
  for (uint32_t i = 0; i < specs.size(); ++i)
    order.emplace_back(NaturalKey(specs[i].name), i);
  std::sort(order.begin(), order.end(), [&specs](const auto& a, const auto& b) {
    if (const int compared = a.first.compare(b.first); compared != 0) return compared < 0;
    return specs[a.second].name < specs[b.second].name;
  });

  Image image;
  image.tensors.reserve(specs.size());
  uint64_t name_bytes = 0;
  for (const auto& [key, index] : order) {
    const TensorSpec& spec = specs[index];
    if (spec.bytes > kMaxImageBytes || image.bytes + spec.bytes > kMaxImageBytes) {
      return TooLarge("more than 2^48 bytes in all");
    }
    image.tensors.push_back({.spec = index, .offset = image.bytes, .bytes = spec.bytes});
    image.bytes = AlignUp(image.bytes + spec.bytes, manifest::kTensorAlignment);
    image.tensor_bytes += spec.bytes;
    name_bytes += spec.name.size();
  }
  if (image.bytes == 0) return TooLarge("none has a byte");
  if (name_bytes > kMaxU32) return TooLarge("more than 2^32 bytes of names");

  std::vector<std::pair<std::string_view, uint32_t>> by_name;
  by_name.reserve(specs.size());
  for (uint32_t i = 0; i < image.tensors.size(); ++i)
    by_name.emplace_back(specs[image.tensors[i].spec].name, i);
  std::sort(by_name.begin(), by_name.end());
  image.by_name.reserve(by_name.size());
  for (const auto& [name, index] : by_name)
    image.by_name.push_back(index);
  image.block_bytes = ChooseBlockBytes(image.bytes, wanted_block_bytes);
  return image;
}

Digest ListingDigest(const std::vector<TensorSpec>& specs, const Image& image) {
  Sha256 hash;
  for (const uint32_t index : image.by_name)
    UpdateListing(hash, specs[image.tensors[index].spec]);
  return hash.Finish();
}

void PlanOf(const std::shared_ptr<WeightSource>& source, uint64_t wanted_block_bytes,
            std::function<void(Result<Plan>)> done) {
  auto plan = std::make_shared<Result<Plan>>(Status(Code::kInternal, "not planned"));
  source->Run(
      [source, wanted_block_bytes, plan] {
        auto image = PlanImage(source->tensors(), wanted_block_bytes);
        if (!image) {
          *plan = std::move(image).error();
          return;
        }
        const Digest listing = ListingDigest(source->tensors(), *image);
        *plan = Plan{*std::move(image), listing};
      },
      [plan, done = std::move(done)](Status ran) {
        done(ran.ok() ? std::move(*plan) : Result<Plan>(std::move(ran)));
      });
}

Digest ContentDigest(const std::vector<TensorSpec>& specs, const Image& image,
                     const std::vector<Digest>& digests) {
  TERRACE_CHECK(digests.size() == image.tensors.size());
  constexpr char kTag[32] = "terrace weights v1";
  Sha256 hash;
  hash.Update(std::string_view(kTag, sizeof kTag));
  for (const uint32_t index : image.by_name) {
    UpdateListing(hash, specs[image.tensors[index].spec]);
    hash.Update(digests[index].bytes);
  }
  return hash.Finish();
}

std::vector<uint8_t> BuildManifest(const std::vector<TensorSpec>& specs, const Image& image,
                                   const Digest& content) {
  manifest::ManifestHeader header{};
  header.magic = manifest::kManifestMagic;
  header.version = manifest::kManifestVersion;
  header.tensors = static_cast<uint32_t>(image.tensors.size());
  header.image_bytes = image.bytes;
  header.block_bytes = image.block_bytes;
  header.blocks = image.blocks();
  header.strings_offset = sizeof header + image.tensors.size() * sizeof(manifest::TensorRecord);
  std::memcpy(header.digest, content.bytes.data(), sizeof header.digest);

  std::vector<manifest::TensorRecord> records;
  records.reserve(image.tensors.size());
  std::string strings;
  for (const uint32_t index : image.by_name) {
    const ImageTensor& tensor = image.tensors[index];
    const TensorSpec& spec = specs[tensor.spec];
    manifest::TensorRecord record{};
    record.offset = tensor.offset;
    record.bytes = tensor.bytes;
    TERRACE_CHECK(spec.shape.size() <= manifest::kMaxRank &&
                  spec.dtype.size() < sizeof record.dtype);
    std::copy(spec.shape.begin(), spec.shape.end(), record.shape);
    record.rank = static_cast<uint32_t>(spec.shape.size());
    record.name_offset = static_cast<uint32_t>(strings.size());
    record.name_bytes = static_cast<uint32_t>(spec.name.size());
    record.layer = LayerOf(spec.name);
    std::memcpy(record.dtype, spec.dtype.data(), spec.dtype.size());
    if (record.layer != manifest::kNoLayer) {
      header.layers = std::max(header.layers, record.layer + 1);
    }
    strings += spec.name;
    records.push_back(record);
  }
  header.strings_bytes = strings.size();

  std::vector<uint8_t> bytes(header.strings_offset + strings.size());
  std::memcpy(bytes.data(), &header, sizeof header);
  std::memcpy(bytes.data() + sizeof header, records.data(),
              records.size() * sizeof(manifest::TensorRecord));
  std::memcpy(bytes.data() + header.strings_offset, strings.data(), strings.size());
  return bytes;
}

}  // namespace terrace::weights
