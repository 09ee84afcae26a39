#include "kernels/cuda_kernels.h"

#ifdef TERRACE_PAGED_COPY_FATBIN
// The assembler embeds the file, so that no generated source of 100,000 numbers is compiled.
asm(R"(
    .section .rodata
    .balign 16
    .global terrace_paged_copy_fatbin
    .hidden terrace_paged_copy_fatbin
terrace_paged_copy_fatbin:
    .incbin ")" TERRACE_PAGED_COPY_FATBIN R"("
    .global terrace_paged_copy_fatbin_end
    .hidden terrace_paged_copy_fatbin_end
terrace_paged_copy_fatbin_end:
    .previous
)");

extern "C" const std::byte terrace_paged_copy_fatbin[];
extern "C" const std::byte terrace_paged_copy_fatbin_end[];
#endif

namespace terrace {

std::span<const std::byte> PagedCopyFatbin() {
#ifdef TERRACE_PAGED_COPY_FATBIN
  return {terrace_paged_copy_fatbin, terrace_paged_copy_fatbin_end};
#else
  return {};
#endif
}

}  // namespace terrace
