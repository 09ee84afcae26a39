#include "bench/hostile.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <iterator>
#include <span>
#include <vector>

#include "base/random.h"
#include "base/unique_fd.h"
#include "proto/frame.h"
#include "proto/shared_memory.h"

namespace terrace::bench {
namespace {

constexpr size_t kConnections = 16;  // Of one half-closed or stopped client.
// Of one hoarder: of its user the daemon keeps some ends then, and not so many that it gives it
// nothing.
constexpr size_t kHoard = 8 * kConnections;
constexpr uint64_t kWordsAtATime = 4096;

Result<UniqueFd> Connect(const std::string& path) {
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), std::min(path.size(), sizeof address.sun_path - 1));
  if (!fd || connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return SystemError("connect", errno);
  }
  return fd;
}

std::string Frame(uint16_t type, const std::string& message) {
  wire::FrameHeader header;
  header.length = static_cast<uint32_t>(message.size());
  header.type = static_cast<wire::Type>(type);
  header.request = 1;
  std::string frame(wire::kFrameHeaderBytes, '\0');
  std::memcpy(frame.data(), &header, sizeof header);
  return frame + message;
}

// Hello with version_min, version_max and writer.
std::string HelloFrame() {
  static_assert(wire::kProtocolVersion < 128);  // One byte as a varint.
  constexpr char kVersion = static_cast<char>(wire::kProtocolVersion);
  return Frame(static_cast<uint16_t>(wire::Type::kHello),
               {'\x08', kVersion, '\x10', kVersion, '\x20', '\x01'});
}

// False when the daemon takes no more, or has closed.
bool Send(int fd, const std::string& bytes) {
  return send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT) ==
         static_cast<ssize_t>(bytes.size());
}

// Whatever comes with the hello's reply: the channel is the first descriptor.
Result<std::span<shm::Word>> MapChannel(int fd) {
  char bytes[4096];
  iovec vector{bytes, sizeof bytes};
  alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))];
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (recvmsg(fd, &message, MSG_CMSG_CLOEXEC) <= 0) return SystemError("recvmsg", errno);
  const cmsghdr* item = CMSG_FIRSTHDR(&message);
  if (item == nullptr || item->cmsg_type != SCM_RIGHTS) {
    return Status(Code::kUnavailable, "no channel came");
  }
  int channel = -1;
  std::memcpy(&channel, CMSG_DATA(item), sizeof channel);
  void* memory = mmap(nullptr, shm::kChannelBytes, PROT_READ | PROT_WRITE, MAP_SHARED, channel, 0);
  if (memory == MAP_FAILED) return SystemError("mmap", errno);
  return std::span(static_cast<shm::Word*>(memory), shm::kChannelBytes / sizeof(shm::Word));
}

Status SendRandomFrames(const std::string& path, Random& random) {
  for (;;) {
    Result<UniqueFd> connected = Connect(path);
    if (!connected) {
      poll(nullptr, 0, 1);  // The daemon is busy: no reason to give up.
      continue;
    }
    const int fd = connected->get();
    std::string bytes = random.Chance(3, 4) ? HelloFrame() : "";
    for (int i = 0; i < 40; ++i) {
      std::string message(random.Below(300), '\0');
      for (char& c : message)
        c = static_cast<char>(random());
      auto type = static_cast<uint16_t>(random.Chance(9, 10) ? 2 * (1 + random.Below(20))
                                                             : random.Below(65536));
      // An empty Evict evicts everything: an operator's right in user mode, and no misbehaviour.
      if (type == static_cast<uint16_t>(wire::Type::kEvict)) type = 4;
      bytes += Frame(type, message);
      if (random.Chance(1, 40)) bytes.resize(bytes.size() - random.Below(bytes.size()));
    }
    (void)Send(fd, bytes);
    if (random.Chance(1, 2)) shutdown(fd, SHUT_WR);
    pollfd answered{fd, POLLIN, 0};
    poll(&answered, 1, 10);
  }
}

Status FillChannel(const std::string& path, Random& random) {
  ASSIGN_OR_RETURN(const UniqueFd fd, Connect(path));
  if (!Send(fd.get(), HelloFrame())) return {Code::kUnavailable, "no hello"};
  ASSIGN_OR_RETURN(const std::span<shm::Word> words, MapChannel(fd.get()));
  for (;;) {
    for (uint64_t i = 0; i < kWordsAtATime; ++i) {
      const uint64_t word = random.Chance(1, 3) ? random.Below(1u << 20) : random();
      words[random.Below(words.size())].store(word, std::memory_order_relaxed);
    }
    poll(nullptr, 0, 1);
  }
}

// Report "status".
std::string ReportFrame() {
  return Frame(static_cast<uint16_t>(wire::Type::kReport), std::string("\x0a\x06") + "status");
}

// Connections with a hello and requests whose replies nobody reads.
std::vector<UniqueFd> AskAndNotRead(const std::string& path, const std::string& frame) {
  std::vector<UniqueFd> connections;
  for (size_t i = 0; i < kConnections; ++i) {
    Result<UniqueFd> connected = Connect(path);
    if (!connected) continue;
    (void)Send(connected->get(), HelloFrame());
    for (int request = 0; request < 64; ++request)
      (void)Send(connected->get(), frame);
    connections.push_back(*std::move(connected));
  }
  return connections;
}

Status HalfClose(const std::string& path) {
  for (;;) {
    const std::vector<UniqueFd> connections = AskAndNotRead(path, ReportFrame());
    for (const UniqueFd& fd : connections)
      shutdown(fd.get(), SHUT_WR);
    poll(nullptr, 0, 1000);
  }
}

Status Stop(const std::string& path) {
  const std::vector<UniqueFd> connections = AskAndNotRead(path, ReportFrame());
  raise(SIGSTOP);
  return {};
}

// Always kConnections more, of which every second ends with what it was sent untaken, and the
// oldest go: descriptors stay in flight all the time, and the daemon keeps ends of connections.
Status Hoard(const std::string& path) {
  std::vector<UniqueFd> hoard;
  for (;;) {
    std::vector<UniqueFd> more =
        AskAndNotRead(path, Frame(static_cast<uint16_t>(wire::Type::kDirectory), ""));
    for (size_t i = 0; i < more.size(); i += 2)
      shutdown(more[i].get(), SHUT_WR);
    std::move(more.begin(), more.end(), std::back_inserter(hoard));
    if (hoard.size() > kHoard) hoard.erase(hoard.begin(), hoard.begin() + kConnections);
    poll(nullptr, 0, 100);
  }
}

}  // namespace

Status Misbehave(Misbehaviour how, const std::string& socket, uint64_t seed) {
  Random random(seed);
  switch (how) {
    case Misbehaviour::kRandomFrames:
      return SendRandomFrames(socket, random);
    case Misbehaviour::kRandomChannel:
      return FillChannel(socket, random);
    case Misbehaviour::kHalfClosed:
      return HalfClose(socket);
    case Misbehaviour::kStopped:
      return Stop(socket);
    case Misbehaviour::kHoarding:
      return Hoard(socket);
  }
  return {};
}

}  // namespace terrace::bench
