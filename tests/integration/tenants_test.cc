// Who is who, and who may do what: several sockets, real users.
#include "tests/integration/tenants_test.h"

#include <gmock/gmock.h>

#include <csignal>
#include <fstream>
#include <iterator>

#include "bench/model_writer.h"
#include "tests/support/process_facts.h"

namespace terrace {
namespace {

using testing::HasSubstr;

// "tenant", with "/writer" where it got what it asked for.
Result<std::string> IdentityAt(const std::string& socket) {
  WireClient wire = WireClient::Connect(socket);
  wire::Hello hello;
  hello.set_version_min(wire::kProtocolVersion);
  hello.set_version_max(wire::kProtocolVersion);
  hello.set_writer(true);
  // Who is refused may find the connection closed before it has said anything; the reason is there.
  (void)wire.Send(wire::Type::kHello, 1, hello);
  std::optional<ReceivedFrame> frame = wire.Receive();
  if (!frame) return Status(Code::kUnavailable, "no reply");
  ASSIGN_OR_RETURN(const wire::HelloReply reply,
                   WireClient::Parse<wire::HelloReply>(*std::move(frame)));
  return reply.tenant() + (reply.writer() ? "/writer" : "");
}

// The codes of every verb of admins, which none of these requests could satisfy otherwise.
Status CheckAdminVerbs(WireClient& client, bool allowed) {
  const auto check = [&](const char* name, const Status& status) -> Status {
    const bool denied = status.code() == Code::kPermissionDenied;
    RETURN_UNLESS(denied != allowed, std::string(name) + ": " + status.ToString());
    return {};
  };
  wire::ModelAdd add;
  add.set_name("m");
  RETURN_IF_ERROR(
      check("ModelAdd", client.Call<wire::ModelAddReply>(wire::Type::kModelAdd, add).status()));
  wire::ModelRemove remove;
  remove.set_name("m");
  RETURN_IF_ERROR(
      check("ModelRemove",
            client.Call<wire::ModelRemoveReply>(wire::Type::kModelRemove, remove).status()));
  wire::ModelAccess access;
  access.set_name("m");
  access.set_tenant("a");
  RETURN_IF_ERROR(
      check("ModelAccess",
            client.Call<wire::ModelAccessReply>(wire::Type::kModelAccess, access).status()));
  wire::Unload unload;
  unload.set_name("m");
  RETURN_IF_ERROR(
      check("Unload", client.Call<wire::UnloadReply>(wire::Type::kUnload, unload).status()));
  return check("Evict", client.Call<wire::EvictReply>(wire::Type::kEvict, wire::Evict()).status());
}

TEST_F(TenantsTest, UserGroupAndSocketSayWhoSomebodyIs) {
  const auto expect = [&](const Who& who, const std::string& socket, const std::string& expected) {
    RunAs(who, [=]() -> Status {
      const Result<std::string> identity = IdentityAt(socket);
      const std::string got = identity ? *identity : identity.error().ToString();
      RETURN_UNLESS(got.find(expected) == 0, got + " instead of " + expected);
      return {};
    });
  };
  expect({kWriterOfA}, any_socket(), "a/writer");
  expect({kReaderOfA}, any_socket(), "a");
  expect({kSomebody, {7, kGroupOfB, 9}}, any_socket(), "b/writer");
  expect({kSomebody}, socket_of_a(), "a");  // By the socket's own role, a reader.
  expect({0}, any_socket(), "ops/writer");
  expect({kSomebody}, any_socket(), "permission_denied: peer: user 64199 has no tenant here");
  expect({kSomebody, {kGroupOfB}}, socket_of_a(),
         "permission_denied: peer: user 64199 is of tenant 'b'");
  // The daemon's own user is nobody in particular.
  expect({kDaemonUser}, any_socket(), "permission_denied: peer: user 64101 has no tenant here");
  EXPECT_THAT(daemon().Log(), HasSubstr("connection-refused"));
  EXPECT_THAT(daemon().Log(), HasSubstr("uid=64199"));
  EXPECT_THAT(daemon().Log(), HasSubstr("has no tenant here"));
}

TEST_F(TenantsTest, WhoIsRefusedLearnsWhyThroughTheLibrary) {
  RunAs({kSomebody}, [socket = any_socket()]() -> Status {
    for (int i = 0; i < 50; ++i) {
      const auto client = bench::Connect({.socket = socket, .name = "x"});
      RETURN_UNLESS(!client, "refused");
      RETURN_UNLESS(client.error().code() == Code::kPermissionDenied, client.error().ToString());
      RETURN_UNLESS(client.error().message().find("has no tenant here") != std::string::npos,
                    client.error().ToString());
    }
    return {};
  });
}

TEST_F(TenantsTest, VerbsOfAdminsNeedTheRoleAndTheSocket) {
  const auto expect = [&](const Who& who, const std::string& socket, bool allowed) {
    RunAs(who, [=]() -> Status {
      ASSIGN_OR_RETURN(Arrived arrived, Arrive(socket));
      return CheckAdminVerbs(arrived.wire, allowed);
    });
  };
  expect({0}, admin_socket(), true);
  expect({0}, any_socket(), false);
  expect({kWriterOfA}, admin_socket(), false);
  expect({kWriterOfA}, any_socket(), false);
  expect({kReaderOfA}, admin_socket(), false);
}

TEST_F(TenantsTest, AReaderChangesNothing) {
  RunAs({kReaderOfA}, [socket = any_socket()]() -> Status {
    ASSIGN_OR_RETURN(Arrived arrived, Arrive(socket, /*writer=*/true));
    WireClient& client = arrived.wire;
    ASSIGN_OR_RETURN(const wire::OpenSpaceReply space,
                     client.Call<wire::OpenSpaceReply>(wire::Type::kOpenSpace, SmallSpace()));
    wire::Grant grant;
    grant.set_slot(space.slot());
    grant.set_epoch(space.epoch());
    grant.set_keys(std::string(32, 'k'));
    wire::Commit commit;
    commit.add_grants(1);
    wire::Drop drop;
    drop.set_slot(space.slot());
    drop.set_epoch(space.epoch());
    drop.set_keys(std::string(32, 'k'));
    RETURN_UNLESS(client.Call<wire::GrantReply>(wire::Type::kGrant, grant).status().code() ==
                      Code::kPermissionDenied,
                  "grant");
    RETURN_UNLESS(client.Call<wire::CommitReply>(wire::Type::kCommit, commit).status().code() ==
                      Code::kPermissionDenied,
                  "commit");
    RETURN_UNLESS(client.Call<wire::DropReply>(wire::Type::kDrop, drop).status().code() ==
                      Code::kPermissionDenied,
                  "drop");
    return {};
  });
}

TEST_F(TenantsTest, AClientDoesNotComeBackAsSomebodyElse) {
  // Of tenant "b" by its group, then of "a" by a socket that gives it: one process, two tenants.
  RunAs({kSomebody}, [this]() -> Status {
    ASSIGN_OR_RETURN(Arrived first, Arrive(socket_of_a()));
    RETURN_UNLESS(first.hello.tenant() == "a", first.hello.tenant());
    return {};
  });
  RunAs({0}, [this]() -> Status {
    // As a writer of "ops"; its number and token then by the socket of "a", where root is nobody.
    ASSIGN_OR_RETURN(Arrived first, Arrive(any_socket()));
    wire::Hello hello;
    hello.set_version_min(wire::kProtocolVersion);
    hello.set_version_max(wire::kProtocolVersion);
    hello.set_resume_client(first.hello.client());
    hello.set_resume_token(first.hello.token());
    WireClient second = WireClient::Connect(socket_of_a());
    const auto reply = second.Call<wire::HelloReply>(wire::Type::kHello, hello);
    RETURN_UNLESS(reply.status().code() == Code::kPermissionDenied ||
                      reply.status().code() == Code::kUnavailable,
                  reply.status().ToString());
    WireClient third = WireClient::Connect(any_socket());
    return third.Call<wire::HelloReply>(wire::Type::kHello, hello).status();
  });
}

TEST_F(TenantsTest, ReportsTellATenantOfItselfAlone) {
  bench::Child writer = StartAs({kWriterOfA}, [this](bench::Link& link) -> Status {
    ASSIGN_OR_RETURN(Arrived arrived, Arrive(any_socket()));
    ASSIGN_OR_RETURN(const Granted granted, GrantOne(arrived.wire));
    wire::Commit commit;
    commit.add_grants(granted.reply.grants(0));
    RETURN_IF_ERROR(arrived.wire.Call<wire::CommitReply>(wire::Type::kCommit, commit).status());
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    return link.Receive<bench::Go>().status();
  });
  Hear<bench::Go>(writer);
  EXPECT_EQ(Report("spaces")["spaces"].size(), 1u);  // The operator sees all of it.
  EXPECT_EQ(Report("pages")["pages"].size(), 1u);
  RunAs({kSomebody, {kGroupOfB}}, [this]() -> Status {
    ASSIGN_OR_RETURN(Arrived arrived, Arrive(any_socket()));
    for (const char* what : {"spaces", "pages", "clients", "models"}) {
      wire::Report request;
      request.set_what(what);
      ASSIGN_OR_RETURN(const auto reply,
                       arrived.wire.Call<wire::ReportReply>(wire::Type::kReport, request));
      const Json json = Json::parse(reply.json());
      const size_t expected = std::string(what) == "clients" ? 1 : 0;  // Itself.
      RETURN_UNLESS(json[what].size() == expected, std::string(what) + ": " + reply.json());
    }
    return {};
  });
  Tell(writer);
  ExpectDone(writer);
}

TEST_F(TenantsTest, AModelIsAttachedByThoseItIsGrantedTo) {
  const std::string path = daemon().folder() + "/model";
  const std::vector<ModelTensor> tensors = {{"w", "BF16", {64, 64}}};
  ASSERT_TRUE(WriteModel(path, tensors, {.seed = 5, .shards = 1, .config_json = ""}));
  const auto as_admin = [&](const std::function<Status(kvc_client*)>& body) {
    RunAs({0}, [this, body]() -> Status {
      ASSIGN_OR_RETURN(const bench::Client client,
                       bench::Connect({.socket = admin_socket(), .name = "admin"}));
      return body(client.get());
    });
  };
  const auto attach = [&](const Who& who, Code expected) {
    RunAs(who, [this, expected, &tensors]() -> Status {
      ASSIGN_OR_RETURN(const bench::Client client,
                       bench::Connect({.socket = any_socket(), .name = "engine"}));
      kvc_loaded loaded{};
      loaded.struct_size = sizeof loaded;
      kvc_error error{};
      const kvc_code load =
          kvc_load(client.get(), "m", nullptr, nullptr, nullptr, 0, &loaded, &error);
      RETURN_UNLESS(load == static_cast<kvc_code>(expected), std::string("load: ") + error.message);
      const Result<bench::Weights> weights = Attach(client.get(), "m");
      RETURN_UNLESS(weights.status().code() == expected, weights.status().ToString());
      if (weights) return CheckTensors(weights->get(), tensors, 5);
      RETURN_UNLESS(weights.error().message().find("is not granted to tenant") != std::string::npos,
                    weights.error().ToString());
      return {};
    });
  };
  const auto set = [](bool granted, const char* tenant, kvc_code expected) {
    return [=](kvc_client* client) -> Status {
      kvc_error error{};
      const auto call = granted ? kvc_model_grant : kvc_model_revoke;
      RETURN_UNLESS(call(client, "m", tenant, 0, &error) == expected, error.message);
      return {};
    };
  };
  as_admin([&](kvc_client* client) -> Status {
    kvc_model_added added{};
    added.struct_size = sizeof added;
    RETURN_IF_ERROR(AddModel(client, "m", path, &added));
    RETURN_UNLESS(added.durable == 1, added.why_not);
    return {};
  });
  attach({0}, Code::kOk);  // Of the tenant that added it.
  attach({kReaderOfA}, Code::kPermissionDenied);
  as_admin(set(true, "a", KVC_OK));
  as_admin(set(true, "no-such-tenant", KVC_NOT_FOUND));
  attach({kReaderOfA}, Code::kOk);
  attach({kWriterOfA}, Code::kOk);
  attach({kSomebody, {kGroupOfB}}, Code::kPermissionDenied);
  EXPECT_EQ(Report("models")["models"][0]["tenants"], Json({"a", "ops"}));
  as_admin(set(false, "ops", KVC_OK));
  attach({0}, Code::kPermissionDenied);

  daemon().Kill();
  ASSERT_EQ(daemon().Launch(), Status());
  EXPECT_EQ(Report("models")["models"][0]["tenants"], Json({"a"}));
  attach({kReaderOfA}, Code::kOk);
  attach({0}, Code::kPermissionDenied);
  as_admin(set(false, "a", KVC_OK));
  attach({kReaderOfA}, Code::kPermissionDenied);
}

// From an ordinary user's process the kernel takes no more descriptors than its limit, whoever they
// are for: these hoarders ask for more than that, and some have ended with theirs untaken.
class FdHoardersTest : public TenantsTest {
 protected:
  static constexpr uint64_t kLimit = 4096;
  static constexpr uint64_t kConnections = 200;
  static constexpr uint64_t kEnded = 100;
  static constexpr uint64_t kRequests = 250;
  static_assert(kConnections * kRequests > kLimit);

  DaemonProcessOptions Options() const override {
    DaemonProcessOptions options = TenantsTest::Options();
    options.descriptors = kLimit;
    options.limits =
        "clients = 512\nclients_per_process = 512\nclients_per_user = 512\nconnections = 1024\n"
        "hello_deadline = \"3s\"";
    return options;
  }

  Status Hoard(bench::Link& link) {
    ASSIGN_OR_RETURN(Arrived last, Arrive(any_socket()));
    const auto all_had_turns = [&]() -> Status {
      for (uint64_t i = 0; i < kRequests; ++i) {
        RETURN_IF_ERROR(last.wire.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status());
      }
      return {};
    };
    std::vector<WireClient> clients;
    for (uint64_t i = 0; i < kConnections; ++i) {
      ASSIGN_OR_RETURN(Arrived arrived, Arrive(any_socket()));
      clients.push_back(std::move(arrived.wire));
    }
    wire::Hello hello;
    hello.set_version_min(wire::kProtocolVersion);
    hello.set_version_max(wire::kProtocolVersion);
    for (uint64_t i = 0; i < kEnded; ++i) {
      WireClient client = WireClient::Connect(any_socket());
      RETURN_UNLESS(client.Send(wire::Type::kHello, 1, hello), "its hello is taken");
      ::shutdown(client.fd(), SHUT_WR);
      clients.push_back(std::move(client));
    }
    RETURN_IF_ERROR(all_had_turns());
    std::string requests;
    for (uint64_t i = 1; i <= kRequests; ++i)
      requests += WireClient::Encode(wire::Type::kDirectory, i, wire::Directory());
    for (uint64_t i = 0; i < kConnections; ++i)
      RETURN_UNLESS(clients[i].SendBytes(requests), "its requests are taken");
    RETURN_IF_ERROR(all_had_turns());
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    return link.Receive<bench::Go>().status();
  }
  Status Work() {
    ASSIGN_OR_RETURN(Arrived arrived, Arrive(any_socket()));
    ASSIGN_OR_RETURN(const Granted granted, GrantOne(arrived.wire));
    wire::Arenas arenas;
    arenas.add_ids(granted.arena());
    std::vector<UniqueFd> fds;
    for (uint64_t i = 0; i < 2 * kRequests; ++i) {
      RETURN_IF_ERROR(
          arrived.wire.Call<wire::ArenasReply>(wire::Type::kArenas, arenas, &fds).status());
      RETURN_UNLESS(fds.size() == 1, "the arena");
    }
    return {};
  }
};

TEST_F(FdHoardersTest, WhatTheyDoNotTakeOtherUsersDoNotMiss) {
  bench::Child hoarder =
      StartAs({kWriterOfA}, [this](bench::Link& link) -> Status { return Hoard(link); });
  Hear<bench::Go>(hoarder);
  EXPECT_LT(FactsOf(daemon().pid()).descriptor_count(), kLimit / 2);
  RunAs({kSomebody, {kGroupOfB}}, [this] { return Work(); });
  // Its own user's others are told, and are served when it has gone.
  RunAs({kWriterOfA}, [this]() -> Status {
    const Status status = Arrive(any_socket()).status();
    RETURN_UNLESS(status.code() == Code::kExhausted &&
                      status.message().find("descriptors: the connections of user " +
                                            std::to_string(kWriterOfA)) != std::string::npos,
                  status.ToString());
    return {};
  });
  Tell(hoarder);
  ExpectDone(hoarder);
  RunAs({kWriterOfA}, [this] { return Work(); });
}

TEST_F(TenantsTest, AReloadMakesPeersSomebodyElseAtOnce) {
  std::ifstream stream(daemon().config_file());
  std::string config((std::istreambuf_iterator<char>(stream)), {});
  const auto reload = [&](const std::string& from, const std::string& to) {
    const size_t at = config.find(from);
    ASSERT_NE(at, std::string::npos);
    config.replace(at, from.size(), to);
    std::ofstream(daemon().config_file()) << config;
    const auto reloads = [&] {
      const std::string log = daemon().Log();
      size_t count = 0;
      for (size_t i = 0; (i = log.find(" reloaded ", i)) != std::string::npos; ++i)
        ++count;
      return count;
    };
    const size_t before = reloads();
    ASSERT_EQ(::kill(daemon().pid(), SIGHUP), 0);
    ASSERT_TRUE(Await([&] { return reloads() > before; })) << daemon().Log();
  };
  bench::Child other = StartAs({kReaderOfA}, [this](bench::Link& link) -> Status {
    ASSIGN_OR_RETURN(Arrived arrived, Arrive(any_socket()));
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    RETURN_IF_ERROR(link.Receive<bench::Go>().status());
    return arrived.wire.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status();
  });
  bench::Child moved = StartAs({kWriterOfA}, [this](bench::Link& link) -> Status {
    wire::Hello hello;
    hello.set_version_min(wire::kProtocolVersion);
    hello.set_version_max(wire::kProtocolVersion);
    for (const char* tenant : {"a", "b"}) {
      ASSIGN_OR_RETURN(Arrived arrived, Arrive(any_socket()));
      RETURN_UNLESS(arrived.hello.tenant() == tenant && arrived.hello.writer(), tenant);
      hello.set_resume_client(arrived.hello.client());
      hello.set_resume_token(arrived.hello.token());
      RETURN_IF_ERROR(GrantOne(arrived.wire).status());
      RETURN_IF_ERROR(link.Send(bench::Go{}));
      RETURN_IF_ERROR(link.Receive<bench::Go>().status());
      RETURN_UNLESS(arrived.wire.AwaitClosed(), "it was cut off");
      WireClient again = WireClient::Connect(any_socket());
      const Status resumed = again.Call<wire::HelloReply>(wire::Type::kHello, hello).status();
      RETURN_UNLESS(resumed.code() == Code::kStale, resumed.ToString());
    }
    // The second time its role became less.
    ASSIGN_OR_RETURN(Arrived arrived, Arrive(any_socket()));
    RETURN_UNLESS(arrived.hello.tenant() == "b" && !arrived.hello.writer(), "a reader of b");
    return {};
  });
  Hear<bench::Go>(other);
  Hear<bench::Go>(moved);
  reload("uid = 64111\ntenant = \"a\"", "uid = 64111\ntenant = \"b\"");
  Tell(moved);
  Hear<bench::Go>(moved);
  reload("uid = 64111\ntenant = \"b\"", "uid = 64111\ntenant = \"b\"\nrole = \"reader\"");
  Tell(moved);
  ExpectDone(moved);
  Tell(other);  // Whom nothing of this was about.
  ExpectDone(other);
  EXPECT_EQ(Report("status")["daemon"]["isolation"].get<std::string>().find("user mode"),
            std::string::npos);
}

}  // namespace
}  // namespace terrace
