#include "cli/invocation.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "cli/text.h"

namespace terrace::cli {
namespace {

// The library's rule (kvclient.h, kvc_client_options), told again for the message.
std::string DefaultSocket() {
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  if (runtime != nullptr && *runtime != '\0') {
    return std::string(runtime) + "/terrace/terraced.sock";
  }
  return "/tmp/terrace-" + std::to_string(getuid()) + "/terraced.sock";
}

ExitCode ExitCodeOf(kvc_code code) {
  switch (code) {
    case KVC_OK:
      return kExitOk;
    case KVC_UNAVAILABLE:
      return kExitNoDaemon;
    case KVC_NOT_FOUND:
      return kExitNotFound;
    case KVC_DEADLINE_EXCEEDED:
      return kExitDeadline;
    default:
      return kExitFailed;
  }
}

std::string_view CommonHint(kvc_code code) {
  switch (code) {
    case KVC_UNAVAILABLE:
      return "the daemon went away: see its log, then try again";
    case KVC_DEADLINE_EXCEEDED:
      return "the daemon may still be at it: look with `terracectl status`, or wait longer with "
             "--timeout SECONDS";
    case KVC_EXHAUSTED:
      return "`terracectl clients` shows who holds memory, `terracectl evict --all` gives back "
             "what "
             "nobody holds";
    default:
      return {};
  }
}

}  // namespace

bool PrintOut(std::string_view text) {
  return std::fwrite(text.data(), 1, text.size(), stdout) == text.size() &&
         std::fflush(stdout) == 0;
}

std::string Invocation::Socket() const {
  return options_.socket.empty() ? DefaultSocket() : options_.socket;
}

kvc_code Invocation::Open(Access access, kvc_error* error) {
  kvc_client_options options{};
  options.struct_size = sizeof options;
  options.socket_path = options_.socket.empty() ? nullptr : options_.socket.c_str();
  options.name = "terracectl";
  options.read_only = access == Access::kReadOnly ? 1 : 0;
  options.timeout_ms = TimeoutMs(10);
  options.no_reconnect = 1;
  kvc_client* client = nullptr;
  const kvc_code code = kvc_connect(&options, &client, error);
  if (code == KVC_OK) client_.reset(client);
  return code;
}

bool Invocation::TryConnect() {
  kvc_error error{};
  return Open(Access::kReadOnly, &error) == KVC_OK;
}

int Invocation::Connect(Access access) {
  kvc_error error{};
  const kvc_code code = Open(access, &error);
  if (code == KVC_OK) return kExitOk;
  if (code != KVC_UNAVAILABLE) return Fail(error);
  return Fail(kExitNoDaemon, kvc_code_name(code),
              "no daemon listens at " + Socket() + " (" + error.message + ")",
              "start it with `terraced`, or name its socket with --socket PATH");
}

int32_t Invocation::TimeoutMs(double default_s) const {
  return static_cast<int32_t>((options_.timeout_s > 0 ? options_.timeout_s : default_s) * 1000);
}

int Invocation::Fail(const kvc_error& error, std::string_view hint) const {
  return Fail(ExitCodeOf(error.code), kvc_code_name(error.code), error.message,
              hint.empty() ? CommonHint(error.code) : hint);
}

int Invocation::Fail(ExitCode exit_code, std::string_view code, std::string_view message,
                     std::string_view hint) const {
  std::string text;
  if (options_.json) {
    nlohmann::ordered_json error = {{"code", code}, {"message", message}};
    if (!hint.empty()) error["hint"] = hint;
    text = nlohmann::ordered_json{{"error", error}}.dump(
        -1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  } else {
    text = "terracectl: " + Printable(message);
    if (!hint.empty()) text += "\n  " + std::string(hint);
  }
  std::fprintf(stderr, "%s\n", text.c_str());
  return exit_code;
}

int Invocation::FailOutput() const {
  return Fail(kExitFailed, "internal", "standard output could not be written");
}

}  // namespace terrace::cli
