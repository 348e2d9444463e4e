//! Starts real nodes as child processes, and inspects them from outside.

mod cluster;
mod events;
mod eventually;
mod http;
mod links;
mod node;
mod peer;
mod process;
mod prover;
mod stand_in;
mod v1;
mod wire;
mod writers;

pub use cluster::{
    ALL, CALM, CALM_BUT_QUICK, OFTEN, STEADY, Slot, TestCluster, cluster_slot, index_of, make_certificates, others,
    report,
};
pub use events::{Event, Watch};
pub use eventually::{DEADLINE, eventually};
pub use http::{Answer, Http, Metrics, plain_client};
pub use links::Links;
pub use node::{TestNode, copy_directory, files_below};
pub use peer::{envelope, envelope_header, framed, identity_of};
pub use process::{BINARY, Ended, command, former_program, free_port, raise_open_files, run, send_signal};
pub use prover::Prover;
pub use stand_in::{StandIn, respond};
pub use v1::{Random, mib_of, path_of};
pub use wire::{Wire, WireResponse, connect_and_send, read_status};
pub use writers::{History, Writers};
