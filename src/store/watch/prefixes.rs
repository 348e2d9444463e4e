//! A map from prefixes that finds all prefixes of a key with one lookup.
//!
//! Each prefix knows the longest other prefix that it begins with. In sorted order, the last prefix that is not after a
//! key begins with every prefix of that key. So these are found by following the references from there.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::operation::Key;

/// Values by prefix.
#[derive(Debug)]
pub(super) struct Prefixes<T> {
    numbers: BTreeMap<Key, usize>,
    /// By number; `None` for a free number.
    nodes: Vec<Option<Node<T>>>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Node<T> {
    /// The prefix's length in bytes.
    length: usize,
    /// The number of the longest other prefix that this one begins with.
    parent: Option<usize>,
    value: T,
}

impl<T> Default for Prefixes<T> {
    fn default() -> Self {
        Prefixes { numbers: BTreeMap::new(), nodes: Vec::new(), free: Vec::new() }
    }
}

impl<T> Prefixes<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.nodes.iter().flatten().map(|node| &node.value)
    }

    pub(super) fn get(&self, prefix: &str) -> Option<&T> {
        self.node(*self.numbers.get(prefix)?).map(|node| &node.value)
    }

    /// The value of a number from [`Prefixes::for_each_of`]; `None` if it was removed since.
    pub(super) fn get_numbered(&mut self, number: usize) -> Option<&mut T> {
        self.node_mut(number).map(|node| &mut node.value)
    }

    /// Adds a prefix that the map does not have. The cost is linear in the prefixes that begin with it.
    pub(super) fn insert(&mut self, prefix: Key, value: T) {
        let parent = self.longest_of(&prefix);
        let node = Some(Node { length: prefix.len(), parent, value });
        let number = match self.free.pop() {
            Some(number) => {
                self.nodes[number] = node;
                number
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        };
        self.replace_parent(&prefix, parent, Some(number));
        self.numbers.insert(prefix, number);
    }

    /// The cost is that of [`Prefixes::insert`].
    pub(super) fn remove(&mut self, prefix: &str) -> Option<T> {
        let number = self.numbers.remove(prefix)?;
        let node = self.nodes[number].take()?;
        self.free.push(number);
        self.replace_parent(prefix, Some(number), node.parent);
        Some(node.value)
    }

    /// Calls `visit` with the number and value of each prefix of a key, the longest first.
    pub(super) fn for_each_of(&mut self, key: &str, mut visit: impl FnMut(usize, &mut T)) {
        let mut next = self.longest_of(key);
        while let Some(number) = next {
            let Some(node) = self.node_mut(number) else { return };
            visit(number, &mut node.value);
            next = node.parent;
        }
    }

    fn longest_of(&self, key: &str) -> Option<usize> {
        let (before, number) = self.numbers.range::<str, _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        let in_common = before.bytes().zip(key.bytes()).take_while(|(one, other)| one == other).count();
        let mut number = Some(*number);
        while let Some(node) = number.and_then(|number| self.node(number)) {
            if node.length <= in_common {
                break;
            }
            number = node.parent;
        }
        number
    }

    /// Replaces the parent `before` of all prefixes that begin with `prefix`.
    fn replace_parent(&mut self, prefix: &str, before: Option<usize>, after: Option<usize>) {
        let longer = self.numbers.range::<str, _>((Bound::Excluded(prefix), Bound::Unbounded));
        for (_, number) in longer.take_while(|(other, _)| other.starts_with(prefix)) {
            if let Some(node) = &mut self.nodes[*number]
                && node.parent == before
            {
                node.parent = after;
            }
        }
    }

    fn node(&self, number: usize) -> Option<&Node<T>> {
        self.nodes.get(number)?.as_ref()
    }

    fn node_mut(&mut self, number: usize) -> Option<&mut Node<T>> {
        self.nodes.get_mut(number)?.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The prefixes that are found for a key are those that it begins with, the longest first.
    ///
    /// Method: 20,000 pseudorandom insertions and removals of short prefixes of few letters, some of more than a byte;
    /// each time, the result for a key is compared with that of a full scan.
    #[test]
    fn all_prefixes_of_a_key() {
        let mut state = 1_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 33) % below
        };
        let mut text = |length: u64| -> String {
            let length = random(length);
            (0..length).map(|_| ['a', 'b', 'ü', 'û'][random(4) as usize]).collect()
        };
        let mut prefixes = Prefixes::default();
        let mut expected: BTreeSet<String> = BTreeSet::new();
        let mut found_in_all = 0;
        for _ in 0..20_000 {
            let prefix = text(6);
            assert_eq!(prefixes.get(&prefix), expected.get(&prefix));
            if expected.remove(&prefix) {
                assert_eq!(prefixes.remove(&prefix), Some(prefix));
            } else {
                prefixes.insert(prefix.as_str().into(), prefix.clone());
                expected.insert(prefix);
            }
            let key = text(9);
            let mut found = Vec::new();
            prefixes.for_each_of(&key, |number, prefix| found.push((number, prefix.clone())));
            let wanted = expected.iter().rev().filter(|prefix| key.starts_with(prefix.as_str()));
            assert!(found.iter().map(|(_, prefix)| prefix).eq(wanted), "{found:?} of {key:?}");
            assert!(found.iter().all(|(number, prefix)| prefixes.get_numbered(*number) == Some(&mut prefix.clone())));
            found_in_all += found.len();
            assert_eq!(prefixes.values().count(), expected.len());
        }
        assert!(found_in_all > 1000, "{found_in_all}");
    }
}
