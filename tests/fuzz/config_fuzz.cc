// A configuration file of any bytes: refused with a message, or one that its own text gives again.
#include "base/check.h"
#include "daemon/service/config.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace terrace;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  Config config;
  const Status read = ReadConfigText(text, "fuzz.toml", &config);
  if (!read.ok()) {
    TERRACE_CHECK(!read.message().empty());
    return 0;
  }
  const Status checked = CheckConfig(config);
  if (!checked.ok()) {
    TERRACE_CHECK(!checked.message().empty());
    return 0;
  }
  // What terraced itself fills in before it prints them.
  if (config.socket.empty()) config.socket = "/run/terraced.sock";
  if (config.state_dir.empty()) config.state_dir = "/var/lib/terrace";
  const std::string written = ConfigText(config);
  Config again;
  TERRACE_CHECK(ReadConfigText(written, "written.toml", &again).ok());
  TERRACE_CHECK(ConfigText(again) == written);
  return 0;
}
