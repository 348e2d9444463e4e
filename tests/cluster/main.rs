//! Tests of whole nodes: the real binary, its processes, ports and directories.
//!
//! | module | question |
//! | --- | --- |
//! | [`harness`] | how tests start, stop and inspect nodes |
//! | [`test_cluster`] | does the demo work, and which node serves which request |
//! | [`restart`] | what survives kill, stop and pause |
//! | [`exit_codes`] | how a process exits, and what it reports |
//! | [`data_directory`] | can other users reach a node's files, or plant files |
//! | [`logging`] | does a node depend on the reader of its log |
//! | [`snapshots`] | does a node get entries that the logs no longer hold |
//! | [`backup`] | are snapshots whole, and what can be made of them and of stopped nodes |
//! | [`partition`] | how does a node behave when it is cut off from the others |
//! | [`outcomes`] | what does a response say about a request that failed halfway |
//! | [`disk_low`] | what does a cluster still serve while its disks are nearly full |
//! | [`health`] | do the probes say whether a node works and can serve requests |
//! | [`metrics`] | do the metrics say what a node does, whatever clients send |
//! | [`request_ids`] | can a request be followed by its id, and is a slow one explained |
//! | [`overload`] | which requests does an overloaded node reject |
//! | [`threads`] | which thread of a node does what |
//! | [`memory`] | how much memory can clients make a node hold |
//! | [`connections`] | do slow or numerous clients deprive others of service |
//! | [`founding`] | does a list found one cluster, however often and to whichever nodes it is sent |
//! | [`joining`] | does one command a node form a cluster, and never a second one |
//! | [`member_routes`] | do the routes of the members do what they say, and nothing harmful without force |
//! | [`members`] | which harmful membership changes are rejected, and which members can be removed |
//! | [`membership`] | which nodes can join or leave, and which are rejected |
//! | [`transfer`] | can the leadership be moved, and what do clients notice |
//! | [`leader_loss`] | which leaders are replaced without waiting for the election timeout |
//! | [`older_copy`] | does a node detect that its directory is an older copy |
//! | [`replace`] | what happens to a node that lost its disk |
//! | [`addresses`] | is a node detected whose address differs from the membership |
//! | [`forged`] | how much harm can a forged RPC do |
//! | [`watchers`] | do a thousand watches see every change once |
//! | [`cluster_status`] | does every node describe its cluster truly |
//! | [`compat`] | can a node use the data of an older version |
//! | [`upgrades`] | can nodes be upgraded one after another, and can that be undone |
//! | [`cli`] | what the client commands print, and how they exit |
//! | [`client`] | how `ExampleClient` handles failing nodes |
//! | [`kv`] | single keys: put, get, delete and their conditions |
//! | [`list`] | pages of keys, and deletion by prefix |
//! | [`txn`] | transactions: comparisons, all or nothing, one revision |
//! | [`time_to_live`] | do keys expire on time, whichever nodes die meanwhile |
//! | [`log_time`] | do TTLs follow true time, whatever the wall clocks show |
//! | [`self_check`] | does a cluster detect that a node's data differs from the leader's |
//! | [`idempotency`] | is a repeated request applied once |
//! | [`watch`] | does a watch deliver every change exactly once |
//! | [`tls`] | who can connect to a node that speaks TLS, and do peers prove who they are |
//! | [`auth`] | what can be done with each token, without one, and with a forged proof |
//! | [`browsers`] | what can a foreign web page do to a node |
//! | [`protocol`] | does a node speak HTTP/1.1 and 1.0 as clients and proxies expect |
//! | [`bad_input`] | does an invalid request do harm |
//! | [`openapi`] | does the description of the API match the server |
//! | [`bad_input`] | does anything that is not a valid request do harm |
//! | [`openapi`] | does the description of the API say what the server does |
//! | [`doctor`] | does `doctor` find each problem |
//! | [`documents`] | do the commands of the documents work, and do they print what is shown |
//!
//! A failing test prints the command lines and the logs of its nodes, and keeps their directories.

// The harness may use what `clippy.toml` allows in test functions.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod addresses;
mod auth;
mod backup;
mod bad_input;
mod browsers;
mod cli;
mod client;
mod cluster_status;
mod compat;
mod connections;
mod data_directory;
mod disk_low;
mod doctor;
mod documents;
mod exit_codes;
mod forged;
mod founding;
mod harness;
mod health;
mod idempotency;
mod joining;
mod kv;
mod leader_loss;
mod list;
mod log_time;
mod logging;
mod member_routes;
mod members;
mod membership;
mod memory;
mod metrics;
mod older_copy;
mod openapi;
mod outcomes;
mod overload;
mod partition;
mod proofs;
mod protocol;
mod quota;
mod replace;
mod request_ids;
mod restart;
mod self_check;
mod settings;
mod snapshots;
mod test_cluster;
mod threads;
mod time_to_live;
mod tls;
mod traces;
mod transfer;
mod txn;
mod upgrades;
mod watch;
mod watchers;
