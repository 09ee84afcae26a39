// The bytes of a socket: frames of every type with any message, and bytes that are no frames.
//
// The whole service answers them, with its real connection, verbs, engine and memory; only weight
// files and the journal are simulated. The input is a list of pieces: a byte that names the kind,
// two that say how long it is, and that many bytes. Kinds 0 to 127 are the message of a frame of
// that type; of the others the bytes go out as they are, with descriptors, or before the hello.
#include <fcntl.h>
#include <sys/socket.h>

#include <array>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/fd_message.h"
#include "base/worker_pool.h"
#include "daemon/policy/policy.h"
#include "daemon/service/memfd/memfd_directory.h"
#include "daemon/service/service.h"
#include "proto/wire.pb.h"
#include "tests/fuzz/fuzz.h"
#include "tiers/host/host_tier.h"
#include "tiers/sim/sim_journal.h"
#include "tiers/sim/sim_weight_sources.h"

namespace terrace {
namespace {

constexpr size_t kMaxBytes = 64u << 10;  // What a socket takes without a reader.
constexpr size_t kMaxPieces = 256;
constexpr uint8_t kRaw = 128;
constexpr uint8_t kWithDescriptors = 129;
constexpr uint8_t kWithoutHello = 130;

template <typename T>
T Must(Result<T> made) {
  TERRACE_CHECK(made.has_value());
  return *std::move(made);
}

std::string EncodeFrame(wire::Type type, uint64_t request, const std::string& message) {
  wire::FrameHeader header;
  header.length = static_cast<uint32_t>(message.size());
  header.type = type;
  header.request = request;
  std::string frame(wire::kFrameHeaderBytes, '\0');
  std::memcpy(frame.data(), &header, sizeof header);
  return frame + message;
}

std::string HelloFrame() {
  wire::Hello hello;
  hello.set_version_min(wire::kProtocolVersion);
  hello.set_version_max(wire::kProtocolVersion);
  hello.set_writer(true);
  return EncodeFrame(wire::Type::kHello, 1, hello.SerializeAsString());
}

// A daemon without its files, for one input.
class Daemon {
 public:
  Daemon() {
    WorkerPoolOptions touch;
    touch.threads = 1;
    pool_ = Must(WorkerPool::Start(touch));
    HostTierOptions host;
    host.blank_bytes = 1u << 20;
    host.huge_pages = false;
    host.lock_memory = false;
    host_ = Must(MakeHostTier(host, loop_, *pool_));
    sources_.AddFile(
        "/m/a",
        {{.name = "w", .dtype = "U8", .shape = {4096}, .bytes = std::vector<uint8_t>(4096, 7)}});
    ServiceOptions options;
    options.limits.verbs = {.clients = 8, .clients_per_process = 8, .clients_per_user = 8};
    service_ = std::make_unique<Service>(std::move(options), loop_, clock_, *host_);
    EngineOptions engine;
    engine.host_capacity_bytes = 2u << 20;
    engine.slab_bytes = 256u << 10;
    engine.block_bytes = 64u << 10;
    engine.pretouch_bytes = 0;
    engine.max_grants = 64;
    engine.max_spaces = 8;
    EngineParts parts;
    parts.clock = &clock_;
    parts.host = host_.get();
    parts.sources = &sources_;
    parts.journal = &journal_;
    parts.directory_memory = &directory_;
    parts.host_policy = MakeLru();
    engine_ = Must(MakeEngine(engine, std::move(parts), *service_));
    TERRACE_CHECK(service_->Start(*engine_, Config()).ok());
    simulate_ = loop_.NewTimer([this] { Simulate(); });
  }

  // The daemon's end of a new connection; the other one is returned.
  UniqueFd Connect() {
    int ends[2];
    TERRACE_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
    UniqueFd served(ends[1]);
    const int on = 1;
    TERRACE_CHECK(::setsockopt(served.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    service_->Accept(std::move(served), "fuzz");
    return UniqueFd(ends[0]);
  }

  // Serves until it has closed the connection whose other end this is.
  void ServeUntilClosed(UniqueFd other) {
    other_ = Must(loop_.NewWatch(std::move(other), [this] { ReadReplies(); }));
    other_.ArmRead();
    Simulate();
    loop_.Run();
    TERRACE_CHECK(engine_->CheckInvariants().ok());
  }

 private:
  // Weight files and journal answer at once, so that nothing waits for them.
  void Simulate() {
    (void)sources_.RunPending();
    (void)journal_.RunPending();
    simulate_.Start(std::chrono::milliseconds(0));
  }

  void ReadReplies() {
    char bytes[65536];
    for (;;) {
      const ssize_t count = ::recv(other_.fd(), bytes, sizeof bytes, MSG_DONTWAIT);
      if (count > 0) continue;
      if (count < 0 && errno == EAGAIN) return other_.ArmRead();
      other_.Close();
      simulate_.Cancel();
      return service_->Stop([this] { loop_.Stop(); });
    }
  }

  // In the order in which they depend on each other.
  OwnerLoop loop_;
  const SystemClock clock_;
  std::unique_ptr<WorkerPool> pool_;
  std::unique_ptr<HostTier> host_;
  SimWeightSources sources_;
  SimJournal journal_;
  MemfdDirectory directory_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<Engine> engine_;
  OwnerLoop::Watch other_;
  OwnerLoop::Timer simulate_;
};

void SendWithDescriptors(int socket, const std::string& bytes) {
  static const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  iovec vector{const_cast<char*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  FdMessage<2> control;
  control.Attach(std::array{null.get(), null.get()}, message);
  (void)::sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void SendBytes(int socket, const std::string& bytes) {
  (void)::send(socket, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
}

}  // namespace
}  // namespace terrace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace terrace;
  if (size > kMaxBytes) return 0;
  Daemon daemon;
  UniqueFd client = daemon.Connect();
  if (size == 0 || data[0] != kWithoutHello) SendBytes(client.get(), HelloFrame());
  FuzzInput input(data, size);
  for (size_t piece = 0; piece < kMaxPieces && !input.empty(); ++piece) {
    const auto kind = input.Take<uint8_t>();
    const std::string bytes = input.TakeText(input.Take<uint16_t>());
    if (kind < kRaw) {
      SendBytes(client.get(), EncodeFrame(static_cast<wire::Type>(kind), 2 + piece, bytes));
    } else if (kind == kWithDescriptors) {
      SendWithDescriptors(client.get(), bytes);
    } else {
      SendBytes(client.get(), bytes);
    }
  }
  ::shutdown(client.get(), SHUT_WR);
  daemon.ServeUntilClosed(std::move(client));
  return 0;
}
