// Fetches and durable acknowledgements, from a daemon that answers late, wrongly or not at all.
#include <gtest/gtest.h>
#include <kvclient/admin.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <kvclient/kvclient.hpp>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "tests/libclient/scripted_peer.h"

namespace terrace::client {
namespace {

using Act = ScriptedPeer::Act;
using wire::Type;

bool Await(const std::function<bool()>& met) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(10);
  while (!met()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

class FetchTest : public testing::Test {
 protected:
  void SetUp() override {
    peer_.SetCapabilities(wire::kCapabilities);
    On([](const Frame&) {});
    kvc_client_options options{};
    options.socket_path = peer_.socket().c_str();
    options.timeout_ms = 60'000;
    auto client = kvc::Client::Connect(options);
    ASSERT_TRUE(client) << client.error().ToString();
    client_ = std::make_unique<kvc::Client>(*std::move(client));
    auto space = client_->OpenExistingSpace(kvc_key{});
    ASSERT_TRUE(space) << space.error().ToString();
    space_ = std::make_unique<kvc::Space>(*std::move(space));
  }
  void TearDown() override {
    space_.reset();
    client_.reset();
  }

  // What the peer does from now on with requests that are about stored pages.
  void On(std::function<void(const Frame&)> act) {
    peer_.SetScript([this, act = std::move(act)](ScriptedPeer& peer, const Frame& frame) {
      const Type type = frame.header.type;
      if (type == Type::kOpenSpace) {
        peer.AnswerOpenSpace(frame);
        return Act::kHandled;
      }
      if (type != Type::kPrefetch && type != Type::kPersist) return Act::kDefault;
      act(frame);
      last_request_ = frame.header.request;
      return Act::kHandled;
    });
  }

  kvc::Span<const kvc_key> keys() const { return {keys_.data(), keys_.size()}; }
  kvc::Result<kvc::Fetch> Ask(kvc_prefetch_options options = {}) {
    return client_->Prefetch(*space_, keys(), options);
  }
  void AnswerFetch(uint64_t request, const std::vector<uint32_t>& codes, uint32_t worth) {
    wire::PrefetchReply reply;
    for (const uint32_t code : codes)
      reply.add_codes(code);
    reply.set_worth(worth);
    peer_.Send(Type::kPrefetchReply, request, reply);
  }

  const std::vector<kvc_key> keys_ = std::vector<kvc_key>(3);
  std::atomic<uint64_t> last_request_ = 0;
  ScriptedPeer peer_;
  std::unique_ptr<kvc::Client> client_;
  std::unique_ptr<kvc::Space> space_;
};

TEST_F(FetchTest, TheRequestSaysWhatWasAsked) {
  std::atomic<bool> right = false;
  On([&](const Frame& frame) {
    wire::Prefetch asked;
    right = asked.ParseFromString(frame.body) && asked.slot() == 1 && asked.epoch() == 1 &&
            asked.keys().size() == 96 && asked.deadline_ms() == 77 && asked.min_percent() == 40 &&
            asked.recompute_us() == 900;
    AnswerFetch(frame.header.request, {0, 2, 10}, 2);
  });
  kvc_prefetch_options options{};
  options.deadline_ms = 77;
  options.min_percent = 40;
  options.recompute_us = 900;
  auto fetch = Ask(options);
  ASSERT_TRUE(fetch) << fetch.error().ToString();
  const auto fetched = fetch->Wait();
  ASSERT_TRUE(fetched) << fetched.error().ToString();
  EXPECT_TRUE(right);
  EXPECT_EQ(fetched->worth, 2u);
  EXPECT_EQ(fetched->codes, (std::vector<kvc_code>{KVC_OK, KVC_NOT_FOUND, KVC_DATA_LOSS}));
}

TEST_F(FetchTest, ALateAnswerIsWaitedForAgain) {
  auto fetch = Ask();
  ASSERT_TRUE(fetch);
  EXPECT_EQ(fetch->Wait(1).error().code(), KVC_DEADLINE_EXCEEDED);
  EXPECT_EQ(fetch->Wait(1).error().code(), KVC_DEADLINE_EXCEEDED);
  ASSERT_TRUE(Await([&] { return last_request_ != 0; }));
  AnswerFetch(last_request_, {0, 0, 0}, 3);
  const auto fetched = fetch->Wait();
  ASSERT_TRUE(fetched) << fetched.error().ToString();
  EXPECT_EQ(fetched->worth, 3u);
}

TEST_F(FetchTest, WhatWasAnsweredIsToldAgain) {
  On([&](const Frame& frame) { AnswerFetch(frame.header.request, {0, 0, 6}, 3); });
  auto fetch = Ask();
  ASSERT_TRUE(fetch);
  for (int i = 0; i < 2; ++i) {
    const auto fetched = fetch->Wait();
    ASSERT_TRUE(fetched) << fetched.error().ToString();
    EXPECT_EQ(fetched->codes, (std::vector<kvc_code>{KVC_OK, KVC_OK, KVC_EXHAUSTED}));
  }
}

TEST_F(FetchTest, OtherCallsGoOnMeanwhile) {
  auto fetch = Ask();
  ASSERT_TRUE(fetch);
  ASSERT_TRUE(Await([&] { return last_request_ != 0; }));
  const uint64_t first = last_request_;
  auto second = Ask();
  ASSERT_TRUE(second);
  EXPECT_TRUE(client_->Ping().ok());
  ASSERT_TRUE(Await([&] { return last_request_ != first; }));
  // Answered in the other order.
  AnswerFetch(last_request_, {0, 0, 0}, 3);
  AnswerFetch(first, {2, 2, 2}, 0);
  EXPECT_EQ(fetch->Wait()->worth, 0u);
  EXPECT_EQ(second->Wait()->worth, 3u);
}

TEST_F(FetchTest, OfSeveralTheOneThatIsAnsweredIsTold) {
  std::vector<kvc::Fetch> fetches;
  std::vector<uint64_t> requests;
  for (int i = 0; i < 3; ++i) {
    last_request_ = 0;
    auto fetch = Ask();
    ASSERT_TRUE(fetch) << fetch.error().ToString();
    fetches.push_back(*std::move(fetch));
    ASSERT_TRUE(Await([&] { return last_request_ != 0; }));
    requests.push_back(last_request_);
  }
  std::vector<kvc::Fetch*> waiting = {fetches.data(), &fetches[1], &fetches[2]};
  const auto any = [&](int32_t timeout_ms) {
    return kvc::Fetch::WaitAny({waiting.data(), waiting.size()}, timeout_ms);
  };
  EXPECT_EQ(any(1).error().code(), KVC_DEADLINE_EXCEEDED);
  // While it waits.
  std::thread late([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    AnswerFetch(requests[2], {0, 0, 0}, 3);
  });
  auto index = any(0);
  late.join();
  ASSERT_TRUE(index) << index.error().ToString();
  EXPECT_EQ(*index, 2u);
  EXPECT_EQ(*any(1), 2u) << "until it is no longer asked for";
  EXPECT_EQ(fetches[2].Wait(1)->worth, 3u);
  EXPECT_EQ(*any(1), 2u) << "what was waited for is answered";
  waiting.pop_back();
  EXPECT_EQ(any(1).error().code(), KVC_DEADLINE_EXCEEDED);
  AnswerFetch(requests[0], {0, 0, 0}, 1);
  EXPECT_EQ(*any(0), 0u);
  // Others are waited for alone as before.
  AnswerFetch(requests[1], {0, 0, 0}, 2);
  EXPECT_EQ(fetches[1].Wait()->worth, 2u);
}

TEST_F(FetchTest, OfSeveralAnotherThreadsCallGoesOn) {
  auto one = Ask();
  ASSERT_TRUE(one);
  ASSERT_TRUE(Await([&] { return last_request_ != 0; }));
  const uint64_t request = last_request_;
  std::atomic<bool> answered = false;
  std::thread waits([&] {
    kvc::Fetch* const waiting[] = {&*one};
    answered = kvc::Fetch::WaitAny({waiting, 1}).has_value();
  });
  for (int i = 0; i < 100; ++i)
    EXPECT_TRUE(client_->Ping().ok());
  EXPECT_FALSE(answered);
  AnswerFetch(request, {0, 0, 0}, 3);
  waits.join();
  EXPECT_TRUE(answered);
}

TEST_F(FetchTest, OfSeveralALostConnectionEndsTheWait) {
  auto one = Ask();
  auto two = Ask();
  ASSERT_TRUE(one && two);
  ASSERT_TRUE(Await([&] { return peer_.CountOf(Type::kPrefetch) == 2; }));
  std::thread cuts([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    peer_.Cut();
  });
  kvc::Fetch* const waiting[] = {&*one, &*two};
  EXPECT_TRUE(kvc::Fetch::WaitAny({waiting, 2}).has_value());
  cuts.join();
  EXPECT_EQ(one->Wait().error().code(), KVC_UNAVAILABLE);
  EXPECT_EQ(two->Wait().error().code(), KVC_UNAVAILABLE);
}

TEST_F(FetchTest, SeveralHaveToBeOneToManyOfOneClient) {
  size_t index = 7;
  EXPECT_EQ(kvc_wait_any(nullptr, 1, 0, &index, nullptr), KVC_INVALID_ARGUMENT);
  kvc_fetch* none[1] = {nullptr};
  EXPECT_EQ(kvc_wait_any(none, 1, 0, &index, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_wait_any(none, 0, 0, &index, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_wait_any(none, 257, 0, &index, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_wait_any(none, 1, 0, nullptr, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(index, 7u);
}

TEST_F(FetchTest, ALostConnectionIsToldAndStaysTold) {
  auto fetch = Ask();
  ASSERT_TRUE(fetch);
  ASSERT_TRUE(Await([&] { return last_request_ != 0; }));
  peer_.Cut();
  EXPECT_EQ(fetch->Wait().error().code(), KVC_UNAVAILABLE);
  ASSERT_TRUE(client_->WaitConnected().ok());
  EXPECT_EQ(fetch->Wait().error().code(), KVC_UNAVAILABLE) << "it is not asked again";
  EXPECT_EQ(peer_.CountOf(Type::kPrefetch), 1u);
}

TEST_F(FetchTest, AnAnswerForAnotherNumberOfPagesIsDataLoss) {
  for (const size_t count : {0u, 2u, 4u}) {
    On([&](const Frame& frame) {
      AnswerFetch(frame.header.request, std::vector<uint32_t>(count), 0);
    });
    auto fetch = Ask();
    ASSERT_TRUE(fetch);
    EXPECT_EQ(fetch->Wait().error().code(), KVC_DATA_LOSS) << count;
    EXPECT_EQ(fetch->Wait().error().code(), KVC_DATA_LOSS) << count;
  }
  EXPECT_TRUE(client_->Ping().ok());
}

TEST_F(FetchTest, CodesOfANewerDaemonAreInternal) {
  On([&](const Frame& frame) { AnswerFetch(frame.header.request, {0, 77, 4'000'000'000}, 1); });
  auto fetch = Ask();
  ASSERT_TRUE(fetch);
  EXPECT_EQ(fetch->Wait()->codes, (std::vector<kvc_code>{KVC_OK, KVC_INTERNAL, KVC_INTERNAL}));
}

TEST_F(FetchTest, ARefusalIsItsCode) {
  On([&](const Frame& frame) {
    peer_.SendError(frame.header.request, static_cast<uint32_t>(Code::kExhausted), "too many");
  });
  auto fetch = Ask();
  ASSERT_TRUE(fetch);
  EXPECT_EQ(fetch->Wait().error().code(), KVC_EXHAUSTED);
}

TEST_F(FetchTest, WhatNobodyWaitsForIsForgotten) {
  // More than there may be calls at a time.
  for (int i = 0; i < 600; ++i) {
    auto fetch = Ask();
    ASSERT_TRUE(fetch) << i << ": " << fetch.error().ToString();
  }
  // A reply that comes after all is nobody's.
  ASSERT_TRUE(Await([&] { return peer_.CountOf(Type::kPrefetch) == 600; }));
  AnswerFetch(last_request_, {0, 0, 0}, 3);
  EXPECT_TRUE(client_->Ping().ok());
  EXPECT_EQ(client_->epoch(), 1u) << "the connection is the same";
}

TEST_F(FetchTest, ThereAreOnlySoManyAtATime) {
  std::vector<kvc::Fetch> fetches;
  kvc_code refused = KVC_OK;
  while (refused == KVC_OK && fetches.size() < 10'000) {
    auto fetch = Ask();
    if (fetch) {
      fetches.push_back(*std::move(fetch));
    } else {
      refused = fetch.error().code();
    }
  }
  EXPECT_EQ(refused, KVC_EXHAUSTED);
  EXPECT_EQ(fetches.size(), 256u);
  fetches.clear();
  EXPECT_TRUE(client_->Ping().ok());
}

TEST_F(FetchTest, AFetchOutlivesItsClientsHandle) {
  auto fetch = Ask();
  ASSERT_TRUE(fetch);
  ASSERT_TRUE(Await([&] { return last_request_ != 0; }));
  space_.reset();
  client_.reset();
  EXPECT_EQ(fetch->Wait().error().code(), KVC_UNAVAILABLE);
}

TEST_F(FetchTest, ADaemonWithoutAStoreIsNotAsked) {
  peer_.SetCapabilities(0);
  peer_.SetResumes(false);
  peer_.SetLife(8);
  peer_.Cut();
  ASSERT_TRUE(Await([&] { return client_->epoch() == 2; }));
  EXPECT_EQ(Ask().error().code(), KVC_MISMATCH);
  EXPECT_EQ(client_->Persist(*space_, keys()).code(), KVC_MISMATCH);
  EXPECT_EQ(peer_.CountOf(Type::kPrefetch) + peer_.CountOf(Type::kPersist), 0u);
}

// ---- The durable acknowledgement

TEST_F(FetchTest, PersistTellsEachPageOrTheFirstThatIsNotDurable) {
  On([&](const Frame& frame) {
    wire::PersistReply reply;
    for (const uint32_t code : {0u, 6u, 8u})
      reply.add_codes(code);
    peer_.Send(Type::kPersistReply, frame.header.request, reply);
  });
  std::vector<kvc_code> codes(3);
  EXPECT_EQ(kvc_persist(client_->get(), space_->get(), keys_.data(), 3, 0, codes.data(), nullptr),
            KVC_OK);
  EXPECT_EQ(codes, (std::vector<kvc_code>{KVC_OK, KVC_EXHAUSTED, KVC_UNAVAILABLE}));
  const kvc::Status first = client_->Persist(*space_, keys());
  EXPECT_EQ(first.code(), KVC_EXHAUSTED);
  EXPECT_EQ(first.message(), "page 1 is not durable");
}

TEST_F(FetchTest, PersistThatIsAnsweredForOtherPagesIsDataLoss) {
  On([&](const Frame& frame) {
    wire::PersistReply reply;
    reply.add_codes(0);
    peer_.Send(Type::kPersistReply, frame.header.request, reply);
  });
  EXPECT_EQ(client_->Persist(*space_, keys()).code(), KVC_DATA_LOSS);
}

// ---- Arguments

TEST_F(FetchTest, WrongArgumentsAreRefusedWithoutAMessage) {
  kvc_client* const client = client_->get();
  const kvc_space* const space = space_->get();
  kvc_fetch* fetch = nullptr;
  const auto prefetch = [&](size_t count, const kvc_prefetch_options* options, kvc_fetch** out) {
    return kvc_prefetch(client, space, keys_.data(), count, options, 0, out, nullptr);
  };
  EXPECT_EQ(prefetch(0, nullptr, &fetch), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(prefetch(513, nullptr, &fetch), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(prefetch(3, nullptr, nullptr), KVC_INVALID_ARGUMENT);
  kvc_prefetch_options options{};
  EXPECT_EQ(prefetch(3, &options, &fetch), KVC_INVALID_ARGUMENT) << "struct_size is not set";
  options.struct_size = sizeof options;
  options.min_percent = 101;
  EXPECT_EQ(prefetch(3, &options, &fetch), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_prefetch(nullptr, space, keys_.data(), 3, nullptr, 0, &fetch, nullptr),
            KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_wait(nullptr, 0, nullptr, nullptr, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_persist(client, space, nullptr, 3, 0, nullptr, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_persist(client, space, keys_.data(), 513, 0, nullptr, nullptr),
            KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_demote(nullptr, 0, 0, nullptr, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_flush(nullptr, 0, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_flush_with_progress(nullptr, nullptr, nullptr, 0, nullptr), KVC_INVALID_ARGUMENT);
  kvc_fetch_destroy(nullptr);
  EXPECT_EQ(fetch, nullptr);
  EXPECT_EQ(peer_.CountOf(Type::kPrefetch) + peer_.CountOf(Type::kPersist), 0u);
}

}  // namespace
}  // namespace terrace::client
