// A snapshot as text that Prometheus reads (text format 0.0.4). The one door to prometheus-cpp.
// docs/metrics.md lists every metric; the two change together. Any thread.
#pragma once

#include <string>

#include "daemon/service/metrics/snapshot.h"

namespace terrace {

std::string ExpositionOf(const Snapshot& snapshot);

}  // namespace terrace
