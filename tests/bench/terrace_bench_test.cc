// terrace-bench as a program.
#include <gmock/gmock.h>
#include <kvclient/admin.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "bench/model_writer.h"
#include "tests/cli/run_program.h"
#include "tests/support/daemon_process.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

ProgramOutput RunBench(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"--terraced", TERRACED_PATH});
  return RunProgram({.program = TERRACE_BENCH_PATH,
                     .arguments = std::move(arguments),
                     .standard_input = {},
                     .output_file = {},
                     .environment = {}});
}

nlohmann::json FiguresOf(std::vector<std::string> arguments) {
  arguments.push_back("--json");
  const ProgramOutput output = RunBench(arguments);
  EXPECT_EQ(output.exit_code, 0) << output.standard_error;
  const auto json = nlohmann::json::parse(output.standard_output, nullptr, false);
  EXPECT_TRUE(json.is_object()) << output.standard_output;
  return json.is_object() ? json : nlohmann::json::object();
}

// ---- Suites: one object with the promised figures, with little work.

struct SuiteCase {
  std::vector<std::string> arguments;
  std::vector<const char*> figures;
};
class Suite : public ::testing::TestWithParam<SuiteCase> {};

TEST_P(Suite, PrintsOneObjectWithItsFigures) {
  std::vector<std::string> arguments = GetParam().arguments;
  arguments.push_back("--quick");
  const auto json = FiguresOf(arguments);
  EXPECT_EQ(json["suite"], arguments.front());
  EXPECT_TRUE(json["machine"].contains("processor"));
  for (const char* name : GetParam().figures) {
    ASSERT_TRUE(json["figures"].contains(name)) << name << " in " << json;
    EXPECT_TRUE(json["figures"][name].is_number()) << name;
    EXPECT_TRUE(json["units"].contains(name)) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, Suite,
    ::testing::Values(
        SuiteCase{{"hit"},
                  {"hit_over_bare", "hit_ns_p50", "hit_ns_mean", "syscalls_per_million_hits"}},
        SuiteCase{
            {"hit", "--clients", "3"},
            {"hits_per_second", "hits_per_second_1", "hits_per_second_2", "hits_per_second_3"}},
        SuiteCase{{"evict"}, {"evict_us_per_page"}},
        SuiteCase{{"prefix"}, {"hash_over_sha256", "lookup_us"}},
        SuiteCase{{"put"}, {"put_over_memcpy", "messages_per_batch"}},
        SuiteCase{{"attach"}, {"round_trips", "first_tensor_ms", "copies_in_memory"}},
        SuiteCase{{"cold-load"},
                  {"image_over_raw", "in_place_over_raw", "over_mmap", "over_buffered"}},
        SuiteCase{{"touch"}, {"touch_us"}}, SuiteCase{{"crash"}, {"release_ms_p99"}},
        SuiteCase{{"connect"},
                  {"connects_per_second", "daemon_descriptors_left", "daemon_mappings_left"}},
        SuiteCase{{"flood"},
                  {"errors_for_good_clients", "hit_ns_p50_ratio", "daemon_memory_growth_bytes"}},
        SuiteCase{{"control"}, {"rtt_over_echo", "commits_per_second"}},
        SuiteCase{{"spill"}, {"spill_over_raw", "put_slowdown"}},
        SuiteCase{{"promote"}, {"promote_over_raw", "added_us"}},
        SuiteCase{{"restart"}, {"restart_seconds", "pages_found", "bytes_per_indexed_page"}},
        SuiteCase{{"verify"}, {"verify_cost"}},
        SuiteCase{{"metrics"}, {"scrape_ms", "loop_ms_p99", "ping_us_p99"}},
        SuiteCase{{"gpu-copy"}, {"h2d_over_plain", "d2h_over_plain", "staged_h2d_gb_s_pages"}},
        SuiteCase{{"gpu-gather"}, {"gather_over_copy", "scatter_over_copy"}},
        SuiteCase{{"gpu-attach"}, {"attach_ms", "hbm_copies", "set_bytes"}},
        SuiteCase{{"gpu-load"}, {"load_over_h2d", "load_gb_s", "h2d_gb_s"}},
        SuiteCase{{"overlap"}, {"total_over_slower_stage", "read_gb_s", "copy_gb_s"}}),
    [](const auto& tested) {
      const auto& arguments = tested.param.arguments;
      std::string name = arguments.front();
      std::replace(name.begin(), name.end(), '-', '_');
      return name + (arguments.size() > 1 ? "_clients" : "");
    });

// What does not depend on the machine's speed is promised exactly.
TEST(SuiteCounts, AHitMakesNoSystemCall) {
  EXPECT_EQ(FiguresOf({"hit", "--quick"})["figures"]["syscalls_per_million_hits"], 0);
}
TEST(SuiteCounts, ClientsShareNoMemoryThatTwoOfThemWrite) {
  const auto json = FiguresOf({"hit", "--clients", "2", "--quick"});
  EXPECT_EQ(json["figures"]["writable_shared_mappings_beyond_channel"], 0);
}
TEST(SuiteCounts, AClientLeavesNothingBehind) {
  const auto json = FiguresOf({"connect", "--quick"});
  for (const char* left : {"daemon_descriptors_left", "daemon_mappings_left",
                           "client_descriptors_left", "client_mappings_left"}) {
    EXPECT_EQ(json["figures"][left], 0) << left;
  }
}
TEST(SuiteCounts, HostileClientsCauseNoErrors) {
  EXPECT_EQ(FiguresOf({"flood", "--quick"})["figures"]["errors_for_good_clients"], 0);
}
TEST(SuiteCounts, AKilledDaemonFindsEveryPage) {
  EXPECT_EQ(FiguresOf({"restart", "--quick"})["figures"]["pages_found"], 1);
}
TEST(SuiteCounts, ABatchIsTwoMessages) {
  EXPECT_EQ(FiguresOf({"put", "--quick"})["figures"]["messages_per_batch"], 2);
}
TEST(SuiteCounts, AHostsDeviceHasNoThresholdsAndAGpuThatIsNotThereIsNoDevice) {
  EXPECT_EQ(FiguresOf({"gpu-gather", "--quick"})["figures"]["has_thresholds"], 0);
  const ProgramOutput wrong = RunBench({"gpu-gather", "--quick", "--device", "cpu"});
  EXPECT_EQ(wrong.exit_code, 1);
  EXPECT_THAT(wrong.standard_error, HasSubstr("'cpu' is not host, cuda or cuda:UUID"));
}
TEST(SuiteCounts, AnAttachIsTwoRoundTrips) {
  EXPECT_EQ(FiguresOf({"attach", "--quick"})["figures"]["round_trips"], 2);
}

// ---- Play

class Play : public ::testing::Test {
 protected:
  // 60 requests of 12 conversations: each continues with one block more, so most of it is known.
  std::string WriteTrace() {
    const std::string path = folder_.path() + "/trace.jsonl";
    std::ofstream file(path);
    for (int turn = 0; turn < 5; ++turn) {
      for (int conversation = 0; conversation < 12; ++conversation) {
        nlohmann::json ids = {0, 1};
        for (int block = 0; block <= turn; ++block)
          ids.push_back(100 + 10 * conversation + block);
        file << nlohmann::json{{"timestamp", turn * 1000},
                               {"input_length", 512 * ids.size()},
                               {"output_length", 10},
                               {"hash_ids", ids}}
                    .dump()
             << "\n";
      }
    }
    return path;
  }
  TemporaryFolder folder_;
};

TEST_F(Play, MapsNoWrongByteAndFindsWhatIsThere) {
  // One client: the order is the trace's, so what is found is known exactly.
  const auto json =
      FiguresOf({"play", "--trace", WriteTrace(), "--clients", "1", "--capacity", "64MB"});
  const auto& figures = json["figures"];
  EXPECT_EQ(figures["wrong_bytes"], 0);
  EXPECT_EQ(figures["requests"], 60);
  EXPECT_EQ(figures["hit_ratio"], figures["hit_ratio_without_limit"]);
  EXPECT_GT(figures["hits"], 0);
  EXPECT_EQ(figures["tokens_not_recomputed"], figures["hits"].get<uint64_t>() * 512);
  EXPECT_EQ(figures["verified_bytes"], figures["hits"].get<uint64_t>() * 4096);
}

TEST_F(Play, MapsNoWrongByteWhenManyPlayUnderPressure) {
  const auto json = FiguresOf({"play", "--trace", WriteTrace(), "--clients", "3", "--capacity",
                               "16MiB", "--page-bytes", "524288"});
  EXPECT_EQ(json["figures"]["wrong_bytes"], 0);
  EXPECT_EQ(json["figures"]["requests"], 60);
  EXPECT_GT(json["figures"]["evicted_pages"], 0);
}

TEST_F(Play, TheRealTraceMapsNoWrongByte) {
  const char* trace = std::getenv("TERRACE_TRACE");
  if (trace == nullptr) GTEST_SKIP() << "TERRACE_TRACE names no Mooncake trace";
  const auto json =
      FiguresOf({"play", "--trace", trace, "--requests", "1500", "--capacity", "64MiB"});
  EXPECT_EQ(json["figures"]["wrong_bytes"], 0);
  EXPECT_GT(json["figures"]["hits"], 0);
}

TEST_F(Play, AMalformedLineIsNamed) {
  const std::string path = folder_.path() + "/bad.jsonl";
  std::ofstream(path) << R"({"timestamp":0,"input_length":5,"output_length":1,"hash_ids":[1]})"
                      << "\n"
                      << R"({"timestamp":0,"input_length":5,"output_length":1,"hash_ids":"no"})"
                      << "\n";
  const ProgramOutput output = RunBench({"play", "--trace", path});
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_THAT(output.standard_error,
              AllOf(HasSubstr(path), HasSubstr("line 2"), HasSubstr("hash_ids")));
}

TEST_F(Play, AnEmptyTraceIsRefused) {
  const std::string path = folder_.path() + "/empty.jsonl";
  std::ofstream(path) << "\n";
  EXPECT_EQ(RunBench({"play", "--trace", path}).exit_code, 1);
}

// ---- Chat and share

TEST(Chat, EnginesReuseWhatOthersComputed) {
  const auto json = FiguresOf({"chat", "--clients", "2", "--conversations", "3", "--turns", "2",
                               "--page-tokens", "16", "--capacity", "512MiB"});
  EXPECT_EQ(json["figures"]["wrong_bytes"], 0);
  EXPECT_EQ(json["figures"]["requests"], 6);
  // The second turn of each conversation finds at least the system prompt of 1,024 tokens.
  EXPECT_GE(json["figures"]["tokens_not_recomputed"], 3 * 1024);
}

class Share : public ::testing::Test {
 protected:
  void SetUp() override {
    auto daemon = DaemonProcess::Start();
    ASSERT_TRUE(daemon) << daemon.error().ToString();
    daemon_ = *std::move(daemon);
  }
  std::unique_ptr<DaemonProcess> daemon_;
};

TEST_F(Share, TwoProcessesHoldOneCopy) {
  const std::string model = daemon_->folder() + "/model";
  ASSERT_TRUE(WriteModel(model, ManyTensors(200), {}));
  kvc_client_options options{};
  options.struct_size = sizeof options;
  const std::string socket = daemon_->socket();
  options.socket_path = socket.c_str();
  kvc_client* client = nullptr;
  ASSERT_EQ(kvc_connect(&options, &client, nullptr), KVC_OK);
  kvc_model_added added{};
  added.struct_size = sizeof added;
  ASSERT_EQ(kvc_model_add(client, "many", "1", model.c_str(), 0, &added, nullptr), KVC_OK);
  kvc_close(client);
  const auto json = FiguresOf({"share", "--socket", socket, "--model", "many"});
  EXPECT_LE(json["figures"]["copies_in_memory"], 1.05);
  EXPECT_GE(json["figures"]["copies_in_memory"], 0.95);
  EXPECT_GE(json["figures"]["client_2_mapped_bytes"], added.bytes);
}

TEST_F(Share, AnUnknownModelIsNamed) {
  const ProgramOutput output =
      RunBench({"share", "--socket", daemon_->socket(), "--model", "nobody"});
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_THAT(output.standard_error, HasSubstr("nobody"));
}

// ---- Usage

TEST(Usage, WrongArgumentsAreRefused) {
  for (const std::vector<std::string>& call : {std::vector<std::string>{},
                                               {"dance"},
                                               {"hit", "--clients", "0"},
                                               {"play"},
                                               {"play", "--trace", "/does/not/exist"},
                                               {"chat", "--page-tokens", "8"}}) {
    EXPECT_EQ(RunBench(call).exit_code, 2) << ::testing::PrintToString(call);
  }
}

TEST(Usage, ADaemonThatDoesNotStartIsAnError) {
  const ProgramOutput output =
      RunProgram({.program = TERRACE_BENCH_PATH,
                  .arguments = {"--terraced", "/bin/false", "control", "--quick"},
                  .standard_input = {},
                  .output_file = {},
                  .environment = {}});
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_THAT(output.standard_error, HasSubstr("terraced ended at its start"));
}

}  // namespace
}  // namespace terrace
