#include "bench/weight_share.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "bench/client.h"
#include "bench/memory_maps.h"
#include "bench/processes.h"
#include "bench/statistics.h"

namespace terrace::bench {
namespace {

// What a client says of its attachment.
struct Attachment {
  uint64_t base = 0;
  uint64_t bytes = 0;
  uint64_t sum = 0;  // Of all words of all tensors: equal in all clients.
  double attach_ms = 0;
};

// Reads every byte of every tensor.
Result<uint64_t> SumOfTensors(const kvc_weights* weights, size_t tensors) {
  uint64_t sum = 0;
  for (size_t i = 0; i < tensors; ++i) {
    kvc_tensor tensor{};
    tensor.struct_size = sizeof tensor;
    if (const kvc_code code = kvc_weights_at(weights, i, &tensor); code != KVC_OK) {
      return Status(static_cast<Code>(code), "kvc_weights_at");
    }
    const auto* bytes = static_cast<const uint8_t*>(tensor.data);
    sum = std::accumulate(bytes, bytes + tensor.bytes, sum);
  }
  return sum;
}

Status AttachAndHold(const ShareOptions& options, Link& link) {
  ASSIGN_OR_RETURN(const Client client,
                   Connect({.socket = options.socket, .name = "engine", .read_only = true}));
  kvc_attach_options attach{};
  attach.struct_size = sizeof attach;
  attach.load = 1;
  kvc_weights* made = nullptr;
  kvc_error error{};
  const Stopwatch watch;
  RETURN_IF_ERROR(ToStatus(
      kvc_attach(client.get(), options.model.c_str(), &attach, 600'000, &made, &error), error));
  const Weights weights(made);
  Attachment attachment{.attach_ms = watch.Seconds() * 1e3};
  kvc_weights_info info{};
  info.struct_size = sizeof info;
  kvc_weights_get_info(made, &info);
  attachment.base = reinterpret_cast<uintptr_t>(info.base);
  attachment.bytes = info.bytes;
  ASSIGN_OR_RETURN(attachment.sum, SumOfTensors(made, info.tensors));
  RETURN_IF_ERROR(link.Send(attachment));
  return link.Receive<Go>().status();
}

// Adds up the ranges of `pid` that lie in the attachment, and notes which files they are of.
Status CountClient(pid_t pid, const Attachment& attachment, SharedWeights* shared,
                   std::set<uint64_t>* inodes) {
  ASSIGN_OR_RETURN(const std::vector<MappedRange> ranges, MapsOf(pid));
  uint64_t pss = 0, rss = 0;
  for (const MappedRange& range : ranges) {
    if (range.start < attachment.base || range.start >= attachment.base + attachment.bytes)
      continue;
    if (range.inode == 0) continue;
    pss += range.pss_bytes;
    rss += range.rss_bytes;
    inodes->insert(range.inode);
  }
  shared->client_pss_bytes.push_back(pss);
  shared->client_rss_bytes.push_back(rss);
  return {};
}

Status CountDaemon(pid_t pid, const std::set<uint64_t>& inodes, SharedWeights* shared) {
  ASSIGN_OR_RETURN(const std::vector<MappedRange> ranges, MapsOf(pid));
  for (const MappedRange& range : ranges) {
    if (inodes.contains(range.inode)) shared->daemon_pss_bytes += range.pss_bytes;
  }
  return {};
}

}  // namespace

double SharedWeights::copies() const {
  const uint64_t clients =
      std::accumulate(client_pss_bytes.begin(), client_pss_bytes.end(), uint64_t{0});
  return image_bytes == 0
             ? 0
             : static_cast<double>(clients + daemon_pss_bytes) / static_cast<double>(image_bytes);
}

Result<SharedWeights> ShareWeights(const ShareOptions& options) {
  std::vector<Child> children;
  for (uint32_t i = 0; i < options.clients; ++i) {
    ASSIGN_OR_RETURN(Child child, Child::Start("engine", [&](Link& link) {
                       return AttachAndHold(options, link);
                     }));
    children.push_back(std::move(child));
  }
  SharedWeights shared;
  std::vector<Attachment> attachments;
  for (Child& child : children) {
    ASSIGN_OR_RETURN(const Attachment attachment, child.link().Receive<Attachment>());
    attachments.push_back(attachment);
    shared.image_bytes = attachment.bytes;
    shared.attach_ms = std::max(shared.attach_ms, attachment.attach_ms);
    if (attachment.sum != attachments.front().sum) {
      return Status(Code::kDataLoss, "two processes read different weights");
    }
  }
  std::set<uint64_t> inodes;
  for (size_t i = 0; i < children.size(); ++i) {
    RETURN_IF_ERROR(CountClient(children[i].pid(), attachments[i], &shared, &inodes));
  }
  {
    ASSIGN_OR_RETURN(const Client client,
                     Connect({.socket = options.socket, .name = "share", .read_only = true}));
    ASSIGN_OR_RETURN(const uint64_t daemon, StatusNumber(client.get(), "/daemon/pid"));
    RETURN_IF_ERROR(CountDaemon(static_cast<pid_t>(daemon), inodes, &shared));
  }
  RETURN_IF_ERROR(TellAll(children));
  RETURN_IF_ERROR(WaitAll(children));
  return shared;
}

Figures ToFigures(const SharedWeights& shared) {
  Figures figures{{"copies_in_memory", shared.copies(), "ratio"},
                  {"image_bytes", static_cast<double>(shared.image_bytes), "bytes"},
                  {"daemon_pss_bytes", static_cast<double>(shared.daemon_pss_bytes), "bytes"}};
  for (size_t i = 0; i < shared.client_pss_bytes.size(); ++i) {
    const std::string name = "client_" + std::to_string(i + 1);
    figures.push_back(
        {name + "_mapped_bytes", static_cast<double>(shared.client_rss_bytes[i]), "bytes"});
    figures.push_back(
        {name + "_pss_bytes", static_cast<double>(shared.client_pss_bytes[i]), "bytes"});
  }
  figures.push_back({"attach_ms", shared.attach_ms, "ms"});
  return figures;
}

}  // namespace terrace::bench
