#!/bin/sh
# Runs every target of this crate in turn, each for so many seconds (60 if not said):
#   tools/fuzz/run.sh [SECONDS] [TARGET...]
# Ends with the command that runs it again when an input fails. Installs cargo-fuzz if it is missing.
set -eu
cd "$(dirname "$0")/../.."

CARGO_FUZZ_VERSION=0.13.2
seconds=${1:-60}
[ $# -eq 0 ] || shift

# libFuzzer needs flags that only a nightly compiler takes, or a stable one that is told to.
if cargo +nightly --version >/dev/null 2>&1; then
    cargo='cargo +nightly'
else
    cargo='cargo'
    export RUSTC_BOOTSTRAP=1
fi
if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "installing cargo-fuzz $CARGO_FUZZ_VERSION"
    cargo install cargo-fuzz --locked --version "$CARGO_FUZZ_VERSION"
fi

$cargo fuzz build --fuzz-dir tools/fuzz
targets=${*:-$($cargo fuzz list --fuzz-dir tools/fuzz)}
total=$(echo "$targets" | wc -w)
number=0
for target in $targets; do
    number=$((number + 1))
    echo "==> fuzzing $target ($number of $total) for $seconds seconds"
    mkdir -p "tools/fuzz/corpus/$target"
    # An input has 64 KiB at most, so whoever takes 8 MiB in one piece believes a length. (raft-log takes 13 for
    # tables of its own.) An input may take 10 seconds.
    piece_mb=8
    [ "$target" != log_file ] || piece_mb=16
    if ! $cargo fuzz run --fuzz-dir tools/fuzz "$target" "tools/fuzz/corpus/$target" "tools/fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -rss_limit_mb=512 -malloc_limit_mb="$piece_mb" -timeout=10 -max_len=65536 \
        -print_final_stats=1; then
        input=$(ls -t "tools/fuzz/artifacts/$target"/* 2>/dev/null | head -n 1)
        echo "==> $target failed; again with: $cargo fuzz run --fuzz-dir tools/fuzz $target $input" >&2
        exit 1
    fi
done
echo "==> $total targets ran for $seconds seconds each, and nothing failed"
