// The verbs of terracectl. Each connects, acts, prints to standard output, and answers an exit code
// (invocation.h); main.cc turns arguments into calls.
#pragma once

#include <cstdint>
#include <string>

#include "cli/invocation.h"

namespace terrace::cli {

// ---- reports.cc
int ShowStatus(Invocation& invocation);
// `watch_s` not 0: again and again, with what was read and written since the last time.
int ShowTiers(Invocation& invocation, double watch_s);
int ShowModels(Invocation& invocation);
int ShowSpaces(Invocation& invocation);
int ShowClients(Invocation& invocation);
// `space`: an id or an unambiguous beginning of one; empty: all spaces.
int ShowPages(Invocation& invocation, const std::string& space, uint32_t limit);
// The full id of the space that `prefix` begins; on failure tells it and answers the exit code.
int ResolveSpace(Invocation& invocation, const std::string& prefix, std::string* id);

// ---- models.cc
struct ModelName {
  std::string name;
  std::string version;  // Empty: the one added last; for `remove`: all.
};
// "NAME" or "NAME@VERSION".
ModelName ParseModelName(const std::string& text);
int AddModel(Invocation& invocation, const ModelName& model, const std::string& path,
             bool import_image);
int RemoveModel(Invocation& invocation, const ModelName& model);
int GrantModel(Invocation& invocation, const std::string& name, const std::string& tenant);
int RevokeModel(Invocation& invocation, const std::string& name, const std::string& tenant);
// Which memory: that of the host, or with `on_device` of a device, by its number or UUID; empty:
// the only one.
struct TierChoice {
  bool on_device = false;
  std::string device;
};
int LoadModel(Invocation& invocation, const ModelName& model, const TierChoice& tier);
int UnloadModel(Invocation& invocation, const ModelName& model, const TierChoice& tier);

// ---- pages.cc
// Which page: exactly one of `key` (64 hexadecimal digits) and `tokens` (the whole prefix up to the
// end of the page, as a list, or @FILE that holds one) is not empty.
struct PageChoice {
  std::string space;
  std::string key;
  std::string tokens;
};
int PutPage(Invocation& invocation, const PageChoice& choice, const std::string& file);
// `file` empty: standard output.
int GetPage(Invocation& invocation, const PageChoice& choice, const std::string& file);
int Evict(Invocation& invocation, uint64_t bytes);

// ---- store.cc
int Demote(Invocation& invocation, uint64_t bytes);
struct PromoteChoice {
  std::string tenant;  // Empty: of all.
  std::string space;   // 64 hexadecimal digits; empty: of all.
  uint64_t bytes = 0;  // 0: as many as there is room for.
  bool wait = false;
};
int Promote(Invocation& invocation, const PromoteChoice& choice);
int Flush(Invocation& invocation);
struct FsckChoice {
  bool data = false;
  bool repair = false;
};
// kExitFindings for findings that were not repaired.
int Fsck(Invocation& invocation, const FsckChoice& choice);

// The daemon need not run.
int ShowVersion(Invocation& invocation);

}  // namespace terrace::cli
