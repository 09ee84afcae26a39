// Clients that do not keep the protocol, for suite `flood`: by the bare socket, for ever.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"

namespace terrace::bench {

enum class Misbehaviour : uint32_t {
  kRandomFrames,   // Connections one after the other, with seeded frames of every type, many torn.
  kRandomChannel,  // One connection; random words all over its channel.
  kHalfClosed,     // Requests, and then no further word: nothing is read, connections stay open.
  kStopped,        // Requests on many connections, and SIGSTOP.
  kHoarding,       // Requests for descriptors on many connections, none of which is taken.
};
inline constexpr uint32_t kMisbehaviours = 5;

// Returns only when it cannot go on.
Status Misbehave(Misbehaviour how, const std::string& socket, uint64_t seed);

}  // namespace terrace::bench
