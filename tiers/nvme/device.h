// Device: one directory of the store: its slot files, what waits for it and what is under way, its
// memory for O_DIRECT, its thread and its health. Each device has all of these for itself, so that
// one that hangs holds up nobody else.
//
// Owner thread. A thread of the device makes and removes files and prepares writes (checksum,
// header), in the order in which they are given to it: a file is made before the first write into
// it is sent. Reads go to DiskIo from the owner thread and are checked where they complete.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/worker_pool.h"
#include "tiers/io/disk_io.h"
#include "tiers/nvme/aligned_buffers.h"
#include "tiers/nvme/device_health.h"
#include "tiers/nvme/directories.h"
#include "tiers/nvme/format.h"
#include "tiers/nvme/mailbox.h"
#include "tiers/nvme/slot_space.h"
#include "tiers/nvme/transfer.h"
#include "tiers/page_store.h"

namespace terrace::nvme {

struct DeviceOptions {
  uint8_t number = 0;
  uint64_t capacity_bytes = 0;
  // Transfers, syncs included; of them writes and syncs at most half, reads at most three quarters.
  // A probe comes on top.
  uint32_t in_flight = 64;
  size_t waiting_reads = 4096;
  uint64_t bounce_bytes = 32u << 20;
  MonotonicNs probe_deadline_ns = kNsPerSecond;
  MonotonicNs keep_empty_ns = 60 * kNsPerSecond;  // A file without pages.
  bool check_data = true;
  bool sync_at_start = false;  // The files that are there.
  MonotonicNs sync_deadline_ns = 30 * kNsPerSecond;
  DeviceHealthOptions health;
};

class Device {
 public:
  // All outlive it but `box`, which is shared.
  Device(const DeviceOptions& options, StoreDirectory directory, DiskIo& io, const Clock& clock,
         std::shared_ptr<Mailbox> box);

  // Opens the files that are there. Blocks. A device that fails here is off.
  void Start();
  // No work is begun any more; blocks for what its thread is at.
  void Stop() { thread_.reset(); }
  // Last: `idle` when no transfer is under way. Otherwise files stay open: the kernel has them.
  void CloseFiles(bool idle);

  // ---- Places
  SlotSpace& space() { return space_; }
  const SlotSpace& space() const { return space_; }
  std::vector<PlaceId> Allocate(uint64_t slot_bytes, size_t count);
  // Nothing where it is not taken: a page of a device that was off at the start has no slot in the
  // books.
  void Free(const Place& place);
  // Null: not there.
  std::shared_ptr<OpenFile> FileOf(uint32_t number) const;

  // ---- Transfers
  bool off() const { return health_.state() == DeviceState::kOff; }
  bool readable() const { return health_.readable(); }
  bool writable() const { return health_.writable(); }
  bool TakesReads() const { return readable() && reads_.waiting.size() < options_.waiting_reads; }
  // Reads, writes and syncs of a file of this device. They start with Pump, when it is their turn.
  void Enqueue(std::shared_ptr<Transfer> transfer);
  void Pump();
  // A write whose deadline passed, wherever it is: its thread may hang before the kernel has it. It
  // is answered if it was its turn and has no answer, and ends when it does.
  void GiveUp(Transfer& transfer, const Status& why);

  void Turn();
  DeviceReport Report() const;

 private:
  using Transfers = std::vector<std::shared_ptr<Transfer>>;
  struct Queue {
    std::deque<std::shared_ptr<Transfer>> waiting;
    uint32_t under_way = 0;
    uint32_t most = 0;
  };

  Queue& QueueOf(const Transfer& transfer) {
    return transfer.kind == Transfer::Kind::kRead ? reads_ : writes_;
  }
  Status OpenFiles();
  Status SyncFiles();
  Transfers TakeStartable(Queue& queue);
  bool Equip(Transfer& transfer);
  void SendWrites(Transfers writes);
  // Any thread.
  void Send(Transfers transfers);
  // Not sent: `again` when there was no room for it.
  void SendBack(Transfers transfers, const Status& why, bool again);
  IoRequest RequestOf(const std::shared_ptr<Transfer>& transfer);

  // Owner thread, from the mailbox.
  void TakeBack(const Transfers& transfers, const Status& why, bool again);
  void Answer(Transfer& transfer);
  void Tell(Transfer& transfer, const Status& status);
  void End(Transfer& transfer);
  // What waits and shall not be tried any more: none of it, or what is overdue.
  void RefuseAll(Queue& queue);
  void RefuseOverdue(Queue& queue);
  void RefuseOverdue(std::shared_ptr<Transfer> transfer, Queue& queue);
  void Refuse(std::shared_ptr<Transfer> transfer, Queue& queue, const Status& why, ReadFault fault);
  void Judge(const Transfer& transfer, bool failed, const Status& status);
  void Count(const Transfer& transfer, const Status& status);

  void Apply(const FileChanges& changes);
  void FileFailed(const OpenFile& file);
  void Probe();

  const DeviceOptions options_;
  const std::string path_;
  const UniqueFd lock_;
  UniqueFd marker_;
  DiskIo& io_;
  const Clock& clock_;
  const std::shared_ptr<Mailbox> box_;

  SlotSpace space_;
  std::map<uint32_t, std::shared_ptr<OpenFile>> files_;  // By number.
  IoFileId marker_file_ = 0;
  bool marker_added_ = false;
  DeviceHealth health_;
  Queue reads_;
  Queue writes_;
  bool pump_soon_ = false;
  AlignedBuffers headers_;
  AlignedBuffers bounces_;
  MonotonicNs grow_again_ = 0;  // When the file system was full.
  std::string full_;            // What it said then.
  DeviceReport counts_;
  std::unique_ptr<WorkerPool> thread_;
};

// Those of a store, by number.
using Devices = std::vector<std::unique_ptr<Device>>;
// Null: the place is of none of them.
Device* DeviceOf(const Devices& devices, PlaceId place);
void PumpAll(const Devices& devices);

}  // namespace terrace::nvme
