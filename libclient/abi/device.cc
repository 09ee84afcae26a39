// The C ABI: devices.
#include <string>
#include <utility>

#include "libclient/abi/abi.h"

using namespace terrace;               // NOLINT(google-build-using-namespace)
using namespace terrace::client::abi;  // NOLINT(google-build-using-namespace)
using terrace::client::Client;
using terrace::client::Deadline;
using terrace::client::Device;

namespace {

constexpr size_t kMaxUuid = 64;

Status CheckOpen(const kvc_device* device) {
  if (device == nullptr) return Invalid("device is NULL");
  return CheckClient(*Of(device)->device->client());
}

Status CheckWeights(const kvc_weights* weights) {
  if (weights == nullptr) return Invalid("weights is NULL");
  return CheckClient(Of(weights)->client());
}

}  // namespace

kvc_code kvc_device_open(kvc_client* client, const kvc_device_options* options, int32_t timeout_ms,
                         kvc_device** device, kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (client == nullptr || device == nullptr) return Invalid("client or device is NULL");
    const std::shared_ptr<Client>& core = Of(client)->client;
    RETURN_IF_ERROR(CheckClient(*core));
    ASSIGN_OR_RETURN(const kvc_device_options asked, Read(options));
    Device::Choice choice{.uuid = {}, .ordinal = asked.ordinal};
    ASSIGN_OR_RETURN(choice.uuid, TextOf("uuid", asked.uuid, kMaxUuid));
    ASSIGN_OR_RETURN(const Deadline deadline, core->DeadlineOf(timeout_ms));
    ASSIGN_OR_RETURN(std::shared_ptr<Device> opened, Device::Open(core, choice, deadline));
    *device = ToHandle<kvc_device>(new DeviceHandle{std::move(opened)});
    return {};
  });
}

void kvc_device_close(kvc_device* device) {
  if (device == nullptr || Of(device)->device->client()->in_child()) return;
  Run(nullptr, [&]() -> Status {
    delete Of(device);
    return {};
  });
}

kvc_code kvc_device_get_info(const kvc_device* device, kvc_device_info* info) {
  return Run(nullptr, [&]() -> Status {
    RETURN_IF_ERROR(CheckOpen(device));
    const Device& opened = *Of(device)->device;
    const messages::Device& facts = opened.facts();
    kvc_device_info now{};
    now.number = opened.NumberIn(opened.client()->epoch());
    now.uuid = facts.uuid.c_str();
    now.name = facts.name.c_str();
    now.kind = facts.kind.c_str();
    now.slabs = facts.slabs ? 1 : 0;
    now.granularity = facts.granularity;
    now.capacity_bytes = facts.capacity_bytes;
    return Write(now, info);
  });
}

kvc_code kvc_reader_set_device(kvc_reader* reader, kvc_device* device) {
  return Run(nullptr, [&]() -> Status {
    if (reader == nullptr) return Invalid("reader is NULL");
    RETURN_IF_ERROR(CheckClient(*Of(reader)->client()));
    RETURN_IF_ERROR(CheckDevice(device, *Of(reader)->client()));
    Of(reader)->SetDevice(device == nullptr ? nullptr : Of(device)->device);
    return {};
  });
}

kvc_code kvc_device_base(kvc_device* device, const kvc_space* space, const void** base) {
  return Run(nullptr, [&]() -> Status {
    RETURN_IF_ERROR(CheckOpen(device));
    if (space == nullptr || base == nullptr) return Invalid("space or base is NULL");
    ASSIGN_OR_RETURN(*base,
                     Of(device)->device->memory().PagesBase(Of(space)->space->facts().page_bytes));
    return {};
  });
}

int kvc_device_event_fd(const kvc_device* device) {
  return device == nullptr ? -1 : Of(device)->device->event_fd();
}

kvc_code kvc_device_next_request(kvc_device* device, int32_t timeout_ms, kvc_unmap_request* request,
                                 kvc_error* error) {
  return Run(error, [&]() -> Status {
    RETURN_IF_ERROR(CheckOpen(device));
    if (timeout_ms < 0) return Invalid("timeout_ms is negative");
    if (request == nullptr || request->struct_size < sizeof(size_t)) {
      return Invalid("request is NULL, or its struct_size is not set");
    }
    ASSIGN_OR_RETURN(const Device::Request next,
                     Of(device)->device->Next(Deadline::In(timeout_ms)));
    kvc_unmap_request now{};
    now.weights = ToHandle<kvc_weights>(next.weights);
    now.deadline_ms = next.deadline.left_ms();
    now.lost = next.lost ? 1 : 0;
    return Write(now, request);
  });
}

kvc_code kvc_weights_unmap(kvc_weights* weights, int32_t timeout_ms, kvc_error* error) {
  return Run(error, [&]() -> Status {
    RETURN_IF_ERROR(CheckWeights(weights));
    ASSIGN_OR_RETURN(const Deadline deadline, Of(weights)->client().DeadlineOf(timeout_ms));
    return Of(weights)->Unmap(deadline);
  });
}

kvc_code kvc_weights_remap(kvc_weights* weights, int32_t timeout_ms, kvc_error* error) {
  return Run(error, [&]() -> Status {
    RETURN_IF_ERROR(CheckWeights(weights));
    ASSIGN_OR_RETURN(const Deadline deadline, Of(weights)->client().DeadlineOf(timeout_ms));
    return Of(weights)->Remap(deadline);
  });
}
