//! Who may use a cluster, as the log and snapshots store it: tokens, and whether requests must have one.
//!
//! A token is a random text that its holder sends with each request. Nodes store only its SHA-256 hash, so no log,
//! snapshot or backup has the text. It has enough random bits that a slow hash would add nothing.
//!
//! **On disk: frozen.** As in [`crate::operation`], a field may be added with a default, and none may be renamed.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// As [`crate::operation::Key`], which is above this module.
type Key = smol_str::SmolStr;

/// What a token allows. Each role allows what those before it allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TokenRole {
    /// Read keys, the status of the cluster, and metrics.
    Read,
    /// Write keys.
    Write,
    /// Manage the cluster and tokens, and take backups.
    Admin,
}

impl TokenRole {
    /// The name, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            TokenRole::Read => "read",
            TokenRole::Write => "write",
            TokenRole::Admin => "admin",
        }
    }
}

/// The SHA-256 hash of a token.
///
/// It is compared in constant time, so that the time of a rejection tells nothing about it.
#[derive(Clone, Copy)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// The hash of a token's text.
    pub fn of(secret: &[u8]) -> Self {
        TokenHash(Sha256::digest(secret).into())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for TokenHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for TokenHash {}

// No bytes: a hash must not be logged either.
impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a hash")
    }
}

/// As bytes. In JSON, which no node stores or sends, only that there is a hash.
impl Serialize for TokenHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str("sha256")
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for TokenHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HashVisitor;
        impl Visitor<'_> for HashVisitor {
            type Value = TokenHash;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("32 bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<TokenHash, E> {
                bytes.try_into().map(TokenHash).map_err(|_| E::invalid_length(bytes.len(), &self))
            }
        }
        deserializer.deserialize_bytes(HashVisitor)
    }
}

/// A change of who may use the cluster. It changes no key and no revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessChange {
    /// Makes every request need a token, or none.
    Require {
        /// Whether requests need a token.
        required: bool,
    },
    /// Adds a token. Fails if its name is in use.
    Create(NewToken),
    /// Removes a token. Fails if no token has the name.
    Revoke {
        /// The name of the token.
        name: Key,
    },
}

/// A token to add.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToken {
    /// The name, which identifies the token.
    pub name: Key,
    /// What it allows.
    pub role: TokenRole,
    /// Beginnings of the keys for which it allows that; empty for all keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<Key>,
    /// Milliseconds of log time until it expires; `None` for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// The hash of its text.
    pub hash: TokenHash,
}

impl AccessChange {
    /// Approximate bytes of memory of the names and prefixes.
    pub fn payload_bytes(&self) -> usize {
        match self {
            AccessChange::Require { .. } => 0,
            AccessChange::Create(token) => {
                token.name.len() + token.prefixes.iter().map(|prefix| prefix.len()).sum::<usize>()
            }
            AccessChange::Revoke { name } => name.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hash is stored as the bytes of the SHA-256 of the text, and never shown.
    #[test]
    fn hashes_are_fixed() {
        let hash = TokenHash::of(b"abc");
        let bytes = rmp_serde::to_vec_named(&hash).unwrap();
        assert_eq!(bytes[..6], *b"\xc4\x20\xba\x78\x16\xbf");
        assert_eq!(rmp_serde::from_slice::<TokenHash>(&bytes).unwrap(), hash);
        assert!(rmp_serde::from_slice::<TokenHash>(b"\xc4\x01a").is_err());
        assert_ne!(TokenHash::of(b"abd"), hash);
        assert_eq!(serde_json::to_string(&hash).unwrap() + &format!("{hash:?}"), "\"sha256\"a hash");
    }
}
