// The C ABI: clients and spaces.
#include "libclient/client.h"

#include <errno.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <utility>

#include "libclient/abi/abi.h"

namespace terrace::client::abi {
namespace {

constexpr size_t kMaxName = 64;
constexpr size_t kMaxModelName = 128;
constexpr size_t kMaxSalt = 64;
constexpr char kDefaultOrder[] = "layer,plane,token,head,dim";

// In /tmp anybody may have made the folder first.
void SetDefaultSocket(ClientOptions* options) {
  const char* runtime = ::secure_getenv("XDG_RUNTIME_DIR");
  if (runtime != nullptr && runtime[0] == '/') {
    options->socket_path = std::string(runtime) + "/terrace/terraced.sock";
  } else {
    options->socket_path = "/tmp/terrace-" + std::to_string(::getuid()) + "/terraced.sock";
    options->listener = FrameSocket::Listener::kOwnUserOrRoot;
  }
}

// The program's own name may be anything; what cannot be shown is left out.
std::string ProgramName() {
  std::string name;
  for (const char* c = program_invocation_short_name; *c != 0 && name.size() < kMaxName; ++c) {
    if (*c >= 0x20 && *c < 0x7f) name.push_back(*c);
  }
  return name;
}

Result<ClientOptions> OptionsOf(const kvc_client_options* given) {
  ASSIGN_OR_RETURN(const kvc_client_options asked, Read(given));
  if (asked.timeout_ms < 0) return Invalid("timeout_ms is negative");
  ClientOptions options;
  if (asked.socket_path != nullptr) {
    options.socket_path = asked.socket_path;
  } else {
    SetDefaultSocket(&options);
  }
  ASSIGN_OR_RETURN(options.name, TextOf("name", asked.name, kMaxName));
  if (options.name.empty()) options.name = ProgramName();
  options.writer = asked.read_only == 0;
  options.max_pins = asked.max_pins;
  if (asked.timeout_ms != 0) options.timeout_ms = asked.timeout_ms;
  options.reconnect = asked.no_reconnect == 0;
  return options;
}

Result<messages::Layout> LayoutOf(const kvc_layout& given) {
  messages::Layout layout;
  if (given.dtype == nullptr) return Invalid("layout.dtype is NULL");
  ASSIGN_OR_RETURN(layout.dtype, TextOf("layout.dtype", given.dtype, 32));
  layout.layers = given.layers;
  layout.kv_heads = given.kv_heads;
  layout.head_size = given.head_size;
  layout.page_tokens = given.page_tokens;
  layout.planes = given.planes;
  ASSIGN_OR_RETURN(layout.order, TextOf("layout.order",
                                        given.order != nullptr ? given.order : kDefaultOrder, 64));
  return layout;
}

// The rank's part of a page, and into how many parts it divides the page's bytes.
struct Part {
  uint32_t part = 0;
  uint32_t divisor = 1;
};
Result<Part> PartOf(const kvc_space_options& o) {
  const uint32_t tp_size = std::max<uint32_t>(o.tp_size, 1);
  const uint32_t stages = std::max<uint32_t>(o.stages, 1);
  if (o.tp_rank >= tp_size) return Invalid("tp_rank is not below tp_size");
  if (o.stage >= stages) return Invalid("stage is not below stages");
  if (o.layout.kv_heads != 1 && o.layout.kv_heads % tp_size != 0) {
    return Invalid("tp_size does not divide layout.kv_heads");
  }
  if (o.layout.layers % stages != 0) return Invalid("stages does not divide layout.layers");
  Part part;
  if (tp_size > 1 || stages > 1) {
    part.part = o.tp_rank | tp_size << 8 | uint32_t{o.stage} << 16 | stages << 24;
  }
  part.divisor = stages * (o.layout.kv_heads == 1 ? 1 : tp_size);
  return part;
}

std::string BytesOf(const Digest& digest) {
  return {reinterpret_cast<const char*>(digest.bytes.data()), digest.bytes.size()};
}

Result<messages::OpenSpace> RequestOf(const kvc_space_options& o) {
  messages::OpenSpace request;
  if (o.weights != nullptr) {
    const WeightSet& weights = *Of(o.weights);
    if (weights.arriving()) {
      return Status(Code::kUnavailable,
                    "weights: they are still being loaded; kvc_model_wait(KVC_ALL_BLOCKS) first");
    }
    const Digest digest = weights.digest();
    // KV that is of no weights would be that of any.
    if (digest.IsZero()) return Status(Code::kInternal, "weights: their digest is not known");
    request.weights_digest = BytesOf(digest);
    request.model = weights.model();
  } else {
    if (o.weights_digest != nullptr) request.weights_digest = BytesOf(*Of(o.weights_digest));
    ASSIGN_OR_RETURN(request.model, TextOf("model", o.model, kMaxModelName));
  }
  if (o.adapter_digest != nullptr) request.adapter_digest = BytesOf(*Of(o.adapter_digest));
  if (o.salt_bytes > kMaxSalt) return Invalid("salt_bytes is over 64");
  if (o.salt_bytes > 0) {
    if (o.salt == nullptr) return Invalid("salt is NULL");
    request.salt.assign(static_cast<const char*>(o.salt), o.salt_bytes);
  }
  ASSIGN_OR_RETURN(request.layout, LayoutOf(o.layout));
  return request;
}

Status OpenSpace(kvc_client* client, const messages::OpenSpace& request, const Part& part,
                 int32_t timeout_ms, kvc_space** space) {
  const std::shared_ptr<Client>& core = Of(client)->client;
  RETURN_IF_ERROR(CheckClient(*core));
  ASSIGN_OR_RETURN(const Deadline deadline, core->DeadlineOf(timeout_ms));
  ASSIGN_OR_RETURN(std::shared_ptr<Space> opened,
                   core->OpenSpace(
                       request, part.part,
                       [&](uint32_t page_bytes) { return page_bytes / part.divisor; }, deadline));
  *space = ToHandle<kvc_space>(new SpaceHandle{core, std::move(opened)});
  return {};
}

}  // namespace
}  // namespace terrace::client::abi

using namespace terrace;               // NOLINT(google-build-using-namespace)
using namespace terrace::client::abi;  // NOLINT(google-build-using-namespace)
using terrace::client::Client;
using terrace::client::ClientOptions;
using terrace::client::Deadline;
using terrace::client::Life;

const char* kvc_code_name(kvc_code code) {
  // The names are literals, so they end with a zero.
  return CodeName(static_cast<Code>(code)).data();
}

const char* kvc_version(void) {
  return TERRACE_VERSION;
}

uint32_t kvc_abi_version(void) {
  return KVC_ABI_VERSION;
}

kvc_code kvc_connect(const kvc_client_options* options, kvc_client** client, kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (client == nullptr) return Invalid("client is NULL");
    ASSIGN_OR_RETURN(ClientOptions asked, OptionsOf(options));
    ASSIGN_OR_RETURN(std::shared_ptr<Client> core, Client::Connect(std::move(asked)));
    *client = ToHandle<kvc_client>(new ClientHandle{std::move(core)});
    return {};
  });
}

void kvc_close(kvc_client* client) {
  // In a forked child the thread and the locks are the parent's: nothing can be undone there.
  if (client == nullptr || Of(client)->client->in_child()) return;
  Run(nullptr, [&]() -> Status {
    Of(client)->client->Close();
    return {};
  });
  delete Of(client);
}

uint64_t kvc_epoch(const kvc_client* client) {
  return client == nullptr || Of(client)->client->in_child() ? 0 : Of(client)->client->epoch();
}

kvc_code kvc_wait_connected(kvc_client* client, int32_t timeout_ms, kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (client == nullptr) return Invalid("client is NULL");
    Client& core = *Of(client)->client;
    RETURN_IF_ERROR(CheckClient(core));
    ASSIGN_OR_RETURN(const Deadline deadline, core.DeadlineOf(timeout_ms));
    return core.WaitConnected(deadline);
  });
}

kvc_code kvc_ping(kvc_client* client, int32_t timeout_ms, kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (client == nullptr) return Invalid("client is NULL");
    Client& core = *Of(client)->client;
    RETURN_IF_ERROR(CheckClient(core));
    ASSIGN_OR_RETURN(const Deadline deadline, core.DeadlineOf(timeout_ms));
    return core.Call(messages::Ping(), deadline).status();
  });
}

kvc_code kvc_client_get_info(const kvc_client* client, kvc_client_info* info) {
  return Run(nullptr, [&]() -> Status {
    if (client == nullptr) return Invalid("client is NULL");
    const Client& core = *Of(client)->client;
    RETURN_IF_ERROR(CheckClient(core));
    const std::shared_ptr<Life> life = core.life();
    if (life == nullptr) return Status(Code::kUnavailable, "the client is closed");
    const Life::Counts counts = life->counts();
    const Life::Pins pins = life->PinsNow();
    kvc_client_info now{};
    now.epoch = core.epoch();
    now.client_id = life->hello().client;
    now.max_pins = life->hello().max_pins;
    now.max_pinned_bytes = life->hello().max_pinned_bytes;
    now.max_grants = life->hello().max_grants;
    now.pinned_pages = pins.count;
    now.pinned_bytes = pins.bytes;
    now.lookups = counts.lookups;
    now.hits = counts.hits;
    now.misses = counts.misses;
    return Write(now, info);
  });
}

kvc_code kvc_space_open(kvc_client* client, const kvc_space_options* options, int32_t timeout_ms,
                        kvc_space** space, kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (client == nullptr || options == nullptr || space == nullptr) {
      return Invalid("client, options or space is NULL");
    }
    ASSIGN_OR_RETURN(const kvc_space_options asked, Read(options));
    ASSIGN_OR_RETURN(const Part part, PartOf(asked));
    ASSIGN_OR_RETURN(const messages::OpenSpace request, RequestOf(asked));
    return OpenSpace(client, request, part, timeout_ms, space);
  });
}

kvc_code kvc_space_open_existing(kvc_client* client, const kvc_key* id, int32_t timeout_ms,
                                 kvc_space** space, kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (client == nullptr || id == nullptr || space == nullptr) {
      return Invalid("client, id or space is NULL");
    }
    messages::OpenSpace request;
    request.space_id = BytesOf(*Of(id));
    return OpenSpace(client, request, Part(), timeout_ms, space);
  });
}

void kvc_space_close(kvc_space* space) {
  if (space == nullptr || Of(space)->client->in_child()) return;
  const std::unique_ptr<SpaceHandle> handle(Of(space));
  Run(nullptr, [&]() -> Status {
    handle->client->CloseSpace(handle->space, Deadline::In(handle->client->options().timeout_ms));
    return {};
  });
}

kvc_code kvc_space_get_info(const kvc_space* space, kvc_space_info* info) {
  return Run(nullptr, [&]() -> Status {
    if (space == nullptr) return Invalid("space is NULL");
    RETURN_IF_ERROR(CheckClient(*Of(space)->client));
    const client::SpaceFacts& facts = Of(space)->space->facts();
    kvc_space_info now{};
    std::memcpy(now.id.bytes, facts.id.bytes.data(), sizeof now.id.bytes);
    now.page_tokens = facts.page_tokens;
    now.page_bytes = facts.page_bytes;
    now.base = facts.range->base();
    return Write(now, info);
  });
}
