// What calls of the driver cost.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <functional>
#include <thread>
#include <utility>

#include "bench/gpu_check/station.h"
#include "bench/statistics.h"

namespace terrace::bench {
namespace {

constexpr unsigned kHugeTlb = 4;  // MFD_HUGETLB, of pages of the default size.
constexpr int kAdviseCollapse = 25;

std::string SizeText(uint64_t bytes) {
  return bytes >= (1u << 20) ? std::to_string(bytes >> 20) + "m"
                             : std::to_string(bytes >> 10) + "k";
}

// Medians of some repeats, in microseconds.
Result<Answer> MappingCosts(const CheckOptions& options) {
  ASSIGN_OR_RETURN(const Station station, Station::Open(options));
  Gpu& gpu = station.gpu();
  std::vector<uint64_t> sizes = {2u << 20, 64u << 20, 512u << 20, uint64_t{2} << 30};
  if (options.quick) sizes = {2u << 20, 16u << 20};
  Answer answer;
  for (const uint64_t wanted : sizes) {
    const uint64_t bytes = station.Granules(wanted);
    std::vector<double> create, map, access, unmap, release;
    for (int i = 0; i < (options.quick ? 3 : 9); ++i) {
      ASSIGN_OR_RETURN(const GpuAddress at, gpu.ReserveRange(bytes));
      GpuSlab slab{};
      const auto timed = [](std::vector<double>& into, const std::function<Status()>& call) {
        const Stopwatch watch;
        const Status status = call();
        into.push_back(watch.Us());
        return status;
      };
      RETURN_IF_ERROR(timed(create, [&]() -> Status {
        ASSIGN_OR_RETURN(slab, gpu.CreateSlab(bytes));
        return {};
      }));
      RETURN_IF_ERROR(timed(map, [&] { return gpu.MapSlab(at, slab); }));
      RETURN_IF_ERROR(
          timed(access, [&] { return gpu.SetAccess(at, bytes, GpuAccess::kReadWrite); }));
      RETURN_IF_ERROR(timed(unmap, [&] { return gpu.UnmapSlab(at); }));
      RETURN_IF_ERROR(timed(release, [&] { return gpu.ReleaseSlab(slab); }));
      RETURN_IF_ERROR(gpu.FreeRange(at));
    }
    const std::pair<const char*, std::vector<double>*> calls[] = {{"create_us_", &create},
                                                                  {"map_us_", &map},
                                                                  {"access_us_", &access},
                                                                  {"unmap_us_", &unmap},
                                                                  {"release_us_", &release}};
    for (const auto& [name, values] : calls)
      answer.figures.push_back({name + SizeText(wanted), Median(*values), "us"});
  }
  answer.words = "see the figures";
  return answer;
}

// The longest and the median copy while another thread registers memory.
class CopiesMeanwhile {
 public:
  CopiesMeanwhile(const Station& station, GpuAddress device)
      : thread_([this, &station, device] {
          while (!stop_) {
            const Stopwatch watch;
            status_ = station.CopyNow(device, station.window_at(), 2u << 20);
            if (!status_.ok()) return;
            us_.push_back(watch.Us());
          }
        }) {}
  ~CopiesMeanwhile() { Stop(); }
  void Stop() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
  }
  const Status& status() const { return status_; }
  const std::vector<double>& us() const { return us_; }

 private:
  std::atomic<bool> stop_ = false;
  Status status_;
  std::vector<double> us_;
  std::thread thread_;  // Last: it uses the others.
};

// One kind of memory; its registration, and copies beside it.
Status Register(const Station& station, GpuAddress device, const std::string& name,
                std::span<uint8_t> memory, GpuAccess access, Answer* answer) {
  CopiesMeanwhile copies(station, device);
  const Stopwatch watch;
  const Result<HostRegion> region = station.gpu().RegisterHost(memory, access);
  const double seconds = watch.Seconds();
  copies.Stop();
  if (!region) {
    answer->words += name + ": " + region.error().ToString() + "; ";
    return {};
  }
  RETURN_IF_ERROR(copies.status());
  const Stopwatch back;
  RETURN_IF_ERROR(station.gpu().UnregisterHost(*region));
  const double gigabytes = static_cast<double>(memory.size()) / static_cast<double>(1u << 30);
  answer->figures.push_back({name + "_register_ms_per_gib", seconds * 1e3 / gigabytes, "ms"});
  answer->figures.push_back(
      {name + "_unregister_ms_per_gib", back.Seconds() * 1e3 / gigabytes, "ms"});
  if (!copies.us().empty()) {
    answer->figures.push_back({name + "_copy_us_meanwhile", Median(copies.us()), "us"});
    answer->figures.push_back({name + "_copy_us_longest", std::ranges::max(copies.us()), "us"});
  }
  return {};
}

Result<Mapping> MapMemfd(uint64_t bytes, unsigned flags) {
  ASSIGN_OR_RETURN(const UniqueFd fd, CreateMemfd("terrace-gpu-check", bytes, flags));
  return Mapping::Of(fd.get(), 0, bytes, Protection::kReadWrite);
}

Result<Answer> RegistrationCosts(const CheckOptions& options) {
  const uint64_t bytes = options.quick ? 64u << 20 : uint64_t{2} << 30;
  ASSIGN_OR_RETURN(const Station station, Station::Open(options));
  ASSIGN_OR_RETURN(const Mapped device, station.MapNew(station.Granules(2u << 20)));
  Answer answer;
  struct Kind {
    const char* name;
    unsigned flags;
    bool collapse;
    bool read_only;
  };
  for (const Kind& kind :
       {Kind{"small_pages", 0, false, false}, Kind{"huge_pages", 0, true, false},
        Kind{"hugetlb", kHugeTlb, false, false}, Kind{"read_only", 0, true, true}}) {
    if (kind.read_only && !station.facts().read_only_registration) continue;
    const Result<Mapping> mapping = MapMemfd(bytes, kind.flags);
    if (!mapping) {
      answer.words += std::string(kind.name) + ": not to be had; ";
      continue;
    }
    for (uint64_t at = 0; at < bytes; at += (kind.collapse ? 2u << 20 : 4096u))
      mapping->data()[at] = 1;
    if (kind.collapse) (void)::madvise(mapping->data(), bytes, kAdviseCollapse);
    if (kind.read_only && ::mprotect(mapping->data(), bytes, PROT_READ) != 0) {
      return SystemError("mprotect", errno);
    }
    RETURN_IF_ERROR(Register(station, device.at, kind.name, mapping->bytes(),
                             kind.read_only ? GpuAccess::kRead : GpuAccess::kReadWrite, &answer));
  }
  answer.pass = !answer.figures.empty();
  if (answer.words.empty()) answer.words = "see the figures";
  return answer;
}

Result<Answer> BatchesAgainstLoops(const CheckOptions& options) {
  const uint64_t bytes = options.quick ? 64u << 20 : 512u << 20;
  ASSIGN_OR_RETURN(const HostFile host, HostFile::Make(bytes, 14));
  ASSIGN_OR_RETURN(const Station station, Station::Open(options));
  ASSIGN_OR_RETURN(const Mapped device, station.MapNew(station.Granules(bytes)));
  RETURN_IF_ERROR(station.gpu().RegisterHost(host.bytes(), GpuAccess::kReadWrite).status());
  const auto host_at = reinterpret_cast<GpuAddress>(host.bytes().data());
  Answer answer;
  for (uint64_t size = 32u << 10; size <= 4u << 20; size *= 2) {
    std::vector<GpuCopy> copies;
    for (uint64_t at = 0; at < bytes && copies.size() < 1024; at += size)
      copies.push_back({.dst = device.at + at, .src = host_at + bytes - at - size, .bytes = size});
    const auto rate = [&](size_t at_once) -> Result<double> {
      std::vector<double> seconds;
      for (int i = 0; i < (options.quick ? 2 : 5); ++i) {
        const Stopwatch watch;
        const std::span<const GpuCopy> all = copies;
        for (size_t at = 0; at < all.size(); at += at_once) {
          const auto some = all.subspan(at, std::min(at_once, all.size() - at));
          RETURN_IF_ERROR(station.gpu().Copy(station.work().stream(), some, SourceOrder::kAny));
        }
        RETURN_IF_ERROR(station.work().Finish());
        seconds.push_back(watch.Seconds());
      }
      return static_cast<double>(size * copies.size()) / 1e9 / Median(seconds);
    };
    ASSIGN_OR_RETURN(const double batch, rate(copies.size()));
    ASSIGN_OR_RETURN(const double loop, rate(1));
    answer.figures.push_back({"batch_gb_s_" + SizeText(size), batch, "GB/s"});
    answer.figures.push_back({"loop_gb_s_" + SizeText(size), loop, "GB/s"});
  }
  answer.words = station.facts().batches ? "see the figures" : "the driver has no batches";
  return answer;
}

// A copy of 64 KiB, many times over, with a notification after each: none, on the stream of the
// copies, on one beside it.
Result<Answer> Notifications(const CheckOptions& options) {
  const int times = options.quick ? 100 : 2000;
  ASSIGN_OR_RETURN(const Station station, Station::Open(options));
  Gpu& gpu = station.gpu();
  ASSIGN_OR_RETURN(const Mapped device, station.MapNew(station.Granules(1u << 20)));
  ASSIGN_OR_RETURN(const GpuStream beside, gpu.CreateStream());
  ASSIGN_OR_RETURN(const GpuEvent event, gpu.CreateEvent());
  const UniqueFd bell(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!bell) return SystemError("eventfd", errno);
  enum class Where : uint8_t { kNone, kOnStream, kBeside };
  const auto cost = [&](Where where) -> Result<double> {
    const GpuStream stream = station.work().stream();
    const GpuCopy copy{.dst = device.at, .src = station.window_at(), .bytes = 64u << 10};
    const Stopwatch watch;
    for (int i = 0; i < times; ++i) {
      RETURN_IF_ERROR(gpu.Copy(stream, {&copy, 1}, SourceOrder::kAny));
      if (where == Where::kOnStream) RETURN_IF_ERROR(gpu.Notify(stream, bell.get()));
      if (where == Where::kBeside) {
        RETURN_IF_ERROR(gpu.RecordEvent(event, stream));
        RETURN_IF_ERROR(gpu.WaitEvent(beside, event));
        RETURN_IF_ERROR(gpu.Notify(beside, bell.get()));
      }
    }
    RETURN_IF_ERROR(station.work().Finish());
    return watch.Us() / times;
  };
  ASSIGN_OR_RETURN(const double none, cost(Where::kNone));
  ASSIGN_OR_RETURN(const double on_stream, cost(Where::kOnStream));
  ASSIGN_OR_RETURN(const double on_other, cost(Where::kBeside));
  RETURN_IF_ERROR(gpu.DestroyStream(beside));
  Answer answer;
  answer.words = "a copy of 64 KiB, by itself and with a notification";
  answer.figures = {{"copy_us", none, "us"},
                    {"copy_us_notified_on_stream", on_stream, "us"},
                    {"copy_us_notified_beside", on_other, "us"}};
  return answer;
}

constexpr Question kQuestions[] = {
    {"mapping-costs", "what create, map, access, unmap and release cost, by size", 30,
     MappingCosts},
    {"registration-costs", "what registering costs by kind of page, and copies meanwhile", 90,
     RegistrationCosts},
    {"batches", "batches against loops of copies, 32 KiB to 4 MiB, into the device", 40,
     BatchesAgainstLoops},
    {"notifications", "what a notification costs, on a stream and beside it", 30, Notifications},
};

}  // namespace

std::span<const Question> CostQuestions() {
  return kQuestions;
}

}  // namespace terrace::bench
