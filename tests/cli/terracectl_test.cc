// terracectl as a program: reports, models, errors and exit codes.
#include "tests/cli/terracectl.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <fstream>

#include "base/unique_fd.h"
#include "bench/model_writer.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string WriteTinyModel(const std::string& folder) {
  const auto architecture = FindArchitecture("tiny");
  EXPECT_TRUE(architecture);
  const auto tensors = TensorsOf(*architecture);
  EXPECT_TRUE(tensors);
  EXPECT_TRUE(WriteModel(folder, *tensors, {.seed = 1, .shards = 2, .config_json = {}}));
  return folder;
}

// ---- No daemon, wrong usage

TEST(TerracectlAlone, SaysHowToStartADaemonWhenNoneListens) {
  const TemporaryFolder folder;
  const std::string socket = folder.path() + "/none.sock";
  const ProgramOutput output = RunTerracectl({"--socket", socket, "status"});
  EXPECT_EQ(output.exit_code, 3);
  EXPECT_EQ(output.standard_output, "");
  EXPECT_THAT(output.standard_error, AllOf(HasSubstr("no daemon listens at " + socket),
                                           HasSubstr("start it with"), HasSubstr("--socket")));
}

TEST(TerracectlAlone, TellsErrorsAsJsonWhenAsked) {
  const TemporaryFolder folder;
  const ProgramOutput output =
      RunTerracectl({"--json", "--socket", folder.path() + "/none.sock", "models"});
  EXPECT_EQ(output.exit_code, 3);
  const auto error = nlohmann::json::parse(output.standard_error, nullptr, false);
  ASSERT_TRUE(error.is_object()) << output.standard_error;
  EXPECT_EQ(error["error"]["code"], "unavailable");
  EXPECT_THAT(error["error"]["hint"].get<std::string>(), HasSubstr("terraced"));
}

TEST(TerracectlAlone, FindsTheSocketOfTheUser) {
  const TemporaryFolder folder;
  const ProgramOutput output = RunProgram({.program = TERRACECTL_PATH,
                                           .arguments = {"status"},
                                           .standard_input = {},
                                           .output_file = {},
                                           .environment = {"XDG_RUNTIME_DIR=" + folder.path()}});
  EXPECT_EQ(output.exit_code, 3);
  EXPECT_THAT(output.standard_error, HasSubstr(folder.path() + "/terrace/terraced.sock"));
}

TEST(TerracectlAlone, RefusesWrongUsage) {
  const std::vector<std::vector<std::string>> calls = {
      {},
      {"dance"},
      {"status", "--sideways"},
      {"model"},
      {"model", "add", "x"},
      {"model", "grant", "x"},
      {"model", "revoke"},
      {"model", "add", "x", "--version", "1", "--from", "/does/not/exist"},
      {"load"},
      {"evict"},
      {"evict", "--bytes", "lots"},
      {"evict", "--bytes", "0"},
      {"evict", "--bytes", "1K", "--all"},
      {"demote"},
      {"demote", "--bytes", "some"},
      {"demote", "--bytes", "1K", "--all"},
      {"flush", "now"},
      {"tiers", "nvme"},
      {"pages", "--limit", "0"},
      {"put", "--space", "00", "-"},
      {"put", "--space", "00", "--key", "00", "--tokens", "1", "-"},
      {"get", "--space", "00"},
      {"status", "--timeout", "soon"},
      {"status", "--timeout", "0"},
  };
  for (const auto& call : calls) {
    const ProgramOutput output = RunTerracectl(call);
    EXPECT_EQ(output.exit_code, 2) << ::testing::PrintToString(call) << output.standard_error;
    EXPECT_NE(output.standard_error, "") << ::testing::PrintToString(call);
  }
}

TEST(TerracectlAlone, HelpNamesEveryVerbAndExitCode) {
  const ProgramOutput output = RunTerracectl({"--help"});
  EXPECT_EQ(output.exit_code, 0);
  for (const char* word :
       {"status", "models", "model", "load", "unload", "spaces", "clients", "pages", "put", "get",
        "evict", "tiers", "demote", "promote", "fsck", "flush", "version", "Exit codes: 0"}) {
    EXPECT_THAT(output.standard_output, HasSubstr(word));
  }
}

TEST(TerracectlAlone, VersionNeedsNoDaemon) {
  const TemporaryFolder folder;
  const std::string socket = folder.path() + "/none.sock";
  const ProgramOutput output = RunTerracectl({"--socket", socket, "version"});
  EXPECT_EQ(output.exit_code, 0) << output.standard_error;
  EXPECT_THAT(output.standard_output, HasSubstr("no daemon listens"));
  const ProgramOutput json = RunTerracectl({"--json", "--socket", socket, "version"});
  EXPECT_TRUE(nlohmann::json::parse(json.standard_output)["terraced"].is_null());
}

TEST(TerracectlAlone, GivesUpOnASilentDaemonAtItsDeadline) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/silent.sock";
  const UniqueFd silent(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size());
  ASSERT_EQ(bind(silent.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(listen(silent.get(), 1), 0);
  const ProgramOutput output = RunTerracectl({"--socket", path, "--timeout", "0.05", "status"});
  EXPECT_EQ(output.exit_code, 5);
  EXPECT_THAT(output.standard_error, HasSubstr("--timeout"));
}

// ---- Reports

class TerracectlOfADevice : public Terracectl {
 protected:
  DaemonProcessOptions Options() const override {
    DaemonProcessOptions options;
    options.store =
        "[devices]\ndevice = \"host\"\n[[device]]\nuuid = \"host:1\"\ncapacity = \"64MiB\"\n";
    return options;
  }
};

TEST_F(TerracectlOfADevice, StatusAndTiersShowTheDevice) {
  for (int look = 0; look < 2000; ++look) {
    if (RunJson({"status"})["devices"][0]["state"] == "serving") break;
  }
  const std::string uuid = RunJson({"tiers"})["devices"][0]["uuid"];
  const ProgramOutput status = Run({"status"});
  EXPECT_THAT(status.standard_output, HasSubstr("device 1      serving, 0 B of 64.0 MiB in use"));
  EXPECT_THAT(status.standard_output, HasSubstr(uuid));
  EXPECT_EQ(status.standard_output.find("mover"), std::string::npos);
  const ProgramOutput tiers = Run({"tiers"});
  EXPECT_THAT(tiers.standard_output, HasSubstr("device 1      serving"));
  EXPECT_THAT(tiers.standard_output, HasSubstr("slabs; starts 1, crashes 0, hangs 0, broken 0"));
}

class TerracectlWithoutDevices : public Terracectl {
 protected:
  DaemonProcessOptions Options() const override {
    DaemonProcessOptions options;
    options.store = "[devices]\ndevice = \"none\"\n";
    return options;
  }
};

TEST_F(TerracectlWithoutDevices, StatusSaysWhyThereAreNone) {
  EXPECT_THAT(Run({"status"}).standard_output,
              HasSubstr("devices       none: devices.device is \"none\""));
}

TEST_F(Terracectl, StatusShowsMemoryAndItsMeans) {
  const ProgramOutput output = Run({"status"});
  EXPECT_EQ(output.exit_code, 0) << output.standard_error;
  for (const char* word : {"host memory", "of 64.0 MiB", "huge pages", "locked", "lookups",
                           "evicted", "clients", "isolation"}) {
    EXPECT_THAT(output.standard_output, HasSubstr(word));
  }
  const auto status = RunJson({"status"});
  EXPECT_EQ(status["host"]["capacity_bytes"], 64u << 20);
  EXPECT_EQ(status["daemon"]["pid"], daemon().pid());
}

TEST_F(Terracectl, EveryReportIsJsonWhenAsked) {
  EXPECT_TRUE(RunJson({"models"})["models"].is_array());
  EXPECT_TRUE(RunJson({"spaces"})["spaces"].is_array());
  EXPECT_TRUE(RunJson({"pages"})["pages"].is_array());
  EXPECT_EQ(RunJson({"clients"})["clients"][0]["name"], "terracectl");
  EXPECT_EQ(RunJson({"version"})["terraced"], RunJson({"status"})["daemon"]["version"]);
}

TEST_F(Terracectl, EmptyReportsSayWhatToDo) {
  EXPECT_THAT(Run({"models"}).standard_output, HasSubstr("terracectl model add"));
  EXPECT_THAT(Run({"spaces"}).standard_output, HasSubstr("no spaces"));
  EXPECT_THAT(Run({"pages"}).standard_output, HasSubstr("no pages"));
}

TEST_F(Terracectl, OutputThatCannotBeWrittenIsAFailure) {
  const ProgramOutput output = RunProgram({.program = TERRACECTL_PATH,
                                           .arguments = {"--socket", daemon().socket(), "status"},
                                           .standard_input = {},
                                           .output_file = "/dev/full",
                                           .environment = {}});
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_THAT(output.standard_error, HasSubstr("standard output"));
}

// ---- Models

TEST_F(Terracectl, AModelIsAddedLoadedUnloadedAndRemoved) {
  const std::string path = WriteTinyModel(daemon().folder() + "/tiny");
  const auto added = RunJson({"model", "add", "tiny", "--version", "v1", "--from", path});
  EXPECT_EQ(added["files"], 2);
  EXPECT_EQ(added["durable"], true) << added;
  EXPECT_THAT(Run({"models"}).standard_output, AllOf(HasSubstr("tiny"), HasSubstr("registered")));

  const auto loaded = RunJson({"load", "tiny@v1"});
  EXPECT_EQ(loaded["version"], "v1");
  EXPECT_EQ(loaded["digest"].get<std::string>().size(), 64u);
  EXPECT_EQ(RunJson({"models"})["models"][0]["versions"][0]["state"], "resident");

  const auto unloaded = RunJson({"unload", "tiny"});
  EXPECT_GE(unloaded["freed_bytes"], added["bytes"]);
  EXPECT_EQ(unloaded["held_bytes"], 0);

  EXPECT_EQ(Run({"model", "remove", "tiny"}).exit_code, 0);
  EXPECT_EQ(RunJson({"models"})["models"].size(), 0u);
}

TEST_F(Terracectl, AModelIsGrantedAndRevoked) {
  const std::string path = WriteTinyModel(daemon().folder() + "/tiny");
  ASSERT_EQ(Run({"model", "add", "tiny", "--version", "v1", "--from", path}).exit_code, 0);
  EXPECT_EQ(RunJson({"models"})["models"][0]["tenants"], nlohmann::json({"default"}));
  const auto revoked = RunJson({"model", "revoke", "tiny", "default"});
  EXPECT_EQ(revoked["granted"], false);
  EXPECT_EQ(RunJson({"models"})["models"][0]["tenants"].size(), 0u);
  EXPECT_EQ(Run({"model", "revoke", "tiny", "default"}).exit_code, 0);
  EXPECT_THAT(Run({"model", "grant", "tiny", "default"}).standard_output,
              HasSubstr("granted tiny to default"));
  EXPECT_THAT(Run({"models"}).standard_output, AllOf(HasSubstr("TENANTS"), HasSubstr("default")));
  for (const std::vector<std::string>& call :
       {std::vector<std::string>{"model", "grant", "tiny", "nobody"},
        {"model", "grant", "nothing", "default"},
        {"model", "revoke", "nothing", "default"}}) {
    const ProgramOutput output = Run(call);
    EXPECT_EQ(output.exit_code, 4) << ::testing::PrintToString(call);
    EXPECT_THAT(output.standard_error, HasSubstr("names the tenants"));
  }
}

TEST_F(Terracectl, LoadWithoutATerminalShowsNoProgressBar) {
  const std::string path = WriteTinyModel(daemon().folder() + "/tiny");
  ASSERT_EQ(Run({"model", "add", "tiny", "--version", "v1", "--from", path}).exit_code, 0);
  const ProgramOutput output = Run({"load", "tiny"});
  EXPECT_EQ(output.exit_code, 0) << output.standard_error;
  EXPECT_EQ(output.standard_error, "");
  EXPECT_THAT(output.standard_output, StartsWith("loaded tiny@v1"));
}

TEST_F(Terracectl, AnUnknownModelIsNotFound) {
  for (const std::vector<std::string>& call : {std::vector<std::string>{"load", "nobody"},
                                               {"unload", "nobody"},
                                               {"model", "remove", "nobody"}}) {
    const ProgramOutput output = Run(call);
    EXPECT_EQ(output.exit_code, 4) << ::testing::PrintToString(call);
    EXPECT_THAT(output.standard_error, HasSubstr("terracectl models"));
  }
}

TEST_F(Terracectl, WithoutADeviceNothingIsLoadedToOne) {
  const std::string path = WriteTinyModel(daemon().folder() + "/tiny");
  ASSERT_EQ(Run({"model", "add", "tiny", "--version", "v1", "--from", path}).exit_code, 0);
  for (const char* verb : {"load", "unload"}) {
    const ProgramOutput output = Run({verb, "tiny", "--tier", "device"});
    EXPECT_EQ(output.exit_code, 4) << verb;
    EXPECT_THAT(output.standard_error, HasSubstr("no device"));
    EXPECT_EQ(Run({verb, "tiny", "--device", "1"}).exit_code, 2) << verb;
    EXPECT_EQ(Run({verb, "tiny", "--tier", "tape"}).exit_code, 2) << verb;
  }
  EXPECT_EQ(RunJson({"load", "tiny", "--tier", "host"})["version"], "v1");
}

TEST_F(Terracectl, AMalformedFileIsRefusedWithItsName) {
  const std::string path = daemon().folder() + "/broken.safetensors";
  std::ofstream(path) << "this is no header";
  const ProgramOutput output = Run({"model", "add", "broken", "--version", "1", "--from", path});
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_THAT(output.standard_error, HasSubstr("broken.safetensors"));
  EXPECT_EQ(RunJson({"models"})["models"].size(), 0u);
}

}  // namespace
}  // namespace terrace
