//! Hashes of the replicated state: XXH3 with 128 bits.
//!
//! Each part of the state has a hash of its own, computed beside its type: a key with its record
//! (`store/state_machine/record.rs`), a remembered request (`requests.rs`) and a change (`history.rs`). The hash of
//! the whole state (`store/state_machine/mod.rs`) includes sums of these (modulo 2^128), which do not depend on their
//! order. So a change updates it at a cost that does not depend on how much data the node has: it subtracts the hash
//! of what it removes and adds the hash of what it inserts.
//!
//! **On disk and in the hash: frozen.** Nodes of all versions compare these hashes, and snapshots and log entries
//! contain them. Another way to hash requires another format of the data directory.
//!
//! Caveat: the hash finds faults. It does not resist an attacker who constructs two states with the same hash.

use std::fmt;
use std::iter::Sum;
use std::ops::{AddAssign, SubAssign};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

/// A hash, or a sum of hashes. As text it has 32 hexadecimal digits.
///
/// It is stored as two numbers, the upper 64 bits first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "[u64; 2]", into = "[u64; 2]")]
pub struct StateHash(pub u128);

impl StateHash {
    /// The hash of bytes.
    #[inline]
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        StateHash(xxh3_128(bytes))
    }

    /// The hash of numbers, each as 8 bytes, little-endian.
    #[inline]
    pub(crate) fn of_numbers<const N: usize>(numbers: [u64; N]) -> Self {
        // The compiler does not always turn `map` into a loop without branches.
        let mut bytes = [[0; 8]; N];
        for (bytes, number) in bytes.iter_mut().zip(numbers) {
            *bytes = number.to_le_bytes();
        }
        Self::of_bytes(bytes.as_flattened())
    }

    /// The upper and the lower 64 bits, to include this hash in the numbers of another one.
    #[inline]
    pub(crate) fn halves(self) -> [u64; 2] {
        self.into()
    }
}

/// An optional number, distinct from every number that exists in practice.
pub(crate) fn plus_one(number: Option<u64>) -> u64 {
    number.map_or(0, |number| number.wrapping_add(1))
}

impl From<StateHash> for [u64; 2] {
    #[inline]
    fn from(StateHash(hash): StateHash) -> Self {
        [(hash >> 64) as u64, hash as u64]
    }
}

impl From<[u64; 2]> for StateHash {
    fn from([high, low]: [u64; 2]) -> Self {
        StateHash(u128::from(high) << 64 | u128::from(low))
    }
}

impl AddAssign for StateHash {
    #[inline]
    fn add_assign(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }
}

impl SubAssign for StateHash {
    #[inline]
    fn sub_assign(&mut self, other: Self) {
        self.0 = self.0.wrapping_sub(other.0);
    }
}

impl Sum for StateHash {
    fn sum<I: Iterator<Item = Self>>(hashes: I) -> Self {
        let mut sum = StateHash::default();
        hashes.for_each(|hash| sum += hash);
        sum
    }
}

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hashes of bytes and numbers, and their form in logs and snapshots, are the same in all versions.
    #[test]
    fn hashes_are_fixed() {
        assert_eq!(StateHash::of_bytes(b"").to_string(), "99aa06d3014798d86001c324468d497f");
        let hash = StateHash::of_numbers([1, 1 << 40]);
        assert_eq!(hash, StateHash::of_bytes(b"\x01\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0"));
        let stored = rmp_serde::to_vec_named(&StateHash(1 << 64 | 0xffff)).unwrap();
        assert_eq!(stored, b"\x92\x01\xcd\xff\xff");
        assert_eq!(rmp_serde::from_slice::<StateHash>(&stored).unwrap(), StateHash(1 << 64 | 0xffff));
        let sum: StateHash = [StateHash(u128::MAX), StateHash(3)].into_iter().sum();
        assert_eq!((sum, [plus_one(None), plus_one(Some(0))]), (StateHash(2), [0, 1]));
    }
}
