#include "base/digest.h"

#include <gtest/gtest.h>

#include <string>

namespace terrace {
namespace {

std::string HashHex(std::string_view text) {
  return Sha256().Update(text).Finish().Hex();
}

TEST(Sha256, MatchesTheExamplesOfFips180) {
  EXPECT_EQ(HashHex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(HashHex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(HashHex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(HashHex(std::string(1'000'000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, PiecesHashLikeTheWhole) {
  const std::string text(1000, 'x');
  for (const size_t piece : {1u, 63u, 64u, 65u, 999u}) {
    Sha256 hash;
    for (size_t at = 0; at < text.size(); at += piece) {
      hash.Update(std::string_view(text).substr(at, piece));
    }
    EXPECT_EQ(hash.Finish().Hex(), HashHex(text)) << piece;
  }
}

TEST(Sha256, CopyInTheMiddleContinuesAlone) {
  Sha256 prefix;
  prefix.Update("common start, longer than one block of the hash function, which is 64 bytes; ");
  Sha256 one = prefix;
  Sha256 other = prefix;
  const Digest first = one.Update("one").Finish();
  EXPECT_NE(other.Update("other").Finish(), first);
  EXPECT_EQ(prefix.Update("one").Finish(), first);
}

TEST(Sha256, NumbersAreLittleEndianAndFieldsCarryTheirLength) {
  const std::string four("\x04\x03\x02\x01", 4);
  EXPECT_EQ(Sha256().UpdateU32(0x01020304).Finish().Hex(), HashHex(four));
  const std::string eight("\x08\x07\x06\x05\x04\x03\x02\x01", 8);
  EXPECT_EQ(Sha256().UpdateU64(0x0102030405060708).Finish().Hex(), HashHex(eight));
  EXPECT_EQ(Sha256().UpdateField("ab").Finish().Hex(),
            HashHex(std::string("\x02\0\0\0\0\0\0\0ab", 10)));
  EXPECT_NE(Sha256().UpdateField("ab").UpdateField("c").Finish(),
            Sha256().UpdateField("a").UpdateField("bc").Finish());
}

TEST(Digest, HexGoesBothWaysAndBadHexIsRefused) {
  const Digest digest = Sha256().Update("abc").Finish();
  EXPECT_EQ(Digest::FromHex(digest.Hex()), digest);
  EXPECT_FALSE(Digest::FromHex(digest.Hex().substr(1)).has_value());
  EXPECT_FALSE(Digest::FromHex(digest.Hex() + "0").has_value());
  std::string wrong = digest.Hex();
  wrong[10] = 'g';
  EXPECT_FALSE(Digest::FromHex(wrong).has_value());
  EXPECT_TRUE(Digest().IsZero());
  EXPECT_FALSE(digest.IsZero());
}

}  // namespace
}  // namespace terrace
