// Every verb over the raw socket of the real daemon.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "proto/manifest.h"
#include "proto/shared_memory.h"
#include "tests/service/wire_client.h"
#include "tests/support/daemon_process.h"

namespace terrace {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr uint32_t kPageBytes = 2 * 2 * 2 * 16 * 16 * 2;

class VerbsTest : public testing::Test {
 protected:
  void SetUp() override {
    Result<std::unique_ptr<DaemonProcess>> daemon = DaemonProcess::Start();
    ASSERT_EQ(daemon.status(), Status());
    daemon_ = *std::move(daemon);
    client_ = WireClient::Connect(daemon_->socket());
    const Result<wire::HelloReply> hello = client_.Hello("test", true, &hello_fds_);
    ASSERT_EQ(hello.status(), Status());
    hello_ = *hello;
  }

  static wire::OpenSpace SpaceMessage() {
    wire::OpenSpace open;
    open.set_salt("verbs");
    wire::Layout* layout = open.mutable_layout();
    layout->set_dtype("bf16");
    layout->set_layers(2);
    layout->set_kv_heads(2);
    layout->set_head_size(16);
    layout->set_page_tokens(16);
    layout->set_planes(2);
    layout->set_order("layer,plane,token,head,dim");
    return open;
  }
  wire::OpenSpaceReply OpenSpace() {
    const Result<wire::OpenSpaceReply> space =
        client_.Call<wire::OpenSpaceReply>(wire::Type::kOpenSpace, SpaceMessage());
    EXPECT_EQ(space.status(), Status());
    return space ? *space : wire::OpenSpaceReply();
  }
  static std::string Keys(size_t count, char salt = 0) {
    std::string keys(32 * count, salt);
    for (size_t i = 0; i < count; ++i)
      std::memcpy(keys.data() + 32 * i, &i, sizeof i);
    return keys;
  }
  static wire::Grant GrantMessage(const wire::OpenSpaceReply& space, size_t count, char salt = 0) {
    wire::Grant grant;
    grant.set_slot(space.slot());
    grant.set_epoch(space.epoch());
    grant.set_keys(Keys(count, salt));
    return grant;
  }
  json Report(const std::string& what) {
    wire::Report report;
    report.set_what(what);
    const Result<wire::ReportReply> reply =
        client_.Call<wire::ReportReply>(wire::Type::kReport, report);
    EXPECT_EQ(reply.status(), Status());
    return reply ? json::parse(reply->json()) : json();
  }
  template <typename Reply>
  Status Refused(wire::Type type, const google::protobuf::MessageLite& message) {
    return client_.Call<Reply>(type, message).status();
  }

  std::unique_ptr<DaemonProcess> daemon_;
  WireClient client_;
  std::vector<UniqueFd> hello_fds_;
  wire::HelloReply hello_;
};

TEST_F(VerbsTest, HelloGivesASealedChannelAndAReadOnlyDirectory) {
  EXPECT_EQ(hello_.version(), wire::kProtocolVersion);
  EXPECT_NE(hello_.client(), 0u);
  EXPECT_NE(hello_.life(), 0u);
  EXPECT_EQ(hello_.tenant(), "default");
  EXPECT_TRUE(hello_.writer());
  EXPECT_FALSE(hello_.resumed());
  EXPECT_GT(hello_.max_pins(), 0u);
  EXPECT_GT(hello_.max_pinned_bytes(), 0u);
  EXPECT_GT(hello_.max_grants(), 0u);
  EXPECT_EQ(hello_.host_capacity_bytes(), 64u << 20);
  ASSERT_EQ(hello_fds_.size(), 2u);
  const int channel = hello_fds_[0].get();
  const int directory = hello_fds_[1].get();
  struct stat info {};
  ASSERT_EQ(::fstat(channel, &info), 0);
  EXPECT_EQ(static_cast<size_t>(info.st_size), shm::kChannelBytes);
  EXPECT_NE(::ftruncate(channel, 0), 0);
  EXPECT_NE(::fcntl(channel, F_ADD_SEALS, F_SEAL_WRITE), 0);
  Result<Mapping> mapped = Mapping::Of(channel, 0, shm::kChannelBytes, Protection::kReadWrite);
  ASSERT_EQ(mapped.status(), Status());
  const auto* header = reinterpret_cast<const shm::Channel*>(mapped->data());
  EXPECT_EQ(header->magic.load(), shm::kChannelMagic);
  EXPECT_EQ(header->client_id.load(), hello_.client());
  EXPECT_EQ(header->pin_lines.load() * shm::kPinsPerLine, hello_.max_pins());
  EXPECT_FALSE(Mapping::Of(directory, 0, 4096, Protection::kReadWrite).has_value());
  Result<Mapping> read = Mapping::Of(directory, 0, shm::kEntriesOffset, Protection::kRead);
  ASSERT_EQ(read.status(), Status());
  EXPECT_EQ(reinterpret_cast<const shm::DirectoryHeader*>(read->data())->magic.load(),
            shm::kDirectoryMagic);
}

TEST_F(VerbsTest, AHelloOfAnotherReleaseGetsAClearAnswer) {
  const auto hello = [&](uint32_t min, uint32_t max, uint64_t capabilities) {
    wire::Hello message;
    message.set_version_min(min);
    message.set_version_max(max);
    message.set_capabilities(capabilities);
    WireClient client = WireClient::Connect(daemon_->socket());
    return client.Call<wire::HelloReply>(wire::Type::kHello, message);
  };
  const uint32_t now = wire::kProtocolVersion;
  const Status older = hello(0, wire::kProtocolVersionMin - 1, 0).status();
  EXPECT_EQ(older.code(), Code::kMismatch);
  EXPECT_THAT(older.message(), HasSubstr("update the client"));
  const Status newer = hello(now + 1, now + 2, 0).status();
  EXPECT_EQ(newer.code(), Code::kMismatch);
  EXPECT_THAT(newer.message(), HasSubstr("update the daemon"));
  EXPECT_THAT(newer.message(), HasSubstr("this client versions " + std::to_string(now + 1)));
  EXPECT_EQ(hello(2, 1, 0).status().code(), Code::kInvalidArgument);
  // One that speaks older and newer versions too, and knows what this daemon does not.
  const Result<wire::HelloReply> both = hello(0, now + 5, UINT64_MAX);
  ASSERT_EQ(both.status(), Status());
  EXPECT_EQ(both->version(), now);
  EXPECT_EQ(both->capabilities(), wire::kCapabilities);
  EXPECT_EQ(both->daemon_version(), TERRACE_VERSION);
  // One from before there were capabilities.
  const Result<wire::HelloReply> plain = hello(now, now, 0);
  ASSERT_EQ(plain.status(), Status());
  EXPECT_EQ(plain->capabilities(), 0u);
}

TEST_F(VerbsTest, AClientOfAnotherLayoutLearnsBothVersionsFromItsHello) {
  const auto hello = [&](uint32_t version) {
    wire::Hello message;
    message.set_version_min(version);
    message.set_version_max(version);
    WireClient client = WireClient::Connect(daemon_->socket());
    std::vector<UniqueFd> fds;
    const Status refused =
        client.Call<wire::HelloReply>(wire::Type::kHello, message, &fds).status();
    EXPECT_THAT(fds, IsEmpty());  // Nothing to map.
    return refused;
  };
  const uint32_t now = wire::kProtocolVersion;
  const std::string ours =
      "terraced " TERRACE_VERSION " speaks version " + std::to_string(now) + " of the protocol";
  const Status older = hello(shm::kLayoutVersion - 1);
  EXPECT_EQ(older.code(), Code::kMismatch);
  EXPECT_THAT(older.message(),
              HasSubstr(ours + ", this client version " + std::to_string(shm::kLayoutVersion - 1) +
                        ": update the client"));
  const Status newer = hello(now + 1);
  EXPECT_EQ(newer.code(), Code::kMismatch);
  EXPECT_THAT(newer.message(), HasSubstr(ours + ", this client version " + std::to_string(now + 1) +
                                         ": update the daemon"));
}

TEST_F(VerbsTest, AHelloWithFieldsOfTheFutureIsTaken) {
  wire::Hello message;
  message.set_version_min(wire::kProtocolVersion);
  message.set_version_max(wire::kProtocolVersion);
  std::string bytes = message.SerializeAsString();
  // Field 100 as a number, field 101 as bytes.
  bytes += std::string("\xa0\x06\x01\xaa\x06\x02hi", 8);
  WireClient client = WireClient::Connect(daemon_->socket());
  ASSERT_TRUE(client.SendBytes(WireClient::Encode(wire::Type::kHello, 7, bytes)));
  std::optional<ReceivedFrame> frame = client.Receive();
  ASSERT_TRUE(frame.has_value());
  EXPECT_EQ(frame->header.type, wire::Type::kHelloReply);
}

TEST_F(VerbsTest, PingAndDirectory) {
  EXPECT_EQ(client_.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status(), Status());
  std::vector<UniqueFd> fds;
  const Result<wire::DirectoryReply> reply =
      client_.Call<wire::DirectoryReply>(wire::Type::kDirectory, wire::Directory(), &fds);
  ASSERT_EQ(reply.status(), Status());
  EXPECT_NE(reply->directory_id(), 0u);
  EXPECT_EQ(fds.size(), 1u);
}

TEST_F(VerbsTest, APageGoesFromGrantThroughTheArenaToEveryoneElse) {
  const wire::OpenSpaceReply space = OpenSpace();
  EXPECT_EQ(space.page_bytes(), kPageBytes);
  EXPECT_EQ(space.space_id().size(), 32u);
  EXPECT_EQ(space.layout().order(), "layer,plane,token,head,dim");

  std::vector<UniqueFd> fds;
  const Result<wire::GrantReply> granted =
      client_.Call<wire::GrantReply>(wire::Type::kGrant, GrantMessage(space, 3), &fds);
  ASSERT_EQ(granted.status(), Status());
  ASSERT_EQ(granted->grants_size(), 3);
  ASSERT_EQ(granted->arenas_size(), 1);
  ASSERT_EQ(fds.size(), 1u);
  EXPECT_TRUE(granted->arenas(0).writable());
  Result<Mapping> arena =
      Mapping::Of(fds[0].get(), 0, granted->arenas(0).bytes(), Protection::kReadWrite);
  ASSERT_EQ(arena.status(), Status());
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(shm::ArenaOf(granted->handles(i)), granted->arenas(0).id());
    std::memset(arena->data() + size_t{shm::SlotOf(granted->handles(i))} * kPageBytes, 'a' + i,
                kPageBytes);
  }
  EXPECT_EQ(Report("pages")["pages"].size(), 0u);
  wire::Commit commit;
  *commit.mutable_grants() = granted->grants();
  for (const uint32_t tokens : {16u, 16u, 5u})
    commit.add_valid_tokens(tokens);
  const Result<wire::CommitReply> committed =
      client_.Call<wire::CommitReply>(wire::Type::kCommit, commit);
  ASSERT_EQ(committed.status(), Status());
  EXPECT_THAT(committed->codes(), testing::ElementsAre(0, 0, 0));

  // The same arena is not given again; another client gets it read-only.
  const Result<wire::GrantReply> more =
      client_.Call<wire::GrantReply>(wire::Type::kGrant, GrantMessage(space, 1, 'm'), &fds);
  ASSERT_EQ(more.status(), Status());
  EXPECT_EQ(more->arenas_size(), 0);
  EXPECT_EQ(fds.size(), 0u);

  WireClient reader = WireClient::Connect(daemon_->socket());
  ASSERT_EQ(reader.Hello("reader", false).status(), Status());
  wire::Arenas arenas;
  arenas.add_ids(granted->arenas(0).id());
  arenas.add_ids(999'999);
  for (int i = 0; i < 200; ++i)
    arenas.add_ids(granted->arenas(0).id());
  arenas.set_writable(true);
  const Result<wire::ArenasReply> given =
      reader.Call<wire::ArenasReply>(wire::Type::kArenas, arenas, &fds);
  ASSERT_EQ(given.status(), Status());
  ASSERT_EQ(given->arenas_size(), 1);
  ASSERT_EQ(fds.size(), 1u);
  EXPECT_FALSE(given->arenas(0).writable());
  EXPECT_EQ(given->arenas(0).page_bytes(), kPageBytes);
  EXPECT_FALSE(
      Mapping::Of(fds[0].get(), 0, given->arenas(0).bytes(), Protection::kReadWrite).has_value());
  Result<Mapping> seen = Mapping::Of(fds[0].get(), 0, given->arenas(0).bytes(), Protection::kRead);
  ASSERT_EQ(seen.status(), Status());
  EXPECT_EQ(seen->data()[size_t{shm::SlotOf(granted->handles(2))} * kPageBytes], 'c');

  const json pages = Report("pages")["pages"];
  ASSERT_EQ(pages.size(), 3u);
  EXPECT_EQ(pages[0]["bytes"], kPageBytes);
  wire::Grant refused = GrantMessage(space, 1, 'r');
  EXPECT_EQ(reader.Call<wire::GrantReply>(wire::Type::kGrant, refused).status().code(),
            Code::kPermissionDenied);

  wire::Drop drop;
  drop.set_slot(space.slot());
  drop.set_epoch(space.epoch());
  drop.set_keys(Keys(2));
  EXPECT_EQ(client_.Call<wire::DropReply>(wire::Type::kDrop, drop)->dropped(), 2u);
  EXPECT_EQ(Report("pages")["pages"].size(), 1u);
  const Result<wire::EvictReply> evicted =
      client_.Call<wire::EvictReply>(wire::Type::kEvict, wire::Evict());
  ASSERT_EQ(evicted.status(), Status());
  EXPECT_EQ(evicted->pages(), 1u);
}

TEST_F(VerbsTest, ASecondCommitOfAKeyIsToldSoAndAnAbortGivesBack) {
  const wire::OpenSpaceReply space = OpenSpace();
  const auto grant = [&] {
    return client_.Call<wire::GrantReply>(wire::Type::kGrant, GrantMessage(space, 1));
  };
  const Result<wire::GrantReply> first = grant();
  const Result<wire::GrantReply> second = grant();
  ASSERT_EQ(first.status(), Status());
  ASSERT_EQ(second.status(), Status());
  wire::Commit commit;
  commit.add_grants(first->grants(0));
  ASSERT_EQ(client_.Call<wire::CommitReply>(wire::Type::kCommit, commit)->codes(0), 0u);
  commit.set_grants(0, second->grants(0));
  EXPECT_EQ(client_.Call<wire::CommitReply>(wire::Type::kCommit, commit)->codes(0),
            static_cast<uint32_t>(Code::kAlreadyExists));
  EXPECT_EQ(Report("status")["pages"]["grants"], 0);
  wire::Grant other = GrantMessage(space, 2, 'o');
  const Result<wire::GrantReply> third = client_.Call<wire::GrantReply>(wire::Type::kGrant, other);
  ASSERT_EQ(third.status(), Status());
  EXPECT_EQ(Report("status")["pages"]["grants"], 2);
  wire::Abort abort;
  *abort.mutable_grants() = third->grants();
  EXPECT_EQ(client_.Call<wire::AbortReply>(wire::Type::kAbort, abort).status(), Status());
  EXPECT_EQ(Report("status")["pages"]["grants"], 0);
}

TEST_F(VerbsTest, AGrantWhoseDeadlinePassesIsAnnouncedAndCannotBeCommitted) {
  const wire::OpenSpaceReply space = OpenSpace();
  wire::Grant grant = GrantMessage(space, 2);
  grant.set_deadline_ms(1);
  const Result<wire::GrantReply> granted =
      client_.Call<wire::GrantReply>(wire::Type::kGrant, grant);
  ASSERT_EQ(granted.status(), Status());
  std::vector<uint64_t> expired;
  while (expired.size() < 2) {
    std::optional<ReceivedFrame> frame = client_.Receive();
    ASSERT_TRUE(frame.has_value());
    ASSERT_EQ(frame->header.type, wire::Type::kGrantExpiredEvent);
    wire::GrantExpiredEvent event;
    ASSERT_TRUE(event.ParseFromString(frame->message));
    expired.insert(expired.end(), event.grants().begin(), event.grants().end());
  }
  EXPECT_THAT(expired, testing::UnorderedElementsAre(granted->grants(0), granted->grants(1)));
  wire::Commit commit;
  commit.add_grants(granted->grants(0));
  EXPECT_EQ(client_.Call<wire::CommitReply>(wire::Type::kCommit, commit)->codes(0),
            static_cast<uint32_t>(Code::kDeadlineExceeded));
}

TEST_F(VerbsTest, ASpaceIsFoundAgainByItsIdAndRefusedWhereItsLayoutDiffers) {
  const wire::OpenSpaceReply space = OpenSpace();
  WireClient other = WireClient::Connect(daemon_->socket());
  ASSERT_EQ(other.Hello("other").status(), Status());
  wire::OpenSpace by_id;
  by_id.set_space_id(space.space_id());
  const Result<wire::OpenSpaceReply> same =
      other.Call<wire::OpenSpaceReply>(wire::Type::kOpenSpace, by_id);
  ASSERT_EQ(same.status(), Status());
  EXPECT_EQ(same->slot(), space.slot());
  by_id.set_space_id(std::string(32, 'n'));
  EXPECT_EQ(other.Call<wire::OpenSpaceReply>(wire::Type::kOpenSpace, by_id).status().code(),
            Code::kNotFound);
  wire::OpenSpace broken = SpaceMessage();
  broken.mutable_layout()->set_page_tokens(15);
  const Status status = Refused<wire::OpenSpaceReply>(wire::Type::kOpenSpace, broken);
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("page_tokens"));
  wire::CloseSpace close;
  close.set_slot(space.slot());
  close.set_epoch(space.epoch());
  EXPECT_EQ(client_.Call<wire::CloseSpaceReply>(wire::Type::kCloseSpace, close).status(), Status());
}

TEST_F(VerbsTest, FieldsOutOfTheirBoundsAreNamed) {
  const wire::OpenSpaceReply space = OpenSpace();
  EXPECT_THAT(Refused<wire::GrantReply>(wire::Type::kGrant, GrantMessage(space, 513)).message(),
              HasSubstr("keys: 513 of them, at most 512"));
  wire::Grant odd = GrantMessage(space, 1);
  odd.set_keys("short");
  EXPECT_THAT(Refused<wire::GrantReply>(wire::Type::kGrant, odd).message(),
              HasSubstr("keys: 5 bytes"));
  wire::Drop drop;
  drop.set_keys(std::string(33, 'k'));
  EXPECT_THAT(Refused<wire::DropReply>(wire::Type::kDrop, drop).message(), HasSubstr("keys: 33"));
  wire::Commit commit;
  for (uint64_t i = 0; i < 513; ++i)
    commit.add_grants(i);
  EXPECT_THAT(Refused<wire::CommitReply>(wire::Type::kCommit, commit).message(),
              HasSubstr("grants: 513"));
  commit.clear_grants();
  commit.add_grants(1);
  commit.add_valid_tokens(1);
  commit.add_valid_tokens(1);
  EXPECT_THAT(Refused<wire::CommitReply>(wire::Type::kCommit, commit).message(),
              HasSubstr("valid_tokens: 2 for 1"));
  wire::Abort abort;
  for (uint64_t i = 0; i < 513; ++i)
    abort.add_grants(i);
  EXPECT_THAT(Refused<wire::AbortReply>(wire::Type::kAbort, abort).message(),
              HasSubstr("grants: 513"));
  wire::Arenas arenas;
  for (uint32_t i = 0; i < 254; ++i)
    arenas.add_ids(i);
  EXPECT_THAT(Refused<wire::ArenasReply>(wire::Type::kArenas, arenas).message(),
              HasSubstr("ids: 254"));
  wire::OpenSpace open = SpaceMessage();
  open.set_weights_digest("x");
  EXPECT_THAT(Refused<wire::OpenSpaceReply>(wire::Type::kOpenSpace, open).message(),
              HasSubstr("weights_digest: 1 bytes"));
  open = SpaceMessage();
  open.set_salt(std::string(65, 's'));
  EXPECT_THAT(Refused<wire::OpenSpaceReply>(wire::Type::kOpenSpace, open).message(),
              HasSubstr("salt: 65 bytes"));
  wire::Report report;
  report.set_what("everything");
  EXPECT_THAT(Refused<wire::ReportReply>(wire::Type::kReport, report).message(),
              HasSubstr("what: expected"));
  report.set_what("pages");
  report.set_limit(10'001);
  EXPECT_THAT(Refused<wire::ReportReply>(wire::Type::kReport, report).message(),
              HasSubstr("limit: 10001"));
  report.set_limit(1);
  report.set_space("zz");
  EXPECT_THAT(Refused<wire::ReportReply>(wire::Type::kReport, report).message(),
              HasSubstr("space: expected 64"));
  wire::ModelAdd add;
  add.set_name("m");
  EXPECT_THAT(Refused<wire::ModelAddReply>(wire::Type::kModelAdd, add).message(),
              HasSubstr("files: none"));
  add.add_files("relative");
  EXPECT_THAT(Refused<wire::ModelAddReply>(wire::Type::kModelAdd, add).message(),
              HasSubstr("files: 'relative' is no absolute path"));
  wire::AttachBlocks blocks;
  for (uint32_t i = 0; i < 4097; ++i)
    blocks.add_blocks(0);
  EXPECT_THAT(Refused<wire::AttachBlocksReply>(wire::Type::kAttachBlocks, blocks).message(),
              HasSubstr("blocks: 4097"));
  EXPECT_EQ(client_.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status(), Status());
}

// A safetensors file with one tensor of `bytes` bytes "T".
void WriteModel(const std::string& path, size_t bytes) {
  const std::string header = "{\"layers.0.weight\":{\"dtype\":\"U8\",\"shape\":[" +
                             std::to_string(bytes) + "],\"data_offsets\":[0," +
                             std::to_string(bytes) + "]}}";
  const uint64_t length = header.size();
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), sizeof length);
  file << header;
  for (size_t i = 0; i < bytes; ++i)
    file.put(static_cast<char>(i % 251));
}

TEST_F(VerbsTest, AModelIsAddedLoadedAttachedUnloadedAndRemoved) {
  const std::string path = daemon_->folder() + "/model.safetensors";
  constexpr size_t kBytes = 5'000'000;
  WriteModel(path, kBytes);
  wire::ModelAdd add;
  add.set_name("tiny");
  add.set_version("v1");
  add.add_files(path);
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  const Result<wire::ModelAddReply> added =
      client_.Call<wire::ModelAddReply>(wire::Type::kModelAdd, add, nullptr, {file.get()});
  ASSERT_EQ(added.status(), Status());
  EXPECT_EQ(added->tensors(), 1u);
  EXPECT_EQ(added->blocks(), 3u);  // Of 2 MiB.
  EXPECT_TRUE(added->durable()) << added->why_not();

  wire::Attach attach;
  attach.set_name("tiny");
  EXPECT_EQ(Refused<wire::AttachReply>(wire::Type::kAttach, attach).code(), Code::kNotFound);
  wire::Load load;
  load.set_name("tiny");
  const Result<wire::LoadReply> loaded = client_.Call<wire::LoadReply>(wire::Type::kLoad, load);
  ASSERT_EQ(loaded.status(), Status());
  EXPECT_EQ(loaded->version(), "v1");
  EXPECT_EQ(loaded->digest().size(), 32u);
  for (const ReceivedFrame& event : client_.events) {
    EXPECT_EQ(event.header.type, wire::Type::kProgressEvent);
  }

  std::vector<UniqueFd> fds;
  const Result<wire::AttachReply> attached =
      client_.Call<wire::AttachReply>(wire::Type::kAttach, attach, &fds);
  ASSERT_EQ(attached.status(), Status());
  ASSERT_EQ(fds.size(), 1u);
  EXPECT_FALSE(Mapping::Of(fds[0].get(), 0, 4096, Protection::kReadWrite).has_value());
  Result<Mapping> manifest =
      Mapping::Of(fds[0].get(), 0, attached->manifest_bytes(), Protection::kRead);
  ASSERT_EQ(manifest.status(), Status());
  const auto* header = reinterpret_cast<const manifest::ManifestHeader*>(manifest->data());
  EXPECT_EQ(header->magic, manifest::kManifestMagic);
  EXPECT_EQ(header->blocks, 3u);

  wire::AttachBlocks blocks;
  blocks.set_attachment(attached->attachment());
  const Result<wire::AttachBlocksReply> given =
      client_.Call<wire::AttachBlocksReply>(wire::Type::kAttachBlocks, blocks, &fds);
  ASSERT_EQ(given.status(), Status());
  EXPECT_TRUE(given->last());
  EXPECT_THAT(given->blocks(), testing::ElementsAre(0, 1, 2));
  ASSERT_EQ(fds.size(), 3u);
  for (size_t block = 0; block < 3; ++block) {
    EXPECT_FALSE(Mapping::Of(fds[block].get(), 0, 4096, Protection::kReadWrite).has_value());
    Result<Mapping> bytes = Mapping::Of(fds[block].get(), 0, 4096, Protection::kRead);
    ASSERT_EQ(bytes.status(), Status());
    EXPECT_EQ(bytes->data()[9], (block * (2u << 20) + 9) % 251);
  }

  const json model = Report("models")["models"][0];
  EXPECT_EQ(model["name"], "tiny");
  EXPECT_EQ(model["versions"][0]["attachments"], 1);
  EXPECT_EQ(model["versions"][0]["files"][0]["path"], path);
  wire::Unload unload;
  unload.set_name("tiny");
  const Result<wire::UnloadReply> held =
      client_.Call<wire::UnloadReply>(wire::Type::kUnload, unload);
  ASSERT_EQ(held.status(), Status());
  EXPECT_GT(held->held_bytes(), 0u);
  wire::Detach detach;
  detach.set_attachment(attached->attachment());
  EXPECT_EQ(client_.Call<wire::DetachReply>(wire::Type::kDetach, detach).status(), Status());
  EXPECT_EQ(Refused<wire::DetachReply>(wire::Type::kDetach, detach).code(), Code::kNotFound);
  wire::ModelRemove remove;
  remove.set_name("tiny");
  EXPECT_EQ(client_.Call<wire::ModelRemoveReply>(wire::Type::kModelRemove, remove).status(),
            Status());
  EXPECT_EQ(Report("models")["models"].size(), 0u);
  EXPECT_EQ(Refused<wire::LoadReply>(wire::Type::kLoad, load).code(), Code::kNotFound);
}

TEST_F(VerbsTest, ARegisteredModelSurvivesARestartAndASigkill) {
  const std::string path = daemon_->folder() + "/model.safetensors";
  WriteModel(path, 100'000);
  wire::ModelAdd add;
  add.set_name("kept");
  add.set_version("v1");
  add.add_files(path);
  ASSERT_EQ(client_.Call<wire::ModelAddReply>(wire::Type::kModelAdd, add).status(), Status());
  for (const bool gently : {true, false}) {
    if (gently) {
      ASSERT_EQ(*daemon_->Stop(), 0);
    } else {
      daemon_->Kill();
    }
    ASSERT_EQ(daemon_->Launch(), Status());
    client_ = WireClient::Connect(daemon_->socket());
    const Result<wire::HelloReply> hello = client_.Hello("again");
    ASSERT_EQ(hello.status(), Status());
    EXPECT_NE(hello->life(), hello_.life());
    wire::Load load;
    load.set_name("kept");
    EXPECT_EQ(client_.Call<wire::LoadReply>(wire::Type::kLoad, load).status(), Status());
  }
}

TEST_F(VerbsTest, StatusCountsFramesByTypeAndSaysWhoIsIsolated) {
  const json before = Report("status")["traffic"]["frames_received"];
  for (int i = 0; i < 5; ++i) {
    ASSERT_EQ(client_.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status(), Status());
  }
  const json status = Report("status");
  EXPECT_EQ(status["traffic"]["frames_received"]["ping"], before.value("ping", 0) + 5);
  EXPECT_EQ(status["traffic"]["frames_sent"]["ping_reply"], 5);
  EXPECT_EQ(status["traffic"]["connections"], 1);
  EXPECT_GT(status["traffic"]["bytes_received"], 0);
  EXPECT_THAT(status["daemon"]["isolation"], HasSubstr("user mode: tenants are not isolated"));
  EXPECT_EQ(status["daemon"]["pid"], daemon_->pid());
  EXPECT_EQ(status["host"]["capacity_bytes"], 64u << 20);
  EXPECT_FALSE(status["host"]["huge_pages"].get<std::string>().empty());
  EXPECT_FALSE(status["host"]["locking"].get<std::string>().empty());
  EXPECT_EQ(status["clients"]["count"], 1);
  const json client = Report("clients")["clients"][0];
  EXPECT_EQ(client["name"], "test");
  EXPECT_EQ(client["pid"], ::getpid());
  EXPECT_EQ(client["writer"], true);
  EXPECT_EQ(Report("spaces")["spaces"].size(), 0u);
  OpenSpace();
  EXPECT_EQ(Report("spaces")["spaces"][0]["layout"]["dtype"], "bf16");
}

TEST_F(VerbsTest, ManyBatchesMayBeUnderWayAtOnce) {
  const wire::OpenSpaceReply space = OpenSpace();
  std::string bytes;
  for (uint64_t i = 0; i < 200; ++i) {
    bytes += WireClient::Encode(wire::Type::kGrant, 1000 + i, GrantMessage(space, 1, 'p'));
  }
  ASSERT_TRUE(client_.SendBytes(bytes));
  for (uint64_t i = 0; i < 200; ++i) {
    std::optional<ReceivedFrame> frame = client_.Receive();
    ASSERT_TRUE(frame.has_value());
    EXPECT_EQ(frame->header.request, 1000 + i);
    EXPECT_EQ(frame->header.type, wire::Type::kGrantReply);
  }
}

TEST_F(VerbsTest, AnAttachmentThatWasNeverUsedEndsWithItsConnection) {
  const std::string path = daemon_->folder() + "/model.safetensors";
  WriteModel(path, 5'000'000);
  wire::ModelAdd add;
  add.set_name("tiny");
  add.set_version("v1");
  add.add_files(path);
  ASSERT_EQ(client_.Call<wire::ModelAddReply>(wire::Type::kModelAdd, add).status(), Status());
  WireClient engine = WireClient::Connect(daemon_->socket());
  const Result<wire::HelloReply> hello = engine.Hello("engine");
  ASSERT_EQ(hello.status(), Status());
  wire::Attach attach;
  attach.set_name("tiny");
  attach.set_load(true);
  wire::AttachBlocks blocks;
  wire::AttachBlocks unused;
  for (const bool used : {false, true}) {
    const Result<wire::AttachReply> attached =
        engine.Call<wire::AttachReply>(wire::Type::kAttach, attach);
    ASSERT_EQ(attached.status(), Status());
    (used ? blocks : unused).set_attachment(attached->attachment());
    if (!used) continue;
    ASSERT_EQ(engine.Call<wire::AttachBlocksReply>(wire::Type::kAttachBlocks, blocks).status(),
              Status());
  }
  engine.Close();
  wire::Report report;
  report.set_what("models");
  const auto attachments = [&] {
    const Result<wire::ReportReply> reply =
        client_.Call<wire::ReportReply>(wire::Type::kReport, report);
    return reply ? json::parse(reply->json())["models"][0]["versions"][0]["attachments"].get<int>()
                 : -1;
  };
  for (int i = 0; i < 2000 && attachments() != 1; ++i)
    ::poll(nullptr, 0, 5);
  EXPECT_EQ(attachments(), 1);
  engine = WireClient::Connect(daemon_->socket());
  wire::Hello resume;
  resume.set_version_min(wire::kProtocolVersion);
  resume.set_version_max(wire::kProtocolVersion);
  resume.set_resume_client(hello->client());
  resume.set_resume_token(hello->token());
  ASSERT_EQ(engine.Call<wire::HelloReply>(wire::Type::kHello, resume).status(), Status());
  EXPECT_EQ(engine.Call<wire::AttachBlocksReply>(wire::Type::kAttachBlocks, unused).status().code(),
            Code::kNotFound);
  EXPECT_EQ(engine.Call<wire::AttachBlocksReply>(wire::Type::kAttachBlocks, blocks).status(),
            Status());
}

TEST_F(VerbsTest, MoreFilesThanAFrameHasDescriptorsCannotBePassedByThem) {
  wire::ModelAdd add;
  add.set_name("many");
  add.set_version("v1");
  for (int i = 0; i < 254; ++i)
    add.add_files("/m/" + std::to_string(i));
  const UniqueFd file(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const Status status =
      client_.Call<wire::ModelAddReply>(wire::Type::kModelAdd, add, nullptr, {file.get()}).status();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("files: 254 of them"));
}

}  // namespace
}  // namespace terrace
