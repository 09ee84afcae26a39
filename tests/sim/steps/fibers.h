// Fibers: several courses of action on one thread, switched by a seed.
//
// A fiber runs until it calls Yield, which may go on with it or with any other; which one follows
// from the seed alone, so a run can be repeated. Not for ThreadSanitizer.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/random.h"

namespace terrace {

class Fibers {
 public:
  // A fiber gives way once in `stride` yields on average.
  Fibers(uint64_t seed, uint64_t stride);
  ~Fibers();
  Fibers(const Fibers&) = delete;
  Fibers& operator=(const Fibers&) = delete;

  void Add(std::function<void()> body);
  // Runs all of them to their ends.
  void Run();
  // From inside a fiber: perhaps lets another go on. From outside: nothing.
  void Yield();
  // Always another one, if there is one.
  void GiveWay();
  // The index of the running fiber, in the order of Add; -1 outside.
  int current() const { return current_; }

 private:
  static constexpr size_t kStackBytes = 256 * 1024;

  struct Fiber {
    std::function<void()> body;
    std::unique_ptr<std::byte[]> stack;
    ucontext_t context{};
    void* asan_stack = nullptr;  // AddressSanitizer's own idea of the stack, while switched out.
    bool done = false;
  };

  static void Enter(unsigned high, unsigned low);
  void Body();
  void SwitchTo(int next);
  int PickOther();

  Random random_;
  const uint64_t stride_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  ucontext_t outside_{};
  void* outside_asan_stack_ = nullptr;
  const void* outside_bottom_ = nullptr;
  size_t outside_bytes_ = 0;
  int current_ = -1;
};

}  // namespace terrace
