//! Which requests a node serves: the tokens of the replicated state, and the root token of this node.
//!
//! A node that was started with the root token requires tokens from its start on, and its first leader makes the whole
//! cluster require them, until an administrator ends that.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use subtle::ConstantTimeEq;
use tokio::sync::watch;

use crate::access::{TokenHash, TokenRole};
use crate::clock::LogClock;
use crate::operation::Key;
use crate::secret::{SECRET_BYTES_MAX, Secret};
use crate::store::state_machine::access::{Access, AccessMode, Token};
use crate::store::{AccessCell, ExampleStore};

/// What a node checks tokens against.
#[derive(Debug)]
pub struct Auth {
    access: Arc<AccessCell>,
    clock: Arc<LogClock>,
    root: Option<TokenHash>,
    /// The last term in which this node, as leader, had applied all that was committed before.
    current_in: AtomicU64,
    /// Whether metrics need no token.
    pub public_metrics: bool,
    /// Whether this node belonged to no cluster when it started.
    began_without_cluster: bool,
}

/// Who sent a request.
#[derive(Clone, Debug)]
pub enum Who {
    /// Anyone: requests need no token.
    Anyone,
    /// The holder of the root token.
    Root,
    /// Another node, with something of its own to ask.
    Peer,
    /// The holder of a token.
    Holder {
        /// The name of the token.
        name: Key,
        /// The token.
        token: Arc<Token>,
        /// The version of the tokens among which it was found.
        version: u64,
    },
}

/// The last valid token of a connection, and its holder.
///
/// Clients send the same token with each request of a connection. Comparing it with the last one costs less than hashing
/// it and finding the hash.
///
/// It is compared in constant time, except that a token of another length differs at once: a proxy, or a node that forwards requests, sends those of several clients on one
/// connection, and the time of a rejection must not tell one of them how a token of another begins. Requests of other
/// connections are not compared with it. It is kept as its text, which the connection has received anyway, until the
/// connection ends or another token is valid on it. Nothing prints it.
#[derive(Default)]
pub struct LastToken(RefCell<Option<(Box<[u8]>, Who)>>);

impl Auth {
    /// What the node with this store and this root token checks.
    pub fn new(store: &ExampleStore, root: Option<&Secret>, public_metrics: bool) -> Self {
        let root = root.map(|secret| TokenHash::of(secret.reveal().as_bytes()));
        let (access, clock) = (store.state_machine.access().clone(), store.clock().clone());
        let began_without_cluster = store.identity().cluster_id.is_none();
        Auth { access, clock, root, current_in: AtomicU64::new(0), public_metrics, began_without_cluster }
    }

    /// Whether this node has the root token.
    pub fn has_root(&self) -> bool {
        self.root.is_some()
    }

    /// Whether nodes without TLS must prove that they have the root token, which this node has.
    ///
    /// While a cluster is being changed to tokens, node by node, some of its nodes cannot prove anything yet. A node that
    /// begins without a cluster must be sure whose cluster it joins, and whose entries it appends until it has applied
    /// that the cluster requires tokens.
    pub fn demands_proofs(&self) -> bool {
        match self.access.mode() {
            AccessMode::Required => true,
            AccessMode::Open => self.began_without_cluster,
            AccessMode::Disabled => false,
        }
    }

    /// Whether the cluster requires tokens, as far as this node has applied that.
    pub fn mode(&self) -> AccessMode {
        self.access.mode()
    }

    /// Whether requests to this node need a token.
    #[inline]
    pub fn is_required(&self) -> bool {
        match self.access.mode() {
            AccessMode::Open => self.root.is_some(),
            AccessMode::Required => true,
            AccessMode::Disabled => false,
        }
    }

    /// The tokens now.
    pub fn access(&self) -> Arc<Access> {
        self.access.now()
    }

    /// Whether this node, as leader of a term, knows all changes of tokens that were acknowledged before it.
    pub fn is_current_in(&self, term: u64) -> bool {
        self.current_in.load(Ordering::Acquire) == term
    }

    /// Notes that it does.
    pub fn note_current_in(&self, term: u64) {
        self.current_in.store(term, Ordering::Release);
    }

    /// Tells of each change of the tokens.
    pub fn changes(&self) -> watch::Receiver<Arc<Access>> {
        self.access.changes()
    }

    /// The holder of a token that a connection has sent, unless it is unknown or has expired.
    ///
    /// An entry removes an expired token on all nodes. A node that is cut off gets no entries, and must not accept the
    /// token meanwhile.
    pub fn holder_of(&self, secret: &[u8], last: &LastToken) -> Option<Who> {
        if let Some((text, who)) = &*last.0.borrow()
            && bool::from(text.ct_eq(secret))
            && self.is_known(who)
        {
            return Some(who.clone());
        }
        let who = self.find(secret)?;
        last.0.replace(Some((secret.into(), who.clone())));
        Some(who)
    }

    /// Whether the remembered holder is still valid. It is not after any change of the tokens, even of another one: the
    /// token is then looked up again.
    fn is_known(&self, who: &Who) -> bool {
        match who {
            Who::Holder { token, version, .. } => *version == self.access.version() && !self.has_expired(token),
            // It is the same as long as the node runs.
            Who::Root => true,
            Who::Anyone | Who::Peer => false,
        }
    }

    fn find(&self, secret: &[u8]) -> Option<Who> {
        if secret.len() > SECRET_BYTES_MAX {
            return None;
        }
        let hash = TokenHash::of(secret);
        if self.root == Some(hash) {
            return Some(Who::Root);
        }
        // Before the tokens: if they change in between, the version is too old, and the token is looked for again.
        let version = self.access.version();
        let access = self.access.now();
        let (name, token) = access.find(&hash)?;
        (!self.has_expired(token)).then(|| Who::Holder { name: name.clone(), token: token.clone(), version })
    }

    /// Whether someone who was admitted before may still be served.
    pub fn still_admits(&self, who: &Who) -> bool {
        match who {
            Who::Anyone => !self.is_required(),
            Who::Root | Who::Peer => true,
            Who::Holder { name, token, version } => {
                let is_unchanged =
                    || self.access.now().tokens().get(name).is_some_and(|now| Arc::ptr_eq(now, token) || now == token);
                !self.has_expired(token) && (*version == self.access.version() || is_unchanged())
            }
        }
    }

    fn has_expired(&self, token: &Token) -> bool {
        // Most tokens never expire, and reading the clock takes time.
        token.expires_at_ms > 0 && token.expires_at_ms <= self.clock.now_ms()
    }
}

/// Keys that a request names.
#[derive(Clone, Copy, Debug)]
pub enum Keys<'a> {
    /// One key.
    One(&'a str),
    /// All keys that begin with this.
    Prefix(&'a str),
    /// Keys from the first, up to but without the second.
    Between(&'a str, &'a str),
}

impl Who {
    /// Whether the role allows this, for some keys at least.
    pub fn has_role(&self, role: TokenRole) -> bool {
        match self {
            Who::Anyone | Who::Root | Who::Peer => true,
            Who::Holder { token, .. } => token.role >= role,
        }
    }

    /// Whether all of the keys are among those of the token.
    pub fn has_keys(&self, keys: Keys<'_>) -> bool {
        let Who::Holder { token, .. } = self else { return true };
        token.prefixes.is_empty()
            || token.prefixes.iter().any(|prefix| match keys {
                Keys::One(key) => key.starts_with(prefix.as_str()),
                Keys::Prefix(wanted) => wanted.starts_with(prefix.as_str()),
                // Whatever is between two keys with a prefix has the prefix.
                Keys::Between(start, end) => start.starts_with(prefix.as_str()) && end.starts_with(prefix.as_str()),
            })
    }

    /// Whose the request is, for requests that are sent again. `None` without tokens.
    pub fn owner(&self) -> Option<&str> {
        match self {
            Who::Anyone => None,
            // No token has such a name.
            Who::Root | Who::Peer => Some("/root"),
            Who::Holder { name, .. } => Some(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token allows its keys and ranges, and nothing beside them.
    #[test]
    fn ranges() {
        let who = |prefixes: &[&str]| {
            let prefixes = prefixes.iter().copied().map(Key::from).collect();
            let token = Token { role: TokenRole::Read, prefixes, expires_at_ms: 0, hash: TokenHash::of(b"") };
            Who::Holder { name: "name".into(), token: Arc::new(token), version: 0 }
        };
        let app = who(&["app/", "b"]);
        for keys in [
            Keys::One("app/"),
            Keys::One("app/x"),
            Keys::One("b"),
            Keys::Prefix("app/x"),
            Keys::Prefix("app/"),
            Keys::Between("app/a", "app/b"),
        ] {
            assert!(app.has_keys(keys), "{keys:?}");
        }
        for keys in [
            Keys::One("app"),
            Keys::One("apq"),
            Keys::One(""),
            Keys::One("a/app/"),
            Keys::Prefix("app"),
            Keys::Prefix(""),
            Keys::Between("app/a", "b"),
            Keys::Between("app/a", "app0"),
            Keys::Between("", "app/"),
        ] {
            assert!(!app.has_keys(keys), "{keys:?}");
            assert!(who(&[]).has_keys(keys) && Who::Root.has_keys(keys), "{keys:?}");
        }
        assert!(app.has_role(TokenRole::Read) && !app.has_role(TokenRole::Write) && !app.has_role(TokenRole::Admin));
    }
}
