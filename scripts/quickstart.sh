#!/bin/sh
# Shows the main job on this machine: installs what is needed, builds, starts a private daemon, loads a
# model of 2.5 GB into it, attaches it from two engine processes, and lets several processes serve
# conversations that share a system prompt.
#
# Nothing stays behind but the build (build/release) and the written model, which is kept for the
# next time in $TERRACE_MODELS (default: $XDG_CACHE_HOME/terrace or ~/.cache/terrace).
set -eu
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'quickstart: %s\n' "$*" >&2; exit 1; }

models=${TERRACE_MODELS:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/terrace}
model=$models/llama-3.2-1b-shaped
model_kib=2500000

# Memory: 2.5 GB of weights and as much for KV pages.
capacity_kib=$((6 * 1024 * 1024))
free_kib=$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)
[ "$free_kib" -gt $((capacity_kib + 1024 * 1024)) ] \
  || fail "needs 7 GiB of free memory, and $((free_kib / 1024)) MiB are free"

say "packages and build"
scripts/install-packages.sh
cmake --preset release -Wno-dev >/dev/null
cmake --build --preset release --target terraced terracectl terrace-bench

bin=
for program in terraced terracectl terrace-bench; do
  path=$(find build/release -type f -name "$program" -perm -u+x | head -n 1)
  [ -n "$path" ] || fail "the build has no $program"
  bin="$bin:$PWD/$(dirname "$path")"
done
PATH=${bin#:}:$PATH

run=$(mktemp -d "${TMPDIR:-/tmp}/terrace-quickstart-XXXXXX")
daemon=
cleanup() {
  status=$?
  trap - EXIT INT TERM
  if [ -n "$daemon" ]; then
    kill -TERM "$daemon" 2>/dev/null || true
    wait "$daemon" || true
  fi
  rm -rf "$run"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

begun=$(date +%s)
say "a model with the tensors of Llama 3.2 1B, seeded values"
if [ -e "$model/.complete" ]; then
  echo "$model is there from last time"
else
  mkdir -p "$models"
  free_kib=$(df -Pk "$models" | awk 'NR == 2 { print $4 }')
  [ "$free_kib" -gt $((model_kib + 500000)) ] \
    || fail "needs 3 GB in $models; name another place with TERRACE_MODELS=..."
  terrace-bench make-model "$model" --arch llama-3.2-1b --shards 3
  : >"$model/.complete"
fi

say "a private daemon"
socket=$run/terraced.sock
terraced --socket "$socket" --state-dir "$run/state" --host-capacity 6GiB --log-level warning &
daemon=$!
tries=0
until terracectl --socket "$socket" status >/dev/null 2>&1; do
  kill -0 "$daemon" 2>/dev/null || fail "terraced ended at its start: see above"
  tries=$((tries + 1))
  [ "$tries" -lt 200 ] || fail "terraced does not answer"
  sleep 0.1
done
ctl() {
  echo "\$ terracectl $*"
  terracectl --socket "$socket" "$@"
}
ctl version
ctl model add llama-3.2-1b --version 1 --from "$model"
ctl load llama-3.2-1b
ctl models

say "two engine processes attach it and read every byte: one copy in memory"
terrace-bench share --socket "$socket" --model llama-3.2-1b --clients 2

say "four engine processes serve conversations with one system prompt"
terrace-bench chat --socket "$socket" --model llama-3.2-1b --clients 4

say "what the daemon says of it"
ctl spaces
ctl status

say "done in $(($(date +%s) - begun)) s after the build"
