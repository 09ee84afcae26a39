// The devices of a host, asked of a process: of terrace-mover itself, and of programs that are
// none.
#include "tiers/device/supervisor/list_gpus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr MonotonicNs kWithin = 60 * kNsPerSecond;

// A program that does what `script` says, in a folder of its own.
class Script {
 public:
  explicit Script(const std::string& script) {
    std::string name = "/tmp/terrace-test-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) return;
    folder_ = name;
    std::ofstream(path()) << "#!/bin/sh\n" << script << "\n";
    ::chmod(path().c_str(), 0700);
  }
  ~Script() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  std::string path() const { return folder_ + "/mover"; }
  const std::string& folder() const { return folder_; }

 private:
  std::string folder_;
};

TEST(ListGpus, SaysWhatTheDriverHasOrWhatIsMissing) {
  const auto gpus = ListGpus(TERRACE_MOVER, kWithin);
  if (gpus) {
    ASSERT_FALSE(gpus->empty());
    EXPECT_GT(gpus->front().total_bytes, 0u);
    return;
  }
  EXPECT_THAT(gpus.error().code(),
              testing::AnyOf(Code::kNotFound, Code::kPermissionDenied, Code::kMismatch));
  EXPECT_THAT(gpus.error().message(), testing::AnyOf(HasSubstr("driver"), HasSubstr("CUDA")));
}

#ifdef FAKE_LIBCUDA
TEST(ListGpus, ListsTheDevicesOfADriverWithoutAContext) {
  const Script folder("");
  std::filesystem::create_symlink(FAKE_LIBCUDA, folder.folder() + "/libcuda.so.1");
  ::setenv("LD_LIBRARY_PATH", folder.folder().c_str(), 1);
  const auto gpus = ListGpus(TERRACE_MOVER, kWithin);
  ::unsetenv("LD_LIBRARY_PATH");
  ASSERT_TRUE(gpus) << gpus.error().ToString();
  ASSERT_FALSE(gpus->empty());
  EXPECT_GT(gpus->front().total_bytes, 0u);
  EXPECT_GT(gpus->front().granularity, 0u);
  EXPECT_TRUE(gpus->front().slabs);
}
#endif

TEST(ListGpus, GivesTheCodeAndTheWordsOfAProgramThatFails) {
  const auto refused =
      ListGpus(Script("echo noise >&2; echo 'terrace-mover: permission_denied: /dev/nvidiactl: no' "
                      ">&2; exit 4")
                   .path(),
               kWithin);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Code::kPermissionDenied);
  EXPECT_EQ(refused.error().message(), "/dev/nvidiactl: no");
  EXPECT_EQ(ListGpus(Script("exit 3").path(), kWithin).error().code(), Code::kNotFound);
  EXPECT_EQ(ListGpus(Script("exit 5").path(), kWithin).error().code(), Code::kMismatch);
  EXPECT_EQ(ListGpus(Script("exit 6").path(), kWithin).error().code(), Code::kUnavailable);
  const auto crashed = ListGpus(Script("kill -SEGV $$").path(), kWithin);
  ASSERT_FALSE(crashed);
  EXPECT_THAT(crashed.error().message(), HasSubstr("ended by signal 11"));
}

TEST(ListGpus, ProgramsThatAreNoneAreTold) {
  EXPECT_EQ(ListGpus("/does/not/exist", kWithin).error().code(), Code::kNotFound);
  EXPECT_EQ(ListGpus(Script("echo hello").path(), kWithin).error().code(), Code::kMismatch);
  // That of an earlier version, which knows no --list.
  EXPECT_EQ(ListGpus(Script("exit 2").path(), kWithin).error().code(), Code::kInternal);
}

TEST(ListGpus, ADriverThatHangsIsWaitedForOnlySoLong) {
  const auto gpus = ListGpus(Script("exec sleep 600").path(), kNsPerSecond / 10);
  ASSERT_FALSE(gpus);
  EXPECT_EQ(gpus.error().code(), Code::kDeadlineExceeded);
}

}  // namespace
}  // namespace terrace
