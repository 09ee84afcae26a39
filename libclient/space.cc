#include "libclient/space.h"

#include <algorithm>

namespace terrace::client {

Result<Binding> BindingOf(const messages::OpenSpaceReply& reply, uint32_t part,
                          uint64_t life_epoch) {
  Binding binding{life_epoch,
                  {.space = {.slot = reply.slot,
                             .epoch = reply.epoch,
                             .generation_index = reply.generation_index,
                             .generation = reply.generation},
                   .part = part}};
  if (!DirectoryView<>::Valid(binding.ref()) || reply.space_id.size() != sizeof(Digest)) {
    return Status(Code::kDataLoss, "the daemon describes the space wrongly");
  }
  return binding;
}

Digest DigestOf(const std::string& bytes) {
  Digest digest;
  std::copy_n(bytes.begin(), digest.bytes.size(), digest.bytes.begin());
  return digest;
}

}  // namespace terrace::client
