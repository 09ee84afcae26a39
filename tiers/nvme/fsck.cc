#include "tiers/nvme/fsck.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <system_error>
#include <utility>

#include "kernels/crc32c.h"
#include "tiers/nvme/aligned_buffers.h"
#include "tiers/nvme/directories.h"
#include "tiers/nvme/index.h"
#include "tiers/nvme/slot_file.h"
#include "tiers/nvme/slot_space.h"

namespace terrace::nvme {
namespace {

// One directory and the files in it.
struct FsckDevice {
  std::string path;
  bool off = false;
  std::map<uint32_t, std::pair<SlotFileName, UniqueFd>> files;
  SlotSpace space{0, 0};
};

class Fsck {
 public:
  Fsck(const FsckOptions& options, StoreDirectories directories)
      : options_(options), directories_(std::move(directories)) {}

  Result<FsckReport> Run() {
    RETURN_IF_ERROR(OpenFiles());
    if (options_.repair == FsckRepair::kRebuild) {
      RETURN_IF_ERROR(Rebuild());
      return std::move(report_);
    }
    const Status read = CheckEntries();
    if (read.code() == Code::kDataLoss) {
      report_.index_damage = read.message();
      if (options_.repair == FsckRepair::kMend) RETURN_IF_ERROR(Rebuild());
      return std::move(report_);
    }
    RETURN_IF_ERROR(read);
    VisitSlots([this](const IndexEntry& entry) {
      const Place place = FromPlaceId(entry.page.place);
      report_.without_entry += devices_[place.device].space.IsTaken(place) ? 0 : 1;
    });
    return std::move(report_);
  }

 private:
  Status OpenFiles() {
    for (size_t i = 0; i < directories_.devices.size(); ++i) {
      const StoreDirectory& directory = directories_.devices[i];
      FsckDevice& device = devices_.emplace_back();
      device.space = SlotSpace(static_cast<uint8_t>(i), 0);
      device.path = directory.path;
      device.off = !directory.off.empty();
      if (device.off) {
        ++report_.devices_off;
        Find(directory.off);
        continue;
      }
      ASSIGN_OR_RETURN(const std::vector<std::string> names, NamesIn(device.path));
      for (const std::string& text : names) {
        const auto name = ParseSlotFileName(text);
        if (!name) continue;
        ASSIGN_OR_RETURN(UniqueFd fd, OpenSlotFile(device.path, *name));
        device.files.emplace(name->number, std::pair(*name, std::move(fd)));
        device.space.Adopt(*name);
        ++report_.files;
        report_.slots += name->slots;
      }
    }
    return {};
  }

  void Find(std::string what) {
    if (report_.findings.size() < kMostFindings) report_.findings.push_back(std::move(what));
  }

  // ---- Slots
  // The header, and the data behind it as far as asked for; false: not all of it can be read.
  bool ReadSlot(const SlotFileName& name, int fd, uint32_t slot, size_t bytes) {
    if (buffer_.size() < bytes) buffer_ = AlignedBuffer(bytes);
    if (!buffer_) return false;
    if (options_.progress) options_.progress(++slots_read_);
    const auto offset = static_cast<off_t>(name.slot_bytes * slot);
    for (size_t at = 0; at < bytes;) {
      const ssize_t got =
          ::pread(fd, buffer_.data() + at, bytes - at, offset + static_cast<off_t>(at));
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return false;
      at += static_cast<size_t>(got);
    }
    return true;
  }

  std::span<const uint8_t, kHeaderBytes> Header() const {
    return std::span<const uint8_t>(buffer_.bytes()).first<kHeaderBytes>();
  }

  template <typename Visit>
  void VisitSlots(const Visit& visit) {
    for (size_t i = 0; i < devices_.size(); ++i) {
      for (const auto& [number, file] : devices_[i].files) {
        const auto& [name, fd] = file;
        for (uint32_t slot = 0; slot < name.slots; ++slot) {
          if (!ReadSlot(name, fd.get(), slot, kHeaderBytes)) continue;
          const auto header = DecodeSlotHeader(Header());
          const Place place{static_cast<uint8_t>(i), number, slot};
          const bool ours = header && header->store == directories_.store &&
                            header->page.place == ToPlaceId(place) &&
                            SlotBytes(header->page.bytes) == name.slot_bytes;
          if (ours) visit(IndexEntry{header->page, header->data_crc});
        }
      }
    }
  }

  // ---- Entries
  std::string IndexPath(std::string_view name) const {
    return directories_.devices[0].path + "/" + std::string(name);
  }

  Status CheckEntries() {
    ASSIGN_OR_RETURN(const auto index, OpenIndex(IndexPath(kIndexName), directories_.store));
    std::vector<StoredPage> bad;
    ASSIGN_OR_RETURN(const auto unreadable, index->Visit([&](const IndexEntry& entry) {
      ++report_.entries;
      if (!Check(entry)) bad.push_back(entry.page);
    }));
    report_.unreadable = unreadable.size();
    if (options_.repair != FsckRepair::kMend) return {};
    RETURN_IF_ERROR(EraseAll(*index, bad));
    if (!unreadable.empty()) RETURN_IF_ERROR(index->Drop(unreadable));
    report_.dropped = bad.size() + unreadable.size();
    return index->Sync();
  }

  // Whether the entry may stay.
  bool Check(const IndexEntry& entry) {
    const Place place = FromPlaceId(entry.page.place);
    const std::string what = "page " + entry.page.name.key.Hex() + " part " +
                             std::to_string(entry.page.name.part) + ": ";
    if (place.device < devices_.size() && devices_[place.device].off) {
      ++report_.on_off_device;
      return true;
    }
    if (place.device >= devices_.size()) return Bad(report_.no_such_place, what + "no such device");
    FsckDevice& device = devices_[place.device];
    const auto file = device.files.find(place.file);
    if (file == device.files.end() || place.slot >= file->second.first.slots ||
        file->second.first.slot_bytes != SlotBytes(entry.page.bytes)) {
      return Bad(report_.no_such_place, what + "no such place in " + device.path);
    }
    return CheckAt(entry, file->second.first, file->second.second.get(), what);
  }

  bool CheckAt(const IndexEntry& entry, const SlotFileName& name, int fd, const std::string& what) {
    const Place place = FromPlaceId(entry.page.place);
    const std::string where = what + devices_[place.device].path + "/" + SlotFileNameText(name) +
                              ", slot " + std::to_string(place.slot) + ": ";
    const size_t bytes = options_.read_data ? name.slot_bytes : kHeaderBytes;
    if (!ReadSlot(name, fd, place.slot, bytes)) {
      return Bad(report_.bad_header, where + "cannot be read");
    }
    std::optional<uint32_t> crc;
    if (options_.read_data) {
      crc = Crc32c(std::span(buffer_.bytes()).subspan(kHeaderBytes, entry.page.bytes));
    }
    switch (CheckSlot(Header(), directories_.store, entry.page, crc)) {
      case ReadFault::kNone:
        break;
      case ReadFault::kHeader:
        return Bad(report_.bad_header, where + "its header does not check out");
      case ReadFault::kData:
        return Bad(report_.bad_data, where + "its bytes do not have their checksum");
      default:
        return Bad(report_.other_page, where + "holds another page or writing");
    }
    // Of two entries for a slot, its header is that of one at most: the other did not come here.
    (void)devices_[place.device].space.Take(place, entry.page.bytes);
    ++report_.good;
    report_.good_bytes += name.slot_bytes;
    return true;
  }

  bool Bad(uint64_t& count, std::string what) {
    ++count;
    Find(std::move(what));
    return false;
  }

  // ---- Building anew
  // Beside the old one, which goes to a name of its own when the new one is complete. A crash in
  // between leaves the old one, or none: then it is built again.
  Status Rebuild() {
    const std::string fresh = IndexPath(kNewIndexName);
    RETURN_IF_ERROR(CreateIndex(fresh, directories_.store));
    {
      ASSIGN_OR_RETURN(const auto index, OpenIndex(fresh, directories_.store));
      RETURN_IF_ERROR(AddSlots(*index));
    }
    std::error_code error;
    std::filesystem::remove_all(IndexPath(kOldIndexName), error);
    if (error) return SystemError(IndexPath(kOldIndexName), error.value());
    const std::string current = IndexPath(kIndexName);
    if (::rename(current.c_str(), IndexPath(kOldIndexName).c_str()) != 0 && errno != ENOENT) {
      return SystemError(current, errno);
    }
    if (::rename(fresh.c_str(), current.c_str()) != 0) return SystemError(current, errno);
    report_.rebuilt = true;
    return SyncDirectory(directories_.devices[0].path);
  }

  Status AddSlots(Index& index) {
    Status status;
    uint64_t last_serial = 0;
    VisitSlots([&](const IndexEntry& entry) {
      if (!status.ok()) return;
      last_serial = std::max(last_serial, entry.page.serial);
      auto known = index.Find(entry.page.name);
      status = known.status();
      if (!known) return;
      report_.added += *known ? 0 : 1;
      if (!*known || Prevails(entry, **known)) status = index.Put({&entry, 1}, false);
    });
    RETURN_IF_ERROR(status);
    // Serials go on above all that were seen.
    RETURN_IF_ERROR(index.ReserveSerials(0, last_serial).status());
    return index.Sync();
  }

  // Of two writings of a page the later one, but for one that is damaged beside one that is whole.
  bool Prevails(const IndexEntry& entry, const IndexEntry& known) {
    const bool later = entry.page.serial > known.page.serial;
    const IndexEntry& last = later ? entry : known;
    const IndexEntry& first = later ? known : entry;
    const bool falls_back = !DataChecks(last) && DataChecks(first);
    return later != falls_back;
  }

  bool DataChecks(const IndexEntry& entry) {
    const Place place = FromPlaceId(entry.page.place);
    const auto& [name, fd] = devices_[place.device].files.at(place.file);
    return ReadSlot(name, fd.get(), place.slot, name.slot_bytes) &&
           Crc32c(std::span(buffer_.bytes()).subspan(kHeaderBytes, entry.page.bytes)) ==
               entry.data_crc;
  }

  const FsckOptions options_;
  const StoreDirectories directories_;
  std::vector<FsckDevice> devices_;
  AlignedBuffer buffer_;
  uint64_t slots_read_ = 0;
  FsckReport report_;
};

}  // namespace
}  // namespace terrace::nvme

namespace terrace {

Result<FsckReport> FsckNvmeStore(const FsckOptions& options, const Clock& clock) {
  ASSIGN_OR_RETURN(
      nvme::StoreDirectories directories,
      nvme::OpenDirectories(options.directories,
                            {.make = false, .adopt_empty = options.repair != FsckRepair::kNothing},
                            clock));
  return nvme::Fsck(options, std::move(directories)).Run();
}

}  // namespace terrace
