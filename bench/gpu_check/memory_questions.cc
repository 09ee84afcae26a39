// Slabs: what they are, what keeps them, and what a mapping allows.
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <thread>

#include "bench/gpu_check/station.h"
#include "bench/processes.h"
#include "bench/statistics.h"

namespace terrace::bench {
namespace {

constexpr uint64_t kSmall = 8u << 20;

uint64_t Much(const CheckOptions& options) {
  return options.quick ? 32u << 20 : 512u << 20;
}

// Where memory is free: 2 MiB more or less are somebody else's.
bool About(uint64_t free, uint64_t wanted) {
  return free + (16u << 20) >= wanted;
}

// Until so much is free again; the seconds that took. Not in ten: an error.
Result<double> AwaitFree(const Station& station, uint64_t wanted) {
  const Stopwatch watch;
  for (;;) {
    ASSIGN_OR_RETURN(const uint64_t free, station.FreeBytes());
    if (About(free, wanted)) return watch.Seconds();
    if (watch.Seconds() > 10) {
      return Status(Code::kExhausted, "ten seconds later " + std::to_string(wanted - free) +
                                          " bytes are not free yet");
    }
    std::this_thread::yield();
  }
}

Result<Answer> Granularity(const CheckOptions& options) {
  ASSIGN_OR_RETURN(const Station station, Station::Open(options));
  const GpuFacts& facts = station.facts();
  Answer answer;
  answer.words = facts.name + ", " + facts.driver + ": slabs " + (facts.slabs ? "yes" : "no") +
                 ", batches " + (facts.batches ? "yes" : "no") + ", kernels " +
                 (facts.paged_copies ? "yes" : "no") + ", read-only registration " +
                 (facts.read_only_registration ? "yes" : "no");
  answer.pass = facts.slabs && facts.granularity > 0 && facts.paged_copies;
  answer.figures = {{"granularity_bytes", static_cast<double>(facts.granularity), "bytes"},
                    {"device_bytes", static_cast<double>(facts.total_bytes), "bytes"}};
  return answer;
}

// A process imports a slab for reading and stores into it.
Result<Answer> ReadOnlyStore(const CheckOptions& options) {
  ASSIGN_OR_RETURN(Child peer, Child::Start("storing", [&](Link& link) -> Status {
                     ASSIGN_OR_RETURN(const UniqueFd fd, ReceiveFd(link.fd()));
                     ASSIGN_OR_RETURN(const Station station, Station::Open(options));
                     ASSIGN_OR_RETURN(
                         const Mapped mapped,
                         station.MapImport(fd.get(), station.Granules(kSmall), GpuAccess::kRead));
                     RETURN_IF_ERROR(station.Holds(mapped.at, kSmall, 2));
                     ASSIGN_OR_RETURN(const Mapped source, station.MapNew(station.Granules(4096)));
                     ASSIGN_OR_RETURN(const std::unique_ptr<GpuProbe> probe, station.Probe());
                     RETURN_IF_ERROR(link.Send(Go{1}));  // It was sound so far.
                     const Status stored = probe->Store(mapped.at, source.at);
                     RETURN_IF_ERROR(link.Send(static_cast<uint32_t>(stored.code())));
                     ::_exit(0);  // With a context that may be dead.
                   }));
  ASSIGN_OR_RETURN(const Station station, Station::Open(options));
  ASSIGN_OR_RETURN(const Mapped slab, station.MapNew(station.Granules(kSmall)));
  RETURN_IF_ERROR(station.Put(slab.at, kSmall, 2));
  ASSIGN_OR_RETURN(const UniqueFd fd, station.gpu().ExportSlab(slab.slab));
  RETURN_IF_ERROR(SendFd(peer.link().fd(), fd.get()));
  RETURN_IF_ERROR(peer.link().Receive<Go>().status().ok()
                      ? Status()
                      : Status(Code::kInternal, "the storing process did not come to its store"));
  const Result<uint32_t> code = peer.link().Receive<uint32_t>();
  (void)peer.Wait();
  // The owner's context and bytes are what they were.
  RETURN_IF_ERROR(station.Holds(slab.at, kSmall, 2));
  RETURN_IF_ERROR(station.Put(slab.at, kSmall, 3));
  RETURN_IF_ERROR(station.Holds(slab.at, kSmall, 3));
  Answer answer;
  answer.pass = !code || *code != static_cast<uint32_t>(Code::kOk);
  answer.words = !code ? "the storing process was killed; the owner works on"
                 : answer.pass
                     ? "the storing context fails (" +
                           std::string(CodeName(static_cast<Code>(*code))) + "); the owner works on"
                     : "the store was taken for done";
  return answer;
}

// Its descriptor alone.
Result<Answer> DescriptorAlone(const CheckOptions& options) {
  ASSIGN_OR_RETURN(const Station station, Station::Open(options));
  const uint64_t bytes = station.Granules(Much(options));
  ASSIGN_OR_RETURN(const Mapped slab, station.MapNew(bytes));
  RETURN_IF_ERROR(station.Put(slab.at, bytes, 4));
  ASSIGN_OR_RETURN(UniqueFd fd, station.gpu().ExportSlab(slab.slab));
  ASSIGN_OR_RETURN(const uint64_t taken, station.FreeBytes());
  RETURN_IF_ERROR(station.Drop(slab));
  ASSIGN_OR_RETURN(const uint64_t alone, station.FreeBytes());
  ASSIGN_OR_RETURN(const Mapped again, station.MapImport(fd.get(), bytes, GpuAccess::kReadWrite));
  RETURN_IF_ERROR(station.Holds(again.at, bytes, 4));
  RETURN_IF_ERROR(station.Drop(again));
  fd.Reset();
  Answer answer;
  if (!options.on_gpu) {
    answer.words = "the bytes are there; free memory is a process's own";
    return answer;
  }
  answer.pass = alone < taken + bytes / 2;
  ASSIGN_OR_RETURN(const double seconds, AwaitFree(station, taken + bytes));
  answer.words = answer.pass ? "it keeps memory and bytes; free once it is closed"
                             : "memory counts as free while it is open";
  answer.figures = {{"free_after_close_ms", seconds * 1e3, "ms"}};
  return answer;
}

Result<Answer> OwnerWithoutAccess(const CheckOptions& options) {
  ASSIGN_OR_RETURN(Child peer, Child::Start("importing", [&](Link& link) -> Status {
                     ASSIGN_OR_RETURN(const UniqueFd fd, ReceiveFd(link.fd()));
                     ASSIGN_OR_RETURN(const Station station, Station::Open(options));
                     ASSIGN_OR_RETURN(const Mapped mapped,
                                      station.MapImport(fd.get(), station.Granules(kSmall),
                                                        GpuAccess::kReadWrite));
                     for (;;) {
                       RETURN_IF_ERROR(station.Holds(mapped.at, kSmall, 5));
                       RETURN_IF_ERROR(link.Send(Go{}));
                       ASSIGN_OR_RETURN(const Go go, link.Receive<Go>());
                       if (go.number == 0) return Status();
                     }
                   }));
  ASSIGN_OR_RETURN(const Station station, Station::Open(options));
  ASSIGN_OR_RETURN(const Mapped slab, station.MapNew(station.Granules(kSmall)));
  RETURN_IF_ERROR(station.Put(slab.at, kSmall, 5));
  ASSIGN_OR_RETURN(const UniqueFd fd, station.gpu().ExportSlab(slab.slab));
  RETURN_IF_ERROR(SendFd(peer.link().fd(), fd.get()));
  RETURN_IF_ERROR(peer.link().Receive<Go>().status());
  RETURN_IF_ERROR(station.gpu().SetAccess(slab.at, slab.bytes, GpuAccess::kNone));
  RETURN_IF_ERROR(peer.link().Send(Go{1}));
  RETURN_IF_ERROR(peer.link().Receive<Go>().status());
  RETURN_IF_ERROR(station.Drop(slab));
  RETURN_IF_ERROR(peer.link().Send(Go{1}));
  RETURN_IF_ERROR(peer.link().Receive<Go>().status());
  RETURN_IF_ERROR(peer.link().Send(Go{0}));
  RETURN_IF_ERROR(peer.Wait());
  Answer answer;
  answer.words = "the importer reads on without the owner's access, and without its mapping";
  return answer;
}

Result<Answer> ShorterMapping(const CheckOptions& options) {
  ASSIGN_OR_RETURN(const Station station, Station::Open(options));
  const uint64_t granule = station.facts().granularity;
  ASSIGN_OR_RETURN(const GpuSlab slab, station.gpu().CreateSlab(2 * granule));
  ASSIGN_OR_RETURN(const UniqueFd fd, station.gpu().ExportSlab(slab));
  const Result<Mapped> less = station.MapImport(fd.get(), granule, GpuAccess::kRead);
  const Result<Mapped> more = station.MapImport(fd.get(), 3 * granule, GpuAccess::kRead);
  Answer answer;
  answer.pass = !more.has_value();
  answer.words =
      "fewer bytes than the slab has: " + (less ? std::string("mapped") : less.error().ToString()) +
      "; more: " + (more ? std::string("mapped") : more.error().ToString());
  return answer;
}

// A slab of a context that died.
Result<Answer> BrokenContext(const CheckOptions& options) {
  ASSIGN_OR_RETURN(Child peer, Child::Start("breaking", [&](Link& link) -> Status {
                     ASSIGN_OR_RETURN(const Station station, Station::Open(options));
                     ASSIGN_OR_RETURN(const Mapped slab, station.MapNew(station.Granules(kSmall)));
                     RETURN_IF_ERROR(station.Put(slab.at, kSmall, 6));
                     ASSIGN_OR_RETURN(const UniqueFd fd, station.gpu().ExportSlab(slab.slab));
                     RETURN_IF_ERROR(SendFd(link.fd(), fd.get()));
                     ASSIGN_OR_RETURN(const std::unique_ptr<GpuProbe> probe, station.Probe());
                     ASSIGN_OR_RETURN(const GpuAddress hole,
                                      station.gpu().ReserveRange(station.Granules(4096)));
                     const Status broken = probe->Store(hole, slab.at);
                     const Status next = station.gpu().CreateSlab(station.Granules(4096)).status();
                     RETURN_IF_ERROR(link.Send(static_cast<uint32_t>(broken.code())));
                     RETURN_IF_ERROR(link.Send(static_cast<uint32_t>(next.code())));
                     ::_exit(0);
                   }));
  ASSIGN_OR_RETURN(const UniqueFd fd, ReceiveFd(peer.link().fd()));
  const Result<uint32_t> broken = peer.link().Receive<uint32_t>();
  const Result<uint32_t> next = peer.link().Receive<uint32_t>();
  (void)peer.Wait();
  ASSIGN_OR_RETURN(const Station station, Station::Open(options));
  ASSIGN_OR_RETURN(const Mapped slab,
                   station.MapImport(fd.get(), station.Granules(kSmall), GpuAccess::kReadWrite));
  RETURN_IF_ERROR(station.Holds(slab.at, kSmall, 6));
  const auto name = [](const Result<uint32_t>& code) {
    return code ? std::string(CodeName(static_cast<Code>(*code))) : std::string("killed");
  };
  Answer answer;
  answer.pass = !broken || *broken != static_cast<uint32_t>(Code::kOk);
  answer.words = "a store to a hole: " + name(broken) + "; cuMemCreate after it: " + name(next) +
                 "; the slab has its bytes";
  return answer;
}

Result<Answer> WithoutContext(const CheckOptions& options) {
  ASSIGN_OR_RETURN(const Station station, Station::Open(options));
  ASSIGN_OR_RETURN(const std::unique_ptr<GpuProbe> probe, station.Probe());
  const Status created = probe->CreateWithoutContext(station.facts().granularity);
  if (created.code() == Code::kMismatch) return created;
  Answer answer;
  answer.words = "cuMemCreate without a current context: " + created.ToString();
  return answer;
}

Result<Answer> HostMemory(const CheckOptions& options) {
  ASSIGN_OR_RETURN(const Station station, Station::Open(options));
  ASSIGN_OR_RETURN(const std::unique_ptr<GpuProbe> probe, station.Probe());
  const Status exported = probe->ExportHostMemory(station.Granules(64u << 20));
  if (!options.on_gpu) return exported;
  // Nothing of ours needs it: any answer will do.
  Answer answer;
  answer.words = "memory of the host by the driver, exported and mapped: " + exported.ToString();
  return answer;
}

constexpr Question kQuestions[] = {
    {"granularity", "what the device is, and the granularity of slabs", 30, Granularity},
    {"read-only-store", "does a store through a mapping for reading harm its own context alone", 30,
     ReadOnlyStore},
    {"descriptor-alone", "does a descriptor alone keep memory and bytes", 30, DescriptorAlone},
    {"owner-without-access", "does an importer read on when the owner takes its own access away",
     30, OwnerWithoutAccess},
    {"shorter-mapping", "what is a mapping of another size than the slab's", 30, ShorterMapping},
    {"broken-context", "do slabs keep their bytes when the context that made them dies", 30,
     BrokenContext},
    {"without-context", "is cuMemCreate refused without a current context", 30, WithoutContext},
    {"host-memory", "can memory of the host be made by the driver and exported", 30, HostMemory},
};

}  // namespace

std::span<const Question> MemoryQuestions() {
  return kQuestions;
}

}  // namespace terrace::bench
