// Page keys against the vectors of docs/keys.md, which another implementation computed.
#include "libclient/page_keys.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "base/random.h"

namespace terrace::client {
namespace {

Digest SpaceA() {
  Digest space;
  std::iota(space.bytes.begin(), space.bytes.end(), uint8_t{0});
  return space;
}
Digest SpaceB() {
  Digest space;
  space.bytes.fill(0xff);
  return space;
}
std::vector<uint32_t> Range(uint32_t first, uint32_t last) {
  std::vector<uint32_t> tokens(last - first + 1);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}
std::vector<uint8_t> Bytes(const std::string& text) {
  return {text.begin(), text.end()};
}
std::vector<uint8_t> ByteRange(uint8_t first, size_t count) {
  std::vector<uint8_t> bytes(count);
  std::iota(bytes.begin(), bytes.end(), first);
  return bytes;
}
std::vector<uint32_t> RandomTokens(Random& random, size_t count) {
  std::vector<uint32_t> tokens(count);
  for (uint32_t& token : tokens)
    token = static_cast<uint32_t>(random());
  return tokens;
}

constexpr char kFirst[] = "73db84d04fcf458acd6d17db47ff1207fee98e68236b2fb2b434a71fcbb169eb";

struct Vector {
  Digest space;
  std::string parent;
  std::vector<uint32_t> tokens;
  std::vector<uint8_t> extra;
  std::string key;
};

const std::vector<Vector>& Vectors() {
  static const std::vector<Vector> vectors = {
      {SpaceA(), "", Range(0, 15), {}, kFirst},
      {SpaceA(),
       kFirst,
       Range(1000, 1015),
       {},
       "fa8fd52cf60facb9c766a98366da20374eca11879afe81adb536348b12a05446"},
      {SpaceA(),
       kFirst,
       Range(1000, 1004),
       {},
       "7428034ab293aa79e5668fe644121d7dd06baed7c42ef6cfaaf835df845adfb2"},
      {SpaceA(), "", Range(0, 15), Bytes("image"),
       "89b56103284cc8eb8c6718c7dd070aef59b49377a4fec64a9932e7eaa1e8e461"},
      {SpaceA(), "", {0}, {}, "470c66a41c8f86d0c2d7cc24f3f4a11c041be08de474d2e9a664720246bb1946"},
      {SpaceB(),
       "",
       Range(0, 15),
       {},
       "675cfc987866d2faa7f7c66518e44995a67f83d1c3dbfae92111f17ed5134be7"},
      {SpaceA(),
       "",
       Range(0, 255),
       {},
       "0ddba02ea54534f53801e6152c99ae47f2b7f3b7a5df5e41ce5cb950bb576875"},
      {SpaceA(),
       "",
       std::vector<uint32_t>(16, 4294967295),
       {},
       "08de11369619c738012c2895dfa2eeec921397860d2b90b23cc76f6e0552c8f1"},
      {SpaceA(), "", Range(0, 511), ByteRange(0, 64),
       "666b01e041acc814df5378b93d97243a1cec588bf46d5d58ef2a1a88235f5615"},
  };
  return vectors;
}

TEST(PageKeys, AreThoseOfTheDocumentedVectors) {
  for (const Vector& v : Vectors()) {
    const Digest parent = v.parent.empty() ? Digest() : *Digest::FromHex(v.parent);
    EXPECT_EQ(KeyHasher(v.space).PageKey(parent, v.tokens, v.extra).Hex(), v.key);
  }
}

TEST(PageKeys, ForeignKeysAreThoseOfTheDocumentedVectors) {
  const std::vector<uint8_t> range = ByteRange(32, 32);
  EXPECT_EQ(KeyHasher(SpaceA()).ForeignKey(std::span<const uint8_t, 32>(range)).Hex(),
            "6515377b353ec57bf92a6d76465ea918941545715f7425d39e695ae1e228ae58");
  EXPECT_EQ(KeyHasher(SpaceB()).ForeignKey(std::array<uint8_t, 32>{}).Hex(),
            "f9f63a295f85821d21e1f4dddee5e6f370dba95d0a68d14a2eafb8b660f40e75");
}

TEST(PageSequence, ChainIsThatOfTheDocumentedVector) {
  std::vector<uint32_t> tokens(4096);
  for (uint32_t i = 0; i < 4096; ++i)
    tokens[i] = 7 * i + 3;
  PageSequence sequence(KeyHasher(SpaceA()), 256);
  sequence.Append(tokens);
  ASSERT_EQ(sequence.keys().size(), 16u);
  EXPECT_EQ(sequence.keys().back().Hex(),
            "32464f2cbb63e3fa977ebb2cecd373e2769c4957886bf5ab21d20ebd10b86919");
}

TEST(PageSequence, KeysDoNotDependOnHowTokensArrive) {
  Random random(5);
  const std::vector<uint32_t> tokens = RandomTokens(random, 1000);
  PageSequence whole(KeyHasher(SpaceA()), 16);
  whole.Append(tokens);
  for (int round = 0; round < 20; ++round) {
    PageSequence pieces(KeyHasher(SpaceA()), 16);
    for (size_t at = 0; at < tokens.size();) {
      const size_t count = std::min<size_t>(random.Below(70), tokens.size() - at);
      pieces.Append(std::span(tokens).subspan(at, count));
      at += count;
    }
    ASSERT_TRUE(std::ranges::equal(pieces.keys(), whole.keys()));
    EXPECT_EQ(pieces.partial()->key, whole.partial()->key);
    EXPECT_EQ(pieces.partial()->valid_tokens, 1000u % 16);
  }
}

TEST(PageSequence, PartialPageHasTheKeyOfItsTokensAndNoneWhenFull) {
  const KeyHasher hasher(SpaceA());
  PageSequence sequence(hasher, 16);
  EXPECT_FALSE(sequence.partial());
  sequence.Append(Range(0, 15));
  EXPECT_FALSE(sequence.partial());
  sequence.Append(Range(1000, 1004));
  EXPECT_EQ(sequence.partial()->key.Hex(),
            "7428034ab293aa79e5668fe644121d7dd06baed7c42ef6cfaaf835df845adfb2");
  sequence.Append(Range(1005, 1015));
  EXPECT_FALSE(sequence.partial());
  EXPECT_EQ(sequence.keys()[1].Hex(),
            "fa8fd52cf60facb9c766a98366da20374eca11879afe81adb536348b12a05446");
}

TEST(PageSequence, TruncatedAndGrownAgainItIsAsIfItHadNeverBeenLonger) {
  Random random(6);
  for (int round = 0; round < 50; ++round) {
    const std::vector<uint32_t> tokens = RandomTokens(random, 300);
    const std::vector<uint32_t> other = RandomTokens(random, 100);
    const size_t kept = random.Below(300);
    PageSequence cut(KeyHasher(SpaceA()), 32);
    cut.Append(tokens);
    ASSERT_TRUE(cut.Truncate(kept).ok());
    EXPECT_EQ(cut.tokens(), kept);
    cut.Append(other);
    PageSequence straight(KeyHasher(SpaceA()), 32);
    straight.Append(std::span(tokens).first(kept));
    straight.Append(other);
    EXPECT_TRUE(std::ranges::equal(cut.keys(), straight.keys()));
    EXPECT_EQ(cut.partial().has_value(), straight.partial().has_value());
  }
}

TEST(PageSequence, CannotBeTruncatedToMoreThanThereIs) {
  PageSequence sequence(KeyHasher(SpaceA()), 16);
  sequence.Append(Range(0, 9));
  EXPECT_EQ(sequence.Truncate(11).code(), Code::kInvalidArgument);
  EXPECT_EQ(sequence.tokens(), 10u);
}

TEST(PageSequence, ExtraChangesItsPageAndAllLaterOnes) {
  const KeyHasher hasher(SpaceA());
  PageSequence plain(hasher, 16);
  plain.Append(Range(0, 63));
  PageSequence with(hasher, 16);
  ASSERT_TRUE(with.SetExtra(1, Bytes("wrong")).ok());
  ASSERT_TRUE(with.SetExtra(1, Bytes("image")).ok());
  with.Append(Range(0, 63));
  EXPECT_EQ(with.keys()[0], plain.keys()[0]);
  EXPECT_EQ(with.keys()[1], hasher.PageKey(plain.keys()[0], Range(16, 31), Bytes("image")));
  EXPECT_NE(with.keys()[2], plain.keys()[2]);
  EXPECT_EQ(with.SetExtra(3, Bytes("late")).code(), Code::kInvalidArgument);
}

TEST(PageSequence, TruncationKeepsTheExtraOfThePageThatIsCut) {
  PageSequence sequence(KeyHasher(SpaceA()), 16);
  ASSERT_TRUE(sequence.SetExtra(1, Bytes("image")).ok());
  ASSERT_TRUE(sequence.SetExtra(2, Bytes("later")).ok());
  sequence.Append(Range(0, 47));
  const Digest second = sequence.keys()[1];
  const Digest third = sequence.keys()[2];
  ASSERT_TRUE(sequence.Truncate(20).ok());
  sequence.Append(Range(20, 47));
  EXPECT_EQ(sequence.keys()[1], second);
  EXPECT_NE(sequence.keys()[2], third) << "the extra of a page that was cut off whole is gone";
}

}  // namespace
}  // namespace terrace::client
