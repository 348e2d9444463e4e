//! Finds the operation of unknown outcome behind each revision that no response reported.
//!
//! Rule: a revision is the work of one operation, which has exactly that effect on the state before. The
//! changes of an operation occur once. The changes of a rejected operation do not occur at all.
//!
//! Sound: all written values are different, so a value identifies its writers (several, if a request was
//! rejected and retried). A deletion has no value. A revision that only deletes is explained by elimination,
//! and if several explanations are possible, the one that leaves the most options for the others is chosen.

use std::collections::{HashMap, VecDeque};

use super::describe;
use super::evaluate::{Evaluated, Written, condition_holds, evaluate, is_written, written_as_told};
use super::order::Order;
use super::real_time::Floors;
use super::report::{Kind, Report};
use crate::history::{Call, Change, ChangeKind, History, Operation, Outcome, Step};

/// The operation that made each revision.
#[derive(Default)]
pub struct Owners {
    owner_of: HashMap<u64, usize>,
    revision_of: HashMap<usize, u64>,
}

impl Owners {
    /// The operation that made a revision, if that is certain.
    pub fn owner_of(&self, revision: u64) -> Option<usize> {
        self.owner_of.get(&revision).copied()
    }

    /// The revision that an operation made, if that is certain.
    pub fn revision_of(&self, operation: usize) -> Option<u64> {
        self.revision_of.get(&operation).copied()
    }

    /// Records that an operation made a revision.
    pub fn set(&mut self, revision: u64, operation: usize) {
        self.owner_of.insert(revision, operation);
        self.revision_of.insert(operation, revision);
    }
}

/// The search for operations behind revisions that no response reported.
pub struct Unknown<'a> {
    history: &'a History,
    floors: &'a Floors,
    /// The result so far.
    pub owners: Owners,
    /// All operations that would write a value to a key.
    writers: HashMap<(&'a str, &'a str), Vec<usize>>,
    deletes: HashMap<&'a str, UnknownDeletes>,
    /// The number of operations of unknown outcome that were applied.
    pub applied: u64,
}

/// Operations of unknown outcome that may have deleted a key.
#[derive(Default)]
struct UnknownDeletes {
    /// Deletions of one key that depend on its revision.
    conditional: Vec<usize>,
    /// Unconditional deletions of one key, by increasing floor.
    plain: VecDeque<usize>,
    /// Transactions.
    transactions: Vec<usize>,
}

impl<'a> Unknown<'a> {
    /// Collects all operations that may have written or deleted something.
    pub fn of(history: &'a History, floors: &'a Floors) -> Self {
        let mut search = Unknown {
            history,
            floors,
            owners: Owners::default(),
            writers: HashMap::new(),
            deletes: HashMap::new(),
            applied: 0,
        };
        for (index, operation) in history.operations.iter().enumerate() {
            search.add(index, operation);
        }
        for deletes in search.deletes.values_mut() {
            deletes.plain.make_contiguous().sort_by_key(|index| floors.revision(*index));
        }
        search
    }

    fn add(&mut self, index: usize, operation: &'a Operation) {
        let unknown = operation.outcome == Outcome::Unknown;
        match &operation.call {
            Call::Put { key, value, .. } => self.writers.entry((key, value)).or_default().push(index),
            Call::Delete { key, condition } if unknown => {
                let deletes = self.deletes.entry(key).or_default();
                match condition {
                    None => deletes.plain.push_back(index),
                    Some(_) => deletes.conditional.push(index),
                }
            }
            Call::Txn { success, failure, .. } => {
                for step in success.iter().chain(failure) {
                    match step {
                        Step::Put { key, value } => self.writers.entry((key, value)).or_default().push(index),
                        Step::Delete { key } if unknown => {
                            self.deletes.entry(key).or_default().transactions.push(index);
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    /// The operations that would write the first value among some changes.
    fn writers_of(&self, changes: &[&'a Change]) -> &[usize] {
        let value = changes.iter().find_map(|change| match &change.kind {
            ChangeKind::Put { value, .. } => Some((&*change.key, &**value)),
            ChangeKind::Delete => None,
        });
        value.and_then(|value| self.writers.get(&value)).map_or(&[], Vec::as_slice)
    }

    /// The operations that may have made some changes, by the first value, or by the first deletion if there
    /// is no value.
    pub fn candidates(&self, changes: &[&'a Change]) -> &[usize] {
        let writers = self.writers_of(changes);
        let first = changes.first().filter(|_| writers.is_empty());
        let deletes = first.and_then(|change| self.deletes.get(&*change.key));
        deletes.map_or(writers, |deletes| &deletes.transactions)
    }

    /// Finds the operation that made a revision, or reports that there is none.
    pub fn explain(&mut self, revision: u64, order: &Order<'a>, report: &mut Report) {
        let here = order.at(revision);
        if only_deletes(here) {
            if let Some(deletion) = self.deletion(revision, order) {
                self.use_up(&here[0].key, &deletion);
                self.applied += 1;
            } else {
                let here = describe::changes(here);
                report.violation(Kind::Unexplained, || {
                    format!("{here} at revision {revision}: no deletion of unknown outcome is left for it")
                });
            }
            return;
        }
        let writers = self.writers_of(here);
        let unknown = |index: &usize| self.history.operations[*index].outcome == Outcome::Unknown;
        let free = |index: &usize| self.owners.revision_of(*index).is_none();
        let does_this = |index: &usize| {
            is_written(&evaluate(order, &self.history.operations[*index].call, revision - 1).written, here)
        };
        // Of several equal candidates, the one called first leaves the most options for the others.
        let candidates = writers.iter().copied().filter(|index| unknown(index) && free(index));
        match candidates.min_by_key(|index| (!does_this(index), self.history.operations[*index].called_ns)) {
            Some(writer) => self.check_unknown(writer, revision, order, report),
            None => self.report_unexplained(revision, here, writers, report),
        }
    }

    fn check_unknown(&mut self, writer: usize, revision: u64, order: &Order, report: &mut Report) {
        let operation = &self.history.operations[writer];
        let here = order.at(revision);
        let Evaluated { written, result } = evaluate(order, &operation.call, revision - 1);
        if !is_written(&written, here) {
            let kind = match &operation.call {
                Call::Put { .. } if here.len() == 1 => Kind::ConditionIgnored,
                Call::Txn { success, failure, .. }
                    if is_written(&puts_of(success), here) || is_written(&puts_of(failure), here) =>
                {
                    Kind::WrongBranch
                }
                _ => Kind::TornRevision,
            };
            report.violation(kind, || {
                let here = describe::changes(here);
                format!("revision {revision} is {here}, but {operation} has this effect there: {result}")
            });
        }
        self.owners.set(revision, writer);
        self.applied += 1;
    }

    fn report_unexplained(&self, revision: u64, here: &[&Change], writers: &[usize], report: &mut Report) {
        let here = describe::changes(here);
        let Some(writer) = writers.first() else {
            report.violation(Kind::Unexplained, || format!("{here} at revision {revision}: no client wrote this"));
            return;
        };
        let applied = writers.iter().find(|writer| {
            let Outcome::Done(answer) = &self.history.operations[**writer].outcome else {
                return self.owners.revision_of(**writer).is_some();
            };
            !written_as_told(&self.history.operations[**writer].call, &answer.result).is_empty()
        });
        let kind = if applied.is_some() { Kind::AppliedTwice } else { Kind::RefusedButApplied };
        let writer = applied.unwrap_or(writer);
        report.violation(kind, || {
            let also = self.owners.revision_of(*writer).map(|also| format!(", and at revision {also}"));
            let (operation, also) = (&self.history.operations[*writer], also.unwrap_or_default());
            format!("revision {revision} is {here}, by {operation}{also}")
        });
    }

    /// Finds an operation of unknown outcome for a revision that only deletes.
    pub fn deletion(&self, revision: u64, order: &Order) -> Option<Deletion> {
        let here = order.at(revision);
        let key = here.first().filter(|_| only_deletes(here)).map(|change| &*change.key)?;
        let deletes = self.deletes.get(key)?;
        let operations = &self.history.operations;
        let in_time = |index: usize| self.floors.revision(index) < revision;
        let by_transaction = deletes.transactions.iter().any(|index| {
            in_time(*index) && is_written(&evaluate(order, &operations[*index].call, revision - 1).written, here)
        });
        if by_transaction {
            return Some(Deletion::Transaction);
        }
        if here.len() > 1 {
            return None;
        }
        // A deletion that depends on this revision fits nowhere else, so it comes first.
        let found = order.record(key, revision - 1).map(|record| record.revision);
        let fits = |index: &usize| match &operations[*index].call {
            Call::Delete { condition, .. } => in_time(*index) && condition_holds(*condition, found),
            _ => false,
        };
        if let Some(place) = deletes.conditional.iter().position(fits) {
            return Some(Deletion::Conditional { place });
        }
        // A deletion that fits here fits at all later revisions, so any will do.
        deletes.plain.front().is_some_and(|index| in_time(*index)).then_some(Deletion::Plain)
    }

    /// Marks the explanation of a deletion as used.
    fn use_up(&mut self, key: &str, deletion: &Deletion) {
        let Some(deletes) = self.deletes.get_mut(key) else { return };
        match deletion {
            // It may belong to this or another revision. It is kept, because another revision may have no other
            // explanation.
            Deletion::Transaction => {}
            Deletion::Conditional { place } => drop(deletes.conditional.swap_remove(*place)),
            Deletion::Plain => drop(deletes.plain.pop_front()),
        }
    }
}

/// An explanation for a revision that only deletes.
pub enum Deletion {
    Transaction,
    Conditional { place: usize },
    Plain,
}

fn only_deletes(changes: &[&Change]) -> bool {
    changes.iter().all(|change| change.kind == ChangeKind::Delete)
}

fn puts_of(steps: &[Step]) -> Vec<Written<'_>> {
    let puts = steps.iter().filter_map(|step| match step {
        Step::Put { key, value } => Some((key, Some(value))),
        _ => None,
    });
    puts.collect()
}
