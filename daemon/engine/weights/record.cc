#include "daemon/engine/weights/record.h"

#include <utility>

#include "daemon/engine/weights/image.h"
#include "daemon/engine/weights/record_bytes.h"

namespace terrace::weights {
namespace {

constexpr size_t kMaxNameBytes = 128;

Status Bad(std::string_view key, std::string_view what) {
  return {Code::kDataLoss, "journal record '" + std::string(key) + "': " + std::string(what)};
}

}  // namespace

Status CheckName(std::string_view field, std::string_view name) {
  constexpr std::string_view kAllowed =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._/-";
  if (!name.empty() && name.size() <= kMaxNameBytes &&
      name.find_first_not_of(kAllowed) == std::string_view::npos) {
    return {};
  }
  return {Code::kInvalidArgument, std::string(field) + ": must be 1 to " +
                                      std::to_string(kMaxNameBytes) +
                                      " characters of letters, digits, '.', '_', '/' and '-'"};
}

std::string RecordKey(std::string_view name, std::string_view version) {
  return std::string(kRecordPrefix) + std::string(name) + "@" + std::string(version);
}

std::string EncodeRecord(const Record& record) {
  std::string out;
  Append(out, kRecordFormat);
  Append(out, record.ordinal);
  Append(out, record.tensors);
  Append(out, record.tensor_bytes);
  Append(out, record.image_bytes);
  Append(out, record.listing);
  Append(out, record.digest);
  Append(out, static_cast<uint32_t>(record.files.size()));
  for (const RecordFile& file : record.files) {
    Append(out, file.bytes);
    Append(out, static_cast<uint32_t>(file.path.size()));
    out += file.path;
  }
  return out;
}

Result<Record> DecodeRecord(std::string_view key, std::string_view value) {
  const size_t at = key.find('@');
  if (key.substr(0, kRecordPrefix.size()) != kRecordPrefix || at == std::string_view::npos) {
    return Bad(key, "the key is not that of a model");
  }
  Record record;
  record.name = key.substr(kRecordPrefix.size(), at - kRecordPrefix.size());
  record.version = key.substr(at + 1);
  if (!CheckName("name", record.name).ok() || !CheckName("version", record.version).ok()) {
    return Bad(key, "the key is not that of a model");
  }
  Reader reader(value);
  const auto format = reader.Number<uint32_t>();
  if (reader.ok() && format != kRecordFormat) {
    return Bad(key, "format " + std::to_string(format) + ", but this daemon reads only " +
                        std::to_string(kRecordFormat));
  }
  record.ordinal = reader.Number<uint64_t>();
  record.tensors = reader.Number<uint32_t>();
  record.tensor_bytes = reader.Number<uint64_t>();
  record.image_bytes = reader.Number<uint64_t>();
  record.listing = reader.NextDigest();
  record.digest = reader.NextDigest();
  const auto files = reader.Number<uint32_t>();
  for (uint32_t i = 0; i < files && reader.ok(); ++i) {
    RecordFile file;
    file.bytes = reader.Number<uint64_t>();
    file.path = reader.Bytes(reader.Number<uint32_t>());
    record.files.push_back(std::move(file));
  }
  if (!reader.at_end()) return Bad(key, "its length is wrong");
  if (record.files.empty() || record.image_bytes == 0 || record.image_bytes > kMaxImageBytes) {
    return Bad(key, "its numbers cannot be right");
  }
  return record;
}

}  // namespace terrace::weights
