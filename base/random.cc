#include "base/random.h"

#include <sys/random.h>

#include <cerrno>

#include "base/check.h"

namespace terrace {

void FillSecret(std::span<uint8_t> out) {
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t got = ::getrandom(out.data() + done, out.size() - done, 0);
    if (got < 0 && errno == EINTR) continue;
    TERRACE_CHECK(got > 0);  // Fails only on a kernel without getrandom, which we do not support.
    done += static_cast<size_t>(got);
  }
}

uint64_t SecretWord() {
  uint64_t word = 0;
  FillSecret({reinterpret_cast<uint8_t*>(&word), sizeof word});
  return word;
}

}  // namespace terrace
