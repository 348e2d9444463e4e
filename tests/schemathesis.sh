#!/bin/sh
# Sends a node what its own description, /openapi.json, says that it takes, and what
# it says that it does not, and checks that every answer is as described.
#
# Needs python3, curl and cargo. Schemathesis is installed into target/schemathesis,
# once. Builds the debug binary, or takes RKV_BINARY. Prints its seed; RKV_SEED
# repeats one. Ends only the processes that it started.

set -u

cd "$(dirname "$0")/.." || exit 1

version=4.32.5
seed=${RKV_SEED:-20240229}
# How long requests are made up for, in seconds, beside what is tried in every run.
duration=${RKV_SECONDS:-60}
tools=${CARGO_TARGET_DIR:-$PWD/target}/schemathesis-$version
# How long the node may take to start, in seconds.
deadline=30

directory=
node=

say() {
    printf '%s\n' "$1"
}

fail() {
    printf 'FAILED: %s\n' "$1" >&2
    exit 1
}

clean_up() {
    code=$?
    trap - EXIT HUP INT TERM
    if [ -n "$node" ]; then
        kill "$node" 2>/dev/null
        wait "$node" 2>/dev/null
    fi
    if [ -n "$directory" ]; then
        if [ "$code" -eq 0 ] || [ "$code" -gt 128 ]; then
            rm -rf "$directory"
        else
            printf '\nThe data and the log of the node stay in %s\n' "$directory" >&2
        fi
    fi
    exit "$code"
}

trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# ---- Schemathesis ----

# A virtual environment needs a package of its own on Debian; pip alone does as well.
install_tools() {
    [ -e "$tools/installed" ] && return
    say "installing schemathesis $version into $tools"
    rm -rf "$tools"
    mkdir -p "$tools" || fail "cannot make $tools"
    make_environment ||
        install_with_pip ||
        { install_debian_package python3-venv && make_environment; } ||
        fail "cannot install schemathesis; install Debian's python3-venv or python3-pip, and try again"
    : >"$tools/installed"
}

make_environment() {
    python3 -m venv --clear "$tools/venv" >/dev/null 2>&1 &&
        "$tools/venv/bin/python" -m pip install --quiet --disable-pip-version-check "schemathesis==$version"
}

install_with_pip() {
    rm -rf "$tools/venv"
    python3 -m pip --version >/dev/null 2>&1 &&
        python3 -m pip install --quiet --disable-pip-version-check --target "$tools/packages" "schemathesis==$version"
}

install_debian_package() {
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1 || return 1
    { apt-get update && apt-get install -y "$1"; } >/dev/null 2>&1
}

schemathesis() {
    if [ -x "$tools/venv/bin/schemathesis" ]; then
        "$tools/venv/bin/schemathesis" "$@"
    else
        PYTHONPATH=$tools/packages python3 -m schemathesis.cli "$@"
    fi
}

# ---- the node ----

# A port without a listener, below those that systems use for outgoing connections.
free_port() {
    python3 -c '
import random, socket
while True:
    with socket.socket() as listener:
        port = random.randrange(22000, 32000)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            continue
        print(port)
        break'
}

request() {
    curl -sSf --noproxy '*' --max-time 10 "$@"
}

start_node() {
    directory=$(mktemp -d "${TMPDIR:-/tmp}/rkv-schemathesis.XXXXXX") || fail "cannot make a temporary directory"
    address=127.0.0.1:$(free_port)
    "$binary" --id 1 --http-addr "$address" --data-dir "$directory" >"$directory/node.log" 2>&1 &
    node=$!
    give_up_at=$(($(date +%s) + deadline))
    until request -o /dev/null "http://$address/metrics" 2>/dev/null; do
        kill -0 "$node" 2>/dev/null || fail "the node ended at its start: $(tail -n 1 "$directory/node.log")"
        [ "$(date +%s)" -lt "$give_up_at" ] || fail "the node does not answer at $address"
        sleep 0.1
    done
    request -o /dev/null "http://$address/init" -d '' || fail "the node cannot be made a cluster"
}

# ---- the run ----

# Not sent: what changes who belongs to the cluster, since the node is needed as it is,
# and a made-up address may be somebody's; and watches, whose answers never end.
# What is not checked, and why, is in the configuration. Its warnings would be about
# what a JSON Schema cannot say.
run() {
    configuration=$PWD/tests/schemathesis.toml
    # It leaves files of its own where it is started.
    cd "$directory" || return 1
    schemathesis --config-file "$configuration" run "http://$address/openapi.json" \
        --exclude-path /init --exclude-path /add-learner --exclude-path /change-membership \
        --exclude-path /v1/watch \
        --phases examples,coverage,fuzzing \
        --max-time "$duration" --seed "$seed" \
        --request-timeout 10 --continue-on-failure --no-color --warnings off
}

command -v python3 >/dev/null 2>&1 || fail "python3 is needed, and not installed"
if [ -n "${RKV_BINARY-}" ]; then
    binary=$RKV_BINARY
else
    cargo build --locked || fail "the build failed"
    binary=${CARGO_TARGET_DIR:-$PWD/target}/debug/raft-key-value
fi
[ -x "$binary" ] || fail "not a program: $binary"

install_tools
start_node
say "seed $seed; RKV_SEED=$seed $0 repeats it"
(run) || fail "not every answer was as described"
kill -0 "$node" 2>/dev/null || fail "the node ended: $(tail -n 1 "$directory/node.log")"
if grep -q panicked "$directory/node.log"; then
    fail "the node panicked: $(grep panicked "$directory/node.log")"
fi
say "every answer was as described"
