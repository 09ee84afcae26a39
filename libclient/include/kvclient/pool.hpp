// Pools of engines in C++. See pool.h, which has the rules, and kvclient.hpp.
#ifndef KVCLIENT_POOL_HPP
#define KVCLIENT_POOL_HPP

#include <kvclient/pool.h>

#include <cstdint>
#include <kvclient/result.hpp>
#include <vector>

namespace kvc {

// Memory of a device that the engine owns. Removed and closed with the object.
class Pool {
 public:
  static Result<Pool> Add(kvc_device* device, kvc_pool_memory memory, std::int32_t timeout_ms = 0) {
    memory.struct_size = sizeof memory;
    kvc_pool* handle = nullptr;
    Status status = detail::StatusOf([&](kvc_error* error) {
      return kvc_pool_add(device, &memory, timeout_ms, &handle, error);
    });
    if (!status.ok()) return status;
    Pool pool;
    pool.handle_.reset(handle);
    return pool;
  }
  // One code a page.
  Result<std::vector<kvc_code>> Store(const kvc_space* space, const kvc_pool_layout& layout,
                                      const kvc_pool_pages& pages, std::int32_t timeout_ms = 0) {
    return Move(kvc_pool_store, space, layout, pages, timeout_ms);
  }
  Result<std::vector<kvc_code>> Fetch(const kvc_space* space, const kvc_pool_layout& layout,
                                      const kvc_pool_pages& pages, std::int32_t timeout_ms = 0) {
    return Move(kvc_pool_fetch, space, layout, pages, timeout_ms);
  }
  Status Remove(std::int32_t timeout_ms = 0) {
    return detail::StatusOf(
        [&](kvc_error* error) { return kvc_pool_remove(handle_.get(), timeout_ms, error); });
  }
  kvc_pool* get() const { return handle_.get(); }

 private:
  template <class Verb>
  Result<std::vector<kvc_code>> Move(Verb verb, const kvc_space* space, kvc_pool_layout layout,
                                     kvc_pool_pages pages, std::int32_t timeout_ms) {
    layout.struct_size = sizeof layout;
    pages.struct_size = sizeof pages;
    std::vector<kvc_code> codes(pages.count);
    Status status = detail::StatusOf([&](kvc_error* error) {
      return verb(handle_.get(), space, &layout, &pages, timeout_ms, codes.data(), error);
    });
    if (!status.ok()) return status;
    return codes;
  }
  detail::Owned<kvc_pool, kvc_pool_close> handle_;
};

}  // namespace kvc

#endif  // KVCLIENT_POOL_HPP
