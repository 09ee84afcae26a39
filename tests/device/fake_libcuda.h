// A CUDA driver that is none: a library with the entry points that tiers/device/cuda_driver.h asks
// for, strict about their arguments, over the memory and threads of the host's devices. It shows
// that our side calls a driver as cuda.h says, and lets tests choose what the driver answers.
//
// Kernels are run by the processor, from the source that the GPU's are made of.
#pragma once

#include <cuda.h>

extern "C" {

// One device with this much memory, driver 13.0, everything supported, no failures.
void FakeCudaReset(size_t device_bytes);
// 12080 is CUDA 12.8: newer entry points are not there.
void FakeCudaVersion(int version);
void FakeCudaAttribute(CUdevice_attribute attribute, int value);
// The `nth` call from now on (0 is the next) of an entry point, as "cuMemCreate", answers that and
// does nothing.
void FakeCudaFail(const char* call, unsigned nth, CUresult result);
// Calls since the reset, those that failed among them.
unsigned FakeCudaCalls(const char* call);
// Host memory that is registered now: regions.
unsigned FakeCudaRegistrations(void);

}  // extern "C"
