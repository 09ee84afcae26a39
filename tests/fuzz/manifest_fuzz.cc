// Manifests of weight sets, as a client checks what the daemon sent. Of one that is accepted every
// tensor lies in the image and is found by its name.
#include <vector>

#include "base/check.h"
#include "libclient/manifest_view.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace terrace;
  // Aligned, as a mapping is.
  std::vector<uint64_t> words((size + 7) / 8);
  if (size > 0) std::memcpy(words.data(), data, size);
  const auto view =
      client::ManifestView::Of({reinterpret_cast<const uint8_t*>(words.data()), size});
  if (!view) return 0;
  const manifest::ManifestHeader& header = view->header();
  for (const manifest::TensorRecord& record : view->records()) {
    TERRACE_CHECK(record.offset <= header.image_bytes &&
                  record.bytes <= header.image_bytes - record.offset);
    TERRACE_CHECK(view->Find(view->name(record)) == &record);
    const auto [first, end] = view->BlocksOf(record);
    TERRACE_CHECK(first <= end && end <= header.blocks);
    for (uint32_t block = first; block < end; ++block)
      TERRACE_CHECK(view->BlockBytes(block) > 0);
  }
  return 0;
}
