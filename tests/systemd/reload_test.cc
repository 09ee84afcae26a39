// SIGHUP on the real daemon: what changes, what is named, what a bad file does.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <ctime>
#include <filesystem>
#include <fstream>

#include "tests/service/wire_client.h"
#include "tests/systemd/service_manager.h"

namespace terrace {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class ReloadTest : public testing::Test {
 protected:
  std::string Path(const std::string& name) const { return manager_.folder() + "/" + name; }
  std::string Daemon(const std::string& more = "") const {
    return "socket = \"" + Path("t.sock") + "\"\n" + more;
  }
  // One [[socket]] of a tenant of the same name.
  std::string Table(const std::string& name, const std::string& more = "") const {
    return "[[socket]]\npath = \"" + Path(name) + "\"\ntenant = \"" + name + "\"\n" + more;
  }
  void Launch() {
    ASSERT_EQ(manager_.Launch(), Status());
    ASSERT_TRUE(manager_.AwaitReady().has_value()) << manager_.Log();
  }
  // What the daemon says once it has taken the file, or refused it.
  std::string Reload() {
    manager_.Signal(SIGHUP);
    const std::optional<std::string> begun = manager_.notifications().ReceiveWith("RELOADING=1");
    EXPECT_TRUE(begun.has_value()) << manager_.Log();
    return manager_.AwaitReady().value_or("nothing");
  }
  Result<wire::HelloReply> HelloBy(const std::string& name) const {
    WireClient client = WireClient::Connect(Path(name));
    if (client.fd() < 0) return Status(Code::kUnavailable, "nobody listens");
    return client.Hello("probe");
  }

  ServiceManager manager_;
};

TEST_F(ReloadTest, ItIsAnnouncedWithItsTime) {
  manager_.WriteConfig("", Daemon());
  Launch();
  timespec before{};
  ::clock_gettime(CLOCK_MONOTONIC, &before);
  manager_.Signal(SIGHUP);
  const std::optional<std::string> begun = manager_.notifications().ReceiveWith("RELOADING=1");
  ASSERT_TRUE(begun.has_value());
  const std::string key = "\nMONOTONIC_USEC=";
  ASSERT_THAT(*begun, HasSubstr(key));
  EXPECT_GE(std::stoll(begun->substr(begun->find(key) + key.size())),
            before.tv_sec * 1'000'000 + before.tv_nsec / 1000);
  const std::optional<std::string> ready = manager_.AwaitReady();
  ASSERT_TRUE(ready.has_value());
  EXPECT_THAT(*ready, HasSubstr("Reloaded: 0 changes applied, 0 need a restart"));
}

TEST_F(ReloadTest, LogAndLimitsChangeAndTheRestIsNamed) {
  manager_.WriteConfig("[limits]\nclients_per_process = 1\npins = 64\n", Daemon());
  Launch();
  WireClient first = WireClient::Connect(Path("t.sock"));
  Result<wire::HelloReply> hello = first.Hello("first");
  ASSERT_EQ(hello.status(), Status());
  EXPECT_EQ(hello->max_pins(), 64u);
  EXPECT_THAT(HelloBy("t.sock").status().message(), HasSubstr("clients_per_process"));

  manager_.WriteConfig("[limits]\nclients_per_process = 2\npins = 128\ngrants = 7\n",
                       Daemon("log_level = \"debug\"\nsocket_mode = \"0660\"\n"), "128MiB");
  EXPECT_THAT(Reload(), HasSubstr("Reloaded: 4 changes applied, 2 need a restart"));
  EXPECT_THAT(manager_.Log(),
              AllOf(HasSubstr("setting-changed field=limits.clients_per_process from=1 to=2"),
                    HasSubstr("setting-changed field=limits.pins from=64 to=128"),
                    HasSubstr("setting-changed field=daemon.log_level from=\"\\\"info\\\"\""),
                    HasSubstr("setting-needs-restart field=host.capacity from=\"\\\"64MiB\\\"\""),
                    HasSubstr("setting-needs-restart field=daemon.socket_mode")));
  WireClient second = WireClient::Connect(Path("t.sock"));
  hello = second.Hello("second");
  ASSERT_EQ(hello.status(), Status());
  EXPECT_EQ(hello->max_pins(), 128u);
  EXPECT_EQ(hello->max_grants(), 7u);
  EXPECT_TRUE(manager_.AwaitLog("client-arrived"));  // Which is told at this level only.
  EXPECT_EQ(first.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status(), Status());
  // What needs a restart is named until there was one.
  EXPECT_THAT(Reload(), HasSubstr("Reloaded: 0 changes applied, 2 need a restart"));
}

TEST_F(ReloadTest, ABadFileKeepsTheOldConfigurationAndSaysSo) {
  manager_.WriteConfig("[limits]\npins = 64\n", Daemon());
  Launch();
  const std::pair<std::string, std::string> bad[] = {
      {"[limits]\npins = 128\ngrants = 0\n", "limits.grants: expected"},
      {"[limits]\npins = 128\n[nonsense]\n", "[nonsense]: there is no such section"},
      {"[limits]\npins = 128\nclients = 9\nconnections = 8\n", "limits.connections: 8 is below"},
      {"[limits\n", "terraced.toml:"},
      {"[limits]\npins = 128\n[[socket]]\n", "daemon.socket: the [[socket]] tables say"},
  };
  for (const auto& [text, why] : bad) {
    manager_.WriteConfig(text, Daemon("log_level = \"debug\"\n"));
    EXPECT_THAT(Reload(), AllOf(HasSubstr("Reload failed, the configuration is as it was: "),
                                HasSubstr(why)));
    const Result<wire::HelloReply> hello = HelloBy("t.sock");
    ASSERT_EQ(hello.status(), Status());
    EXPECT_EQ(hello->max_pins(), 64u) << text;
  }
  std::filesystem::remove(manager_.config_file());
  EXPECT_THAT(Reload(), HasSubstr("Reload failed"));
  EXPECT_THAT(manager_.Log(), AllOf(HasSubstr("reload-failed"), Not(HasSubstr("client-arrived")),
                                    Not(HasSubstr("setting-changed"))));
  manager_.WriteConfig("[limits]\npins = 128\n", Daemon());
  EXPECT_THAT(Reload(), HasSubstr("Reloaded: 1 changes applied"));
  EXPECT_EQ(HelloBy("t.sock")->max_pins(), 128u);
}

TEST_F(ReloadTest, SocketsComeAndGo) {
  manager_.WriteConfig(Table("a.sock") + Table("b.sock"));
  Launch();
  WireClient a = WireClient::Connect(Path("a.sock"));
  ASSERT_EQ(a.Hello("of a").status(), Status());
  WireClient b = WireClient::Connect(Path("b.sock"));
  ASSERT_EQ(b.Hello("of b").status(), Status());

  manager_.WriteConfig(Table("a.sock") + Table("c.sock"));
  EXPECT_THAT(Reload(), HasSubstr("Reloaded: 2 changes applied, 0 need a restart"));
  EXPECT_EQ(a.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status(), Status());
  EXPECT_TRUE(b.AwaitClosed());  // Nobody there has a tenant any more.
  EXPECT_EQ(HelloBy("b.sock").status().code(), Code::kUnavailable);
  EXPECT_FALSE(std::filesystem::exists(Path("b.sock")));
  const Result<wire::HelloReply> c = HelloBy("c.sock");
  ASSERT_EQ(c.status(), Status());
  EXPECT_EQ(c->tenant(), "c.sock");

  manager_.WriteConfig(Table("a.sock", "mode = \"0600\"\n") + Table("c.sock"));
  EXPECT_THAT(Reload(), HasSubstr("Reloaded: 0 changes applied, 1 need a restart"));
  EXPECT_THAT(manager_.Log(),
              HasSubstr("setting-needs-restart field=socket from=" + Path("a.sock")));
}

// Of two sockets that the service manager gives.
class GivenSocketsTest : public testing::Test {
 protected:
  GivenSocketsTest()
      : manager_({.sockets = {{.name = "a", .path = "a.sock"}, {.name = "b", .path = "b.sock"}}}) {}
  std::string Path(const std::string& name) const { return manager_.folder() + "/" + name; }
  std::string Table(const std::string& name, const std::string& tenant) const {
    return "[[socket]]\npath = \"" + Path(name) + "\"\ntenant = \"" + tenant + "\"\n";
  }
  void LaunchWith(const std::string& tables) {
    manager_.WriteConfig(tables);
    ASSERT_EQ(manager_.Launch(), Status());
    ASSERT_TRUE(manager_.AwaitReady().has_value()) << manager_.Log();
  }
  std::string Reload() {
    manager_.Signal(SIGHUP);
    EXPECT_TRUE(manager_.notifications().ReceiveWith("RELOADING=1").has_value());
    return manager_.AwaitReady().value_or("nothing");
  }
  // Who is refused may find the connection closed before it has said anything; the reason is there.
  Result<std::string> TenantAt(const std::string& name) const {
    WireClient client = WireClient::Connect(Path(name));
    wire::Hello hello;
    hello.set_version_min(wire::kProtocolVersion);
    hello.set_version_max(wire::kProtocolVersion);
    (void)client.Send(wire::Type::kHello, 1, hello);
    std::optional<ReceivedFrame> frame = client.Receive();
    if (!frame) return Status(Code::kUnavailable, "no reply");
    ASSIGN_OR_RETURN(const wire::HelloReply reply,
                     WireClient::Parse<wire::HelloReply>(*std::move(frame)));
    return reply.tenant();
  }

  ServiceManager manager_;
};

TEST_F(GivenSocketsTest, OneThatAReloadTookAwayRefusesAndComesBackByAnother) {
  ASSERT_NO_FATAL_FAILURE(LaunchWith(Table("a.sock", "before") + Table("c.sock", "c")));
  WireClient client = WireClient::Connect(Path("a.sock"));
  ASSERT_EQ(client.Hello("of a").status(), Status());

  manager_.WriteConfig(Table("c.sock", "c"));
  EXPECT_THAT(Reload(), HasSubstr("Reloaded: 1 changes applied, 0 need a restart"));
  EXPECT_TRUE(client.AwaitClosed());
  EXPECT_EQ(TenantAt("a.sock").status().code(), Code::kPermissionDenied) << "it is open still";
  EXPECT_THAT(Reload(), HasSubstr("Reloaded: 0 changes applied, 0 need a restart"));

  manager_.WriteConfig(Table("c.sock", "c") + Table("elsewhere.sock", "after") + "name = \"a\"\n");
  EXPECT_THAT(Reload(), HasSubstr("Reloaded: 1 changes applied, 0 need a restart"));
  const Result<std::string> tenant = TenantAt("a.sock");
  ASSERT_EQ(tenant.status(), Status());
  EXPECT_EQ(*tenant, "after");
  EXPECT_FALSE(std::filesystem::exists(Path("elsewhere.sock")));
}

TEST_F(GivenSocketsTest, OneThatServesATableIsNotTakenFromItByAName) {
  ASSERT_NO_FATAL_FAILURE(LaunchWith(Table("a.sock", "a")));
  manager_.WriteConfig(Table("a.sock", "a") + Table("elsewhere.sock", "thief") + "name = \"a\"\n");
  EXPECT_THAT(Reload(),
              AllOf(HasSubstr("Reload failed"), HasSubstr(Path("a.sock") + " is in use")));
  const Result<std::string> tenant = TenantAt("a.sock");
  ASSERT_EQ(tenant.status(), Status());
  EXPECT_EQ(*tenant, "a");
}

TEST_F(GivenSocketsTest, TwoForOneTableAreRefusedAsAtTheStart) {
  ASSERT_NO_FATAL_FAILURE(LaunchWith(Table("c.sock", "c")));
  manager_.WriteConfig(Table("c.sock", "c") + Table("b.sock", "both") + "name = \"a\"\n");
  EXPECT_THAT(Reload(), AllOf(HasSubstr("Reload failed"), HasSubstr("is the second one for")));
  for (const char* name : {"a.sock", "b.sock"})
    EXPECT_EQ(TenantAt(name).status().code(), Code::kPermissionDenied) << name;
  EXPECT_EQ(TenantAt("c.sock").status(), Status());
}

// Who may pass descriptors is who may add models, now.
TEST_F(ReloadTest, WhoMayPassDescriptorsFollowsTheRole) {
  const std::string me = "[[peer]]\nuid = " + std::to_string(::getuid()) + "\ntenant = \"t\"\n";
  const std::string admin = "[[socket]]\npath = \"" + Path("s.sock") + "\"\nadmin = true\n";
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  wire::ModelAdd add;
  add.set_name("m");
  add.add_files("/none");
  manager_.WriteConfig(admin + me);
  Launch();
  WireClient client = WireClient::Connect(Path("s.sock"));
  ASSERT_EQ(client.Hello("promoted").status(), Status());
  manager_.WriteConfig(admin + me + "role = \"admin\"\n");
  EXPECT_THAT(Reload(), HasSubstr("Reloaded: 1 changes applied"));
  const Status taken =
      client.Call<wire::ModelAddReply>(wire::Type::kModelAdd, add, nullptr, {null.get()}).status();
  EXPECT_THAT(taken.message(), Not(HasSubstr("may pass no descriptors")));
  EXPECT_EQ(client.Call<wire::PingReply>(wire::Type::kPing, wire::Ping()).status(), Status());

  manager_.WriteConfig(admin + me);
  EXPECT_THAT(Reload(), HasSubstr("Reloaded: 1 changes applied"));
  ASSERT_TRUE(client.SendBytes(WireClient::Encode(wire::Type::kModelAdd, 9, add, 1), {null.get()}));
  std::optional<ReceivedFrame> refused = client.Receive();
  ASSERT_TRUE(refused.has_value());
  EXPECT_THAT(WireClient::Parse<wire::ModelAddReply>(*std::move(refused)).status().message(),
              HasSubstr("may pass no descriptors"));
  EXPECT_TRUE(client.AwaitClosed());
}

TEST_F(ReloadTest, ASocketThatCannotBeMadeChangesNothing) {
  manager_.WriteConfig(Table("a.sock"));
  Launch();
  std::ofstream(Path("file")) << "in the way";
  manager_.WriteConfig(Table("b.sock") + Table("file") + "[limits]\npins = 64\n");
  EXPECT_THAT(Reload(), AllOf(HasSubstr("Reload failed"), HasSubstr("is not a socket")));
  EXPECT_FALSE(std::filesystem::exists(Path("b.sock")));
  const Result<wire::HelloReply> hello = HelloBy("a.sock");
  ASSERT_EQ(hello.status(), Status());
  EXPECT_NE(hello->max_pins(), 64u);
}

TEST_F(ReloadTest, PeersAndTenantsChange) {
  const std::string me = "[[peer]]\nuid = " + std::to_string(::getuid()) + "\ntenant = ";
  const std::string open = "[[socket]]\npath = \"" + Path("s.sock") + "\"\n";
  manager_.WriteConfig(open + me + "\"before\"\n");
  Launch();
  WireClient client = WireClient::Connect(Path("s.sock"));
  ASSERT_EQ(client.Hello("of before").status(), Status());
  manager_.WriteConfig(open + me + "\"after\"\nrole = \"reader\"\n");
  EXPECT_THAT(Reload(), HasSubstr("Reloaded: 1 changes applied"));
  EXPECT_TRUE(client.AwaitClosed());
  const Result<wire::HelloReply> hello = [&] {
    WireClient again = WireClient::Connect(Path("s.sock"));
    return again.Hello("of after", /*writer=*/false);
  }();
  ASSERT_EQ(hello.status(), Status());
  EXPECT_EQ(hello->tenant(), "after");
}

TEST_F(ReloadTest, UserModeDoesNotBecomeTenantsWithoutARestart) {
  manager_.WriteConfig("", Daemon());
  Launch();
  manager_.WriteConfig(Table("a.sock"));
  EXPECT_THAT(Reload(), HasSubstr("need a restart"));
  EXPECT_THAT(manager_.Log(),
              AllOf(HasSubstr("setting-needs-restart field=socket from=\"0 tables\""),
                    HasSubstr("setting-needs-restart field=daemon.socket ")));
  EXPECT_EQ(HelloBy("t.sock")->tenant(), "default");
}

TEST_F(ReloadTest, TheCommandLineStaysOverTheFile) {
  manager_.WriteConfig("", Daemon("log_level = \"error\"\n"));
  ASSERT_EQ(manager_.Launch({"--config", manager_.config_file(), "--log-level", "info"}), Status());
  ASSERT_TRUE(manager_.AwaitReady().has_value());
  manager_.WriteConfig("", Daemon("log_level = \"off\"\n"));
  EXPECT_THAT(Reload(), HasSubstr("Reloaded: 0 changes applied"));
  EXPECT_THAT(manager_.Log(), HasSubstr(" reloaded "));
}

TEST_F(ReloadTest, WithoutAFileSighupIsAHangup) {
  ASSERT_EQ(manager_.Launch({"--socket", Path("t.sock"), "--state-dir", Path("state"),
                             "--host-capacity", "16MiB"}),
            Status());
  ASSERT_TRUE(manager_.AwaitReady().has_value()) << manager_.Log();
  manager_.Signal(SIGHUP);
  const Result<int> code = manager_.AwaitExit();
  ASSERT_EQ(code.status(), Status());
  EXPECT_EQ(*code, 0);
}

}  // namespace
}  // namespace terrace
