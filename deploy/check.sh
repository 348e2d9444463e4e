#!/bin/sh
# Checks alerts.yml and grafana.json with Debian's Prometheus: every alert fires on series that describe its cause, every
# expression returns data when a real cluster is scraped, and alerts fire when that cluster is broken.
#
# Uses the prometheus and promtool in PATH, or downloads Debian's package, without installing it. RKV_SERVER names
# another server than target/debug/raft-key-value. Takes about two minutes.
set -eu

cd "$(dirname "$0")/.."
if command -v prometheus >/dev/null && command -v promtool >/dev/null; then
    programs=$(dirname "$(command -v promtool)")
else
    programs=target/prometheus/usr/bin
    if [ ! -x "$programs/promtool" ]; then
        mkdir -p target/prometheus
        scratch=$(mktemp -d)
        trap 'rm -rf "$scratch"' EXIT
        # The user that apt-get downloads as must be able to write there.
        chmod 777 "$scratch"
        # A new machine has no list of packages yet.
        (cd "$scratch" && { apt-get download -qq prometheus 2>/dev/null || { apt-get update -qq && apt-get download -qq prometheus; }; })
        dpkg-deb -x "$scratch"/prometheus_*.deb target/prometheus
    fi
fi
server=${RKV_SERVER:-target/debug/raft-key-value}
[ -n "${RKV_SERVER:-}" ] || cargo build --locked
python3 deploy/check.py "$programs" "$server"
