// Looking pages up and publishing them in C++. See kvclient.hpp.
#ifndef KVCLIENT_PAGES_HPP
#define KVCLIENT_PAGES_HPP

#include <cstddef>
#include <cstdint>
#include <kvclient/device.hpp>
#include <kvclient/result.hpp>
#include <kvclient/space.hpp>
#include <utility>
#include <vector>

namespace kvc {

// ---- Lookup

// One pinned page, or none.
class Page {
 public:
  Page() = default;
  Page(Page&& other) noexcept { swap(other); }
  Page& operator=(Page&& other) noexcept {
    Page(std::move(other)).swap(*this);
    return *this;
  }
  ~Page() { kvc_unpin(reader_, ticket_); }
  explicit operator bool() const { return ticket_ != 0; }
  ConstBytes bytes() const { return detail::BytesOf(page_.data, page_.bytes); }
  std::uint32_t valid_tokens() const { return page_.valid_tokens; }
  std::uint32_t device() const { return page_.device; }  // 0: host memory.

 private:
  friend class Reader;
  void swap(Page& other) noexcept {
    std::swap(reader_, other.reader_);
    std::swap(ticket_, other.ticket_);
    std::swap(page_, other.page_);
  }
  kvc_reader* reader_ = nullptr;
  kvc_ticket ticket_ = 0;
  kvc_page page_{};
};

// A page of a set, readable while the set is.
struct PageView {
  ConstBytes bytes;  // Empty for an empty place.
  std::uint32_t valid_tokens = 0;
  std::uint32_t device = 0;  // 0: host memory; else `bytes` are addresses of the reader's device.
};

// A set of pinned pages, released with the object.
class Pages {
 public:
  std::size_t size() const { return kvc_pages_count(handle_.get()); }
  std::size_t found() const { return kvc_pages_found(handle_.get()); }
  std::uint64_t tokens() const { return kvc_pages_tokens(handle_.get()); }
  std::uint64_t epoch() const { return kvc_pages_epoch(handle_.get()); }
  PageView operator[](std::size_t index) const {
    kvc_page page{};
    kvc_pages_get(handle_.get(), index, &page);
    return {detail::BytesOf(page.data, page.bytes), page.valid_tokens, page.device};
  }
  // The engine's block table; see kvc_pages_table. Returns how many entries were written.
  Result<std::size_t> Table(Span<std::uint64_t> addresses) const {
    return Table(KVC_TABLE_ADDRESS, addresses.data(), addresses.size());
  }
  Result<std::size_t> Table(Span<std::int32_t> blocks) const {
    return Table(KVC_TABLE_BLOCK, blocks.data(), blocks.size());
  }
  // Plain values, for Reader::Import in another process of the tenant.
  std::vector<kvc_page_ref> Export() const {
    std::vector<kvc_page_ref> refs(found());
    std::size_t written = 0;
    kvc_pages_export(handle_.get(), refs.data(), refs.size(), &written);
    refs.resize(written);
    return refs;
  }
  const kvc_pages* get() const { return handle_.get(); }

 private:
  friend class Reader;
  Result<std::size_t> Table(kvc_table_format format, void* table, std::size_t capacity) const {
    kvc_table_options options{};
    options.struct_size = sizeof options;
    options.format = format;
    std::size_t written = 0;
    const kvc_code code = kvc_pages_table(handle_.get(), &options, table, capacity, &written);
    if (code != KVC_OK) return Status(code, "block table");
    return written;
  }
  detail::Owned<kvc_pages, kvc_pages_release> handle_;
};

class Reader {
 public:
  // Prefers copies on that device from now on; see kvc_reader_set_device.
  Status SetDevice(const Device& device) {
    return detail::StatusOf(kvc_reader_set_device(handle_.get(), device.get()), "device");
  }
  // An empty Page is a miss; `why` may be null.
  Page Pin(const Space& space, const Key& key, kvc_miss* why = nullptr) {
    Page page;
    page.reader_ = handle_.get();
    page.ticket_ = kvc_pin(handle_.get(), space.get(), &key, &page.page_, why);
    return page;
  }
  Result<Pages> LookupPrefix(const Space& space, Span<const Key> keys, kvc_miss* why = nullptr) {
    Pages pages;
    kvc_pages* handle = nullptr;
    const kvc_code code =
        kvc_lookup_prefix(handle_.get(), space.get(), keys.data(), keys.size(), &handle, why);
    if (code != KVC_OK) return Status(code, "lookup");
    pages.handle_.reset(handle);
    return pages;
  }
  Result<Pages> LookupEach(const Space& space, Span<const Key> keys) {
    Pages pages;
    kvc_pages* handle = nullptr;
    const kvc_code code =
        kvc_lookup_each(handle_.get(), space.get(), keys.data(), keys.size(), &handle);
    if (code != KVC_OK) return Status(code, "lookup");
    pages.handle_.reset(handle);
    return pages;
  }
  // Places of pages that are gone stay empty.
  Result<Pages> Import(const Space& space, Span<const kvc_page_ref> refs) {
    Pages pages;
    kvc_pages* handle = nullptr;
    Status status = detail::StatusOf([&](kvc_error* error) {
      return kvc_pages_import(handle_.get(), space.get(), refs.data(), refs.size(), &handle,
                              nullptr, error);
    });
    if (!status.ok()) return status;
    pages.handle_.reset(handle);
    return pages;
  }

 private:
  friend class Client;
  detail::Owned<kvc_reader, kvc_reader_destroy> handle_;
};

// ---- Publishing

class Grants;

// Space for one page of a set of grants; valid until the set is committed or destroyed.
class Grant {
 public:
  // KVC_OK; or KVC_ALREADY_EXISTS, KVC_EXHAUSTED: there is nothing to write.
  kvc_code code() const { return code_; }
  explicit operator bool() const { return !bytes_.empty(); }
  // What the page shall hold; all of it is to be written.
  Bytes writable() const { return bytes_; }

 private:
  friend class Grants;
  Grant(kvc_code code, Bytes bytes) : code_(code), bytes_(bytes) {}
  kvc_code code_;
  Bytes bytes_;
};

// What became of the pages of a commit.
class Published {
 public:
  std::size_t size() const { return codes_.size(); }
  // KVC_OK, KVC_ALREADY_EXISTS (another page of that key was first), KVC_STALE, ...
  kvc_code operator[](std::size_t index) const { return codes_[index]; }

 private:
  friend class Grants;
  std::vector<kvc_code> codes_;
};

class Grants {
 public:
  std::size_t size() const { return kvc_grants_count(handle_.get()); }
  Grant operator[](std::size_t index) {
    void* data = kvc_grants_data(handle_.get(), index);
    return Grant(kvc_grants_code(handle_.get(), index),
                 Bytes(static_cast<std::byte*>(data), data == nullptr ? 0 : page_bytes_));
  }
  // Publishes all pages and ends the grants. `valid_tokens`: one number a page, or empty.
  static Result<Published> Commit(Grants grants, Span<const std::uint32_t> valid_tokens = {},
                                  std::int32_t timeout_ms = 0) {
    if (!valid_tokens.empty() && valid_tokens.size() != grants.size()) {
      return Status(KVC_INVALID_ARGUMENT, "valid_tokens has another size than the grants");
    }
    Status status = detail::StatusOf([&](kvc_error* error) {
      return kvc_commit(grants.handle_.get(), valid_tokens.data(), timeout_ms, error);
    });
    if (!status.ok()) return status;
    Published published;
    published.codes_.resize(grants.size());
    for (std::size_t i = 0; i < grants.size(); ++i) {
      published.codes_[i] = kvc_grants_code(grants.handle_.get(), i);
    }
    return published;
  }

 private:
  friend class Client;
  detail::Owned<kvc_grants, kvc_grants_destroy> handle_;
  std::size_t page_bytes_ = 0;
};

// ---- Fetching

// What became of the pages of a fetch.
struct Fetched {
  std::size_t worth = 0;        // Of the first keys: in memory already, or worth fetching.
  std::vector<kvc_code> codes;  // One a key: KVC_OK: in memory now; see kvc_wait.
};

// Pages on their way from the page store into memory. Need not be waited for.
class Fetch {
 public:
  // KVC_DEADLINE_EXCEEDED: it may be called again.
  Result<Fetched> Wait(std::int32_t timeout_ms = 0) {
    Fetched fetched;
    fetched.codes.resize(count_);
    Status status = detail::StatusOf([&](kvc_error* error) {
      return kvc_wait(handle_.get(), timeout_ms, &fetched.worth, fetched.codes.data(), error);
    });
    if (!status.ok()) return status;
    return fetched;
  }
  // Waits until one of them is answered: which.
  static Result<std::size_t> WaitAny(Span<Fetch* const> fetches, std::int32_t timeout_ms = 0) {
    std::vector<kvc_fetch*> handles;
    for (const Fetch* fetch : fetches)
      handles.push_back(fetch == nullptr ? nullptr : fetch->handle_.get());
    std::size_t index = 0;
    Status status = detail::StatusOf([&](kvc_error* error) {
      return kvc_wait_any(handles.data(), handles.size(), timeout_ms, &index, error);
    });
    if (!status.ok()) return status;
    return index;
  }

 private:
  friend class Client;
  detail::Owned<kvc_fetch, kvc_fetch_destroy> handle_;
  std::size_t count_ = 0;
};

}  // namespace kvc

#endif  // KVCLIENT_PAGES_HPP
