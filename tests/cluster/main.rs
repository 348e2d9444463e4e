//! Tests of whole nodes: the real binary, its processes, ports and directories.
//!
//! | module | question |
//! | --- | --- |
//! | [`harness`] | how nodes are started, stopped and looked at |
//! | [`test_cluster`] | does the demo work, and who answers what |
//! | [`restart`] | what is left after kill, stop and pause |
//! | [`exit_codes`] | how a process ends, and what it says then |
//! | [`data_directory`] | who else can reach a node's files, and what do planted ones do |
//! | [`logging`] | does a node depend on who reads its log |
//! | [`snapshots`] | does a node get what the logs no longer have |
//! | [`partition`] | what does a node do that the others do not reach |
//! | [`outcomes`] | what is known when a request fails half-way |
//! | [`disk_low`] | what a cluster still does when its disks are nearly full |
//! | [`overload`] | who is refused when more comes than a node can do |
//! | [`threads`] | what runs on which thread of a node |
//! | [`memory`] | what do clients make a node hold |
//! | [`connections`] | what do clients that are slow, or too many, take from others |
//! | [`founding`] | does a list make one cluster, however often and to whichever nodes it is sent |
//! | [`members`] | which membership changes are rejected before they do harm, and who is removed |
//! | [`membership`] | who belongs to the cluster, and who is kept out |
//! | [`older_copy`] | does a node notice that its directory is an older copy |
//! | [`replace`] | what becomes of a node that lost its disk |
//! | [`addresses`] | is a node noticed that is not where the membership has it |
//! | [`forged`] | what can an RPC do that no node sent |
//! | [`watchers`] | do a thousand watches see every change once |
//! | [`compat`] | does a node go on with what a former version left |
//! | [`cli`] | what the commands print, and how they end |
//! | [`client`] | what `ExampleClient` does while nodes come and go |
//! | [`kv`] | one key of `/v1`: put, read, delete, and their conditions |
//! | [`list`] | pages of keys, and deletion by prefix |
//! | [`txn`] | transactions: comparisons, all or nothing, one revision |
//! | [`time_to_live`] | when keys expire, whatever dies meanwhile |
//! | [`log_time`] | do TTLs follow true time, whatever the wall clocks say |
//! | [`self_check`] | does a cluster notice that a node holds other data than the leader |
//! | [`idempotency`] | is a request that comes again done once |
//! | [`watch`] | does a watch see every change, and each once |
//! | [`browsers`] | what can a web page do with a node |
//! | [`protocol`] | does a node speak HTTP/1.1 and 1.0 as clients and proxies expect |
//! | [`bad_input`] | does anything that is not a valid request do harm |
//! | [`openapi`] | does the description of the API say what the server does |
//!
//! A failing test prints the command lines and the logs of its nodes, and keeps
//! their directories.

// What `clippy.toml` allows in test functions holds for the harness too.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod addresses;
mod bad_input;
mod browsers;
mod cli;
mod client;
mod compat;
mod connections;
mod data_directory;
mod disk_low;
mod exit_codes;
mod forged;
mod founding;
mod harness;
mod idempotency;
mod kv;
mod list;
mod log_time;
mod logging;
mod members;
mod membership;
mod memory;
mod older_copy;
mod openapi;
mod outcomes;
mod overload;
mod partition;
mod protocol;
mod replace;
mod restart;
mod self_check;
mod snapshots;
mod test_cluster;
mod threads;
mod time_to_live;
mod txn;
mod watch;
mod watchers;
