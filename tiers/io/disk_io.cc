#include "tiers/io/disk_io.h"

#include <string>
#include <utility>

#include "tiers/io/flights.h"
#include "tiers/io/ring_disk_io.h"
#include "tiers/io/thread_disk_io.h"

namespace terrace {
namespace {

constexpr uint32_t kMaxRegions = 16'384;  // What the kernel's table takes.
constexpr int kMaxThreads = 256;

Status CheckRange(const char* field, int64_t value, int64_t most) {
  if (value >= 1 && value <= most) return {};
  return {Code::kInvalidArgument, std::string("file I/O: ") + field + " is " +
                                      std::to_string(value) + ", not between 1 and " +
                                      std::to_string(most)};
}

}  // namespace

Result<std::unique_ptr<DiskIo>> StartDiskIo(const DiskIoOptions& options, const Clock& clock) {
  RETURN_IF_ERROR(CheckRange("depth", options.depth, kMaxIoDepth));
  RETURN_IF_ERROR(CheckRange("files", options.files, kMostIoFiles));
  RETURN_IF_ERROR(CheckRange("regions", options.regions, kMaxRegions));
  RETURN_IF_ERROR(CheckRange("threads", options.threads, kMaxThreads));
  if (!options.allow_io_uring) {
    return StartThreadDiskIo(options, clock, "io_uring is not allowed by the options");
  }
  Result<std::unique_ptr<DiskIo>> ring = StartRingDiskIo(options, clock);
  if (ring) return ring;
  return StartThreadDiskIo(options, clock, ring.error().message());
}

}  // namespace terrace
