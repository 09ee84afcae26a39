// What tiers/device/gpu.h promises, for every implementation: memory, addresses and access.
#include "tests/device/conformance.h"

#include <gmock/gmock.h>

#include <set>

namespace terrace {
namespace {

using testing::HasSubstr;

TEST_P(GpuConformance, DevicesAreToldApartByUuid) {
  std::set<GpuUuid> seen;
  for (const GpuFacts& facts : gpus_->devices()) {
    EXPECT_TRUE(seen.insert(facts.uuid).second);
    EXPECT_EQ(ParseGpuUuid(facts.uuid.Text()), facts.uuid);
    EXPECT_FALSE(facts.name.empty());
    EXPECT_FALSE(facts.driver.empty());
    EXPECT_GT(facts.total_bytes, 0u);
    EXPECT_GT(facts.registration_bytes, 0u);
    EXPECT_TRUE(facts.slabs || facts.allocations);
  }
  GpuUuid nobody;
  nobody.bytes.fill(0x5a);
  const auto gpu = gpus_->Open(nobody);
  ASSERT_FALSE(gpu);
  EXPECT_EQ(gpu.error().code(), Code::kNotFound);
  EXPECT_THAT(gpu.error().message(), HasSubstr(nobody.Text()));
}

TEST_P(GpuConformance, BytesComeBackAsTheyWereWritten) {
  const MappedSlab slab = NewSlab(2 * granule());
  const std::vector<uint8_t> bytes = RandomBytes(slab.bytes, 1);
  ASSERT_OK(bench_->Write(slab.at, bytes));
  EXPECT_EQ(Read(slab.at, slab.bytes), bytes);
  EXPECT_EQ(slab.at % granule(), 0u);
}

TEST_P(GpuConformance, OneSlabIsOneMemoryWhereverItIsMapped) {
  const MappedSlab slab = NewSlab(granule());
  const auto second = gpu_->ReserveRange(granule());
  ASSERT_OK(second.status());
  ASSERT_OK(gpu_->MapSlab(*second, slab.slab));
  ASSERT_OK(gpu_->SetAccess(*second, granule(), GpuAccess::kRead));
  const std::vector<uint8_t> bytes = RandomBytes(granule(), 2);
  ASSERT_OK(bench_->Write(slab.at, bytes));
  EXPECT_EQ(Read(*second, granule()), bytes);
}

TEST_P(GpuConformance, AReservationOutlivesWhatIsMappedInIt) {
  const auto range = gpu_->ReserveRange(3 * granule());
  ASSERT_OK(range.status());
  const GpuAddress at = *range + granule();
  const GpuSlab first = MakeSlab(granule());
  const GpuSlab second = MakeSlab(granule());
  const std::vector<uint8_t> ones = RandomBytes(granule(), 3);
  const std::vector<uint8_t> twos = RandomBytes(granule(), 4);

  ASSERT_OK(gpu_->MapSlab(at, first));
  ASSERT_OK(gpu_->SetAccess(at, granule(), GpuAccess::kReadWrite));
  ASSERT_OK(bench_->Write(at, ones));
  ASSERT_OK(gpu_->UnmapSlab(at));
  // Nothing is there, and nobody else gets the addresses.
  EXPECT_EQ(bench_->Read(at, 16).status().code(), Code::kInvalidArgument);
  for (int i = 0; i < 8; ++i) {
    const auto other = gpu_->ReserveRange(3 * granule());
    ASSERT_OK(other.status());
    EXPECT_TRUE(*other + 3 * granule() <= *range || *range + 3 * granule() <= *other);
    EXPECT_OK(gpu_->FreeRange(*other));
  }
  ASSERT_OK(gpu_->MapSlab(at, second));
  ASSERT_OK(gpu_->SetAccess(at, granule(), GpuAccess::kReadWrite));
  ASSERT_OK(bench_->Write(at, twos));
  ASSERT_OK(gpu_->UnmapSlab(at));
  // Back at the address that it had, with what it had.
  ASSERT_OK(gpu_->MapSlab(at, first));
  ASSERT_OK(gpu_->SetAccess(at, granule(), GpuAccess::kRead));
  EXPECT_EQ(Read(at, granule()), ones);
}

TEST_P(GpuConformance, AccessIsWhatWasSet) {
  const auto range = gpu_->ReserveRange(2 * granule());
  ASSERT_OK(range.status());
  const GpuSlab slab = MakeSlab(granule());
  ASSERT_OK(gpu_->MapSlab(*range, slab));
  // None as long as nobody said so.
  EXPECT_EQ(bench_->Read(*range, 16).status().code(), Code::kInvalidArgument);
  ASSERT_OK(gpu_->SetAccess(*range, granule(), GpuAccess::kReadWrite));
  const std::vector<uint8_t> bytes = RandomBytes(4096, 5);
  ASSERT_OK(bench_->Write(*range, bytes));
  ASSERT_OK(gpu_->SetAccess(*range, granule(), GpuAccess::kRead));
  EXPECT_EQ(bench_->Write(*range, RandomBytes(16, 6)).code(), Code::kInvalidArgument);
  EXPECT_EQ(gpu_->Clear(bench_->stream(), *range, 16).code(), Code::kInvalidArgument);
  EXPECT_EQ(Read(*range, 4096), bytes);
  ASSERT_OK(gpu_->SetAccess(*range, granule(), GpuAccess::kNone));
  EXPECT_EQ(bench_->Read(*range, 16).status().code(), Code::kInvalidArgument);

  // Over two mappings at once.
  const GpuSlab next = MakeSlab(granule());
  ASSERT_OK(gpu_->MapSlab(*range + granule(), next));
  ASSERT_OK(gpu_->SetAccess(*range, 2 * granule(), GpuAccess::kReadWrite));
  const std::vector<uint8_t> across = RandomBytes(8192, 7);
  ASSERT_OK(bench_->Write(*range + granule() - 4096, across));
  EXPECT_EQ(Read(*range + granule() - 4096, 8192), across);
}

TEST_P(GpuConformance, WhatCannotBeIsRefusedAndNothingWasDone) {
  const auto refused = [](const Status& status) {
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << status.ToString();
  };
  refused(gpu_->CreateSlab(0).status());
  refused(gpu_->CreateSlab(granule() + 4096).status());
  refused(gpu_->ReserveRange(granule() - 1).status());
  refused(gpu_->ImportSlab(-1, granule()).status());
  refused(gpu_->ReleaseSlab(GpuSlab{1'000'000}));
  refused(gpu_->ExportSlab(GpuSlab{1'000'000}).status());

  const auto range = gpu_->ReserveRange(3 * granule());
  ASSERT_OK(range.status());
  const GpuSlab slab = MakeSlab(2 * granule());
  refused(gpu_->MapSlab(*range, GpuSlab{1'000'000}));
  refused(gpu_->MapSlab(*range + 4096, slab));
  refused(gpu_->MapSlab(*range + 2 * granule(), slab));  // Beyond the range's end.
  refused(gpu_->MapSlab(*range - granule(), slab));
  refused(gpu_->UnmapSlab(*range));
  refused(gpu_->SetAccess(*range, 2 * granule(), GpuAccess::kRead));
  refused(gpu_->FreeRange(*range + granule()));
  ASSERT_OK(gpu_->MapSlab(*range, slab));
  refused(gpu_->MapSlab(*range + granule(), slab));
  refused(gpu_->UnmapSlab(*range + granule()));
  refused(gpu_->SetAccess(*range, granule(), GpuAccess::kRead));  // Half a mapping.
  refused(gpu_->SetAccess(*range, 3 * granule(), GpuAccess::kRead));
  refused(gpu_->FreeRange(*range));

  // It works all the same.
  ASSERT_OK(gpu_->SetAccess(*range, 2 * granule(), GpuAccess::kReadWrite));
  EXPECT_OK(bench_->Write(*range, RandomBytes(100, 8)));
  ASSERT_OK(gpu_->UnmapSlab(*range));
  refused(gpu_->UnmapSlab(*range));
  ASSERT_OK(gpu_->FreeRange(*range));
  refused(gpu_->FreeRange(*range));
  ASSERT_OK(gpu_->ReleaseSlab(slab));
  refused(gpu_->ReleaseSlab(slab));
}

TEST_P(GpuConformance, MemoryIsFreeWhenItIsNeitherNamedNorMapped) {
  const uint64_t bytes = 16 * granule();
  const auto free_now = [&] { return gpu_->Memory()->free_bytes; };
  const uint64_t before = free_now();
  const MappedSlab slab = NewSlab(bytes);
  const std::vector<uint8_t> content = RandomBytes(4096, 9);
  ASSERT_OK(bench_->Write(slab.at, content));
  EXPECT_LE(free_now() + bytes, before);
  EXPECT_EQ(gpu_->Memory()->total_bytes, gpu_->facts().total_bytes);
  ASSERT_OK(gpu_->ReleaseSlab(slab.slab));
  EXPECT_LE(free_now() + bytes, before);
  EXPECT_EQ(Read(slab.at, 4096), content);
  ASSERT_OK(gpu_->UnmapSlab(slab.at));
  EXPECT_GE(free_now() + granule(), before);
}

TEST_P(GpuConformance, WhatIsTooMuchIsExhaustedAndHarmsNothing) {
  const uint64_t all = gpu_->facts().total_bytes;
  const uint64_t too_much = (all / granule() + 1) * granule();
  const MappedSlab slab = NewSlab(granule());
  const std::vector<uint8_t> content = RandomBytes(granule(), 10);
  ASSERT_OK(bench_->Write(slab.at, content));
  EXPECT_EQ(gpu_->CreateSlab(too_much).status().code(), Code::kExhausted);
  EXPECT_EQ(gpu_->Allocate(too_much).status().code(), Code::kExhausted);
  EXPECT_EQ(Read(slab.at, granule()), content);
  EXPECT_OK(gpu_->CreateSlab(granule()).status());
}

TEST_P(GpuConformance, WhatIsLeftGoesWithItsGpu) {
  const uint64_t before = gpu_->Memory()->free_bytes;
  const HostPages pages(8192);
  {
    auto other = gpus_->Open(gpu_->facts().uuid);
    ASSERT_OK(other.status());
    ASSERT_OK(MapNewSlab(**other, 8 * granule()).status());
    ASSERT_OK((*other)->CreateSlab(granule()).status());
    ASSERT_OK((*other)->Allocate(granule()).status());
    ASSERT_OK((*other)->RegisterHost(pages.bytes(), GpuAccess::kReadWrite).status());
    const auto stream = (*other)->CreateStream();
    ASSERT_OK(stream.status());
    ASSERT_OK((*other)->CreateEvent().status());
    EXPECT_LE(gpu_->Memory()->free_bytes + 10 * granule(), before);
  }
  EXPECT_GE(gpu_->Memory()->free_bytes + granule(), before);
  EXPECT_OK(gpu_->RegisterHost(pages.bytes(), GpuAccess::kReadWrite).status());
}

TEST_P(GpuConformance, AnImportIsTheSameMemory) {
  const MappedSlab slab = NewSlab(granule());
  auto fd = gpu_->ExportSlab(slab.slab);
  ASSERT_OK(fd.status());
  EXPECT_NE(::fcntl(fd->get(), F_GETFD) & FD_CLOEXEC, 0);
  auto other = gpus_->Open(gpu_->facts().uuid);
  ASSERT_OK(other.status());
  const auto imported = (*other)->ImportSlab(fd->get(), granule());
  ASSERT_OK(imported.status());
  fd->Reset();
  const auto at = (*other)->ReserveRange(granule());
  ASSERT_OK(at.status());
  ASSERT_OK((*other)->MapSlab(*at, *imported));
  ASSERT_OK((*other)->SetAccess(*at, granule(), GpuAccess::kRead));
  const std::vector<uint8_t> bytes = RandomBytes(granule(), 11);
  ASSERT_OK(bench_->Write(slab.at, bytes));
  GpuBench bench(**other);
  const auto got = bench.Read(*at, granule());
  ASSERT_OK(got.status());
  EXPECT_EQ(*got, bytes);
}

TEST_P(GpuConformance, AnImportOfMoreThanThereIsIsRefused) {
  const GpuSlab slab = MakeSlab(2 * granule());
  const auto fd = gpu_->ExportSlab(slab);
  ASSERT_OK(fd.status());
  const auto range = gpu_->ReserveRange(4 * granule());
  ASSERT_OK(range.status());
  const auto imported = gpu_->ImportSlab(fd->get(), 3 * granule());
  const Status status = imported ? gpu_->MapSlab(*range, *imported) : imported.error();
  EXPECT_EQ(status.code(), Code::kInvalidArgument) << status.ToString();
}

TEST_P(GpuConformance, AnotherProcessSeesAndChangesTheSameBytes) {
  const MappedSlab slab = NewSlab(3 * granule());
  ASSERT_OK(bench_->Write(slab.at, RandomBytes(slab.bytes, 20)));
  const auto fd = gpu_->ExportSlab(slab.slab);
  ASSERT_OK(fd.status());
  EXPECT_EQ(RunPeer("check", fd->get(), slab.bytes, 20), 0);
  EXPECT_EQ(Read(slab.at, slab.bytes), RandomBytes(slab.bytes, 21));
}

TEST_P(GpuConformance, AnotherProcessThatMapsForReadingDoesNotWrite) {
  const MappedSlab slab = NewSlab(granule());
  ASSERT_OK(bench_->Write(slab.at, RandomBytes(slab.bytes, 22)));
  const auto fd = gpu_->ExportSlab(slab.slab);
  ASSERT_OK(fd.status());
  EXPECT_EQ(RunPeer("check-ro", fd->get(), slab.bytes, 22), 0);
  if (IsHostAddressable(GetParam())) {
    EXPECT_NE(RunPeer("store-ro", fd->get(), slab.bytes, 22), 0);
  }
  EXPECT_EQ(Read(slab.at, slab.bytes), RandomBytes(slab.bytes, 22));
}

TEST_P(GpuConformance, ASlabOutlivesTheProcessThatMadeIt) {
  SocketPair sockets;
  Peer peer = StartPeer("export", sockets.theirs(), granule(), 23);
  UniqueFd fd = sockets.ReceiveFd();
  ASSERT_TRUE(fd);
  EXPECT_EQ(peer.Wait(), 0);
  const auto slab = gpu_->ImportSlab(fd.get(), granule());
  ASSERT_OK(slab.status());
  fd.Reset();
  const auto at = gpu_->ReserveRange(granule());
  ASSERT_OK(at.status());
  ASSERT_OK(gpu_->MapSlab(*at, *slab));
  ASSERT_OK(gpu_->SetAccess(*at, granule(), GpuAccess::kReadWrite));
  EXPECT_EQ(Read(*at, granule()), RandomBytes(granule(), 23));
}

TEST_P(GpuConformance, AllocationsAreSharedByTheirHandles) {
  const uint64_t bytes = 2 * granule();
  const auto at = gpu_->Allocate(bytes);
  ASSERT_OK(at.status());
  ASSERT_OK(bench_->Write(*at, RandomBytes(bytes, 24)));
  const auto handle = gpu_->ExportAllocation(*at);
  ASSERT_OK(handle.status());
  EXPECT_EQ(RunPeer("open", HexEncode(*handle), bytes, 24), 0);
  EXPECT_EQ(Read(*at, bytes), RandomBytes(bytes, 25));
  EXPECT_OK(gpu_->FreeAllocation(*at));
  EXPECT_EQ(bench_->Read(*at, 16).status().code(), Code::kInvalidArgument);
}

TEST_P(GpuConformance, AnAllocationOfAnotherProcessIsReadAndWritten) {
  const uint64_t bytes = granule();
  SocketPair sockets;
  Peer peer = StartPeer("hold", sockets.theirs(), bytes, 26);
  IpcHandle handle{};
  ASSERT_TRUE(sockets.Receive(handle));
  EXPECT_EQ(gpu_->OpenAllocation(handle, 2 * bytes).status().code(), Code::kInvalidArgument);
  const auto at = gpu_->OpenAllocation(handle, bytes);
  ASSERT_OK(at.status());
  EXPECT_EQ(Read(*at, bytes), RandomBytes(bytes, 26));
  ASSERT_OK(bench_->Write(*at, RandomBytes(bytes, 27)));
  EXPECT_EQ(gpu_->FreeAllocation(*at).code(), Code::kInvalidArgument);
  EXPECT_OK(gpu_->CloseAllocation(*at));
  EXPECT_EQ(gpu_->CloseAllocation(*at).code(), Code::kInvalidArgument);
  sockets.Close();
  EXPECT_EQ(peer.Wait(), 0);
}

TEST_P(GpuConformance, HandlesOfNothingAreRefused) {
  const auto at = gpu_->Allocate(granule());
  ASSERT_OK(at.status());
  const auto own = gpu_->ExportAllocation(*at);
  ASSERT_OK(own.status());
  EXPECT_EQ(gpu_->OpenAllocation(*own, granule()).status().code(), Code::kInvalidArgument);
  EXPECT_FALSE(gpu_->OpenAllocation(IpcHandle{}, granule()));
  EXPECT_EQ(gpu_->ExportAllocation(*at + granule()).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(gpu_->CloseAllocation(*at).code(), Code::kInvalidArgument);
  EXPECT_EQ(gpu_->Allocate(granule() / 2).status().code(), Code::kInvalidArgument);
  // The context is sound.
  EXPECT_OK(bench_->Write(*at, RandomBytes(100, 28)));
}

TEST_P(GpuConformance, ManyThreadsUseOneGpu) {
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < 4; ++i) {
    threads.emplace_back([this, i] {
      GpuBench bench(*gpu_);
      for (int round = 0; round < 5; ++round) {
        const auto slab = MapNewSlab(*gpu_, granule());
        ASSERT_OK(slab.status());
        const std::vector<uint8_t> bytes = RandomBytes(10'000, 30 + i);
        ASSERT_OK(bench.Write(slab->at, bytes));
        const auto got = bench.Read(slab->at, bytes.size());
        ASSERT_OK(got.status());
        EXPECT_EQ(*got, bytes);
        ASSERT_OK(gpu_->UnmapSlab(slab->at));
        ASSERT_OK(gpu_->ReleaseSlab(slab->slab));
        ASSERT_OK(gpu_->FreeRange(slab->at));
      }
    });
  }
  for (std::thread& thread : threads)
    thread.join();
}

INSTANTIATE_TEST_SUITE_P(Every, GpuConformance, testing::ValuesIn(ImplementationNames()),
                         [](const auto& name) { return name.param; });

}  // namespace
}  // namespace terrace
