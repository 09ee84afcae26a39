// TenantsTest: a daemon of an unprivileged user with two tenants, and client processes of real
// users.
#pragma once

#include <fcntl.h>
#include <grp.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "tests/integration/integration_test.h"

namespace terrace {

// Numbers that no account of a Debian system has.
inline constexpr uid_t kDaemonUser = 64101;
inline constexpr uid_t kWriterOfA = 64111;
inline constexpr uid_t kReaderOfA = 64112;
inline constexpr uid_t kSomebody = 64199;  // In no [[peer]].
inline constexpr gid_t kGroupOfB = 64201;

struct Who {
  uid_t user = 0;
  std::vector<gid_t> groups = {};
};

// The calling process becomes that user for good, with every capability gone unless it stays root.
inline Status Become(const Who& who) {
  if (::setgroups(who.groups.size(), who.groups.data()) != 0 ||
      ::setresgid(who.user, who.user, who.user) != 0 ||
      ::setresuid(who.user, who.user, who.user) != 0) {
    return SystemError("becoming user " + std::to_string(who.user), errno);
  }
  // As after an exec: else nobody of that user could look at it either, and no test would tell.
  ::prctl(PR_SET_DUMPABLE, 1);
  return {};
}

class TenantsTest : public IntegrationTest {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root, to start processes of several users";
    StartDaemon(Options());
  }
  virtual DaemonProcessOptions Options() const {
    DaemonProcessOptions options;
    options.user = kDaemonUser;
    // Sockets are made in this order, and the start is over when the last one answers.
    options.tables = R"(
[[socket]]
path = "@/any.sock"
mode = "0666"
[[socket]]
path = "@/a.sock"
mode = "0666"
tenant = "a"
role = "reader"
[[socket]]
path = "@/terraced.sock"
mode = "0666"
admin = true
[[peer]]
uid = 0
tenant = "ops"
role = "admin"
[[peer]]
uid = 64111
tenant = "a"
[[peer]]
uid = 64112
tenant = "a"
role = "reader"
[[peer]]
gid = 64201
tenant = "b"
)";
    return options;
  }
  std::string admin_socket() { return daemon().socket(); }
  std::string any_socket() { return daemon().folder() + "/any.sock"; }
  std::string socket_of_a() { return daemon().folder() + "/a.sock"; }

  // A process of that user; `body` as in StartProcess.
  bench::Child StartAs(const Who& who, const std::function<Status(bench::Link&)>& body) {
    const std::string name = "user " + std::to_string(who.user);
    return StartProcess(name, [who, body](bench::Link& link) -> Status {
      RETURN_IF_ERROR(Become(who));
      return body(link);
    });
  }
  void RunAs(const Who& who, const std::function<Status()>& body) {
    bench::Child child = StartAs(who, [body](bench::Link&) { return body(); });
    ExpectDone(child);
  }
};

// ---- Steps by the bare protocol

struct Arrived {
  WireClient wire;
  wire::HelloReply hello;
  std::vector<UniqueFd> fds;
};
inline Result<Arrived> Arrive(const std::string& socket, bool writer = true) {
  Arrived arrived;
  arrived.wire = WireClient::Connect(socket);
  if (arrived.wire.fd() < 0) return SystemError("connect to " + socket, errno);
  ASSIGN_OR_RETURN(arrived.hello, arrived.wire.Hello("test", writer, &arrived.fds));
  return arrived;
}

inline wire::OpenSpace SmallSpace() {
  wire::OpenSpace open;
  open.set_salt("tenants");
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

// A granted page, and the arena it is in, writable.
struct Granted {
  wire::GrantReply reply;
  std::vector<UniqueFd> fds;
  uint32_t arena() const { return reply.arenas(0).id(); }
};
inline Result<Granted> GrantOne(WireClient& client, char key = 'k') {
  ASSIGN_OR_RETURN(const wire::OpenSpaceReply space,
                   client.Call<wire::OpenSpaceReply>(wire::Type::kOpenSpace, SmallSpace()));
  wire::Grant grant;
  grant.set_slot(space.slot());
  grant.set_epoch(space.epoch());
  grant.set_keys(std::string(32, key));
  Granted granted;
  ASSIGN_OR_RETURN(granted.reply,
                   client.Call<wire::GrantReply>(wire::Type::kGrant, grant, &granted.fds));
  RETURN_UNLESS(granted.reply.arenas_size() == 1 && granted.fds.size() == 1, "one new arena");
  return granted;
}

}  // namespace terrace
