#include "bench/make_model.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "bench/model_writer.h"

namespace terrace {
namespace {

struct MakeModelArguments {
  std::string directory;
  std::string architecture = "tiny";
  std::string config;
  uint64_t tensors = 0;
  WriteOptions options;
};

Status Make(const MakeModelArguments& arguments) {
  WriteOptions options = arguments.options;
  std::vector<ModelTensor> tensors;
  if (arguments.tensors > 0) {
    tensors = ManyTensors(arguments.tensors);
  } else {
    std::string config;
    if (!arguments.config.empty()) {
      std::ifstream in(arguments.config, std::ios::binary);
      if (!in) return {Code::kNotFound, arguments.config + ": cannot be read"};
      config.assign(std::istreambuf_iterator<char>(in), {});
    }
    auto architecture =
        arguments.config.empty() ? FindArchitecture(arguments.architecture) : ParseConfig(config);
    if (!architecture) return std::move(architecture).error().WithContext(arguments.config);
    ASSIGN_OR_RETURN(tensors, TensorsOf(*architecture));
    options.config_json = architecture->config_json;
  }
  const auto start = std::chrono::steady_clock::now();
  ASSIGN_OR_RETURN(const Written written, WriteModel(arguments.directory, tensors, options));
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  std::printf("%s: %zu tensors, %llu bytes in %zu files, %.1f s\n", arguments.directory.c_str(),
              tensors.size(), static_cast<unsigned long long>(written.tensor_bytes),
              written.files.size(), took.count());
  return {};
}

}  // namespace

void AddMakeModel(CLI::App& app, int& exit_code) {
  auto arguments = std::make_shared<MakeModelArguments>();
  CLI::App* verb = app.add_subcommand(
      "make-model",
      "Write a safetensors model with the tensor names, shapes and dtypes of an architecture.\n"
      "Values follow from the seed, the tensor's name and the position.");
  verb->add_option("directory", arguments->directory, "Where to; made if needed")->required();
  auto* arch = verb->add_option("--arch", arguments->architecture, "A built-in architecture")
                   ->check(CLI::IsMember(PublishedArchitectures()))
                   ->capture_default_str();
  auto* config =
      verb->add_option("--config", arguments->config, "A Hugging Face config.json instead")
          ->check(CLI::ExistingFile)
          ->excludes(arch);
  verb->add_option("--tensors", arguments->tensors,
                   "Instead: so many BF16 tensors of 64 x 64, 25 a layer")
      ->check(CLI::Range(1, 200'000))
      ->excludes(arch)
      ->excludes(config);
  verb->add_option("--seed", arguments->options.seed, "Of all values")->capture_default_str();
  verb->add_option("--shards", arguments->options.shards, "Files to split it into")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  verb->callback([arguments, &exit_code] {
    const Status made = Make(*arguments);
    if (made.ok()) return;
    std::fprintf(stderr, "make-model: %s\n", made.ToString().c_str());
    exit_code = 1;
  });
}

}  // namespace terrace
