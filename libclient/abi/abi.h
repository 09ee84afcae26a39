// What every function of the C ABI shares: handles, versions of structs, errors.
//
// A handle is a pointer to an object of the library whose type only the library knows. Exceptions
// (memory that is not there) and forked children stop here.
#pragma once

#include <kvclient/device.h>
#include <kvclient/kvclient.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <string_view>

#include "base/digest.h"
#include "base/status.h"
#include "libclient/client.h"
#include "libclient/device/device.h"
#include "libclient/fetch.h"
#include "libclient/grant_set.h"
#include "libclient/page_keys.h"
#include "libclient/reader.h"
#include "libclient/space.h"
#include "libclient/weight_set.h"

namespace terrace::client::abi {

// ---- Handles

struct ClientHandle {
  std::shared_ptr<Client> client;
};
struct DeviceHandle {
  std::shared_ptr<Device> device;
};
struct SpaceHandle {
  std::shared_ptr<Client> client;
  std::shared_ptr<Space> space;
};

inline ClientHandle* Of(kvc_client* handle) {
  return reinterpret_cast<ClientHandle*>(handle);
}
inline const ClientHandle* Of(const kvc_client* handle) {
  return reinterpret_cast<const ClientHandle*>(handle);
}
inline SpaceHandle* Of(kvc_space* handle) {
  return reinterpret_cast<SpaceHandle*>(handle);
}
inline const SpaceHandle* Of(const kvc_space* handle) {
  return reinterpret_cast<const SpaceHandle*>(handle);
}
inline DeviceHandle* Of(kvc_device* handle) {
  return reinterpret_cast<DeviceHandle*>(handle);
}
inline const DeviceHandle* Of(const kvc_device* handle) {
  return reinterpret_cast<const DeviceHandle*>(handle);
}
inline PageSequence* Of(kvc_sequence* handle) {
  return reinterpret_cast<PageSequence*>(handle);
}
inline const PageSequence* Of(const kvc_sequence* handle) {
  return reinterpret_cast<const PageSequence*>(handle);
}
inline Reader* Of(kvc_reader* handle) {
  return reinterpret_cast<Reader*>(handle);
}
inline const Reader* Of(const kvc_reader* handle) {
  return reinterpret_cast<const Reader*>(handle);
}
inline PageSet* Of(kvc_pages* handle) {
  return reinterpret_cast<PageSet*>(handle);
}
inline const PageSet* Of(const kvc_pages* handle) {
  return reinterpret_cast<const PageSet*>(handle);
}
inline GrantSet* Of(kvc_grants* handle) {
  return reinterpret_cast<GrantSet*>(handle);
}
inline const GrantSet* Of(const kvc_grants* handle) {
  return reinterpret_cast<const GrantSet*>(handle);
}
inline Fetch* Of(kvc_fetch* handle) {
  return reinterpret_cast<Fetch*>(handle);
}
inline const Fetch* Of(const kvc_fetch* handle) {
  return reinterpret_cast<const Fetch*>(handle);
}
inline WeightSet* Of(kvc_weights* handle) {
  return reinterpret_cast<WeightSet*>(handle);
}
inline const WeightSet* Of(const kvc_weights* handle) {
  return reinterpret_cast<const WeightSet*>(handle);
}
template <class Handle, class Object>
Handle* ToHandle(Object* object) {
  return reinterpret_cast<Handle*>(object);
}

static_assert(sizeof(kvc_key) == sizeof(Digest) && alignof(kvc_key) == alignof(Digest));
inline const Digest* Of(const kvc_key* key) {
  return reinterpret_cast<const Digest*>(key);
}
inline Digest* Of(kvc_key* key) {
  return reinterpret_cast<Digest*>(key);
}

// ---- Errors

inline Status Invalid(std::string message) {
  return {Code::kInvalidArgument, std::move(message)};
}
inline Status InChild() {
  return {Code::kPermissionDenied, "this handle belongs to the process that forked"};
}
inline Status CheckClient(const Client& client) {
  return client.in_child() ? InChild() : Status();
}

inline kvc_code Report(const Status& status, kvc_error* error) {
  const auto code = static_cast<kvc_code>(status.code());
  if (!status.ok() && error != nullptr) {
    error->code = code;
    const size_t bytes = std::min(status.message().size(), sizeof error->message - 1);
    std::memcpy(error->message, status.message().data(), bytes);
    error->message[bytes] = 0;
  }
  return code;
}

// Of an option that may be NULL: it must be of the same client.
inline Status CheckDevice(const kvc_device* device, const Client& client) {
  if (device == nullptr || Of(device)->device->client().get() == &client) return {};
  return Invalid("device belongs to another client");
}

// Runs the body of a call.
template <class Body>
kvc_code Run(kvc_error* error, Body&& body) noexcept {
  try {
    return Report(body(), error);
  } catch (const std::bad_alloc&) {
    return Report({Code::kExhausted, "out of memory"}, error);
  } catch (const std::exception& e) {
    return Report({Code::kInternal, e.what()}, error);
  }
}

// ---- Structs

// A copy of what the caller's version of the struct has; members that it lacks are zero.
template <class Options>
Result<Options> Read(const Options* options) {
  Options copy{};
  if (options != nullptr) {
    if (options->struct_size < sizeof(size_t)) return Invalid("struct_size is not set");
    std::memcpy(&copy, options, std::min(options->struct_size, sizeof copy));
  }
  copy.struct_size = sizeof copy;
  return copy;
}

// Gives the caller what its version of the struct has.
template <class Out>
Status Write(Out result, Out* out) {
  if (out == nullptr) return Invalid("the result struct is NULL");
  if (out->struct_size < sizeof(size_t)) return Invalid("struct_size is not set");
  result.struct_size = out->struct_size;
  std::memcpy(out, &result, std::min(result.struct_size, sizeof result));
  return {};
}

// A text for the wire: UTF-8 of at most `limit` bytes. NULL is an empty one.
Result<std::string> TextOf(const char* field, const char* text, size_t limit);

}  // namespace terrace::client::abi
