// Pools of engines in a client: what the daemon is asked for, and what comes of its answers;
// against a scripted daemon.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <kvclient/pool.h>

#include <cstring>
#include <kvclient/pool.hpp>
#include <string>
#include <vector>

#include "tests/libclient/device/device_peer.h"

namespace terrace::client {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr uint64_t kPoolBytes = 4 * kGranule;

class PoolTest : public testing::Test {
 protected:
  PoolTest() {
    kvc_client_options options{};
    options.struct_size = sizeof options;
    options.socket_path = peer_.peer().socket().c_str();
    EXPECT_EQ(kvc_connect(&options, &client_, &error_), KVC_OK) << error_.message;
    EXPECT_EQ(kvc_device_open(client_, nullptr, 0, &device_, &error_), KVC_OK) << error_.message;
    const kvc_key id{};
    EXPECT_EQ(kvc_space_open_existing(client_, &id, 0, &space_, &error_), KVC_OK);
    memory_.struct_size = sizeof memory_;
    memory_.fd = file_.fd.get();
    memory_.bytes = kPoolBytes;
    layout_.struct_size = sizeof layout_;
    layout_.bases = bases_.data();
    layout_.segments = bases_.size();
    layout_.block_stride = 1024;
    layout_.block_bytes = 512;
    layout_.blocks_per_page = 2;
    pages_.struct_size = sizeof pages_;
    pages_.keys = keys_.data();
    pages_.count = keys_.size();
    pages_.blocks = blocks_.data();
  }
  ~PoolTest() override {
    kvc_pool_close(pool_);
    kvc_space_close(space_);
    kvc_device_close(device_);
    kvc_close(client_);
  }
  void Add() {
    ASSERT_EQ(kvc_pool_add(device_, &memory_, 0, &pool_, &error_), KVC_OK) << error_.message;
  }

  DevicePeer peer_;
  PeerMemory file_{kPoolBytes};
  kvc_client* client_ = nullptr;
  kvc_device* device_ = nullptr;
  kvc_space* space_ = nullptr;
  kvc_pool* pool_ = nullptr;
  kvc_error error_{};
  kvc_pool_memory memory_{};
  std::vector<uint64_t> bases_ = {64, 65536};
  std::vector<kvc_key> keys_{3};
  std::vector<uint32_t> blocks_ = {1, 9, 4, 0, 2, 7};
  kvc_pool_layout layout_{};
  kvc_pool_pages pages_{};
};

TEST_F(PoolTest, TheDaemonIsToldWhatTheEngineSaid) {
  Add();
  const kvc_key parent{{1, 2, 3}};
  const std::vector<uint32_t> tokens = {0, 0, 5};
  pages_.parent = &parent;
  pages_.position = 17;
  pages_.valid_tokens = tokens.data();
  layout_.page_first = 1;
  std::vector<kvc_code> codes(keys_.size());
  ASSERT_EQ(kvc_pool_store(pool_, space_, &layout_, &pages_, 8000, codes.data(), &error_), KVC_OK)
      << error_.message;
  EXPECT_THAT(codes, ElementsAre(KVC_OK, KVC_NOT_FOUND, KVC_OK));
  const wire::PoolPages told = peer_.pool_pages();
  EXPECT_EQ(told.pool(), 1u);
  EXPECT_THAT(told.bases(), ElementsAre(64, 65536));
  EXPECT_EQ(told.block_stride(), 1024u);
  EXPECT_EQ(told.block_bytes(), 512u);
  EXPECT_TRUE(told.page_first());
  EXPECT_EQ(told.slot(), 1u);
  EXPECT_EQ(told.epoch(), 1u);
  EXPECT_EQ(told.keys().size(), 3 * sizeof(Digest));
  EXPECT_THAT(told.blocks(), ElementsAre(1, 9, 4, 0, 2, 7));
  EXPECT_EQ(told.blocks_per_page(), 2u);
  EXPECT_THAT(told.valid_tokens(), ElementsAre(0, 0, 5));
  EXPECT_EQ(told.parent(), std::string(reinterpret_cast<const char*>(parent.bytes), 32));
  EXPECT_EQ(told.position(), 17u);
  EXPECT_GT(told.deadline_ms(), 0u);
  EXPECT_LT(told.deadline_ms(), 8000u) << "it answers before the call ends";
}

TEST_F(PoolTest, WithoutCodesTheFirstFailureIsTold) {
  Add();
  EXPECT_EQ(kvc_pool_fetch(pool_, space_, &layout_, &pages_, 0, nullptr, &error_), KVC_NOT_FOUND);
  EXPECT_THAT(error_.message, HasSubstr("page 1"));
  peer_.second_code = Code::kAlreadyExists;
  EXPECT_EQ(kvc_pool_store(pool_, space_, &layout_, &pages_, 0, nullptr, &error_), KVC_OK);
}

TEST_F(PoolTest, AnAnswerForOtherPagesIsNone) {
  Add();
  peer_.fewer_codes = true;
  EXPECT_EQ(kvc_pool_fetch(pool_, space_, &layout_, &pages_, 0, nullptr, &error_), KVC_DATA_LOSS);
}

TEST_F(PoolTest, ItIsRemovedOnceAndAtTheLatestWhenItIsClosed) {
  Add();
  EXPECT_THAT(peer_.pools(), SizeIs(1));
  EXPECT_EQ(kvc_pool_remove(pool_, 0, &error_), KVC_OK);
  EXPECT_THAT(peer_.pools(), IsEmpty());
  EXPECT_EQ(kvc_pool_remove(pool_, 0, &error_), KVC_OK) << "it is gone";
  EXPECT_EQ(kvc_pool_store(pool_, space_, &layout_, &pages_, 0, nullptr, &error_),
            KVC_INVALID_ARGUMENT);
  kvc_pool_close(std::exchange(pool_, nullptr));
  Add();
  EXPECT_THAT(peer_.pools(), SizeIs(1));
  kvc_pool_close(std::exchange(pool_, nullptr));
  EXPECT_THAT(peer_.pools(), IsEmpty());
}

TEST_F(PoolTest, WhatCannotBeIsRefusedBeforeTheDaemonIsAsked) {
  Add();
  const auto refused = [&] {
    return kvc_pool_store(pool_, space_, &layout_, &pages_, 0, nullptr, &error_) ==
           KVC_INVALID_ARGUMENT;
  };
  const kvc_pool_layout layout = layout_;
  const kvc_pool_pages pages = pages_;
  layout_.bases = nullptr;
  EXPECT_TRUE(refused());
  layout_ = layout;
  layout_.segments = 4097;
  EXPECT_TRUE(refused());
  layout_ = layout;
  layout_.blocks_per_page = 0;
  EXPECT_TRUE(refused());
  layout_ = layout;
  layout_.struct_size = 0;
  EXPECT_TRUE(refused());
  layout_ = layout;
  pages_.keys = nullptr;
  EXPECT_TRUE(refused());
  pages_ = pages;
  pages_.blocks = nullptr;
  EXPECT_TRUE(refused());
  pages_ = pages;
  pages_.count = 0;
  EXPECT_TRUE(refused());
  pages_.count = 513;
  EXPECT_TRUE(refused());
  EXPECT_EQ(kvc_pool_store(nullptr, space_, &layout_, &pages, 0, nullptr, &error_),
            KVC_INVALID_ARGUMENT);
  EXPECT_EQ(peer_.pool_pages().pool(), 0u) << "nothing was asked";
  kvc_pool* none = nullptr;
  memory_.fd = -1;
  EXPECT_EQ(kvc_pool_add(device_, &memory_, 0, &none, &error_), KVC_INVALID_ARGUMENT);
  memory_.data = this;
  EXPECT_EQ(kvc_pool_add(device_, &memory_, 0, &none, &error_), KVC_MISMATCH)
      << "memory of a device of the host has no address";
  EXPECT_EQ(none, nullptr);
}

TEST_F(PoolTest, APoolThatTheDaemonForgotIsStale) {
  Add();
  peer_.ForgetPools();
  EXPECT_EQ(kvc_pool_store(pool_, space_, &layout_, &pages_, 0, nullptr, &error_), KVC_STALE);
  EXPECT_EQ(kvc_pool_remove(pool_, 0, &error_), KVC_OK);
}

TEST_F(PoolTest, AnotherDaemonKnowsItNoMore) {
  Add();
  peer_.peer().Cut();
  const auto again = [&] {
    return kvc_pool_store(pool_, space_, &layout_, &pages_, 0, nullptr, &error_);
  };
  kvc_code code = KVC_UNAVAILABLE;
  while (code == KVC_UNAVAILABLE)
    code = again();
  EXPECT_EQ(code, KVC_STALE) << error_.message;
  EXPECT_EQ(kvc_pool_remove(pool_, 0, &error_), KVC_OK);
  kvc_pool_close(std::exchange(pool_, nullptr));
  Add();
  EXPECT_EQ(again(), KVC_NOT_FOUND) << "of the second page";
}

}  // namespace
}  // namespace terrace::client
