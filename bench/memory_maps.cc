#include "bench/memory_maps.h"

#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "proto/shared_memory.h"

namespace terrace::bench {
namespace {

// "7f0c-7f0d rw-s 00000000 00:01 1234   /memfd:x (deleted)"; false for the lines between.
bool ParseHead(const std::string& line, MappedRange* range) {
  char rights[5] = {};
  unsigned long long start = 0, end = 0, inode = 0;
  int name_at = 0;
  if (std::sscanf(line.c_str(), "%llx-%llx %4s %*x %*s %llu %n", &start, &end, rights, &inode,
                  &name_at) < 4) {
    return false;
  }
  range->start = start;
  range->end = end;
  range->writable = rights[1] == 'w';
  range->shared = rights[3] == 's';
  range->inode = inode;
  range->name = line.substr(static_cast<size_t>(name_at));
  return true;
}

// "Pss:    12 kB".
bool ParseKb(const std::string& line, const char* field, uint64_t* bytes) {
  const std::string prefix = std::string(field) + ":";
  if (!line.starts_with(prefix)) return false;
  *bytes = std::strtoull(line.c_str() + prefix.size(), nullptr, 10) * 1024;
  return true;
}

}  // namespace

Result<std::vector<MappedRange>> MapsOf(pid_t pid) {
  const std::string path = "/proc/" + std::to_string(pid) + "/smaps";
  std::ifstream file(path);
  std::vector<MappedRange> ranges;
  for (std::string line; std::getline(file, line);) {
    MappedRange range;
    if (ParseHead(line, &range)) {
      ranges.push_back(std::move(range));
    } else if (!ranges.empty()) {
      (void)(ParseKb(line, "Pss", &ranges.back().pss_bytes) ||
             ParseKb(line, "Rss", &ranges.back().rss_bytes));
    }
  }
  if (ranges.empty()) return Status(Code::kPermissionDenied, path + " could not be read");
  return ranges;
}

Result<uint64_t> OpenDescriptors(pid_t pid) {
  const std::string folder = "/proc/" + std::to_string(pid) + "/fd";
  std::error_code failed;
  uint64_t count = 0;
  for (auto at = std::filesystem::directory_iterator(folder, failed);
       !failed && at != std::filesystem::directory_iterator(); at.increment(failed)) {
    ++count;
  }
  if (failed) return Status(Code::kPermissionDenied, folder + " could not be read");
  // One's own include the folder that is being read.
  return count - (pid == getpid() ? 1 : 0);
}

Result<uint64_t> MappedDirectoryCapacity() {
  ASSIGN_OR_RETURN(const std::vector<MappedRange> ranges, MapsOf(getpid()));
  uint64_t newest = 0;
  uint64_t capacity = 0;
  for (const MappedRange& range : ranges) {
    if (!range.shared || range.writable || range.bytes() < sizeof(shm::DirectoryHeader)) continue;
    const auto* header = reinterpret_cast<const shm::DirectoryHeader*>(range.start);
    if (header->magic.load() != shm::kDirectoryMagic) continue;
    if (header->directory_id.load() <= newest) continue;
    newest = header->directory_id.load();
    capacity = header->capacity.load();
  }
  if (capacity == 0) return Status(Code::kNotFound, "this process maps no directory");
  return capacity;
}

Result<double> StatusBytes(pid_t pid, const std::string& field) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(field + ":")) return 1024 * std::stod(line.substr(field.size() + 1));
  }
  return Status(Code::kUnavailable,
                field + " of process " + std::to_string(pid) + " cannot be read");
}

}  // namespace terrace::bench
