// What the fuzz targets share.
//
// A target is one function over any bytes: it must return, whatever they are, and may abort only
// for a bug of ours. It keeps nothing from one call to the next, so that a finding replays from its
// file alone. libFuzzer calls it in the build of the preset `fuzz`; in every other build
// corpus_main calls it once for each file of its committed corpus, as an ordinary test.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace terrace {

// Reads an input from front to back; what is not there reads as zeros.
class FuzzInput {
 public:
  FuzzInput(const uint8_t* data, size_t size) : left_(data, size) {}

  bool empty() const { return left_.empty(); }
  template <typename T>
  T Take() {
    T value{};
    const size_t bytes = std::min(sizeof value, left_.size());
    if (bytes > 0) std::memcpy(&value, left_.data(), bytes);
    left_ = left_.subspan(bytes);
    return value;
  }
  std::string TakeText(size_t bytes) {
    const auto text = left_.first(std::min(bytes, left_.size()));
    left_ = left_.subspan(text.size());
    return {text.begin(), text.end()};
  }
  std::string Rest() { return TakeText(left_.size()); }

 private:
  std::span<const uint8_t> left_;
};

}  // namespace terrace
