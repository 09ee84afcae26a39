// Finally: does something when its scope ends, however it ends. Memory may run out anywhere between
// taking a turn and giving it back. Thread safety: a local variable.
#pragma once

#include <utility>

namespace terrace::client {

template <class Act>
class Finally {
 public:
  explicit Finally(Act act) : act_(std::move(act)) {}
  ~Finally() { act_(); }
  Finally(const Finally&) = delete;
  Finally& operator=(const Finally&) = delete;

 private:
  Act act_;
};

}  // namespace terrace::client
