// The C ABI: readers, lookups and pinned sets.
#include <limits>
#include <span>
#include <string>
#include <utility>

#include "libclient/abi/abi.h"

using namespace terrace;               // NOLINT(google-build-using-namespace)
using namespace terrace::client::abi;  // NOLINT(google-build-using-namespace)
using terrace::client::Client;
using terrace::client::PageSet;
using terrace::client::Reader;
using terrace::client::Ticket;

// Padding once: no program knows another size.
static_assert(sizeof(kvc_page) == 24 && offsetof(kvc_page, device) == 20);

namespace {

kvc_miss MissOf(shm::Miss miss) {
  return static_cast<kvc_miss>(miss);
}

Status CheckLookup(const kvc_reader* reader, const kvc_space* space, const void* keys, size_t count,
                   const void* out) {
  if (reader == nullptr || space == nullptr || (keys == nullptr && count > 0) || out == nullptr) {
    return Invalid("reader, space, keys or pages is NULL");
  }
  if (count > Reader::kMaxKeys) return Invalid("count is over 2^20 keys");
  if (Of(space)->client != Of(reader)->client()) return Invalid("space belongs to another client");
  return CheckClient(*Of(reader)->client());
}

Status CheckSet(const kvc_pages* pages) {
  if (pages == nullptr) return Invalid("pages is NULL");
  return Of(pages)->in_child() ? InChild() : Status();
}

// Which pages have numbers, and from where they are counted.
struct Numbering {
  const uint8_t* base = nullptr;
  bool on_device = false;

  bool Has(const Pinned& page) const { return (page.tier == shm::Tier::kDevice) == on_device; }
};
Result<Numbering> NumberingOf(const PageSet& set, const kvc_table_options& options) {
  if (options.device == nullptr || options.format != KVC_TABLE_BLOCK) {
    return Numbering{.base = set.range().base()};
  }
  ASSIGN_OR_RETURN(const uint8_t* base,
                   Of(options.device)->device->memory().PagesBase(set.range().page_bytes()));
  return Numbering{.base = base, .on_device = true};
}

// The entries of one leaf, or of a flat table, from place `first` on.
Status FillTable(const PageSet& set, const Numbering& numbering, kvc_table_format format,
                 size_t first, size_t count, void* table) {
  if (table == nullptr) return Invalid("table or one of its leaves is NULL");
  for (size_t i = 0; i < count; ++i) {
    const uint8_t* data = set.DataAt(first + i);
    if (format == KVC_TABLE_ADDRESS) {
      static_cast<uint64_t*>(table)[i] = reinterpret_cast<uintptr_t>(data);
      continue;
    }
    int32_t block = -1;
    if (data != nullptr && numbering.Has(set.pages()[first + i])) {
      const auto offset = static_cast<uint64_t>(data - numbering.base);
      // All pages of a space have one size, so they lie in one range, at whole numbers.
      if (offset % set.range().page_bytes() != 0) {
        return Status(Code::kInternal, "a page lies outside the range of its space");
      }
      const uint64_t index = offset / set.range().page_bytes();
      if (index > uint64_t{std::numeric_limits<int32_t>::max()}) {
        return Status(Code::kInvalidArgument,
                      "a page's index does not fit into KVC_TABLE_BLOCK: use KVC_TABLE_ADDRESS");
      }
      block = static_cast<int32_t>(index);
    }
    static_cast<int32_t*>(table)[i] = block;
  }
  return {};
}

}  // namespace

kvc_code kvc_reader_create(kvc_client* client, kvc_reader** reader, kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (client == nullptr || reader == nullptr) return Invalid("client or reader is NULL");
    RETURN_IF_ERROR(CheckClient(*Of(client)->client));
    ASSIGN_OR_RETURN(std::unique_ptr<Reader> made, Reader::Make(Of(client)->client));
    *reader = ToHandle<kvc_reader>(made.release());
    return {};
  });
}

void kvc_reader_destroy(kvc_reader* reader) {
  if (reader == nullptr || Of(reader)->client()->in_child()) return;
  delete Of(reader);
}

kvc_ticket kvc_pin(kvc_reader* reader, const kvc_space* space, const kvc_key* key, kvc_page* page,
                   kvc_miss* why) {
  Pinned pinned;
  const uint8_t* data = nullptr;
  shm::Miss miss = shm::Miss::kAbsent;
  Ticket ticket = 0;
  if (reader != nullptr && space != nullptr && key != nullptr &&
      Of(space)->client == Of(reader)->client()) {
    Run(nullptr, [&]() -> Status {
      ticket = Of(reader)->Pin(*Of(space)->space, *Of(key), &pinned, &data, &miss);
      return {};
    });
  }
  if (page != nullptr && ticket != 0) {
    *page = {data, pinned.bytes, pinned.valid_tokens, 0};
    if (pinned.tier == shm::Tier::kDevice) [[unlikely]]
      page->device = Of(reader)->device_number();
  }
  if (why != nullptr) *why = ticket != 0 ? KVC_MISS_NONE : MissOf(miss);
  return ticket;
}

void kvc_unpin(kvc_reader* reader, kvc_ticket ticket) {
  if (reader == nullptr || ticket == 0 || Of(reader)->client()->in_child()) return;
  Of(reader)->Unpin(ticket);
}

kvc_code kvc_lookup_prefix(kvc_reader* reader, const kvc_space* space, const kvc_key* keys,
                           size_t count, kvc_pages** pages, kvc_miss* why) {
  return Run(nullptr, [&]() -> Status {
    RETURN_IF_ERROR(CheckLookup(reader, space, keys, count, pages));
    const Reader::Found found =
        Of(reader)->Look(*Of(space)->space, {Of(keys), count}, Reader::Want::kPrefix);
    *pages = ToHandle<kvc_pages>(found.set);
    if (why != nullptr) *why = found.all ? KVC_MISS_NONE : MissOf(found.why);
    return {};
  });
}

kvc_code kvc_lookup_each(kvc_reader* reader, const kvc_space* space, const kvc_key* keys,
                         size_t count, kvc_pages** pages) {
  return Run(nullptr, [&]() -> Status {
    RETURN_IF_ERROR(CheckLookup(reader, space, keys, count, pages));
    *pages = ToHandle<kvc_pages>(
        Of(reader)->Look(*Of(space)->space, {Of(keys), count}, Reader::Want::kEach).set);
    return {};
  });
}

size_t kvc_pages_count(const kvc_pages* pages) {
  return pages == nullptr ? 0 : Of(pages)->places();
}

size_t kvc_pages_found(const kvc_pages* pages) {
  return pages == nullptr ? 0 : Of(pages)->found();
}

uint64_t kvc_pages_tokens(const kvc_pages* pages) {
  return pages == nullptr ? 0 : Of(pages)->tokens();
}

uint64_t kvc_pages_epoch(const kvc_pages* pages) {
  return pages == nullptr ? 0 : Of(pages)->epoch();
}

kvc_code kvc_pages_get(const kvc_pages* pages, size_t index, kvc_page* page) {
  return Run(nullptr, [&]() -> Status {
    RETURN_IF_ERROR(CheckSet(pages));
    const PageSet& set = *Of(pages);
    if (page == nullptr) return Invalid("page is NULL");
    if (index >= set.places()) return Invalid("index is not below kvc_pages_count");
    const Pinned& pinned = set.pages()[index];
    *page = {};
    if (pinned.pin != nullptr) {
      *page = {set.DataAt(index), pinned.bytes, pinned.valid_tokens, set.DeviceOf(index)};
    }
    return {};
  });
}

void kvc_pages_release(kvc_pages* pages) {
  if (pages == nullptr || Of(pages)->in_child()) return;
  Of(pages)->Release();
}

kvc_code kvc_pages_table(const kvc_pages* pages, const kvc_table_options* options, void* table,
                         size_t capacity, size_t* written) {
  return Run(nullptr, [&]() -> Status {
    RETURN_IF_ERROR(CheckSet(pages));
    const PageSet& set = *Of(pages);
    ASSIGN_OR_RETURN(const kvc_table_options asked, Read(options));
    // A number of the caller's, which need not be one of the enumeration.
    uint32_t format;
    static_assert(sizeof format == sizeof asked.format);
    std::memcpy(&format, &asked.format, sizeof format);
    if (format != KVC_TABLE_ADDRESS && format != KVC_TABLE_BLOCK) {
      return Invalid("format is not one of kvc_table_format");
    }
    if (asked.first > set.places() || asked.count > set.places() - asked.first) {
      return Invalid("first and count go beyond kvc_pages_count");
    }
    ASSIGN_OR_RETURN(const Numbering numbering, NumberingOf(set, asked));
    const size_t count = asked.count != 0 ? asked.count : set.places() - asked.first;
    const size_t leaf = asked.leaf_size;
    const size_t fits = leaf == 0                        ? capacity
                        : capacity > set.places() / leaf ? set.places()
                                                         : capacity * leaf;
    const size_t entries = std::min(count, fits);
    if (leaf == 0) {
      if (entries > 0)
        RETURN_IF_ERROR(FillTable(set, numbering, asked.format, asked.first, entries, table));
    } else {
      for (size_t done = 0; done < entries; done += leaf) {
        if (table == nullptr) return Invalid("table is NULL");
        RETURN_IF_ERROR(FillTable(set, numbering, asked.format, asked.first + done,
                                  std::min(leaf, entries - done),
                                  static_cast<void**>(table)[done / leaf]));
      }
    }
    if (written != nullptr) *written = entries;
    if (entries < count) return Status(Code::kExhausted, "the table is too small");
    return {};
  });
}

kvc_code kvc_pages_export(const kvc_pages* pages, kvc_page_ref* refs, size_t capacity,
                          size_t* written) {
  return Run(nullptr, [&]() -> Status {
    RETURN_IF_ERROR(CheckSet(pages));
    const PageSet& set = *Of(pages);
    if (refs == nullptr && capacity > 0) return Invalid("refs is NULL");
    size_t count = 0;
    for (size_t i = 0; i < set.places() && count < capacity; ++i) {
      const Pinned& page = set.pages()[i];
      if (page.pin == nullptr) continue;
      kvc_page_ref& ref = refs[count++];
      *Of(&ref.space) = set.space();
      *Of(&ref.key) = set.keys()[i];
      ref.valid_tokens = page.valid_tokens;
      ref.reserved = 0;
    }
    if (written != nullptr) *written = count;
    if (count < set.found()) return Status(Code::kExhausted, "more pages than capacity");
    return {};
  });
}

kvc_code kvc_pages_import(kvc_reader* reader, const kvc_space* space, const kvc_page_ref* refs,
                          size_t count, kvc_pages** pages, uint8_t* gone, kvc_error* error) {
  return Run(error, [&]() -> Status {
    RETURN_IF_ERROR(CheckLookup(reader, space, refs, count, pages));
    const client::Space& opened = *Of(space)->space;
    std::vector<Digest> keys(count);
    for (size_t i = 0; i < count; ++i) {
      if (*Of(&refs[i].space) != opened.facts().id) {
        return Status(Code::kMismatch, "ref " + std::to_string(i) + " is of another space");
      }
      keys[i] = *Of(&refs[i].key);
    }
    PageSet* set = Of(reader)->Look(opened, keys, Reader::Want::kEach).set;
    for (size_t i = 0; i < count && gone != nullptr; ++i) {
      gone[i] = set->pages()[i].pin == nullptr ? 1 : 0;
    }
    *pages = ToHandle<kvc_pages>(set);
    return {};
  });
}
