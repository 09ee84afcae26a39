#include "daemon/service/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

namespace terrace {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

Status Set(std::string_view path, std::string_view text) {
  Config config;
  return SetConfigField(&config, path, text);
}

struct Choices {
  std::string_view path;
  std::vector<std::string_view> good;
  std::vector<std::string_view> bad;
};

const std::vector<Choices>& AllChoices() {
  static const std::vector<Choices> all = {
      {"daemon.socket", {"/run/t.sock"}, {"", "t.sock", "./t.sock", "/a\nb"}},
      {"daemon.socket_mode", {"0600", "0660", "777"}, {"", "0800", "0400", "01777", "rw", "0600 "}},
      {"daemon.state_dir", {"/var/lib/terrace"}, {"", "state"}},
      {"daemon.log_level",
       {"debug", "info", "warning", "error", "off"},
       {"", "INFO", "trace", "1"}},
      {"daemon.log_format", {"auto", "text", "json", "journal"}, {"", "JSON", "syslog"}},
      {"host.capacity",
       {"16GiB", "0.25", "0.001", "1", "1.0", "16777216"},
       {"", "0", "0.0", "1.5", "-1", "1MiB", "lots", "0.0009", "1e-400", "nan", "16GB"}},
      {"host.slab", {"auto", "64MiB", "1MiB", "1GiB"}, {"", "512KiB", "2GiB", "1048577", "0.5"}},
      {"host.block", {"auto", "64MiB", "2MiB", "512MiB"}, {"", "1MiB", "513MiB", "2097153"}},
      {"host.pretouch", {"all", "none", "4GiB", "0"}, {"", "some", "-1", "true"}},
      {"host.huge_pages", {"auto", "never"}, {"", "always", "true"}},
      {"host.lock", {"auto", "never"}, {"", "yes"}},
      {"devices.device", {"auto", "cuda", "host", "none"}, {"", "gpu", "CUDA"}},
      {"devices.mover", {"", "/usr/bin/terrace-mover"}, {"terrace-mover", "./m", "/a\nb"}},
      {"store.durability", {"none", "process", "power"}, {"", "disk", "1", "Process"}},
      {"store.write_per_day",
       {"unlimited", "2TiB", "1", "500GiB"},
       {"", "0", "0GiB", "-1", "none", "lots"}},
      {"store.scrub_bytes_per_second", {"0", "4MiB", "1"}, {"", "off", "-1", "lots"}},
      {"store.io_uring", {"auto", "never"}, {"", "always", "true"}},
      {"metrics.listen",
       {"", "127.0.0.1:9177", "127.1.2.3:0", "[::1]:9177", "unix:/run/terrace/metrics.sock"},
       {"9177", ":9177", "localhost:9177", "0.0.0.0:9177", "10.0.0.1:9177", "[::]:9177", "::1:9177",
        "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:9177 ",
        "unix:", "unix:metrics.sock", "unix:/a\nb"}},
      {"limits.clients", {"1", "1024", "4096"}, {"", "0", "4097", "-1", "1.5", "many"}},
      {"limits.clients_per_process", {"1", "64"}, {"0", "4097", "x"}},
      {"limits.clients_per_user", {"1", "768", "4096"}, {"0", "4097", ""}},
      {"limits.connections_without_hello", {"1", "256", "32768"}, {"0", "32769", "x"}},
      {"limits.spaces", {"1", "1024", "4096"}, {"0", "4097"}},
      {"limits.connections", {"1", "32768"}, {"0", "32769", ""}},
      {"limits.pins", {"8", "65536"}, {"7", "65537", "0"}},
      {"limits.pinned_bytes", {"0", "8GiB"}, {"", "half", "-5"}},
      {"limits.grants", {"1", "1048576"}, {"0", "1048577"}},
      {"limits.grant_deadline", {"30s", "1ms"}, {"", "0s", "30", "25h", "1441min"}},
      {"limits.grant_deadline_max", {"10min", "5min"}, {"0ms", "x"}},
      {"limits.hello_deadline", {"10s", "100ms"}, {"99ms", "10"}},
      {"limits.reader_stall", {"30s", "100ms"}, {"99ms", ""}},
  };
  return all;
}

TEST(Config, EveryFieldTakesWhatItSaysAndNamesItselfWhenItRefuses) {
  for (const Choices& choices : AllChoices()) {
    for (const std::string_view text : choices.good) {
      EXPECT_EQ(Set(choices.path, text), Status()) << choices.path << " = " << text;
    }
    for (const std::string_view text : choices.bad) {
      const Status status = Set(choices.path, text);
      EXPECT_EQ(status.code(), Code::kInvalidArgument) << choices.path << " = " << text;
      EXPECT_THAT(status.message(), StartsWith(std::string(choices.path) + ": expected "));
      EXPECT_THAT(status.message(), HasSubstr("got \"" + std::string(text) + "\""));
    }
  }
}

TEST(Config, NoFieldIsWithoutTheTestAboveOrWithoutItsLineInTheDocumentation) {
  std::ifstream stream(TERRACE_DOCS "/configuration.md");
  std::ostringstream page;
  page << stream.rdbuf();
  for (const ConfigField& field : ConfigFields()) {
    bool tested = false;
    for (const Choices& choices : AllChoices())
      tested = tested || choices.path == field.path;
    EXPECT_TRUE(tested) << field.path;
    EXPECT_THAT(page.str(), HasSubstr("`" + std::string(field.path) + "`"));
  }
  EXPECT_EQ(ConfigFields().size(), AllChoices().size());
}

TEST(Config, CapacityIsASizeOrAShare) {
  Config config;
  ASSERT_EQ(SetConfigField(&config, "host.capacity", "16GiB"), Status());
  EXPECT_EQ(config.capacity.bytes, 16ull << 30);
  ASSERT_EQ(SetConfigField(&config, "host.capacity", "0.5"), Status());
  EXPECT_EQ(config.capacity.bytes, 0u);
  EXPECT_EQ(config.capacity.fraction, 0.5);
  EXPECT_EQ(
      Set("host.capacity", "lots").message(),
      "host.capacity: expected a size such as \"16GiB\", at least 16MiB, or a fraction such as "
      "0.25, from 0.001 to 1, got \"lots\"");
}

TEST(Config, SlabsAndBlocksFollowTheCapacityUnlessTheyAreChosen) {
  EXPECT_EQ(DefaultArenaBytes(16u << 20), 64u << 20);
  EXPECT_EQ(DefaultArenaBytes((16ull << 30) - 1), 64u << 20);
  EXPECT_EQ(DefaultArenaBytes(16ull << 30), 128u << 20);
  EXPECT_EQ(DefaultArenaBytes(40ull << 30), 256u << 20);
  EXPECT_EQ(DefaultArenaBytes(64ull << 30), 512u << 20);
  EXPECT_EQ(DefaultArenaBytes(2048ull << 30), 512u << 20);
  Config config;
  EXPECT_THAT(ConfigText(config), HasSubstr("slab = \"auto\"\nblock = \"auto\"\n"));
  ASSERT_EQ(SetConfigField(&config, "host.slab", "8MiB"), Status());
  EXPECT_EQ(config.slab_bytes, 8u << 20);
  EXPECT_EQ(config.block_bytes, 0u);
  ASSERT_EQ(SetConfigField(&config, "host.slab", "auto"), Status());
  EXPECT_EQ(config.slab_bytes, 0u);
}

TEST(Config, TomlValuesReachTheirFields) {
  Config config;
  ASSERT_EQ(ReadConfigText("[daemon]\nsocket = \"/run/x.sock\"\nlog_level = \"error\"\n"
                           "[host]\ncapacity = 0.5\npretouch = \"none\"\n"
                           "[limits]\npins = 800\npinned_bytes = 4096\ngrant_deadline = \"5s\"\n",
                           "t.toml", &config),
            Status());
  EXPECT_EQ(config.socket, "/run/x.sock");
  EXPECT_EQ(config.log_level, LogLevel::kError);
  EXPECT_EQ(config.capacity.fraction, 0.5);
  EXPECT_EQ(config.pretouch_bytes, 0u);
  EXPECT_EQ(config.pins, 800u);
  EXPECT_EQ(config.pinned_bytes, 4096u);
  EXPECT_EQ(config.grant_deadline_ms, 5000u);
}

TEST(Config, WhatTheFileGetsWrongIsToldWithItsLine) {
  const std::pair<const char*, const char*> cases[] = {
      {"[host]\n\ncapacity = \"lots\"", "t.toml:3: host.capacity: expected"},
      {"[host]\ncapasity = \"1GiB\"", "t.toml:2: host.capasity: there is no such field"},
      {"[hosts]\ncapacity = 1", "t.toml:1: [hosts]: there is no such section"},
      {"socket = \"/x\"", "t.toml:1: socket: fields stand in a section"},
      {"[host]\ncapacity = [1]", "t.toml:2: host.capacity: expected a string or a number"},
      {"[host]\ncapacity = {a = 1}", "host.capacity: expected a string or a number"},
      {"[host]\nlock = true", "host.lock: expected \"auto\" or \"never\", got \"true\""},
      {"[host\n", "t.toml:1: "},
      {"[limits]\npins = 1\npins = 2", "t.toml:"},
      {"\xff\xfe", "t.toml:"},
  };
  for (const auto& [text, expected] : cases) {
    Config config;
    const Status status = ReadConfigText(text, "t.toml", &config);
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << text;
    EXPECT_THAT(status.message(), HasSubstr(expected)) << text;
  }
}

TEST(Config, AFileThatIsMissingOrHugeIsRefused) {
  Config config;
  EXPECT_EQ(ReadConfigFile("/nonexistent/terraced.toml", &config).code(), Code::kNotFound);
  EXPECT_THAT(ReadConfigFile("/dev/zero", &config).message(), HasSubstr("longer than 1MiB"));
}

TEST(Config, FieldsThatContradictEachOtherAreRefused) {
  Config config;
  EXPECT_EQ(CheckConfig(config), Status());
  config.grant_deadline_ms = config.grant_deadline_max_ms + 1;
  EXPECT_THAT(CheckConfig(config).message(), StartsWith("limits.grant_deadline: "));
  config = Config();
  config.connections = config.clients - 1;
  EXPECT_THAT(CheckConfig(config).message(), StartsWith("limits.connections: "));
}

TEST(Config, ChangesAreNamedWithWhetherAReloadTakesThem) {
  Config before;
  EXPECT_TRUE(ChangesBetween(before, before).empty());
  Config after = before;
  after.log_level = LogLevel::kDebug;
  after.capacity = {1u << 30, 0};
  after.pins = 64;
  const std::vector<FieldChange> changes = ChangesBetween(before, after);
  ASSERT_EQ(changes.size(), 3u);
  EXPECT_EQ(changes[0].path, "daemon.log_level");
  EXPECT_EQ(changes[0].from, "\"info\"");
  EXPECT_EQ(changes[0].to, "\"debug\"");
  EXPECT_TRUE(changes[0].reloads);
  EXPECT_EQ(changes[1].path, "host.capacity");
  EXPECT_FALSE(changes[1].reloads);
  EXPECT_EQ(changes[2].path, "limits.pins");
  EXPECT_TRUE(changes[2].reloads);
}

TEST(Config, AReloadTakesEachFieldThatSaysSoAndNoOther) {
  for (const Choices& choices : AllChoices()) {
    Config before;
    Config after = before;
    for (const std::string_view text : choices.good) {
      after = before;
      ASSERT_EQ(SetConfigField(&after, choices.path, text), Status());
      if (!ChangesBetween(before, after).empty()) break;
    }
    const std::vector<FieldChange> changes = ChangesBetween(before, after);
    ASSERT_EQ(changes.size(), 1u) << choices.path << " has no good value but its default";
    TakeReloadable(after, &before);
    EXPECT_EQ(ChangesBetween(before, after).empty(), changes.front().reloads) << choices.path;
  }
}

TEST(Config, TheTextOfAConfigurationGivesTheSameConfiguration) {
  Config config;
  config.socket = "/run/a \"quoted\" \\ path.sock";
  config.state_dir = "/s";
  config.socket_mode = 0660;
  config.capacity = {1536u << 20, 0};
  config.pretouch_bytes = 3u << 30;
  config.lock = LockChoice::kNever;
  config.grant_deadline_ms = 1500;
  Config again;
  ASSERT_EQ(ReadConfigText(ConfigText(config), "again", &again), Status());
  EXPECT_EQ(ConfigText(again), ConfigText(config));
  EXPECT_EQ(again.socket, config.socket);
  EXPECT_EQ(again.capacity.bytes, config.capacity.bytes);
  for (const double fraction : {1.0, 0.25, 0.001, 0.0012345678901234567}) {
    config.capacity = {0, fraction};
    ASSERT_EQ(ReadConfigText(ConfigText(config), "again", &again), Status()) << fraction;
    EXPECT_EQ(again.capacity.fraction, fraction);
  }
}

TEST(Config, DefaultPlacesFollowTheXdgFolders) {
  ::setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
  ::setenv("XDG_STATE_HOME", "/home/x/.state", 1);
  EXPECT_EQ(DefaultSocketPath(), "/run/user/7/terrace/terraced.sock");
  EXPECT_EQ(DefaultStateDir(), "/home/x/.state/terrace");
  ::unsetenv("XDG_STATE_HOME");
  ::setenv("HOME", "/home/x", 1);
  EXPECT_EQ(DefaultStateDir(), "/home/x/.local/state/terrace");
  ::setenv("XDG_RUNTIME_DIR", "relative", 1);  // Which the XDG specification says to ignore.
  EXPECT_THAT(DefaultSocketPath(), StartsWith("/tmp/terrace-"));
  ::unsetenv("HOME");
  EXPECT_EQ(DefaultStateDir(), "");
}

}  // namespace
}  // namespace terrace
