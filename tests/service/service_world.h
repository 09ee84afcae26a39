// ServiceWorld: the whole service and engine in this process, on simulated memory, weight files and
// journal and a clock that stands still, for what a real daemon would need gigabytes, thousands of
// descriptors or a stalled disk for.
//
// Its loop runs on a thread of its own; tests talk to it by WireClient. Arenas have descriptors
// without contents: a client may be handed as many as it likes, and cannot map them.
#pragma once

#include <fcntl.h>

#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "daemon/policy/policy.h"
#include "daemon/service/memfd/memfd_directory.h"
#include "daemon/service/service.h"
#include "tests/service/wire_client.h"
#include "tiers/sim/sim_device_tier.h"
#include "tiers/sim/sim_host_tier.h"
#include "tiers/sim/sim_journal.h"
#include "tiers/sim/sim_weight_sources.h"

namespace terrace {

// The simulated tier, whose descriptors are those of /dev/null.
class DescribedHostTier final : public HostTier {
 public:
  Result<Created> Create(size_t bytes, ArenaUse use) override { return tier_.Create(bytes, use); }
  std::span<uint8_t> Bytes(ArenaId arena) override { return tier_.Bytes(arena); }
  Status Populate(const Extent& extent) override { return tier_.Populate(extent); }
  Status Punch(const Extent& extent) override { return tier_.Punch(extent); }
  Status Seal(ArenaId arena) override { return tier_.Seal(arena); }
  void Release(ArenaId arena) override { tier_.Release(arena); }
  Result<UniqueFd> Descriptor(ArenaId, Protection) override {
    UniqueFd fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    if (!fd) return SystemError("open /dev/null", errno);
    return fd;
  }
  void SetReserve(size_t bytes) override { tier_.SetReserve(bytes); }
  size_t blank_bytes() const override { return tier_.blank_bytes(); }
  HostReport Report() const override { return tier_.Report(); }

 private:
  SimHostTier tier_;
};

class ServiceWorld {
 public:
  // With model files of 8 KiB and 2 MiB, "/m" and "/large", and one device, unless others are
  // given.
  explicit ServiceWorld(const EngineOptions& options, uint64_t descriptors = 65536,
                        bool device_has_slabs = true, std::vector<DevicePart> devices = {})
      : device_(1u << 30, 4096, [this](ArenaId arena) { return host_.Bytes(arena); }) {
    for (const auto& [path, bytes] : {std::pair("/m", 8u << 10), std::pair("/large", 2u << 20)}) {
      sources_.AddFile(
          path,
          {{.name = "w", .dtype = "U8", .shape = {bytes}, .bytes = std::vector<uint8_t>(bytes)}});
    }
    ServiceOptions service;
    service.descriptors = descriptors;
    service.limits.verbs = {.clients = 8, .clients_per_process = 8, .clients_per_user = 8};
    service_ = std::make_unique<Service>(std::move(service), loop_, clock_, host_);
    EngineParts parts;
    parts.clock = &clock_;
    parts.host = &host_;
    parts.sources = &sources_;
    parts.journal = &journal_;
    parts.directory_memory = &directory_;
    parts.host_policy = MakeLru();
    parts.devices = std::move(devices);
    if (parts.devices.empty()) parts.devices.push_back(OwnDevice(device_has_slabs));
    Result<std::unique_ptr<Engine>> engine = MakeEngine(options, std::move(parts), *service_);
    TERRACE_CHECK(engine.has_value());
    engine_ = *std::move(engine);
    TERRACE_CHECK(service_->Start(*engine_, Config()).ok());
    thread_ = std::thread([this] { loop_.Run(); });
  }
  ~ServiceWorld() {
    loop_.Post([this] { service_->Stop([this] { loop_.Stop(); }); });
    thread_.join();
    TERRACE_CHECK(engine_->CheckInvariants().ok());
    sources_.DropPending();
  }

  WireClient Connect() {
    int ends[2];
    TERRACE_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    const int on = 1;
    TERRACE_CHECK(::setsockopt(ends[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    TERRACE_CHECK(::fcntl(ends[1], F_SETFL, O_NONBLOCK) == 0);
    OnLoop([&] { service_->Accept(UniqueFd(ends[1]), Config().socket); });
    return WireClient(UniqueFd(ends[0]));
  }
  void LoseDevice() {
    OnLoop(
        [this] { device_.LoseDevice([this](ArenaId arena) { engine_->DeviceArenaLost(arena); }); });
  }
  void Advance(MonotonicNs ns) { clock_.Advance(ns); }
  // One answer of a weight file, and what follows from it.
  void RunOneFile() {
    OnLoop([&] {
      sources_.RunPending(1);
      journal_.RunPending();
      engine_->Turn();
    });
  }
  // Weight files, journal and device answer what they were asked so far, and what follows from it.
  void RunFiles() {
    for (int quiet = 0; quiet < 3;) {
      OnLoop([&] {
        const bool busy = sources_.RunPending() + journal_.RunPending() + device_.RunPending() > 0;
        quiet = engine_->Turn() || busy ? 0 : quiet + 1;
      });
    }
  }

  // Tiers of the engine are its thread's.
  void OnLoop(const std::function<void()>& task) {
    std::promise<void> done;
    loop_.Post([&] {
      task();
      done.set_value();
    });
    done.get_future().wait();
  }
  Engine& engine() { return *engine_; }
  std::span<uint8_t> HostBytes(ArenaId arena) { return host_.Bytes(arena); }

 private:
  DevicePart OwnDevice(bool has_slabs) {
    device_.descriptors = true;
    device_.slabs = has_slabs;
    DevicePart device;
    device.options.kind = "host";
    device.options.capacity_bytes = 64u << 20;
    device.tier = &device_;
    device.policy = MakeLru();
    return device;
  }

  // In the order in which they depend on each other.
  OwnerLoop loop_;
  ManualClock clock_;
  DescribedHostTier host_;
  SimDeviceTier device_;
  SimWeightSources sources_;
  SimJournal journal_;
  MemfdDirectory directory_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<Engine> engine_;
  std::thread thread_;
};

}  // namespace terrace
