//! Measures the self-check as a share of the cost of a write.
//!
//! The self-check cannot be disabled, and a cost of one percent would drown in the noise of two throughputs.
//! Therefore each part is measured separately, by calling the functions that the state machine calls, and
//! summed over the three nodes. The sum is compared with the CPU time that the three nodes need for a write,
//! measured in turn with it in the same run.

use std::collections::HashSet;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use raft_key_value::ExampleStateMachine;
use raft_key_value::config::{APPLY_ENTRIES_MAX, HISTORY_CHANGES_MAX, SELF_CHECK_ENTRIES, SNAPSHOT_ENTRIES_DEFAULT};
use raft_key_value::operation::{Key, Operation, Put, Value, Write};
use raft_key_value::store::{ChangeKind, Record as StoredRecord, RecordParts, StateHash};
use raft_key_value::types::{Command, Entry, LeaderId, LogId, Payload};
use serde::Serialize;

use crate::Verdict;
use crate::arguments::SelfCheckArguments;
use crate::cpu;
use crate::load::{self, LoadPlan, Measurement, Workload};
use crate::ours::OursCluster;
use crate::report::{Environment, Goal, Limit, publish};
use crate::statistics::{Spread, one_digit, thousands};
use crate::target::{Target, VALUE_BYTES};
use crate::workspace::{Workspace, our_server};

const CLIENTS: [usize; 2] = [64, 256];
const FILL_CLIENTS: usize = 64;
const KEYS: u64 = 100_000;
const NODES: u64 = 3;
/// Number of keys in the hashed state: as many as all three nodes hold. Here they share the processor's
/// cache, and most of the cost is fetching values that are not in it.
const HASHED_KEYS: u64 = NODES * KEYS;
/// Batches of puts in a round, each of the size that a node applies at once: this many with hashing, and this
/// many without.
const BATCHES: u32 = 1_000;
const STATE_HASHES: u32 = 1_000;
const WARM_UP: Duration = Duration::from_secs(2);
const SHARE_PERCENT_MAX: f64 = 1.0;

/// The measured cost of writes.
#[derive(Serialize)]
struct Load {
    clients: usize,
    #[serde(flatten)]
    measurement: Measurement,
}

/// CPU time that one node needs for each part of the self-check, in nanoseconds.
#[derive(Clone, Copy, Serialize)]
struct Parts {
    /// Hashing the new record of a put, and subtracting the hash of the former one.
    put_ns: f64,
    /// Recomputing the hash while a snapshot is written.
    recount_ns_per_key: f64,
    /// Recomputing the hashes of history records that are no longer in the state.
    recount_ns_per_change: f64,
    /// Computing the hash of the state from the sums that are kept.
    state_ns: f64,
}

#[derive(Serialize)]
struct Figures {
    environment: Environment,
    goals: Vec<Goal>,
    loads: Vec<Load>,
    parts: Vec<Parts>,
}

pub async fn run(arguments: &SelfCheckArguments) -> Result<Verdict> {
    let options = our_server(&arguments.common)?;
    let environment = Environment::gather(&[&options.server])?;
    let workspace = Workspace::create(&arguments.common, "self-check")?;
    let state = state()?;
    let cluster = OursCluster::create(&options, &workspace.path("cluster")).await?;
    load::fill(&Target::ours(cluster.leader().await?, FILL_CLIENTS), FILL_CLIENTS, 0..KEYS).await?;
    let (mut loads, mut parts) = (Vec::new(), Vec::new());
    for round in 1..=arguments.rounds {
        let mut order = CLIENTS;
        if round.is_multiple_of(2) {
            order.reverse();
        }
        for clients in order {
            loads.push(measure_load(arguments, &cluster, clients, round).await?);
            parts.push(measure_parts(&state, u64::from(round))?);
        }
    }
    cluster.stop().await?;
    workspace.finish()?;

    let goals: Vec<Goal> = CLIENTS.into_iter().map(|clients| goal(&loads, &parts, clients)).collect();
    let verdict = Goal::verdict(&goals);
    let figures = Figures { environment, goals, loads, parts };
    publish(&arguments.common, "self-check", &markdown(arguments, &figures), &figures, true)?;
    Ok(verdict)
}

async fn measure_load(
    arguments: &SelfCheckArguments,
    cluster: &OursCluster,
    clients: usize,
    round: u32,
) -> Result<Load> {
    let plan = LoadPlan {
        workload: Workload::Write,
        clients,
        warm_up: WARM_UP,
        measured: Duration::from_secs(arguments.seconds),
        key_count: KEYS,
        seed: u64::from(round),
    };
    let target = Target::ours(cluster.leader().await?, clients);
    let measurement = load::run(&target, &plan, &cluster.pids()).await?;
    println!("round {round}/{}  {clients:>3} clients  {measurement}", arguments.rounds);
    Ok(Load { clients, measurement })
}

/// A state as a node holds it after a while: all keys exist, and their values are scattered in memory.
fn state() -> Result<ExampleStateMachine> {
    let mut state = ExampleStateMachine::default();
    let mut random = fastrand::Rng::with_seed(1);
    let again = (0..HASHED_KEYS).map(|_| random.u64(..HASHED_KEYS));
    for (index, number) in (1..).zip((0..HASHED_KEYS).chain(again)) {
        let put = Put { key: key(number), value: load::value().into(), ttl_ms: None, condition: None };
        let write = Write { at_ms: index, request: None, operation: Operation::Put(put) };
        let log_id = LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index };
        state.apply(Entry { log_id, payload: Payload::Normal(Command::Write(write)) });
    }
    anyhow::ensure!(state.hash() == state.hash_of_all(), "the stored hash differs from the computed one");
    Ok(state)
}

fn key(number: u64) -> Key {
    let mut name = String::new();
    load::key(number, &mut name);
    name.into()
}

fn measure_parts(state: &ExampleStateMachine, seed: u64) -> Result<Parts> {
    let former = state.history.iter().filter_map(|change| match &change.kind {
        ChangeKind::Put(record) => Some((&change.key, record)),
        ChangeKind::Delete | ChangeKind::Expire => None,
    });
    let states = cpu_time(|| (0..STATE_HASHES).map(|_| black_box(state).hash()).sum::<StateHash>())?;
    let parts = Parts {
        put_ns: put_ns(state, seed)?,
        recount_ns_per_key: recount_ns(state.data.iter())?,
        recount_ns_per_change: recount_ns(former)?,
        state_ns: nanoseconds(states) / f64::from(STATE_HASHES),
    };
    println!(
        "  hashing: {:.0} ns a put, {:.0} ns a key and {:.0} ns a change for a snapshot, {:.0} ns the state",
        parts.put_ns, parts.recount_ns_per_key, parts.recount_ns_per_change, parts.state_ns
    );
    Ok(parts)
}

/// The time that hashing adds to a put. Batches with and without hashing alternate and use different keys,
/// because a put looks up its key in any case and the machine has slow moments.
fn put_ns(state: &ExampleStateMachine, seed: u64) -> Result<f64> {
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut with, mut without) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..BATCHES {
        for (hashing, time) in [(Hashing::Off, &mut without), (Hashing::On, &mut with)] {
            let keys: Vec<Key> = (0..APPLY_ENTRIES_MAX).map(|_| key(random.u64(..HASHED_KEYS))).collect();
            *time += time_puts(state, &keys, hashing)?;
        }
    }
    Ok((nanoseconds(with) - nanoseconds(without)) / f64::from(BATCHES) / APPLY_ENTRIES_MAX as f64)
}

#[derive(Clone, Copy, PartialEq)]
enum Hashing {
    On,
    Off,
}

/// A record without a hash.
struct PlainRecord {
    _value: Value,
    _numbers: [u64; 4],
    _room: [u64; 2],
}

/// Does what `ExampleStateMachine::put` does for a batch of keys, except storing the result. As on a node,
/// the values exist before the first put.
fn time_puts(state: &ExampleStateMachine, keys: &[Key], hashing: Hashing) -> Result<Duration> {
    let values: Vec<Value> = keys.iter().map(|_| load::value().into()).collect();
    cpu_time(|| {
        let mut sum = StateHash::default();
        for (key, value) in keys.iter().zip(values) {
            let (key, former) = state.data.get_key_value(key).expect("every key exists");
            let StoredRecord { revision, create_revision, version, expires_at_ms, .. } = **former;
            match hashing {
                Hashing::On => {
                    let parts = RecordParts { value, revision, create_revision, version: version + 1, expires_at_ms };
                    let new = black_box(Arc::new(StoredRecord::new(key, parts)));
                    sum -= former.hash();
                    sum += new.hash();
                }
                Hashing::Off => {
                    let _numbers = [revision, create_revision, version + 1, expires_at_ms];
                    black_box(Arc::new(PlainRecord { _value: value, _numbers, _room: [0; 2] }));
                }
            }
        }
        sum
    })
}

/// The time that hashing adds for each record written to a snapshot. The writer reads and checksums every
/// byte in any case, so the second of two passes finds the record in the processor's cache. This measures the
/// second of two hashes.
fn recount_ns<'a>(records: impl Iterator<Item = (&'a Key, &'a Arc<StoredRecord>)>) -> Result<f64> {
    let records: Vec<_> = records.collect();
    let read_all = |hashes: usize| {
        cpu_time(|| {
            let hash_again = |(key, record): &(&Key, &Arc<StoredRecord>)| -> StateHash {
                (0..hashes).map(|_| black_box(record).computed_hash(black_box(key))).sum()
            };
            records.iter().map(hash_again).sum::<StateHash>()
        })
    };
    let once = read_all(1)?;
    Ok(nanoseconds(read_all(2)?.saturating_sub(once)) / records.len() as f64)
}

/// CPU time, as for the servers: other processes may run on the machine.
fn cpu_time<T>(work: impl FnOnce() -> T) -> Result<Duration> {
    let before = cpu::of_this_thread()?;
    black_box(work());
    cpu::of_this_thread()?.checked_sub(before).context("the CPU clock went backwards")
}

fn nanoseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

fn of_parts(parts: &[Parts], figure: impl Fn(&Parts) -> f64) -> Spread {
    Spread::of(parts.iter().map(figure))
}

fn of_loads(loads: &[Load], clients: usize, figure: impl Fn(&Measurement) -> f64) -> Spread {
    Spread::of(loads.iter().filter(|load| load.clients == clients).map(|load| figure(&load.measurement)))
}

/// The time that the self-check adds to a write that costs `write_ns`, on all nodes.
fn self_check_ns(parts: &[Parts], write_ns: f64) -> f64 {
    let median = |figure: fn(&Parts) -> f64| of_parts(parts, figure).median;
    let recounted = median(|parts| parts.recount_ns_per_key) * KEYS as f64
        + median(|parts| parts.recount_ns_per_change) * former_records() as f64;
    let recount_ns = recounted / SNAPSHOT_ENTRIES_DEFAULT as f64;
    let on_each_node = median(|parts| parts.put_ns) + recount_ns + median(|parts| parts.state_ns) / CHECK_WRITES;
    NODES as f64 * on_each_node + write_ns / CHECK_WRITES
}

/// How many records in the history differ from the current record of their key under the measured load. A
/// current record is hashed only once, as part of the state.
fn former_records() -> usize {
    let mut random = fastrand::Rng::with_seed(1);
    let keys: HashSet<u64> = (0..HISTORY_CHANGES_MAX).map(|_| random.u64(..KEYS)).collect();
    HISTORY_CHANGES_MAX - keys.len()
}

const CHECK_WRITES: f64 = SELF_CHECK_ENTRIES as f64;

fn share_percent(loads: &[Load], parts: &[Parts], clients: usize) -> f64 {
    let write_ns = of_loads(loads, clients, |m| m.server_cpu_us_per_operation).median * 1e3;
    100.0 * self_check_ns(parts, write_ns) / write_ns
}

fn goal(loads: &[Load], parts: &[Parts], clients: usize) -> Goal {
    Goal {
        what: format!("self-check, share of the server CPU of a write, {clients} clients"),
        limit: Limit::AtMost(SHARE_PERCENT_MAX),
        measured: share_percent(loads, parts, clients),
        unit: " %",
    }
}

fn markdown(arguments: &SelfCheckArguments, figures: &Figures) -> String {
    let spread = |figure: fn(&Parts) -> f64| of_parts(&figures.parts, figure).text(|ns| format!("{ns:.0}"));
    let mut text = format!(
        "## What the self-check costs\n\n{}\n\
         Keys have {} bytes and values {VALUE_BYTES}; {} keys exist. Three nodes, with the load on the leader, {} s per \
         point, {} rounds. Figures are medians, with the minimum and maximum in parentheses. In turn with the load, the \
         cost of hashing is measured by calling the state machine's own functions, on as many keys as three nodes hold \
         together.\n\n{}\n\
         | work of each node | CPU ns | how often |\n| --- | --- | --- |\n\
         | hashing the record, and subtracting the hash of the one it replaces | {} | each put |\n\
         | hashing a key while a snapshot is written | {} | {} keys every {} entries |\n\
         | hashing a former record of the history while a snapshot is written | {} | {} records every {} entries |\n\
         | computing the hash of the state | {} | every {} entries |\n\n",
        figures.environment.markdown(),
        key(0).len(),
        thousands(KEYS as f64),
        arguments.seconds,
        arguments.rounds,
        Goal::table(&figures.goals),
        spread(|parts| parts.put_ns),
        spread(|parts| parts.recount_ns_per_key),
        thousands(KEYS as f64),
        thousands(SNAPSHOT_ENTRIES_DEFAULT as f64),
        spread(|parts| parts.recount_ns_per_change),
        thousands(former_records() as f64),
        thousands(SNAPSHOT_ENTRIES_DEFAULT as f64),
        spread(|parts| parts.state_ns),
        thousands(CHECK_WRITES),
    );
    text += "| clients | writes/s | server CPU µs/write | self-check µs/write | share | other cores | errors |\n\
             | --- | --- | --- | --- | --- | --- | --- |\n";
    for clients in CLIENTS {
        text += &load_row(figures, clients);
    }
    text += &format!(
        "\nBoth figures are CPU time of all three nodes, and include the write with the leader's hash every 10,000 \
         entries. The load writes random keys. The cost of hashing for a snapshot grows with the number of keys, like \
         that of the snapshot itself. If few keys are rewritten often, the history holds up to {} former records.\n",
        thousands(HISTORY_CHANGES_MAX as f64),
    );
    text
}

fn load_row(figures: &Figures, clients: usize) -> String {
    let figure = |figure: fn(&Measurement) -> f64| of_loads(&figures.loads, clients, figure);
    let cpu = figure(|m| m.server_cpu_us_per_operation);
    format!(
        "| {clients} | {} | {} | {:.2} | {:.2} % | {:.2} | {} |\n",
        thousands(figure(|m| m.operations_per_second).median),
        cpu.text(one_digit),
        self_check_ns(&figures.parts, cpu.median * 1e3) / 1e3,
        share_percent(&figures.loads, &figures.parts, clients),
        figure(|m| m.other_cpu_cores).median,
        figure(|m| m.errors as f64).max,
    )
}
