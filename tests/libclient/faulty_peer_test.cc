// A daemon's end of the socket that does everything wrong: errors, never a crash, never a leak.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <kvclient/admin.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <kvclient/kvclient.hpp>
#include <thread>
#include <vector>

#include "proto/shared_memory.h"
#include "tests/libclient/scripted_peer.h"

namespace terrace::client {
namespace {

using Act = ScriptedPeer::Act;
using wire::Type;

bool Await(const std::function<bool()>& met) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(10);
  while (!met()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

kvc::Result<kvc::Client> Connect(const ScriptedPeer& peer, int32_t timeout_ms = 10'000) {
  kvc_client_options options{};
  options.socket_path = peer.socket().c_str();
  options.timeout_ms = timeout_ms;
  return kvc::Client::Connect(options);
}

// A script for one type of request; the rest is answered as by a daemon.
// What it refers to is declared before its peer: the peer's thread ends with the peer.
ScriptedPeer::Script On(Type type, std::function<Act(ScriptedPeer&, const Frame&)> act) {
  return [type, act = std::move(act)](ScriptedPeer& peer, const Frame& frame) {
    return frame.header.type == type ? act(peer, frame) : Act::kDefault;
  };
}

std::string Header(uint32_t length, Type type, uint16_t fds, uint64_t request) {
  std::array<uint8_t, wire::kFrameHeaderBytes> bytes;
  wire::EncodeHeader({.length = length, .type = type, .fds = fds, .request = request}, bytes);
  return {bytes.begin(), bytes.end()};
}

int OpenDescriptors() {
  int open = 0;
  for (int fd = 0; fd < 1024; ++fd)
    open += ::fcntl(fd, F_GETFD) >= 0 ? 1 : 0;
  return open;
}

// ---- Hello

struct BadHello {
  const char* name;
  kvc_code code;
  std::function<Act(ScriptedPeer&, const Frame&)> act;
};

wire::HelloReply GoodReply() {
  wire::HelloReply reply;
  reply.set_version(wire::kProtocolVersion);
  reply.set_client(1);
  reply.set_max_pinned_bytes(1 << 30);
  reply.set_host_capacity_bytes(1 << 30);
  return reply;
}

std::vector<BadHello> BadHellos() {
  return {
      {"refused", KVC_PERMISSION_DENIED,
       [](ScriptedPeer& peer, const Frame& f) {
         peer.SendError(f.header.request, 9, "not you");
         return Act::kHandled;
       }},
      {"the connection refused, before the hello was read", KVC_PERMISSION_DENIED,
       [](ScriptedPeer& peer, const Frame&) {
         peer.SendError(0, 9, "nobody knows you here");
         return Act::kHangUp;
       }},
      {"a daemon of an older protocol", KVC_MISMATCH,
       [](ScriptedPeer& peer, const Frame& f) {
         wire::HelloReply reply = GoodReply();
         reply.set_version(0);
         peer.Send(Type::kHelloReply, f.header.request, reply);
         return Act::kHandled;
       }},
      {"error code of a newer daemon", KVC_INTERNAL,
       [](ScriptedPeer& peer, const Frame& f) {
         peer.SendError(f.header.request, 77, "?");
         return Act::kHandled;
       }},
      {"error that is none", KVC_INTERNAL,
       [](ScriptedPeer& peer, const Frame& f) {
         peer.SendError(f.header.request, 0, "ok?");
         return Act::kHandled;
       }},
      {"hung up", KVC_UNAVAILABLE, [](ScriptedPeer&, const Frame&) { return Act::kHangUp; }},
      {"hung up in the middle of a header", KVC_UNAVAILABLE,
       [](ScriptedPeer& peer, const Frame& f) {
         peer.SendRaw(Header(10, Type::kHelloReply, 0, f.header.request).substr(0, 7));
         return Act::kHangUp;
       }},
      {"hung up in the middle of a body", KVC_UNAVAILABLE,
       [](ScriptedPeer& peer, const Frame& f) {
         peer.SendRaw(Header(10, Type::kHelloReply, 0, f.header.request) + "abc");
         return Act::kHangUp;
       }},
      {"frame over the limit", KVC_DATA_LOSS,
       [](ScriptedPeer& peer, const Frame& f) {
         peer.SendRaw(Header(0xffffffff, Type::kHelloReply, 0, f.header.request));
         return Act::kHandled;
       }},
      {"more descriptors than there can be", KVC_DATA_LOSS,
       [](ScriptedPeer& peer, const Frame& f) {
         peer.SendRaw(Header(0, Type::kHelloReply, 300, f.header.request));
         return Act::kHandled;
       }},
      {"descriptors announced and not sent", KVC_DATA_LOSS,
       [](ScriptedPeer& peer, const Frame& f) {
         peer.SendRaw(Header(0, Type::kHelloReply, 2, f.header.request));
         return Act::kHandled;
       }},
      {"descriptors sent and not announced", KVC_DATA_LOSS,
       [](ScriptedPeer& peer, const Frame& f) {
         peer.SendRaw(Header(0, Type::kPingReply, 0, f.header.request + 7), {0, 0, 0});
         return Act::kHandled;
       }},
      {"reply of another kind", KVC_DATA_LOSS,
       [](ScriptedPeer& peer, const Frame& f) {
         peer.Send(Type::kPingReply, f.header.request, wire::PingReply());
         return Act::kHandled;
       }},
      {"body that is no message", KVC_DATA_LOSS,
       [](ScriptedPeer& peer, const Frame& f) {
         peer.SendBody(Type::kHelloReply, f.header.request, "\x0a\xff");
         return Act::kHandled;
       }},
      {"no channel", KVC_DATA_LOSS,
       [](ScriptedPeer& peer, const Frame& f) {
         const UniqueFd directory = ScriptedPeer::MakeDirectory(1);
         peer.Send(Type::kHelloReply, f.header.request, GoodReply(), {directory.get()});
         return Act::kHandled;
       }},
      {"channel that is too short", KVC_DATA_LOSS,
       [](ScriptedPeer& peer, const Frame& f) {
         const UniqueFd channel = ScriptedPeer::MakeChannel(4096);
         const UniqueFd directory = ScriptedPeer::MakeDirectory(1);
         peer.Send(Type::kHelloReply, f.header.request, GoodReply(),
                   {channel.get(), directory.get()});
         return Act::kHandled;
       }},
      {"channel of another layout", KVC_MISMATCH,
       [](ScriptedPeer& peer, const Frame& f) {
         const auto channel = CreateMemfd("x", shm::kChannelBytes);
         const UniqueFd directory = ScriptedPeer::MakeDirectory(1);
         peer.Send(Type::kHelloReply, f.header.request, GoodReply(),
                   {channel->get(), directory.get()});
         return Act::kHandled;
       }},
      {"directory that is none", KVC_INVALID_ARGUMENT,
       [](ScriptedPeer& peer, const Frame& f) {
         const UniqueFd channel = ScriptedPeer::MakeChannel(shm::kChannelBytes);
         const auto directory = CreateMemfd("x", shm::DirectoryBytes(shm::kMinCapacity));
         peer.Send(Type::kHelloReply, f.header.request, GoodReply(),
                   {channel.get(), directory->get()});
         return Act::kHandled;
       }},
      {"another protocol", KVC_MISMATCH,
       [](ScriptedPeer& peer, const Frame& f) {
         wire::HelloReply reply = GoodReply();
         reply.set_version(9);
         const UniqueFd channel = ScriptedPeer::MakeChannel(shm::kChannelBytes);
         const UniqueFd directory = ScriptedPeer::MakeDirectory(1);
         peer.Send(Type::kHelloReply, f.header.request, reply, {channel.get(), directory.get()});
         return Act::kHandled;
       }},
  };
}

TEST(FaultyPeer, EveryBadHelloIsAnErrorAndLeavesNoDescriptor) {
  for (const BadHello& bad : BadHellos()) {
    ScriptedPeer peer(On(Type::kHello, bad.act));
    const int before = OpenDescriptors();
    const auto client = Connect(peer);
    ASSERT_FALSE(client) << bad.name;
    EXPECT_EQ(client.error().code(), bad.code) << bad.name << ": " << client.error().ToString();
    EXPECT_FALSE(client.error().message().empty()) << bad.name;
    // The peer closes its own end a moment later.
    EXPECT_TRUE(Await([&] { return OpenDescriptors() <= before; })) << bad.name;
  }
}

TEST(FaultyPeer, SilentPeerIsADeadline) {
  ScriptedPeer peer(On(Type::kHello, [](auto&, auto&) { return Act::kHandled; }));
  EXPECT_EQ(Connect(peer, 50).error().code(), KVC_DEADLINE_EXCEEDED);
}

// ---- Calls

TEST(FaultyPeer, ReplyOfAnotherKindEndsTheConnectionAndTheClientComesBack) {
  std::atomic<int> wrong = 1;
  ScriptedPeer peer;
  auto client = Connect(peer);
  ASSERT_TRUE(client);
  peer.SetScript(On(Type::kPing, [&](ScriptedPeer& p, const Frame& f) {
    if (wrong.fetch_sub(1) <= 0) return Act::kDefault;
    p.Send(Type::kCommitReply, f.header.request, wire::CommitReply());
    return Act::kHandled;
  }));
  EXPECT_EQ(client->Ping().code(), KVC_DATA_LOSS);
  ASSERT_TRUE(client->WaitConnected().ok());
  EXPECT_TRUE(Await([&] { return client->Ping().ok(); }));
  EXPECT_EQ(client->epoch(), 1u) << "resumed";
}

TEST(FaultyPeer, LossDuringACallIsToldAtOnce) {
  ScriptedPeer peer;
  auto client = Connect(peer, 3'600'000);
  ASSERT_TRUE(client);
  peer.SetScript(On(Type::kPing, [](auto&, auto&) { return Act::kHangUp; }));
  EXPECT_EQ(client->Ping().code(), KVC_UNAVAILABLE);
}

TEST(FaultyPeer, LateReplyIsNotTakenForAnother) {
  std::atomic<uint64_t> late = 0;
  ScriptedPeer peer;
  auto client = Connect(peer);
  ASSERT_TRUE(client);
  peer.SetScript(On(Type::kPing, [&](ScriptedPeer& p, const Frame& f) {
    if (late == 0) {
      late = f.header.request;
      return Act::kHandled;
    }
    // Now the late one, as an error, and then the right one.
    p.SendError(late, 11, "late");
    p.SendError(f.header.request + 1000, 11, "to nobody");
    return Act::kDefault;
  }));
  EXPECT_EQ(client->Ping(20).code(), KVC_DEADLINE_EXCEEDED);
  EXPECT_TRUE(client->Ping().ok());
  EXPECT_TRUE(client->Ping().ok());
}

TEST(FaultyPeer, RepliesInAnotherOrderReachTheirCallers) {
  constexpr size_t kCalls = 8;
  constexpr int kRounds = 50;
  std::vector<std::pair<uint64_t, std::string>> waiting;  // The peer's thread only.
  ScriptedPeer peer;
  auto client = Connect(peer);
  ASSERT_TRUE(client);
  peer.SetScript(On(Type::kReport, [&](ScriptedPeer& p, const Frame& f) {
    wire::Report request;
    EXPECT_TRUE(request.ParseFromString(f.body));
    waiting.emplace_back(f.header.request, request.what());
    if (waiting.size() < kCalls) return Act::kHandled;
    for (auto it = waiting.rbegin(); it != waiting.rend(); ++it) {
      wire::ReportReply reply;
      reply.set_json("answer to " + it->second);
      p.Send(Type::kReportReply, it->first, reply);
    }
    waiting.clear();
    return Act::kHandled;
  }));
  std::atomic<int> right = 0;
  std::vector<std::thread> callers;
  for (size_t i = 0; i < kCalls; ++i) {
    callers.emplace_back([&, i] {
      for (int round = 0; round < kRounds; ++round) {
        const std::string what = std::to_string(i) + "/" + std::to_string(round);
        kvc_report_options options{};
        options.struct_size = sizeof options;
        options.what = what.c_str();
        char* json = nullptr;
        if (kvc_report(client->get(), &options, 0, &json, nullptr) != KVC_OK) continue;
        right += json == "answer to " + what ? 1 : 0;
        kvc_free(json);
      }
    });
  }
  for (std::thread& caller : callers)
    caller.join();
  EXPECT_EQ(right.load(), static_cast<int>(kCalls) * kRounds);
}

// ---- What a caller gave up is given back

void AnswerGrant(ScriptedPeer& peer, uint64_t request, const std::vector<uint64_t>& grants) {
  wire::GrantReply reply;
  for (const uint64_t grant : grants) {
    reply.add_codes(0);
    reply.add_grants(grant);
    reply.add_handles(shm::MakeHandle(1, static_cast<uint32_t>(grant), 0));
  }
  auto arena = CreateMemfd("arena", 1 << 20);
  wire::Arena* described = reply.add_arenas();
  described->set_id(1);
  described->set_bytes(1 << 20);
  described->set_page_bytes(4096);
  described->set_writable(true);
  peer.Send(Type::kGrantReply, request, reply, {arena->get()});
}

class GivenBack : public testing::Test {
 protected:
  void SetUp() override {
    peer_.SetScript([this](ScriptedPeer& p, const Frame& f) {
      if (f.header.type == Type::kOpenSpace) {
        p.AnswerOpenSpace(f);
        return Act::kHandled;
      }
      if (f.header.type == Type::kGrant) {
        if (hold_) {
          held_ = f.header.request;
        } else {
          AnswerGrant(p, f.header.request, {next_, next_ + 1});
        }
        return Act::kHandled;
      }
      if (f.header.type == Type::kAbort) {
        wire::Abort abort;
        EXPECT_TRUE(abort.ParseFromString(f.body));
        MutexLock lock(mu_);
        aborted_.insert(aborted_.end(), abort.grants().begin(), abort.grants().end());
      }
      return Act::kDefault;
    });
    auto client = Connect(peer_);
    ASSERT_TRUE(client);
    client_ = std::make_unique<kvc::Client>(*std::move(client));
    auto space = client_->OpenExistingSpace(kvc_key{});
    ASSERT_TRUE(space) << space.error().ToString();
    space_ = std::make_unique<kvc::Space>(*std::move(space));
  }
  void TearDown() override {
    space_.reset();
    client_.reset();
  }

  std::vector<uint64_t> aborted() {
    MutexLock lock(mu_);
    return aborted_;
  }

  std::atomic<bool> hold_ = false;
  std::atomic<uint64_t> held_ = 0;
  std::atomic<uint64_t> next_ = 10;
  Mutex mu_;
  std::vector<uint64_t> aborted_;
  ScriptedPeer peer_;
  std::unique_ptr<kvc::Client> client_;
  std::unique_ptr<kvc::Space> space_;
};

TEST_F(GivenBack, GrantsOfALateReply) {
  hold_ = true;
  const std::vector<kvc_key> keys(2);
  EXPECT_EQ(client_->Grant(*space_, {keys.data(), 2}, 0, 20).error().code(), KVC_DEADLINE_EXCEEDED);
  AnswerGrant(peer_, held_, {21, 22});
  EXPECT_TRUE(Await([&] { return aborted() == std::vector<uint64_t>{21, 22}; }));
}

TEST_F(GivenBack, ExpiredGrantsThatNobodyKnowsAndNoOthers) {
  const std::vector<kvc_key> keys(2);
  auto grants = client_->Grant(*space_, {keys.data(), 2});
  ASSERT_TRUE(grants) << grants.error().ToString();
  EXPECT_EQ((*grants)[1].writable().size(), 4096u);
  wire::GrantExpiredEvent event;
  for (const uint64_t grant : {5, 10, 11, 6})
    event.add_grants(grant);
  peer_.Send(Type::kGrantExpiredEvent, 0, event);
  EXPECT_TRUE(Await([&] { return aborted() == std::vector<uint64_t>{5, 6}; }));
  std::memset((*grants)[0].writable().data(), 1, 4096);
  { const kvc::Grants gone = *std::move(grants); }
  EXPECT_EQ(aborted(), (std::vector<uint64_t>{5, 6, 10, 11}));
}

TEST_F(GivenBack, CommitWithoutAnAnswerCanBeRepeatedAndWritesNoMore) {
  const std::vector<kvc_key> keys(2);
  kvc_grants* grants = nullptr;
  ASSERT_EQ(kvc_grant(client_->get(), space_->get(), keys.data(), 2, nullptr, 0, &grants, nullptr),
            KVC_OK);
  std::atomic<int> commits = 0;
  peer_.SetScript(On(Type::kCommit, [&](ScriptedPeer& p, const Frame& f) {
    wire::Commit commit;
    EXPECT_TRUE(commit.ParseFromString(f.body));
    EXPECT_EQ(commit.grants_size(), 2);
    if (++commits == 1) return Act::kHandled;
    wire::CommitReply reply;
    reply.add_codes(0);
    reply.add_codes(static_cast<uint32_t>(Code::kNotFound));
    p.Send(Type::kCommitReply, f.header.request, reply);
    return Act::kHandled;
  }));
  EXPECT_NE(kvc_grants_data(grants, 0), nullptr);
  EXPECT_EQ(kvc_commit(grants, nullptr, 20, nullptr), KVC_DEADLINE_EXCEEDED);
  EXPECT_EQ(kvc_grants_data(grants, 0), nullptr);
  EXPECT_EQ(kvc_commit(grants, nullptr, 0, nullptr), KVC_OK);
  EXPECT_EQ(kvc_grants_code(grants, 0), KVC_OK);
  EXPECT_EQ(kvc_grants_code(grants, 1), KVC_NOT_FOUND);
  kvc_grants_destroy(grants);
  EXPECT_EQ(commits, 2);
  EXPECT_EQ(peer_.CountOf(Type::kAbort), 0u);
}

TEST_F(GivenBack, GrantsOfAReplyThatIsWrong) {
  // Two pages asked for, three answered; and then an arena without its descriptor.
  peer_.SetScript([this](ScriptedPeer& p, const Frame& f) {
    if (f.header.type == Type::kGrant) {
      AnswerGrant(p, f.header.request, {31, 32, 33});
      return Act::kHandled;
    }
    if (f.header.type == Type::kAbort) {
      wire::Abort abort;
      EXPECT_TRUE(abort.ParseFromString(f.body));
      MutexLock lock(mu_);
      aborted_.insert(aborted_.end(), abort.grants().begin(), abort.grants().end());
    }
    return Act::kDefault;
  });
  const std::vector<kvc_key> keys(2);
  EXPECT_EQ(client_->Grant(*space_, {keys.data(), 2}).error().code(), KVC_DATA_LOSS);
  EXPECT_EQ(aborted(), (std::vector<uint64_t>{31, 32, 33}));
}

TEST_F(GivenBack, AttachmentOfALateReply) {
  std::atomic<uint64_t> request = 0;
  peer_.SetScript(On(Type::kAttach, [&](ScriptedPeer&, const Frame& f) {
    request = f.header.request;
    return Act::kHandled;
  }));
  EXPECT_EQ(client_->Attach("m", {}, 20).error().code(), KVC_DEADLINE_EXCEEDED);
  std::atomic<uint64_t> detached = 0;
  peer_.SetScript(On(Type::kDetach, [&](ScriptedPeer&, const Frame& f) {
    wire::Detach detach;
    EXPECT_TRUE(detach.ParseFromString(f.body));
    detached = detach.attachment();
    return Act::kDefault;
  }));
  wire::AttachReply reply;
  reply.set_attachment(44);
  peer_.Send(Type::kAttachReply, request, reply);
  EXPECT_TRUE(Await([&] { return detached == 44; }));
}

// The peer answers each request before it reads the next one, so it stops reading while its own
// output is queued, as the daemon does: somebody has to receive while requests are being sent.
TEST(FaultyPeer, LongRepliesAndLongRequestsDoNotWaitForEachOther) {
  constexpr int kCallers = 32;
  constexpr int kRounds = 20;
  constexpr size_t kReplyBytes = 1 << 20;
  // A field that the client does not know makes the reply long.
  const std::string reply = std::string("\x7a\x80\x80\x40") + std::string(kReplyBytes, 'x');
  ScriptedPeer peer;
  peer.SetScript([&](ScriptedPeer& p, const Frame& f) {
    if (f.header.type == Type::kOpenSpace) {
      p.AnswerOpenSpace(f);
    } else if (f.header.type == Type::kDrop) {
      p.SendBody(Type::kDropReply, f.header.request, reply);
    } else {
      return Act::kDefault;
    }
    return Act::kHandled;
  });
  auto client = Connect(peer, 20'000);
  ASSERT_TRUE(client);
  auto space = client->OpenExistingSpace(kvc_key{});
  ASSERT_TRUE(space);
  const std::vector<kvc_key> keys(512);
  std::atomic<int> right = 0;
  std::vector<std::thread> callers;
  for (int i = 0; i < kCallers; ++i) {
    callers.emplace_back([&] {
      for (int round = 0; round < kRounds; ++round) {
        if (!client->Drop(*space, {keys.data(), keys.size()})) return;
        ++right;
      }
    });
  }
  for (std::thread& caller : callers)
    caller.join();
  EXPECT_EQ(right.load(), kCallers * kRounds);
}

// The call that receives gives up while the background thread waits for a reply of its own.
TEST(FaultyPeer, LossIsSeenWhileSomethingIsBeingGivenBack) {
  std::atomic<uint64_t> attach = 0;
  std::atomic<bool> detaching = false;
  std::atomic<bool> refuse = false;
  ScriptedPeer peer;
  auto client = Connect(peer, 3'600'000);
  ASSERT_TRUE(client);
  peer.SetScript([&](ScriptedPeer& p, const Frame& f) {
    if (f.header.type == Type::kAttach) {
      attach = f.header.request;
    } else if (f.header.type == Type::kPing) {
      wire::AttachReply reply;
      reply.set_attachment(44);
      p.Send(Type::kAttachReply, attach, reply);
    } else if (f.header.type == Type::kDetach) {
      detaching = true;
    } else {
      return f.header.type == Type::kHello && refuse ? Act::kHangUp : Act::kDefault;
    }
    return Act::kHandled;
  });
  EXPECT_EQ(client->Attach("m", {}, 20).error().code(), KVC_DEADLINE_EXCEEDED);
  EXPECT_EQ(client->Ping(300).code(), KVC_DEADLINE_EXCEEDED);
  EXPECT_TRUE(Await([&] { return detaching.load(); }));
  refuse = true;
  peer.Cut();
  EXPECT_TRUE(Await([&] { return client->epoch() == 0; }));
}

// ---- Coming back

TEST(FaultyPeer, ResumeThatFailsOtherwiseIsTriedAgain) {
  std::atomic<int> failures = 3;
  ScriptedPeer peer;
  auto client = Connect(peer);
  ASSERT_TRUE(client);
  peer.SetScript(On(Type::kHello, [&](ScriptedPeer& p, const Frame& f) {
    wire::Hello hello;
    EXPECT_TRUE(hello.ParseFromString(f.body));
    EXPECT_NE(hello.resume_client(), 0u);
    if (failures.fetch_sub(1) <= 0) return Act::kDefault;
    p.SendError(f.header.request, 6, "too many clients now");
    return Act::kHandled;
  }));
  peer.Cut();
  ASSERT_TRUE(Await([&] { return failures < 0 && client->epoch() != 0; }));
  EXPECT_EQ(client->epoch(), 1u);
  EXPECT_EQ(peer.CountOf(Type::kHello), 5u);
}

TEST(FaultyPeer, RefusedResumeIsANewLife) {
  ScriptedPeer peer;
  auto client = Connect(peer);
  ASSERT_TRUE(client);
  peer.SetResumes(false);
  peer.Cut();
  ASSERT_TRUE(Await([&] { return client->epoch() == 2; }));
  EXPECT_TRUE(client->Ping().ok());
  EXPECT_EQ(peer.CountOf(Type::kHello), 3u);
}

TEST(FaultyPeer, ResumeInAnotherLifeIsRefused) {
  ScriptedPeer peer;
  auto client = Connect(peer);
  ASSERT_TRUE(client);
  peer.SetLife(8);  // And yet it resumes.
  peer.Cut();
  ASSERT_TRUE(Await([&] { return peer.CountOf(Type::kHello) >= 3; }));
  EXPECT_EQ(client->epoch(), 0u);
  peer.SetLife(7);
  EXPECT_TRUE(client->WaitConnected().ok());
  EXPECT_EQ(client->epoch(), 1u);
}

TEST(FaultyPeer, SpaceThatCannotBeOpenedAgainMissesAsStale) {
  std::atomic<bool> open = true;
  ScriptedPeer peer;
  peer.SetScript(On(Type::kOpenSpace, [&](ScriptedPeer& p, const Frame& f) {
    if (open) {
      p.AnswerOpenSpace(f);
    } else {
      p.SendError(f.header.request, 2, "no such model");
    }
    return Act::kHandled;
  }));
  auto client = Connect(peer);
  ASSERT_TRUE(client);
  auto space = client->OpenExistingSpace(kvc_key{});
  ASSERT_TRUE(space);
  auto reader = client->NewReader();
  ASSERT_TRUE(reader);
  kvc_miss why = KVC_MISS_NONE;
  EXPECT_FALSE(reader->Pin(*space, kvc_key{}, &why));
  EXPECT_EQ(why, KVC_MISS_STALE) << "the directory of the script has no such space";
  open = false;
  peer.SetResumes(false);
  peer.SetLife(8);
  peer.Cut();
  ASSERT_TRUE(Await([&] { return client->epoch() == 2; }));
  EXPECT_FALSE(reader->Pin(*space, kvc_key{}, &why));
  EXPECT_EQ(why, KVC_MISS_STALE);
  const kvc_key key{};
  EXPECT_EQ(client->Grant(*space, {&key, 1}).error().code(), KVC_STALE);
  EXPECT_EQ(client->Drop(*space, {&key, 1}).error().code(), KVC_STALE);
}

TEST(FaultyPeer, CallsAreBounded) {
  std::atomic<uint64_t> waiting = 0;
  ScriptedPeer peer;
  auto client = Connect(peer);
  ASSERT_TRUE(client);
  peer.SetScript(On(Type::kPing, [&](auto&, auto&) {
    ++waiting;
    return Act::kHandled;
  }));
  std::vector<std::thread> callers;
  for (int i = 0; i < 256; ++i) {
    callers.emplace_back([&] { EXPECT_EQ(client->Ping(60'000).code(), KVC_UNAVAILABLE); });
  }
  EXPECT_TRUE(Await([&] { return waiting == 256; }));
  EXPECT_EQ(client->Ping().code(), KVC_EXHAUSTED);
  peer.Cut();
  for (std::thread& caller : callers)
    caller.join();
}

TEST(FaultyPeer, GarbageAtAnyTimeNeverCrashesTheClient) {
  uint64_t seed = 1;
  ScriptedPeer peer;
  auto client = Connect(peer);
  ASSERT_TRUE(client);
  peer.SetScript(On(Type::kPing, [&](ScriptedPeer& p, const Frame& f) {
    std::string garbage;
    for (int i = 0; i < 40; ++i) {
      seed = seed * 6364136223846793005 + 1442695040888963407;
      garbage.push_back(static_cast<char>(seed >> 56));
    }
    // Often enough with a header that is taken for one.
    if (seed % 2 == 0) {
      const auto type = static_cast<Type>(seed >> 33 & 127);
      garbage = Header(24, type, 0, seed % 3 == 0 ? f.header.request : 0) + garbage.substr(16);
    }
    p.SendRaw(garbage);
    return seed % 5 == 0 ? Act::kHangUp : Act::kHandled;
  }));
  for (int round = 0; round < 200; ++round) {
    static_cast<void>(client->WaitConnected());
    static_cast<void>(client->Ping(20));  // Whatever comes of it.
  }
  peer.SetScript({});
  EXPECT_TRUE(Await([&] { return client->WaitConnected().ok() && client->Ping(1000).ok(); }));
}

// ---- Daemons of other releases

TEST(OtherReleases, AHelloSaysWhatThisLibraryKnows) {
  std::atomic<bool> right = false;
  ScriptedPeer peer(On(Type::kHello, [&](ScriptedPeer&, const Frame& frame) {
    wire::Hello hello;
    right = hello.ParseFromString(frame.body) && hello.version_min() == wire::kProtocolVersionMin &&
            hello.version_max() == wire::kProtocolVersion &&
            hello.capabilities() == wire::kCapabilities;
    return Act::kDefault;
  }));
  ASSERT_TRUE(Connect(peer));
  EXPECT_TRUE(right);
}

TEST(OtherReleases, TheErrorSaysWhichSideIsToBeUpdated) {
  const auto connect = [](uint32_t version) {
    ScriptedPeer peer(On(Type::kHello, [version](ScriptedPeer& its, const Frame& frame) {
      wire::HelloReply reply = GoodReply();
      reply.set_version(version);
      reply.set_daemon_version("0.0.7");
      its.Send(Type::kHelloReply, frame.header.request, reply);
      return Act::kHandled;
    }));
    return Connect(peer).error().ToString();
  };
  const auto says = [](uint32_t daemon, const std::string& what) {
    return "terraced 0.0.7, speaks version " + std::to_string(daemon) +
           " of the protocol, this library version " + std::to_string(wire::kProtocolVersion) +
           ": update the " + what;
  };
  constexpr uint32_t kOlder = wire::kProtocolVersionMin - 1;
  const std::string older = connect(kOlder);
  EXPECT_NE(older.find(says(kOlder, "daemon")), std::string::npos) << older;
  constexpr uint32_t kNewer = wire::kProtocolVersion + 1;
  const std::string newer = connect(kNewer);
  EXPECT_NE(newer.find(says(kNewer, "library")), std::string::npos) << newer;
}

// Refuses a hello as the daemon of `version` does.
ScriptedPeer::Script RefusesAllBut(uint32_t version) {
  return On(Type::kHello, [version](ScriptedPeer& its, const Frame& frame) {
    wire::Hello hello;
    EXPECT_TRUE(hello.ParseFromString(frame.body));
    // So that no daemon of another layout takes this library for one of its own.
    EXPECT_TRUE(hello.version_max() < version || hello.version_min() > version);
    its.SendError(frame.header.request, 4,
                  "terraced 0.0.7 speaks version " + std::to_string(version) +
                      ", this client version " + std::to_string(hello.version_max()));
    return Act::kHandled;
  });
}

TEST(OtherReleases, ADaemonThatRefusesTheVersionIsQuoted) {
  const std::string ours = ", this client version " + std::to_string(wire::kProtocolVersion);
  for (const uint32_t theirs : {shm::kLayoutVersion - 1, wire::kProtocolVersion + 1}) {
    ScriptedPeer peer(RefusesAllBut(theirs));
    const auto client = Connect(peer);
    EXPECT_EQ(client.error().code(), KVC_MISMATCH);
    const std::string text = client.error().ToString();
    EXPECT_NE(text.find("speaks version " + std::to_string(theirs) + ours), std::string::npos)
        << text;
  }
}

TEST(OtherReleases, WhoWaitsForAnUpgradedDaemonLearnsWhyItIsNotTaken) {
  ScriptedPeer peer;
  auto client = Connect(peer);
  ASSERT_TRUE(client);
  peer.SetScript(RefusesAllBut(wire::kProtocolVersion + 1));
  peer.Cut();
  std::string why;
  EXPECT_TRUE(Await([&] {
    why = client->WaitConnected(1).ToString();
    return why.find("speaks version " + std::to_string(wire::kProtocolVersion + 1)) !=
           std::string::npos;
  })) << why;
}

TEST(OtherReleases, WhatADaemonCannotDoYetIsNotAskedOfIt) {
  ScriptedPeer peer;  // Its hello names no capabilities, as one from before there were any.
  kvc::Client client = *Connect(peer);
  kvc_error error{};
  EXPECT_EQ(kvc_model_grant(client.get(), "m", "t", 0, &error), KVC_MISMATCH);
  EXPECT_NE(std::string(error.message).find("too old"), std::string::npos) << error.message;
  EXPECT_EQ(peer.CountOf(Type::kModelAccess), 0u);
  EXPECT_EQ(kvc_demote(client.get(), 0, 0, nullptr, &error), KVC_MISMATCH);
  EXPECT_EQ(kvc_flush(client.get(), 0, &error), KVC_MISMATCH);
  EXPECT_EQ(peer.CountOf(Type::kDemote) + peer.CountOf(Type::kFlush), 0u);
  EXPECT_EQ(kvc_ping(client.get(), 0, nullptr), KVC_OK);  // The rest goes on.
}

TEST(OtherReleases, WhatANewerDaemonKnowsBesidesIsIgnored) {
  ScriptedPeer peer(On(Type::kHello, [](ScriptedPeer& its, const Frame& frame) {
    wire::HelloReply reply = GoodReply();
    reply.set_capabilities(UINT64_MAX);
    reply.GetReflection()->MutableUnknownFields(&reply)->AddVarint(99, 1);
    const UniqueFd channel = ScriptedPeer::MakeChannel(shm::kChannelBytes);
    const UniqueFd directory = ScriptedPeer::MakeDirectory(1);
    its.Send(Type::kHelloReply, frame.header.request, reply, {channel.get(), directory.get()});
    its.SendBody(static_cast<Type>(999), 0, "an event of the future");
    return Act::kHandled;
  }));
  kvc::Client client = *Connect(peer);
  EXPECT_EQ(kvc_ping(client.get(), 0, nullptr), KVC_OK);
}

}  // namespace
}  // namespace terrace::client
