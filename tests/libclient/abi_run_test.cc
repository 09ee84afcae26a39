// Runs the C11 program against a daemon, and looks at the library as a linker does.
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include "tests/libclient/client_fixture.h"

namespace terrace {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kInstrumented = true;
#else
constexpr bool kInstrumented = false;
#endif

struct Ran {
  int exit_code = -1;
  std::string output;
};
Ran Shell(const std::string& command) {
  Ran ran;
  FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
  char line[512];
  while (pipe != nullptr && std::fgets(line, sizeof line, pipe) != nullptr)
    ran.output += line;
  const int status = ::pclose(pipe);
  ran.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return ran;
}

std::string ReadFile(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

class AbiTest : public ClientTest {};

TEST_F(AbiTest, EveryFunctionWorksFromC11) {
  const std::string file = daemon().folder() + "/one.safetensors";
  const std::string header = R"({"t":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})";
  const uint64_t length = header.size();
  std::ofstream out(file, std::ios::binary);
  out.write(reinterpret_cast<const char*>(&length), sizeof length);
  out << header << "terrace!";
  out.close();
  const Ran ran =
      Shell(ABI_TEST_PATH " " + socket() + " " + file + " " + daemon().folder() + "/none");
  EXPECT_EQ(ran.exit_code, 0) << ran.output;
}

// The functions that the headers declare.
std::set<std::string> Declared() {
  std::set<std::string> names;
  for (const char* header : {"kvclient.h", "admin.h", "device.h", "pool.h"}) {
    const std::string text = ReadFile(std::string(KVCLIENT_INCLUDE "/kvclient/") + header);
    const std::regex function(R"(KVC_API[\s\w\*]*?[\s\*](kvc_\w+)\()");
    for (std::sregex_iterator it(text.begin(), text.end(), function), end; it != end; ++it) {
      names.insert((*it)[1]);
    }
  }
  return names;
}

TEST(Library, ExportsTheDeclaredFunctionsAndNothingElse) {
  std::set<std::string> exported;
  std::istringstream lines(Shell("nm -D --defined-only " KVCLIENT_PATH).output);
  std::string address, kind, name;
  while (lines >> address >> kind >> name)
    exported.insert(name);
  EXPECT_GT(exported.size(), 50u);
  EXPECT_EQ(exported, Declared());
}

TEST(Library, NeedsNothingButTheLanguagesRuntime) {
  if (kInstrumented) GTEST_SKIP() << "a sanitizer brings its own runtime";
  std::istringstream lines(Shell("readelf -d " KVCLIENT_PATH).output);
  const std::set<std::string> allowed = {"libc.so.6", "libstdc++.so.6", "libgcc_s.so.1",
                                         "libm.so.6", "ld-linux-x86-64.so.2"};
  std::string line;
  int needed = 0;
  bool soname = false;
  while (std::getline(lines, line)) {
    const size_t open = line.find('[');
    if (open == std::string::npos) continue;
    const std::string value = line.substr(open + 1, line.find(']') - open - 1);
    if (line.find("(NEEDED)") != std::string::npos) {
      ++needed;
      EXPECT_TRUE(allowed.contains(value)) << value;
    }
    soname = soname || (line.find("(SONAME)") != std::string::npos && value == "libkvclient.so.0");
  }
  EXPECT_GT(needed, 0);
  EXPECT_TRUE(soname);
}

// Each is compiled by both ways of finding an installed library, and says the library's version.
TEST(Library, IsFoundByPkgConfigAndByCMakeOnceInstalled) {
  if (kInstrumented) GTEST_SKIP() << "a sanitizer brings its own runtime";
  const TemporaryFolder folder;
  const std::string& root = folder.path();
  Ran ran = Shell("cmake --install " BUILD_FOLDER "/libclient --prefix " + root + "/usr");
  ASSERT_EQ(ran.exit_code, 0) << ran.output;
  ran = Shell("cmake --install " BUILD_FOLDER "/cli --prefix " + root + "/usr && " + root +
              "/usr/bin/terracectl version");
  EXPECT_EQ(ran.exit_code, 0) << ran.output;
  EXPECT_NE(ran.output.find(EXPECTED_VERSION), std::string::npos) << ran.output;
  std::ofstream(root + "/main.c") << "#include <kvclient/admin.h>\n#include <stdio.h>\n"
                                     "int main(void) { return puts(kvc_version()) < 0; }\n";
  std::ofstream(root + "/main.cc")
      << "#include <kvclient/kvclient.hpp>\n#include <cstdio>\n"
         "int main() { kvc_client_options o{}; o.socket_path = \"/none\";\n"
         "  return kvc::Client::Connect(o) ? 1 : std::puts(kvc_version()) < 0; }\n";
  const std::string lib = root + "/usr/" LIBRARY_FOLDER;
  ran = Shell("cd " + root + " && export PKG_CONFIG_PATH=" + lib +
              "/pkgconfig && cc -std=c11 -Wall -Werror main.c -o by_pkg "
              "$(pkg-config --cflags --libs kvclient) && "
              "LD_LIBRARY_PATH=" +
              lib + " ./by_pkg");
  EXPECT_EQ(ran.exit_code, 0) << ran.output;
  EXPECT_EQ(ran.output, EXPECTED_VERSION "\n");
  std::ofstream(root + "/CMakeLists.txt")
      << "cmake_minimum_required(VERSION 3.16)\nproject(engine CXX)\n"
         "set(CMAKE_CXX_STANDARD 17)\nfind_package(kvclient 0.1 REQUIRED)\n"
         "add_executable(by_cmake main.cc)\ntarget_link_libraries(by_cmake kvclient::kvclient)\n";
  ran = Shell("cd " + root + " && cmake -S . -B b -DCMAKE_PREFIX_PATH=" + root +
              "/usr > log && cmake --build b >> log && ./b/by_cmake");
  EXPECT_EQ(ran.exit_code, 0) << ran.output << ReadFile(root + "/log");
  EXPECT_EQ(ran.output, EXPECTED_VERSION "\n");
}

TEST(Readme, TheEngineInTwentyLinesCompiles) {
  const std::string readme = ReadFile(README_PATH);
  const std::string open = "```cpp\n";
  const size_t begin = readme.find(open);
  ASSERT_NE(begin, std::string::npos);
  const size_t end = readme.find("```", begin + open.size());
  ASSERT_NE(end, std::string::npos);
  const TemporaryFolder folder;
  const std::string source = folder.path() + "/engine.cc";
  std::ofstream(source) << "#include <kvclient/kvclient.hpp>\n#include <vector>\n"
                           "void Use(kvc::PageView page);\nvoid Compute(kvc::Bytes page);\n"
                           "void Serve(const std::vector<std::uint32_t>& prompt) {\n"
                        << readme.substr(begin + open.size(), end - begin - open.size()) << "}\n";
  const Ran ran = Shell("c++ -std=c++20 -Werror -fsyntax-only -I" KVCLIENT_INCLUDE " " + source);
  EXPECT_EQ(ran.exit_code, 0) << ran.output;
}

}  // namespace
}  // namespace terrace
