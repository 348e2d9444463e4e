//! A replicated key-value store: three nodes, Raft, data on disk, plain HTTP.
//!
//! A program uses a cluster through [`ExampleClient`]. It can also run a node itself:
//!
//! ```no_run
//! use raft_key_value::{Config, ServeError, listen, serve_on};
//!
//! # async fn example() -> Result<(), ServeError> {
//! let config = Config::new(1, "127.0.0.1:21001");
//! let shutdown = async { drop(tokio::signal::ctrl_c().await) };
//! serve_on(listen(&config)?, config, shutdown).await
//! # }
//! ```
//!
//! Items that are not documented here serve this package's own program and tests, and may change.

// Imports point one way: bin → server → network → app → store → types → operation → body (tests/imports.rs).

#[doc(hidden)]
pub mod access; // Tokens as the log holds them.
mod agreement; // What other nodes count on, and whether this node's log has it.
#[doc(hidden)]
pub mod app; // The handles that all HTTP handlers share.
mod auth; // Which requests a node serves.
#[doc(hidden)]
pub mod body; // The bodies of the key-value API.
pub mod client;
#[doc(hidden)]
pub mod clock; // Log time, in which TTLs are counted.
mod compaction; // Snapshots and purges, by the length of the log and the free disk space.
pub mod config;
mod confirmations; // Confirmations of leadership that linearizable reads share.
mod connection; // Connections to nodes.
mod disk; // What the free disk space has room for.
#[doc(hidden)]
pub mod duration; // Durations as text.
pub mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing; // Every decoder of untrusted bytes.
#[doc(hidden)]
pub mod hash; // Hashes of the state.
#[doc(hidden)]
pub mod headers; // Names of HTTP headers.
#[doc(hidden)]
pub mod level; // What the log and the snapshots of a cluster may contain.
#[doc(hidden)]
pub mod network; // The routes, and the RPCs between nodes.
#[doc(hidden)]
pub mod node_status; // The status of a node.
#[doc(hidden)]
pub mod operation; // Writes as the log holds them.
mod peers; // What a node remembers of the RPCs that it received.
mod proofs; // Proofs of the root token between nodes.
pub mod secret;
#[doc(hidden)]
pub mod seeded_bug; // Bugs that test the fault harness, never in a release.
mod server; // A node from start to stop.
#[doc(hidden)]
pub mod store; // The data directory: log, vote, snapshots, identity.
#[doc(hidden)]
pub mod telemetry; // Logging.
#[doc(hidden)]
pub mod tls; // Certificates, keys, and what they prove.
#[doc(hidden)]
pub mod types; // Requests, responses, and the types that openraft is used with.

#[doc(hidden)]
pub use app::ExampleApp;
pub use client::{ClientError, ExampleClient};
pub use config::Config;
pub use server::{ServeError, listen, serve, serve_on};
#[doc(hidden)]
pub use store::{ExampleRaft, ExampleStateMachine, ExampleStore};
pub use tls::{ClientTls, TlsError};
pub use types::{ExampleNode, ExampleRequest, ExampleResponse, NodeId, TypeConfig};
/// The original's names for these two.
pub use types::{NodeId as ExampleNodeId, TypeConfig as ExampleTypeConfig};

/// Starts node `node_id` on `http_addr` (`HOST:PORT`) with the default settings, and runs it until it fails. Its data
/// is in `./raft-key-value-data/node-<id>`.
///
/// # Errors
///
/// See [`ServeError`].
pub async fn start_example_raft_node(node_id: NodeId, http_addr: impl Into<String>) -> Result<(), ServeError> {
    let config = Config::new(node_id, http_addr);
    serve_on(listen(&config)?, config, std::future::pending()).await
}

/// The examples of the documents compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[doc = include_str!("../docs/client.md")]
struct Documents;
