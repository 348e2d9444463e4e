# The same targets serve developers, `.ci/run` and GitHub.

.PHONY: verify format lint docs test demo bench bench-hostile-quick bench-tools leftovers deny help api-check \
	faults faults-quick faults-model faults-control faults-outage faults-selftest faults-tools faults-etcd soak fuzz

help:
	@echo 'make verify   formatting, lints, documentation, leftovers, all tests'
	@echo 'make test     all tests'
	@echo 'make api-check'
	@echo '              a node against its own /openapi.json, with Schemathesis (about 90 seconds; needs python3)'
	@echo 'make demo     a cluster of three, shown and checked with curl'
	@echo 'make bench    the same load on three of our nodes and three of etcd (about 6 minutes)'
	@echo 'make bench-snapshots, bench-elections, bench-kill-all, bench-key-value, bench-overload,'
	@echo '     bench-self-check, bench-hostile'
	@echo '              latency under snapshots (6 minutes), elections under load (5), writes lost by kill -9 (2),'
	@echo '              what the key-value API costs (6), four times the load that can be carried (3; as root),'
	@echo '              what it costs that nodes hash and compare what they hold (2), what hostile and odd'
	@echo '              clients do to a cluster (7; make bench-hostile-quick: 1, Error 1 if a node ends, or if a load that'
	@echo '              passes today causes an election or exceeds the memory goal)'
	@echo 'make faults   machines, disks and networks that fail under a cluster, and every answer checked'
	@echo '              (as root, about 10 minutes; make faults-quick: 2, make soak HOURS=n: as long as you like)'
	@echo '              (Error 1: a violation; Error 3: incomplete, no violation; Error 4: it could not run)'
	@echo 'make faults-control'
	@echo '              the same load, faults and checker on etcd (6 minutes; as root)'
	@echo 'make faults-outage'
	@echo '              how long nobody can write after kill -9 of the leader, ours and etcd (4 minutes; as root)'
	@echo 'make faults-selftest'
	@echo '              servers with bugs on purpose, each of which the faults must find (5 minutes; as root)'
	@echo 'make fuzz     made-up bytes for every decoder, SECONDS=60 each; installs cargo-fuzz (tools/fuzz/README.md)'
	@echo 'make deny     licences and advisories of the dependencies (needs cargo-deny)'

verify: format lint docs leftovers test

format:
	cargo fmt --all --check

lint:
	cargo clippy --all-targets --locked -- -D warnings
	cargo clippy --all-targets --locked --features seeded-bugs -- -D warnings

docs:
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --locked

# What must not stay in code that lands.
leftovers:
	@! grep -rnE '\b(todo|unimplemented|dbg)!\(|FIXME|XXX|#\[ignore\]' --include='*.rs' --exclude-dir=target src tests tools

test:
	cargo test --locked

# Requests made up from the description of the API, and every answer held against it.
api-check:
	tests/schemathesis.sh

demo:
	./test-cluster.sh

# Figures go to docs/benchmarks.md. BENCH_ARGUMENTS is passed on.
bench: bench-tools
	cargo run --release --locked -p raft-key-value-bench -- compare $(BENCH_ARGUMENTS)

bench-%: bench-tools
	cargo run --release --locked -p raft-key-value-bench -- $* $(BENCH_ARGUMENTS)

# A tenth of the clients and keys. The load generator is a debug build: building it takes longer than running it.
bench-hostile-quick:
	cargo build --release --locked
	cargo run --locked -p raft-key-value-bench -- hostile --quick --print-only $(BENCH_ARGUMENTS)

bench-tools:
	cargo build --release --locked
	tools/fetch-etcd.sh

# What breaks is drawn from a seed, which is printed. FAULTS_ARGUMENTS is passed on. The last line says whether a
# run found a violation (Error 1), or only did not show everything it has to (Error 3): see tools/faults/README.md.
FAULTS = cargo run --locked -p raft-key-value-faults --

faults: faults-tools faults-model
	$(FAULTS) run $(FAULTS_ARGUMENTS)

faults-quick: faults-tools
	$(FAULTS) run --scale 0.2 $(FAULTS_ARGUMENTS)

soak: MODEL_CASES = 200000
soak: faults-tools faults-model
	$(FAULTS) soak --hours $(HOURS) $(FAULTS_ARGUMENTS)

# The store by itself: openraft's suite, and so many random sequences of operations against a model, reopened after
# each. The model's directories are in memory, in /dev/shm: it is not about power cuts, and 200,000 cases sync
# millions of times. A line every 10 seconds; the seed comes first, and again with a case that fails.
MODEL_CASES = 2000

faults-model:
	RKV_STORE_CASES=$(MODEL_CASES) cargo test --locked --test store -- --nocapture conformance:: model::

faults-control: faults-tools faults-etcd
	$(FAULTS) control $(FAULTS_ARGUMENTS)

faults-outage: faults-tools faults-etcd
	$(FAULTS) outage $(FAULTS_ARGUMENTS)

faults-etcd:
	tools/fetch-etcd.sh

# The harness must be able to fail: servers with bugs on purpose, each of which it must find.
faults-selftest:
	tools/faults/install-tools.sh
	cargo build --profile selftest --features seeded-bugs --locked
	$(FAULTS) selftest $(FAULTS_ARGUMENTS)

faults-tools:
	tools/faults/install-tools.sh
	cargo build --release --locked

# Ends with the command that shows it again when an input fails.
fuzz:
	tools/fuzz/run.sh $(or $(SECONDS),60)

deny:
	cargo deny check
