#include "tests/sim/steps/fibers.h"

#include <utility>

#include "base/check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace terrace {
namespace {

// AddressSanitizer has to be told which stack is in use.
void StartSwitch([[maybe_unused]] void** save, [[maybe_unused]] const void* bottom,
                 [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(save, bottom, bytes);
#endif
}
void FinishSwitch([[maybe_unused]] void* saved, [[maybe_unused]] const void** bottom,
                  [[maybe_unused]] size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, bottom, bytes);
#endif
}

}  // namespace

Fibers::Fibers(uint64_t seed, uint64_t stride) : random_(seed), stride_(stride) {}
Fibers::~Fibers() = default;

void Fibers::Add(std::function<void()> body) {
  auto fiber = std::make_unique<Fiber>();
  fiber->body = std::move(body);
  fiber->stack = std::make_unique_for_overwrite<std::byte[]>(kStackBytes);
  TERRACE_CHECK(::getcontext(&fiber->context) == 0);
  fiber->context.uc_stack.ss_sp = fiber->stack.get();
  fiber->context.uc_stack.ss_size = kStackBytes;
  fiber->context.uc_link = nullptr;
  // makecontext hands over ints only.
  const auto self = reinterpret_cast<uintptr_t>(this);
  ::makecontext(&fiber->context, reinterpret_cast<void (*)()>(&Fibers::Enter), 2,
                static_cast<unsigned>(self >> 32), static_cast<unsigned>(self));
  fibers_.push_back(std::move(fiber));
}

void Fibers::Enter(unsigned high, unsigned low) {
  reinterpret_cast<Fibers*>(static_cast<uintptr_t>(high) << 32 | low)->Body();
}

void Fibers::Body() {
  // Who came here first came from outside, or from a fiber whose stack nobody asks for.
  const void* bottom = nullptr;
  size_t bytes = 0;
  FinishSwitch(nullptr, &bottom, &bytes);
  if (outside_bottom_ == nullptr) {
    outside_bottom_ = bottom;
    outside_bytes_ = bytes;
  }
  Fiber& self = *fibers_[static_cast<size_t>(current_)];
  self.body();
  self.done = true;
  SwitchTo(PickOther());
}

void Fibers::Run() {
  if (fibers_.empty()) return;
  SwitchTo(static_cast<int>(random_.Below(fibers_.size())));
}

void Fibers::Yield() {
  if (current_ < 0 || !random_.Chance(1, stride_)) return;
  GiveWay();
}

void Fibers::GiveWay() {
  if (current_ < 0) return;
  const int next = PickOther();
  if (next >= 0) SwitchTo(next);
}

int Fibers::PickOther() {
  int others = 0;
  for (size_t i = 0; i < fibers_.size(); ++i) {
    others += !fibers_[i]->done && static_cast<int>(i) != current_ ? 1 : 0;
  }
  if (others == 0) return -1;
  auto pick = static_cast<int>(random_.Below(static_cast<uint64_t>(others)));
  for (size_t i = 0; i < fibers_.size(); ++i) {
    if (fibers_[i]->done || static_cast<int>(i) == current_) continue;
    if (pick-- == 0) return static_cast<int>(i);
  }
  return -1;
}

// -1 is outside.
void Fibers::SwitchTo(int next) {
  const int from = std::exchange(current_, next);
  ucontext_t* const from_context =
      from < 0 ? &outside_ : &fibers_[static_cast<size_t>(from)]->context;
  void** const from_asan =
      from < 0 ? &outside_asan_stack_ : &fibers_[static_cast<size_t>(from)]->asan_stack;
  const bool ends = from >= 0 && fibers_[static_cast<size_t>(from)]->done;
  if (next < 0) {
    StartSwitch(ends ? nullptr : from_asan, outside_bottom_, outside_bytes_);
    TERRACE_CHECK(::swapcontext(from_context, &outside_) == 0);
  } else {
    Fiber& to = *fibers_[static_cast<size_t>(next)];
    StartSwitch(ends ? nullptr : from_asan, to.stack.get(), kStackBytes);
    TERRACE_CHECK(::swapcontext(from_context, &to.context) == 0);
  }
  FinishSwitch(*from_asan, nullptr, nullptr);
}

}  // namespace terrace
