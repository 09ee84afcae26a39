// Connecting, and connecting again: Client's background thread.
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "libclient/client.h"

namespace terrace::client {
namespace {

constexpr int kFirstPauseMs = 5;
constexpr int kLongestPauseMs = 500;
// Of one attempt to reach the listener; the answer to the hello has the client's default deadline.
constexpr int32_t kAttemptMs = 250;

std::string OwnVersions() {
  constexpr bool kOne = wire::kProtocolVersionMin == wire::kProtocolVersion;
  return (kOne ? "version " : "versions " + std::to_string(wire::kProtocolVersionMin) + " to ") +
         std::to_string(wire::kProtocolVersion);
}

Status CheckVersion(const messages::HelloReply& reply) {
  if (reply.version >= wire::kProtocolVersionMin && reply.version <= wire::kProtocolVersion) {
    return {};
  }
  return {Code::kMismatch, "the daemon, terraced " + reply.daemon_version + ", speaks version " +
                               std::to_string(reply.version) + " of the protocol, this library " +
                               OwnVersions() + ": update the " +
                               (reply.version > wire::kProtocolVersion ? "library" : "daemon")};
}

// Gives the thread its signals back, also when there was no thread to be had (std::system_error).
struct Restored {
  const sigset_t& before;
  ~Restored() { ::pthread_sigmask(SIG_SETMASK, &before, nullptr); }
};

}  // namespace

Result<std::shared_ptr<Client>> Client::Connect(ClientOptions options) {
  ASSIGN_OR_RETURN(std::shared_ptr<ForkWord> fork_word, ForkWord::Make());
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) return SystemError("eventfd", errno);
  std::shared_ptr<Client> client(
      new Client(std::move(options), std::move(fork_word), std::move(wake)));
  const Deadline deadline = Deadline::In(client->options_.timeout_ms);
  RETURN_IF_ERROR(client->Establish(deadline, deadline));
  // The thread takes no signals: their handlers are the program's.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const Restored mask{before};
  client->thread_ = std::thread([raw = client.get()] { raw->Run(); });
  ::pthread_setname_np(client->thread_.native_handle(), "kvclient");
  return client;
}

Result<std::shared_ptr<Connection>> Client::OpenConnection(Deadline deadline) {
  ASSIGN_OR_RETURN(FrameSocket socket,
                   FrameSocket::Connect(options_.socket_path, options_.listener, deadline));
  ASSIGN_OR_RETURN(std::shared_ptr<Connection> connection,
                   Connection::Make(std::move(socket), wake_.get(), *this));
  MutexLock lock(mu_);
  if (stopping_) return Status(Code::kUnavailable, "the client is closed");
  connection_ = connection;  // From here on Close reaches it.
  early_.clear();
  return connection;
}

Result<std::shared_ptr<Life>> Client::SayHello(Connection& connection, Deadline deadline) {
  std::shared_ptr<Life> before;
  {
    MutexLock lock(mu_);
    before = life_;
  }
  messages::Hello hello{.version_min = wire::kProtocolVersionMin,
                        .version_max = wire::kProtocolVersion,
                        .name = options_.name,
                        .writer = options_.writer,
                        .max_pins = options_.max_pins,
                        .capabilities = wire::kCapabilities};
  if (before != nullptr) {
    hello.resume_client = before->hello().client;
    hello.resume_token = before->hello().token;
    const auto resumed = connection.Call(hello, deadline);
    if (resumed) {
      if (!resumed->reply.resumed || resumed->reply.life != before->hello().life ||
          resumed->fds.size() != 1) {
        return Status(Code::kDataLoss, "the daemon took this client up again in another way");
      }
      RETURN_IF_ERROR(before->SetDirectory(resumed->fds[0]));
      return before;
    }
    // Stale: another daemon life, or one that has given this client up. After anything else the
    // client may be taken up again in the next attempt, with all that it holds.
    if (resumed.status().code() != Code::kStale) return resumed.status();
    hello.resume_client = 0;
    hello.resume_token = 0;
  }
  ASSIGN_OR_RETURN(const auto answer, connection.Call(hello, deadline));
  RETURN_IF_ERROR(CheckVersion(answer.reply));
  if (answer.fds.size() != 2) {
    return Status(Code::kDataLoss, "the daemon sent no channel or no directory");
  }
  uint64_t epoch = 0;
  {
    // A number of its own, also if this life never shows: spaces may get bound to it.
    MutexLock lock(mu_);
    epoch = ++lives_;
  }
  return Life::Make(epoch, answer.reply, answer.fds[0], answer.fds[1],
                    {.ranges = ranges_, .fork_word = fork_word_});
}

void Client::ReopenSpaces(Connection& connection, const Life& life, Deadline deadline) {
  std::set<std::shared_ptr<Space>> spaces;
  {
    MutexLock lock(mu_);
    spaces = spaces_;
  }
  // A space that cannot be opened again keeps its binding to a life that is over: its lookups miss
  // as stale, and its owner learns the reason by opening it anew.
  for (const auto& space : spaces) {
    const auto answer = connection.Call(space->request(), deadline);
    if (!answer) continue;
    const auto binding = BindingOf(answer->reply, space->facts().part, life.epoch());
    if (binding && DigestOf(answer->reply.space_id) == space->facts().id) space->Bind(*binding);
  }
}

bool Client::RenumberDevices(Connection& connection, const Life& life, Deadline deadline) {
  const std::vector<std::shared_ptr<Device>> devices = Devices();
  if (devices.empty() || (life.hello().capabilities & wire::kDeviceCapability) == 0) return true;
  // Without a number in this life nothing of theirs is looked for. A daemon that was started just
  // now may not know its devices yet.
  const auto answer = connection.Call(messages::Devices(), deadline);
  bool all = answer.has_value();
  for (const std::shared_ptr<Device>& device : devices) {
    if (answer) device->Renumber(life.epoch(), answer->reply);
    all = all && device->NumberIn(life.epoch()) != 0;
  }
  return all;
}

Status Client::Establish(Deadline reach, Deadline deadline) {
  ASSIGN_OR_RETURN(const std::shared_ptr<Connection> connection, OpenConnection(reach));
  std::vector<Frame> early;
  const auto finish = [&]() -> Status {
    ASSIGN_OR_RETURN(std::shared_ptr<Life> life, SayHello(*connection, deadline));
    std::shared_ptr<Life> before;
    {
      MutexLock lock(mu_);
      before = life_;
    }
    bool renumbered = true;
    if (life != before) {
      ReopenSpaces(*connection, *life, deadline);
      renumbered = RenumberDevices(*connection, *life, deadline);
    } else {
      life->GivenOnce();
    }
    MutexLock lock(mu_);
    if (stopping_) return {Code::kUnavailable, "the client is closed"};
    RETURN_IF_ERROR(connection->broken());
    if (life != life_) chores_ = {};  // They were the old life's.
    chores_.renumber = chores_.renumber || !renumbered;
    life_ = std::move(life);
    connected_.store(life_->epoch(), std::memory_order_release);
    why_not_ = {};
    early.swap(early_);
    changed_.notify_all();
    return {};
  };
  const Status status = finish();
  if (!status.ok()) connection->Break(status);
  for (const Frame& frame : early)
    Event(*connection, frame);
  return status;
}

void Client::Pause(int ms) {
  const Deadline deadline = Deadline::In(ms);
  MutexLock lock(mu_);
  while (!stopping_ && !deadline.passed())
    changed_.wait_until(mu_, deadline.point());
}

int Client::NextRound(const Contact& now, Rounds* rounds) {
  size_t let_go = 0;
  bool renumber = false;
  {
    MutexLock lock(mu_);
    let_go = chores_.let_go.size();
    renumber = chores_.renumber;
  }
  int wait_ms = -1;
  // Nothing tells when a pin is released.
  if (let_go > 0) {
    rounds->let_go_ms =
        let_go != rounds->let_go ? kFirstLetGoMs : std::min(2 * rounds->let_go_ms, kLongestLetGoMs);
    wait_ms = rounds->let_go_ms;
  }
  rounds->let_go = let_go;
  if (!renumber) {
    rounds->renumber_ms = kFirstRenumberMs;
    rounds->renumber_at = Deadline::In(kFirstRenumberMs);
    return wait_ms;
  }
  if (rounds->renumber_at.passed()) {
    const bool all = RenumberDevices(*now.connection, *now.life, Deadline::In(options_.timeout_ms));
    MutexLock lock(mu_);
    if (all && life_ == now.life) chores_.renumber = false;
    rounds->renumber_ms = std::min(2 * rounds->renumber_ms, kLongestRenumberMs);
    rounds->renumber_at = Deadline::In(rounds->renumber_ms);
  }
  return wait_ms < 0 ? rounds->renumber_ms : std::min(wait_ms, rounds->renumber_ms);
}

void Client::Run() {
  int pause_ms = kFirstPauseMs;
  Rounds rounds;
  for (;;) {
    Contact now;
    {
      MutexLock lock(mu_);
      if (stopping_) return;
      if (connected_.load(std::memory_order_relaxed) != 0) now = {connection_, life_};
    }
    if (now.connection != nullptr) {
      pause_ms = kFirstPauseMs;
      DoChores(now);
      now.connection->Serve(NextRound(now, &rounds));
    } else if (!options_.reconnect) {
      MutexLock lock(mu_);
      gone_ = true;
      changed_.notify_all();
      return;
    } else if (Status status =
                   Establish(Deadline::In(kAttemptMs), Deadline::In(options_.timeout_ms));
               !status.ok()) {
      {
        MutexLock lock(mu_);
        why_not_ = std::move(status);
      }
      Pause(pause_ms);
      pause_ms = std::min(2 * pause_ms, kLongestPauseMs);
    }
    uint64_t count;
    static_cast<void>(!::read(wake_.get(), &count, sizeof count));  // Nothing to read is fine.
  }
}

}  // namespace terrace::client
