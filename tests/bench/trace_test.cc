#include "bench/trace.h"

#include <gmock/gmock.h>

#include <sstream>

namespace terrace::bench {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

Result<std::vector<TraceRequest>> Parse(const std::string& text, size_t limit = SIZE_MAX) {
  std::istringstream stream(text);
  return ParseTrace(stream, limit);
}

TEST(Trace, ARequestIsReadWithAllItsFields) {
  const auto request = ParseTraceLine(
      R"({"timestamp": 3000, "input_length": 1300, "output_length": 52, "hash_ids": [0, 7, 9]})");
  ASSERT_TRUE(request) << request.error().ToString();
  EXPECT_EQ(request->timestamp_ms, 3000u);
  EXPECT_EQ(request->input_length, 1300u);
  EXPECT_EQ(request->output_length, 52u);
  EXPECT_THAT(request->hash_ids, ElementsAre(0, 7, 9));
  EXPECT_EQ(TokensOfBlock(*request, 0), 512u);
  EXPECT_EQ(TokensOfBlock(*request, 2), 276u);
}

TEST(Trace, FieldsThatAreNotKnownArePassedOver) {
  EXPECT_TRUE(ParseTraceLine(
      R"({"timestamp":0,"input_length":1,"output_length":0,"hash_ids":[5],"model":"x"})"));
}

struct BadLine {
  const char* line;
  const char* named;  // What the error must name.
};

class MalformedTrace : public ::testing::TestWithParam<BadLine> {};

TEST_P(MalformedTrace, IsRefusedNamingTheField) {
  const auto request = ParseTraceLine(GetParam().line);
  ASSERT_FALSE(request) << GetParam().line;
  EXPECT_EQ(request.error().code(), Code::kInvalidArgument);
  EXPECT_THAT(request.error().message(), HasSubstr(GetParam().named));
}

INSTANTIATE_TEST_SUITE_P(
    Lines, MalformedTrace,
    ::testing::Values(
        BadLine{"", "JSON"}, BadLine{"{", "JSON"}, BadLine{"[1]", "JSON object"},
        BadLine{"7", "JSON object"}, BadLine{"{}", "timestamp"},
        BadLine{R"({"timestamp":"0","input_length":1,"output_length":0,"hash_ids":[1]})",
                "timestamp"},
        BadLine{R"({"timestamp":-1,"input_length":1,"output_length":0,"hash_ids":[1]})",
                "timestamp"},
        BadLine{R"({"timestamp":0,"output_length":0,"hash_ids":[1]})", "input_length"},
        BadLine{R"({"timestamp":0,"input_length":1.5,"output_length":0,"hash_ids":[1]})",
                "input_length"},
        BadLine{R"({"timestamp":0,"input_length":4294967297,"output_length":0,"hash_ids":[1]})",
                "input_length"},
        BadLine{R"({"timestamp":0,"input_length":1,"output_length":null,"hash_ids":[1]})",
                "output_length"},
        BadLine{R"({"timestamp":0,"input_length":1,"output_length":0})", "hash_ids"},
        BadLine{R"({"timestamp":0,"input_length":1,"output_length":0,"hash_ids":{"0":1}})",
                "hash_ids"},
        BadLine{R"({"timestamp":0,"input_length":1,"output_length":0,"hash_ids":[-1]})",
                "hash_ids"},
        BadLine{R"({"timestamp":0,"input_length":1,"output_length":0,"hash_ids":["1"]})",
                "hash_ids"},
        BadLine{R"({"timestamp":0,"input_length":1,"output_length":0,"hash_ids":[]})", "hash_ids"},
        BadLine{R"({"timestamp":0,"input_length":512,"output_length":0,"hash_ids":[1,2]})",
                "hash_ids"},
        BadLine{R"({"timestamp":0,"input_length":513,"output_length":0,"hash_ids":[1]})",
                "hash_ids"}));

constexpr const char* kGood =
    R"({"timestamp":0,"input_length":600,"output_length":1,"hash_ids":[1,2]})";

TEST(Trace, ErrorsNameTheLine) {
  const auto requests = Parse(std::string(kGood) + "\n\n" + kGood + "\n{}\n");
  ASSERT_FALSE(requests);
  EXPECT_THAT(requests.error().message(), AllOf(HasSubstr("line 4"), HasSubstr("timestamp")));
}

TEST(Trace, ReadsNoFurtherThanTheLimit) {
  const auto requests = Parse(std::string(kGood) + "\n" + kGood + "\nbroken\n", 2);
  ASSERT_TRUE(requests) << requests.error().ToString();
  EXPECT_EQ(requests->size(), 2u);
}

TEST(Trace, CeilingCountsPrefixesOnly) {
  TraceRequest first{
      .timestamp_ms = 0, .input_length = 1100, .output_length = 0, .hash_ids = {1, 2, 3}};
  // Block 3 was seen, but not after block 4.
  TraceRequest second{
      .timestamp_ms = 0, .input_length = 1536, .output_length = 0, .hash_ids = {1, 4, 3}};
  const TraceCeiling ceiling = CeilingOf({first, second, first});
  EXPECT_EQ(ceiling.blocks, 9u);
  EXPECT_EQ(ceiling.hits, 4u);
  EXPECT_EQ(ceiling.tokens, 512u + 1100u);
}

}  // namespace
}  // namespace terrace::bench
