// Verbs on pools: memory of devices that engines own.
#include <fcntl.h>

#include <cstring>
#include <vector>

#include "daemon/service/verb_messages.h"

namespace terrace {
namespace {

// Of a device of the host a file, which may not shrink: the mover touches all of it.
Status CheckSlab(const std::vector<GpuReport>& devices, uint32_t device, const PoolSpec& spec) {
  const bool of_host =
      device >= 1 && device <= devices.size() && devices[device - 1].kind == "host";
  if (!of_host) return {};
  if (!spec.slab) {
    return {Code::kInvalidArgument, "handle: pools of a device of the host come by a descriptor"};
  }
  const int seals = ::fcntl(spec.slab.get(), F_GET_SEALS);
  if (seals >= 0 && (seals & F_SEAL_SHRINK) != 0) return {};
  return {Code::kInvalidArgument,
          "fds: pools of a device of the host are memfds that are sealed against shrinking"};
}

}  // namespace

Status Verbs::OnPoolAdd(Caller& caller, Frame& frame) {
  ASSIGN_OR_RETURN(const wire::PoolAdd request, ParseFrame<wire::PoolAdd>(frame));
  RETURN_IF_ERROR(CheckKnowsDevice(caller, request.device()));
  const std::string& handle = request.handle();
  if (handle.empty() ? frame.fds.size() != 1 : !frame.fds.empty()) {
    return {Code::kInvalidArgument,
            "fds: " + std::to_string(frame.fds.size()) + " descriptors; one, or a handle instead"};
  }
  PoolSpec spec;
  if (!handle.empty() && handle.size() != spec.handle.size()) {
    return {Code::kInvalidArgument, "handle: " + std::to_string(handle.size()) + " bytes, not " +
                                        std::to_string(spec.handle.size())};
  }
  std::memcpy(spec.handle.data(), handle.data(), handle.size());
  spec.device = request.device();
  spec.bytes = request.bytes();
  if (handle.empty()) spec.slab = std::move(frame.fds.front());
  RETURN_IF_ERROR(CheckSlab(parts_.engine->Devices(), spec.device, spec));
  const Ticket ticket = Begin(caller, frame.header.request);
  parts_.engine->AddPool(
      ticket.client, std::move(spec), [this, ticket](const Result<uint64_t>& pool) {
        Caller* waiting = Finish(ticket);
        if (waiting == nullptr || waiting->client == nullptr) {
          // Nobody knows its number.
          if (pool) parts_.engine->RemovePool(ticket.client, *pool, [](const Status&) {});
          return;
        }
        if (!pool) return waiting->connection.SendError(ticket.request, pool.error());
        wire::PoolAddReply reply;
        reply.set_pool(*pool);
        waiting->client->unused_pools.push_back(*pool);
        waiting->connection.Send(wire::Type::kPoolAddReply, ticket.request, reply);
      });
  return {};
}

Status Verbs::OnPoolRemove(Caller& caller, Frame& frame) {
  ASSIGN_OR_RETURN(const wire::PoolRemove request, ParseFrame<wire::PoolRemove>(frame));
  std::erase(caller.client->unused_pools, request.pool());
  const Ticket ticket = Begin(caller, frame.header.request);
  parts_.engine->RemovePool(ticket.client, request.pool(), [this, ticket](const Status& status) {
    Caller* waiting = Finish(ticket);
    if (waiting == nullptr) return;
    if (!status.ok()) return waiting->connection.SendError(ticket.request, status);
    waiting->connection.Send(wire::Type::kPoolRemoveReply, ticket.request, wire::PoolRemoveReply());
  });
  return {};
}

// The lists of the spec are those of the message, and of messages_->keys.
Result<PoolPages> Verbs::PoolPagesOf(const Caller& caller, const wire::PoolPages& message) {
  // Who names it has learned of it.
  std::erase(caller.client->unused_pools, message.pool());
  RETURN_IF_ERROR(TakeKeys(message.keys()));
  PoolPages pages;
  pages.pool = message.pool();
  pages.layout.bases.assign(message.bases().begin(), message.bases().end());
  pages.layout.block_stride = message.block_stride();
  pages.layout.block_bytes = message.block_bytes();
  pages.layout.page_first = message.page_first();
  pages.slot = message.slot();
  pages.epoch = message.epoch();
  pages.part = message.part();
  pages.keys = messages_->keys;
  pages.blocks = {message.blocks().data(), static_cast<size_t>(message.blocks_size())};
  pages.blocks_per_page = message.blocks_per_page();
  pages.valid_tokens = {message.valid_tokens().data(),
                        static_cast<size_t>(message.valid_tokens_size())};
  pages.chain = !message.parent().empty();
  ASSIGN_OR_RETURN(pages.parent, DigestField("parent", message.parent(), true));
  pages.position = message.position();
  pages.deadline_ms = message.deadline_ms();
  return pages;
}

Status Verbs::OnPoolStore(Caller& caller, Frame& frame) {
  ASSIGN_OR_RETURN(const wire::PoolStore request, ParseFrame<wire::PoolStore>(frame));
  ASSIGN_OR_RETURN(const PoolPages pages, PoolPagesOf(caller, request.pages()));
  const Ticket ticket = Begin(caller, frame.header.request);
  parts_.engine->StoreFromPool(
      ticket.client, pages, [this, ticket](const Result<std::vector<Code>>& codes) {
        SendPoolCodes<wire::PoolStoreReply>(ticket, wire::Type::kPoolStoreReply, codes);
      });
  return {};
}

Status Verbs::OnPoolFetch(Caller& caller, Frame& frame) {
  ASSIGN_OR_RETURN(const wire::PoolFetch request, ParseFrame<wire::PoolFetch>(frame));
  ASSIGN_OR_RETURN(const PoolPages pages, PoolPagesOf(caller, request.pages()));
  const Ticket ticket = Begin(caller, frame.header.request);
  parts_.engine->FetchIntoPool(
      ticket.client, pages, [this, ticket](const Result<std::vector<Code>>& codes) {
        SendPoolCodes<wire::PoolFetchReply>(ticket, wire::Type::kPoolFetchReply, codes);
      });
  return {};
}

template <typename Reply>
void Verbs::SendPoolCodes(const Ticket& ticket, wire::Type type,
                          const Result<std::vector<Code>>& codes) {
  Caller* waiting = Finish(ticket);
  if (waiting == nullptr) return;
  if (!codes) return waiting->connection.SendError(ticket.request, codes.error());
  Reply reply;
  for (const Code code : *codes)
    reply.add_codes(static_cast<uint32_t>(code));
  waiting->connection.Send(type, ticket.request, reply);
}

}  // namespace terrace
