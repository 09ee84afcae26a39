#include "tiers/source/weight_files.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>

#include "base/random.h"
#include "tests/source/files.h"
#include "tiers/source/safetensors.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr uint64_t kMiB = 1u << 20;

std::string Bytes(size_t count, uint64_t seed) {
  Random random(seed);
  std::string bytes(count, '\0');
  for (char& byte : bytes)
    byte = static_cast<char>(random());
  return bytes;
}

std::string OneTensorFile(const std::string& name, const std::string& data) {
  return FileOf(
      "{" + Entry(name, "U8", "[" + std::to_string(data.size()) + "]", 0, data.size()) + "}", data);
}

std::string IndexOf(const std::string& weight_map) {
  return R"({"metadata":{"total_size":1},"weight_map":)" + weight_map + "}";
}

class WeightFilesTest : public testing::Test {
 protected:
  SourceRequest Passing(const std::string& path, int flags) {
    SourceRequest request;
    request.paths = {path};
    request.fds.emplace_back(open(path.c_str(), flags | O_CLOEXEC));
    EXPECT_TRUE(static_cast<bool>(request.fds[0])) << path;
    return request;
  }
  void ExpectRefused(SourceRequest request, Code code, const std::string& says) {
    const auto opened = opener_.Open(std::move(request));
    ASSERT_FALSE(opened.has_value());
    EXPECT_EQ(opened.error().code(), code);
    EXPECT_THAT(opened.error().message(), HasSubstr(says));
  }

  const TemporaryDirectory directory_;
  SourceOpener opener_;
};

// ---- What may be passed -------------------------------------------------------------------------

TEST_F(WeightFilesTest, PassedDescriptorIsReadAndIsReopenable) {
  const std::string path = directory_.Write("m.safetensors", OneTensorFile("a", "abcd"));
  const auto opened = opener_.Open(Passing(path, O_RDONLY));
  ASSERT_TRUE(opened.has_value()) << opened.error().ToString();
  const SourceFile& file = (*opened)->files()[0];
  EXPECT_EQ(file.path, path);
  EXPECT_TRUE(file.reopenable) << file.why_not;
  EXPECT_EQ(file.bytes, OneTensorFile("a", "abcd").size());
}

TEST_F(WeightFilesTest, DescriptorOfAnotherFileThanThePathIsNotReopenable) {
  const std::string path = directory_.Write("m.safetensors", OneTensorFile("a", "abcd"));
  SourceRequest request = Passing(path, O_RDONLY);
  directory_.Write("other", OneTensorFile("a", "abcd"));
  ASSERT_EQ(rename((directory_ / "other").c_str(), path.c_str()), 0);
  const auto opened = opener_.Open(std::move(request));
  ASSERT_TRUE(opened.has_value()) << opened.error().ToString();
  EXPECT_FALSE((*opened)->files()[0].reopenable);
  EXPECT_THAT((*opened)->files()[0].why_not, HasSubstr("is another file"));
}

TEST_F(WeightFilesTest, DescriptorWhosePathIsGoneIsNotReopenable) {
  const std::string path = directory_.Write("m.safetensors", OneTensorFile("a", "abcd"));
  SourceRequest request = Passing(path, O_RDONLY);
  ASSERT_EQ(unlink(path.c_str()), 0);
  const auto opened = opener_.Open(std::move(request));
  ASSERT_TRUE(opened.has_value()) << opened.error().ToString();
  EXPECT_FALSE((*opened)->files()[0].reopenable);
  EXPECT_THAT((*opened)->files()[0].why_not, HasSubstr(path + ": cannot be found"));
}

TEST_F(WeightFilesTest, PathThatBecameAFifoIsNotWaitedFor) {
  const std::string path = directory_.Write("m.safetensors", OneTensorFile("a", "abcd"));
  SourceRequest request = Passing(path, O_RDONLY);
  ASSERT_EQ(unlink(path.c_str()), 0);
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  const auto opened = opener_.Open(std::move(request));
  ASSERT_TRUE(opened.has_value()) << opened.error().ToString();
  EXPECT_THAT((*opened)->files()[0].why_not, HasSubstr("is a FIFO"));
}

TEST_F(WeightFilesTest, ReadWriteDescriptorIsAccepted) {
  const std::string path = directory_.Write("m.safetensors", OneTensorFile("a", "abcd"));
  EXPECT_TRUE(opener_.Open(Passing(path, O_RDWR)).has_value());
}

TEST_F(WeightFilesTest, WriteOnlyDescriptorIsRefused) {
  const std::string path = directory_.Write("m.safetensors", OneTensorFile("a", "abcd"));
  ExpectRefused(Passing(path, O_WRONLY), Code::kInvalidArgument,
                path + ": the descriptor is open for writing only");
}

TEST_F(WeightFilesTest, PathOnlyDescriptorIsRefused) {
  const std::string path = directory_.Write("m.safetensors", OneTensorFile("a", "abcd"));
  ExpectRefused(Passing(path, O_PATH), Code::kInvalidArgument, "O_PATH");
}

TEST_F(WeightFilesTest, DirectoryIsRefused) {
  ExpectRefused(Passing(directory_.path(), O_RDONLY | O_DIRECTORY), Code::kInvalidArgument,
                "is a directory, not a regular file");
}

TEST_F(WeightFilesTest, FifoIsRefused) {
  ASSERT_EQ(mkfifo((directory_ / "fifo").c_str(), 0600), 0);
  ExpectRefused(Passing(directory_ / "fifo", O_RDWR), Code::kInvalidArgument, "is a FIFO");
  ExpectRefused({.paths = {directory_ / "fifo"}, .fds = {}, .index = ""}, Code::kInvalidArgument,
                "is a FIFO");
}

TEST_F(WeightFilesTest, SocketIsRefused) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const UniqueFd other(pair[1]);
  SourceRequest request;
  request.paths = {"/somewhere/m.safetensors"};
  request.fds.emplace_back(pair[0]);
  ExpectRefused(std::move(request), Code::kInvalidArgument, "is a socket");
}

TEST_F(WeightFilesTest, DeviceIsRefused) {
  ExpectRefused(Passing("/dev/zero", O_RDONLY), Code::kInvalidArgument, "is a character device");
  ExpectRefused({.paths = {"/dev/zero"}, .fds = {}, .index = ""}, Code::kInvalidArgument,
                "is a character device");
}

TEST_F(WeightFilesTest, MissingFileIsNotFound) {
  ExpectRefused({.paths = {directory_ / "none"}, .fds = {}, .index = ""}, Code::kNotFound,
                directory_ / "none");
}

TEST_F(WeightFilesTest, RequestsThatMakeNoSenseAreRefused) {
  const std::string path = directory_.Write("m.safetensors", OneTensorFile("a", "abcd"));
  ExpectRefused({}, Code::kInvalidArgument, "files: none");
  ExpectRefused({.paths = {"m.safetensors"}, .fds = {}, .index = ""}, Code::kInvalidArgument,
                "'m.safetensors' is not an absolute path");
  ExpectRefused({.paths = {path + std::string(1, '\0')}, .fds = {}, .index = ""},
                Code::kInvalidArgument, "is not an absolute path");
  SourceRequest too_few = Passing(path, O_RDONLY);
  too_few.paths.push_back(path);
  ExpectRefused(std::move(too_few), Code::kInvalidArgument, "2 paths but 1 descriptors");
  ExpectRefused(
      {.paths = std::vector<std::string>(kMaxSourceFiles + 1, path), .fds = {}, .index = ""},
      Code::kInvalidArgument, "more than 4096");
}

TEST_F(WeightFilesTest, TooManyBytesOfNamesInAllFilesAreRefused) {
  SourceRequest request;
  const size_t half = kMaxSourceNameBytes / kMaxTensorNameBytes / 2;
  for (const char* file : {"a", "b", "c"}) {
    std::string header = "{";
    for (size_t i = 0; i < half; ++i) {
      std::string name = file + std::to_string(i);
      name.resize(kMaxTensorNameBytes, 'x');
      header += (i > 0 ? "," : "") + Entry(name, "U8", "[0]", 0, 0);
    }
    if (*file == 'c') header = "{" + Entry("c", "U8", "[0]", 0, 0);
    request.paths.push_back(directory_.Write(file, FileOf(header + "}", "")));
  }
  SourceRequest all_but_one;
  all_but_one.paths = {request.paths[0], request.paths[1]};
  EXPECT_TRUE(opener_.Open(std::move(all_but_one)).has_value());
  ExpectRefused(std::move(request), Code::kInvalidArgument, "bytes of tensor names in all files");
}

TEST_F(WeightFilesTest, FullPoolRefusesInsteadOfWaiting) {
  // The only worker is busy and its queue full.
  std::mutex mutex;
  std::condition_variable changed;
  bool go_on = false;
  bool busy = false;
  SourceOpener opener({.name = "full", .threads = 1, .queue_limit = 1});
  ASSERT_TRUE(opener.pool()
                  .Submit([&] {
                    std::unique_lock lock(mutex);
                    busy = true;
                    changed.notify_all();
                    changed.wait(lock, [&] { return go_on; });
                  })
                  .ok());
  {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return busy; });
  }
  ASSERT_TRUE(opener.pool().Submit([] {}).ok());
  const auto opened = opener.OpenPaths({"/nowhere"});
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().code(), Code::kExhausted);
  {
    const std::lock_guard lock(mutex);
    go_on = true;
  }
  changed.notify_all();
}

// ---- Shards -------------------------------------------------------------------------------------

class Shards : public WeightFilesTest {
 protected:
  Shards() {
    one_ = directory_.Write("one.safetensors", OneTensorFile("a", "aaaa"));
    two_ = directory_.Write("two.safetensors", OneTensorFile("b", "bbbb"));
  }
  void ExpectIndexRefused(const std::string& index, const std::string& says) {
    const auto opened = opener_.OpenPaths({one_, two_}, index);
    ASSERT_FALSE(opened.has_value());
    EXPECT_EQ(opened.error().code(), Code::kInvalidArgument);
    EXPECT_THAT(opened.error().message(), HasSubstr("index: "));
    EXPECT_THAT(opened.error().message(), HasSubstr(says));
  }
  std::string one_;
  std::string two_;
};

TEST_F(Shards, AgreeingIndexIsAccepted) {
  const auto opened =
      opener_.OpenPaths({one_, two_}, IndexOf(R"({"b":"two.safetensors","a":"one.safetensors"})"));
  ASSERT_TRUE(opened.has_value()) << opened.error().ToString();
  ASSERT_EQ((*opened)->tensors().size(), 2u);
  EXPECT_EQ((*opened)->tensors()[1].file, 1u);
}

TEST_F(Shards, NeedNoIndex) {
  EXPECT_TRUE(opener_.OpenPaths({one_, two_}).has_value());
}

TEST_F(Shards, TensorInTwoShardsIsRefused) {
  const std::string three = directory_.Write("three.safetensors", OneTensorFile("a", "cccc"));
  const auto opened = opener_.OpenPaths({one_, two_, three});
  ASSERT_FALSE(opened.has_value());
  EXPECT_THAT(opened.error().message(), HasSubstr(three + ": header: duplicate tensor name 'a'"));
  EXPECT_THAT(opened.error().message(), HasSubstr("also in " + one_));
}

TEST_F(Shards, IndexThatListsAnAbsentTensorIsRefused) {
  ExpectIndexRefused(
      IndexOf(R"({"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"})"),
      "tensor 'c' is not in 'two.safetensors', nor in another file");
}

TEST_F(Shards, IndexThatNamesTheWrongShardIsRefused) {
  ExpectIndexRefused(IndexOf(R"({"a":"two.safetensors","b":"two.safetensors"})"),
                     "tensor 'a' is not in 'two.safetensors' but in 'one.safetensors'");
}

TEST_F(Shards, TensorThatTheIndexDoesNotListIsRefused) {
  ExpectIndexRefused(IndexOf(R"({"a":"one.safetensors"})"),
                     "tensor 'b' of 'two.safetensors' is not listed");
}

TEST_F(Shards, IndexThatNamesAnotherFileIsRefused) {
  ExpectIndexRefused(IndexOf(R"({"a":"one.safetensors","b":"three.safetensors"})"),
                     "'three.safetensors', which is not among the files");
}

TEST_F(Shards, FileThatTheIndexDoesNotNameIsRefused) {
  const std::string empty = directory_.Write("empty.safetensors", FileOf("{}", ""));
  const auto opened = opener_.OpenPaths(
      {one_, two_, empty}, IndexOf(R"({"a":"one.safetensors","b":"two.safetensors"})"));
  ASSERT_FALSE(opened.has_value());
  EXPECT_THAT(opened.error().message(), HasSubstr("names no tensor in 'empty.safetensors'"));
}

TEST_F(Shards, MalformedIndexIsRefused) {
  ExpectIndexRefused("{", "not valid JSON");
  ExpectIndexRefused("[]", "does not start with '{'");
  ExpectIndexRefused("{}", "weight_map is missing");
  ExpectIndexRefused(R"({"weight_map":[]})", "weight_map is an array");
  ExpectIndexRefused(R"({"weight_map":"x"})", "weight_map is a string");
  ExpectIndexRefused(R"({"weight_map":{},"weight_map":{}})", "duplicate member 'weight_map'");
  ExpectIndexRefused(IndexOf(R"({"a":1})"), "tensor 'a' is a number");
  ExpectIndexRefused(IndexOf(R"({"a":{}})"), "tensor 'a' is an object");
  ExpectIndexRefused(IndexOf(R"({"a":["x"]})"), "tensor 'a' is an array");
  ExpectIndexRefused(IndexOf(R"({"a":"x","a":"x"})"), "duplicate tensor name 'a'");
  ExpectIndexRefused(IndexOf(R"({"a":"../one.safetensors"})"), "is not a plain file name");
  ExpectIndexRefused(IndexOf(R"({"a":".."})"), "is not a plain file name");
  ExpectIndexRefused(IndexOf(R"({"a":""})"), "is not a plain file name");
  ExpectIndexRefused(R"({"x":)" + std::string(1000, '['), "nested deeper than");
}

// ---- Reading ------------------------------------------------------------------------------------

TEST_F(WeightFilesTest, ReadsAnyPieceOfAnyTensor) {
  // Larger than one worker's share, so that several work, and pieces far smaller.
  const std::string big = Bytes(20 * kMiB + 3, 1);
  const std::string small = Bytes(100'000, 2);
  const auto opened = opener_.OpenPaths({directory_.Write("one", OneTensorFile("big", big)),
                                         directory_.Write("two", OneTensorFile("small", small))});
  ASSERT_TRUE(opened.has_value()) << opened.error().ToString();

  std::string all(big.size(), '\0');
  std::vector<WeightPiece> pieces = {
      {.tensor = 0, .offset = 0, .into = {reinterpret_cast<uint8_t*>(all.data()), all.size()}}};
  std::string parts(small.size(), '\0');
  for (size_t at = 0; at < small.size(); at += 77) {
    pieces.push_back({.tensor = 1,
                      .offset = at,
                      .into = {reinterpret_cast<uint8_t*>(parts.data()) + at,
                               std::min<size_t>(77, small.size() - at)}});
  }
  const Status read = opener_.Read(**opened, std::move(pieces));
  ASSERT_TRUE(read.ok()) << read.ToString();
  EXPECT_TRUE(all == big);
  EXPECT_TRUE(parts == small);
}

TEST_F(WeightFilesTest, ReadOfNothingCompletes) {
  const auto opened =
      opener_.OpenPaths({directory_.Write("m.safetensors", OneTensorFile("a", "abcd"))});
  ASSERT_TRUE(opened.has_value());
  EXPECT_TRUE(opener_.Read(**opened, {}).ok());
}

TEST_F(WeightFilesTest, FileCutAfterItWasOpenedIsDataLoss) {
  const std::string path =
      directory_.Write("m.safetensors", OneTensorFile("a", Bytes(40 * kMiB, 3)));
  const auto opened = opener_.OpenPaths({path});
  ASSERT_TRUE(opened.has_value()) << opened.error().ToString();
  ASSERT_EQ(truncate(path.c_str(), 30 * kMiB), 0);
  std::vector<uint8_t> memory(40 * kMiB);
  const Status read = opener_.Read(**opened, {{.tensor = 0, .offset = 0, .into = memory}});
  EXPECT_EQ(read.code(), Code::kDataLoss);
  EXPECT_THAT(read.message(), HasSubstr(path + ": the file became shorter: nothing is left at"));
}

TEST_F(WeightFilesTest, FileReplacedAfterItWasOpenedKeepsItsBytes) {
  const std::string path = directory_.Write("m.safetensors", OneTensorFile("a", "abcd"));
  const auto opened = opener_.OpenPaths({path});
  ASSERT_TRUE(opened.has_value());
  directory_.Write("new", OneTensorFile("a", "wxyz"));
  ASSERT_EQ(rename((directory_ / "new").c_str(), path.c_str()), 0);
  std::string memory(4, '\0');
  ASSERT_TRUE(opener_
                  .Read(**opened, {{.tensor = 0,
                                    .offset = 0,
                                    .into = {reinterpret_cast<uint8_t*>(memory.data()), 4}}})
                  .ok());
  EXPECT_EQ(memory, "abcd");
}

TEST_F(WeightFilesTest, SourceMayBeDroppedWhileItReads) {
  const std::string data = Bytes(32 * kMiB, 4);
  auto opened = opener_.OpenPaths({directory_.Write("m.safetensors", OneTensorFile("a", data))});
  ASSERT_TRUE(opened.has_value());
  std::string memory(data.size(), '\0');
  std::optional<Result<BlockBytes>> read;
  (*opened)->Read(
      {.memory = {},
       .pieces = {{.tensor = 0,
                   .offset = 0,
                   .into = {reinterpret_cast<uint8_t*>(memory.data()), memory.size()}}}},
      [&read](Result<BlockBytes> result) { read = std::move(result); });
  opened->reset();
  ASSERT_TRUE(opener_.executor().RunUntil([&] { return read.has_value(); }));
  EXPECT_TRUE(read->has_value());
  EXPECT_TRUE(memory == data);
}

TEST_F(WeightFilesTest, HashIsOfTheConcatenation) {
  const auto opened =
      opener_.OpenPaths({directory_.Write("m.safetensors", OneTensorFile("a", "abcd"))});
  ASSERT_TRUE(opened.has_value());
  const std::string text = "the quick brown fox";
  const std::span<const uint8_t> bytes(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  const auto hashed =
      opener_.Hash(**opened, {bytes.first(3), bytes.subspan(3, 0), bytes.subspan(3)});
  ASSERT_TRUE(hashed.has_value());
  EXPECT_EQ(*hashed, Sha256::Of(bytes));
}

// ---- What the hub published

class HubCacheTest : public WeightFilesTest {
 protected:
  // A blob of that name, as a snapshot links to it.
  std::string Snapshot(const std::string& blob) {
    directory_.Write("model/blobs/" + blob, contents_);
    const std::string folder = directory_ / "model/snapshots/0123abcd";
    std::filesystem::create_directories(folder);
    const std::string link = folder + "/model.safetensors";
    std::filesystem::create_symlink("../../blobs/" + blob, link);
    return link;
  }
  const std::string data_ = Bytes(300'000, 9);
  const std::string contents_ = OneTensorFile("t", data_);
};

TEST_F(HubCacheTest, ABlobIsNamedByItsDigest) {
  const Digest digest = Sha256().Update(contents_).Finish();
  const std::string link = Snapshot(digest.Hex());
  const auto by_path = opener_.OpenPaths({link});
  ASSERT_TRUE(by_path.has_value()) << by_path.error().ToString();
  EXPECT_EQ((*by_path)->files()[0].published, digest);
  const auto passed = opener_.Open(Passing(link, O_RDONLY));
  ASSERT_TRUE(passed.has_value());
  EXPECT_EQ((*passed)->files()[0].published, digest);

  std::optional<Result<Digest>> hashed;
  const std::span<const uint8_t> data(reinterpret_cast<const uint8_t*>(data_.data()), data_.size());
  (*passed)->HashFile(
      0, {data.first(100), data.subspan(100)}, [] { return true; },
      [&](Result<Digest> result) { hashed = std::move(result); });
  ASSERT_TRUE(opener_.executor().RunUntil([&] { return hashed.has_value(); }));
  ASSERT_TRUE(hashed->has_value());
  EXPECT_EQ(**hashed, digest);
}

// A file of 64 GiB without any, and its bytes out of one MiB.
class LargeHubFileTest : public WeightFilesTest {
 protected:
  static constexpr uint64_t kFileMiB = 64 * 1024;
  std::shared_ptr<WeightSource> Open() {
    const uint64_t bytes = kFileMiB * kMiB;
    const std::string path = directory_.Write(
        "m.safetensors",
        FileOf("{" + Entry("t", "U8", "[" + std::to_string(bytes) + "]", 0, bytes) + "}", ""));
    std::filesystem::resize_file(path, std::filesystem::file_size(path) + bytes);
    return *opener_.OpenPaths({path});
  }
  const std::vector<uint8_t> mib_ = std::vector<uint8_t>(kMiB);
  const std::vector<std::span<const uint8_t>> data_ =
      std::vector<std::span<const uint8_t>>(kFileMiB, mib_);
};

TEST_F(LargeHubFileTest, WhatIsWantedNoMoreIsHashedNoFurther) {
  int asked = 0;
  std::optional<Result<Digest>> hashed;
  Open()->HashFile(
      0, data_, [&] { return ++asked < 3; }, [&](Result<Digest> digest) { hashed = digest; });
  ASSERT_TRUE(opener_.executor().RunUntil([&] { return hashed.has_value(); }));
  EXPECT_EQ(hashed->status().code(), Code::kUnavailable);
  EXPECT_EQ(asked, 3);
}

TEST_F(LargeHubFileTest, TheEndOfThePoolDoesNotWaitForAFile) {
  bool asked = false;
  bool done = false;
  Open()->HashFile(
      0, data_, [&] { return asked = true; }, [&](const Result<Digest>&) { done = true; });
  ASSERT_TRUE(opener_.executor().RunUntil([&] { return asked; }));
  opener_.Stop();
  EXPECT_FALSE(done);
}

TEST_F(HubCacheTest, OtherNamesSayNothing) {
  const auto published = [this](const std::string& path) {
    const auto opened = opener_.OpenPaths({path});
    EXPECT_TRUE(opened.has_value()) << opened.status().ToString();
    return opened ? (*opened)->files()[0].published : Digest();
  };
  EXPECT_TRUE(published(Snapshot(std::string(40, 'a'))).IsZero()) << "a SHA-1 of git's";
  EXPECT_TRUE(published(directory_.Write("weights/" + std::string(64, 'a'), contents_)).IsZero());
  EXPECT_TRUE(published(directory_.Write("blobs/x" + std::string(64, 'a'), contents_)).IsZero());
  EXPECT_TRUE(published(directory_.Write("blobs/" + std::string(64, 'x'), contents_)).IsZero());
  EXPECT_TRUE(published(directory_.Write("plain.safetensors", contents_)).IsZero());
}

}  // namespace
}  // namespace terrace
