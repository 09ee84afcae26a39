// The real daemon under a service manager: readiness, the watchdog, sockets that were there first.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>

#include "tests/service/wire_client.h"
#include "tests/systemd/service_manager.h"

namespace terrace {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

std::string SocketLine(const ServiceManager& manager, const std::string& name) {
  return "socket = \"" + manager.folder() + "/" + name + "\"\n";
}

TEST(Service, ReadyComesWhenItServesAndStoppingWhenItStops) {
  for (const bool abstract : {false, true}) {
    ServiceManager manager({.abstract_notify_socket = abstract});
    manager.WriteConfig("", SocketLine(manager, "t.sock"));
    ASSERT_EQ(manager.Launch(), Status());
    const std::optional<std::string> ready = manager.AwaitReady();
    ASSERT_TRUE(ready.has_value()) << manager.Log();
    EXPECT_THAT(*ready, StartsWith("READY=1\nSTATUS=Serving 0 clients; "));
    WireClient client = WireClient::Connect(manager.folder() + "/t.sock");
    EXPECT_EQ(client.Hello("at once").status(), Status());
    manager.Signal(SIGTERM);
    EXPECT_TRUE(manager.notifications().ReceiveWith("STOPPING=1").has_value());
    const Result<int> code = manager.AwaitExit();
    ASSERT_EQ(code.status(), Status());
    EXPECT_EQ(*code, 0);
  }
}

TEST(Service, TheStatusFollowsItsClients) {
  ServiceManager manager;
  manager.WriteConfig("", SocketLine(manager, "t.sock"));
  ASSERT_EQ(manager.Launch(), Status());
  ASSERT_TRUE(manager.AwaitReady().has_value()) << manager.Log();
  WireClient client = WireClient::Connect(manager.folder() + "/t.sock");
  ASSERT_EQ(client.Hello("one").status(), Status());
  EXPECT_TRUE(manager.notifications().ReceiveWith("STATUS=Serving 1 clients").has_value());
}

TEST(Service, WhatTheHostLacksIsToldAtTheStartAndOnDemand) {
  const std::vector<std::string> subjects = {"memory", "memlock", "huge pages", "io_uring",
                                             "descriptors"};
  ServiceManager manager;
  manager.WriteConfig("", SocketLine(manager, "t.sock") + "log_level = \"debug\"\n");
  ASSERT_EQ(manager.Launch(), Status());
  ASSERT_TRUE(manager.AwaitReady().has_value()) << manager.Log();
  const CommandOutput output = RunTerraced({"--config", manager.config_file(), "--check-host"});
  EXPECT_EQ(output.exit_code, 0) << output.standard_error;
  for (const std::string& subject : subjects) {
    EXPECT_THAT(manager.Log(), HasSubstr(subject.find(' ') == std::string::npos
                                             ? "host-check subject=" + subject + " "
                                             : "host-check subject=\"" + subject + "\" "));
    EXPECT_THAT(output.standard_output, HasSubstr(" " + subject + ": "));
  }
  const CommandOutput wrong = RunTerraced({"--check-host", "--check-config"});
  EXPECT_EQ(wrong.exit_code, 2);
}

TEST(Service, AShortLimitIsAWarningAndNoObstacle) {
  ServiceManager manager({.in_child = [] {
    const rlimit limit{512, 512};
    return ::setrlimit(RLIMIT_NOFILE, &limit) == 0;
  }});
  manager.WriteConfig("", SocketLine(manager, "t.sock"));
  ASSERT_EQ(manager.Launch(), Status());
  ASSERT_TRUE(manager.AwaitReady().has_value()) << manager.Log();
  EXPECT_THAT(manager.Log(), HasSubstr(" warning host-check subject=descriptors lacking=yes "
                                       "text=\"the hard RLIMIT_NOFILE is 512, but "));
}

TEST(Service, WhatCannotStartIsNeverReady) {
  ServiceManager manager;
  manager.WriteConfig("[limits]\nclients = 0\n", SocketLine(manager, "t.sock"));
  ASSERT_EQ(manager.Launch(), Status());
  const Result<int> code = manager.AwaitExit();
  ASSERT_EQ(code.status(), Status());
  EXPECT_EQ(*code, 2);
  EXPECT_EQ(manager.notifications().Receive(0), std::nullopt);
}

TEST(Service, TheWatchdogIsFedByTheLoop) {
  ServiceManager manager({.environment = {"WATCHDOG_USEC=200000"}});
  manager.WriteConfig("", SocketLine(manager, "t.sock"));
  ASSERT_EQ(manager.Launch(), Status());
  ASSERT_TRUE(manager.AwaitReady().has_value()) << manager.Log();
  for (int i = 0; i < 3; ++i)
    EXPECT_TRUE(manager.notifications().ReceiveWith("WATCHDOG=1").has_value());
}

TEST(Service, AWatchdogOfAnotherProcessIsNotFed) {
  ServiceManager manager({.environment = {"WATCHDOG_USEC=2000", "WATCHDOG_PID=1"}});
  manager.WriteConfig("", SocketLine(manager, "t.sock"));
  ASSERT_EQ(manager.Launch(), Status());
  ASSERT_TRUE(manager.AwaitReady().has_value()) << manager.Log();
  WireClient client = WireClient::Connect(manager.folder() + "/t.sock");
  EXPECT_EQ(client.Hello("turns the loop").status(), Status());
  manager.Signal(SIGTERM);
  for (std::optional<std::string> text; (text = manager.notifications().Receive());) {
    EXPECT_THAT(*text, Not(HasSubstr("WATCHDOG")));
    if (text->starts_with("STOPPING")) break;
  }
}

TEST(Service, ANotifySocketThatCannotBeIsNamed) {
  const CommandOutput output = [] {
    ServiceManager manager({.environment = {"NOTIFY_SOCKET=relative"}});
    manager.WriteConfig("", SocketLine(manager, "t.sock"));
    CommandOutput ended;
    EXPECT_EQ(manager.Launch(), Status());
    const Result<int> code = manager.AwaitExit();
    ended.exit_code = code ? *code : -1;
    ended.standard_error = manager.Log();
    return ended;
  }();
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_THAT(output.standard_error, HasSubstr("NOTIFY_SOCKET: 'relative' is neither"));
}

// ---- Socket activation --------------------------------------------------------------------------

TEST(Service, AGivenSocketIsServedAndWhoCameBeforeTheDaemonIsAnswered) {
  for (const bool pass_credentials : {true, false}) {
    ServiceManager manager(
        {.sockets = {
             {.name = "terraced.socket", .path = "t.sock", .pass_credentials = pass_credentials}}});
    manager.WriteConfig("");
    const std::string path = manager.folder() + "/t.sock";
    WireClient early = WireClient::Connect(path);
    wire::Hello hello;
    hello.set_version_min(wire::kProtocolVersion);
    hello.set_version_max(wire::kProtocolVersion);
    hello.set_name("early");
    hello.set_writer(true);
    ASSERT_TRUE(early.Send(wire::Type::kHello, 1, hello));
    ASSERT_EQ(manager.Launch(), Status());
    ASSERT_TRUE(manager.AwaitReady().has_value()) << manager.Log();
    std::optional<ReceivedFrame> reply = early.Receive();
    ASSERT_TRUE(reply.has_value()) << manager.Log();
    EXPECT_EQ(WireClient::Parse<wire::HelloReply>(*std::move(reply)).status(), Status());
    WireClient late = WireClient::Connect(path);
    EXPECT_EQ(late.Hello("late").status(), Status());
    EXPECT_TRUE(manager.AwaitLog("made_by=\"the service manager\""));
    EXPECT_FALSE(std::filesystem::exists(path + ".lock"));
    // It is the manager's: it stays.
    manager.Signal(SIGTERM);
    const Result<int> code = manager.AwaitExit();
    ASSERT_EQ(code.status(), Status());
    EXPECT_EQ(*code, 0);
    EXPECT_TRUE(std::filesystem::exists(path));
  }
}

TEST(Service, NobodyIsTurnedAwayWhileTheDaemonIsReplaced) {
  ServiceManager manager({.sockets = {{.name = "terraced.socket", .path = "t.sock"}}});
  manager.WriteConfig("");
  ASSERT_EQ(manager.Launch(), Status());
  ASSERT_TRUE(manager.AwaitReady().has_value()) << manager.Log();
  manager.Signal(SIGKILL);
  ASSERT_EQ(manager.AwaitExit().status(), Status());
  WireClient between = WireClient::Connect(manager.folder() + "/t.sock");
  ASSERT_GE(between.fd(), 0);
  ASSERT_EQ(manager.Launch(), Status());
  EXPECT_EQ(between.Hello("between").status(), Status());
}

TEST(Service, SocketsAreMatchedByNameAndByPath) {
  ServiceManager manager({.sockets = {{.name = "operators", .path = "elsewhere.sock"},
                                      {.name = "whatever", .path = "engines.sock"}}});
  manager.WriteConfig("[[socket]]\npath = \"" + manager.folder() + "/engines.sock\"\n" +
                      "tenant = \"engines\"\n[[socket]]\npath = \"" + manager.folder() +
                      "/admin.sock\"\nname = \"operators\"\ntenant = \"ops\"\nadmin = true\n" +
                      "role = \"admin\"\n[[socket]]\npath = \"" + manager.folder() +
                      "/own.sock\"\ntenant = \"own\"\n");
  ASSERT_EQ(manager.Launch(), Status());
  ASSERT_TRUE(manager.AwaitReady().has_value()) << manager.Log();
  const auto tenant_by = [&](const std::string& name) {
    WireClient client = WireClient::Connect(manager.folder() + "/" + name);
    const Result<wire::HelloReply> reply = client.Hello("who am I");
    return reply ? reply->tenant() : reply.status().message();
  };
  EXPECT_EQ(tenant_by("engines.sock"), "engines");
  EXPECT_EQ(tenant_by("elsewhere.sock"), "ops");
  EXPECT_EQ(tenant_by("own.sock"), "own");  // The daemon makes what it is not given.
  EXPECT_FALSE(std::filesystem::exists(manager.folder() + "/admin.sock"));
}

TEST(Service, AGivenSocketThatNobodyConfiguredRefusesAndIsTold) {
  ServiceManager manager({.sockets = {{.name = "stray", .path = "stray.sock"}}});
  manager.WriteConfig("", SocketLine(manager, "t.sock"));
  ASSERT_EQ(manager.Launch(), Status());
  ASSERT_TRUE(manager.AwaitReady().has_value()) << manager.Log();
  EXPECT_THAT(manager.Log(), HasSubstr("socket-unserved name=stray"));
  std::optional<ReceivedFrame> refused =
      WireClient::Connect(manager.folder() + "/stray.sock").Receive();
  ASSERT_TRUE(refused.has_value());
  EXPECT_EQ(WireClient::Parse<wire::HelloReply>(*std::move(refused)).status().code(),
            Code::kPermissionDenied);
  EXPECT_EQ(WireClient::Connect(manager.folder() + "/t.sock").Hello("served").status(), Status());
}

TEST(Service, TwoGivenSocketsForOneAreNamed) {
  ServiceManager manager(
      {.sockets = {{.name = "first", .path = "elsewhere.sock"}, {.name = "x", .path = "a.sock"}}});
  manager.WriteConfig("[[socket]]\npath = \"" + manager.folder() +
                      "/a.sock\"\nname = \"first\"\ntenant = \"a\"\n");
  ASSERT_EQ(manager.Launch(), Status());
  const Result<int> code = manager.AwaitExit();
  ASSERT_EQ(code.status(), Status());
  EXPECT_EQ(*code, 1);
  EXPECT_THAT(manager.Log(), HasSubstr("is the second one for"));
}

TEST(Service, SocketsWithoutOneForAdminsAreTold) {
  ServiceManager manager;
  const std::string table =
      "[[socket]]\npath = \"" + manager.folder() + "/a.sock\"\ntenant = \"a\"\n";
  manager.WriteConfig(table);
  ASSERT_EQ(manager.Launch(), Status());
  ASSERT_TRUE(manager.AwaitReady().has_value()) << manager.Log();
  EXPECT_THAT(manager.Log(), HasSubstr("no-admin-socket"));
  ServiceManager with;
  with.WriteConfig("[[socket]]\npath = \"" + with.folder() +
                   "/a.sock\"\ntenant = \"a\"\nadmin = true\n");
  ASSERT_EQ(with.Launch(), Status());
  ASSERT_TRUE(with.AwaitReady().has_value()) << with.Log();
  EXPECT_EQ(with.Log().find("no-admin-socket"), std::string::npos);
}

TEST(Service, SocketsThatCannotBeServedAreNamed) {
  struct Case {
    ServiceManagerOptions::Socket socket;
    std::string message;
  };
  for (const Case& each :
       {Case{{.name = "letters", .path = "t.sock", .type = SOCK_DGRAM, .listens = false},
             "'letters' of the service manager is not a Unix stream socket"},
        Case{{.name = "deaf", .path = "t.sock", .listens = false},
             "'deaf' of the service manager does not listen"}}) {
    ServiceManager manager({.sockets = {each.socket}});
    manager.WriteConfig("", SocketLine(manager, "t.sock"));
    ASSERT_EQ(manager.Launch(), Status());
    const Result<int> code = manager.AwaitExit();
    ASSERT_EQ(code.status(), Status());
    EXPECT_EQ(*code, 1);
    EXPECT_THAT(manager.Log(), HasSubstr(each.message));
    EXPECT_EQ(manager.notifications().Receive(0), std::nullopt);
  }
}

}  // namespace
}  // namespace terrace
