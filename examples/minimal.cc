// A client of Terrace in one page: attaches a model's weights, looks a prompt's KV pages up, and
// publishes those that were missing. Usage: minimal MODEL (see `terracectl model add --help`).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <kvclient/kvclient.hpp>
#include <vector>

// What was asked for, or the end of the program.
template <class T>
T Need(kvc::Result<T> result) {
  if (result) return *std::move(result);
  std::fprintf(stderr, "minimal: %s\n", result.error().ToString().c_str());
  std::exit(1);
}

int main(int argc, char** argv) {
  auto client = Need(kvc::Client::Connect());
  kvc_attach_options load{};
  load.load = 1;
  auto weights = Need(client.Attach(argc > 1 ? argv[1] : "llama", load, 600'000));
  kvc_space_options options{};
  options.layout = {"bf16",
                    /*layers=*/16,
                    /*kv_heads=*/8,
                    /*head_size=*/64,
                    /*page_tokens=*/16,
                    /*planes=*/2,
                    nullptr};
  options.weights = weights.get();
  auto space = Need(client.OpenSpace(options));
  auto reader = Need(client.NewReader());

  std::vector<std::uint32_t> prompt(1000, 42);
  auto sequence = Need(space.NewSequence());
  if (!sequence.Append(prompt).ok()) return 1;
  auto keys = sequence.keys();
  auto hits = Need(reader.LookupPrefix(space, keys));  // Pinned and readable while `hits` lives.
  std::printf("%zu of %zu pages were there\n", hits.size(), keys.size());
  if (hits.size() == keys.size()) return 0;

  auto grants = Need(client.Grant(space, {keys.data() + hits.size(), keys.size() - hits.size()}));
  for (std::size_t i = 0; i < grants.size(); ++i) {
    auto bytes = grants[i].writable();  // Here an engine computes the page.
    if (!bytes.empty()) std::memset(bytes.data(), 1, bytes.size());
  }
  auto published = Need(kvc::Grants::Commit(std::move(grants)));
  std::size_t pages = 0;
  for (std::size_t i = 0; i < published.size(); ++i)
    pages += published[i] == KVC_OK ? 1 : 0;
  std::printf("%zu pages were published\n", pages);
}
