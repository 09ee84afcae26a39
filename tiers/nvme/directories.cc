#include "tiers/nvme/directories.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "base/hex.h"
#include "base/random.h"
#include "tiers/nvme/index.h"

namespace terrace::nvme {
namespace {

std::string Join(const std::string& directory, std::string_view name) {
  return directory + "/" + std::string(name);
}

// What a directory is before anything is done about it.
enum class Kind : uint8_t { kGone, kEmpty, kOurs };
struct Found {
  Kind kind = Kind::kGone;
  Status why;                   // Of kGone.
  Marker marker;                // Of kOurs.
  std::optional<Marker> begun;  // Of kEmpty: a store whose making did not end.
};

Result<std::vector<uint8_t>> ReadFile(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return SystemError(path, errno);
  std::vector<uint8_t> bytes(kAlignment + 1);
  const ssize_t got = ::pread(fd.get(), bytes.data(), bytes.size(), 0);
  if (got < 0) return SystemError(path, errno);
  bytes.resize(static_cast<size_t>(got));
  return bytes;
}

// The marker is there whole or not at all: written beside its name and renamed.
Status WriteNewMarker(const std::string& directory, const Marker& marker) {
  const std::string path = Join(directory, kNewMarkerName);
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd) return SystemError(path, errno);
  const MarkerBytes bytes = EncodeMarker(marker);
  const ssize_t put = ::pwrite(fd.get(), bytes.data(), bytes.size(), 0);
  if (put != static_cast<ssize_t>(bytes.size())) return SystemError(path, put < 0 ? errno : ENOSPC);
  if (::fsync(fd.get()) != 0) return SystemError(path, errno);
  return SyncDirectory(directory);
}

Status PublishMarker(const std::string& directory) {
  const std::string path = Join(directory, kMarkerName);
  if (::rename(Join(directory, kNewMarkerName).c_str(), path.c_str()) != 0) {
    return SystemError(path, errno);
  }
  return SyncDirectory(directory);
}

// Names that a directory may hold before it is a store: ours of a making that did not end, and what
// a fresh file system has.
bool IsNothing(const std::string& name, bool begun) {
  if (name == kLockName || name == kNewMarkerName || name == "lost+found") return true;
  return begun && name == kIndexName;
}

Found Gone(Status why) {
  Found found;
  found.why = std::move(why);
  return found;
}

// Pages are the tenants': whoever else may write there may put others in their place.
Status CheckPrivate(const std::string& path, const struct stat& facts) {
  if (facts.st_uid != ::geteuid()) {
    return {Code::kPermissionDenied, path + ": belongs to user " + std::to_string(facts.st_uid) +
                                         ", not to the one that terraced runs as"};
  }
  if ((facts.st_mode & 0022) != 0) {
    return {Code::kPermissionDenied, path + ": is writable by others: chmod 0700 it"};
  }
  return {};
}

// Fails where it is refused; what cannot be looked at is gone.
Result<Found> LookAt(const std::string& path) {
  struct stat facts {};
  if (::stat(path.c_str(), &facts) != 0) {
    if (errno != ENOENT) return Gone(SystemError(path, errno));
    return Gone({Code::kNotFound, path + ": there is no such directory, and none is made: it may "
                                         "be on a disk that is not mounted"});
  }
  if (!S_ISDIR(facts.st_mode)) return Status(Code::kMismatch, path + ": is not a directory");
  if (Status status = CheckPrivate(path, facts); !status.ok()) return Gone(std::move(status));
  const auto listed = NamesIn(path);
  if (!listed) return Gone(listed.error());
  const std::vector<std::string>& names = *listed;
  Found found;
  if (std::find(names.begin(), names.end(), kMarkerName) != names.end()) {
    const std::string marker = Join(path, kMarkerName);
    const auto bytes = ReadFile(marker);
    if (!bytes) return Gone(bytes.error());
    Result<Marker> decoded = DecodeMarker(*bytes);
    if (!decoded) return std::move(decoded).error().WithContext(marker);
    found.kind = Kind::kOurs;
    found.marker = *decoded;
    return found;
  }
  if (std::find(names.begin(), names.end(), kNewMarkerName) != names.end()) {
    // Torn by a crash, it is as if it were not there.
    const auto bytes = ReadFile(Join(path, kNewMarkerName));
    if (!bytes) return Gone(bytes.error());
    if (auto begun = DecodeMarker(*bytes)) found.begun = *begun;
  }
  for (const std::string& name : names) {
    if (!IsNothing(name, found.begun.has_value())) {
      return Status(Code::kMismatch, path + ": holds files (" + name + "), but no Terrace store");
    }
  }
  found.kind = Kind::kEmpty;
  return found;
}

// flock, not a record lock: it is the descriptor's, and works on a file system mounted read-only.
// `unavailable`: another process has it.
Result<UniqueFd> Lock(const std::string& directory) {
  const std::string path = Join(directory, kLockName);
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd && errno == EROFS) fd.Reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return SystemError(path, errno);
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return SystemError(path, errno);
    std::array<char, 16> text{};
    const bool known = ::pread(fd.get(), text.data(), text.size() - 1, 0) > 0;
    return Status(Code::kUnavailable,
                  directory + ": is in use by process " + (known ? text.data() : "(unknown)"));
  }
  // For the message above only.
  const std::string pid = std::to_string(::getpid());
  if (::ftruncate(fd.get(), 0) == 0) (void)!::pwrite(fd.get(), pid.data(), pid.size(), 0);
  return fd;
}

Result<UniqueFd> OpenMarkerDirect(const std::string& directory) {
  const std::string path = Join(directory, kMarkerName);
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
  if (fd) return fd;
  if (errno == EINVAL) {
    return Status(Code::kInvalidArgument, directory + ": its file system knows no O_DIRECT");
  }
  return SystemError(path, errno);
}

class Opener {
 public:
  Opener(std::span<const std::string> paths, const OpenDirectoriesOptions& options,
         const Clock& clock)
      : options_(options), clock_(clock) {
    for (const std::string& path : paths)
      all_.devices.push_back({.path = path, .lock = {}, .marker = {}, .off = {}});
  }

  Result<StoreDirectories> Run() {
    RETURN_IF_ERROR(LookAtAll());
    RETURN_IF_ERROR(found_[0].kind == Kind::kEmpty ? MakeStore() : JoinStore());
    for (StoreDirectory& device : all_.devices) {
      if (device.off.empty()) RETURN_IF_ERROR(OpenMarker(device));
    }
    return std::move(all_);
  }

 private:
  Status OpenMarker(StoreDirectory& device) {
    Result<UniqueFd> marker = OpenMarkerDirect(device.path);
    if (marker) {
      device.marker = *std::move(marker);
      return {};
    }
    if (&device == all_.devices.data() || marker.error().code() == Code::kInvalidArgument) {
      return std::move(marker).error();
    }
    TurnOff(device, marker.error().message());
    return {};
  }

  static void TurnOff(StoreDirectory& device, std::string why) {
    device.lock.Reset();
    device.off = std::move(why);
  }

  // What is found is looked at again under the lock: another process may just have made it a store.
  Status LookAtAll() {
    for (size_t i = 0; i < all_.devices.size(); ++i) {
      StoreDirectory& device = all_.devices[i];
      ASSIGN_OR_RETURN(Found found, LookAt(device.path));
      if (found.kind == Kind::kOurs || (found.kind == Kind::kEmpty && MayFill(i))) {
        Result<UniqueFd> lock = Lock(device.path);
        if (lock) {
          device.lock = *std::move(lock);
          ASSIGN_OR_RETURN(found, LookAt(device.path));
        } else if (lock.error().code() == Code::kUnavailable) {
          return std::move(lock).error();
        } else {
          found = Gone(std::move(lock).error());
        }
      }
      found_.push_back(std::move(found));
    }
    return found_[0].why;
  }

  // Nothing is put into an empty directory that is none of the store's to fill, not even a lock.
  bool MayFill(size_t i) const {
    if (options_.adopt_empty) return true;
    if (!options_.make) return false;
    const bool store_is_new = i == 0 || found_[0].kind != Kind::kOurs;
    return store_is_new || i >= found_[0].marker.devices;
  }

  Marker MarkerOf(size_t device, size_t devices) const {
    return {.store = all_.store,
            .device = static_cast<uint32_t>(device),
            .devices = static_cast<uint32_t>(devices),
            .created_ms = clock_.WallMs()};
  }

  Status Mark(size_t device, size_t devices) {
    const std::string& path = all_.devices[device].path;
    RETURN_IF_ERROR(WriteNewMarker(path, MarkerOf(device, devices)));
    return PublishMarker(path);
  }

  // The marker of the first directory comes last: until then there is no store, and its unpublished
  // marker says which one is being made, so that a crash in between is continued.
  Status MakeStore() {
    const size_t count = all_.devices.size();
    const std::string& first = all_.devices[0].path;
    if (!options_.make) return {Code::kNotFound, first + ": holds no store"};
    if (found_[0].begun) {
      all_.store = found_[0].begun->store;
    } else {
      FillSecret(all_.store);
    }
    for (size_t i = 1; i < count; ++i) {
      const std::string& path = all_.devices[i].path;
      RETURN_IF_ERROR(found_[i].why);
      if (found_[i].kind == Kind::kOurs && found_[i].marker.store != all_.store) {
        return {Code::kMismatch, path + ": is of a store whose first directory is not " + first};
      }
    }
    RETURN_IF_ERROR(WriteNewMarker(first, MarkerOf(0, count)));
    for (size_t i = 1; i < count; ++i)
      RETURN_IF_ERROR(Mark(i, count));
    RETURN_IF_ERROR(CreateIndex(Join(first, kIndexName), all_.store));
    return PublishMarker(first);
  }

  Status JoinStore() {
    const Marker& first = found_[0].marker;
    const size_t known = first.devices;
    all_.store = first.store;
    if (first.device != 0) {
      return {Code::kMismatch, all_.devices[0].path + ": is device " +
                                   std::to_string(first.device) + " of its store, not the first"};
    }
    if (all_.devices.size() < known) {
      return {Code::kMismatch, all_.devices[0].path + ": its store has " + std::to_string(known) +
                                   " directories, and " + std::to_string(all_.devices.size()) +
                                   " are given"};
    }
    for (size_t i = 1; i < all_.devices.size(); ++i)
      RETURN_IF_ERROR(JoinDevice(i, known));
    // Last: before it, further devices are new or half made, and are made again.
    if (all_.devices.size() > known) return Mark(0, all_.devices.size());
    return {};
  }

  Status JoinDevice(size_t i, size_t known) {
    StoreDirectory& device = all_.devices[i];
    const Found& found = found_[i];
    if (found.kind == Kind::kOurs) {
      if (found.marker.store == all_.store && found.marker.device == i) return {};
      return {Code::kMismatch, device.path + ": is device " + std::to_string(found.marker.device) +
                                   " of store " + HexEncode(found.marker.store) + ", not device " +
                                   std::to_string(i) + " of store " + HexEncode(all_.store)};
    }
    if (i >= known) {
      RETURN_IF_ERROR(found.why);
      if (!options_.make) return {Code::kNotFound, device.path + ": is no device of the store"};
      return Mark(i, all_.devices.size());
    }
    if (found.kind == Kind::kEmpty && options_.adopt_empty) return Mark(i, known);
    TurnOff(device, found.kind == Kind::kGone
                        ? found.why.message()
                        : device.path + ": is empty; is what was there not mounted?");
    return {};
  }

  const OpenDirectoriesOptions options_;
  const Clock& clock_;
  StoreDirectories all_;
  std::vector<Found> found_;
};

}  // namespace

Result<std::vector<std::string>> NamesIn(const std::string& directory) {
  std::error_code error;
  std::vector<std::string> names;
  for (std::filesystem::directory_iterator at(directory, error), end; !error && at != end;
       at.increment(error)) {
    names.push_back(at->path().filename().string());
  }
  if (error) return SystemError(directory, error.value());
  return names;
}

Status SyncDirectory(const std::string& directory) {
  const UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return SystemError(directory, errno);
  if (::fsync(fd.get()) != 0 && errno != EROFS) return SystemError(directory, errno);
  return {};
}

Result<StoreDirectories> OpenDirectories(std::span<const std::string> paths,
                                         const OpenDirectoriesOptions& options,
                                         const Clock& clock) {
  if (paths.empty() || paths.size() > kMaxDevices) {
    return Status(Code::kInvalidArgument,
                  "directories: from 1 to " + std::to_string(kMaxDevices) + " of them");
  }
  return Opener(paths, options, clock).Run();
}

}  // namespace terrace::nvme
