// terrace-mover: does the work of one GPU for terraced, which starts it.
#include "tiers/device/mover/program.h"

int main(int argc, char** argv) {
  return terrace::RunMover({argv, static_cast<size_t>(argc)}, terrace::OpenGpusOfMover);
}
