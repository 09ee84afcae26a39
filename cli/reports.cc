// Verbs that show what the daemon says of itself. With --json its report goes out as it came.
#include <chrono>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/text.h"
#include "cli/verbs.h"

namespace terrace::cli {
namespace {

using Json = nlohmann::json;

constexpr double kCallSeconds = 10;
constexpr size_t kShortDigits = 12;  // Of ids and keys in tables.

std::string Short(const std::string& hex) {
  return hex.substr(0, kShortDigits);
}

uint64_t Number(const Json& object, const char* pointer) {
  return object.value(Json::json_pointer(pointer), uint64_t{0});
}
std::string Text(const Json& object, const char* pointer) {
  return object.value(Json::json_pointer(pointer), std::string());
}
std::string Bytes(const Json& object, const char* pointer) {
  return HumanBytes(Number(object, pointer));
}
std::string Count(const Json& object, const char* pointer) {
  return HumanCount(Number(object, pointer));
}

struct ReportChoice {
  const char* what;
  const char* space = nullptr;
  uint32_t limit = 0;
};

// The report's text; kExitOk or the exit code of a failure that was told.
int Ask(Invocation& invocation, const ReportChoice& choice, std::string* text) {
  kvc_report_options options{};
  options.struct_size = sizeof options;
  options.what = choice.what;
  options.space = choice.space;
  options.limit = choice.limit;
  char* json = nullptr;
  kvc_error error{};
  if (kvc_report(invocation.client(), &options, invocation.TimeoutMs(kCallSeconds), &json,
                 &error) != KVC_OK) {
    return invocation.Fail(error);
  }
  text->assign(json);
  kvc_free(json);
  return kExitOk;
}

// Reads `text` with `use`, which may meet a member of another type than it expects.
int Read(const Invocation& invocation, const std::string& text,
         const std::function<int(const Json&)>& use) {
  try {
    return use(Json::parse(text));
  } catch (const Json::exception& error) {
    return invocation.Fail(
        kExitFailed, "data_loss",
        std::string("the daemon's report was not understood: ") + error.what(),
        "compare the versions with `terracectl version`; --json shows the report");
  }
}

int Print(const Invocation& invocation, const std::string& text) {
  return PrintOut(text) ? kExitOk : invocation.FailOutput();
}

// Asks, and prints the report itself or what `describe` makes of it.
int Show(Invocation& invocation, const ReportChoice& choice,
         const std::function<std::string(const Json&)>& describe) {
  std::string text;
  if (int code = invocation.Connect(Invocation::Access::kReadOnly); code != kExitOk) return code;
  if (int code = Ask(invocation, choice, &text); code != kExitOk) return code;
  if (invocation.json()) return Print(invocation, text + "\n");
  return Read(invocation, text,
              [&](const Json& report) { return Print(invocation, describe(report)); });
}

uint64_t Sum(const Json& object) {
  uint64_t sum = 0;
  for (const Json& value : object)
    sum += value.get<uint64_t>();
  return sum;
}

// "host 12, nvme 3": what is not 0.
std::string NotZero(const Json& object) {
  std::string text;
  for (const auto& [name, value] : object.items()) {
    if (value.get<uint64_t>() == 0) continue;
    text += (text.empty() ? "" : ", ") + name + " " + HumanCount(value.get<uint64_t>());
  }
  return text;
}

std::string DescribeMemory(const Json& status) {
  const uint64_t capacity = Number(status, "/host/capacity_bytes");
  std::string text = "host memory   " + Bytes(status, "/host/used_bytes") + " of " +
                     HumanBytes(capacity) + " in use (" +
                     HumanShare(Number(status, "/host/used_bytes"), capacity) + ")\n";
  const uint64_t wanted = Number(status, "/host/capacity_wanted_bytes");
  if (wanted > capacity) {
    text += "              less than the " + HumanBytes(wanted) +
            " configured: " + Printable(Text(status, "/host/memory_limit_source")) +
            " allows no more now\n";
  }
  text += "  pages       " + Bytes(status, "/host/linked_bytes") + " in " +
          Count(status, "/pages/count") + " pages of " + Count(status, "/pages/spaces") +
          " spaces\n";
  text += "  weights     " + Bytes(status, "/host/block_bytes") + "\n";
  text += "  granted     " + Bytes(status, "/host/granted_bytes") + " in " +
          Count(status, "/pages/grants") + " grants, " + Count(status, "/pages/abandoned_grants") +
          " of them past their deadline\n";
  text += "  limbo       " + Bytes(status, "/host/limbo_bytes") + " invalid but still pinned\n";
  if (const uint64_t filling = Number(status, "/host/filling_bytes"); filling > 0) {
    text += "  filling     " + HumanBytes(filling) + " being read from the store\n";
  }
  text += "  free slots  " + Bytes(status, "/host/free_bytes") + "\n";
  if (const uint64_t gone = Number(status, "/host/held_gone_bytes"); gone > 0) {
    text += "  besides     " + HumanBytes(gone) + " of unloaded weights that clients still map\n";
  }
  return text;
}

// One GPU: how it goes and what is on it.
std::string DescribeGpu(const Json& gpu) {
  const uint64_t capacity = Number(gpu, "/capacity_bytes");
  const uint64_t used = Number(gpu, "/used_bytes");
  const std::string name = Text(gpu, "/name");
  std::string text = "device " + std::to_string(Number(gpu, "/device")) + "      " +
                     Printable(Text(gpu, "/state")) + ", " + HumanBytes(used) + " of " +
                     HumanBytes(capacity) + " in use (" + HumanShare(used, capacity) + "); ";
  if (!name.empty()) text += Printable(name) + ", ";
  text += Printable(Text(gpu, "/uuid")) + "\n";
  if (const std::string why = Text(gpu, "/why"); !why.empty()) {
    text += "  last end    " + Printable(why) + "\n";
  }
  std::string tenants;
  for (const Json& tenant : gpu.value("tenants", Json::array()))
    tenants += (tenants.empty() ? "" : ", ") + Printable(tenant.get<std::string>());
  if (!tenants.empty()) text += "  kept for    " + tenants + "\n";
  text += "  weights     " + Bytes(gpu, "/bytes/weights") + "\n";
  text += "  pages       " + Bytes(gpu, "/linked_bytes") + " in " + Count(gpu, "/pages") +
          " pages; slabs of " + Bytes(gpu, "/bytes/pages") + "\n";
  const Json of_tenants = gpu.value("tenant_bytes", Json::object());
  for (const auto& [tenant, bytes] : of_tenants.items())
    text += "  slabs of    " + Printable(tenant) + ": " + HumanBytes(bytes.get<uint64_t>()) + "\n";
  if (Number(gpu, "/bytes/leaving") + Number(gpu, "/bytes/zombies") > 0) {
    text += "  asked back  " + Bytes(gpu, "/bytes/leaving") + " that clients still map, and " +
            Bytes(gpu, "/bytes/zombies") + " past the deadline\n";
  }
  return text;
}

// What its mover does and did, and what was moved to and from it.
std::string DescribeMover(const Json& gpu) {
  const Json& mover = gpu.at("mover");
  std::string text = "  copied      " + Bytes(mover, "/direct_bytes") + " directly, " +
                     Bytes(mover, "/staged_bytes") + " staged; " +
                     Bytes(mover, "/registered_bytes") + " of " + Bytes(mover, "/host_bytes") +
                     " of host memory registered\n";
  if (const std::string why = Text(mover, "/registration"); !why.empty()) {
    text += "  staged for  " + Printable(why) + "\n";
  }
  text += "  requests    " + Count(mover, "/waiting") + " waiting, " + Count(mover, "/in_flight") +
          " under way\n";
  text += "  mover       pid " + std::to_string(mover.value("pid", int64_t{0})) + ", " +
          Printable(Text(gpu, "/mode")) + "; starts " + Count(mover, "/starts") + ", crashes " +
          Count(mover, "/crashes") + ", hangs " + Count(mover, "/hangs") + ", broken " +
          Count(mover, "/broken") + "\n";
  return text + "  moved       " + Bytes(gpu, "/promoted/bytes") + " of pages up, " +
         Bytes(gpu, "/demoted/bytes") + " down, " + Bytes(gpu, "/loaded_bytes") +
         " of weights; evicted " + Count(gpu, "/evicted_pages") + " pages, " +
         Count(gpu, "/evicted_blocks") + " blocks; lost " + Count(gpu, "/lost_pages") + " pages\n";
}

std::string DescribeGpus(const Json& status) {
  std::string text;
  for (const Json& gpu : status.value("devices", Json::array()))
    text += DescribeGpu(gpu);
  if (const std::string why = Text(status, "/devices_by/why"); !why.empty()) {
    text += "devices       " + std::string(text.empty() ? "none: " : "") + Printable(why) + "\n";
  }
  return text;
}

std::string DescribeMeans(const Json& status) {
  const uint64_t target = Number(status, "/host/pretouch/target_bytes");
  std::string text = "huge pages    " + Printable(Text(status, "/host/huge_pages")) + "\n";
  text += "locked        " + Printable(Text(status, "/host/locking")) + "\n";
  text += "ready memory  " + Bytes(status, "/host/pretouch/done_bytes") + " of " +
          HumanBytes(target) + " touched in advance\n";
  return text;
}

std::string DescribeTraffic(const Json& status) {
  const Json& lookups = status.at("lookups");
  const uint64_t hits = Sum(lookups.at("hits"));
  const std::string misses = NotZero(lookups.at("misses"));
  std::string text = "lookups       " + Count(lookups, "/lookups") + ": " + HumanCount(hits) +
                     " hits (" + HumanShare(hits, Number(lookups, "/lookups")) + ")";
  if (!misses.empty()) text += ", misses: " + misses;
  text += "\nevicted       " + Count(status, "/pages/evicted") + " pages, " +
          Count(status, "/blocks/evicted") + " blocks of weights; policy " +
          Printable(Text(status, "/host/policy")) + "\n";
  text += "clients       " + Count(status, "/clients/count") + " with " +
          Count(status, "/clients/pins") + " pins; " + Count(status, "/clients/away") +
          " without a connection\n";
  return text;
}

std::string DescribeStatus(const Json& status) {
  std::string text = "terraced " + Printable(Text(status, "/daemon/version")) + ", pid " +
                     std::to_string(Number(status, "/daemon/pid")) + ", up " +
                     HumanSeconds(Number(status, "/daemon/uptime_ms") / 1000) + "\n";
  text += "socket        " + Printable(Text(status, "/daemon/socket")) + "\n";
  text += "state         " + Printable(Text(status, "/daemon/state_dir")) + "\n";
  text += "isolation     " + Printable(Text(status, "/daemon/isolation")) + "\n";
  return text + DescribeMemory(status) + DescribeGpus(status) + DescribeMeans(status) +
         DescribeTraffic(status);
}

std::string DescribeModels(const Json& report) {
  Table table({"MODEL", "VERSION", "STATE", ">SIZE", ">TENSORS", ">BLOCKS", ">ATTACHED", "DURABLE",
               "DIGEST", "TENANTS"});
  for (const Json& model : report.at("models")) {
    std::string tenants;
    for (const Json& tenant : model.value("tenants", Json::array())) {
      tenants += (tenants.empty() ? "" : " ") + Printable(tenant.get<std::string>());
    }
    for (const Json& version : model.at("versions")) {
      std::string state = Text(version, "/state");
      if (state == "loading") {
        state += ' ';
        state += HumanShare(Number(version, "/loading_done_bytes"), Number(version, "/bytes"));
      }
      table.Add({Text(model, "/name"), Text(version, "/version"), state, Bytes(version, "/bytes"),
                 Count(version, "/tensors"),
                 Count(version, "/blocks_resident") + "/" + Count(version, "/blocks"),
                 Count(version, "/attachments"), version.value("durable", false) ? "yes" : "no",
                 Short(Text(version, "/digest")), tenants});
    }
  }
  if (!table.empty()) return table.Text();
  return "no models: register one with `terracectl model add NAME --version V --from PATH`\n";
}

std::string DescribeSpaces(const Json& report) {
  Table table({"SPACE", "TENANT", "MODEL", "DTYPE", ">LAYERS", ">HEADS", ">HEAD SIZE", ">TOKENS",
               ">PAGE", ">PAGES", ">BYTES", ">OPEN BY"});
  for (const Json& space : report.at("spaces")) {
    table.Add({Short(Text(space, "/id")), Text(space, "/tenant"), Text(space, "/model"),
               Text(space, "/layout/dtype"), Count(space, "/layout/layers"),
               Count(space, "/layout/kv_heads"), Count(space, "/layout/head_size"),
               Count(space, "/layout/page_tokens"), Bytes(space, "/page_bytes"),
               Count(space, "/pages"), Bytes(space, "/bytes"), Count(space, "/open_by")});
  }
  return table.empty() ? "no spaces: no engine has opened one yet\n" : table.Text();
}

std::string DescribeClients(const Json& report) {
  Table table({">ID", "NAME", ">PID", ">UID", "TENANT", "ROLE", ">PINS", ">PINNED", ">GRANTS",
               ">GRANTED", ">ATTACHED", ">LOOKUPS", ">HITS"});
  for (const Json& client : report.at("clients")) {
    const Json& lookups = client.at("lookups");
    table.Add({std::to_string(Number(client, "/id")), Text(client, "/name"),
               std::to_string(client.value("pid", int64_t{0})),
               std::to_string(Number(client, "/uid")), Text(client, "/tenant"),
               client.value("writer", false) ? "writer" : "reader", Count(client, "/pins"),
               Bytes(client, "/pinned_bytes"), Count(client, "/grants"),
               Bytes(client, "/granted_bytes"), Bytes(client, "/attached_bytes"),
               Count(lookups, "/lookups"),
               HumanShare(Sum(lookups.at("hits")), Number(lookups, "/lookups"))});
  }
  return table.Text();  // Never empty: this program is a client too.
}

std::string DescribePages(const Json& report, uint32_t limit) {
  Table table({"SPACE", "KEY", ">PART", ">BYTES", ">TOKENS", ">ARENA", ">SLOT"});
  const Json& pages = report.at("pages");
  for (const Json& page : pages) {
    table.Add({Short(Text(page, "/space")), Text(page, "/key"),
               std::to_string(Number(page, "/part")), Bytes(page, "/bytes"),
               Count(page, "/valid_tokens"), std::to_string(Number(page, "/arena")),
               std::to_string(Number(page, "/slot"))});
  }
  if (table.empty()) return "no pages\n";
  return table.Text() + (pages.size() < limit
                             ? ""
                             : "there may be more: choose a space with --space, or --limit\n");
}

std::string DescribeDevices(const Json& tier) {
  Table table({"device", "state", ">used", ">capacity", ">read", ">written", ">in flight",
               ">waiting", ">errors"});
  std::string why;
  for (const Json& device : tier.value("devices", Json::array())) {
    const std::string path = Printable(Text(device, "/path"));
    table.Add({path, Text(device, "/state"), Bytes(device, "/allocated_bytes"),
               Bytes(device, "/capacity_bytes"), Bytes(device, "/read_bytes"),
               Bytes(device, "/written_bytes"), Count(device, "/in_flight"),
               Count(device, "/waiting"),
               HumanCount(Number(device, "/read_errors") + Number(device, "/write_errors") +
                          Number(device, "/overdue"))});
    if (const std::string text = Text(device, "/why"); !text.empty())
      why += "  " + path + ": " + Printable(text) + "\n";
  }
  return table.Text() + why;
}

std::string DescribeTenantsOf(const Json& tier) {
  Table table({"tenant", "class", ">pages", ">bytes"});
  const Json tenants = tier.value("tenants", Json::object());
  for (const auto& [tenant, classes] : tenants.items()) {
    for (const auto& [name, amount] : classes.items()) {
      const uint64_t bytes = amount.is_object() ? Number(amount, "/bytes") : amount.get<uint64_t>();
      table.Add({Printable(tenant), name, amount.is_object() ? Count(amount, "/pages") : "",
                 HumanBytes(bytes)});
    }
  }
  return table.empty() ? "" : table.Text();
}

std::string DescribeStore(const Json& tier) {
  std::string text = "  pages       " + Count(tier, "/pages") + " of " + Count(tier, "/spaces") +
                     " spaces, durable against the end of the " + Text(tier, "/durability") + "\n";
  text += "  written     " + Bytes(tier, "/spilled/bytes") + " in " +
          Count(tier, "/spilled/pages") + " pages, " + Count(tier, "/queued_pages") + " waiting, " +
          Count(tier, "/writing_pages") + " under way\n";
  if (tier.contains("write_budget_bytes")) {
    text += "  budget      " + Bytes(tier, "/write_budget_bytes") + " may be written now\n";
  }
  text += "  brought up  " + Bytes(tier, "/promoted/bytes") + " in " +
          Count(tier, "/promoted/pages") + " pages, " + Count(tier, "/reading_pages") +
          " under way\n";
  const auto list = [&](const char* label, const char* member) {
    const std::string some = NotZero(tier.value(member, Json::object()));
    if (!some.empty()) text += std::string(label) + some + "\n";
  };
  if (Number(tier, "/scrub/bytes_per_second") > 0) {
    text += "  checked     " + Bytes(tier, "/scrub/bytes") + " in " + Count(tier, "/scrub/pages") +
            " pages at " + Bytes(tier, "/scrub/bytes_per_second") + "/s at most, round " +
            HumanCount(Number(tier, "/scrub/rounds") + 1) + "\n";
    const std::string bad = NotZero(tier.at("scrub").value("faults", Json::object()));
    if (!bad.empty()) text += "  found bad   " + bad + "\n";
  }
  list("  not stored  ", "unspilled");
  list("  faults      ", "faults");
  text += "  by          " + Printable(Text(tier, "/io")) + "; index " +
          Bytes(tier, "/index_bytes") + " on disk, " + Bytes(tier, "/catalog_bytes") +
          " in memory\n";
  return text + DescribeDevices(tier);
}

std::string DescribeTiers(const Json& report) {
  std::string text;
  for (const Json& tier : report.at("tiers")) {
    text += Text(tier, "/tier") + "  " + Bytes(tier, "/used_bytes") + " of " +
            Bytes(tier, "/capacity_bytes") + " in use\n";
    if (tier.contains("devices")) text += DescribeStore(tier);
    text += DescribeTenantsOf(tier);
  }
  for (const Json& gpu : report.value("devices", Json::array()))
    text += DescribeGpu(gpu) + DescribeMover(gpu);
  return text;
}

// What each device did between two reports, a second.
std::string DescribeRates(const Json& before, const Json& now, double seconds) {
  Table table({"device", ">read/s", ">reads/s", ">written/s", ">writes/s", ">errors"});
  for (const Json& tier : now.at("tiers")) {
    const Json devices = tier.value("devices", Json::array());
    for (size_t i = 0; i < devices.size(); ++i) {
      const Json& device = devices[i];
      // Those of the daemon before, when it was another one, have counted from 0 since.
      const auto since = [&](const char* member) {
        for (const Json& old : before.at("tiers")) {
          const Json old_devices = old.value("devices", Json::array());
          if (old.value("tier", "") != tier.value("tier", "") || i >= old_devices.size()) continue;
          const uint64_t then = Number(old_devices[i], member);
          const uint64_t count = Number(device, member);
          return count >= then ? count - then : count;
        }
        return Number(device, member);
      };
      const auto rate = [&](const char* member) {
        return static_cast<uint64_t>(static_cast<double>(since(member)) / seconds + 0.5);
      };
      table.Add({Text(device, "/path"), HumanBytes(rate("/read_bytes")), HumanCount(rate("/reads")),
                 HumanBytes(rate("/written_bytes")), HumanCount(rate("/writes")),
                 HumanCount(since("/read_errors") + since("/write_errors") + since("/overdue"))});
    }
  }
  return table.empty() ? "" : table.Text();
}

int WatchTiers(Invocation& invocation, double watch_s) {
  using Clock = std::chrono::steady_clock;
  if (int code = invocation.Connect(Invocation::Access::kReadOnly); code != kExitOk) return code;
  std::string before;
  for (Clock::time_point then;;) {
    std::string text;
    if (int code = Ask(invocation, {"tiers"}, &text); code != kExitOk) return code;
    const Clock::time_point now = Clock::now();
    const double seconds = std::chrono::duration<double>(now - then).count();
    const int code = invocation.json()
                         ? Print(invocation, text + "\n")
                         : Read(invocation, text, [&](const Json& report) {
                             std::string shown = DescribeTiers(report);
                             if (!before.empty()) {
                               shown += DescribeRates(Json::parse(before), report, seconds);
                             }
                             return Print(invocation, shown + "\n");
                           });
    if (code != kExitOk) return code;
    before = std::move(text);
    then = now;
    std::this_thread::sleep_for(std::chrono::duration<double>(watch_s));
  }
}

}  // namespace

int ShowStatus(Invocation& invocation) {
  return Show(invocation, {"status"}, DescribeStatus);
}
int ShowTiers(Invocation& invocation, double watch_s) {
  if (watch_s > 0) return WatchTiers(invocation, watch_s);
  return Show(invocation, {"tiers"}, DescribeTiers);
}

int ShowModels(Invocation& invocation) {
  return Show(invocation, {"models"}, DescribeModels);
}
int ShowSpaces(Invocation& invocation) {
  return Show(invocation, {"spaces"}, DescribeSpaces);
}
int ShowClients(Invocation& invocation) {
  return Show(invocation, {"clients"}, DescribeClients);
}

int ShowPages(Invocation& invocation, const std::string& space, uint32_t limit) {
  if (int code = invocation.Connect(Invocation::Access::kReadOnly); code != kExitOk) return code;
  std::string id;
  if (!space.empty()) {
    if (int code = ResolveSpace(invocation, space, &id); code != kExitOk) return code;
  }
  std::string text;
  const ReportChoice choice{"pages", id.empty() ? nullptr : id.c_str(), limit};
  if (int code = Ask(invocation, choice, &text); code != kExitOk) return code;
  if (invocation.json()) return Print(invocation, text + "\n");
  return Read(invocation, text,
              [&](const Json& report) { return Print(invocation, DescribePages(report, limit)); });
}

int ResolveSpace(Invocation& invocation, const std::string& prefix, std::string* id) {
  std::string text;
  if (int code = Ask(invocation, {"spaces"}, &text); code != kExitOk) return code;
  return Read(invocation, text, [&](const Json& report) -> int {
    size_t matches = 0;
    for (const Json& space : report.at("spaces")) {
      const std::string candidate = Text(space, "/id");
      if (!candidate.starts_with(prefix) || !ParseKey(candidate)) continue;
      *id = candidate;
      ++matches;
    }
    if (matches == 1 && !prefix.empty()) return kExitOk;
    if (matches == 0) {
      return invocation.Fail(kExitNotFound, "not_found",
                             "no space has an id that begins with '" + prefix + "'",
                             "`terracectl spaces` lists them");
    }
    return invocation.Fail(
        kExitUsage, "invalid_argument",
        std::to_string(matches) + " spaces have ids that begin with '" + prefix + "'",
        "give more digits: `terracectl spaces --json` has all of them");
  });
}

int ShowVersion(Invocation& invocation) {
  const bool json = invocation.json();
  std::string daemon;
  // Nobody listening is an answer here and no failure: the question is asked quietly.
  if (invocation.TryConnect()) {
    std::string text;
    if (int code = Ask(invocation, {"status"}, &text); code != kExitOk) return code;
    if (int code = Read(invocation, text,
                        [&](const Json& status) {
                          daemon = Text(status, "/daemon/version");
                          return kExitOk;
                        });
        code != kExitOk) {
      return code;
    }
  }
  if (json) {
    const nlohmann::ordered_json versions = {
        {"terracectl", TERRACE_VERSION},
        {"libkvclient", kvc_version()},
        {"abi", kvc_abi_version()},
        {"terraced", daemon.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(daemon)}};
    return Print(invocation, versions.dump() + "\n");
  }
  return Print(invocation, std::string("terracectl   ") + TERRACE_VERSION + "\nlibkvclient  " +
                               kvc_version() + ", ABI " + std::to_string(kvc_abi_version()) +
                               "\nterraced     " +
                               (daemon.empty() ? "no daemon listens" : Printable(daemon)) + "\n");
}

}  // namespace terrace::cli
