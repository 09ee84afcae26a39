// Runs a program until it ends, and captures its output. Nothing here asserts.
#pragma once

#include <string>
#include <vector>

namespace terrace {

struct ProgramOutput {
  int exit_code = -1;  // 128 + N after signal N; -1: it could not be run, or did not end in 60 s.
  std::string standard_output;
  std::string standard_error;
};

struct ProgramCall {
  std::string program;
  std::vector<std::string> arguments;
  std::string standard_input;
  std::string output_file;               // Instead of capturing standard output.
  std::vector<std::string> environment;  // "NAME=value", beside this process's own.
};

ProgramOutput RunProgram(const ProgramCall& call);

}  // namespace terrace
