//! What the benchmarks and the fault harness share.
//!
//! `process` starts and stops programs, `node` and `etcd` know how the two systems are started, `http` is a
//! client, `tls` has its certificates, and `document` puts figures into a document.

pub mod document;
pub mod etcd;
pub mod http;
pub mod node;
pub mod process;
pub mod tls;
