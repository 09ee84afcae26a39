// WeightSet: an attached model: its manifest, and its blocks at their place of one address range.
//
// Constant once attached, but for a set that was attached early: its blocks appear as they come and
// are waited for, and for one on a device, which may be unmapped for a while. Any thread; Unmap and
// Remap by one, while no other uses the set. What is mapped stays so until Unmap or the set's end,
// whatever becomes of the daemon.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/digest.h"
#include "base/mutex.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "libclient/client.h"
#include "libclient/manifest_view.h"
#include "libclient/mapped_range.h"

namespace terrace::client {

struct AttachSpec {
  std::string model;
  std::string version;  // Empty: the one added last.
  bool load = false;
  uint32_t first_layer = 0;
  uint32_t layer_count = 0;        // 0: everything.
  bool with_rest = false;          // The tensors outside layers too.
  bool early = false;              // Does not wait for the load.
  std::shared_ptr<Device> device;  // Where they are to be; null: in host memory. Not with `early`.
};

class WeightSet {
 public:
  // Two round trips, whatever the number of tensors and blocks.
  static Result<std::unique_ptr<WeightSet>> Attach(std::shared_ptr<Client> client,
                                                   const AttachSpec& spec, Deadline deadline);
  ~WeightSet();
  WeightSet(const WeightSet&) = delete;
  WeightSet& operator=(const WeightSet&) = delete;

  Client& client() const { return *client_; }
  uint64_t epoch() const { return life_epoch_; }
  const std::string& model() const { return model_; }
  const std::string& version() const { return version_; }
  // Zeros while the first load runs.
  Digest digest() const EXCLUDES(mu_);
  // The load runs, as far as this set knows.
  bool arriving() const { return arriving_.load(std::memory_order_acquire); }
  // Until these blocks are mapped; kInvalidArgument for one that was not chosen. None: until the
  // load is done, and all that were chosen are mapped.
  Status Wait(std::span<const uint32_t> blocks, Deadline deadline) EXCLUDES(mu_);
  const ManifestView& manifest() const { return view_; }
  // nullptr on a device without slabs: there each block has an address of its own.
  const uint8_t* base() const { return range_ != nullptr ? range_->base() : image_.data(); }
  const std::shared_ptr<Device>& device() const { return device_; }

  // ---- On a device
  // Gives the memory back and keeps the addresses. Nothing happens if it is unmapped.
  Status Unmap(Deadline deadline);
  // Attaches again, loading it if need be, at the same addresses. kMismatch: it is another content
  // by now, or the device keeps no addresses.
  Status Remap(Deadline deadline);
  // Its memory is gone: nothing of it is to be used until it is mapped again.
  void SetLost() { lost_.store(true, std::memory_order_release); }
  bool lost() const { return lost_.load(std::memory_order_acquire); }
  uint64_t mapped_bytes() const { return mapped_bytes_.load(std::memory_order_relaxed); }
  // nullptr if not all of its blocks are mapped.
  const uint8_t* DataOf(const manifest::TensorRecord& record) const;

 private:
  WeightSet(std::shared_ptr<Client> client, std::string model)
      : client_(std::move(client)), model_(std::move(model)) {}

  Status ReadManifest(const Answer<messages::AttachReply>& answer);
  // Empty: all of them.
  std::vector<uint32_t> WantedBlocks(const AttachSpec& spec) const;
  bool IsMapped(uint32_t block) const {
    // Pairs with the store behind the mapping.
    return mapped_[block].load(std::memory_order_acquire);
  }
  // Those of `blocks` that are not mapped, and of all that were chosen where it is empty.
  std::vector<uint32_t> Missing(std::span<const uint32_t> blocks) const;
  // Remembers it where it is that of the load and not of this wait.
  Status NoteFailure(Status status) EXCLUDES(mu_);
  // Maps what the daemon sends of `wanted`; says how many there were.
  Result<size_t> MapBlocks(Connection& connection, std::vector<uint32_t> wanted, Deadline deadline)
      EXCLUDES(mu_);
  Status MapBlock(uint32_t block, int fd, const std::string& handle) EXCLUDES(mu_);
  Status MapOnDevice(uint32_t block, const SharedMemory& memory) REQUIRES(mu_);
  Status ReserveOnDevice();
  // kMismatch: not the content, or not the places, that were attached before.
  Status CheckSame(const Answer<messages::AttachReply>& answer) const EXCLUDES(mu_);
  void UnmapBlocks() EXCLUDES(mu_);
  // Of the request that names it.
  Result<Answer<messages::AttachReply>> AskFor(const Contact& now, const messages::Attach& request,
                                               Deadline deadline);
  void Detach(uint64_t attachment, Deadline deadline);

  const std::shared_ptr<Client> client_;
  const std::string model_;
  uint64_t life_epoch_ = 0;
  uint64_t attachment_ = 0;
  std::string version_;
  MappedRange manifest_;
  ManifestView view_;
  MappedRange image_;
  std::shared_ptr<Device> device_;
  std::shared_ptr<DeviceMemory::Range> range_;       // On a device with slabs, instead of image_.
  std::vector<MappedArena> pieces_ GUARDED_BY(mu_);  // By block: on a device without.
  std::atomic<bool> lost_ = false;
  std::vector<bool> chosen_;                     // By block.
  std::unique_ptr<std::atomic<bool>[]> mapped_;  // By block.
  std::atomic<uint64_t> mapped_bytes_ = 0;
  std::atomic<bool> arriving_ = false;
  mutable Mutex mu_;  // While a block is mapped: two threads may wait for one.
  Digest digest_ GUARDED_BY(mu_);
  Status failed_ GUARDED_BY(mu_);  // Of the load; then nothing of it is to be used.
};

}  // namespace terrace::client
