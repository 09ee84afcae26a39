#include "tiers/device/mover/arguments.h"

#include <charconv>
#include <optional>
#include <string_view>

namespace terrace {
namespace {

Status Refused(std::string_view argument, const char* what) {
  return {Code::kInvalidArgument, std::string(argument) + ": " + what};
}

template <typename T>
Status ParseNumber(std::string_view name, std::string_view text, T& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc() && end == text.data() + text.size()) return {};
  return Refused(name, "is no number, or too large");
}

Status ParseArgument(std::string_view name, std::string_view value, MoverArguments& arguments) {
  if (name == "--socket") return ParseNumber(name, value, arguments.socket);
  if (name == "--host-bytes") return ParseNumber(name, value, arguments.host_bytes);
  if (name == "--in-flight") return ParseNumber(name, value, arguments.options.in_flight);
  if (name == "--arenas") return ParseNumber(name, value, arguments.options.arenas);
  if (name == "--staging-bytes") return ParseNumber(name, value, arguments.options.staging.bytes);
  if (name == "--registration-bytes") {
    return ParseNumber(name, value, arguments.options.registration_bytes);
  }
  if (name == "--kind") {
    if (value != "cuda" && value != "host") return Refused(name, "is neither cuda nor host");
    arguments.kind = value == "cuda" ? MoverKind::kCuda : MoverKind::kHost;
    return {};
  }
  if (name == "--device") {
    const std::optional<GpuUuid> uuid = ParseGpuUuid(value);
    if (!uuid) return Refused(name, "is no UUID of a GPU");
    arguments.device = *uuid;
    return {};
  }
  return Refused(name, "is no argument");
}

}  // namespace

Result<MoverArguments> ParseMoverArguments(std::span<char* const> arguments) {
  MoverArguments parsed;
  bool device = false;
  for (const char* const argument : arguments.subspan(arguments.empty() ? 0 : 1)) {
    const std::string_view text = argument;
    const size_t equals = text.find('=');
    if (equals == text.npos) return Refused(text, "has no value");
    const std::string_view name = text.substr(0, equals);
    RETURN_IF_ERROR(ParseArgument(name, text.substr(equals + 1), parsed));
    device = device || name == "--device";
  }
  if (!device) return Refused("--device", "is missing");
  if (parsed.socket < 0) return Refused("--socket", "is missing");
  constexpr uint64_t kPage = 4096;
  const uint64_t piece = parsed.options.registration_bytes;
  if (piece % kPage != 0) {
    return Refused("--registration-bytes", "is not a multiple of 4096");
  }
  return parsed;
}

std::vector<std::string> MoverCommand(const std::string& program, const MoverArguments& arguments) {
  const MoverOptions& options = arguments.options;
  const auto number = [](const char* name, uint64_t value) { return name + std::to_string(value); };
  return {program,
          number("--socket=", static_cast<uint64_t>(arguments.socket)),
          std::string("--kind=") + (arguments.kind == MoverKind::kCuda ? "cuda" : "host"),
          "--device=" + arguments.device.Text(),
          number("--host-bytes=", arguments.host_bytes),
          number("--in-flight=", options.in_flight),
          number("--arenas=", options.arenas),
          number("--staging-bytes=", options.staging.bytes),
          number("--registration-bytes=", options.registration_bytes)};
}

}  // namespace terrace
