//! Who waits for which changes.
//!
//! A watch first reads [`crate::store::state_machine::history`] from where it wants to begin. Once it
//! has come to the end it joins the group of those that watch the same keys, and
//! is handed what is applied from then on. One that falls behind its group goes
//! back to the history; one that falls behind the history has lost, and is told.
//!
//! Each batch is encoded once for its group, however long it is, and each long
//! event once for all groups. A slow reader holds only its place and the batch
//! that is being sent to it: the others belong to the node, which keeps the
//! newest up to a number of bytes.
//!
//! A write looks its key up once among the keys that are watched, and once among
//! the prefixes, however many there are.

pub mod hub;
mod prefixes;
pub mod subscription;

pub use self::hub::{Batch, Filter, LongEvents};
pub use self::subscription::{Subscription, WatchError};
