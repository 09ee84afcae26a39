#include <CLI/CLI.hpp>

#include "bench/make_model.h"

int main(int argc, char** argv) {
  CLI::App app("Benchmarks and their input.", "terrace-bench");
  app.require_subcommand(1);
  int exit_code = 0;
  terrace::AddMakeModel(app, exit_code);
  CLI11_PARSE(app, argc, argv);
  return exit_code;
}
