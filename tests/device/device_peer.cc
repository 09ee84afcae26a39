// Another process on the same device, for the conformance suite:
//
//   device_peer IMPLEMENTATION UUID VERB ARGUMENT BYTES SEED
//
// VERB                ARGUMENT is
//   check, check-ro   the descriptor of a slab, inherited. It is mapped, for check-ro only for
//   reading,
//                     and holds the bytes of SEED; check then fills it with those of SEED + 1,
//                     check-ro sees that it may not.
//   store-ro          the same; stores through a mapping for reading, which the processor must
//   stop. export            a socket: makes a slab of the bytes of SEED, sends its descriptor and
//   ends. open              a handle of an allocation in hexadecimal digits: as check. hold a
//   socket: makes an allocation of the bytes of SEED, sends its handle, and keeps it
//                     until the other end closes; then it holds the bytes of SEED + 1.
//
// Exits with 0 where everything is as it should be; 77 where the implementation is not there; else
// with 1 and a word to standard error.
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "base/fd_message.h"
#include "base/hex.h"
#include "tests/device/gpu_fixture.h"
#include "tests/device/implementations.h"

namespace terrace {
namespace {

Status Holds(GpuBench& bench, GpuAddress at, uint64_t bytes, uint64_t seed) {
  ASSIGN_OR_RETURN(const std::vector<uint8_t> got, bench.Read(at, bytes));
  if (got == RandomBytes(bytes, seed)) return {};
  return {Code::kDataLoss, "other bytes than those of seed " + std::to_string(seed)};
}

Status CheckAndAnswer(GpuBench& bench, GpuAddress at, uint64_t bytes, uint64_t seed) {
  RETURN_IF_ERROR(Holds(bench, at, bytes, seed));
  return bench.Write(at, RandomBytes(bytes, seed + 1));
}

Status CheckReadOnly(GpuBench& bench, GpuAddress at, uint64_t bytes, uint64_t seed) {
  RETURN_IF_ERROR(Holds(bench, at, bytes, seed));
  const Status refused = bench.Write(at, RandomBytes(16, seed));
  if (refused.code() == Code::kInvalidArgument) return {};
  return {Code::kInternal, "a write to what is mapped for reading: " + refused.ToString()};
}

Status Import(Gpu& gpu, GpuBench& bench, const std::string& verb, int fd, uint64_t bytes,
              uint64_t seed) {
  ASSIGN_OR_RETURN(const GpuSlab slab, gpu.ImportSlab(fd, bytes));
  ASSIGN_OR_RETURN(const GpuAddress at, gpu.ReserveRange(bytes));
  RETURN_IF_ERROR(gpu.MapSlab(at, slab));
  RETURN_IF_ERROR(
      gpu.SetAccess(at, bytes, verb == "check" ? GpuAccess::kReadWrite : GpuAccess::kRead));
  if (verb == "check") return CheckAndAnswer(bench, at, bytes, seed);
  if (verb == "check-ro") return CheckReadOnly(bench, at, bytes, seed);
  *reinterpret_cast<volatile uint8_t*>(at) = 0;
  return {Code::kInternal, "a store to what is mapped for reading went through"};
}

Status SendFd(int socket, int fd) {
  char byte = 0;
  iovec data{.iov_base = &byte, .iov_len = 1};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  FdMessage<1> control;
  control.Attach({&fd, 1}, message);
  return ::sendmsg(socket, &message, 0) == 1 ? Status() : SystemError("sendmsg", errno);
}

Status Export(Gpu& gpu, GpuBench& bench, int socket, uint64_t bytes, uint64_t seed) {
  ASSIGN_OR_RETURN(const MappedSlab mapped, MapNewSlab(gpu, bytes));
  RETURN_IF_ERROR(bench.Write(mapped.at, RandomBytes(bytes, seed)));
  ASSIGN_OR_RETURN(const UniqueFd fd, gpu.ExportSlab(mapped.slab));
  return SendFd(socket, fd.get());
}

Status Hold(Gpu& gpu, GpuBench& bench, int socket, uint64_t bytes, uint64_t seed) {
  ASSIGN_OR_RETURN(const GpuAddress at, gpu.Allocate(bytes));
  RETURN_IF_ERROR(bench.Write(at, RandomBytes(bytes, seed)));
  ASSIGN_OR_RETURN(const IpcHandle handle, gpu.ExportAllocation(at));
  if (::write(socket, handle.data(), handle.size()) != static_cast<ssize_t>(handle.size())) {
    return SystemError("write of a handle", errno);
  }
  char byte = 0;
  while (::read(socket, &byte, 1) > 0) {
  }
  return Holds(bench, at, bytes, seed + 1);
}

Status Run(Gpu& gpu, const std::string& verb, const std::string& argument, uint64_t bytes,
           uint64_t seed) {
  GpuBench bench(gpu);
  if (verb == "open") {
    IpcHandle handle{};
    if (!HexDecode(argument, handle)) return {Code::kInvalidArgument, "handle"};
    ASSIGN_OR_RETURN(const GpuAddress at, gpu.OpenAllocation(handle, bytes));
    RETURN_IF_ERROR(CheckAndAnswer(bench, at, bytes, seed));
    return gpu.CloseAllocation(at);
  }
  const int fd = std::atoi(argument.c_str());
  if (verb == "export") return Export(gpu, bench, fd, bytes, seed);
  if (verb == "hold") return Hold(gpu, bench, fd, bytes, seed);
  return Import(gpu, bench, verb, fd, bytes, seed);
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  const auto gpus = terrace::OpenImplementation(argv[1]);
  if (!gpus) {
    std::fprintf(stderr, "device_peer: %s\n", gpus.error().ToString().c_str());
    return 77;
  }
  const auto uuid = terrace::ParseGpuUuid(argv[2]);
  if (!uuid) return 2;
  const auto gpu = (*gpus)->Open(*uuid);
  const terrace::Status status =
      gpu ? terrace::Run(**gpu, argv[3], argv[4], std::strtoull(argv[5], nullptr, 10),
                         std::strtoull(argv[6], nullptr, 10))
          : gpu.error();
  if (status.ok()) return 0;
  std::fprintf(stderr, "device_peer: %s %s: %s\n", argv[1], argv[3], status.ToString().c_str());
  return 1;
}
