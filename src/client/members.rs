//! Membership changes by the key-value API.

use reqwest::Method;

use super::request::{Effect, Request, decode};
use super::{ClientError, ExampleClient};
use crate::body::{AddMember, MemberChanged, MemberRemoved, ReplaceMember};
use crate::config::{FORWARD_DEADLINE, MEMBERSHIP_DEADLINE};
use crate::types::NodeId;

/// How a membership change is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemberOptions {
    /// Return what would happen, and change nothing.
    pub dry_run: bool,
    /// Make the change in spite of its risk, which the response names: that no write succeeds until enough nodes are
    /// back, or that no further node may fail.
    pub force: bool,
}

impl MemberOptions {
    fn query(self) -> &'static str {
        match (self.dry_run, self.force) {
            (false, false) => "",
            (true, false) => "?dry_run",
            (false, true) => "?force",
            (true, true) => "?dry_run&force",
        }
    }
}

impl ExampleClient {
    /// Adds a running node, which becomes a voter once it has all data, unless its role is `learner`.
    ///
    /// Returns within about 20 s. If [`done`](MemberChanged::done) is false, the same call continues; it is retried like a
    /// read, since repeating it is safe.
    ///
    /// # Errors
    ///
    /// [`ClientError::Rejected`] with the code `conflict` if the change would be harmful.
    pub async fn add_member(&self, member: &AddMember, options: MemberOptions) -> Result<MemberChanged, ClientError> {
        let request = self.change("/v1/cluster/members", options).json(member)?;
        Ok(self.ask(None, &request).await?.0)
    }

    /// Makes a learner a voter. See [`add_member`](Self::add_member).
    ///
    /// # Errors
    ///
    /// See [`add_member`](Self::add_member); also with the code `member_not_found`.
    pub async fn promote_member(&self, id: NodeId, options: MemberOptions) -> Result<MemberChanged, ClientError> {
        let request = self.change(&format!("/v1/cluster/members/{id}/promote"), options);
        Ok(self.ask(None, &request).await?.0)
    }

    /// Puts a running node in the place of a member. See [`add_member`](Self::add_member).
    ///
    /// # Errors
    ///
    /// See [`promote_member`](Self::promote_member).
    pub async fn replace_member(
        &self,
        id: NodeId,
        by: &ReplaceMember,
        options: MemberOptions,
    ) -> Result<MemberChanged, ClientError> {
        let request = self.change(&format!("/v1/cluster/members/{id}/replace"), options).json(by)?;
        Ok(self.ask(None, &request).await?.0)
    }

    /// Removes a member. Sent once: after a lost response, the member may or may not be removed.
    ///
    /// # Errors
    ///
    /// See [`promote_member`](Self::promote_member).
    pub async fn remove_member(&self, id: NodeId, options: MemberOptions) -> Result<MemberRemoved, ClientError> {
        let mut request = self.change(&format!("/v1/cluster/members/{id}"), options);
        request.method = Method::DELETE;
        let mut endpoints_left = self.nodes.len();
        loop {
            let (_, addr) = self.leader();
            endpoints_left -= 1;
            match self.exchange(&addr, &request).await {
                // Nothing was sent.
                Err(ClientError::Unreachable { .. }) if endpoints_left > 0 => self.turn_from(&addr),
                answer => return decode(&answer?, &request),
            }
        }
    }

    fn change(&self, path: &str, options: MemberOptions) -> Request {
        let deadline = self.deadline.max(MEMBERSHIP_DEADLINE + FORWARD_DEADLINE);
        Request::new(Method::POST, format!("{path}{}", options.query()), Effect::Changes, deadline)
    }
}
