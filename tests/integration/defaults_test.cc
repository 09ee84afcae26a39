// A daemon that was told nothing at all.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>

#include "tests/integration/integration_test.h"

namespace terrace {
namespace {

TEST(DefaultsTest, ADaemonWithoutConfigurationServesItsUser) {
  const TemporaryFolder home;
  const auto user_environment = [&] {
    ::clearenv();
    ::setenv("HOME", home.path().c_str(), 1);
    ::setenv("XDG_RUNTIME_DIR", home.path().c_str(), 1);
  };
  Result<bench::Child> daemon = bench::Child::Start("terraced", [&](bench::Link&) {
    user_environment();
    const int log = ::open((home.path() + "/log").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    ::dup2(log, STDERR_FILENO);
    ::dup2(log, STDOUT_FILENO);
    ::execl(TERRACED_PATH, "terraced", nullptr);
    return SystemError("execl", errno);
  });
  ASSERT_TRUE(daemon);
  const std::string socket = home.path() + "/terrace/terraced.sock";
  ASSERT_TRUE(Await([&] { return WireClient::Connect(socket).fd() >= 0; }));

  // A client that was told nothing either finds it.
  Result<bench::Child> client = bench::Child::Start("client", [&](bench::Link&) -> Status {
    user_environment();
    ASSIGN_OR_RETURN(const bench::Client connected,
                     bench::Connect({.socket = "", .name = "client", .read_only = false}));
    ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(connected.get(), 1 << 20));
    ASSIGN_OR_RETURN(const bench::Reader reader, bench::NewReader(connected.get()));
    RETURN_IF_ERROR(PutNewPages(connected.get(), space.get(), Keys(0, 8)));
    ASSIGN_OR_RETURN(const bench::Pages pages, PinAll(reader.get(), space.get(), Keys(0, 8)));
    RETURN_IF_ERROR(CheckPages(pages.get(), Keys(0, 8)));
    ASSIGN_OR_RETURN(const Json status, bench::Report(connected.get(), "status"));
    const uint64_t limit = status["host"]["memory_limit_bytes"];
    RETURN_UNLESS(status["host"]["capacity_wanted_bytes"] <= limit / 4, "a quarter");
    RETURN_UNLESS(status["host"]["capacity_wanted_bytes"] > limit / 5, "a quarter");
    RETURN_UNLESS(status["host"]["capacity_bytes"] <= status["host"]["capacity_wanted_bytes"],
                  "what there is");
    return {};
  });
  ASSERT_TRUE(client);
  const Status served = client->Wait();
  EXPECT_TRUE(served.ok()) << served.ToString();

  struct stat facts {};
  ASSERT_EQ(::stat(socket.c_str(), &facts), 0);
  EXPECT_EQ(facts.st_mode & 0777, 0600u) << "for its user only";
  ASSERT_EQ(::stat((home.path() + "/.local/state/terrace").c_str(), &facts), 0);
  EXPECT_TRUE(S_ISDIR(facts.st_mode));
  ASSERT_EQ(::kill(daemon->pid(), SIGTERM), 0);
  const Status stopped = daemon->Wait();
  EXPECT_TRUE(stopped.ok()) << stopped.ToString() << ": SIGTERM drains and exits 0";
}

}  // namespace
}  // namespace terrace
