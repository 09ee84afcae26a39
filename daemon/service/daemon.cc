#include "daemon/service/daemon.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <thread>
#include <utility>

#include "daemon/service/host_check.h"
#include "daemon/service/log.h"
#include "daemon/service/size_text.h"
#include "tiers/device/supervisor/list_gpus.h"
#include "tiers/device/supervisor/mover_tier.h"
#include "tiers/host/host_tier.h"
#include "tiers/journal/journal.h"
#include "tiers/nvme/nvme_store.h"
#include "tiers/source/image_files.h"
#include "tiers/source/weight_files.h"

namespace terrace {

namespace {

constexpr MonotonicNs kCapacityEvery = 5 * kNsPerSecond;
constexpr int kMostThreads = 8;  // Of a pool.
// What may take its time one after the other: the spill, the transfers of the store, those of the
// file I/O, and replies; and some to spare.
constexpr unsigned kStopLimitS = 15;
constexpr MonotonicNs kSpillLimit = 6 * kNsPerSecond;  // Within kStopLimitS.
constexpr std::chrono::milliseconds kSpillLookEvery{20};

int Threads() {
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMostThreads);
}

// Every client costs two descriptors and every arena one.
void RaiseDescriptorLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  const rlim_t present = std::exchange(limit.rlim_cur, limit.rlim_max);
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) {
    Log(LogLevel::kWarning, "descriptor-limit-kept", {{"limit", present}});
  }
}

uint64_t DescriptorLimit() {
  rlimit limit{};
  return ::getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : 0;
}

// A read of a file system that hangs cannot be interrupted, and the threads that read are waited
// for: that must not keep the process for ever. What was acknowledged is durable already.
void LimitStop() {
  std::signal(SIGALRM, [](int) {
    constexpr char kWhy[] = "terraced: a file system hangs; ended without waiting for it\n";
    (void)!::write(STDERR_FILENO, kWhy, sizeof kWhy - 1);
    ::_exit(1);
  });
  ::alarm(kStopLimitS);
}

uint64_t ResidentBytes(const HostReport& report) {
  return report.hugetlb_bytes + report.thp_bytes + report.small_page_bytes;
}

NvmeStoreOptions NvmeOptionsOf(const Config& config) {
  NvmeStoreOptions options;
  for (const NvmeConfig& nvme : config.nvme)
    options.directories.push_back({.path = nvme.path, .capacity_bytes = nvme.capacity_bytes});
  options.durability = config.durability;
  return options;
}

StoreOptions StoreOptionsOf(const Config& config, uint64_t memory_bytes) {
  StoreOptions options;
  options.write_bytes_per_day = config.write_bytes_per_day;
  options.scrub_bytes_per_second = config.scrub_bytes_per_second;
  // No burst is more than a day's writes, or each start would write more than a day may.
  if (config.write_bytes_per_day != 0) {
    options.write_burst_bytes = std::min(options.write_burst_bytes, config.write_bytes_per_day);
  }
  // What is being written cannot be evicted, and what is being read takes the place of what is
  // there: both leave room in a small memory.
  options.max_writing_bytes = std::min(options.max_writing_bytes, memory_bytes / 8);
  options.max_reading_bytes = std::min(options.max_reading_bytes, memory_bytes / 2);
  return options;
}

}  // namespace

Daemon::~Daemon() {
  metrics_.reset();
  listeners_.clear();
  // These wait for reads that are running, which write into the engine's memory.
  block_reader_.reset();
  read_pool_.reset();
  store_.reset();
  disk_io_.reset();
  for (const std::unique_ptr<DeviceTier>& device : devices_)
    device->BeginEnd();
  devices_.clear();  // Movers copy to and from host arenas until they are gone.
  engine_.reset();
}

Status Daemon::FillDefaults() {
  // In user mode the service manager says where, if the configuration does not.
  if (config_.socket.empty() && config_.sockets.empty() && given_.size() == 1) {
    config_.socket = given_.front().path;
  }
  if (config_.socket.empty() && config_.sockets.empty()) {
    config_.socket = DefaultSocketPath();
    RETURN_IF_ERROR(MakePrivateFolder(FolderOf(config_.socket)).WithContext("daemon.socket"));
  }
  if (config_.state_dir.empty()) config_.state_dir = DefaultStateDir();
  if (config_.state_dir.empty()) {
    return {Code::kInvalidArgument,
            "daemon.state_dir: there is neither XDG_STATE_HOME nor HOME: name a folder"};
  }
  return MakePrivateFolder(config_.state_dir).WithContext("daemon.state_dir");
}

Status Daemon::StartTiers() {
  ASSIGN_OR_RETURN(HostCapacity capacity,
                   HostCapacity::Choose(config_.capacity, [] { return ReadMemoryLimit(); }));
  capacity_ = std::make_unique<HostCapacity>(std::move(capacity));
  const uint64_t usual = DefaultArenaBytes(capacity_->wanted_bytes());
  if (config_.slab_bytes == 0) config_.slab_bytes = usual;
  if (config_.block_bytes == 0) config_.block_bytes = usual;
  // Slabs and blocks of a small tier must leave room for several of each.
  const uint64_t most = std::max<uint64_t>(1u << 20, capacity_->present_bytes() / 8 / 4096 * 4096);
  if (config_.slab_bytes > most || config_.block_bytes > most) {
    config_.slab_bytes = std::min(config_.slab_bytes, most);
    config_.block_bytes = std::min(config_.block_bytes, most);
    Log(LogLevel::kInfo, "slab-and-block-lowered",
        {{"slab", SizeText(config_.slab_bytes)}, {"block", SizeText(config_.block_bytes)}});
  }
  WorkerPoolOptions touch;
  touch.name = "touch";
  touch.threads = Threads();
  touch.low_priority = true;
  ASSIGN_OR_RETURN(touch_pool_, WorkerPool::Start(std::move(touch)));
  HostTierOptions host;
  host.blank_bytes = std::max(config_.slab_bytes, config_.block_bytes);
  host.huge_pages = config_.huge_pages == HugePagesChoice::kAuto;
  host.lock_memory = config_.lock == LockChoice::kAuto;
  ASSIGN_OR_RETURN(host_, MakeHostTier(host, loop_, *touch_pool_));

  ASSIGN_OR_RETURN(journal_, OpenJournal(config_.state_dir + "/journal", loop_));
  journal_drain_ = std::make_unique<JournalDrain>(*journal_);
  WorkerPoolOptions read;
  read.name = "read";
  read.threads = Threads();
  ASSIGN_OR_RETURN(read_pool_, WorkerPool::Start(std::move(read)));
  return StartReading();
}

// File I/O is there with and without a store: weights are read past the page cache too.
Status Daemon::StartReading() {
  const BlockReaderOptions options;
  DiskIoOptions io = NvmeIoOptions(NvmeOptionsOf(config_));
  io.allow_io_uring = config_.io_uring == IoUringChoice::kAuto;
  io.depth += static_cast<uint32_t>(options.buffers);
  io.files = std::min(kMostIoFiles, io.files + kMostWeightFiles);
  ASSIGN_OR_RETURN(disk_io_, StartDiskIo(io, clock_));
  WorkerPoolOptions copy;
  copy.name = "copy";
  copy.threads = Threads();
  ASSIGN_OR_RETURN(copy_pool_, WorkerPool::Start(std::move(copy)));
  BlockReaderParts parts;
  parts.pool = copy_pool_.get();
  parts.executor = &loop_;
  parts.clock = &clock_;
  parts.disk = disk_io_.get();
  block_reader_ = std::make_unique<BlockReader>(parts, options);
  sources_ = MakeWeightFiles(*read_pool_, loop_, *block_reader_);
  // A folder of the store's first device is a place for much; the state's is always there.
  const std::string& folder = config_.nvme.empty() ? config_.state_dir : config_.nvme.front().path;
  images_ = MakeImageFiles(folder + "/images", *read_pool_, *block_reader_);
  return {};
}

Status Daemon::StartStore() {
  if (config_.nvme.empty()) return {};
  ASSIGN_OR_RETURN(store_, OpenNvmeStore(NvmeOptionsOf(config_), *disk_io_, loop_, clock_));
  Log(LogLevel::kInfo, "store-open",
      {{"directories", config_.nvme.size()}, {"io", store_->Report().io}});
  return {};
}

Status Daemon::StartDevices() {
  const std::string program = MoverPath(config_);
  Result<ChosenDevices> chosen =
      ChooseDevices(config_, [&](MonotonicNs within) { return ListGpus(program, within); });
  misconfigured_ = chosen.status().code() == Code::kInvalidArgument;
  if (!chosen) return std::move(chosen).error();
  chosen_devices_ = *std::move(chosen);
  if (!chosen_devices_.why.empty()) {
    Log(chosen_devices_.wanted ? LogLevel::kWarning : LogLevel::kInfo, "devices-missing",
        {{"why", chosen_devices_.why}, {"used", chosen_devices_.devices.size()}});
  }
  for (const ChosenDevice& each : chosen_devices_.devices) {
    MoverTierOptions options;
    options.program = program;
    options.mover.kind = each.kind;
    options.mover.device = each.uuid;
    options.mover.host_bytes = each.host_bytes;
    ASSIGN_OR_RETURN(std::unique_ptr<DeviceTier> tier,
                     StartMoverTier(options, loop_, clock_, [this](ArenaId arena) {
                       engine_->DeviceArenaLost(arena);  // Whose arena it is, so it is there.
                     }));
    devices_.push_back(std::move(tier));
    Log(LogLevel::kInfo, "device",
        {{"device", devices_.size()},
         {"uuid", each.uuid.Text()},
         {"kind", KindName(chosen_devices_)},
         {"capacity", SizeText(each.options.capacity_bytes)},
         {"mover", program}});
  }
  return {};
}

Status Daemon::StartEngine() {
  ServiceOptions service;
  service.limits = ServiceLimitsNow();
  service.state_dir = config_.state_dir;
  // Half is left to clients, where the limit is low.
  service.descriptors = DescriptorLimit() -
                        std::min(DescriptorLimit() / 2,
                                 FileDescriptors(config_) + kDescriptorsOfDevice * devices_.size());
  service_ = std::make_unique<Service>(std::move(service), loop_, clock_, *host_);

  EngineOptions options;
  options.host_capacity_bytes = capacity_->present_bytes();
  options.slab_bytes = config_.slab_bytes;
  options.block_bytes = config_.block_bytes;
  options.pretouch_bytes = config_.pretouch_bytes;
  options.store = StoreOptionsOf(config_, capacity_->present_bytes());
  static_cast<ClientLimits&>(options) = ClientLimitsNow();
  EngineParts parts;
  parts.clock = &clock_;
  parts.host = host_.get();
  parts.sources = sources_.get();
  parts.images = images_.get();
  parts.journal = journal_drain_.get();
  parts.directory_memory = &directory_memory_;
  parts.page_store = store_.get();
  parts.host_policy = MakeLru();
  for (size_t i = 0; i < devices_.size(); ++i)
    parts.devices.push_back({chosen_devices_.devices[i].options, devices_[i].get(), MakeLru()});
  ASSIGN_OR_RETURN(engine_, MakeEngine(options, std::move(parts), *service_));
  service_->OnSweep([this] { Sweep(); });
  service_->SetCapacityReport([this](ServiceReport* report) {
    report->capacity_wanted_bytes = capacity_->wanted_bytes();
    report->memory_limit_bytes = capacity_->limit().limit_bytes;
    report->memory_limit_source = capacity_->limit().source;
    report->device_choice = DeviceChoiceName(config_.device);
    report->device_kind = KindName(chosen_devices_);
    report->devices_why = chosen_devices_.why;
  });
  RETURN_IF_ERROR(service_->Start(*engine_, config_));
  Collector::Parts collector;
  collector.loop = &loop_;
  collector.engine = engine_.get();
  collector.service = [this] { return service_->Figures(); };
  collector.queues = [this] { return Queues(); };
  collector_ = std::make_unique<Collector>(std::move(collector));
  return {};
}

// Before the engine, so that who watches the start is answered during it.
Status Daemon::StartMetrics() {
  const std::optional<ListenAddress> address = ParseListenAddress(config_.metrics_listen);
  if (!address) return {};  // Off.
  ASSIGN_OR_RETURN(metrics_, MetricsServer::Start(*address, loop_, [this](auto done) {
                     collector_->Collect(std::move(done));
                   }));
  Log(LogLevel::kInfo, "metrics", {{"listen", metrics_->address()}});
  return {};
}

QueueFigures Daemon::Queues() const {
  return {.touch_tasks = touch_pool_->queued(),
          .read_tasks = read_pool_->queued(),
          .journal_writes = journal_drain_->writes()};
}

Status Daemon::Start() {
  std::signal(SIGPIPE, SIG_IGN);
  CheckTheHost();
  RaiseDescriptorLimit();
  RETURN_IF_ERROR(FillDefaults());
  RETURN_IF_ERROR(StartMetrics());
  RETURN_IF_ERROR(StartTiers());
  RETURN_IF_ERROR(StartStore());
  RETURN_IF_ERROR(StartDevices());
  RETURN_IF_ERROR(StartEngine());
  RETURN_IF_ERROR(Listen());
  for (const std::string& problem : engine_->Summary().restore_problems) {
    LogLimited(LogLevel::kWarning, "not-restored", {{"why", problem}});
  }
  loop_.OnSignals({SIGTERM, SIGINT, SIGHUP}, [this](int signal) {
    // Without a file to read again SIGHUP means what it says: the terminal is gone.
    signal == SIGHUP&& read_config_ ? Reload() : Stop(signal);
  });
  Log(LogLevel::kInfo, "serving",
      {{"version", TERRACE_VERSION},
       {"state_dir", config_.state_dir},
       {"capacity", SizeText(capacity_->present_bytes())},
       {"capacity_wanted", SizeText(capacity_->wanted_bytes())},
       {"memory_limit", SizeText(capacity_->limit().limit_bytes)},
       {"memory_limit_source", capacity_->limit().source}});
  status_line_ = StatusLine();
  notifier_.Ready(status_line_);
  if (notifier_.alive_every().count() > 0) KeepAlive();
  if (metrics_ != nullptr) metrics_->SetStage(MetricsServer::Stage::kServing);
  return {};
}

Status Daemon::Listen() {
  const std::vector<SocketConfig> sockets = SocketsOf(config_);
  ASSIGN_OR_RETURN(MatchedSockets given, MatchSockets(sockets, std::move(given_)));
  for (size_t i = 0; i < sockets.size(); ++i) {
    ASSIGN_OR_RETURN(std::unique_ptr<Listener> listener,
                     ListenOn(sockets[i], std::move(given.wanted[i])));
    listeners_.push_back(std::move(listener));
  }
  for (ActivatedSocket& other : given.others)
    RETURN_IF_ERROR(KeepUnserved(std::move(other)));
  TellWithoutAdmin();
  return {};
}

Result<std::unique_ptr<Listener>> Daemon::ListenOn(const SocketConfig& socket,
                                                   std::optional<ActivatedSocket> given) {
  const bool by_manager = given.has_value();
  ListenerOptions options;
  options.path = socket.path;
  options.mode = socket.mode;
  options.owner = socket.owner;
  options.group = socket.group;
  options.given = std::move(given);
  ASSIGN_OR_RETURN(
      std::unique_ptr<Listener> listener,
      Listener::Open(std::move(options), loop_, [this](UniqueFd accepted, const std::string& path) {
        service_->Accept(std::move(accepted), path);
      }));
  Log(LogLevel::kInfo, "listening",
      {{"socket", socket.path},
       {"tenant", socket.tenant},
       {"admin", socket.admin ? "yes" : "no"},
       {"made_by", by_manager ? "the service manager" : "the daemon"}});
  return listener;
}

Status Daemon::KeepUnserved(ActivatedSocket given) {
  Log(LogLevel::kWarning, "socket-unserved",
      {{"name", given.name},
       {"socket", given.path.empty() ? "no path" : given.path},
       {"why", "no [[socket]] has its path or name: whoever connects is refused"}});
  ListenerOptions options;
  options.path = given.path;
  options.given = std::move(given);
  ASSIGN_OR_RETURN(
      std::unique_ptr<Listener> listener,
      Listener::Open(std::move(options), loop_, [this](UniqueFd accepted, const std::string& path) {
        service_->Accept(std::move(accepted), path);
      }));
  listener->ServeAs("");
  listeners_.push_back(std::move(listener));
  return {};
}

void Daemon::TellWithoutAdmin() const {
  const std::vector<SocketConfig> sockets = SocketsOf(config_);
  const bool admin = std::any_of(sockets.begin(), sockets.end(),
                                 [](const SocketConfig& socket) { return socket.admin; });
  if (admin) return;
  Log(LogLevel::kWarning, "no-admin-socket",
      {{"why", "no [[socket]] has admin = true: nobody can add, load or evict models"}});
}

void Daemon::CheckTheHost() {
  for (const HostFinding& finding : CheckHost(config_, ReadHostFacts(config_))) {
    Log(finding.lacking ? LogLevel::kWarning : LogLevel::kDebug, "host-check",
        {{"subject", finding.subject},
         {"lacking", finding.lacking ? "yes" : "no"},
         {"text", finding.text}});
  }
}

// By a timer of the owner loop, so that a loop that hangs is a daemon that is restarted.
void Daemon::KeepAlive() {
  alive_ = loop_.NewTimer([this] {
    notifier_.Alive();
    alive_.Start(notifier_.alive_every());
  });
  alive_.Start(notifier_.alive_every());
}

// For `systemctl status`.
std::string Daemon::StatusLine() const {
  const StatusReport report = engine_->Summary();
  return "Serving " + std::to_string(report.clients) + " clients; " +
         RoundedSizeText(ResidentBytes(host_->Report())) + " of " +
         RoundedSizeText(capacity_->present_bytes()) + " resident";
}

void Daemon::Run() {
  loop_.Run();
}

void Daemon::Sweep() {
  for (const auto& listener : listeners_)
    listener->Sweep();
  const MonotonicNs now = clock_.Now();
  if (now - capacity_checked_ < kCapacityEvery) return;
  capacity_checked_ = now;
  if (std::string line = StatusLine(); notifier_.speaks() && line != status_line_) {
    status_line_ = std::move(line);
    notifier_.Describe(status_line_);
  }
  if (!capacity_->Grow(ResidentBytes(host_->Report()))) return;
  engine_->SetHostCapacity(capacity_->present_bytes());
  Log(LogLevel::kInfo, "capacity-grew", {{"capacity", SizeText(capacity_->present_bytes())}});
}

void Daemon::Stop(int signal) {
  if (std::exchange(stopping_, true)) return;  // A second signal.
  Log(LogLevel::kInfo, "stopping", {{"signal", signal}});
  notifier_.Stopping();
  LimitStop();
  listeners_.clear();
  if (metrics_ != nullptr) metrics_->SetStage(MetricsServer::Stage::kStopping);
  service_->Stop([this] {
    DrainStore(clock_.Now(), [this] { journal_drain_->WhenIdle([this] { loop_.Stop(); }); });
  });
}

void Daemon::DrainStore(MonotonicNs since, std::function<void()> idle) {
  (void)engine_->Turn();  // The service takes none any more.
  const StoreFigures now = engine_->Summary().store;
  const bool waits = now.queued_pages + now.writing_pages + now.erasing_pages > 0;
  if (!waits || clock_.Now() > since + kSpillLimit) return idle();
  drain_ = loop_.NewTimer([this, since, idle] { DrainStore(since, idle); });
  drain_.Start(kSpillLookEvery);
}

}  // namespace terrace
