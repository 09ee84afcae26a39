// A slot file is made whole or not at all.
#include "tiers/nvme/slot_file.h"

#include <fcntl.h>
#include <sys/resource.h>

#include <filesystem>

#include "tests/nvme/store_fixture.h"

namespace terrace::nvme {
namespace {

// For as long as it lives the process can open `more` files, and none after that.
class FewDescriptors {
 public:
  explicit FewDescriptors(rlim_t more) {
    ::getrlimit(RLIMIT_NOFILE, &before_);
    const UniqueFd next(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    const rlimit limit{static_cast<rlim_t>(next.get()) + more, before_.rlim_max};
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }
  ~FewDescriptors() { ::setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_{};
};

TEST(SlotFile, OneWhoseNameIsNotDurableIsNotLeft) {
  const TempFolder folder;
  const SlotFileName name{.number = 1, .slot_bytes = 8192, .slots = 4};
  Status status;
  {
    // The file itself opens; the directory, to be synced, does not.
    const FewDescriptors few(1);
    status = MakeSlotFile(folder.path(), name, 0).status();
  }
  EXPECT_EQ(status.code(), Code::kExhausted) << status.ToString();
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  EXPECT_TRUE(MakeSlotFile(folder.path(), name, 0));
}

TEST(SlotFile, OneThatLeavesTheIndexNoRoomIsNotMade) {
  const TempFolder folder;
  const SlotFileName name{.number = 1, .slot_bytes = 8192, .slots = 4};
  const Status status = MakeSlotFile(folder.path(), name, uint64_t{1} << 60).status();
  EXPECT_EQ(status.code(), Code::kExhausted) << status.ToString();
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace terrace::nvme
