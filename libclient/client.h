// Client: one connection to the daemon over its losses, with one background thread.
//
// The thread waits for what comes unasked (events, the end of the connection), connects again after
// a loss, and gives back what nobody in this process knows. All else happens on the callers'
// threads. Thread-safe but for Close, which is called once, last. Owned by kvc_client and by every
// handle made from it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "libclient/connection.h"
#include "libclient/deadline.h"
#include "libclient/device/device.h"
#include "libclient/fork_word.h"
#include "libclient/life.h"
#include "libclient/messages.h"
#include "libclient/page_range.h"
#include "libclient/space.h"

namespace terrace::client {

inline constexpr size_t kMaxBatch = 512;  // Pages of one message.

struct ClientOptions {
  std::string socket_path;
  FrameSocket::Listener listener = FrameSocket::Listener::kAnybody;
  std::string name;
  bool writer = true;
  uint32_t max_pins = 0;
  int32_t timeout_ms = 10'000;
  bool reconnect = true;
};

// A life and a connection to its daemon, which belong together.
struct Contact {
  std::shared_ptr<Connection> connection;
  std::shared_ptr<Life> life;

  // Whether that daemon does what the wire::Capability stands for; `what` completes "is too old
  // to".
  Status CheckDoes(uint64_t capability, std::string_view what) const;
};

class Client final : private ConnectionEvents {
 public:
  static Result<std::shared_ptr<Client>> Connect(ClientOptions options);
  ~Client();
  // Unmaps what nobody else holds, says goodbye and ends the thread.
  void Close();

  const ClientOptions& options() const { return options_; }
  const std::shared_ptr<PageRanges>& ranges() const { return ranges_; }
  bool in_child() const { return fork_word_->in_child(); }
  // 0 while there is no daemon.
  uint64_t epoch() const { return connected_.load(std::memory_order_acquire); }
  // Of a call: 0 means the client's default; kInvalidArgument for a negative one.
  Result<Deadline> DeadlineOf(int32_t timeout_ms) const;

  // Ok once connected; kUnavailable if that will never be.
  Status WaitConnected(Deadline deadline) EXCLUDES(mu_);
  Result<Contact> contact() const EXCLUDES(mu_);
  // The present life, or the last one while there is no daemon.
  std::shared_ptr<Life> life() const EXCLUDES(mu_);
  // To whichever daemon life there is.
  template <class Request>
  Result<Answer<typename Request::Reply>> Call(const Request& request, Deadline deadline,
                                               std::span<const int> fds = {},
                                               const Connection::Progress& progress = {}) {
    ASSIGN_OR_RETURN(const Contact now, contact());
    return now.connection->Call(request, deadline, fds, progress);
  }

  // `part` as in SpaceFacts; `part_bytes` gives the bytes of it, from those of the whole page.
  Result<std::shared_ptr<Space>> OpenSpace(const messages::OpenSpace& request, uint32_t part,
                                           const std::function<uint32_t(uint32_t)>& part_bytes,
                                           Deadline deadline) EXCLUDES(mu_);
  void CloseSpace(const std::shared_ptr<Space>& space, Deadline deadline) EXCLUDES(mu_);

  // Readers are counted: each may need a lane in the next life too. False: there are kMaxLanes.
  bool AddReader() EXCLUDES(mu_);
  void RemoveReader() EXCLUDES(mu_);

  // A directory of `life` newer than `seen`; one message however many readers ask.
  Result<std::shared_ptr<const Directory>> NewerDirectory(Life& life, uint64_t seen,
                                                          Deadline deadline) EXCLUDES(mu_);
  // Around a call for grants, until the life knows them (Life::KnowGrants): meanwhile none is taken
  // for a lost one.
  void BeginGrant() EXCLUDES(mu_);
  void EndGrant() EXCLUDES(mu_);

  // Maps arenas of `life` for reading or writing; those that no longer exist are left out.
  Status MapArenas(Life& life, const std::vector<uint32_t>& arenas, bool writable,
                   Deadline deadline);
  // Maps what the daemon sent: a descriptor for each arena that has no handle, in their order.
  // Memory of devices that are not open here stays unmapped.
  Status TakeArenas(Life& life, std::span<const messages::Arena> arenas,
                    std::span<const UniqueFd> fds, bool writable) EXCLUDES(mu_);

  // A device that was opened, for as long as somebody has it.
  void AddDevice(const std::shared_ptr<Device>& device) EXCLUDES(mu_);
  // The memory of a device, opened once however many devices stand for it: it has one range of
  // addresses for pages of one size.
  Result<std::shared_ptr<DeviceMemory>> OpenMemory(const messages::Device& facts)
      EXCLUDES(memories_mu_);

 private:
  // What the background thread does next in the present life.
  struct Chores {
    std::vector<uint64_t> expired;   // Grants whose deadline passed: some may be known to nobody.
    std::vector<uint64_t> aborts;    // Grants whose reply came too late.
    std::vector<uint64_t> detaches;  // Attachments likewise,
    std::vector<uint64_t> pools;     // and pools of engines.
    std::set<uint32_t> let_go;       // Arenas of devices that the daemon wants back.
    bool renumber = false;           // Some device of the process has no number in this life.
  };
  // How soon it is looked again whether those are still in use, and whether the daemon has a device
  // by now that it had not: twice as long each time.
  static constexpr int kFirstLetGoMs = 5;
  static constexpr int kLongestLetGoMs = 100;
  static constexpr int kFirstRenumberMs = 250;
  static constexpr int kLongestRenumberMs = 8'000;
  static constexpr size_t kLetGoAMessage = 4096;
  static constexpr size_t kMaxEarly = 64;
  static constexpr size_t kMaxChores = 65'536;  // Of a kind; more wait for the end of the process.

  Client(ClientOptions options, std::shared_ptr<ForkWord> fork_word, UniqueFd wake)
      : options_(std::move(options)), fork_word_(std::move(fork_word)), wake_(std::move(wake)) {}

  void Event(const Connection& from, const Frame& frame) override;
  void LateReply(const Connection& from, const Frame& frame) override;
  void Broken(const Connection& which) override;

  // ---- Connecting (client_connect.cc); one thread at a time.
  // `reach` bounds the wait for the listener, which nothing interrupts.
  Status Establish(Deadline reach, Deadline deadline) EXCLUDES(mu_);
  Result<std::shared_ptr<Connection>> OpenConnection(Deadline deadline);
  Result<std::shared_ptr<Life>> SayHello(Connection& connection, Deadline deadline);
  void ReopenSpaces(Connection& connection, const Life& life, Deadline deadline);
  // Asks for the numbers of this process's devices; false: one has none yet.
  bool RenumberDevices(Connection& connection, const Life& life, Deadline deadline) EXCLUDES(mu_);

  // ---- The background thread
  void Run();
  // Waits for a while, or until the client is closed.
  void Pause(int ms) EXCLUDES(mu_);
  void DoChores(const Contact& now);
  // The daemon counts those of devices as given, whatever becomes of them here. What was let go of
  // meanwhile is let go of once more.
  void CountGiven(Life& life, std::span<const messages::Arena> arenas) REQUIRES(mu_);
  void LetArenasGo(const Contact& now, Deadline deadline) EXCLUDES(mu_);
  // What to do again, and how long it is waited for that.
  struct Rounds {
    size_t let_go = 0;  // As many were still in use.
    int let_go_ms = kFirstLetGoMs;
    int renumber_ms = kFirstRenumberMs;
    Deadline renumber_at = Deadline::In(kFirstRenumberMs);
  };
  // How long nothing is to be done unless something comes; -1: for ever.
  int NextRound(const Contact& now, Rounds* rounds) EXCLUDES(mu_);
  void UnmapWanted(Life& life, const messages::UnmapWantedEvent& event) EXCLUDES(mu_);
  std::vector<std::shared_ptr<Device>> Devices() EXCLUDES(mu_);
  void Wake();

  // The single turn of opening and closing spaces: the daemon counts a space as open once a client,
  // so the two must not cross. False: the deadline passed.
  bool TakeSpaceTurn(Deadline deadline) EXCLUDES(mu_);
  void GiveSpaceTurn() EXCLUDES(mu_);

  const ClientOptions options_;
  const std::shared_ptr<ForkWord> fork_word_;
  const UniqueFd wake_;  // An eventfd that the background thread waits on.
  const std::shared_ptr<PageRanges> ranges_ = std::make_shared<PageRanges>();
  std::thread thread_;

  // Read by every lookup; written under mu_.
  std::atomic<uint64_t> connected_ = 0;

  mutable Mutex mu_;
  CondVar changed_;
  std::shared_ptr<Connection> connection_ GUARDED_BY(mu_);  // Or the one being established.
  std::shared_ptr<Life> life_ GUARDED_BY(mu_);
  uint64_t lives_ GUARDED_BY(mu_) = 0;
  bool stopping_ GUARDED_BY(mu_) = false;
  bool gone_ GUARDED_BY(mu_) = false;  // Never to be connected again.
  Status why_not_ GUARDED_BY(mu_);     // Why the last attempt to connect again failed.
  bool space_turn_taken_ GUARDED_BY(mu_) = false;
  uint32_t readers_ GUARDED_BY(mu_) = 0;
  bool fetching_directory_ GUARDED_BY(mu_) = false;
  std::set<std::shared_ptr<Space>> spaces_ GUARDED_BY(mu_);
  std::vector<Frame> early_ GUARDED_BY(mu_);  // Events from before the connection was taken over.
  uint32_t granting_ GUARDED_BY(mu_) = 0;
  Chores chores_ GUARDED_BY(mu_);
  std::vector<std::weak_ptr<Device>> devices_ GUARDED_BY(mu_);

  Mutex memories_mu_;  // Held while one is opened, before mu_.
  std::vector<std::pair<messages::Device, std::weak_ptr<DeviceMemory>>> memories_
      GUARDED_BY(memories_mu_);
};

}  // namespace terrace::client
