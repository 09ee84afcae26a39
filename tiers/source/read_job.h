// ReadJob: one WeightSource::Read on its way: pieces of files that several workers read at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/executor.h"
#include "base/mutex.h"
#include "base/status.h"
#include "base/worker_pool.h"

namespace terrace {

// Bytes of one file, where they go.
struct FilePiece {
  int fd = -1;
  uint64_t offset = 0;
  std::span<uint8_t> into;
  const std::string* path = nullptr;  // For messages.
};

// Reads all of `piece` with pread, or says why not: data_loss when the file ends before it. Errors
// do not name the file.
Status ReadPiece(const FilePiece& piece);

// Reads pieces on the pool, a share of at most kShareBytes at a time. Workers take shares until
// none is left, or one has failed; the last of them posts `done`, once nobody writes into the
// pieces.
class ReadJob final : public std::enable_shared_from_this<ReadJob> {
 public:
  static constexpr size_t kShareBytes = 16u << 20;

  // `keep` holds what the pieces' descriptors and paths belong to.
  static void Start(WorkerPool& pool, Executor& executor, std::vector<FilePiece> pieces,
                    std::shared_ptr<const void> keep, std::function<void(Status)> done);

  ReadJob(Executor& executor, const std::vector<FilePiece>& pieces,
          std::shared_ptr<const void> keep, std::function<void(Status)> done);

 private:
  void Work();
  // The next share; empty when there is nothing left to do.
  std::span<const FilePiece> Take() EXCLUDES(mu_);
  void Leave(int workers, const Status& status) EXCLUDES(mu_);

  Executor& executor_;
  const std::shared_ptr<const void> keep_;
  std::vector<FilePiece> pieces_;  // Each at most kShareBytes. Constant after construction.
  std::function<void(Status)> done_;

  Mutex mu_;
  size_t next_ GUARDED_BY(mu_) = 0;  // The first piece that nobody took.
  int workers_ GUARDED_BY(mu_) = 0;  // Submitted, and not yet through.
  Status status_ GUARDED_BY(mu_);    // The first failure.
};

}  // namespace terrace
