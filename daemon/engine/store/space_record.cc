#include "daemon/engine/store/space_record.h"

#include <cstring>

namespace terrace {
namespace {

void AppendNumber(std::string& out, uint32_t value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}
void AppendText(std::string& out, std::string_view text) {
  AppendNumber(out, static_cast<uint32_t>(text.size()));
  out += text;
}
void AppendDigest(std::string& out, const Digest& digest) {
  out.append(reinterpret_cast<const char*>(digest.bytes.data()), digest.bytes.size());
}

// Takes fields from the front; once one was missing, all that follow are empty.
class Fields {
 public:
  explicit Fields(std::string_view left) : left_(left) {}

  uint32_t Number() {
    uint32_t value = 0;
    if (const std::string_view bytes = Bytes(sizeof value); ok_) {
      std::memcpy(&value, bytes.data(), sizeof value);
    }
    return value;
  }
  std::string_view Text() { return Bytes(Number()); }
  Digest NextDigest() {
    Digest digest;
    if (const std::string_view bytes = Bytes(digest.bytes.size()); ok_) {
      std::memcpy(digest.bytes.data(), bytes.data(), bytes.size());
    }
    return digest;
  }
  bool ok() const { return ok_; }
  bool at_end() const { return ok_ && left_.empty(); }

 private:
  std::string_view Bytes(size_t count) {
    ok_ = ok_ && count <= left_.size();
    if (!ok_) return {};
    const std::string_view bytes = left_.substr(0, count);
    left_.remove_prefix(count);
    return bytes;
  }

  std::string_view left_;
  bool ok_ = true;
};

std::string_view AsText(const std::vector<uint8_t>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Status Bad(std::string_view key, std::string_view what) {
  return {Code::kDataLoss, "journal record '" + std::string(key) + "': " + std::string(what)};
}

}  // namespace

Digest SpaceIdOf(const std::string& tenant, const SpaceSpec& spec) {
  return SpaceId(tenant, spec.weights, spec.adapter, AsText(spec.salt), spec.layout);
}

uint64_t LayoutFingerprint(const KvLayout& layout) {
  return SpaceId("", {}, {}, "", layout).Word(0);
}

std::string SpaceRecordKey(const Digest& id) {
  return std::string(kSpaceRecordPrefix) + id.Hex();
}

std::string EncodeSpaceRecord(const SpaceRecord& record) {
  std::string out;
  AppendNumber(out, kSpaceRecordFormat);
  AppendText(out, record.tenant);
  AppendText(out, record.spec.model);
  AppendDigest(out, record.spec.weights);
  AppendDigest(out, record.spec.adapter);
  AppendText(out, AsText(record.spec.salt));
  const KvLayout& layout = record.spec.layout;
  AppendText(out, layout.dtype);
  for (const uint32_t number :
       {layout.layers, layout.kv_heads, layout.head_size, layout.page_tokens, layout.planes})
    AppendNumber(out, number);
  AppendText(out, layout.order);
  return out;
}

Result<SpaceRecord> DecodeSpaceRecord(std::string_view key, std::string_view value) {
  Fields fields(value);
  const uint32_t format = fields.Number();
  if (fields.ok() && format != kSpaceRecordFormat) {
    return Bad(key, "format " + std::to_string(format) + ", but this daemon reads only " +
                        std::to_string(kSpaceRecordFormat));
  }
  SpaceRecord record;
  record.tenant = fields.Text();
  record.spec.model = fields.Text();
  record.spec.weights = fields.NextDigest();
  record.spec.adapter = fields.NextDigest();
  const std::string_view salt = fields.Text();
  record.spec.salt.assign(salt.begin(), salt.end());
  KvLayout& layout = record.spec.layout;
  layout.dtype = fields.Text();
  for (uint32_t* number :
       {&layout.layers, &layout.kv_heads, &layout.head_size, &layout.page_tokens, &layout.planes})
    *number = fields.Number();
  layout.order = fields.Text();
  if (!fields.at_end()) return Bad(key, "its length is wrong");
  if (!ValidateLayout(layout).ok()) return Bad(key, "its layout cannot be right");
  record.id = SpaceIdOf(record.tenant, record.spec);
  if (SpaceRecordKey(record.id) != key) return Bad(key, "its key is not that of its fields");
  return record;
}

}  // namespace terrace
