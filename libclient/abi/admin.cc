// The C ABI: the operator's verbs.
#include <kvclient/admin.h>

#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "libclient/abi/abi.h"
#include "libclient/admin_messages.h"
#include "libclient/model_files/model_files.h"

using namespace terrace;               // NOLINT(google-build-using-namespace)
using namespace terrace::client::abi;  // NOLINT(google-build-using-namespace)
using terrace::client::Client;
using terrace::client::Connection;
using terrace::client::Contact;
using terrace::client::Deadline;

namespace {

constexpr size_t kMaxModelName = 128;
constexpr size_t kMaxTenantName = 64;
constexpr size_t kMaxDeviceName = 64;  // A UUID of a GPU or a part of one.

// Name and version of a model as its verbs take them.
struct ModelName {
  std::string name;
  std::string version;
};
Result<ModelName> NameOf(const kvc_client* client, const char* name, const char* version) {
  if (client == nullptr || name == nullptr) return Invalid("client or name is NULL");
  RETURN_IF_ERROR(CheckClient(*Of(client)->client));
  ModelName model;
  ASSIGN_OR_RETURN(model.name, TextOf("name", name, kMaxModelName));
  ASSIGN_OR_RETURN(model.version, TextOf("version", version, kMaxModelName));
  return model;
}

Status SetAccess(kvc_client* client, const char* name, const char* tenant, bool granted,
                 int32_t timeout_ms) {
  if (tenant == nullptr) return Invalid("tenant is NULL");
  ASSIGN_OR_RETURN(ModelName model, NameOf(client, name, nullptr));
  messages::ModelAccess request{.name = std::move(model.name), .tenant = {}, .granted = granted};
  ASSIGN_OR_RETURN(request.tenant, TextOf("tenant", tenant, kMaxTenantName));
  Client& core = *Of(client)->client;
  ASSIGN_OR_RETURN(const Deadline deadline, core.DeadlineOf(timeout_ms));
  ASSIGN_OR_RETURN(const auto now, core.contact());
  RETURN_IF_ERROR(now.CheckDoes(wire::kModelAccessCapability, "grant or revoke models"));
  return now.connection->Call(request, deadline).status();
}

Connection::Progress Telling(kvc_progress progress, void* context) {
  if (progress == nullptr) return {};
  return [=](uint64_t done, uint64_t total) { progress(context, done, total); };
}

// Into an array of a result struct: cut if longer.
template <size_t kSize>
void CopyText(const std::string& text, char (&out)[kSize]) {
  const size_t bytes = std::min(text.size(), kSize - 1);
  std::memcpy(out, text.data(), bytes);
  out[bytes] = 0;
}

Status WriteLoaded(const messages::LoadReply& reply, kvc_loaded* loaded) {
  if (loaded == nullptr) return {};
  kvc_loaded result{};
  result.bytes = reply.bytes;
  result.device = reply.device;
  std::memcpy(result.digest.bytes, reply.digest.data(),
              std::min(reply.digest.size(), sizeof result.digest.bytes));
  CopyText(reply.version, result.version);
  return Write(result, loaded);
}

Status WriteUnloaded(const messages::UnloadReply& reply, kvc_unloaded* unloaded) {
  if (unloaded == nullptr) return {};
  return Write(
      kvc_unloaded{
          .struct_size = 0, .freed_bytes = reply.freed_bytes, .held_bytes = reply.held_bytes},
      unloaded);
}

// The number of the device that is meant, by the daemon's list.
// `of_several`: what nobody chose from several is.
Result<uint32_t> DeviceOf(const Contact& now, const kvc_device_choice* choice, Deadline deadline,
                          std::optional<uint32_t> of_several = {}) {
  ASSIGN_OR_RETURN(const kvc_device_choice asked, Read(choice));
  ASSIGN_OR_RETURN(const std::string wanted, TextOf("device", asked.device, kMaxDeviceName));
  RETURN_IF_ERROR(now.CheckDoes(wire::kDeviceCapability, "keep weights on devices"));
  ASSIGN_OR_RETURN(const auto answer, now.connection->Call(messages::Devices{}, deadline));
  const std::vector<messages::Device>& devices = answer.reply.devices;
  if (devices.empty()) return Status(Code::kNotFound, "device: the daemon has no device's memory");
  if (wanted.empty() && devices.size() == 1) return devices.front().number;
  std::string names;
  for (const messages::Device& device : devices) {
    const std::string number = std::to_string(device.number);
    if (!wanted.empty() && (wanted == number || wanted == device.uuid)) return device.number;
    names += (names.empty() ? "" : ", ") + number + " (" +
             (device.uuid.empty() ? "not known yet" : device.uuid) + ")";
  }
  if (wanted.empty() && of_several) return *of_several;
  if (wanted.empty()) {
    return Status(Code::kInvalidArgument, "device: there are several, choose one: " + names);
  }
  return Status(Code::kNotFound, "device: there is no '" + wanted + "', but " + names);
}

}  // namespace

void kvc_free(void* memory) {
  std::free(memory);
}

kvc_code kvc_report(kvc_client* client, const kvc_report_options* options, int32_t timeout_ms,
                    char** json, kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (client == nullptr || options == nullptr || json == nullptr) {
      return Invalid("client, options or json is NULL");
    }
    Client& core = *Of(client)->client;
    RETURN_IF_ERROR(CheckClient(core));
    ASSIGN_OR_RETURN(const kvc_report_options asked, Read(options));
    messages::Report request;
    ASSIGN_OR_RETURN(request.what, TextOf("what", asked.what, 64));
    ASSIGN_OR_RETURN(request.space, TextOf("space", asked.space, 64));
    request.limit = asked.limit;
    ASSIGN_OR_RETURN(const Deadline deadline, core.DeadlineOf(timeout_ms));
    ASSIGN_OR_RETURN(const auto answer, core.Call(request, deadline));
    *json = ::strdup(answer.reply.json.c_str());
    if (*json == nullptr) return Status(Code::kExhausted, "out of memory");
    return {};
  });
}

namespace {

kvc_code AddModel(kvc_client* client, const char* name, const char* version, const char* path,
                  bool import_image, const Connection::Progress& progress, int32_t timeout_ms,
                  kvc_model_added* added, kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (version == nullptr || path == nullptr) return Invalid("version or path is NULL");
    ASSIGN_OR_RETURN(ModelName model, NameOf(client, name, version));
    Client& core = *Of(client)->client;
    ASSIGN_OR_RETURN(const Deadline deadline, core.DeadlineOf(timeout_ms));
    ASSIGN_OR_RETURN(ModelFiles files, FindModelFiles(path));
    std::vector<UniqueFd> opened;
    // More descriptors than a message may have: the daemon opens such a model by its paths.
    if (files.paths.size() <= wire::kMaxFds) {
      ASSIGN_OR_RETURN(opened, OpenModelFiles(files));
    }
    std::vector<int> fds;
    for (const UniqueFd& fd : opened)
      fds.push_back(fd.get());
    const messages::ModelAdd request{.name = std::move(model.name),
                                     .version = std::move(model.version),
                                     .files = std::move(files.paths),
                                     .index = std::move(files.index),
                                     .import_image = import_image};
    ASSIGN_OR_RETURN(const auto answer, core.Call(request, deadline, fds, progress));
    if (added == nullptr) return {};
    kvc_model_added result{};
    result.tensors = answer.reply.tensors;
    result.blocks = answer.reply.blocks;
    result.bytes = answer.reply.bytes;
    result.files = static_cast<uint32_t>(request.files.size());
    result.durable = answer.reply.durable ? 1 : 0;
    CopyText(answer.reply.why_not, result.why_not);
    result.imported = answer.reply.imported ? 1 : 0;
    CopyText(answer.reply.why_not_imported, result.why_not_imported);
    if (request.import_image && !answer.reply.imported && answer.reply.why_not_imported.empty()) {
      CopyText("the daemon is too old to make images", result.why_not_imported);
    }
    return Write(result, added);
  });
}

}  // namespace

kvc_code kvc_model_add(kvc_client* client, const char* name, const char* version, const char* path,
                       int32_t timeout_ms, kvc_model_added* added, kvc_error* error) {
  return AddModel(client, name, version, path, false, {}, timeout_ms, added, error);
}

kvc_code kvc_model_import(kvc_client* client, const char* name, const char* version,
                          const char* path, int32_t timeout_ms, kvc_model_added* added,
                          kvc_error* error) {
  return kvc_model_import_with_progress(client, name, version, path, nullptr, nullptr, timeout_ms,
                                        added, error);
}

kvc_code kvc_model_import_with_progress(kvc_client* client, const char* name, const char* version,
                                        const char* path, kvc_progress progress, void* context,
                                        int32_t timeout_ms, kvc_model_added* added,
                                        kvc_error* error) {
  return AddModel(client, name, version, path, true, Telling(progress, context), timeout_ms, added,
                  error);
}

kvc_code kvc_model_remove(kvc_client* client, const char* name, const char* version,
                          int32_t timeout_ms, kvc_error* error) {
  return Run(error, [&]() -> Status {
    ASSIGN_OR_RETURN(ModelName model, NameOf(client, name, version));
    Client& core = *Of(client)->client;
    ASSIGN_OR_RETURN(const Deadline deadline, core.DeadlineOf(timeout_ms));
    const messages::ModelRemove request{.name = std::move(model.name),
                                        .version = std::move(model.version)};
    return core.Call(request, deadline).status();
  });
}

kvc_code kvc_model_grant(kvc_client* client, const char* name, const char* tenant,
                         int32_t timeout_ms, kvc_error* error) {
  return Run(error, [&] { return SetAccess(client, name, tenant, true, timeout_ms); });
}

kvc_code kvc_model_revoke(kvc_client* client, const char* name, const char* tenant,
                          int32_t timeout_ms, kvc_error* error) {
  return Run(error, [&] { return SetAccess(client, name, tenant, false, timeout_ms); });
}

kvc_code kvc_load(kvc_client* client, const char* name, const char* version, kvc_progress progress,
                  void* context, int32_t timeout_ms, kvc_loaded* loaded, kvc_error* error) {
  return Run(error, [&]() -> Status {
    ASSIGN_OR_RETURN(ModelName model, NameOf(client, name, version));
    Client& core = *Of(client)->client;
    ASSIGN_OR_RETURN(const Deadline deadline, core.DeadlineOf(timeout_ms));
    const messages::Load request{.name = std::move(model.name),
                                 .version = std::move(model.version)};
    ASSIGN_OR_RETURN(const auto answer,
                     core.Call(request, deadline, {}, Telling(progress, context)));
    return WriteLoaded(answer.reply, loaded);
  });
}

kvc_code kvc_unload(kvc_client* client, const char* name, const char* version, int32_t timeout_ms,
                    kvc_unloaded* unloaded, kvc_error* error) {
  return Run(error, [&]() -> Status {
    ASSIGN_OR_RETURN(ModelName model, NameOf(client, name, version));
    Client& core = *Of(client)->client;
    ASSIGN_OR_RETURN(const Deadline deadline, core.DeadlineOf(timeout_ms));
    const messages::Unload request{.name = std::move(model.name),
                                   .version = std::move(model.version)};
    ASSIGN_OR_RETURN(const auto answer, core.Call(request, deadline));
    return WriteUnloaded(answer.reply, unloaded);
  });
}

kvc_code kvc_load_to_device(kvc_client* client, const char* name, const char* version,
                            const kvc_device_choice* choice, kvc_progress progress, void* context,
                            int32_t timeout_ms, kvc_loaded* loaded, kvc_error* error) {
  return Run(error, [&]() -> Status {
    ASSIGN_OR_RETURN(ModelName model, NameOf(client, name, version));
    Client& core = *Of(client)->client;
    ASSIGN_OR_RETURN(const Deadline deadline, core.DeadlineOf(timeout_ms));
    ASSIGN_OR_RETURN(const auto now, core.contact());
    ASSIGN_OR_RETURN(const uint32_t device, DeviceOf(now, choice, deadline, messages::kAnyDevice));
    const messages::Load request{
        .name = std::move(model.name), .version = std::move(model.version), .device = device};
    ASSIGN_OR_RETURN(const auto answer,
                     now.connection->Call(request, deadline, {}, Telling(progress, context)));
    return WriteLoaded(answer.reply, loaded);
  });
}

kvc_code kvc_unload_from_device(kvc_client* client, const char* name, const char* version,
                                const kvc_device_choice* choice, int32_t timeout_ms,
                                kvc_unloaded* unloaded, kvc_error* error) {
  return Run(error, [&]() -> Status {
    ASSIGN_OR_RETURN(ModelName model, NameOf(client, name, version));
    Client& core = *Of(client)->client;
    ASSIGN_OR_RETURN(const Deadline deadline, core.DeadlineOf(timeout_ms));
    ASSIGN_OR_RETURN(const auto now, core.contact());
    ASSIGN_OR_RETURN(const uint32_t device, DeviceOf(now, choice, deadline));
    const messages::Unload request{
        .name = std::move(model.name), .version = std::move(model.version), .device = device};
    ASSIGN_OR_RETURN(const auto answer, now.connection->Call(request, deadline));
    return WriteUnloaded(answer.reply, unloaded);
  });
}

kvc_code kvc_evict(kvc_client* client, uint64_t bytes, int32_t timeout_ms, kvc_evicted* evicted,
                   kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (client == nullptr) return Invalid("client is NULL");
    Client& core = *Of(client)->client;
    RETURN_IF_ERROR(CheckClient(core));
    ASSIGN_OR_RETURN(const Deadline deadline, core.DeadlineOf(timeout_ms));
    ASSIGN_OR_RETURN(const auto answer, core.Call(messages::Evict{.bytes = bytes}, deadline));
    if (evicted == nullptr) return {};
    return Write(kvc_evicted{.struct_size = 0,
                             .pages = answer.reply.pages,
                             .blocks = answer.reply.blocks,
                             .bytes = answer.reply.bytes},
                 evicted);
  });
}

kvc_code kvc_demote(kvc_client* client, uint64_t bytes, int32_t timeout_ms, kvc_demoted* demoted,
                    kvc_error* error) {
  return kvc_demote_with_progress(client, bytes, nullptr, nullptr, timeout_ms, demoted, error);
}

kvc_code kvc_demote_with_progress(kvc_client* client, uint64_t bytes, kvc_progress progress,
                                  void* context, int32_t timeout_ms, kvc_demoted* demoted,
                                  kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (client == nullptr) return Invalid("client is NULL");
    Client& core = *Of(client)->client;
    RETURN_IF_ERROR(CheckClient(core));
    ASSIGN_OR_RETURN(const Deadline deadline, core.DeadlineOf(timeout_ms));
    ASSIGN_OR_RETURN(const auto now, core.contact());
    RETURN_IF_ERROR(now.CheckDoes(wire::kStoreCapability, "demote pages"));
    ASSIGN_OR_RETURN(const auto answer,
                     now.connection->Call(messages::Demote{.bytes = bytes}, deadline, {},
                                          Telling(progress, context)));
    if (demoted == nullptr) return {};
    return Write(
        kvc_demoted{.struct_size = 0, .pages = answer.reply.pages, .bytes = answer.reply.bytes},
        demoted);
  });
}

kvc_code kvc_promote(kvc_client* client, const kvc_promote_options* options, kvc_progress progress,
                     void* context, int32_t timeout_ms, kvc_promoted* promoted, kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (client == nullptr || options == nullptr) return Invalid("client or options is NULL");
    Client& core = *Of(client)->client;
    RETURN_IF_ERROR(CheckClient(core));
    ASSIGN_OR_RETURN(const kvc_promote_options asked, Read(options));
    messages::Promote request;
    ASSIGN_OR_RETURN(request.tenant, TextOf("tenant", asked.tenant, kMaxTenantName));
    if (asked.space != nullptr) {
      request.space_id.assign(reinterpret_cast<const char*>(asked.space->bytes),
                              sizeof asked.space->bytes);
    }
    request.bytes = asked.bytes;
    request.no_wait = asked.no_wait != 0;
    ASSIGN_OR_RETURN(const Deadline deadline, core.DeadlineOf(timeout_ms));
    ASSIGN_OR_RETURN(const auto now, core.contact());
    RETURN_IF_ERROR(now.CheckDoes(wire::kStoreCareCapability, "promote pages"));
    ASSIGN_OR_RETURN(const auto answer,
                     now.connection->Call(request, deadline, {}, Telling(progress, context)));
    if (promoted == nullptr) return {};
    return Write(
        kvc_promoted{.struct_size = 0, .pages = answer.reply.pages, .bytes = answer.reply.bytes},
        promoted);
  });
}

kvc_code kvc_fsck(kvc_client* client, const kvc_fsck_options* options, kvc_progress progress,
                  void* context, int32_t timeout_ms, char** json, kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (client == nullptr || options == nullptr || json == nullptr) {
      return Invalid("client, options or json is NULL");
    }
    Client& core = *Of(client)->client;
    RETURN_IF_ERROR(CheckClient(core));
    ASSIGN_OR_RETURN(const kvc_fsck_options asked, Read(options));
    const messages::Fsck request{.read_data = asked.read_data != 0, .repair = asked.repair != 0};
    ASSIGN_OR_RETURN(const Deadline deadline, core.DeadlineOf(timeout_ms));
    ASSIGN_OR_RETURN(const auto now, core.contact());
    RETURN_IF_ERROR(now.CheckDoes(wire::kStoreCareCapability, "check a store"));
    ASSIGN_OR_RETURN(const auto answer,
                     now.connection->Call(request, deadline, {}, Telling(progress, context)));
    *json = ::strdup(answer.reply.json.c_str());
    if (*json == nullptr) return Status(Code::kExhausted, "out of memory");
    return {};
  });
}

kvc_code kvc_flush(kvc_client* client, int32_t timeout_ms, kvc_error* error) {
  return kvc_flush_with_progress(client, nullptr, nullptr, timeout_ms, error);
}

kvc_code kvc_flush_with_progress(kvc_client* client, kvc_progress progress, void* context,
                                 int32_t timeout_ms, kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (client == nullptr) return Invalid("client is NULL");
    Client& core = *Of(client)->client;
    RETURN_IF_ERROR(CheckClient(core));
    ASSIGN_OR_RETURN(const Deadline deadline, core.DeadlineOf(timeout_ms));
    ASSIGN_OR_RETURN(const auto now, core.contact());
    RETURN_IF_ERROR(now.CheckDoes(wire::kStoreCapability, "flush a store"));
    return now.connection->Call(messages::Flush{}, deadline, {}, Telling(progress, context))
        .status();
  });
}
