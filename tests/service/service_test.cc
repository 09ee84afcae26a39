// The bounds of what the service keeps for its clients, reached and passed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "tests/service/service_world.h"

namespace terrace {
namespace {

using nlohmann::json;
using testing::HasSubstr;

wire::Hello Resume(const wire::HelloReply& client) {
  wire::Hello hello;
  hello.set_version_min(wire::kProtocolVersion);
  hello.set_version_max(wire::kProtocolVersion);
  hello.set_writer(true);
  hello.set_resume_client(client.client());
  hello.set_resume_token(client.token());
  return hello;
}

json StatusOf(WireClient& client) {
  wire::Report report;
  report.set_what("status");
  const Result<wire::ReportReply> reply =
      client.Call<wire::ReportReply>(wire::Type::kReport, report);
  EXPECT_EQ(reply.status(), Status());
  return reply ? json::parse(reply->json()) : json();
}

// Asks again, time passing for the daemon in between, until the status says so.
template <typename Condition>
bool Eventually(ServiceWorld& world, WireClient& watcher, Condition condition) {
  for (int i = 0; i < 10'000; ++i) {
    if (condition(StatusOf(watcher))) return true;
    world.Advance(kNsPerSecond);
  }
  return false;
}
bool IsAway(const json& status) {
  return status["clients"]["away"] == 1;
}

// ---- Arenas that went while a client was away

// An arena a page, and more of both than a client that is away is told of.
class AwayTest : public testing::Test {
 protected:
  static constexpr size_t kPage = 4096;
  static constexpr size_t kBatch = 250;  // Arenas, each with a descriptor.
  static constexpr size_t kBatches = kMaxMissedArenas / kBatch + 2;

  AwayTest() : world_(Options()), watcher_(world_.Connect()) {
    EXPECT_EQ(watcher_.Hello("watcher").status(), Status());
  }
  static EngineOptions Options() {
    EngineOptions options;
    options.host_capacity_bytes = (kBatches + 1) * kBatch * kPage;
    options.slab_bytes = kPage;
    options.block_bytes = kPage;
    options.huge_page_bytes = kPage;
    return options;
  }
  static Result<wire::OpenSpaceReply> OpenSpace(WireClient& client) {
    wire::OpenSpace open;
    wire::Layout* layout = open.mutable_layout();
    layout->set_dtype("i8");
    layout->set_layers(1);
    layout->set_kv_heads(1);
    layout->set_head_size(kPage / 16);
    layout->set_page_tokens(16);
    layout->set_planes(1);
    layout->set_order("layer,plane,token,head,dim");
    return client.Call<wire::OpenSpaceReply>(wire::Type::kOpenSpace, open);
  }
  // Publishes a batch of pages; notes the arenas that it was given for them.
  void Publish(WireClient& client, const wire::OpenSpaceReply& space, size_t batch) {
    wire::Grant grant;
    grant.set_slot(space.slot());
    grant.set_epoch(space.epoch());
    std::string keys(32 * kBatch, 'k');
    for (size_t i = 0; i < kBatch; ++i) {
      const uint64_t key = batch * kBatch + i;
      std::memcpy(keys.data() + 32 * i, &key, sizeof key);
    }
    grant.set_keys(keys);
    std::vector<UniqueFd> fds;
    const Result<wire::GrantReply> granted =
        client.Call<wire::GrantReply>(wire::Type::kGrant, grant, &fds);
    ASSERT_EQ(granted.status(), Status());
    ASSERT_EQ(fds.size(), kBatch);
    for (const wire::Arena& arena : granted->arenas())
      given_.insert(arena.id());
    wire::Commit commit;
    *commit.mutable_grants() = granted->grants();
    ASSERT_EQ(client.Call<wire::CommitReply>(wire::Type::kCommit, commit).status(), Status());
  }
  ServiceWorld world_;
  WireClient watcher_;
  std::set<uint32_t> given_;
};

TEST_F(AwayTest, AClientIsToldOfAsManyArenasThatWentAsTheBoundAndNoMore) {
  WireClient client = world_.Connect();
  const Result<wire::HelloReply> hello = client.Hello("away");
  ASSERT_EQ(hello.status(), Status());
  const Result<wire::OpenSpaceReply> space = OpenSpace(client);
  ASSERT_EQ(space.status(), Status());
  for (size_t batch = 0; batch < kBatches; ++batch)
    ASSERT_NO_FATAL_FAILURE(Publish(client, *space, batch));
  ASSERT_GT(given_.size(), kMaxMissedArenas);

  client.Close();
  ASSERT_TRUE(Eventually(world_, watcher_, IsAway));
  ASSERT_EQ(watcher_.Call<wire::EvictReply>(wire::Type::kEvict, wire::Evict()).status(), Status());
  ASSERT_TRUE(Eventually(world_, watcher_,
                         [](const json& status) { return status["host"]["arena_bytes"] == 0; }));

  client = world_.Connect();
  const Result<wire::HelloReply> back =
      client.Call<wire::HelloReply>(wire::Type::kHello, Resume(*hello));
  ASSERT_EQ(back.status(), Status());
  EXPECT_TRUE(back->resumed());
  // What it was not told of costs it mappings, and nobody else anything: it works on.
  ASSERT_NO_FATAL_FAILURE(Publish(client, *space, 0));
  std::set<uint32_t> told;
  for (ReceivedFrame& event : client.events) {
    ASSERT_EQ(event.header.type, wire::Type::kUnmapEvent);
    const auto unmap = WireClient::Parse<wire::UnmapEvent>(std::move(event));
    ASSERT_TRUE(unmap.has_value());
    for (const uint32_t arena : unmap->arenas())
      EXPECT_TRUE(told.insert(arena).second && given_.contains(arena)) << arena;
  }
  EXPECT_EQ(told.size(), kMaxMissedArenas);
}

// ---- Loads

TEST(LoadTest, AClientThatComesBackWaitsForNoMoreLoadsThanOneThatStays) {
  constexpr size_t kMost = 64;  // docs/protocol.md, Bounds.
  EngineOptions options;
  options.host_capacity_bytes = 4u << 20;
  options.slab_bytes = 256u << 10;
  options.block_bytes = 64u << 10;
  ServiceWorld world(options);
  WireClient client = world.Connect();
  const Result<wire::HelloReply> hello = client.Hello("greedy");
  ASSERT_EQ(hello.status(), Status());
  wire::ModelAdd add;
  add.set_name("m");
  add.set_version("1");
  add.add_files("/m");
  ASSERT_TRUE(client.Send(wire::Type::kModelAdd, 1, add));
  ASSERT_EQ(client.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status(), Status());
  world.RunFiles();
  std::optional<ReceivedFrame> added = client.Receive();
  ASSERT_TRUE(added.has_value());
  ASSERT_EQ(added->header.type, wire::Type::kModelAddReply);

  // Nothing answers from here on: the files are slow.
  wire::Load load;
  load.set_name("m");
  for (size_t i = 1; i < kMost; ++i)
    ASSERT_TRUE(client.Send(wire::Type::kLoad, 1000 + i, load));
  ASSERT_EQ(client.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status(), Status());
  client.Close();
  WireClient watcher = world.Connect();
  ASSERT_EQ(watcher.Hello("watcher").status(), Status());
  ASSERT_TRUE(Eventually(world, watcher, IsAway));

  client = world.Connect();
  ASSERT_EQ(client.Call<wire::HelloReply>(wire::Type::kHello, Resume(*hello)).status(), Status());
  ASSERT_TRUE(client.Send(wire::Type::kLoad, 1000 + kMost, load));
  const Status refused = client.Call<wire::LoadReply>(wire::Type::kLoad, load).status();
  EXPECT_EQ(refused.code(), Code::kExhausted);
  EXPECT_THAT(refused.message(), HasSubstr("64 times already"));
  // Another waits for the same load and gets it.
  ASSERT_TRUE(watcher.Send(wire::Type::kLoad, 2000, load));
  ASSERT_EQ(watcher.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status(), Status());
  world.RunFiles();
  std::optional<ReceivedFrame> loaded = watcher.Receive();
  while (loaded && loaded->header.type == wire::Type::kProgressEvent)
    loaded = watcher.Receive();
  ASSERT_TRUE(loaded.has_value());
  EXPECT_EQ(loaded->header.type, wire::Type::kLoadReply);
  // And so does who waited too often, now that it waits no more.
  EXPECT_EQ(client.Call<wire::LoadReply>(wire::Type::kLoad, load).status(), Status());
}

// ---- Descriptors that nobody takes

// A model of many blocks, and room for few of its descriptors.
class ShortOfDescriptorsTest : public testing::Test {
 protected:
  static constexpr uint64_t kRequest = 77;

  ShortOfDescriptorsTest() : world_(Options(), 128), admin_(world_.Connect()) {
    EXPECT_EQ(admin_.Hello("admin").status(), Status());
    wire::ModelAdd add;
    add.set_name("m");
    add.set_version("1");
    add.add_files("/large");
    EXPECT_EQ(Slowly<wire::ModelAddReply>(admin_, wire::Type::kModelAdd, add).status(), Status());
  }
  static EngineOptions Options() {
    EngineOptions options;
    options.host_capacity_bytes = 16u << 20;
    options.slab_bytes = 4096;
    options.block_bytes = 4096;
    options.huge_page_bytes = 4096;
    return options;
  }
  // What files have to answer first.
  template <typename Reply>
  Result<Reply> Slowly(WireClient& client, wire::Type type,
                       const google::protobuf::MessageLite& message) {
    EXPECT_TRUE(client.Send(type, kRequest, message));
    EXPECT_EQ(admin_.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status(), Status());
    world_.RunFiles();
    for (;;) {
      std::optional<ReceivedFrame> frame = client.Receive();
      if (!frame) return Status(Code::kUnavailable, "no reply");
      if (frame->header.request == kRequest && frame->header.type != wire::Type::kProgressEvent) {
        return WireClient::Parse<Reply>(*std::move(frame));
      }
    }
  }
  uint64_t Attach(WireClient& client) {
    EXPECT_EQ(client.Hello("engine").status(), Status());
    wire::Attach attach;
    attach.set_name("m");
    attach.set_load(true);
    const auto attached = Slowly<wire::AttachReply>(client, wire::Type::kAttach, attach);
    EXPECT_EQ(attached.status(), Status());
    return attached ? attached->attachment() : 0;
  }
  // Asks for all blocks and takes none: the first frame is there, and the last cannot be.
  static void AskForBlocks(WireClient& client, uint64_t attachment) {
    wire::AttachBlocks blocks;
    blocks.set_attachment(attachment);
    ASSERT_TRUE(client.Send(wire::Type::kAttachBlocks, kRequest, blocks));
    pollfd entry{client.fd(), POLLIN, 0};
    ASSERT_EQ(::poll(&entry, 1, 10'000), 1);
  }
  // What comes in place of the last frame.
  static Status EndOfBlocks(WireClient& client) {
    for (;;) {
      std::optional<ReceivedFrame> frame = client.Receive();
      if (!frame) return Status(Code::kUnavailable, "no end");
      ASSIGN_OR_RETURN(const wire::AttachBlocksReply reply,
                       WireClient::Parse<wire::AttachBlocksReply>(*std::move(frame)));
      if (reply.last()) return {};
    }
  }
  ServiceWorld world_;
  WireClient admin_;
};

TEST_F(ShortOfDescriptorsTest, AllBlocksComeToWhoTakesThem) {
  WireClient client = world_.Connect();
  ASSERT_NO_FATAL_FAILURE(AskForBlocks(client, Attach(client)));
  EXPECT_EQ(EndOfBlocks(client), Status());
}

TEST_F(ShortOfDescriptorsTest, WhoIsRevokedBetweenTwoFramesGetsNoFurtherBlock) {
  WireClient client = world_.Connect();
  ASSERT_NO_FATAL_FAILURE(AskForBlocks(client, Attach(client)));
  wire::ModelAccess revoke;
  revoke.set_name("m");
  revoke.set_tenant("default");
  ASSERT_EQ(Slowly<wire::ModelAccessReply>(admin_, wire::Type::kModelAccess, revoke).status(),
            Status());
  EXPECT_EQ(EndOfBlocks(client).code(), Code::kPermissionDenied);
}

// A load of which one answer comes at a time.
class EarlyAttachTest : public ShortOfDescriptorsTest {
 protected:
  template <typename Reply>
  Reply StepUntilAnswered(WireClient& client, wire::Type type,
                          const google::protobuf::MessageLite& message,
                          std::vector<UniqueFd>* fds = nullptr) {
    EXPECT_TRUE(client.Send(type, kRequest, message));
    pollfd entry{client.fd(), POLLIN, 0};
    for (int i = 0; i < 5000 && ::poll(&entry, 1, 1) == 0; ++i)
      world_.RunOneFile();
    std::optional<ReceivedFrame> frame = client.Receive();
    EXPECT_TRUE(frame.has_value());
    if (fds != nullptr) *fds = std::move(frame->fds);
    const Result<Reply> reply = WireClient::Parse<Reply>(*std::move(frame));
    EXPECT_EQ(reply.status(), Status());
    return reply ? *reply : Reply();
  }
};

TEST_F(EarlyAttachTest, TheFirstBlockCanBeMappedBeforeTheLastHasCome) {
  WireClient client = world_.Connect();
  ASSERT_EQ(client.Hello("engine").status(), Status());
  wire::Attach attach;
  attach.set_name("m");
  attach.set_early(true);
  EXPECT_EQ(client.Call<wire::AttachReply>(wire::Type::kAttach, attach).status().code(),
            Code::kInvalidArgument);
  attach.set_load(true);
  std::vector<UniqueFd> fds;
  const auto attached =
      StepUntilAnswered<wire::AttachReply>(client, wire::Type::kAttach, attach, &fds);
  EXPECT_TRUE(attached.arriving());
  EXPECT_EQ(attached.digest(), std::string(32, '\0'));
  EXPECT_EQ(fds.size(), 1u);

  wire::AttachWait wait;
  wait.set_attachment(attached.attachment());
  wait.add_blocks(0);
  const auto first =
      StepUntilAnswered<wire::AttachWaitReply>(client, wire::Type::kAttachWait, wait);
  EXPECT_TRUE(first.arriving());
  wire::AttachBlocks blocks;
  blocks.set_attachment(attached.attachment());
  blocks.add_blocks(100);
  blocks.add_blocks(0);
  const auto given = client.Call<wire::AttachBlocksReply>(wire::Type::kAttachBlocks, blocks, &fds);
  ASSERT_EQ(given.status(), Status());
  EXPECT_EQ(given->blocks_size(), 1);
  EXPECT_EQ(given->blocks(0), 0u);
  EXPECT_TRUE(given->last());
  EXPECT_EQ(fds.size(), 1u);

  wait.clear_blocks();
  const auto all = StepUntilAnswered<wire::AttachWaitReply>(client, wire::Type::kAttachWait, wait);
  EXPECT_FALSE(all.arriving());
  EXPECT_NE(all.digest(), std::string(32, '\0'));
  const auto both = client.Call<wire::AttachBlocksReply>(wire::Type::kAttachBlocks, blocks, &fds);
  ASSERT_EQ(both.status(), Status());
  EXPECT_EQ(fds.size(), 2u);
}

TEST_F(ShortOfDescriptorsTest, WhoWaitsTooLongForBlocksIsAnsweredExhausted) {
  WireClient client = world_.Connect();
  const uint64_t attachment = Attach(client);
  WireClient hoarders[] = {world_.Connect(), world_.Connect()};
  for (WireClient& hoarder : hoarders)
    ASSERT_NO_FATAL_FAILURE(AskForBlocks(hoarder, Attach(hoarder)));
  wire::AttachBlocks blocks;
  blocks.set_attachment(attachment);
  ASSERT_TRUE(client.Send(wire::Type::kAttachBlocks, kRequest, blocks));
  pollfd entry{client.fd(), POLLIN, 0};
  ASSERT_TRUE(Eventually(world_, admin_, [&](const json&) { return ::poll(&entry, 1, 0) == 1; }));
  EXPECT_EQ(EndOfBlocks(client).code(), Code::kExhausted);
  EXPECT_EQ(client.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status(), Status());
}

// In so many turns of the loop as there are answers to somebody else.
TEST_F(ShortOfDescriptorsTest, LongVerbsDoNotWaitForWhoWaits) {
  WireClient waiter = world_.Connect();
  ASSERT_NO_FATAL_FAILURE(AskForBlocks(waiter, Attach(waiter)));
  WireClient reporter = world_.Connect();
  ASSERT_EQ(reporter.Hello("reporter").status(), Status());
  for (int i = 0; i < 20; ++i) {
    wire::Report report;
    report.set_what("status");
    ASSERT_TRUE(reporter.Send(wire::Type::kReport, kRequest, report));
    for (int turn = 0; turn < 8; ++turn)
      ASSERT_EQ(admin_.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status(), Status());
    pollfd entry{reporter.fd(), POLLIN, 0};
    ASSERT_EQ(::poll(&entry, 1, 0), 1) << i;
    ASSERT_TRUE(reporter.Receive().has_value());
  }
}

TEST(HelloTest, OneThatWaitsForDescriptorsIsToldSoWhenItsTimeIsUp) {
  EngineOptions options;
  options.host_capacity_bytes = 4u << 20;
  ServiceWorld world(options, 32);
  WireClient watcher = world.Connect();
  ASSERT_EQ(watcher.Hello("watcher").status(), Status());
  wire::Hello hello;
  hello.set_version_min(wire::kProtocolVersion);
  hello.set_version_max(wire::kProtocolVersion);
  WireClient hoarder = world.Connect();
  ASSERT_TRUE(hoarder.Send(wire::Type::kHello, 1, hello));
  WireClient late = world.Connect();
  ASSERT_TRUE(late.Send(wire::Type::kHello, 1, hello));
  for (int i = 0; i < 8; ++i) {
    ASSERT_EQ(watcher.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status(), Status());
  }
  world.Advance(20 * kNsPerSecond);
  std::optional<ReceivedFrame> frame = late.Receive();
  ASSERT_TRUE(frame.has_value()) << "closed without a word";
  const Status why = WireClient::Parse<wire::HelloReply>(*std::move(frame)).status();
  EXPECT_EQ(why.code(), Code::kExhausted);
  EXPECT_THAT(why.message(), HasSubstr("descriptors: the connections of user"));
  EXPECT_TRUE(late.AwaitClosed());
}

}  // namespace
}  // namespace terrace
