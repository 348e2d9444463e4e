//! The data directory: stored data is read again, and damaged data is never accepted.

// Shared code needs the permissions that `clippy.toml` gives to test functions.
#![allow(clippy::unwrap_used)]

mod compat;
mod conformance;
mod crash;
mod flips;
mod full_disk;
mod listing;
mod model;
mod seeds;
mod self_check;
mod snapshots;
mod startup;
mod support;
mod torn;
mod watch;
mod watch_place;
mod watch_sharing;
