#!/bin/sh
# Installs the Debian 12 packages that building and testing Terrace needs, if any is missing.
set -eu

packages="
  g++ cmake ninja-build pkg-config ccache mold python3
  clang-16 libclang-rt-16-dev
  libboost1.81-dev libprotobuf-dev protobuf-compiler libprotozero-dev libssl-dev
  librocksdb-dev liburing-dev libisal-dev libspdlog-dev libfmt-dev libtomlplusplus-dev libcli11-dev nlohmann-json3-dev
  libgtest-dev libgmock-dev
  systemd libseccomp-dev prometheus-cpp-dev prometheus
  patchelf
"

missing=
for package in $packages; do
  dpkg-query --show --showformat='${db:Status-Status}\n' "$package" 2>/dev/null \
    | grep -qx installed || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

echo "installing:$missing"
as_root=
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || {
    echo "install-packages: these are missing and only root can install them:$missing" >&2
    exit 1
  }
  as_root="sudo --preserve-env=DEBIAN_FRONTEND"
fi
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update --quiet
# shellcheck disable=SC2086  # The list is meant to be split.
$as_root apt-get install --yes --quiet --no-install-recommends $missing
