# The same targets serve developers, `.ci/run` and GitHub.

.PHONY: verify format lint docs test demo bench bench-hostile-quick bench-small-disk bench-tools leftovers deny help api-check browser-check deploy-check \
	upgrade-check former faults faults-quick faults-model faults-control faults-outage faults-selftest faults-tools faults-etcd soak fuzz

help:
	@echo 'make verify     check formatting, lints, documentation and leftovers, and run all tests'
	@echo 'make test       run all tests'
	@echo 'make api-check  check a node against its own /openapi.json with Schemathesis (90 seconds; needs python3)'
	@echo 'make browser-check  attack a cluster from web pages in Chromium (1 minute; needs chromium, python3)'
	@echo 'make deploy-check  check the alerts and the dashboard with Prometheus and a cluster (2 minutes; Debian, python3)'
	@echo 'make upgrade-check  run nodes of an earlier commit next to nodes of this one (3 minutes; needs the git history)'
	@echo 'make demo       start a cluster of three, and check it with curl'
	@echo 'make deny       check licenses and advisories of the dependencies (needs cargo-deny)'
	@echo
	@echo 'Benchmarks (tools/bench/README.md), with their duration in minutes:'
	@echo 'make bench                compare with etcd under the same load; draws docs/plots (6)'
	@echo 'make bench-snapshots      latency during snapshots (6)'
	@echo 'make bench-snapshot-save  speed of snapshot save, and latency meanwhile (4)'
	@echo 'make bench-join           speed of a node that joins, and latency meanwhile (3)'
	@echo 'make bench-elections      elections under full load (5)'
	@echo 'make bench-kill-all       writes lost by kill -9 of all nodes (2)'
	@echo 'make bench-key-value      cost of the key-value API (6)'
	@echo 'make bench-overload       four times the load that a cluster can carry (4; as root)'
	@echo 'make bench-self-check     cost of hashing and comparing the nodes'\'' states (2)'
	@echo 'make bench-tls            cost of TLS for each request and handshake (3)'
	@echo 'make bench-tokens         cost of tokens for each request (5)'
	@echo 'make bench-hostile        hostile and odd clients (7)'
	@echo 'make bench-small-disk     one key of 1 MiB written for an hour, on disks of 2 GiB (61; as root)'
	@echo 'make bench-hostile-quick  a tenth of them (1); Error 1 if a node ends or a goal is missed'
	@echo
	@echo 'Faults (tools/faults/README.md), as root, with their duration in minutes:'
	@echo 'make faults               break nodes, disks and networks, and check every response (10)'
	@echo 'make faults-quick         a fifth of the faults (2)'
	@echo 'make soak HOURS=n         repeat for n hours, with a new seed each time'
	@echo 'make faults-control       the same load and checker, and a subset of the faults, on etcd (6)'
	@echo 'make faults-outage        how long writes fail after the leader was lost, compared with etcd (15)'
	@echo 'make faults-selftest      servers with seeded bugs, each of which must be found (5)'
	@echo 'Error 1: a violation; Error 3: incomplete, but no violation; Error 4: no verdict'
	@echo
	@echo 'make fuzz       fuzz every decoder for SECONDS=60 each; installs cargo-fuzz (tools/fuzz/README.md)'

verify: format lint docs leftovers test

format:
	cargo fmt --all --check

lint:
	cargo clippy --all-targets --locked -- -D warnings
	cargo clippy --all-targets --locked --features seeded-bugs -- -D warnings

docs:
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --locked

# Leftovers that must not be merged.
leftovers:
	@! grep -rnE '\b(todo|unimplemented|dbg)!\(|FIXME|XXX|#\[ignore\]' --include='*.rs' --exclude-dir=target src tests tools

test:
	cargo test --locked

# Generated requests, with every response checked against the description of the API.
api-check:
	tests/schemathesis.sh

# Web pages of other origins, in a real browser, read and change nothing.
browser-check:
	tests/browser/check.sh

# The alerts and the dashboard in deploy/, with Debian's Prometheus.
deploy-check:
	deploy/check.sh

# Nodes of this version next to nodes of the last one with the level of formats before, see tools/build-former.sh.
upgrade-check: former
	RKV_FORMER=$(or $(RKV_FORMER),$(CURDIR)/target/former/raft-key-value) cargo test --locked --test cluster -- upgrades::

former:
	[ -n "$(RKV_FORMER)" ] || tools/build-former.sh

demo:
	./test-cluster.sh

# Figures go to docs/runs/benchmarks.md, and plots of the comparison to docs/plots. BENCH_ARGUMENTS passes options on.
bench: bench-tools
	cargo run --release --locked -p raft-key-value-bench -- compare $(BENCH_ARGUMENTS)

bench-%: bench-tools
	cargo run --release --locked -p raft-key-value-bench -- $* $(BENCH_ARGUMENTS)

# BENCH_ARGUMENTS is its length, in seconds.
bench-small-disk:
	cargo build --release --locked
	tools/bench/small-disk.py target/release/raft-key-value $(BENCH_ARGUMENTS)

# A tenth of the clients and keys. The load generator is a debug build, because building it takes longer than running it.
bench-hostile-quick:
	cargo build --release --locked
	cargo run --locked -p raft-key-value-bench -- hostile --quick --print-only $(BENCH_ARGUMENTS)

bench-tools:
	cargo build --release --locked
	tools/fetch-etcd.sh

# A printed seed determines the faults. FAULTS_ARGUMENTS passes options on. The last line of a run is its verdict;
# tools/faults/README.md explains the exit codes.
FAULTS = cargo run --locked -p raft-key-value-faults --

faults: faults-tools faults-model
	$(FAULTS) run $(FAULTS_ARGUMENTS)

faults-quick: faults-tools
	$(FAULTS) run --scale 0.2 $(FAULTS_ARGUMENTS)

soak: MODEL_CASES = 200000
soak: faults-tools faults-model
	$(FAULTS) soak --hours $(HOURS) $(FAULTS_ARGUMENTS)

# The store alone: openraft's test suite, and this many random sequences of operations against a model, with a restart
# after each. The model's directories are in memory, in /dev/shm, because 200,000 cases sync millions of times. Prints
# a line every 10 seconds, and the seed at the beginning and with a failed case.
MODEL_CASES = 2000

faults-model:
	RKV_STORE_CASES=$(MODEL_CASES) cargo test --locked --test store -- --nocapture conformance:: model::

faults-control: faults-tools faults-etcd
	$(FAULTS) control $(FAULTS_ARGUMENTS)

faults-outage: faults-tools faults-etcd
	$(FAULTS) outage $(FAULTS_ARGUMENTS)

faults-etcd:
	tools/fetch-etcd.sh

# Tests the harness: it must find the bug of each of these servers.
faults-selftest:
	tools/faults/install-tools.sh
	cargo build --profile selftest --features seeded-bugs --locked
	$(FAULTS) selftest $(FAULTS_ARGUMENTS)

faults-tools:
	tools/faults/install-tools.sh
	cargo build --release --locked

# If an input fails, prints the command that runs it again.
fuzz:
	tools/fuzz/run.sh $(or $(SECONDS),60)

deny:
	cargo deny check
