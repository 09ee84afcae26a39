#include "tiers/source/read_job.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "tiers/source/printable.h"

namespace terrace {

Status ReadPiece(const FilePiece& piece) {
  size_t read = 0;
  while (read < piece.into.size()) {
    const uint64_t offset = piece.offset + read;
    const size_t left = piece.into.size() - read;
    const ssize_t got = pread(piece.fd, piece.into.data() + read, left, static_cast<off_t>(offset));
    if (got < 0) {
      if (errno == EINTR) continue;
      return SystemError("reading at byte " + std::to_string(offset), errno);
    }
    if (got == 0) {
      return {Code::kDataLoss,
              "the file became shorter: nothing is left at byte " + std::to_string(offset)};
    }
    read += static_cast<size_t>(got);
  }
  return {};
}

ReadJob::ReadJob(Executor& executor, const std::vector<FilePiece>& pieces,
                 std::shared_ptr<const void> keep, std::function<void(Status)> done)
    : executor_(executor), keep_(std::move(keep)), done_(std::move(done)) {
  for (FilePiece piece : pieces) {
    while (!piece.into.empty()) {
      FilePiece part = piece;
      part.into = piece.into.first(std::min(piece.into.size(), kShareBytes));
      pieces_.push_back(part);
      piece.offset += part.into.size();
      piece.into = piece.into.subspan(part.into.size());
    }
  }
}

void ReadJob::Start(WorkerPool& pool, Executor& executor, std::vector<FilePiece> pieces,
                    std::shared_ptr<const void> keep, std::function<void(Status)> done) {
  const auto job = std::make_shared<ReadJob>(executor, pieces, std::move(keep), std::move(done));
  uint64_t bytes = 0;
  for (const FilePiece& piece : job->pieces_)
    bytes += piece.into.size();
  const uint64_t shares = (bytes + kShareBytes - 1) / kShareBytes;
  const int workers =
      static_cast<int>(std::clamp<uint64_t>(shares, 1, static_cast<uint64_t>(pool.threads())));
  // Counted before the first of them can finish.
  {
    MutexLock lock(job->mu_);
    job->workers_ = workers;
  }
  for (int i = 0; i < workers; ++i) {
    const Status submitted = pool.Submit([job] { job->Work(); });
    if (submitted.ok()) continue;
    // Those that were submitted do all of the work; without any, the read fails.
    job->Leave(workers - i, i == 0 ? submitted : Status());
    return;
  }
}

void ReadJob::Work() {
  Status status;
  while (status.ok()) {
    const std::span<const FilePiece> share = Take();
    if (share.empty()) break;
    for (const FilePiece& piece : share) {
      status = ReadPiece(piece).WithContext(Printable(*piece.path));
      if (!status.ok()) break;
    }
  }
  Leave(1, status);
}

std::span<const FilePiece> ReadJob::Take() {
  MutexLock lock(mu_);
  if (!status_.ok()) return {};
  const size_t first = next_;
  size_t bytes = 0;
  while (next_ < pieces_.size() &&
         (next_ == first || bytes + pieces_[next_].into.size() <= kShareBytes)) {
    bytes += pieces_[next_++].into.size();
  }
  return std::span(pieces_).subspan(first, next_ - first);
}

void ReadJob::Leave(int workers, const Status& status) {
  Status outcome;
  {
    MutexLock lock(mu_);
    if (status_.ok()) status_ = status;
    workers_ -= workers;
    if (workers_ > 0) return;
    outcome = status_;
  }
  executor_.Post([job = shared_from_this(), outcome = std::move(outcome)] { job->done_(outcome); });
}

}  // namespace terrace
