// Text for people, and from them: sizes, counts, times, keys, token lists and tables.
//
// Everything here is a pure function of its arguments; any thread may call it. What came from
// outside (a client's name, a path) goes through Printable before it reaches a terminal.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace terrace::cli {

// "0 B", "512 B", "1.5 KiB", "2.5 GiB": three significant digits, powers of 1024.
std::string HumanBytes(uint64_t bytes);
// "12,031".
std::string HumanCount(uint64_t count);
// "42 s", "3 min 7 s", "5 h 12 min", "8 d 3 h".
std::string HumanSeconds(uint64_t seconds);
// "97.3 %"; "-" of nothing.
std::string HumanShare(uint64_t part, uint64_t whole);

// "4096", "64K", "1.5G", "2GiB", "10MB": K, M, G, T mean powers of 1024 with or without "iB", and
// powers of 1000 with "B". nullopt for anything else, and for what does not fit.
std::optional<uint64_t> ParseSize(std::string_view text);
// A list of token ids, separated by commas or blanks; nullopt unless all are numbers below 2^32.
std::optional<std::vector<uint32_t>> ParseTokens(std::string_view text);
// Exactly 64 hexadecimal digits.
std::optional<std::array<uint8_t, 32>> ParseKey(std::string_view hex);
std::string Hex(const std::array<uint8_t, 32>& bytes);
// Control characters become '?', so that a name cannot drive the terminal.
std::string Printable(std::string_view text);

// Aligned columns under a heading. A heading that starts with '>' sets its column flush right.
class Table {
 public:
  explicit Table(std::vector<std::string> headings);
  // As many cells as there are headings.
  void Add(std::vector<std::string> cells);
  bool empty() const { return rows_.empty(); }
  std::string Text() const;

 private:
  std::vector<std::string> headings_;
  std::vector<bool> flush_right_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace terrace::cli
