// FaultyHostSystem: the kernel below the host tier, with calls that fail when told. Faults it
// makes: any of its calls answers an error of the test's choice, once or for good, before it
// reached the kernel; free huge pages are claimed that are not there.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "base/mutex.h"
#include "tiers/host/host_system.h"

namespace terrace {

class FaultyHostSystem final : public HostSystem {
 public:
  // The call of that name (madvise: "advise " and the advice's number) fails with `error` from the
  // one after `skip` on, `times` times.
  void Fail(const std::string& call, int error, int times = 1 << 30, int skip = 0) {
    MutexLock lock(mu_);
    faults_[call] = {error, times, skip};
  }
  void Heal() {
    MutexLock lock(mu_);
    faults_.clear();
  }
  int calls(const std::string& call) const {
    MutexLock lock(mu_);
    const auto found = calls_.find(call);
    return found == calls_.end() ? 0 : found->second;
  }
  // None by default, so that tests find the same machine everywhere; kTrueCount asks the kernel.
  static constexpr size_t kTrueCount = SIZE_MAX;
  std::atomic<size_t> free_hugetlb_pages{0};

  Result<UniqueFd> CreateMemfd(const char* name, unsigned flags) override {
    if (const int error = Next("memfd_create")) return SystemError("memfd_create", error);
    return HostSystem::CreateMemfd(name, flags);
  }
  int ChangeMode(int fd, unsigned mode) override {
    if (const int error = Next("fchmod")) return error;
    return HostSystem::ChangeMode(fd, mode);
  }
  int Truncate(int fd, size_t bytes) override {
    if (const int error = Next("ftruncate")) return error;
    return HostSystem::Truncate(fd, bytes);
  }
  int AddSeals(int fd, unsigned seals) override {
    if (const int error = Next("seal")) return error;
    return HostSystem::AddSeals(fd, seals);
  }
  int Punch(int fd, size_t offset, size_t bytes) override {
    if (const int error = Next("punch")) return error;
    return HostSystem::Punch(fd, offset, bytes);
  }
  Result<UniqueFd> Duplicate(int fd) override {
    if (const int error = Next("duplicate")) return SystemError("duplicate", error);
    return HostSystem::Duplicate(fd);
  }
  Result<UniqueFd> ReopenReadOnly(int fd) override {
    if (const int error = Next("reopen")) return SystemError("reopen", error);
    return HostSystem::ReopenReadOnly(fd);
  }
  Result<uint8_t*> Map(int fd, size_t bytes, size_t alignment) override {
    if (const int error = Next("mmap")) return SystemError("mmap", error);
    return HostSystem::Map(fd, bytes, alignment);
  }
  int Advise(uint8_t* at, size_t bytes, int advice) override {
    if (const int error = Next("advise " + std::to_string(advice))) return error;
    return HostSystem::Advise(at, bytes, advice);
  }
  int ProtectReadOnly(uint8_t* at, size_t bytes) override {
    if (const int error = Next("mprotect")) return error;
    return HostSystem::ProtectReadOnly(at, bytes);
  }
  int LockOnFault(uint8_t* at, size_t bytes) override {
    if (const int error = Next("mlock")) return error;
    return HostSystem::LockOnFault(at, bytes);
  }
  size_t FreeHugetlbPages() override {
    const size_t pretended = free_hugetlb_pages;
    return pretended != kTrueCount ? pretended : HostSystem::FreeHugetlbPages();
  }

 private:
  struct Fault {
    int error = 0;
    int times = 0;
    int skip = 0;
  };

  int Next(const std::string& call) {
    MutexLock lock(mu_);
    ++calls_[call];
    const auto found = faults_.find(call);
    if (found == faults_.end()) return 0;
    Fault& fault = found->second;
    if (fault.skip > 0) {
      --fault.skip;
      return 0;
    }
    const int error = fault.error;
    if (--fault.times == 0) faults_.erase(found);
    return error;
  }

  mutable Mutex mu_;
  std::map<std::string, Fault> faults_ GUARDED_BY(mu_);
  std::map<std::string, int> calls_ GUARDED_BY(mu_);
};

}  // namespace terrace
