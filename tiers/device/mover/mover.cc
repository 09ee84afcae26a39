#include "tiers/device/mover/mover.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/mutex.h"
#include "base/worker_pool.h"
#include "tiers/device/mover/arenas.h"
#include "tiers/device/mover/messages.h"

namespace terrace {
namespace {

// Where no notification comes, as from a context that died: how often events are looked at all the
// same.
constexpr int kLookEveryMs = 100;
constexpr int kPacketsOfATurn = 32;
constexpr int kLastWordsMs = 1000;

bool IsFatal(const Status& status) {
  return status.code() == Code::kStale || status.code() == Code::kUnavailable;
}

// stride * count + bytes, or the largest there is: more than any arena has.
uint64_t Extent(uint64_t count, uint64_t stride, uint64_t bytes) {
  uint64_t product = 0;
  uint64_t sum = 0;
  if (__builtin_mul_overflow(count, stride, &product) ||
      __builtin_add_overflow(product, bytes, &sum)) {
    return ~uint64_t{0};
  }
  return sum;
}

class Mover {
 public:
  Mover(std::unique_ptr<Gpu> gpu, const MoverSocket& socket, const MoverOptions& options)
      : socket_(socket),
        options_(options),
        arenas_(*gpu, options.arenas,
                std::min(options.registration_bytes, gpu->facts().registration_bytes)),
        owned_gpu_(std::move(gpu)),
        gpu_(*owned_gpu_) {}

  Status Start() {
    bell_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!bell_) return SystemError("eventfd of a mover", errno);
    for (MoverLane* lane : {&in_, &out_, &within_}) {
      ASSIGN_OR_RETURN(lane->work, gpu_.CreateStream());
      ASSIGN_OR_RETURN(lane->bell, gpu_.CreateStream());
    }
    ASSIGN_OR_RETURN(staging_, MoverStaging::Start(gpu_, options_.staging, in_, out_, bell_.get()));
    // Every arena has at most one piece there.
    ASSIGN_OR_RETURN(registrar_,
                     WorkerPool::Start(
                         {.name = "mover-register", .threads = 1, .queue_limit = options_.arenas}));
    MoverReady ready;
    ready.facts = gpu_.facts();
    Send(0, std::move(ready));
    return {};
  }

  // Ends as ServeMover does. Threads are stopped before anything that they use goes.
  Status Serve() {
    Status ending;
    while (ending.ok() && !closed_) {
      ending = Turn();
    }
    registrar_.reset();
    staging_->Stop();
    if (!ending.ok()) SayLastWords(ending);
    return ending;
  }

 private:
  // Work that is under way, and what is answered when it is done.
  struct Work {
    uint64_t request = 0;
    std::optional<GpuEvent> event;  // Of what was put on a stream.
    bool staged = false;            // Staging is not done with the rest.
    std::vector<ArenaId> arenas;    // It uses them.
    MoverAnswer answer;
    UniqueFd fd;
  };
  struct Registration {
    ArenaId arena = 0;
    Result<HostRegion> region;
  };
  struct Packet {
    std::vector<uint8_t> bytes;
    UniqueFd fd;
  };

  // A dead context is the only error.
  Status Turn() {
    RETURN_IF_ERROR(Wait());
    RETURN_IF_ERROR(Collect());
    // Who does not read its answers is not read.
    for (int i = 0; i < kPacketsOfATurn && answers_.empty() && !closed_; ++i) {
      Result<std::optional<MoverSocket::Packet>> packet = socket_.Receive();
      if (!packet && packet.error().code() == Code::kInvalidArgument) {
        Answer(0, packet.error());
        continue;
      }
      if (!packet) {
        closed_ = true;
        break;
      }
      if (!packet->has_value()) break;
      RETURN_IF_ERROR(Take(**packet));
    }
    // What was taken need not wait for the next turn.
    return Collect();
  }

  Status Collect() {
    RETURN_IF_ERROR(CollectStaging());
    RETURN_IF_ERROR(CollectWork());
    RETURN_IF_ERROR(CollectRegistrations());
    Flush();
    return {};
  }

  Status Wait() {
    pollfd waits[] = {{.fd = socket_.fd(),
                       .events = static_cast<short>(answers_.empty() ? POLLIN : POLLOUT),
                       .revents = 0},
                      {.fd = bell_.get(), .events = POLLIN, .revents = 0}};
    if (::poll(waits, 2, work_.empty() ? -1 : kLookEveryMs) < 0 && errno != EINTR) {
      return SystemError("poll of a mover", errno);
    }
    uint64_t rings = 0;
    (void)!::read(bell_.get(), &rings, sizeof rings);
    return {};
  }

  Status CollectStaging() {
    ASSIGN_OR_RETURN(std::vector<MoverStaging::Ended> ended, staging_->Turn());
    for (MoverStaging::Ended& one : ended) {
      const auto work = std::ranges::find(work_, one.request, &Work::request);
      work->staged = false;
      if (work->answer.status.ok()) work->answer.status = std::move(one.status);
    }
    return {};
  }

  Status CollectWork() {
    for (auto work = work_.begin(); work != work_.end();) {
      if (work->event) {
        ASSIGN_OR_RETURN(const bool done, gpu_.QueryEvent(*work->event));
        if (done) RETURN_IF_ERROR(gpu_.DestroyEvent(*std::exchange(work->event, std::nullopt)));
      }
      if (work->event || work->staged) {
        ++work;
        continue;
      }
      Work ended = std::move(*work);
      work = work_.erase(work);
      Send(ended.request, std::move(ended.answer), std::move(ended.fd));
      for (const ArenaId arena : ended.arenas)
        RETURN_IF_ERROR(EndUse(arena));
    }
    return {};
  }

  Status CollectRegistrations() {
    std::vector<Registration> ended;
    {
      MutexLock lock(mu_);
      ended.swap(registered_);
    }
    for (const Registration& one : ended) {
      const Status status = one.region.status();
      if (IsFatal(status)) return status;
      arenas_.Registered(one.arena, one.region);
      RETURN_IF_ERROR(EndUse(one.arena));
      RETURN_IF_ERROR(RegisterNext(one.arena));
    }
    return {};
  }

  // Behind those of other arenas.
  Status RegisterNext(ArenaId arena) {
    const std::optional<MoverArenas::Piece> piece = arenas_.BeginPiece(arena);
    if (!piece) return {};
    return registrar_->Submit([this, arena, piece = *piece] {
      Registration ended{arena, gpu_.RegisterHost(piece.memory, piece.access)};
      {
        MutexLock lock(mu_);
        registered_.push_back(std::move(ended));
      }
      const uint64_t one = 1;
      (void)!::write(bell_.get(), &one, sizeof one);
    });
  }

  Status EndUse(ArenaId arena) {
    const std::optional<uint64_t> release = arenas_.EndUse(arena);
    return release ? Remove(arena, release) : Status();
  }

  // Answers `request`, if there is one, with what came of it.
  Status Remove(ArenaId arena, std::optional<uint64_t> request) {
    const Status status = arenas_.Remove(arena);
    if (request) Answer(*request, status);
    return IsFatal(status) ? status : Status();
  }

  // One packet. What is wrong with it is answered; a dead context is returned, after its answer.
  Status Take(MoverSocket::Packet& packet) {
    const uint64_t request = RequestOfMover(packet.bytes);
    const Result<MoverMessage> message = DecodeMover(packet.bytes);
    Status refused = message.status();
    if (refused.ok() && message->descriptors != (packet.fd ? 1 : 0)) {
      refused = Status(Code::kInvalidArgument, "descriptors: not as many as the header says");
    }
    if (refused.ok() && open_.size() >= options_.in_flight) {
      refused = Status(Code::kExhausted,
                       "request: " + std::to_string(options_.in_flight) + " are under way");
    }
    if (!refused.ok()) {
      Answer(request, refused);
      return {};
    }
    // The answer to a second one of a number would be taken for that to the first.
    if (!open_.insert(request).second) return {};
    const Status done =
        std::visit([&](const auto& body) { return Do(request, body, packet.fd); }, message->body);
    if (!done.ok() && open_.contains(request)) Answer(request, done);
    return IsFatal(done) ? done : Status();
  }

  // ---- The requests. An error is the answer; else it was given or will be.
  Status Do(uint64_t request, const MoverCreate& create, const UniqueFd&) {
    RETURN_IF_ERROR(arenas_.AddSlab(create.arena, create.bytes));
    Result<UniqueFd> fd = arenas_.Export(create.arena);
    Status status = fd.status();
    if (status.ok()) status = ClearNew(request, create.arena, create.bytes, {}, *std::move(fd));
    if (!status.ok()) (void)arenas_.Remove(create.arena);
    return status;
  }

  Status Do(uint64_t request, const MoverAllocate& allocate, const UniqueFd&) {
    RETURN_IF_ERROR(arenas_.AddAllocation(allocate.arena, allocate.bytes));
    const Result<IpcHandle> handle = arenas_.Handle(allocate.arena);
    Status status = handle.status();
    if (status.ok()) {
      MoverAnswer answer;
      answer.handle = *handle;
      status = ClearNew(request, allocate.arena, allocate.bytes, std::move(answer), {});
    }
    if (!status.ok()) (void)arenas_.Remove(allocate.arena);
    return status;
  }

  Status Do(uint64_t request, const MoverImport& import, const UniqueFd& fd) {
    if (!fd) return {Code::kInvalidArgument, "import: descriptors: none came along"};
    RETURN_IF_ERROR(arenas_.AddImport(import.arena, import.bytes, fd));
    Answer(request, {});
    return {};
  }

  Status Do(uint64_t request, const MoverOpen& open, const UniqueFd&) {
    RETURN_IF_ERROR(arenas_.AddOpened(open.arena, open.bytes, open.handle));
    Answer(request, {});
    return {};
  }

  Status Do(uint64_t request, const MoverHost& host, const UniqueFd& fd) {
    if (!fd) return {Code::kInvalidArgument, "host: descriptors: none came along"};
    RETURN_IF_ERROR(arenas_.AddHost(host.arena, host.bytes, host.writable, fd));
    Answer(request, {});
    return host.registered ? RegisterNext(host.arena) : Status();
  }

  Status Do(uint64_t request, const MoverRelease& release, const UniqueFd&) {
    ASSIGN_OR_RETURN(const bool now, arenas_.BeginRelease(release.arena, request));
    return now ? Remove(release.arena, request) : Status();
  }

  Status Do(uint64_t request, const MoverCopies& asked, const UniqueFd&) {
    std::vector<GpuCopy> direct;
    std::deque<MoverStaging::Copy> staged;
    std::vector<ArenaId> arenas;
    bool from_host = false;
    bool to_host = false;
    uint64_t host_bytes = 0;
    for (size_t i = 0; i < asked.copies.size(); ++i) {
      const MoverCopies::Copy& copy = asked.copies[i];
      const std::string name = "copies: copies[" + std::to_string(i) + "]";
      GpuCopy found{.bytes = copy.bytes};
      ASSIGN_OR_RETURN(found.dst,
                       arenas_.Find(copy.dst, copy.bytes, GpuAccess::kReadWrite, name + ".dst"));
      ASSIGN_OR_RETURN(found.src,
                       arenas_.Find(copy.src, copy.bytes, GpuAccess::kRead, name + ".src"));
      const bool from = arenas_.IsHost(copy.src.arena);
      const bool to = arenas_.IsHost(copy.dst.arena);
      if (from && to) {
        return {Code::kInvalidArgument, name + ": no side is memory of the device"};
      }
      if (from || to) {
        host_bytes += Cut(found, from ? copy.src : copy.dst, from, direct, staged);
      } else {
        direct.push_back(found);
      }
      from_host = from_host || from;
      to_host = to_host || to;
      arenas.push_back(copy.dst.arena);
      arenas.push_back(copy.src.arena);
    }
    const MoverLane& lane = to_host ? out_ : from_host ? in_ : within_;
    const SourceOrder order = asked.any_order ? SourceOrder::kAny : SourceOrder::kStream;
    const bool stages = !staged.empty();
    RETURN_IF_ERROR(Run(lane,
                        {.request = request,
                         .event = std::nullopt,
                         .staged = stages,
                         .arenas = std::move(arenas),
                         .answer = {},
                         .fd = {}},
                        [&] { return PutCopies(lane, direct, order); }));
    if (stages) staging_->Add(request, std::move(staged), order);
    direct_bytes_ += host_bytes;
    return {};
  }

  // Into what is copied directly and what is staged; the bytes of the former.
  uint64_t Cut(GpuCopy copy, MoverPlace host, bool in, std::vector<GpuCopy>& direct,
               std::deque<MoverStaging::Copy>& staged) const {
    uint64_t direct_bytes = 0;
    while (copy.bytes > 0) {
      const MoverArenas::Run run = arenas_.RunAt(host);
      const uint64_t bytes = std::min(run.bytes, copy.bytes);
      if (run.registered) {
        direct.push_back({.dst = copy.dst, .src = copy.src, .bytes = bytes});
        direct_bytes += bytes;
      } else {
        staged.push_back({.device = in ? copy.dst : copy.src,
                          .host = reinterpret_cast<uint8_t*>(in ? copy.src : copy.dst),
                          .bytes = bytes,
                          .in = in});
      }
      copy = {.dst = copy.dst + bytes, .src = copy.src + bytes, .bytes = copy.bytes - bytes};
      host.offset += bytes;
    }
    return direct_bytes;
  }

  Status PutCopies(const MoverLane& lane, std::span<const GpuCopy> copies, SourceOrder order) {
    for (size_t at = 0; at < copies.size(); at += kMostCopies) {
      const auto some = copies.subspan(at, std::min(kMostCopies, copies.size() - at));
      Status put = gpu_.Copy(lane.work, some, order);
      // Of what was put there before, Run needs to know.
      if (at > 0 && put.code() == Code::kInvalidArgument) return {Code::kInternal, put.message()};
      RETURN_IF_ERROR(std::move(put));
    }
    return {};
  }

  Status Do(uint64_t request, const MoverClear& clear, const UniqueFd&) {
    ASSIGN_OR_RETURN(const GpuAddress at,
                     arenas_.Find(clear.at, clear.bytes, GpuAccess::kReadWrite, "clear: at"));
    return Run(within_, Of(request, {clear.at.arena}),
               [&] { return gpu_.Clear(within_.work, at, clear.bytes); });
  }

  Status Do(uint64_t request, const MoverPages& pages, const UniqueFd&) {
    uint32_t last = 0;
    for (const MoverPages::Block& block : pages.blocks)
      last = std::max(last, block.block);
    std::vector<ArenaId> arenas;
    std::vector<uint64_t> bases(pages.bases.size());
    const uint64_t of_base = Extent(last, pages.block_stride, pages.block_bytes);
    for (size_t i = 0; i < bases.size(); ++i) {
      ASSIGN_OR_RETURN(bases[i], arenas_.Find(pages.bases[i], of_base, GpuAccess::kRead,
                                              "pages: bases[" + std::to_string(i) + "]"));
      arenas.push_back(pages.bases[i].arena);
    }
    std::vector<PagedBlock> blocks(pages.blocks.size());
    const uint64_t behind = bases.empty() ? 0 : bases.size() - 1;
    for (size_t i = 0; i < blocks.size(); ++i) {
      const MoverPages::Block& block = pages.blocks[i];
      const uint64_t of_page = Extent(behind, pages.segment_stride, block.bytes);
      ASSIGN_OR_RETURN(blocks[i].page,
                       arenas_.Find(block.page, of_page, GpuAccess::kRead,
                                    "pages: blocks[" + std::to_string(i) + "].page"));
      blocks[i].block = block.block;
      blocks[i].bytes = block.bytes;
      arenas.push_back(block.page.arena);
    }
    const PagedLayout layout = {.bases = bases,
                                .block_stride = pages.block_stride,
                                .block_bytes = pages.block_bytes,
                                .segment_stride = pages.segment_stride};
    return Run(within_, Of(request, std::move(arenas)), [&] {
      return pages.gather ? gpu_.GatherPages(within_.work, layout, blocks)
                          : gpu_.ScatterPages(within_.work, layout, blocks);
    });
  }

  Status Do(uint64_t request, const MoverReport&, const UniqueFd&) {
    MoverAnswer answer;
    ASSIGN_OR_RETURN(answer.figures.memory, gpu_.Memory());
    answer.figures.host_bytes = arenas_.host_bytes();
    answer.figures.registered_bytes = arenas_.registered_bytes();
    answer.figures.direct_bytes = direct_bytes_;
    answer.figures.staged_bytes = staging_->moved_bytes();
    answer.figures.registration = arenas_.refused().message();
    Send(request, std::move(answer));
    return {};
  }

  Status Do(uint64_t, const MoverReady&, const UniqueFd&) {
    return {Code::kInvalidArgument, "ready: is the mover's to say"};
  }
  Status Do(uint64_t, const MoverAnswer&, const UniqueFd&) {
    return {Code::kInvalidArgument, "answer: is the mover's to give"};
  }

  // New memory is nobody's before it is zeros.
  Status ClearNew(uint64_t request, ArenaId arena, uint64_t bytes, MoverAnswer answer,
                  UniqueFd fd) {
    ASSIGN_OR_RETURN(const GpuAddress at, arenas_.Find({.arena = arena, .offset = 0}, bytes,
                                                       GpuAccess::kReadWrite, "arena"));
    Work work = Of(request, {arena});
    work.answer = std::move(answer);
    work.fd = std::move(fd);
    return Run(within_, std::move(work), [&] { return gpu_.Clear(within_.work, at, bytes); });
  }

  static Work Of(uint64_t request, std::vector<ArenaId> arenas) {
    Work work;
    work.request = request;
    work.arenas = std::move(arenas);
    return work;
  }

  // Puts work on the stream, to be answered when the stream is that far. What was refused by its
  // arguments was not put there; of what failed otherwise some may be, so its arenas are in use
  // until the stream is past it, and the error is the answer.
  template <typename Put>
  Status Run(const MoverLane& lane, Work work, Put put) {
    ASSIGN_OR_RETURN(const GpuEvent event, gpu_.CreateEvent());
    const Status status = put();
    if (status.code() == Code::kInvalidArgument || IsFatal(status)) {
      (void)gpu_.DestroyEvent(event);
      return status;
    }
    if (!status.ok()) work.answer.status = status;
    work.event = event;
    if (Status lost = gpu_.RecordEvent(event, lane.work); !lost.ok()) {
      // Its end would never be known.
      if (IsFatal(lost)) return lost;
      return {Code::kStale, "work cannot be followed: " + lost.message()};
    }
    // Only a hint: events are looked at without, too.
    if (gpu_.WaitEvent(lane.bell, event).ok()) (void)gpu_.Notify(lane.bell, bell_.get());
    std::sort(work.arenas.begin(), work.arenas.end());
    work.arenas.erase(std::unique(work.arenas.begin(), work.arenas.end()), work.arenas.end());
    for (const ArenaId arena : work.arenas)
      arenas_.Use(arena);
    work_.push_back(std::move(work));
    return {};
  }

  // ---- Answers
  void Answer(uint64_t request, Status status) {
    MoverAnswer answer;
    answer.status = std::move(status);
    Send(request, std::move(answer));
  }

  void Send(uint64_t request, MoverBody body, UniqueFd fd = {}) {
    open_.erase(request);
    const uint16_t descriptors = fd ? 1 : 0;
    answers_.push_back(
        {EncodeMover({.request = request, .descriptors = descriptors, .body = std::move(body)}),
         std::move(fd)});
  }

  void Flush() {
    while (!answers_.empty() && !closed_) {
      const Status sent = socket_.Send(answers_.front().bytes, answers_.front().fd.get());
      if (sent.code() == Code::kExhausted) return;
      // What cannot be sent has no reader; that it is gone is seen when it is received from.
      answers_.pop_front();
      if (!sent.ok()) closed_ = true;
    }
  }

  void SayLastWords(const Status& ending) {
    for (const uint64_t request : std::set(open_))
      Answer(request, ending);
    Flush();
    pollfd wait{.fd = socket_.fd(), .events = POLLOUT, .revents = 0};
    while (!answers_.empty() && !closed_ && ::poll(&wait, 1, kLastWordsMs) > 0)
      Flush();
  }

  const MoverSocket& socket_;
  const MoverOptions options_;
  // Their mappings outlive the streams that copy to and from them.
  MoverArenas arenas_;
  std::unique_ptr<MoverStaging> staging_;
  const std::unique_ptr<Gpu> owned_gpu_;
  Gpu& gpu_;
  UniqueFd bell_;  // Rung by streams and by the registrar.
  MoverLane in_;
  MoverLane out_;
  MoverLane within_;
  std::deque<Work> work_;
  std::set<uint64_t> open_;  // Requests that have no answer yet.
  std::deque<Packet> answers_;
  uint64_t direct_bytes_ = 0;
  bool closed_ = false;

  Mutex mu_;
  std::vector<Registration> registered_ GUARDED_BY(mu_);
  std::unique_ptr<WorkerPool> registrar_;
};

}  // namespace

void SayNotReady(const MoverSocket& socket, const Status& why) {
  MoverReady ready;
  ready.status = why;
  // A daemon that is gone needs no words.
  (void)socket.Send(EncodeMover({.request = 0, .descriptors = 0, .body = std::move(ready)}));
}

Status ServeMover(std::unique_ptr<Gpu> gpu, const MoverSocket& socket,
                  const MoverOptions& options) {
  Mover mover(std::move(gpu), socket, options);
  if (Status started = mover.Start(); !started.ok()) {
    SayNotReady(socket, started);
    return started;
  }
  return mover.Serve();
}

}  // namespace terrace
