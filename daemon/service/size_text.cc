#include "daemon/service/size_text.h"

#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>

namespace terrace {

namespace {

struct Unit {
  std::string_view name;
  uint64_t factor;
};
constexpr Unit kSizeUnits[] = {
    {"B", 1}, {"KiB", 1ull << 10}, {"MiB", 1ull << 20}, {"GiB", 1ull << 30}, {"TiB", 1ull << 40}};
constexpr Unit kTimeUnits[] = {{"ms", 1}, {"s", 1000}, {"min", 60'000}};

// A plain decimal number at the start of `text`; advances behind it and the spaces that follow.
std::optional<double> TakeNumber(std::string_view* text) {
  double number = 0;
  const auto [end, error] =
      std::from_chars(text->data(), text->data() + text->size(), number, std::chars_format::fixed);
  if (error != std::errc() || !std::isfinite(number) || number < 0 || text->front() == '-') {
    return std::nullopt;
  }
  text->remove_prefix(static_cast<size_t>(end - text->data()));
  while (!text->empty() && text->front() == ' ')
    text->remove_prefix(1);
  return number;
}

template <size_t kCount>
std::optional<uint64_t> FactorOf(const Unit (&units)[kCount], std::string_view name) {
  for (const Unit& unit : units) {
    if (unit.name == name) return unit.factor;
  }
  return std::nullopt;
}

template <size_t kCount>
std::string Shortest(const Unit (&units)[kCount], uint64_t value) {
  const Unit* best = nullptr;
  for (const Unit& unit : units) {
    if (value % unit.factor == 0 && (value != 0 || best == nullptr)) best = &unit;
  }
  return std::to_string(value / best->factor) + std::string(best->name);
}

}  // namespace

std::optional<uint64_t> ParseSize(std::string_view text) {
  const std::optional<double> number = TakeNumber(&text);
  if (!number) return std::nullopt;
  const std::optional<uint64_t> factor = FactorOf(kSizeUnits, text.empty() ? "B" : text);
  if (!factor) return std::nullopt;
  const double bytes = *number * static_cast<double>(*factor);
  if (bytes >= 0x1.0p63 || bytes != std::floor(bytes)) return std::nullopt;
  return static_cast<uint64_t>(bytes);
}

std::string SizeText(uint64_t bytes) {
  return bytes < 1024 ? std::to_string(bytes) : Shortest(kSizeUnits, bytes);
}

std::string RoundedSizeText(uint64_t bytes) {
  if (bytes == UINT64_MAX) return "unlimited";
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  size_t unit = 0;
  double number = static_cast<double>(bytes);
  while (number >= 1024) {
    number /= 1024;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f%s" : "%.1f%s", number, kUnits[unit]);
  return text;
}

std::optional<uint32_t> ParseDurationMs(std::string_view text) {
  const std::optional<double> number = TakeNumber(&text);
  if (!number) return std::nullopt;
  const std::optional<uint64_t> factor = FactorOf(kTimeUnits, text);
  if (!factor) return std::nullopt;
  const double ms = *number * static_cast<double>(*factor);
  if (ms > std::numeric_limits<uint32_t>::max() || ms != std::floor(ms)) return std::nullopt;
  return static_cast<uint32_t>(ms);
}

std::string DurationText(uint32_t ms) {
  return Shortest(kTimeUnits, ms);
}

}  // namespace terrace
