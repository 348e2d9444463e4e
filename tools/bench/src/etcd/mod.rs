//! etcd: its cluster, and a client's connection to it.

mod cluster;
mod connection;
mod messages;

pub use cluster::EtcdCluster;
pub use connection::{GrpcConnection, connections_for};
