// Slot files on disk: made whole or not at all, opened past the page cache, checked where they
// complete. Blocking but for the checks; any thread.
#pragma once

#include <string>

#include "base/status.h"
#include "tiers/nvme/transfer.h"

namespace terrace::nvme {

// Preallocated, under its name, and durable as such. `exhausted` if the file system would be left
// with less than `kept_bytes`.
Result<UniqueFd> MakeSlotFile(const std::string& directory, const SlotFileName& name,
                              uint64_t kept_bytes);
Result<UniqueFd> OpenSlotFile(const std::string& directory, const SlotFileName& name);
Status RemoveSlotFile(const std::string& directory, const SlotFileName& name);

// Whether a read failed because its file has been cut off, which the device cannot help.
bool FileIsShort(const Transfer& transfer);

// A write: computes the checksums and fills in the header, and the bounce buffer where it has one.
void PrepareWrite(Transfer& transfer);
// A read that brought all bytes: says in the transfer whether they are those of its page, and has
// them in its memory if so.
void CheckRead(Transfer& transfer, bool check_data);

}  // namespace terrace::nvme
