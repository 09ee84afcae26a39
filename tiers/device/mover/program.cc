#include "tiers/device/mover/program.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include <cstdio>
#include <string>
#include <string_view>
#include <utility>

#include "base/unique_fd.h"
#include "kernels/cuda_kernels.h"
#include "tiers/device/cuda_gpu.h"
#include "tiers/device/host_gpu.h"
#include "tiers/device/mover/listing.h"
#include "tiers/device/mover/socket.h"

namespace terrace {
namespace {

// Of packets, and not to be passed on.
Status CheckSocket(int socket) {
  int type = 0;
  socklen_t bytes = sizeof type;
  if (socket < 0 || ::getsockopt(socket, SOL_SOCKET, SO_TYPE, &type, &bytes) != 0 ||
      type != SOCK_SEQPACKET || ::fcntl(socket, F_SETFD, FD_CLOEXEC) != 0) {
    return {Code::kInvalidArgument, "--socket: is no descriptor of a socket of packets"};
  }
  return {};
}

MoverExit ExitOf(const Status& status) {
  switch (status.code()) {
    case Code::kOk:
      return MoverExit::kOk;
    case Code::kInvalidArgument:
      return MoverExit::kArguments;
    case Code::kNotFound:
      return MoverExit::kMissing;
    case Code::kPermissionDenied:
      return MoverExit::kRefused;
    case Code::kMismatch:
      return MoverExit::kUnfit;
    case Code::kStale:
    case Code::kUnavailable:
      return MoverExit::kBroken;
    default:
      return MoverExit::kFailed;
  }
}

int End(const std::string& who, const Status& status) {
  if (!status.ok()) std::fprintf(stderr, "%s: %s\n", who.c_str(), status.ToString().c_str());
  return static_cast<int>(ExitOf(status));
}

int ListDevices(const std::function<Result<std::unique_ptr<Gpus>>(const MoverArguments&)>& open) {
  const Result<std::unique_ptr<Gpus>> gpus = open({});
  if (!gpus) return End("terrace-mover", gpus.error());
  const std::string text = GpuListText((*gpus)->devices());
  const bool told =
      std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  return End("terrace-mover",
             told ? Status() : Status(Code::kInternal, "standard output takes nothing"));
}

}  // namespace

Result<std::unique_ptr<Gpus>> OpenGpusOfMover(const MoverArguments& arguments) {
  if (arguments.kind == MoverKind::kCuda) return OpenCudaGpus({.kernels = PagedCopyFatbin()});
  return OpenHostGpus({.devices = {{.uuid = arguments.device, .bytes = arguments.host_bytes}}});
}

int RunMover(std::span<char* const> arguments,
             const std::function<Result<std::unique_ptr<Gpus>>(const MoverArguments&)>& open) {
  // Where the daemon is gone already, the socket's end tells.
  (void)::prctl(PR_SET_PDEATHSIG, SIGKILL);
  // Nobody may read standard error any more.
  (void)::signal(SIGPIPE, SIG_IGN);
  if (arguments.size() == 2 && std::string_view(arguments[1]) == "--list") return ListDevices(open);
  const Result<MoverArguments> parsed = ParseMoverArguments(arguments);
  if (!parsed) return End("terrace-mover", parsed.error());
  if (Status socket = CheckSocket(parsed->socket); !socket.ok()) {
    return End("terrace-mover", socket);
  }
  const std::string who = "terrace-mover " + parsed->device.Text();
  const MoverSocket socket{UniqueFd(parsed->socket)};
  const Result<std::unique_ptr<Gpus>> gpus = open(*parsed);
  if (!gpus) {
    SayNotReady(socket, gpus.error());
    return End(who, gpus.error());
  }
  Result<std::unique_ptr<Gpu>> gpu = (*gpus)->Open(parsed->device);
  if (!gpu) {
    SayNotReady(socket, gpu.error());
    return End(who, gpu.error());
  }
  return End(who, ServeMover(*std::move(gpu), socket, parsed->options));
}

}  // namespace terrace
