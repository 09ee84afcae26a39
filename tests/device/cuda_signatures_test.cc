// Each entry point of the driver is asked for by the version in which its signature came: that of
// cuda.h is the one that cudaTypedefs.h has for that version.
#include <cuda.h>
#include <cudaTypedefs.h>
#include <gtest/gtest.h>

#include <type_traits>

#include "tiers/device/cuda_driver.h"

namespace terrace {
namespace {

#define CHECK_SIGNATURE(name, version) \
  static_assert(std::is_same_v<decltype(&::name), PFN_##name##_v##version>, #name);
TERRACE_CUDA_FUNCTIONS(CHECK_SIGNATURE)
#undef CHECK_SIGNATURE

TEST(CudaSignatures, AreThoseOfTheirVersions) {
  int functions = 0;
#define COUNT(name, version) functions += (version) <= CUDA_VERSION ? 1 : 0;
  TERRACE_CUDA_FUNCTIONS(COUNT)
#undef COUNT
  EXPECT_EQ(functions, 49);
}

}  // namespace
}  // namespace terrace
