//! The target of a load: the leader of either system, through one interface.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::etcd::GrpcConnection;
use crate::ours::HttpConnection;

/// Size of every value that is written, in bytes.
pub const VALUE_BYTES: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum System {
    Ours,
    /// Another binary of raft-key-value.
    #[value(skip)]
    Former,
    Etcd,
}

impl System {
    pub fn name(self) -> &'static str {
        match self {
            System::Ours => "raft-key-value",
            System::Former => "former",
            System::Etcd => "etcd",
        }
    }
}

/// The leader, in its own system's numbering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leader {
    pub id: u64,
    pub term: u64,
    /// Where it accepts clients.
    pub address: SocketAddr,
}

#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub system: System,
    /// The leader's address for clients; with raft-key-value it may be any node's.
    pub leader: SocketAddr,
    /// Number of connections that the clients share; with HTTP/1.1, one per client.
    pub connections: usize,
}

/// A closed-loop client's connection to the leader.
pub enum Connection {
    Http(HttpConnection),
    Grpc(GrpcConnection),
}

impl Target {
    /// The leader of raft-key-value, for `clients` clients with a connection each.
    pub fn ours(leader: Leader, clients: usize) -> Self {
        Self::our_node(leader.address, clients)
    }

    /// Any node of raft-key-value, which forwards requests that need the leader.
    pub fn our_node(address: SocketAddr, clients: usize) -> Self {
        Self { system: System::Ours, leader: address, connections: clients }
    }

    /// Connects `clients` clients, spread evenly over the connections.
    pub async fn connect_all(&self, clients: usize) -> Result<Vec<Connection>> {
        let mut connections = Vec::with_capacity(clients);
        for client in 0..clients {
            let shared = client.checked_sub(self.connections).map(|first| &connections[first]);
            connections.push(match shared {
                Some(Connection::Grpc(grpc)) => Connection::Grpc(grpc.clone()),
                _ => self.connect().await?,
            });
        }
        Ok(connections)
    }

    pub async fn connect(&self) -> Result<Connection> {
        Ok(match self.system {
            System::Ours | System::Former => Connection::Http(HttpConnection::connect(self.leader).await?),
            System::Etcd => Connection::Grpc(GrpcConnection::connect(self.leader).await?),
        })
    }
}

impl Connection {
    pub async fn write(&mut self, key: &str, value: &'static str) -> Result<()> {
        match self {
            Connection::Http(http) => http.write(key, value).await,
            Connection::Grpc(grpc) => {
                let key = Bytes::copy_from_slice(key.as_bytes());
                grpc.put(key, Bytes::from_static(value.as_bytes())).await
            }
        }
    }

    /// A linearizable read of a key that was written before.
    pub async fn read(&mut self, key: &str) -> Result<()> {
        let value = match self {
            Connection::Http(http) => http.consistent_read(key).await?,
            Connection::Grpc(grpc) => grpc.range(Bytes::copy_from_slice(key.as_bytes())).await?,
        };
        ensure!(value.len() == VALUE_BYTES, "read {} bytes of {key}, but {VALUE_BYTES} were written", value.len());
        Ok(())
    }

    /// The connection to raft-key-value, for the workloads that only it supports.
    pub fn http(&mut self) -> &mut HttpConnection {
        match self {
            Connection::Http(http) => http,
            Connection::Grpc(_) => unreachable!("only raft-key-value gets these workloads"),
        }
    }

    pub fn is_closed(&self) -> bool {
        match self {
            Connection::Http(http) => http.is_closed(),
            Connection::Grpc(grpc) => grpc.is_closed(),
        }
    }
}
