// The one door to Boost.Beast.
#include "daemon/service/metrics/server.h"

#include <pthread.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_static_buffer.hpp>
#include <boost/beast/http.hpp>
#include <list>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "daemon/service/log.h"
#include "daemon/service/metrics/exposition.h"

namespace terrace {

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using boost::system::error_code;
using Milliseconds = std::chrono::milliseconds;
using Protocol = asio::generic::stream_protocol;
using Socket = asio::basic_stream_socket<Protocol>;
using Reply = http::response<http::string_body>;

constexpr int kBacklog = 64;
constexpr int kAcceptsPerWake = 8;
constexpr Milliseconds kOutOfDescriptors{1000};
constexpr Milliseconds kTryAgain{1000};     // To await connections.
constexpr size_t kDrainedBytes = 64 << 10;  // Of a request that was refused.
constexpr mode_t kSocketMode = 0660;
constexpr const char* kTextFormat = "text/plain; version=0.0.4; charset=utf-8";
constexpr const char* kPlainText = "text/plain; charset=utf-8";

// Removes a Unix socket that nobody answers on.
Status RemoveStale(const ListenAddress& where) {
  struct stat info {};
  if (::lstat(where.path.c_str(), &info) != 0) {
    return errno == ENOENT ? Status() : SystemError("metrics.listen: " + where.path, errno);
  }
  if (!S_ISSOCK(info.st_mode)) {
    return {Code::kAlreadyExists, "metrics.listen: " + where.path + " exists and is not a socket"};
  }
  const UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe) return SystemError("socket", errno);
  const auto* address = reinterpret_cast<const sockaddr*>(&where.address);
  if (::connect(probe.get(), address, where.bytes) == 0 || errno != ECONNREFUSED) {
    return {Code::kAlreadyExists, "metrics.listen: " + where.path + " is in use"};
  }
  if (::unlink(where.path.c_str()) != 0) return SystemError("removing " + where.path, errno);
  return {};
}

Result<UniqueFd> Listen(const ListenAddress& where) {
  const int family = where.address.ss_family;
  UniqueFd socket(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return SystemError("metrics.listen: socket", errno);
  if (where.path.empty()) {
    const int on = 1;
    // A port whose last connections are still fading away is free for us.
    ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  } else {
    RETURN_IF_ERROR(RemoveStale(where));
    // The file gets the mode of the socket's inode, less the umask: never wider than this.
    if (::fchmod(socket.get(), kSocketMode) != 0) return SystemError("fchmod of a socket", errno);
  }
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&where.address), where.bytes) != 0) {
    return SystemError("metrics.listen: bind", errno);
  }
  if (!where.path.empty() && ::chmod(where.path.c_str(), kSocketMode) != 0) {
    return SystemError("chmod of " + where.path, errno);
  }
  if (::listen(socket.get(), kBacklog) != 0) return SystemError("metrics.listen: listen", errno);
  return socket;
}

// A connection, which is one request and its reply.
struct Exchange {
  explicit Exchange(Socket its_socket)
      : socket(std::move(its_socket)), deadline(socket.get_executor()) {
    parser.header_limit(MetricsServer::kMaxHeaderBytes);
  }

  Socket socket;
  asio::steady_timer deadline;
  beast::flat_static_buffer<MetricsServer::kMaxHeaderBytes> buffer;
  http::request_parser<http::empty_body> parser;
  Reply reply;
  std::optional<http::response_serializer<http::string_body>> serializer;
  bool asked = false;  // Its request is complete.

  void Close() {
    error_code ignored;
    deadline.cancel();
    socket.close(ignored);
  }
};
using ExchangePtr = std::shared_ptr<Exchange>;

Reply PlainReply(http::status status, std::string text) {
  Reply reply(status, 11);
  reply.set(http::field::content_type, kPlainText);
  reply.body() = std::move(text);
  return reply;
}

}  // namespace

struct MetricsServer::State : std::enable_shared_from_this<State> {
  State(UniqueFd listening, std::string socket_path, Executor& its_owner, Collect its_collect)
      : listener(context, listening.Release()),
        path(std::move(socket_path)),
        owner(its_owner),
        collect(std::move(its_collect)) {}

  void Serve();
  void AwaitConnections();
  void Accept();
  void Admit(UniqueFd socket);
  void Forget(const ExchangePtr& exchange);
  void Read(const ExchangePtr& exchange);
  void Answer(const ExchangePtr& exchange);
  void AnswerHealth(const ExchangePtr& exchange);
  void AnswerReady(const ExchangePtr& exchange);
  void AskForSnapshot(const ExchangePtr& exchange);
  void SnapshotCame(const Snapshot& snapshot);
  void LifeShown();
  void SetDeadline(const ExchangePtr& exchange, int64_t ms);
  void Send(const ExchangePtr& exchange, Reply reply);
  void Drain(const ExchangePtr& exchange, size_t most);

  asio::io_context context{1};
  asio::executor_work_guard<asio::io_context::executor_type> work{context.get_executor()};
  asio::posix::stream_descriptor listener;
  asio::steady_timer accept_again{context};
  const std::string path;  // Of a Unix socket.
  Executor& owner;
  const Collect collect;
  std::atomic<Stage> stage{Stage::kStarting};  // Only tells: nothing is ordered by it.
  std::list<ExchangePtr> exchanges;            // The oldest first.
  // Who waits for the owner thread, of those; it is asked for one thing of each kind at a time.
  std::vector<ExchangePtr> for_snapshot;
  std::vector<ExchangePtr> for_life;
  bool accepting = false;  // Connections are awaited, or the time to await them again is.
  bool snapshot_asked = false;
  bool life_asked = false;
  std::thread thread;
};

// ---- Connections

void MetricsServer::State::Serve() {
  (void)::pthread_setname_np(::pthread_self(), "metrics");
  // Asio and Beast throw when memory runs out: that costs a request, not the daemon.
  bool failed = false;  // The last try to await connections did.
  for (bool again = true; again;) {
    try {
      // What is there is served meanwhile.
      if (std::exchange(failed, false)) context.run_for(kTryAgain);
      failed = !accepting;
      if (!accepting) AwaitConnections();
      failed = false;
      context.run();
      again = false;
    } catch (const std::exception& error) {
      LogLimited(LogLevel::kError, "metrics-failed", {{"why", error.what()}});
    }
  }
}

void MetricsServer::State::AwaitConnections() {
  listener.async_wait(asio::posix::descriptor_base::wait_read, [this](const error_code& error) {
    accepting = false;
    if (!error) Accept();
  });
  accepting = true;
}

void MetricsServer::State::Accept() {
  for (int i = 0; i < kAcceptsPerWake; ++i) {
    UniqueFd socket(
        ::accept4(listener.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket) {
      Admit(std::move(socket));
    } else if (errno != ECONNABORTED && errno != EINTR) {
      if (errno == EAGAIN) break;
      // Out of descriptors: the socket stays readable, so waiting for that would spin.
      accept_again.expires_after(kOutOfDescriptors);
      accept_again.async_wait([this](const error_code& error) {
        accepting = false;
        if (!error) AwaitConnections();
      });
      accepting = true;
      return;
    }
  }
  AwaitConnections();
}

void MetricsServer::State::Admit(UniqueFd socket) {
  if (exchanges.size() >= kMaxConnections) {
    const auto idle = std::find_if(exchanges.begin(), exchanges.end(),
                                   [](const ExchangePtr& exchange) { return !exchange->asked; });
    if (idle == exchanges.end()) return;
    (*idle)->Close();
    exchanges.erase(idle);
  }
  const int family = path.empty() ? AF_INET : AF_UNIX;  // Asio only remembers it.
  Socket adopted(context, Protocol(family, 0), socket.get());
  (void)socket.Release();  // Before anything else may throw: closed by one of them alone.
  auto exchange = std::make_shared<Exchange>(std::move(adopted));
  exchanges.push_back(exchange);
  try {
    SetDeadline(exchange, kRequestMs);
    Read(exchange);
  } catch (...) {
    Forget(exchange);  // Without a deadline it could stay for ever.
    throw;
  }
}

void MetricsServer::State::Forget(const ExchangePtr& exchange) {
  exchange->Close();
  std::erase(for_snapshot, exchange);
  std::erase(for_life, exchange);
  exchanges.remove(exchange);
}

void MetricsServer::State::SetDeadline(const ExchangePtr& exchange, int64_t ms) {
  exchange->deadline.expires_after(Milliseconds(ms));
  exchange->deadline.async_wait([this, exchange](const error_code& error) {
    if (!error) Forget(exchange);
  });
}

void MetricsServer::State::Read(const ExchangePtr& exchange) {
  http::async_read(exchange->socket, exchange->buffer, exchange->parser,
                   [this, exchange](const error_code& error, size_t) {
                     if (error == asio::error::operation_aborted) return;
                     exchange->asked = true;
                     SetDeadline(exchange, kReplyMs);
                     if (!error || error == http::error::unexpected_body) return Answer(exchange);
                     if (error == http::error::end_of_stream) return Forget(exchange);
                     Send(exchange, PlainReply(http::status::bad_request, "bad request\n"));
                   });
}

void MetricsServer::State::Send(const ExchangePtr& exchange, Reply reply) {
  exchange->reply = std::move(reply);
  exchange->reply.set(http::field::server, "terraced/" TERRACE_VERSION);
  exchange->reply.set(http::field::cache_control, "no-store");
  exchange->reply.keep_alive(false);
  exchange->reply.prepare_payload();
  exchange->serializer.emplace(exchange->reply);
  const auto sent = [this, exchange](const error_code& error, size_t) {
    if (error == asio::error::operation_aborted) return;
    error_code ignored;
    exchange->socket.shutdown(Socket::shutdown_send, ignored);
    if (exchange->parser.is_done()) return Forget(exchange);
    // Closing with input unread would take the reply back.
    Drain(exchange, kDrainedBytes);
  };
  if (exchange->parser.get().method() == http::verb::head) {
    http::async_write_header(exchange->socket, *exchange->serializer, sent);
  } else {
    http::async_write(exchange->socket, *exchange->serializer, sent);
  }
}

void MetricsServer::State::Drain(const ExchangePtr& exchange, size_t most) {
  exchange->buffer.clear();
  exchange->socket.async_read_some(exchange->buffer.prepare(exchange->buffer.max_size()),
                                   [this, exchange, most](const error_code& error, size_t bytes) {
                                     if (error == asio::error::operation_aborted) return;
                                     if (error || bytes >= most) return Forget(exchange);
                                     Drain(exchange, most - bytes);
                                   });
}

// ---- Requests

void MetricsServer::State::Answer(const ExchangePtr& exchange) {
  const auto& request = exchange->parser.get();
  if (request.method() != http::verb::get && request.method() != http::verb::head) {
    Reply reply = PlainReply(http::status::method_not_allowed, "only GET and HEAD\n");
    reply.set(http::field::allow, "GET, HEAD");
    return Send(exchange, std::move(reply));
  }
  const std::string_view target(request.target().data(), request.target().size());
  const std::string_view what = target.substr(0, target.find('?'));
  if (what == "/metrics") return AskForSnapshot(exchange);
  if (what == "/healthz") return AnswerHealth(exchange);
  if (what == "/readyz") return AnswerReady(exchange);
  Send(exchange, PlainReply(http::status::not_found, "/metrics, /healthz and /readyz are here\n"));
}

void MetricsServer::State::AnswerReady(const ExchangePtr& exchange) {
  switch (stage.load(std::memory_order_relaxed)) {
    case Stage::kServing:
      return Send(exchange, PlainReply(http::status::ok, "serving\n"));
    case Stage::kStarting:
      return Send(exchange, PlainReply(http::status::service_unavailable, "starting\n"));
    case Stage::kStopping:
      return Send(exchange, PlainReply(http::status::service_unavailable, "stopping\n"));
  }
}

void MetricsServer::State::AnswerHealth(const ExchangePtr& exchange) {
  // The loop does not run yet, and who waits for a start looks at /readyz.
  if (stage.load(std::memory_order_relaxed) == Stage::kStarting) {
    return Send(exchange, PlainReply(http::status::ok, "starting\n"));
  }
  exchange->deadline.expires_after(Milliseconds(kHealthMs));
  exchange->deadline.async_wait([this, exchange](const error_code& error) {
    // LifeShown may have answered since the time was up.
    if (error || std::erase(for_life, exchange) == 0) return;
    SetDeadline(exchange, kReplyMs);
    Send(exchange, PlainReply(http::status::service_unavailable,
                              "the owner thread has not answered for 2 s\n"));
  });
  for_life.push_back(exchange);
  if (std::exchange(life_asked, true)) return;
  // What the context holds must not own the state, whose part the context is: after the end it
  // would never be let go.
  owner.Post([self = shared_from_this()] {
    asio::post(self->context, [state = self.get()] { state->LifeShown(); });
  });
}

void MetricsServer::State::LifeShown() {
  life_asked = false;
  for (const ExchangePtr& exchange : std::exchange(for_life, {})) {
    SetDeadline(exchange, kReplyMs);
    Send(exchange, PlainReply(http::status::ok, "ok\n"));
  }
}

void MetricsServer::State::AskForSnapshot(const ExchangePtr& exchange) {
  if (stage.load(std::memory_order_relaxed) == Stage::kStarting) {
    return Send(exchange, PlainReply(http::status::service_unavailable, "starting\n"));
  }
  for_snapshot.push_back(exchange);
  if (std::exchange(snapshot_asked, true)) return;
  owner.Post([self = shared_from_this()] {
    self->collect([self](SnapshotPtr snapshot) {
      asio::post(self->context, [state = self.get(), snapshot = std::move(snapshot)] {
        state->SnapshotCame(*snapshot);
      });
    });
  });
}

void MetricsServer::State::SnapshotCame(const Snapshot& snapshot) {
  snapshot_asked = false;
  const std::vector<ExchangePtr> asked = std::exchange(for_snapshot, {});
  if (asked.empty()) return;
  const std::string text = ExpositionOf(snapshot);
  for (const ExchangePtr& exchange : asked) {
    Reply reply(http::status::ok, 11);
    reply.set(http::field::content_type, kTextFormat);
    reply.body() = text;
    Send(exchange, std::move(reply));
  }
}

// ---- MetricsServer

Result<std::unique_ptr<MetricsServer>> MetricsServer::Start(const ListenAddress& address,
                                                            Executor& owner, Collect collect) {
  ASSIGN_OR_RETURN(UniqueFd socket, Listen(address));
  const std::string where = BoundAddressText(socket.get());
  auto state = std::make_shared<State>(std::move(socket), address.path, owner, std::move(collect));
  std::unique_ptr<MetricsServer> server(new MetricsServer(state));
  server->address_ = where;
  state->AwaitConnections();
  try {
    state->thread = std::thread([state = state.get()] { state->Serve(); });
  } catch (const std::system_error& error) {
    return SystemError("the thread of metrics", error.code().value());
  }
  return server;
}

MetricsServer::~MetricsServer() {
  state_->context.stop();
  if (state_->thread.joinable()) state_->thread.join();
  if (!state_->path.empty()) ::unlink(state_->path.c_str());
  // What the owner thread still holds of the state answers nobody any more.
  for (const ExchangePtr& exchange : state_->exchanges)
    exchange->Close();
  state_->exchanges.clear();
  state_->for_snapshot.clear();
  state_->for_life.clear();
  error_code ignored;
  state_->listener.close(ignored);
}

void MetricsServer::SetStage(Stage stage) {
  state_->stage.store(stage, std::memory_order_relaxed);
}

}  // namespace terrace
