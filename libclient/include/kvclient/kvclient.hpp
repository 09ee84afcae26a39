// kvclient.hpp: libkvclient for C++17 and later, header only.
//
// Every handle is a move-only value that gives itself back. The types say what may be done: a Page
// can only be read, a Grant only be written, and committing consumes the Grants, so that neither
// reading before the commit nor writing after it compiles. Nothing throws but operator new; what
// can fail returns a Status or a Result. What kvclient.h says about threads, deadlines, forks and
// the death of the daemon holds here; a moved-from handle may only be assigned to or destroyed.
//
// Handles are to be destroyed before the Client they come from. A Page and a ticket need their
// Reader.
#ifndef KVCLIENT_KVCLIENT_HPP
#define KVCLIENT_KVCLIENT_HPP

#include <cstddef>
#include <cstdint>
#include <kvclient/device.hpp>
#include <kvclient/pages.hpp>
#include <kvclient/result.hpp>
#include <kvclient/space.hpp>
#include <string>
#include <string_view>

namespace kvc {

// ---- Weights

// A tensor of attached weights: valid while they are attached.
class Tensor {
 public:
  std::string_view name() const { return {t_.name, t_.name_bytes}; }
  std::string_view dtype() const { return t_.dtype; }  // "BF16", ...
  Span<const std::uint64_t> shape() const { return {t_.shape, t_.rank}; }
  // Empty if its blocks were not attached; else C order, 256-byte aligned.
  ConstBytes bytes() const { return detail::BytesOf(t_.data, t_.bytes); }

 private:
  friend class Weights;
  kvc_tensor t_{};
};

class Weights {
 public:
  // Sorted by name.
  std::size_t size() const { return info().tensors; }
  Result<Tensor> at(std::size_t index) const {
    Tensor tensor;
    tensor.t_.struct_size = sizeof tensor.t_;
    const kvc_code code = kvc_weights_at(handle_.get(), index, &tensor.t_);
    if (code != KVC_OK) return Status(code, "no tensor of that index");
    return tensor;
  }
  Result<Tensor> Find(const std::string& name) const {
    Tensor tensor;
    tensor.t_.struct_size = sizeof tensor.t_;
    const kvc_code code = kvc_weights_find(handle_.get(), name.c_str(), &tensor.t_);
    if (code != KVC_OK) return Status(code, "tensor '" + name + "'");
    return tensor;
  }
  kvc_weights_info info() const {
    kvc_weights_info info{};
    info.struct_size = sizeof info;
    kvc_weights_get_info(handle_.get(), &info);
    return info;
  }
  std::uint64_t epoch() const { return kvc_weights_epoch(handle_.get()); }
  // Of early attached weights: see kvc_model_wait.
  Status Wait(std::uint32_t block = KVC_ALL_BLOCKS, std::int32_t timeout_ms = 0) {
    return detail::StatusOf(
        [&](kvc_error* error) { return kvc_model_wait(handle_.get(), block, timeout_ms, error); });
  }
  Status WaitTensor(const std::string& name, std::int32_t timeout_ms = 0) {
    return detail::StatusOf([&](kvc_error* error) {
      return kvc_model_wait_tensor(handle_.get(), name.c_str(), timeout_ms, error);
    });
  }
  // Of weights on a device: see kvc_weights_unmap.
  Status Unmap(std::int32_t timeout_ms = 0) {
    return detail::StatusOf(
        [&](kvc_error* error) { return kvc_weights_unmap(handle_.get(), timeout_ms, error); });
  }
  Status Remap(std::int32_t timeout_ms = 0) {
    return detail::StatusOf(
        [&](kvc_error* error) { return kvc_weights_remap(handle_.get(), timeout_ms, error); });
  }
  const kvc_weights* get() const { return handle_.get(); }

 private:
  friend class Client;
  detail::Owned<kvc_weights, kvc_detach> handle_;
};

// ---- Client

class Client {
 public:
  static Result<Client> Connect(kvc_client_options options = {}) {
    options.struct_size = sizeof options;
    return Make<Client, kvc_client>([&](kvc_client** handle, kvc_error* error) {
      return kvc_connect(&options, handle, error);
    });
  }
  std::uint64_t epoch() const { return kvc_epoch(handle_.get()); }
  Status WaitConnected(std::int32_t timeout_ms = 0) {
    return detail::StatusOf(
        [&](kvc_error* error) { return kvc_wait_connected(handle_.get(), timeout_ms, error); });
  }
  Status Ping(std::int32_t timeout_ms = 0) {
    return detail::StatusOf(
        [&](kvc_error* error) { return kvc_ping(handle_.get(), timeout_ms, error); });
  }
  kvc_client_info info() const {
    kvc_client_info info{};
    info.struct_size = sizeof info;
    kvc_client_get_info(handle_.get(), &info);
    return info;
  }

  Result<Space> OpenSpace(kvc_space_options options, std::int32_t timeout_ms = 0) {
    options.struct_size = sizeof options;
    return Make<Space, kvc_space>([&](kvc_space** handle, kvc_error* error) {
      return kvc_space_open(handle_.get(), &options, timeout_ms, handle, error);
    });
  }
  Result<Space> OpenExistingSpace(const Key& id, std::int32_t timeout_ms = 0) {
    return Make<Space, kvc_space>([&](kvc_space** handle, kvc_error* error) {
      return kvc_space_open_existing(handle_.get(), &id, timeout_ms, handle, error);
    });
  }
  Result<Reader> NewReader() {
    return Make<Reader, kvc_reader>([&](kvc_reader** handle, kvc_error* error) {
      return kvc_reader_create(handle_.get(), handle, error);
    });
  }
  Result<Weights> Attach(const std::string& model, kvc_attach_options options = {},
                         std::int32_t timeout_ms = 0) {
    options.struct_size = sizeof options;
    return Make<Weights, kvc_weights>([&](kvc_weights** handle, kvc_error* error) {
      return kvc_attach(handle_.get(), model.c_str(), &options, timeout_ms, handle, error);
    });
  }
  // At most 512 keys; `deadline_ms` until the commit, 0: the daemon's default.
  Result<Grants> Grant(const Space& space, Span<const Key> keys, std::uint32_t deadline_ms = 0,
                       std::int32_t timeout_ms = 0) {
    kvc_grant_options options{};
    options.deadline_ms = deadline_ms;
    return Grant(space, keys, options, timeout_ms);
  }
  // Where the first of the keys stands in its chain.
  Result<Grants> Grant(const Space& space, Span<const Key> keys, kvc_grant_options options,
                       std::int32_t timeout_ms = 0) {
    options.struct_size = sizeof options;
    Result<Grants> grants = Make<Grants, kvc_grants>([&](kvc_grants** handle, kvc_error* error) {
      return kvc_grant(handle_.get(), space.get(), keys.data(), keys.size(), &options, timeout_ms,
                       handle, error);
    });
    if (grants) grants->page_bytes_ = std::size_t(space.info().page_bytes);
    return grants;
  }
  // The durable acknowledgement of committed pages: Ok when all of them have it.
  Status Persist(const Space& space, Span<const Key> keys, std::int32_t timeout_ms = 0) {
    return detail::StatusOf([&](kvc_error* error) {
      return kvc_persist(handle_.get(), space.get(), keys.data(), keys.size(), timeout_ms, nullptr,
                         error);
    });
  }
  // Asks for pages that lie in the page store, in the order of their chain, and returns.
  Result<Fetch> Prefetch(const Space& space, Span<const Key> keys,
                         kvc_prefetch_options options = {}, std::int32_t timeout_ms = 0) {
    options.struct_size = sizeof options;
    Result<Fetch> fetch = Make<Fetch, kvc_fetch>([&](kvc_fetch** handle, kvc_error* error) {
      return kvc_prefetch(handle_.get(), space.get(), keys.data(), keys.size(), &options,
                          timeout_ms, handle, error);
    });
    if (fetch) fetch->count_ = keys.size();
    return fetch;
  }
  // How many pages there were to drop.
  Result<std::uint32_t> Drop(const Space& space, Span<const Key> keys,
                             std::int32_t timeout_ms = 0) {
    std::uint32_t dropped = 0;
    Status status = detail::StatusOf([&](kvc_error* error) {
      return kvc_drop(handle_.get(), space.get(), keys.data(), keys.size(), timeout_ms, &dropped,
                      error);
    });
    if (!status.ok()) return status;
    return dropped;
  }
  kvc_client* get() const { return handle_.get(); }

 private:
  template <class Object, class Handle, class Call>
  static Result<Object> Make(Call&& call) {
    Handle* handle = nullptr;
    Status status = detail::StatusOf([&](kvc_error* error) { return call(&handle, error); });
    if (!status.ok()) return status;
    Object object;
    object.handle_.reset(handle);
    return object;
  }
  detail::Owned<kvc_client, kvc_close> handle_;
};

}  // namespace kvc

#endif  // KVCLIENT_KVCLIENT_HPP
