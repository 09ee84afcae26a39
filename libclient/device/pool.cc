#include "libclient/device/pool.h"

#include <algorithm>
#include <span>
#include <utility>

namespace terrace::client {
namespace {

constexpr size_t kKeyBytes = sizeof(Digest);
constexpr int32_t kRemoveMs = 1000;  // Of a pool that is closed without being removed.

}  // namespace

Result<Pool::Memory> Pool::MemoryAt(const Device& device, uint64_t at, uint64_t bytes) {
  ASSIGN_OR_RETURN(GpuForeign found, device.memory().ShareForeign(at));
  Memory memory;
  memory.offset = at - found.base;
  memory.bytes = found.bytes;
  if (memory.offset > memory.bytes || bytes > memory.bytes - memory.offset) {
    return Status(Code::kMismatch, "bytes: " + std::to_string(bytes) + ", and the allocation has " +
                                       std::to_string(memory.bytes - memory.offset) +
                                       " from data on that can be shared");
  }
  if (found.slab) {
    memory.slab = std::move(found.slab);
  } else {
    memory.handle = std::string(found.handle.begin(), found.handle.end());
  }
  return memory;
}

Result<std::unique_ptr<Pool>> Pool::Add(std::shared_ptr<Device> device, const Memory& memory,
                                        Deadline deadline) {
  ASSIGN_OR_RETURN(const Contact now, device->client()->contact());
  messages::PoolAdd request{.device = 0, .bytes = memory.bytes, .handle = memory.handle};
  ASSIGN_OR_RETURN(request.device, device->CheckedNumberIn(now.life->epoch()));
  const int fd = memory.slab.get();
  const std::span<const int> fds(&fd, memory.slab ? 1 : 0);
  ASSIGN_OR_RETURN(const auto answer, now.connection->Call(request, deadline, fds));
  return std::unique_ptr<Pool>(
      new Pool(std::move(device), memory.offset, now.life->epoch(), answer.reply.pool));
}

Pool::~Pool() {
  if (!removed_.load()) static_cast<void>(Remove(Deadline::In(kRemoveMs)));
}

Status Pool::Remove(Deadline deadline) {
  if (removed_.exchange(true)) return {};
  Status status;
  const Result<Contact> now = device_->client()->contact();
  // It went with the daemon that knew it.
  if (now && now->life->epoch() != epoch_) return {};
  if (now) {
    status = now->connection->Call(messages::PoolRemove{.pool = number_}, deadline).status();
  } else {
    status = now.status();
  }
  // Not known: it went.
  if (status.ok() || status.code() == Code::kNotFound) return {};
  removed_.store(false);
  return status;
}

template <class Request>
Result<std::vector<Code>> Pool::Ask(const Space& space, messages::PoolPages pages,
                                    Deadline deadline) {
  if (removed_.load()) return Status(Code::kInvalidArgument, "the pool was removed");
  ASSIGN_OR_RETURN(const Contact now, device_->client()->contact());
  const Binding& binding = space.binding();
  if (binding.life_epoch != now.life->epoch() || epoch_ != now.life->epoch()) {
    return Status(Code::kStale, "the daemon was started anew since the pool or space was known");
  }
  pages.pool = number_;
  for (uint64_t& base : pages.bases) {
    if (base > UINT64_MAX - offset_) return Status(Code::kInvalidArgument, "bases: too large");
    base += offset_;
  }
  pages.slot = binding.ref().slot;
  pages.epoch = binding.ref().epoch;
  pages.part = space.facts().part;
  // The daemon's answer has to come before this call ends: what it waits for ends a little earlier.
  const int64_t left_ms = deadline.left_ms();
  pages.deadline_ms = static_cast<uint32_t>(std::max<int64_t>(1, left_ms - left_ms / 8));
  const size_t count = pages.keys.size() / kKeyBytes;
  const Request request{.pages = std::move(pages)};
  const auto called = now.connection->Call(request, deadline);
  // It ended with a connection that broke before the pool was first named.
  if (!called && called.error().code() == Code::kNotFound && !removed_.load()) {
    return Status(Code::kStale, called.error().message());
  }
  RETURN_IF_ERROR(called.status());
  const auto& answer = *called;
  if (answer.reply.codes.size() != count) {
    return Status(Code::kDataLoss, "the daemon answered for another number of pages");
  }
  std::vector<Code> codes;
  codes.reserve(count);
  for (const uint32_t code : answer.reply.codes)
    codes.push_back(messages::PageCodeOf(code));
  return codes;
}

Result<std::vector<Code>> Pool::Store(const Space& space, messages::PoolPages pages,
                                      Deadline deadline) {
  return Ask<messages::PoolStore>(space, std::move(pages), deadline);
}

Result<std::vector<Code>> Pool::Fetch(const Space& space, messages::PoolPages pages,
                                      Deadline deadline) {
  return Ask<messages::PoolFetch>(space, std::move(pages), deadline);
}

}  // namespace terrace::client
