//! A replicated key-value store in one binary: three nodes, Raft, data on disk,
//! plain HTTP.
//!
//! | module | job |
//! | --- | --- |
//! | [`config`] | every setting, default and limit |
//! | [`types`] | requests, responses, and what Raft works on |
//! | [`body`] | the bodies of the key-value API |
//! | [`operation`] | writes as the log holds them |
//! | [`hash`] | hashes of the replicated state |
//! | [`store`] | the data directory: log, vote, snapshots, identity |
//! | [`clock`] | log time: what leaders stamp entries with, and TTLs are counted in |
//! | [`app`] | the handles that all HTTP handlers share |
//! | [`network`] | the routes, and the RPCs between nodes |
//! | [`server`] | a node from start to stop |
//! | [`client`] | [`ExampleClient`], which follows the leader |
//! | [`connection`] | how nodes are dialled |
//! | [`telemetry`] | logging |
//! | [`error`] | error, status and outcome of a request |
//! | [`headers`] | the names of HTTP headers |
//! | [`seeded_bug`] | bugs that test the tests, never in a release |
//!
//! Imports point one way: `bin → server → network → app → store → types → operation → body` (`tests/imports.rs`).

pub mod agreement;
pub mod app;
pub mod body;
pub mod client;
pub mod clock;
pub mod compaction;
pub mod config;
pub mod confirmations;
pub mod connection;
pub mod disk;
pub mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod hash;
pub mod headers;
pub mod network;
pub mod operation;
pub mod peers;
pub mod seeded_bug;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod types;

pub use app::ExampleApp;
pub use client::{ClientError, ExampleClient};
pub use config::Config;
pub use server::{ServeError, listen, serve, serve_on};
pub use store::{ExampleRaft, ExampleStateMachine, ExampleStore};
pub use types::{ExampleNode, ExampleRequest, ExampleResponse, NodeId, TypeConfig};
/// The original's names for these two.
pub use types::{NodeId as ExampleNodeId, TypeConfig as ExampleTypeConfig};

/// Starts node `node_id` on `http_addr` (`HOST:PORT`) with all defaults, and
/// runs it until it fails; data goes to `./raft-key-value-data/node-<id>`.
///
/// # Errors
///
/// See [`ServeError`].
pub async fn start_example_raft_node(node_id: NodeId, http_addr: impl Into<String>) -> Result<(), ServeError> {
    let config = Config::new(node_id, http_addr);
    serve_on(listen(&config)?, config, std::future::pending()).await
}
