#include "daemon/service/metrics/collector.h"

#include <utility>

namespace terrace {

void Collector::Collect(Done done) {
  waiting_.push_back(std::move(done));
  if (waiting_.size() > 1) return;
  cursor_ = {};
  parts_.loop->Post([this] { Step(); });
}

void Collector::Step() {
  const bool more = parts_.engine->RereadChannels(&cursor_, kLinesAStep);
  parts_.loop->Post([this, more] { more ? Step() : Finish(); });
}

void Collector::Finish() {
  auto snapshot = std::make_shared<Snapshot>();
  snapshot->engine = parts_.engine->Figures();
  snapshot->service = parts_.service();
  snapshot->queues = parts_.queues();
  snapshot->loop = parts_.loop->times();
  for (const Done& done : std::exchange(waiting_, {}))
    done(snapshot);
}

}  // namespace terrace
