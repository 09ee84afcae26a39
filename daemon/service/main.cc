// terraced: see docs/architecture.md, docs/configuration.md and docs/operations.md.
#include <unistd.h>

#include <cstdio>

#include "daemon/service/daemon.h"
#include "daemon/service/host_check.h"
#include "daemon/service/log.h"
#include "daemon/service/options.h"
#include "daemon/service/systemd/activation.h"
#include "daemon/service/systemd/notify.h"
#include "tiers/nvme/fsck.h"

namespace terrace {
namespace {

constexpr int kExitCannotStart = 1;
constexpr int kExitUsage = 2;
constexpr int kExitFindings = 3;

int Fail(const Status& why, int exit_code) {
  std::fprintf(stderr, "terraced: %s\n", why.message().c_str());
  return exit_code;
}

int PrintConfig(Config config) {
  if (config.socket.empty() && config.sockets.empty()) config.socket = DefaultSocketPath();
  if (config.state_dir.empty()) config.state_dir = DefaultStateDir();
  std::fputs(ConfigText(config).c_str(), stdout);
  return 0;
}

int PrintHostCheck(const Config& config) {
  for (const HostFinding& finding : CheckHost(config, ReadHostFacts(config))) {
    std::printf("%-12s %s: %s\n", finding.lacking ? "lacking" : "good",
                std::string(finding.subject).c_str(), finding.text.c_str());
  }
  return 0;
}

// A line on a terminal that says how far it is; it is cleared when it goes.
class FsckLine {
 public:
  FsckLine() : shown_(::isatty(STDERR_FILENO) == 1) {}
  ~FsckLine() {
    if (shown_) std::fputs("\r\x1b[K", stderr);
  }
  void Show(uint64_t slots) {
    const MonotonicNs now = clock_.Now();
    if (!shown_ || now < next_) return;
    next_ = now + 100 * kNsPerMs;
    std::fprintf(stderr, "\r\x1b[Kfsck: %llu slots read", static_cast<unsigned long long>(slots));
  }

 private:
  const bool shown_;
  const SystemClock clock_;
  MonotonicNs next_ = 0;
};

// 0: clean, or mended; 1: it could not be looked at; 3: there were findings, or a device is off.
int CheckStore(const Config& config, const FsckChoice& choice) {
  if (config.nvme.empty()) {
    return Fail({Code::kInvalidArgument, "the configuration has no [[nvme]]"}, kExitUsage);
  }
  FsckOptions options;
  for (const NvmeConfig& nvme : config.nvme)
    options.directories.push_back(nvme.path);
  options.read_data = choice.read_data;
  options.repair = choice.repair;
  const SystemClock clock;
  const auto check = [&] {
    FsckLine line;
    options.progress = [&line](uint64_t slots) { line.Show(slots); };
    return FsckNvmeStore(options, clock);
  };
  const Result<FsckReport> report = check();
  if (!report) return Fail(report.error(), kExitCannotStart);
  const auto line = [](const char* what, uint64_t count) {
    std::printf("%-40s %llu\n", what, static_cast<unsigned long long>(count));
  };
  if (!report->index_damage.empty()) {
    std::printf("the index is damaged: %s\n", report->index_damage.c_str());
  }
  line("pages in the index", report->entries);
  line("whose slot holds that page", report->good);
  line("bytes of their slots", report->good_bytes);
  line("on a device that is off", report->on_off_device);
  line("in a slot that is not there", report->no_such_place);
  line("with a damaged header", report->bad_header);
  line("whose slot holds another page", report->other_page);
  line("with damaged bytes", report->bad_data);
  line("records that are no entries", report->unreadable);
  line("devices that are off", report->devices_off);
  line("slot files", report->files);
  line("slots", report->slots);
  line("valid slots that no entry names", report->without_entry);
  if (choice.repair != FsckRepair::kNothing) {
    line("entries dropped", report->dropped);
    line("entries added", report->added);
  }
  for (const std::string& finding : report->findings)
    std::printf("  %s\n", finding.c_str());
  // Whatever was mended, what is on a device that is off was not looked at.
  const bool mended = choice.repair != FsckRepair::kNothing && report->devices_off == 0;
  return report->clean() || mended ? 0 : kExitFindings;
}

int Serve(DaemonStart start) {
  SetLogLevel(start.config.log_level);
  SetLogFormat(start.config.log_format);
  const ListenEnvironment listen = TakeListenEnvironment();
  const Notifier::Environment notify = Notifier::TakeEnvironment();
  Result<Notifier> notifier = Notifier::Open(notify, ::getpid());
  if (!notifier) return Fail(notifier.error(), kExitCannotStart);
  start.notifier = *std::move(notifier);
  Result<std::vector<ActivatedSocket>> sockets = TakeActivatedSockets(listen, ::getpid());
  if (!sockets) return Fail(sockets.error(), kExitCannotStart);
  start.sockets = *std::move(sockets);
  Daemon daemon(std::move(start));
  const Status status = daemon.Start();
  // A configuration that does not fit the host is no better at the next try.
  if (!status.ok()) return Fail(status, daemon.misconfigured() ? kExitUsage : kExitCannotStart);
  daemon.Run();
  return 0;
}

int Main(int argc, char** argv) {
  int exit_code = 0;
  const std::optional<CommandLine> command_line = ParseCommandLine(argc, argv, &exit_code);
  if (!command_line) return exit_code;
  Result<Config> config = ReadConfig(*command_line);
  if (!config) return Fail(config.error(), kExitUsage);
  switch (command_line->job) {
    case CommandLine::Job::kCheckConfig:
      return PrintConfig(*std::move(config));
    case CommandLine::Job::kCheckHost:
      return PrintHostCheck(*config);
    case CommandLine::Job::kFsck:
      return CheckStore(*config, command_line->fsck);
    case CommandLine::Job::kServe:
      break;
  }
  DaemonStart start;
  start.config = *std::move(config);
  // Without a file there is nothing to read again.
  if (!command_line->config_file.empty()) {
    start.read_config = [command_line] { return ReadConfig(*command_line); };
  }
  return Serve(std::move(start));
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  return terrace::Main(argc, argv);
}
