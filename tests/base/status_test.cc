#include "base/status.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <set>
#include <string>

namespace terrace {
namespace {

Result<std::unique_ptr<int>> Half(int number) {
  if (number % 2 != 0) return Status(Code::kInvalidArgument, std::to_string(number) + " is odd");
  return std::make_unique<int>(number / 2);
}

Result<int> Quarter(int number) {
  ASSIGN_OR_RETURN(std::unique_ptr<int> half, Half(number));
  ASSIGN_OR_RETURN(const std::unique_ptr<int> quarter, Half(*half));
  return *quarter;
}

Status OnlyQuarters(int number, bool* reached_end) {
  RETURN_IF_ERROR(Quarter(number).status());
  *reached_end = true;
  return {};
}

TEST(Status, EveryCodeHasItsOwnName) {
  std::set<std::string_view> names;
  for (int code = 0; code < kCodeCount; ++code)
    names.insert(CodeName(static_cast<Code>(code)));
  EXPECT_EQ(names.size(), static_cast<size_t>(kCodeCount));
  EXPECT_FALSE(names.contains("unknown"));
  EXPECT_EQ(CodeName(static_cast<Code>(kCodeCount)), "unknown");
}

TEST(Status, TextNamesCodeAndContext) {
  const Status status = Status(Code::kNotFound, "no block 7").WithContext("model 'x'");
  EXPECT_EQ(status.ToString(), "not_found: model 'x': no block 7");
  EXPECT_EQ(Status().ToString(), "ok");
  EXPECT_TRUE(Status().WithContext("whatever").ok());
}

TEST(Status, SystemErrorsSayWhatTheCallerCanDo) {
  EXPECT_EQ(SystemError("x", ENOENT).code(), Code::kNotFound);
  EXPECT_EQ(SystemError("x", EPERM).code(), Code::kPermissionDenied);
  EXPECT_EQ(SystemError("x", ENOSPC).code(), Code::kExhausted);
  EXPECT_EQ(SystemError("x", ENOMEM).code(), Code::kExhausted);
  EXPECT_EQ(SystemError("x", ECONNREFUSED).code(), Code::kUnavailable);
  EXPECT_EQ(SystemError("x", EIO).code(), Code::kDataLoss);
  EXPECT_EQ(SystemError("x", ENOTTY).code(), Code::kInternal);
  EXPECT_EQ(SystemError("open /a", ENOENT).message(), "open /a: No such file or directory");
}

TEST(Result, MacrosPassValuesOnAndErrorsUp) {
  EXPECT_EQ(*Quarter(12), 3);
  EXPECT_EQ(Quarter(3).error().message(), "3 is odd");
  EXPECT_EQ(Quarter(6).error().message(), "3 is odd");
  bool reached_end = false;
  EXPECT_FALSE(OnlyQuarters(6, &reached_end).ok());
  EXPECT_FALSE(reached_end);
  EXPECT_TRUE(OnlyQuarters(8, &reached_end).ok());
  EXPECT_TRUE(reached_end);
}

TEST(ResultDeathTest, ReadingTheWrongSideAborts) {
  EXPECT_DEATH((void)*Half(3), "check failed");
  EXPECT_DEATH((void)Half(2).error(), "check failed");
}

}  // namespace
}  // namespace terrace
