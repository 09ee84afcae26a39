// terracectl on pages, beside an engine that has a space open.
#include <kvclient/kvclient.h>
#include <unistd.h>

#include <fstream>
#include <iterator>

#include "tests/cli/terracectl.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kPageTokens = 16;
constexpr uint64_t kPageBytes = 4096;

class TerracectlPages : public Terracectl {
 protected:
  void SetUp() override {
    Terracectl::SetUp();
    kvc_client_options options{};
    options.struct_size = sizeof options;
    const std::string socket = daemon().socket();
    options.socket_path = socket.c_str();
    options.name = "engine";
    ASSERT_EQ(kvc_connect(&options, &client_, nullptr), KVC_OK);
    kvc_space_options space{};
    space.struct_size = sizeof space;
    space.layout = {.dtype = "i8",
                    .layers = 1,
                    .kv_heads = 1,
                    .head_size = 256,
                    .page_tokens = kPageTokens,
                    .planes = 1,
                    .order = nullptr};
    ASSERT_EQ(kvc_space_open(client_, &space, 0, &space_, nullptr), KVC_OK);
    id_ = RunJson({"spaces"})["spaces"][0]["id"];
  }
  void TearDown() override {
    kvc_space_close(space_);
    kvc_close(client_);
  }

  std::string KeyOf(int number) const {
    return std::string(62, 'a') + static_cast<char>('0' + number / 10) +
           static_cast<char>('0' + number % 10);
  }
  std::string PageFile(char fill, uint64_t bytes = kPageBytes) {
    const std::string path = daemon().folder() + "/page-" + fill;
    std::ofstream(path, std::ios::binary) << std::string(bytes, fill);
    return path;
  }
  std::string TokenList(uint32_t count) const {
    std::string list;
    for (uint32_t i = 0; i < count; ++i) {
      if (i > 0) list += ',';
      list += std::to_string(1000 + i);
    }
    return list;
  }

  kvc_client* client_ = nullptr;
  kvc_space* space_ = nullptr;
  std::string id_;
};

TEST_F(TerracectlPages, APageComesBackAsItWasPut) {
  ASSERT_EQ(Run({"put", "--space", id_, "--key", KeyOf(1), PageFile('x')}).exit_code, 0);
  const ProgramOutput got = Run({"get", "--space", id_, "--key", KeyOf(1)});
  EXPECT_EQ(got.exit_code, 0) << got.standard_error;
  EXPECT_EQ(got.standard_output, std::string(kPageBytes, 'x'));

  const std::string file = daemon().folder() + "/out";
  const auto described = RunJson({"get", "--space", id_, "--key", KeyOf(1), "-o", file});
  EXPECT_EQ(described["bytes"], kPageBytes);
  EXPECT_EQ(described["valid_tokens"], kPageTokens);
  std::ifstream stream(file, std::ios::binary);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(stream), {}), got.standard_output);
}

TEST_F(TerracectlPages, StandardInputIsAPageToo) {
  const ProgramOutput put =
      Run({"put", "--space", id_, "--key", KeyOf(2), "-"}, std::string(kPageBytes, 'i'));
  ASSERT_EQ(put.exit_code, 0) << put.standard_error;
  EXPECT_EQ(Run({"get", "--space", id_, "--key", KeyOf(2)}).standard_output,
            std::string(kPageBytes, 'i'));
}

TEST_F(TerracectlPages, TokensNameThePageThatAnEngineWouldLookUp) {
  // Two full pages and one with five tokens: the third.
  const auto put =
      RunJson({"put", "--space", id_, "--tokens", TokenList(2 * kPageTokens + 5), PageFile('t')});
  EXPECT_EQ(put["valid_tokens"], 5);
  kvc_sequence* sequence = nullptr;
  ASSERT_EQ(kvc_sequence_create(space_, &sequence), KVC_OK);
  std::vector<uint32_t> tokens;
  for (uint32_t i = 0; i < 2 * kPageTokens + 5; ++i)
    tokens.push_back(1000 + i);
  ASSERT_EQ(kvc_sequence_append(sequence, tokens.data(), tokens.size()), KVC_OK);
  kvc_key key{};
  uint32_t valid_tokens = 0;
  ASSERT_EQ(kvc_sequence_partial(sequence, &key, &valid_tokens), KVC_OK);
  kvc_reader* reader = nullptr;
  ASSERT_EQ(kvc_reader_create(client_, &reader, nullptr), KVC_OK);
  kvc_page page{};
  const kvc_ticket ticket = kvc_pin(reader, space_, &key, &page, nullptr);
  ASSERT_NE(ticket, 0u);
  EXPECT_EQ(page.valid_tokens, 5u);
  EXPECT_EQ(static_cast<const char*>(page.data)[0], 't');
  kvc_unpin(reader, ticket);
  kvc_reader_destroy(reader);
  kvc_sequence_destroy(sequence);
}

TEST_F(TerracectlPages, TokensMayComeFromAFile) {
  const std::string file = daemon().folder() + "/tokens";
  std::ofstream(file) << TokenList(kPageTokens) << "\n";
  ASSERT_EQ(
      Run({"put", "--space", id_, "--tokens", TokenList(kPageTokens), PageFile('f')}).exit_code, 0);
  EXPECT_EQ(Run({"get", "--space", id_, "--tokens", "@" + file}).standard_output,
            std::string(kPageBytes, 'f'));
}

TEST_F(TerracectlPages, ABeginningOfTheIdIsEnough) {
  ASSERT_EQ(Run({"put", "--space", id_.substr(0, 8), "--key", KeyOf(3), PageFile('s')}).exit_code,
            0);
  const auto pages = RunJson({"pages", "--space", id_.substr(0, 8)});
  ASSERT_EQ(pages["pages"].size(), 1u);
  EXPECT_EQ(pages["pages"][0]["key"], KeyOf(3));
}

TEST_F(TerracectlPages, AnUnknownSpaceIsNotFound) {
  const ProgramOutput output = Run({"get", "--space", "xyz", "--key", KeyOf(1)});
  EXPECT_EQ(output.exit_code, 4);
  EXPECT_THAT(output.standard_error, HasSubstr("terracectl spaces"));
}

TEST_F(TerracectlPages, AMissingPageIsNotFound) {
  const ProgramOutput output = Run({"get", "--space", id_, "--key", KeyOf(77)});
  EXPECT_EQ(output.exit_code, 4);
  EXPECT_EQ(output.standard_output, "");
  EXPECT_THAT(output.standard_error, HasSubstr(KeyOf(77)));
}

TEST_F(TerracectlPages, TheFirstPageOfAKeyStays) {
  ASSERT_EQ(Run({"put", "--space", id_, "--key", KeyOf(4), PageFile('1')}).exit_code, 0);
  const ProgramOutput second = Run({"put", "--space", id_, "--key", KeyOf(4), PageFile('2')});
  EXPECT_EQ(second.exit_code, 1);
  EXPECT_THAT(second.standard_error, HasSubstr("exists already"));
  EXPECT_EQ(Run({"get", "--space", id_, "--key", KeyOf(4)}).standard_output,
            std::string(kPageBytes, '1'));
}

TEST_F(TerracectlPages, APageOfAnotherSizeIsRefused) {
  for (const uint64_t bytes : {uint64_t{0}, kPageBytes - 1, kPageBytes + 1}) {
    const ProgramOutput output =
        Run({"put", "--space", id_, "--key", KeyOf(5), PageFile('w', bytes)});
    EXPECT_EQ(output.exit_code, 2) << bytes;
    EXPECT_THAT(output.standard_error, HasSubstr("4096 bytes")) << bytes;
  }
  EXPECT_EQ(RunJson({"pages"})["pages"].size(), 0u);
}

TEST_F(TerracectlPages, KeysAndTokensAreChecked) {
  for (const std::vector<std::string>& choice : {std::vector<std::string>{"--key", "12"},
                                                 {"--key", std::string(64, 'g')},
                                                 {"--tokens", "1,two"},
                                                 {"--tokens", ","},
                                                 {"--tokens", "4294967296"}}) {
    std::vector<std::string> call = {"get", "--space", id_};
    call.insert(call.end(), choice.begin(), choice.end());
    EXPECT_EQ(Run(call).exit_code, 2) << ::testing::PrintToString(choice);
  }
}

TEST_F(TerracectlPages, AFileThatCannotBeReadOrWrittenIsNamed) {
  const ProgramOutput put = Run({"put", "--space", id_, "--key", KeyOf(6), "/does/not/exist"});
  EXPECT_EQ(put.exit_code, 1);
  EXPECT_THAT(put.standard_error, HasSubstr("/does/not/exist"));
  ASSERT_EQ(Run({"put", "--space", id_, "--key", KeyOf(6), PageFile('x')}).exit_code, 0);
  const ProgramOutput get =
      Run({"get", "--space", id_, "--key", KeyOf(6), "-o", "/does/not/exist"});
  EXPECT_EQ(get.exit_code, 1);
  EXPECT_THAT(get.standard_error, HasSubstr("/does/not/exist"));
}

TEST_F(TerracectlPages, ClientsShowWhatTheyPin) {
  ASSERT_EQ(Run({"put", "--space", id_, "--key", KeyOf(7), PageFile('p')}).exit_code, 0);
  kvc_reader* reader = nullptr;
  ASSERT_EQ(kvc_reader_create(client_, &reader, nullptr), KVC_OK);
  kvc_key key{};
  for (uint8_t& byte : key.bytes)
    byte = 0xaa;
  key.bytes[31] = 0x07;
  kvc_page page{};
  const kvc_ticket ticket = kvc_pin(reader, space_, &key, &page, nullptr);
  ASSERT_NE(ticket, 0u);
  bool listed = false;
  const auto report = RunJson({"clients"});
  for (const auto& client : report["clients"]) {
    if (client["name"] != "engine") continue;
    listed = true;
    EXPECT_EQ(client["pid"], getpid());
    EXPECT_EQ(client["pins"], 1);
    EXPECT_EQ(client["pinned_bytes"], kPageBytes);
  }
  EXPECT_TRUE(listed);
  EXPECT_THAT(Run({"clients"}).standard_output, HasSubstr("4.00 KiB"));
  kvc_unpin(reader, ticket);
  kvc_reader_destroy(reader);
}

TEST_F(TerracectlPages, EvictTakesWhatNobodyHolds) {
  for (int i = 10; i < 20; ++i) {
    ASSERT_EQ(Run({"put", "--space", id_, "--key", KeyOf(i), PageFile('e')}).exit_code, 0);
  }
  EXPECT_GE(RunJson({"evict", "--bytes", "8K"})["pages"], 2);
  EXPECT_THAT(Run({"evict", "--all"}).standard_output, HasSubstr("evicted"));
  EXPECT_EQ(RunJson({"pages"})["pages"].size(), 0u);
}

TEST_F(TerracectlPages, PagesAreListedUpToTheLimit) {
  for (int i = 10; i < 14; ++i) {
    ASSERT_EQ(Run({"put", "--space", id_, "--key", KeyOf(i), PageFile('e')}).exit_code, 0);
  }
  EXPECT_EQ(RunJson({"pages", "--limit", "3"})["pages"].size(), 3u);
  EXPECT_THAT(Run({"pages", "--limit", "3"}).standard_output, HasSubstr("there may be more"));
}

TEST_F(TerracectlPages, SpacesShowTheirLayout) {
  const auto report = RunJson({"spaces"});
  EXPECT_EQ(report["spaces"][0]["layout"]["dtype"], "i8");
  EXPECT_EQ(report["spaces"][0]["page_bytes"], kPageBytes);
  EXPECT_THAT(Run({"spaces"}).standard_output, HasSubstr(id_.substr(0, 12)));
}

// ---- The store

class TerracectlStore : public TerracectlPages {
 protected:
  DaemonProcessOptions Options() const override {
    DaemonProcessOptions options;
    options.store = "[[nvme]]\npath = \"@/nvme\"\ncapacity = \"64MiB\"\n";
    return options;
  }
  void Put(int first, int count) {
    for (int i = first; i < first + count; ++i)
      ASSERT_EQ(Run({"put", "--space", id_, "--key", KeyOf(i), PageFile('s')}).exit_code, 0);
  }
};

TEST_F(TerracectlStore, TiersShowWhatIsStoredAndHowTheDevicesAre) {
  Put(10, 4);
  EXPECT_EQ(RunJson({"demote", "--all"})["pages"], 4);
  const auto report = RunJson({"tiers"});
  ASSERT_EQ(report["tiers"].size(), 2u);
  EXPECT_EQ(report["tiers"][0]["tier"], "host");
  const auto& store = report["tiers"][1];
  EXPECT_EQ(store["pages"], 4);
  EXPECT_EQ(store["spilled"]["bytes"], 4 * kPageBytes);
  EXPECT_EQ(store["faults"], nlohmann::json::object());
  EXPECT_EQ(store["devices"][0]["state"], "serving");
  const std::string text = Run({"tiers"}).standard_output;
  EXPECT_THAT(text, HasSubstr("4 of 1 spaces, durable against the end of the process"));
  EXPECT_THAT(text, HasSubstr(daemon().folder() + "/nvme"));
  EXPECT_THAT(text, HasSubstr("serving"));
  EXPECT_THAT(text, HasSubstr("default"));
}

TEST_F(TerracectlStore, DemoteTakesStoredPagesOutOfMemory) {
  Put(10, 6);
  EXPECT_GE(RunJson({"demote", "--bytes", "8K"})["pages"], 2);
  const auto text = Run({"demote", "--all"});
  EXPECT_EQ(text.exit_code, 0) << text.standard_error;
  EXPECT_THAT(text.standard_output, HasSubstr("are in the store alone"));
  EXPECT_EQ(RunJson({"pages"})["pages"].size(), 0u);
  EXPECT_EQ(RunJson({"tiers"})["tiers"][1]["pages"], 6);
}

TEST_F(TerracectlStore, PromoteBringsPagesBack) {
  Put(10, 6);
  EXPECT_EQ(RunJson({"demote", "--all"})["pages"], 6);
  EXPECT_EQ(RunJson({"promote", "--bytes", "8K", "--wait"})["pages"], 2);
  EXPECT_EQ(RunJson({"pages"})["pages"].size(), 2u);
  const auto text = Run({"promote", "--all", "--wait", "--tenant", "default", "--space", id_});
  EXPECT_EQ(text.exit_code, 0) << text.standard_error;
  EXPECT_THAT(text.standard_output, HasSubstr("4 pages are in memory too"));
  EXPECT_EQ(text.standard_error, "") << "a bar is for terminals";
  EXPECT_EQ(RunJson({"pages"})["pages"].size(), 6u);
  EXPECT_EQ(RunJson({"promote", "--all"})["begun"], true);
  EXPECT_EQ(Run({"promote", "--all", "--tenant", "nobody"}).exit_code, 4);
  EXPECT_EQ(Run({"promote", "--all", "--space", "12"}).exit_code, 2);
  EXPECT_EQ(Run({"promote"}).exit_code, 2);
}

TEST_F(TerracectlStore, FsckSaysThatNothingIsWrong) {
  Put(10, 4);
  EXPECT_EQ(RunJson({"demote", "--all"})["pages"], 4);
  const auto text = Run({"fsck", "--data"});
  EXPECT_EQ(text.exit_code, 0) << text.standard_error;
  EXPECT_THAT(text.standard_output, HasSubstr("nothing is wrong"));
  const auto report = RunJson({"fsck", "--data", "--repair"});
  EXPECT_EQ(report["clean"], true);
  EXPECT_EQ(report["read_pages"], 4);
  EXPECT_EQ(report["repaired"], 0);
  EXPECT_EQ(RunJson({"fsck"})["read_pages"], 0);
}

TEST_F(TerracectlStore, TiersAreWatchedWithRates) {
  const ProgramOutput output =
      RunProgram({.program = "/usr/bin/timeout",
                  .arguments = {"2", TERRACECTL_PATH, "--socket", daemon().socket(), "tiers",
                                "--watch", "0.2"},
                  .standard_input = {},
                  .output_file = {},
                  .environment = {}});
  EXPECT_EQ(output.exit_code, 124) << output.standard_error;
  EXPECT_THAT(output.standard_output, HasSubstr("reads/s"));
  EXPECT_EQ(RunTerracectl({"tiers", "--watch", "0"}).exit_code, 2);
}

TEST_F(TerracectlStore, FlushWaits) {
  Put(10, 2);
  const auto text = Run({"flush"});
  EXPECT_EQ(text.exit_code, 0) << text.standard_error;
  EXPECT_THAT(text.standard_output, HasSubstr("survives the loss of power"));
  EXPECT_EQ(RunJson({"flush"}), nlohmann::json::object());
}

TEST_F(TerracectlPages, WithoutAStoreItsVerbsSaySo) {
  for (const std::vector<std::string>& call :
       {std::vector<std::string>{"demote", "--all"}, {"promote", "--all"}, {"fsck"}, {"flush"}}) {
    const ProgramOutput output = Run(call);
    EXPECT_NE(output.exit_code, 0) << call[0];
    EXPECT_THAT(output.standard_error, HasSubstr("the daemon has no store")) << call[0];
  }
  EXPECT_EQ(RunJson({"tiers"})["tiers"].size(), 1u);
}

}  // namespace
}  // namespace terrace
