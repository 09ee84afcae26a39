// Suite `touch`: a client's first touch of a resident page of 2 MiB.
//
// The pages are resident and written; each sample is one page that the process has never read: pin
// it, read one byte of every 4 KiB, release it. Every few dozen pages a new process begins, so that
// each page is new to it. `touch_us` is the median, `touch_us_mean` also holds the pages that are
// the first of their arena, which the library maps then.
//
// The rival is the least that a process can do: a memfd of the same size, in huge pages where the
// kernel gives them, mapped before the clock starts and touched in the same way, page by page in
// turn with ours.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "base/unique_fd.h"
#include "bench/content.h"
#include "bench/daemon.h"
#include "bench/processes.h"
#include "bench/residents.h"
#include "bench/statistics.h"
#include "bench/suites.h"

namespace terrace::bench {
namespace {

constexpr uint64_t kPageBytes = 2u << 20;
constexpr uint64_t kStride = 4096;
constexpr uint64_t kHugePageBytes = 2u << 20;
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

// Reserves addresses for `bytes` at a border of huge pages, so that the kernel can map them whole.
Result<uint8_t*> MapAligned(int fd, uint64_t bytes, int rights) {
  void* space =
      mmap(nullptr, bytes + kHugePageBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (space == MAP_FAILED) return SystemError("mmap", errno);
  const auto start = (reinterpret_cast<uintptr_t>(space) + kHugePageBytes - 1) & -kHugePageBytes;
  void* mapped = mmap(reinterpret_cast<void*>(start), bytes, rights, MAP_SHARED | MAP_FIXED, fd, 0);
  if (mapped == MAP_FAILED) return SystemError("mmap of a memfd", errno);
  return static_cast<uint8_t*>(mapped);
}

// The rival's memory. Lives as long as this process.
Result<UniqueFd> MakeBare(uint64_t pages) {
  const uint64_t bytes = pages * kPageBytes;
  UniqueFd fd(memfd_create("bare", MFD_CLOEXEC));
  if (!fd || ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    return SystemError("memfd_create", errno);
  }
  ASSIGN_OR_RETURN(uint8_t * data, MapAligned(fd.get(), bytes, PROT_READ | PROT_WRITE));
  for (uint64_t i = 0; i < pages; ++i)
    std::memset(data + i * kPageBytes, static_cast<int>(i + 1), kPageBytes);
  madvise(data, bytes, MADV_COLLAPSE);
  return fd;
}

// Reads one byte of every 4 KiB of a page; how many are not as expected.
uint64_t TouchPage(const uint8_t* bytes, uint8_t expected) {
  uint64_t wrong = 0;
  for (uint64_t at = 0; at < kPageBytes; at += kStride)
    wrong += static_cast<const volatile uint8_t*>(bytes)[at] != expected;
  return wrong;
}

struct Touched {
  double us = 0;
  double bare_us = 0;
};

Status TouchAll(const Residents& residents, int bare_fd, Link& link) {
  ASSIGN_OR_RETURN(const Engine engine, StartEngine(residents, "toucher", /*read_only=*/true));
  ASSIGN_OR_RETURN(const uint8_t* bare,
                   MapAligned(bare_fd, residents.pages * kPageBytes, PROT_READ));
  for (uint64_t i = 0; i < residents.pages; ++i) {
    const kvc_key key = SyntheticKey(i);
    const uint8_t expected = static_cast<uint8_t>(i + 1);
    Touched touched;
    kvc_page page;
    const Stopwatch watch;
    const kvc_ticket ticket =
        kvc_pin(engine.reader.get(), engine.space.get(), &key, &page, nullptr);
    if (ticket == 0) return {Code::kNotFound, "a resident page was missed"};
    uint64_t wrong = TouchPage(static_cast<const uint8_t*>(page.data), expected);
    touched.us = watch.Us();
    kvc_unpin(engine.reader.get(), ticket);
    const Stopwatch bare_watch;
    wrong += TouchPage(bare + i * kPageBytes, expected);
    touched.bare_us = bare_watch.Us();
    if (wrong > 0) return {Code::kDataLoss, "wrong bytes in a page"};
    RETURN_IF_ERROR(link.Send(touched));
  }
  return {};
}

}  // namespace

Result<Figures> RunTouch(const SuiteOptions& options) {
  const uint64_t pages = options.quick ? 4 : 96;
  const int processes = options.quick ? 2 : 10;
  ASSIGN_OR_RETURN(const Daemon daemon,
                   Daemon::Start({.binary = options.terraced,
                                  .capacity_bytes = pages * kPageBytes + (128u << 20)}));
  const Residents residents{.socket = daemon.socket(),
                            .salt = "touch",
                            .pages = pages,
                            .page_bytes = kPageBytes,
                            .page_tokens = 64};
  RETURN_IF_ERROR(MakeResident(residents, [](uint64_t index, std::span<uint8_t> page) {
    std::memset(page.data(), static_cast<int>(index + 1), page.size());
  }));
  ASSIGN_OR_RETURN(const UniqueFd bare, MakeBare(pages));
  std::vector<double> times, bare_times;
  for (int process = 0; process < processes; ++process) {
    ASSIGN_OR_RETURN(Child child, Child::Start("toucher", [&](Link& link) {
                       return TouchAll(residents, bare.get(), link);
                     }));
    for (uint64_t i = 0; i < pages; ++i) {
      ASSIGN_OR_RETURN(const Touched touched, child.link().Receive<Touched>());
      times.push_back(touched.us);
      bare_times.push_back(touched.bare_us);
    }
    RETURN_IF_ERROR(child.Wait());
  }
  return Figures{{"touch_us", Median(times), "us"},
                 {"touch_us_mean", Mean(times), "us"},
                 {"touch_us_p99", Percentile(times, 0.99), "us"},
                 {"bare_touch_us", Median(bare_times), "us"},
                 {"touch_over_bare", Median(times) / Median(bare_times), "ratio"},
                 {"samples", static_cast<double>(times.size()), "count"}};
}

}  // namespace terrace::bench
