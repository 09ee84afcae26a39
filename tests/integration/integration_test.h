// IntegrationTest: a real daemon for one test, what it reports, and client processes.
//
// The test's own process never connects with libkvclient: it forks the client processes, and a fork
// wants a parent without the library's thread. It asks the daemon for reports by the bare protocol.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <functional>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <string>

#include "base/status.h"
#include "bench/processes.h"
#include "tests/integration/engine_steps.h"
#include "tests/service/wire_client.h"
#include "tests/support/daemon_process.h"

namespace terrace {

using Json = nlohmann::json;

// Looks every few milliseconds whether `met` is true, for at most a minute.
bool Await(const std::function<bool()>& met);

// Counters that the test and its client processes see alike. T is made of atomics.
template <typename T>
class SharedWords {
 public:
  SharedWords() {
    void* memory =
        ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory != MAP_FAILED) words_ = new (memory) T();
  }
  ~SharedWords() {
    if (words_ != nullptr) ::munmap(words_, sizeof(T));
  }
  SharedWords(const SharedWords&) = delete;
  SharedWords& operator=(const SharedWords&) = delete;

  T* operator->() const { return words_; }
  T& operator*() const { return *words_; }

 private:
  T* words_ = nullptr;
};

class IntegrationTest : public testing::Test {
 protected:
  // `limits` are lines of that section of its configuration.
  void StartDaemon(const std::string& capacity = "64MiB", const std::string& limits = "");
  void StartDaemon(const DaemonProcessOptions& options);
  DaemonProcess& daemon() { return *daemon_; }
  std::string socket() const { return daemon_->socket(); }

  // A report of the daemon; null, and a failure of the test, when there is none. Reconnects after
  // the daemon was started again.
  Json Report(const std::string& what);
  // A number of the status, by its JSON pointer.
  uint64_t StatusNumber(const std::string& pointer);
  // The client of that process, or null.
  Json ClientOf(pid_t pid);
  // Likewise, the one of that name.
  Json ClientNamed(const std::string& name);
  // As many clients as there are besides the one that asks for the reports.
  size_t OtherClients();

  // A client process. `body` gets a connected client; its failure is the test's, once awaited.
  using ClientBody = std::function<Status(kvc_client*, bench::Link&)>;
  bench::Child StartClient(const std::string& name, const ClientBody& body);
  // A process that does its own connecting.
  bench::Child StartProcess(const std::string& name,
                            const std::function<Status(bench::Link&)>& body);
  // Whether it still runs.
  static bool Runs(const bench::Child& child);
  // What it says next; a failure of the test, and T(), when it ends instead.
  template <typename T>
  static T Hear(bench::Child& child) {
    Result<T> heard = child.link().Receive<T>();
    if (heard) return *heard;
    ADD_FAILURE() << "pid " << child.pid() << ": " << heard.error().ToString();
    return {};
  }
  static void Tell(bench::Child& child, uint32_t number = 0) {
    EXPECT_TRUE(child.link().Send(bench::Go{number}).ok()) << "pid " << child.pid();
  }
  // That it ends, and well.
  static void ExpectDone(bench::Child& child) {
    const Status status = child.Wait();
    EXPECT_TRUE(status.ok()) << status.ToString();
  }

 private:
  Json FindClient(const std::function<bool(const Json&)>& wanted);

  std::unique_ptr<DaemonProcess> daemon_;
  WireClient reporter_;
};

}  // namespace terrace
