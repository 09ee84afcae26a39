// The unit's SystemCallFilter= lets the real daemon run: it is installed by libseccomp, from the
// lists that systemd-analyze prints, before the daemon is executed, but kills where the unit
// refuses.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <seccomp.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "tests/service/wire_client.h"
#include "tests/systemd/service_manager.h"

namespace terrace {
namespace {

using Calls = std::set<std::string>;

std::string OutputOf(const std::string& command) {
  std::string text;
  FILE* pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) return text;
  char buffer[4096];
  for (size_t got; (got = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;)
    text.append(buffer, got);
  return ::pclose(pipe) == 0 ? text : "";
}

// A name, or "@group" with all that it holds.
Calls Expand(const std::string& word) {
  if (word.front() != '@') return {word};
  Calls calls;
  std::istringstream lines(OutputOf("systemd-analyze syscall-filter " + word + " 2>/dev/null"));
  std::string line;
  std::getline(lines, line);  // The group itself.
  while (std::getline(lines, line)) {
    const size_t start = line.find_first_not_of(' ');
    if (start == std::string::npos || line[start] == '#') continue;
    calls.merge(Expand(line.substr(start)));
  }
  return calls;
}

// What the unit allows: its lines in their order, those with ~ taken away.
Calls AllowedByTheUnit() {
  Calls allowed = Expand("@default");
  std::ifstream unit(TERRACED_UNIT);
  for (std::string line; std::getline(unit, line);) {
    const std::string key = "SystemCallFilter=";
    if (!line.starts_with(key)) continue;
    const bool deny = line[key.size()] == '~';
    std::istringstream words(line.substr(key.size() + (deny ? 1 : 0)));
    for (std::string word; words >> word;) {
      for (const std::string& call : Expand(word)) {
        if (deny) {
          allowed.erase(call);
        } else {
          allowed.insert(call);
        }
      }
    }
  }
  return allowed;
}

constexpr int kCachestat = 451;  // Linux 6.5.

bool Install(const Calls& allowed) {
  const scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
  if (filter == nullptr) return false;
  bool good = true;
  for (const std::string& name : allowed) {
    const int number = seccomp_syscall_resolve_name(name.c_str());
    if (number < 0) continue;  // A name of another architecture.
    good = good && seccomp_rule_add(filter, SCMP_ACT_ALLOW, number, 0) == 0;
  }
  // systemd answers this one with EPERM where it does not know its name; the daemon can do without.
  good = good && seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), kCachestat, 0) == 0;
  good = good && ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && seccomp_load(filter) == 0;
  seccomp_release(filter);
  return good;
}

// A page that was granted goes to the store and comes back: by io_uring, where there is one.
void StoreAndFetch(WireClient& client, const wire::OpenSpaceReply& space, uint64_t granted) {
  wire::Commit commit;
  commit.add_grants(granted);
  EXPECT_EQ(client.Call<wire::CommitReply>(wire::Type::kCommit, commit).status(), Status());
  wire::Persist persist;
  persist.set_slot(space.slot());
  persist.set_epoch(space.epoch());
  persist.set_keys(std::string(32, 'k'));
  const auto durable = client.Call<wire::PersistReply>(wire::Type::kPersist, persist);
  ASSERT_EQ(durable.status(), Status());
  EXPECT_EQ(durable->codes(0), 0u);
  const auto evicted = client.Call<wire::EvictReply>(wire::Type::kEvict, wire::Evict());
  ASSERT_EQ(evicted.status(), Status());
  EXPECT_EQ(evicted->pages(), 1u);
  wire::Prefetch prefetch;
  prefetch.set_slot(space.slot());
  prefetch.set_epoch(space.epoch());
  prefetch.set_keys(std::string(32, 'k'));
  prefetch.set_deadline_ms(60'000);
  const auto fetched = client.Call<wire::PrefetchReply>(wire::Type::kPrefetch, prefetch);
  ASSERT_EQ(fetched.status(), Status());
  EXPECT_EQ(fetched->codes(0), 0u);
  EXPECT_EQ(client.Call<wire::FlushReply>(wire::Type::kFlush, wire::Flush()).status(), Status());
}

class SystemCalls : public testing::Test {
 protected:
  void SetUp() override {
    if (OutputOf("systemd-analyze --version 2>/dev/null").empty()) {
      GTEST_SKIP() << "systemd-analyze is not installed";
    }
    allowed_ = AllowedByTheUnit();
    ASSERT_GT(allowed_.size(), 100u);
  }
  Calls allowed_;
};

TEST_F(SystemCalls, TheUnitAllowsWhatTheDaemonNeeds) {
  ServiceManagerOptions options;
  options.sockets = {{.name = "engines", .path = "given.sock"}};
  options.environment = {"WATCHDOG_USEC=1000000"};
#ifdef __SANITIZE_ADDRESS__
  // The search for leaks at the end makes calls of its own.
  options.environment.push_back("ASAN_OPTIONS=detect_leaks=0");
#endif
  options.in_child = [this] { return Install(allowed_); };
  ServiceManager manager(std::move(options));
  const std::string given = "[[socket]]\npath = \"" + manager.folder() +
                            "/given.sock\"\ntenant = \"default\"\nrole = \"admin\"\nadmin = true\n";
  const std::string own =
      "[[socket]]\npath = \"" + manager.folder() + "/own.sock\"\ntenant = \"b\"\n";
  ASSERT_EQ(::mkdir((manager.folder() + "/nvme").c_str(), 0700), 0);
  const std::string store =
      "[[nvme]]\npath = \"" + manager.folder() + "/nvme\"\ncapacity = \"64MiB\"\n";
  // With the process of a device, which inherits the filter.
  manager.WriteConfig(given + own + store + "[devices]\ndevice = \"host\"\n");
  // Memory in advance too, by threads of low priority.
  const std::string config = manager.config_file();
  std::string text = [&] {
    std::ostringstream read;
    read << std::ifstream(config).rdbuf();
    return read.str();
  }();
  text.replace(text.find("\"none\""), 6, "\"all\"");
  std::ofstream(config) << text;
  ASSERT_EQ(manager.Launch(), Status());
  ASSERT_TRUE(manager.AwaitReady().has_value()) << manager.Log();

  const std::string socket = manager.folder() + "/given.sock";
  const auto terracectl = [&](const std::string& verb) {
    return OutputOf(std::string(TERRACECTL_PATH) + " --socket " + socket + " " + verb + " 2>&1");
  };
  std::string status = terracectl("status");
  for (int look = 0; look < 2000 && status.find("device 1      serving") == status.npos; ++look)
    status = terracectl("status");
  EXPECT_NE(status.find("device 1      serving"), status.npos) << status << manager.Log();
  const std::string model = manager.folder() + "/model.safetensors";
  // One tensor of 4 MiB.
  const std::string header = R"({"w":{"dtype":"U8","shape":[4194304],"data_offsets":[0,4194304]}})";
  {
    std::ofstream file(model, std::ios::binary);
    const uint64_t size = header.size();
    file.write(reinterpret_cast<const char*>(&size), sizeof size);
    file << header << std::string(4194304, 'w');
  }
  EXPECT_NE(terracectl("model add m --version 1 --from " + model), "") << manager.Log();
  EXPECT_NE(terracectl("load m"), "") << manager.Log();
  EXPECT_NE(terracectl("unload m"), "") << manager.Log();
  EXPECT_NE(terracectl("evict --all"), "") << manager.Log();

  WireClient client = WireClient::Connect(socket);
  ASSERT_EQ(client.Hello("engine").status(), Status()) << manager.Log();
  wire::OpenSpace open;
  wire::Layout* layout = open.mutable_layout();
  layout->set_dtype("bf16");
  layout->set_layers(2);
  layout->set_kv_heads(2);
  layout->set_head_size(16);
  layout->set_page_tokens(16);
  layout->set_planes(2);
  layout->set_order("layer,plane,token,head,dim");
  open.set_weights_digest(std::string(32, 'w'));
  const Result<wire::OpenSpaceReply> space =
      client.Call<wire::OpenSpaceReply>(wire::Type::kOpenSpace, open);
  ASSERT_EQ(space.status(), Status()) << manager.Log();
  wire::Grant grant;
  grant.set_slot(space->slot());
  grant.set_epoch(space->epoch());
  grant.set_keys(std::string(32, 'k'));
  std::vector<UniqueFd> arenas;
  const auto granted = client.Call<wire::GrantReply>(wire::Type::kGrant, grant, &arenas);
  ASSERT_EQ(granted.status(), Status()) << manager.Log();
  EXPECT_FALSE(arenas.empty());
  StoreAndFetch(client, *space, granted->grants(0));

  manager.WriteConfig(given + store + "[limits]\npins = 64\n");  // A socket goes, a limit changes.
  manager.Signal(SIGHUP);
  ASSERT_TRUE(manager.AwaitReady().has_value()) << manager.Log();
  EXPECT_TRUE(manager.notifications().ReceiveWith("WATCHDOG=1").has_value());
  manager.Signal(SIGTERM);
  const Result<int> code = manager.AwaitExit();
  ASSERT_EQ(code.status(), Status());
  EXPECT_EQ(*code, 0) << manager.Log();
}

TEST_F(SystemCalls, ACallThatIsNotAllowedWouldBeSeen) {
  ServiceManagerOptions options;
  allowed_.erase("memfd_create");
  options.in_child = [this] { return Install(allowed_); };
  ServiceManager manager(std::move(options));
  manager.WriteConfig("", "socket = \"" + manager.folder() + "/t.sock\"\n");
  ASSERT_EQ(manager.Launch(), Status());
  const Result<int> code = manager.AwaitExit();
  ASSERT_EQ(code.status(), Status());
  EXPECT_EQ(*code, 128 + SIGSYS);
}

TEST_F(SystemCalls, PrivilegedOnesAreNotAllowed) {
  for (const char* name :
       {"mount", "ptrace", "reboot", "init_module", "bpf", "setuid", "swapon", "kexec_load",
        "unshare", "setns", "chroot", "keyctl", "process_vm_readv"}) {
    EXPECT_FALSE(allowed_.contains(name)) << name;
  }
}

}  // namespace
}  // namespace terrace
