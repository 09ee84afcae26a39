// A mover for tests: the program with GPUs of the host that fail by a schedule, or a process that
// only pretends to be one.
//
// MOVER_SCHEDULE names a file with a line a life, which the process takes off its top:
//     -                        nothing is wrong; likewise when there is no line
//     fault VERB FAULT SKIP TIMES   a GpuFaultRule, by the numbers of GpuVerb and GpuFault
//     hostile NAME             see kLies
// MOVER_NO_SLABS: devices have allocations alone.
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "tests/device/mover/raw_packet.h"
#include "tiers/device/host_gpu.h"
#include "tiers/device/mover/messages.h"
#include "tiers/device/mover/program.h"
#include "tiers/device/mover/socket.h"
#include "tiers/sim/faulty_gpu.h"

namespace terrace {
namespace {

std::string TakeLine() {
  const char* path = std::getenv("MOVER_SCHEDULE");
  if (path == nullptr) return "-";
  std::ifstream file(path);
  std::string line = "-";
  std::getline(file, line);
  std::stringstream rest;
  rest << file.rdbuf();
  file.close();
  std::ofstream(path, std::ios::trunc) << rest.str();
  return line;
}

Result<std::unique_ptr<Gpus>> OpenFaulty(const MoverArguments& arguments, std::istream& words) {
  static const SystemClock clock;
  const bool slabs = std::getenv("MOVER_NO_SLABS") == nullptr;
  ASSIGN_OR_RETURN(
      std::unique_ptr<Gpus> host,
      OpenHostGpus({.devices = {{.uuid = arguments.device, .bytes = arguments.host_bytes}},
                    .slabs = slabs,
                    .dirty = true}));
  auto gpus = std::make_unique<FaultyGpus>(std::move(host), clock);
  unsigned verb = 0;
  unsigned fault = 0;
  GpuFaultRule rule;
  if (words >> verb >> fault >> rule.skip >> rule.times) {
    rule.verb = static_cast<GpuVerb>(verb);
    rule.fault = static_cast<GpuFault>(fault);
    gpus->Add(rule);
  }
  return std::unique_ptr<Gpus>(std::move(gpus));
}

// ---- What pretends to be a mover
std::vector<uint8_t> Ready(const GpuUuid& uuid) {
  MoverReady ready;
  ready.facts.uuid = uuid;
  ready.facts.name = "\x1b[2J";
  ready.facts.slabs = true;
  ready.facts.granularity = 2u << 20;
  return EncodeMover({.request = 0, .descriptors = 0, .body = ready});
}

std::vector<uint8_t> Answer(uint64_t request, uint16_t descriptors = 0) {
  return EncodeMover({.request = request, .descriptors = descriptors, .body = MoverAnswer{}});
}

// A request that is no report, which is answered.
MoverMessage AwaitRequest(const MoverSocket& socket) {
  for (;;) {
    pollfd wait{.fd = socket.fd(), .events = POLLIN, .revents = 0};
    (void)::poll(&wait, 1, -1);
    auto packet = socket.Receive();
    if (!packet) ::_exit(0);
    if (!packet->has_value()) continue;
    const auto message = DecodeMover((*packet)->bytes);
    if (!message) continue;
    if (!std::holds_alternative<MoverReport>(message->body)) return *message;
    (void)socket.Send(Answer(message->request));
  }
}

void Lie(const std::string& name, const MoverSocket& socket, const GpuUuid& uuid) {
  if (name == "uuid") {
    (void)socket.Send(Ready(GpuUuid()));
  } else if (name == "answer-first") {
    (void)socket.Send(Answer(0));
  } else {
    (void)socket.Send(Ready(uuid));
    const MoverMessage request = AwaitRequest(socket);
    if (name == "rubbish") (void)SendRaw(socket, 100, 0);
    if (name == "short") (void)SendRaw(socket, 3, 0);
    if (name == "long") (void)SendRaw(socket, kMostMoverBytes + 1, 0);
    if (name == "descriptors") (void)SendRaw(socket, 100, 5);
    if (name == "no-request") (void)socket.Send(Answer(request.request + 77));
    if (name == "ready-again") (void)socket.Send(Ready(uuid));
    if (name == "daemon's") {
      (void)socket.Send(
          EncodeMover({.request = 1, .descriptors = 0, .body = MoverRelease{.arena = 1}}));
    }
    // The request is to create a slab.
    if (name == "no-descriptor") (void)socket.Send(Answer(request.request));
    if (name == "hidden-descriptor") (void)socket.Send(Answer(request.request), socket.fd());
    if (name == "no-such-descriptor") (void)socket.Send(Answer(request.request, 1));
    if (name == "closes") (void)::shutdown(socket.fd(), SHUT_RDWR);
  }
  for (;;)
    (void)::pause();
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  using namespace terrace;
  std::istringstream words(TakeLine());
  std::string kind;
  words >> kind;
  const std::span<char* const> arguments(argv, static_cast<size_t>(argc));
  if (kind == "hostile") {
    std::string name;
    words >> name;
    const auto parsed = ParseMoverArguments(arguments);
    if (!parsed) return 2;
    Lie(name, MoverSocket(UniqueFd(parsed->socket)), parsed->device);
  }
  return RunMover(arguments,
                  [&](const MoverArguments& parsed) { return OpenFaulty(parsed, words); });
}
