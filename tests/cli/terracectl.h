// What the tests of terracectl share: a daemon, and the program run against it.
#pragma once

#include <gmock/gmock.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/cli/run_program.h"
#include "tests/support/daemon_process.h"

namespace terrace {

inline ProgramOutput RunTerracectl(std::vector<std::string> arguments,
                                   const std::string& standard_input = {}) {
  return RunProgram({.program = TERRACECTL_PATH,
                     .arguments = std::move(arguments),
                     .standard_input = standard_input,
                     .output_file = {},
                     .environment = {}});
}

class Terracectl : public ::testing::Test {
 protected:
  virtual DaemonProcessOptions Options() const { return {}; }
  void SetUp() override {
    auto daemon = DaemonProcess::Start(Options());
    ASSERT_TRUE(daemon) << daemon.error().ToString();
    daemon_ = *std::move(daemon);
  }

  ProgramOutput Run(std::vector<std::string> arguments, const std::string& standard_input = {}) {
    arguments.insert(arguments.begin(), {"--socket", daemon_->socket()});
    return RunTerracectl(std::move(arguments), standard_input);
  }
  // Runs with --json; an answer that is not JSON is a failure and comes back as null.
  nlohmann::json RunJson(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "--json");
    const ProgramOutput output = Run(std::move(arguments));
    EXPECT_EQ(output.exit_code, 0) << output.standard_error;
    const auto json = nlohmann::json::parse(output.standard_output, nullptr, false);
    EXPECT_FALSE(json.is_discarded()) << output.standard_output;
    return json.is_discarded() ? nlohmann::json() : json;
  }
  DaemonProcess& daemon() { return *daemon_; }

 private:
  std::unique_ptr<DaemonProcess> daemon_;
};

}  // namespace terrace
