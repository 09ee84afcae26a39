#include "daemon/service/owner_loop.h"

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cerrno>
#include <optional>

namespace terrace {

namespace asio = boost::asio;
using boost::system::error_code;

struct OwnerLoop::Reactor {
  // The hint says that one thread runs it; posting from others stays safe.
  asio::io_context context{1};
  asio::executor_work_guard<asio::io_context::executor_type> work{context.get_executor()};
  std::optional<asio::signal_set> signals;
  std::function<void(int)> on_signal;
  LoopTimes times;

  template <typename Callback>
  void Call(const Callback& callback) {
    const auto begin = std::chrono::steady_clock::now();
    callback();
    const int64_t ns = std::chrono::nanoseconds(std::chrono::steady_clock::now() - begin).count();
    const auto& bounds = LoopTimes::kBoundsNs;
    ++times.counts[static_cast<size_t>(std::upper_bound(bounds.begin(), bounds.end(), ns) -
                                       bounds.begin())];
    times.total_ns += static_cast<uint64_t>(ns);
  }

  void AwaitSignal() {
    signals->async_wait([this](const error_code& error, int number) {
      if (error) return;
      Call([this, number] { on_signal(number); });
      AwaitSignal();
    });
  }
};

OwnerLoop::OwnerLoop() : reactor_(std::make_unique<Reactor>()) {}
OwnerLoop::~OwnerLoop() = default;

void OwnerLoop::Post(std::function<void()> task) {
  asio::post(reactor_->context,
             [reactor = reactor_.get(), task = std::move(task)] { reactor->Call(task); });
}

void OwnerLoop::Run() {
  reactor_->context.run();
}
void OwnerLoop::Stop() {
  reactor_->context.stop();
}
const LoopTimes& OwnerLoop::times() const {
  return reactor_->times;
}

// Held by the Watch and by each wait that is under way, so that a callback may destroy its Watch.
struct OwnerLoop::Watch::State {
  explicit State(Reactor& its_reactor) : reactor(its_reactor), descriptor(reactor.context) {}

  Reactor& reactor;
  asio::posix::stream_descriptor descriptor;
  std::function<void()> readable;
  std::function<void()> writable;
  bool open = true;
  bool read_armed = false;
  bool write_armed = false;
};

Result<OwnerLoop::Watch> OwnerLoop::NewWatch(UniqueFd fd, std::function<void()> readable,
                                             std::function<void()> writable) {
  auto state = std::make_shared<Watch::State>(*reactor_);
  error_code error;
  state->descriptor.assign(fd.get(), error);
  if (error) return SystemError("watching a descriptor", error.value());
  (void)fd.Release();
  state->readable = std::move(readable);
  state->writable = std::move(writable);
  Watch watch;
  watch.state_ = std::move(state);
  return watch;
}

OwnerLoop::Watch& OwnerLoop::Watch::operator=(Watch&& other) noexcept {
  if (this != &other) {
    Close();
    state_ = std::move(other.state_);
  }
  return *this;
}

int OwnerLoop::Watch::fd() const {
  return state_ != nullptr && state_->open ? state_->descriptor.native_handle() : -1;
}

void OwnerLoop::Watch::ArmRead() {
  if (state_ == nullptr || !state_->open || state_->read_armed) return;
  state_->read_armed = true;
  state_->descriptor.async_wait(asio::posix::descriptor_base::wait_read,
                                [state = state_](const error_code&) {
                                  state->read_armed = false;
                                  if (state->open) state->reactor.Call(state->readable);
                                });
}

void OwnerLoop::Watch::ArmWrite() {
  if (state_ == nullptr || !state_->open || state_->write_armed) return;
  state_->write_armed = true;
  state_->descriptor.async_wait(asio::posix::descriptor_base::wait_write,
                                [state = state_](const error_code&) {
                                  state->write_armed = false;
                                  if (state->open) state->reactor.Call(state->writable);
                                });
}

void OwnerLoop::Watch::Close() {
  (void)Release();
}

UniqueFd OwnerLoop::Watch::Release() {
  if (state_ == nullptr || !state_->open) return {};
  state_->open = false;
  return UniqueFd(state_->descriptor.release());
}

struct OwnerLoop::Timer::State {
  explicit State(Reactor& its_reactor) : reactor(its_reactor), timer(reactor.context) {}
  Reactor& reactor;
  asio::steady_timer timer;
  std::function<void()> fired;
  // Counts starts and cancels: a wait that had completed already when it was replaced is void.
  uint64_t start = 0;
};

OwnerLoop::Timer OwnerLoop::NewTimer(std::function<void()> fired) {
  Timer timer;
  timer.state_ = std::make_shared<Timer::State>(*reactor_);
  timer.state_->fired = std::move(fired);
  return timer;
}

OwnerLoop::Timer& OwnerLoop::Timer::operator=(Timer&& other) noexcept {
  if (this != &other) {
    Cancel();
    state_ = std::move(other.state_);
  }
  return *this;
}

void OwnerLoop::Timer::Start(std::chrono::milliseconds delay) {
  const uint64_t start = ++state_->start;
  state_->timer.expires_after(delay);
  state_->timer.async_wait([state = state_, start](const error_code& error) {
    if (!error && state->start == start) state->reactor.Call(state->fired);
  });
}

void OwnerLoop::Timer::Cancel() {
  if (state_ == nullptr) return;
  ++state_->start;
  state_->timer.cancel();
}

void OwnerLoop::OnSignals(std::initializer_list<int> signals, std::function<void(int)> received) {
  TERRACE_CHECK(!reactor_->signals);
  reactor_->on_signal = std::move(received);
  reactor_->signals.emplace(reactor_->context);
  for (const int number : signals) {
    error_code error;
    reactor_->signals->add(number, error);
    TERRACE_CHECK(!error);
  }
  reactor_->AwaitSignal();
}

}  // namespace terrace
