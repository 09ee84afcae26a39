// ClientTest: a real daemon and clients of it in the test's own process, through the C++ layer.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <kvclient/kvclient.hpp>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/daemon_process.h"

namespace terrace {

// Waits until `met`; the limit only ends what hangs.
inline bool Await(const std::function<bool()>& met) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(10);
  while (!met()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

// A value of a Result, or a failure of the test.
template <class T>
T Take(kvc::Result<T> result) {
  if (!result) throw std::runtime_error(result.error().ToString());
  return *std::move(result);
}

inline bool SameKey(const kvc_key& a, const kvc_key& b) {
  return std::memcmp(a.bytes, b.bytes, sizeof a.bytes) == 0;
}

// What page `number` holds: every 8 bytes differ, within a page and between pages.
inline std::vector<std::byte> ContentOf(uint64_t number, size_t bytes) {
  std::vector<std::byte> content(bytes);
  for (size_t at = 0; at + 8 <= bytes; at += 8) {
    const uint64_t word = (number + 1) * 0x9e3779b97f4a7c15 + at;
    std::memcpy(content.data() + at, &word, 8);
  }
  return content;
}
inline bool Holds(kvc::ConstBytes bytes, uint64_t number) {
  const std::vector<std::byte> wanted = ContentOf(number, bytes.size());
  return !bytes.empty() && std::memcmp(bytes.data(), wanted.data(), bytes.size()) == 0;
}

inline std::vector<uint32_t> Tokens(uint32_t first, size_t count) {
  std::vector<uint32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}
inline kvc::Span<const uint32_t> SpanOf(const std::vector<uint32_t>& v) {
  return {v.data(), v.size()};
}
inline kvc::Span<const kvc_key> SpanOf(const std::vector<kvc_key>& v) {
  return {v.data(), v.size()};
}

class ClientTest : public testing::Test {
 protected:
  void SetUp() override {
    auto daemon = DaemonProcess::Start(daemon_options_);
    ASSERT_TRUE(daemon) << daemon.status().ToString();
    daemon_ = *std::move(daemon);
    socket_ = daemon_->socket();
  }

  DaemonProcess& daemon() { return *daemon_; }
  const std::string& socket() const { return socket_; }

  kvc::Client Connect(const std::function<void(kvc_client_options&)>& adjust = {}) {
    kvc_client_options options{};
    options.socket_path = socket_.c_str();
    options.timeout_ms = 20'000;
    if (adjust) adjust(options);
    return Take(kvc::Client::Connect(options));
  }

  // Pages of 16 tokens and 16 KiB.
  static kvc_space_options SpaceOptions() {
    kvc_space_options options{};
    options.layout.dtype = "bf16";
    options.layout.layers = 4;
    options.layout.kv_heads = 2;
    options.layout.head_size = 32;
    options.layout.page_tokens = 16;
    options.layout.planes = 2;
    return options;
  }

  // Publishes one page a key, with ContentOf(first + i).
  static kvc::Published Publish(kvc::Client& client, const kvc::Space& space,
                                kvc::Span<const kvc_key> keys, uint64_t first,
                                kvc::Span<const uint32_t> valid_tokens = {}) {
    kvc::Grants grants = Take(client.Grant(space, keys));
    for (size_t i = 0; i < grants.size(); ++i) {
      const kvc::Bytes bytes = grants[i].writable();
      if (bytes.empty()) continue;
      const auto content = ContentOf(first + i, bytes.size());
      std::memcpy(bytes.data(), content.data(), content.size());
    }
    return Take(kvc::Grants::Commit(std::move(grants), valid_tokens));
  }
  // The keys of a sequence of `pages` full pages from token `first` on.
  static std::vector<kvc_key> KeysOf(const kvc::Space& space, uint32_t first, size_t pages) {
    kvc::Sequence sequence = Take(space.NewSequence());
    EXPECT_TRUE(sequence.Append(SpanOf(Tokens(first, pages * 16))).ok());
    return {sequence.keys().begin(), sequence.keys().end()};
  }

  // This process's ends of connections to the daemon.
  std::vector<int> ConnectionFds() const {
    std::vector<int> fds;
    for (int fd = 0; fd < 1024; ++fd) {
      sockaddr_un address{};
      socklen_t bytes = sizeof address;
      if (::getpeername(fd, reinterpret_cast<sockaddr*>(&address), &bytes) == 0 &&
          address.sun_family == AF_UNIX && socket_ == address.sun_path) {
        fds.push_back(fd);
      }
    }
    return fds;
  }

  DaemonProcessOptions daemon_options_;

 private:
  std::unique_ptr<DaemonProcess> daemon_;
  std::string socket_;
};

}  // namespace terrace
