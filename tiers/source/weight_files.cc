#include "tiers/source/weight_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <new>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "tiers/source/block_job.h"
#include "tiers/source/printable.h"
#include "tiers/source/safetensors.h"
#include "tiers/source/shard_index.h"

namespace terrace {
namespace {

constexpr size_t kMaxPathBytes = 4095;
constexpr size_t kHashPieceBytes = 64u << 10;
// Hashed by one task of the pool, whose end waits for a task but not for a file.
constexpr uint64_t kHashStepBytes = 64u << 20;
// Without O_NONBLOCK, opening what became a FIFO after we looked would wait for a writer.
constexpr int kOpenFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;

class FileSource final : public WeightSource, public std::enable_shared_from_this<FileSource> {
 public:
  FileSource(WorkerPool& pool, Executor& executor, BlockReader& reader)
      : pool_(pool), executor_(executor), reader_(reader) {}

  const std::vector<TensorSpec>& tensors() const override { return tensors_; }
  const std::vector<SourceFile>& files() const override { return files_; }

  void Read(BlockRead read, std::function<void(Result<BlockBytes>)> done) override;
  void Stamp(std::function<void(Result<Digest>)> done) override;

  void Hash(std::vector<std::span<const uint8_t>> spans,
            std::function<void(Result<Digest>)> done) override;
  void HashFile(uint32_t file, std::vector<std::span<const uint8_t>> data,
                std::function<bool()> wanted, std::function<void(Result<Digest>)> done) override;

  void Run(std::function<void()> work, std::function<void(Status)> done) override {
    auto finish = std::make_shared<std::function<void(Status)>>(std::move(done));
    const Status submitted =
        pool_.Submit(std::move(work), executor_, [finish] { (*finish)(Status()); });
    if (!submitted.ok()) {
      executor_.Post([submitted, finish] { (*finish)(submitted); });
    }
  }

  // On a worker, before anybody else knows the source.
  Status OpenAll(SourceRequest request);

 private:
  Status OpenFile(const std::string& path, UniqueFd fd);
  Status ReadHeader(uint32_t file);
  Status CheckNames() const;
  Result<Digest> StampNow() const;
  // What is on its way through SHA-256: the header of a file, or of none, and what follows it.
  struct Hashing {
    uint32_t file = 0;
    uint64_t header_bytes = 0;
    uint64_t header_read = 0;
    std::vector<std::span<const uint8_t>> data;  // Of data[next], what is left.
    size_t next = 0;
    std::function<bool()> wanted;  // Empty: always.
    std::function<void(Result<Digest>)> done;
    Sha256 hash;
    Status status;

    bool Over() const { return header_read == header_bytes && next == data.size(); }
  };
  void HashOn(const std::shared_ptr<Hashing>& hashing);
  Status HashStep(Hashing& hashing) const;

  WorkerPool& pool_;
  Executor& executor_;
  BlockReader& reader_;
  // Constant after OpenAll.
  std::vector<SourceFile> files_;
  std::vector<UniqueFd> fds_;  // One a file.
  std::vector<TensorSpec> tensors_;
  size_t name_bytes_ = 0;  // Of tensors_.
};

// On a worker: the ways past the page cache, for as long as the job lasts.
void OpenDirect(const std::shared_ptr<DiskDoor>& door, BlockJob& job) {
  for (JobFile& file : job.files) {
    auto direct = DirectFile::Reopen(door, file.fd);
    if (direct) {
      file.direct = *std::move(direct);
    } else if (job.result.why_buffered.empty()) {
      job.result.why_buffered = Printable(*file.path) + ": " + direct.error().message();
    }
  }
}

void FileSource::Read(BlockRead read, std::function<void(Result<BlockBytes>)> done) {
  auto job = std::make_shared<BlockJob>();
  job->memory = read.memory;
  std::unordered_map<uint32_t, size_t> places;  // Of files in the job.
  for (const WeightPiece& piece : read.pieces) {
    TERRACE_CHECK(piece.tensor < tensors_.size());
    const TensorSpec& tensor = tensors_[piece.tensor];
    TERRACE_CHECK(piece.offset <= tensor.bytes && piece.into.size() <= tensor.bytes - piece.offset);
    const auto [place, fresh] = places.emplace(tensor.file, job->files.size());
    if (fresh) {
      job->files.push_back({.fd = fds_[tensor.file].get(),
                            .bytes = files_[tensor.file].bytes,
                            .path = &files_[tensor.file].path,
                            .direct = nullptr});
    }
    job->pieces.push_back(
        {.file = place->second, .offset = tensor.file_offset + piece.offset, .into = piece.into});
  }
  job->keep = shared_from_this();
  job->prepare = [door = reader_.door()](BlockJob& planned) { OpenDirect(door, planned); };
  job->done = std::move(done);
  reader_.Start(std::move(job));
}

void FileSource::Stamp(std::function<void(Result<Digest>)> done) {
  auto stamp = std::make_shared<Result<Digest>>(Status(Code::kInternal, "not looked at"));
  Run([self = shared_from_this(), stamp] { *stamp = self->StampNow(); },
      [stamp, done = std::move(done)](Status ran) {
        done(ran.ok() ? std::move(*stamp) : Result<Digest>(std::move(ran)));
      });
}

Result<Digest> FileSource::StampNow() const {
  Sha256 hash;
  for (size_t i = 0; i < fds_.size(); ++i) {
    struct stat facts {};
    if (fstat(fds_[i].get(), &facts) != 0) {
      return SystemError(Printable(files_[i].path) + ": cannot be examined", errno);
    }
    hash.UpdateU64(facts.st_ino).UpdateU64(static_cast<uint64_t>(facts.st_size));
    for (const timespec& time : {facts.st_mtim, facts.st_ctim}) {
      hash.UpdateU64(static_cast<uint64_t>(time.tv_sec));
      hash.UpdateU64(static_cast<uint64_t>(time.tv_nsec));
    }
  }
  return hash.Finish();
}

void FileSource::Hash(std::vector<std::span<const uint8_t>> spans,
                      std::function<void(Result<Digest>)> done) {
  auto hashing = std::make_shared<Hashing>();
  hashing->data = std::move(spans);
  hashing->done = std::move(done);
  HashOn(hashing);
}

void FileSource::HashFile(uint32_t file, std::vector<std::span<const uint8_t>> data,
                          std::function<bool()> wanted, std::function<void(Result<Digest>)> done) {
  auto hashing = std::make_shared<Hashing>();
  hashing->file = file;
  hashing->header_bytes = files_[file].bytes;
  for (const std::span<const uint8_t> span : data)
    hashing->header_bytes -= span.size();
  hashing->data = std::move(data);
  hashing->wanted = std::move(wanted);
  hashing->done = std::move(done);
  HashOn(hashing);
}

void FileSource::HashOn(const std::shared_ptr<Hashing>& hashing) {
  Run([self = shared_from_this(), hashing] { hashing->status = self->HashStep(*hashing); },
      [self = shared_from_this(), hashing](Status ran) {
        if (ran.ok()) ran = hashing->status;
        if (!ran.ok()) return hashing->done(std::move(ran));
        if (hashing->Over()) return hashing->done(hashing->hash.Finish());
        if (hashing->wanted && !hashing->wanted()) {
          return hashing->done(Status(Code::kUnavailable, "its digest is wanted no more"));
        }
        self->HashOn(hashing);
      });
}

Status FileSource::HashStep(Hashing& hashing) const {
  uint64_t left = kHashStepBytes;
  std::vector<uint8_t> piece(hashing.header_read < hashing.header_bytes ? kHashPieceBytes : 0);
  while (left > 0 && hashing.header_read < hashing.header_bytes) {
    const size_t bytes = std::min(
        {static_cast<uint64_t>(piece.size()), left, hashing.header_bytes - hashing.header_read});
    RETURN_IF_ERROR(
        ReadAt(fds_[hashing.file].get(), hashing.header_read, std::span(piece).first(bytes))
            .WithContext(Printable(files_[hashing.file].path)));
    hashing.hash.Update(std::span(piece).first(bytes));
    hashing.header_read += bytes;
    left -= bytes;
  }
  while (left > 0 && hashing.next < hashing.data.size()) {
    std::span<const uint8_t>& span = hashing.data[hashing.next];
    const size_t bytes = std::min<uint64_t>(left, span.size());
    hashing.hash.Update(span.first(bytes));
    span = span.subspan(bytes);
    left -= bytes;
    if (span.empty()) ++hashing.next;
  }
  return {};
}

Status CheckRequest(const SourceRequest& request) {
  const auto bad = [](std::string message) {
    return Status(Code::kInvalidArgument, std::move(message));
  };
  if (request.paths.empty()) return bad("files: none given");
  if (request.paths.size() > kMaxSourceFiles) {
    return bad("files: more than " + std::to_string(kMaxSourceFiles));
  }
  if (!request.fds.empty() && request.fds.size() != request.paths.size()) {
    return bad("files: " + std::to_string(request.paths.size()) + " paths but " +
               std::to_string(request.fds.size()) + " descriptors");
  }
  for (const std::string& path : request.paths) {
    if (path.empty() || path.front() != '/' || path.size() > kMaxPathBytes ||
        path.find('\0') != std::string::npos) {
      return bad("files: " + Quoted(path) + " is not an absolute path");
    }
  }
  return {};
}

const char* KindOf(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISSOCK(mode)) return "a socket";
  if (S_ISCHR(mode)) return "a character device";
  if (S_ISBLK(mode)) return "a block device";
  if (S_ISLNK(mode)) return "a symbolic link";
  return "something else";
}

Status CheckRegular(const struct stat& facts) {
  if (S_ISREG(facts.st_mode)) return {};
  return {Code::kInvalidArgument,
          std::string("is ") + KindOf(facts.st_mode) + ", not a regular file"};
}

// A descriptor that a client passed may be anything.
Status CheckDescriptor(int fd) {
  struct stat facts {};
  if (fstat(fd, &facts) != 0) return SystemError("the descriptor", errno);
  RETURN_IF_ERROR(CheckRegular(facts));
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return SystemError("the descriptor", errno);
  const char* problem = (flags & O_PATH) != 0             ? "only names the file (O_PATH)"
                        : (flags & O_ACCMODE) == O_WRONLY ? "is open for writing only"
                        : (flags & O_DIRECT) != 0         ? "is open with O_DIRECT"
                                                          : nullptr;
  if (problem == nullptr) return {};
  return {Code::kInvalidArgument, std::string("the descriptor ") + problem + ", not for reading"};
}

// Looks before it opens: opening a device can do something.
Result<UniqueFd> OpenPath(const std::string& path) {
  struct stat facts {};
  if (stat(path.c_str(), &facts) != 0) return SystemError("cannot be found", errno);
  RETURN_IF_ERROR(CheckRegular(facts));
  UniqueFd fd(open(path.c_str(), kOpenFlags));
  if (!fd) return SystemError("cannot be opened", errno);
  RETURN_IF_ERROR(CheckDescriptor(fd.get()));
  return fd;
}

// Why the daemon could not open the file again by its path; Ok if it can.
Status CheckReopenable(const std::string& path, const struct stat& opened) {
  ASSIGN_OR_RETURN(const UniqueFd fd, OpenPath(path));
  struct stat found {};
  if (fstat(fd.get(), &found) != 0) return SystemError("cannot be examined", errno);
  if (found.st_dev != opened.st_dev || found.st_ino != opened.st_ino ||
      found.st_size != opened.st_size) {
    return {Code::kMismatch, "is another file for the daemon"};
  }
  return {};
}

// The hub's cache keeps what it downloads as blobs, which snapshots/REVISION/NAME link to: a blob
// of large-file storage is named by the SHA-256 of its bytes, another by a SHA-1 of git's, which
// says nothing here. The name is that of the file that is open, wherever its path led.
Digest PublishedDigest(int fd) {
  std::array<char, kMaxPathBytes + 1> path;
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  const ssize_t length = readlink(link.c_str(), path.data(), path.size());
  if (length <= 0) return {};
  const std::string_view name(path.data(), static_cast<size_t>(length));
  constexpr std::string_view kFolder = "/blobs/";
  constexpr size_t kHexDigits = 64;
  if (name.size() < kFolder.size() + kHexDigits) return {};
  const std::string_view hex = name.substr(name.size() - kHexDigits);
  if (!name.substr(0, name.size() - kHexDigits).ends_with(kFolder)) return {};
  return Digest::FromHex(hex).value_or(Digest());
}

Status FileSource::OpenFile(const std::string& path, UniqueFd fd) {
  const bool passed = static_cast<bool>(fd);
  if (passed) {
    RETURN_IF_ERROR(CheckDescriptor(fd.get()));
  } else {
    ASSIGN_OR_RETURN(fd, OpenPath(path));
  }
  struct stat facts {};
  if (fstat(fd.get(), &facts) != 0) return SystemError("cannot be examined", errno);
  SourceFile file;
  file.path = path;
  file.bytes = static_cast<uint64_t>(facts.st_size);
  const Status reopenable = passed ? CheckReopenable(path, facts) : Status();
  file.reopenable = reopenable.ok();
  if (!file.reopenable) file.why_not = Printable(path) + ": " + reopenable.message();
  file.published = PublishedDigest(fd.get());
  files_.push_back(std::move(file));
  fds_.push_back(std::move(fd));
  return ReadHeader(static_cast<uint32_t>(files_.size() - 1));
}

Status FileSource::ReadHeader(uint32_t file) {
  const uint64_t bytes = files_[file].bytes;
  const auto bad = [](std::string message) {
    return Status(Code::kInvalidArgument, std::move(message));
  };
  if (bytes == 0) return bad("the file is empty");
  if (bytes < kHeaderLengthBytes) {
    return bad("the file is truncated: " + std::to_string(bytes) + " bytes, shorter than the " +
               std::to_string(kHeaderLengthBytes) + " bytes of the header's length");
  }
  std::array<uint8_t, kHeaderLengthBytes> prefix;
  RETURN_IF_ERROR(ReadAt(fds_[file].get(), 0, prefix));
  uint64_t length;
  std::memcpy(&length, prefix.data(), sizeof length);
  if (length > kMaxHeaderBytes) {
    return bad("header length: " + std::to_string(length) + " is over the limit of " +
               std::to_string(kMaxHeaderBytes) + " bytes");
  }
  if (length > bytes - kHeaderLengthBytes) {
    return bad("header length: the file is truncated: " + std::to_string(length) +
               " bytes of header, but the file has only " +
               std::to_string(bytes - kHeaderLengthBytes) + " after the length");
  }
  std::string header(static_cast<size_t>(length), '\0');
  RETURN_IF_ERROR(ReadAt(fds_[file].get(), kHeaderLengthBytes,
                         {reinterpret_cast<uint8_t*>(header.data()), header.size()}));
  auto tensors = ParseSafetensorsHeader(header, bytes - kHeaderLengthBytes - length, file);
  if (!tensors) return std::move(tensors).error().WithContext("header");
  if (tensors_.size() + tensors->size() > kMaxSourceTensors) {
    return bad("header: more than " + std::to_string(kMaxSourceTensors) + " tensors in all files");
  }
  for (TensorSpec& tensor : *tensors) {
    name_bytes_ += tensor.name.size();
    tensors_.push_back(std::move(tensor));
  }
  if (name_bytes_ > kMaxSourceNameBytes) {
    return bad("header: more than " + std::to_string(kMaxSourceNameBytes) +
               " bytes of tensor names in all files");
  }
  return {};
}

Status FileSource::CheckNames() const {
  std::unordered_map<std::string_view, uint32_t> seen;
  for (const TensorSpec& tensor : tensors_) {
    const auto [other, fresh] = seen.emplace(tensor.name, tensor.file);
    if (!fresh) {
      return {Code::kInvalidArgument,
              Printable(files_[tensor.file].path) + ": header: duplicate tensor name " +
                  Quoted(tensor.name) + ": it is also in " + Printable(files_[other->second].path)};
    }
  }
  return {};
}

Status FileSource::OpenAll(SourceRequest request) {
  RETURN_IF_ERROR(CheckRequest(request));
  std::vector<ShardedTensor> index;
  if (!request.index.empty()) {
    auto parsed = ParseShardIndex(request.index);
    if (!parsed) return std::move(parsed).error().WithContext("index");
    index = *std::move(parsed);
  }
  request.fds.resize(request.paths.size());
  for (size_t i = 0; i < request.paths.size(); ++i) {
    Status opened = OpenFile(request.paths[i], std::move(request.fds[i]));
    if (!opened.ok()) return std::move(opened).WithContext(Printable(request.paths[i]));
  }
  RETURN_IF_ERROR(CheckNames());
  if (request.index.empty()) return {};
  return CheckShardIndex(index, tensors_, files_).WithContext("index");
}

class WeightFiles final : public WeightSources {
 public:
  WeightFiles(WorkerPool& pool, Executor& executor, BlockReader& reader)
      : pool_(pool), executor_(executor), reader_(reader) {}

  void Open(SourceRequest request,
            std::function<void(Result<std::shared_ptr<WeightSource>>)> done) override {
    struct Opening {
      SourceRequest request;
      std::function<void(Result<std::shared_ptr<WeightSource>>)> done;
      std::shared_ptr<FileSource> source;
      Status status;
    };
    auto opening = std::make_shared<Opening>();
    opening->request = std::move(request);
    opening->done = std::move(done);
    opening->source = std::make_shared<FileSource>(pool_, executor_, reader_);
    const Status submitted = pool_.Submit(
        [opening] {
          // A header of 100 MB of short members takes several times that to hold.
          try {
            opening->status = opening->source->OpenAll(std::move(opening->request));
          } catch (const std::bad_alloc&) {
            opening->status = Status(Code::kExhausted, "no memory to read the headers");
          }
        },
        executor_,
        [opening] {
          if (!opening->status.ok()) return opening->done(opening->status);
          opening->done(std::shared_ptr<WeightSource>(opening->source));
        });
    if (!submitted.ok()) {
      executor_.Post([opening, submitted] { opening->done(submitted); });
    }
  }

 private:
  WorkerPool& pool_;
  Executor& executor_;
  BlockReader& reader_;
};

}  // namespace

std::unique_ptr<WeightSources> MakeWeightFiles(WorkerPool& pool, Executor& executor,
                                               BlockReader& reader) {
  return std::make_unique<WeightFiles>(pool, executor, reader);
}

}  // namespace terrace
