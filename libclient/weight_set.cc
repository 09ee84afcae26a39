#include "libclient/weight_set.h"

#include <algorithm>
#include <string>
#include <utility>

namespace terrace::client {

Result<std::unique_ptr<WeightSet>> WeightSet::Attach(std::shared_ptr<Client> client,
                                                     const AttachSpec& spec, Deadline deadline) {
  ASSIGN_OR_RETURN(const Contact now, client->contact());
  messages::Attach request{.name = spec.model,
                           .version = spec.version,
                           .load = spec.load,
                           .deadline_ms = static_cast<uint32_t>(deadline.left_ms()),
                           .early = spec.early && spec.load};
  std::unique_ptr<WeightSet> set(new WeightSet(std::move(client), spec.model));
  set->device_ = spec.device;
  ASSIGN_OR_RETURN(const auto answer, set->AskFor(now, request, deadline));
  RETURN_IF_ERROR(set->ReadManifest(answer));
  std::vector<uint32_t> wanted = set->WantedBlocks(spec);
  if (wanted.empty() && spec.layer_count != 0) {
    return Status(Code::kNotFound, "model '" + spec.model + "' has no tensor in the chosen layers");
  }
  set->chosen_.assign(set->view_.header().blocks, wanted.empty());
  for (const uint32_t block : wanted)
    set->chosen_[block] = true;
  const size_t expected = wanted.empty() ? set->chosen_.size() : wanted.size();
  ASSIGN_OR_RETURN(const size_t mapped,
                   set->MapBlocks(*now.connection, std::move(wanted), deadline));
  if (mapped != expected && !set->arriving()) {
    return Status(Code::kDataLoss, "the daemon left out blocks of the model");
  }
  if (set->device_ != nullptr) set->device_->Know(set->life_epoch_, set->attachment_, set.get());
  return set;
}

Result<Answer<messages::AttachReply>> WeightSet::AskFor(const Contact& now,
                                                        const messages::Attach& request,
                                                        Deadline deadline) {
  messages::Attach asked = request;
  if (device_ != nullptr) {
    RETURN_IF_ERROR(now.CheckDoes(wire::kDeviceCapability, "have weights on devices"));
    ASSIGN_OR_RETURN(asked.device, device_->CheckedNumberIn(now.life->epoch()));
  }
  ASSIGN_OR_RETURN(auto answer, now.connection->Call(asked, deadline));
  life_epoch_ = now.life->epoch();
  attachment_ = answer.reply.attachment;  // From here on the destructor detaches it.
  if (answer.reply.device != asked.device) {
    return Status(Code::kDataLoss, "the daemon attached the model in another place");
  }
  return answer;
}

Status WeightSet::Wait(std::span<const uint32_t> blocks, Deadline deadline) {
  for (const uint32_t block : blocks) {
    if (block < chosen_.size() && chosen_[block]) continue;
    return {Code::kInvalidArgument, "block " + std::to_string(block) + " was not attached"};
  }
  {
    MutexLock lock(mu_);
    if (!failed_.ok()) return failed_;
  }
  std::vector<uint32_t> missing = Missing(blocks);
  if (missing.empty() && (!blocks.empty() || !arriving())) return {};
  ASSIGN_OR_RETURN(const Contact now, client_->contact());
  if (now.life->epoch() != life_epoch_) {
    return {Code::kStale, "the daemon that was loading these weights is gone; attach them again"};
  }
  messages::AttachWait request{.attachment = attachment_,
                               .blocks = {},
                               .deadline_ms = static_cast<uint32_t>(deadline.left_ms())};
  if (!blocks.empty()) request.blocks = missing;
  const auto reply = now.connection->Call(request, deadline);
  if (!reply) return NoteFailure(reply.error());
  const auto& answer = *reply;
  if (answer.reply.digest.size() != Digest().bytes.size()) {
    return {Code::kDataLoss, "the daemon sent no digest"};
  }
  const size_t expected = missing.size();
  if (expected > 0) {
    ASSIGN_OR_RETURN(const size_t sent, MapBlocks(*now.connection, std::move(missing), deadline));
    if (sent != expected) return {Code::kDataLoss, "the daemon left out blocks of the model"};
  }
  MutexLock lock(mu_);
  // While they arrive it may not be known yet, though another thread may have learnt it meanwhile.
  if (!answer.reply.arriving) digest_ = DigestOf(answer.reply.digest);
  if (!answer.reply.arriving && Missing({}).empty()) {
    arriving_.store(false, std::memory_order_release);
  }
  return {};
}

Status WeightSet::NoteFailure(Status status) {
  switch (status.code()) {
    case Code::kInvalidArgument:
    case Code::kDeadlineExceeded:
    case Code::kUnavailable:
    case Code::kStale:
    case Code::kExhausted:
    case Code::kPermissionDenied:
      return status;
    default:
      break;
  }
  MutexLock lock(mu_);
  failed_ = status;
  return status;
}

Digest WeightSet::digest() const {
  MutexLock lock(mu_);
  return digest_;
}

std::vector<uint32_t> WeightSet::Missing(std::span<const uint32_t> blocks) const {
  std::vector<uint32_t> missing;
  if (blocks.empty()) {
    for (uint32_t block = 0; block < chosen_.size(); ++block) {
      if (chosen_[block] && !IsMapped(block)) missing.push_back(block);
    }
  }
  for (const uint32_t block : blocks) {
    if (!IsMapped(block)) missing.push_back(block);
  }
  return missing;
}

Status WeightSet::ReadManifest(const Answer<messages::AttachReply>& answer) {
  if (answer.fds.size() != 1 || answer.reply.digest.size() != Digest().bytes.size()) {
    return {Code::kDataLoss, "the daemon sent no manifest"};
  }
  version_ = answer.reply.version;
  arriving_.store(answer.reply.arriving, std::memory_order_relaxed);
  {
    MutexLock lock(mu_);
    digest_ = DigestOf(answer.reply.digest);
  }
  ASSIGN_OR_RETURN(manifest_, MappedRange::Of(answer.fds[0].get(), answer.reply.manifest_bytes,
                                              Protection::kRead));
  ASSIGN_OR_RETURN(view_, ManifestView::Of(manifest_.bytes()));
  if (device_ != nullptr) {
    RETURN_IF_ERROR(ReserveOnDevice());
  } else {
    ASSIGN_OR_RETURN(image_,
                     MappedRange::Reserve(std::max<uint64_t>(view_.header().image_bytes, 1)));
  }
  mapped_ = std::make_unique<std::atomic<bool>[]>(view_.header().blocks);
  return {};
}

std::vector<uint32_t> WeightSet::WantedBlocks(const AttachSpec& spec) const {
  if (spec.layer_count == 0) return {};
  std::vector<bool> wanted(view_.header().blocks);
  for (const manifest::TensorRecord& record : view_.records()) {
    const bool chosen = record.layer == manifest::kNoLayer
                            ? spec.with_rest
                            : record.layer >= spec.first_layer &&
                                  record.layer - spec.first_layer < spec.layer_count;
    if (!chosen) continue;
    const auto [first, end] = view_.BlocksOf(record);
    std::fill(wanted.begin() + first, wanted.begin() + end, true);
  }
  std::vector<uint32_t> blocks;
  for (uint32_t block = 0; block < wanted.size(); ++block) {
    if (wanted[block]) blocks.push_back(block);
  }
  return blocks;
}

Result<size_t> WeightSet::MapBlocks(Connection& connection, std::vector<uint32_t> wanted,
                                    Deadline deadline) {
  if (view_.header().blocks == 0) return size_t{0};
  const messages::AttachBlocks request{.attachment = attachment_, .blocks = std::move(wanted)};
  std::string body;
  messages::Encode(request, &body);
  ASSIGN_OR_RETURN(const std::vector<Frame> frames,
                   connection.Exchange(wire::Type::kAttachBlocks, body, {}, deadline, {}));
  std::vector<bool> sent(chosen_.size());
  size_t count = 0;
  for (const Frame& frame : frames) {
    messages::AttachBlocksReply reply;
    const bool handles = device_ != nullptr && !device_->memory().slabs();
    if (!messages::Decode(frame.body, &reply) ||
        reply.blocks.size() != (handles ? reply.handles.size() : frame.fds.size())) {
      return Status(Code::kDataLoss,
                    "the daemon sent another number of descriptors than of blocks");
    }
    for (size_t i = 0; i < reply.blocks.size(); ++i) {
      const uint32_t block = reply.blocks[i];
      if (block >= chosen_.size() || !chosen_[block] || sent[block]) {
        return Status(Code::kDataLoss, "the daemon sent a block that was not asked for");
      }
      sent[block] = true;
      RETURN_IF_ERROR(handles ? MapBlock(block, -1, reply.handles[i])
                              : MapBlock(block, frame.fds[i].get(), {}));
      ++count;
    }
  }
  return count;
}

Status WeightSet::MapBlock(uint32_t block, int fd, const std::string& handle) {
  MutexLock lock(mu_);
  if (IsMapped(block)) return {};
  const uint64_t bytes = view_.BlockBytes(block);
  if (device_ == nullptr) {
    RETURN_IF_ERROR(image_.MapAt(block * view_.header().block_bytes, fd, bytes, Protection::kRead));
  } else {
    RETURN_IF_ERROR(MapOnDevice(
        block, {.fd = fd, .handle = handle, .bytes = device_->memory().Rounded(bytes)}));
  }
  mapped_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  mapped_[block].store(true, std::memory_order_release);
  return {};
}

const uint8_t* WeightSet::DataOf(const manifest::TensorRecord& record) const {
  const auto [first, end] = view_.BlocksOf(record);
  for (uint32_t block = first; block < end; ++block) {
    if (!IsMapped(block)) return nullptr;
  }
  if (device_ == nullptr || range_ != nullptr) return base() + record.offset;
  // Blocks that lie anywhere: a tensor over several of them has no address.
  if (end - first != 1) return nullptr;
  MutexLock lock(mu_);
  return pieces_[first].base + (record.offset - first * view_.header().block_bytes);
}

// ---- On a device

Status WeightSet::ReserveOnDevice() {
  const manifest::ManifestHeader& header = view_.header();
  MutexLock lock(mu_);
  pieces_.resize(header.blocks);
  DeviceMemory& memory = device_->memory();
  if (!memory.slabs()) return {};
  if (memory.Rounded(header.block_bytes) != header.block_bytes) {
    return {Code::kMismatch, "the model's blocks of " + std::to_string(header.block_bytes) +
                                 " bytes are not whole granules of the device"};
  }
  ASSIGN_OR_RETURN(range_, memory.Reserve(header.image_bytes));
  return {};
}

Status WeightSet::MapOnDevice(uint32_t block, const SharedMemory& memory) {
  if (range_ == nullptr) {
    ASSIGN_OR_RETURN(pieces_[block], device_->memory().Map(memory, GpuAccess::kRead));
    return {};
  }
  return range_->MapAt(block * view_.header().block_bytes, memory, GpuAccess::kRead);
}

void WeightSet::UnmapBlocks() {
  MutexLock lock(mu_);
  for (uint32_t block = 0; block < chosen_.size(); ++block) {
    if (!mapped_[block].exchange(false, std::memory_order_acq_rel)) continue;
    if (range_ != nullptr) range_->UnmapAt(block * view_.header().block_bytes);
    pieces_[block] = {};
  }
  mapped_bytes_.store(0, std::memory_order_relaxed);
}

void WeightSet::Detach(uint64_t attachment, Deadline deadline) {
  const Result<Contact> now = client_->contact();
  if (!now || now->life->epoch() != life_epoch_) return;
  // If it fails, the daemon holds the model for this client until it ends.
  static_cast<void>(
      now->connection->Call(messages::Detach{.attachment = attachment}, deadline).status());
}

Status WeightSet::Unmap(Deadline deadline) {
  if (device_ == nullptr) return {Code::kInvalidArgument, "weights: they are not on a device"};
  if (attachment_ == 0) return {};
  device_->Forget(this);
  UnmapBlocks();
  Detach(std::exchange(attachment_, 0), deadline);
  return {};
}

Status WeightSet::Remap(Deadline deadline) {
  if (device_ == nullptr) return {Code::kInvalidArgument, "weights: they are not on a device"};
  if (attachment_ != 0) return {Code::kAlreadyExists, "weights: they are mapped"};
  if (range_ == nullptr) {
    return {Code::kMismatch, "the device has no slabs, so addresses do not stay: attach anew"};
  }
  ASSIGN_OR_RETURN(const Contact now, client_->contact());
  const auto map = [&]() -> Status {
    const messages::Attach request{.name = model_,
                                   .version = version_,
                                   .load = true,
                                   .deadline_ms = static_cast<uint32_t>(deadline.left_ms())};
    ASSIGN_OR_RETURN(const auto answer, AskFor(now, request, deadline));
    RETURN_IF_ERROR(CheckSame(answer));
    std::vector<uint32_t> wanted = Missing({});
    const size_t expected = wanted.size();
    if (expected == chosen_.size()) wanted.clear();
    ASSIGN_OR_RETURN(const size_t mapped, MapBlocks(*now.connection, std::move(wanted), deadline));
    if (mapped != expected) return {Code::kDataLoss, "the daemon left out blocks of the model"};
    return {};
  };
  Status status = map();
  if (!status.ok()) {
    UnmapBlocks();
    if (attachment_ != 0) Detach(std::exchange(attachment_, 0), deadline);
    return status;
  }
  lost_.store(false, std::memory_order_release);
  device_->Know(life_epoch_, attachment_, this);
  return {};
}

Status WeightSet::CheckSame(const Answer<messages::AttachReply>& answer) const {
  if (answer.fds.size() != 1 || answer.reply.digest.size() != Digest().bytes.size()) {
    return {Code::kDataLoss, "the daemon sent no manifest"};
  }
  if (DigestOf(answer.reply.digest) != digest()) {
    return {Code::kMismatch, "the model's content is another one by now: its digest differs"};
  }
  ASSIGN_OR_RETURN(
      const MappedRange manifest,
      MappedRange::Of(answer.fds[0].get(), answer.reply.manifest_bytes, Protection::kRead));
  if (!std::ranges::equal(manifest.bytes(), manifest_.bytes())) {
    return {Code::kMismatch, "the model's tensors lie elsewhere by now: its manifest differs"};
  }
  return {};
}

WeightSet::~WeightSet() {
  if (device_ != nullptr) {
    device_->Forget(this);
    if (mapped_ != nullptr) UnmapBlocks();
  }
  if (attachment_ == 0) return;
  image_ = MappedRange();  // Unmapped before the daemon is told so.
  Detach(attachment_, Deadline::In(client_->options().timeout_ms));
}

}  // namespace terrace::client
