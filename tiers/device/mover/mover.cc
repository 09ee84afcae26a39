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
        arenas_(*gpu, options.arenas),
        owned_gpu_(std::move(gpu)),
        gpu_(*owned_gpu_) {}

  Status Start() {
    bell_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!bell_) return SystemError("eventfd of a mover", errno);
    for (Lane* lane : {&in_, &out_, &within_}) {
      ASSIGN_OR_RETURN(lane->work, gpu_.CreateStream());
      ASSIGN_OR_RETURN(lane->bell, gpu_.CreateStream());
    }
    ASSIGN_OR_RETURN(registrar_, WorkerPool::Start({.name = "mover-register",
                                                    .threads = 1,
                                                    .queue_limit = options_.in_flight}));
    MoverReady ready;
    ready.facts = gpu_.facts();
    Send(0, std::move(ready));
    return {};
  }

  // Ends as ServeMover does. The registrar is stopped before anything that it uses goes.
  Status Serve() {
    Status ending;
    while (ending.ok() && !closed_) {
      ending = Turn();
    }
    registrar_.reset();
    if (!ending.ok()) SayLastWords(ending);
    return ending;
  }

 private:
  // A stream of work, and one beside it that rings the bell, so that no work waits for that.
  struct Lane {
    GpuStream work{};
    GpuStream bell{};
  };
  // Work that was put on a stream, and what is answered when it is done.
  struct Work {
    uint64_t request = 0;
    GpuEvent event{};
    std::vector<ArenaId> arenas;  // It uses them.
    MoverAnswer answer;
    UniqueFd fd;
  };
  struct Registration {
    uint64_t request = 0;
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
    RETURN_IF_ERROR(CollectWork());
    RETURN_IF_ERROR(CollectRegistrations());
    Flush();
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

  Status CollectWork() {
    for (auto work = work_.begin(); work != work_.end();) {
      ASSIGN_OR_RETURN(const bool done, gpu_.QueryEvent(work->event));
      if (!done) {
        ++work;
        continue;
      }
      Work ended = std::move(*work);
      work = work_.erase(work);
      Send(ended.request, std::move(ended.answer), std::move(ended.fd));
      RETURN_IF_ERROR(gpu_.DestroyEvent(ended.event));
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
      Answer(one.request, status);
      if (status.ok()) {
        RETURN_IF_ERROR(EndUse(one.arena));
      } else {
        const std::optional<uint64_t> release = arenas_.EndUse(one.arena);
        RETURN_IF_ERROR(Remove(one.arena, release));
      }
    }
    return {};
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
    ASSIGN_OR_RETURN(const std::span<uint8_t> memory,
                     arenas_.AddHost(host.arena, host.bytes, host.writable, fd));
    const GpuAccess access = host.writable ? GpuAccess::kReadWrite : GpuAccess::kRead;
    Status queued = registrar_->Submit([this, request, arena = host.arena, memory, access] {
      Registration ended{request, arena, gpu_.RegisterHost(memory, access)};
      {
        MutexLock lock(mu_);
        registered_.push_back(std::move(ended));
      }
      const uint64_t one = 1;
      (void)!::write(bell_.get(), &one, sizeof one);
    });
    if (!queued.ok()) {
      (void)arenas_.Remove(host.arena);
      return queued;
    }
    return {};
  }

  Status Do(uint64_t request, const MoverRelease& release, const UniqueFd&) {
    ASSIGN_OR_RETURN(const bool now, arenas_.BeginRelease(release.arena, request));
    return now ? Remove(release.arena, request) : Status();
  }

  Status Do(uint64_t request, const MoverCopies& asked, const UniqueFd&) {
    std::vector<GpuCopy> copies(asked.copies.size());
    std::vector<ArenaId> arenas;
    bool from_host = false;
    bool to_host = false;
    for (size_t i = 0; i < copies.size(); ++i) {
      const MoverCopies::Copy& copy = asked.copies[i];
      const std::string name = "copies: copies[" + std::to_string(i) + "].";
      ASSIGN_OR_RETURN(copies[i].dst, arenas_.Find(copy.dst, copy.bytes, name + "dst"));
      ASSIGN_OR_RETURN(copies[i].src, arenas_.Find(copy.src, copy.bytes, name + "src"));
      copies[i].bytes = copy.bytes;
      from_host = from_host || arenas_.IsHost(copy.src.arena);
      to_host = to_host || arenas_.IsHost(copy.dst.arena);
      arenas.push_back(copy.dst.arena);
      arenas.push_back(copy.src.arena);
    }
    const Lane& lane = to_host ? out_ : from_host ? in_ : within_;
    const SourceOrder order = asked.any_order ? SourceOrder::kAny : SourceOrder::kStream;
    return Run(lane, {.request = request, .arenas = std::move(arenas), .answer = {}, .fd = {}},
               [&] { return gpu_.Copy(lane.work, copies, order); });
  }

  Status Do(uint64_t request, const MoverClear& clear, const UniqueFd&) {
    ASSIGN_OR_RETURN(const GpuAddress at, arenas_.Find(clear.at, clear.bytes, "clear: at"));
    return Run(within_, {.request = request, .arenas = {clear.at.arena}, .answer = {}, .fd = {}},
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
      ASSIGN_OR_RETURN(bases[i], arenas_.Find(pages.bases[i], of_base,
                                              "pages: bases[" + std::to_string(i) + "]"));
      arenas.push_back(pages.bases[i].arena);
    }
    std::vector<PagedBlock> blocks(pages.blocks.size());
    const uint64_t behind = bases.empty() ? 0 : bases.size() - 1;
    for (size_t i = 0; i < blocks.size(); ++i) {
      const MoverPages::Block& block = pages.blocks[i];
      const uint64_t of_page = Extent(behind, pages.segment_stride, block.bytes);
      ASSIGN_OR_RETURN(
          blocks[i].page,
          arenas_.Find(block.page, of_page, "pages: blocks[" + std::to_string(i) + "].page"));
      blocks[i].block = block.block;
      blocks[i].bytes = block.bytes;
      arenas.push_back(block.page.arena);
    }
    const PagedLayout layout = {.bases = bases,
                                .block_stride = pages.block_stride,
                                .block_bytes = pages.block_bytes,
                                .segment_stride = pages.segment_stride};
    return Run(within_, {.request = request, .arenas = std::move(arenas), .answer = {}, .fd = {}},
               [&] {
                 return pages.gather ? gpu_.GatherPages(within_.work, layout, blocks)
                                     : gpu_.ScatterPages(within_.work, layout, blocks);
               });
  }

  Status Do(uint64_t request, const MoverMemory&, const UniqueFd&) {
    ASSIGN_OR_RETURN(const GpuMemory memory, gpu_.Memory());
    MoverAnswer answer;
    answer.memory = memory;
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
    ASSIGN_OR_RETURN(const GpuAddress at,
                     arenas_.Find({.arena = arena, .offset = 0}, bytes, "arena"));
    return Run(
        within_,
        {.request = request, .arenas = {arena}, .answer = std::move(answer), .fd = std::move(fd)},
        [&] { return gpu_.Clear(within_.work, at, bytes); });
  }

  // Puts work on the stream, to be answered when the stream is that far. What was refused by its
  // arguments was not put there; of what failed otherwise some may be, so its arenas are in use
  // until the stream is past it, and the error is the answer.
  template <typename Put>
  Status Run(const Lane& lane, Work work, Put put) {
    ASSIGN_OR_RETURN(work.event, gpu_.CreateEvent());
    const Status status = put();
    if (status.code() == Code::kInvalidArgument || IsFatal(status)) {
      (void)gpu_.DestroyEvent(work.event);
      return status;
    }
    if (!status.ok()) work.answer.status = status;
    if (Status lost = gpu_.RecordEvent(work.event, lane.work); !lost.ok()) {
      // Its end would never be known.
      if (IsFatal(lost)) return lost;
      return {Code::kStale, "work cannot be followed: " + lost.message()};
    }
    // Only a hint: events are looked at without, too.
    if (gpu_.WaitEvent(lane.bell, work.event).ok()) (void)gpu_.Notify(lane.bell, bell_.get());
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
  MoverArenas arenas_;  // Its mappings outlive the streams that copy to and from them.
  const std::unique_ptr<Gpu> owned_gpu_;
  Gpu& gpu_;
  UniqueFd bell_;  // Rung by streams and by the registrar.
  Lane in_;
  Lane out_;
  Lane within_;
  std::deque<Work> work_;
  std::set<uint64_t> open_;  // Requests that have no answer yet.
  std::deque<Packet> answers_;
  bool closed_ = false;

  Mutex mu_;
  std::vector<Registration> registered_ GUARDED_BY(mu_);
  std::unique_ptr<WorkerPool> registrar_;
};

}  // namespace

Status ServeMover(std::unique_ptr<Gpu> gpu, const MoverSocket& socket,
                  const MoverOptions& options) {
  Mover mover(std::move(gpu), socket, options);
  RETURN_IF_ERROR(mover.Start());
  return mover.Serve();
}

}  // namespace terrace
