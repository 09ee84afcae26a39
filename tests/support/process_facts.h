// What a process has open and mapped, from /proc: to see from outside that nothing was left behind.
#pragma once

#include <dirent.h>
#include <sys/types.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <map>
#include <ostream>
#include <string>

namespace terrace {

struct ProcessFacts {
  // Descriptors by what they are: "socket", "memfd:terrace-arena", "anon_inode:[pidfd]", ...
  std::map<std::string, uint64_t> descriptors;
  uint64_t memfd_mappings = 0;
  uint64_t memfd_mapped_bytes = 0;

  uint64_t descriptor_count() const {
    uint64_t count = 0;
    for (const auto& [kind, number] : descriptors)
      count += number;
    return count;
  }
  friend bool operator==(const ProcessFacts&, const ProcessFacts&) = default;
  friend std::ostream& operator<<(std::ostream& out, const ProcessFacts& facts) {
    for (const auto& [kind, number] : facts.descriptors)
      out << kind << ": " << number << ", ";
    return out << "mappings of memfds: " << facts.memfd_mappings << ", of "
               << facts.memfd_mapped_bytes << " bytes";
  }
};

// "memfd:name" of "/memfd:name (deleted)", "socket" of "socket:[123]".
inline std::string KindOfDescriptor(std::string target) {
  target = target.substr(0, target.find(" (deleted)"));
  if (target.starts_with("/memfd:")) return target.substr(1);
  if (target.starts_with("socket:")) return "socket";
  return target;
}

inline ProcessFacts FactsOf(pid_t pid) {
  ProcessFacts facts;
  const std::string folder = "/proc/" + std::to_string(pid);
  if (DIR* open = ::opendir((folder + "/fd").c_str())) {
    while (const dirent* entry = ::readdir(open)) {
      char target[4096];
      const ssize_t bytes =
          ::readlink((folder + "/fd/" + entry->d_name).c_str(), target, sizeof target);
      if (bytes > 0) ++facts.descriptors[KindOfDescriptor({target, static_cast<size_t>(bytes)})];
    }
    ::closedir(open);
  }
  std::ifstream maps(folder + "/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find("/memfd:") == std::string::npos) continue;
    ++facts.memfd_mappings;
    const size_t dash = line.find('-');
    facts.memfd_mapped_bytes += std::stoull(line.substr(dash + 1), nullptr, 16) -
                                std::stoull(line.substr(0, dash), nullptr, 16);
  }
  return facts;
}

// A field of /proc/PID/status, in bytes: "VmRSS".
inline uint64_t StatusBytes(pid_t pid, const std::string& field) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(field + ":")) return std::stoull(line.substr(field.size() + 1)) * 1024;
  }
  return 0;
}

}  // namespace terrace
