// Clients and daemons in user namespaces of their own, as containers have them.
#include <sched.h>
#include <sys/wait.h>

#include <cstring>
#include <fstream>

#include "bench/client.h"
#include "tests/integration/tenants_test.h"

namespace terrace {
namespace {

// The calling process becomes root of a user namespace in which nobody else is anybody.
Status BecomeRootOfANamespace() {
  const uid_t user = ::geteuid();
  const gid_t group = ::getegid();
  const auto write = [](const char* path, const std::string& text) -> Status {
    RETURN_UNLESS(std::ofstream(path) << text << std::flush, path);
    return {};
  };
  if (::unshare(CLONE_NEWUSER) != 0) return SystemError("unshare", errno);
  RETURN_IF_ERROR(write("/proc/self/setgroups", "deny"));
  RETURN_IF_ERROR(write("/proc/self/uid_map", "0 " + std::to_string(user) + " 1"));
  RETURN_IF_ERROR(write("/proc/self/gid_map", "0 " + std::to_string(group) + " 1"));
  RETURN_UNLESS(::geteuid() == 0, "root there");
  return {};
}

class NamespacesTest : public TenantsTest {
 protected:
  void SetUp() override {
    TenantsTest::SetUp();
    if (IsSkipped()) return;
    const pid_t child = ::fork();
    if (child == 0) {
      ::_exit(Become({kWriterOfA}).ok() && ::unshare(CLONE_NEWUSER) == 0 ? 0 : 1);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    if (status != 0) GTEST_SKIP() << "this machine lets its users make no user namespaces";
  }
};

TEST_F(NamespacesTest, RootOfAnotherNamespaceIsWhoItIsOutside) {
  RunAs({kWriterOfA}, [this]() -> Status {
    RETURN_IF_ERROR(BecomeRootOfANamespace());
    ASSIGN_OR_RETURN(Arrived arrived, Arrive(admin_socket()));
    RETURN_UNLESS(arrived.hello.tenant() == "a", arrived.hello.tenant());
    const Status evicted =
        arrived.wire.Call<wire::EvictReply>(wire::Type::kEvict, wire::Evict()).status();
    RETURN_UNLESS(evicted.code() == Code::kPermissionDenied, evicted.ToString());
    return GrantOne(arrived.wire).status();
  });
  RunAs({kSomebody}, [this]() -> Status {
    RETURN_IF_ERROR(BecomeRootOfANamespace());
    const Status refused = Arrive(any_socket()).status();
    RETURN_UNLESS(!refused.ok(), "root of the other namespace is not root here");
    return {};
  });
}

struct Place {
  char socket[108] = {};
};

TEST_F(NamespacesTest, ADaemonInOneServesWhomItMapsAndTellsOthersWhyNot) {
  bench::Child inside = StartProcess("namespace", [](bench::Link& link) -> Status {
    RETURN_IF_ERROR(BecomeRootOfANamespace());
    DaemonProcessOptions options;
    // Even if its operator names the number under which the kernel shows all of them.
    options.tables = R"(
[[socket]]
path = "@/terraced.sock"
mode = "0666"
[[peer]]
uid = 0
tenant = "inside"
[[peer]]
uid = 65534
tenant = "nobody"
[[peer]]
gid = 65534
tenant = "nogroup"
)";
    ASSIGN_OR_RETURN(const std::unique_ptr<DaemonProcess> daemon, DaemonProcess::Start(options));
    ASSIGN_OR_RETURN(const Arrived arrived, Arrive(daemon->socket()));
    RETURN_UNLESS(arrived.hello.tenant() == "inside", arrived.hello.tenant());
    Place place;
    std::strncpy(place.socket, daemon->socket().c_str(), sizeof place.socket - 1);
    RETURN_IF_ERROR(link.Send(place));
    return link.Receive<bench::Go>().status();
  });
  const Place place = Hear<Place>(inside);
  RunAs({kWriterOfA}, [&]() -> Status {
    const auto client = bench::Connect({.socket = place.socket, .name = "outside"});
    RETURN_UNLESS(!client, "refused");
    RETURN_UNLESS(client.error().code() == Code::kPermissionDenied, client.error().ToString());
    RETURN_UNLESS(
        client.error().message().find("user namespace, which does not map it") != std::string::npos,
        client.error().ToString());
    return {};
  });
  Tell(inside);
  ExpectDone(inside);
}

}  // namespace
}  // namespace terrace
