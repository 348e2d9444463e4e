#!/bin/sh
# Runs the given targets, or all of them, for SECONDS each (default: 60):
#   tools/fuzz/run.sh [SECONDS] [TARGET...]
# If an input fails, prints the command that runs it again. Installs cargo-fuzz if it is missing.
set -eu
cd "$(dirname "$0")/../.."

CARGO_FUZZ_VERSION=0.13.2
seconds=${1:-60}
[ $# -eq 0 ] || shift

# libFuzzer needs compiler flags that are accepted only by a nightly compiler, or with RUSTC_BOOTSTRAP.
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
    # An input has at most 64 KiB, so a decoder that allocates 8 MiB at once trusts a length in it. (raft-log
    # allocates 13 MiB for its own tables.) An input may take 10 seconds.
    piece_mb=8
    [ "$target" != log_file ] || piece_mb=16
    if ! $cargo fuzz run --fuzz-dir tools/fuzz "$target" "tools/fuzz/corpus/$target" "tools/fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -rss_limit_mb=512 -malloc_limit_mb="$piece_mb" -timeout=10 -max_len=65536 \
        -print_final_stats=1; then
        input=$(ls -t "tools/fuzz/artifacts/$target"/* 2>/dev/null | head -n 1)
        echo "==> $target failed; to repeat: $cargo fuzz run --fuzz-dir tools/fuzz $target $input" >&2
        exit 1
    fi
done
echo "==> $total targets ran for $seconds seconds each without a failure"
