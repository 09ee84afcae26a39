// FdMessage: the control message of descriptors that go with one sendmsg over a Unix socket.
//
// Lasts until that call. Any thread, one at a time.
#pragma once

#include <sys/socket.h>

#include <cstddef>
#include <cstring>
#include <span>

#include "base/check.h"

namespace terrace {

template <size_t kMost>
class FdMessage {
 public:
  // Nothing where there are none.
  void Attach(std::span<const int> fds, msghdr& message) {
    if (fds.empty()) return;
    TERRACE_CHECK(fds.size() <= kMost);
    message.msg_control = control_;
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
  }

 private:
  alignas(cmsghdr) char control_[CMSG_SPACE(kMost * sizeof(int))] = {};
};

}  // namespace terrace
