// How much a test repeats: a release build does all of it, a debug build a part, and a sanitizer,
// which costs ten times and more, a little. A constant, so that a failure says what it ran.
#pragma once

#include <algorithm>
#include <cstdint>

namespace terrace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TERRACE_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TERRACE_TEST_SANITIZED 1
#endif
#endif

// A sanitizer keeps what was freed: what a process has resident says little.
#if defined(TERRACE_TEST_SANITIZED)
inline constexpr bool kMemoryIsTelling = false;
#else
inline constexpr bool kMemoryIsTelling = true;
#endif

#if defined(TERRACE_TEST_SANITIZED)
inline constexpr uint64_t kEffortDivisor = 20;
#elif !defined(NDEBUG)
inline constexpr uint64_t kEffortDivisor = 4;
#else
inline constexpr uint64_t kEffortDivisor = 1;
#endif

// `full` repetitions in a release build, at least `least` in any.
constexpr uint64_t Effort(uint64_t full, uint64_t least) {
  return std::max(full / kEffortDivisor, least);
}

}  // namespace terrace
