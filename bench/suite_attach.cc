// Suite `attach`: mapping a loaded model of 4,000 tensors.
//
// `round_trips` are the requests that the daemon received for one attach, by its own counters.
// `first_tensor_ms` runs from the call of kvc_attach until the first byte of a tensor, found by its
// name, was read; the median of attachments by one connected client. `copies_in_memory` is
// weight_share.h with 4 processes that have read every byte, the daemon's own mapping counted in.
//
// The rival is what each engine does for itself today: open the file, map it, parse its header,
// find the tensor by name, read its first byte. The file is in the page cache. `attach_over_file`
// is the ratio of the two, in turn, to the first byte.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "base/unique_fd.h"
#include "bench/client.h"
#include "bench/daemon.h"
#include "bench/model_writer.h"
#include "bench/statistics.h"
#include "bench/suites.h"
#include "bench/weight_share.h"

namespace terrace::bench {
namespace {

constexpr const char* kModel = "bench";

struct Attempt {
  double first_tensor_ms = 0;
  double attach_ms = 0;
};
Result<Attempt> AttachOnce(kvc_client* client, const std::string& tensor_name) {
  Attempt attempt;
  kvc_weights* made = nullptr;
  kvc_error error{};
  const Stopwatch watch;
  RETURN_IF_ERROR(ToStatus(kvc_attach(client, kModel, nullptr, 0, &made, &error), error));
  attempt.attach_ms = watch.Seconds() * 1e3;
  const Weights weights(made);
  kvc_tensor tensor{};
  tensor.struct_size = sizeof tensor;
  if (const kvc_code code = kvc_weights_find(made, tensor_name.c_str(), &tensor); code != KVC_OK) {
    return Status(static_cast<Code>(code), "kvc_weights_find " + tensor_name);
  }
  const volatile uint8_t* first = static_cast<const uint8_t*>(tensor.data);
  (void)*first;
  attempt.first_tensor_ms = watch.Seconds() * 1e3;
  return attempt;
}

// Milliseconds of the rival. The file is one shard.
Result<double> FirstTensorOfFile(const std::string& path, const std::string& tensor_name) {
  const Stopwatch watch;
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat facts {};
  if (!fd || fstat(fd.get(), &facts) != 0) return SystemError(path, errno);
  const auto bytes = static_cast<size_t>(facts.st_size);
  void* memory = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (memory == MAP_FAILED) return SystemError("mmap of " + path, errno);
  const auto* data = static_cast<const uint8_t*>(memory);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, data, sizeof header_bytes);
  data += sizeof header_bytes;
  const auto header = nlohmann::json::parse(data, data + header_bytes);
  const uint64_t begin = header.at(tensor_name).at("data_offsets").at(0);
  const volatile uint8_t* first = data + header_bytes + begin;
  (void)*first;
  const double ms = watch.Seconds() * 1e3;
  munmap(memory, bytes);
  return ms;
}

// How many requests the daemon receives between the call of kvc_attach and its return.
Result<uint64_t> RoundTripsOfOne(kvc_client* client) {
  ASSIGN_OR_RETURN(const uint64_t before, FramesReceived(client));
  kvc_weights* made = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(ToStatus(kvc_attach(client, kModel, nullptr, 0, &made, &error), error));
  const Weights weights(made);
  ASSIGN_OR_RETURN(const uint64_t after, FramesReceived(client));
  return after - before;
}

Status AddAndLoad(kvc_client* client, const std::string& folder) {
  kvc_model_added added{};
  added.struct_size = sizeof added;
  kvc_error error{};
  RETURN_IF_ERROR(
      ToStatus(kvc_model_add(client, kModel, "1", folder.c_str(), 60'000, &added, &error), error));
  return ToStatus(kvc_load(client, kModel, nullptr, nullptr, nullptr, 600'000, nullptr, &error),
                  error);
}

}  // namespace

Result<Figures> RunAttach(const SuiteOptions& options) {
  const uint64_t tensor_count = options.quick ? 100 : 4000;
  const int attempts = options.quick ? 3 : 51;
  ASSIGN_OR_RETURN(const Daemon daemon,
                   Daemon::Start({.binary = options.terraced, .capacity_bytes = 1u << 30}));
  const std::string folder = daemon.folder() + "/model";
  const std::vector<ModelTensor> tensors = ManyTensors(tensor_count);
  ASSIGN_OR_RETURN(const Written written, WriteModel(folder, tensors, {}));

  Figures figures;
  {
    ASSIGN_OR_RETURN(const Client client, Connect({.socket = daemon.socket(), .name = "attach"}));
    RETURN_IF_ERROR(AddAndLoad(client.get(), folder));
    const std::string& middle = tensors[tensors.size() / 2].name;
    ASSIGN_OR_RETURN(const uint64_t round_trips, RoundTripsOfOne(client.get()));
    std::vector<double> first_tensor_ms, attach_ms, file_ms;
    for (int i = 0; i < attempts; ++i) {
      ASSIGN_OR_RETURN(const Attempt attempt, AttachOnce(client.get(), middle));
      first_tensor_ms.push_back(attempt.first_tensor_ms);
      attach_ms.push_back(attempt.attach_ms);
      ASSIGN_OR_RETURN(const double ms, FirstTensorOfFile(written.files.front(), middle));
      file_ms.push_back(ms);
    }
    figures = {{"round_trips", static_cast<double>(round_trips), "count"},
               {"first_tensor_ms", Median(first_tensor_ms), "ms"},
               {"attach_ms", Median(attach_ms), "ms"},
               {"file_first_tensor_ms", Median(file_ms), "ms"},
               {"attach_over_file", Median(first_tensor_ms) / Median(file_ms), "ratio"},
               {"tensors", static_cast<double>(tensor_count), "count"}};
  }
  ASSIGN_OR_RETURN(const SharedWeights shared,
                   ShareWeights({.socket = daemon.socket(), .model = kModel, .clients = 4}));
  figures.push_back({"copies_in_memory", shared.copies(), "ratio"});
  figures.push_back({"image_bytes", static_cast<double>(shared.image_bytes), "bytes"});
  return figures;
}

}  // namespace terrace::bench
