// PageRange: the one range of addresses in which all pages of one size appear in this process, so
// that an engine can name a page by a number: base + number * page_bytes.
//
// It belongs to the client, not to a daemon life: the base stays while the client lives. Arenas
// come and go in it; a place is used again only when nothing is mapped there. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "base/mutex.h"
#include "base/status.h"
#include "libclient/address_places.h"
#include "libclient/mapped_range.h"

namespace terrace::client {

class PageRange {
 public:
  // For a daemon that holds up to `capacity_bytes` of such pages, with room for those of an old
  // life beside them.
  static Result<std::unique_ptr<PageRange>> Reserve(uint32_t page_bytes, uint64_t capacity_bytes);

  const uint8_t* base() const { return addresses_.data(); }
  uint32_t page_bytes() const { return page_bytes_; }

  // Maps an arena at a free place, where its first page has a whole number. kExhausted: no place.
  Result<const uint8_t*> Map(int fd, uint64_t bytes) EXCLUDES(mu_);
  void Unmap(const uint8_t* data) EXCLUDES(mu_);

 private:
  PageRange(uint32_t page_bytes, uint64_t step, MappedRange addresses)
      : page_bytes_(page_bytes),
        addresses_(std::move(addresses)),
        places_(addresses_.size(), step) {}

  const uint32_t page_bytes_;
  MappedRange addresses_;
  Mutex mu_;
  AddressPlaces places_ GUARDED_BY(mu_);
};

// The ranges of a client by page size; shared by the client and its lives.
class PageRanges {
 public:
  Result<PageRange*> Of(uint32_t page_bytes, uint64_t capacity_bytes) EXCLUDES(mu_);

 private:
  Mutex mu_;
  std::map<uint32_t, std::unique_ptr<PageRange>> ranges_ GUARDED_BY(mu_);
};

}  // namespace terrace::client
