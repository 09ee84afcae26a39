// MetricsServer: metrics and health over HTTP, on a thread of its own.
//
//   /metrics   the figures of the daemon, as Prometheus reads them
//   /healthz   200 while the owner thread answers; 503 when it has not for kHealthMs
//   /readyz    200 while the daemon serves clients; 503 while it starts or stops
//
// What comes in by HTTP is hostile, and none of it reaches the owner thread: that is asked for a
// snapshot (one at a time, whoever asks meanwhile gets the same) or for a sign of life. Everything
// else, the text included, is made on the server's thread.
//
// Bounds: kMaxConnections connections; one more takes the place of the oldest that has not asked
// yet, or is closed. kMaxHeaderBytes of a request, which has no body; one request a connection.
// kRequestMs from its beginning to the end of the request, kReplyMs more for snapshot and reply.
//
// Made and destroyed by the owner thread, before and after the loop runs. SetStage: any thread.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/executor.h"
#include "base/status.h"
#include "daemon/service/listen_address.h"
#include "daemon/service/metrics/snapshot.h"

namespace terrace {

class MetricsServer {
 public:
  static constexpr size_t kMaxConnections = 16;
  static constexpr size_t kMaxHeaderBytes = 8192;
  static constexpr int64_t kRequestMs = 5'000;
  static constexpr int64_t kReplyMs = 10'000;
  static constexpr int64_t kHealthMs = 2'000;

  enum class Stage : uint8_t { kStarting, kServing, kStopping };

  // Takes a snapshot: called on the owner thread, and calls `done` there, once or, when the daemon
  // ends, never.
  using Collect = std::function<void(std::function<void(SnapshotPtr)> done)>;

  // Listens when it returns. `owner` outlives the server.
  static Result<std::unique_ptr<MetricsServer>> Start(const ListenAddress& address, Executor& owner,
                                                      Collect collect);
  ~MetricsServer();  // Ends its thread and every connection.
  MetricsServer(const MetricsServer&) = delete;
  MetricsServer& operator=(const MetricsServer&) = delete;

  // kStarting until it is told otherwise.
  void SetStage(Stage stage);
  // Where it listens, as ParseListenAddress takes it.
  const std::string& address() const { return address_; }

 private:
  struct State;
  explicit MetricsServer(std::shared_ptr<State> state) : state_(std::move(state)) {}

  const std::shared_ptr<State> state_;  // Shared with what the owner thread still has to answer.
  std::string address_;
};

}  // namespace terrace
