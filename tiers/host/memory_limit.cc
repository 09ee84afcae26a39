#include "tiers/host/memory_limit.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <optional>
#include <sstream>
#include <string_view>
#include <utility>
#include <vector>

namespace terrace {
namespace {

// Where a hierarchy is mounted, and which of its groups is the mount's root.
struct CgroupMount {
  bool v2 = false;
  std::string root;   // Path of the group that is mounted, as /proc/self/cgroup would name it.
  std::string point;  // Folder it is mounted on.
};

// Names of the files of one version.
struct CgroupFiles {
  std::vector<const char*> limits;
  const char* usage;
  const char* droppable;  // Key in memory.stat.
};
const CgroupFiles kV1{{"memory.limit_in_bytes"}, "memory.usage_in_bytes", "total_inactive_file"};
const CgroupFiles kV2{{"memory.max", "memory.high"}, "memory.current", "inactive_file"};

std::optional<uint64_t> ParseNumber(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// "max", a missing file and what does not parse are no number.
std::optional<uint64_t> ReadNumber(const std::string& path) {
  std::string word;
  std::ifstream(path) >> word;
  return ParseNumber(word);
}

// The number after `key` in a file of "key number" lines; /proc/meminfo's keys end in a colon.
std::optional<uint64_t> ReadKey(const std::string& path, std::string_view key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string name;
    std::string value;
    if (words >> name >> value && name == key) return ParseNumber(value);
  }
  return std::nullopt;
}

bool HasWord(const std::string& list, std::string_view word) {
  std::istringstream words(list);
  std::string each;
  while (std::getline(words, each, ',')) {
    if (each == word) return true;
  }
  return false;
}

// proc(5): "36 35 0:31 /group /sys/fs/cgroup/memory rw,... shared:9 - cgroup cgroup rw,memory"; the
// number of optional fields before the dash varies.
std::vector<CgroupMount> ReadMounts(const std::string& root) {
  std::vector<CgroupMount> mounts;
  std::ifstream file(root + "/proc/self/mountinfo");
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string word;
    CgroupMount mount;
    words >> word >> word >> word >> mount.root >> mount.point;
    while (words >> word && word != "-") {
    }
    std::string type;
    std::string device;
    std::string options;
    words >> type >> device >> options;
    mount.v2 = type == "cgroup2";
    if (mount.v2 || (type == "cgroup" && HasWord(options, "memory"))) {
      mounts.push_back(std::move(mount));
    }
  }
  return mounts;
}

// The process's group in the hierarchy: "0::/path" for v2, "4:memory:/path" for v1.
std::optional<std::string> ReadGroup(const std::string& root, bool v2) {
  std::ifstream file(root + "/proc/self/cgroup");
  std::string line;
  while (std::getline(file, line)) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool matches = v2 ? controllers.empty() : HasWord(controllers, "memory");
    if (matches) return line.substr(second + 1);
  }
  return std::nullopt;
}

// The group's path below the mount point: "" for the mount's root. A group outside of what is
// mounted (a container that sees its own group only) is taken to be that root.
std::string BelowMount(const std::string& group, const std::string& mount_root) {
  std::string below = group;
  if (mount_root != "/") {
    if (!group.starts_with(mount_root)) return "";
    below = group.substr(mount_root.size());
  }
  return below == "/" || below.starts_with("/..") ? "" : below;
}

void Tighten(const std::string& root, const std::string& folder, const CgroupFiles& files,
             MemoryLimit* result) {
  const std::string path = root + folder + "/";
  uint64_t limit = UINT64_MAX;
  for (const char* file : files.limits) {
    limit = std::min(limit, ReadNumber(path + file).value_or(UINT64_MAX));
  }
  // No limit is "max" in v2, and in v1 a number beyond every machine.
  if (limit == UINT64_MAX) return;
  if (limit < result->limit_bytes) {
    result->limit_bytes = limit;
    result->source = folder;
  }
  const uint64_t usage = ReadNumber(path + files.usage).value_or(0);
  const uint64_t droppable = ReadKey(path + "memory.stat", files.droppable).value_or(0);
  const uint64_t held = usage - std::min(usage, droppable);
  result->available_bytes = std::min(result->available_bytes, limit - std::min(limit, held));
}

}  // namespace

Result<MemoryLimit> ReadMemoryLimit(const std::string& root) {
  const std::string meminfo = root + "/proc/meminfo";
  const auto total_kib = ReadKey(meminfo, "MemTotal:");
  const auto available_kib = ReadKey(meminfo, "MemAvailable:");
  if (!total_kib || !available_kib) {
    return Status(Code::kUnavailable, meminfo + ": no MemTotal and MemAvailable there");
  }
  MemoryLimit result{.limit_bytes = *total_kib * 1024,
                     .available_bytes = *available_kib * 1024,
                     .source = "the machine"};
  for (const CgroupMount& mount : ReadMounts(root)) {
    const auto group = ReadGroup(root, mount.v2);
    if (!group) continue;
    std::string below = BelowMount(*group, mount.root);
    for (;;) {
      Tighten(root, mount.point + below, mount.v2 ? kV2 : kV1, &result);
      if (below.empty()) break;
      below.resize(below.rfind('/'));  // It starts with one.
    }
  }
  return result;
}

}  // namespace terrace
