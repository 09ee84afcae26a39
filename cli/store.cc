// Verbs on the page store.
#include <nlohmann/json.hpp>

#include "cli/progress.h"
#include "cli/text.h"
#include "cli/verbs.h"

namespace terrace::cli {
namespace {

using Json = nlohmann::json;

constexpr double kCallSeconds = 10;
constexpr double kStoreSeconds = 3600;     // Writes all of memory, at the worst.
constexpr double kReadAllSeconds = 86400;  // Of a store that is read behind everything else.

void ShowOn(void* bar, uint64_t done, uint64_t total) {
  static_cast<ProgressBar*>(bar)->Show(done, total);
}

int Print(const Invocation& invocation, const nlohmann::ordered_json& json,
          const std::string& text) {
  return PrintOut((invocation.json() ? json.dump() : text) + "\n") ? kExitOk
                                                                   : invocation.FailOutput();
}

// A line for each kind of finding.
constexpr std::pair<const char*, const char*> kFindings[] = {
    {"unreadable_record", "records of the index that are none"},
    {"unknown_entry", "entries of the index of no page"},
    {"missing_entry", "pages without their entry in the index"},
    {"unknown_slot", "slots taken by no page"},
    {"header", "pages with a damaged header"},
    {"name", "pages whose slot holds another page"},
    {"stale", "pages whose slot holds another writing"},
    {"data", "pages with damaged bytes"},
    {"io", "pages that their device could not give"},
};

uint64_t NotRead(const Json& report) {
  return report.at("read_data").get<bool>() ? report.at("not_read").get<uint64_t>() : 0;
}

// Everything was looked at, and is right or was repaired.
bool IsRight(const Json& report) {
  uint64_t findings = 0;
  for (const Json& found : report.at("findings"))
    findings += found.get<uint64_t>();
  return findings <= report.at("repaired").get<uint64_t>() && NotRead(report) == 0;
}

std::string DescribeFsck(const Json& report) {
  const auto count = [&](const char* member) { return HumanCount(report.at(member)); };
  Table table({"checked", ">count"});
  table.Add({"entries of the index", count("entries")});
  table.Add({"pages", count("pages")});
  if (report.at("read_data").get<bool>()) {
    table.Add({"pages read", count("read_pages")});
    table.Add({"bytes read", HumanBytes(report.at("read_bytes"))});
    table.Add({"pages not read: no answer, or their device is not read from", count("not_read")});
  }
  for (const auto& [name, what] : kFindings)
    table.Add({what, HumanCount(report.at("findings").at(name))});
  if (report.at("repair").get<bool>()) table.Add({"repaired", count("repaired")});
  std::string text = table.Text();
  for (const Json& example : report.at("examples"))
    text += "  " + Printable(example.get<std::string>()) + "\n";
  if (!report.at("clean").get<bool>()) return text;
  return text + (NotRead(report) > 0 ? "what could be read is right\n" : "nothing is wrong\n");
}

}  // namespace

int Demote(Invocation& invocation, uint64_t bytes) {
  if (int code = invocation.Connect(Invocation::Access::kReadOnly); code != kExitOk) return code;
  kvc_demoted demoted{};
  demoted.struct_size = sizeof demoted;
  kvc_error error{};
  kvc_code code = KVC_OK;
  {
    ProgressBar bar("demote", !invocation.json());
    code = kvc_demote_with_progress(invocation.client(), bytes, ShowOn, &bar,
                                    invocation.TimeoutMs(kStoreSeconds), &demoted, &error);
  }
  if (code != KVC_OK) return invocation.Fail(error);
  std::string text = "demoted " + HumanBytes(demoted.bytes) + ": " + HumanCount(demoted.pages) +
                     " pages are in the store alone";
  if (bytes > demoted.bytes) {
    text +=
        "\nthe rest is held or could not be stored: see `terracectl clients`, `terracectl tiers`";
  }
  return Print(invocation, {{"pages", demoted.pages}, {"bytes", demoted.bytes}}, text);
}

int Promote(Invocation& invocation, const PromoteChoice& choice) {
  if (int code = invocation.Connect(Invocation::Access::kReadOnly); code != kExitOk) return code;
  kvc_key space{};
  if (!choice.space.empty()) {
    const auto id = ParseKey(choice.space);
    if (!id) {
      return invocation.Fail(kExitUsage, "invalid_argument",
                             "--space: expected 64 hexadecimal digits: it may not be open");
    }
    std::copy(id->begin(), id->end(), space.bytes);
  }
  kvc_promote_options options{};
  options.struct_size = sizeof options;
  options.tenant = choice.tenant.empty() ? nullptr : choice.tenant.c_str();
  options.space = choice.space.empty() ? nullptr : &space;
  options.bytes = choice.bytes;
  options.no_wait = choice.wait ? 0 : 1;
  kvc_promoted promoted{};
  promoted.struct_size = sizeof promoted;
  kvc_error error{};
  kvc_code code = KVC_OK;
  {
    ProgressBar bar("promote", !invocation.json());
    code = kvc_promote(invocation.client(), &options, ShowOn, &bar,
                       invocation.TimeoutMs(choice.wait ? kStoreSeconds : kCallSeconds), &promoted,
                       &error);
  }
  if (code != KVC_OK) return invocation.Fail(error);
  if (!choice.wait) {
    return Print(invocation, {{"begun", true}},
                 "begun: `terracectl tiers` shows what was brought up");
  }
  return Print(invocation, {{"pages", promoted.pages}, {"bytes", promoted.bytes}},
               "promoted " + HumanBytes(promoted.bytes) + ": " + HumanCount(promoted.pages) +
                   " pages are in memory too");
}

int Flush(Invocation& invocation) {
  if (int code = invocation.Connect(Invocation::Access::kReadOnly); code != kExitOk) return code;
  kvc_error error{};
  kvc_code code = KVC_OK;
  {
    ProgressBar bar("flush", !invocation.json());
    code = kvc_flush_with_progress(invocation.client(), ShowOn, &bar,
                                   invocation.TimeoutMs(kStoreSeconds), &error);
  }
  if (code != KVC_OK) return invocation.Fail(error);
  return Print(invocation, nlohmann::ordered_json::object(),
               "all that is stored survives the loss of power");
}

int Fsck(Invocation& invocation, const FsckChoice& choice) {
  if (int code = invocation.Connect(Invocation::Access::kReadOnly); code != kExitOk) return code;
  kvc_fsck_options options{};
  options.struct_size = sizeof options;
  options.read_data = choice.data ? 1 : 0;
  options.repair = choice.repair ? 1 : 0;
  char* json = nullptr;
  kvc_error error{};
  kvc_code code = KVC_OK;
  {
    ProgressBar bar("fsck", !invocation.json());
    code = kvc_fsck(invocation.client(), &options, ShowOn, &bar,
                    invocation.TimeoutMs(kReadAllSeconds), &json, &error);
  }
  if (code != KVC_OK) return invocation.Fail(error);
  const std::string text = json;
  kvc_free(json);
  try {
    const Json report = Json::parse(text);
    if (!PrintOut(invocation.json() ? text + "\n" : DescribeFsck(report))) {
      return invocation.FailOutput();
    }
    return IsRight(report) ? kExitOk : kExitFindings;
  } catch (const Json::exception& failed) {
    return invocation.Fail(kExitFailed, "data_loss",
                           std::string("the daemon's answer was not understood: ") + failed.what(),
                           "compare the versions with `terracectl version`");
  }
}

}  // namespace terrace::cli
