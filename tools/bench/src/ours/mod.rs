//! raft-key-value: its cluster, and a client's connection to it.

mod cluster;
mod connection;

pub use cluster::{OursCluster, OursOptions};
pub use connection::{HttpConnection, use_tls, use_token};
