#!/bin/sh
# Attacks a cluster from web pages in Chromium: pages of other origins, and one after DNS rebinding, change nothing and
# read nothing; pages that the operator allows can do what they tried.
#
# Uses the program that CHROMIUM names, or the Chromium or Chrome in PATH. RKV_SERVER names another server than
# target/release/raft-key-value. Takes about half a minute.
set -eu

cd "$(dirname "$0")/../.."
chromium=${CHROMIUM:-}
for name in chromium chromium-browser google-chrome; do
    [ -n "$chromium" ] || chromium=$(command -v "$name" || true)
done
if [ -z "$chromium" ]; then
    echo 'check.sh: there is no Chromium; install it with: apt-get install --no-install-recommends chromium' >&2
    exit 1
fi
server=${RKV_SERVER:-target/release/raft-key-value}
[ -n "${RKV_SERVER:-}" ] || cargo build --release --locked
python3 tests/browser/check.py "$chromium" "$server"
