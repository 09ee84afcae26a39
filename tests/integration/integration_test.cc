#include "tests/integration/integration_test.h"

#include <poll.h>

#include <chrono>

namespace terrace {

namespace {

constexpr std::chrono::seconds kDeadline{60};
constexpr int kLookEveryMs = 2;
constexpr const char* kReporter = "reporter";

}  // namespace

bool Await(const std::function<bool()>& met) {
  const auto deadline = std::chrono::steady_clock::now() + kDeadline;
  while (!met()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    ::poll(nullptr, 0, kLookEveryMs);
  }
  return true;
}

void IntegrationTest::StartDaemon(const std::string& capacity, const std::string& limits) {
  DaemonProcessOptions options;
  options.capacity = capacity;
  options.limits = limits;
  options.metrics = true;
  StartDaemon(options);
}

void IntegrationTest::StartDaemon(const DaemonProcessOptions& options) {
  Result<std::unique_ptr<DaemonProcess>> started = DaemonProcess::Start(options);
  ASSERT_TRUE(started) << started.error().ToString();
  daemon_ = *std::move(started);
}

Json IntegrationTest::Report(const std::string& what) {
  wire::Report request;
  request.set_what(what);
  Result<wire::ReportReply> reply = Status(Code::kUnavailable, "not connected");
  for (int attempt = 0; attempt < 2 && !reply; ++attempt) {
    if (reporter_.fd() < 0 || attempt > 0) {
      reporter_ = WireClient::Connect(socket());
      if (reporter_.fd() < 0 || !reporter_.Hello(kReporter, false)) continue;
    }
    reply = reporter_.Call<wire::ReportReply>(wire::Type::kReport, request);
  }
  if (!reply) {
    ADD_FAILURE() << "report " << what << ": " << reply.error().ToString() << "\n"
                  << daemon_->Log();
    return {};
  }
  Json json = Json::parse(reply->json(), nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) {
    ADD_FAILURE() << "report " << what << " is no JSON: " << reply->json();
    return {};
  }
  return json;
}

uint64_t IntegrationTest::StatusNumber(const std::string& pointer) {
  const Json status = Report("status");
  const Json::json_pointer path(pointer);
  if (!status.contains(path) || !status[path].is_number_unsigned()) {
    ADD_FAILURE() << "the status has no number at " << pointer;
    return 0;
  }
  return status[path].get<uint64_t>();
}

Json IntegrationTest::FindClient(const std::function<bool(const Json&)>& wanted) {
  const Json report = Report("clients");
  if (!report.contains("clients")) return {};
  for (const Json& client : report["clients"]) {
    if (wanted(client)) return client;
  }
  return {};
}

Json IntegrationTest::ClientOf(pid_t pid) {
  return FindClient([&](const Json& client) { return client["pid"] == pid; });
}

Json IntegrationTest::ClientNamed(const std::string& name) {
  return FindClient([&](const Json& client) { return client["name"] == name; });
}

size_t IntegrationTest::OtherClients() {
  const Json report = Report("clients");
  if (!report.contains("clients")) return SIZE_MAX;
  size_t others = 0;
  for (const Json& client : report["clients"])
    others += client["name"] != kReporter;
  return others;
}

bench::Child IntegrationTest::StartClient(const std::string& name, const ClientBody& body) {
  return StartProcess(name, [socket = socket(), name, body](bench::Link& link) -> Status {
    ASSIGN_OR_RETURN(const bench::Client client,
                     bench::Connect({.socket = socket, .name = name, .read_only = false}));
    return body(client.get(), link);
  });
}

bench::Child IntegrationTest::StartProcess(const std::string& name,
                                           const std::function<Status(bench::Link&)>& body) {
  Result<bench::Child> child = bench::Child::Start(name, body);
  if (!child) {
    std::fprintf(stderr, "%s: %s\n", name.c_str(), child.error().ToString().c_str());
    std::abort();  // No test can go on without its processes.
  }
  return *std::move(child);
}

bool IntegrationTest::Runs(const bench::Child& child) {
  pollfd entry{child.pidfd(), POLLIN, 0};
  return ::poll(&entry, 1, 0) == 0;
}

}  // namespace terrace
