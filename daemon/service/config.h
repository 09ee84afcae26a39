// Config: what an operator can choose. docs/configuration.md lists every field.
//
// One table of fields serves the TOML file and the command line alike: a field has a path
// ("host.capacity"), a default, and a check whose message names the path. Unknown fields are
// refused. The tables [[socket]], [[peer]], [[nvme]] and [[device]] have fields of their own, in
// the file only. Read at the start of the daemon and at a reload; a value.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "daemon/service/log.h"
#include "tiers/page_store.h"

namespace terrace {

// Host memory: so many bytes, or a share of the memory limit of the cgroup or machine.
struct CapacityChoice {
  uint64_t bytes = 0;  // 0: use `fraction`.
  double fraction = 0.25;

  friend bool operator==(const CapacityChoice&, const CapacityChoice&) = default;
};

enum class LockChoice : uint8_t { kAuto, kNever };
enum class HugePagesChoice : uint8_t { kAuto, kNever };

// Each may do what those before it may.
enum class Role : uint8_t { kReader, kWriter, kAdmin };

// [[socket]]: one Unix socket. Names of users and groups are looked up when it is read.
struct SocketConfig {
  std::string path;
  // FileDescriptorName= of the systemd unit that gives it; empty: it is known by its path.
  std::string name = {};
  std::optional<uid_t> owner = {};  // None: the daemon's.
  std::optional<gid_t> group = {};
  mode_t mode = 0660;
  std::string tenant = {};  // Not empty: nobody of another tenant comes in here.
  // Of those whom no [[peer]] names; for a socket with a tenant.
  Role role = Role::kWriter;
  bool admin = false;  // Whether it takes the verbs of admins.

  friend bool operator==(const SocketConfig&, const SocketConfig&) = default;
};

// [[peer]]: whoever has this uid, or is in this group.
struct PeerConfig {
  std::optional<uid_t> uid = {};  // Either this
  std::optional<gid_t> gid = {};  // or this.
  std::string tenant;
  Role role = Role::kWriter;

  friend bool operator==(const PeerConfig&, const PeerConfig&) = default;
};

// [[nvme]]: a directory of the page store, best on a device of its own.
struct NvmeConfig {
  std::string path;
  uint64_t capacity_bytes = 0;

  friend bool operator==(const NvmeConfig&, const NvmeConfig&) = default;
};

// Whose memory is the tier above the host's.
enum class DeviceChoice : uint8_t {
  kAuto,  // GPUs of CUDA, where a driver and devices are found.
  kCuda,  // Likewise, and it is an error that there are none.
  kHost,  // Memory of the host stands for them: for tests.
  kNone,
};

std::string_view DeviceChoiceName(DeviceChoice choice);

// [[device]]: what is used of one GPU. What is left out is as in one without a table.
struct DeviceConfig {
  std::string uuid = {};  // "GPU-..." or "MIG-..."; of kHost "host:N".
  // A share is of the device's memory; of kHost, of 1 GiB.
  CapacityChoice capacity = {.bytes = 0, .fraction = 0.5};
  uint64_t weights_floor_bytes = 0;
  uint64_t pages_floor_bytes = 0;
  uint64_t slab_bytes = 0;  // 0: 64 MiB, less on a small device of kHost.
  uint32_t unmap_deadline_ms = 10'000;
  std::vector<std::string> tenants = {};  // Empty: of all.

  friend bool operator==(const DeviceConfig&, const DeviceConfig&) = default;
};

enum class IoUringChoice : uint8_t { kAuto, kNever };

struct Config {
  // [daemon]
  std::string socket;  // Empty: the user's default, see DefaultSocketPath.
  mode_t socket_mode = 0600;
  std::string state_dir;  // Empty: the user's default, see DefaultStateDir.
  LogLevel log_level = LogLevel::kInfo;
  LogFormat log_format = LogFormat::kAuto;
  // [host]
  CapacityChoice capacity;
  uint64_t slab_bytes = 0;               // 0: DefaultArenaBytes of the capacity.
  uint64_t block_bytes = 0;              // Likewise.
  uint64_t pretouch_bytes = UINT64_MAX;  // UINT64_MAX: all.
  HugePagesChoice huge_pages = HugePagesChoice::kAuto;
  LockChoice lock = LockChoice::kAuto;
  // [devices]
  DeviceChoice device = DeviceChoice::kAuto;
  std::string mover;  // terrace-mover's path; empty: beside the daemon's own program.
  // [metrics]
  std::string metrics_listen;  // As ParseListenAddress takes it; empty: off.
  // [store]
  Durability durability = Durability::kProcess;
  uint64_t write_bytes_per_day = 0;            // 0: no limit.
  uint64_t scrub_bytes_per_second = 4u << 20;  // 0: off.
  IoUringChoice io_uring = IoUringChoice::kAuto;
  // [limits]
  uint32_t clients = 1024;
  uint32_t clients_per_process = 64;
  uint32_t clients_per_user = 768;
  uint32_t connections = 2048;
  uint32_t connections_without_hello = 256;  // Of one user.
  uint32_t pins = 65536;
  uint64_t pinned_bytes = 0;  // 0: half the host capacity.
  uint32_t grants = 4096;
  uint32_t spaces = 1024;  // That a client has open.
  uint32_t grant_deadline_ms = 30'000;
  uint32_t grant_deadline_max_ms = 600'000;
  uint32_t hello_deadline_ms = 10'000;
  uint32_t reader_stall_ms = 30'000;
  // Without any socket the daemon is in user mode: see SocketsOf.
  std::vector<SocketConfig> sockets;
  std::vector<PeerConfig> peers;
  std::vector<NvmeConfig> nvme;       // None: there is no page store.
  std::vector<DeviceConfig> devices;  // None: every device that is found.
};

struct ConfigField {
  std::string_view path;
  std::string_view expected;  // "a size such as \"64MiB\""
  bool reloads = false;       // A change takes effect without a restart.
};
const std::vector<ConfigField>& ConfigFields();

// Sets one field from the text that a TOML value or an option has: strings without their quotes,
// numbers and booleans as written. The error names the field, what it takes and what it got.
Status SetConfigField(Config* config, std::string_view path, std::string_view text);
// The fields of the tables, as "socket.path", and those of one of their rows
// (config_tables.cc).
const std::vector<ConfigField>& ConfigTableFields();
Status SetSocketField(SocketConfig* socket, std::string_view key, std::string_view text);
Status SetPeerField(PeerConfig* peer, std::string_view key, std::string_view text);
Status SetNvmeField(NvmeConfig* nvme, std::string_view key, std::string_view text);
Status SetDeviceField(DeviceConfig* device, std::string_view key, std::string_view text);
// N of "host:N", which names a device that is memory of the host; 0 to 63.
std::optional<uint32_t> HostDeviceOf(std::string_view text);
// What no field can check alone. To be called when all are set.
Status CheckConfig(const Config& config);
// The fields whose text differs, in the table's order.
struct FieldChange {
  std::string_view path;
  std::string from;
  std::string to;
  bool reloads = false;
};
std::vector<FieldChange> ChangesBetween(const Config& from, const Config& to);
// Takes over the fields that a reload changes.
void TakeReloadable(const Config& from, Config* to);
// As a TOML file that would give the same, with numbers for users and groups.
std::string ConfigText(const Config& config);

// Where the daemon listens: `sockets`, or in user mode the one of [daemon], by which everybody is
// the tenant "default" and may do everything.
std::vector<SocketConfig> SocketsOf(const Config& config);

// Reads a TOML file over what `config` has (config_file.cc, the one door to toml++).
Status ReadConfigFile(const std::string& file, Config* config);
Status ReadConfigText(std::string_view text, const std::string& source, Config* config);

// Of slabs and blocks alike, so that a blank of the reserve serves either: the power of two at or
// below capacity/128, at least 64 MiB and at most 512 MiB. Larger hosts have larger models, whose
// blocks then need no doubling.
uint64_t DefaultArenaBytes(uint64_t capacity_bytes);
// $XDG_RUNTIME_DIR/terrace/terraced.sock, or /tmp/terrace-<uid>/terraced.sock.
std::string DefaultSocketPath();
// $XDG_STATE_HOME/terrace, or ~/.local/state/terrace; empty when there is no home either.
std::string DefaultStateDir();

}  // namespace terrace
