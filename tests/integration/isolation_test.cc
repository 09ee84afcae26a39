// What processes of other users can do to a tenant's memory, by every way the kernel offers, and
// what the daemon's own user and CAP_DAC_OVERRIDE can. docs/security.md says the same in words.
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <cstring>

#include "bench/model_writer.h"
#include "proto/shared_memory.h"
#include "tests/integration/tenants_test.h"

namespace terrace {
namespace {

constexpr char kSecret[] = "bytes of tenant a";

// What became of trying, as errno; 0: it worked.
int TryOpen(const std::string& path, int flags) {
  const UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC));
  return fd ? 0 : errno;
}
int TryMap(int fd, int protection) {
  void* memory = ::mmap(nullptr, 4096, protection, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return errno;
  ::munmap(memory, 4096);
  return 0;
}
// A mapping that is readable now and to be made writable later.
int TryMakeWritable(int fd) {
  void* memory = ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return errno;
  const int error = ::mprotect(memory, 4096, PROT_READ | PROT_WRITE) == 0 ? 0 : errno;
  ::munmap(memory, 4096);
  return error;
}
std::string FdPath(pid_t pid, int fd) {
  return "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(fd);
}
std::string OwnPath(const UniqueFd& fd) {
  return FdPath(::getpid(), fd.get());
}

// Every way to change what a descriptor stands for, none of which may work.
Status CheckNoWayToWrite(const UniqueFd& fd, const std::string& what) {
  RETURN_UNLESS(TryMap(fd.get(), PROT_READ) == 0, what + ": it can be read");
  RETURN_UNLESS(TryMap(fd.get(), PROT_READ | PROT_WRITE) != 0, what + ": mapped writable");
  RETURN_UNLESS(TryMakeWritable(fd.get()) != 0, what + ": mprotect to writable");
  RETURN_UNLESS(::pwrite(fd.get(), "x", 1, 0) < 0, what + ": written");
  RETURN_UNLESS(::ftruncate(fd.get(), 0) != 0, what + ": truncated");
  RETURN_UNLESS(::fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) != 0,
                what + ": punched");
  RETURN_UNLESS(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_WRITE) != 0, what + ": sealed for others");
  RETURN_UNLESS(::fchmod(fd.get(), 0666) != 0, what + ": opened for all");
  return {};
}

// What a reader of tenant "a" is given of an arena, whatever it asks for.
Result<UniqueFd> ArenaForReading(WireClient& client, uint32_t arena) {
  wire::Arenas request;
  request.add_ids(arena);
  request.set_writable(true);
  std::vector<UniqueFd> fds;
  ASSIGN_OR_RETURN(const wire::ArenasReply reply,
                   client.Call<wire::ArenasReply>(wire::Type::kArenas, request, &fds));
  RETURN_UNLESS(fds.size() == 1 && !reply.arenas(0).writable(), "one arena, not writable");
  return std::move(fds[0]);
}

struct Held {
  uint32_t arena = 0;
  int arena_fd = -1;  // In the process of the writer.
  int channel_fd = -1;
  int directory_fd = -1;
};

class IsolationTest : public TenantsTest {
 protected:
  // A writer of tenant "a" with a published page, which holds all its descriptors until told.
  bench::Child StartVictim(const Who& who, const std::string& socket) {
    return StartAs(who, [socket](bench::Link& link) -> Status {
      ASSIGN_OR_RETURN(Arrived arrived, Arrive(socket));
      ASSIGN_OR_RETURN(const Granted granted, GrantOne(arrived.wire));
      RETURN_UNLESS(::pwrite(granted.fds[0].get(), kSecret, sizeof kSecret, 0) > 0, "writing");
      wire::Commit commit;
      commit.add_grants(granted.reply.grants(0));
      RETURN_IF_ERROR(arrived.wire.Call<wire::CommitReply>(wire::Type::kCommit, commit).status());
      RETURN_IF_ERROR(link.Send(
          Held{granted.arena(), granted.fds[0].get(), arrived.fds[0].get(), arrived.fds[1].get()}));
      return link.Receive<bench::Go>().status();
    });
  }
};

TEST_F(IsolationTest, AnotherTenantCannotObtainOpenOrGuessAnything) {
  bench::Child victim = StartVictim({kWriterOfA}, any_socket());
  const Held held = Hear<Held>(victim);
  const pid_t daemon_pid = daemon().pid();
  RunAs({kSomebody, {kGroupOfB}}, [&, this]() -> Status {
    ASSIGN_OR_RETURN(Arrived arrived, Arrive(any_socket()));
    RETURN_UNLESS(arrived.hello.tenant() == "b", arrived.hello.tenant());
    // Guessed ids, all that there are and many more.
    for (uint32_t first = 0; first < 2000; first += 200) {
      for (const bool writable : {false, true}) {
        wire::Arenas request;
        for (uint32_t id = first; id < first + 200; ++id)
          request.add_ids(id);
        request.set_writable(writable);
        std::vector<UniqueFd> fds;
        ASSIGN_OR_RETURN(const wire::ArenasReply reply,
                         arrived.wire.Call<wire::ArenasReply>(wire::Type::kArenas, request, &fds));
        RETURN_UNLESS(reply.arenas().empty() && fds.empty(), "an arena of another tenant");
      }
    }
    // Its space by its content: the same layout and salt are another space here, and empty.
    ASSIGN_OR_RETURN(const Granted granted, GrantOne(arrived.wire));
    RETURN_UNLESS(granted.reply.codes(0) == 0, "the same key is another page here");
    RETURN_UNLESS(granted.arena() != held.arena, "another arena");
    char bytes[sizeof kSecret] = {};
    RETURN_UNLESS(::pread(granted.fds[0].get(), bytes, sizeof bytes, 0) > 0, "its own arena");
    RETURN_UNLESS(std::memcmp(bytes, kSecret, sizeof bytes) != 0, "bytes of the other tenant");
    // A client's number and a guess of its token: the process is compared first.
    wire::Hello hello;
    hello.set_version_min(wire::kProtocolVersion);
    hello.set_version_max(wire::kProtocolVersion);
    for (uint64_t client = 1; client < 20; ++client) {
      hello.set_resume_client(client);
      hello.set_resume_token(client);
      WireClient another = WireClient::Connect(any_socket());
      const Status status = another.Call<wire::HelloReply>(wire::Type::kHello, hello).status();
      RETURN_UNLESS(status.code() == Code::kStale, status.ToString());
    }
    // The kernel's own ways.
    for (const int fd : {held.arena_fd, held.channel_fd, held.directory_fd}) {
      RETURN_UNLESS(TryOpen(FdPath(victim.pid(), fd), O_RDONLY) == EACCES, "open by /proc");
      RETURN_UNLESS(TryOpen(FdPath(victim.pid(), fd), O_RDWR) == EACCES, "open by /proc");
      const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, victim.pid(), 0)));
      RETURN_UNLESS(::syscall(SYS_pidfd_getfd, process.get(), fd, 0) < 0, "pidfd_getfd");
    }
    for (const pid_t pid : {victim.pid(), daemon_pid}) {
      const std::string process = "/proc/" + std::to_string(pid);
      RETURN_UNLESS(TryOpen(process + "/fd", O_RDONLY | O_DIRECTORY) == EACCES, "list of fds");
      RETURN_UNLESS(TryOpen(process + "/mem", O_RDONLY) == EACCES, "memory");
      RETURN_UNLESS(::ptrace(PTRACE_SEIZE, pid, nullptr, nullptr) != 0, "ptrace");
    }
    for (int fd = 0; fd < 64; ++fd)
      RETURN_UNLESS(TryOpen(FdPath(daemon_pid, fd), O_RDONLY) != 0, "a descriptor of the daemon");
    return {};
  });
  Tell(victim);
  ExpectDone(victim);
}

TEST_F(IsolationTest, AReaderCannotMakeAnythingWritable) {
  bench::Child writer = StartVictim({kWriterOfA}, any_socket());
  const Held held = Hear<Held>(writer);
  RunAs({kReaderOfA}, [&, this]() -> Status {
    ASSIGN_OR_RETURN(Arrived arrived, Arrive(any_socket()));
    ASSIGN_OR_RETURN(const UniqueFd arena, ArenaForReading(arrived.wire, held.arena));
    char bytes[sizeof kSecret] = {};
    RETURN_UNLESS(::pread(arena.get(), bytes, sizeof bytes, 0) > 0, "it reads its tenant's pages");
    RETURN_UNLESS(std::memcmp(bytes, kSecret, sizeof bytes) == 0, "the page");
    RETURN_IF_ERROR(CheckNoWayToWrite(arena, "arena"));
    RETURN_IF_ERROR(CheckNoWayToWrite(arrived.fds[1], "directory"));
    // The files are the daemon's and of mode 0600: not even for reading can they be opened again.
    const UniqueFd* const given[] = {&arena, &arrived.fds[0], &arrived.fds[1]};
    for (const UniqueFd* fd : given) {
      RETURN_UNLESS(TryOpen(OwnPath(*fd), O_RDWR) == EACCES, "reopened writable");
      RETURN_UNLESS(TryOpen(OwnPath(*fd), O_WRONLY) == EACCES, "reopened writable");
      RETURN_UNLESS(TryOpen(OwnPath(*fd), O_RDONLY) == EACCES, "reopened");
    }
    // Its own channel has to stay as long as it is.
    const int channel = arrived.fds[0].get();
    RETURN_UNLESS(TryMap(channel, PROT_READ | PROT_WRITE) == 0, "it writes its own channel");
    RETURN_UNLESS(::ftruncate(channel, 0) != 0, "channel: truncated");
    RETURN_UNLESS(::fcntl(channel, F_ADD_SEALS, F_SEAL_WRITE) != 0, "channel: sealed");
    return {};
  });
  Tell(writer);
  ExpectDone(writer);
}

TEST_F(IsolationTest, TwoTenantsOfOneUserAreToldApartButShareWhatTheKernelGivesAUser) {
  // Both of one user: of tenant "b" by a group, and by its socket of tenant "a", as a reader.
  bench::Child victim = StartVictim({kSomebody, {kGroupOfB}}, any_socket());
  const Held held = Hear<Held>(victim);
  RunAs({kSomebody}, [&, this]() -> Status {
    ASSIGN_OR_RETURN(Arrived arrived, Arrive(socket_of_a()));
    RETURN_UNLESS(arrived.hello.tenant() == "a", arrived.hello.tenant());
    wire::Arenas request;
    request.add_ids(held.arena);
    ASSIGN_OR_RETURN(const wire::ArenasReply reply,
                     arrived.wire.Call<wire::ArenasReply>(wire::Type::kArenas, request));
    RETURN_UNLESS(reply.arenas().empty(), "the daemon keeps them apart");
    RETURN_UNLESS(TryOpen(FdPath(victim.pid(), held.arena_fd), O_RDONLY) == EACCES,
                  "so does the mode of the memory");
    // But a process of the same user may be traced, and with that everything of it taken: here
    // the descriptor is duplicated. (Yama may forbid that; nothing else does.)
    const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, victim.pid(), 0)));
    const UniqueFd taken(
        static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), held.arena_fd, 0)));
    if (!taken) {
      RETURN_UNLESS(errno == EPERM, "pidfd_getfd");
      return {};
    }
    char bytes[sizeof kSecret] = {};
    RETURN_UNLESS(::pread(taken.get(), bytes, sizeof bytes, 0) > 0, "it can be read then");
    RETURN_UNLESS(std::memcmp(bytes, kSecret, sizeof bytes) == 0, "it can be read then");
    return {};
  });
  Tell(victim);
  ExpectDone(victim);
}

TEST_F(IsolationTest, TheDaemonsUserAndDacOverrideReachUnsealedArenasAndNothingSealed) {
  const std::string path = daemon().folder() + "/model";
  ASSERT_TRUE(
      WriteModel(path, {{"w", "BF16", {64, 64}}}, {.seed = 5, .shards = 1, .config_json = ""}));
  bench::Child writer = StartVictim({kWriterOfA}, any_socket());
  const Held held = Hear<Held>(writer);
  // Root is a stranger to these files: what it can do, CAP_DAC_OVERRIDE lets it.
  const auto attack = [&](bool becomes_daemons_user) {
    return [&, becomes_daemons_user]() -> Status {
      ASSIGN_OR_RETURN(Arrived admin, Arrive(admin_socket()));
      wire::ModelAdd add;
      add.set_name("m");
      add.set_version("1");
      add.add_files(path + "/model.safetensors");
      const UniqueFd file(::open(add.files(0).c_str(), O_RDONLY | O_CLOEXEC));
      RETURN_IF_ERROR(
          admin.wire.Call<wire::ModelAddReply>(wire::Type::kModelAdd, add, nullptr, {file.get()})
              .status());
      wire::Attach attach;
      attach.set_name("m");
      attach.set_load(true);
      std::vector<UniqueFd> manifest;
      ASSIGN_OR_RETURN(const auto attached,
                       admin.wire.Call<wire::AttachReply>(wire::Type::kAttach, attach, &manifest));
      wire::AttachBlocks wanted;
      wanted.set_attachment(attached.attachment());
      std::vector<UniqueFd> blocks;
      RETURN_IF_ERROR(
          admin.wire.Call<wire::AttachBlocksReply>(wire::Type::kAttachBlocks, wanted, &blocks)
              .status());
      RETURN_UNLESS(manifest.size() == 1 && blocks.size() == 1, "manifest and block");
      // A descriptor of the arena, as a reader of tenant "a" would have it.
      const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, writer.pid(), 0)));
      const UniqueFd arena(
          static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), held.arena_fd, 0)));
      RETURN_UNLESS(static_cast<bool>(arena), "a descriptor of the arena");
      if (becomes_daemons_user) RETURN_IF_ERROR(Become({kDaemonUser}));

      // Unsealed: it opens again for writing, for that is what the file's mode allows.
      const UniqueFd again(::open(OwnPath(arena).c_str(), O_RDWR | O_CLOEXEC));
      RETURN_UNLESS(static_cast<bool>(again), "an arena can be opened again");
      RETURN_UNLESS(TryMap(again.get(), PROT_READ | PROT_WRITE) == 0, "and mapped writable");
      RETURN_UNLESS(::ftruncate(again.get(), 0) != 0, "but its size is sealed");

      // Sealed against future writes: it opens, and nothing can be written by it.
      const std::pair<const UniqueFd*, const char*> sealed[] = {
          {&manifest[0], "manifest"}, {&blocks[0], "block"}, {&admin.fds[1], "directory"}};
      for (const auto& [fd, what] : sealed) {
        const UniqueFd opened(::open(OwnPath(*fd).c_str(), O_RDWR | O_CLOEXEC));
        RETURN_UNLESS(static_cast<bool>(opened), what);
        RETURN_UNLESS(TryMap(opened.get(), PROT_READ | PROT_WRITE) == EPERM, what);
        RETURN_UNLESS(TryMakeWritable(opened.get()) == EACCES, what);
        RETURN_UNLESS(::pwrite(opened.get(), "x", 1, 0) < 0 && errno == EPERM, what);
        RETURN_UNLESS(::ftruncate(opened.get(), 0) != 0, what);
        RETURN_UNLESS(
            ::fallocate(opened.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) != 0,
            what);
        RETURN_UNLESS(::fcntl(opened.get(), F_ADD_SEALS, F_SEAL_WRITE) != 0, what);
      }
      return {};
    };
  };
  RunAs({0}, attack(false));
  RunAs({0}, attack(true));
  Tell(writer);
  ExpectDone(writer);
}

TEST_F(IsolationTest, ABlockCannotBeWrittenByAnybodyWhoAttachesIt) {
  const std::string path = daemon().folder() + "/model";
  ASSERT_TRUE(
      WriteModel(path, {{"w", "BF16", {64, 64}}}, {.seed = 5, .shards = 1, .config_json = ""}));
  RunAs({0}, [&, this]() -> Status {
    ASSIGN_OR_RETURN(const bench::Client client,
                     bench::Connect({.socket = admin_socket(), .name = "admin"}));
    RETURN_IF_ERROR(AddModel(client.get(), "m", path));
    RETURN_UNLESS(kvc_model_grant(client.get(), "m", "a", 0, nullptr) == KVC_OK, "grant");
    return {};
  });
  RunAs({kWriterOfA}, [&, this]() -> Status {
    ASSIGN_OR_RETURN(Arrived arrived, Arrive(any_socket()));
    wire::Attach attach;
    attach.set_name("m");
    attach.set_load(true);
    std::vector<UniqueFd> manifest;
    ASSIGN_OR_RETURN(const auto attached,
                     arrived.wire.Call<wire::AttachReply>(wire::Type::kAttach, attach, &manifest));
    wire::AttachBlocks wanted;
    wanted.set_attachment(attached.attachment());
    std::vector<UniqueFd> blocks;
    RETURN_IF_ERROR(
        arrived.wire.Call<wire::AttachBlocksReply>(wire::Type::kAttachBlocks, wanted, &blocks)
            .status());
    RETURN_IF_ERROR(CheckNoWayToWrite(manifest.at(0), "manifest"));
    RETURN_IF_ERROR(CheckNoWayToWrite(blocks.at(0), "block"));
    RETURN_UNLESS(TryOpen(OwnPath(blocks[0]), O_RDWR) == EACCES, "block opened again");
    // Blocks are arenas too: by their numbers they are not to be had.
    wire::Arenas request;
    for (uint32_t id = 0; id < 200; ++id)
      request.add_ids(id);
    ASSIGN_OR_RETURN(const wire::ArenasReply reply,
                     arrived.wire.Call<wire::ArenasReply>(wire::Type::kArenas, request));
    RETURN_UNLESS(reply.arenas().empty(), "a block by its number");
    return {};
  });
}

}  // namespace
}  // namespace terrace
