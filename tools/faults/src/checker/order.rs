//! The order: all changes of the store, merged from the watches.
//!
//! Rule: a watch delivers every change from its first revision to its last, by increasing revision, each
//! once. Each revision after the first has at least one change, and changes a key at most once. Where two
//! watches overlap, they deliver the same changes. A key's version is 1 when the key is created, which is its
//! create revision, and grows by one with each change. Only existing keys are deleted.
//!
//! Sound: the revision counts requests that change something, so a revision without a change and a change
//! without a revision are both impossible. A watch may begin late and end at any change, even in the middle
//! of a revision: a part of the order is still checked. Changes that no watch delivered are a doubt, not a
//! violation.

use std::collections::{HashMap, HashSet};

use super::describe;
use super::report::{Kind, Report};
use crate::history::{Change, ChangeKind, History, Record};

/// All changes by revision. The other rules compare the responses with them.
///
/// Invariants: the revisions are contiguous from the one after `before`; each has at least one change.
pub struct Order<'a> {
    before: u64,
    pieces: Piece<'a>,
    /// The positions in the order of each key's changes.
    by_key: HashMap<&'a str, Vec<usize>>,
}

/// Changes of contiguous revisions.
#[derive(Clone, Debug, Default)]
struct Piece<'a> {
    changes: Vec<&'a Change>,
    /// The position of each revision's first change.
    starts: Vec<usize>,
}

impl<'a> Piece<'a> {
    fn first_revision(&self) -> u64 {
        self.changes.first().map_or(0, |change| change.revision)
    }

    fn last_revision(&self) -> u64 {
        self.changes.last().map_or(0, |change| change.revision)
    }

    fn push(&mut self, change: &'a Change) {
        if self.starts.is_empty() || self.last_revision() < change.revision {
            self.starts.push(self.changes.len());
        }
        self.changes.push(change);
    }

    /// The changes of a revision; empty if the piece does not contain it.
    fn at(&self, revision: u64) -> &[&'a Change] {
        let Some(number) = revision.checked_sub(self.first_revision()) else { return &[] };
        let Some(start) = self.starts.get(number as usize) else { return &[] };
        let end = self.starts.get(number as usize + 1).copied().unwrap_or(self.changes.len());
        &self.changes[*start..end]
    }

    fn remove_last_revision(&mut self) -> Vec<&'a Change> {
        self.starts.pop().map_or_else(Vec::new, |start| self.changes.split_off(start))
    }
}

impl<'a> Order<'a> {
    /// Merges the watches.
    pub fn of(history: &'a History, report: &mut Report) -> Self {
        let before = history.revision_before;
        let numbered = history.watches.iter().enumerate();
        let mut watched: Vec<(usize, Piece)> =
            numbered.map(|(number, watch)| (number, piece_of(number, watch, report))).collect();
        watched.retain(|(_, piece)| !piece.changes.is_empty());
        watched.sort_by_key(|(_, piece)| piece.first_revision());
        let mut merged = Piece::default();
        for (number, piece) in watched {
            let next = if merged.changes.is_empty() {
                before.saturating_add(1)
            } else {
                merged.last_revision().saturating_add(1)
            };
            if piece.first_revision() > next {
                let first = piece.first_revision();
                report.doubt(|| format!("no watch delivered the changes from revision {next} to {}", first - 1));
                break;
            }
            if piece.first_revision() <= before {
                report.violation(Kind::WatchDisorder, || {
                    format!("watch {number} delivered {}, but the run began after revision {before}", piece.changes[0])
                });
                continue;
            }
            merge(&mut merged, piece, number, report);
        }
        let mut by_key: HashMap<&str, Vec<usize>> = HashMap::new();
        for (place, change) in merged.changes.iter().enumerate() {
            by_key.entry(&change.key).or_default().push(place);
        }
        let order = Order { before, pieces: merged, by_key };
        order.check_versions(report);
        order
    }

    /// The last revision that a watch delivered.
    pub fn last_revision(&self) -> u64 {
        self.pieces.last_revision().max(self.before)
    }

    /// All delivered revisions.
    pub fn revisions(&self) -> std::ops::RangeInclusive<u64> {
        self.before.saturating_add(1)..=self.last_revision()
    }

    /// All changes, by revision.
    pub fn changes(&self) -> &[&'a Change] {
        &self.pieces.changes
    }

    /// The changes of a revision; empty if the order does not contain it.
    pub fn at(&self, revision: u64) -> &[&'a Change] {
        self.pieces.at(revision)
    }

    /// The number of keys that were ever changed.
    pub fn keys(&self) -> usize {
        self.by_key.len()
    }

    /// A key's record at a revision.
    pub fn record(&self, key: &str, revision: u64) -> Option<Record> {
        let places = self.by_key.get(key)?;
        let place = places[..self.count_up_to(places, revision)].last()?;
        record_of(self.pieces.changes[*place])
    }

    /// Whether a key had the revision `found` at some revision within a range; `None` if it was missing.
    pub fn was_within(&self, key: &str, found: Option<u64>, first: u64, last: u64) -> bool {
        let revision_at = |revision| self.record(key, revision).map(|record| record.revision);
        let Some(places) = self.by_key.get(key) else { return found.is_none() };
        let changed = &places[self.count_up_to(places, first)..self.count_up_to(places, last.max(first))];
        let mut moments = changed.iter().map(|place| self.pieces.changes[*place].revision);
        revision_at(first) == found || moments.any(|revision| revision_at(revision) == found)
    }

    /// Forgets the last revision if the watches delivered only a part of it.
    pub fn forget_last_revision(&mut self) {
        for change in self.pieces.remove_last_revision() {
            if let Some(places) = self.by_key.get_mut(&*change.key) {
                places.pop();
            }
        }
    }

    fn count_up_to(&self, places: &[usize], revision: u64) -> usize {
        places.partition_point(|place| self.pieces.changes[*place].revision <= revision)
    }

    fn check_versions(&self, report: &mut Report) {
        for places in self.by_key.values() {
            let mut before: Option<&Change> = None;
            for change in places.iter().map(|place| self.pieces.changes[*place]) {
                let former = before.and_then(record_of);
                if let Some(kind) = wrong_after(former.as_ref(), change) {
                    report.violation(kind, || {
                        let before = before.map_or_else(|| "nothing".to_owned(), Change::to_string);
                        format!("({change}) comes after ({before})")
                    });
                }
                before = Some(change);
            }
        }
    }
}

/// The record that a change leaves.
pub fn record_of(change: &Change) -> Option<Record> {
    match &change.kind {
        ChangeKind::Put { value, create_revision, version } => Some(Record {
            value: value.clone(),
            revision: change.revision,
            create_revision: *create_revision,
            version: *version,
        }),
        ChangeKind::Delete => None,
    }
}

/// The rule that a change of a key with the record `former` breaks, if any.
fn wrong_after(former: Option<&Record>, change: &Change) -> Option<Kind> {
    let (created, versioned) = match (&change.kind, former) {
        (ChangeKind::Delete, former) => return former.is_none().then_some(Kind::DeleteOfMissing),
        (ChangeKind::Put { .. }, None) => (change.revision, 1),
        (ChangeKind::Put { .. }, Some(former)) => (former.create_revision, former.version.saturating_add(1)),
    };
    let right = matches!(change.kind, ChangeKind::Put { create_revision, version, .. }
        if create_revision == created && version == versioned);
    (!right).then_some(Kind::VersionInOrder)
}

/// The valid beginning of a watch.
fn piece_of<'a>(number: usize, watch: &'a [Change], report: &mut Report) -> Piece<'a> {
    let mut piece = Piece::default();
    let mut keys: HashSet<&str> = HashSet::new();
    let mut last: Option<&Change> = None;
    for change in watch {
        let revision_before = last.map_or(change.revision, |last| last.revision);
        if revision_before < change.revision {
            keys.clear();
        }
        let wrong = if change.revision < revision_before || !keys.insert(&change.key) {
            Some(Kind::WatchDisorder)
        } else {
            (change.revision > revision_before.saturating_add(1)).then_some(Kind::WatchGap)
        };
        if let (Some(kind), Some(last)) = (wrong, last) {
            report.violation(kind, || format!("watch {number} delivered ({change}) right after ({last})"));
            break;
        }
        piece.push(change);
        last = Some(change);
    }
    piece
}

/// Appends the changes of a watch beyond the end of the order, if the two agree.
fn merge<'a>(merged: &mut Piece<'a>, piece: Piece<'a>, number: usize, report: &mut Report) {
    if merged.changes.is_empty() {
        *merged = piece;
        return;
    }
    let common_last = merged.last_revision().min(piece.last_revision());
    for revision in piece.first_revision()..=common_last {
        let (known, told) = (merged.at(revision), piece.at(revision));
        // Either may have been cut off in the middle of its last revision.
        let cut = told.len() < known.len() && revision == piece.last_revision() && known.starts_with(told)
            || known.len() < told.len() && revision == merged.last_revision() && told.starts_with(known);
        if known != told && !cut {
            let (known, told) = (describe::changes(known), describe::changes(told));
            report.violation(Kind::WatchDisagreement, || {
                format!("at revision {revision} watch {number} delivered {told}, and another {known}")
            });
            return;
        }
    }
    if piece.last_revision() < merged.last_revision() {
        return;
    }
    // From the last common revision on, which may have been cut off until now.
    let known = merged.at(common_last).len();
    let added = piece.changes.iter().filter(|change| change.revision >= common_last);
    let skipped = if piece.first_revision() <= common_last { known } else { 0 };
    for change in added.skip(skipped) {
        merged.push(change);
    }
}
