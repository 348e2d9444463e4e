//! RPCs as nodes send them to each other.

use raft_key_value::NodeId;
use raft_key_value::network::peer::{Envelope, Ids, PeerIdentity};
use raft_key_value::store::ClusterId;
use serde::Serialize;

use super::cluster::TestCluster;

/// A node's identity, as it tells other nodes.
pub async fn identity_of(cluster: &TestCluster, id: NodeId) -> PeerIdentity {
    let answer = cluster.http().get(cluster.addr(id), "/raft-identity").await.unwrap();
    serde_json::from_value(answer.ok().unwrap()).unwrap()
}

/// The body of an RPC to a node, from node `from` of a cluster.
pub fn envelope<T: Serialize>(from: NodeId, to: &PeerIdentity, cluster_id: ClusterId, rpc: T) -> Vec<u8> {
    let envelope = Envelope { cluster_id, from, to: to.node_id, to_incarnation: to.incarnation, rpc };
    rmp_serde::to_vec_named(&envelope).unwrap()
}

/// The header of an RPC to a node, from node `from` of a cluster.
pub fn envelope_header(from: NodeId, to: &PeerIdentity, cluster_id: ClusterId) -> String {
    Ids { cluster_id, from, to: to.node_id, to_incarnation: to.incarnation }.header()
}

/// The body of a snapshot RPC: the length of its head, the head, the file.
pub fn framed(head: Vec<u8>, file: &[u8]) -> Vec<u8> {
    [u32::try_from(head.len()).unwrap().to_be_bytes().as_slice(), &head, file].concat()
}
