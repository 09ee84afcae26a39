#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "daemon/service/config.h"

namespace terrace {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

constexpr const char* kTables = R"(
[[socket]]
path = "/run/terrace/a.sock"
owner = "root"
group = 1200
mode = "0666"
tenant = "a"
role = "reader"

[[socket]]
path = "/run/terrace/admin.sock"
admin = true

[[peer]]
uid = 0
tenant = "ops"
role = "admin"

[[peer]]
gid = 1300
tenant = "b"
)";

Status Read(std::string_view text, Config* config) {
  RETURN_IF_ERROR(ReadConfigText(text, "t.toml", config));
  return CheckConfig(*config);
}

Status Read(std::string_view text) {
  Config config;
  return Read(text, &config);
}

TEST(ConfigTables, SocketsAndPeersAreReadInTheirOrder) {
  Config config;
  ASSERT_EQ(Read(kTables, &config), Status());
  ASSERT_EQ(config.sockets.size(), 2u);
  EXPECT_EQ(config.sockets[0].path, "/run/terrace/a.sock");
  EXPECT_EQ(config.sockets[0].owner, uid_t{0});
  EXPECT_EQ(config.sockets[0].group, gid_t{1200});
  EXPECT_EQ(config.sockets[0].mode, mode_t{0666});
  EXPECT_EQ(config.sockets[0].tenant, "a");
  EXPECT_EQ(config.sockets[0].role, Role::kReader);
  EXPECT_FALSE(config.sockets[0].admin);
  EXPECT_EQ(config.sockets[1].owner, std::nullopt);
  EXPECT_EQ(config.sockets[1].mode, mode_t{0660});
  EXPECT_EQ(config.sockets[1].tenant, "");
  EXPECT_TRUE(config.sockets[1].admin);
  ASSERT_EQ(config.peers.size(), 2u);
  EXPECT_EQ(config.peers[0].uid, uid_t{0});
  EXPECT_EQ(config.peers[0].role, Role::kAdmin);
  EXPECT_EQ(config.peers[1].gid, gid_t{1300});
  EXPECT_EQ(config.peers[1].tenant, "b");
  EXPECT_EQ(config.peers[1].role, Role::kWriter);
  EXPECT_EQ(SocketsOf(config), config.sockets);
}

TEST(ConfigTables, TheTextOfTablesGivesTheSameTables) {
  Config config;
  ASSERT_EQ(Read(kTables, &config), Status());
  Config again;
  config.state_dir = "/s";
  ASSERT_EQ(Read(ConfigText(config), &again), Status()) << ConfigText(config);
  EXPECT_EQ(again.sockets, config.sockets);
  EXPECT_EQ(again.peers, config.peers);
  EXPECT_EQ(ConfigText(again), ConfigText(config));
}

TEST(ConfigTables, WithoutASocketEverybodyIsOneTenant) {
  Config config;
  config.socket = "/run/x.sock";
  config.socket_mode = 0640;
  const std::vector<SocketConfig> sockets = SocketsOf(config);
  ASSERT_EQ(sockets.size(), 1u);
  EXPECT_EQ(sockets[0].path, "/run/x.sock");
  EXPECT_EQ(sockets[0].mode, mode_t{0640});
  EXPECT_EQ(sockets[0].tenant, "default");
  EXPECT_EQ(sockets[0].role, Role::kAdmin);
  EXPECT_TRUE(sockets[0].admin);
}

TEST(ConfigTables, WhatATableGetsWrongIsTold) {
  const std::string socket = "[[socket]]\npath = \"/s\"\n";
  const std::string peer = socket + "[[peer]]\ntenant = \"t\"\n";
  const std::string nvme = "[[nvme]]\npath = \"/n\"\ncapacity = \"1GiB\"\n";
  const std::string gpu = "[[device]]\nuuid = \"GPU-00000000-0000-0000-0000-00000000000a\"\n";
  const std::pair<std::string, const char*> cases[] = {
      {"[[socket]]\nmode = \"0660\"", "socket.path: every [[socket]] needs one"},
      {"[[socket]]\npath = \"s\"", "t.toml:2: socket.path: expected an absolute path"},
      {socket + "name = \"a:b\"", "socket.name: expected 1 to 255 printable characters"},
      {socket + "name = \"\"", "socket.name: expected"},
      {socket + "name = \"x\"\n[[socket]]\npath = \"/y\"\nname = \"x\"\n", "socket.name: x twice"},
      {socket + "mode = \"rw\"", "t.toml:3: socket.mode: expected an octal mode"},
      {socket + "owner = \"no such user\"", "socket.owner: expected the name or number of a user"},
      {socket + "owner = 4294967295", "socket.owner: expected"},
      {socket + "owner = -1", "socket.owner: expected"},
      {socket + "group = \"no such group\"", "socket.group: expected the name or number of a"},
      {socket + "group = \"\"", "socket.group: expected"},
      {socket + "tenant = \"a b\"", "socket.tenant: expected 1 to 64 letters"},
      {socket + "tenant = \"" + std::string(65, 't') + "\"", "socket.tenant: expected"},
      {socket + "tenant = \"\"", "socket.tenant: expected"},
      {socket + "role = \"root\"", "socket.role: expected \"reader\", \"writer\" or \"admin\""},
      {socket + "role = \"reader\"", "socket.role: /s has no tenant"},
      {socket + "tenant = \"t\"\nrole = \"admin\"", "socket.role: /s takes no verbs of admins"},
      {socket + "admin = 1", "socket.admin: expected true or false"},
      {socket + "admin = [true]", "socket.admin: expected a string or a number"},
      {socket + "color = \"red\"", "t.toml:3: socket.color: there is no such field"},
      {socket + socket, "socket.path: /s twice"},
      {peer, "peer: every [[peer]] needs a uid or a gid"},
      {peer + "uid = 1\ngid = 1", "peer: every [[peer]] needs a uid or a gid, and not both"},
      {socket + "[[peer]]\nuid = 1", "peer.tenant: the [[peer]] of uid 1 needs one"},
      {peer + "uid = 1\n[[peer]]\nuid = 1\ntenant = \"u\"", "peer.uid: 1 twice"},
      {peer + "gid = 1\n[[peer]]\ngid = 1\ntenant = \"u\"", "peer.gid: 1 twice"},
      {peer + "uid = 1.5", "peer.uid: expected"},
      {"[[peer]]\nuid = 1\ntenant = \"t\"", "peer: without a [[socket]]"},
      {"[daemon]\nsocket = \"/x\"\n" + socket, "daemon.socket: the [[socket]] tables say"},
      {"[socket]\npath = \"/s\"", "[socket]: there is no such section"},
      {"socket = []", "t.toml:1: socket: is written as [[socket]]"},
      {"[[nvme]]\ncapacity = \"1GiB\"", "nvme.path: every [[nvme]] needs one"},
      {"[[nvme]]\npath = \"/n\"", "nvme.capacity: /n needs one"},
      {nvme + "[[nvme]]\npath = \"/n\"\ncapacity = \"2GiB\"", "nvme.path: /n twice"},
      {"[[nvme]]\npath = \"n\"", "t.toml:2: nvme.path: expected an absolute path"},
      {"[[nvme]]\npath = \"/n\"\ncapacity = \"63MiB\"", "t.toml:3: nvme.capacity: expected a size"},
      {"[[nvme]]\npath = \"/n\"\ncapacity = 0.5", "nvme.capacity: expected a size"},
      {nvme + "device = 1", "t.toml:4: nvme.device: there is no such field"},
      {"[nvme]\npath = \"/n\"", "[nvme]: there is no such section"},
      {"nvme = []", "t.toml:1: nvme: is written as [[nvme]]"},
      {"[[device]]\ncapacity = 0.5", "device.uuid: every [[device]] needs one"},
      {"[[device]]\nuuid = \"GPU-1\"", "t.toml:2: device.uuid: expected \"GPU-\""},
      {"[[device]]\nuuid = \"host:64\"", "device.uuid: expected"},
      {"[[device]]\nuuid = \"host:00\"", "device.uuid: expected"},
      {gpu + gpu, "device.uuid: GPU-00000000-0000-0000-0000-00000000000a twice"},
      {gpu + "[[device]]\nuuid = \"MIG-00000000-0000-0000-0000-00000000000A\"", "000A twice"},
      {gpu + "capacity = 1.5", "t.toml:3: device.capacity: expected a size such as"},
      {gpu + "capacity = \"1MiB\"", "device.capacity: expected"},
      {gpu + "slab = \"1GiB\"", "device.slab: expected"},
      {gpu + "slab = \"32MiB\"", "has slabs of 32MiB, a GPU takes 64MiB to 512MiB"},
      {gpu + "weights_floor = \"1KiB\"", "device.weights_floor: expected a size"},
      {gpu + "capacity = \"1GiB\"\nweights_floor = \"600MiB\"\npages_floor = \"600MiB\"",
       "has floors of 1200MiB together, its device.capacity is 1GiB"},
      {gpu + "unmap_deadline = \"0ms\"", "device.unmap_deadline: expected a duration"},
      {gpu + "tenants = [1]", "t.toml:3: device.tenants: expected"},
      {gpu + "tenants = \"default\"", "device.tenants: expected a list of tenants"},
      {gpu + "capacity = [\"1GiB\"]", "device.capacity: expected"},
      {gpu + "tenants = []", "device.tenants: expected a list of tenants"},
      {gpu + "tenants = [\"default\", \"default\"]", "device.tenants: expected a list"},
      {gpu + "tenants = [\"a,b\"]", "t.toml:3: device.tenants: expected"},
      {gpu + "tenants = [\"a b\"]", "device.tenants: expected a list"},
      {gpu + "tenants = [\"chat\"]", "is for 'chat', and no [[socket]] or [[peer]] is of such"},
      {gpu + "tier = 1", "t.toml:3: device.tier: there is no such field"},
      {"[devices]\ndevice = \"host\"\n" + gpu, "is a GPU, and devices.device is \"host\""},
      {"[[device]]\nuuid = \"host:0\"", "host:0 is no GPU, and devices.device is \"auto\""},
      {"[devices]\ndevice = \"amd\"", "devices.device: expected one of \"auto\""},
      {"[devices]\nmover = \"m\"", "devices.mover: expected"},
      {"[device]\nuuid = \"host:0\"", "[device]: there is no such section"},
      {"[store]\npath = \"/n\"", "store.path: there is no such field"},
      {"peer = [1]", "t.toml:1: peer: is written as [[peer]]"},
  };
  for (const auto& [text, expected] : cases) {
    const Status status = Read(text);
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << text;
    EXPECT_THAT(status.message(), HasSubstr(expected)) << text;
  }
}

TEST(ConfigTables, DevicesAreReadInTheirOrder) {
  Config config;
  EXPECT_EQ(config.device, DeviceChoice::kAuto);
  ASSERT_EQ(Read(R"(
[devices]
device = "host"
mover = "/opt/terrace-mover"
[[device]]
uuid = "host:3"
capacity = "64MiB"
weights_floor = "16MiB"
pages_floor = "8MiB"
slab = "2MiB"
unmap_deadline = "1s"
tenants = ["chat", "batch"]
[[device]]
uuid = "host:0"
[[socket]]
path = "/run/chat.socket"
tenant = "chat"
[[socket]]
path = "/run/others.socket"
[[peer]]
uid = 7
tenant = "batch"
)",
                 &config),
            Status());
  EXPECT_EQ(config.device, DeviceChoice::kHost);
  EXPECT_EQ(config.mover, "/opt/terrace-mover");
  const std::vector<DeviceConfig> wanted = {{.uuid = "host:3",
                                             .capacity = {64u << 20, 0},
                                             .weights_floor_bytes = 16u << 20,
                                             .pages_floor_bytes = 8u << 20,
                                             .slab_bytes = 2u << 20,
                                             .unmap_deadline_ms = 1000,
                                             .tenants = {"chat", "batch"}},
                                            {.uuid = "host:0"}};
  EXPECT_EQ(config.devices, wanted);
  config.state_dir = "/s";
  Config again;
  ASSERT_EQ(Read(ConfigText(config), &again), Status()) << ConfigText(config);
  EXPECT_EQ(again.devices, wanted);
  EXPECT_EQ(ConfigText(again), ConfigText(config));
}

TEST(ConfigTables, DirectoriesOfTheStoreAreReadInTheirOrder) {
  Config config;
  EXPECT_TRUE(config.nvme.empty());
  ASSERT_EQ(Read(R"(
[store]
durability = "power"
write_per_day = "2TiB"
io_uring = "never"
[[nvme]]
path = "/mnt/b"
capacity = "1.5GiB"
[[nvme]]
path = "/mnt/a"
capacity = 67108864
)",
                 &config),
            Status());
  EXPECT_EQ(config.durability, Durability::kPower);
  EXPECT_EQ(config.write_bytes_per_day, 2ull << 40);
  EXPECT_EQ(config.io_uring, IoUringChoice::kNever);
  const std::vector<NvmeConfig> wanted = {{"/mnt/b", 1536u << 20}, {"/mnt/a", 64u << 20}};
  EXPECT_EQ(config.nvme, wanted);
  config.state_dir = "/s";
  Config again;
  config.socket = "/x";
  ASSERT_EQ(Read(ConfigText(config), &again), Status()) << ConfigText(config);
  EXPECT_EQ(again.nvme, wanted);
  EXPECT_EQ(ConfigText(again), ConfigText(config));
}

TEST(ConfigTables, ThereCanBeSoManyAndNoMore) {
  Config config;
  for (int i = 0; i < 64; ++i) {
    config.sockets.emplace_back();
    config.sockets.back().path = "/s" + std::to_string(i);
  }
  for (uid_t i = 0; i < 1024; ++i) {
    config.peers.emplace_back();
    config.peers.back().uid = i;
    config.peers.back().tenant = "t";
  }
  EXPECT_EQ(CheckConfig(config), Status());
  Config more = config;
  more.sockets.push_back({.path = "/more"});
  EXPECT_THAT(CheckConfig(more).message(), StartsWith("socket: 65 tables, at most 64"));
  more = config;
  more.peers.push_back({.gid = 1, .tenant = "t"});
  EXPECT_THAT(CheckConfig(more).message(), StartsWith("peer: 1025 tables, at most 1024"));
  for (int i = 0; i < 64; ++i)
    config.nvme.push_back({"/n" + std::to_string(i), 1u << 30});
  EXPECT_EQ(CheckConfig(config), Status());
  config.nvme.push_back({"/more", 1u << 30});
  EXPECT_THAT(CheckConfig(config).message(), StartsWith("nvme: 65 tables, at most 64"));
}

TEST(ConfigTables, EveryFieldIsInTheDocumentation) {
  std::ifstream stream(TERRACE_DOCS "/configuration.md");
  std::ostringstream page;
  page << stream.rdbuf();
  EXPECT_EQ(ConfigTableFields().size(), 21u);
  for (const ConfigField& field : ConfigTableFields())
    EXPECT_THAT(page.str(), HasSubstr("`" + std::string(field.path) + "`"));
}

}  // namespace
}  // namespace terrace
