// DevicePeer: a scripted daemon with one device, of the kind "host": its slabs are memfds, and its
// pages and blocks are where the test puts them.
#pragma once

#include <sys/stat.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "libclient/directory_view.h"
#include "proto/manifest.h"
#include "proto/shared_memory.h"
#include "tests/libclient/scripted_peer.h"
#include "tiers/device/host_gpu.h"

namespace terrace::client {

inline constexpr uint32_t kDevice = 3;  // Its number.
inline constexpr uint64_t kGranule = 64 << 10;
inline constexpr uint32_t kPageBytes = 4096;
inline constexpr uint64_t kArenaBytes = 4 * kGranule;
inline constexpr uint32_t kHostArena = 1;
inline constexpr uint32_t kDeviceArena = 1u << 19;
inline constexpr uint64_t kBlockBytes = 2 * kGranule;
inline constexpr uint32_t kBlocks = 2;
inline constexpr uint64_t kImageBytes = kBlockBytes + 5000;  // The last block is no whole granule.

// Memory of the daemon's that the test writes and reads too.
struct PeerMemory {
  explicit PeerMemory(uint64_t bytes)
      : fd(*CreateMemfd("peer", bytes)),
        mapping(*Mapping::Of(fd.get(), 0, bytes, Protection::kReadWrite)) {}
  uint8_t* data() { return mapping.data(); }
  UniqueFd fd;
  Mapping mapping;
};

class DevicePeer {
 public:
  using Act = ScriptedPeer::Act;
  using Type = wire::Type;

  DevicePeer() : directory_(shm::DirectoryBytes(shm::kMinCapacity)) {
    auto& header = *reinterpret_cast<shm::DirectoryHeader*>(directory_.data());
    header.magic.store(shm::kDirectoryMagic);
    header.version.store(shm::kLayoutVersion);
    header.directory_id.store(1);
    header.capacity.store(shm::kMinCapacity);
    header.bytes.store(shm::DirectoryBytes(shm::kMinCapacity));
    header.spaces[1].epoch.store(1);
    // Blocks of the model: byte i of the image is its place, scrambled.
    for (uint64_t at = 0; at < kImageBytes; ++at)
      blocks_[at / kBlockBytes].data()[at % kBlockBytes] = ByteOf(at);
    peer_.SetCapabilities(wire::kCapabilities);
    peer_.SetScript([this](ScriptedPeer&, const Frame& frame) { return Answer(frame); });
  }

  static uint8_t ByteOf(uint64_t at) { return static_cast<uint8_t>(at * 31 + (at >> 8)); }
  ScriptedPeer& peer() { return peer_; }
  uint8_t* host_page(uint32_t slot) { return host_.data() + uint64_t{slot} * kPageBytes; }
  uint8_t* device_page(uint32_t slot) { return device_.data() + uint64_t{slot} * kPageBytes; }

  // Links a page: key `number` in the slot of that number, in host memory or on the device.
  void Link(const Digest& key, uint32_t slot, uint32_t place) {
    const uint64_t word = shm::SpaceWord(1, 1, place);
    shm::Entry& entry = EntryOf(key, place);
    for (int i = 0; i < 4; ++i)
      entry.key[i].store(key.Word(i));
    entry.space.store(word);
    entry.part_bytes.store(shm::PackPair(0, kPageBytes));
    entry.tokens_passed.store(
        shm::PackPair(shm::PackTokens(16, place == 0 ? shm::Tier::kHost : shm::Tier::kDevice), 0));
    entry.handle.store(shm::MakeHandle(place == 0 ? kHostArena : kDeviceArena, slot, 1));
  }
  void Unlink(const Digest& key, uint32_t place) { EntryOf(key, place).handle.store(0); }

  void WantBack(std::vector<uint32_t> arenas, std::vector<uint64_t> attachments,
                bool lost = false) {
    wire::UnmapWantedEvent event;
    event.set_device(kDevice);
    event.mutable_arenas()->Add(arenas.begin(), arenas.end());
    event.mutable_attachments()->Add(attachments.begin(), attachments.end());
    event.set_deadline_ms(60'000);
    event.set_lost(lost);
    peer_.Send(Type::kUnmapWantedEvent, 0, event);
  }

  std::vector<uint32_t> let_go() const {
    MutexLock lock(mu_);
    return let_go_;
  }
  std::vector<uint64_t> detached() const {
    MutexLock lock(mu_);
    return detached_;
  }

  std::set<uint64_t> pools() const {
    MutexLock lock(mu_);
    return pools_;
  }
  void ForgetPools() {
    MutexLock lock(mu_);
    pools_.clear();
  }
  // Of the last request.
  wire::PoolPages pool_pages() const {
    MutexLock lock(mu_);
    return pool_pages_;
  }

  // How it behaves; set before it matters.
  std::atomic<Code> second_code = Code::kNotFound;  // Of the pages of a request for a pool.
  std::atomic<bool> fewer_codes = false;            // In the answer to it.
  std::atomic<const char*> kind = "host";
  std::atomic<bool> slabs = true;
  std::atomic<bool> has_device = true;
  std::atomic<bool> knows_device = true;    // False: its mover is not ready.
  std::atomic<bool> resumes = false;        // Takes clients up again.
  std::atomic<int> let_go_hang_ups = 0;     // So many LetGo are read, and not answered.
  std::atomic<bool> other_content = false;  // Of the model, from now on.
  std::atomic<bool> other_place = false;    // Of a tensor.
  std::atomic<bool> without_block = false;  // The last one is left out.
  std::atomic<bool> asks_early = false;     // For the weights, before the attach is answered.
  std::map<uint32_t, std::string> handles;  // By arena, or block + 1: where there are no slabs.

 private:
  shm::Entry& EntryOf(const Digest& key, uint32_t place) {
    auto* entries = reinterpret_cast<shm::Entry*>(directory_.data() + shm::kEntriesOffset);
    return entries[shm::HomeLine(key.Word(0), shm::SpaceWord(1, 1, place), 0, shm::kMinCapacity)];
  }

  void FillArena(uint32_t id, bool writable, wire::Arena* arena, std::vector<int>* fds) {
    arena->set_id(id);
    arena->set_bytes(kArenaBytes);
    arena->set_page_bytes(kPageBytes);
    arena->set_writable(writable);
    if (id == kDeviceArena) arena->set_device(kDevice);
    if (id == kDeviceArena && !slabs) {
      arena->set_handle(handles.at(id));
    } else {
      fds->push_back(id == kDeviceArena ? device_.fd.get() : host_.fd.get());
    }
  }

  void AnswerHello(uint64_t request, const Frame& frame) {
    wire::Hello hello;
    TERRACE_CHECK(hello.ParseFromString(frame.body));
    const bool resumed = resumes && hello.resume_client() != 0;
    wire::HelloReply reply;
    reply.set_version(wire::kProtocolVersion);
    reply.set_client(resumed ? clients_ : ++clients_);
    reply.set_resumed(resumed);
    reply.set_life(7 + clients_);
    reply.set_writer(true);
    reply.set_max_pins(65536);
    reply.set_max_pinned_bytes(1 << 30);
    reply.set_max_grants(4096);
    reply.set_host_capacity_bytes(1 << 30);
    reply.set_capabilities(wire::kCapabilities);
    if (resumed) {
      peer_.Send(Type::kHelloReply, request, reply, {directory_.fd.get()});
      return;
    }
    if (hello.resume_client() != 0) return peer_.SendError(request, 5, "another life");
    const UniqueFd channel = ScriptedPeer::MakeChannel(shm::kChannelBytes);
    peer_.Send(Type::kHelloReply, request, reply, {channel.get(), directory_.fd.get()});
  }

  void AnswerDevices(uint64_t request) {
    wire::DevicesReply reply;
    if (has_device) {
      wire::Device* device = reply.add_devices();
      device->set_number(kDevice);
      device->set_uuid(knows_device ? HostGpuUuid(0).Text() : "");
      device->set_name("host memory");
      device->set_kind(kind.load());
      device->set_slabs(slabs);
      device->set_granularity(knows_device ? kGranule : 0);
      device->set_serving(true);
      device->set_capacity_bytes(64 << 20);
    }
    peer_.Send(Type::kDevicesReply, request, reply);
  }

  void AnswerGrant(uint64_t request, const Frame& frame) {
    wire::Grant grant;
    TERRACE_CHECK(grant.ParseFromString(frame.body));
    wire::GrantReply reply;
    std::vector<int> fds;
    const uint32_t arena = grant.device() == 0 ? kHostArena : kDeviceArena;
    for (size_t i = 0; i < grant.keys().size() / sizeof(Digest); ++i) {
      reply.add_codes(0);
      reply.add_grants(100 + i);
      reply.add_handles(shm::MakeHandle(arena, static_cast<uint32_t>(i), 0));
    }
    FillArena(arena, true, reply.add_arenas(), &fds);
    peer_.Send(Type::kGrantReply, request, reply, fds);
  }

  void AnswerArenas(uint64_t request, const Frame& frame) {
    wire::Arenas arenas;
    TERRACE_CHECK(arenas.ParseFromString(frame.body));
    wire::ArenasReply reply;
    std::vector<int> fds;
    for (const uint32_t id : arenas.ids())
      FillArena(id, arenas.writable(), reply.add_arenas(), &fds);
    peer_.Send(Type::kArenasReply, request, reply, fds);
  }

  // Two tensors: one in the first block, one over both.
  PeerMemory Manifest() const {
    const std::string names = "ab";
    const uint64_t strings = sizeof(manifest::ManifestHeader) + 2 * sizeof(manifest::TensorRecord);
    PeerMemory memory(strings + names.size());
    auto& header = *reinterpret_cast<manifest::ManifestHeader*>(memory.data());
    header.magic = manifest::kManifestMagic;
    header.version = manifest::kManifestVersion;
    header.tensors = 2;
    header.image_bytes = kImageBytes;
    header.block_bytes = kBlockBytes;
    header.blocks = kBlocks;
    header.strings_offset = strings;
    header.strings_bytes = names.size();
    auto* records = reinterpret_cast<manifest::TensorRecord*>(&header + 1);
    const uint64_t offsets[] = {other_place ? 512u : 256u, kBlockBytes - 1024};
    for (uint32_t i = 0; i < 2; ++i) {
      records[i].offset = offsets[i];
      records[i].bytes = 2048;
      records[i].rank = 1;
      records[i].shape[0] = 2048;
      records[i].name_offset = i;
      records[i].name_bytes = 1;
      records[i].layer = manifest::kNoLayer;
      std::strcpy(records[i].dtype, "U8");
    }
    std::memcpy(memory.data() + strings, names.data(), names.size());
    return memory;
  }

  void AnswerAttach(uint64_t request, const Frame& frame) {
    wire::Attach attach;
    TERRACE_CHECK(attach.ParseFromString(frame.body));
    const PeerMemory manifest = Manifest();
    wire::AttachReply reply;
    reply.set_attachment(++attachments_);
    reply.set_version("v1");
    reply.set_digest(std::string(32, other_content ? 'o' : 'd'));
    reply.set_manifest_bytes(manifest.mapping.bytes().size());
    reply.set_device(attach.device());
    if (asks_early) WantBack({}, {attachments_});
    peer_.Send(Type::kAttachReply, request, reply, {manifest.fd.get()});
  }

  void AnswerBlocks(uint64_t request) {
    wire::AttachBlocksReply reply;
    std::vector<int> fds;
    for (uint32_t block = 0; block < (without_block ? kBlocks - 1 : kBlocks); ++block) {
      reply.add_blocks(block);
      if (slabs) {
        fds.push_back(blocks_[block].fd.get());
      } else {
        reply.add_handles(handles.at(block + 1));
      }
    }
    reply.set_last(true);
    peer_.Send(Type::kAttachBlocksReply, request, reply, fds);
  }

  void AnswerPoolAdd(uint64_t request, const Frame& frame) {
    wire::PoolAdd add;
    TERRACE_CHECK(add.ParseFromString(frame.body));
    struct stat file {};
    const bool has_fd = frame.fds.size() == 1 && ::fstat(frame.fds[0].get(), &file) == 0;
    if (add.device() != kDevice || !has_fd || static_cast<uint64_t>(file.st_size) != add.bytes()) {
      return peer_.SendError(request, static_cast<uint32_t>(Code::kInvalidArgument), "the pool");
    }
    wire::PoolAddReply reply;
    reply.set_pool(++last_pool_);
    {
      MutexLock lock(mu_);
      pools_.insert(last_pool_);
    }
    peer_.Send(Type::kPoolAddReply, request, reply);
  }

  // The second page of a request is not to be had.
  template <class Reply>
  void AnswerPoolPages(Type type, uint64_t request, const wire::PoolPages& pages) {
    {
      MutexLock lock(mu_);
      pool_pages_ = pages;
      if (!pools_.contains(pages.pool())) {
        return peer_.SendError(request, static_cast<uint32_t>(Code::kNotFound), "no such pool");
      }
    }
    Reply reply;
    for (size_t i = 0; i < pages.keys().size() / sizeof(Digest) - (fewer_codes ? 1 : 0); ++i)
      reply.add_codes(static_cast<uint32_t>(i == 1 ? second_code.load() : Code::kOk));
    peer_.Send(type, request, reply);
  }

  Act Answer(const Frame& frame) {
    const uint64_t request = frame.header.request;
    switch (frame.header.type) {
      case Type::kHello:
        AnswerHello(request, frame);
        break;
      case Type::kDevices:
        AnswerDevices(request);
        break;
      case Type::kOpenSpace:
        peer_.AnswerOpenSpace(frame);
        break;
      case Type::kGrant:
        AnswerGrant(request, frame);
        break;
      case Type::kCommit: {
        wire::Commit commit;
        TERRACE_CHECK(commit.ParseFromString(frame.body));
        wire::CommitReply reply;
        for (int i = 0; i < commit.grants_size(); ++i)
          reply.add_codes(0);
        peer_.Send(Type::kCommitReply, request, reply);
        break;
      }
      case Type::kArenas:
        AnswerArenas(request, frame);
        break;
      case Type::kAttach:
        AnswerAttach(request, frame);
        break;
      case Type::kAttachBlocks:
        AnswerBlocks(request);
        break;
      case Type::kLetGo: {
        wire::LetGo let_go;
        TERRACE_CHECK(let_go.ParseFromString(frame.body));
        {
          MutexLock lock(mu_);
          let_go_.insert(let_go_.end(), let_go.arenas().begin(), let_go.arenas().end());
        }
        if (let_go_hang_ups > 0) {
          --let_go_hang_ups;
          return Act::kHangUp;
        }
        peer_.Send(Type::kLetGoReply, request, wire::LetGoReply());
        break;
      }
      case Type::kPoolAdd:
        AnswerPoolAdd(request, frame);
        break;
      case Type::kPoolRemove: {
        wire::PoolRemove remove;
        TERRACE_CHECK(remove.ParseFromString(frame.body));
        {
          MutexLock lock(mu_);
          pools_.erase(remove.pool());
        }
        peer_.Send(Type::kPoolRemoveReply, request, wire::PoolRemoveReply());
        break;
      }
      case Type::kPoolStore: {
        wire::PoolStore store;
        TERRACE_CHECK(store.ParseFromString(frame.body));
        AnswerPoolPages<wire::PoolStoreReply>(Type::kPoolStoreReply, request, store.pages());
        break;
      }
      case Type::kPoolFetch: {
        wire::PoolFetch fetch;
        TERRACE_CHECK(fetch.ParseFromString(frame.body));
        AnswerPoolPages<wire::PoolFetchReply>(Type::kPoolFetchReply, request, fetch.pages());
        break;
      }
      case Type::kDetach: {
        wire::Detach detach;
        TERRACE_CHECK(detach.ParseFromString(frame.body));
        MutexLock lock(mu_);
        detached_.push_back(detach.attachment());
        return Act::kDefault;
      }
      default:
        return Act::kDefault;
    }
    return Act::kHandled;
  }

  PeerMemory directory_;
  PeerMemory host_{kArenaBytes};
  PeerMemory device_{kArenaBytes};
  std::array<PeerMemory, kBlocks> blocks_{PeerMemory(kBlockBytes), PeerMemory(kGranule)};
  uint64_t clients_ = 0;  // The peer's thread's, as are the next.
  uint64_t attachments_ = 0;
  uint64_t last_pool_ = 0;
  mutable Mutex mu_;
  std::vector<uint32_t> let_go_ GUARDED_BY(mu_);
  std::vector<uint64_t> detached_ GUARDED_BY(mu_);
  std::set<uint64_t> pools_ GUARDED_BY(mu_);
  wire::PoolPages pool_pages_ GUARDED_BY(mu_);
  ScriptedPeer peer_;  // Ends before what its script uses.
};

}  // namespace terrace::client
