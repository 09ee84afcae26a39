// Memory of devices in a client: mapped in place, asked back, lost; against a scripted daemon whose
// device is memory of the host.
#include <gtest/gtest.h>
#include <kvclient/device.h>
#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <kvclient/kvclient.hpp>
#include <memory>
#include <span>
#include <thread>
#include <utility>

#include "tests/libclient/device/device_peer.h"

namespace terrace::client {
namespace {

bool Await(const std::function<bool()>& met) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(10);
  while (!met()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

kvc_key KeyOf(uint8_t number) {
  kvc_key key;
  for (size_t i = 0; i < sizeof key.bytes; ++i)
    key.bytes[i] = static_cast<uint8_t>(number * 37 + i * 11 + 1);
  return key;
}
Digest DigestOfKey(const kvc_key& key) {
  Digest digest;
  std::memcpy(digest.bytes.data(), key.bytes, sizeof key.bytes);
  return digest;
}

class DeviceTest : public testing::Test {
 protected:
  void TearDown() override {
    kvc_space_close(space_);
    kvc_device_close(device_);
    kvc_close(client_);
  }

  void Connect() {
    kvc_client_options options{};
    options.struct_size = sizeof options;
    options.socket_path = peer_.peer().socket().c_str();
    ASSERT_EQ(kvc_connect(&options, &client_, &error_), KVC_OK) << error_.message;
  }
  void Open() {
    Connect();
    ASSERT_EQ(kvc_device_open(client_, nullptr, 0, &device_, &error_), KVC_OK) << error_.message;
    const kvc_key id{};
    ASSERT_EQ(kvc_space_open_existing(client_, &id, 0, &space_, &error_), KVC_OK);
  }
  kvc_weights* Attach() {
    kvc_attach_options options{};
    options.struct_size = sizeof options;
    options.device = device_;
    kvc_weights* weights = nullptr;
    EXPECT_EQ(kvc_attach(client_, "m", &options, 0, &weights, &error_), KVC_OK) << error_.message;
    return weights;
  }
  kvc_reader* NewReader() {
    kvc_reader* reader = nullptr;
    EXPECT_EQ(kvc_reader_create(client_, &reader, &error_), KVC_OK) << error_.message;
    EXPECT_EQ(kvc_reader_set_device(reader, device_), KVC_OK);
    return reader;
  }
  void Link(uint8_t number, uint32_t place) {
    uint8_t* page = place == 0 ? peer_.host_page(number) : peer_.device_page(number);
    std::memset(page, number + (place == 0 ? 0 : 100), kPageBytes);
    peer_.Link(DigestOfKey(KeyOf(number)), number, place);
  }
  static kvc_tensor Tensor(const kvc_weights* weights, const char* name, kvc_code want = KVC_OK) {
    kvc_tensor tensor{};
    tensor.struct_size = sizeof tensor;
    EXPECT_EQ(kvc_weights_find(weights, name, &tensor), want);
    return tensor;
  }
  static bool Holds(const kvc_tensor& tensor, uint64_t offset) {
    const auto* bytes = static_cast<const uint8_t*>(tensor.data);
    for (uint64_t i = 0; bytes != nullptr && i < tensor.bytes; ++i) {
      if (bytes[i] != DevicePeer::ByteOf(offset + i)) return false;
    }
    return bytes != nullptr;
  }
  // KVC_OK with a request, or why there is none.
  kvc_code Next(kvc_unmap_request* request, int32_t timeout_ms = 0) {
    *request = {};
    request->struct_size = sizeof *request;
    return kvc_device_next_request(device_, timeout_ms, request, &error_);
  }
  bool EventWaits() const {
    pollfd item{.fd = kvc_device_event_fd(device_), .events = POLLIN, .revents = 0};
    return ::poll(&item, 1, 0) == 1;
  }

  DevicePeer peer_;
  kvc_error error_{};
  kvc_client* client_ = nullptr;
  kvc_device* device_ = nullptr;
  kvc_space* space_ = nullptr;
};

TEST_F(DeviceTest, DeviceIsOpenedByUuidOrOrdinal) {
  Connect();
  const std::string uuid = HostGpuUuid(0).Text();
  kvc_device_options options{sizeof options, uuid.c_str(), 77};
  ASSERT_EQ(kvc_device_open(client_, &options, 0, &device_, &error_), KVC_OK) << error_.message;
  kvc_device_info info{};
  info.struct_size = sizeof info;
  ASSERT_EQ(kvc_device_get_info(device_, &info), KVC_OK);
  EXPECT_EQ(info.number, kDevice);
  EXPECT_EQ(info.uuid, uuid);
  EXPECT_STREQ(info.kind, "host");
  EXPECT_EQ(info.slabs, 1);
  EXPECT_EQ(info.granularity, kGranule);
  kvc_device* other = nullptr;
  options = {sizeof options, nullptr, 1};
  EXPECT_EQ(kvc_device_open(client_, &options, 0, &other, &error_), KVC_NOT_FOUND);
  const std::string unknown = HostGpuUuid(9).Text();
  options = {sizeof options, unknown.c_str(), 0};
  EXPECT_EQ(kvc_device_open(client_, &options, 0, &other, &error_), KVC_NOT_FOUND);
  options = {sizeof options, "nonsense", 0};
  EXPECT_EQ(kvc_device_open(client_, &options, 0, &other, &error_), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_device_open(nullptr, nullptr, 0, &other, &error_), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(other, nullptr);
}

TEST_F(DeviceTest, DaemonFromBeforeDevicesIsNotAsked) {
  ScriptedPeer old;
  kvc_client_options options{};
  options.struct_size = sizeof options;
  options.socket_path = old.socket().c_str();
  ASSERT_EQ(kvc_connect(&options, &client_, &error_), KVC_OK);
  EXPECT_EQ(kvc_device_open(client_, nullptr, 0, &device_, &error_), KVC_MISMATCH);
  EXPECT_EQ(old.CountOf(wire::Type::kDevices), 0u);
  kvc_close(client_);
  client_ = nullptr;
}

// Runs where no libcuda is; where one is, the device that the daemon describes is not the driver's.
TEST_F(DeviceTest, GpuIsNotFoundWhereThereIsNoDriverAndNothingElseIsHarmed) {
  peer_.kind = "cuda";
  Connect();
  const std::string uuid = HostGpuUuid(0).Text();
  kvc_device_options options{sizeof options, uuid.c_str(), 0};
  const kvc_code code = kvc_device_open(client_, &options, 0, &device_, &error_);
  EXPECT_TRUE(code == KVC_NOT_FOUND || code == KVC_MISMATCH) << error_.message;
  EXPECT_NE(std::string(error_.message), "");
  peer_.kind = "quantum";
  EXPECT_EQ(kvc_device_open(client_, &options, 0, &device_, &error_), KVC_MISMATCH);
  EXPECT_EQ(device_, nullptr);
  EXPECT_EQ(kvc_ping(client_, 0, &error_), KVC_OK);
}

// ---- Weights

TEST_F(DeviceTest, WeightsAreMappedInOneRange) {
  Open();
  kvc_weights* weights = Attach();
  ASSERT_NE(weights, nullptr);
  kvc_weights_info info{};
  info.struct_size = sizeof info;
  ASSERT_EQ(kvc_weights_get_info(weights, &info), KVC_OK);
  EXPECT_EQ(info.mapped_bytes, kImageBytes);
  const kvc_tensor a = Tensor(weights, "a");
  const kvc_tensor b = Tensor(weights, "b");
  EXPECT_TRUE(Holds(a, 256));
  EXPECT_TRUE(Holds(b, kBlockBytes - 1024)) << "over two blocks";
  EXPECT_EQ(static_cast<const uint8_t*>(a.data), static_cast<const uint8_t*>(info.base) + 256);
  kvc_detach(weights);
  EXPECT_EQ(peer_.detached(), std::vector<uint64_t>{1});
}

TEST_F(DeviceTest, UnmappedWeightsComeBackAtTheSameAddresses) {
  Open();
  kvc_weights* weights = Attach();
  const void* before = Tensor(weights, "b").data;
  EXPECT_EQ(kvc_weights_remap(weights, 0, &error_), KVC_ALREADY_EXISTS);
  ASSERT_EQ(kvc_weights_unmap(weights, 0, &error_), KVC_OK) << error_.message;
  EXPECT_EQ(kvc_weights_unmap(weights, 0, &error_), KVC_OK) << "it is unmapped already";
  EXPECT_EQ(peer_.detached(), std::vector<uint64_t>{1});
  EXPECT_EQ(Tensor(weights, "b").data, nullptr);
  ASSERT_EQ(kvc_weights_remap(weights, 0, &error_), KVC_OK) << error_.message;
  EXPECT_EQ(Tensor(weights, "b").data, before);
  EXPECT_TRUE(Holds(Tensor(weights, "b"), kBlockBytes - 1024));
  kvc_detach(weights);
  EXPECT_EQ(peer_.detached(), (std::vector<uint64_t>{1, 2}));
}

TEST_F(DeviceTest, OtherContentOrPlacesAreNotMappedAgain) {
  Open();
  kvc_weights* weights = Attach();
  ASSERT_EQ(kvc_weights_unmap(weights, 0, &error_), KVC_OK);
  peer_.other_content = true;
  EXPECT_EQ(kvc_weights_remap(weights, 0, &error_), KVC_MISMATCH);
  peer_.other_content = false;
  peer_.other_place = true;
  EXPECT_EQ(kvc_weights_remap(weights, 0, &error_), KVC_MISMATCH);
  peer_.other_place = false;
  peer_.without_block = true;
  EXPECT_EQ(kvc_weights_remap(weights, 0, &error_), KVC_DATA_LOSS);
  EXPECT_EQ(Tensor(weights, "a").data, nullptr) << "what came of it is unmapped again";
  EXPECT_EQ(peer_.detached(), (std::vector<uint64_t>{1, 2, 3, 4}));
  peer_.without_block = false;
  EXPECT_EQ(kvc_weights_remap(weights, 0, &error_), KVC_OK) << error_.message;
  kvc_detach(weights);
}

TEST_F(DeviceTest, WeightsThatAreAskedBackAreTheEnginesToUnmap) {
  Open();
  kvc_weights* weights = Attach();
  kvc_unmap_request request{};
  EXPECT_EQ(Next(&request), KVC_DEADLINE_EXCEEDED);
  EXPECT_FALSE(EventWaits());
  peer_.WantBack({}, {1});
  ASSERT_TRUE(Await([&] { return EventWaits(); }));
  EXPECT_TRUE(Holds(Tensor(weights, "a"), 256)) << "until the engine unmaps them";
  ASSERT_EQ(Next(&request), KVC_OK);
  EXPECT_EQ(request.weights, weights);
  EXPECT_EQ(request.lost, 0);
  EXPECT_GT(request.deadline_ms, 0);
  EXPECT_LE(request.deadline_ms, 60'000);
  EXPECT_FALSE(EventWaits());
  EXPECT_EQ(kvc_weights_unmap(weights, 0, &error_), KVC_OK);
  EXPECT_EQ(peer_.detached(), std::vector<uint64_t>{1});
  // Asked twice, as after a connection was lost, it is one request.
  kvc_weights* twice = Attach();
  peer_.WantBack({}, {2});
  peer_.WantBack({}, {2}, /*lost=*/true);
  ASSERT_EQ(kvc_ping(client_, 0, &error_), KVC_OK) << "events come before its answer";
  EXPECT_EQ(Tensor(twice, "a", KVC_STALE).data, nullptr);
  ASSERT_EQ(Next(&request, 600'000), KVC_OK);
  EXPECT_EQ(request.weights, twice);
  EXPECT_EQ(request.lost, 1);
  EXPECT_EQ(Next(&request), KVC_DEADLINE_EXCEEDED);
  kvc_detach(twice);
  // The next attachment has another number, and is asked for by that.
  ASSERT_EQ(kvc_weights_remap(weights, 0, &error_), KVC_OK);
  peer_.WantBack({}, {3});
  EXPECT_EQ(Next(&request, 600'000), KVC_OK);
  peer_.WantBack({}, {3});
  ASSERT_TRUE(Await([&] { return EventWaits(); }));
  kvc_detach(weights);
  EXPECT_EQ(Next(&request), KVC_DEADLINE_EXCEEDED) << "nothing is asked of what is gone";
  EXPECT_FALSE(EventWaits());
}

TEST_F(DeviceTest, RequestThatComesBeforeTheAttachIsThroughIsKept) {
  Open();
  peer_.asks_early = true;
  kvc_weights* weights = Attach();
  kvc_unmap_request request{};
  ASSERT_EQ(Next(&request, 600'000), KVC_OK);
  EXPECT_EQ(request.weights, weights);
  kvc_detach(weights);
}

TEST_F(DeviceTest, LostWeightsAreStaleUntilTheyAreMappedAgain) {
  Open();
  kvc_weights* weights = Attach();
  peer_.WantBack({}, {1}, /*lost=*/true);
  kvc_unmap_request request{};
  ASSERT_EQ(Next(&request, 600'000), KVC_OK);
  EXPECT_EQ(request.lost, 1);
  EXPECT_EQ(Tensor(weights, "a", KVC_STALE).data, nullptr);
  ASSERT_EQ(kvc_weights_unmap(weights, 0, &error_), KVC_OK);
  ASSERT_EQ(kvc_weights_remap(weights, 0, &error_), KVC_OK);
  EXPECT_TRUE(Holds(Tensor(weights, "a"), 256));
  kvc_detach(weights);
}

// ---- Pages

TEST_F(DeviceTest, LookupsPreferTheDeviceAndSayWhereAPageIs) {
  Open();
  Link(1, 0);
  Link(1, kDevice);
  Link(2, 0);
  kvc_reader* reader = NewReader();
  kvc_page page{};
  kvc_miss why{};
  const kvc_key key = KeyOf(1);
  kvc_ticket ticket = kvc_pin(reader, space_, &key, &page, &why);
  ASSERT_NE(ticket, 0u) << why;
  EXPECT_EQ(page.device, kDevice);
  EXPECT_EQ(static_cast<const uint8_t*>(page.data)[0], 101);
  kvc_unpin(reader, ticket);

  const kvc_key keys[] = {KeyOf(1), KeyOf(2)};
  kvc_pages* pages = nullptr;
  ASSERT_EQ(kvc_lookup_prefix(reader, space_, keys, 2, &pages, &why), KVC_OK);
  ASSERT_EQ(kvc_pages_count(pages), 2u);
  ASSERT_EQ(kvc_pages_get(pages, 0, &page), KVC_OK);
  EXPECT_EQ(page.device, kDevice);
  ASSERT_EQ(kvc_pages_get(pages, 1, &page), KVC_OK);
  EXPECT_EQ(page.device, 0u);
  EXPECT_EQ(static_cast<const uint8_t*>(page.data)[kPageBytes - 1], 2);

  // Numbers are those of one memory; pages elsewhere have none.
  const void* base = nullptr;
  ASSERT_EQ(kvc_device_base(device_, space_, &base), KVC_OK);
  int32_t table[2] = {};
  kvc_table_options options{};
  options.struct_size = sizeof options;
  options.format = KVC_TABLE_BLOCK;
  options.device = device_;
  ASSERT_EQ(kvc_pages_table(pages, &options, table, 2, nullptr), KVC_OK);
  ASSERT_GE(table[0], 0);
  EXPECT_EQ(static_cast<const uint8_t*>(base)[int64_t{table[0]} * kPageBytes], 101);
  EXPECT_EQ(table[1], -1);
  options.device = nullptr;
  ASSERT_EQ(kvc_pages_table(pages, &options, table, 2, nullptr), KVC_OK);
  EXPECT_EQ(table[0], -1);
  EXPECT_GE(table[1], 0);
  kvc_pages_release(pages);

  ASSERT_EQ(kvc_reader_set_device(reader, nullptr), KVC_OK);
  ticket = kvc_pin(reader, space_, &key, &page, &why);
  EXPECT_EQ(page.device, 0u);
  EXPECT_EQ(static_cast<const uint8_t*>(page.data)[0], 1);
  kvc_unpin(reader, ticket);
  kvc_reader_destroy(reader);
}

TEST_F(DeviceTest, PagesAreWrittenInPlace) {
  Open();
  const kvc_key keys[] = {KeyOf(0), KeyOf(1)};
  kvc_grant_options options{};
  options.struct_size = sizeof options;
  options.device = device_;
  kvc_grants* grants = nullptr;
  ASSERT_EQ(kvc_grant(client_, space_, keys, 2, &options, 0, &grants, &error_), KVC_OK)
      << error_.message;
  for (size_t i = 0; i < 2; ++i) {
    void* data = kvc_grants_data(grants, i);
    ASSERT_NE(data, nullptr);
    std::memset(data, static_cast<int>(50 + i), kPageBytes);
  }
  EXPECT_EQ(kvc_commit(grants, nullptr, 0, &error_), KVC_OK) << error_.message;
  kvc_grants_destroy(grants);
  EXPECT_EQ(peer_.device_page(0)[0], 50);
  EXPECT_EQ(peer_.device_page(1)[kPageBytes - 1], 51);
}

TEST_F(DeviceTest, PagesThatAreAskedBackAreLetGoWhenNothingUsesThem) {
  Open();
  Link(1, kDevice);
  kvc_reader* reader = NewReader();
  const kvc_key key = KeyOf(1);
  kvc_page page{};
  const kvc_ticket ticket = kvc_pin(reader, space_, &key, &page, nullptr);
  ASSERT_NE(ticket, 0u);
  kvc_grant_options options{};
  options.struct_size = sizeof options;
  options.device = device_;
  kvc_grants* grants = nullptr;
  ASSERT_EQ(kvc_grant(client_, space_, &key, 1, &options, 0, &grants, &error_), KVC_OK);

  peer_.Unlink(DigestOfKey(key), kDevice);
  peer_.WantBack({kDeviceArena}, {});
  // A round trip comes behind the event, and the client looks again every few milliseconds.
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_TRUE(peer_.let_go().empty()) << "it is pinned";
  EXPECT_EQ(static_cast<const uint8_t*>(page.data)[0], 101);
  kvc_unpin(reader, ticket);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_TRUE(peer_.let_go().empty()) << "it is granted";
  kvc_grants_destroy(grants);
  ASSERT_TRUE(Await([&] { return !peer_.let_go().empty(); }));
  EXPECT_EQ(peer_.let_go(), (std::vector<uint32_t>{kDeviceArena, kDeviceArena}))
      << "as often as it was given: for reading and for writing";

  // The daemon gives it to nobody again: should it be named all the same, it is not mapped.
  Link(1, kDevice);
  kvc_miss why{};
  EXPECT_EQ(kvc_pin(reader, space_, &key, &page, &why), 0u);
  EXPECT_EQ(why, KVC_MISS_UNMAPPED);
  EXPECT_TRUE(Await([&] { return peer_.let_go().size() > 2; })) << "it was counted as given";
  kvc_reader_destroy(reader);
}

TEST_F(DeviceTest, LostPagesMiss) {
  Open();
  Link(1, kDevice);
  kvc_reader* reader = NewReader();
  const kvc_key key = KeyOf(1);
  kvc_page page{};
  kvc_miss why{};
  kvc_unpin(reader, kvc_pin(reader, space_, &key, &page, &why));
  ASSERT_EQ(page.device, kDevice);
  peer_.WantBack({kDeviceArena}, {}, /*lost=*/true);
  ASSERT_TRUE(Await([&] { return !peer_.let_go().empty(); }));
  EXPECT_EQ(kvc_pin(reader, space_, &key, &page, &why), 0u);
  EXPECT_EQ(why, KVC_MISS_UNMAPPED);
  kvc_reader_destroy(reader);
}

TEST_F(DeviceTest, ForkedChildHasNoneOfIt) {
  Open();
  kvc_weights* weights = Attach();
  const kvc_tensor tensor = Tensor(weights, "a");
  const pid_t child = ::fork();
  if (child == 0) {
    // A write from memory that is not there is EFAULT, and no signal.
    int pipe_ends[2];
    bool good = ::pipe(pipe_ends) == 0 && ::write(pipe_ends[1], tensor.data, 1) < 0;
    good = good && kvc_weights_unmap(weights, 0, nullptr) == KVC_PERMISSION_DENIED;
    kvc_device* none = nullptr;
    good = good && kvc_device_open(client_, nullptr, 0, &none, nullptr) == KVC_PERMISSION_DENIED;
    kvc_detach(weights);
    kvc_device_close(device_);
    ::_exit(good ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_TRUE(Holds(tensor, 256));
  kvc_detach(weights);
}

TEST_F(DeviceTest, NextDaemonLifeIsAskedForTheDeviceAnew) {
  Open();
  Link(1, 0);
  Link(1, kDevice);
  kvc_reader* reader = NewReader();
  kvc_weights* weights = Attach();
  const uint64_t epoch = kvc_epoch(client_);
  peer_.has_device = false;
  peer_.peer().Cut();
  ASSERT_TRUE(Await([&] { return kvc_epoch(client_) > epoch; }));
  EXPECT_TRUE(Holds(Tensor(weights, "a"), 256)) << "what is mapped stays";
  const kvc_key key = KeyOf(1);
  kvc_page page{};
  kvc_ticket ticket = kvc_pin(reader, space_, &key, &page, nullptr);
  ASSERT_NE(ticket, 0u);
  EXPECT_EQ(page.device, 0u) << "this daemon does not have the device";
  kvc_unpin(reader, ticket);
  kvc_grant_options options{};
  options.struct_size = sizeof options;
  options.device = device_;
  kvc_grants* grants = nullptr;
  EXPECT_EQ(kvc_grant(client_, space_, &key, 1, &options, 0, &grants, &error_), KVC_UNAVAILABLE);
  kvc_detach(weights);
  kvc_reader_destroy(reader);
}

TEST_F(DeviceTest, ADaemonThatLearnsOfItsDeviceLaterIsAskedAgain) {
  Open();
  Link(1, 0);
  Link(1, kDevice);
  kvc_reader* reader = NewReader();
  const uint64_t epoch = kvc_epoch(client_);
  peer_.knows_device = false;
  peer_.peer().Cut();
  ASSERT_TRUE(Await([&] { return kvc_epoch(client_) > epoch; }));
  const kvc_key key = KeyOf(1);
  const auto device_of_page = [&] {
    kvc_page page{};
    const kvc_ticket ticket = kvc_pin(reader, space_, &key, &page, nullptr);
    EXPECT_NE(ticket, 0u);
    kvc_unpin(reader, ticket);
    return page.device;
  };
  EXPECT_EQ(device_of_page(), 0u);
  peer_.knows_device = true;
  EXPECT_TRUE(Await([&] { return device_of_page() == kDevice; }));
  kvc_device_info info{};
  info.struct_size = sizeof info;
  ASSERT_EQ(kvc_device_get_info(device_, &info), KVC_OK);
  EXPECT_EQ(info.number, kDevice);
  kvc_reader_destroy(reader);
}

TEST_F(DeviceTest, ADeviceThatIsOpenedTwiceHasOneRangeOfPages) {
  Open();
  Link(1, kDevice);
  kvc_device* again = nullptr;
  ASSERT_EQ(kvc_device_open(client_, nullptr, 0, &again, &error_), KVC_OK) << error_.message;
  const void* base = nullptr;
  const void* same = nullptr;
  ASSERT_EQ(kvc_device_base(device_, space_, &base), KVC_OK);
  ASSERT_EQ(kvc_device_base(again, space_, &same), KVC_OK);
  EXPECT_EQ(base, same);
  kvc_reader* reader = nullptr;
  ASSERT_EQ(kvc_reader_create(client_, &reader, &error_), KVC_OK);
  ASSERT_EQ(kvc_reader_set_device(reader, again), KVC_OK);
  kvc_device_close(std::exchange(device_, nullptr));
  const kvc_key key = KeyOf(1);
  kvc_page page{};
  const kvc_ticket ticket = kvc_pin(reader, space_, &key, &page, nullptr);
  ASSERT_NE(ticket, 0u);
  EXPECT_EQ((static_cast<const uint8_t*>(page.data) - static_cast<const uint8_t*>(same)) %
                static_cast<ptrdiff_t>(kPageBytes),
            0);
  EXPECT_LT(static_cast<const uint8_t*>(page.data) - static_cast<const uint8_t*>(same), 1 << 30);
  kvc_unpin(reader, ticket);
  kvc_reader_destroy(reader);
  kvc_device_close(again);
}

TEST_F(DeviceTest, ALetGoThatIsLostIsToldAgainWithTheNextConnection) {
  Open();
  Link(1, kDevice);
  kvc_reader* reader = NewReader();
  const kvc_key key = KeyOf(1);
  kvc_page page{};
  kvc_unpin(reader, kvc_pin(reader, space_, &key, &page, nullptr));
  kvc_grant_options options{};
  options.struct_size = sizeof options;
  options.device = device_;
  kvc_grants* grants = nullptr;
  const kvc_key other = KeyOf(2);
  ASSERT_EQ(kvc_grant(client_, space_, &other, 1, &options, 0, &grants, &error_), KVC_OK);
  kvc_grants_destroy(grants);
  peer_.Unlink(DigestOfKey(key), kDevice);
  peer_.resumes = true;
  peer_.let_go_hang_ups = 1;
  peer_.WantBack({kDeviceArena}, {});
  ASSERT_TRUE(Await([&] { return peer_.let_go().size() >= 3; }));
  EXPECT_EQ(peer_.let_go(), (std::vector<uint32_t>(3, kDeviceArena)))
      << "twice, unanswered; then once, as the daemon counts who comes back";
  kvc_reader_destroy(reader);
}

TEST_F(DeviceTest, HandlesThatOutliveTheDeviceKeepIt) {
  Open();
  kvc_weights* weights = Attach();
  kvc_device_close(std::exchange(device_, nullptr));
  EXPECT_TRUE(Holds(Tensor(weights, "a"), 256));
  kvc_detach(weights);
}

TEST_F(DeviceTest, TheCppLayerSaysTheSame) {
  kvc_client_options options{};
  options.socket_path = peer_.peer().socket().c_str();
  auto client = kvc::Client::Connect(options);
  ASSERT_TRUE(client) << client.error().ToString();
  auto device = kvc::Device::Open((*client).get());
  ASSERT_TRUE(device) << device.error().ToString();
  EXPECT_EQ((*device).info().number, kDevice);
  EXPECT_EQ((*device).NextRequest().error().code(), KVC_DEADLINE_EXCEEDED);
  kvc_attach_options attach{};
  attach.device = (*device).get();
  auto weights = (*client).Attach("m", attach);
  ASSERT_TRUE(weights) << weights.error().ToString();
  EXPECT_TRUE((*weights).Unmap().ok());
  EXPECT_TRUE((*weights).Remap().ok());
  Link(1, kDevice);
  auto space = (*client).OpenExistingSpace(kvc_key{});
  auto reader = (*client).NewReader();
  ASSERT_TRUE(space && reader);
  EXPECT_TRUE((*reader).SetDevice(*device).ok());
  const kvc::Page page = (*reader).Pin(*space, KeyOf(1));
  EXPECT_TRUE(page);
  EXPECT_EQ(page.device(), kDevice);
}

TEST_F(DeviceTest, DevicesOfOtherClientsAreRefused) {
  Open();
  DevicePeer other_peer;
  kvc_client_options options{};
  options.struct_size = sizeof options;
  options.socket_path = other_peer.peer().socket().c_str();
  kvc_client* other = nullptr;
  ASSERT_EQ(kvc_connect(&options, &other, &error_), KVC_OK);
  kvc_reader* reader = nullptr;
  ASSERT_EQ(kvc_reader_create(other, &reader, &error_), KVC_OK);
  EXPECT_EQ(kvc_reader_set_device(reader, device_), KVC_INVALID_ARGUMENT);
  kvc_attach_options attach{};
  attach.struct_size = sizeof attach;
  attach.device = device_;
  kvc_weights* weights = nullptr;
  EXPECT_EQ(kvc_attach(other, "m", &attach, 0, &weights, &error_), KVC_INVALID_ARGUMENT);
  kvc_reader_destroy(reader);
  kvc_close(other);
}

// ---- Devices without slabs

// A process that has allocations on the host's device, and shares them by handles as a mover would.
class Exporter {
 public:
  Exporter(std::span<const uint64_t> bytes, std::vector<std::string>* handles) {
    int to_parent[2];
    int to_child[2];
    TERRACE_CHECK(::pipe(to_parent) == 0 && ::pipe(to_child) == 0);
    child_ = ::fork();
    if (child_ == 0) {
      auto gpus = *OpenHostGpus({.granularity = kGranule, .slabs = false});
      auto gpu = *gpus->Open(HostGpuUuid(0));
      for (size_t i = 0; i < bytes.size(); ++i) {
        const GpuAddress at = *gpu->Allocate(bytes[i]);
        std::memset(reinterpret_cast<void*>(at), static_cast<int>(10 + i), bytes[i]);
        const IpcHandle handle = *gpu->ExportAllocation(at);
        if (::write(to_parent[1], handle.data(), handle.size()) < 0) ::_exit(1);
      }
      ::close(to_child[1]);
      char end = 0;
      static_cast<void>(!::read(to_child[0], &end, 1));  // Until the parent closes its end.
      ::_exit(0);
    }
    ::close(to_parent[1]);
    ::close(to_child[0]);
    hold_ = UniqueFd(to_child[1]);
    const UniqueFd in(to_parent[0]);
    for (size_t i = 0; i < bytes.size(); ++i) {
      std::string handle(kIpcHandleBytes, 0);
      TERRACE_CHECK(::read(in.get(), handle.data(), handle.size()) ==
                    static_cast<ssize_t>(handle.size()));
      handles->push_back(handle);
    }
  }
  ~Exporter() {
    hold_.Reset();
    ::waitpid(child_, nullptr, 0);
  }

 private:
  pid_t child_ = 0;
  UniqueFd hold_;
};

TEST_F(DeviceTest, WithoutSlabsMemoryIsSharedByHandles) {
  const uint64_t sizes[] = {kArenaBytes, kBlockBytes, kGranule};
  std::vector<std::string> handles;
  const Exporter exporter(sizes, &handles);
  peer_.slabs = false;
  peer_.handles = {{kDeviceArena, handles[0]}, {1, handles[1]}, {2, handles[2]}};
  Open();
  kvc_weights* weights = Attach();
  ASSERT_NE(weights, nullptr);
  const kvc_tensor a = Tensor(weights, "a");
  ASSERT_NE(a.data, nullptr);
  EXPECT_EQ(static_cast<const uint8_t*>(a.data)[0], 11);
  EXPECT_EQ(Tensor(weights, "b").data, nullptr) << "it lies in two blocks";
  ASSERT_EQ(kvc_weights_unmap(weights, 0, &error_), KVC_OK);
  EXPECT_EQ(kvc_weights_remap(weights, 0, &error_), KVC_MISMATCH);
  kvc_detach(weights);

  // One opening serves reading and writing.
  peer_.Link(DigestOfKey(KeyOf(1)), 1, kDevice);
  kvc_reader* reader = NewReader();
  const kvc_key key = KeyOf(1);
  kvc_page page{};
  const kvc_ticket ticket = kvc_pin(reader, space_, &key, &page, nullptr);
  ASSERT_NE(ticket, 0u);
  EXPECT_EQ(static_cast<const uint8_t*>(page.data)[0], 10);
  kvc_grant_options options{};
  options.struct_size = sizeof options;
  options.device = device_;
  kvc_grants* grants = nullptr;
  const kvc_key keys[] = {KeyOf(0), KeyOf(1)};
  ASSERT_EQ(kvc_grant(client_, space_, keys, 2, &options, 0, &grants, &error_), KVC_OK)
      << error_.message;
  EXPECT_EQ(kvc_grants_data(grants, 1), page.data);
  kvc_grants_destroy(grants);
  kvc_unpin(reader, ticket);
  const void* base = nullptr;
  EXPECT_EQ(kvc_device_base(device_, space_, &base), KVC_MISMATCH);
  kvc_reader_destroy(reader);
}

}  // namespace
}  // namespace terrace::client
