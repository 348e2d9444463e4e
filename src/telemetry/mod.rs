//! Logging, and what a node measures of itself.

pub mod logging;
pub mod meters;
pub mod operations;
pub mod process;
pub mod traces;
