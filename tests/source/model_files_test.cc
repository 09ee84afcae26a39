// Directories as people have them: single files, shards with an index, the hub cache's links.
#include "libclient/model_files/model_files.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "tests/source/files.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kIndexText[] =
    R"({"metadata":{},"weight_map":{"x":"m-2.safetensors","y":"m-1.safetensors","z":"m-2.safetensors"}})";

class ModelFilesTest : public testing::Test {
 protected:
  void ExpectRefused(const std::string& path, Code code, const std::string& says) {
    const auto found = FindModelFiles(path);
    ASSERT_FALSE(found.has_value());
    EXPECT_EQ(found.error().code(), code);
    EXPECT_THAT(found.error().message(), HasSubstr(says));
  }
  // A model in the hub cache: blobs, and a snapshot whose files are links to them.
  std::string MakeHubModel(const std::string& revision) {
    const std::string root = "models--org--name/";
    const auto link = [&](const std::string& blob, const std::string& name,
                          const std::string& contents) {
      directory_.Write(root + "blobs/" + blob, contents);
      fs::create_directories(directory_ / (root + "snapshots/" + revision));
      fs::create_symlink("../../blobs/" + blob,
                         directory_ / (root + "snapshots/" + revision + "/" + name));
    };
    link("aa11", "m-1.safetensors", "one");
    link("bb22", "m-2.safetensors", "two");
    link("cc33", "model.safetensors.index.json", kIndexText);
    return directory_ / "models--org--name";
  }

  const TemporaryDirectory directory_;
};

TEST_F(ModelFilesTest, SingleFile) {
  const std::string path = directory_.Write("any-name.safetensors", "x");
  const auto found = FindModelFiles(path);
  ASSERT_TRUE(found.has_value()) << found.error().ToString();
  EXPECT_THAT(found->paths, ElementsAre(path));
  EXPECT_EQ(found->index, "");
}

TEST_F(ModelFilesTest, RelativePathsBecomeAbsolute) {
  const std::string path = directory_.Write("sub/a.safetensors", "x");
  const fs::path relative = fs::path(path).lexically_relative(fs::current_path());
  const auto found =
      FindModelFiles((relative.parent_path() / "." / ".." / "sub" / "a.safetensors").string());
  ASSERT_TRUE(found.has_value()) << found.error().ToString();
  EXPECT_THAT(found->paths, ElementsAre(path));
}

TEST_F(ModelFilesTest, DirectoryWithOneFile) {
  const std::string path = directory_.Write("model.safetensors", "x");
  directory_.Write("config.json", "{}");
  for (const std::string& spelling : {directory_.path(), directory_.path() + "/"}) {
    const auto found = FindModelFiles(spelling);
    ASSERT_TRUE(found.has_value()) << found.error().ToString();
    EXPECT_THAT(found->paths, ElementsAre(path));
  }
}

TEST_F(ModelFilesTest, DirectoryWithOneFileOfAnotherName) {
  const std::string path = directory_.Write("weights.safetensors", "x");
  const auto found = FindModelFiles(directory_.path());
  ASSERT_TRUE(found.has_value()) << found.error().ToString();
  EXPECT_THAT(found->paths, ElementsAre(path));
}

TEST_F(ModelFilesTest, ShardsOfTheIndexEachOnce) {
  const std::string one = directory_.Write("m-1.safetensors", "1");
  const std::string two = directory_.Write("m-2.safetensors", "2");
  directory_.Write("consolidated.safetensors", "not named by the index");
  const std::string index = directory_.Write("model.safetensors.index.json", kIndexText);
  for (const std::string& path : {directory_.path(), index}) {
    const auto found = FindModelFiles(path);
    ASSERT_TRUE(found.has_value()) << found.error().ToString();
    EXPECT_THAT(found->paths, ElementsAre(one, two));
    EXPECT_EQ(found->index, kIndexText);
  }
}

TEST_F(ModelFilesTest, HubCacheSnapshotKeepsTheNamesOfItsLinks) {
  const std::string snapshot = MakeHubModel("abc123") + "/snapshots/abc123";
  const auto found = FindModelFiles(snapshot);
  ASSERT_TRUE(found.has_value()) << found.error().ToString();
  EXPECT_THAT(found->paths,
              ElementsAre(snapshot + "/m-1.safetensors", snapshot + "/m-2.safetensors"));
  const auto fds = OpenModelFiles(*found);
  ASSERT_TRUE(fds.has_value()) << fds.error().ToString();
  char bytes[4] = {};
  EXPECT_EQ(read((*fds)[1].get(), bytes, 3), 3);
  EXPECT_STREQ(bytes, "two");
  EXPECT_NE(fcntl((*fds)[1].get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_F(ModelFilesTest, HubCacheRootFollowsRefsMain) {
  const std::string root = MakeHubModel("abc123");
  fs::create_directories(root + "/snapshots/older");
  directory_.Write("models--org--name/refs/main", "abc123\n");
  const auto found = FindModelFiles(root);
  ASSERT_TRUE(found.has_value()) << found.error().ToString();
  EXPECT_EQ(found->paths[0], root + "/snapshots/abc123/m-1.safetensors");
}

TEST_F(ModelFilesTest, HubCacheRootWithOneSnapshotNeedsNoRef) {
  const std::string root = MakeHubModel("abc123");
  ASSERT_TRUE(FindModelFiles(root).has_value());
  fs::create_directories(root + "/snapshots/other");
  ExpectRefused(root, Code::kInvalidArgument, "no refs/main and 2 snapshots");
}

TEST_F(ModelFilesTest, RefThatLeadsElsewhereIsRefused) {
  const std::string root = MakeHubModel("abc123");
  directory_.Write("models--org--name/refs/main", "../../..");
  ExpectRefused(root, Code::kInvalidArgument, "does not hold a revision");
  directory_.Write("models--org--name/refs/main", "missing");
  ExpectRefused(root, Code::kNotFound, "is the download complete?");
}

TEST_F(ModelFilesTest, MissingShardIsNotFound) {
  directory_.Write("m-1.safetensors", "1");
  directory_.Write("model.safetensors.index.json", kIndexText);
  ExpectRefused(directory_.path(), Code::kNotFound, directory_ / "m-2.safetensors");
  // What an interrupted download leaves: a link to a blob that is not there.
  fs::create_symlink("../blobs/none", directory_ / "m-2.safetensors");
  ExpectRefused(directory_.path(), Code::kNotFound, "is the download complete?");
}

TEST_F(ModelFilesTest, IndexThatLeadsOutOfItsDirectoryIsRefused) {
  for (const char* name : {"../m.safetensors", "/etc/passwd", "..", ""}) {
    directory_.Write("model.safetensors.index.json",
                     std::string(R"({"weight_map":{"a":")") + name + "\"}}");
    ExpectRefused(directory_.path(), Code::kInvalidArgument, "is not a plain file name");
  }
}

TEST_F(ModelFilesTest, MalformedIndexIsRefused) {
  for (const char* text : {"", "{", "[]", "{}", R"({"weight_map":[]})", R"({"weight_map":{}})",
                           R"({"weight_map":{"a":1}})"}) {
    const std::string path = directory_.Write("model.safetensors.index.json", text);
    ExpectRefused(directory_.path(), Code::kInvalidArgument, path);
  }
}

TEST_F(ModelFilesTest, WhatIsNoModelIsRefusedWithWhatWasExpected) {
  ExpectRefused(directory_.path(), Code::kNotFound, "expected model.safetensors");
  ExpectRefused(directory_ / "none", Code::kNotFound, directory_ / "none");
  ExpectRefused("", Code::kInvalidArgument, "not a path");
  ExpectRefused(directory_.Write("pytorch_model.bin", "x"), Code::kInvalidArgument,
                "not a .safetensors file");
  ASSERT_EQ(mkfifo((directory_ / "p.safetensors").c_str(), 0600), 0);
  ExpectRefused(directory_ / "p.safetensors", Code::kInvalidArgument, "neither a regular file");
  directory_.Write("a.safetensors", "x");
  directory_.Write("b.safetensors", "x");
  ExpectRefused(directory_.path(), Code::kInvalidArgument, "2 .safetensors files and no index");
}

TEST_F(ModelFilesTest, FileThatCannotBeOpenedIsNamed) {
  const auto fds = OpenModelFiles({.paths = {directory_ / "gone.safetensors"}, .index = ""});
  ASSERT_FALSE(fds.has_value());
  EXPECT_EQ(fds.error().code(), Code::kNotFound);
  EXPECT_THAT(fds.error().message(), HasSubstr("gone.safetensors"));
}

}  // namespace
}  // namespace terrace
