// Executor: the way onto the owner thread. All metadata belongs to one thread; every other thread
// (I/O completions, copy workers, the journal) hands its result over by Post.
#pragma once

#include <functional>

namespace terrace {

class Executor {
 public:
  virtual ~Executor() = default;
  // Runs `task` later on the owner thread, in the order of the calls. Thread-safe.
  virtual void Post(std::function<void()> task) = 0;
};

}  // namespace terrace
