// Readers of one client share its budget: one that holds nothing keeps nothing from the others.
#include <string>
#include <vector>

#include "tests/libclient/client_fixture.h"

namespace terrace {
namespace {

class IdleReader : public ClientTest {
 protected:
  static constexpr size_t kPages = 64;

  // Has one reader pin kPages pages and release them, and another pin them then.
  void ExpectAllForAnother(kvc::Client& client, size_t spared) {
    const kvc::Space space = Take(client.OpenSpace(SpaceOptions()));
    const auto keys = KeysOf(space, 0, 2 * kPages);
    Publish(client, space, SpanOf(keys), 0);
    kvc::Reader idle = Take(client.NewReader());
    kvc::Reader other = Take(client.NewReader());
    kvc_miss why = KVC_MISS_NONE;
    {
      const kvc::Pages pages = Take(idle.LookupPrefix(space, SpanOf(keys), &why));
      EXPECT_EQ(pages.found(), kPages);
      EXPECT_EQ(why, KVC_MISS_BUDGET);
    }
    EXPECT_EQ(client.info().pinned_pages, 0u);
    const kvc::Pages pages = Take(other.LookupPrefix(space, SpanOf(keys), &why));
    EXPECT_EQ(why, KVC_MISS_BUDGET);
    EXPECT_GE(pages.found(), kPages - spared);
    EXPECT_TRUE(Holds(pages[pages.found() - 1].bytes, pages.found() - 1));
  }
};

TEST_F(IdleReader, KeepsNoPinsFromAnother) {
  kvc::Client client = Connect([](kvc_client_options& o) { o.max_pins = kPages; });
  ExpectAllForAnother(client, 0);
}

class IdleReaderOfFewBytes : public IdleReader {
 protected:
  IdleReaderOfFewBytes() { daemon_options_.limits = "pinned_bytes = \"1MiB\"\n"; }
};

TEST_F(IdleReaderOfFewBytes, KeepsAtMostAPageFromAnother) {
  kvc::Client client = Connect();
  ExpectAllForAnother(client, 1);
}

}  // namespace
}  // namespace terrace
