#!/bin/sh
# Makes a bundle of a release build that runs wherever it is unpacked, on hosts that have none of our
# packages: programs, the device tests, the libraries that they need, and the check of GPUs.
#
#   scripts/bundle.sh [BUILD] [OUT]     default: build/release and build/bundle
#
# OUT gets the folder terrace-VERSION-linux-MACHINE and its .tar.gz (gzip is everywhere; the bundle
# must be unpacked where nothing can be installed). It fails over 60 MB.
#
# Of libraries everything comes along but the C library and its loader: these belong together, and to
# the host (name services, the loader's own path), and keep older programs running. libstdc++ and
# libgcc_s do come along: an older one on the host lacks symbols, and nothing else in our processes
# brings another. The driver's libcuda is the host's, opened by name, and needs the C library alone.
# Every file finds the others by its own place ($ORIGIN), libraries too, for the path of a program does not
# hold for what its libraries need. That is written by patchelf: libraries of a distribution have
# none, and cannot be linked again.
set -eu
cd "$(dirname "$0")/.."

build=${1-build/release}
out=${2-build/bundle}
limit_bytes=60000000

fail() {
  echo "bundle: $*" >&2
  exit 1
}
for tool in patchelf strip readelf ldd sha256sum tar gzip; do
  command -v "$tool" >/dev/null || fail "there is no $tool: scripts/install-packages.sh installs it"
done

version=$(sed -n 's/^project(terrace VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
[ -n "$version" ] || fail "CMakeLists.txt names no version"
name=terrace-$version-linux-$(uname -m)
folder=$out/$name
rm -rf "$folder" "$out/$name.tar.gz"
mkdir -p "$folder/bin" "$folder/lib" "$folder/tests"

# add FOLDER FILE...: copies of programs, without what only debuggers read.
add() {
  to=$1
  shift
  for file; do
    [ -x "$build/$file" ] || fail "$build/$file is not built"
    cp "$build/$file" "$folder/$to/"
    strip --strip-unneeded "$folder/$to/$(basename "$file")"
  done
}
add bin daemon/service/terraced cli/terracectl tiers/device/terrace-mover bench/terrace-bench bench/terrace-gpu-check
[ ! -x "$build/examples/cuda_engine" ] || add bin examples/cuda_engine
add tests tests/device/device_test tests/device/device_peer tests/device/mover_test

# What all of them need, as this machine's loader finds it, by the name that it is asked for.
for file in "$build/daemon/service/terraced" "$build/cli/terracectl" "$build/tiers/device/terrace-mover" \
  "$build/bench/terrace-bench" "$build/bench/terrace-gpu-check" "$build/tests/device/device_test" \
  "$build/tests/device/device_peer" "$build/tests/device/mover_test"; do
  ldd "$file"
done | awk '$2 == "=>" { print $1, $3 }' | sort -u >"$out/libraries"
while read -r soname path; do
  case $soname in
    libc.so.* | libm.so.* | libdl.so.* | librt.so.* | libpthread.so.* | libresolv.so.* | linux-vdso.*) continue ;;
  esac
  [ -f "$path" ] || fail "$soname: not found"
  cp -L "$path" "$folder/lib/$soname"
  chmod 755 "$folder/lib/$soname"
  strip --strip-unneeded "$folder/lib/$soname"
  # shellcheck disable=SC2016  # For the loader, not for the shell.
  patchelf --set-rpath '$ORIGIN' "$folder/lib/$soname"
done <"$out/libraries"
rm "$out/libraries"
for file in "$folder"/bin/* "$folder"/tests/*; do
  # shellcheck disable=SC2016
  patchelf --set-rpath '$ORIGIN/../lib' "$file"
done

cp scripts/gpu-check.sh "$folder/"
cp README.md "$folder/"
glibc=$(for file in "$folder"/bin/* "$folder"/tests/* "$folder"/lib/*; do
  readelf --version-info "$file" | grep -o 'GLIBC_[0-9.]*'
done | sort -u -V | tail -1)
{
  echo "terrace $version"
  echo "commit $(git rev-parse HEAD 2>/dev/null || echo unknown)$(git diff --quiet HEAD 2>/dev/null || echo ' with changes')"
  echo "machine $(uname -m)"
  echo "compiler $("$(sed -n 's/^CMAKE_CXX_COMPILER:[A-Z]*=//p' "$build/CMakeCache.txt")" --version | head -1)"
  echo "cuda $(sed -n 's/^#define CUDA_VERSION \([0-9]*\)/\1/p' \
    "$(sed -n 's/^TERRACE_CUDA_H_FOLDER:[A-Z]*=//p' "$build/CMakeCache.txt")/cuda.h" 2>/dev/null || echo none)"
  echo "needs $glibc"
  for library in "$folder"/lib/*; do
    echo "library $(basename "$library")"
  done
} >"$folder/VERSIONS"
(cd "$folder" && find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs sha256sum >SHA256SUMS)

tar --sort=name --owner=0 --group=0 --numeric-owner -C "$out" -cf - "$name" | gzip -9 -n >"$out/$name.tar.gz"
bytes=$(stat -c %s "$out/$name.tar.gz")
echo "$out/$name.tar.gz: $bytes bytes; unpacked $(du -sb "$folder" | cut -f1); needs $glibc"
[ "$bytes" -le "$limit_bytes" ] || fail "over $limit_bytes bytes"
