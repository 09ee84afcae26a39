// The verbs on pools of engines, over a simulated device.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <chrono>
#include <future>
#include <nlohmann/json.hpp>
#include <optional>

#include "tests/service/service_world.h"
#include "tiers/sim/sim_device_tier.h"

namespace terrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint32_t kPage = 16384;
constexpr uint64_t kSlab = 4 * kPage;
constexpr uint64_t kPool = 4 * kSlab;

class PoolVerbsTest : public testing::Test {
 protected:
  explicit PoolVerbsTest(const char* kind = "host")
      : tier_(64 * kSlab, kSlab, [](ArenaId) { return std::span<uint8_t>(); }),
        world_(Options(), 65536, true, Devices(kind)),
        client_(world_.Connect()),
        memory_(*CreateMemfd("pool", kPool)) {
    EXPECT_EQ(::fcntl(memory_.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
    EXPECT_EQ(Hello(client_, wire::kDeviceCapability), Status());
  }
  static EngineOptions Options() {
    EngineOptions options;
    options.host_capacity_bytes = 64u << 20;
    return options;
  }
  std::vector<DevicePart> Devices(const char* kind) {
    DeviceOptions options;
    options.kind = kind;
    options.capacity_bytes = 4 * kSlab;
    options.slab_bytes = kSlab;
    std::vector<DevicePart> devices;
    devices.push_back({.options = options, .tier = &tier_, .policy = MakeLru()});
    return devices;
  }
  static Status Hello(WireClient& client, uint64_t capabilities, bool writer = true) {
    wire::Hello hello;
    hello.set_version_min(wire::kProtocolVersion);
    hello.set_version_max(wire::kProtocolVersion);
    hello.set_writer(writer);
    hello.set_capabilities(capabilities);
    return client.Call<wire::HelloReply>(wire::Type::kHello, hello).status();
  }
  // The device works, and time passes, until there is an answer.
  template <typename Reply>
  Result<Reply> Call(wire::Type type, const google::protobuf::MessageLite& message,
                     const std::vector<int>& fds = {}, WireClient* whose = nullptr) {
    WireClient& client = whose == nullptr ? client_ : *whose;
    auto answer = std::async(std::launch::async,
                             [&] { return client.Call<Reply>(type, message, nullptr, fds); });
    while (answer.wait_for(std::chrono::milliseconds(1)) != std::future_status::ready)
      Work();
    return answer.get();
  }
  void Work() {
    world_.Advance(10 * kNsPerMs);
    world_.OnLoop([&] { tier_.RunPending(); });
  }
  static wire::PoolAdd AddMessage() {
    wire::PoolAdd add;
    add.set_device(1);
    add.set_bytes(kPool);
    return add;
  }
  Result<wire::PoolAddReply> Add(const wire::PoolAdd& add, const std::vector<int>& fds) {
    return Call<wire::PoolAddReply>(wire::Type::kPoolAdd, add, fds);
  }
  wire::PoolPages Pages(uint64_t pool) {
    wire::OpenSpace open;
    wire::Layout* layout = open.mutable_layout();
    layout->set_dtype("i8");
    layout->set_layers(1);
    layout->set_kv_heads(1);
    layout->set_head_size(kPage / 16);
    layout->set_page_tokens(16);
    layout->set_planes(1);
    layout->set_order("layer,plane,token,head,dim");
    const auto space = client_.Call<wire::OpenSpaceReply>(wire::Type::kOpenSpace, open);
    EXPECT_EQ(space.status(), Status());
    wire::PoolPages pages;
    pages.set_pool(pool);
    pages.add_bases(0);
    pages.set_block_stride(kPage);
    pages.set_block_bytes(kPage);
    pages.set_blocks_per_page(1);
    pages.set_slot(space->slot());
    pages.set_epoch(space->epoch());
    pages.set_keys(std::string(32, 'a') + std::string(32, 'b'));
    pages.add_blocks(3);
    pages.add_blocks(1);
    return pages;
  }
  // Until so many clients have no connection.
  void AwaitAway(int clients) {
    wire::Report report;
    report.set_what("status");
    for (;;) {
      const auto reply = client_.Call<wire::ReportReply>(wire::Type::kReport, report);
      ASSERT_EQ(reply.status(), Status());
      const nlohmann::json status = nlohmann::json::parse(reply->json());
      if (status["clients"]["away"] == clients) return;
    }
  }
  size_t Arenas() {
    size_t arenas = 0;
    world_.OnLoop([&] { arenas = tier_.arena_count(); });
    return arenas;
  }

  SimDeviceTier tier_;
  ServiceWorld world_;
  WireClient client_;
  UniqueFd memory_;
};

class CudaPoolVerbsTest : public PoolVerbsTest {
 protected:
  CudaPoolVerbsTest() : PoolVerbsTest("cuda") {}
};

TEST_F(PoolVerbsTest, APoolIsAddedStoredFromFetchedIntoAndRemoved) {
  const auto added = Add(AddMessage(), {memory_.get()});
  ASSERT_EQ(added.status(), Status());
  wire::PoolStore store;
  *store.mutable_pages() = Pages(added->pool());
  const auto stored = Call<wire::PoolStoreReply>(wire::Type::kPoolStore, store);
  ASSERT_EQ(stored.status(), Status());
  EXPECT_THAT(stored->codes(), ElementsAre(0u, 0u));
  const auto again = Call<wire::PoolStoreReply>(wire::Type::kPoolStore, store);
  ASSERT_EQ(again.status(), Status());
  const auto there = static_cast<uint32_t>(Code::kAlreadyExists);
  EXPECT_THAT(again->codes(), ElementsAre(there, there));
  wire::PoolFetch fetch;
  *fetch.mutable_pages() = store.pages();
  fetch.mutable_pages()->set_keys(std::string(32, 'b') + std::string(32, 'c'));
  const auto fetched = Call<wire::PoolFetchReply>(wire::Type::kPoolFetch, fetch);
  ASSERT_EQ(fetched.status(), Status());
  EXPECT_THAT(fetched->codes(), ElementsAre(0u, static_cast<uint32_t>(Code::kNotFound)));
  const size_t arenas = Arenas();
  wire::PoolRemove remove;
  remove.set_pool(added->pool());
  EXPECT_EQ(Call<wire::PoolRemoveReply>(wire::Type::kPoolRemove, remove).status(), Status());
  EXPECT_EQ(Arenas(), arenas - 1);
  EXPECT_EQ(Call<wire::PoolRemoveReply>(wire::Type::kPoolRemove, remove).status().code(),
            Code::kNotFound);
  EXPECT_EQ(Call<wire::PoolStoreReply>(wire::Type::kPoolStore, store).status().code(),
            Code::kNotFound);
}

TEST_F(PoolVerbsTest, WhatIsWrongIsNamed) {
  const auto refused = [&](const wire::PoolAdd& add, const std::vector<int>& fds, Code code,
                           const char* names) {
    const Status status = Add(add, fds).status();
    EXPECT_EQ(status.code(), code) << names;
    EXPECT_THAT(status.message(), HasSubstr(names));
  };
  const int fd = memory_.get();
  wire::PoolAdd add = AddMessage();
  refused(add, {}, Code::kInvalidArgument, "fds");
  refused(add, {fd, fd}, Code::kInvalidArgument, "fds");
  add.set_device(2);
  refused(add, {fd}, Code::kInvalidArgument, "device 2");
  add.set_device(0);
  refused(add, {fd}, Code::kInvalidArgument, "device 0");
  add = AddMessage();
  add.set_bytes(kPool - 1);
  refused(add, {fd}, Code::kInvalidArgument, "bytes");
  add.set_bytes(uint64_t{1} << 63);
  refused(add, {fd}, Code::kInvalidArgument, "bytes");
  add = AddMessage();
  const UniqueFd open = *CreateMemfd("pool", kPool);
  refused(add, {open.get()}, Code::kInvalidArgument, "sealed");
  add.set_handle(std::string(64, 'h'));
  refused(add, {}, Code::kInvalidArgument, "handle");
  EXPECT_EQ(Arenas(), 0u);
}

TEST_F(CudaPoolVerbsTest, AHandleHasItsSizeAndNoDescriptor) {
  wire::PoolAdd add = AddMessage();
  add.set_handle(std::string(63, 'h'));
  EXPECT_THAT(Add(add, {}).status().message(), HasSubstr("handle"));
  add.set_handle(std::string(64, 'h'));
  EXPECT_THAT(Add(add, {memory_.get()}).status().message(), HasSubstr("fds"));
  EXPECT_EQ(Arenas(), 0u);
  EXPECT_EQ(Add(add, {}).status(), Status());
  EXPECT_EQ(Arenas(), 1u);
}

TEST_F(PoolVerbsTest, WhoDoesNotKnowOfDevicesGetsNone) {
  WireClient old = world_.Connect();
  ASSERT_EQ(Hello(old, 0), Status());
  EXPECT_EQ(Call<wire::PoolAddReply>(wire::Type::kPoolAdd, AddMessage(), {memory_.get()}, &old)
                .status()
                .code(),
            Code::kMismatch);
}

TEST_F(PoolVerbsTest, APoolWhoseNumberNobodyLearnedIsRemoved) {
  std::optional<WireClient> gone(world_.Connect());
  ASSERT_EQ(Hello(*gone, wire::kDeviceCapability), Status());
  ASSERT_TRUE(gone->SendBytes(WireClient::Encode(wire::Type::kPoolAdd, 7, AddMessage(), 1),
                              {memory_.get()}));
  ASSERT_TRUE(gone->Ask(wire::Type::kPing, wire::Ping()).has_value());
  EXPECT_EQ(Arenas(), 1u);
  gone.reset();
  AwaitAway(1);
  Work();
  Work();
  EXPECT_EQ(Arenas(), 0u);
}

TEST_F(PoolVerbsTest, APoolThatWasNeverNamedEndsWithTheConnectionOfItsReply) {
  for (const bool named : {false, true}) {
    std::optional<WireClient> gone(world_.Connect());
    ASSERT_EQ(Hello(*gone, wire::kDeviceCapability), Status());
    const auto pool =
        Call<wire::PoolAddReply>(wire::Type::kPoolAdd, AddMessage(), {memory_.get()}, &*gone);
    ASSERT_EQ(pool.status(), Status());
    wire::PoolStore store;
    store.mutable_pages()->set_pool(pool->pool());
    if (named) {
      EXPECT_FALSE(gone->Call<wire::PoolStoreReply>(wire::Type::kPoolStore, store).has_value());
    }
    gone.reset();
    AwaitAway(named ? 2 : 1);
    Work();
    EXPECT_EQ(Arenas(), named ? 1u : 0u) << "the client may come back for it";
  }
}

TEST_F(PoolVerbsTest, AReaderFetchesAndDoesNotStore) {
  WireClient reader = world_.Connect();
  ASSERT_EQ(Hello(reader, wire::kDeviceCapability, /*writer=*/false), Status());
  const auto pool =
      Call<wire::PoolAddReply>(wire::Type::kPoolAdd, AddMessage(), {memory_.get()}, &reader);
  ASSERT_EQ(pool.status(), Status());
  wire::PoolStore store;
  store.mutable_pages()->set_pool(pool->pool());
  EXPECT_EQ(Call<wire::PoolStoreReply>(wire::Type::kPoolStore, store, {}, &reader).status().code(),
            Code::kPermissionDenied);
}

}  // namespace
}  // namespace terrace
