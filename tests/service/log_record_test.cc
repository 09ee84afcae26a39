#include "daemon/service/log_record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <nlohmann/json.hpp>

namespace terrace {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

// Values as a client may choose them.
const std::array<std::string, 9>& Nasty() {
  static const std::array<std::string, 9> values = {
      "",
      "two words",
      "a=b",
      "quote\" and \\",
      "line\nMESSAGE=forged\r\x01\x7f",
      std::string("zero\0byte", 9),
      "\xc3\xa4 is fine",
      "\xff\xc3(\xed\xa0\x80\xf4\x90\x80\x80\xc0\xaf is not",
      "cut \xe2\x82"};
  return values;
}

// Refers to `fields`.
LogRecord RecordOf(const std::array<LogField, 1>& fields) {
  return {LogLevel::kWarning, "something-happened", fields, 0};
}

TEST(LogRecord, TextIsOneLineOfWords) {
  const std::array<LogField, 3> fields = {LogField("pid", 12), LogField("why", "no room"),
                                          LogField("path", "/a")};
  EXPECT_EQ(LogText({LogLevel::kInfo, "refused", fields, 3}),
            "refused pid=12 why=\"no room\" path=/a left_out=3");
  for (const std::string& value : Nasty()) {
    const std::string line = LogText(RecordOf({LogField("key", value)}));
    for (const char c : line)
      EXPECT_GE(static_cast<unsigned char>(c), 0x20) << value;
  }
}

TEST(LogRecord, JsonIsAnObjectWithTheValuesAsTheyWere) {
  for (const std::string& value : Nasty()) {
    const std::string line = "{" + LogJsonMembers(RecordOf({LogField("key", value)})) + "}";
    EXPECT_THAT(line, Not(HasSubstr("\n")));
    const json object = json::parse(line, nullptr, false);
    ASSERT_TRUE(object.is_object()) << line;
    EXPECT_EQ(object.size(), 2u);
    EXPECT_EQ(object["event"], "something-happened");
    if (value.find("is not") == std::string::npos && value.find("cut") == std::string::npos) {
      EXPECT_EQ(object["key"], value);
    }
  }
  const json replaced = json::parse(
      "{" + LogJsonMembers(RecordOf({LogField("key", "a\xff\xe2\x82z")})) + "}", nullptr, false);
  EXPECT_EQ(replaced["key"], "a\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdz");
  EXPECT_EQ(LogJsonMembers({LogLevel::kInfo, "e", {}, 7}), "\"event\":\"e\",\"left_out\":\"7\"");
}

// Reads a datagram as the journal does: NAME=value, or NAME and a length, 8 bytes, little end
// first.
std::vector<std::pair<std::string, std::string>> FieldsOf(std::string_view datagram) {
  std::vector<std::pair<std::string, std::string>> fields;
  while (!datagram.empty()) {
    const size_t end = datagram.find_first_of("=\n");
    const std::string name(datagram.substr(0, end));
    const bool lengthy = datagram[end] == '\n';
    datagram.remove_prefix(end + 1);
    size_t size = lengthy ? 0 : datagram.find('\n');
    if (lengthy) {
      for (int i = 7; i >= 0; --i)
        size = size << 8 | static_cast<unsigned char>(datagram[static_cast<size_t>(i)]);
      datagram.remove_prefix(8);
    }
    fields.emplace_back(name, datagram.substr(0, size));
    EXPECT_EQ(datagram[size], '\n');
    datagram.remove_prefix(size + 1);
  }
  return fields;
}

TEST(LogRecord, TheJournalGetsEachFieldWhole) {
  for (const std::string& value : Nasty()) {
    const std::array<LogField, 1> given = {LogField("memory_limit", value)};
    const LogRecord record = RecordOf(given);
    const auto fields = FieldsOf(LogJournal(record));
    ASSERT_EQ(fields.size(), 5u) << value;
    EXPECT_EQ(fields[0], std::pair(std::string("MESSAGE"), LogText(record)));
    EXPECT_EQ(fields[1], std::pair(std::string("PRIORITY"), std::string("4")));
    EXPECT_EQ(fields[2], std::pair(std::string("SYSLOG_IDENTIFIER"), std::string("terraced")));
    EXPECT_EQ(fields[3],
              std::pair(std::string("TERRACE_EVENT"), std::string("something-happened")));
    EXPECT_EQ(fields[4], std::pair(std::string("TERRACE_MEMORY_LIMIT"), value));
  }
  const auto fields = FieldsOf(LogJournal({LogLevel::kError, "e", {}, 7}));
  EXPECT_EQ(fields[1].second, "3");
  EXPECT_EQ(fields.back(), std::pair(std::string("TERRACE_LEFT_OUT"), std::string("7")));
}

TEST(LogRecord, LongValuesAreCut) {
  const std::string huge(1u << 20, 'x');
  const std::array<LogField, 1> given = {LogField("key", huge)};
  const LogRecord record = RecordOf(given);
  for (const std::string& form : {LogText(record), LogJsonMembers(record), LogJournal(record)}) {
    EXPECT_LT(form.size(), 3 * kMaxLogValueBytes);
    EXPECT_THAT(form, HasSubstr("xxx..."));
  }
}

}  // namespace
}  // namespace terrace
