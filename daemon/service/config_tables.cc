// The tables [[socket]], [[peer]], [[nvme]] and [[device]] of a configuration.
#include <grp.h>
#include <pwd.h>

#include <algorithm>
#include <charconv>
#include <set>

#include "daemon/service/config.h"
#include "daemon/service/config_text.h"
#include "daemon/service/size_text.h"
#include "tiers/device/gpu.h"

namespace terrace {

namespace {

constexpr size_t kMaxSockets = 64;
constexpr size_t kMaxPeers = 1024;
constexpr size_t kMaxNvme = 64;
constexpr uint64_t kMinNvmeBytes = 64u << 20;
constexpr size_t kMaxDevices = 64;
constexpr uint64_t kMinHostSlab = 1u << 20;
constexpr uint64_t kMinDeviceSlab = 64u << 20;
constexpr uint64_t kMaxDeviceSlab = 512u << 20;
constexpr size_t kMaxTenantName = 64;
constexpr size_t kMaxUserName = 256;
constexpr uint32_t kNobodyId = UINT32_MAX;  // (uid_t)-1: "leave it as it is" to chown.

constexpr std::string_view kExpectedUser = "the name or number of a user of this host";
constexpr std::string_view kExpectedGroup = "the name or number of a group of this host";
constexpr std::string_view kExpectedName =
    "1 to 255 printable characters without ':', as FileDescriptorName= takes";
constexpr std::string_view kExpectedTenant = "1 to 64 letters, digits, '.', '_' and '-'";
constexpr std::string_view kExpectedTenants = "a list of tenants such as [\"chat\", \"batch\"]";
constexpr std::string_view kExpectedFloor = "a size such as \"16GiB\", a multiple of 4096, or 0";
constexpr std::string_view kExpectedRole = "\"reader\", \"writer\" or \"admin\"";

template <typename Row>
struct RowField {
  ConfigField field;
  bool (*set)(Row&, std::string_view);
  std::string (*text)(const Row&);  // Empty: the field is left out.
};

std::optional<uint32_t> IdNumber(std::string_view text) {
  uint32_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number == kNobodyId ? std::nullopt : std::optional(number);
}

bool IsName(std::string_view text) {
  return !text.empty() && text.size() <= kMaxUserName && text.find('\0') == std::string_view::npos;
}

std::optional<uid_t> UserOf(std::string_view text) {
  if (const auto number = IdNumber(text)) return *number;
  if (!IsName(text)) return std::nullopt;
  const passwd* entry = ::getpwnam(std::string(text).c_str());
  return entry == nullptr ? std::nullopt : std::optional<uid_t>(entry->pw_uid);
}

std::optional<gid_t> GroupOf(std::string_view text) {
  if (const auto number = IdNumber(text)) return *number;
  if (!IsName(text)) return std::nullopt;
  const group* entry = ::getgrnam(std::string(text).c_str());
  return entry == nullptr ? std::nullopt : std::optional<gid_t>(entry->gr_gid);
}

std::string IdText(std::optional<uint32_t> id) {
  return id ? std::to_string(*id) : "";
}

bool SetTenant(std::string& tenant, std::string_view text) {
  constexpr std::string_view kAllowed =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
  if (text.empty() || text.size() > kMaxTenantName) return false;
  if (text.find_first_not_of(kAllowed) != std::string_view::npos) return false;
  tenant = text;
  return true;
}

// "[a,b]", each once.
bool SetTenants(std::vector<std::string>& tenants, std::string_view text) {
  if (text.size() < 2 || text.front() != '[' || text.back() != ']') return false;
  text = text.substr(1, text.size() - 2);
  std::vector<std::string> named;
  while (true) {
    const size_t comma = text.find(',');
    std::string tenant;
    if (!SetTenant(tenant, text.substr(0, comma))) return false;
    if (std::find(named.begin(), named.end(), tenant) != named.end()) return false;
    named.push_back(std::move(tenant));
    if (comma == std::string_view::npos) break;
    text.remove_prefix(comma + 1);
  }
  tenants = std::move(named);
  return true;
}

// systemd.socket(5).
bool IsDescriptorName(std::string_view text) {
  const auto bad = [](char c) { return c < 0x20 || c > 0x7e || c == ':'; };
  return !text.empty() && text.size() <= 255 && std::none_of(text.begin(), text.end(), bad);
}

std::string_view RoleName(Role role) {
  return role == Role::kReader ? "reader" : role == Role::kWriter ? "writer" : "admin";
}

bool SetRole(Role& role, std::string_view text) {
  for (const Role each : {Role::kReader, Role::kWriter, Role::kAdmin}) {
    if (text != RoleName(each)) continue;
    role = each;
    return true;
  }
  return false;
}

const std::vector<RowField<SocketConfig>>& SocketFields() {
  using Row = SocketConfig;
  static const std::vector<RowField<Row>> fields = {
      {{"socket.path", kExpectedPath},
       [](Row& row, std::string_view text) {
         if (!IsAbsolutePath(text)) return false;
         row.path = text;
         return true;
       },
       [](const Row& row) { return TomlString(row.path); }},
      {{"socket.name", kExpectedName},
       [](Row& row, std::string_view text) {
         if (!IsDescriptorName(text)) return false;
         row.name = text;
         return true;
       },
       [](const Row& row) { return row.name.empty() ? "" : TomlString(row.name); }},
      {{"socket.owner", kExpectedUser},
       [](Row& row, std::string_view text) { return (row.owner = UserOf(text)).has_value(); },
       [](const Row& row) { return IdText(row.owner); }},
      {{"socket.group", kExpectedGroup},
       [](Row& row, std::string_view text) { return (row.group = GroupOf(text)).has_value(); },
       [](const Row& row) { return IdText(row.group); }},
      {{"socket.mode", kExpectedMode},
       [](Row& row, std::string_view text) {
         const auto mode = SocketModeOf(text);
         if (mode) row.mode = *mode;
         return mode.has_value();
       },
       [](const Row& row) { return TomlString(SocketModeText(row.mode)); }},
      {{"socket.tenant", kExpectedTenant},
       [](Row& row, std::string_view text) { return SetTenant(row.tenant, text); },
       [](const Row& row) { return row.tenant.empty() ? "" : TomlString(row.tenant); }},
      {{"socket.role", kExpectedRole},
       [](Row& row, std::string_view text) { return SetRole(row.role, text); },
       [](const Row& row) { return TomlString(RoleName(row.role)); }},
      {{"socket.admin", "true or false"},
       [](Row& row, std::string_view text) {
         row.admin = text == "true";
         return row.admin || text == "false";
       },
       [](const Row& row) { return std::string(row.admin ? "true" : "false"); }},
  };
  return fields;
}

const std::vector<RowField<PeerConfig>>& PeerFields() {
  using Row = PeerConfig;
  static const std::vector<RowField<Row>> fields = {
      {{"peer.uid", kExpectedUser},
       [](Row& row, std::string_view text) { return (row.uid = UserOf(text)).has_value(); },
       [](const Row& row) { return IdText(row.uid); }},
      {{"peer.gid", kExpectedGroup},
       [](Row& row, std::string_view text) { return (row.gid = GroupOf(text)).has_value(); },
       [](const Row& row) { return IdText(row.gid); }},
      {{"peer.tenant", kExpectedTenant},
       [](Row& row, std::string_view text) { return SetTenant(row.tenant, text); },
       [](const Row& row) { return TomlString(row.tenant); }},
      {{"peer.role", kExpectedRole},
       [](Row& row, std::string_view text) { return SetRole(row.role, text); },
       [](const Row& row) { return TomlString(RoleName(row.role)); }},
  };
  return fields;
}

const std::vector<RowField<NvmeConfig>>& NvmeFields() {
  using Row = NvmeConfig;
  static const std::vector<RowField<Row>> fields = {
      {{"nvme.path", kExpectedPath},
       [](Row& row, std::string_view text) {
         if (!IsAbsolutePath(text)) return false;
         row.path = text;
         return true;
       },
       [](const Row& row) { return TomlString(row.path); }},
      {{"nvme.capacity", "a size such as \"400GiB\", at least 64MiB"},
       [](Row& row, std::string_view text) {
         const auto bytes = ParseSize(text);
         if (!bytes || *bytes < kMinNvmeBytes) return false;
         row.capacity_bytes = *bytes;
         return true;
       },
       [](const Row& row) { return TomlString(SizeText(row.capacity_bytes)); }},
  };
  return fields;
}

bool SetSize(uint64_t& bytes, std::string_view text, uint64_t low, uint64_t high) {
  const auto size = ParseSize(text);
  if (!size || *size < low || *size > high || *size % 4096 != 0) return false;
  bytes = *size;
  return true;
}

const std::vector<RowField<DeviceConfig>>& DeviceFields() {
  using Row = DeviceConfig;
  constexpr uint64_t kMostFloor = uint64_t{1} << 50;
  static const std::vector<RowField<Row>> fields = {
      {{"device.uuid", "\"GPU-\" or \"MIG-\" and a UUID, or \"host:0\" to \"host:63\""},
       [](Row& row, std::string_view text) {
         if (!ParseGpuUuid(text) && !HostDeviceOf(text)) return false;
         row.uuid = text;
         return true;
       },
       [](const Row& row) { return TomlString(row.uuid); }},
      {{"device.capacity", kExpectedCapacity},
       [](Row& row, std::string_view text) {
         const auto capacity = CapacityOf(text);
         if (capacity) row.capacity = *capacity;
         return capacity.has_value();
       },
       [](const Row& row) { return CapacityText(row.capacity); }},
      {{"device.weights_floor", kExpectedFloor},
       [](Row& row, std::string_view text) {
         return SetSize(row.weights_floor_bytes, text, 0, kMostFloor);
       },
       [](const Row& row) { return TomlString(SizeText(row.weights_floor_bytes)); }},
      {{"device.pages_floor", kExpectedFloor},
       [](Row& row, std::string_view text) {
         return SetSize(row.pages_floor_bytes, text, 0, kMostFloor);
       },
       [](const Row& row) { return TomlString(SizeText(row.pages_floor_bytes)); }},
      {{"device.slab", "a size such as \"64MiB\", a multiple of 4096, 64MiB to 512MiB"},
       [](Row& row, std::string_view text) {
         return SetSize(row.slab_bytes, text, kMinHostSlab, kMaxDeviceSlab);
       },
       [](const Row& row) {
         return row.slab_bytes == 0 ? "" : TomlString(SizeText(row.slab_bytes));
       }},
      {{"device.unmap_deadline", "a duration such as \"10s\", 1ms to 24 hours"},
       [](Row& row, std::string_view text) {
         const auto ms = ParseDurationMs(text);
         if (!ms || *ms == 0 || *ms > kMaxDeadlineMs) return false;
         row.unmap_deadline_ms = *ms;
         return true;
       },
       [](const Row& row) { return TomlString(DurationText(row.unmap_deadline_ms)); }},
      {{"device.tenants", kExpectedTenants},
       [](Row& row, std::string_view text) { return SetTenants(row.tenants, text); },
       [](const Row& row) {
         std::string text;
         for (const std::string& tenant : row.tenants)
           text += (text.empty() ? "[" : ", ") + TomlString(tenant);
         return text.empty() ? text : text + "]";
       }},
  };
  return fields;
}

std::string_view KeyOf(const ConfigField& field) {
  return field.path.substr(field.path.find('.') + 1);
}

template <typename Row>
Status SetField(std::string_view table, const std::vector<RowField<Row>>& fields, Row* row,
                std::string_view key, std::string_view text) {
  for (const RowField<Row>& field : fields) {
    if (KeyOf(field.field) != key) continue;
    if (field.set(*row, text)) return {};
    return {Code::kInvalidArgument, std::string(field.field.path) + ": expected " +
                                        std::string(field.field.expected) + ", got \"" +
                                        std::string(text.substr(0, 200)) + "\""};
  }
  return {Code::kInvalidArgument,
          std::string(table) + "." + std::string(key.substr(0, 200)) + ": there is no such field"};
}

template <typename Row>
std::string RowText(std::string_view table, const std::vector<RowField<Row>>& fields,
                    const Row& row) {
  std::string text = "\n[[" + std::string(table) + "]]\n";
  for (const RowField<Row>& field : fields) {
    const std::string value = field.text(row);
    if (value.empty()) continue;
    text.append(KeyOf(field.field)).append(" = ").append(value).append("\n");
  }
  return text;
}

Status Wrong(std::string message) {
  return {Code::kInvalidArgument, std::move(message)};
}

Status CheckSocket(const SocketConfig& socket) {
  if (socket.path.empty()) return Wrong("socket.path: every [[socket]] needs one");
  if (socket.tenant.empty() && socket.role != Role::kWriter) {
    return Wrong("socket.role: " + socket.path +
                 " has no tenant, so the roles are those of [[peer]]: name a tenant or leave "
                 "this out");
  }
  if (socket.role == Role::kAdmin && !socket.admin) {
    return Wrong("socket.role: " + socket.path +
                 " takes no verbs of admins: write admin = true, or another role");
  }
  return {};
}

Status CheckPeer(const PeerConfig& peer) {
  if (peer.uid.has_value() == peer.gid.has_value()) {
    return Wrong("peer: every [[peer]] needs a uid or a gid, and not both");
  }
  const std::string who =
      peer.uid ? "uid " + std::to_string(*peer.uid) : "gid " + std::to_string(*peer.gid);
  if (peer.tenant.empty()) return Wrong("peer.tenant: the [[peer]] of " + who + " needs one");
  return {};
}

Status CheckNvme(const std::vector<NvmeConfig>& tables) {
  if (tables.size() > kMaxNvme) {
    return Wrong("nvme: " + std::to_string(tables.size()) + " tables, at most " +
                 std::to_string(kMaxNvme));
  }
  std::set<std::string> paths;
  for (const NvmeConfig& nvme : tables) {
    if (nvme.path.empty()) return Wrong("nvme.path: every [[nvme]] needs one");
    if (nvme.capacity_bytes == 0) return Wrong("nvme.capacity: " + nvme.path + " needs one");
    if (!paths.insert(nvme.path).second) return Wrong("nvme.path: " + nvme.path + " twice");
  }
  return {};
}

Status CheckDevice(const DeviceConfig& device, DeviceChoice choice) {
  if (device.uuid.empty()) return Wrong("device.uuid: every [[device]] needs one");
  const bool of_host = HostDeviceOf(device.uuid).has_value();
  if (choice == DeviceChoice::kHost && !of_host) {
    return Wrong("device.uuid: " + device.uuid +
                 " is a GPU, and devices.device is \"host\": write \"host:0\" and so on");
  }
  if (of_host && (choice == DeviceChoice::kCuda || choice == DeviceChoice::kAuto)) {
    return Wrong("device.uuid: " + device.uuid + " is no GPU, and devices.device is \"" +
                 std::string(DeviceChoiceName(choice)) + "\"");
  }
  if (!of_host && device.slab_bytes != 0 && device.slab_bytes < kMinDeviceSlab) {
    return Wrong("device.slab: " + device.uuid + " has slabs of " + SizeText(device.slab_bytes) +
                 ", a GPU takes 64MiB to 512MiB");
  }
  const uint64_t floors = device.weights_floor_bytes + device.pages_floor_bytes;
  if (device.capacity.bytes != 0 && floors > device.capacity.bytes) {
    return Wrong("device.weights_floor: " + device.uuid + " has floors of " + SizeText(floors) +
                 " together, its device.capacity is " + SizeText(device.capacity.bytes));
  }
  return {};
}

// A name that nobody has is a slip of the pen, and would leave a device to nobody.
Status CheckTenantsOf(const DeviceConfig& device, const Config& config) {
  std::set<std::string> known;
  for (const SocketConfig& socket : SocketsOf(config))
    known.insert(socket.tenant);
  for (const PeerConfig& peer : config.peers)
    known.insert(peer.tenant);
  for (const std::string& tenant : device.tenants) {
    if (known.contains(tenant)) continue;
    return Wrong("device.tenants: " + device.uuid + " is for '" + tenant +
                 "', and no [[socket]] or [[peer]] is of such a tenant");
  }
  return {};
}

Status CheckDevices(const Config& config) {
  if (config.devices.size() > kMaxDevices) {
    return Wrong("device: " + std::to_string(config.devices.size()) + " tables, at most " +
                 std::to_string(kMaxDevices));
  }
  std::set<std::string> uuids;
  for (const DeviceConfig& device : config.devices) {
    RETURN_IF_ERROR(CheckDevice(device, config.device));
    RETURN_IF_ERROR(CheckTenantsOf(device, config));
    // One device has one name: "GPU-" and the digits' case are no part of it.
    const std::optional<GpuUuid> uuid = ParseGpuUuid(device.uuid);
    if (!uuids.insert(uuid ? uuid->Text() : device.uuid).second) {
      return Wrong("device.uuid: " + device.uuid + " twice");
    }
  }
  return {};
}

}  // namespace

std::optional<uint32_t> HostDeviceOf(std::string_view text) {
  constexpr std::string_view kPrefix = "host:";
  if (!text.starts_with(kPrefix)) return std::nullopt;
  text.remove_prefix(kPrefix.size());
  const std::optional<uint32_t> number = IdNumber(text);
  // "host:00" would be another name of "host:0".
  if (!number || *number >= kMaxDevices || text != std::to_string(*number)) return std::nullopt;
  return number;
}

std::string TomlString(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted.push_back('\\');
    quoted.push_back(c);
  }
  return quoted + "\"";
}

bool IsAbsolutePath(std::string_view text) {
  if (text.empty() || text.front() != '/' || text.size() > 4095) return false;
  const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20; };
  return std::none_of(text.begin(), text.end(), control);
}

std::optional<mode_t> SocketModeOf(std::string_view text) {
  mode_t mode = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), mode, 8);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  if ((mode & 0600) != 0600 || mode > 0777) return std::nullopt;
  return mode;
}

std::string SocketModeText(mode_t mode) {
  char digits[16];
  const auto end = std::to_chars(digits, digits + sizeof digits, mode, 8);
  return "0" + std::string(digits, end.ptr);
}

const std::vector<ConfigField>& ConfigTableFields() {
  static const std::vector<ConfigField> fields = [] {
    std::vector<ConfigField> list;
    for (const auto& field : SocketFields())
      list.push_back(field.field);
    for (const auto& field : PeerFields())
      list.push_back(field.field);
    for (const auto& field : NvmeFields())
      list.push_back(field.field);
    for (const auto& field : DeviceFields())
      list.push_back(field.field);
    return list;
  }();
  return fields;
}

Status SetSocketField(SocketConfig* socket, std::string_view key, std::string_view text) {
  return SetField("socket", SocketFields(), socket, key, text);
}

Status SetPeerField(PeerConfig* peer, std::string_view key, std::string_view text) {
  return SetField("peer", PeerFields(), peer, key, text);
}

Status SetNvmeField(NvmeConfig* nvme, std::string_view key, std::string_view text) {
  return SetField("nvme", NvmeFields(), nvme, key, text);
}

Status SetDeviceField(DeviceConfig* device, std::string_view key, std::string_view text) {
  return SetField("device", DeviceFields(), device, key, text);
}

Status CheckConfigTables(const Config& config) {
  RETURN_IF_ERROR(CheckNvme(config.nvme));
  RETURN_IF_ERROR(CheckDevices(config));
  if (config.sockets.empty() && !config.peers.empty()) {
    return Wrong("peer: without a [[socket]] nobody is told from anybody: add one");
  }
  if (config.sockets.empty()) return {};
  if (!config.socket.empty()) {
    return Wrong("daemon.socket: the [[socket]] tables say where the daemon listens: leave it out");
  }
  if (config.sockets.size() > kMaxSockets) {
    return Wrong("socket: " + std::to_string(config.sockets.size()) + " tables, at most " +
                 std::to_string(kMaxSockets));
  }
  if (config.peers.size() > kMaxPeers) {
    return Wrong("peer: " + std::to_string(config.peers.size()) + " tables, at most " +
                 std::to_string(kMaxPeers));
  }
  std::set<std::string> paths;
  std::set<std::string> names;
  for (const SocketConfig& socket : config.sockets) {
    RETURN_IF_ERROR(CheckSocket(socket));
    if (!paths.insert(socket.path).second) return Wrong("socket.path: " + socket.path + " twice");
    if (!socket.name.empty() && !names.insert(socket.name).second) {
      return Wrong("socket.name: " + socket.name + " twice");
    }
  }
  // The first that matches counts, so a second one of the same user would never be read.
  std::set<uid_t> uids;
  std::set<gid_t> gids;
  for (const PeerConfig& peer : config.peers) {
    RETURN_IF_ERROR(CheckPeer(peer));
    if (peer.uid && !uids.insert(*peer.uid).second) {
      return Wrong("peer.uid: " + std::to_string(*peer.uid) + " twice");
    }
    if (peer.gid && !gids.insert(*peer.gid).second) {
      return Wrong("peer.gid: " + std::to_string(*peer.gid) + " twice");
    }
  }
  return {};
}

std::string ConfigTablesText(const Config& config) {
  std::string text;
  for (const SocketConfig& socket : config.sockets)
    text += RowText("socket", SocketFields(), socket);
  for (const PeerConfig& peer : config.peers)
    text += RowText("peer", PeerFields(), peer);
  for (const NvmeConfig& nvme : config.nvme)
    text += RowText("nvme", NvmeFields(), nvme);
  for (const DeviceConfig& device : config.devices)
    text += RowText("device", DeviceFields(), device);
  return text;
}

std::vector<SocketConfig> SocketsOf(const Config& config) {
  if (!config.sockets.empty()) return config.sockets;
  SocketConfig socket;
  socket.path = config.socket;
  socket.mode = config.socket_mode;
  socket.tenant = "default";
  socket.role = Role::kAdmin;
  socket.admin = true;
  return {socket};
}

}  // namespace terrace
