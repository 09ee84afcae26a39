// An engine on a GPU in one page: attaches weights that lie in device memory, looks a prompt's KV
// pages up there, checks what it found by a kernel, computes what was missing in place, publishes
// it, and compares everything as another engine would. Run it twice, or two at once: the second one
// finds what the first published.
//
//   cuda_engine MODEL [SOCKET]       (see `terracectl model add --help`)
//
// Exit codes: 0 all bytes are right; 1 not, or something failed; 77 there is no GPU.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <kvclient/kvclient.hpp>
#include <vector>

namespace {

constexpr int kNoGpu = 77;
constexpr int kThreads = 256;
constexpr int kBlocks = 64;

[[noreturn]] void Fail(const char* what, const char* why) {
  std::fprintf(stderr, "cuda_engine: %s: %s\n", what, why);
  std::exit(1);
}
template <class T>
T Need(const char* what, kvc::Result<T> result) {
  if (result) return *std::move(result);
  Fail(what, result.error().ToString().c_str());
}
void Need(const char* what, const kvc::Status& status) {
  if (!status.ok()) Fail(what, status.ToString().c_str());
}
void Need(const char* what, cudaError_t error) {
  if (error != cudaSuccess) Fail(what, cudaGetErrorString(error));
}

// What stands for a model: word i of the page of a key. Any engine computes the same.
__host__ __device__ std::uint64_t WordOf(std::uint64_t key, std::uint64_t i) {
  std::uint64_t z = key + (i + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  return z ^ (z >> 27);
}
__global__ void Compute(std::uint64_t* page, std::uint64_t words, std::uint64_t key) {
  for (std::uint64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < words;
       i += std::uint64_t{gridDim.x} * blockDim.x)
    page[i] = WordOf(key, i);
}
__global__ void CountWrong(const std::uint64_t* page, std::uint64_t words, std::uint64_t key,
                           unsigned long long* wrong) {
  for (std::uint64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < words;
       i += std::uint64_t{gridDim.x} * blockDim.x) {
    if (page[i] != WordOf(key, i)) atomicAdd(wrong, 1ull);
  }
}
__global__ void Sum(const unsigned char* bytes, std::uint64_t count, unsigned long long* sum) {
  unsigned long long mine = 0;
  for (std::uint64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count;
       i += std::uint64_t{gridDim.x} * blockDim.x)
    mine += bytes[i];
  atomicAdd(sum, mine);
}

std::uint64_t Begin(const kvc::Key& key) {
  std::uint64_t begin = 0;
  std::memcpy(&begin, key.bytes, sizeof begin);
  return begin;
}

// A counter in device memory, and the stream that everything here is launched on.
struct Gpu {
  Gpu() {
    Need("cudaStreamCreate", cudaStreamCreate(&stream));
    Need("cudaMalloc", cudaMalloc(&counter, sizeof *counter));
  }
  void Zero() { Need("cudaMemsetAsync", cudaMemsetAsync(counter, 0, sizeof *counter, stream)); }
  // When it returns, all that was launched is done: what it read may be released, what it wrote may
  // be committed.
  unsigned long long Counted() {
    unsigned long long count = 0;
    Need("cudaMemcpyAsync",
         cudaMemcpyAsync(&count, counter, sizeof count, cudaMemcpyDeviceToHost, stream));
    Need("cudaStreamSynchronize", cudaStreamSynchronize(stream));
    return count;
  }
  cudaStream_t stream = nullptr;
  unsigned long long* counter = nullptr;
};

// The first tensor that lies in one piece, summed on the device and on the host.
void CheckWeights(const kvc::Weights& weights, Gpu& gpu) {
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const auto tensor = Need("tensor", weights.at(i));
    const auto bytes = tensor.bytes();
    if (bytes.empty()) continue;
    gpu.Zero();
    Sum<<<kBlocks, kThreads, 0, gpu.stream>>>(
        reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), gpu.counter);
    Need("the kernel Sum", cudaGetLastError());
    const unsigned long long on_device = gpu.Counted();
    std::vector<unsigned char> copy(bytes.size());
    Need("cudaMemcpy",
         cudaMemcpy(copy.data(), bytes.data(), copy.size(), cudaMemcpyDeviceToHost));
    unsigned long long on_host = 0;
    for (const unsigned char byte : copy)
      on_host += byte;
    if (on_device != on_host) Fail("weights", "a kernel and a copy see other bytes");
    std::printf("%zu tensors; %.*s, %zu bytes, read by a kernel\n", weights.size(),
                static_cast<int>(tensor.name().size()), tensor.name().data(), bytes.size());
    return;
  }
}

// How many of the first pages are on the device, with their bytes.
std::size_t CheckPages(const kvc::Pages& pages, const std::vector<kvc::Key>& keys, Gpu& gpu) {
  gpu.Zero();
  for (std::size_t i = 0; i < pages.size(); ++i) {
    if (pages[i].device == 0) Fail("lookup", "a page is in host memory");
    const auto bytes = pages[i].bytes;
    CountWrong<<<kBlocks, kThreads, 0, gpu.stream>>>(
        reinterpret_cast<const std::uint64_t*>(bytes.data()), bytes.size() / 8, Begin(keys[i]),
        gpu.counter);
    Need("the kernel CountWrong", cudaGetLastError());
  }
  if (gpu.Counted() != 0) Fail("pages", "a page has wrong bytes");
  return pages.size();
}

}  // namespace

int main(int argc, char** argv) {
  int gpus = 0;
  if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus == 0) {
    std::fprintf(stderr, "cuda_engine: there is no GPU here\n");
    return kNoGpu;
  }
  Need("cudaSetDevice", cudaSetDevice(0));
  Gpu gpu;
  kvc_client_options where_to{};
  if (argc > 2) where_to.socket_path = argv[2];
  auto client = Need("connect", kvc::Client::Connect(where_to));
  auto device = Need("device", kvc::Device::Open(client.get()));  // CUDA's device 0.
  kvc_attach_options attach{};
  attach.load = 1;
  attach.device = device.get();
  auto weights =
      Need("attach", client.Attach(argc > 1 ? argv[1] : "llama", attach, /*timeout_ms=*/600'000));
  CheckWeights(weights, gpu);

  kvc_space_options options{};
  options.layout = {"bf16",
                    /*layers=*/16,
                    /*kv_heads=*/8,
                    /*head_size=*/64,
                    /*page_tokens=*/16,
                    /*planes=*/2,
                    nullptr};
  options.weights = weights.get();
  auto space = Need("space", client.OpenSpace(options));
  auto reader = Need("reader", client.NewReader());
  Need("reader", reader.SetDevice(device));
  const std::vector<std::uint32_t> prompt(1000, 42);
  auto sequence = Need("sequence", space.NewSequence());
  Need("sequence", sequence.Append(prompt));
  const auto of_prompt = sequence.keys();
  const std::vector<kvc::Key> keys(of_prompt.begin(), of_prompt.end());

  std::size_t found = 0;
  {
    // Pinned while `hits` lives: CheckPages returns when its kernels are done.
    const auto hits = Need("lookup", reader.LookupPrefix(space, keys));
    found = CheckPages(hits, keys, gpu);
  }
  std::printf("%zu of %zu pages were there\n", found, keys.size());
  if (found < keys.size()) {
    kvc_grant_options where{};
    where.device = device.get();
    auto grants = Need("grant", client.Grant(space, {keys.data() + found, keys.size() - found},
                                             where));
    for (std::size_t i = 0; i < grants.size(); ++i) {
      const auto bytes = grants[i].writable();
      if (bytes.empty()) continue;  // Another engine is about to publish it, or there is no room.
      Compute<<<kBlocks, kThreads, 0, gpu.stream>>>(
          reinterpret_cast<std::uint64_t*>(bytes.data()), bytes.size() / 8,
          Begin(keys[found + i]));
      Need("the kernel Compute", cudaGetLastError());
    }
    // Others read the pages as soon as they are committed: the stream has to be done before.
    Need("cudaStreamSynchronize", cudaStreamSynchronize(gpu.stream));
    const auto published = Need("commit", kvc::Grants::Commit(std::move(grants)));
    std::size_t pages = 0;
    for (std::size_t i = 0; i < published.size(); ++i)
      pages += published[i] == KVC_OK ? 1 : 0;
    std::printf("%zu pages were published\n", pages);
  }
  const auto all = Need("lookup", reader.LookupPrefix(space, keys));
  std::printf("%zu pages compared on the device\n", CheckPages(all, keys, gpu));
  return all.size() == keys.size() ? 0 : 1;
}
