#include "libclient/device/device.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "libclient/client.h"
#include "libclient/weight_set.h"

namespace terrace::client {
namespace {

Result<messages::Device> Choose(const std::vector<messages::Device>& devices,
                                const Device::Choice& choice) {
  std::string uuid = choice.uuid;
  if (uuid.empty()) {
    const bool cuda = std::ranges::any_of(devices, [](const auto& d) { return d.kind == "cuda"; });
    if (!cuda && choice.ordinal >= 0 && static_cast<size_t>(choice.ordinal) < devices.size()) {
      return devices[static_cast<size_t>(choice.ordinal)];
    }
    if (!cuda) {
      return Status(Code::kNotFound, "ordinal: the daemon has " + std::to_string(devices.size()) +
                                         " devices, none of them a GPU");
    }
    ASSIGN_OR_RETURN(uuid, UuidOfCudaOrdinal(choice.ordinal));
  }
  const std::optional<GpuUuid> wanted = ParseGpuUuid(uuid);
  if (!wanted) return Status(Code::kInvalidArgument, "uuid: not one of a GPU: '" + uuid + "'");
  for (const messages::Device& device : devices) {
    if (ParseGpuUuid(device.uuid) == wanted) return device;
  }
  return Status(Code::kNotFound, "the daemon has no memory of the device " + uuid);
}

}  // namespace

Result<std::shared_ptr<Device>> Device::Open(std::shared_ptr<Client> client, const Choice& choice,
                                             Deadline deadline) {
  ASSIGN_OR_RETURN(const Contact now, client->contact());
  RETURN_IF_ERROR(now.CheckDoes(wire::kDeviceCapability, "have memory of devices"));
  ASSIGN_OR_RETURN(const auto answer, now.connection->Call(messages::Devices(), deadline));
  ASSIGN_OR_RETURN(const messages::Device facts, Choose(answer.reply.devices, choice));
  if (facts.number == 0 || facts.number >= shm::kMaxPlaces) {
    return Status(Code::kDataLoss, "the daemon describes the device wrongly: number");
  }
  if (facts.granularity == 0) {
    return Status(Code::kUnavailable, "the device is not ready: its mover has not started yet");
  }
  ASSIGN_OR_RETURN(std::shared_ptr<DeviceMemory> memory, client->OpenMemory(facts));
  UniqueFd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event) return SystemError("eventfd", errno);
  std::shared_ptr<Device> device(new Device(client, facts, std::move(memory), std::move(event)));
  device->Renumber(now.life->epoch(), answer.reply);
  client->AddDevice(device);
  return device;
}

uint32_t Device::NumberIn(uint64_t epoch) const {
  MutexLock lock(mu_);
  return epoch == epoch_ ? number_ : 0;
}

Result<uint32_t> Device::CheckedNumberIn(uint64_t epoch) const {
  if (const uint32_t number = NumberIn(epoch); number != 0) return number;
  return Status(Code::kUnavailable,
                "the daemon has no memory of the device " + facts_.uuid + " now");
}

void Device::Renumber(uint64_t epoch, const messages::DevicesReply& devices) {
  MutexLock lock(mu_);
  epoch_ = epoch;
  number_ = 0;
  for (const messages::Device& device : devices.devices) {
    const bool same = device.uuid == facts_.uuid && device.slabs == facts_.slabs &&
                      device.granularity == facts_.granularity;
    if (same && device.number < shm::kMaxPlaces) number_ = device.number;
  }
}

// ---- Requests

void Device::Queue(WeightSet* weights, const Wish& wish) {
  if (wish.lost) weights->SetLost();
  // Asked again, as after a connection was lost: one request, with what was said last.
  for (Request& request : queue_) {
    if (request.weights == weights) request = {weights, wish.deadline, request.lost || wish.lost};
  }
  const auto queued = [&](const Request& request) { return request.weights == weights; };
  if (std::ranges::any_of(queue_, queued)) return;
  queue_.push_back({weights, wish.deadline, wish.lost});
  const uint64_t one = 1;
  static_cast<void>(!::write(event_.get(), &one, sizeof one));
  changed_.notify_all();
}

void Device::Quiet() {
  uint64_t count = 0;
  if (queue_.empty()) static_cast<void>(!::read(event_.get(), &count, sizeof count));
}

void Device::Know(uint64_t epoch, uint64_t attachment, WeightSet* weights) {
  MutexLock lock(mu_);
  known_[{epoch, attachment}] = weights;
  if (const auto wish = early_.find({epoch, attachment}); wish != early_.end()) {
    Queue(weights, wish->second);
    early_.erase(wish);
  }
}

void Device::Forget(const WeightSet* weights) {
  MutexLock lock(mu_);
  std::erase_if(known_, [&](const auto& item) { return item.second == weights; });
  std::erase_if(queue_, [&](const Request& request) { return request.weights == weights; });
  Quiet();
}

void Device::Ask(uint64_t epoch, uint64_t attachment, uint32_t deadline_ms, bool lost) {
  const Wish wish{Deadline::In(deadline_ms), lost};
  MutexLock lock(mu_);
  const auto known = known_.find({epoch, attachment});
  if (known != known_.end()) return Queue(known->second, wish);
  // Its attach is under way, or it was detached just now. The oldest is no longer expected.
  if (early_.size() >= kMaxEarly) early_.erase(early_.begin());
  early_.insert_or_assign({epoch, attachment}, wish);
}

Result<Device::Request> Device::Next(Deadline deadline) {
  MutexLock lock(mu_);
  while (queue_.empty()) {
    if (deadline.passed()) return Status(Code::kDeadlineExceeded, "nothing is asked for");
    changed_.wait_until(mu_, deadline.point());
  }
  const Request request = queue_.front();
  queue_.pop_front();
  Quiet();
  return request;
}

}  // namespace terrace::client
