//! Finds the keys that have not changed since a revision.
//!
//! A deletion by prefix keeps the keys that have changed since it began. If each of its steps visited all of these,
//! deletions that are sent again after a million keys were rewritten would delay all nodes. So the keys are divided
//! into short runs with a known least revision, and a run without a key to delete is skipped.
//!
//! Runs affect how long it takes to find keys, and never which keys are found. So they are not in snapshots or in the
//! hash, and nodes may have different ones.

use std::ops::Bound::{Excluded, Included, Unbounded};

use imbl::OrdMap;

use super::listing::end_of_prefix;
use super::record::Data;
use crate::config::{RUN_KEYS_MAX, RUN_KEYS_MIN};
use crate::operation::Key;

/// The least revision of each run of neighboring keys.
///
/// Invariants, if [`update`](Self::update) was called for each change:
/// * each key is in one run, and each run has the number of keys and the least revision that [`Run`] says;
/// * no run has more than [`RUN_KEYS_MAX`] keys, and only the last one may have fewer than [`RUN_KEYS_MIN`].
#[derive(Clone, Debug, Default)]
pub(in crate::store) struct LeastRevisions {
    /// The runs by their first possible key: each extends to the next one. The first one begins with the empty key.
    runs: OrdMap<Key, Run>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    keys: usize,
    /// The least revision of its keys; `u64::MAX` if it has none.
    revision_min: u64,
}

/// Equal states may have different runs.
impl PartialEq for LeastRevisions {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for LeastRevisions {}

impl LeastRevisions {
    /// Updates the run of a key after a change of `data`. `before` and `now` are the key's revisions; `None` if the key
    /// did not or does not exist.
    pub(super) fn update(&mut self, data: &Data, key: &Key, before: Option<u64>, now: Option<u64>) {
        // First look it up without changing anything, which is much faster and sufficient for most puts.
        if let (Some((_, run)), Some(before), Some(now)) = (self.runs.get_prev(key), before, now)
            && before.min(now) > run.revision_min
        {
            return;
        }
        if self.runs.is_empty() {
            self.runs.insert(Key::default(), Run { keys: 0, revision_min: u64::MAX });
        }
        let Some((start, run)) = self.runs.get_prev_mut(key) else { return };
        run.keys = (run.keys + usize::from(now.is_some())).saturating_sub(usize::from(before.is_some()));
        let is_least_no_more = before.is_some_and(|before| before <= run.revision_min) && now != before;
        run.revision_min = run.revision_min.min(now.unwrap_or(u64::MAX));
        let keys = run.keys;
        if keys < RUN_KEYS_MIN && now.is_none() {
            let start = start.clone();
            self.join_next(data, start, keys);
        } else if is_least_no_more || keys > RUN_KEYS_MAX {
            let start = start.clone();
            self.renew(data, start, keys);
        }
    }

    /// The first `count` keys with a prefix that have not changed since a revision.
    pub(super) fn first_unchanged(&self, data: &Data, prefix: &str, revision_max: u64, count: usize) -> Vec<Key> {
        let start = self.runs.get_prev(prefix).map_or_else(Key::default, |(start, _)| start.clone());
        let end = end_of_prefix(prefix).map_or(Unbounded, |end| Excluded(Key::from(end)));
        self.runs
            .range((Included(start), end))
            .filter(|(_, run)| run.revision_min <= revision_max)
            .flat_map(|(start, run)| data.range(start.clone()..).take(run.keys))
            .filter(|(key, record)| record.revision <= revision_max && key.starts_with(prefix))
            .map(|(key, _)| key.clone())
            .take(count)
            .collect()
    }

    /// Joins a run with the next one, if one exists.
    fn join_next(&mut self, data: &Data, start: Key, keys: usize) {
        let next = self.runs.range((Excluded(start.clone()), Unbounded)).next();
        let Some((next, run)) = next.map(|(next, run)| (next.clone(), *run)) else {
            return self.renew(data, start, keys);
        };
        self.runs.remove(&next);
        self.renew(data, start, keys + run.keys);
    }

    /// Recomputes a run of this many keys, and divides it if they are too many.
    fn renew(&mut self, data: &Data, start: Key, keys: usize) {
        let first_keys = if keys > RUN_KEYS_MAX { keys / 2 } else { keys };
        let mut records = data.range(start.clone()..).take(keys);
        let first_min = records.by_ref().take(first_keys).map(|(_, record)| record.revision).min();
        self.runs.insert(start, Run { keys: first_keys, revision_min: first_min.unwrap_or(u64::MAX) });
        if let Some((key, record)) = records.next() {
            let revision_min = records.map(|(_, record)| record.revision).fold(record.revision, u64::min);
            self.runs.insert(key.clone(), Run { keys: keys - first_keys, revision_min });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::state_machine::record::tests::new_record;

    #[derive(Default)]
    struct Store {
        data: Data,
        revision: u64,
        least: LeastRevisions,
    }

    impl Store {
        fn put(&mut self, key: Key, revision: u64) {
            let record = new_record(&key, "value".into(), revision);
            let before = self.data.insert(key.clone(), Arc::new(record)).map(|record| record.revision);
            self.least.update(&self.data, &key, before, Some(revision));
            self.revision = self.revision.max(revision);
        }

        fn remove(&mut self, key: &str) {
            let Some((key, record)) = self.data.remove_with_key(key) else { return };
            self.least.update(&self.data, &key, Some(record.revision), None);
        }

        /// Asserts the invariants, and that the keys found are those that a full scan finds.
        fn check(&self, prefix: &str, revision_max: u64, count: usize) -> Vec<Key> {
            let starts: Vec<&Key> = self.least.runs.keys().collect();
            assert!(starts.first().is_none_or(|start| start.is_empty()));
            for (number, start) in starts.iter().copied().enumerate() {
                let next = starts.get(number + 1);
                let in_run = self.data.range(start.clone()..).take_while(|(key, _)| next.is_none_or(|next| key < next));
                let revisions: Vec<u64> = in_run.map(|(_, record)| record.revision).collect();
                let revision_min = revisions.iter().copied().min().unwrap_or(u64::MAX);
                assert_eq!(self.least.runs[start], Run { keys: revisions.len(), revision_min }, "of {start:?}");
                let keys_min = if next.is_some() { RUN_KEYS_MIN } else { 0 };
                assert!((keys_min..=RUN_KEYS_MAX).contains(&revisions.len()), "{} of {start:?}", revisions.len());
            }
            let with_prefix = self.data.iter().filter(|(key, _)| key.starts_with(prefix));
            let unchanged = with_prefix.filter(|(_, record)| record.revision <= revision_max);
            let wanted: Vec<Key> = unchanged.map(|(key, _)| key.clone()).take(count).collect();
            let found = self.least.first_unchanged(&self.data, prefix, revision_max, count);
            assert_eq!(found, wanted, "with {prefix:?} up to {revision_max}");
            found
        }
    }

    /// The keys that are found are those that a full scan finds, and runs are neither long nor many.
    ///
    /// Method: 20,000 pseudorandom puts and removals of keys of up to three of three letters and a number, some
    /// of them at an earlier revision, and deletions of up to 4 keys; more puts at first, then more removals,
    /// until there are none.
    #[test]
    fn finds_what_a_full_scan_finds() {
        let mut store = Store::default();
        let mut state = 1_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 33) % below
        };
        let (mut removed, mut keys_max) = (0, 0);
        for step in 0..20_000_u64 {
            let text: String = (0..random(4)).map(|_| ['a', 'b', 'ü'][random(3) as usize]).collect();
            let puts = if step < 10_000 { 7 } else { 3 };
            match random(10) {
                it if it < puts => {
                    let revision = store.revision + 1 - random(50).min(store.revision) * random(2);
                    store.put(format!("{text}{}", random(99)).into(), revision);
                }
                9 => {
                    let found = store.check(&text, store.revision.saturating_sub(random(500)), 4);
                    removed += found.len();
                    found.iter().for_each(|key| store.remove(key));
                }
                _ => store.remove(&format!("{text}{}", random(99))),
            }
            keys_max = keys_max.max(store.data.len());
            if step % 50 == 0 {
                store.check(&text, store.revision.saturating_sub(random(500)), usize::MAX);
            }
        }
        assert!(removed > 1000 && keys_max > 8 * RUN_KEYS_MAX, "{removed} of {keys_max}");
        for key in store.data.keys().cloned().collect::<Vec<_>>().iter().rev() {
            store.remove(key);
            store.check("", u64::MAX, usize::MAX);
        }
        assert_eq!(store.least.runs.len(), 1);
    }
}
