// Verbs on models.
#include <chrono>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cli/progress.h"
#include "cli/text.h"
#include "cli/verbs.h"

namespace terrace::cli {
namespace {

constexpr double kLongCallSeconds = 3600;
constexpr double kShortCallSeconds = 10;
constexpr std::string_view kSeeModels = "`terracectl models` lists those that are registered";

const char* OrNull(const std::string& text) {
  return text.empty() ? nullptr : text.c_str();
}

std::string Label(const ModelName& model) {
  return model.version.empty() ? model.name : model.name + "@" + model.version;
}

int FailOnModel(const Invocation& invocation, const kvc_error& error) {
  return invocation.Fail(error, error.code == KVC_NOT_FOUND ? kSeeModels : std::string_view());
}

kvc_device_choice ChoiceOf(const TierChoice& tier) {
  return {.struct_size = sizeof(kvc_device_choice), .device = OrNull(tier.device)};
}

int FailOnTier(const Invocation& invocation, const TierChoice& tier, const kvc_error& error) {
  if (!tier.on_device) return FailOnModel(invocation, error);
  return invocation.Fail(error, error.code == KVC_NOT_FOUND
                                    ? "`terracectl models` lists the models, and the daemon's "
                                      "configuration names the devices"
                                    : std::string_view());
}

int FailOnAccess(const Invocation& invocation, const kvc_error& error) {
  return invocation.Fail(error, error.code == KVC_NOT_FOUND
                                    ? "`terracectl models` lists the models, and the daemon's "
                                      "configuration names the tenants"
                                    : std::string_view());
}

void ShowOn(void* bar, uint64_t done, uint64_t total) {
  static_cast<ProgressBar*>(bar)->Show(done, total);
}

int Print(const Invocation& invocation, const nlohmann::ordered_json& json,
          const std::string& text) {
  return PrintOut((invocation.json() ? json.dump() : text) + "\n") ? kExitOk
                                                                   : invocation.FailOutput();
}

std::string HexOf(const kvc_key& key) {
  std::array<uint8_t, 32> bytes;
  std::copy(std::begin(key.bytes), std::end(key.bytes), bytes.begin());
  return Hex(bytes);
}

}  // namespace

ModelName ParseModelName(const std::string& text) {
  const size_t at = text.rfind('@');
  if (at == std::string::npos) return {text, {}};
  return {text.substr(0, at), text.substr(at + 1)};
}

int AddModel(Invocation& invocation, const ModelName& model, const std::string& path,
             bool import_image) {
  // The daemon may run elsewhere: it is told the absolute path.
  std::error_code failed;
  const std::string absolute = std::filesystem::absolute(path, failed).string();
  if (int code = invocation.Connect(Invocation::Access::kReadOnly); code != kExitOk) return code;
  kvc_model_added added{};
  added.struct_size = sizeof added;
  kvc_error error{};
  const int32_t timeout_ms = invocation.TimeoutMs(kLongCallSeconds);
  kvc_code code = KVC_OK;
  if (import_image) {
    ProgressBar bar("import " + Label(model), !invocation.json());
    code = kvc_model_import_with_progress(invocation.client(), model.name.c_str(),
                                          model.version.c_str(), absolute.c_str(), ShowOn, &bar,
                                          timeout_ms, &added, &error);
  } else {
    code = kvc_model_add(invocation.client(), model.name.c_str(), model.version.c_str(),
                         absolute.c_str(), timeout_ms, &added, &error);
  }
  if (code != KVC_OK) return invocation.Fail(error);
  const std::string why_not = Printable(added.why_not);
  std::string text = "added " + Label(model) + ": " + HumanCount(added.tensors) + " tensors, " +
                     HumanBytes(added.bytes) + " in " + HumanCount(added.files) +
                     (added.files == 1 ? " file" : " files");
  if (added.durable == 0) text += "\nwill not survive a restart of the daemon: " + why_not;
  const bool imported = added.imported != 0;
  const std::string why_not_imported =
      import_image && !imported && added.why_not_imported[0] == '\0'
          ? "the daemon does not know how"
          : Printable(added.why_not_imported);
  if (imported) text += "\nimported: later loads read its image";
  if (import_image && !imported) text += "\nnot imported: " + why_not_imported;
  if (!imported) text += "\nnext: terracectl load " + Label(model);
  nlohmann::ordered_json json = {{"name", model.name},
                                 {"version", model.version},
                                 {"tensors", added.tensors},
                                 {"bytes", added.bytes},
                                 {"blocks", added.blocks},
                                 {"files", added.files},
                                 {"durable", added.durable != 0},
                                 {"why_not", why_not},
                                 {"imported", imported},
                                 {"why_not_imported", why_not_imported}};
  return Print(invocation, json, text);
}

int RemoveModel(Invocation& invocation, const ModelName& model) {
  if (int code = invocation.Connect(Invocation::Access::kReadOnly); code != kExitOk) return code;
  kvc_error error{};
  if (kvc_model_remove(invocation.client(), model.name.c_str(), OrNull(model.version),
                       invocation.TimeoutMs(kShortCallSeconds), &error) != KVC_OK) {
    return FailOnModel(invocation, error);
  }
  return Print(invocation, {{"removed", Label(model)}}, "removed " + Label(model));
}

int GrantModel(Invocation& invocation, const std::string& name, const std::string& tenant) {
  if (int code = invocation.Connect(Invocation::Access::kReadOnly); code != kExitOk) return code;
  kvc_error error{};
  if (kvc_model_grant(invocation.client(), name.c_str(), tenant.c_str(),
                      invocation.TimeoutMs(kShortCallSeconds), &error) != KVC_OK) {
    return FailOnAccess(invocation, error);
  }
  return Print(invocation, {{"name", name}, {"tenant", tenant}, {"granted", true}},
               "granted " + name + " to " + tenant);
}

int RevokeModel(Invocation& invocation, const std::string& name, const std::string& tenant) {
  if (int code = invocation.Connect(Invocation::Access::kReadOnly); code != kExitOk) return code;
  kvc_error error{};
  if (kvc_model_revoke(invocation.client(), name.c_str(), tenant.c_str(),
                       invocation.TimeoutMs(kShortCallSeconds), &error) != KVC_OK) {
    return FailOnAccess(invocation, error);
  }
  return Print(
      invocation, {{"name", name}, {"tenant", tenant}, {"granted", false}},
      "revoked " + name + " from " + tenant + ": what it has attached stays until it lets go");
}

int LoadModel(Invocation& invocation, const ModelName& model, const TierChoice& tier) {
  if (int code = invocation.Connect(Invocation::Access::kReadOnly); code != kExitOk) return code;
  kvc_loaded loaded{};
  loaded.struct_size = sizeof loaded;
  kvc_error error{};
  const auto start = std::chrono::steady_clock::now();
  kvc_code code = KVC_OK;
  {
    ProgressBar bar("load " + Label(model), !invocation.json());
    const kvc_device_choice choice = ChoiceOf(tier);
    const int32_t timeout_ms = invocation.TimeoutMs(kLongCallSeconds);
    code = tier.on_device
               ? kvc_load_to_device(invocation.client(), model.name.c_str(), OrNull(model.version),
                                    &choice, ShowOn, &bar, timeout_ms, &loaded, &error)
               : kvc_load(invocation.client(), model.name.c_str(), OrNull(model.version), ShowOn,
                          &bar, timeout_ms, &loaded, &error);
  }
  if (code != KVC_OK) return FailOnTier(invocation, tier, error);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const std::string digest = HexOf(loaded.digest);
  const uint64_t rate = static_cast<uint64_t>(static_cast<double>(loaded.bytes) / seconds);
  char took[32];
  std::snprintf(took, sizeof took, "%.2f s", seconds);
  nlohmann::ordered_json json = {{"name", model.name},      {"version", loaded.version},
                                 {"bytes", loaded.bytes},   {"digest", digest},
                                 {"device", loaded.device}, {"seconds", seconds}};
  const std::string where = loaded.device == 0 ? "" : " to device " + std::to_string(loaded.device);
  return Print(invocation, json,
               "loaded " + Label({model.name, Printable(loaded.version)}) + where + ": " +
                   HumanBytes(loaded.bytes) + " in " + took + " (" + HumanBytes(rate) +
                   "/s), digest " + digest.substr(0, 12));
}

int UnloadModel(Invocation& invocation, const ModelName& model, const TierChoice& tier) {
  if (int code = invocation.Connect(Invocation::Access::kReadOnly); code != kExitOk) return code;
  kvc_unloaded unloaded{};
  unloaded.struct_size = sizeof unloaded;
  kvc_error error{};
  const kvc_device_choice choice = ChoiceOf(tier);
  const int32_t timeout_ms = invocation.TimeoutMs(kShortCallSeconds);
  const kvc_code code =
      tier.on_device
          ? kvc_unload_from_device(invocation.client(), model.name.c_str(), OrNull(model.version),
                                   &choice, timeout_ms, &unloaded, &error)
          : kvc_unload(invocation.client(), model.name.c_str(), OrNull(model.version), timeout_ms,
                       &unloaded, &error);
  if (code != KVC_OK) return FailOnTier(invocation, tier, error);
  std::string text =
      "unloaded " + Label(model) + ": " + HumanBytes(unloaded.freed_bytes) + " freed";
  if (unloaded.held_bytes > 0) {
    text += ", " + HumanBytes(unloaded.held_bytes) +
            " still held by clients and freed when they let go (see `terracectl clients`)";
  }
  return Print(invocation,
               {{"name", model.name},
                {"version", model.version},
                {"freed_bytes", unloaded.freed_bytes},
                {"held_bytes", unloaded.held_bytes}},
               text);
}

}  // namespace terrace::cli
