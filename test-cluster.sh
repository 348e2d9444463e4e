#!/bin/sh
# A demo and a test: three nodes on this machine form a cluster, accept writes on
# any node, lose their leader, lose all nodes, and lose no data. First the cluster is
# formed by requests, and then by flags of the nodes.
#
# With --tls the nodes and curl speak TLS, with certificates of `raft-key-value tls init`.
#
# Needs sh and curl; jq is optional and makes the metrics readable. Uses the ports
# 21001 to 21003, or three ports from RKV_PORT_BASE on, and a temporary directory.
# Builds the release binary if it is missing or outdated, or uses RKV_BINARY.
# Exits with 0 if every check succeeds. Stops only the processes that it started.

set -u

cd "$(dirname "$0")" || exit 1

# Set by --tls.
with_tls=
if [ "$#" -eq 1 ] && [ "$1" = --tls ]; then
    with_tls=yes
elif [ "$#" -gt 0 ]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    [ "$1" = --help ] || [ "$1" = -h ]
    exit
fi

port_base=${RKV_PORT_BASE:-21001}
host=127.0.0.1
# Deadline of every condition, in seconds.
deadline=30

directory=
# shellcheck disable=SC2034 # Read by pid_of, by number.
pid_1='' pid_2='' pid_3=''
status=
body=
started_at=

# ---- output and failure ----

heading() {
    printf '\n== %s\n' "$1"
}

say() {
    printf '   %s\n' "$1"
}

fail() {
    printf '\nFAILED: %s\n' "$1" >&2
    exit 1
}

# On every exit: stops the nodes that still run. Keeps the data after a failure, but
# not after an interrupt.
clean_up() {
    code=$?
    trap - EXIT HUP INT TERM
    for id in 1 2 3; do
        kill_node "$id"
    done
    if [ -n "$directory" ]; then
        if [ "$code" -eq 0 ] || [ "$code" -gt 128 ]; then
            rm -rf "$directory"
        else
            for id in 1 2 3; do
                if [ -f "$directory/node-$id.log" ]; then
                    printf '\nLast log lines of node %s:\n' "$id" >&2
                    tail -n 10 "$directory/node-$id.log" >&2
                fi
            done
            printf '\nData and logs are kept in %s\n' "$directory" >&2
        fi
    fi
    exit "$code"
}

trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# ---- waiting ----

if sleep 0.1 2>/dev/null; then
    pause=0.1
else
    pause=1
fi

# wait_for WHAT COMMAND...: waits until the command succeeds, or fails at the deadline.
wait_for() {
    what=$1
    shift
    give_up_at=$(($(date +%s) + deadline))
    until "$@"; do
        if [ "$(date +%s)" -ge "$give_up_at" ]; then
            fail "not within $deadline seconds: $what; last response: $status $body"
        fi
        sleep "$pause"
    done
}

# ---- requests ----

address() {
    printf '%s:%s' "$host" "$((port_base + $1 - 1))"
}

# If set, the method that `send` uses.
method=

# The scheme of requests.
scheme() {
    if [ -n "$with_tls" ]; then printf 'https://'; else printf 'http://'; fi
}

# send ID PATH [BODY [HEADER]]: sets `status` (000 if there was no response) and `body`.
# By default, the method is POST with a body and GET without one.
send() {
    set -- "$(scheme)$(address "$1")$2" "${3-}" "${4-}" "$#"
    url=$1 data=$2 header=$3 count=$4
    set -- -sS --noproxy '*' --connect-timeout 2 --max-time 70 -o "$directory/answer" -w '%{http_code}'
    if [ -n "$with_tls" ]; then
        set -- "$@" --cacert "$directory/tls/ca.pem"
    fi
    if [ "$count" -ge 3 ]; then
        set -- "$@" --data-binary "$data"
    fi
    if [ -n "$header" ]; then
        set -- "$@" -H "$header"
    fi
    if [ -n "$method" ]; then
        set -- "$@" -X "$method"
    fi
    : >"$directory/answer"
    status=$(curl "$@" "$url" 2>"$directory/curl-error")
    body=$(cat "$directory/answer" "$directory/curl-error")
}

# Like `send`, but fails on 503, which says that the request was not applied (an
# election may be in progress), so that a retry is safe.
send_again() {
    send "$@"
    [ "$status" != 503 ]
}

# request ID PATH [BODY [HEADER]]: sends a request, and prints it and its response.
request() {
    data_shown=
    if [ "$#" -ge 3 ]; then
        data_shown=" -d '$3'"
    fi
    where=$(address "$1")
    if [ -n "$with_tls" ]; then
        where="--cacert tls/ca.pem https://$where"
    fi
    printf '   > curl %s%s%s%s%s\n' "${method:+-X $method }" "${4:+-H \"$4\" }" "$where" "$2" "$data_shown"
    wait_for "a response other than 503" send_again "$@"
    case $2 in
        /metrics) show_metrics ;;
        *) printf '   < %s %s\n' "$status" "$body" ;;
    esac
}

show_metrics() {
    if command -v jq >/dev/null 2>&1; then
        printf '   < %s\n' "$status"
        printf '%s' "$body" | jq '.Ok | {id, state, current_term, current_leader, last_log_index,
            membership: .membership_config.membership}' | sed 's/^/   < /'
    else
        printf '   < %s %s\n' "$status" "$body"
    fi
}

# ---- checks ----

expect() {
    if [ "$status $body" != "$1" ]; then
        fail "expected: $1
        got:      $status $body"
    fi
}

# Expects status 200, and these parts in the body.
expect_ok_with() {
    if ! answer_has "$@"; then
        fail "expected: 200 and a body with: $*
        got:      $status $body"
    fi
}

answer_has() {
    [ "$status" = 200 ] || return 1
    for part in "$@"; do
        case $body in
            *"$part"*) ;;
            *) return 1 ;;
        esac
    done
}

metrics_have() {
    send "$1" /metrics
    shift
    answer_has "$@"
}

# holds ID KEY VALUE: checks the node's own state.
holds() {
    send "$1" /read "\"$2\""
    [ "$status $body" = "200 {\"Ok\":\"$3\"}" ]
}

# read_on KEY VALUE ID...: linearizable reads return the last write at once, stale reads
# after a moment.
read_on() {
    key=$1 value=$2
    shift 2
    for id in "$@"; do
        request "$id" /consistent_read "\"$key\""
        expect "200 {\"Ok\":\"$value\"}"
        wait_for "node $id holds $key = $value" holds "$id" "$key" "$value"
        request "$id" /read "\"$key\""
        expect "200 {\"Ok\":\"$value\"}"
    done
}

# find_leader ID...: sets `leader` to the node that all these nodes name, if it is one of them.
find_leader() {
    leader=
    for id in "$@"; do
        send "$id" /metrics
        named=$(printf '%s' "$body" | sed -n 's/.*"current_leader":\([0-9][0-9]*\).*/\1/p')
        [ -n "$named" ] || return 1
        [ -z "$leader" ] || [ "$leader" = "$named" ] || return 1
        leader=$named
    done
    for id in "$@"; do
        if [ "$id" = "$leader" ]; then
            metrics_have "$leader" '"state":"Leader"'
            return
        fi
    done
    return 1
}

# ---- processes ----

pid_of() {
    eval "printf '%s' \"\$pid_$1\""
}

set_pid() {
    eval "pid_$1=$2"
}

is_port_free() {
    curl -s --noproxy '*' --connect-timeout 2 --max-time 2 -o /dev/null "http://$(address "$1")/"
    [ "$?" -eq 7 ] # Connection refused.
}

# Whether nodes form and join a cluster by themselves.
by_themselves=

# The flags with which a node forms or joins a cluster.
cluster_flags() {
    [ -n "$by_themselves" ] || return 0
    if [ "$1" = 1 ]; then
        printf '%s' --bootstrap
    else
        printf '%s' "--join $(address 1)"
    fi
}

# The flags with which a node speaks TLS.
tls_flags() {
    [ -n "$with_tls" ] || return 0
    printf '%s ' --tls-cert "$directory/tls/node-$1.pem" --tls-key "$directory/tls/node-$1-key.pem" \
        --tls-ca "$directory/tls/ca.pem"
}

start_node() {
    id=$1
    if ! is_port_free "$id"; then
        fail "the port of node $id is in use: another process listens on $(address "$id").
        Stop it, or choose other ports: RKV_PORT_BASE=31001 $0"
    fi
    # shellcheck disable=SC2046 # Flags are words.
    "$binary" --id "$id" --http-addr "$(address "$id")" --data-dir "$data_dir" $(cluster_flags "$id") $(tls_flags "$id") \
        >>"$directory/node-$id.log" 2>&1 &
    set_pid "$id" "$!"
    wait_for "node $id responds" has_started "$id"
    say "node $id listens on $(address "$id") as process $(pid_of "$id")"
}

has_started() {
    if ! kill -0 "$(pid_of "$1")" 2>/dev/null; then
        fail "node $1 exited at its start: $(tail -n 1 "$directory/node-$1.log")"
    fi
    metrics_have "$1" "\"id\":$1,"
}

# SIGKILL, as if the machine had lost power.
kill_node() {
    pid=$(pid_of "$1")
    [ -n "$pid" ] || return 0
    set_pid "$1" ''
    kill -9 "$pid" 2>/dev/null
    # Prevents the shell's message about the killed process.
    wait "$pid" 2>/dev/null
    return 0
}

# SIGTERM, as an operator would.
stop_node() {
    pid=$(pid_of "$1")
    kill -TERM "$pid"
    wait "$pid"
    code=$?
    set_pid "$1" ''
    [ "$code" -eq 0 ] || fail "node $1 must exit with code 0 after SIGTERM, but exited with $code"
    say "node $1 exited with code 0"
}

# ---- the demo ----

command -v curl >/dev/null 2>&1 || fail "curl is not installed"
case $port_base in
    '' | *[!0-9]*) fail "RKV_PORT_BASE must be a number, got '$port_base'" ;;
esac

if [ -n "${RKV_BINARY-}" ]; then
    binary=$RKV_BINARY
    [ -x "$binary" ] || fail "RKV_BINARY is not an executable file: $binary"
else
    binary=${CARGO_TARGET_DIR:-target}/release/raft-key-value
    if [ ! -x "$binary" ] || [ -n "$(find src Cargo.toml Cargo.lock -type f -newer "$binary")" ]; then
        heading "Building the release binary"
        cargo build --release || fail "the build failed"
    fi
fi
directory=$(mktemp -d "${TMPDIR:-/tmp}/raft-key-value-demo.XXXXXX") || fail "cannot create a temporary directory"
data_dir=$directory
started_at=$(date +%s)

if [ -n "$with_tls" ]; then
    heading "Make a CA and the certificates of three nodes"
    "$binary" tls init --dir "$directory/tls" --node "1=$host" --node "2=$host" --node "3=$host" >"$directory/made" ||
        fail "no certificates"
    sed 's/^/   /' "$directory/made"
fi

heading "Start three nodes, which do not know each other yet"
for id in 1 2 3; do
    start_node "$id"
done

if [ -n "$with_tls" ]; then
    heading "Plain HTTP is rejected, and so is a client on the routes of nodes"
    with_tls=''
    send 1 /v1/kv/foo
    with_tls=yes
    case "$status $body" in
        '400 '*'"code":"tls_required"'*) say "$status $body" ;;
        *) fail "expected: 400 with the code tls_required, got: $status $body" ;;
    esac
    request 1 /raft-vote x
    [ "$status" = 403 ] || fail "expected: 403, got: $status $body"
fi

heading "Found a cluster of one node, node 1"
request 1 /init ''
expect '200 {"Ok":null}'

heading "Node 1 is its leader"
request 1 /metrics
expect_ok_with '"state":"Leader"' '"current_leader":1' '"configs":[[1]]'

heading "Add nodes 2 and 3 as learners, which receive all data but have no vote"
for id in 2 3; do
    request 1 /add-learner "[$id,\"$(address "$id")\"]"
    expect_ok_with '"configs":[[1]]' "\"$id\":{\"addr\":\"$(address "$id")\"}"
done

heading "Make all three nodes voters"
request 1 /change-membership '[1,2,3]'
expect_ok_with '"configs":[[1,2,3]]'
for id in 1 2 3; do
    wait_for "node $id knows the three voters" metrics_have "$id" '"configs":[[1,2,3]]'
done
say "all three nodes know the new membership"

heading "Write on node 1, read on every node"
request 1 /write '{"Set":{"key":"foo","value":"bar"}}'
expect_ok_with '"data":{"value":"bar","revision":1},"membership":null}}'
read_on foo bar 1 2 3

wait_for "the nodes agree on a leader" find_leader 1 2 3
follower=$((leader % 3 + 1))
heading "Write on a follower, node $follower, which forwards it to the leader, node $leader"
request "$follower" /write '{"Set":{"key":"foo","value":"wow"}}'
expect_ok_with '"data":{"value":"wow","revision":2},"membership":null}}'
read_on foo wow 1 2 3

heading "With Raft-Forward: no, a follower names the leader instead of forwarding the request"
request "$follower" /write '{"Set":{"key":"foo","value":"never"}}' 'Raft-Forward: no'
expect "421 {\"Err\":{\"ForwardToLeader\":{\"leader_id\":$leader,\"leader_node\":{\"addr\":\"$(address "$leader")\"}}}}"

heading "The key-value API: put a key on node 1, and read it with its revision on every node"
method=PUT
request 1 /v1/kv/config/color green
expect '200 {"revision":3,"version":1}'
method=
for id in 1 2 3; do
    request "$id" /v1/kv/config/color
    expect '200 {"key":"config/color","value":"green","revision":3,"create_revision":3,"version":1}'
done

heading "Put it only if it does not exist: it does, so nothing changes"
method=PUT
request 2 /v1/kv/config/color red 'If-None-Match: *'
method=
case "$status $body" in
    '412 '*'"code":"condition_failed"'*'"outcome":"not_applied","current_revision":3'*) ;;
    *) fail "expected: 412 with the code condition_failed, got: $status $body" ;;
esac

heading "A transaction, sent twice with the same Idempotency-Key: it is applied once"
for id in 1 3; do
    request "$id" /v1/txn '{"compare":[{"key":"config/color","revision":3}],"success":[{"put":{"key":"config/color","value":"blue"}},{"put":{"key":"config/by","value":"me"}}]}' 'Idempotency-Key: 1a2b'
    expect '200 {"succeeded":true,"revision":4,"results":[{"put":{"revision":4,"version":2}},{"put":{"revision":4,"version":1}}]}'
done
request 3 '/v1/kv?prefix=config/'
expect_ok_with '"revision":4,"items":[{"key":"config/by","value":"me",' '{"key":"config/color","value":"blue",'

heading "Kill the leader, node $leader, with kill -9"
killed=$leader
case $killed in
    1) left="2 3" ;;
    2) left="1 3" ;;
    *) left="1 2" ;;
esac
killed_at=$(date +%s)
kill_node "$killed"
# shellcheck disable=SC2086 # Two node ids.
wait_for "nodes $left agree on a new leader" find_leader $left
say "node $leader is the new leader, after less than $(($(date +%s) - killed_at + 1)) seconds"

heading "The other two continue"
other=${left% *}
request "$other" /write '{"Set":{"key":"foo","value":"still here"}}'
expect_ok_with '"data":{"value":"still here","revision":5}'
# shellcheck disable=SC2086 # Two node ids.
read_on foo "still here" $left

heading "Start node $killed again: it catches up"
start_node "$killed"
read_on foo "still here" "$killed"

heading "Kill all three with kill -9, and start them again: nothing is lost"
for id in 1 2 3; do
    kill_node "$id"
done
for id in 1 2 3; do
    start_node "$id"
done
wait_for "the nodes agree on a leader" find_leader 1 2 3
say "node $leader is the leader"
read_on foo "still here" 1 2 3

heading "Stop all three with SIGTERM"
for id in 1 2 3; do
    stop_node "$id"
done

heading "The same with one command a node, and empty directories: node 1 forms a cluster, the others join it"
by_themselves=yes
data_dir=$directory/joined
for id in 2 3 1; do
    start_node "$id"
    say "with the flags $(cluster_flags "$id")"
done
for id in 1 2 3; do
    wait_for "node $id knows the three voters" metrics_have "$id" '"configs":[[1,2,3]]'
done
say "all three nodes are voters"
method=PUT
request 3 /v1/kv/config/color green
method=
expect '200 {"revision":1,"version":1}'

heading "Kill all three with kill -9, and start them by the same commands"
for id in 1 2 3; do
    kill_node "$id"
done
for id in 1 2 3; do
    start_node "$id"
done
request 2 /v1/kv/config/color
expect_ok_with '"value":"green","revision":1'
for id in 1 2 3; do
    stop_node "$id"
done

printf '\nAll checks succeeded, in %s seconds.\n' "$(($(date +%s) - started_at))"
