// Verbs on single pages, and eviction.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "cli/text.h"
#include "cli/verbs.h"

namespace terrace::cli {
namespace {

constexpr double kCallSeconds = 10;

struct CloseSpace {
  void operator()(kvc_space* space) const { kvc_space_close(space); }
};
using Space = std::unique_ptr<kvc_space, CloseSpace>;
struct DestroyReader {
  void operator()(kvc_reader* reader) const { kvc_reader_destroy(reader); }
};
using Reader = std::unique_ptr<kvc_reader, DestroyReader>;
struct DestroyGrants {
  void operator()(kvc_grants* grants) const { kvc_grants_destroy(grants); }
};
using Grants = std::unique_ptr<kvc_grants, DestroyGrants>;
struct CloseFile {
  void operator()(std::FILE* file) const {
    if (file != stdin && file != stdout) std::fclose(file);
  }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

// The page that a PageChoice means.
struct ChosenPage {
  Space space;
  kvc_space_info info{};
  kvc_key key{};
  uint32_t valid_tokens = 0;
};

int FailUsage(const Invocation& invocation, const std::string& message) {
  return invocation.Fail(kExitUsage, "invalid_argument", message);
}

int FailErrno(const Invocation& invocation, const std::string& what) {
  return invocation.Fail(kExitFailed, "internal", what + ": " + std::strerror(errno));
}

kvc_key KeyFrom(const std::array<uint8_t, 32>& bytes) {
  kvc_key key;
  std::copy(bytes.begin(), bytes.end(), key.bytes);
  return key;
}

// All of `path` ("-": standard input), but no more than `limit` bytes and one.
int ReadAll(const Invocation& invocation, const std::string& path, size_t limit,
            std::vector<uint8_t>* bytes) {
  const File file(path == "-" ? stdin : std::fopen(path.c_str(), "rb"));
  if (!file) return FailErrno(invocation, path);
  bytes->resize(limit + 1);
  bytes->resize(std::fread(bytes->data(), 1, bytes->size(), file.get()));
  return std::ferror(file.get()) != 0 ? FailErrno(invocation, path) : kExitOk;
}

// Hashes the whole prefix; the page is its last one, full or partly filled.
int ChooseByTokens(const Invocation& invocation, const std::string& argument, ChosenPage* page) {
  std::string list = argument;
  if (argument.starts_with('@')) {
    constexpr size_t kMostBytes = 64u << 20;
    std::vector<uint8_t> bytes;
    if (int code = ReadAll(invocation, argument.substr(1), kMostBytes, &bytes); code != kExitOk) {
      return code;
    }
    list.assign(bytes.begin(), bytes.end());
  }
  const auto tokens = ParseTokens(list);
  if (!tokens || tokens->empty()) {
    return FailUsage(invocation, "--tokens: expected token ids below 2^32, separated by commas");
  }
  kvc_key key{};
  const kvc_key* parent = nullptr;
  for (size_t first = 0; first < tokens->size(); first += page->info.page_tokens) {
    const size_t count = std::min<size_t>(page->info.page_tokens, tokens->size() - first);
    kvc_key next{};
    const kvc_code code =
        kvc_page_key(page->space.get(), parent, tokens->data() + first, count, nullptr, 0, &next);
    if (code != KVC_OK) {
      return invocation.Fail(kExitFailed, kvc_code_name(code),
                             "the page's key could not be computed");
    }
    key = next;
    parent = &key;
    page->valid_tokens = static_cast<uint32_t>(count);
  }
  page->key = key;
  return kExitOk;
}

int Choose(Invocation& invocation, const PageChoice& choice, ChosenPage* page) {
  std::string id;
  if (int code = ResolveSpace(invocation, choice.space, &id); code != kExitOk) return code;
  const kvc_key space_id = KeyFrom(*ParseKey(id));
  kvc_space* space = nullptr;
  kvc_error error{};
  if (kvc_space_open_existing(invocation.client(), &space_id, invocation.TimeoutMs(kCallSeconds),
                              &space, &error) != KVC_OK) {
    return invocation.Fail(error);
  }
  page->space.reset(space);
  page->info.struct_size = sizeof page->info;
  kvc_space_get_info(space, &page->info);
  page->valid_tokens = page->info.page_tokens;
  if (!choice.tokens.empty()) return ChooseByTokens(invocation, choice.tokens, page);
  const auto key = ParseKey(choice.key);
  if (!key) return FailUsage(invocation, "--key: expected 64 hexadecimal digits");
  page->key = KeyFrom(*key);
  return kExitOk;
}

std::string HexOf(const kvc_key& key) {
  std::array<uint8_t, 32> bytes;
  std::copy(std::begin(key.bytes), std::end(key.bytes), bytes.begin());
  return Hex(bytes);
}

int Publish(Invocation& invocation, const ChosenPage& page, std::span<const uint8_t> bytes) {
  kvc_grants* made = nullptr;
  kvc_error error{};
  if (kvc_grant(invocation.client(), page.space.get(), &page.key, 1, nullptr,
                invocation.TimeoutMs(kCallSeconds), &made, &error) != KVC_OK) {
    return invocation.Fail(error);
  }
  const Grants grants(made);
  kvc_code code = kvc_grants_code(made, 0);
  if (code == KVC_OK) {
    std::memcpy(kvc_grants_data(made, 0), bytes.data(), bytes.size());
    if (kvc_commit(made, &page.valid_tokens, invocation.TimeoutMs(kCallSeconds), &error) !=
        KVC_OK) {
      return invocation.Fail(error);
    }
    code = kvc_grants_code(made, 0);
  }
  if (code == KVC_OK) return kExitOk;
  kvc_error refused{};
  refused.code = code;
  std::snprintf(refused.message, sizeof refused.message,
                code == KVC_ALREADY_EXISTS ? "page %s exists already: the first stays"
                                           : "page %s was refused",
                HexOf(page.key).c_str());
  return invocation.Fail(refused);
}

// Writes to a new file that replaces `path` only when it is whole.
bool WriteFile(const std::string& path, std::span<const uint8_t> bytes) {
  const std::string part = path + ".part";
  std::FILE* file = std::fopen(part.c_str(), "wb");
  if (file == nullptr) return false;
  const bool written = std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
  const bool whole = std::fclose(file) == 0 && written;
  if (whole && std::rename(part.c_str(), path.c_str()) == 0) return true;
  const int error = errno;
  std::remove(part.c_str());
  errno = error;
  return false;
}

}  // namespace

int PutPage(Invocation& invocation, const PageChoice& choice, const std::string& file) {
  if (int code = invocation.Connect(Invocation::Access::kWriter); code != kExitOk) return code;
  ChosenPage page;
  if (int code = Choose(invocation, choice, &page); code != kExitOk) return code;
  std::vector<uint8_t> bytes;
  if (int code = ReadAll(invocation, file, page.info.page_bytes, &bytes); code != kExitOk)
    return code;
  if (bytes.size() != page.info.page_bytes) {
    const std::string found = bytes.size() > page.info.page_bytes
                                  ? "more than that"
                                  : std::to_string(bytes.size()) + " bytes";
    return FailUsage(invocation, "a page of this space has " +
                                     std::to_string(page.info.page_bytes) + " bytes, but '" + file +
                                     "' has " + found);
  }
  if (int code = Publish(invocation, page, bytes); code != kExitOk) return code;
  const std::string key = HexOf(page.key);
  const nlohmann::ordered_json json = {{"space", HexOf(page.info.id)},
                                       {"key", key},
                                       {"bytes", bytes.size()},
                                       {"valid_tokens", page.valid_tokens}};
  const std::string text = "put page " + key + ": " + HumanBytes(bytes.size()) + ", " +
                           std::to_string(page.valid_tokens) + " tokens";
  return PrintOut((invocation.json() ? json.dump() : text) + "\n") ? kExitOk
                                                                   : invocation.FailOutput();
}

int GetPage(Invocation& invocation, const PageChoice& choice, const std::string& file) {
  if (file.empty() && invocation.json()) {
    return FailUsage(invocation, "with --json, name a file for the bytes: -o FILE");
  }
  if (file.empty() && isatty(STDOUT_FILENO) == 1) {
    return FailUsage(invocation, "a page's bytes are not for a terminal: name a file with -o FILE");
  }
  if (int code = invocation.Connect(Invocation::Access::kReadOnly); code != kExitOk) return code;
  ChosenPage page;
  if (int code = Choose(invocation, choice, &page); code != kExitOk) return code;
  kvc_reader* made = nullptr;
  kvc_error error{};
  if (kvc_reader_create(invocation.client(), &made, &error) != KVC_OK)
    return invocation.Fail(error);
  const Reader reader(made);
  kvc_page found{};
  kvc_miss why = KVC_MISS_NONE;
  const kvc_ticket ticket = kvc_pin(made, page.space.get(), &page.key, &found, &why);
  const std::string key = HexOf(page.key);
  if (ticket == 0) {
    if (why == KVC_MISS_DISCONNECTED) {
      return invocation.Fail(kExitNoDaemon, "unavailable", "the daemon went away");
    }
    return invocation.Fail(kExitNotFound, "not_found", "no page " + key + " is in memory",
                           "`terracectl pages --space ID` lists those that are");
  }
  const std::span bytes(static_cast<const uint8_t*>(found.data), found.bytes);
  bool written = false;
  if (file.empty()) {
    written = PrintOut({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  } else {
    written = WriteFile(file, bytes);
  }
  const int error_number = errno;
  kvc_unpin(made, ticket);
  errno = error_number;
  if (!written) return file.empty() ? invocation.FailOutput() : FailErrno(invocation, file);
  if (!invocation.json()) return kExitOk;
  const nlohmann::ordered_json json = {{"space", HexOf(page.info.id)},
                                       {"key", key},
                                       {"bytes", found.bytes},
                                       {"valid_tokens", found.valid_tokens},
                                       {"file", file}};
  return PrintOut(json.dump() + "\n") ? kExitOk : invocation.FailOutput();
}

int Evict(Invocation& invocation, uint64_t bytes) {
  if (int code = invocation.Connect(Invocation::Access::kReadOnly); code != kExitOk) return code;
  kvc_evicted evicted{};
  evicted.struct_size = sizeof evicted;
  kvc_error error{};
  if (kvc_evict(invocation.client(), bytes, invocation.TimeoutMs(kCallSeconds), &evicted, &error) !=
      KVC_OK) {
    return invocation.Fail(error);
  }
  const nlohmann::ordered_json json = {
      {"pages", evicted.pages}, {"blocks", evicted.blocks}, {"bytes", evicted.bytes}};
  std::string text = "evicted " + HumanBytes(evicted.bytes) + ": " + HumanCount(evicted.pages) +
                     " pages, " + HumanCount(evicted.blocks) + " blocks of weights";
  if (bytes > evicted.bytes) {
    text += "\nthe rest is held: see `terracectl clients`";
  }
  return PrintOut((invocation.json() ? json.dump() : text) + "\n") ? kExitOk
                                                                   : invocation.FailOutput();
}

}  // namespace terrace::cli
