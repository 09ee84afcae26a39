#include "bench/residents.h"

#include <vector>

#include "bench/content.h"
#include "bench/processes.h"

namespace terrace::bench {

Result<Space> OpenSpaceOf(kvc_client* client, const Residents& residents) {
  return OpenSpace(client, {.layout = PlainLayout(residents.page_bytes, residents.page_tokens),
                            .weights = nullptr,
                            .salt = residents.salt});
}

Status InOtherProcess(const std::string& name, const std::function<Status()>& body) {
  ASSIGN_OR_RETURN(Child child, Child::Start(name, [&](Link&) { return body(); }));
  return child.Wait();
}

Status MakeResident(const Residents& residents,
                    const std::function<void(uint64_t index, std::span<uint8_t> page)>& fill) {
  return InOtherProcess("writer", [&]() -> Status {
    ASSIGN_OR_RETURN(const Engine engine, StartEngine(residents, "writer", /*read_only=*/false));
    std::vector<kvc_key> keys;
    for (uint64_t i = 0; i < residents.pages; ++i)
      keys.push_back(SyntheticKey(i));
    ASSIGN_OR_RETURN(const Published published,
                     Put(engine.client.get(), engine.space.get(), {.keys = keys}, fill));
    if (published.committed == residents.pages) return {};
    return {Code::kExhausted, "only " + std::to_string(published.committed) + " of " +
                                  std::to_string(residents.pages) + " pages were taken"};
  });
}

Result<Engine> StartEngine(const Residents& residents, const std::string& name, bool read_only) {
  Engine engine;
  ASSIGN_OR_RETURN(
      engine.client,
      Connect({.socket = residents.socket, .name = name, .read_only = read_only, .max_pins = 0}));
  ASSIGN_OR_RETURN(engine.space, OpenSpaceOf(engine.client.get(), residents));
  ASSIGN_OR_RETURN(engine.reader, NewReader(engine.client.get()));
  return engine;
}

}  // namespace terrace::bench
