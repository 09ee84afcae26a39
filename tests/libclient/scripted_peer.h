// ScriptedPeer: a daemon's end of the socket that does what a test says, on a thread of its own.
//
// It answers hello, ping, goodbye and abort as a daemon would, unless the test's script takes a
// request over. Each connection is served until it ends; one at a time.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "libclient/frame_socket.h"
#include "proto/wire.pb.h"

namespace terrace::client {

class ScriptedPeer {
 public:
  // What a script does with a request.
  enum class Act { kDefault, kHandled, kHangUp };
  using Script = std::function<Act(ScriptedPeer& peer, const Frame& request)>;

  explicit ScriptedPeer(Script script = {});
  ~ScriptedPeer();

  const std::string& socket() const { return path_; }
  // May be changed while a client is connected.
  void SetScript(Script script) EXCLUDES(mu_);
  // Ends the present connection.
  void Cut() EXCLUDES(mu_);
  // Types of the requests so far, hellos included.
  std::vector<wire::Type> requests() const EXCLUDES(mu_);
  size_t CountOf(wire::Type type) const;

  // ---- For scripts, on the peer's thread; Send also for tests, on theirs.
  template <class Message>
  void Send(wire::Type type, uint64_t request, const Message& message,
            const std::vector<int>& fds = {}) {
    SendBody(type, request, message.SerializeAsString(), fds);
  }
  void SendBody(wire::Type type, uint64_t request, const std::string& body,
                const std::vector<int>& fds = {}) EXCLUDES(mu_);
  void SendError(uint64_t request, uint32_t code, const std::string& message);
  // Bytes as they are, descriptors with the first of them.
  void SendRaw(const std::string& bytes, const std::vector<int>& fds = {}) EXCLUDES(mu_);

  // A hello that is answered as by a daemon in its life `life`.
  void AnswerHello(const Frame& request);
  // A space of pages of 4 KiB and 16 tokens, in slot 1 and epoch 1.
  void AnswerOpenSpace(const Frame& request);
  void SetLife(uint64_t life) EXCLUDES(mu_);
  // Of the hellos from now on; none at first, as of a daemon from before there were any.
  void SetCapabilities(uint64_t capabilities) EXCLUDES(mu_);
  // Whether a hello that resumes is taken.
  void SetResumes(bool resumes) EXCLUDES(mu_);
  static UniqueFd MakeChannel(size_t bytes);
  static UniqueFd MakeDirectory(uint64_t id);

 private:
  void Listen();
  void ServeConnection(UniqueFd fd);
  void Answer(const Frame& request);

  std::string folder_;
  std::string path_;
  UniqueFd listener_;
  UniqueFd stop_;
  std::thread thread_;

  mutable Mutex mu_;
  Script script_ GUARDED_BY(mu_);
  std::shared_ptr<FrameSocket> connection_ GUARDED_BY(mu_);
  std::vector<wire::Type> requests_ GUARDED_BY(mu_);
  uint64_t life_ GUARDED_BY(mu_) = 7;
  uint64_t capabilities_ GUARDED_BY(mu_) = 0;
  bool resumes_ GUARDED_BY(mu_) = true;
  uint64_t clients_ GUARDED_BY(mu_) = 0;
};

}  // namespace terrace::client
