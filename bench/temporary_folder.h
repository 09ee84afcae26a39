// A folder beside the others' temporary files, gone with the object.
#pragma once

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>

#include "base/status.h"

namespace terrace::bench {

class TemporaryFolder {
 public:
  static Result<TemporaryFolder> Make() {
    std::error_code failed;
    std::string path =
        (std::filesystem::temp_directory_path(failed) / "terrace-bench-XXXXXX").string();
    if (mkdtemp(path.data()) == nullptr) return SystemError("mkdtemp " + path, errno);
    TemporaryFolder folder;
    folder.path_ = std::move(path);
    return folder;
  }
  // None yet.
  TemporaryFolder() = default;
  TemporaryFolder(TemporaryFolder&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  TemporaryFolder& operator=(TemporaryFolder&& other) noexcept {
    std::swap(path_, other.path_);
    return *this;
  }
  ~TemporaryFolder() { Remove(); }

  void Remove() {
    std::error_code failed;
    if (!path_.empty()) std::filesystem::remove_all(std::exchange(path_, {}), failed);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace terrace::bench
