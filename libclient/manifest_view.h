// ManifestView: a mapped manifest (proto/manifest.h), checked once so that it can be used without
// another look at its numbers.
//
// A value over memory that somebody else keeps mapped. Any number of threads.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "base/status.h"
#include "proto/manifest.h"

namespace terrace::client {

class ManifestView {
 public:
  ManifestView() = default;
  // kDataLoss, naming the record, for whatever would lead a lookup out of the memory or the image.
  static Result<ManifestView> Of(std::span<const uint8_t> memory);

  const manifest::ManifestHeader& header() const { return *header_; }
  std::span<const manifest::TensorRecord> records() const { return records_; }
  std::string_view name(const manifest::TensorRecord& record) const {
    return {strings_ + record.name_offset, record.name_bytes};
  }
  // By binary search: records are in the order of their names.
  const manifest::TensorRecord* Find(std::string_view name) const;

  struct BlockRange {
    uint32_t first = 0;
    uint32_t end = 0;  // One beyond the last; first == end for an empty tensor.
  };
  BlockRange BlocksOf(const manifest::TensorRecord& record) const;
  uint64_t BlockBytes(uint32_t block) const;

 private:
  Status CheckRecord(const manifest::TensorRecord& record) const;

  const manifest::ManifestHeader* header_ = nullptr;
  std::span<const manifest::TensorRecord> records_;
  const char* strings_ = nullptr;
};

}  // namespace terrace::client
