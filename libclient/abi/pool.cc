// The C ABI: pools of engines.
#include "libclient/device/pool.h"

#include <fcntl.h>
#include <kvclient/pool.h>

#include <string>
#include <utility>
#include <vector>

#include "libclient/abi/abi.h"

using namespace terrace;               // NOLINT(google-build-using-namespace)
using namespace terrace::client::abi;  // NOLINT(google-build-using-namespace)
using terrace::client::Client;
using terrace::client::Deadline;
using terrace::client::Pool;

namespace {

constexpr size_t kMostSegments = 4096;

Pool* PoolOf(kvc_pool* handle) {
  return reinterpret_cast<Pool*>(handle);
}

Result<Pool::Memory> MemoryOf(const kvc_device* device, const kvc_pool_memory& asked) {
  if (asked.bytes == 0) return Invalid("bytes is 0");
  if (asked.data != nullptr) {
    return Pool::MemoryAt(*Of(device)->device, reinterpret_cast<uint64_t>(asked.data), asked.bytes);
  }
  Pool::Memory memory;
  memory.bytes = asked.bytes;
  memory.slab.Reset(::fcntl(asked.fd, F_DUPFD_CLOEXEC, 0));
  if (!memory.slab) return Invalid("data is NULL and fd is not open");
  return memory;
}

Result<messages::PoolPages> PagesOf(const kvc_pool_layout& layout, const kvc_pool_pages& pages) {
  if (layout.bases == nullptr || layout.segments == 0 || layout.segments > kMostSegments) {
    return Invalid("bases is NULL, or segments is not between 1 and 4096");
  }
  if (pages.keys == nullptr || pages.blocks == nullptr) return Invalid("keys or blocks is NULL");
  if (pages.count == 0 || pages.count > client::kMaxBatch) {
    return Invalid("count is not between 1 and 512");
  }
  // More blocks than the tokens of the largest page: refused before they are read.
  if (layout.blocks_per_page == 0 || layout.blocks_per_page > client::kMaxBatch) {
    return Invalid("blocks_per_page is not between 1 and 512");
  }
  messages::PoolPages message;
  message.bases.assign(layout.bases, layout.bases + layout.segments);
  message.block_stride = layout.block_stride;
  message.block_bytes = layout.block_bytes;
  message.page_first = layout.page_first != 0;
  message.keys.assign(reinterpret_cast<const char*>(pages.keys), pages.count * sizeof(kvc_key));
  message.blocks.assign(pages.blocks, pages.blocks + pages.count * layout.blocks_per_page);
  message.blocks_per_page = layout.blocks_per_page;
  if (pages.valid_tokens != nullptr) {
    message.valid_tokens.assign(pages.valid_tokens, pages.valid_tokens + pages.count);
  }
  if (pages.parent != nullptr) {
    message.parent.assign(reinterpret_cast<const char*>(pages.parent), sizeof(kvc_key));
    message.position = pages.position;
  }
  return message;
}

template <class Verb>
kvc_code Move(kvc_pool* pool, const kvc_space* space, const kvc_pool_layout* layout,
              const kvc_pool_pages* pages, int32_t timeout_ms, kvc_code* codes, kvc_error* error,
              Verb verb) {
  return Run(error, [&]() -> Status {
    if (pool == nullptr || space == nullptr) return Invalid("pool or space is NULL");
    Client& core = PoolOf(pool)->client();
    RETURN_IF_ERROR(CheckClient(core));
    if (Of(space)->client.get() != &core) return Invalid("space belongs to another client");
    ASSIGN_OR_RETURN(const kvc_pool_layout layout_asked, Read(layout));
    ASSIGN_OR_RETURN(const kvc_pool_pages pages_asked, Read(pages));
    ASSIGN_OR_RETURN(messages::PoolPages message, PagesOf(layout_asked, pages_asked));
    ASSIGN_OR_RETURN(const Deadline deadline, core.DeadlineOf(timeout_ms));
    ASSIGN_OR_RETURN(const std::vector<Code> answer,
                     (PoolOf(pool)->*verb)(*Of(space)->space, std::move(message), deadline));
    for (size_t i = 0; i < answer.size(); ++i) {
      if (codes != nullptr) {
        codes[i] = static_cast<kvc_code>(answer[i]);
      } else if (answer[i] != Code::kOk && answer[i] != Code::kAlreadyExists) {
        return Status(answer[i], "page " + std::to_string(i) + " was not copied");
      }
    }
    return {};
  });
}

}  // namespace

kvc_code kvc_pool_add(kvc_device* device, const kvc_pool_memory* memory, int32_t timeout_ms,
                      kvc_pool** pool, kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (device == nullptr || pool == nullptr) return Invalid("device or pool is NULL");
    const std::shared_ptr<Client>& core = Of(device)->device->client();
    RETURN_IF_ERROR(CheckClient(*core));
    ASSIGN_OR_RETURN(const kvc_pool_memory asked, Read(memory));
    ASSIGN_OR_RETURN(const Deadline deadline, core->DeadlineOf(timeout_ms));
    ASSIGN_OR_RETURN(const Pool::Memory found, MemoryOf(device, asked));
    ASSIGN_OR_RETURN(std::unique_ptr<Pool> added, Pool::Add(Of(device)->device, found, deadline));
    *pool = ToHandle<kvc_pool>(added.release());
    return {};
  });
}

kvc_code kvc_pool_remove(kvc_pool* pool, int32_t timeout_ms, kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (pool == nullptr) return Invalid("pool is NULL");
    RETURN_IF_ERROR(CheckClient(PoolOf(pool)->client()));
    ASSIGN_OR_RETURN(const Deadline deadline, PoolOf(pool)->client().DeadlineOf(timeout_ms));
    return PoolOf(pool)->Remove(deadline);
  });
}

void kvc_pool_close(kvc_pool* pool) {
  if (pool == nullptr || PoolOf(pool)->client().in_child()) return;
  Run(nullptr, [&]() -> Status {
    delete PoolOf(pool);
    return {};
  });
}

kvc_code kvc_pool_store(kvc_pool* pool, const kvc_space* space, const kvc_pool_layout* layout,
                        const kvc_pool_pages* pages, int32_t timeout_ms, kvc_code* codes,
                        kvc_error* error) {
  return Move(pool, space, layout, pages, timeout_ms, codes, error, &Pool::Store);
}

kvc_code kvc_pool_fetch(kvc_pool* pool, const kvc_space* space, const kvc_pool_layout* layout,
                        const kvc_pool_pages* pages, int32_t timeout_ms, kvc_code* codes,
                        kvc_error* error) {
  return Move(pool, space, layout, pages, timeout_ms, codes, error, &Pool::Fetch);
}
