// Suite `prefix`: a prompt of 128Ki tokens, hashed into pages of 256 and looked up.
//
// `hash_over_sha256` is the time of one kvc_sequence_append of all tokens over that of one plain
// SHA-256, by the same OpenSSL, of the same tokens' bytes in one piece. The rival hashes less: page
// keys also hash their parents' keys and lengths, and end a message every 1024 bytes of tokens.
//
// `lookup_us` is one kvc_lookup_prefix of all 512 keys, which finds and pins them all; releasing
// the set is timed on its own (`release_us`).
#include "base/digest.h"
#include "base/random.h"
#include "bench/daemon.h"
#include "bench/residents.h"
#include "bench/statistics.h"
#include "bench/suites.h"

namespace terrace::bench {
namespace {

constexpr uint32_t kPageTokens = 256;

// New keys for `tokens`; `keys` gets a copy of them.
Status HashTokens(const kvc_space* space, std::span<const uint32_t> tokens,
                  std::vector<kvc_key>* keys, double* us) {
  kvc_sequence* made = nullptr;
  if (const kvc_code code = kvc_sequence_create(space, &made); code != KVC_OK) {
    return {static_cast<Code>(code), "kvc_sequence_create"};
  }
  const Sequence sequence(made);
  const Stopwatch watch;
  const kvc_code code = kvc_sequence_append(made, tokens.data(), tokens.size());
  *us = watch.Us();
  if (code != KVC_OK) return {static_cast<Code>(code), "kvc_sequence_append"};
  size_t count = 0;
  const kvc_key* first = kvc_sequence_keys(made, &count);
  keys->assign(first, first + count);
  return {};
}

struct HashFigures {
  double hash_us = 0;
  double sha256_us = 0;
  double ratio = 0;
};
Result<HashFigures> CompareHashing(const kvc_space* space, std::span<const uint32_t> tokens,
                                   int rounds) {
  std::vector<double> ours, rival, ratio;
  std::vector<kvc_key> keys;
  const std::span bytes(reinterpret_cast<const uint8_t*>(tokens.data()), tokens.size_bytes());
  for (int round = 0; round < rounds; ++round) {
    double us = 0;
    RETURN_IF_ERROR(HashTokens(space, tokens, &keys, &us));
    const Stopwatch watch;
    const Digest digest = Sha256::Of(bytes);
    const double plain_us = watch.Us();
    if (digest.IsZero()) return Status(Code::kInternal, "a digest of zeros");
    ours.push_back(us);
    rival.push_back(plain_us);
    ratio.push_back(us / plain_us);
  }
  return HashFigures{Median(ours), Median(rival), Median(ratio)};
}

struct LookupFigures {
  double lookup_us = 0;
  double release_us = 0;
};
Result<LookupFigures> TimeLookups(const Engine& engine, std::span<const kvc_key> keys, int rounds) {
  std::vector<double> lookup, release;
  for (int round = 0; round <= rounds; ++round) {
    kvc_pages* made = nullptr;
    const Stopwatch watch;
    const kvc_code code = kvc_lookup_prefix(engine.reader.get(), engine.space.get(), keys.data(),
                                            keys.size(), &made, nullptr);
    const double lookup_us = watch.Us();
    if (code != KVC_OK) return Status(static_cast<Code>(code), "kvc_lookup_prefix");
    const size_t found = kvc_pages_found(made);
    const Stopwatch releasing;
    kvc_pages_release(made);
    const double release_us = releasing.Us();
    if (found != keys.size()) return Status(Code::kInternal, "resident pages were missed");
    if (round == 0) continue;  // Meets the arenas.
    lookup.push_back(lookup_us);
    release.push_back(release_us);
  }
  return LookupFigures{Median(lookup), Median(release)};
}

}  // namespace

Result<Figures> RunPrefix(const SuiteOptions& options) {
  const size_t token_count = options.quick ? 4096 : 128 * 1024;
  const int rounds = options.quick ? 5 : 201;
  ASSIGN_OR_RETURN(const Daemon daemon,
                   Daemon::Start({.binary = options.terraced, .capacity_bytes = 256u << 20}));
  const Residents residents{
      .socket = daemon.socket(), .salt = "prefix", .page_tokens = kPageTokens};
  ASSIGN_OR_RETURN(const Engine engine, StartEngine(residents, "prefix", /*read_only=*/false));
  Random random(1);
  std::vector<uint32_t> tokens(token_count);
  for (uint32_t& token : tokens)
    token = static_cast<uint32_t>(random.Below(128'256));

  std::vector<kvc_key> keys;
  double first_us = 0;
  RETURN_IF_ERROR(HashTokens(engine.space.get(), tokens, &keys, &first_us));
  ASSIGN_OR_RETURN(const Published published,
                   Put(engine.client.get(), engine.space.get(), {.keys = keys},
                       [](size_t, std::span<uint8_t>) {}));
  if (published.committed != keys.size()) return Status(Code::kExhausted, "pages were refused");
  ASSIGN_OR_RETURN(const HashFigures hash,
                   CompareHashing(engine.space.get(), tokens, std::max(5, rounds / 8)));
  ASSIGN_OR_RETURN(const LookupFigures lookup, TimeLookups(engine, keys, rounds));
  return Figures{{"hash_over_sha256", hash.ratio, "ratio"},
                 {"hash_us", hash.hash_us, "us"},
                 {"sha256_us", hash.sha256_us, "us"},
                 {"lookup_us", lookup.lookup_us, "us"},
                 {"release_us", lookup.release_us, "us"},
                 {"tokens", static_cast<double>(tokens.size()), "count"},
                 {"pages", static_cast<double>(keys.size()), "count"}};
}

}  // namespace terrace::bench
