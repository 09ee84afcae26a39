// Several processes attach one model and read every byte of it: how much memory do they and the
// daemon take for it together?
//
// PSS, from /proc/PID/smaps, counts a resident page that n processes map as one n-th for each: the
// sum over all who map the weights is what the host really holds.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "bench/figures.h"

namespace terrace::bench {

struct ShareOptions {
  std::string socket;
  std::string model;
  uint32_t clients = 2;
};

struct SharedWeights {
  uint64_t image_bytes = 0;
  std::vector<uint64_t> client_pss_bytes;
  std::vector<uint64_t> client_rss_bytes;
  uint64_t daemon_pss_bytes = 0;
  double attach_ms = 0;  // Of the slowest client.

  // Of the whole image: 1 is one copy.
  double copies() const;
};
// The daemon's process is read too, so it must be one that this process may look at.
Result<SharedWeights> ShareWeights(const ShareOptions& options);
Figures ToFigures(const SharedWeights& shared);

}  // namespace terrace::bench
