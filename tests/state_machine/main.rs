//! Compares the state machine with a model.
//!
//! | module | content |
//! | --- | --- |
//! | [`apply_time`] | the time to apply entries that visit many keys |
//! | [`fixed`] | hashes and snapshots that must be the same for nodes of all versions |
//! | [`model`] | a second, independent implementation of the state machine |
//! | [`harness`] | compares the two after each entry and after each snapshot |
//! | [`operations`] | random entries |
//! | [`random`] | compares the two for random logs |
//! | [`scripted`] | compares the two at the limits, which random logs seldom reach |

// Shared code needs the permissions that `clippy.toml` gives to test functions.
#![allow(clippy::unwrap_used)]

mod apply_time;
mod fixed;
mod harness;
mod model;
mod operations;
mod random;
mod scripted;
