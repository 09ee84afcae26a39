#include "daemon/service/listener.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/check.h"

namespace terrace {

namespace {

constexpr int kBacklog = 512;
constexpr int kAcceptsPerWake = 32;

Result<sockaddr_un> AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return Status(Code::kInvalidArgument, "socket: the path '" + path + "' has " +
                                              std::to_string(path.size()) +
                                              " bytes, a Unix socket can have 1 to " +
                                              std::to_string(sizeof address.sun_path - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Result<UniqueFd> TakeLock(const std::string& path) {
  for (int attempt = 0; attempt < 8; ++attempt) {
    UniqueFd lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!lock) return SystemError("lock file " + path, errno);
    if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) return SystemError("flock of " + path, errno);
      return Status(Code::kAlreadyExists,
                    "socket: another terraced is running (it holds " + path + ")");
    }
    // The one that stopped just now may have removed the file that we locked.
    struct stat locked {};
    struct stat named {};
    if (::fstat(lock.get(), &locked) == 0 && ::stat(path.c_str(), &named) == 0 &&
        locked.st_ino == named.st_ino && locked.st_dev == named.st_dev) {
      return lock;
    }
  }
  return Status(Code::kUnavailable, "lock file " + path + " keeps being replaced");
}

// Removes what is left of a daemon that is no more.
Status RemoveStale(const std::string& path, const sockaddr_un& address) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) {
    return errno == ENOENT ? Status() : SystemError("socket: " + path, errno);
  }
  if (!S_ISSOCK(info.st_mode)) {
    return {Code::kAlreadyExists, "socket: " + path + " exists and is not a socket"};
  }
  const UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe) return SystemError("socket", errno);
  if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ||
      errno != ECONNREFUSED) {
    return {Code::kAlreadyExists,
            "socket: " + path + " is in use: something else accepts connections there"};
  }
  if (::unlink(path.c_str()) != 0) return SystemError("removing the stale socket " + path, errno);
  return {};
}

// By descriptor: should others be able to write to the folder, they cannot make it mean another
// file.
Status SetOwnerAndMode(const ListenerOptions& options) {
  const UniqueFd file(::open(options.path.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  struct stat info {};
  if (!file || ::fstat(file.get(), &info) != 0) return SystemError(options.path, errno);
  if (!S_ISSOCK(info.st_mode)) {
    return {Code::kPermissionDenied, "socket: " + options.path + " was replaced while it was made"};
  }
  if (options.owner || options.group) {
    const auto unchanged = static_cast<uid_t>(-1);
    if (::fchownat(file.get(), "", options.owner.value_or(unchanged),
                   options.group.value_or(unchanged), AT_EMPTY_PATH) != 0) {
      return SystemError("socket: giving " + options.path + " its owner and group", errno);
    }
  }
  const std::string name = "/proc/self/fd/" + std::to_string(file.get());
  if (::chmod(name.c_str(), options.mode) != 0)
    return SystemError("chmod of " + options.path, errno);
  return {};
}

// That a given descriptor is what a Listener would have made.
Status CheckGiven(int socket, const std::string& path) {
  const auto option = [&](int name) {
    int value = -1;
    socklen_t bytes = sizeof value;
    return ::getsockopt(socket, SOL_SOCKET, name, &value, &bytes) == 0 ? value : -1;
  };
  if (option(SO_DOMAIN) != AF_UNIX || option(SO_TYPE) != SOCK_STREAM ||
      option(SO_ACCEPTCONN) != 1) {
    return {Code::kInvalidArgument,
            "socket: what was given for " + path + " is no listening Unix stream socket"};
  }
  const int flags = ::fcntl(socket, F_GETFL);
  if (flags < 0 || ::fcntl(socket, F_SETFL, flags | O_NONBLOCK) != 0 ||
      ::fcntl(socket, F_SETFD, FD_CLOEXEC) != 0) {
    return SystemError("socket: the flags of what was given for " + path, errno);
  }
  return {};
}

Status PassCredentials(int socket) {
  const int on = 1;
  if (::setsockopt(socket, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0) return {};
  return SystemError("SO_PASSCRED", errno);
}

}  // namespace

std::string FolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

Status MakePrivateFolder(const std::string& path) {
  for (size_t slash = path.find('/', 1); slash != std::string::npos;
       slash = path.find('/', slash + 1)) {
    if (::mkdir(path.substr(0, slash).c_str(), 0700) != 0 && errno != EEXIST) {
      return SystemError("creating " + path.substr(0, slash), errno);
    }
  }
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return SystemError("creating " + path, errno);
  }
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) return SystemError(path, errno);
  if (!S_ISDIR(info.st_mode)) return {Code::kInvalidArgument, path + " is not a folder"};
  if (info.st_uid != ::geteuid()) {
    return {Code::kPermissionDenied,
            path + " belongs to user " + std::to_string(info.st_uid) + ", not to the daemon's"};
  }
  if ((info.st_mode & 0022) != 0) {
    return {Code::kPermissionDenied, path + " is writable by others: chmod 0700 it"};
  }
  return {};
}

Result<std::unique_ptr<Listener>> Listener::Open(ListenerOptions options, OwnerLoop& loop,
                                                 Accepted accepted) {
  if (options.given) {
    RETURN_IF_ERROR(CheckGiven(options.given->fd.get(), options.path));
    std::unique_ptr<Listener> listener(new Listener(options.path, UniqueFd(), std::move(accepted)));
    UniqueFd socket = std::move(options.given->fd);
    listener->given_ = std::move(options.given);
    RETURN_IF_ERROR(listener->Watch(std::move(socket), loop));
    return listener;
  }
  RETURN_IF_ERROR(AddressOf(options.path).status());
  if (::mkdir(FolderOf(options.path).c_str(), 0700) != 0 && errno != EEXIST) {
    return SystemError("socket: creating " + FolderOf(options.path), errno);
  }
  ASSIGN_OR_RETURN(UniqueFd lock, TakeLock(options.path + ".lock"));
  std::unique_ptr<Listener> listener(
      new Listener(options.path, std::move(lock), std::move(accepted)));
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return SystemError("socket", errno);
  RETURN_IF_ERROR(listener->Bind(options, socket.get()));
  RETURN_IF_ERROR(listener->Watch(std::move(socket), loop));
  return listener;
}

Status Listener::Bind(const ListenerOptions& options, int socket) {
  ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path_));
  RETURN_IF_ERROR(RemoveStale(path_, address));
  // bind() gives the file the mode of the socket's inode, less the umask. Owner and group can only
  // follow: until then it is the daemon's alone.
  if (::fchmod(socket, 0600) != 0) return SystemError("fchmod of the socket", errno);
  if (::bind(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return SystemError("socket: bind to " + path_, errno);
  }
  bound_ = true;
  RETURN_IF_ERROR(SetOwnerAndMode(options));
  if (::listen(socket, kBacklog) != 0) return SystemError("listen on " + path_, errno);
  return {};
}

Status Listener::Watch(UniqueFd socket, OwnerLoop& loop) {
  // Accepted sockets inherit it, so no byte can be sent without its sender's credentials.
  RETURN_IF_ERROR(PassCredentials(socket.get()));
  ASSIGN_OR_RETURN(watch_, loop.NewWatch(std::move(socket), [this] { OnReadable(); }));
  watch_.ArmRead();
  return {};
}

Listener::~Listener() {
  if (bound_) ::unlink(path_.c_str());
  if (lock_) ::unlink((path_ + ".lock").c_str());
}

void Listener::ServeAs(const std::string& path) {
  TERRACE_CHECK(given_.has_value());
  path_ = path.empty() ? "unserved:" + given_->path : path;
}

void Listener::OnReadable() {
  for (int i = 0; i < kAcceptsPerWake; ++i) {
    UniqueFd socket(::accept4(watch_.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket) {
      // Once more: a connection may have been made before a given socket had it.
      const Status status = PassCredentials(socket.get());
      if (status.ok()) accepted_(std::move(socket), path_);
      continue;
    }
    if (errno == ECONNABORTED || errno == EINTR) continue;
    // Out of descriptors or memory: the socket stays readable, so waiting for that would spin.
    out_of_descriptors_ = errno != EAGAIN;
    break;
  }
  if (!out_of_descriptors_) watch_.ArmRead();
}

void Listener::Sweep() {
  if (!out_of_descriptors_) return;
  out_of_descriptors_ = false;
  watch_.ArmRead();
}

}  // namespace terrace
