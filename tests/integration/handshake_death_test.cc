// SIGKILL at every point of a client's life on the socket: between any two messages, in the middle
// of one, with descriptors on their way in either direction. Nothing of it stays with the daemon:
// /proc shows the descriptors, the mappings and the memory that it had before.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>

#include <filesystem>

#include "base/random.h"
#include "bench/model_writer.h"
#include "proto/shared_memory.h"
#include "tests/integration/effort.h"
#include "tests/integration/integration_test.h"
#include "tests/support/process_facts.h"

namespace terrace {
namespace {

constexpr uint32_t kPageBytes = 16u << 10;
constexpr uint64_t kNever = UINT64_MAX;

// A client by the bare protocol that kills itself at one of its points.
class Mortal {
 public:
  Mortal(std::string socket, std::string model, uint64_t dies_at)
      : socket_(std::move(socket)), model_(std::move(model)), dies_at_(dies_at) {}

  // Runs to the end, or to its point. Answers how many points there are.
  Result<uint64_t> Live() {
    RETURN_IF_ERROR(Arrive());
    RETURN_IF_ERROR(Publish());
    RETURN_IF_ERROR(PassDescriptors());
    RETURN_IF_ERROR(AttachWeights());
    RETURN_IF_ERROR(Call<wire::GoodbyeReply>(wire::Type::kGoodbye, wire::Goodbye()).status());
    Point();
    return points_;
  }

 private:
  void Point() {
    if (points_++ == dies_at_) ::raise(SIGKILL);
  }

  // With a point in the middle of the frame, before its reply and after it.
  template <typename Reply>
  Result<Reply> Call(wire::Type type, const google::protobuf::MessageLite& message,
                     std::vector<UniqueFd>* reply_fds = nullptr, const std::vector<int>& fds = {}) {
    const std::string frame =
        WireClient::Encode(type, ++request_, message, static_cast<uint16_t>(fds.size()));
    const size_t half = frame.size() / 2;
    RETURN_UNLESS(wire_.SendBytes(frame.substr(0, half), fds), "sent");
    Point();
    RETURN_UNLESS(wire_.SendBytes(frame.substr(half)), "sent");
    Point();
    std::optional<ReceivedFrame> reply = wire_.Receive();
    RETURN_UNLESS(reply.has_value() && reply->header.request == request_, "answered");
    Point();
    return WireClient::Parse<Reply>(*std::move(reply), reply_fds);
  }

  Status Arrive() {
    Point();
    wire_ = WireClient::Connect(socket_);
    Point();
    wire::Hello hello;
    hello.set_version_min(wire::kProtocolVersion);
    hello.set_version_max(wire::kProtocolVersion);
    hello.set_name("mortal");
    hello.set_writer(true);
    std::vector<UniqueFd> fds;
    RETURN_IF_ERROR(Call<wire::HelloReply>(wire::Type::kHello, hello, &fds).status());
    RETURN_UNLESS(fds.size() == 2, "channel and directory");
    ASSIGN_OR_RETURN(channel_,
                     Mapping::Of(fds[0].get(), 0, shm::kChannelBytes, Protection::kReadWrite));
    Point();
    return {};
  }

  // The same four pages each time.
  Status Publish() {
    wire::OpenSpace open;
    wire::Layout* layout = open.mutable_layout();
    layout->set_dtype("i8");
    layout->set_layers(1);
    layout->set_kv_heads(1);
    layout->set_head_size(kPageBytes / 16);
    layout->set_page_tokens(16);
    layout->set_planes(1);
    layout->set_order("layer,plane,token,head,dim");
    ASSIGN_OR_RETURN(const wire::OpenSpaceReply space,
                     Call<wire::OpenSpaceReply>(wire::Type::kOpenSpace, open));
    const std::string keys(32 * 4, 'k');
    wire::Drop drop;
    drop.set_slot(space.slot());
    drop.set_epoch(space.epoch());
    drop.set_keys(keys);
    RETURN_IF_ERROR(Call<wire::DropReply>(wire::Type::kDrop, drop).status());
    wire::Grant grant;
    grant.set_slot(space.slot());
    grant.set_epoch(space.epoch());
    grant.set_keys(keys);
    std::vector<UniqueFd> slabs;
    ASSIGN_OR_RETURN(const wire::GrantReply granted,
                     Call<wire::GrantReply>(wire::Type::kGrant, grant, &slabs));
    wire::Commit commit;
    for (const uint64_t id : granted.grants())
      if (id != 0 && commit.grants_size() < 2) commit.add_grants(id);
    RETURN_IF_ERROR(Call<wire::CommitReply>(wire::Type::kCommit, commit).status());
    auto& channel = *reinterpret_cast<shm::Channel*>(channel_.data());
    channel.upper_summary[0].store(1);
    channel.summary[0].store(1);
    if (granted.handles_size() > 0) channel.lines[0].pins[0].store(granted.handles(0) | 1);
    Point();
    wire::Arenas arenas;
    for (const uint64_t handle : granted.handles())
      arenas.add_ids(shm::ArenaOf(handle));
    RETURN_IF_ERROR(Call<wire::ArenasReply>(wire::Type::kArenas, arenas, &slabs).status());
    return Call<wire::DirectoryReply>(wire::Type::kDirectory, wire::Directory(), &slabs).status();
  }

  Status AttachWeights() {
    wire::Attach attach;
    attach.set_name("model");
    attach.set_load(true);
    std::vector<UniqueFd> fds;
    ASSIGN_OR_RETURN(const wire::AttachReply attached,
                     Call<wire::AttachReply>(wire::Type::kAttach, attach, &fds));
    wire::AttachBlocks blocks;
    blocks.set_attachment(attached.attachment());
    return Call<wire::AttachBlocksReply>(wire::Type::kAttachBlocks, blocks, &fds).status();
  }

  // Registers the model again: the same files change nothing.
  Status PassDescriptors() {
    const UniqueFd file(::open(model_.c_str(), O_RDONLY | O_CLOEXEC));
    wire::ModelAdd add;
    add.set_name("model");
    add.set_version("1");
    add.add_files(model_);
    return Call<wire::ModelAddReply>(wire::Type::kModelAdd, add, nullptr, {file.get()}).status();
  }

  const std::string socket_;
  const std::string model_;
  const uint64_t dies_at_;
  uint64_t points_ = 0;
  uint64_t request_ = 0;
  WireClient wire_;
  Mapping channel_;
};

class HandshakeDeathTest : public IntegrationTest {
 protected:
  void SetUp() override {
    StartDaemon("16MiB");
    const std::string folder = daemon().folder() + "/model";
    ASSERT_TRUE(WriteModel(folder, ManyTensors(20), {}));
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path().extension() == ".safetensors") model_ = entry.path();
    }
    // Once to the end, so that slabs, blocks and whatever grows with use are there.
    bench::Child whole = Start(kNever);
    points_ = Hear<uint64_t>(whole);
    ExpectDone(whole);
    ASSERT_GT(points_, 30u);
    ASSERT_TRUE(Await([&] { return OtherClients() == 0; }));
    before_ = FactsOf(daemon().pid());
    resident_ = StatusBytes(daemon().pid(), "VmRSS");
  }

  bench::Child Start(uint64_t dies_at) {
    return StartProcess("mortal", [path = socket(), model = model_, dies_at](bench::Link& link) {
      Result<uint64_t> points = Mortal(path, model, dies_at).Live();
      if (!points) return std::move(points).error();
      return link.Send(*points);
    });
  }
  static void AwaitDeath(bench::Child& child) {
    pollfd gone{child.pidfd(), POLLIN, 0};
    ASSERT_EQ(::poll(&gone, 1, 60'000), 1) << "it did not come to its point";
  }
  void ExpectNothingLeft() {
    ASSERT_TRUE(Await([&] { return OtherClients() == 0; }));
    EXPECT_TRUE(Await([&] { return FactsOf(daemon().pid()) == before_; }))
        << "before: " << before_ << "\nnow: " << FactsOf(daemon().pid());
    const Json status = Report("status");
    EXPECT_EQ(status["pages"]["grants"], 0);
    EXPECT_EQ(status["clients"]["count"], 1);
    EXPECT_EQ(status["host"]["granted_bytes"], 0);
    EXPECT_EQ(Report("models")["models"][0]["versions"][0]["attachments"], 0);
  }

  std::string model_;
  uint64_t points_ = 0;
  ProcessFacts before_;
  uint64_t resident_ = 0;
};

TEST_F(HandshakeDeathTest, DeathAtAnyPointLeavesNothingBehind) {
  for (uint64_t point = 0; point < points_; ++point) {
    SCOPED_TRACE("point " + std::to_string(point));
    bench::Child mortal = Start(point);
    AwaitDeath(mortal);
    ExpectNothingLeft();
    if (HasFailure()) return;
  }
}

TEST_F(HandshakeDeathTest, ManyDeathsAtOnceLeaveNothingBehind) {
  Random random(7);
  const uint64_t rounds = Effort(60, 6);
  for (uint64_t round = 0; round < rounds; ++round) {
    std::vector<bench::Child> mortals;
    for (int i = 0; i < 6; ++i)
      mortals.push_back(Start(random.Below(points_)));
    for (bench::Child& mortal : mortals)
      AwaitDeath(mortal);
    if (HasFatalFailure()) return;
  }
  ExpectNothingLeft();
  if (kMemoryIsTelling) {
    EXPECT_LT(StatusBytes(daemon().pid(), "VmRSS"), resident_ + (16u << 20));
  }
}

}  // namespace
}  // namespace terrace
