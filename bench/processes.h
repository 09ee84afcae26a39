// Child processes that play clients: forked, spoken to over a socket pair, ended by their pid.
//
// One thread of the parent starts and asks them. A child must be forked before its parent connects
// to a daemon, or must not touch the parent's handles; it dies with its parent.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"

namespace terrace::bench {

// One end of the pair: values of fixed size, in order.
class Link {
 public:
  Link() = default;
  explicit Link(UniqueFd fd) : fd_(std::move(fd)) {}

  template <typename T>
  Status Send(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    return SendBytes(&value, sizeof value);
  }
  // `unavailable` when the other end is gone.
  template <typename T>
  Result<T> Receive() {
    static_assert(std::is_trivially_copyable_v<T>);
    T value{};
    RETURN_IF_ERROR(ReceiveBytes(&value, sizeof value));
    return value;
  }
  Status SendBytes(const void* bytes, size_t count);
  Status ReceiveBytes(void* bytes, size_t count);
  int fd() const { return fd_.get(); }

 private:
  UniqueFd fd_;
};

// What "go on" is said with, both ways.
struct Go {
  uint32_t number = 0;
};

class Child {
 public:
  // Forks. The child runs `body` with its end of the link and exits; a failed status is printed
  // with `name` before it.
  static Result<Child> Start(std::string name, const std::function<Status(Link&)>& body);
  Child(Child&& other) noexcept
      : name_(std::move(other.name_)),
        pid_(std::exchange(other.pid_, -1)),
        pidfd_(std::move(other.pidfd_)),
        link_(std::move(other.link_)) {}
  Child& operator=(Child&&) = delete;
  ~Child();  // Kills it, if it still runs.

  pid_t pid() const { return pid_; }
  int pidfd() const { return pidfd_.get(); }
  Link& link() { return link_; }
  // Waits for its end: ok if it exited with 0.
  Status Wait();
  // SIGKILL; its end is still to be waited for.
  void Kill();

 private:
  Child(std::string name, pid_t pid) : name_(std::move(name)), pid_(pid) {}

  std::string name_;
  pid_t pid_ = -1;
  UniqueFd pidfd_;
  Link link_;
};

// The same message for all, and one from each.
Status TellAll(std::vector<Child>& children, Go go = {});
Status HearAll(std::vector<Child>& children);
Status WaitAll(std::vector<Child>& children);

}  // namespace terrace::bench
