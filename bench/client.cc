#include "bench/client.h"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "bench/statistics.h"

namespace terrace::bench {
namespace {

constexpr double kStatusSeconds = 120;
constexpr auto kBetweenStatuses = std::chrono::milliseconds(10);

}  // namespace

Status ToStatus(kvc_code code, const kvc_error& error) {
  if (code == KVC_OK) return {};
  return {static_cast<Code>(code), error.code == code ? error.message : kvc_code_name(code)};
}

Result<Client> Connect(const ConnectOptions& wanted) {
  kvc_client_options options{};
  options.struct_size = sizeof options;
  options.socket_path = wanted.socket.empty() ? nullptr : wanted.socket.c_str();
  options.name = wanted.name.c_str();
  options.read_only = wanted.read_only ? 1 : 0;
  options.max_pins = wanted.max_pins;
  options.timeout_ms = 60'000;
  kvc_client* client = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(ToStatus(kvc_connect(&options, &client, &error), error));
  return Client(client);
}

Result<Reader> NewReader(kvc_client* client) {
  kvc_reader* reader = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(ToStatus(kvc_reader_create(client, &reader, &error), error));
  return Reader(reader);
}

kvc_layout PlainLayout(uint64_t bytes, uint32_t tokens) {
  kvc_layout layout{};
  layout.dtype = "i8";
  layout.layers = 1;
  layout.kv_heads = 1;
  layout.head_size = static_cast<uint32_t>(bytes / tokens);
  layout.page_tokens = tokens;
  layout.planes = 1;
  return layout;
}

Result<Space> OpenSpace(kvc_client* client, const SpaceOptions& wanted) {
  kvc_space_options options{};
  options.struct_size = sizeof options;
  options.layout = wanted.layout;
  options.weights = wanted.weights;
  options.salt = wanted.salt.data();
  options.salt_bytes = wanted.salt.size();
  kvc_space* space = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(ToStatus(kvc_space_open(client, &options, 0, &space, &error), error));
  return Space(space);
}

Result<Grants> Grant(kvc_client* client, const kvc_space* space, std::span<const kvc_key> keys) {
  kvc_grants* grants = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(ToStatus(
      kvc_grant(client, space, keys.data(), keys.size(), nullptr, 0, &grants, &error), error));
  return Grants(grants);
}

Result<Published> Put(kvc_client* client, const kvc_space* space, const PutOptions& options,
                      const Fill& fill) {
  Published published;
  const uint64_t page_bytes = PageBytes(space);
  for (size_t first = 0; first < options.keys.size(); first += options.batch) {
    const size_t count = std::min(options.batch, options.keys.size() - first);
    ASSIGN_OR_RETURN(const Grants grants, Grant(client, space, options.keys.subspan(first, count)));
    for (size_t i = 0; i < count; ++i) {
      auto* page = static_cast<uint8_t*>(kvc_grants_data(grants.get(), i));
      if (page != nullptr) fill(first + i, {page, page_bytes});
    }
    kvc_error error{};
    const uint32_t* valid =
        options.valid_tokens.empty() ? nullptr : options.valid_tokens.data() + first;
    RETURN_IF_ERROR(ToStatus(kvc_commit(grants.get(), valid, 0, &error), error));
    for (size_t i = 0; i < count; ++i) {
      const kvc_code code = kvc_grants_code(grants.get(), i);
      ++(code == KVC_OK               ? published.committed
         : code == KVC_ALREADY_EXISTS ? published.present
                                      : published.refused);
    }
  }
  return published;
}

uint64_t PageBytes(const kvc_space* space) {
  kvc_space_info info{};
  info.struct_size = sizeof info;
  return kvc_space_get_info(space, &info) == KVC_OK ? info.page_bytes : 0;
}

Result<nlohmann::json> Report(kvc_client* client, const char* what) {
  kvc_report_options options{};
  options.struct_size = sizeof options;
  options.what = what;
  char* text = nullptr;
  kvc_error error{};
  RETURN_IF_ERROR(ToStatus(kvc_report(client, &options, 0, &text, &error), error));
  nlohmann::json report = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  kvc_free(text);
  if (report.is_discarded()) {
    return Status(Code::kDataLoss, "the daemon's report '" + std::string(what) + "' is not JSON");
  }
  return report;
}

Result<uint64_t> StatusNumber(kvc_client* client, const char* pointer) {
  ASSIGN_OR_RETURN(const nlohmann::json status, Report(client, "status"));
  const nlohmann::json::json_pointer path(pointer);
  if (!status.contains(path) || !status[path].is_number_unsigned()) {
    return Status(Code::kDataLoss, "the daemon's status has no number at " + std::string(pointer));
  }
  return status[path].get<uint64_t>();
}

Status AwaitStatus(kvc_client* client, const std::function<bool(const nlohmann::json&)>& is_so,
                   const std::string& otherwise) {
  const Stopwatch watch;
  for (;;) {
    ASSIGN_OR_RETURN(const nlohmann::json status, Report(client, "status"));
    if (is_so(status)) return {};
    if (watch.Seconds() > kStatusSeconds) return {Code::kDeadlineExceeded, otherwise};
    std::this_thread::sleep_for(kBetweenStatuses);
  }
}

Result<uint64_t> FramesReceived(kvc_client* client) {
  ASSIGN_OR_RETURN(const nlohmann::json status, Report(client, "status"));
  const nlohmann::json::json_pointer path("/traffic/frames_received");
  if (!status.contains(path)) {
    return Status(Code::kDataLoss, "the daemon's status has no frame counters");
  }
  uint64_t frames = 0;
  for (const auto& [type, count] : status[path].items()) {
    if (type != "report" && count.is_number_unsigned()) frames += count.get<uint64_t>();
  }
  return frames;
}

}  // namespace terrace::bench
