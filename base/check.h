// TERRACE_CHECK: an assertion about our own code that stays on in every build.
//
// It is for bugs of ours only: input from outside (sockets, shared memory that a client writes,
// files, arguments) is never checked with it but answered with a Status.
#pragma once

namespace terrace {

// Prints the condition and the place to standard error and aborts.
[[noreturn]] void CheckFailed(const char* condition, const char* file, int line);

}  // namespace terrace

#define TERRACE_CHECK(condition)                              \
  do {                                                        \
    if (!(condition)) [[unlikely]] {                          \
      ::terrace::CheckFailed(#condition, __FILE__, __LINE__); \
    }                                                         \
  } while (false)
