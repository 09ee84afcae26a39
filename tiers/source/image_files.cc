#include "tiers/source/image_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <new>
#include <utility>

#include "base/digest.h"
#include "tiers/source/image_format.h"
#include "tiers/source/printable.h"

namespace terrace {
namespace {

constexpr std::string_view kSuffix = ".image";
constexpr std::string_view kUnfinishedSuffix = ".image.new";

// An opened image.
class FileImage final : public WeightImage, public std::enable_shared_from_this<FileImage> {
 public:
  FileImage(WorkerPool& pool, BlockReader& reader, std::string path)
      : pool_(pool), reader_(reader), reader_door_(reader.door()), path_(std::move(path)) {}
  // Closing it may wait for the DiskIo's thread. What is left of the last reads may end after the
  // pool and the reader: then nothing waits.
  ~FileImage() override {
    if (reader_door_->closed()) return;
    (void)pool_.Submit([direct = std::move(direct_)] {});
  }

  const std::vector<uint32_t>& crcs() const override { return header_.crcs; }
  void Read(const ImageRead& read, std::function<void(Result<BlockBytes>)> done,
            std::function<void()> ended) override;

  // On a worker, before anybody else knows it.
  Status Open(const ImageFacts& facts);

 private:
  Status ReadHeader();
  Status Compare(const ImageFacts& facts) const;

  WorkerPool& pool_;
  BlockReader& reader_;
  const std::shared_ptr<DiskDoor> reader_door_;
  const std::string path_;
  // Constant after Open.
  UniqueFd fd_;
  std::shared_ptr<DirectFile> direct_;  // Null: the file system refuses.
  std::string why_not_direct_;
  uint64_t header_bytes_ = 0;
  uint64_t file_bytes_ = 0;
  image_file::Header header_;
};

Status FileImage::Open(const ImageFacts& facts) {
  fd_.Reset(open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!fd_) return SystemError("cannot be opened", errno);
  struct stat found {};
  if (fstat(fd_.get(), &found) != 0) return SystemError("cannot be examined", errno);
  if (!S_ISREG(found.st_mode)) return {Code::kMismatch, "is no regular file"};
  file_bytes_ = static_cast<uint64_t>(found.st_size);
  RETURN_IF_ERROR(ReadHeader());
  RETURN_IF_ERROR(Compare(facts));
  auto direct = DirectFile::Reopen(reader_.door(), fd_.get());
  if (direct) {
    direct_ = *std::move(direct);
  } else {
    why_not_direct_ = direct.error().message();
  }
  return {};
}

Status FileImage::ReadHeader() {
  std::array<uint8_t, image_file::kAlignment> page;
  if (file_bytes_ < page.size()) return {Code::kDataLoss, "is torn: it is shorter than a header"};
  RETURN_IF_ERROR(ReadAt(fd_.get(), 0, page));
  ASSIGN_OR_RETURN(header_bytes_, image_file::LengthOf(page));
  if (file_bytes_ < header_bytes_) {
    return {Code::kDataLoss, "is torn: it is shorter than its header"};
  }
  std::vector<uint8_t> bytes(header_bytes_);
  RETURN_IF_ERROR(ReadAt(fd_.get(), 0, bytes));
  ASSIGN_OR_RETURN(header_, image_file::Decode(bytes));
  return {};
}

Status FileImage::Compare(const ImageFacts& facts) const {
  const ImageFacts& found = header_.facts;
  const auto other = [](const std::string& what) { return Status(Code::kMismatch, what); };
  if (found.label != facts.label) return other("is of " + Printable(found.label));
  if (found.content != facts.content) {
    return other("is of the weights " + found.content.Hex() + ", not " + facts.content.Hex());
  }
  if (found.listing != facts.listing || found.image_bytes != facts.image_bytes) {
    return other("is of other tensors");
  }
  if (!image_file::SameUnits(found.block_bytes, facts.block_bytes)) {
    return other("is laid out in blocks of " + std::to_string(found.block_bytes) + " bytes, not " +
                 std::to_string(facts.block_bytes));
  }
  if (file_bytes_ != header_bytes_ + image_file::RoundUp(found.image_bytes)) {
    return {Code::kDataLoss, "is torn: it has " + std::to_string(file_bytes_) + " bytes"};
  }
  return {};
}

void FileImage::Read(const ImageRead& read, std::function<void(Result<BlockBytes>)> done,
                     std::function<void()> ended) {
  auto job = std::make_shared<BlockJob>();
  job->kind = BlockJob::Kind::kStraight;
  job->memory = read.memory.first(read.bytes);
  job->files.push_back({.fd = fd_.get(), .bytes = file_bytes_, .path = &path_, .direct = direct_});
  job->pieces.push_back({.file = 0, .offset = header_bytes_ + read.offset, .into = read.memory});
  job->keep = shared_from_this();
  job->result.why_buffered = why_not_direct_;
  job->done = std::move(done);
  job->ended = std::move(ended);
  reader_.Start(std::move(job));
}

// Digits of a SHA-256, and one of the suffixes. Others in the folder are not ours.
bool IsImageName(std::string_view name) {
  const size_t dot = std::min(name.find('.'), name.size());
  const std::string_view suffix = name.substr(dot);
  return (suffix == kSuffix || suffix == kUnfinishedSuffix) &&
         Digest::FromHex(name.substr(0, dot)).has_value();
}

// One image on its way into a file.
struct Writing {
  std::string path;
  std::string unfinished;
  image_file::Header header;
  std::vector<std::span<const uint8_t>> blocks;
  std::function<void(Status)> done;
  // Made on the way.
  std::vector<uint8_t> header_bytes;
  UniqueFd fd;
  Status status;
};

Status SyncFolder(const std::string& path) {
  const UniqueFd folder(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder || fsync(folder.get()) != 0) return SystemError(path, errno);
  return {};
}

// Room for all of it, so that a full device says so before anything is written.
// What the store's index and the journal need to go on is not taken.
constexpr uint64_t kKeptBytes = 256u << 20;

Status Preallocate(int fd, uint64_t bytes) {
  struct statvfs system {};
  if (fstatvfs(fd, &system) != 0) return SystemError("room for it", errno);
  const uint64_t unit = system.f_frsize;
  const uint64_t kept = std::min(kKeptBytes, uint64_t{system.f_blocks} * unit / 16);
  if (uint64_t{system.f_bavail} * unit < bytes + kept) {
    return {Code::kExhausted, "there is no room for it: " + std::to_string(bytes) + " bytes, and " +
                                  std::to_string(kept) + " are kept free"};
  }
  if (fallocate(fd, 0, 0, static_cast<off_t>(bytes)) == 0) return {};
  if (errno != EOPNOTSUPP) return SystemError("room for it", errno);
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0) return SystemError("its length", errno);
  return {};
}

class ImageFiles final : public WeightImages {
 public:
  ImageFiles(std::string folder, WorkerPool& pool, BlockReader& reader)
      : folder_(std::move(folder)), pool_(pool), reader_(reader) {}

  void Open(ImageFacts facts,
            std::function<void(Result<std::shared_ptr<WeightImage>>)> done) override;
  void Write(ImageFacts facts, std::vector<std::span<const uint8_t>> blocks,
             std::vector<uint32_t> crcs, std::function<void(Status)> done) override;
  void Remove(const std::string& label, std::function<void(Status)> done) override;
  void Keep(const std::vector<std::string>& labels) override;

 private:
  static std::string NameOf(const std::string& label) {
    return Sha256().Update(label).Finish().Hex() + std::string(kSuffix);
  }
  std::string PathOf(const std::string& label) const { return folder_ + "/" + NameOf(label); }
  // Runs `work` on the pool and then `done` on the owner thread; what is refused is not run.
  void Run(std::function<void()> work, std::function<void(Status)> done);

  Status Begin(Writing& writing) const;
  void WriteBytes(const std::shared_ptr<Writing>& writing);
  Status Publish(Writing& writing) const;
  // Also what is not ready is removed.
  void Finish(const std::shared_ptr<Writing>& writing, Status status);

  const std::string folder_;
  WorkerPool& pool_;
  BlockReader& reader_;
};

void ImageFiles::Run(std::function<void()> work, std::function<void(Status)> done) {
  auto finish = std::make_shared<std::function<void(Status)>>(std::move(done));
  const Status submitted =
      pool_.Submit(std::move(work), reader_.executor(), [finish] { (*finish)(Status()); });
  if (submitted.ok()) return;
  reader_.executor().Post([submitted, finish] { (*finish)(submitted); });
}

void ImageFiles::Open(ImageFacts facts,
                      std::function<void(Result<std::shared_ptr<WeightImage>>)> done) {
  auto image = std::make_shared<FileImage>(pool_, reader_, PathOf(facts.label));
  auto status = std::make_shared<Status>();
  Run(
      [image, status, facts = std::move(facts), path = PathOf(facts.label)] {
        try {
          *status = image->Open(facts).WithContext(Printable(path));
        } catch (const std::bad_alloc&) {
          *status = {Code::kExhausted, "no memory for the header of an image"};
        }
      },
      [image, status, done = std::move(done)](Status ran) {
        if (ran.ok()) ran = *status;
        if (!ran.ok()) return done(std::move(ran));
        done(std::shared_ptr<WeightImage>(image));
      });
}

void ImageFiles::Write(ImageFacts facts, std::vector<std::span<const uint8_t>> blocks,
                       std::vector<uint32_t> crcs, std::function<void(Status)> done) {
  auto writing = std::make_shared<Writing>();
  writing->path = PathOf(facts.label);
  writing->unfinished = writing->path.substr(0, writing->path.size() - kSuffix.size()) +
                        std::string(kUnfinishedSuffix);
  writing->header = {.facts = std::move(facts), .crcs = std::move(crcs)};
  writing->blocks = std::move(blocks);
  writing->done = std::move(done);
  Run([this, writing] { writing->status = Begin(*writing); },
      [this, writing](Status ran) {
        if (ran.ok()) ran = writing->status;
        if (!ran.ok()) return Finish(writing, std::move(ran));
        WriteBytes(writing);
      });
}

Status ImageFiles::Begin(Writing& writing) const {
  if (mkdir(folder_.c_str(), 0700) == 0) {
    RETURN_IF_ERROR(SyncFolder(folder_ + "/.."));
  } else if (errno != EEXIST) {
    return SystemError(folder_, errno);
  }
  if (image_file::HeaderBytes(writing.header.crcs.size()) > image_file::kMaxHeaderBytes) {
    return {Code::kInvalidArgument, "the model is too large for an image"};
  }
  writing.header_bytes = image_file::Encode(writing.header);
  (void)unlink(writing.path.c_str());
  (void)unlink(writing.unfinished.c_str());
  writing.fd.Reset(
      open(writing.unfinished.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!writing.fd) return SystemError(Printable(writing.unfinished), errno);
  return Preallocate(writing.fd.get(), writing.header_bytes.size() +
                                           image_file::RoundUp(writing.header.facts.image_bytes))
      .WithContext(Printable(writing.unfinished));
}

void ImageFiles::WriteBytes(const std::shared_ptr<Writing>& writing) {
  auto job = std::make_shared<BlockJob>();
  job->kind = BlockJob::Kind::kWrite;
  job->files.push_back(
      {.fd = writing->fd.get(), .bytes = 0, .path = &writing->unfinished, .direct = nullptr});
  // Chunks that are written are only read from these.
  auto add = [&job, offset = uint64_t{0}](std::span<const uint8_t> bytes) mutable {
    job->pieces.push_back(
        {.file = 0, .offset = offset, .into = {const_cast<uint8_t*>(bytes.data()), bytes.size()}});
    offset += bytes.size();
  };
  add(writing->header_bytes);
  for (const std::span<const uint8_t> block : writing->blocks)
    add(block);
  job->keep = writing;
  job->prepare = [door = reader_.door(), writing](BlockJob& planned) {
    auto direct = DirectFile::Reopen(door, writing->fd.get(), O_WRONLY);
    if (direct) planned.files.front().direct = *std::move(direct);
  };
  job->done = [this, writing](const Result<BlockBytes>& written) {
    if (!written) return Finish(writing, written.error());
    Run([this, writing] { writing->status = Publish(*writing); },
        [this, writing](Status ran) {
          Finish(writing, ran.ok() ? std::move(writing->status) : std::move(ran));
        });
  };
  reader_.Start(std::move(job));
}

Status ImageFiles::Publish(Writing& writing) const {
  if (fsync(writing.fd.get()) != 0) return SystemError(Printable(writing.unfinished), errno);
  if (rename(writing.unfinished.c_str(), writing.path.c_str()) != 0) {
    return SystemError(Printable(writing.path), errno);
  }
  return SyncFolder(folder_);
}

void ImageFiles::Finish(const std::shared_ptr<Writing>& writing, Status status) {
  if (status.ok()) return writing->done(Status());
  Run(
      [writing] {
        (void)unlink(writing->unfinished.c_str());
        (void)unlink(writing->path.c_str());
      },
      [writing, status = std::move(status)](const Status&) { writing->done(status); });
}

void ImageFiles::Remove(const std::string& label, std::function<void(Status)> done) {
  auto status = std::make_shared<Status>();
  Run(
      [status, path = PathOf(label), folder = folder_] {
        if (unlink(path.c_str()) == 0) {
          *status = SyncFolder(folder);
        } else if (errno != ENOENT) {
          *status = SystemError(Printable(path), errno);
        }
      },
      [status, done = std::move(done)](Status ran) {
        done(ran.ok() ? std::move(*status) : std::move(ran));
      });
}

void ImageFiles::Keep(const std::vector<std::string>& labels) {
  std::vector<std::string> wanted;
  for (const std::string& label : labels)
    wanted.push_back(NameOf(label));
  std::sort(wanted.begin(), wanted.end());
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir(folder_.c_str()), closedir);
  if (folder == nullptr) return;  // Nothing was ever imported.
  while (const dirent* entry = readdir(folder.get())) {
    const std::string name = entry->d_name;
    if (!IsImageName(name)) continue;
    if (std::binary_search(wanted.begin(), wanted.end(), name)) continue;
    (void)unlinkat(dirfd(folder.get()), name.c_str(), 0);
  }
}

}  // namespace

std::unique_ptr<WeightImages> MakeImageFiles(std::string folder, WorkerPool& pool,
                                             BlockReader& reader) {
  return std::make_unique<ImageFiles>(std::move(folder), pool, reader);
}

}  // namespace terrace
