// Status and Result: how every room reports what went wrong.
//
// A Status is a Code and a message; a Result<T> is a T or the Status that kept us from having
// one. Both are [[nodiscard]]. The code says what the caller can do about it and is the same in
// C++, on the wire and in the C ABI (kvclient.h, kvc_code); the message says what happened, and
// names the field, key or tier. A cache miss is not an error and has no code here.
//
// Thread safety: values, like std::string.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "base/check.h"

namespace terrace {

// The numbers are part of the wire protocol and of the C ABI: never renumber, only append.
enum class Code : uint8_t {
  kOk = 0,
  kInvalidArgument = 1,  // The request can never succeed as written; the message names the field.
  kNotFound = 2,         // No such model, space, arena or grant.
  kAlreadyExists = 3,    // The name is taken, by something else than what was asked for.
  kMismatch = 4,   // It exists but differs (layout, version, content); the message says in what.
  kStale = 5,      // Right once, but of an old generation, epoch or daemon life: reopen.
  kExhausted = 6,  // A budget, quota or tier is full; retry after releasing something.
  kDeadlineExceeded = 7,  // The deadline passed first; the outcome may be unknown.
  kUnavailable = 8,       // The daemon or a tier cannot be reached now; retry later.
  kPermissionDenied = 9,  // This peer may not do that.
  kDataLoss = 10,         // Bytes did not check out.
  kInternal = 11,         // A bug of ours, or a system call that failed without a better name.
};
inline constexpr int kCodeCount = 12;

// Lower-case name with underscores ("not_found"); "unknown" for numbers outside the list.
std::string_view CodeName(Code code);

class [[nodiscard]] Status {
 public:
  Status() = default;  // Ok.
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {
    TERRACE_CHECK(code != Code::kOk);
  }

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }
  // "not_found: model 'x' is not registered", or "ok".
  std::string ToString() const;
  // The same code with `context: ` before the message; Ok stays Ok.
  Status WithContext(std::string_view context) &&;

  friend bool operator==(const Status&, const Status&) = default;

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

// A status for a failed system call: the code follows from `error_number` (an errno value), the
// message is "what: strerror".
Status SystemError(std::string_view what, int error_number);

template <typename T>
class [[nodiscard]] Result {
 public:
  // Implicit on purpose, so that `return value;` and `return Status(...)` both read well.
  Result(T value)
      : v_(std::in_place_index<0>, std::move(value)) {}  // NOLINT(google-explicit-constructor)
  Result(Status status)
      : v_(std::in_place_index<1>, std::move(status)) {  // NOLINT(google-explicit-constructor)
    TERRACE_CHECK(!std::get<1>(v_).ok());
  }

  bool has_value() const { return v_.index() == 0; }
  explicit operator bool() const { return has_value(); }

  T& operator*() & { return Value(); }
  const T& operator*() const& { return const_cast<Result*>(this)->Value(); }
  T&& operator*() && { return std::move(Value()); }
  T* operator->() { return &Value(); }
  const T* operator->() const { return &const_cast<Result*>(this)->Value(); }

  const Status& error() const& {
    TERRACE_CHECK(!has_value());
    return *std::get_if<1>(&v_);
  }
  Status&& error() && {
    TERRACE_CHECK(!has_value());
    return std::move(*std::get_if<1>(&v_));
  }
  // Ok when there is a value: for callers that only want to know.
  Status status() const { return has_value() ? Status() : error(); }

 private:
  T& Value() {
    TERRACE_CHECK(has_value());
    return *std::get_if<0>(&v_);
  }
  std::variant<T, Status> v_;
};

}  // namespace terrace

#define TERRACE_CAT_INNER(a, b) a##b
#define TERRACE_CAT(a, b) TERRACE_CAT_INNER(a, b)

#define RETURN_IF_ERROR(expr)                                \
  do {                                                       \
    if (::terrace::Status status_ = (expr); !status_.ok()) { \
      return status_;                                        \
    }                                                        \
  } while (false)

#define ASSIGN_OR_RETURN(lhs, expr) \
  TERRACE_ASSIGN_OR_RETURN(TERRACE_CAT(result_, __LINE__), lhs, expr)
#define TERRACE_ASSIGN_OR_RETURN(tmp, lhs, expr) \
  auto tmp = (expr);                             \
  if (!tmp) {                                    \
    return std::move(tmp).error();               \
  }                                              \
  lhs = *std::move(tmp)
