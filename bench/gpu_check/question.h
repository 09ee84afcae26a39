// terrace-gpu-check: what is believed of GPUs, asked of one. A question is a function that runs in
// a process of its own, with a deadline, and answers in words, figures, and whether Terrace can
// live with it; it may lose its context, be killed, or hang, and the next one does not notice.
//
// It runs on a device of the host too, where answers about hardware mean nothing, and say "host".
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/status.h"
#include "bench/figures.h"

namespace terrace::bench {

struct CheckOptions {
  std::string device = "host";  // As ChooseDevice takes it.
  bool on_gpu = false;
  bool quick = false;  // Little memory and few rounds.
  // Programs that are run as questions; without one its questions are not asked.
  std::string terrace_bench;
  std::string device_test;
  std::string sanitizer;
  std::string example;  // examples/cuda_engine.cu
};

struct Answer {
  bool pass = true;
  std::string words;
  Figures figures;
};

struct Question {
  const char* name;
  const char* asks;
  double seconds;  // Its deadline.
  // An error is a failure; `mismatch` says that there is nothing to ask here. Any process that it
  // needs is started before it opens a device, for a context does not survive a fork.
  Result<Answer> (*ask)(const CheckOptions& options);
};

std::span<const Question> MemoryQuestions();   // Slabs, and what other processes do to them.
std::span<const Question> ProcessQuestions();  // Processes that die, handles across namespaces.
std::span<const Question> CostQuestions();
std::span<const Question> WorkQuestions();     // Kernels, sharing, a mover that is killed.
std::span<const Question> EngineQuestions();   // Engines through libkvclient and a terraced.
std::span<const Question> ProgramQuestions();  // Other programs of the bundle.

}  // namespace terrace::bench
