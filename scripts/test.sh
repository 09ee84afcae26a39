#!/bin/sh
# Installs what is needed, builds in every way that matters, and runs every test.
#
#   scripts/test.sh           release, ASan+UBSan and TSan builds with their tests, clang's
#                             thread-safety analysis
#   scripts/test.sh --quick   the release build and its tests only
#
# Every step runs even if one before it failed; the exit code is 0 only if all passed.
set -eu
cd "$(dirname "$0")/.."

quick=
case "${1-}" in
  "") ;;
  --quick) quick=1 ;;
  *) echo "usage: scripts/test.sh [--quick]" >&2; exit 2 ;;
esac

scripts/install-packages.sh

jobs=$(nproc)
failed=
summary=

# step NAME COMMAND...: runs it, with its time and outcome in the summary.
step() {
  name=$1
  shift
  echo
  echo "== $name"
  begun=$(date +%s)
  if "$@"; then outcome=passed; else outcome=FAILED; failed=1; fi
  summary="$summary
  $outcome  $name ($(($(date +%s) - begun)) s)"
  [ "$outcome" = passed ]
}

build() {
  preset=$1
  shift
  cmake --preset "$preset" -Wno-dev >"build/$preset.configure.log" 2>&1 \
    || { cat "build/$preset.configure.log"; return 1; }
  cmake --build --preset "$preset" --parallel "$jobs" "$@"
}

# run_tests PRESET [CTEST-OPTION...]: ctest prints its own summary.
run_tests() {
  preset=$1
  shift
  ctest --test-dir "build/$preset" --output-on-failure --parallel "$jobs" --progress "$@"
}

mkdir -p build
if step "release: build" build release; then
  step "release: tests" run_tests release || :
fi

if [ -z "$quick" ]; then
  export ASAN_OPTIONS=detect_leaks=1:abort_on_error=1
  export UBSAN_OPTIONS=print_stacktrace=1
  export TSAN_OPTIONS=halt_on_error=1
  if step "ASan and UBSan: build" build asan-ubsan; then
    step "ASan and UBSan: tests" run_tests asan-ubsan || :
  fi
  if step "TSan: build" build tsan --target threads_tests; then
    step "TSan: tests of what has threads" run_tests tsan --label-regex '^threads$' || :
  fi
  step "clang: thread-safety analysis" build clang --target terrace_libraries || :
fi

echo
echo "summary:$summary"
[ -z "$failed" ]
