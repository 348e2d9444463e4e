//! The state machine against a model of it.
//!
//! | module | question |
//! | --- | --- |
//! | [`apply_time`] | how long does an entry take that looks at many keys |
//! | [`fixed`] | do nodes of all versions make the same hash and the same snapshot of the same log |
//! | [`model`] | what the state machine is to do, written down a second time |
//! | [`harness`] | are the two the same after each entry, and after each snapshot |
//! | [`operations`] | which entries are tried |
//! | [`random`] | does it hold for any of them |
//! | [`scripted`] | does it hold where chance seldom gets: at the limits |

// What `clippy.toml` allows in test functions holds for what they share too.
#![allow(clippy::unwrap_used)]

mod apply_time;
mod fixed;
mod harness;
mod model;
mod operations;
mod random;
mod scripted;
