#!/bin/sh
# Asks the GPU of this machine what Terrace believes of GPUs, measures, and says what does not hold.
# Takes the bundle that scripts/bundle.sh makes; installs nothing and needs no network; eight minutes at
# most. docs/device_memory.md says what depends on which answer.
#
#   gpu-check.sh [BUNDLE] [OPTION...]
#
# BUNDLE: the .tar.gz, or its unpacked folder; default the folder of this script. Options are those
# of terrace-gpu-check: --device cuda:UUID chooses a GPU, --device host tries the check itself, --json
# FILE says where the answers go (default gpu-check.json).
#
# Exit codes: 0 all is well; 1 something is not; 2 wrong usage; 77 there is no NVIDIA GPU.
set -eu

fail() {
  echo "gpu-check: $*" >&2
  exit 2
}

bundle=$(dirname "$0")
case ${1-} in
  "" | -*) ;;
  *)
    bundle=$1
    shift
    ;;
esac

unpacked=
child=
trap '[ -z "$unpacked" ] || rm -rf "$unpacked"' EXIT
trap '[ -z "$child" ] || kill "$child" 2>/dev/null; exit 130' INT TERM

if [ -f "$bundle" ]; then
  unpacked=$(mktemp -d)
  tar -xzf "$bundle" -C "$unpacked"
  bundle=$(echo "$unpacked"/*)
fi
[ -x "$bundle/bin/terrace-gpu-check" ] ||
  fail "$bundle is no bundle: name one that scripts/bundle.sh made"
(cd "$bundle" && sha256sum --check --quiet SHA256SUMS) || fail "$bundle is not as it was made"

device="--device cuda"
json="--json gpu-check.json"
for option; do
  case $option in
    --device | --device=*) device= ;;
    --json | --json=*) json= ;;
  esac
done
if [ -n "$device" ] && ! [ -e /dev/nvidiactl ] && ! [ -e /dev/dxg ]; then
  echo "gpu-check: this machine has no NVIDIA GPU: there is no /dev/nvidiactl" >&2
  exit 77
fi

sanitizer=$(command -v compute-sanitizer || true)
for place in "${CUDA_HOME-/usr/local/cuda}/bin/compute-sanitizer" /usr/local/cuda/bin/compute-sanitizer; do
  [ -n "$sanitizer" ] || ! [ -x "$place" ] || sanitizer=$place
done

example=$bundle/bin/cuda_engine # There where the bundle was made with nvcc.
[ -x "$example" ] || example=

# shellcheck disable=SC2086  # Options of two words.
"$bundle/bin/terrace-gpu-check" $device $json --terrace-bench "$bundle/bin/terrace-bench" \
  --device-test "$bundle/tests/device_test" ${example:+--example "$example"} ${sanitizer:+--sanitizer "$sanitizer"} "$@" &
child=$!
code=0
wait "$child" || code=$?
exit "$code"
