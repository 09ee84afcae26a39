// Record: what the journal keeps of a registered model version.
//
// Key: "model/" NAME "@" VERSION; neither may contain '@'. Value, all numbers little-endian:
//   u32 format (kRecordFormat)
//   u64 ordinal: versions of all models in the order they were added
//   u32 tensors, u64 bytes of tensors, u64 bytes of the image
//   32 bytes listing digest (image.h), 32 bytes content digest (zeros until loaded once)
//   u32 files, and for each: u64 bytes, u32 length of path, path
// Nothing follows. A record of another format, or one that does not end where it should, is
// refused.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/digest.h"
#include "base/status.h"

namespace terrace::weights {

inline constexpr uint32_t kRecordFormat = 1;
inline constexpr std::string_view kRecordPrefix = "model/";

struct RecordFile {
  std::string path;
  uint64_t bytes = 0;
};
struct Record {
  std::string name;
  std::string version;
  uint64_t ordinal = 0;
  uint32_t tensors = 0;
  uint64_t tensor_bytes = 0;
  uint64_t image_bytes = 0;
  Digest listing;
  Digest digest;
  std::vector<RecordFile> files;
};

// Names and versions are 1 to 128 of [A-Za-z0-9._/-]; `field` is for the message.
Status CheckName(std::string_view field, std::string_view name);

std::string RecordKey(std::string_view name, std::string_view version);
std::string EncodeRecord(const Record& record);
Result<Record> DecodeRecord(std::string_view key, std::string_view value);

}  // namespace terrace::weights
