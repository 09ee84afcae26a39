#include "tiers/sim/faulty_disk_io.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <utility>

#include "base/check.h"

namespace terrace {
namespace {

constexpr MonotonicNs kNever = std::numeric_limits<MonotonicNs>::max();
// Of requests below: it is here that deadlines are kept.
constexpr MonotonicNs kFarNs = 3600 * kNsPerSecond;

size_t BytesOf(std::span<const iovec> pieces) {
  size_t bytes = 0;
  for (const iovec& piece : pieces)
    bytes += piece.iov_len;
  return bytes;
}

std::shared_ptr<uint8_t> AlignedBytes(size_t bytes) {
  const size_t whole = (bytes + kIoAlignment - 1) / kIoAlignment * kIoAlignment;
  return {static_cast<uint8_t*>(std::aligned_alloc(kIoAlignment, whole)), std::free};
}

void Flip(std::span<const iovec> pieces, uint64_t bit) {
  uint64_t byte = bit / 8;
  for (const iovec& piece : pieces) {
    if (byte < piece.iov_len) {
      static_cast<uint8_t*>(piece.iov_base)[byte] ^= static_cast<uint8_t>(1u << bit % 8);
      return;
    }
    byte -= piece.iov_len;
  }
}

std::vector<iovec> First(std::span<const iovec> pieces, size_t bytes) {
  std::vector<iovec> first;
  for (iovec piece : pieces) {
    piece.iov_len = std::min(piece.iov_len, bytes);
    bytes -= piece.iov_len;
    if (piece.iov_len > 0) first.push_back(piece);
  }
  return first;
}

bool Names(const IoFaultRule& rule, const Flight& flight) {
  const IoRequest& request = flight.request;
  if (rule.verb && *rule.verb != request.verb) return false;
  if (rule.file && *rule.file != request.file) return false;
  if (request.verb == IoVerb::kSync) return true;
  return request.offset < rule.offset_end && request.offset + flight.bytes > rule.offset_begin;
}

Status Unchanged(const Status& status) {
  return status;
}

}  // namespace

FaultyDiskIo::FaultyDiskIo(std::unique_ptr<DiskIo> io, const Options& options, const Clock& clock)
    : options_(options),
      clock_(clock),
      flights_(options.io, clock),
      io_(std::move(io)),
      files_(options.io.files) {
  // What is held counts as known to the kernel: it ends when it is released.
  deadlines_ = std::thread([this] { flights_.WatchDeadlines([](Flight&) { return false; }); });
  serves_ = std::thread([this] { ServeHeld(); });
}

FaultyDiskIo::~FaultyDiskIo() {
  flights_.Close();
  if (!flights_.WaitUntilEmpty(options_.io.stop_ns)) {
    flights_.Forget([](Flight&) { return false; });
  }
  flights_.Finish();
  deadlines_.join();
  {
    MutexLock lock(mu_);
    stopping_ = true;
    changed_.notify_all();
  }
  serves_.join();
  // Its callbacks come here until it is gone.
  io_.reset();
}

void FaultyDiskIo::Add(IoFaultRule rule) {
  MutexLock lock(mu_);
  rules_.push_back({.rule = rule, .seen = 0});
}

void FaultyDiskIo::ClearRules() {
  MutexLock lock(mu_);
  rules_.clear();
}

void FaultyDiskIo::Release() {
  MutexLock lock(mu_);
  for (Held& held : held_) {
    if (held.rule.fault == IoFault::kHang) held.until = 0;
  }
  changed_.notify_all();
}

uint64_t FaultyDiskIo::made(IoFault fault) const {
  MutexLock lock(mu_);
  return made_[static_cast<size_t>(fault)];
}

Result<IoFileId> FaultyDiskIo::AddFile(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  auto own = std::make_shared<UniqueFd>(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  ASSIGN_OR_RETURN(const IoFileId below, io_->AddFile(fd));
  Result<IoFileId> file = flights_.AddFile((flags & O_DIRECT) != 0);
  if (!file) {
    io_->RemoveFile(below);
    return file;
  }
  MutexLock lock(mu_);
  files_[*file] = {.below = below, .fd = std::move(own)};
  return file;
}

void FaultyDiskIo::RemoveFile(IoFileId file) {
  File removed;
  {
    MutexLock lock(mu_);
    removed = std::exchange(files_[file], {});
  }
  io_->RemoveFile(removed.below);
  flights_.RemoveFile(file);
}

void FaultyDiskIo::RegisterMemory(std::span<uint8_t> memory) {
  io_->RegisterMemory(memory);
}

void FaultyDiskIo::UnregisterMemory(std::span<uint8_t> memory) {
  io_->UnregisterMemory(memory);
}

IoReport FaultyDiskIo::Report() const {
  IoReport report = flights_.Report();
  const IoReport below = io_->Report();
  report.engine = below.engine;
  report.registered_bytes = below.registered_bytes;
  return report;
}

Status FaultyDiskIo::Submit(std::vector<IoRequest> requests) {
  ASSIGN_OR_RETURN(const std::vector<Flight*> flights, flights_.Admit(std::move(requests)));
  std::vector<Flight*> sound;
  {
    MutexLock lock(mu_);
    for (Flight* flight : flights) {
      const IoFaultRule* rule = Match(*flight);
      if (rule == nullptr) {
        sound.push_back(flight);
        continue;
      }
      ++made_[static_cast<size_t>(rule->fault)];
      MonotonicNs until = 0;
      if (rule->fault == IoFault::kHang) until = kNever;
      if (rule->fault == IoFault::kSlow) until = clock_.Now() + rule->slow_ns;
      held_.push_back({.until = until, .flight = flight, .rule = *rule});
    }
    if (sound.size() < flights.size()) changed_.notify_all();
  }
  std::vector<IoRequest> below;
  for (Flight* flight : sound)
    below.push_back(Below(*flight, Unchanged));
  // It was taken here, so it is taken there: a request below ends before its flight does.
  TERRACE_CHECK(io_->Submit(std::move(below)).ok());
  return {};
}

const IoFaultRule* FaultyDiskIo::Match(const Flight& flight) {
  for (Rule& rule : rules_) {
    if (!Names(rule.rule, flight)) continue;
    const uint64_t nth = rule.seen++;
    if (nth >= rule.rule.skip && nth - rule.rule.skip < rule.rule.times) return &rule.rule;
  }
  return nullptr;
}

void FaultyDiskIo::ServeHeld() {
  for (;;) {
    std::vector<Held> due;
    {
      MutexLock lock(mu_);
      const MonotonicNs now = clock_.Now();
      MonotonicNs next = kNever;
      std::erase_if(held_, [&](const Held& held) {
        if (held.until <= now) {
          due.push_back(held);
          return true;
        }
        next = std::min(next, held.until);
        return false;
      });
      if (due.empty()) {
        if (stopping_) return;
        if (next == kNever) {
          changed_.wait(mu_);
        } else {
          changed_.wait_for(mu_, std::chrono::nanoseconds(std::min(next - now, kFarNs)));
        }
      }
    }
    for (const Held& held : due)
      Go(*held.flight, held.rule);
  }
}

void FaultyDiskIo::Go(Flight& flight, const IoFaultRule& rule) {
  const IoVerb verb = flight.request.verb;
  const Status error = SystemError("fault", rule.error);
  IoRequest request;
  if (rule.fault == IoFault::kError) return flights_.End(flight, error);
  if (verb == IoVerb::kWrite &&
      (rule.fault == IoFault::kTorn || rule.fault == IoFault::kTornQuiet)) {
    const Status answer = rule.fault == IoFault::kTorn ? error : Status();
    std::vector<iovec> first = First(flight.rest(), rule.bytes);
    if (first.empty()) return flights_.End(flight, answer);
    request =
        Below(flight, [answer](const Status& status) { return status.ok() ? answer : status; });
    request.memory = std::move(first);
  } else if (verb == IoVerb::kWrite && rule.fault == IoFault::kFlip) {
    // The caller's memory stays as it is.
    const std::shared_ptr<uint8_t> copy = AlignedBytes(flight.bytes);
    uint8_t* end = copy.get();
    for (const iovec& piece : flight.rest())
      end = std::copy_n(static_cast<const uint8_t*>(piece.iov_base), piece.iov_len, end);
    const iovec flipped{.iov_base = copy.get(), .iov_len = flight.bytes};
    Flip({&flipped, 1}, rule.bit);
    request = Below(flight, [copy](const Status& status) { return status; });
    request.memory = {flipped};
  } else if (verb == IoVerb::kRead && rule.fault == IoFault::kFlip) {
    request = Below(flight, [&flight, bit = rule.bit](const Status& status) {
      if (status.ok()) Flip(flight.rest(), bit);
      return status;
    });
  } else {
    request = Below(flight, Unchanged);
  }
  std::vector<IoRequest> one;
  one.push_back(std::move(request));
  TERRACE_CHECK(io_->Submit(std::move(one)).ok());
}

IoRequest FaultyDiskIo::Below(Flight& flight, std::function<Status(const Status&)> change) {
  IoRequest below;
  below.verb = flight.request.verb;
  below.offset = flight.request.offset;
  below.memory = flight.request.memory;
  below.deadline = clock_.Now() + kFarNs;
  {
    MutexLock lock(mu_);
    below.file = files_[flight.request.file].below;
  }
  std::vector<uint64_t> synced;
  uint64_t undo = 0;
  if (options_.keep_undo) {
    if (below.verb == IoVerb::kSync) synced = AnsweredUndo(flight.request.file);
    if (below.verb == IoVerb::kWrite) undo = KeepUndo(flight, BytesOf(below.memory));
  }
  auto answer = std::make_shared<Status>();
  below.done = [this, answer, undo, synced = std::move(synced),
                change = std::move(change)](const Status& status) {
    if (status.ok()) DropUndo(synced);
    if (undo != 0) {
      MutexLock lock(mu_);
      for (Undo& record : undo_)
        record.answered = record.answered || record.id == undo;
    }
    *answer = change(status);
  };
  below.ended = [this, answer, &flight] { flights_.End(flight, *answer); };
  return below;
}

uint64_t FaultyDiskIo::KeepUndo(const Flight& flight, size_t bytes) {
  Undo undo;
  {
    MutexLock lock(mu_);
    undo.fd = files_[flight.request.file].fd;
  }
  struct stat file {};
  TERRACE_CHECK(::fstat(undo.fd->get(), &file) == 0);
  undo.offset = flight.request.offset;
  undo.file_bytes = static_cast<uint64_t>(file.st_size);
  undo.bytes = bytes;
  undo.old = AlignedBytes(bytes);
  std::fill_n(undo.old.get(), bytes, uint8_t{0});
  // A file that ends before had nothing there, which is what taking back its length restores.
  TERRACE_CHECK(::pread(undo.fd->get(), undo.old.get(), bytes, static_cast<off_t>(undo.offset)) >=
                0);
  MutexLock lock(mu_);
  undo.id = ++last_undo_;
  undo_.push_back(std::move(undo));
  return undo_.back().id;
}

std::vector<uint64_t> FaultyDiskIo::AnsweredUndo(IoFileId file) {
  std::vector<uint64_t> ids;
  MutexLock lock(mu_);
  for (const Undo& undo : undo_) {
    if (undo.answered && undo.fd == files_[file].fd) ids.push_back(undo.id);
  }
  return ids;
}

void FaultyDiskIo::DropUndo(const std::vector<uint64_t>& ids) {
  MutexLock lock(mu_);
  std::erase_if(undo_, [&](const Undo& undo) { return std::ranges::count(ids, undo.id) > 0; });
}

uint64_t FaultyDiskIo::Crash(Random* odds) {
  TERRACE_CHECK(flights_.Empty());
  std::deque<Undo> undos;
  {
    MutexLock lock(mu_);
    undos.swap(undo_);
  }
  uint64_t lost = 0;
  // From the last on, so that what was there first is there at the end.
  for (auto undo = undos.rbegin(); undo != undos.rend(); ++undo) {
    if (odds != nullptr && odds->Chance(1, 2)) continue;
    const int fd = undo->fd->get();
    const auto offset = static_cast<off_t>(undo->offset);
    TERRACE_CHECK(::pwrite(fd, undo->old.get(), undo->bytes, offset) ==
                  static_cast<ssize_t>(undo->bytes));
    // What was kept of later writes may lie beyond.
    if (odds == nullptr) {
      TERRACE_CHECK(::ftruncate(fd, static_cast<off_t>(undo->file_bytes)) == 0);
    }
    ++lost;
  }
  return lost;
}

}  // namespace terrace
