// Engines that keep pools of their own, with a real daemon and a device that is memory of the host:
// what one stores another fetches, whatever dies between.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <kvclient/pool.hpp>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "tests/integration/integration_test.h"

namespace terrace {
namespace {

constexpr const char* kOneDevice =
    "[devices]\ndevice = \"host\"\n[[device]]\nuuid = \"host:0\"\ncapacity = \"64MiB\"\n"
    "slab = \"2MiB\"\n";
constexpr uint64_t kPageBytes = 64u << 10;
constexpr uint64_t kPoolBytes = 16u << 20;
constexpr uint32_t kBlocksPerPage = 2;
constexpr size_t kSegments = 4;
constexpr uint64_t kBlockBytes = kPageBytes / kBlocksPerPage / kSegments;
constexpr uint32_t kBlocks = 256;

using OpenedDevice = std::unique_ptr<kvc_device, bench::Closer<kvc_device_close>>;

Result<OpenedDevice> OpenDevice(kvc_client* client) {
  kvc_device* device = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(bench::ToStatus(kvc_device_open(client, nullptr, 0, &device, &error), error));
  return OpenedDevice(device);
}

// An engine's pool: `kSegments` tensors of `kBlocks` blocks, each behind the other, and the blocks
// of its pages anywhere in it.
class EnginePool {
 public:
  static Result<EnginePool> Add(kvc_device* device, uint32_t first_block) {
    EnginePool pool;
    pool.first_block_ = first_block;
    ASSIGN_OR_RETURN(pool.memory_, CreateMemfd("engine-pool", kPoolBytes));
    if (::fcntl(pool.memory_.get(), F_ADD_SEALS, F_SEAL_SHRINK) != 0) {
      return SystemError("F_ADD_SEALS", errno);
    }
    ASSIGN_OR_RETURN(pool.mapping_,
                     Mapping::Of(pool.memory_.get(), 0, kPoolBytes, Protection::kReadWrite));
    for (size_t s = 0; s < kSegments; ++s)
      pool.bases_.push_back(4096 + s * kBlocks * kBlockBytes);
    kvc_pool_memory memory{};
    memory.fd = pool.memory_.get();
    memory.bytes = kPoolBytes;
    auto added = kvc::Pool::Add(device, memory);
    if (!added) return ToOurs(added.error());
    pool.pool_ = std::move(*added);
    return pool;
  }
  // The page of a key as blocks, spread by each engine's own rule.
  std::vector<uint32_t> BlocksOf(size_t pages) const {
    std::vector<uint32_t> blocks;
    for (uint32_t i = 0; i < pages * kBlocksPerPage; ++i)
      blocks.push_back((first_block_ + i * 37) % kBlocks);
    return blocks;
  }
  std::span<uint8_t> At(size_t segment, uint32_t block) {
    return mapping_.bytes().subspan(bases_[segment] + block * kBlockBytes, kBlockBytes);
  }
  // As a page has them: [segment][block].
  std::vector<uint8_t> Page(const std::vector<uint32_t>& blocks, size_t page) {
    std::vector<uint8_t> bytes;
    for (size_t s = 0; s < kSegments; ++s) {
      for (uint32_t i = 0; i < kBlocksPerPage; ++i) {
        const std::span<uint8_t> piece = At(s, blocks[page * kBlocksPerPage + i]);
        bytes.insert(bytes.end(), piece.begin(), piece.end());
      }
    }
    return bytes;
  }
  void Fill(const std::vector<kvc_key>& keys) {
    const std::vector<uint32_t> blocks = BlocksOf(keys.size());
    std::vector<uint8_t> page(kPageBytes);
    for (size_t k = 0; k < keys.size(); ++k) {
      bench::FillContent(keys[k], page);
      for (size_t s = 0; s < kSegments; ++s) {
        for (uint32_t i = 0; i < kBlocksPerPage; ++i) {
          const uint8_t* from = page.data() + (s * kBlocksPerPage + i) * kBlockBytes;
          std::ranges::copy_n(from, kBlockBytes, At(s, blocks[k * kBlocksPerPage + i]).data());
        }
      }
    }
  }
  Status Check(const std::vector<kvc_key>& keys) {
    const std::vector<uint32_t> blocks = BlocksOf(keys.size());
    std::vector<uint8_t> wanted(kPageBytes);
    for (size_t k = 0; k < keys.size(); ++k) {
      bench::FillContent(keys[k], wanted);
      RETURN_UNLESS(Page(blocks, k) == wanted, "bytes of page " + std::to_string(k));
    }
    return {};
  }
  Status Store(const kvc_space* space, const std::vector<kvc_key>& keys) {
    return Move(space, keys, &kvc::Pool::Store);
  }
  Status Fetch(const kvc_space* space, const std::vector<kvc_key>& keys) {
    return Move(space, keys, &kvc::Pool::Fetch);
  }
  Status Remove() { return ToOurs(pool_.Remove(10'000)); }
  kvc_pool_layout Layout() const {
    kvc_pool_layout layout{};
    layout.bases = bases_.data();
    layout.segments = bases_.size();
    layout.block_stride = kBlockBytes;
    layout.block_bytes = kBlockBytes;
    layout.blocks_per_page = kBlocksPerPage;
    return layout;
  }

  static Status ToOurs(const kvc::Status& status) {
    if (status.ok()) return {};
    return {static_cast<Code>(status.code()), status.message()};
  }

 private:
  template <class Verb>
  Status Move(const kvc_space* space, const std::vector<kvc_key>& keys, Verb verb) {
    const std::vector<uint32_t> blocks = BlocksOf(keys.size());
    kvc_pool_pages pages{};
    pages.keys = keys.data();
    pages.count = keys.size();
    pages.blocks = blocks.data();
    const auto codes = (pool_.*verb)(space, Layout(), pages, 60'000);
    if (!codes) return ToOurs(codes.error());
    for (const kvc_code code : *codes)
      RETURN_UNLESS(code == KVC_OK, "code " + std::to_string(code));
    return {};
  }

  UniqueFd memory_;
  Mapping mapping_;
  std::vector<uint64_t> bases_;
  uint32_t first_block_ = 0;
  kvc::Pool pool_;
};

class PoolsTest : public IntegrationTest {
 protected:
  void SetUp() override {
    DaemonProcessOptions options;
    options.store = kOneDevice;
    StartDaemon(options);
    ASSERT_TRUE(Await([&] { return Device()["state"] == "serving"; }));
  }
  Json Device() {
    const Json devices = Report("status")["devices"];
    return devices.is_array() && !devices.empty() ? devices[0] : Json();
  }
  // Stores the keys' pages out of its pool, and waits to be told to end.
  bench::Child StartStorer(const std::vector<kvc_key>& keys) {
    return StartClient("storer", [keys](kvc_client* client, bench::Link& link) -> Status {
      ASSIGN_OR_RETURN(const OpenedDevice device, OpenDevice(client));
      ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kPageBytes));
      ASSIGN_OR_RETURN(EnginePool pool, EnginePool::Add(device.get(), 5));
      pool.Fill(keys);
      RETURN_IF_ERROR(pool.Store(space.get(), keys));
      RETURN_IF_ERROR(link.Send(bench::Go{}));
      return link.Receive<bench::Go>().status();
    });
  }
  bench::Child StartFetcher(const std::vector<kvc_key>& keys) {
    return StartClient("fetcher", [keys](kvc_client* client, bench::Link&) -> Status {
      ASSIGN_OR_RETURN(const OpenedDevice device, OpenDevice(client));
      ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kPageBytes));
      ASSIGN_OR_RETURN(EnginePool pool, EnginePool::Add(device.get(), 90));
      RETURN_IF_ERROR(pool.Fetch(space.get(), keys));
      return pool.Check(keys);
    });
  }
};

TEST_F(PoolsTest, WhatOneEngineStoresAnotherFetchesIntoBlocksOfItsOwn) {
  const std::vector<kvc_key> keys = Keys(0, 40);
  bench::Child storer = StartStorer(keys);
  Hear<bench::Go>(storer);
  EXPECT_EQ(Device()["pages"], keys.size()) << Device();
  bench::Child fetcher = StartFetcher(keys);
  ExpectDone(fetcher);
  Tell(storer);
  ExpectDone(storer);
}

TEST_F(PoolsTest, PoolsOutliveTheMover) {
  const std::vector<kvc_key> keys = Keys(0, 8);
  const std::vector<kvc_key> more = Keys(100, 8);
  bench::Child engine = StartClient("engine", [&](kvc_client* client, bench::Link& link) -> Status {
    ASSIGN_OR_RETURN(const OpenedDevice device, OpenDevice(client));
    ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kPageBytes));
    ASSIGN_OR_RETURN(EnginePool pool, EnginePool::Add(device.get(), 5));
    pool.Fill(keys);
    RETURN_IF_ERROR(pool.Store(space.get(), keys));
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    RETURN_IF_ERROR(link.Receive<bench::Go>().status());
    pool.Fill(more);
    RETURN_IF_ERROR(pool.Store(space.get(), more));
    RETURN_IF_ERROR(pool.Fetch(space.get(), keys));
    RETURN_IF_ERROR(pool.Check(keys));
    return pool.Remove();
  });
  Hear<bench::Go>(engine);
  ASSERT_EQ(::kill(Device()["mover"]["pid"], SIGKILL), 0);
  ASSERT_TRUE(Await([&] { return Device()["mover"]["crashes"] == 1; }));
  Tell(engine);
  bench::Child fetcher = StartFetcher(keys);
  ExpectDone(fetcher);
  ExpectDone(engine);
  bench::Child second = StartFetcher(more);
  ExpectDone(second);
  EXPECT_EQ(Device()["mover"]["starts"], 2);
}

TEST_F(PoolsTest, NothingIsFoundOfAnEngineThatIsKilledWhileItStores) {
  // The device has a slab, so that the store is with the mover at once.
  bench::Child first = StartStorer(Keys(0, 1));
  Hear<bench::Go>(first);
  const std::vector<kvc_key> keys = Keys(100, 8);
  bench::Child engine = StartClient("engine", [&](kvc_client* client, bench::Link& link) -> Status {
    ASSIGN_OR_RETURN(const OpenedDevice device, OpenDevice(client));
    ASSIGN_OR_RETURN(const bench::Space space, OpenPlainSpace(client, kPageBytes));
    ASSIGN_OR_RETURN(EnginePool pool, EnginePool::Add(device.get(), 5));
    pool.Fill(keys);
    RETURN_IF_ERROR(link.Send(bench::Go{}));
    RETURN_IF_ERROR(link.Receive<bench::Go>().status());
    return pool.Store(space.get(), keys);
  });
  Hear<bench::Go>(engine);
  const pid_t mover = Device()["mover"]["pid"];
  ASSERT_EQ(::kill(mover, SIGSTOP), 0);
  Tell(engine);
  EXPECT_TRUE(Await([&] { return Device()["filling_bytes"] > 0; })) << Device();
  ASSERT_EQ(::kill(engine.pid(), SIGKILL), 0);
  (void)engine.Wait();
  EXPECT_TRUE(Await([&] {
    const Json clients = Report("clients")["clients"];
    return std::ranges::none_of(clients, [](const Json& one) { return one["name"] == "engine"; });
  }));
  ASSERT_EQ(::kill(mover, SIGCONT), 0);
  EXPECT_TRUE(Await([&] { return Device()["filling_bytes"] == 0; })) << Device();
  EXPECT_EQ(Device()["pages"], 1) << Device();
  // The slots are free for others.
  bench::Child second = StartStorer(keys);
  Hear<bench::Go>(second);
  bench::Child fetcher = StartFetcher(keys);
  ExpectDone(fetcher);
  Tell(first);
  Tell(second);
  ExpectDone(first);
  ExpectDone(second);
}

TEST_F(PoolsTest, WhatCannotBeAPoolIsRefusedByName) {
  bench::Child engine = StartClient("engine", [](kvc_client* client, bench::Link&) -> Status {
    ASSIGN_OR_RETURN(const OpenedDevice device, OpenDevice(client));
    const auto refused = [&](int fd, uint64_t bytes, kvc_code code, const char* names) -> Status {
      kvc_pool_memory memory{};
      memory.fd = fd;
      memory.bytes = bytes;
      const auto pool = kvc::Pool::Add(device.get(), memory);
      RETURN_UNLESS(!pool, names);
      RETURN_UNLESS(pool.error().code() == code, pool.error().message());
      RETURN_UNLESS(pool.error().message().find(names) != std::string::npos,
                    pool.error().message());
      return {};
    };
    ASSIGN_OR_RETURN(const UniqueFd open, CreateMemfd("engine-pool", kPoolBytes));
    RETURN_IF_ERROR(refused(open.get(), kPoolBytes, KVC_INVALID_ARGUMENT, "sealed"));
    RETURN_IF_ERROR(refused(-1, kPoolBytes, KVC_INVALID_ARGUMENT, "fd"));
    RETURN_UNLESS(::fcntl(open.get(), F_ADD_SEALS, F_SEAL_SHRINK) == 0, "seal");
    RETURN_IF_ERROR(refused(open.get(), 2 * kPoolBytes, KVC_INVALID_ARGUMENT, "bytes"));
    RETURN_IF_ERROR(refused(open.get(), kPoolBytes - 1, KVC_INVALID_ARGUMENT, "bytes"));
    const UniqueFd file(::open("/dev/null", O_RDWR | O_CLOEXEC));
    RETURN_IF_ERROR(refused(file.get(), kPoolBytes, KVC_INVALID_ARGUMENT, "memfd"));
    kvc_pool_memory own{};
    own.data = client;
    own.bytes = kPoolBytes;
    const auto pool = kvc::Pool::Add(device.get(), own);
    RETURN_UNLESS(!pool && pool.error().code() == KVC_MISMATCH, "memory without a descriptor");
    return {};
  });
  ExpectDone(engine);
  EXPECT_EQ(Device()["mover"]["starts"], 1);
}

}  // namespace
}  // namespace terrace
