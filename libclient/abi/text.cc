#include <cstdint>

#include "libclient/abi/abi.h"

namespace terrace::client::abi {
namespace {

// Bytes of the UTF-8 sequence that begins here; 0: none does.
size_t SequenceAt(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[at + i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t count = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() - at < count) return 0;
  for (size_t i = 1; i < count; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  // Overlong forms, surrogates, and what lies beyond U+10FFFF.
  const uint8_t second = byte(1);
  const bool bad = (lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f) ||
                   (lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second > 0x8f);
  return bad ? 0 : count;
}

}  // namespace

Result<std::string> TextOf(const char* field, const char* text, size_t limit) {
  if (text == nullptr) return std::string();
  const std::string_view view(text, ::strnlen(text, limit + 1));
  if (view.size() > limit) {
    return Invalid(std::string(field) + " is longer than " + std::to_string(limit) + " bytes");
  }
  for (size_t at = 0; at < view.size();) {
    const size_t count = SequenceAt(view, at);
    if (count == 0) return Invalid(std::string(field) + " is not UTF-8");
    at += count;
  }
  return std::string(view);
}

}  // namespace terrace::client::abi
