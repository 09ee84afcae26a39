// On a machine without a GPU, and in a build without CUDA, opening CUDA's devices says what is
// missing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tiers/device/cuda_gpu.h"

namespace terrace {
namespace {

TEST(CudaGpus, SayWhatIsMissing) {
  const auto gpus = OpenCudaGpus({});
  if (gpus) GTEST_SKIP() << "there is a GPU: " << (*gpus)->devices().front().name;
  const std::string words = gpus.error().ToString();
  EXPECT_THAT(words, testing::AnyOf(testing::HasSubstr("not_found: no CUDA driver: libcuda.so.1"),
                                    testing::HasSubstr("the CUDA driver finds no GPU"),
                                    testing::HasSubstr("mismatch: this build has no CUDA"),
                                    testing::HasSubstr("mismatch: cuInit: ")));
}

}  // namespace
}  // namespace terrace
