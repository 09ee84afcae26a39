#include "libclient/client.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "libclient/finally.h"

namespace terrace::client {
namespace {

constexpr size_t kArenasAMessage = 128;
constexpr int32_t kGoodbyeMs = 1000;

template <class T>
void AddBounded(const std::vector<T>& from, size_t limit, std::vector<T>* to) {
  to->insert(to->end(), from.begin(),
             from.begin() + static_cast<ptrdiff_t>(std::min(from.size(), limit - to->size())));
}

}  // namespace

Result<Deadline> Client::DeadlineOf(int32_t timeout_ms) const {
  if (timeout_ms < 0) return Status(Code::kInvalidArgument, "timeout_ms is negative");
  return Deadline::In(timeout_ms == 0 ? options_.timeout_ms : timeout_ms);
}

Status Contact::CheckDoes(uint64_t capability, std::string_view what) const {
  const messages::HelloReply& daemon = life->hello();
  if ((daemon.capabilities & capability) != 0) return {};
  return {Code::kMismatch, "the daemon, terraced " + daemon.daemon_version + ", is too old to " +
                               std::string(what) + ": update it"};
}

Result<Contact> Client::contact() const {
  MutexLock lock(mu_);
  if (connected_.load(std::memory_order_relaxed) == 0) {
    return Status(Code::kUnavailable,
                  stopping_ ? "the client is closed" : "there is no connection to the daemon now");
  }
  return Contact{connection_, life_};
}

std::shared_ptr<Life> Client::life() const {
  MutexLock lock(mu_);
  return life_;
}

Status Client::WaitConnected(Deadline deadline) {
  MutexLock lock(mu_);
  while (connected_.load(std::memory_order_relaxed) == 0) {
    if (stopping_ || gone_) return {Code::kUnavailable, "the client will not connect again"};
    if (deadline.passed()) {
      return Status(Code::kDeadlineExceeded, why_not_.ok()
                                                 ? "no daemon in time"
                                                 : "no daemon in time: " + why_not_.message());
    }
    changed_.wait_until(mu_, deadline.point());
  }
  return {};
}

// ---- Spaces

bool Client::TakeSpaceTurn(Deadline deadline) {
  MutexLock lock(mu_);
  while (space_turn_taken_ && !deadline.passed())
    changed_.wait_until(mu_, deadline.point());
  if (space_turn_taken_) return false;
  space_turn_taken_ = true;
  return true;
}

void Client::GiveSpaceTurn() {
  MutexLock lock(mu_);
  space_turn_taken_ = false;
  changed_.notify_all();
}

Result<std::shared_ptr<Space>> Client::OpenSpace(
    const messages::OpenSpace& request, uint32_t part,
    const std::function<uint32_t(uint32_t)>& part_bytes, Deadline deadline) {
  if (!TakeSpaceTurn(deadline)) {
    return Status(Code::kDeadlineExceeded, "another space is still being opened or closed");
  }
  const auto open = [&]() -> Result<std::shared_ptr<Space>> {
    ASSIGN_OR_RETURN(const Contact now, contact());
    ASSIGN_OR_RETURN(const auto answer, now.connection->Call(request, deadline));
    const messages::OpenSpaceReply& reply = answer.reply;
    ASSIGN_OR_RETURN(const Binding binding, BindingOf(reply, part, now.life->epoch()));
    SpaceFacts facts{.id = DigestOf(reply.space_id), .part = part};
    facts.page_tokens = reply.layout ? reply.layout->page_tokens : 0;
    facts.page_bytes = part_bytes(reply.page_bytes);
    if (facts.page_tokens == 0) {
      return Status(Code::kDataLoss, "the daemon describes the space wrongly");
    }
    ASSIGN_OR_RETURN(facts.range,
                     ranges_->Of(facts.page_bytes, now.life->hello().host_capacity_bytes));
    auto space = std::make_shared<Space>(facts, request);
    space->Bind(binding);
    MutexLock lock(mu_);
    // Spaces are bound to the next life before it shows: this one would be left out.
    if (connected_.load(std::memory_order_relaxed) != now.life->epoch()) {
      return Status(Code::kUnavailable, "the daemon was lost meanwhile");
    }
    spaces_.insert(space);
    return space;
  };
  const Finally give([this] { GiveSpaceTurn(); });
  return open();
}

void Client::CloseSpace(const std::shared_ptr<Space>& space, Deadline deadline) {
  // Without a turn in time the space counts as open until this client ends.
  const bool turn = TakeSpaceTurn(deadline);
  const Finally give([this, turn] {
    if (turn) GiveSpaceTurn();
  });
  const Binding& binding = space->binding();
  Contact now;
  bool last = turn;
  {
    MutexLock lock(mu_);
    spaces_.erase(space);
    for (const auto& other : spaces_) {
      const Binding& its = other->binding();
      last = last &&
             (its.life_epoch != binding.life_epoch || its.ref().word() != binding.ref().word());
    }
    if (connected_.load(std::memory_order_relaxed) == binding.life_epoch) {
      now = {connection_, life_};
    }
  }
  if (last && now.connection != nullptr) {
    const messages::CloseSpace request{.slot = binding.ref().slot, .epoch = binding.ref().epoch};
    // Nothing is lost if it fails: the space is closed with the client.
    static_cast<void>(now.connection->Call(request, deadline).status());
  }
}

bool Client::AddReader() {
  MutexLock lock(mu_);
  if (readers_ == shm::kMaxLanes) return false;
  ++readers_;
  return true;
}

void Client::RemoveReader() {
  MutexLock lock(mu_);
  --readers_;
}

// ---- Directory and arenas

Result<std::shared_ptr<const Directory>> Client::NewerDirectory(Life& life, uint64_t seen,
                                                                Deadline deadline) {
  Contact now;
  {
    MutexLock lock(mu_);
    for (;;) {
      std::shared_ptr<const Directory> directory = life.directory();
      if (directory->view.id() > seen) return directory;
      if (connected_.load(std::memory_order_relaxed) != life.epoch()) {
        return Status(Code::kUnavailable, "there is no connection to the daemon now");
      }
      if (!fetching_directory_) break;
      if (deadline.passed()) return Status(Code::kDeadlineExceeded, "no directory in time");
      changed_.wait_until(mu_, deadline.point());
    }
    fetching_directory_ = true;
    now = {connection_, life_};
  }
  const auto fetch = [&]() -> Result<std::shared_ptr<const Directory>> {
    ASSIGN_OR_RETURN(const auto answer, now.connection->Call(messages::Directory(), deadline));
    if (answer.fds.size() != 1) {
      return Status(Code::kDataLoss, "the daemon sent no descriptor of its directory");
    }
    RETURN_IF_ERROR(life.SetDirectory(answer.fds[0]));
    std::shared_ptr<const Directory> directory = life.directory();
    if (directory->view.id() > seen) return directory;
    return Status(Code::kDataLoss, "the daemon has no newer directory");
  };
  const Finally done([this] {
    MutexLock lock(mu_);
    fetching_directory_ = false;
    changed_.notify_all();
  });
  return fetch();
}

Status Client::MapArenas(Life& life, const std::vector<uint32_t>& arenas, bool writable,
                         Deadline deadline) {
  ASSIGN_OR_RETURN(const Contact now, contact());
  if (now.life.get() != &life) return {Code::kUnavailable, "the daemon was lost meanwhile"};
  for (size_t first = 0; first < arenas.size(); first += kArenasAMessage) {
    messages::Arenas request{.ids = {}, .writable = writable};
    for (size_t i = first; i < std::min(arenas.size(), first + kArenasAMessage); ++i) {
      request.ids.push_back(arenas[i]);
    }
    ASSIGN_OR_RETURN(const auto answer, now.connection->Call(request, deadline));
    RETURN_IF_ERROR(TakeArenas(life, answer.reply.arenas, answer.fds, writable));
  }
  return {};
}

Status Client::TakeArenas(Life& life, std::span<const messages::Arena> arenas,
                          std::span<const UniqueFd> fds, bool writable) {
  {
    MutexLock lock(mu_);
    CountGiven(life, arenas);
  }
  const auto by_descriptor = [](const messages::Arena& arena) { return arena.handle.empty(); };
  if (std::ranges::count_if(arenas, by_descriptor) != static_cast<ptrdiff_t>(fds.size())) {
    return {Code::kDataLoss, "the daemon sent another number of descriptors than of arenas"};
  }
  const std::vector<std::shared_ptr<Device>> devices = Devices();
  size_t next = 0;
  for (const messages::Arena& arena : arenas) {
    const UniqueFd* fd = by_descriptor(arena) ? &fds[next++] : nullptr;
    if (arena.device == 0 && fd == nullptr) {
      return {Code::kDataLoss, "the daemon sent a handle of host memory"};
    }
    if (arena.device == 0) {
      RETURN_IF_ERROR(writable ? life.arenas().AddWritable(arena, *fd)
                               : life.arenas().Add(arena, *fd));
      continue;
    }
    if (life.arenas().Gone(arena.id)) continue;
    for (const std::shared_ptr<Device>& device : devices) {
      if (device->NumberIn(life.epoch()) != arena.device) continue;
      DeviceMemory& memory = device->memory();
      const SharedMemory shared{.fd = fd != nullptr ? fd->get() : -1,
                                .handle = arena.handle,
                                .bytes = memory.Rounded(arena.bytes)};
      RETURN_IF_ERROR(life.arenas().AddBy(arena, writable, [&] {
        return writable ? memory.Map(shared, GpuAccess::kReadWrite)
                        : memory.MapPages(arena.page_bytes, shared);
      }));
      break;
    }
  }
  return {};
}

// ---- Devices

void Client::AddDevice(const std::shared_ptr<Device>& device) {
  MutexLock lock(mu_);
  std::erase_if(devices_, [](const auto& known) { return known.expired(); });
  devices_.push_back(device);
}

Result<std::shared_ptr<DeviceMemory>> Client::OpenMemory(const messages::Device& facts) {
  MutexLock lock(memories_mu_);
  std::erase_if(memories_, [](const auto& known) { return known.second.expired(); });
  for (const auto& [of, known] : memories_) {
    const bool same = of.uuid == facts.uuid && of.kind == facts.kind && of.slabs == facts.slabs &&
                      of.granularity == facts.granularity;
    if (!same) continue;
    if (std::shared_ptr<DeviceMemory> memory = known.lock()) return memory;
  }
  ASSIGN_OR_RETURN(std::shared_ptr<DeviceMemory> memory, DeviceMemory::Open(facts));
  memories_.emplace_back(facts, memory);
  return memory;
}

std::vector<std::shared_ptr<Device>> Client::Devices() {
  MutexLock lock(mu_);
  std::vector<std::shared_ptr<Device>> devices;
  for (const std::weak_ptr<Device>& known : devices_) {
    if (std::shared_ptr<Device> device = known.lock()) devices.push_back(std::move(device));
  }
  return devices;
}

void Client::UnmapWanted(Life& life, const messages::UnmapWantedEvent& event) {
  for (const uint32_t arena : event.arenas) {
    if (event.lost) life.arenas().Lose(arena);
  }
  for (const std::shared_ptr<Device>& device : Devices()) {
    if (device->NumberIn(life.epoch()) != event.device) continue;
    for (const uint64_t attachment : event.attachments)
      device->Ask(life.epoch(), attachment, event.deadline_ms, event.lost);
  }
  MutexLock lock(mu_);
  for (const uint32_t arena : event.arenas) {
    if (arena < shm::kMaxArenas && chores_.let_go.size() < kMaxChores) chores_.let_go.insert(arena);
  }
  Wake();
}

void Client::CountGiven(Life& life, std::span<const messages::Arena> arenas) {
  for (const messages::Arena& arena : arenas) {
    if (arena.device == 0) continue;
    life.Given(arena.id);
    if (!life.arenas().Gone(arena.id) || life_.get() != &life) continue;
    chores_.let_go.insert(arena.id);
    Wake();
  }
}

void Client::LetArenasGo(const Contact& now, Deadline deadline) {
  std::set<uint32_t> wanted;
  {
    MutexLock lock(mu_);
    wanted = chores_.let_go;
  }
  if (wanted.empty()) return;
  // Once for all of them: it looks at every pin. What is pinned after this is seen by LetGo.
  const std::set<uint32_t> pinned = now.life->PinsNow().arenas;
  std::vector<std::pair<uint32_t, uint32_t>> gone;  // Arenas, and how often they were given.
  for (const uint32_t arena : wanted) {
    if (pinned.contains(arena)) continue;
    const auto pinned_since = [&] { return now.life->PinsNow().arenas.contains(arena); };
    if (!now.life->arenas().LetGo(arena, pinned_since)) continue;
    // At least once: the reply that gave it may have been lost.
    gone.emplace_back(arena, std::max<uint32_t>(1, now.life->TakeGiven(arena)));
  }
  messages::LetGo request;
  Status sent;
  for (size_t i = 0; i < gone.size() && sent.ok(); ++i) {
    for (uint32_t times = 0; times < gone[i].second && sent.ok(); ++times) {
      request.arenas.push_back(gone[i].first);
      const bool last = i + 1 == gone.size() && times + 1 == gone[i].second;
      if (!last && request.arenas.size() < kLetGoAMessage) continue;
      sent = now.connection->Call(request, deadline).status();
      request.arenas.clear();
    }
  }
  if (!sent.ok()) {
    // Once more with the next connection: the daemon does not mind to be told twice.
    for (const auto& [arena, times] : gone)
      now.life->Given(arena, times);
    return;
  }
  MutexLock lock(mu_);
  if (life_ != now.life) return;
  for (const auto& [arena, times] : gone)
    chores_.let_go.erase(arena);
}

// ---- What comes unasked

void Client::BeginGrant() {
  MutexLock lock(mu_);
  ++granting_;
}

void Client::EndGrant() {
  MutexLock lock(mu_);
  if (--granting_ == 0 && !chores_.expired.empty()) Wake();
}

void Client::Wake() {
  const uint64_t one = 1;
  static_cast<void>(!::write(wake_.get(), &one, sizeof one));  // Fails only if it is awake already.
}

void Client::Broken(const Connection& which) {
  MutexLock lock(mu_);
  // A connection may be told broken after the next one is there.
  if (connection_.get() != &which) return;
  connected_.store(0, std::memory_order_release);
  changed_.notify_all();
  Wake();
}

void Client::Event(const Connection& from, const Frame& frame) {
  std::shared_ptr<Life> life;
  {
    MutexLock lock(mu_);
    if (connection_.get() != &from) return;
    if (connected_.load(std::memory_order_relaxed) == 0) {
      // It follows the answer to the hello so closely that the life is not there yet.
      if (early_.size() < kMaxEarly) early_.push_back({frame.header, frame.body, {}});
      return;
    }
    life = life_;
  }
  if (frame.header.type == wire::Type::kUnmapEvent) {
    messages::UnmapEvent event;
    if (messages::Decode(frame.body, &event)) life->RemoveArenas(event.arenas);
  } else if (frame.header.type == wire::Type::kUnmapWantedEvent) {
    messages::UnmapWantedEvent event;
    if (messages::Decode(frame.body, &event)) UnmapWanted(*life, event);
  } else if (frame.header.type == wire::Type::kGrantExpiredEvent) {
    messages::GrantExpiredEvent event;
    if (!messages::Decode(frame.body, &event)) return;
    MutexLock lock(mu_);
    AddBounded(event.grants, kMaxChores, &chores_.expired);
    Wake();
  }
  // Other events are of a newer daemon, or replies to calls that were given up long ago.
}

void Client::LateReply(const Connection& from, const Frame& frame) {
  messages::GrantReply granted;
  messages::AttachReply attached;
  messages::ArenasReply arenas;
  messages::PoolAddReply pool;
  MutexLock lock(mu_);
  if (connection_.get() != &from) return;
  if (life_ == nullptr) return;
  if (frame.header.type == wire::Type::kArenasReply && messages::Decode(frame.body, &arenas)) {
    return CountGiven(*life_, arenas.arenas);
  }
  if (frame.header.type == wire::Type::kGrantReply && messages::Decode(frame.body, &granted)) {
    CountGiven(*life_, granted.arenas);
    AddBounded(granted.grants, kMaxChores, &chores_.aborts);
  } else if (frame.header.type == wire::Type::kAttachReply &&
             messages::Decode(frame.body, &attached)) {
    AddBounded({attached.attachment}, kMaxChores, &chores_.detaches);
  } else if (frame.header.type == wire::Type::kPoolAddReply &&
             messages::Decode(frame.body, &pool)) {
    AddBounded({pool.pool}, kMaxChores, &chores_.pools);
  } else {
    return;  // A space counts as open until the client ends, once however often it was opened.
  }
  Wake();
}

void Client::DoChores(const Contact& now) {
  Chores chores;
  {
    MutexLock lock(mu_);
    chores.aborts.swap(chores_.aborts);
    chores.detaches.swap(chores_.detaches);
    chores.pools.swap(chores_.pools);
    // While a call for grants is under way, what is unknown may be just about to be known.
    if (granting_ == 0) chores.expired.swap(chores_.expired);
  }
  AddBounded(now.life->UnknownOf(chores.expired), 2 * kMaxChores, &chores.aborts);
  std::erase(chores.aborts, uint64_t{0});
  const Deadline deadline = Deadline::In(options_.timeout_ms);
  // A failure breaks the connection or leaves these to the end of the process.
  for (size_t first = 0; first < chores.aborts.size(); first += kMaxBatch) {
    const auto begin = chores.aborts.begin() + static_cast<ptrdiff_t>(first);
    const auto count = static_cast<ptrdiff_t>(std::min(kMaxBatch, chores.aborts.size() - first));
    const messages::Abort request{.grants = {begin, begin + count}};
    static_cast<void>(now.connection->Call(request, deadline).status());
  }
  for (const uint64_t attachment : chores.detaches) {
    const messages::Detach request{.attachment = attachment};
    static_cast<void>(now.connection->Call(request, deadline).status());
  }
  for (const uint64_t pool : chores.pools) {
    const messages::PoolRemove request{.pool = pool};
    static_cast<void>(now.connection->Call(request, deadline).status());
  }
  LetArenasGo(now, deadline);
}

// ---- The end

void Client::Close() {
  std::shared_ptr<Connection> connection;
  std::shared_ptr<Life> life;
  bool connected = false;
  {
    MutexLock lock(mu_);
    stopping_ = true;
    connected = connected_.exchange(0, std::memory_order_acq_rel) != 0;
    connection = connection_;
    life.swap(life_);
    changed_.notify_all();
  }
  life.reset();  // Before the goodbye, which says that this is unmapped.
  if (connected) {
    const Deadline deadline = Deadline::In(std::min(options_.timeout_ms, kGoodbyeMs));
    static_cast<void>(connection->Call(messages::Goodbye(), deadline).status());
  }
  if (connection != nullptr) connection->Break({Code::kUnavailable, "the client is closed"});
  Wake();
  if (thread_.joinable()) thread_.join();
}

Client::~Client() {
  if (thread_.joinable()) Close();
}

}  // namespace terrace::client
