// OwnerLoop: the one thread that owns all metadata, which is also the thread of all sockets.
//
// It is Boost.Asio's io_context behind an interface of our own, so that Asio is compiled in one
// file. Everything here is called on the owner thread, but for Post and Stop, which any thread may
// call. Callbacks run on the owner thread, one at a time, inside Run. They are plain functions with
// explicit state around them; nothing here blocks or sleeps.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>

#include "base/executor.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace terrace {

// How long its callbacks kept the owner thread, each by itself: everybody else waits so long.
struct LoopTimes {
  // Upper bounds; the last count is of those beyond.
  static constexpr std::array<int64_t, 14> kBoundsNs = {
      10'000,    20'000,    50'000,     100'000,    200'000,    500'000,     1'000'000,
      2'000'000, 5'000'000, 10'000'000, 20'000'000, 50'000'000, 100'000'000, 1'000'000'000};
  std::array<uint64_t, kBoundsNs.size() + 1> counts{};
  uint64_t total_ns = 0;
};

class OwnerLoop final : public Executor {
 public:
  OwnerLoop();
  ~OwnerLoop() override;  // Watches and timers must be gone by then.

  void Post(std::function<void()> task) override;
  // Runs until Stop. Tasks posted after that are destroyed unrun with the loop.
  void Run();
  void Stop();
  // Of all callbacks so far, the one that is running apart.
  const LoopTimes& times() const;

  // Waits for a descriptor, which it owns and closes. Its callbacks are never called after it is
  // destroyed, and may destroy it.
  class Watch {
   public:
    Watch() = default;
    Watch(Watch&&) noexcept = default;
    Watch& operator=(Watch&& other) noexcept;
    ~Watch() { Close(); }

    int fd() const;  // -1 when empty or closed.
    explicit operator bool() const { return fd() >= 0; }
    // Asks for one call of `readable` (or `writable`) when the descriptor is ready, or broken.
    // Asking again before it came changes nothing.
    void ArmRead();
    void ArmWrite();
    void Close();
    // Ends the watch and gives back what it watched.
    UniqueFd Release();

   private:
    friend class OwnerLoop;
    struct State;
    std::shared_ptr<State> state_;
  };
  Result<Watch> NewWatch(UniqueFd fd, std::function<void()> readable,
                         std::function<void()> writable = {});

  class Timer {
   public:
    Timer() = default;
    Timer(Timer&&) noexcept = default;
    Timer& operator=(Timer&& other) noexcept;
    ~Timer() { Cancel(); }
    // Calls `fired` once after `delay`; a call that is still to come is replaced.
    void Start(std::chrono::milliseconds delay);
    void Cancel();

   private:
    friend class OwnerLoop;
    struct State;
    std::shared_ptr<State> state_;
  };
  Timer NewTimer(std::function<void()> fired);

  // Calls `received` for each of these signals. At most once in the life of a loop.
  void OnSignals(std::initializer_list<int> signals, std::function<void(int)> received);

 private:
  struct Reactor;
  std::unique_ptr<Reactor> reactor_;
};

}  // namespace terrace
