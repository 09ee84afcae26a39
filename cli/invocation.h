// What every verb of terracectl shares: the connection to the daemon, the exit codes, and how a
// failure is told.
//
// One thread uses it.
#pragma once

#include <kvclient/admin.h>
#include <kvclient/kvclient.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace terrace::cli {

// Listed in `terracectl --help`; scripts rely on the numbers.
enum ExitCode : int {
  kExitOk = 0,
  kExitFailed = 1,    // The daemon refused, or something broke; standard error says what.
  kExitUsage = 2,     // The arguments cannot be right.
  kExitNoDaemon = 3,  // Nobody listens at the socket, or the daemon went away.
  kExitNotFound = 4,  // No such model, space or page.
  kExitDeadline = 5,  // --timeout passed first; the outcome is open.
  kExitFindings = 6,  // `fsck` found something, and was not to repair it.
};

struct CommonOptions {
  std::string socket;    // Empty: the user's default.
  double timeout_s = 0;  // 0: the verb's default.
  bool json = false;
};

// Standard output, whole or failed: a full disk must not look like success.
bool PrintOut(std::string_view text);

class Invocation {
 public:
  explicit Invocation(CommonOptions options) : options_(std::move(options)) {}

  enum class Access { kReadOnly, kWriter };
  // kExitOk, or the exit code after the failure was told.
  int Connect(Access access);
  // The same as a reader, without a word on failure.
  bool TryConnect();
  kvc_client* client() const { return client_.get(); }

  // The deadline of one call: --timeout, else `default_s`.
  int32_t TimeoutMs(double default_s) const;
  bool json() const { return options_.json; }

  // Tells what failed and what to do next (`hint`, may be empty; common codes have their own), as a
  // line or, with --json, as an object {"error": {"code", "message", "hint"}} on standard error.
  int Fail(const kvc_error& error, std::string_view hint = {}) const;
  int Fail(ExitCode exit_code, std::string_view code, std::string_view message,
           std::string_view hint = {}) const;
  // For output that went wrong.
  int FailOutput() const;

 private:
  struct Close {
    void operator()(kvc_client* client) const { kvc_close(client); }
  };

  std::string Socket() const;
  kvc_code Open(Access access, kvc_error* error);

  const CommonOptions options_;
  std::unique_ptr<kvc_client, Close> client_;
};

}  // namespace terrace::cli
