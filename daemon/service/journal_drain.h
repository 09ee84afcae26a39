// JournalDrain: a Journal in front of another one that knows when nothing is being written, so that
// the daemon does not stop between a write and its acknowledgement. Owner thread only.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tiers/tier.h"

namespace terrace {

class JournalDrain final : public Journal {
 public:
  explicit JournalDrain(Journal& below) : below_(below) {}

  Result<std::vector<Record>> Load(std::string_view prefix) override { return below_.Load(prefix); }
  void Put(std::string key, std::string value, std::function<void(Status)> done) override {
    below_.Put(std::move(key), std::move(value), Counted(std::move(done)));
  }
  void Delete(std::string key, std::function<void(Status)> done) override {
    below_.Delete(std::move(key), Counted(std::move(done)));
  }

  // Writes that are under way.
  uint64_t writes() const { return static_cast<uint64_t>(writes_); }
  // Calls `idle` once no write is under way: at once if none is.
  void WhenIdle(std::function<void()> idle) {
    if (writes_ == 0) return idle();
    idle_ = std::move(idle);
  }

 private:
  std::function<void(Status)> Counted(std::function<void(Status)> done) {
    ++writes_;
    return [this, done = std::move(done)](Status status) {
      done(std::move(status));
      if (--writes_ == 0 && idle_) std::exchange(idle_, nullptr)();
    };
  }

  Journal& below_;
  int64_t writes_ = 0;
  std::function<void()> idle_;
};

}  // namespace terrace
