#include "tiers/nvme/slot_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "kernels/crc32c.h"
#include "tiers/nvme/directories.h"

namespace terrace::nvme {
namespace {

std::string PathOf(const std::string& directory, const SlotFileName& name) {
  return directory + "/" + SlotFileNameText(name);
}

Status MakeUnder(const std::string& path, const SlotFileName& name, uint64_t kept_bytes,
                 UniqueFd& fd) {
  fd.Reset(::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_DIRECT | O_CLOEXEC, 0600));
  if (!fd) return SystemError(path, errno);
  struct statvfs system {};
  if (::fstatvfs(fd.get(), &system) != 0) return SystemError(path, errno);
  const uint64_t available = uint64_t{system.f_bavail} * system.f_frsize;
  if (available < name.bytes() + kept_bytes) {
    return {Code::kExhausted, "preallocate " + path + ": its file system has " +
                                  std::to_string(available) + " bytes left, and " +
                                  std::to_string(kept_bytes) + " are kept free for the index"};
  }
  if (::fallocate(fd.get(), 0, 0, static_cast<off_t>(name.bytes())) != 0) {
    return SystemError("preallocate " + path, errno);
  }
  // Its size and extents; the rename makes the name durable.
  if (::fsync(fd.get()) != 0) return SystemError(path, errno);
  return {};
}

std::string Describe(const Transfer& transfer, std::string_view what) {
  const StoredPage& page = transfer.header.page;
  return "page " + page.name.key.Hex() + " part " + std::to_string(page.name.part) + " in " +
         SlotFileNameText(transfer.file->name) + ", slot " +
         std::to_string(FromPlaceId(page.place).slot) + ": " + std::string(what);
}

std::string_view WordsOf(ReadFault fault) {
  switch (fault) {
    case ReadFault::kHeader:
      return "the header does not check out";
    case ReadFault::kName:
      return "another page is there";
    case ReadFault::kStale:
      return "another writing of it is there";
    default:
      return "the bytes do not have their checksum";
  }
}

}  // namespace

Result<UniqueFd> MakeSlotFile(const std::string& directory, const SlotFileName& name,
                              uint64_t kept_bytes) {
  const std::string path = PathOf(directory, name);
  const std::string unfinished = path + std::string(kUnfinishedSuffix);
  UniqueFd fd;
  Status status = MakeUnder(unfinished, name, kept_bytes, fd);
  if (status.ok() && ::rename(unfinished.c_str(), path.c_str()) != 0) {
    status = SystemError(path, errno);
  }
  if (!status.ok()) {
    (void)::unlink(unfinished.c_str());
    return status;
  }
  status = SyncDirectory(directory);
  if (status.ok()) return fd;
  (void)::unlink(path.c_str());
  return status;
}

Result<UniqueFd> OpenSlotFile(const std::string& directory, const SlotFileName& name) {
  const std::string path = PathOf(directory, name);
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC));
  // Of a file system mounted read-only, pages are served all the same.
  if (!fd && errno == EROFS) fd.Reset(::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
  if (!fd) return SystemError(path, errno);
  return fd;
}

Status RemoveSlotFile(const std::string& directory, const SlotFileName& name) {
  const std::string path = PathOf(directory, name);
  if (::unlink(path.c_str()) != 0) return SystemError(path, errno);
  return {};
}

bool FileIsShort(const Transfer& transfer) {
  if (transfer.kind != Transfer::Kind::kRead || transfer.status.code() != Code::kDataLoss) {
    return false;
  }
  const SlotFileName& name = transfer.file->name;
  const uint64_t end =
      name.slot_bytes * (FromPlaceId(transfer.header.page.place).slot + uint64_t{1});
  struct stat facts {};
  return ::fstat(transfer.file->fd.get(), &facts) == 0 &&
         static_cast<uint64_t>(facts.st_size) < end;
}

void PrepareWrite(Transfer& transfer) {
  if (transfer.prepared) return;
  transfer.prepared = true;
  transfer.header.data_crc = Crc32c(transfer.memory);
  const std::span<uint8_t> header = transfer.header_buffer.bytes();
  EncodeSlotHeader(transfer.header, header.first<kHeaderBytes>());
  if (!transfer.bounce) return;
  const std::span<uint8_t> bounce = transfer.bounce.bytes();
  std::copy(transfer.memory.begin(), transfer.memory.end(), bounce.begin());
  // Nothing of whoever had the buffer before goes to the disk.
  std::fill(bounce.begin() + static_cast<ptrdiff_t>(transfer.memory.size()), bounce.end(),
            uint8_t{0});
}

void CheckRead(Transfer& transfer, bool check_data) {
  const size_t bytes = transfer.memory.size();
  const std::span<const uint8_t> data =
      transfer.bounce ? transfer.bounce.bytes().first(bytes) : transfer.memory;
  const std::span<const uint8_t> header = transfer.header_buffer.bytes();
  const SlotHeader& expected = transfer.header;
  // The header first: the checksum of bytes that are another page's is not worth its time.
  ReadFault fault =
      CheckSlot(header.first<kHeaderBytes>(), expected.store, expected.page, std::nullopt);
  if (fault == ReadFault::kNone && check_data) {
    fault = CheckSlot(header.first<kHeaderBytes>(), expected.store, expected.page, Crc32c(data));
  }
  transfer.fault = fault;
  if (fault != ReadFault::kNone) {
    transfer.status = Status(Code::kDataLoss, Describe(transfer, WordsOf(fault)));
  } else if (transfer.bounce) {
    std::memcpy(transfer.memory.data(), data.data(), bytes);
  }
}

}  // namespace terrace::nvme
