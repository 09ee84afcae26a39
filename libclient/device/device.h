// Device: a device of the daemon's as one client uses it: its number in the present daemon life,
// its memory in this process, and the requests to unmap weights that are on it.
//
// The client finds it by number, weakly; handles made on it own it. Thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "base/mutex.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "libclient/deadline.h"
#include "libclient/device/device_memory.h"
#include "libclient/messages.h"

namespace terrace::client {

class Client;
class WeightSet;

class Device {
 public:
  struct Choice {
    std::string uuid;     // Empty: by ordinal,
    int32_t ordinal = 0;  // CUDA's in this process; of a daemon without GPUs, its host devices'.
  };
  static Result<std::shared_ptr<Device>> Open(std::shared_ptr<Client> client, const Choice& choice,
                                              Deadline deadline);
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const std::shared_ptr<Client>& client() const { return client_; }
  const messages::Device& facts() const { return facts_; }
  DeviceMemory& memory() const { return *memory_; }

  // In the daemon life of that epoch; 0: that daemon has no such device.
  uint32_t NumberIn(uint64_t epoch) const EXCLUDES(mu_);
  // From the devices of the daemon of that life.
  void Renumber(uint64_t epoch, const messages::DevicesReply& devices) EXCLUDES(mu_);
  // `unavailable` if 0.
  Result<uint32_t> CheckedNumberIn(uint64_t epoch) const;

  // ---- Requests to unmap
  struct Request {
    WeightSet* weights = nullptr;
    Deadline deadline = Deadline::In(0);
    bool lost = false;
  };
  static constexpr size_t kMaxEarly = 64;

  // Weights attached in that life, until Forget. A request that came before is queued now.
  void Know(uint64_t epoch, uint64_t attachment, WeightSet* weights) EXCLUDES(mu_);
  void Forget(const WeightSet* weights) EXCLUDES(mu_);
  // What the daemon wants.
  void Ask(uint64_t epoch, uint64_t attachment, uint32_t deadline_ms, bool lost) EXCLUDES(mu_);
  // Readable while requests wait.
  int event_fd() const { return event_.get(); }
  // `deadline_exceeded`: there was none in time.
  Result<Request> Next(Deadline deadline) EXCLUDES(mu_);

 private:
  using Attachment = std::pair<uint64_t, uint64_t>;  // Epoch and number.
  struct Wish {
    Deadline deadline = Deadline::In(0);
    bool lost = false;
  };

  Device(std::shared_ptr<Client> client, const messages::Device& facts,
         std::shared_ptr<DeviceMemory> memory, UniqueFd event)
      : client_(std::move(client)),
        facts_(facts),
        memory_(std::move(memory)),
        event_(std::move(event)) {}
  void Queue(WeightSet* weights, const Wish& wish) REQUIRES(mu_);
  void Quiet() REQUIRES(mu_);

  const std::shared_ptr<Client> client_;
  const messages::Device facts_;  // As it was opened; its number may be another by now.
  const std::shared_ptr<DeviceMemory> memory_;
  const UniqueFd event_;
  mutable Mutex mu_;
  CondVar changed_;
  uint64_t epoch_ GUARDED_BY(mu_) = 0;
  uint32_t number_ GUARDED_BY(mu_) = 0;  // In the life of epoch_.
  std::map<Attachment, WeightSet*> known_ GUARDED_BY(mu_);
  std::map<Attachment, Wish> early_ GUARDED_BY(mu_);  // Of what is not known yet.
  std::deque<Request> queue_ GUARDED_BY(mu_);
};

}  // namespace terrace::client
