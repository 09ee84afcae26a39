// Every way in which a safetensors header can be wrong, each in a real file.
#include <gmock/gmock.h>

#include "tests/source/files.h"
#include "tiers/source/safetensors.h"

namespace terrace {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

struct Malformed {
  std::string name;
  std::string contents;
  std::string says;  // Part of the message.
};
void PrintTo(const Malformed& malformed, std::ostream* out) {
  *out << malformed.name;
}

std::string Header(const std::vector<std::string>& entries) {
  std::string header = "{";
  for (const std::string& entry : entries)
    header += (header.size() > 1 ? "," : "") + entry;
  return header + "}";
}

std::string Eight() {
  return std::string(8, 'x');
}

// One tensor 'a' of 8 bytes, with `field` in place of the right one.
std::string WithDtype(const std::string& dtype) {
  return FileOf(R"({"a":{"dtype":)" + dtype + R"(,"shape":[8],"data_offsets":[0,8]}})", Eight());
}
std::string WithShape(const std::string& shape) {
  return FileOf(R"({"a":{"dtype":"U8","shape":)" + shape + R"(,"data_offsets":[0,8]}})", Eight());
}
std::string WithOffsets(const std::string& offsets) {
  return FileOf(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":)" + offsets + "}}", Eight());
}

std::vector<Malformed> MalformedFiles() {
  const std::string good = Header({Entry("a", "U8", "[8]", 0, 8)});
  const std::string two_names =
      Header({Entry("a", "U8", "[4]", 0, 4), Entry("a", "U8", "[4]", 4, 8)});
  return {
      {"Empty", "", "the file is empty"},
      {"ShorterThanTheLength", "abcde", "truncated: 5 bytes"},
      {"LengthBeyondTheFile", FileOf(good, "", 4096), "header length: the file is truncated"},
      {"LengthOver100MB", FileOf(good, Eight(), 100'000'001), "header length: 100000001 is over"},
      {"LengthOf64Bits", FileOf(good, Eight(), UINT64_MAX), "is over the limit"},
      {"LengthZero", FileOf("", Eight()), "header: does not start with '{'"},
      {"DataCutShort", FileOf(good, "1234567"), "end 8 is beyond the data of 7 bytes"},
      {"DataMissing", FileOf(good, ""), "end 8 is beyond the data of 0 bytes"},
      {"TrailingBytes", FileOf(good, "123456789"), "1 bytes at the end of the file belong to no"},
      {"NoTensorsButData", FileOf("{}", Eight()), "8 bytes at the end of the file"},

      {"NotJson", FileOf("{\"a\":", Eight()), "not valid JSON at byte"},
      {"GarbageAfterTheObject", FileOf(good + "x", Eight()), "not valid JSON"},
      {"SecondObject", FileOf(good + "{}", Eight()), "not valid JSON"},
      {"ZeroByteAfterTheObject", FileOf(good + std::string(1, '\0'), Eight()), "a zero byte"},
      {"AnArray", FileOf("[]", Eight()), "does not start with '{'"},
      {"AString", FileOf("\"abc\"", Eight()), "does not start with '{'"},
      {"ByteOrderMark", FileOf("\xef\xbb\xbf" + good, Eight()), "does not start with '{'"},
      {"NotUtf8", FileOf(Header({Entry("a\xff", "U8", "[8]", 0, 8)}), Eight()), "UTF-8"},
      {"CutUtf8", FileOf(Header({Entry("a\xe4\xb8", "U8", "[8]", 0, 8)}), Eight()), "UTF-8"},
      {"LoneSurrogate", FileOf(Header({Entry("\\ud800", "U8", "[8]", 0, 8)}), Eight()),
       "not valid JSON"},
      {"DeeplyNested", FileOf("{\"a\":" + std::string(100'000, '['), Eight()), "is an array, not"},

      {"TensorIsNoObject", FileOf("{\"a\":1}", Eight()), "tensor 'a' is a number, not an object"},
      {"TensorIsNull", FileOf("{\"a\":null}", Eight()), "tensor 'a' is null"},
      {"TensorIsAnArray", FileOf("{\"a\":[]}", Eight()), "tensor 'a' is an array"},
      {"DuplicateTensor", FileOf(two_names, Eight()), "duplicate tensor name 'a'"},
      {"DuplicateThroughEscape",
       FileOf(Header({Entry("a", "U8", "[4]", 0, 4), Entry("\\u0061", "U8", "[4]", 4, 8)}),
              Eight()),
       "duplicate tensor name 'a'"},
      {"NameEmpty", FileOf(Header({Entry("", "U8", "[8]", 0, 8)}), Eight()), "name is empty"},
      {"NameWithControlCharacter", FileOf(Header({Entry("a\\u0007b", "U8", "[8]", 0, 8)}), Eight()),
       "tensor 'a\\x07b': the name has a control character"},
      {"NameTooLong", FileOf(Header({Entry(std::string(5000, 'n'), "U8", "[8]", 0, 8)}), Eight()),
       "the name is longer than 4096"},
      {"UnknownMember",
       FileOf(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8],"scale":2}})", Eight()),
       "unknown member 'scale'"},
      {"DuplicateMember",
       FileOf(R"({"a":{"dtype":"U8","dtype":"I8","shape":[8],"data_offsets":[0,8]}})", Eight()),
       "duplicate member 'dtype'"},
      {"NoDtype", FileOf(R"({"a":{"shape":[8],"data_offsets":[0,8]}})", Eight()),
       "tensor 'a': dtype is missing"},
      {"NoShape", FileOf(R"({"a":{"dtype":"U8","data_offsets":[0,8]}})", Eight()),
       "tensor 'a': shape is missing"},
      {"NoOffsets", FileOf(R"({"a":{"dtype":"U8","shape":[8]}})", Eight()),
       "tensor 'a': data_offsets is missing"},

      {"DtypeUnknown", WithDtype("\"F12\""), "dtype 'F12' is unknown"},
      {"DtypeLowerCase", WithDtype("\"u8\""), "dtype 'u8' is unknown"},
      {"DtypeEmpty", WithDtype("\"\""), "dtype '' is unknown"},
      {"DtypeNumber", WithDtype("8"), "dtype is a number, not a string"},
      {"DtypeF4", WithDtype("\"F4\""), "'F4' has elements of less than a byte"},
      {"DtypeF6", WithDtype("\"F6_E2M3\""), "'F6_E2M3' has elements of less than a byte"},

      {"ShapeProductTooSmall", WithShape("[7]"), "8 bytes, but dtype and shape make 7"},
      {"ShapeProductTooLarge", WithShape("[3,3]"), "8 bytes, but dtype and shape make 9"},
      {"ShapeOverflows", WithShape("[4294967296,4294967296,2]"),
       "overflows 64 bits at dimension 1"},
      // 2^64 + 8 would be 8 again.
      {"ShapeWrapsToTheRightSize", WithShape("[8,2305843009213693953]"), "overflows 64 bits"},
      {"ShapeNegative", WithShape("[-8]"), "shape is a negative number"},
      {"ShapeFraction", WithShape("[8.0]"), "shape is a number that is not an integer"},
      {"ShapeBeyond64Bits", WithShape("[18446744073709551616]"), "not an integer below 2^64"},
      {"ShapeString", WithShape("[\"8\"]"), "shape is a string"},
      {"ShapeNested", WithShape("[[8]]"), "shape is an array"},
      {"ShapeNoArray", WithShape("8"), "shape is a number, not an array"},
      {"RankOverTheLimit", WithShape("[1,1,1,1,1,1,1,1,8]"), "shape has more than 8 dimensions"},

      {"OffsetsBackwards", WithOffsets("[8,0]"), "begin 8 is after end 0"},
      {"OffsetsOutOfRange", WithOffsets("[8,16]"), "end 16 is beyond the data of 8 bytes"},
      {"OffsetsWrap", WithOffsets("[18446744073709551608,18446744073709551615]"),
       "7 bytes, but dtype and shape make 8"},
      {"OffsetsOne", WithOffsets("[8]"), "data_offsets has not two numbers"},
      {"OffsetsThree", WithOffsets("[0,8,8]"), "data_offsets has more than two numbers"},
      {"OffsetsNegative", WithOffsets("[-1,8]"), "data_offsets is a negative number"},
      {"OffsetsObject", WithOffsets("{}"), "data_offsets is an object"},
      {"HoleAtTheStart", FileOf(Header({Entry("a", "U8", "[4]", 4, 8)}), Eight()),
       "tensor 'a': data_offsets: leave a hole of 4 bytes at 0"},
      {"HoleInTheMiddle",
       FileOf(Header({Entry("a", "U8", "[2]", 0, 2), Entry("b", "U8", "[4]", 4, 8)}), Eight()),
       "tensor 'b': data_offsets: leave a hole of 2 bytes at 2"},
      {"Overlap",
       FileOf(Header({Entry("a", "U8", "[5]", 0, 5), Entry("b", "U8", "[4]", 4, 8)}), Eight()),
       "tensor 'b': data_offsets: overlap those of 'a' by 1 bytes"},
      {"SameRangeTwice",
       FileOf(Header({Entry("a", "U8", "[8]", 0, 8), Entry("b", "U8", "[8]", 0, 8)}), Eight()),
       "overlap"},
      {"EmptyTensorInsideAnother",
       FileOf(Header({Entry("a", "U8", "[8]", 0, 8), Entry("b", "U8", "[0]", 4, 4)}), Eight()),
       "tensor 'b': data_offsets: overlap"},
      {"EmptyTensorBeyondTheEnd",
       FileOf(Header({Entry("a", "U8", "[8]", 0, 8), Entry("b", "U8", "[0]", 9, 9)}), Eight()),
       "end 9 is beyond"},

      {"MetadataNoObject", FileOf(R"({"__metadata__":"pt"})", ""), "__metadata__ is a string"},
      {"MetadataNumber", FileOf(R"({"__metadata__":{"format":1}})", ""),
       "__metadata__: 'format' is a number, not a string"},
      {"MetadataNested", FileOf(R"({"__metadata__":{"format":{}}})", ""),
       "__metadata__: 'format' is an object, not a string"},
      {"MetadataNull", FileOf(R"({"__metadata__":{"format":null}})", ""), "'format' is null"},
      {"MetadataTwice", FileOf(R"({"__metadata__":{},"__metadata__":{}})", ""),
       "duplicate name '__metadata__'"},
      {"MetadataDuplicateKey", FileOf(R"({"__metadata__":{"a":"1","a":"2"}})", ""),
       "__metadata__: duplicate name 'a'"},
  };
}

class MalformedFile : public testing::TestWithParam<Malformed> {};

TEST_P(MalformedFile, IsRefusedNamingFileAndField) {
  const TemporaryDirectory directory;
  SourceOpener opener;
  const std::string path = directory.Write("m.safetensors", GetParam().contents);
  const auto opened = opener.OpenPaths({path});
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().code(), Code::kInvalidArgument);
  EXPECT_THAT(opened.error().message(), StartsWith(path + ": "));
  EXPECT_THAT(opened.error().message(), HasSubstr(GetParam().says));
  EXPECT_LT(opened.error().message().size(), 1000u);
  for (const char c : opened.error().message())
    EXPECT_TRUE(c >= 0x20 && c < 0x7f) << "byte " << static_cast<int>(c);
}

INSTANTIATE_TEST_SUITE_P(Header, MalformedFile, testing::ValuesIn(MalformedFiles()),
                         [](const auto& tested) { return tested.param.name; });

TEST(Header, TooManyMetadataEntriesAreRefused) {
  std::string header = "{\"__metadata__\":{";
  for (size_t i = 0; i <= kMaxMetadataEntries; ++i)
    header += (i > 0 ? ",\"" : "\"") + std::to_string(i) + "\":\"\"";
  const auto parsed = ParseSafetensorsHeader(header + "}}", 0, 0);
  ASSERT_FALSE(parsed.has_value());
  EXPECT_THAT(parsed.error().message(), HasSubstr("more than 65536 entries"));
}

TEST(Header, TooManyTensorsAreRefused) {
  std::string header = "{";
  for (size_t i = 0; i <= kMaxSourceTensors; ++i)
    header += (i > 0 ? "," : "") + Entry(std::to_string(i), "U8", "[0]", 0, 0);
  const auto parsed = ParseSafetensorsHeader(header + "}", 0, 0);
  ASSERT_FALSE(parsed.has_value());
  EXPECT_THAT(parsed.error().message(), HasSubstr("more than 262144 tensors"));
}

TEST(Header, TellsWhereEachTensorLies) {
  const TemporaryDirectory directory;
  SourceOpener opener;
  // Not in the order of the data, with padding as real writers leave it.
  const std::string header =
      Header({R"("__metadata__":{"format":"pt"})", Entry("second", "BF16", "[2,2]", 4, 12),
              Entry("first", "F32", "[]", 0, 4)}) +
      "   ";
  const std::string path = directory.Write("m.safetensors", FileOf(header, "ABCDEFGHIJKL"));
  const auto opened = opener.OpenPaths({path});
  ASSERT_TRUE(opened.has_value()) << opened.error().ToString();
  const auto& tensors = (*opened)->tensors();
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[0].name, "first");
  EXPECT_EQ(tensors[0].dtype, "F32");
  EXPECT_TRUE(tensors[0].shape.empty());
  EXPECT_EQ(tensors[0].bytes, 4u);
  EXPECT_EQ(tensors[0].file_offset, 8 + header.size());
  EXPECT_EQ(tensors[1].name, "second");
  EXPECT_EQ(tensors[1].shape, (std::vector<uint64_t>{2, 2}));
  EXPECT_EQ(tensors[1].file_offset, 8 + header.size() + 4);
}

TEST(Header, EmptyTensorsAreLegal) {
  const std::string header = Header({Entry("z", "F64", "[0]", 8, 8), Entry("a", "U8", "[8]", 0, 8),
                                     Entry("b", "I64", "[3,0,5]", 0, 0)});
  const auto parsed = ParseSafetensorsHeader(header, 8, 0);
  ASSERT_TRUE(parsed.has_value()) << parsed.error().ToString();
  EXPECT_EQ(parsed->size(), 3u);
}

TEST(Header, EveryDtypeHasItsSize) {
  const std::vector<std::pair<std::string, uint64_t>> dtypes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},     {"U32", 4},
      {"F32", 4},  {"F64", 8}, {"I64", 8}, {"U64", 8},
  };
  for (const auto& [dtype, bytes] : dtypes) {
    const auto parsed =
        ParseSafetensorsHeader(Header({Entry("a", dtype, "[3]", 0, 3 * bytes)}), 3 * bytes, 0);
    EXPECT_TRUE(parsed.has_value()) << dtype;
    EXPECT_FALSE(ParseSafetensorsHeader(Header({Entry("a", dtype, "[3]", 0, 3 * bytes + 1)}),
                                        3 * bytes + 1, 0)
                     .has_value())
        << dtype;
  }
}

TEST(Header, EightDimensionsAreLegal) {
  EXPECT_TRUE(ParseSafetensorsHeader(Header({Entry("a", "U8", "[1,1,1,1,1,1,1,8]", 0, 8)}), 8, 0)
                  .has_value());
}

}  // namespace
}  // namespace terrace
