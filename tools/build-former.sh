#!/bin/sh
# Builds the server of the last commit before there were levels of formats, for the tests of mixed clusters
# (tests/cluster/upgrades.rs), and puts it at target/former/raft-key-value. Needs the history of the repository up to
# that commit. Exits with code 3 if it is missing, as in a shallow clone.
set -eu

commit=49ecaa6bff9121d1fb288ffeb5e98f55fdee98b3

cd "$(dirname "$0")/.."
target=$PWD/target/former

if [ -x "$target/raft-key-value" ] && [ "$(cat "$target/COMMIT" 2>/dev/null)" = "$commit" ]; then
    exit 0
fi

if ! git cat-file -e "$commit^{commit}" 2>/dev/null; then
    echo "build-former.sh: commit $commit is not in this repository, which may be a shallow clone:" >&2
    echo "build-former.sh: fetch it with \`git fetch --unshallow\`, or set RKV_FORMER to a server of that commit" >&2
    exit 3
fi

# Not in target: cargo would take a path below it for a part of this workspace.
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
git archive --output="$source/source.tar" "$commit"
tar -xf "$source/source.tar" -C "$source"
rm -f "$target/COMMIT"
CARGO_TARGET_DIR="$target/build" CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=none \
    cargo build --locked --manifest-path "$source/Cargo.toml" --bin raft-key-value
cp "$target/build/debug/raft-key-value" "$target/raft-key-value.new"
mv "$target/raft-key-value.new" "$target/raft-key-value"
rm -rf "$target/build"
echo "$commit" >"$target/COMMIT"
echo "built target/former/raft-key-value of commit $commit"
