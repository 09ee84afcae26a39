#!/bin/sh
# Makes the bundle of a build, unpacks it elsewhere and runs what is in it with an empty environment:
# where this user may, in a root that has nothing but the C library.
#
#   bundle_test.sh BUILD
set -eu
build=$1
here=$(dirname "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$here/../../scripts/bundle.sh" "$build" "$folder/out"

root=$folder/root
mkdir -p "$root/tmp"
tar -xzf "$folder"/out/*.tar.gz -C "$root"
mv "$root"/terrace-* "$root/terrace"
(cd "$root/terrace" && sha256sum --check --quiet SHA256SUMS)
grep -q '^needs GLIBC_' "$root/terrace/VERSIONS"
for program in "$root"/terrace/bin/* "$root"/terrace/tests/*; do
  if ldd "$program" | grep 'not found'; then
    echo "$program lacks libraries" >&2
    exit 1
  fi
done

# run PROGRAM ARGUMENT...: by its path in the bundle.
if unshare --mount true 2>/dev/null; then
  for library in /lib64/ld-linux-x86-64.so.2 /lib/x86_64-linux-gnu/libc.so.6 /lib/x86_64-linux-gnu/libm.so.6 \
    /lib/x86_64-linux-gnu/libdl.so.2 /lib/x86_64-linux-gnu/libpthread.so.0 /lib/x86_64-linux-gnu/librt.so.1; do
    mkdir -p "$root/$(dirname "$library")"
    cp -L "$library" "$root$library"
  done
  mkdir -p "$root/proc" "$root/dev"
  run() {
    # shellcheck disable=SC2016
    unshare --mount sh -c 'mount -t proc none "$1/proc" && mount --bind /dev "$1/dev" && root=$1 && shift &&
      exec env -i "$(command -v chroot)" "$root" "$@"' sh "$root" "$@"
  }
  bundle=/terrace
else
  run() { env -i "$@"; }
  bundle=$root/terrace
fi

run "$bundle/bin/terraced" --version
run "$bundle/bin/terracectl" --help >"$folder/help"
grep -q terracectl "$folder/help"
run "$bundle/tests/mover_test" --gtest_brief=1
run "$bundle/bin/terrace-bench" gpu-gather --quick --json >"$folder/gather"
grep -q gather_over_copy "$folder/gather"
# With the mover and the tests that lie beside it.
run "$bundle/bin/terrace-gpu-check" --device host --quick --only granularity killed-mover conformance \
  --device-test "$bundle/tests/device_test"
# Without a GPU it says so, as the script does.
if ! [ -e /dev/nvidiactl ]; then
  code=0
  run "$bundle/bin/terrace-gpu-check" || code=$?
  [ "$code" -eq 77 ]
  code=0
  "$root/terrace/gpu-check.sh" || code=$?
  [ "$code" -eq 77 ]
fi
# The script itself, from the archive, with a device of the host.
"$here/../../scripts/gpu-check.sh" "$(echo "$folder"/out/*.tar.gz)" --device host --quick --json "$folder/answers" \
  --only granularity kernels conformance
grep -q '"conformance"' "$folder/answers"
# What was changed on the way is not run.
echo >>"$root/terrace/README.md"
code=0
"$root/terrace/gpu-check.sh" --device host 2>/dev/null || code=$?
[ "$code" -eq 2 ]
echo "the bundle runs"
