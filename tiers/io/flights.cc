#include "tiers/io/flights.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <limits>
#include <mutex>
#include <string_view>

#include "base/check.h"

namespace terrace {
namespace {

constexpr uint32_t kPlaceBits = 16;
static_assert(kMaxIoDepth <= 1u << kPlaceBits);
constexpr uint32_t kMaxAgain = 16;
constexpr MonotonicNs kNever = std::numeric_limits<MonotonicNs>::max();
constexpr MonotonicNs kLongestWaitNs = 3600 * kNsPerSecond;  // Far from what overflows a timeout.

bool Aligned(uint64_t number) {
  return number % kIoAlignment == 0;
}

Status Refused(std::string message) {
  return {Code::kInvalidArgument, std::move(message)};
}

std::string_view VerbName(IoVerb verb) {
  switch (verb) {
    case IoVerb::kRead:
      return "read";
    case IoVerb::kWrite:
      return "write";
    case IoVerb::kSync:
      return "sync";
  }
  return "request";
}

std::string Words(const Flight& flight) {
  std::string words(VerbName(flight.request.verb));
  if (flight.request.verb != IoVerb::kSync) {
    words += " of " + std::to_string(flight.bytes) + " bytes at " +
             std::to_string(flight.request.offset);
  }
  return words;
}

Status CheckMemory(const IoRequest& request, bool direct) {
  if (request.memory.empty()) return Refused("memory: there is none");
  if (request.memory.size() > kMaxIoPieces) {
    return Refused("memory: " + std::to_string(request.memory.size()) + " pieces, of at most " +
                   std::to_string(kMaxIoPieces));
  }
  if (direct && !Aligned(request.offset)) {
    return Refused("offset: " + std::to_string(request.offset) + " is no multiple of " +
                   std::to_string(kIoAlignment));
  }
  size_t bytes = 0;
  for (const iovec& piece : request.memory) {
    if (piece.iov_base == nullptr || piece.iov_len == 0) return Refused("memory: an empty piece");
    if (direct && !Aligned(reinterpret_cast<uintptr_t>(piece.iov_base))) {
      return Refused("memory: an address is no multiple of " + std::to_string(kIoAlignment));
    }
    if (direct && !Aligned(piece.iov_len)) {
      return Refused("memory: the length " + std::to_string(piece.iov_len) + " is no multiple of " +
                     std::to_string(kIoAlignment));
    }
    if (piece.iov_len > kMaxIoBytes - bytes) {
      return Refused("memory: more than " + std::to_string(kMaxIoBytes) + " bytes");
    }
    bytes += piece.iov_len;
  }
  if (request.offset > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) - bytes) {
    return Refused("offset: no file is that long");
  }
  return {};
}

// Takes `bytes` off the front of what is left.
void Advance(Flight& flight, size_t bytes) {
  flight.offset += bytes;
  while (bytes > 0) {
    iovec& piece = flight.request.memory[flight.piece];
    const size_t part = std::min(bytes, piece.iov_len);
    piece.iov_base = static_cast<uint8_t*>(piece.iov_base) + part;
    piece.iov_len -= part;
    bytes -= part;
    if (piece.iov_len == 0) ++flight.piece;
  }
}

}  // namespace

Flights::Flights(const DiskIoOptions& options, const Clock& clock)
    : options_(options),
      clock_(clock),
      places_(options.depth),
      files_(options.files),
      watching_until_(kNever) {
  // The last is taken first: places and files are used from 0 on.
  for (uint32_t i = options.depth; i > 0; --i)
    free_.push_back(i - 1);
  for (uint32_t i = options.files; i > 0; --i)
    free_files_.push_back(i - 1);
}

Result<IoFileId> Flights::AddFile(bool direct) {
  MutexLock lock(mu_);
  if (free_files_.empty()) {
    return Status(Code::kExhausted,
                  "file I/O: " + std::to_string(options_.files) + " files are open");
  }
  const IoFileId file = free_files_.back();
  free_files_.pop_back();
  files_[file] = {.used = true, .direct = direct};
  return file;
}

void Flights::RemoveFile(IoFileId file) {
  MutexLock lock(mu_);
  TERRACE_CHECK(file < files_.size() && files_[file].used && files_[file].in_flight == 0);
  files_[file].used = false;
  free_files_.push_back(file);
}

Status Flights::Check(const IoRequest& request) const {
  if (request.file >= files_.size() || !files_[request.file].used) {
    return Refused("file: " + std::to_string(request.file) + " was not added");
  }
  if (request.done == nullptr) return Refused("done: there is none");
  if (request.deadline <= 0) return Refused("deadline: there is none");
  if (request.verb == IoVerb::kSync) {
    return request.memory.empty() ? Status() : Refused("memory: a sync has none");
  }
  return CheckMemory(request, files_[request.file].direct);
}

Result<std::vector<Flight*>> Flights::Admit(std::vector<IoRequest> requests) {
  std::vector<Flight*> admitted;
  admitted.reserve(requests.size());
  MutexLock lock(mu_);
  if (closed_) return Status(Code::kUnavailable, "file I/O is ending");
  for (size_t i = 0; i < requests.size(); ++i) {
    if (Status status = Check(requests[i]); !status.ok()) {
      return std::move(status).WithContext("requests[" + std::to_string(i) + "]");
    }
  }
  if (requests.size() > free_.size()) {
    return Status(Code::kExhausted, "file I/O: " + std::to_string(counts_.in_flight) + " of " +
                                        std::to_string(options_.depth) + " requests are in flight");
  }
  for (IoRequest& request : requests) {
    const uint32_t index = free_.back();
    free_.pop_back();
    Place& place = places_[index];
    place.used = true;
    place.answered = false;
    File& file = files_[request.file];
    ++file.in_flight;
    ++counts_.in_flight;
    Flight& flight = place.flight;
    flight = {};
    flight.id = ++last_id_ << kPlaceBits | index;
    flight.request = std::move(request);
    flight.direct = file.direct;
    flight.offset = flight.request.offset;
    for (const iovec& piece : flight.request.memory)
      flight.bytes += piece.iov_len;
    deadlines_.emplace(flight.request.deadline, index);
    admitted.push_back(&flight);
  }
  if (!deadlines_.empty() && deadlines_.begin()->first < watching_until_) nearer_.notify_all();
  return admitted;
}

Flight* Flights::Find(uint64_t id) {
  MutexLock lock(mu_);
  const size_t index = id & ((1u << kPlaceBits) - 1);
  if (index >= places_.size()) return nullptr;
  Place& place = places_[index];
  return place.used && place.flight.id == id ? &place.flight : nullptr;
}

bool Flights::GoesOn(Flight& flight, int64_t result, Status& status) {
  if (result == -EINTR || result == -EAGAIN) {
    if (++flight.again <= kMaxAgain) return true;
  }
  if (result < 0) {
    status = SystemError(Words(flight), static_cast<int>(-result));
    return false;
  }
  if (flight.request.verb == IoVerb::kSync) return false;
  size_t moved = static_cast<size_t>(result);
  size_t left = 0;
  for (const iovec& piece : flight.rest())
    left += piece.iov_len;
  TERRACE_CHECK(moved <= left);
  // Past the page cache the rest must start at a whole sector, so a torn one is moved again. At the
  // end of a file that is none, so that only nothing comes of it.
  if (flight.direct && moved < left) moved -= moved % kIoAlignment;
  if (moved == 0) {
    status = flight.request.verb == IoVerb::kRead
                 ? Status(Code::kDataLoss, Words(flight) + ": the file ends before")
                 : Status(Code::kUnavailable, Words(flight) + ": nothing was taken");
    return false;
  }
  Advance(flight, moved);
  return moved < left;
}

bool Flights::Wanted(const Flight& flight) {
  MutexLock lock(mu_);
  return !PlaceOf(flight).answered;
}

bool Flights::Return(Flight& flight, int64_t result) {
  Status status;
  if (GoesOn(flight, result, status)) {
    // What has its answer does not go on: nobody waits for it, and the sooner it ends the sooner
    // its memory is free.
    if (Wanted(flight)) return true;
  }
  End(flight, status);
  return false;
}

void Flights::End(Flight& flight, const Status& status) {
  MutexLock end(ends_mu_);
  IoRequest request;
  bool answered = false;
  {
    MutexLock lock(mu_);
    Place& place = PlaceOf(flight);
    answered = place.answered;
    if (!answered) Count(flight, status);
    // Free before the callbacks: they may submit again, and remove the file.
    request = Free(place);
  }
  if (forgotten_) return;
  if (!answered) request.done(status);
  if (request.ended) request.ended();
}

void Flights::AnswerEarly(Flight& flight, const Status& status, const Withdraw& withdraw) {
  IoRequest withdrawn;
  std::function<void(const Status&)> done;
  // Asked before the answer: what never started is counted as ended when its caller hears of it.
  const bool ends = withdraw(flight);
  {
    MutexLock lock(mu_);
    Place& place = PlaceOf(flight);
    Count(flight, status);
    done = std::move(flight.request.done);
    if (ends) {
      withdrawn = Free(place);
    } else {
      place.answered = true;
      ++counts_.overdue;
      deadlines_.erase({flight.request.deadline, static_cast<uint32_t>(&place - places_.data())});
    }
  }
  done(status);
  if (ends && withdrawn.ended) withdrawn.ended();
}

bool Flights::AnswerOverdue(const Withdraw& withdraw) {
  // With ends_mu_ no flight ends, so this one stays what it is while it is answered.
  MutexLock end(ends_mu_);
  Flight* flight = nullptr;
  {
    MutexLock lock(mu_);
    if (deadlines_.empty() || deadlines_.begin()->first > clock_.Now()) return false;
    flight = &places_[deadlines_.begin()->second].flight;
  }
  AnswerEarly(*flight,
              {Code::kDeadlineExceeded, Words(*flight) + ": no answer before the deadline"},
              withdraw);
  return true;
}

void Flights::WatchDeadlines(const Withdraw& withdraw) {
  for (;;) {
    while (AnswerOverdue(withdraw)) {
    }
    MutexLock lock(mu_);
    if (finished_) return;
    const MonotonicNs now = clock_.Now();
    // With nothing in flight it goes on watching for the deadline that was the nearest, if that is
    // to come: who submits a request at a time would otherwise pay a wake-up for each.
    MonotonicNs until = watching_until_ > now ? watching_until_ : kNever;
    if (!deadlines_.empty()) until = deadlines_.begin()->first;
    watching_until_ = until;
    if (until == kNever) {
      nearer_.wait(mu_);
    } else if (until > now) {
      nearer_.wait_for(mu_, std::chrono::nanoseconds(std::min(until - now, kLongestWaitNs)));
    }
  }
}

void Flights::Close() {
  MutexLock lock(mu_);
  closed_ = true;
}

bool Flights::WaitUntilEmpty(MonotonicNs at_most_ns) {
  MutexLock lock(mu_);
  return empty_.wait_for(mu_, std::chrono::nanoseconds(std::min(at_most_ns, kLongestWaitNs)),
                         [this]() REQUIRES(mu_) { return counts_.in_flight == 0; });
}

bool Flights::Empty() const {
  MutexLock lock(mu_);
  return counts_.in_flight == 0;
}

void Flights::Forget(const Withdraw& withdraw) {
  MutexLock end(ends_mu_);
  for (;;) {
    Flight* flight = nullptr;
    {
      MutexLock lock(mu_);
      if (deadlines_.empty()) break;
      flight = &places_[deadlines_.begin()->second].flight;
    }
    AnswerEarly(*flight, {Code::kUnavailable, Words(*flight) + ": file I/O ended before"},
                withdraw);
  }
  forgotten_ = true;
}

void Flights::Finish() {
  MutexLock lock(mu_);
  finished_ = true;
  nearer_.notify_all();
}

IoReport Flights::Report() const {
  MutexLock lock(mu_);
  return counts_;
}

void Flights::Count(const Flight& flight, const Status& status) {
  if (!status.ok()) {
    ++counts_.errors;
    return;
  }
  switch (flight.request.verb) {
    case IoVerb::kRead:
      ++counts_.reads;
      counts_.read_bytes += flight.bytes;
      break;
    case IoVerb::kWrite:
      ++counts_.writes;
      counts_.written_bytes += flight.bytes;
      break;
    case IoVerb::kSync:
      ++counts_.syncs;
      break;
  }
}

IoRequest Flights::Free(Place& place) {
  const auto index = static_cast<uint32_t>(&place - places_.data());
  IoRequest request = std::move(place.flight.request);
  deadlines_.erase({request.deadline, index});
  if (place.answered) --counts_.overdue;
  place.used = false;
  place.answered = false;
  free_.push_back(index);
  --files_[request.file].in_flight;
  if (--counts_.in_flight == 0) empty_.notify_all();
  return request;
}

Flights::Place& Flights::PlaceOf(const Flight& flight) {
  Place& place = places_[flight.id & ((1u << kPlaceBits) - 1)];
  TERRACE_CHECK(place.used && &place.flight == &flight);
  return place;
}

}  // namespace terrace
