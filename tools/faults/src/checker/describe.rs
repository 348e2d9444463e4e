//! Descriptions of operations and changes for violation reports.

use std::fmt::{self, Display, Formatter};

use crate::history::{
    Answer, Call, CallResult, Change, ChangeKind, Comparison, Condition, Consistency, Operand, Operation, Outcome,
    Record, Step, StepResult,
};

/// Number of characters shown of a value: its end, where values of lists differ.
const VALUE_CHARACTERS_MAX: usize = 40;
/// Number of keys shown of a list.
const LIST_KEYS_MAX: usize = 8;

/// A time, in seconds since the run began.
pub struct Seconds(pub u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06} s", self.0 / 1_000_000_000, self.0 % 1_000_000_000 / 1000)
    }
}

/// A value in quotes, shortened.
pub struct Value<'a>(pub &'a str);

impl Display for Value<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let characters = self.0.chars().count();
        if characters <= VALUE_CHARACTERS_MAX {
            return write!(f, "\"{}\"", self.0);
        }
        let end: String = self.0.chars().skip(characters - VALUE_CHARACTERS_MAX).collect();
        write!(f, "\"…{end}\" ({} bytes)", self.0.len())
    }
}

impl Display for Operation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Operation { client, node, called_ns, returned_ns, call, outcome } = self;
        let (called, returned) = (Seconds(*called_ns), Seconds(*returned_ns));
        write!(f, "[client {client} at node {node}, called {called}, returned {returned}: {call} → {outcome}]")
    }
}

impl Display for Call {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Call::Put { key, value, condition } => {
                write!(f, "put {key} = {}{}", Value(value), Condition::words(*condition))
            }
            Call::Delete { key, condition } => write!(f, "delete {key}{}", Condition::words(*condition)),
            Call::Txn { compare, success, failure } => {
                write!(
                    f,
                    "if {} then {} else {}",
                    joined(compare, " and "),
                    joined(success, ", "),
                    joined(failure, ", ")
                )
            }
            Call::Get { key, consistency } => write!(f, "get {key}{}", consistency.words()),
            Call::List { prefix, consistency } => write!(f, "list {prefix}*{}", consistency.words()),
        }
    }
}

fn joined<T: Display>(parts: &[T], separator: &str) -> String {
    let parts: Vec<String> = parts.iter().map(T::to_string).collect();
    format!("({})", parts.join(separator))
}

impl Condition {
    fn words(condition: Option<Condition>) -> String {
        match condition {
            None => String::new(),
            Some(Condition::Missing) => " if it is missing".to_owned(),
            Some(Condition::Revision(revision)) => format!(" if its revision is {revision}"),
        }
    }
}

impl Consistency {
    fn words(self) -> &'static str {
        match self {
            Consistency::Linearizable => "",
            Consistency::Stale => " (stale)",
        }
    }
}

impl Display for Comparison {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.operand {
            Operand::Missing => write!(f, "{} is missing", self.key),
            Operand::Value(value) => write!(f, "{} = {}", self.key, Value(value)),
            Operand::Revision(revision) => write!(f, "{} has revision {revision}", self.key),
        }
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Step::Put { key, value } => write!(f, "put {key} = {}", Value(value)),
            Step::Delete { key } => write!(f, "delete {key}"),
            Step::Get { key } => write!(f, "get {key}"),
        }
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Done(answer) => answer.fmt(f),
            Outcome::NotApplied => f.write_str("not applied"),
            Outcome::Unknown => f.write_str("unknown"),
        }
    }
}

impl Display for Answer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "at revision {}: {}", self.revision, self.result)
    }
}

impl Display for CallResult {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            CallResult::Put { version } => write!(f, "set, version {version}"),
            CallResult::Delete { deleted: true } => f.write_str("deleted"),
            CallResult::Delete { deleted: false } => f.write_str("nothing to delete"),
            CallResult::ConditionFailed { found: Some(revision) } => write!(f, "rejected, its revision is {revision}"),
            CallResult::ConditionFailed { found: None } => f.write_str("rejected, it is missing"),
            CallResult::Txn { succeeded, results } => {
                write!(f, "{} {}", if *succeeded { "then" } else { "else" }, joined(results, ", "))
            }
            CallResult::Get(record) => f.write_str(&found(record.as_ref())),
            CallResult::List(records) => {
                let shown = records.iter().take(LIST_KEYS_MAX);
                let shown: Vec<String> = shown.map(|(key, record)| format!("{key} = {record}")).collect();
                let more = if records.len() > LIST_KEYS_MAX { ", …" } else { "" };
                write!(f, "{} keys ({}{more})", records.len(), shown.join(", "))
            }
        }
    }
}

impl Display for StepResult {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            StepResult::Put => f.write_str("set"),
            StepResult::Delete { deleted } => CallResult::Delete { deleted: *deleted }.fmt(f),
            StepResult::Get(record) => f.write_str(&found(record.as_ref())),
        }
    }
}

/// A record, or that there is none.
pub fn found(record: Option<&Record>) -> String {
    record.map_or_else(|| "missing".to_owned(), Record::to_string)
}

impl Display for Record {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Record { value, revision, create_revision, version } = self;
        write!(f, "{} at revision {revision}, created at {create_revision}, version {version}", Value(value))
    }
}

impl Display for Change {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Change { revision, key, kind } = self;
        match kind {
            ChangeKind::Put { value, create_revision, version } => {
                write!(f, "{revision}: {key} = {}, created at {create_revision}, version {version}", Value(value))
            }
            ChangeKind::Delete => write!(f, "{revision}: {key} deleted"),
        }
    }
}

/// The changes of a revision.
pub fn changes(changes: &[&Change]) -> String {
    match changes {
        [] => "nothing".to_owned(),
        changes => joined(changes, "; "),
    }
}
