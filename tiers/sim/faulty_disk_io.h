// FaultyDiskIo: a DiskIo of the tests that fails as it is told, over one that does the work.
//
// Rules say which requests fail and how. The contract is the real one: answers, ends and deadlines
// are those of Flights, to which this is one more way to the kernel. With `keep_undo` it also
// remembers what every write replaces until a sync makes that durable, so that Crash can take the
// writes back that a power cut would.
//
// Thread safety: as DiskIo; rules may be added and what hangs may be released by any thread.
#pragma once

#include <array>
#include <cerrno>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/random.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "tiers/io/disk_io.h"
#include "tiers/io/flights.h"

namespace terrace {

enum class IoFault : uint8_t {
  kError,      // Not done: fails with `error`.
  kTorn,       // Of a write only the first `bytes` are done; it fails with `error`.
  kTornQuiet,  // The same, and it says ok.
  kFlip,       // Bit `bit` of the bytes that are written, or that were read, is the other.
  kHang,  // Not done before Release; its deadline holds, and it is done after that all the same.
  kSlow,  // Not done before `slow_ns` passed.
};
inline constexpr size_t kIoFaults = 6;

struct IoFaultRule {
  IoFault fault = IoFault::kError;
  // ---- Which requests: all of these.
  std::optional<IoVerb> verb = std::nullopt;
  std::optional<IoFileId> file = std::nullopt;
  uint64_t offset_begin = 0;  // Those that touch [begin, end), and every sync.
  uint64_t offset_end = std::numeric_limits<uint64_t>::max();
  uint64_t skip = 0;                                      // Of them, this many pass first,
  uint64_t times = std::numeric_limits<uint64_t>::max();  // and this many fail after that.
  // ---- How
  int error = EIO;
  size_t bytes = 0;  // Of files opened with O_DIRECT a multiple of kIoAlignment.
  uint64_t bit = 0;
  MonotonicNs slow_ns = 0;
};

class FaultyDiskIo final : public DiskIo {
 public:
  struct Options {
    DiskIoOptions io;  // As those that `io` was started with.
    bool keep_undo = false;
  };
  // `clock` outlives it.
  FaultyDiskIo(std::unique_ptr<DiskIo> io, const Options& options, const Clock& clock);
  ~FaultyDiskIo() override;

  // ---- Faults
  // Where several rules name a request the first added has it.
  void Add(IoFaultRule rule) EXCLUDES(mu_);
  void ClearRules() EXCLUDES(mu_);
  // What hangs goes on.
  void Release() EXCLUDES(mu_);
  // Faults made.
  uint64_t made(IoFault fault) const EXCLUDES(mu_);
  // Takes back what was written since the last sync of its file: all of it, or each write with even
  // odds, which may then take bytes of a later write at the same place with it. Nothing is in
  // flight. The number of writes taken back.
  uint64_t Crash(Random* odds = nullptr) EXCLUDES(mu_);

  // ---- DiskIo
  Result<IoFileId> AddFile(int fd) override;
  void RemoveFile(IoFileId file) override;
  Status Submit(std::vector<IoRequest> requests) override;
  void RegisterMemory(std::span<uint8_t> memory) override;
  void UnregisterMemory(std::span<uint8_t> memory) override;
  IoReport Report() const override;

 private:
  struct Rule {
    IoFaultRule rule;
    uint64_t seen = 0;
  };
  struct File {
    IoFileId below = 0;
    std::shared_ptr<UniqueFd> fd;  // Its own; what can be taken back keeps it.
  };
  // A flight with a fault, which is not given on before that time.
  struct Held {
    MonotonicNs until = 0;
    Flight* flight = nullptr;
    IoFaultRule rule;
  };
  // What a write replaced.
  struct Undo {
    uint64_t id = 0;
    std::shared_ptr<UniqueFd> fd;
    uint64_t offset = 0;
    uint64_t file_bytes = 0;  // The file's length.
    size_t bytes = 0;
    std::shared_ptr<uint8_t> old;
    bool answered = false;
  };

  // Null: no fault.
  const IoFaultRule* Match(const Flight& flight) REQUIRES(mu_);
  // On a thread of its own, for callbacks never come from within Submit.
  void ServeHeld() EXCLUDES(mu_);
  // Does what the rule says at the end of the wait.
  void Go(Flight& flight, const IoFaultRule& rule) EXCLUDES(mu_);
  // The flight as a request to the DiskIo below; `change` makes its answer of what that says.
  IoRequest Below(Flight& flight, std::function<Status(const Status&)> change) EXCLUDES(mu_);
  uint64_t KeepUndo(const Flight& flight, size_t bytes) EXCLUDES(mu_);
  std::vector<uint64_t> AnsweredUndo(IoFileId file) EXCLUDES(mu_);
  void DropUndo(const std::vector<uint64_t>& ids) EXCLUDES(mu_);

  const Options options_;
  const Clock& clock_;
  Flights flights_;
  std::unique_ptr<DiskIo> io_;

  mutable Mutex mu_;
  CondVar changed_;
  std::deque<Rule> rules_ GUARDED_BY(mu_);
  std::vector<File> files_ GUARDED_BY(mu_);
  std::vector<Held> held_ GUARDED_BY(mu_);
  std::deque<Undo> undo_ GUARDED_BY(mu_);  // In the order of the writes.
  uint64_t last_undo_ GUARDED_BY(mu_) = 0;
  std::array<uint64_t, kIoFaults> made_ GUARDED_BY(mu_) = {};
  bool stopping_ GUARDED_BY(mu_) = false;

  std::thread deadlines_;
  std::thread serves_;
};

}  // namespace terrace
