#include "daemon/service/listen_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <algorithm>
#include <charconv>
#include <cstring>

namespace terrace {

namespace {

constexpr std::string_view kUnixPrefix = "unix:";
constexpr uint32_t kLoopbackNet = 127;  // The first byte of 127.0.0.0/8.

template <typename Address>
ListenAddress Stored(const Address& address) {
  ListenAddress stored;
  std::memcpy(&stored.address, &address, sizeof address);
  stored.bytes = sizeof address;
  return stored;
}

std::optional<ListenAddress> UnixAddress(std::string_view path) {
  sockaddr_un address{};
  const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20; };
  if (path.empty() || path.front() != '/' || path.size() >= sizeof address.sun_path ||
      std::any_of(path.begin(), path.end(), control)) {
    return std::nullopt;
  }
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  ListenAddress stored = Stored(address);
  stored.path = path;
  return stored;
}

std::optional<in_port_t> Port(std::string_view text) {
  uint16_t port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return htons(port);
}

}  // namespace

std::optional<ListenAddress> ParseListenAddress(std::string_view text) {
  if (text.starts_with(kUnixPrefix)) return UnixAddress(text.substr(kUnixPrefix.size()));
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return std::nullopt;
  const auto port = Port(text.substr(colon + 1));
  if (!port) return std::nullopt;
  const std::string host(text.substr(0, colon));
  if (host == "[::1]") {
    sockaddr_in6 address{};
    address.sin6_family = AF_INET6;
    address.sin6_addr = in6addr_loopback;
    address.sin6_port = *port;
    return Stored(address);
  }
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = *port;
  if (::inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1) return std::nullopt;
  if (ntohl(address.sin_addr.s_addr) >> 24 != kLoopbackNet) return std::nullopt;
  return Stored(address);
}

std::string BoundAddressText(int socket) {
  sockaddr_storage storage{};
  socklen_t bytes = sizeof storage;
  if (::getsockname(socket, reinterpret_cast<sockaddr*>(&storage), &bytes) != 0) return "?";
  char text[INET6_ADDRSTRLEN] = {};
  if (storage.ss_family == AF_INET) {
    sockaddr_in address{};
    std::memcpy(&address, &storage, sizeof address);
    ::inet_ntop(AF_INET, &address.sin_addr, text, sizeof text);
    return std::string(text) + ":" + std::to_string(ntohs(address.sin_port));
  }
  if (storage.ss_family == AF_INET6) {
    sockaddr_in6 address{};
    std::memcpy(&address, &storage, sizeof address);
    ::inet_ntop(AF_INET6, &address.sin6_addr, text, sizeof text);
    return "[" + std::string(text) + "]:" + std::to_string(ntohs(address.sin6_port));
  }
  if (storage.ss_family == AF_UNIX) {
    sockaddr_un address{};
    std::memcpy(&address, &storage, sizeof address);
    return std::string(kUnixPrefix) +
           std::string(address.sun_path, ::strnlen(address.sun_path, sizeof address.sun_path));
  }
  return "?";
}

}  // namespace terrace
