// Suite `metrics`: what a scrape takes, and what it does to the daemon's clients.
//
// 32 tenants with a client each and 1,000 spaces between them, every space with pages. One more
// client works all the time: it publishes a batch, looks it up page by page, and pings. First
// alone, then while one scrape follows the other without a pause, which no Prometheus does.
//
// `scrape_ms` is the median from connect() to the last byte of the text. `loop_ms_p99` is the 99th
// percentile of the daemon's own histogram of callbacks of its owner thread, between the first
// scrape and the last, `loop_ms_most` the upper bound of its highest bucket that counted;
// `ping_us_*` are the worker's round trips, alone and while scraped.
#include <poll.h>

#include <cstdlib>

#include "bench/content.h"
#include "bench/daemon.h"
#include "bench/processes.h"
#include "bench/residents.h"
#include "bench/scrape.h"
#include "bench/statistics.h"
#include "bench/suites.h"

namespace terrace::bench {
namespace {

constexpr uint32_t kTenants = 32;
constexpr uint32_t kSpaces = 1000;
constexpr uint32_t kPagesOfSpace = 8;
constexpr uint64_t kPageBytes = 4096;
constexpr uint32_t kBatch = 64;

// Clients of all tenants with their spaces and pages; they stay until they are told to go.
Status HoldSpaces(const Daemon& daemon, Link& link) {
  std::vector<Client> clients;
  std::vector<Space> spaces;
  for (uint32_t i = 0; i < kSpaces; ++i) {
    const uint32_t tenant = i % kTenants;
    if (clients.size() <= tenant) {
      ASSIGN_OR_RETURN(Client client,
                       Connect({.socket = daemon.socket_of(tenant), .name = "tenant"}));
      clients.push_back(std::move(client));
    }
    kvc_client* const client = clients[tenant].get();
    ASSIGN_OR_RETURN(Space space, OpenSpace(client, {.layout = PlainLayout(kPageBytes, 16),
                                                     .salt = std::to_string(i)}));
    std::vector<kvc_key> keys(kPagesOfSpace);
    for (uint32_t page = 0; page < kPagesOfSpace; ++page)
      keys[page] = SyntheticKey(uint64_t{i} * kPagesOfSpace + page);
    RETURN_IF_ERROR(
        Put(client, space.get(), {.keys = keys}, [](size_t, std::span<uint8_t>) {}).status());
    spaces.push_back(std::move(space));
  }
  RETURN_IF_ERROR(link.Send(Go{}));
  return link.Receive<Go>().status();
}

struct Pings {
  double p50_us = 0;
  double p99_us = 0;
};

// Works until the other end says something; then answers its round trips since the last time.
Status Work(const Daemon& daemon, Link& link) {
  ASSIGN_OR_RETURN(const Engine engine, StartEngine({.socket = daemon.socket(), .salt = "work"},
                                                    "worker", /*read_only=*/false));
  std::vector<double> trips;
  std::vector<kvc_key> keys(kBatch);
  RETURN_IF_ERROR(link.Send(Go{}));
  for (uint64_t round = 0;; ++round) {
    for (uint32_t i = 0; i < kBatch; ++i)
      keys[i] = SyntheticKey((round * kBatch + i) % 20'000);
    RETURN_IF_ERROR(Put(engine.client.get(), engine.space.get(), {.keys = keys, .batch = kBatch},
                        [](size_t, std::span<uint8_t>) {})
                        .status());
    for (const kvc_key& key : keys) {
      kvc_page page{};
      kvc_unpin(engine.reader.get(),
                kvc_pin(engine.reader.get(), engine.space.get(), &key, &page, nullptr));
    }
    kvc_error error{};
    const Stopwatch watch;
    RETURN_IF_ERROR(ToStatus(kvc_ping(engine.client.get(), 0, &error), error));
    trips.push_back(watch.Us());
    pollfd said{link.fd(), POLLIN, 0};
    if (poll(&said, 1, 0) == 0) continue;
    ASSIGN_OR_RETURN(const Go go, link.Receive<Go>());
    RETURN_IF_ERROR(link.Send(Pings{Median(trips), Percentile(trips, 0.99)}));
    if (go.number == 0) return {};
    trips.clear();
  }
}

// The upper bound of the highest bucket that counted between two scrapes, in ms.
double MostMs(const Scrape& before, const Scrape& after) {
  double most = 0;
  double below = 0;
  for (const Sample& sample : after.samples()) {
    if (sample.name != "terrace_loop_duration_seconds_bucket") continue;
    const std::string& bound = sample.labels.at("le");
    const double count = sample.value - before.Sum(sample.name, {{"le", bound}});
    if (count > below) most = std::strtod(bound.c_str(), nullptr);
    below = count;
  }
  return most * 1e3;
}

}  // namespace

Result<Figures> RunMetrics(const SuiteOptions& options) {
  const int scrapes = options.quick ? 3 : 300;
  ASSIGN_OR_RETURN(const Daemon daemon, Daemon::Start({.binary = options.terraced,
                                                       .capacity_bytes = 512u << 20,
                                                       .tenants = kTenants}));
  ASSIGN_OR_RETURN(Child tenants,
                   Child::Start("tenants", [&](Link& link) { return HoldSpaces(daemon, link); }));
  RETURN_IF_ERROR(tenants.link().Receive<Go>().status());
  ASSIGN_OR_RETURN(Child worker,
                   Child::Start("worker", [&](Link& link) { return Work(daemon, link); }));
  RETURN_IF_ERROR(worker.link().Receive<Go>().status());

  const Stopwatch alone;
  ASSIGN_OR_RETURN(const Scrape first, Scrape::From(daemon.metrics()));
  while (alone.Seconds() < (options.quick ? 0.1 : 5))
    poll(nullptr, 0, 10);
  ASSIGN_OR_RETURN(const Scrape before, Scrape::From(daemon.metrics()));
  RETURN_IF_ERROR(worker.link().Send(Go{1}));
  ASSIGN_OR_RETURN(const Pings quiet, worker.link().Receive<Pings>());

  std::vector<double> times;
  Scrape last;
  for (int i = 0; i < scrapes; ++i) {
    const Stopwatch watch;
    ASSIGN_OR_RETURN(const HttpAnswer answer, HttpGet(daemon.metrics(), "/metrics"));
    times.push_back(watch.Us() / 1e3);
    if (i + 1 < scrapes) continue;
    ASSIGN_OR_RETURN(last, Scrape::Parse(answer.body));
  }
  RETURN_IF_ERROR(worker.link().Send(Go{0}));
  ASSIGN_OR_RETURN(const Pings scraped, worker.link().Receive<Pings>());
  RETURN_IF_ERROR(worker.Wait());
  RETURN_IF_ERROR(tenants.link().Send(Go{}));
  RETURN_IF_ERROR(tenants.Wait());

  const char* const loop = "terrace_loop_duration_seconds";
  if (last.Sum("terrace_spaces") < kSpaces || !last.Has(loop + std::string("_bucket"))) {
    return Status(Code::kInternal, "the scrape lacks what was to be measured");
  }
  return Figures{{"scrape_ms", Median(times), "ms"},
                 {"scrape_ms_p99", Percentile(times, 0.99), "ms"},
                 {"loop_ms_p99", QuantileBetween(before, last, loop, 0.99) * 1e3, "ms"},
                 {"loop_ms_p99_alone", QuantileBetween(first, before, loop, 0.99) * 1e3, "ms"},
                 {"loop_ms_most", MostMs(before, last), "ms"},
                 {"loop_ms_most_alone", MostMs(first, before), "ms"},
                 {"ping_us_p50", scraped.p50_us, "us"},
                 {"ping_us_p50_alone", quiet.p50_us, "us"},
                 {"ping_us_p99", scraped.p99_us, "us"},
                 {"ping_us_p99_alone", quiet.p99_us, "us"},
                 {"scrape_bytes", static_cast<double>(last.text().size()), "bytes"},
                 {"samples", static_cast<double>(last.samples().size()), "count"}};
}

}  // namespace terrace::bench
