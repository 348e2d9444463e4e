//! Watches: which clients wait for which changes.
//!
//! A watch first reads [`crate::store::state_machine::history`] from where it wants to begin. Once it
//! reached the end it joins the group of the watches of the same keys, and receives
//! the changes that are applied from then on. A watch that falls behind its group
//! returns to the history; a watch that falls behind the history ends with an error.
//!
//! Each batch is encoded once for its group, however long it is, and each long
//! event once for all groups. A slow reader holds only its place and the batch
//! that is being sent to it. The node owns the other batches, and keeps the newest,
//! up to a number of bytes.
//!
//! A write looks its key up once among the watched keys and once among the watched
//! prefixes, however many exist.

pub mod hub;
mod prefixes;
pub mod subscription;

pub use self::hub::{Batch, Filter, LongEvents};
pub use self::subscription::{Subscription, WatchError};
