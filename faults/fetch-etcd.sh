#!/bin/sh
# Puts Debian's etcd (3.4 in Debian 12) at faults/target/etcd/usr/bin/etcd. The
# package is unpacked and not installed: installing it would start a service, at
# the ports that anybody's etcd has. Needs apt-get and dpkg-deb. To use another
# etcd, set ETCD_BIN or pass --etcd instead.
set -eu

cd "$(dirname "$0")"
target=target/etcd
binary=$target/usr/bin/etcd

if [ -x "$binary" ]; then
    echo "already there: faults/$binary ($("$binary" --version | head -n 1))"
    exit 0
fi

mkdir -p "$target"
scratch=$(mktemp -d "$target/fetch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# As root itself, since apt's own user cannot write to the folder.
if ! (cd "$scratch" && apt-get download --quiet --quiet -o APT::Sandbox::User=root etcd-server); then
    echo 'fetch-etcd.sh: no package `etcd-server`; does `apt-get update` help?' >&2
    exit 1
fi
dpkg-deb --extract "$scratch"/etcd-server_*.deb "$scratch/unpacked"
"$scratch/unpacked/usr/bin/etcd" --version > "$scratch/version"
mkdir -p "$target/usr/bin"
mv "$scratch/unpacked/usr/bin/etcd" "$binary"
echo "fetched faults/$binary ($(head -n 1 "$scratch/version"))"
