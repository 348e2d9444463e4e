//! The tokens of a cluster, and whether requests need one.
//!
//! They are a part of the replicated state: a token expires by log time, when an entry with a later time is applied, as
//! keys do.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::access::{AccessChange, NewToken, TokenHash, TokenRole};
use crate::config::TOKENS_MAX;
use crate::hash::StateHash;
use crate::operation::{Key, WriteResult};

/// Whether requests need a token.
///
/// **In snapshots: frozen.**
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessMode {
    /// No, and they never did.
    #[default]
    Open,
    /// Yes.
    Required,
    /// No: an administrator has ended it.
    Disabled,
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it allows.
    pub role: TokenRole,
    /// Beginnings of the keys for which it allows that; empty for all keys.
    pub prefixes: Box<[Key]>,
    /// When it expires, in milliseconds of log time; 0 for never.
    pub expires_at_ms: u64,
    /// The hash of its text.
    pub hash: TokenHash,
}

/// Who may use the cluster.
///
/// Invariants: `hash` is that of `computed_hash`, and `next_expiry_ms` the least time at which a token expires.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    mode: AccessMode,
    tokens: BTreeMap<Key, Arc<Token>>,
    next_expiry_ms: Option<u64>,
    /// The names of the tokens by the first bytes of their hashes.
    by_hash: HashMap<[u8; 8], Vec<Key>>,
    hash: StateHash,
}

impl Access {
    /// A state that is loaded, which has no tokens yet.
    pub(in crate::store) fn in_mode(mode: AccessMode) -> Self {
        let mut access = Access { mode, ..Access::default() };
        access.changed();
        access
    }

    /// Whether requests need a token.
    pub fn mode(&self) -> AccessMode {
        self.mode
    }

    /// All tokens, by name.
    pub fn tokens(&self) -> &BTreeMap<Key, Arc<Token>> {
        &self.tokens
    }

    /// The token with this hash, and its name.
    ///
    /// Finding it by a part of the hash tells an attacker nothing, because the text of a token does not follow from its
    /// hash. The whole hashes are compared in constant time.
    pub fn find(&self, hash: &TokenHash) -> Option<(&Key, &Arc<Token>)> {
        let names = self.by_hash.get(&first_of(hash))?;
        let mut tokens = names.iter().filter_map(|name| self.tokens.get_key_value(name));
        tokens.find(|(_, token)| token.hash == *hash)
    }

    /// When the next token expires, in milliseconds of log time; `None` if none does.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.next_expiry_ms
    }

    /// The hash of all of this; 0 as long as the cluster has never had a token, so that the hash of the state is that
    /// of versions without tokens.
    pub(in crate::store) fn hash(&self) -> StateHash {
        self.hash
    }

    /// The same, computed from what is in memory now.
    ///
    /// **In the hash: frozen.** It is the sum of the hashes of the tokens, and of that of the mode unless it is `Open`.
    /// The hash of a token is of these numbers: the two halves of the hash of its name, its role from 1, its expiry
    /// time, the two halves of the hash of its own hash, and the two halves of that of its prefixes. The hash of the
    /// prefixes is of all of them, each with its length before it as 8 bytes, little-endian.
    pub(in crate::store) fn computed_hash(&self) -> StateHash {
        let mut sum: StateHash = self.tokens.iter().map(|(name, token)| hash_of(name, token)).sum();
        match self.mode {
            AccessMode::Open => {}
            AccessMode::Required => sum += StateHash::of_numbers([1]),
            AccessMode::Disabled => sum += StateHash::of_numbers([2]),
        }
        sum
    }

    /// Applies a change.
    ///
    /// The results are those of other operations, so that their stored form stays the same: a change that is made is a
    /// `Delete` of as many tokens as it removed. A name that is in use is a failed condition without a revision, and too
    /// many tokens are one with their number. A missing token is a missing key.
    pub(super) fn apply(self: &mut Arc<Self>, change: &AccessChange, clock_ms: u64, revision: u64) -> WriteResult {
        let mut removed = 0;
        match change {
            AccessChange::Require { required: true } if self.mode == AccessMode::Required => {}
            AccessChange::Require { required: false } if self.mode == AccessMode::Disabled => {}
            AccessChange::Require { required } => {
                let access = Arc::make_mut(self);
                access.mode = if *required { AccessMode::Required } else { AccessMode::Disabled };
                access.changed();
            }
            AccessChange::Create(token) if self.tokens.contains_key(&token.name) => {
                return WriteResult::ConditionFailed { revision: None };
            }
            AccessChange::Create(_) if self.tokens.len() >= TOKENS_MAX => {
                return WriteResult::ConditionFailed { revision: Some(self.tokens.len() as u64) };
            }
            AccessChange::Create(NewToken { name, role, prefixes, ttl_ms, hash }) => {
                let expires_at_ms = ttl_ms.map_or(0, |ttl_ms| clock_ms.saturating_add(ttl_ms));
                let token = Token { role: *role, prefixes: prefixes.as_slice().into(), expires_at_ms, hash: *hash };
                Arc::make_mut(self).insert(name.clone(), token);
            }
            AccessChange::Revoke { name } if !self.tokens.contains_key(name) => return WriteResult::NoSuchKey,
            AccessChange::Revoke { name } => {
                let access = Arc::make_mut(self);
                access.tokens.remove(name);
                access.changed();
                removed = 1;
            }
        }
        WriteResult::Delete { deleted: removed, revision, unfinished: None }
    }

    /// Removes the tokens that have expired.
    pub(super) fn expire(self: &mut Arc<Self>, clock_ms: u64) {
        if self.next_expiry_ms.is_some_and(|next_ms| next_ms <= clock_ms) {
            let access = Arc::make_mut(self);
            access.tokens.retain(|_, token| token.expires_at_ms == 0 || token.expires_at_ms > clock_ms);
            access.changed();
        }
    }

    /// Adds a token of a snapshot; false if the name is in use, or there are too many.
    pub(in crate::store) fn load(&mut self, name: Key, token: Token) -> bool {
        let is_new = self.tokens.len() < TOKENS_MAX && !self.tokens.contains_key(&name);
        if is_new {
            self.insert(name, token);
        }
        is_new
    }

    /// Adds a token with a new name. The others are not hashed again: a thousand of them may have 32 MiB of prefixes.
    fn insert(&mut self, name: Key, token: Token) {
        self.hash += hash_of(&name, &token);
        // In order, so that all nodes find the same one of two with the same hash.
        let names = self.by_hash.entry(first_of(&token.hash)).or_default();
        names.insert(names.partition_point(|other| *other < name), name.clone());
        let expires = (token.expires_at_ms > 0).then_some(token.expires_at_ms);
        self.next_expiry_ms = self.next_expiry_ms.into_iter().chain(expires).min();
        self.tokens.insert(name, Arc::new(token));
    }

    /// Computes again what follows from the mode and the tokens.
    fn changed(&mut self) {
        self.hash = self.computed_hash();
        self.by_hash.clear();
        for (name, token) in &self.tokens {
            self.by_hash.entry(first_of(&token.hash)).or_default().push(name.clone());
        }
        self.next_expiry_ms = self.tokens.values().map(|token| token.expires_at_ms).filter(|at_ms| *at_ms > 0).min();
    }
}

fn first_of(hash: &TokenHash) -> [u8; 8] {
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    first
}

fn hash_of(name: &str, token: &Token) -> StateHash {
    let Token { role, prefixes, expires_at_ms, hash } = token;
    let role = match role {
        TokenRole::Read => 1,
        TokenRole::Write => 2,
        TokenRole::Admin => 3,
    };
    let mut listed = Vec::new();
    for prefix in prefixes {
        listed.extend_from_slice(&(prefix.len() as u64).to_le_bytes());
        listed.extend_from_slice(prefix.as_bytes());
    }
    let [name_0, name_1] = StateHash::of_bytes(name.as_bytes()).halves();
    let [hash_0, hash_1] = StateHash::of_bytes(hash.as_bytes()).halves();
    let [listed_0, listed_1] = StateHash::of_bytes(&listed).halves();
    StateHash::of_numbers([name_0, name_1, role, *expires_at_ms, hash_0, hash_1, listed_0, listed_1])
}
