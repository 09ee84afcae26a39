// Processes that are killed, and handles across PID namespaces.
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "bench/gpu_check/station.h"
#include "bench/processes.h"
#include "bench/statistics.h"

namespace terrace::bench {
namespace {

constexpr uint64_t kSmall = 8u << 20;
// linux/prctl.h of 6.3, which this libc does not have: no memory becomes executable any more.
constexpr int kSetNoWriteExecute = 65;

uint64_t Much(const CheckOptions& options) {
  return options.quick ? 32u << 20 : 512u << 20;
}

// Killed, and gone as its pidfd says.
Status KillNow(Child& child) {
  child.Kill();
  pollfd gone{.fd = child.pidfd(), .events = POLLIN, .revents = 0};
  return ::poll(&gone, 1, 30'000) == 1 ? Status()
                                       : Status(Code::kInternal, "a process does not die");
}

Result<Answer> KilledExporter(const CheckOptions& options) {
  ASSIGN_OR_RETURN(Child peer, Child::Start("exporting", [&](Link& link) -> Status {
                     ASSIGN_OR_RETURN(const Station station, Station::Open(options));
                     ASSIGN_OR_RETURN(const Mapped slab, station.MapNew(station.Granules(kSmall)));
                     RETURN_IF_ERROR(station.Put(slab.at, kSmall, 7));
                     ASSIGN_OR_RETURN(const UniqueFd fd, station.gpu().ExportSlab(slab.slab));
                     RETURN_IF_ERROR(SendFd(link.fd(), fd.get()));
                     return link.Receive<Go>().status();  // Until it is killed.
                   }));
  ASSIGN_OR_RETURN(const UniqueFd fd, ReceiveFd(peer.link().fd()));
  ASSIGN_OR_RETURN(const Station station, Station::Open(options));
  const uint64_t bytes = station.Granules(kSmall);
  ASSIGN_OR_RETURN(const Mapped slab, station.MapImport(fd.get(), bytes, GpuAccess::kReadWrite));
  RETURN_IF_ERROR(station.Holds(slab.at, kSmall, 7));
  RETURN_IF_ERROR(KillNow(peer));
  RETURN_IF_ERROR(station.Holds(slab.at, kSmall, 7));
  ASSIGN_OR_RETURN(const Mapped again, station.MapImport(fd.get(), bytes, GpuAccess::kRead));
  RETURN_IF_ERROR(station.Holds(again.at, kSmall, 7));
  RETURN_IF_ERROR(station.Put(slab.at, kSmall, 8));
  RETURN_IF_ERROR(station.Holds(again.at, kSmall, 8));
  Answer answer;
  answer.words = "the importer reads and writes on, and imports the descriptor again";
  return answer;
}

// How long after the process's end its memory is free, as `ask` says; negative: never, in 10 s.
template <typename Ask>
double FreeAfterMs(const Stopwatch& since_end, uint64_t wanted, Ask ask) {
  while (since_end.Seconds() < 10) {
    const Result<uint64_t> free = ask();
    if (!free) return -1;
    if (*free + (16u << 20) >= wanted) return since_end.Seconds() * 1e3;
    std::this_thread::yield();
  }
  return -1;
}

// The last that maps a slab is killed.
Result<Answer> KilledImporter(const CheckOptions& options) {
  const uint64_t much = Much(options);
  ASSIGN_OR_RETURN(Child peer, Child::Start("importing", [&](Link& link) -> Status {
                     ASSIGN_OR_RETURN(UniqueFd fd, ReceiveFd(link.fd()));
                     ASSIGN_OR_RETURN(const Station station, Station::Open(options));
                     ASSIGN_OR_RETURN(const Mapped mapped,
                                      station.MapImport(fd.get(), station.Granules(much),
                                                        GpuAccess::kReadWrite));
                     fd.Reset();
                     RETURN_IF_ERROR(station.Holds(mapped.at, kSmall, 9));
                     RETURN_IF_ERROR(link.Send(Go{}));
                     return link.Receive<Go>().status();
                   }));
  ASSIGN_OR_RETURN(const Station station, Station::Open(options));
  const uint64_t bytes = station.Granules(much);
  ASSIGN_OR_RETURN(const Mapped slab, station.MapNew(bytes));
  RETURN_IF_ERROR(station.Put(slab.at, bytes, 9));
  ASSIGN_OR_RETURN(UniqueFd fd, station.gpu().ExportSlab(slab.slab));
  RETURN_IF_ERROR(SendFd(peer.link().fd(), fd.get()));
  RETURN_IF_ERROR(peer.link().Receive<Go>().status());
  fd.Reset();
  RETURN_IF_ERROR(station.Drop(slab));
  ASSIGN_OR_RETURN(const uint64_t held, station.FreeBytes());
  const Result<uint64_t> nvml_held = NvmlFreeBytes(station.facts().uuid);
  RETURN_IF_ERROR(KillNow(peer));
  const Stopwatch since_end;
  Answer answer;
  if (!options.on_gpu) {
    answer.words = "free memory is a process's own";
    return answer;
  }
  const double driver_ms =
      FreeAfterMs(since_end, held + bytes, [&] { return station.FreeBytes(); });
  answer.pass = driver_ms >= 0;
  answer.words = driver_ms < 0   ? "not free 10 s after the pidfd"
                 : driver_ms < 1 ? "free when the pidfd is readable"
                                 : "free after the pidfd";
  answer.figures = {{"free_after_pidfd_ms", driver_ms, "ms"}};
  if (nvml_held) {
    const double nvml_ms = FreeAfterMs(since_end, *nvml_held + bytes,
                                       [&] { return NvmlFreeBytes(station.facts().uuid); });
    answer.figures.push_back({"nvml_free_after_pidfd_ms", nvml_ms, "ms"});
  } else {
    answer.words += "; NVML: " + nvml_held.error().message();
  }
  return answer;
}

// A process is killed while its device writes into memory that it shares with this one.
Result<Answer> KilledWriter(const CheckOptions& options) {
  const uint64_t bytes = options.quick ? 16u << 20 : 256u << 20;
  ASSIGN_OR_RETURN(const HostFile file, HostFile::Make(bytes, 10));
  const int rounds = options.quick ? 2 : 10;
  uint64_t late = 0;
  for (int round = 0; round < rounds; ++round) {
    ASSIGN_OR_RETURN(
        Child peer, Child::Start("writing", [&](Link& link) -> Status {
          ASSIGN_OR_RETURN(const Station station, Station::Open(options));
          RETURN_IF_ERROR(station.gpu().RegisterHost(file.bytes(), GpuAccess::kReadWrite).status());
          ASSIGN_OR_RETURN(const Mapped slab, station.MapNew(station.Granules(bytes)));
          RETURN_IF_ERROR(station.gpu().Clear(station.work().stream(), slab.at, bytes));
          const GpuCopy copy{.dst = reinterpret_cast<GpuAddress>(file.bytes().data()),
                             .src = slab.at,
                             .bytes = bytes};
          RETURN_IF_ERROR(link.Send(Go{}));
          for (;;) {
            for (int i = 0; i < 8; ++i) {
              RETURN_IF_ERROR(
                  station.gpu().Copy(station.work().stream(), {&copy, 1}, SourceOrder::kStream));
            }
            RETURN_IF_ERROR(station.work().Finish());
          }
        }));
    RETURN_IF_ERROR(peer.link().Receive<Go>().status());
    pollfd early{.fd = peer.pidfd(), .events = POLLIN, .revents = 0};
    if (::poll(&early, 1, 20 + 7 * round) != 0) {
      return Status(Code::kInternal, "the writing process ended by itself");
    }
    RETURN_IF_ERROR(KillNow(peer));
    std::memset(file.bytes().data(), 0xff, bytes);
    const Stopwatch watch;
    while (watch.Seconds() < 0.2) {
      late += static_cast<uint64_t>(
          std::ranges::count_if(file.bytes(), [](uint8_t byte) { return byte != 0xff; }));
    }
  }
  Answer answer;
  answer.pass = late == 0;
  answer.words = late == 0 ? "nothing is written once the pidfd is readable"
                           : "bytes were written after the pidfd was readable";
  answer.figures = {{"kills", static_cast<double>(rounds), "count"}};
  return answer;
}

// Handles of a process, once in this PID namespace and once in another.
struct Handles {
  IpcHandle memory{};
  IpcHandle event{};
  bool has_event = false;
  uint64_t bytes = 0;
};

Status ServeHandles(const CheckOptions& options, Link& link) {
  ASSIGN_OR_RETURN(const Station station, Station::Open(options));
  ASSIGN_OR_RETURN(const std::unique_ptr<GpuProbe> probe, station.Probe());
  Handles handles;
  handles.bytes = station.Granules(kSmall);
  ASSIGN_OR_RETURN(const GpuAddress at, station.gpu().Allocate(handles.bytes));
  RETURN_IF_ERROR(station.Put(at, kSmall, 12));
  ASSIGN_OR_RETURN(handles.memory, station.gpu().ExportAllocation(at));
  if (const Result<IpcHandle> event = probe->ExportEvent()) {
    handles.event = *event;
    handles.has_event = true;
  }
  RETURN_IF_ERROR(link.Send(handles));
  return link.Receive<Go>().status();
}

Result<Child> StartServer(const CheckOptions& options, bool apart) {
  return Child::Start("handles", [&options, apart](Link& link) -> Status {
    if (!apart) return ServeHandles(options, link);
    // Unprivileged it takes a user namespace too.
    if (::unshare(CLONE_NEWPID) != 0 && ::unshare(CLONE_NEWUSER | CLONE_NEWPID) != 0) {
      return SystemError("unshare", errno);
    }
    // The namespace begins with the next process, which knows of no parent.
    const pid_t inner = ::fork();
    if (inner < 0) return SystemError("fork", errno);
    if (inner == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::_exit(ServeHandles(options, link).ok() ? 0 : 1);
    }
    int state = 0;
    if (::waitpid(inner, &state, 0) != inner) return SystemError("waitpid", errno);
    if (state == 0) return Status();
    return Status(Code::kInternal, "the process in a namespace of its own failed");
  });
}

std::string OpenAll(const Station& station, GpuProbe& probe, Child& server, bool* opened) {
  const Result<Handles> handles = server.link().Receive<Handles>();
  if (!handles) return "no handle: " + handles.error().message();
  std::string words = "memory: ";
  const Result<GpuAddress> at = station.gpu().OpenAllocation(handles->memory, handles->bytes);
  Status status = at.status();
  if (status.ok()) status = station.Holds(*at, kSmall, 12);
  *opened = status.ok();
  words += status.ok() ? "opened" : status.ToString();
  if (handles->has_event) words += ", event: " + probe.OpenEvent(handles->event).ToString();
  if (at) (void)station.gpu().CloseAllocation(*at);
  (void)server.link().Send(Go{});
  return words;
}

Result<Answer> PidNamespaces(const CheckOptions& options) {
  ASSIGN_OR_RETURN(Child here, StartServer(options, false));
  ASSIGN_OR_RETURN(Child apart, StartServer(options, true));
  ASSIGN_OR_RETURN(const Station station, Station::Open(options));
  ASSIGN_OR_RETURN(const std::unique_ptr<GpuProbe> probe, station.Probe());
  Answer answer;
  bool opened = false, opened_apart = false;
  answer.words = "in one namespace " + OpenAll(station, *probe, here, &opened);
  answer.words += "; across two " + OpenAll(station, *probe, apart, &opened_apart);
  answer.pass = opened;
  answer.figures = {{"opened_across_namespaces", opened_apart ? 1.0 : 0.0, "count"}};
  return answer;
}

// As under MemoryDenyWriteExecute=.
Result<Answer> NoWriteExecute(const CheckOptions& options) {
  if (::prctl(kSetNoWriteExecute, 1, 0, 0, 0) != 0) {
    return Status(Code::kMismatch, "this kernel cannot deny it to a process");
  }
  const auto work = [&]() -> Status {
    ASSIGN_OR_RETURN(const Station station, Station::Open(options));
    ASSIGN_OR_RETURN(const Mapped slab, station.MapNew(station.Granules(kSmall)));
    RETURN_IF_ERROR(station.Put(slab.at, kSmall, 13));
    RETURN_IF_ERROR(station.Holds(slab.at, kSmall, 13));
    ASSIGN_OR_RETURN(const std::unique_ptr<GpuProbe> probe, station.Probe());
    return probe->Store(slab.at, slab.at + 4096);
  };
  Answer answer;  // Either is an answer: the unit is written accordingly.
  const Status worked = work();
  answer.words = worked.ok() ? "the driver works without memory that is written and executed"
                             : "the driver needs it: " + worked.ToString();
  return answer;
}

constexpr Question kQuestions[] = {
    {"killed-exporter", "does a slab live on when its exporter is killed", 30, KilledExporter},
    {"killed-importer", "when is the memory of a killed importer free", 40, KilledImporter},
    {"killed-writer", "does a device write into host memory after its process's end", 60,
     KilledWriter},
    {"pid-namespaces", "do legacy handles and events work across PID namespaces", 30,
     PidNamespaces},
    {"no-write-execute", "does the driver work under MemoryDenyWriteExecute=", 30, NoWriteExecute},
};

}  // namespace

std::span<const Question> ProcessQuestions() {
  return kQuestions;
}

}  // namespace terrace::bench
