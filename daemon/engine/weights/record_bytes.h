// Numbers and digests of journal records: appended, and taken from the front again.
#pragma once

#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/digest.h"

namespace terrace::weights {

template <typename T>
void Append(std::string& out, T value) {
  static_assert(std::is_unsigned_v<T>);
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}
inline void Append(std::string& out, const Digest& digest) {
  out.append(reinterpret_cast<const char*>(digest.bytes.data()), digest.bytes.size());
}

// Takes fields from the front; once one was missing, all that follow are zero.
class Reader {
 public:
  explicit Reader(std::string_view left) : left_(left) {}

  template <typename T>
  T Number() {
    T value{};
    if (const std::string_view bytes = Bytes(sizeof value); ok_) {
      std::memcpy(&value, bytes.data(), sizeof value);
    }
    return value;
  }
  std::string_view Bytes(size_t count) {
    ok_ = ok_ && count <= left_.size();
    if (!ok_) return {};
    const std::string_view bytes = left_.substr(0, count);
    left_.remove_prefix(count);
    return bytes;
  }
  Digest NextDigest() {
    Digest digest;
    if (const std::string_view bytes = Bytes(digest.bytes.size()); ok_) {
      std::memcpy(digest.bytes.data(), bytes.data(), bytes.size());
    }
    return digest;
  }
  bool ok() const { return ok_; }
  bool at_end() const { return ok_ && left_.empty(); }
  size_t left() const { return left_.size(); }

 private:
  std::string_view left_;
  bool ok_ = true;
};

}  // namespace terrace::weights
