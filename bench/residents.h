// Pages of a plain layout with synthetic keys: how most suites fill a daemon.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/status.h"
#include "bench/client.h"

namespace terrace::bench {

struct Residents {
  std::string socket;
  std::string salt;  // Names the space.
  uint64_t pages = 0;
  uint64_t page_bytes = 4096;
  uint32_t page_tokens = 16;
};

// The space of `residents`, which every process opens alike.
Result<Space> OpenSpaceOf(kvc_client* client, const Residents& residents);
// Publishes pages 0 to pages - 1 from a process of its own, each written by `fill`, and checks that
// all were taken.
Status MakeResident(const Residents& residents,
                    const std::function<void(uint64_t index, std::span<uint8_t> page)>& fill);
// Runs `body` in a process of its own and waits for it.
Status InOtherProcess(const std::string& name, const std::function<Status()>& body);

// One client with a reader and the space, as most processes of a suite need them.
struct Engine {
  Client client;
  Space space;
  Reader reader;
};
Result<Engine> StartEngine(const Residents& residents, const std::string& name, bool read_only);

}  // namespace terrace::bench
