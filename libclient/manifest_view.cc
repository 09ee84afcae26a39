#include "libclient/manifest_view.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace terrace::client {
namespace {

using manifest::ManifestHeader;
using manifest::TensorRecord;

constexpr uint64_t kPageBytes = 4096;

Status Bad(const std::string& what) {
  return {Code::kDataLoss, "manifest: " + what};
}

Status CheckHeader(const ManifestHeader& header, uint64_t bytes) {
  if (header.magic != manifest::kManifestMagic) return Bad("its magic is that of something else");
  if (header.version != manifest::kManifestVersion) {
    return {Code::kMismatch, "manifest: version " + std::to_string(header.version) +
                                 ", this library knows " +
                                 std::to_string(manifest::kManifestVersion)};
  }
  const uint64_t records_end = sizeof header + uint64_t{header.tensors} * sizeof(TensorRecord);
  if (records_end > bytes || header.strings_offset < records_end || header.strings_offset > bytes ||
      header.strings_bytes > bytes - header.strings_offset) {
    return Bad("its parts do not fit into it");
  }
  if (header.block_bytes == 0 || header.block_bytes % kPageBytes != 0) {
    return Bad("block_bytes is no multiple of a page");
  }
  const uint64_t blocks = header.image_bytes / header.block_bytes +
                          (header.image_bytes % header.block_bytes != 0 ? 1 : 0);
  if (header.blocks != blocks) return Bad("blocks does not follow from image_bytes");
  return {};
}

}  // namespace

Result<ManifestView> ManifestView::Of(std::span<const uint8_t> memory) {
  if (memory.size() < sizeof(ManifestHeader)) return Bad("shorter than its header");
  ManifestView view;
  view.header_ = reinterpret_cast<const ManifestHeader*>(memory.data());
  RETURN_IF_ERROR(CheckHeader(*view.header_, memory.size()));
  view.records_ = {reinterpret_cast<const TensorRecord*>(memory.data() + sizeof(ManifestHeader)),
                   view.header_->tensors};
  view.strings_ = reinterpret_cast<const char*>(memory.data()) + view.header_->strings_offset;
  for (size_t i = 0; i < view.records_.size(); ++i) {
    const Status status = view.CheckRecord(view.records_[i]);
    const bool sorted =
        !status.ok() || i == 0 || view.name(view.records_[i - 1]) < view.name(view.records_[i]);
    if (!status.ok() || !sorted) {
      return Bad("record " + std::to_string(i) + ": " +
                 (sorted ? status.message() : "not in the order of names"));
    }
  }
  return view;
}

Status ManifestView::CheckRecord(const TensorRecord& record) const {
  const ManifestHeader& h = *header_;
  if (record.name_offset > h.strings_bytes ||
      record.name_bytes > h.strings_bytes - record.name_offset) {
    return Bad("its name lies outside the strings");
  }
  if (record.offset > h.image_bytes || record.bytes > h.image_bytes - record.offset) {
    return Bad("its bytes lie outside the image");
  }
  if (record.bytes > 0 && record.offset % manifest::kTensorAlignment != 0) {
    return Bad("it is not aligned");
  }
  if (record.rank > manifest::kMaxRank) return Bad("its rank is over 8");
  if (std::memchr(record.dtype, 0, sizeof record.dtype) == nullptr)
    return Bad("its dtype has no end");
  return {};
}

const TensorRecord* ManifestView::Find(std::string_view wanted) const {
  const auto it = std::ranges::lower_bound(
      records_, wanted, {}, [this](const TensorRecord& record) { return name(record); });
  return it != records_.end() && name(*it) == wanted ? &*it : nullptr;
}

ManifestView::BlockRange ManifestView::BlocksOf(const TensorRecord& record) const {
  const auto first = static_cast<uint32_t>(record.offset / header_->block_bytes);
  if (record.bytes == 0) return {first, first};
  const uint64_t last = (record.offset + record.bytes - 1) / header_->block_bytes;
  return {first, static_cast<uint32_t>(last) + 1};
}

uint64_t ManifestView::BlockBytes(uint32_t block) const {
  const uint64_t offset = block * header_->block_bytes;
  return std::min(header_->block_bytes, header_->image_bytes - offset);
}

}  // namespace terrace::client
