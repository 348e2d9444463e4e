//! Clients that read and write continuously, and record their requests and responses.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use harness::http::{self, Method};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cluster::Endpoints;
use crate::history::{
    Answer, Call, CallResult, ClientId, Comparison, Condition, Consistency, NodeId, Operand, Operation, Outcome, Step,
    Text,
};
use crate::lease::Lease;
use crate::network::Host;
use crate::store::{Attempt, CLIENT_DEADLINE, Client, System};

/// Number of keys that the clients share.
const KEYS: u64 = 40;
/// How long one list of elements is used. The next list then begins, so that lists stay short.
const LIST_SECONDS: u64 = 10;
/// Number of clients that write small values in sequence, to detect outages.
const PROBES: usize = 3;
/// Number of clients that keep leases, one at a time.
const LEASE_CLIENTS: u32 = 8;
/// How long a client retries a request before it gives up.
const RETRY_DEADLINE: Duration = Duration::from_secs(12);
/// Longest TTL of expiring keys.
const TTL_MAX: Duration = Duration::from_millis(1500);

/// The records of all clients, on one clock.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    operations: Mutex<Vec<Operation>>,
    leases: Mutex<Vec<Lease>>,
    pub replayed: AtomicU64,
    pub answers_dropped: AtomicU64,
}

impl Recorder {
    pub fn new() -> Arc<Self> {
        Arc::new(Recorder {
            began: Instant::now(),
            operations: Mutex::default(),
            leases: Mutex::default(),
            replayed: AtomicU64::default(),
            answers_dropped: AtomicU64::default(),
        })
    }

    /// Nanoseconds since the run began.
    pub fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn push(&self, operation: Operation) {
        self.operations.lock().expect("no thread panics while holding the lock").push(operation);
    }

    /// Records a request and its outcome, as of now.
    pub fn add(&self, client: ClientId, node: NodeId, called_ns: u64, call: Call, outcome: Outcome) {
        self.push(Operation { client, node, called_ns, returned_ns: self.now_ns(), call, outcome });
    }

    /// Records an operation.
    pub fn add_operation(&self, operation: Operation) {
        self.push(operation);
    }

    /// Takes the records, in the order of the calls.
    pub fn take(&self) -> Vec<Operation> {
        let mut operations =
            std::mem::take(&mut *self.operations.lock().expect("no thread panics while holding the lock"));
        operations.sort_by_key(|operation| operation.called_ns);
        operations
    }

    pub fn add_lease(&self, lease: Lease) {
        self.leases.lock().expect("no thread panics while holding the lock").push(lease);
    }

    pub fn take_leases(&self) -> Vec<Lease> {
        std::mem::take(&mut *self.leases.lock().expect("no thread panics while holding the lock"))
    }

    pub fn count(&self) -> usize {
        self.operations.lock().expect("no thread panics while holding the lock").len()
    }

    /// The number of operations that succeeded between two moments.
    pub fn done_between(&self, began_ns: u64, ended_ns: u64) -> usize {
        let operations = self.operations.lock().expect("no thread panics while holding the lock");
        // Recent operations are at the end.
        let late = operations.iter().rev().take_while(|operation| operation.returned_ns >= began_ns);
        late.filter(|one| one.returned_ns < ended_ns && matches!(one.outcome, Outcome::Done(_))).count()
    }

    /// When the first successful write returned that was called after a moment. One that was called before
    /// may have been applied before, and acknowledged late.
    pub fn first_write_after(&self, after_ns: u64) -> Option<u64> {
        let operations = self.operations.lock().expect("no thread panics while holding the lock");
        // Recent operations are at the end, in the order of their returns.
        let late = operations.iter().rev().take_while(|operation| operation.returned_ns >= after_ns);
        let anew = late.filter(|operation| operation.called_ns >= after_ns && is_done_write(operation));
        anew.map(|operation| operation.returned_ns).last()
    }
}

/// Whether it certainly changed something.
pub fn is_done_write(operation: &Operation) -> bool {
    let Outcome::Done(Answer { result, .. }) = &operation.outcome else { return false };
    matches!(result, CallResult::Put { .. })
}

/// The running clients.
#[derive(Debug)]
pub struct Load {
    stopped: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

/// The parameters of the load.
#[derive(Clone, Copy, Debug)]
pub struct LoadPlan {
    pub seed: u64,
    pub clients: u32,
    /// Longest pause between two operations of a client.
    pub pause_max: Duration,
    /// Interval between the writes of a probe.
    pub probe_interval: Duration,
    /// Longest pause before a request of unknown outcome is retried.
    pub retry_pause_max: Duration,
    /// Whether the load consists of expiring keys, which are not part of the history, and puts. Some of the
    /// keys are leases, whose expiry is compared with true time.
    pub expiring: bool,
}

impl Load {
    pub fn start(
        plan: LoadPlan,
        system: System,
        client: &Client,
        endpoints: &Endpoints,
        recorder: &Arc<Recorder>,
    ) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        let worker = |id: ClientId| Worker {
            id,
            system,
            random: Rng::with_seed(plan.seed.wrapping_mul(1_000_003).wrapping_add(u64::from(id))),
            sequence: 0,
            retry_pause_max: plan.retry_pause_max,
            expiring: plan.expiring,
            client: client.clone(),
            endpoints: endpoints.clone(),
            recorder: recorder.clone(),
            stopped: stopped.clone(),
        };
        for id in 0..plan.clients {
            tasks.push(tokio::spawn(worker(id).work(plan.pause_max)));
        }
        // One probe for each position in the list of nodes, so that a hanging node delays only its own probe.
        for place in 0..PROBES {
            tasks.push(tokio::spawn(worker(plan.clients + place as u32).probe(place, plan.probe_interval)));
        }
        if plan.expiring {
            let first = plan.clients + PROBES as u32;
            tasks.extend((first..first + LEASE_CLIENTS).map(|id| tokio::spawn(worker(id).keep_leases())));
        }
        Load { stopped, tasks }
    }

    /// Lets every client finish its current operation.
    pub async fn stop(self) -> Result<()> {
        self.stopped.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await?;
        }
        Ok(())
    }
}

/// A running client.
pub struct Worker {
    pub id: ClientId,
    system: System,
    pub random: Rng,
    sequence: u64,
    retry_pause_max: Duration,
    expiring: bool,
    pub client: Client,
    endpoints: Endpoints,
    pub recorder: Arc<Recorder>,
    pub stopped: Arc<AtomicBool>,
}

impl Worker {
    async fn work(mut self, pause_max: Duration) {
        while !self.stopped.load(Ordering::Relaxed) {
            match self.random.u8(..100) {
                0..50 if self.expiring => self.put_expiring().await,
                _ if self.expiring => self.put().await,
                0..28 => self.get(Consistency::Linearizable).await,
                28..32 => self.get(Consistency::Stale).await,
                32..52 => self.put().await,
                52..60 => self.put_if().await,
                60..66 => self.delete().await,
                66..74 => self.append().await,
                74..82 => self.txn().await,
                82..86 => self.list().await,
                _ => self.put_until_done().await,
            }
            tokio::time::sleep(pause_max.mul_f64(self.random.f64())).await;
        }
    }

    /// Writes small values in sequence, to detect when writes succeed.
    async fn probe(mut self, place: usize, interval: Duration) {
        while !self.stopped.load(Ordering::Relaxed) {
            let host = {
                let endpoints = self.endpoints.read().expect("no thread panics while holding the lock");
                endpoints.get(place).cloned()
            };
            if let Some(host) = host {
                let call = Call::Put { key: format!("probe/{place}").into(), value: self.value(), condition: None };
                self.call_at(&host, call, Duration::from_secs(1)).await;
            }
            tokio::time::sleep(interval).await;
        }
    }

    pub fn value(&mut self) -> Text {
        self.sequence += 1;
        format!("{}-{}", self.id, self.sequence).into()
    }

    fn key(&mut self) -> Text {
        format!("key/{}", self.random.u64(..KEYS)).into()
    }

    pub fn any_host(&mut self) -> Host {
        let endpoints = self.endpoints.read().expect("no thread panics while holding the lock");
        endpoints[self.random.usize(..endpoints.len())].clone()
    }

    /// Mostly long, sometimes short: an impatient client leaves an unknown outcome.
    fn deadline(&mut self) -> Duration {
        if self.random.u8(..10) == 0 { Duration::from_millis(self.random.u64(1..300)) } else { CLIENT_DEADLINE }
    }

    async fn call(&mut self, call: Call) -> Option<Answer> {
        let host = self.any_host();
        let deadline = self.deadline();
        self.call_at(&host, call, deadline).await
    }

    async fn call_at(&mut self, host: &Host, call: Call, deadline: Duration) -> Option<Answer> {
        let called_ns = self.recorder.now_ns();
        let attempt = self.client.call(host.http(), &call, None, deadline).await;
        self.record(host, called_ns, call, attempt.outcome)
    }

    fn record(&self, host: &Host, called_ns: u64, call: Call, outcome: Outcome) -> Option<Answer> {
        let answer = match &outcome {
            Outcome::Done(answer) => Some(answer.clone()),
            Outcome::NotApplied | Outcome::Unknown => None,
        };
        self.recorder.add(self.id, host.id, called_ns, call, outcome);
        answer
    }

    async fn get(&mut self, consistency: Consistency) {
        let key = self.key();
        self.call(Call::Get { key, consistency }).await;
    }

    async fn put(&mut self) {
        let (key, value) = (self.key(), self.value());
        self.call(Call::Put { key, value, condition: None }).await;
    }

    async fn put_expiring(&mut self) {
        let key = format!("expiring/{}", self.random.u64(..KEYS));
        let (value, host) = (self.value(), self.any_host());
        let ttl_ms = self.random.u64(100..TTL_MAX.as_millis() as u64);
        let request = http::request(Method::PUT, &format!("/v1/kv/{key}?ttl={ttl_ms}ms"), value.to_string());
        // The outcome is irrelevant: all nodes must apply the same.
        let _ = self.client.http().send(host.http(), request, CLIENT_DEADLINE).await;
    }

    async fn delete(&mut self) {
        let key = self.key();
        let condition = if self.random.bool() { None } else { self.condition(&key).await };
        self.call(Call::Delete { key, condition }).await;
    }

    /// The condition that a key has not changed since it was read.
    async fn condition(&mut self, key: &Text) -> Option<Condition> {
        match self.call(Call::Get { key: key.clone(), consistency: Consistency::Linearizable }).await?.result {
            CallResult::Get(Some(record)) => Some(Condition::Revision(record.revision)),
            _ => Some(Condition::Missing),
        }
    }

    async fn put_if(&mut self) {
        let (key, value) = (self.key(), self.value());
        let condition = if self.random.u8(..4) == 0 { Some(Condition::Missing) } else { self.condition(&key).await };
        if condition.is_some() {
            self.call(Call::Put { key, value, condition }).await;
        }
    }

    /// Appends an element to a list, unless another client was faster.
    async fn append(&mut self) {
        let key: Text = format!("list/{}", self.recorder.now_ns() / 1_000_000_000 / LIST_SECONDS).into();
        let Some(found) = self.call(Call::Get { key: key.clone(), consistency: Consistency::Linearizable }).await
        else {
            return;
        };
        let element = self.value();
        let (value, condition) = match found.result {
            CallResult::Get(Some(record)) => {
                (format!("{},{element}", record.value).into(), Condition::Revision(record.revision))
            }
            _ => (element, Condition::Missing),
        };
        self.call(Call::Put { key, value, condition: Some(condition) }).await;
    }

    async fn txn(&mut self) {
        let (first, second) = (self.random.u64(..KEYS), self.random.u64(1..KEYS));
        let (first, second): (Text, Text) =
            (format!("key/{first}").into(), format!("key/{}", (first + second) % KEYS).into());
        let operand = match self.random.u8(..3) {
            0 => Operand::Missing,
            kind => match self.call(Call::Get { key: first.clone(), consistency: Consistency::Stale }).await {
                Some(Answer { result: CallResult::Get(Some(record)), .. }) if kind == 1 => Operand::Value(record.value),
                Some(Answer { result: CallResult::Get(Some(record)), .. }) => Operand::Revision(record.revision),
                _ => Operand::Missing,
            },
        };
        let compare = vec![Comparison { key: first.clone(), operand }];
        let success = vec![
            Step::Put { key: first.clone(), value: self.value() },
            Step::Get { key: second.clone() },
            Step::Put { key: second.clone(), value: self.value() },
        ];
        let failure = vec![Step::Get { key: first }, Step::Delete { key: second }];
        self.call(Call::Txn { compare, success, failure }).await;
    }

    async fn list(&mut self) {
        let consistency = if self.random.u8(..4) == 0 { Consistency::Stale } else { Consistency::Linearizable };
        let prefix = if self.random.bool() { "key/1" } else { "key/" };
        self.call(Call::List { prefix: prefix.into(), consistency }).await;
    }

    /// A put that is retried until it gets a response. Its idempotency key ensures that it is applied once,
    /// however many responses are lost. The client does not even wait for some responses.
    async fn put_until_done(&mut self) {
        if self.system != System::Ours {
            return self.put().await; // etcd has no idempotency keys.
        }
        let call = Call::Put { key: self.key(), value: self.value(), condition: None };
        let request_key = format!("request-{}-{}", self.id, self.sequence);
        let called_ns = self.recorder.now_ns();
        let deadline = Instant::now() + RETRY_DEADLINE;
        let mut maybe_applied = false;
        let mut host = self.any_host();
        for _ in 0..self.random.u8(..3) {
            self.drop_answer(&host, &call, &request_key).await;
            maybe_applied = true;
            tokio::time::sleep(self.retry_pause_max.mul_f64(self.random.f64())).await;
            host = self.any_host();
        }
        loop {
            let patience = self.deadline();
            let attempt = self.client.call(host.http(), &call, Some(&request_key), patience).await;
            let Attempt { outcome, replayed, .. } = attempt;
            maybe_applied |= outcome == Outcome::Unknown;
            if let Outcome::Done(_) = outcome {
                self.recorder.replayed.fetch_add(u64::from(replayed), Ordering::Relaxed);
                self.record(&host, called_ns, call, outcome);
                return;
            }
            if Instant::now() > deadline {
                let outcome = if maybe_applied { Outcome::Unknown } else { Outcome::NotApplied };
                self.record(&host, called_ns, call, outcome);
                return;
            }
            tokio::time::sleep(Duration::from_millis(self.random.u64(1..100))).await;
            host = self.any_host();
        }
    }

    /// Sends a complete request, and closes the connection before the response.
    async fn drop_answer(&mut self, host: &Host, call: &Call, request_key: &str) {
        let Call::Put { key, value, .. } = call else { return };
        let request = http::request(Method::PUT, &format!("/v1/kv/{key}"), value.to_string());
        let request = http::with_header(request, "idempotency-key", request_key);
        // The connection writes the request on a task of its own.
        let pause = Duration::from_millis(self.random.u64(1..30));
        let Ok(mut connection) = self.client.http().connect(host.http()).await else { return };
        let answered = tokio::time::timeout(pause, connection.send(request)).await;
        if !matches!(answered, Ok(Err(_))) {
            self.recorder.answers_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes this many keys of ten thousand bytes each.
pub async fn ballast(client: &Client, hosts: &[Host], recorder: &Arc<Recorder>, keys: u64) {
    const PADDING_BYTES: usize = 10_000;
    let padding = "x".repeat(PADDING_BYTES);
    write_all(client, hosts, recorder, keys, |number| {
        (format!("ballast/{number}").into(), format!("ballast-{number}-{padding}").into())
    })
    .await;
}

/// Writes a number of times, as fast as a few clients can; returns the number of successful writes.
pub async fn burst(client: &Client, hosts: &[Host], recorder: &Arc<Recorder>, writes: u64) -> u64 {
    const KEYS: u64 = 200;
    static BURSTS: AtomicU64 = AtomicU64::new(0);
    let burst = BURSTS.fetch_add(1, Ordering::Relaxed);
    write_all(client, hosts, recorder, writes, |number| {
        (format!("burst/{}", number % KEYS).into(), format!("burst-{burst}-{number}").into())
    })
    .await
}

async fn write_all(
    client: &Client,
    hosts: &[Host],
    recorder: &Arc<Recorder>,
    writes: u64,
    pair: impl Fn(u64) -> (Text, Text),
) -> u64 {
    const CLIENTS: u64 = 16;
    // No other client has this number.
    static FIRST_CLIENT: AtomicU32 = AtomicU32::new(1_000_000);
    let first = FIRST_CLIENT.fetch_add(CLIENTS as u32, Ordering::Relaxed);
    let writers = (0..CLIENTS).map(async |writer| {
        let mut done = 0;
        for number in (writer..writes).step_by(CLIENTS as usize) {
            let host = &hosts[(number % hosts.len() as u64) as usize];
            let (key, value) = pair(number);
            let call = Call::Put { key, value, condition: None };
            let called_ns = recorder.now_ns();
            let attempt = client.call(host.http(), &call, None, CLIENT_DEADLINE).await;
            done += u64::from(matches!(attempt.outcome, Outcome::Done(_)));
            recorder.add(first + writer as ClientId, host.id, called_ns, call, attempt.outcome);
        }
        done
    });
    futures_util::future::join_all(writers).await.into_iter().sum()
}
