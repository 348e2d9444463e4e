#!/bin/sh
# Installs the missing tools of the fault harness from Debian's packages.
set -eu

missing=
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need unshare util-linux
need ip iproute2
need nft nftables
need strace strace
need mkfs.xfs xfsprogs
need mkfs.ext4 e2fsprogs
[ -e /usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1 ] || missing="$missing libfaketime"

if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "run as root: apt-get install$missing" >&2
        exit 1
    fi
    apt-get update -qq
    # shellcheck disable=SC2086 # One word each.
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
