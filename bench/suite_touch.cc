// Suite `touch`: a client's first touch of a resident page of 2 MiB.
//
// The pages are resident and written; each sample is one page that the process has never read: pin
// it, read one byte of every 4 KiB, release it. Every few dozen pages a new process begins, so that
// each page is new to it. `touch_us` is the median, `touch_us_mean` also holds the pages that are
// the first of their arena, which the library maps then.
#include <cstring>

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

Status TouchAll(const Residents& residents, Link& link) {
  ASSIGN_OR_RETURN(const Engine engine, StartEngine(residents, "toucher", /*read_only=*/true));
  for (uint64_t i = 0; i < residents.pages; ++i) {
    const kvc_key key = SyntheticKey(i);
    const uint8_t expected = static_cast<uint8_t>(i + 1);
    kvc_page page;
    uint64_t wrong = 0;
    const Stopwatch watch;
    const kvc_ticket ticket =
        kvc_pin(engine.reader.get(), engine.space.get(), &key, &page, nullptr);
    if (ticket == 0) return {Code::kNotFound, "a resident page was missed"};
    const auto* bytes = static_cast<const uint8_t*>(page.data);
    for (uint64_t at = 0; at < kPageBytes; at += kStride)
      wrong += bytes[at] != expected;
    const double us = watch.Us();
    kvc_unpin(engine.reader.get(), ticket);
    if (wrong > 0) return {Code::kDataLoss, "wrong bytes in a page"};
    RETURN_IF_ERROR(link.Send(us));
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
  std::vector<double> times;
  for (int process = 0; process < processes; ++process) {
    ASSIGN_OR_RETURN(Child child, Child::Start("toucher", [&](Link& link) {
                       return TouchAll(residents, link);
                     }));
    for (uint64_t i = 0; i < pages; ++i) {
      ASSIGN_OR_RETURN(const double us, child.link().Receive<double>());
      times.push_back(us);
    }
    RETURN_IF_ERROR(child.Wait());
  }
  return Figures{{"touch_us", Median(times), "us"},
                 {"touch_us_mean", Mean(times), "us"},
                 {"touch_us_p99", Percentile(times, 0.99), "us"},
                 {"samples", static_cast<double>(times.size()), "count"}};
}

}  // namespace terrace::bench
