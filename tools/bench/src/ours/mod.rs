//! raft-key-value: its cluster, and a client's connection to it.

mod cluster;
mod connection;

pub use cluster::{Metrics, OursCluster, OursOptions};
pub use connection::HttpConnection;
