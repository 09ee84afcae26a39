// What the C++ layer of libkvclient is made of: Status, Result, Span. See kvclient.hpp.
#ifndef KVCLIENT_RESULT_HPP
#define KVCLIENT_RESULT_HPP

#include <kvclient/kvclient.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>

namespace kvc {

class [[nodiscard]] Status {
 public:
  Status() = default;  // Ok.
  Status(kvc_code code, std::string message) : code_(code), message_(std::move(message)) {}
  bool ok() const { return code_ == KVC_OK; }
  kvc_code code() const { return code_; }
  const std::string& message() const { return message_; }
  // "not_found: no model 'x'", or "ok".
  std::string ToString() const {
    return ok() ? "ok" : std::string(kvc_code_name(code_)) + ": " + message_;
  }

 private:
  kvc_code code_ = KVC_OK;
  std::string message_;
};

// A value, or the status that kept it from being one.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T&& value) : v_(std::in_place_index<0>, std::move(value)) {}
  Result(Status status) : v_(std::in_place_index<1>, std::move(status)) {}
  bool has_value() const { return v_.index() == 0; }
  explicit operator bool() const { return has_value(); }
  // Only with a value.
  T& operator*() & { return *std::get_if<0>(&v_); }
  const T& operator*() const& { return *std::get_if<0>(&v_); }
  T&& operator*() && { return std::move(*std::get_if<0>(&v_)); }
  T* operator->() { return std::get_if<0>(&v_); }
  const T* operator->() const { return std::get_if<0>(&v_); }
  // Only without one.
  const Status& error() const { return *std::get_if<1>(&v_); }

 private:
  std::variant<T, Status> v_;
};

// Bytes that somebody else owns. std::span takes one.
template <class T>
class Span {
 public:
  Span() = default;
  Span(T* data, std::size_t size) : data_(data), size_(size) {}
  // Of what has data() and size(): vectors, arrays, views of T.
  template <class Elements, class = std::enable_if_t<std::is_convertible_v<
                                decltype(std::declval<Elements&>().data()), T*>>>
  Span(Elements&& elements) : Span(elements.data(), elements.size()) {}
  T* data() const { return data_; }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  // Without the first `count`; `count` is at most size().
  Span subspan(std::size_t count) const { return {data_ + count, size_ - count}; }
  T* begin() const { return data_; }
  T* end() const { return data_ + size_; }
  T& operator[](std::size_t index) const { return data_[index]; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};
using ConstBytes = Span<const std::byte>;
using Bytes = Span<std::byte>;
using Key = kvc_key;

namespace detail {

template <auto kDestroy>
struct Destroy {
  template <class Handle>
  void operator()(Handle* handle) const {
    kDestroy(handle);
  }
};
template <class Handle, auto kDestroy>
using Owned = std::unique_ptr<Handle, Destroy<kDestroy>>;

// Calls `call` with a kvc_error and makes a Status of what it says.
template <class Call>
Status StatusOf(Call&& call) {
  kvc_error error{};
  const kvc_code code = call(&error);
  if (code == KVC_OK) return {};
  return Status(code, error.message);
}
// For calls that give no message.
inline Status StatusOf(kvc_code code, const char* what) {
  return code == KVC_OK ? Status() : Status(code, what);
}
inline ConstBytes BytesOf(const void* data, std::uint64_t bytes) {
  return {static_cast<const std::byte*>(data), data == nullptr ? 0 : std::size_t(bytes)};
}

}  // namespace detail

}  // namespace kvc

#endif  // KVCLIENT_RESULT_HPP
