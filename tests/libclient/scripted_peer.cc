#include "tests/libclient/scripted_peer.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/fd_message.h"
#include "proto/shared_memory.h"

namespace terrace::client {
namespace {

constexpr int64_t kSendMs = 20'000;

}  // namespace

ScriptedPeer::ScriptedPeer(Script script) : script_(std::move(script)) {
  char folder[] = "/tmp/terrace-peer-XXXXXX";
  folder_ = ::mkdtemp(folder);
  path_ = folder_ + "/sock";
  listener_ = UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path_.data(), path_.size());
  TERRACE_CHECK(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) ==
                0);
  TERRACE_CHECK(::listen(listener_.get(), 16) == 0);
  stop_ = UniqueFd(::eventfd(0, EFD_CLOEXEC));
  thread_ = std::thread([this] { Listen(); });
}

ScriptedPeer::~ScriptedPeer() {
  const uint64_t one = 1;
  static_cast<void>(!::write(stop_.get(), &one, sizeof one));
  Cut();
  thread_.join();
  ::unlink(path_.c_str());
  ::rmdir(folder_.c_str());
}

void ScriptedPeer::SetScript(Script script) {
  MutexLock lock(mu_);
  script_ = std::move(script);
}

void ScriptedPeer::SetLife(uint64_t life) {
  MutexLock lock(mu_);
  life_ = life;
}

void ScriptedPeer::SetCapabilities(uint64_t capabilities) {
  MutexLock lock(mu_);
  capabilities_ = capabilities;
}

void ScriptedPeer::SetResumes(bool resumes) {
  MutexLock lock(mu_);
  resumes_ = resumes;
}

void ScriptedPeer::Cut() {
  MutexLock lock(mu_);
  if (connection_ != nullptr) connection_->Shutdown();
}

std::vector<wire::Type> ScriptedPeer::requests() const {
  MutexLock lock(mu_);
  return requests_;
}

size_t ScriptedPeer::CountOf(wire::Type type) const {
  const auto all = requests();
  return static_cast<size_t>(std::count(all.begin(), all.end(), type));
}

void ScriptedPeer::SendBody(wire::Type type, uint64_t request, const std::string& body,
                            const std::vector<int>& fds) {
  std::shared_ptr<FrameSocket> connection;
  {
    MutexLock lock(mu_);
    connection = connection_;
  }
  // A client that is gone is not the peer's failure.
  static_cast<void>(
      connection->Send({.type = type, .request = request}, body, fds, Deadline::In(kSendMs)));
}

void ScriptedPeer::SendError(uint64_t request, uint32_t code, const std::string& message) {
  wire::Error error;
  error.set_code(code);
  error.set_message(message);
  Send(wire::Type::kError, request, error);
}

void ScriptedPeer::SendRaw(const std::string& bytes, const std::vector<int>& fds) {
  MutexLock lock(mu_);
  iovec part{const_cast<char*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  FdMessage<16> control;
  control.Attach(fds, message);
  static_cast<void>(::sendmsg(connection_->fd(), &message, MSG_NOSIGNAL));
}

UniqueFd ScriptedPeer::MakeChannel(size_t bytes) {
  auto fd = CreateMemfd("channel", bytes);
  auto mapping = Mapping::Of(fd->get(), 0, bytes, Protection::kReadWrite);
  auto& channel = *reinterpret_cast<shm::Channel*>(mapping->data());
  channel.magic.store(shm::kChannelMagic);
  channel.version.store(shm::kLayoutVersion);
  channel.pin_lines.store(shm::kMaxPinLines);
  return *std::move(fd);
}

UniqueFd ScriptedPeer::MakeDirectory(uint64_t id) {
  const size_t bytes = shm::DirectoryBytes(shm::kMinCapacity);
  auto fd = CreateMemfd("directory", bytes);
  auto mapping = Mapping::Of(fd->get(), 0, bytes, Protection::kReadWrite);
  auto& header = *reinterpret_cast<shm::DirectoryHeader*>(mapping->data());
  header.magic.store(shm::kDirectoryMagic);
  header.version.store(shm::kLayoutVersion);
  header.directory_id.store(id);
  header.capacity.store(shm::kMinCapacity);
  header.bytes.store(bytes);
  return *std::move(fd);
}

void ScriptedPeer::AnswerHello(const Frame& request) {
  wire::Hello hello;
  TERRACE_CHECK(hello.ParseFromString(request.body));
  wire::HelloReply reply;
  reply.set_version(wire::kProtocolVersion);
  reply.set_token(99);
  reply.set_writer(true);
  reply.set_max_pins(65536);
  reply.set_max_pinned_bytes(1 << 30);
  reply.set_max_grants(4096);
  reply.set_host_capacity_bytes(1 << 30);
  bool resumes = false;
  {
    MutexLock lock(mu_);
    reply.set_life(life_);
    reply.set_capabilities(capabilities_);
    resumes = resumes_;
    if (hello.resume_client() == 0) ++clients_;
    reply.set_client(hello.resume_client() != 0 ? hello.resume_client() : clients_);
  }
  const UniqueFd directory = MakeDirectory(1);
  if (hello.resume_client() == 0) {
    const UniqueFd channel = MakeChannel(shm::kChannelBytes);
    Send(wire::Type::kHelloReply, request.header.request, reply, {channel.get(), directory.get()});
  } else if (resumes) {
    reply.set_resumed(true);
    Send(wire::Type::kHelloReply, request.header.request, reply, {directory.get()});
  } else {
    SendError(request.header.request, static_cast<uint32_t>(Code::kStale), "no such client");
  }
}

void ScriptedPeer::AnswerOpenSpace(const Frame& request) {
  wire::OpenSpaceReply reply;
  reply.set_space_id(std::string(32, 'x'));
  reply.set_slot(1);
  reply.set_epoch(1);
  reply.set_page_bytes(4096);
  reply.mutable_layout()->set_page_tokens(16);
  Send(wire::Type::kOpenSpaceReply, request.header.request, reply);
}

void ScriptedPeer::Answer(const Frame& request) {
  switch (request.header.type) {
    case wire::Type::kHello:
      return AnswerHello(request);
    case wire::Type::kPing:
      return Send(wire::Type::kPingReply, request.header.request, wire::PingReply());
    case wire::Type::kGoodbye:
      return Send(wire::Type::kGoodbyeReply, request.header.request, wire::GoodbyeReply());
    case wire::Type::kAbort:
      return Send(wire::Type::kAbortReply, request.header.request, wire::AbortReply());
    case wire::Type::kDetach:
      return Send(wire::Type::kDetachReply, request.header.request, wire::DetachReply());
    case wire::Type::kCloseSpace:
      return Send(wire::Type::kCloseSpaceReply, request.header.request, wire::CloseSpaceReply());
    default:
      return SendError(request.header.request, static_cast<uint32_t>(Code::kNotFound),
                       "the script does not know this");
  }
}

void ScriptedPeer::ServeConnection(UniqueFd fd) {
  auto connection = std::make_shared<FrameSocket>(std::move(fd));
  {
    MutexLock lock(mu_);
    connection_ = connection;
  }
  for (;;) {
    const auto frame = connection->Next();
    if (!frame) break;
    if (!*frame) {
      // Ends with the client, or with Cut.
      if (!connection->Read(Deadline::In(60'000)).ok()) break;
      continue;
    }
    Script script;
    {
      MutexLock lock(mu_);
      requests_.push_back((*frame)->header.type);
      script = script_;
    }
    const Act act = script ? script(*this, **frame) : Act::kDefault;
    if (act == Act::kHangUp) break;
    if (act == Act::kDefault) Answer(**frame);
  }
  MutexLock lock(mu_);
  connection->Shutdown();
  connection_.reset();
}

void ScriptedPeer::Listen() {
  for (;;) {
    pollfd items[2] = {{listener_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    if (::poll(items, 2, -1) < 0 && errno != EINTR) return;
    if (items[1].revents != 0) return;
    UniqueFd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (fd) ServeConnection(std::move(fd));
  }
}

}  // namespace terrace::client
