// What becomes of a mover's process: from its command line to its end.
#include "tiers/device/supervisor/mover_process.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/device/gpu_fixture.h"
#include "tests/support/process_facts.h"
#include "tiers/device/host_gpu.h"
#include "tiers/device/mover/messages.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr MonotonicNs kWithin = 60 * kNsPerSecond;

MoverArguments Arguments() {
  MoverArguments arguments;
  arguments.kind = MoverKind::kHost;
  arguments.device = HostGpuUuid(0);
  arguments.options.staging.bytes = 1u << 20;
  return arguments;
}

// What it says first.
Status AwaitReady(const MoverProcess& process) {
  pollfd wait{.fd = process.socket().fd(), .events = POLLIN, .revents = 0};
  if (::poll(&wait, 1, 60'000) != 1) return {Code::kInternal, "it says nothing"};
  const auto packet = process.socket().Receive();
  if (!packet || !packet->has_value()) return {Code::kInternal, "it says nothing"};
  const auto message = DecodeMover((*packet)->bytes);
  if (!message) return message.error();
  return std::get<MoverReady>(message->body).status;
}

TEST(MoverProcess, EndsAtTheEndOfItsSocket) {
  auto process = MoverProcess::Start(TERRACE_MOVER, Arguments());
  ASSERT_TRUE(process) << process.status().ToString();
  EXPECT_OK(AwaitReady(*process));
  EXPECT_FALSE(process->AwaitEnd(0));
  ::shutdown(process->socket().fd(), SHUT_RDWR);
  EXPECT_TRUE(process->AwaitEnd(kWithin));
  EXPECT_EQ(process->Reap(), "ended with exit code 0");
}

TEST(MoverProcess, IsKilledWithTheThreadThatStartedIt) {
  std::optional<MoverProcess> process;
  std::thread starter([&] {
    auto started = MoverProcess::Start(TERRACE_MOVER, Arguments());
    ASSERT_TRUE(started);
    EXPECT_OK(AwaitReady(*started));
    process.emplace(*std::move(started));
  });
  starter.join();
  ASSERT_TRUE(process);
  EXPECT_TRUE(process->AwaitEnd(kWithin));
  EXPECT_EQ(process->Reap(), "ended by signal 9");
}

TEST(MoverProcess, HasNothingOfTheDaemonButItsSocket) {
  // As a library may open it, for all programs that are started.
  const UniqueFd inherited(::open("/dev/zero", O_RDONLY));
  const auto memfd = CreateMemfd("daemon's", 4096);
  ASSERT_TRUE(inherited && memfd);
  auto process = MoverProcess::Start(TERRACE_MOVER, Arguments());
  ASSERT_TRUE(process);
  EXPECT_OK(AwaitReady(*process));
  const ProcessFacts facts = FactsOf(process->pid());
  EXPECT_EQ(facts.descriptors.count("/dev/zero"), 0u);
  EXPECT_EQ(facts.descriptors.count("memfd:daemon's"), 0u);
  EXPECT_EQ(facts.descriptors.at("socket"), 1u);
  EXPECT_EQ(facts.descriptors.at("/dev/null"), 1u);
}

TEST(MoverProcess, SaysWhatIsWrongAndEndsWithACodeForIt) {
  MoverArguments arguments = Arguments();
  arguments.options.registration_bytes = 5;
  auto process = MoverProcess::Start(TERRACE_MOVER, arguments);
  ASSERT_TRUE(process);
  EXPECT_TRUE(process->AwaitEnd(kWithin));
  EXPECT_EQ(process->Reap(), "ended with exit code 2");

  arguments = Arguments();
  arguments.kind = MoverKind::kCuda;
  auto without = MoverProcess::Start(TERRACE_MOVER, arguments);
  ASSERT_TRUE(without);
  const Status ready = AwaitReady(*without);
  EXPECT_FALSE(ready.ok());
  EXPECT_TRUE(without->AwaitEnd(kWithin));
  const std::string code = without->Reap();
  const char* expected = ready.code() == Code::kNotFound           ? "ended with exit code 3"
                         : ready.code() == Code::kPermissionDenied ? "ended with exit code 4"
                         : ready.code() == Code::kMismatch         ? "ended with exit code 5"
                                                                   : "another error";
  EXPECT_EQ(code, expected) << ready.ToString();

  EXPECT_EQ(MoverProcess::Start("/nowhere/terrace-mover", arguments).status().code(),
            Code::kNotFound);
}

TEST(MoverArguments, ComeBackAsTheyWereWritten) {
  MoverArguments arguments = Arguments();
  arguments.socket = 7;
  arguments.host_bytes = 123u << 20;
  arguments.options.in_flight = 5;
  arguments.options.arenas = 6;
  std::vector<std::string> command = MoverCommand("mover", arguments);
  std::vector<char*> argv;
  for (std::string& argument : command)
    argv.push_back(argument.data());
  const auto parsed = ParseMoverArguments(argv);
  ASSERT_TRUE(parsed) << parsed.status().ToString();
  EXPECT_EQ(MoverCommand("mover", *parsed), command);
}

TEST(MoverArguments, WhatIsWrongIsNamed) {
  const auto refused = [](std::vector<std::string> command, const char* words) {
    command.insert(command.begin(), "mover");
    std::vector<char*> argv;
    for (std::string& argument : command)
      argv.push_back(argument.data());
    const auto parsed = ParseMoverArguments(argv);
    EXPECT_EQ(parsed.status().code(), Code::kInvalidArgument);
    EXPECT_THAT(parsed.status().message(), HasSubstr(words));
  };
  const std::string device = "--device=" + HostGpuUuid(0).Text();
  refused({}, "--device: is missing");
  refused({device}, "--socket: is missing");
  refused({device, "--socket=3x"}, "--socket: is no number");
  refused({device, "--socket=3", "--arenas=-1"}, "--arenas");
  refused({device, "--socket=3", "--host-bytes=99999999999999999999"}, "--host-bytes");
  refused({"--device=GPU-1"}, "no UUID");
  refused({device, "--kind=tpu"}, "--kind");
  refused({device, "--socket=3", "--registration-bytes=100"}, "--registration-bytes");
  refused({device, "--frobnicate=3"}, "--frobnicate");
  refused({device, "--socket"}, "has no value");
}

}  // namespace
}  // namespace terrace
