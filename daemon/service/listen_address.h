// Where the daemon may be listened to besides its own sockets: a Unix socket, or a loopback
// address. Pure functions.
#pragma once

#include <sys/socket.h>

#include <optional>
#include <string>
#include <string_view>

namespace terrace {

struct ListenAddress {
  std::string path;  // Of a Unix socket; empty for a loopback address.
  sockaddr_storage address{};
  socklen_t bytes = 0;  // Of `address`.
};

// "unix:/PATH", "127.x.y.z:PORT" or "[::1]:PORT"; port 0 lets the kernel choose one. nullopt for
// anything else, names and addresses that others can reach among it.
std::optional<ListenAddress> ParseListenAddress(std::string_view text);

// The address that a socket is bound to, as ParseListenAddress takes it; "?" if it cannot be told.
std::string BoundAddressText(int socket);

}  // namespace terrace
