#include "daemon/service/systemd/activation.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdlib>

namespace terrace {

namespace {

std::string Take(const char* name) {
  const char* value = std::getenv(name);
  std::string taken = value == nullptr ? "" : value;
  ::unsetenv(name);
  return taken;
}

bool ParseNumber(std::string_view text, long* number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *number);
  return error == std::errc() && end == text.data() + text.size();
}

int Option(int socket, int option) {
  int value = -1;
  socklen_t size = sizeof value;
  return ::getsockopt(socket, SOL_SOCKET, option, &value, &size) == 0 ? value : -1;
}

std::string BoundPath(int socket) {
  sockaddr_un address{};
  socklen_t size = sizeof address;
  if (::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0) return "";
  constexpr socklen_t kStart = offsetof(sockaddr_un, sun_path);
  if (size <= kStart || address.sun_path[0] == '\0') return "";
  std::string path(address.sun_path, size - kStart);
  while (!path.empty() && path.back() == '\0')
    path.pop_back();
  return path;
}

}  // namespace

ListenEnvironment TakeListenEnvironment() {
  return {Take("LISTEN_PID"), Take("LISTEN_FDS"), Take("LISTEN_FDNAMES")};
}

Result<std::vector<std::string>> ActivatedNames(const ListenEnvironment& environment, pid_t self) {
  std::vector<std::string> names;
  long pid = 0;
  // Variables of another process, which we only inherited.
  if (!ParseNumber(environment.pid, &pid) || pid != self) return names;
  long count = 0;
  if (!ParseNumber(environment.count, &count) || count < 0 || count > kMostActivatedSockets) {
    return Status(Code::kInvalidArgument, "LISTEN_FDS: expected a number from 0 to " +
                                              std::to_string(kMostActivatedSockets) + ", got \"" +
                                              environment.count.substr(0, 200) + "\"");
  }
  std::string_view rest = environment.names;
  const bool named = !rest.empty();
  for (long i = 0; i < count; ++i) {
    const size_t colon = rest.find(':');
    // As sd_listen_fds_with_names(3) calls those without a name.
    names.emplace_back(named ? rest.substr(0, colon) : "unknown");
    const bool last = colon == std::string_view::npos;
    if (named && last != (i + 1 == count)) {
      return Status(Code::kInvalidArgument,
                    "LISTEN_FDNAMES does not have as many names as LISTEN_FDS says, " +
                        std::to_string(count));
    }
    rest.remove_prefix(last ? rest.size() : colon + 1);
  }
  return names;
}

Result<ActivatedSocket> AdoptListening(UniqueFd fd, std::string name) {
  const auto refuse = [&](const std::string& why) {
    return Status(Code::kInvalidArgument,
                  "the socket '" + name + "' of the service manager " + why);
  };
  if (::fcntl(fd.get(), F_SETFD, FD_CLOEXEC) != 0) return refuse("is not an open descriptor");
  if (Option(fd.get(), SO_DOMAIN) != AF_UNIX || Option(fd.get(), SO_TYPE) != SOCK_STREAM) {
    return refuse("is not a Unix stream socket: use ListenStream= with a path");
  }
  if (Option(fd.get(), SO_ACCEPTCONN) != 1) {
    return refuse("does not listen: the unit must not say Accept=yes");
  }
  const int flags = ::fcntl(fd.get(), F_GETFL);
  if (flags < 0 || ::fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK) != 0) {
    return SystemError("O_NONBLOCK", errno);
  }
  std::string path = BoundPath(fd.get());
  return ActivatedSocket{std::move(name), std::move(path), std::move(fd)};
}

Result<std::vector<ActivatedSocket>> TakeActivatedSockets(const ListenEnvironment& environment,
                                                          pid_t self) {
  ASSIGN_OR_RETURN(std::vector<std::string> names, ActivatedNames(environment, self));
  std::vector<ActivatedSocket> sockets;
  for (size_t i = 0; i < names.size(); ++i) {
    ASSIGN_OR_RETURN(
        ActivatedSocket socket,
        AdoptListening(UniqueFd(kFirstActivatedFd + static_cast<int>(i)), std::move(names[i])));
    sockets.push_back(std::move(socket));
  }
  return sockets;
}

size_t PlaceOf(const ActivatedSocket& given, const std::vector<SocketConfig>& wanted) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (!wanted[i].name.empty() && wanted[i].name == given.name) return i;
  }
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (!given.path.empty() && wanted[i].path == given.path) return i;
  }
  return wanted.size();
}

Status SecondFor(const std::string& path, const ActivatedSocket& given) {
  return {Code::kInvalidArgument, "the socket '" + given.name + "' of the service manager (" +
                                      (given.path.empty() ? "no path" : given.path) +
                                      ") is the second one for " + path};
}

Result<MatchedSockets> MatchSockets(const std::vector<SocketConfig>& wanted,
                                    std::vector<ActivatedSocket> given) {
  MatchedSockets matched;
  matched.wanted.resize(wanted.size());
  for (ActivatedSocket& socket : given) {
    const size_t at = PlaceOf(socket, wanted);
    if (at == wanted.size()) {
      matched.others.push_back(std::move(socket));
    } else if (matched.wanted[at]) {
      return SecondFor(wanted[at].path, socket);
    } else {
      matched.wanted[at] = std::move(socket);
    }
  }
  return matched;
}

}  // namespace terrace
