// The text: what Prometheus' own tool says of it, and names that nobody
// expects.
#include "daemon/service/metrics/exposition.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include "bench/scrape.h"
#include "tests/cli/run_program.h"

namespace terrace {
namespace {

using bench::Scrape;
using testing::HasSubstr;

// Every metric has a sample.
Snapshot FullSnapshot() {
  Snapshot snapshot;
  TenantFigures tenant;
  tenant.name = "acme";
  tenant.lookups.lookups = 10;
  tenant.lookups.hits[static_cast<int>(shm::Tier::kHost)] = 7;
  tenant.lookups.misses[0] = 3;
  tenant.lookups.hit_ns = 300;
  tenant.lookups.hit_times[1] = 4;
  tenant.lookups.hit_times[shm::kHitTimeBuckets - 1] = 1;
  snapshot.engine.tenants.push_back(tenant);
  SpaceFigures space;
  space.id = Sha256::Of({});
  space.model = "llama";
  snapshot.engine.spaces.push_back(space);
  snapshot.service.traffic.frames_received[2] = 1;
  snapshot.service.traffic.frames_sent[3] = 1;
  StoreFigures& store = snapshot.engine.store;
  store.present = true;
  store.store.devices.resize(1);
  store.store.devices[0].path = "/mnt/nvme0";
  store.write_budget_bytes = 5;
  snapshot.engine.devices.resize(1);
  GpuReport& gpu = snapshot.engine.devices[0];
  gpu.device = 1;
  gpu.bytes = {.weights = 1, .pages = 2, .leaving = 3, .zombies = 4};
  gpu.tenant_bytes = {{"chat", 5}, {"other", 4}};
  gpu.tier.uuid = "GPU-0";
  gpu.tier.state = DeviceTierState::kResting;
  gpu.tier.staged_bytes = 5;
  gpu.tier.crashes = 6;
  gpu.tier.waiting = 7;
  gpu.loaded_bytes = 8;
  snapshot.loop.counts[0] = 2;
  snapshot.loop.counts.back() = 1;
  snapshot.loop.total_ns = 3'000'000'000;
  return snapshot;
}

Scrape ScrapeOf(const Snapshot& snapshot) {
  Result<Scrape> scrape = Scrape::Parse(ExpositionOf(snapshot));
  EXPECT_TRUE(scrape) << scrape.error().ToString();
  return scrape ? *std::move(scrape) : Scrape();
}

std::string FileText(const std::string& path) {
  std::ifstream stream(std::string(TERRACE_SOURCE) + "/" + path);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

// The names of metrics of ours, of processes and of histograms' parts in a
// text.
std::set<std::string> NamesIn(const std::string& text) {
  static const std::regex pattern(R"((^|[^a-zA-Z0-9_:])((terrace|process)_[a-z_]+))");
  std::set<std::string> names;
  for (std::sregex_iterator match(text.begin(), text.end(), pattern), end; match != end; ++match)
    names.insert((*match)[2]);
  return names;
}

std::set<std::string> ExportedNames() {
  static const std::regex pattern(R"(# TYPE (\S+) (\S+))");
  const std::string text = ExpositionOf(FullSnapshot());
  std::set<std::string> names;
  for (std::sregex_iterator match(text.begin(), text.end(), pattern), end; match != end; ++match)
    names.insert((*match)[1]);
  return names;
}

// The metric that a sample of this name belongs to.
std::string MetricOf(const std::string& sample, const std::set<std::string>& exported) {
  for (const std::string suffix : {"_bucket", "_sum", "_count"}) {
    const size_t at = sample.size() - std::min(sample.size(), suffix.size());
    if (sample.substr(at) == suffix && exported.contains(sample.substr(0, at))) {
      return sample.substr(0, at);
    }
  }
  return sample;
}

ProgramOutput PromtoolCheck(const std::string& text) {
  ProgramCall check;
  check.program = PROMTOOL_PATH;
  check.arguments = {"check", "metrics"};
  check.standard_input = text;
  return RunProgram(check);
}

TEST(Exposition, PromtoolFindsNothingToSay) {
  if (std::string_view(PROMTOOL_PATH).empty()) GTEST_SKIP() << "there is no promtool";
  const ProgramOutput output = PromtoolCheck(ExpositionOf(FullSnapshot()));
  EXPECT_EQ(output.exit_code, 0) << output.standard_output << output.standard_error;
  EXPECT_EQ(output.standard_output + output.standard_error, "");
  // It can find something.
  EXPECT_NE(PromtoolCheck("# TYPE terrace_hits counter\nterrace_hits 1\n").exit_code, 0);
}

TEST(Exposition, HistogramsAreCumulativeInSeconds) {
  const Scrape scrape = ScrapeOf(FullSnapshot());
  EXPECT_EQ(scrape.Sum("terrace_hit_duration_seconds_bucket", {{"le", "3.2e-08"}}), 0);
  EXPECT_EQ(scrape.Sum("terrace_hit_duration_seconds_bucket", {{"le", "6.4e-08"}}), 4);
  EXPECT_EQ(scrape.Sum("terrace_hit_duration_seconds_bucket", {{"le", "0.000262144"}}), 4);
  EXPECT_EQ(scrape.Sum("terrace_hit_duration_seconds_bucket", {{"le", "+Inf"}}), 5);
  EXPECT_EQ(scrape.Sum("terrace_hit_duration_seconds_count"), 5);
  EXPECT_DOUBLE_EQ(scrape.Sum("terrace_hit_duration_seconds_sum"), 300e-9);
  EXPECT_EQ(scrape.Sum("terrace_loop_duration_seconds_bucket", {{"le", "1e-05"}}), 2);
  EXPECT_EQ(scrape.Sum("terrace_loop_duration_seconds_count"), 3);
  EXPECT_EQ(scrape.Sum("terrace_loop_duration_seconds_sum"), 3);
}

TEST(Exposition, NoNameOfATenantOrModelSpoilsAScrape) {
  Snapshot snapshot = FullSnapshot();
  const std::vector<std::string> names = {"a\"b\\c\n", "\xff\xfe", "\xc3\xa9",
                                          "\xc3\xbc",  "100%",     std::string("\0", 1)};
  for (const std::string& name : names) {
    TenantFigures tenant;
    tenant.name = name;
    snapshot.engine.tenants.push_back(tenant);
    SpaceFigures space;
    space.tenant = static_cast<uint32_t>(snapshot.engine.tenants.size() - 1);
    space.model = name;
    snapshot.engine.spaces.push_back(space);
  }
  const Scrape scrape = ScrapeOf(snapshot);
  std::set<std::string> tenants;
  for (const bench::Sample& sample : scrape.samples()) {
    if (sample.name == "terrace_clients") tenants.insert(sample.labels.at("tenant"));
  }
  EXPECT_EQ(tenants.size(), names.size() + 1) << "different names stay different";
  EXPECT_TRUE(tenants.contains("%C3%A9"));
  if (std::string_view(PROMTOOL_PATH).empty()) return;
  EXPECT_EQ(PromtoolCheck(scrape.text()).exit_code, 0);
}

TEST(Exposition, TheStoreIsToldByTenantClassAndReason) {
  Snapshot snapshot = FullSnapshot();
  StoreFigures& store = snapshot.engine.store;
  const int kv = static_cast<int>(ItemClass::kKv);
  snapshot.engine.tenants[0].stored[kv] = {3, 3000};
  store.absent[kv] = {1, 1000};
  store.used_bytes = 4000;
  store.capacity_bytes = 9000;
  store.spilled = {5, 5000};
  store.spill_times.Add(150'000);
  store.spill_times.Add(300 * kNsPerSecond);
  store.promoted = {2, 2000};
  store.erased[static_cast<int>(StoredErasure::kRoom)] = {2, 2000};
  store.unspilled[static_cast<int>(Unspilled::kBudget)] = 7;
  store.faults[static_cast<int>(ReadFault::kNone)] = 100;
  store.faults[static_cast<int>(ReadFault::kData)] = 1;
  store.fetch_latency_ns = 250'000;
  DeviceReport& device = store.store.devices[0];
  device.state = DeviceState::kReadOnly;
  device.written_bytes = 6000;
  device.write_errors = 4;
  const Scrape scrape = ScrapeOf(snapshot);
  EXPECT_EQ(
      scrape.Sum("terrace_extent_bytes",
                 {{"tier", "nvme"}, {"class", "kv"}, {"tenant", "acme"}, {"state", "stored"}}),
      3000);
  EXPECT_EQ(scrape.Sum("terrace_extent_bytes", {{"tier", "nvme"}}),
            scrape.Sum("terrace_tier_used_bytes", {{"tier", "nvme"}}));
  EXPECT_EQ(scrape.Sum("terrace_extents", {{"tier", "nvme"}}), 4);
  EXPECT_EQ(scrape.Sum("terrace_tier_capacity_bytes", {{"tier", "nvme"}}), 9000);
  EXPECT_EQ(scrape.Sum("terrace_transfer_bytes_total", {{"from", "host"}, {"to", "nvme"}}), 5000);
  EXPECT_EQ(scrape.Sum("terrace_transfer_bytes_total", {{"from", "nvme"}, {"to", "host"}}), 2000);
  const auto spills_within = [&](const char* bound) {
    return scrape.Sum("terrace_transfer_duration_seconds_bucket",
                      {{"from", "host"}, {"to", "nvme"}, {"le", bound}});
  };
  EXPECT_EQ(spills_within("0.0001"), 0);
  EXPECT_EQ(spills_within("0.0002"), 1);
  EXPECT_EQ(spills_within("10"), 1);
  EXPECT_EQ(spills_within("+Inf"), 2);
  EXPECT_EQ(scrape.Sum("terrace_store_erased_bytes_total", {{"reason", "room"}}), 2000);
  EXPECT_EQ(scrape.Sum("terrace_store_unspilled_pages_total", {{"reason", "budget"}}), 7);
  EXPECT_EQ(scrape.Sum("terrace_store_faults_total"), 1) << "what is served is no fault";
  EXPECT_DOUBLE_EQ(scrape.Sum("terrace_store_fetch_latency_seconds"), 250e-6);
  EXPECT_EQ(scrape.Sum("terrace_store_write_budget_bytes"), 5);
  EXPECT_EQ(scrape.Sum("terrace_device_state", {{"state", "read_only"}}), 1);
  EXPECT_EQ(scrape.Sum("terrace_device_state"), 1);
  EXPECT_EQ(
      scrape.Sum("terrace_device_bytes_total", {{"device", "/mnt/nvme0"}, {"operation", "write"}}),
      6000);
  EXPECT_EQ(scrape.Sum("terrace_device_errors_total", {{"operation", "write"}}), 4);
}

TEST(Exposition, GpusAreToldByNumberAndUuid) {
  Snapshot snapshot = FullSnapshot();
  const Scrape scrape = ScrapeOf(snapshot);
  const auto of_first = [&](const char* name, bench::Labels labels) {
    labels["device"] = "1";
    labels["uuid"] = "GPU-0";
    return scrape.Sum(name, labels);
  };
  EXPECT_EQ(of_first("terrace_gpu_bytes", {}), 1 + 2 + 3 + 4);
  EXPECT_EQ(of_first("terrace_gpu_bytes", {{"class", "zombies"}}), 4);
  EXPECT_EQ(of_first("terrace_gpu_tenant_bytes", {{"tenant", "chat"}}), 5);
  EXPECT_EQ(of_first("terrace_gpu_state", {{"state", "resting"}}), 1);
  EXPECT_EQ(of_first("terrace_gpu_state", {}), 1);
  EXPECT_EQ(of_first("terrace_gpu_copied_bytes_total", {{"way", "staged"}}), 5);
  EXPECT_EQ(of_first("terrace_gpu_mover_ends_total", {{"reason", "crash"}}), 6);
  EXPECT_EQ(of_first("terrace_gpu_requests", {{"state", "waiting"}}), 7);
  EXPECT_EQ(of_first("terrace_gpu_moved_bytes_total", {{"what", "weights_loaded"}}), 8);
  snapshot.engine.devices.clear();
  EXPECT_EQ(ExpositionOf(snapshot).find("terrace_gpu"), std::string::npos);
}

TEST(Exposition, WithoutALimitThereIsNoBudgetToTell) {
  Snapshot snapshot = FullSnapshot();
  snapshot.engine.store.write_budget_bytes = UINT64_MAX;
  EXPECT_EQ(ExpositionOf(snapshot).find("\nterrace_store_write_budget_bytes"), std::string::npos);
}

TEST(Exposition, HitsOfATierThatIsNotThereAreToldOnlyWhereClaimed) {
  Snapshot snapshot = FullSnapshot();
  snapshot.engine.store = {};
  EXPECT_EQ(ExpositionOf(snapshot).find("nvme"), std::string::npos);
  snapshot.engine.tenants[0].lookups.hits[static_cast<int>(shm::Tier::kNvme)] = 1;
  EXPECT_EQ(ScrapeOf(snapshot).Sum("terrace_hits_total", {{"tier", "nvme"}}), 1);
}

TEST(Exposition, TheDocumentationHasEveryMetricAndNoOther) {
  const std::set<std::string> exported = ExportedNames();
  EXPECT_GT(exported.size(), 50u);
  std::string page = FileText("docs/metrics.md");
  // Recorded names are not exported.
  page = std::regex_replace(page, std::regex(R"([a-z]+:terrace_[a-z_]+:[a-z0-9]+)"), "");
  EXPECT_EQ(NamesIn(page), exported);
}

TEST(Packaging, RulesAndDashboardAskForWhatIsThere) {
  const std::set<std::string> exported = ExportedNames();
  const std::string rules = FileText("packaging/prometheus/terrace.rules.yml");
  const std::string dashboard = FileText("packaging/grafana/terrace.json");
  EXPECT_GT(NamesIn(dashboard).size(), 20u);
  for (const std::string& name : NamesIn(rules + dashboard))
    EXPECT_TRUE(exported.contains(MetricOf(name, exported))) << name;
  // What the dashboard takes from the rules is recorded there.
  static const std::regex recorded(R"([a-z]+:terrace_[a-z_]+:[a-z0-9_]+)");
  for (std::sregex_iterator match(dashboard.begin(), dashboard.end(), recorded), end; match != end;
       ++match) {
    EXPECT_THAT(rules, HasSubstr("record: " + match->str()));
  }
}

TEST(Packaging, EveryAlertIsExplained) {
  const std::string rules = FileText("packaging/prometheus/terrace.rules.yml");
  const std::string page = FileText("docs/operations.md");
  static const std::regex alert(R"(alert: (\S+))");
  size_t alerts = 0;
  for (std::sregex_iterator match(rules.begin(), rules.end(), alert), end; match != end; ++match) {
    ++alerts;
    EXPECT_THAT(page, HasSubstr("`" + (*match)[1].str() + "`"));
  }
  EXPECT_GT(alerts, 10u);
}

}  // namespace
}  // namespace terrace
