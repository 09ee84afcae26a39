// The C ABI: attached weights.
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "libclient/abi/abi.h"

using namespace terrace;               // NOLINT(google-build-using-namespace)
using namespace terrace::client::abi;  // NOLINT(google-build-using-namespace)
using terrace::client::AttachSpec;
using terrace::client::Client;
using terrace::client::Deadline;
using terrace::client::ManifestView;
using terrace::client::WeightSet;

namespace {

constexpr size_t kMaxModelName = 128;

Status CheckWeights(const kvc_weights* weights) {
  if (weights == nullptr) return Invalid("weights is NULL");
  return CheckClient(Of(weights)->client());
}

Status WriteTensor(const WeightSet& weights, const manifest::TensorRecord& record,
                   kvc_tensor* out) {
  if (weights.lost()) {
    return {Code::kStale, "the device memory of these weights was lost: unmap and remap them"};
  }
  kvc_tensor tensor{};
  const std::string_view name = weights.manifest().name(record);
  tensor.name = name.data();
  tensor.name_bytes = name.size();
  tensor.dtype = record.dtype;
  tensor.rank = record.rank;
  std::copy_n(record.shape, manifest::kMaxRank, tensor.shape);
  tensor.data = weights.DataOf(record);
  tensor.bytes = record.bytes;
  return Write(tensor, out);
}

}  // namespace

kvc_code kvc_attach(kvc_client* client, const char* model, const kvc_attach_options* options,
                    int32_t timeout_ms, kvc_weights** weights, kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (client == nullptr || model == nullptr || weights == nullptr) {
      return Invalid("client, model or weights is NULL");
    }
    const std::shared_ptr<Client>& core = Of(client)->client;
    RETURN_IF_ERROR(CheckClient(*core));
    ASSIGN_OR_RETURN(const kvc_attach_options asked, Read(options));
    AttachSpec spec;
    ASSIGN_OR_RETURN(spec.model, TextOf("model", model, kMaxModelName));
    ASSIGN_OR_RETURN(spec.version, TextOf("version", asked.version, kMaxModelName));
    spec.load = asked.load != 0;
    spec.first_layer = asked.first_layer;
    spec.layer_count = asked.layer_count;
    spec.with_rest = asked.with_rest != 0;
    spec.early = asked.early != 0;
    if (spec.early && !spec.load) return Invalid("early needs load");
    RETURN_IF_ERROR(CheckDevice(asked.device, *core));
    if (asked.device != nullptr) spec.device = Of(asked.device)->device;
    if (spec.early && spec.device != nullptr) return Invalid("early is not for a device");
    ASSIGN_OR_RETURN(const Deadline deadline, core->DeadlineOf(timeout_ms));
    ASSIGN_OR_RETURN(std::unique_ptr<WeightSet> set, WeightSet::Attach(core, spec, deadline));
    *weights = ToHandle<kvc_weights>(set.release());
    return {};
  });
}

void kvc_detach(kvc_weights* weights) {
  if (weights == nullptr || Of(weights)->client().in_child()) return;
  Run(nullptr, [&]() -> Status {
    delete Of(weights);
    return {};
  });
}

kvc_code kvc_weights_get_info(const kvc_weights* weights, kvc_weights_info* info) {
  return Run(nullptr, [&]() -> Status {
    RETURN_IF_ERROR(CheckWeights(weights));
    const WeightSet& set = *Of(weights);
    const manifest::ManifestHeader& header = set.manifest().header();
    kvc_weights_info now{};
    now.model = set.model().c_str();
    now.version = set.version().c_str();
    const Digest digest = set.digest();
    std::memcpy(now.digest.bytes, digest.bytes.data(), sizeof now.digest.bytes);
    now.epoch = set.epoch();
    now.tensors = header.tensors;
    now.bytes = header.image_bytes;
    now.mapped_bytes = set.mapped_bytes();
    now.layers = header.layers;
    now.blocks = header.blocks;
    now.base = set.base();
    return Write(now, info);
  });
}

kvc_code kvc_model_wait(kvc_weights* weights, uint32_t block, int32_t timeout_ms,
                        kvc_error* error) {
  return Run(error, [&]() -> Status {
    RETURN_IF_ERROR(CheckWeights(weights));
    WeightSet& set = *Of(weights);
    ASSIGN_OR_RETURN(const Deadline deadline, set.client().DeadlineOf(timeout_ms));
    if (block == KVC_ALL_BLOCKS) return set.Wait({}, deadline);
    return set.Wait(std::span(&block, 1), deadline);
  });
}

kvc_code kvc_model_wait_tensor(kvc_weights* weights, const char* name, int32_t timeout_ms,
                               kvc_error* error) {
  return Run(error, [&]() -> Status {
    if (name == nullptr) return Invalid("name is NULL");
    RETURN_IF_ERROR(CheckWeights(weights));
    WeightSet& set = *Of(weights);
    ASSIGN_OR_RETURN(const Deadline deadline, set.client().DeadlineOf(timeout_ms));
    const manifest::TensorRecord* record = set.manifest().Find(name);
    if (record == nullptr) return Status(Code::kNotFound, "no such tensor");
    const auto [first, end] = set.manifest().BlocksOf(*record);
    if (first == end) return {};  // It is empty.
    std::vector<uint32_t> blocks(end - first);
    std::iota(blocks.begin(), blocks.end(), first);
    return set.Wait(blocks, deadline);
  });
}

uint64_t kvc_weights_epoch(const kvc_weights* weights) {
  return weights == nullptr ? 0 : Of(weights)->epoch();
}

kvc_code kvc_weights_find(const kvc_weights* weights, const char* name, kvc_tensor* tensor) {
  return Run(nullptr, [&]() -> Status {
    if (name == nullptr) return Invalid("name is NULL");
    RETURN_IF_ERROR(CheckWeights(weights));
    const manifest::TensorRecord* record = Of(weights)->manifest().Find(name);
    if (record == nullptr) return Status(Code::kNotFound, "no such tensor");
    return WriteTensor(*Of(weights), *record, tensor);
  });
}

kvc_code kvc_weights_at(const kvc_weights* weights, size_t index, kvc_tensor* tensor) {
  return Run(nullptr, [&]() -> Status {
    RETURN_IF_ERROR(CheckWeights(weights));
    const auto records = Of(weights)->manifest().records();
    if (index >= records.size()) return Status(Code::kNotFound, "no such tensor");
    return WriteTensor(*Of(weights), records[index], tensor);
  });
}
