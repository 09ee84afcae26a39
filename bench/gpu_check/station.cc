#include "bench/gpu_check/station.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/random.h"
#include "kernels/cuda_kernels.h"

namespace terrace::bench {
namespace {

constexpr uint64_t kHostDeviceBytes = uint64_t{8} << 30;

}  // namespace

Result<Station> Station::Open(const CheckOptions& options) {
  Station station;
  ASSIGN_OR_RETURN(station.device_, ChooseDevice(options.device, kHostDeviceBytes));
  ASSIGN_OR_RETURN(station.work_, DeviceWork::Open(station.device_));
  ASSIGN_OR_RETURN(station.window_, HostFile::Make(kWindow, 1));
  RETURN_IF_ERROR(
      station.gpu().RegisterHost(station.window_.bytes(), GpuAccess::kReadWrite).status());
  return station;
}

uint64_t Station::Granules(uint64_t bytes) const {
  const uint64_t granule = facts().granularity;
  return (bytes + granule - 1) / granule * granule;
}

Result<Mapped> Station::Map(GpuSlab slab, uint64_t bytes, GpuAccess access) const {
  ASSIGN_OR_RETURN(const GpuAddress at, gpu().ReserveRange(bytes));
  RETURN_IF_ERROR(gpu().MapSlab(at, slab));
  RETURN_IF_ERROR(gpu().SetAccess(at, bytes, access));
  return Mapped{.slab = slab, .at = at, .bytes = bytes};
}

Result<Mapped> Station::MapNew(uint64_t bytes) const {
  ASSIGN_OR_RETURN(const GpuSlab slab, gpu().CreateSlab(bytes));
  return Map(slab, bytes, GpuAccess::kReadWrite);
}

Result<Mapped> Station::MapImport(int fd, uint64_t bytes, GpuAccess access) const {
  ASSIGN_OR_RETURN(const GpuSlab slab, gpu().ImportSlab(fd, bytes));
  return Map(slab, bytes, access);
}

Status Station::Drop(const Mapped& mapped) const {
  RETURN_IF_ERROR(gpu().UnmapSlab(mapped.at));
  RETURN_IF_ERROR(gpu().FreeRange(mapped.at));
  return gpu().ReleaseSlab(mapped.slab);
}

Status Station::CopyNow(GpuAddress dst, GpuAddress src, uint64_t bytes) const {
  const GpuCopy copy{.dst = dst, .src = src, .bytes = bytes};
  RETURN_IF_ERROR(gpu().Copy(work_.stream(), {&copy, 1}, SourceOrder::kStream));
  return work_.Finish();
}

Status Station::Put(GpuAddress at, uint64_t bytes, uint64_t seed) const {
  const uint64_t some = std::min(bytes, kWindow);
  std::ranges::copy(SeedBytes(some, seed), window_.bytes().begin());
  return CopyNow(at, window_at(), some);
}

Status Station::Holds(GpuAddress at, uint64_t bytes, uint64_t seed) const {
  const uint64_t some = std::min(bytes, kWindow);
  std::memset(window_.bytes().data(), 0xa5, some);
  RETURN_IF_ERROR(CopyNow(window_at(), at, some));
  if (std::ranges::equal(SeedBytes(some, seed), window_.bytes().first(some))) return {};
  return {Code::kDataLoss, "other bytes than those of seed " + std::to_string(seed)};
}

Result<uint64_t> Station::FreeBytes() const {
  ASSIGN_OR_RETURN(const GpuMemory memory, gpu().Memory());
  return memory.free_bytes;
}

Result<std::unique_ptr<GpuProbe>> Station::Probe() const {
  if (device_.kind == MoverKind::kHost) return OpenHostProbe();
  return OpenCudaProbe(facts().uuid, PagedCopyFatbin());
}

std::vector<uint8_t> SeedBytes(uint64_t bytes, uint64_t seed) {
  Random random(seed);
  std::vector<uint8_t> result(bytes);
  for (uint64_t at = 0; at < bytes; at += 8) {
    const uint64_t word = random();
    std::memcpy(result.data() + at, &word, std::min<uint64_t>(8, bytes - at));
  }
  return result;
}

Status SendFd(int socket, int fd) {
  char byte = 0;
  iovec data{.iov_base = &byte, .iov_len = 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof fd);
  std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  return ::sendmsg(socket, &message, MSG_NOSIGNAL) == 1 ? Status() : SystemError("sendmsg", errno);
}

Result<UniqueFd> ReceiveFd(int socket) {
  char byte = 0;
  iovec data{.iov_base = &byte, .iov_len = 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (::recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1) {
    return Status(Code::kUnavailable, "the other process sent no descriptor");
  }
  const cmsghdr* const header = CMSG_FIRSTHDR(&message);
  if (header == nullptr) return Status(Code::kInternal, "no descriptor came along");
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
  return UniqueFd(fd);
}

}  // namespace terrace::bench
