// Memory of devices in C++. See device.h, which has the rules, and kvclient.hpp.
#ifndef KVCLIENT_DEVICE_HPP
#define KVCLIENT_DEVICE_HPP

#include <kvclient/device.h>

#include <cstdint>
#include <kvclient/result.hpp>

namespace kvc {

// One device of the daemon's, closed with the object. Its get() goes into the options of Attach,
// Grant and Prefetch, and to Reader::SetDevice.
class Device {
 public:
  static Result<Device> Open(kvc_client* client, kvc_device_options options = {},
                             std::int32_t timeout_ms = 0) {
    options.struct_size = sizeof options;
    kvc_device* handle = nullptr;
    Status status = detail::StatusOf([&](kvc_error* error) {
      return kvc_device_open(client, &options, timeout_ms, &handle, error);
    });
    if (!status.ok()) return status;
    Device device;
    device.handle_.reset(handle);
    return device;
  }
  kvc_device_info info() const {
    kvc_device_info info{};
    info.struct_size = sizeof info;
    kvc_device_get_info(handle_.get(), &info);
    return info;
  }
  int event_fd() const { return kvc_device_event_fd(handle_.get()); }
  // KVC_DEADLINE_EXCEEDED: nothing is asked for. 0 does not wait.
  Result<kvc_unmap_request> NextRequest(std::int32_t timeout_ms = 0) {
    kvc_unmap_request request{};
    request.struct_size = sizeof request;
    Status status = detail::StatusOf([&](kvc_error* error) {
      return kvc_device_next_request(handle_.get(), timeout_ms, &request, error);
    });
    if (!status.ok()) return status;
    return request;
  }
  kvc_device* get() const { return handle_.get(); }

 private:
  detail::Owned<kvc_device, kvc_device_close> handle_;
};

}  // namespace kvc

#endif  // KVCLIENT_DEVICE_HPP
