// The collector: one snapshot at a time, in steps that others can come between.
#include "daemon/service/metrics/collector.h"

#include <gtest/gtest.h>

#include <deque>

#include "tests/engine/engine_world.h"

namespace terrace {
namespace {

class CollectorTest : public testing::Test {
 protected:
  Collector MakeCollector() {
    Collector::Parts parts;
    parts.loop = &loop_;
    parts.engine = world_.engine.get();
    parts.service = [] {
      ServiceFigures figures;
      figures.connections = 3;
      return figures;
    };
    parts.queues = [] {
      QueueFigures figures;
      figures.touch_tasks = 4;
      return figures;
    };
    return Collector(std::move(parts));
  }

  EngineWorld world_;
  OwnerLoop loop_;
};

TEST_F(CollectorTest, WhoAsksMeanwhileGetsTheSameSnapshot) {
  Collector collector = MakeCollector();
  std::vector<SnapshotPtr> got;
  collector.Collect([&](SnapshotPtr snapshot) { got.push_back(std::move(snapshot)); });
  collector.Collect([&](SnapshotPtr snapshot) {
    got.push_back(std::move(snapshot));
    // From within the answer: that one is over.
    collector.Collect([&](SnapshotPtr later) {
      got.push_back(std::move(later));
      loop_.Stop();
    });
  });
  loop_.Run();
  ASSERT_EQ(got.size(), 3u);
  EXPECT_EQ(got[0], got[1]);
  EXPECT_NE(got[0], got[2]);
  EXPECT_EQ(got[0]->service.connections, 3u);
  EXPECT_EQ(got[0]->queues.touch_tasks, 4u);
  EXPECT_EQ(got[0]->engine.host_capacity_bytes, world_.options.host_capacity_bytes);
}

TEST_F(CollectorTest, OthersHaveTheirTurnBetweenItsSteps) {
  constexpr size_t kClients = 32;
  std::deque<ClientOfTest> clients;
  for (size_t i = 0; i < kClients; ++i) {
    clients.emplace_back(world_, "t" + std::to_string(i % 3));
    shm::Channel& channel = clients.back().channel.channel();
    channel.lanes = 1;
    channel.counters[0].lookups = 1;
    channel.counters[0].misses[0] = 1;
    // All its pin lines are leased, one pin is set.
    for (shm::Word& word : channel.upper_summary)
      word = ~uint64_t{0};
    for (shm::Word& word : channel.summary)
      word = ~uint64_t{0};
    channel.lines[77].pins[3] = shm::MakeHandle(1, 1, 1);
  }
  Collector collector = MakeCollector();
  size_t turns = 0;
  std::function<void()> other = [&] {
    ++turns;
    loop_.Post(other);
  };
  uint64_t lookups = 0;
  uint64_t pins = 0;
  collector.Collect([&](const SnapshotPtr& snapshot) {
    for (const TenantFigures& tenant : snapshot->engine.tenants) {
      lookups += tenant.lookups.lookups;
      pins += tenant.pins;
    }
    loop_.Stop();
  });
  loop_.Post(other);
  loop_.Run();
  EXPECT_EQ(lookups, kClients);
  EXPECT_EQ(pins, kClients);
  EXPECT_GE(turns, kClients) << "each is more than a step may read";
}

// A client may end and another come between two steps.
TEST_F(CollectorTest, WhatEndedMeanwhileIsCountedOnce) {
  std::deque<ClientOfTest> clients;
  for (int i = 0; i < 40; ++i) {
    clients.emplace_back(world_);
    shm::Channel& channel = clients.back().channel.channel();
    channel.lanes = 1;
    channel.counters[0].lookups = 1;
    channel.counters[0].hits[1] = 1;
  }
  Engine::FiguresCursor cursor;
  for (size_t gone = 0; world_.engine->RereadChannels(&cursor, 7); ++gone)
    world_.engine->ClientGone(clients[gone * 3].given.id);
  EXPECT_EQ(world_.engine->Figures().tenants[0].lookups.lookups, 40u);
  EXPECT_EQ(world_.engine->Figures().tenants[0].lookups.hits[1], 40u);
}

}  // namespace
}  // namespace terrace
