#include "tests/integration/engine_steps.h"

#include <algorithm>
#include <cstring>

namespace terrace {

namespace {

constexpr uint32_t kPageTokens = 16;

}  // namespace

Status Unexpected(const std::string& what) {
  return {Code::kInternal, what};
}

std::vector<kvc_key> Keys(uint64_t first, uint64_t count, uint64_t of) {
  std::vector<kvc_key> keys;
  keys.reserve(count);
  for (uint64_t i = 0; i < count; ++i)
    keys.push_back(bench::SyntheticKey((first + i) % of));
  return keys;
}

Result<bench::Space> OpenPlainSpace(kvc_client* client, uint64_t page_bytes) {
  return bench::OpenSpace(client, {.layout = bench::PlainLayout(page_bytes, kPageTokens),
                                   .weights = nullptr,
                                   .salt = std::to_string(page_bytes)});
}

Result<bench::Published> PutPages(kvc_client* client, const kvc_space* space,
                                  const std::vector<kvc_key>& keys) {
  return bench::Put(client, space, {.keys = keys},
                    [&](size_t i, std::span<uint8_t> page) { bench::FillContent(keys[i], page); });
}

Status PutNewPages(kvc_client* client, const kvc_space* space, const std::vector<kvc_key>& keys) {
  ASSIGN_OR_RETURN(const bench::Published published, PutPages(client, space, keys));
  RETURN_UNLESS(published.committed == keys.size(),
                std::to_string(published.committed) + " of " + std::to_string(keys.size()));
  return {};
}

Result<bench::Pages> PinAll(kvc_reader* reader, const kvc_space* space,
                            const std::vector<kvc_key>& keys) {
  kvc_pages* found = nullptr;
  kvc_miss why = KVC_MISS_NONE;
  RETURN_UNLESS(kvc_lookup_prefix(reader, space, keys.data(), keys.size(), &found, &why) == KVC_OK,
                "lookup");
  bench::Pages pages(found);
  RETURN_UNLESS(why == KVC_MISS_NONE && kvc_pages_found(found) == keys.size(),
                std::to_string(kvc_pages_found(found)) + " of " + std::to_string(keys.size()) +
                    " pages, miss " + std::to_string(why));
  return pages;
}

Status CheckPage(const kvc_key& key, const kvc_page& page) {
  const auto* data = static_cast<const uint8_t*>(page.data);
  RETURN_UNLESS(data != nullptr, "a pinned page has an address");
  const uint64_t wrong = bench::WrongBytes(key, {data, page.bytes});
  RETURN_UNLESS(wrong == 0, std::to_string(wrong) + " of " + std::to_string(page.bytes) +
                                " bytes are not what the key demands");
  return {};
}

Status CheckPages(const kvc_pages* pages, const std::vector<kvc_key>& keys, uint64_t* found) {
  RETURN_UNLESS(kvc_pages_count(pages) <= keys.size(), "places");
  for (size_t i = 0; i < kvc_pages_count(pages); ++i) {
    kvc_page page{};
    RETURN_UNLESS(kvc_pages_get(pages, i, &page) == KVC_OK, "a place of the set");
    if (page.data == nullptr) continue;
    RETURN_IF_ERROR(CheckPage(keys[i], page));
    if (found != nullptr) ++*found;
  }
  return {};
}

Status AddModel(kvc_client* client, const std::string& name, const std::string& path,
                kvc_model_added* added) {
  kvc_error error{};
  return bench::ToStatus(kvc_model_add(client, name.c_str(), "1", path.c_str(), 0, added, &error),
                         error);
}

Result<bench::Weights> Attach(kvc_client* client, const std::string& model, bool load) {
  kvc_attach_options options{};
  options.struct_size = sizeof options;
  options.load = load ? 1 : 0;
  kvc_weights* weights = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(
      bench::ToStatus(kvc_attach(client, model.c_str(), &options, 0, &weights, &error), error));
  return bench::Weights(weights);
}

Status CheckTensors(const kvc_weights* weights, const std::vector<ModelTensor>& tensors,
                    uint64_t seed) {
  std::vector<uint8_t> bytes;
  for (const ModelTensor& expected : tensors) {
    kvc_tensor tensor{};
    tensor.struct_size = sizeof tensor;
    RETURN_UNLESS(kvc_weights_find(weights, expected.name.c_str(), &tensor) == KVC_OK,
                  expected.name);
    RETURN_UNLESS(tensor.dtype == expected.dtype, expected.name);
    RETURN_UNLESS(std::equal(expected.shape.begin(), expected.shape.end(), tensor.shape,
                             tensor.shape + tensor.rank),
                  expected.name);
    RETURN_UNLESS(tensor.bytes == expected.bytes(), expected.name);
    RETURN_UNLESS(tensor.data != nullptr, expected.name);
    RETURN_UNLESS(reinterpret_cast<uintptr_t>(tensor.data) % 256 == 0, expected.name);
    bytes.resize(tensor.bytes);
    FillTensor(TensorSeed(seed, expected.name), expected.dtype, 0, bytes);
    RETURN_UNLESS(std::memcmp(bytes.data(), tensor.data, bytes.size()) == 0, expected.name);
  }
  return {};
}

}  // namespace terrace
