// Text from outside, made fit for an error message.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace terrace {

// Printable ASCII stays, every other byte becomes \xNN, and what is beyond `limit` bytes of input
// becomes "...". Messages travel as UTF-8 strings and end up on terminals: names of files and
// tensors must not bring anything else there.
std::string Printable(std::string_view text, size_t limit = 256);

// Printable, shorter, and in single quotes.
std::string Quoted(std::string_view name);
bool HasControlCharacter(std::string_view text);

}  // namespace terrace
