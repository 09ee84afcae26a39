// Suite `crash`: how soon what a killed client held is free.
//
// The client holds 10,000 pins and 100 grants and gets SIGKILL. The time runs from the moment that
// its pidfd fires here, which is when it fires for the daemon, to the arrival of the first report
// of the daemon's clients that does not list it: the daemon lists a client until its pins and
// grants are released. Reports are asked for back to back, so a release may be seen one of them
// (`report_us`) late, and the daemon is kept busy by them.
#include <poll.h>

#include <nlohmann/json.hpp>

#include "bench/content.h"
#include "bench/daemon.h"
#include "bench/processes.h"
#include "bench/residents.h"
#include "bench/statistics.h"
#include "bench/suites.h"

namespace terrace::bench {
namespace {

struct Sizes {
  int kills = 100;
  uint64_t pins = 10'000;
  uint64_t grants = 100;
};

// Takes what it is to hold when told to, says as which client, and waits for its end.
Status HoldAndWait(const Residents& residents, const Sizes& sizes, Link& link) {
  ASSIGN_OR_RETURN(const Go go, link.Receive<Go>());
  ASSIGN_OR_RETURN(const Engine engine, StartEngine(residents, "victim", /*read_only=*/false));
  for (uint64_t i = 0; i < sizes.pins; ++i) {
    const kvc_key key = SyntheticKey(i);
    kvc_page page;
    if (kvc_pin(engine.reader.get(), engine.space.get(), &key, &page, nullptr) == 0) {
      return {Code::kNotFound, "a page to pin is not resident"};
    }
  }
  std::vector<kvc_key> keys;
  for (uint64_t i = 0; i < sizes.grants; ++i) {
    keys.push_back(SyntheticKey(residents.pages + go.number * sizes.grants + i));
  }
  ASSIGN_OR_RETURN(const Grants grants, Grant(engine.client.get(), engine.space.get(), keys));
  kvc_client_info info{};
  info.struct_size = sizeof info;
  kvc_client_get_info(engine.client.get(), &info);
  RETURN_IF_ERROR(link.Send(info.client_id));
  return link.Receive<Go>().status();
}

Result<bool> IsListed(kvc_client* client, uint64_t id) {
  ASSIGN_OR_RETURN(const nlohmann::json report, Report(client, "clients"));
  for (const nlohmann::json& entry : report.value("clients", nlohmann::json::array())) {
    if (entry.value("id", uint64_t{0}) == id) return true;
  }
  return false;
}

struct KillTimes {
  double release_ms = 0;
  double report_us = 0;
};
Result<KillTimes> KillOne(kvc_client* client, Child& victim, uint64_t id) {
  KillTimes times;
  const Stopwatch asking;
  ASSIGN_OR_RETURN(const bool listed, IsListed(client, id));
  times.report_us = asking.Us();
  if (!listed) return Status(Code::kInternal, "the victim is not listed while it lives");
  victim.Kill();
  pollfd watched{victim.pidfd(), POLLIN, 0};
  if (poll(&watched, 1, 10'000) != 1) return Status(Code::kInternal, "the pidfd did not fire");
  const Stopwatch watch;
  while (true) {
    ASSIGN_OR_RETURN(const bool still, IsListed(client, id));
    if (!still) break;
    if (watch.Seconds() > 10) {
      return Status(Code::kDeadlineExceeded, "a killed client was not released");
    }
  }
  times.release_ms = watch.Seconds() * 1e3;
  (void)victim.Wait();  // Ended by a signal, as it should be.
  return times;
}

}  // namespace

Result<Figures> RunCrash(const SuiteOptions& options) {
  const Sizes sizes = options.quick ? Sizes{.kills = 3, .pins = 200, .grants = 10} : Sizes{};
  ASSIGN_OR_RETURN(const Daemon daemon,
                   Daemon::Start({.binary = options.terraced, .capacity_bytes = 256u << 20}));
  const Residents residents{.socket = daemon.socket(), .salt = "crash", .pages = sizes.pins};
  std::vector<Child> victims;
  for (int i = 0; i < sizes.kills; ++i) {
    ASSIGN_OR_RETURN(Child child, Child::Start("victim", [&](Link& link) {
                       return HoldAndWait(residents, sizes, link);
                     }));
    victims.push_back(std::move(child));
  }
  RETURN_IF_ERROR(MakeResident(residents, [](uint64_t, std::span<uint8_t>) {}));
  ASSIGN_OR_RETURN(const Client client,
                   Connect({.socket = daemon.socket(), .name = "watcher", .read_only = true}));
  std::vector<double> release_ms, report_us;
  for (size_t i = 0; i < victims.size(); ++i) {
    RETURN_IF_ERROR(victims[i].link().Send(Go{static_cast<uint32_t>(i)}));
    ASSIGN_OR_RETURN(const uint64_t id, victims[i].link().Receive<uint64_t>());
    ASSIGN_OR_RETURN(const KillTimes times, KillOne(client.get(), victims[i], id));
    release_ms.push_back(times.release_ms);
    report_us.push_back(times.report_us);
  }
  ASSIGN_OR_RETURN(const uint64_t grants, StatusNumber(client.get(), "/pages/grants"));
  if (grants != 0) {
    return Status(Code::kInternal, "grants of killed clients are left");
  }
  return Figures{{"release_ms_p99", Percentile(release_ms, 0.99), "ms"},
                 {"release_ms_p50", Percentile(release_ms, 0.5), "ms"},
                 {"release_ms_max", Percentile(release_ms, 1), "ms"},
                 {"report_us", Median(report_us), "us"},
                 {"kills", static_cast<double>(sizes.kills), "count"}};
}

}  // namespace terrace::bench
