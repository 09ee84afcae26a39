#include "daemon/service/log_record.h"

#include <array>

namespace terrace {

namespace {

// The length of the UTF-8 sequence that `text` starts with; 0 if it starts with none. Table 3-7 of
// the Unicode standard: no overlong forms, no surrogates, nothing above U+10FFFF.
size_t SequenceLength(std::string_view text) {
  const auto byte = [&](size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const auto in = [&](size_t i, unsigned low, unsigned high) {
    return byte(i) >= low && byte(i) <= high;
  };
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first <= 0xdf) return in(1, 0x80, 0xbf) ? 2 : 0;
  if (first >= 0xe0 && first <= 0xef) {
    const unsigned low = first == 0xe0 ? 0xa0 : 0x80;
    const unsigned high = first == 0xed ? 0x9f : 0xbf;
    return in(1, low, high) && in(2, 0x80, 0xbf) ? 3 : 0;
  }
  if (first >= 0xf0 && first <= 0xf4) {
    const unsigned low = first == 0xf0 ? 0x90 : 0x80;
    const unsigned high = first == 0xf4 ? 0x8f : 0xbf;
    return in(1, low, high) && in(2, 0x80, 0xbf) && in(3, 0x80, 0xbf) ? 4 : 0;
  }
  return 0;
}

std::string Bounded(std::string_view value) {
  if (value.size() <= kMaxLogValueBytes) return std::string(value);
  return std::string(value.substr(0, kMaxLogValueBytes - 3)) + "...";
}

// Quoted when it is more than one word, and never with a line break.
void AppendText(std::string_view value, std::string* line) {
  const bool plain = !value.empty() && value.find_first_of(" \"=\\") == std::string_view::npos;
  if (!plain) line->push_back('"');
  for (const char c : value) {
    if (c == '"' || c == '\\') line->push_back('\\');
    const auto byte = static_cast<unsigned char>(c);
    line->push_back(byte < 0x20 || byte == 0x7f ? '?' : c);
  }
  if (!plain) line->push_back('"');
}

void AppendJson(std::string_view value, std::string* line) {
  constexpr char kHex[] = "0123456789abcdef";
  line->push_back('"');
  while (!value.empty()) {
    const auto byte = static_cast<unsigned char>(value.front());
    size_t length = SequenceLength(value);
    if (length == 0) {
      line->append("\xef\xbf\xbd");
      length = 1;
    } else if (byte == '"' || byte == '\\') {
      line->append({'\\', value.front()});
    } else if (byte < 0x20 || byte == 0x7f) {
      line->append({'\\', 'u', '0', '0', kHex[byte >> 4], kHex[byte & 15]});
    } else {
      line->append(value.substr(0, length));
    }
    value.remove_prefix(length);
  }
  line->push_back('"');
}

// A value with a line break (or with anything else that is no text) has its length before it.
void AppendJournal(std::string_view name, std::string_view value, std::string* datagram) {
  datagram->append(name);
  if (value.find('\n') == std::string_view::npos) {
    datagram->append("=").append(value).append("\n");
    return;
  }
  datagram->append("\n");
  for (int i = 0; i < 8; ++i) {
    datagram->push_back(static_cast<char>(static_cast<uint64_t>(value.size()) >> (8 * i)));
  }
  datagram->append(value).append("\n");
}

// syslog(3).
char Priority(LogLevel level) {
  constexpr std::array<char, 5> kPriorities = {'7', '6', '4', '3', '3'};
  return kPriorities[static_cast<size_t>(level)];
}

std::string JournalName(std::string_view field) {
  std::string name = "TERRACE_";
  for (const char c : field) {
    name.push_back(c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c);
  }
  return name;
}

}  // namespace

std::string LogText(const LogRecord& record) {
  std::string line(record.event);
  for (const LogField& field : record.fields) {
    line.append(" ").append(field.name).append("=");
    AppendText(Bounded(field.value), &line);
  }
  if (record.left_out > 0) line += " left_out=" + std::to_string(record.left_out);
  return line;
}

std::string LogJsonMembers(const LogRecord& record) {
  std::string line = "\"event\":";
  AppendJson(record.event, &line);
  for (const LogField& field : record.fields) {
    line.push_back(',');
    AppendJson(field.name, &line);
    line.push_back(':');
    AppendJson(Bounded(field.value), &line);
  }
  if (record.left_out > 0) line += ",\"left_out\":\"" + std::to_string(record.left_out) + "\"";
  return line;
}

std::string LogJournal(const LogRecord& record) {
  std::string datagram;
  AppendJournal("MESSAGE", LogText(record), &datagram);
  AppendJournal("PRIORITY", std::string(1, Priority(record.level)), &datagram);
  AppendJournal("SYSLOG_IDENTIFIER", "terraced", &datagram);
  AppendJournal("TERRACE_EVENT", record.event, &datagram);
  for (const LogField& field : record.fields) {
    AppendJournal(JournalName(field.name), Bounded(field.value), &datagram);
  }
  if (record.left_out > 0) {
    AppendJournal("TERRACE_LEFT_OUT", std::to_string(record.left_out), &datagram);
  }
  return datagram;
}

}  // namespace terrace
