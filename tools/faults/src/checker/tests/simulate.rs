//! Clients and a correct store, with delays: histories without violations.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

use crate::history::{
    Answer, Call, CallResult, Change, ChangeKind, ClientId, Comparison, Condition, Consistency, FinalState, History,
    Operand, Operation, Outcome, Record, Step, StepResult, Text,
};

/// A store, as simple as possible, and independent of the checker's model.
#[derive(Clone, Default)]
pub struct Store {
    pub revision: u64,
    pub records: BTreeMap<Text, Record>,
    pub changes: Vec<Change>,
}

impl Store {
    fn put(&mut self, revision: u64, key: &Text, value: &Text) -> u64 {
        let (create_revision, version) =
            self.records.get(key).map_or((revision, 1), |former| (former.create_revision, former.version + 1));
        let record = Record { value: value.clone(), revision, create_revision, version };
        self.records.insert(key.clone(), record);
        let kind = ChangeKind::Put { value: value.clone(), create_revision, version };
        self.changes.push(Change { revision, key: key.clone(), kind });
        self.revision = revision;
        version
    }

    fn delete(&mut self, revision: u64, key: &Text) -> bool {
        let deleted = self.records.remove(key).is_some();
        if deleted {
            self.changes.push(Change { revision, key: key.clone(), kind: ChangeKind::Delete });
            self.revision = revision;
        }
        deleted
    }

    fn refusal(&self, key: &Text, condition: &Option<Condition>) -> Option<CallResult> {
        let found = self.records.get(key).map(|record| record.revision);
        let holds = match condition {
            None => true,
            Some(Condition::Missing) => found.is_none(),
            Some(Condition::Revision(wanted)) => found == Some(*wanted),
        };
        (!holds).then_some(CallResult::ConditionFailed { found })
    }

    fn holds(&self, comparison: &Comparison) -> bool {
        let record = self.records.get(&comparison.key);
        match &comparison.operand {
            Operand::Missing => record.is_none(),
            Operand::Value(wanted) => record.is_some_and(|record| record.value == *wanted),
            Operand::Revision(wanted) => record.is_some_and(|record| record.revision == *wanted),
        }
    }

    pub fn apply(&mut self, call: &Call) -> Answer {
        let next = self.revision + 1;
        let result = match call {
            Call::Put { key, value, condition } => {
                self.refusal(key, condition).unwrap_or_else(|| CallResult::Put { version: self.put(next, key, value) })
            }
            Call::Delete { key, condition } => {
                self.refusal(key, condition).unwrap_or_else(|| CallResult::Delete { deleted: self.delete(next, key) })
            }
            Call::Txn { compare, success, failure } => {
                let succeeded = compare.iter().all(|comparison| self.holds(comparison));
                let steps = if succeeded { success } else { failure };
                let results = steps.iter().map(|step| self.step(next, step)).collect();
                CallResult::Txn { succeeded, results }
            }
            Call::Get { key, .. } => CallResult::Get(self.records.get(key).cloned()),
            Call::List { prefix, .. } => CallResult::List(
                self.records
                    .iter()
                    .filter(|(key, _)| key.starts_with(&**prefix))
                    .map(|(key, record)| (key.clone(), record.clone()))
                    .collect(),
            ),
        };
        Answer { revision: self.revision, result }
    }

    fn step(&mut self, next: u64, step: &Step) -> StepResult {
        match step {
            Step::Put { key, value } => {
                self.put(next, key, value);
                StepResult::Put
            }
            Step::Delete { key } => StepResult::Delete { deleted: self.delete(next, key) },
            Step::Get { key } => StepResult::Get(self.records.get(key).cloned()),
        }
    }

    pub fn final_state(&self, node: u64) -> FinalState {
        let records = self.records.iter().map(|(key, record)| (key.clone(), record.clone())).collect();
        FinalState { node, revision: self.revision, records, hash: format!("hash of {}", self.revision) }
    }
}

/// The parameters of a simulated run.
#[derive(Clone, Copy)]
pub struct Settings {
    pub operations: usize,
    pub clients: u32,
    pub keys: u64,
    pub lists: u64,
    /// Number of earlier states that are kept for stale reads.
    pub stale_states: usize,
    /// Percentage of the writes with unknown outcome.
    pub unknown: u64,
    pub not_applied: u64,
    pub whole_lists: bool,
    pub revision_before: u64,
}

/// An event of the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Call(ClientId),
    /// The store applies this operation.
    Do(usize),
    /// The client gets its response, or gives up.
    Return(usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Answered,
    GivenUp,
    Refused,
}

pub struct Simulation {
    settings: Settings,
    random: fastrand::Rng,
    now_ns: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    store: Store,
    former: VecDeque<Store>,
    operations: Vec<Operation>,
    fates: Vec<Fate>,
    /// What each client last read of a list.
    read: Vec<Option<(Text, Option<Record>)>>,
    values: u64,
}

pub fn text(text: impl AsRef<str>) -> Text {
    Arc::from(text.as_ref())
}

impl Simulation {
    pub fn run(seed: u64, settings: Settings) -> History {
        let store = Store { revision: settings.revision_before, ..Store::default() };
        let mut simulation = Simulation {
            settings,
            random: fastrand::Rng::with_seed(seed),
            now_ns: 0,
            events: BinaryHeap::new(),
            store,
            former: VecDeque::new(),
            operations: Vec::new(),
            fates: Vec::new(),
            read: vec![None; settings.clients as usize],
            values: 0,
        };
        for client in 0..settings.clients {
            simulation.schedule(100, Event::Call(client));
        }
        while let Some(Reverse((at_ns, _, event))) = simulation.events.pop() {
            simulation.now_ns = at_ns;
            match event {
                Event::Call(client) if simulation.operations.len() < settings.operations => simulation.call(client),
                Event::Call(_) => {}
                Event::Do(index) => simulation.act(index),
                Event::Return(index) => simulation.over(index),
            }
        }
        simulation.history()
    }

    fn schedule(&mut self, delay_ns_max: u64, event: Event) {
        let at_ns = self.now_ns + self.random.u64(0..=delay_ns_max);
        let tie = self.random.u64(..);
        self.events.push(Reverse((at_ns, tie, event)));
    }

    fn call(&mut self, client: ClientId) {
        let call = self.next_call(client);
        let write = !matches!(call, Call::Get { .. } | Call::List { .. });
        let percent = self.random.u64(0..100);
        let fate = match (write, percent) {
            (true, percent) if percent < self.settings.unknown => Fate::GivenUp,
            (true, percent) if percent < self.settings.unknown + self.settings.not_applied => Fate::Refused,
            _ => Fate::Answered,
        };
        let index = self.operations.len();
        let (called_ns, node) = (self.now_ns, self.random.u64(1..4));
        let outcome = Outcome::Unknown;
        self.operations.push(Operation { client, node, called_ns, returned_ns: 0, call, outcome });
        self.fates.push(fate);
        let slow = if self.random.u64(0..20) == 0 { 20 } else { 1 };
        match fate {
            Fate::Answered => self.schedule(30 * slow, Event::Do(index)),
            Fate::Refused => self.schedule(30 * slow, Event::Return(index)),
            Fate::GivenUp => {
                self.schedule(60, Event::Return(index));
                if self.random.bool() {
                    // Possibly long after the client gave up.
                    self.schedule(60 * slow * slow, Event::Do(index));
                }
            }
        }
    }

    fn act(&mut self, index: usize) {
        let stale = matches!(
            self.operations[index].call,
            Call::Get { consistency: Consistency::Stale, .. } | Call::List { consistency: Consistency::Stale, .. }
        );
        let call = self.operations[index].call.clone();
        let before = self.store.revision;
        let answer = if stale && !self.former.is_empty() {
            let place = self.random.usize(0..self.former.len());
            self.former[place].apply(&call)
        } else {
            self.store.apply(&call)
        };
        if self.store.revision > before && self.settings.stale_states > 0 {
            self.former.push_back(self.store.clone());
            if self.former.len() > self.settings.stale_states {
                self.former.pop_front();
            }
        }
        if self.fates[index] == Fate::Answered {
            self.operations[index].outcome = Outcome::Done(answer);
            self.schedule(30, Event::Return(index));
        }
    }

    fn over(&mut self, index: usize) {
        let repeated = self.random.bool();
        let revision_now = self.store.revision;
        let operation = &mut self.operations[index];
        operation.returned_ns = self.now_ns;
        let client = operation.client;
        if self.fates[index] == Fate::Refused {
            operation.outcome = Outcome::NotApplied;
        }
        if let Outcome::Done(answer) = &mut operation.outcome {
            // The request was retried, and got the result of the first attempt.
            if repeated && matches!(answer.result, CallResult::ConditionFailed { .. }) {
                answer.revision = revision_now;
            }
            if let (Call::Get { key, .. }, CallResult::Get(record)) = (&operation.call, &answer.result) {
                self.read[client as usize] = Some((key.clone(), record.clone()));
            }
        }
        self.schedule(40, Event::Call(client));
    }

    fn key(&mut self) -> Text {
        text(format!("k/{}", self.random.u64(0..self.settings.keys)))
    }

    fn value(&mut self) -> Text {
        self.values += 1;
        text(format!("v{}", self.values))
    }

    fn consistency(&mut self) -> Consistency {
        if self.random.u8(0..3) == 0 { Consistency::Stale } else { Consistency::Linearizable }
    }

    fn condition(&mut self, key: &Text) -> Option<Condition> {
        match self.random.u8(0..6) {
            0 => Some(Condition::Missing),
            1 | 2 => self.store.records.get(key).map(|record| Condition::Revision(record.revision)),
            3 => Some(Condition::Revision(self.random.u64(0..self.store.revision + 2))),
            _ => None,
        }
    }

    fn next_call(&mut self, client: ClientId) -> Call {
        if let Some((key, record)) = self.read[client as usize].take()
            && key.starts_with("list/")
        {
            return self.append(key, record);
        }
        let key = self.key();
        let consistency = self.consistency();
        match self.random.u8(0..20) {
            0..7 => Call::Put { condition: self.condition(&key), value: self.value(), key },
            7..10 => Call::Delete { condition: self.condition(&key), key },
            10..13 => self.transaction(),
            13 if self.settings.whole_lists => Call::List { prefix: text("k/"), consistency },
            14..16 if self.settings.lists > 0 => {
                Call::Get { key: text(format!("list/{}", self.random.u64(0..self.settings.lists))), consistency }
            }
            _ => Call::Get { key, consistency },
        }
    }

    fn append(&mut self, key: Text, record: Option<Record>) -> Call {
        self.values += 1;
        let element = format!("e{}", self.values);
        let (value, condition) = match record {
            None => (element, Condition::Missing),
            Some(record) => (format!("{},{element}", record.value), Condition::Revision(record.revision)),
        };
        Call::Put { key, value: text(value), condition: Some(condition) }
    }

    fn transaction(&mut self) -> Call {
        let compare = (0..self.random.u8(0..3)).map(|_| {
            let key = self.key();
            let record = self.store.records.get(&key);
            let operand = match (self.random.u8(0..3), record) {
                (0, _) => Operand::Missing,
                (1, Some(record)) => Operand::Value(record.value.clone()),
                (_, Some(record)) => Operand::Revision(record.revision),
                (_, None) => Operand::Missing,
            };
            Comparison { key, operand }
        });
        Call::Txn { compare: compare.collect(), success: self.steps(), failure: self.steps() }
    }

    /// Steps that each write another key.
    fn steps(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut written: Vec<Text> = Vec::new();
        for _ in 0..self.random.u8(0..5) {
            let key = self.key();
            let action = self.random.u8(0..3);
            if action == 0 || written.contains(&key) {
                steps.push(Step::Get { key });
                continue;
            }
            written.push(key.clone());
            let deletion = action == 1;
            steps.push(if deletion { Step::Delete { key } } else { Step::Put { value: self.value(), key } });
        }
        steps
    }

    fn history(mut self) -> History {
        let changes = self.store.changes.clone();
        let mut cut = changes.clone();
        cut.truncate(self.random.usize(0..=changes.len()));
        let first = self.random.u64(0..=self.store.revision + 1);
        let late = changes.iter().filter(|change| change.revision >= first).cloned().collect();
        let mut watches = vec![changes, cut, late];
        self.random.shuffle(&mut watches);
        self.operations.sort_by_key(|operation| operation.called_ns);
        History {
            revision_before: self.settings.revision_before,
            operations: self.operations,
            watches,
            finals: (1..=3).map(|node| self.store.final_state(node)).collect(),
        }
    }
}
