#include "libclient/model_files/model_files.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>
#include <utility>

namespace terrace {
namespace {

namespace fs = std::filesystem;

constexpr char kWhole[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";
constexpr std::string_view kSuffix = ".safetensors";
constexpr size_t kMaxRevisionBytes = 256;

bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

bool IsFile(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

bool IsDirectory(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

Status Bad(const fs::path& path, std::string what) {
  return {Code::kInvalidArgument, path.string() + ": " + std::move(what)};
}

Result<std::string> ReadSmallFile(const fs::path& path, size_t limit) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return SystemError(path.string(), errno);
  std::string text(limit + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.bad()) return SystemError(path.string(), EIO);
  text.resize(static_cast<size_t>(in.gcount()));
  if (text.size() > limit) return Bad(path, "longer than " + std::to_string(limit) + " bytes");
  return text;
}

// The shards that an index names, sorted.
Result<std::set<std::string>> ShardsOf(const fs::path& index_path, const std::string& index) {
  const auto document = nlohmann::json::parse(index, nullptr, /*allow_exceptions=*/false);
  if (!document.is_object()) return Bad(index_path, "not a JSON object");
  const auto map = document.find("weight_map");
  if (map == document.end() || !map->is_object()) {
    return Bad(index_path, "weight_map is missing or not an object");
  }
  std::set<std::string> shards;
  for (const auto& entry : *map) {
    if (!entry.is_string()) return Bad(index_path, "weight_map: a file name is not a string");
    const auto& name = entry.get_ref<const std::string&>();
    // The index comes from outside and shall not lead out of its directory.
    if (name.empty() || name == "." || name == ".." ||
        name.find_first_of(std::string_view("/\0", 2)) != std::string::npos) {
      return Bad(index_path, "weight_map: '" + name + "' is not a plain file name");
    }
    shards.insert(name);
    if (shards.size() > kMaxModelFiles) {
      return Bad(index_path, "weight_map: more than " + std::to_string(kMaxModelFiles) + " files");
    }
  }
  if (shards.empty()) return Bad(index_path, "weight_map is empty");
  return shards;
}

Result<ModelFiles> FromIndex(const fs::path& index_path) {
  ModelFiles files;
  ASSIGN_OR_RETURN(files.index, ReadSmallFile(index_path, kMaxModelIndexBytes));
  ASSIGN_OR_RETURN(const std::set<std::string> shards, ShardsOf(index_path, files.index));
  for (const std::string& shard : shards) {
    const fs::path path = index_path.parent_path() / shard;
    if (!IsFile(path)) {
      return Status(Code::kNotFound, path.string() + ": named by " + kIndex +
                                         " but not there (is the download complete?)");
    }
    files.paths.push_back(path.string());
  }
  return files;
}

Result<std::vector<fs::path>> List(const fs::path& directory) {
  std::error_code error;
  std::vector<fs::path> found;
  fs::directory_iterator entry(directory, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error))
    found.push_back(entry->path());
  if (error) return SystemError(directory.string(), error.value());
  std::sort(found.begin(), found.end());
  return found;
}

Result<ModelFiles> FromModelDirectory(const fs::path& directory) {
  if (IsFile(directory / kWhole)) {
    return ModelFiles{.paths = {(directory / kWhole).string()}, .index = ""};
  }
  if (IsFile(directory / kIndex)) return FromIndex(directory / kIndex);
  ASSIGN_OR_RETURN(const std::vector<fs::path> entries, List(directory));
  std::vector<std::string> found;
  for (const fs::path& path : entries) {
    if (EndsWith(path.string(), kSuffix) && IsFile(path)) found.push_back(path.string());
  }
  if (found.size() == 1) return ModelFiles{.paths = std::move(found), .index = ""};
  const std::string expected = std::string("expected ") + kWhole + " or " + kIndex;
  if (found.empty()) {
    return Status(Code::kNotFound,
                  directory.string() + ": no safetensors files in this directory; " + expected);
  }
  return Bad(directory, std::to_string(found.size()) + " .safetensors files and no index; " +
                            expected + ", or the path of one file");
}

// `root` is a models--ORG--NAME folder of the hub cache.
Result<fs::path> SnapshotOf(const fs::path& root) {
  const fs::path snapshots = root / "snapshots";
  const fs::path ref = root / "refs" / "main";
  if (IsFile(ref)) {
    ASSIGN_OR_RETURN(std::string revision, ReadSmallFile(ref, kMaxRevisionBytes));
    while (!revision.empty() && (revision.back() == '\n' || revision.back() == '\r'))
      revision.pop_back();
    const bool plain = !revision.empty() && revision != "." && revision != ".." &&
                       revision.find_first_of(std::string_view("/\0", 2)) == std::string::npos;
    if (!plain) return Bad(ref, "does not hold a revision");
    if (IsDirectory(snapshots / revision)) return snapshots / revision;
    return Status(Code::kNotFound, (snapshots / revision).string() +
                                       ": named by refs/main but not there (is the download "
                                       "complete?)");
  }
  ASSIGN_OR_RETURN(const std::vector<fs::path> entries, List(snapshots));
  if (entries.size() == 1) return entries.front();
  return Bad(root, "no refs/main and " + std::to_string(entries.size()) +
                       " snapshots; name one of snapshots/");
}

}  // namespace

Result<ModelFiles> FindModelFiles(const std::string& path) {
  std::error_code error;
  // Lexically only: following links would lose the names that the index uses.
  fs::path absolute = fs::absolute(path, error).lexically_normal();
  if (path.empty() || error) return Bad(path, "not a path");
  if (!absolute.has_filename()) absolute = absolute.parent_path();

  struct stat facts {};
  if (stat(absolute.c_str(), &facts) != 0) return SystemError(absolute.string(), errno);
  if (S_ISDIR(facts.st_mode)) {
    if (!IsDirectory(absolute / "snapshots")) return FromModelDirectory(absolute);
    ASSIGN_OR_RETURN(const fs::path snapshot, SnapshotOf(absolute));
    return FromModelDirectory(snapshot);
  }
  if (!S_ISREG(facts.st_mode)) return Bad(absolute, "neither a regular file nor a directory");
  if (absolute.filename() == kIndex) return FromIndex(absolute);
  if (!EndsWith(absolute.string(), kSuffix)) {
    return Bad(absolute, "not a .safetensors file: other formats are not supported");
  }
  return ModelFiles{.paths = {absolute.string()}, .index = ""};
}

Result<std::vector<UniqueFd>> OpenModelFiles(const ModelFiles& files) {
  std::vector<UniqueFd> fds;
  for (const std::string& path : files.paths) {
    UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
    if (!fd) return SystemError(path, errno);
    fds.push_back(std::move(fd));
  }
  return fds;
}

}  // namespace terrace
