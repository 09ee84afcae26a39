#include "tiers/source/json_events.h"

#include <exception>
#include <new>

#include "tiers/source/printable.h"

namespace terrace {

bool JsonEvents::Refuse(std::string message) {
  if (status_.ok()) status_ = Status(Code::kInvalidArgument, std::move(message));
  return false;
}

bool JsonEvents::parse_error(std::size_t position, const std::string&,
                             const nlohmann::detail::exception& error) {
  // The library's message quotes what it read last, however long and whatever the bytes.
  return Refuse("not valid JSON at byte " + std::to_string(position) + ": " +
                Printable(error.what()));
}

Status ParseJson(std::string_view text, JsonEvents& events) {
  // The library takes a zero byte for the end of its input and skips a byte order mark: what
  // follows the one, and the other, would go unnoticed.
  if (const size_t zero = text.find('\0'); zero != std::string_view::npos) {
    return {Code::kInvalidArgument, "not valid JSON: a zero byte at byte " + std::to_string(zero)};
  }
  if (text.empty() || text.front() != '{') {
    return {Code::kInvalidArgument, "does not start with '{'"};
  }
  try {
    const bool accepted = nlohmann::json::sax_parse(text.begin(), text.end(), &events);
    if (!accepted && events.status().ok()) {
      return {Code::kInvalidArgument, "not valid JSON"};
    }
  } catch (const std::bad_alloc&) {
    return {Code::kExhausted, "no memory to parse it"};
  } catch (const std::exception& error) {
    return {Code::kInvalidArgument, "cannot be parsed: " + Printable(error.what())};
  }
  return events.status();
}

}  // namespace terrace
