//! What a node says of itself while it runs.

pub mod logging;
