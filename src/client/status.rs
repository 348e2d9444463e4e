//! The status of the cluster and of its nodes.

use reqwest::Method;

use super::request::{Effect, Request};
use super::{ClientError, ExampleClient};
use crate::body::ClusterAnswer;
use crate::node_status::NodeStatus;

impl ExampleClient {
    /// The members of the cluster with the state of each, from one node.
    pub async fn cluster(&self) -> Result<ClusterAnswer, ClientError> {
        let request = Request::new(Method::GET, "/v1/cluster", Effect::ReadsOnly, self.deadline);
        let (answer, _) = self.ask(None, &request).await?;
        Ok(answer)
    }

    /// The id of the cluster of the first node that responded to this client, if it belongs to one.
    #[doc(hidden)]
    pub fn cluster_id(&self) -> Option<String> {
        self.cluster.get().cloned()
    }

    /// The status of one node.
    #[doc(hidden)]
    pub async fn node_status(&self) -> Result<NodeStatus, ClientError> {
        let request = &Request::new(Method::GET, "/raft-status", Effect::ReadsOnly, self.deadline);
        self.with_retries(|_| self.send(request)).await
    }
}
