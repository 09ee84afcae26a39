// Verbs: what each message of a client does.
//
// One handler a message type. A handler parses its message, checks what only the service can know
// (lengths, counts, descriptors, roles), calls the engine, and replies; what the engine refuses is
// answered with an Error frame. Verbs that wait for a tier answer later, by caller id: the caller
// may be gone by then. Owner thread only; owned by Service.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "daemon/service/client_record.h"
#include "daemon/service/reports.h"

namespace terrace::wire {
class Arena;
class Arenas;
class AttachBlocksReply;
class PoolPages;
class Report;
}  // namespace terrace::wire

namespace terrace {

inline constexpr uint32_t kMaxReportPages = 10'000;
inline constexpr uint32_t kMaxAttachBlocks = 4096;  // Of one message.
inline constexpr size_t kBlocksWhenShort =
    4;  // Of a step of AttachBlocks, where there is little room.
inline constexpr uint32_t kMaxLetGo = 16'384;  // Arenas of one message.
inline constexpr uint32_t kMaxModelFiles = 1024;
inline constexpr int64_t kProgressIntervalMs = 50;
// An eviction by hand goes in steps, between which others have their turn: each of at most so many
// pages and blocks, and no more bytes than this and a block.
inline constexpr uint64_t kEvictStepItems = 512;
inline constexpr uint64_t kEvictStepBytes = 64u << 20;

struct VerbLimits {
  uint32_t clients = 0;
  uint32_t clients_per_process = 0;
  uint32_t clients_per_user = 0;
  uint64_t host_capacity_bytes = 0;  // What the host tier may grow to.
  uint32_t reader_stall_ms = 30'000;
};

class Verbs {
 public:
  struct Parts {
    Engine* engine = nullptr;
    HostTier* host = nullptr;
    OwnerLoop* loop = nullptr;
    const Clock* clock = nullptr;
    ClientTable* clients = nullptr;
    CallerTable* callers = nullptr;
    const VerbLimits* limits = nullptr;
    uint64_t life = 0;
    // The part of a status report that only the service knows.
    std::function<ServiceReport()> service_report;
  };
  explicit Verbs(Parts parts);
  ~Verbs();

  void Handle(Caller& caller, Frame& frame);
  // How many descriptors the handler of such a message sends at most without asking for room.
  static size_t FdsOfReply(const wire::FrameHeader& header);
  // The client's process is gone or it said goodbye: everything of it ends.
  void EndClient(ClientId id, const Status& why);
  // The client's connection has ended: attachments that it never used end with it, and so does a
  // client that has sent nothing but its hello, which holds nothing and may never have learned who
  // it is. Not to be called from within a verb of the engine.
  void EndUnused(ClientRecord& client);
  // Nothing where it is away: it is told when it comes back.
  static void TellUnmapWanted(ClientRecord& client, const UnmapRequest& request);

 private:
  // Where a late reply goes.
  struct Ticket {
    uint64_t caller = 0;
    uint64_t request = 0;
    ClientId client = 0;
  };
  // What a step of a long verb came to. kWaits: there is no room for its descriptors. kYields: it
  // waits for what its own client may have to give back; it bounds that itself.
  enum class StepEnd : uint8_t { kDone, kMore, kWaits, kYields };
  struct Verb {
    wire::Type type;
    Status (Verbs::*handle)(Caller&, Frame&);
    size_t reply_fds = 0;  // See FdsOfReply.
    bool takes_fds = false;
  };
  struct Messages;  // Of each page verb one, reused so that parsing does not allocate.

  static const Verb* FindVerb(wire::Type type);

  // verbs_client.cc
  Status OnHello(Caller& caller, Frame& frame);
  Status Resume(Caller& caller, ClientId id, uint64_t token);
  // The channel's descriptor.
  Result<UniqueFd> Arrive(Caller& caller, const Identity& identity, const ClientSpec& spec);
  Status SendHelloReply(Caller& caller, uint64_t request, bool resumed, UniqueFd channel);
  void TellMissed(ClientRecord& client);
  // Attachments and pools whose numbers it may never have learned.
  void EndUnusedNumbers(ClientRecord& client);
  void OnProcessGone(ClientRecord& client);
  Status OnPing(Caller& caller, Frame& frame);
  Status OnGoodbye(Caller& caller, Frame& frame);
  Status OnDirectory(Caller& caller, Frame& frame);
  Status OnArenas(Caller& caller, Frame& frame);
  // The only step: all of them, when there is room.
  StepEnd SendArenas(Caller& caller, uint64_t request, const wire::Arenas& arenas);

  // verbs_pages.cc
  Status OnOpenSpace(Caller& caller, Frame& frame);
  Status OnCloseSpace(Caller& caller, Frame& frame);
  Status OnGrant(Caller& caller, Frame& frame);
  // A step: done when there are answers for all of `keys`.
  struct GrantSoFar {
    std::vector<GrantGiven> given;
    MonotonicNs waits_since = 0;  // For memory of a device; 0: the last step got some.
  };
  StepEnd GrantMore(Caller& caller, uint64_t request, GrantSpec spec, std::span<const Digest> keys,
                    GrantSoFar* so_far);
  void SendGrants(Caller& caller, uint64_t request, std::span<const GrantGiven> given);
  Status OnCommit(Caller& caller, Frame& frame);
  Status OnAbort(Caller& caller, Frame& frame);
  Status OnDrop(Caller& caller, Frame& frame);
  Status TakeKeys(const std::string& bytes);

  // verbs_store.cc
  Status OnPrefetch(Caller& caller, Frame& frame);
  Status OnPersist(Caller& caller, Frame& frame);
  Status OnDemote(Caller& caller, Frame& frame);
  Status OnPromote(Caller& caller, Frame& frame);
  Status OnFsck(Caller& caller, Frame& frame);
  Status OnFlush(Caller& caller, Frame& frame);

  // verbs_weights.cc
  Status OnModelAdd(Caller& caller, Frame& frame);
  Status OnModelRemove(Caller& caller, Frame& frame);
  Status OnModelAccess(Caller& caller, Frame& frame);
  Status OnLoad(Caller& caller, Frame& frame);
  Status OnUnload(Caller& caller, Frame& frame);
  Status OnAttach(Caller& caller, Frame& frame);
  Status OnAttachBlocks(Caller& caller, Frame& frame);
  Status OnAttachWait(Caller& caller, Frame& frame);
  Status OnDetach(Caller& caller, Frame& frame);
  // A step: the next frame of descriptors, of those blocks that the client may still have.
  StepEnd SendBlocks(Caller& caller, uint64_t request, uint64_t attachment,
                     std::span<const uint32_t> numbers, size_t* next);
  void FinishAttach(const Ticket& ticket, const Result<Attached>& attached);

  // verbs_devices.cc
  Status OnDevices(Caller& caller, Frame& frame);
  Status OnLetGo(Caller& caller, Frame& frame);
  // What the client maps a block by: a descriptor, or where the device has no slabs a handle.
  Status AddBlock(Caller& caller, ArenaId arena, wire::AttachBlocksReply* reply,
                  std::vector<UniqueFd>* fds);

  // verbs_pools.cc
  Status OnPoolAdd(Caller& caller, Frame& frame);
  Status OnPoolRemove(Caller& caller, Frame& frame);
  Status OnPoolStore(Caller& caller, Frame& frame);
  Status OnPoolFetch(Caller& caller, Frame& frame);
  Result<PoolPages> PoolPagesOf(const Caller& caller, const wire::PoolPages& message);
  template <typename Reply>
  void SendPoolCodes(const Ticket& ticket, wire::Type type, const Result<std::vector<Code>>& codes);

  // verbs_admin.cc
  Status OnEvict(Caller& caller, Frame& frame);
  Status OnReport(Caller& caller, Frame& frame);
  // As JSON, of what this caller may see.
  Result<std::string> ReportFor(const Identity& identity, const wire::Report& request);

  // An error unless the caller has the role of the operator here.
  static Status CheckAdmin(const Caller& caller, std::string_view verb);
  Ticket Begin(Caller& caller, uint64_t request);
  // Tells who waits for the ticket's reply how far it is, now and then.
  Progress ProgressTo(const Ticket& ticket);
  // For verbs that take long: `step` is called in turns of the loop, one step of one verb a turn,
  // in rotation, until it is done, having replied. However many ask, what is short is answered
  // in between. The caller is paused meanwhile: the order of its requests stays, and it has one
  // such verb. One that yields ends the pause for good: what the caller sends next is handled
  // before it is done, and it may have more of these, each a request in flight. Who is gone, or
  // comes back by another connection, gets no further step. Steps that wait are left out of the
  // rotation: kWaitersAtATime of them come back to it every kStepsAgain, and who has waited for
  // room for reader_stall is answered `exhausted`.
  using Step = std::function<StepEnd(Caller&, uint64_t request)>;
  struct LongVerb {
    Ticket ticket;
    Step step;
    MonotonicNs waits_since = 0;  // 0: its last step did not wait.
    bool paused = true;           // Its caller, by it.
  };
  void BeginLong(Caller& caller, uint64_t request, Step step);
  void RunStep();
  void Rotate(LongVerb verb);
  void RotateWaiting();
  void EndPause(LongVerb* verb, Caller& caller);
  // Whether it waits on: it has not waited for too long.
  bool MayWait(LongVerb* verb, Caller& caller);
  // The caller that waits for this ticket's reply, as the client that asked; null when nobody does
  // any more.
  Caller* Waiting(const Ticket& ticket);
  // Likewise, whatever became of the client; it waits no more.
  Caller* Finish(const Ticket& ticket);
  // The descriptor of a slab, noted as given to the client: it is told when the slab goes.
  Result<UniqueFd> GiveArena(ClientRecord& client, ArenaId arena, bool writable);
  // An arena of a device that was counted as given, in a reply that was not sent.
  void TakeBackArena(ClientRecord& client, ArenaId arena);
  // What the client maps an arena by: a descriptor goes to `fds`, a handle into the message.
  Status AddArena(Caller& caller, const ArenaFacts& facts, bool writable, wire::Arena* arena,
                  std::vector<UniqueFd>* fds);

  const Parts parts_;
  std::unique_ptr<Messages> messages_;
  // In rotation; with those that wait one a connection, besides those that yielded.
  std::deque<LongVerb> long_verbs_;
  std::deque<LongVerb> waiting_;
  OwnerLoop::Timer steps_again_;  // Runs while any waits.
};

}  // namespace terrace
