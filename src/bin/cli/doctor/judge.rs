//! The findings about a cluster, a pure function of the status of its nodes.
//!
//! A member that this command cannot reach does not count as down while it responds to the leader.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raft_key_value::body::MemberRole;
use raft_key_value::node_status::{KnownFollower, KnownMember, NodeStatus};
use serde::Serialize;

use super::collect::{Answer, Seen};

/// Lag above which a follower is behind. A busy follower is behind by milliseconds, and one that was just elected out of
/// a leader by at most an election.
const LAG_MS_MAX: u64 = 2000;
/// Silence above which the leader does not hear from a follower: as many heartbeats. It takes more than one lost packet.
const SILENT_HEARTBEATS_MAX: u64 = 10;
/// Margin for the time that the requests of this command take.
const SILENCE_MARGIN_MS: u64 = 100;
/// The heartbeat interval to assume of a node that does not report it: the default of a node.
const HEARTBEAT_MS_DEFAULT: u64 = 100;
/// Difference of two wall clocks above which they are apart. Synchronized clocks differ by milliseconds, and TTLs are
/// counted in hundreds of them; log lines of two nodes can still be put in order up to here.
const CLOCKS_APART_MS_MAX: u64 = 1000;
/// Days before the expiry of a certificate from which on it must be renewed.
const CERTIFICATE_DAYS_MIN: i64 = 30;
/// Free space is short below this multiple of what a node needs to accept writes: half of what is free is left then.
const DISK_FREE_TIMES: u64 = 2;

/// Hundredths of the quota above which it is nearly used up.
const QUOTA_PERCENT_MAX: u64 = 80;
/// How long a rejected write shows that the quota is used up: a client that cannot write may try again after a while.
const QUOTA_REJECTED_MS_MAX: u64 = 60_000;

/// How urgent a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is wrong, or not for long.
    Info,
    /// The cluster serves requests, and something must be done.
    Warning,
    /// The cluster does not serve requests, or soon will not.
    Critical,
}

impl Severity {
    pub fn name(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// A problem of a cluster, or a fact that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// Stable, for programs.
    pub code: &'static str,
    /// The ids of the nodes concerned.
    pub nodes: Vec<u64>,
    /// The observation, with figures.
    pub seen: String,
    /// What the operator should do.
    pub advice: String,
}

/// For how long a leader that does not hear from a member may count it as present, with a margin.
pub fn silence_max(seen: &[Seen]) -> Duration {
    let leaders = seen.iter().filter_map(Seen::status).filter(|status| status.leads());
    let silence_ms = leaders.map(silence_ms_max).max().unwrap_or_default();
    Duration::from_millis(silence_ms.saturating_add(SILENCE_MARGIN_MS))
}

fn silence_ms_max(leader: &NodeStatus) -> u64 {
    leader.heartbeat_interval_ms.unwrap_or(HEARTBEAT_MS_DEFAULT).saturating_mul(SILENT_HEARTBEATS_MAX)
}

/// Returns the findings, the most urgent first.
pub fn judge(seen: &[Seen]) -> Vec<Finding> {
    let mut findings = Findings::default();
    if !seen.iter().any(|seen| seen.status().is_some()) {
        findings.no_node_responds(seen);
        return findings.0;
    }
    let clusters: BTreeSet<&str> = seen.iter().filter_map(Seen::cluster_id).collect();
    if clusters.len() > 1 {
        findings.two_clusters(seen, &clusters);
    }
    for cluster_id in &clusters {
        if let Some(cluster) = Cluster::of(cluster_id, seen) {
            findings.judge_cluster(&cluster);
        }
    }
    // Nodes of the first versions do not name their cluster.
    if clusters.is_empty()
        && let Some(cluster) = Cluster::of("", seen)
    {
        findings.judge_cluster(&cluster);
    }
    findings.judge_addresses(seen);
    findings.disks(seen);
    findings.quotas(seen);
    findings.clocks(seen);
    findings.certificates(seen);
    findings.versions(seen);
    findings.0.sort_by(|one, other| other.severity.cmp(&one.severity).then(one.code.cmp(other.code)));
    findings.0
}

/// One cluster, as its nodes describe it.
struct Cluster<'a> {
    seen: &'a [Seen],
    /// The nodes that responded and belong to it, each once.
    nodes: BTreeMap<u64, (&'a Seen, &'a NodeStatus)>,
    /// The node that leads, if one does.
    leader: Option<&'a NodeStatus>,
    /// The members, as the leader has them; without a leader, as the node with the newest log has them.
    members: &'a [KnownMember],
}

/// A member, as this command found it.
enum Presence<'a> {
    /// It responds at its address.
    Here(&'a NodeStatus),
    /// It responds at another address.
    Elsewhere(&'a NodeStatus, &'a Seen),
    /// A node with its id and another data directory responds at its address.
    OtherDirectory(&'a NodeStatus),
    /// Another node responds at its address.
    OtherNode(&'a NodeStatus),
    /// Nothing responds, or no node; with the reason.
    Silent(&'a str),
}

impl<'a> Cluster<'a> {
    fn of(cluster_id: &str, seen: &'a [Seen]) -> Option<Self> {
        let mut nodes = BTreeMap::new();
        for it in seen.iter().filter(|it| it.cluster_id().unwrap_or_default() == cluster_id) {
            if let Some(status) = it.status() {
                nodes.entry(status.node).or_insert((it, status));
            }
        }
        let statuses = || nodes.values().map(|(_, status)| *status);
        let leader = statuses().filter(|status| status.leads()).max_by_key(|status| status.term);
        let newest = statuses().max_by_key(|status| (status.term, status.last_log_index));
        let members = leader.or(newest)?.members.as_slice();
        (!members.is_empty()).then_some(Cluster { seen, nodes, leader, members })
    }

    fn presence(&self, member: &KnownMember) -> Presence<'a> {
        let is_it = |status: &NodeStatus| {
            let is_same = member.incarnation == 0 || [0, member.incarnation].contains(&status.incarnation);
            status.node == member.id && is_same
        };
        let at_address = self.seen.iter().find(|seen| seen.address == member.address);
        if let Some(status) = at_address.and_then(Seen::status).filter(|status| is_it(status)) {
            return Presence::Here(status);
        }
        let elsewhere = self.seen.iter().find(|seen| seen.status().is_some_and(is_it));
        // An endpoint may be another name for the address of the membership.
        if let Some((seen, status)) = elsewhere.and_then(|seen| Some((seen, seen.status()?))) {
            let is_advertised = status.address.as_ref().is_none_or(|address| *address == member.address);
            return if is_advertised { Presence::Here(status) } else { Presence::Elsewhere(status, seen) };
        }
        match at_address.map(|seen| &seen.answer) {
            Some(Answer::Node(status)) if status.node == member.id => Presence::OtherDirectory(status),
            Some(Answer::Node(status)) => Presence::OtherNode(status),
            Some(Answer::NotANode(reason) | Answer::Silent(reason)) => Presence::Silent(reason),
            None => Presence::Silent("it was not asked"),
        }
    }

    /// What the leader knows of a member.
    fn follower(&self, id: u64) -> Option<&'a KnownFollower> {
        self.leader.and_then(|leader| leader.follower(id))
    }

    /// Whether the leader has just heard from a member, or is it.
    fn leader_hears(&self, id: u64) -> bool {
        let Some(leader) = self.leader else { return false };
        let silent_ms = self.follower(id).and_then(|follower| follower.silent_ms);
        leader.node == id || silent_ms.is_some_and(|silent_ms| silent_ms <= silence_ms_max(leader))
    }

    /// Whether a member takes part: the leader hears from it or, without a leader, it responds.
    fn is_present(&self, member: &KnownMember) -> bool {
        match (self.leader, self.follower(member.id)) {
            // Leaders of older versions do not say when they heard from it.
            (Some(leader), Some(_)) if leader.version.is_some() => self.leader_hears(member.id),
            (Some(leader), None) if leader.node == member.id => true,
            _ => matches!(self.presence(member), Presence::Here(_)),
        }
    }

    fn is_behind(&self, id: u64) -> bool {
        self.follower(id).is_some_and(|follower| follower.lag_entries.is_none() || follower.lag_ms > Some(LAG_MS_MAX))
    }

    fn voters(&self) -> impl Iterator<Item = &'a KnownMember> {
        self.members.iter().filter(|member| member.role != MemberRole::Learner)
    }
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        nodes: impl IntoIterator<Item = u64>,
        seen: impl Into<String>,
        advice: impl Into<String>,
    ) {
        let nodes = nodes.into_iter().collect();
        self.0.push(Finding { severity, code, nodes, seen: seen.into(), advice: advice.into() });
    }

    fn no_node_responds(&mut self, seen: &[Seen]) {
        let silent = seen.iter().map(|seen| match &seen.answer {
            Answer::Node(_) => String::new(),
            Answer::NotANode(reason) | Answer::Silent(reason) => format!("{}: {reason}", seen.address),
        });
        let advice = "start the nodes; check --endpoints, and the network between this machine and the nodes";
        let seen = format!("none of the endpoints responds as a node: {}", joined(silent));
        self.add(Severity::Critical, "no_node_responds", [], seen, advice);
    }

    fn two_clusters(&mut self, seen: &[Seen], clusters: &BTreeSet<&str>) {
        let listed = clusters.iter().map(|cluster_id| {
            let nodes = seen.iter().filter(|seen| seen.cluster_id() == Some(cluster_id));
            let nodes = nodes.filter_map(|seen| Some(format!("node {} at {}", seen.status()?.node, seen.address)));
            format!("cluster {cluster_id} has {}", joined(nodes))
        });
        let advice = "a client that uses both reads and writes different data: correct --endpoints; if the nodes were \
                      meant to be one cluster, decide which data to keep, and add the others to it with empty data \
                      directories";
        let seen = format!("the endpoints belong to {} clusters: {}", clusters.len(), joined(listed));
        self.add(Severity::Critical, "two_clusters", [], seen, advice);
    }

    fn judge_cluster(&mut self, cluster: &Cluster) {
        match cluster.leader {
            None => self.no_leader(cluster),
            Some(leader) => {
                self.spare_voters(cluster, leader);
                self.disputes(cluster, leader);
            }
        }
        for member in cluster.members {
            self.judge_member(cluster, member);
        }
        if let Some(leader) = cluster.leader {
            for (seen, status) in cluster.nodes.values().filter(|(_, status)| leader.member(status.node).is_none()) {
                self.not_a_member(seen, status, leader);
            }
        }
        self.cut_off(cluster);
    }

    fn no_leader(&mut self, cluster: &Cluster) {
        let voters: Vec<&KnownMember> = cluster.voters().collect();
        let needed = voters.len() / 2 + 1;
        let (mut listed, mut present, mut absent) = (Vec::new(), 0, Vec::new());
        for voter in &voters {
            let (id, address) = (voter.id, &voter.address);
            listed.push(match cluster.presence(voter) {
                Presence::Here(status) => {
                    present += 1;
                    let view = match status.leader {
                        Some(leader) => format!("takes node {leader} for the leader"),
                        None => "knows no leader".to_owned(),
                    };
                    let last = status.last_log_index.map(|index| format!(", log up to {index}")).unwrap_or_default();
                    format!("node {id} responds, and {view} in term {}{last}", status.term)
                }
                other => {
                    absent.push(id);
                    format!("node {id} at {address}: {}", other.described())
                }
            });
        }
        let seen = format!(
            "no node leads, so the cluster serves no writes and no linearizable reads; {needed} of {} voters must elect a \
             leader, and {present} respond: {}",
            voters.len(),
            joined(listed)
        );
        let advice = if present < needed {
            format!(
                "start enough of nodes {} on their data directories; if they are lost for good, see \"A majority is \
                 lost\" in docs/operations.md",
                numbers(&absent)
            )
        } else {
            "if it lasts longer than a few election timeouts: the voters respond to this command, but probably not to \
             each other; check the addresses in the membership and the network between the nodes, and read their logs"
                .to_owned()
        };
        self.add(Severity::Critical, "no_leader", absent, seen, advice);
    }

    /// How many voters may still fail.
    fn spare_voters(&mut self, cluster: &Cluster, leader: &NodeStatus) {
        let voters: Vec<&KnownMember> = cluster.voters().collect();
        let needed = voters.len() / 2 + 1;
        let is_well =
            |voter: &&KnownMember| voter.id == leader.node || cluster.is_present(voter) && !cluster.is_behind(voter.id);
        let (well, unwell): (Vec<&KnownMember>, Vec<&KnownMember>) = voters.iter().copied().partition(is_well);
        let unwell: Vec<u64> = unwell.iter().map(|voter| voter.id).collect();
        if voters.len() <= 2 {
            let severity = if voters.len() == 1 { Severity::Info } else { Severity::Warning };
            let seen = format!(
                "the cluster has {}, and serves nothing once {} fails",
                if voters.len() == 1 { "1 voter" } else { "2 voters" },
                if voters.len() == 1 { "it" } else { "one of them" }
            );
            let advice = "add nodes until there are 3 voters, of which one may fail";
            return self.add(severity, "no_fault_tolerance", [], seen, advice);
        }
        if well.len() <= needed {
            let seen = format!(
                "{} of {} voters respond to the leader and are caught up, and {needed} are needed: if one more fails, the \
                 cluster serves no writes",
                well.len(),
                voters.len()
            );
            let plural = if unwell.len() == 1 { "" } else { "s" };
            let advice =
                format!("repair or replace node{plural} {} now, and stop no other node until then", numbers(&unwell));
            self.add(Severity::Warning, "no_spare_voter", unwell, seen, advice);
        }
    }

    /// Members that have another leader than the one in the newest term.
    fn disputes(&mut self, cluster: &Cluster, leader: &NodeStatus) {
        for (seen, status) in cluster.nodes.values() {
            let id = status.node;
            if status.leader == Some(leader.node) || leader.member(id).is_none() {
                continue;
            }
            let view = match status.leader {
                Some(other) if other == id => format!("believes that it leads in term {}", status.term),
                Some(other) => format!("takes node {other} for the leader in term {}", status.term),
                None => format!("knows no leader in term {}", status.term),
            };
            let seen = format!(
                "node {id} at {} {view}, while node {} leads in term {}",
                seen.address, leader.node, leader.term
            );
            let advice = format!(
                "nothing, if an election is in progress; if it lasts, node {id} cannot exchange messages with node {}: \
                 check the network between them, and the address of node {id} in the membership",
                leader.node
            );
            self.add(Severity::Warning, "leader_disputed", [id], seen, advice);
        }
    }

    fn judge_member(&mut self, cluster: &Cluster, member: &KnownMember) {
        let (id, address) = (member.id, &member.address);
        let presence = cluster.presence(member);
        match presence {
            Presence::Here(status) if status.is_older() => {}
            Presence::Here(status) if !status.is_member => {
                let seen = format!("node {id} at {address} is a member, and does not know it: {}", self_image(status));
                let advice = format!(
                    "it learns of it with the next entries; if it does not, check that the leader reaches {address}, and \
                     read the log of node {id}"
                );
                self.add(Severity::Warning, "member_unaware", [id], seen, advice);
            }
            Presence::Here(_) => {}
            Presence::Elsewhere(status, seen) => {
                let advertised = status.address.as_deref().unwrap_or(&seen.address);
                let seen = format!(
                    "node {id} runs at {} and advertises {advertised}, but the membership has it at {address}, where \
                     the other nodes look for it",
                    seen.address
                );
                let advice = format!(
                    "wait a few seconds: it reports its new address, and the leader commits it; if it does not, see \"Move a \
                     node\" in docs/operations.md, or start it with --advertise-addr {address} if that address leads to it"
                );
                self.add(Severity::Warning, "moved", [id], seen, advice);
            }
            Presence::OtherDirectory(status) => {
                let seen = format!(
                    "node {id} at {address} is a member, but runs on another data directory than it joined with, and is \
                     rejected, since it may have forgotten its votes: {}",
                    self_image(status)
                );
                let advice = "see \"Replace a node\" in docs/operations.md; if its directory still exists, start it with \
                              that --data-dir";
                self.add(Severity::Warning, "member_unaware", [id], seen, advice);
            }
            Presence::OtherNode(status) => {
                let seen = format!("at {address}, where the membership has node {id}, runs node {}", status.node);
                let advice = format!("start node {id} there, and node {} at its own address", status.node);
                self.add(Severity::Warning, "wrong_node", [id, status.node], seen, advice);
            }
            Presence::Silent(_) => {}
        }
        match presence {
            Presence::Silent(reason) if cluster.leader_hears(id) => {
                let seen = format!(
                    "node {id} at {address} does not respond to this command ({reason}), but it does respond to the leader"
                );
                let advice = "nothing, if clients need not reach the addresses of the membership from this machine";
                self.add(Severity::Info, "unreachable_from_here", [id], seen, advice);
            }
            Presence::Silent(reason) => self.member_down(cluster, member, reason),
            _ => {}
        }
        if let Presence::Here(status) = presence {
            self.lag(cluster, member, status);
        }
    }

    fn member_down(&mut self, cluster: &Cluster, member: &KnownMember, reason: &str) {
        let (id, address) = (member.id, &member.address);
        let follower = cluster.follower(id);
        let is_never = |follower: &KnownFollower| follower.lag_entries.is_none() && follower.silent_ms.is_none();
        if let (Some(leader), true) = (cluster.leader, follower.is_some_and(is_never)) {
            let seen = format!(
                "node {id} at {address} does not respond ({reason}), and has not responded to node {} since that became the leader \
                 in term {}",
                leader.node, leader.term
            );
            let advice = format!(
                "start it if it should run, and check that {address} is its address; remove it if it is not needed: see \
                 \"Remove a node\" in docs/operations.md"
            );
            return self.add(Severity::Warning, "never_reached", [id], seen, advice);
        }
        let silent = follower.and_then(|follower| follower.silent_ms);
        let silent = silent.map(|ms| format!(", nor to the leader for {}", duration(ms))).unwrap_or_default();
        let lag = follower.and_then(lag_of).map(|lag| format!("; it lacks {lag}")).unwrap_or_default();
        let role = if member.role == MemberRole::Learner { "a learner" } else { "a voter" };
        let seen = format!("node {id} at {address}, {role}, does not respond ({reason}){silent}{lag}");
        let advice =
            format!("start node {id} again; if its disk is lost, see \"Replace a node\" in docs/operations.md");
        self.add(Severity::Warning, "member_down", [id], seen, advice);
    }

    /// Whether a member that responds is behind, and why.
    fn lag(&mut self, cluster: &Cluster, member: &KnownMember, status: &NodeStatus) {
        let (Some(leader), Some(follower)) = (cluster.leader, cluster.follower(member.id)) else { return };
        if !cluster.is_behind(member.id) || leader.version.is_none() {
            return;
        }
        let id = member.id;
        let lag = lag_of(follower).unwrap_or_else(|| "everything, as far as the leader knows".to_owned());
        let is_exhausted = |status: &NodeStatus| {
            status.disk_free_bytes.zip(status.disk_low_bytes).is_some_and(|(free, low)| free < low)
        };
        let is_slow =
            |status: &NodeStatus| status.sync_times().is_some_and(|(p99_ms, heartbeat_ms)| p99_ms >= heartbeat_ms);
        let (why, advice) = if is_exhausted(status) {
            let advice = format!("free some space on the disk of node {id}");
            ("its disk has too little space to accept entries".to_owned(), advice)
        } else if !cluster.leader_hears(id) {
            let silent = match follower.silent_ms {
                Some(ms) => format!("has not heard from it for {}", duration(ms)),
                None => "has never heard from it".to_owned(),
            };
            let advice = format!(
                "check the network between nodes {} and {id}, and that {} leads to node {id} from there",
                leader.node, member.address
            );
            (format!("the leader, node {}, {silent}, while this command reaches it", leader.node), advice)
        } else if is_slow(status) {
            let advice = format!("use a faster disk for node {id}, or move other load away from it");
            ("its disk is slow".to_owned(), advice)
        } else if follower.lag_entries.is_none() {
            let advice = format!(
                "wait, and repeat this command; if nothing changes, read the logs of nodes {} and {id}",
                leader.node
            );
            ("it is being sent a snapshot, or it rejects what the leader sends".to_owned(), advice)
        } else {
            let advice = format!(
                "wait, if it has just started; otherwise compare its processor, disk and network with those of node {}",
                leader.node
            );
            ("it responds, but gets entries more slowly than the leader appends them".to_owned(), advice)
        };
        let seen = format!("node {id} at {} lacks {lag}: {why}", member.address);
        self.add(Severity::Warning, "member_lags", [id], seen, advice);
    }

    fn not_a_member(&mut self, seen: &Seen, status: &NodeStatus, leader: &NodeStatus) {
        let id = status.node;
        if status.is_older() {
            return;
        }
        let advice =
            format!("stop node {id}; to use the machine again, delete its data directory and add it as a new node");
        if status.is_member {
            let seen = format!(
                "node {id} at {} believes that it is a member, but the membership of the leader, node {}, does not have \
                 it: it was removed while it was down or isolated",
                seen.address, leader.node
            );
            self.add(Severity::Warning, "not_a_member", [id], seen, advice);
        } else {
            let seen = format!("node {id} at {} was removed from the cluster, and still runs", seen.address);
            self.add(Severity::Info, "removed_node", [id], seen, advice);
        }
    }

    /// Members that another member does not reach, although this command does.
    fn cut_off(&mut self, cluster: &Cluster) {
        for (seen, status) in cluster.nodes.values() {
            let Some(view) = &seen.view else { continue };
            let unreached = view.members.iter().filter(|row| !row.reachable).filter_map(|row| {
                let member = cluster.members.iter().find(|member| member.id == row.id)?;
                // A node without the status route tells nothing about itself to others either.
                matches!(cluster.presence(member), Presence::Here(_)).then_some(member)
            });
            for member in unreached {
                let (from, to, address) = (status.node, member.id, &member.address);
                let seen = format!("node {from} does not reach node {to} at {address}, but this command does");
                let advice = format!(
                    "check the network and the firewall from node {from} to {address}, and that the name means the same \
                     machine there; a node that is paused or overloaded can be the cause, too"
                );
                self.add(Severity::Warning, "cut_off", [from, to], seen, advice);
            }
        }
    }

    /// Addresses that have no node, and nodes without a cluster.
    fn judge_addresses(&mut self, seen: &[Seen]) {
        let members = seen.iter().filter_map(Seen::status).flat_map(|status| &status.members);
        let member_ids: BTreeMap<&str, u64> = members.map(|member| (member.address.as_str(), member.id)).collect();
        for it in seen {
            let is_member = member_ids.contains_key(it.address.as_str());
            match &it.answer {
                Answer::Silent(reason) if !is_member => {
                    let seen = format!(
                        "the endpoint {}, which is no member's address, does not respond: {reason}",
                        it.address
                    );
                    self.add(
                        Severity::Info,
                        "endpoint_down",
                        [],
                        seen,
                        "remove it from --endpoints, or start its node",
                    );
                }
                Answer::NotANode(reason) => {
                    let seen = format!("the server at {} is not a node of this program: {reason}", it.address);
                    let advice = "correct --endpoints or the address of the member; see who uses the port";
                    self.add(
                        Severity::Warning,
                        "not_a_node",
                        member_ids.get(it.address.as_str()).copied(),
                        seen,
                        advice,
                    );
                }
                Answer::Node(status) if status.cluster_id.is_none() && !status.is_older() && !is_member => {
                    let seen = format!("node {} at {} belongs to no cluster", status.node, it.address);
                    let advice =
                        "form a cluster of it, or add it to one: see \"Deploy\" and \"Grow\" in docs/operations.md";
                    self.add(Severity::Info, "no_cluster", [status.node], seen, advice);
                }
                _ => {}
            }
        }
    }

    fn disks(&mut self, seen: &[Seen]) {
        for status in statuses(seen) {
            let id = status.node;
            if let (Some(free), Some(low)) = (status.disk_free_bytes, status.disk_low_bytes) {
                let numbers = format!("node {id} has {} free on its disk", bytes(free));
                let advice =
                    "delete keys, free some space, or use a larger disk: see \"Disk space\" in docs/operations.md";
                if free < low {
                    let seen = format!(
                        "{numbers}, and needs {}, including its next snapshot: as leader it rejects writes that store data",
                        bytes(low)
                    );
                    self.add(Severity::Critical, "disk_low", [id], seen, advice);
                } else if free < low.saturating_mul(DISK_FREE_TIMES) {
                    let seen = format!("{numbers}, and will reject writes that store data below {}", bytes(low));
                    self.add(Severity::Warning, "disk_low", [id], seen, advice);
                }
            }
            if let Some((p99_ms, heartbeat_ms)) = status.sync_times()
                && p99_ms >= heartbeat_ms
            {
                let election_ms = status.election_timeout_ms.unwrap_or(u64::MAX);
                let severity = if p99_ms >= election_ms { Severity::Critical } else { Severity::Warning };
                let seen = format!(
                    "the slowest hundredth of the syncs of node {id} took {} or more in the last minute; the heartbeat \
                     interval is {heartbeat_ms} ms",
                    duration(p99_ms)
                );
                let advice = "every write and every vote waits for a sync, so elections may fail: use a faster disk, move \
                              other load away from it, or raise --heartbeat-interval-ms and the election timeouts on all \
                              nodes";
                self.add(severity, "slow_disk", [id], seen, advice);
            }
        }
    }

    fn quotas(&mut self, seen: &[Seen]) {
        for status in statuses(seen) {
            let (Some(used), Some(quota)) = (status.quota_used_bytes, status.quota_bytes) else { continue };
            let id = status.node;
            let numbers =
                format!("the keys and values of node {id} use {} of the quota of {}", bytes(used), bytes(quota));
            let advice = "delete keys, or raise --quota-bytes on all nodes, one after the other: see \"Quota\" in \
                          docs/operations.md";
            let rejected_ms = status.quota_rejected_ms_ago.filter(|ms| *ms <= QUOTA_REJECTED_MS_MAX);
            if let Some(rejected_ms) = rejected_ms.filter(|_| status.leads()) {
                let seen = format!(
                    "{numbers}, and it rejected a write {} ago because that would have exceeded it",
                    duration(rejected_ms)
                );
                self.add(Severity::Critical, "quota_full", [id], seen, advice);
            } else if used > quota / 100 * QUOTA_PERCENT_MAX {
                let seen = format!("{numbers}: once it is used up, writes that add data are rejected");
                self.add(Severity::Warning, "quota_low", [id], seen, advice);
            }
        }
    }

    fn clocks(&mut self, seen: &[Seen]) {
        let mut clocks: Vec<(u64, i64, i64)> = Vec::new();
        for it in seen {
            if let (Some(status), Some(clock)) = (it.status(), it.clock)
                && clocks.iter().all(|(id, ..)| *id != status.node)
            {
                clocks.push((status.node, clock.offset_ms, clock.uncertain_ms));
            }
        }
        let first = clocks.iter().min_by_key(|(_, offset_ms, uncertain_ms)| offset_ms.saturating_add(*uncertain_ms));
        let last = clocks.iter().max_by_key(|(_, offset_ms, uncertain_ms)| offset_ms.saturating_sub(*uncertain_ms));
        let (Some(first), Some(last)) = (first, last) else { return };
        let apart_ms = last.1.saturating_sub(last.2).saturating_sub(first.1.saturating_add(first.2));
        if u64::try_from(apart_ms).is_ok_and(|apart_ms| apart_ms > CLOCKS_APART_MS_MAX) {
            let all = clocks.iter().map(|(id, offset_ms, _)| format!("node {id} {offset_ms:+} ms"));
            let seen = format!(
                "the wall clocks of nodes {} and {} are at least {} apart; compared with this machine: {}",
                first.0,
                last.0,
                duration(apart_ms.unsigned_abs()),
                joined(all)
            );
            let advice = "synchronize the clocks, for instance with chrony; TTLs depend on them only for the time when no \
                          node runs, but log lines and certificates do always";
            self.add(Severity::Warning, "clocks_apart", [first.0, last.0], seen, advice);
        }
    }

    fn certificates(&mut self, seen: &[Seen]) {
        for status in statuses(seen) {
            let id = status.node;
            if let (Some(expires_s), Some(clock_ms)) = (status.certificate_expires_s, status.clock_ms) {
                let now_s = i64::try_from(clock_ms / 1000).unwrap_or(i64::MAX);
                let days = expires_s.saturating_sub(now_s).div_euclid(24 * 60 * 60);
                let (severity, seen) = match days {
                    ..0 => (Severity::Critical, format!("the TLS certificate of node {id} has expired")),
                    0..CERTIFICATE_DAYS_MIN => {
                        (Severity::Warning, format!("the TLS certificate of node {id} expires in {days} days"))
                    }
                    _ => (Severity::Info, String::new()),
                };
                if severity != Severity::Info {
                    let advice = "renew it (`raft-key-value tls init`), and replace the files; no restart is needed";
                    self.add(severity, "certificate_expires", [id], seen, advice);
                }
            }
            if let Some(why) = &status.tls_files_rejected {
                let seen = format!("node {id} does not use its TLS files on disk, but those it read before: {why}");
                let advice = "correct the files: the node could not be restarted with them";
                self.add(Severity::Warning, "tls_files_rejected", [id], seen, advice);
            }
        }
    }

    fn versions(&mut self, seen: &[Seen]) {
        let mut versions: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
        for status in statuses(seen) {
            versions.entry(status.version.as_deref().unwrap_or("older")).or_default().insert(status.node);
        }
        if versions.len() < 2 {
            return;
        }
        let numbers_of: Vec<(u64, u64)> = versions.keys().filter_map(|version| release_of(version)).collect();
        let minors: BTreeSet<u64> = numbers_of.iter().map(|(_, minor)| *minor).collect();
        let is_same_major = numbers_of.windows(2).all(|pair| pair[0].0 == pair[1].0);
        let is_near = minors.last().zip(minors.first()).is_none_or(|(last, first)| last - first <= 1);
        let severity = if is_same_major && is_near { Severity::Info } else { Severity::Warning };
        let listed = versions.iter().map(|(version, nodes)| {
            format!("{version} on nodes {}", numbers(&nodes.iter().copied().collect::<Vec<_>>()))
        });
        let seen = format!("the nodes run different versions: {}", joined(listed));
        let advice = "complete the upgrade, one node after another; versions that are more than one minor version apart may \
                      not understand each other";
        self.add(severity, "versions_apart", [], seen, advice);
    }
}

/// The statuses of all nodes that responded, each node once.
fn statuses(seen: &[Seen]) -> Vec<&NodeStatus> {
    let mut found: Vec<&NodeStatus> = Vec::new();
    for status in seen.iter().filter_map(Seen::status) {
        let is_known = |other: &&NodeStatus| (other.node, other.incarnation) == (status.node, status.incarnation);
        if !found.iter().any(is_known) {
            found.push(status);
        }
    }
    found
}

impl Presence<'_> {
    fn described(&self) -> String {
        match self {
            Presence::Here(_) => "it responds".to_owned(),
            Presence::Elsewhere(_, seen) => format!("it responds at {} instead", seen.address),
            Presence::OtherDirectory(_) => "it runs on another data directory than it joined with".to_owned(),
            Presence::OtherNode(status) => format!("node {} responds there", status.node),
            Presence::Silent(reason) => (*reason).to_owned(),
        }
    }
}

/// Figures that judgments compare.
trait Figures {
    /// Whether the node's version does not have the status route.
    fn is_older(&self) -> bool;
    /// The 99th percentile of its syncs, and its heartbeat interval, in milliseconds.
    fn sync_times(&self) -> Option<(u64, u64)>;
}

impl Figures for NodeStatus {
    fn is_older(&self) -> bool {
        self.version.is_none()
    }

    fn sync_times(&self) -> Option<(u64, u64)> {
        let p99_ms = self.fsync_p99_us? / 1000;
        Some((p99_ms, self.heartbeat_interval_ms.unwrap_or(HEARTBEAT_MS_DEFAULT)))
    }
}

/// What a node believes to be.
fn self_image(status: &NodeStatus) -> String {
    match &status.cluster_id {
        None => "it says that it belongs to no cluster".to_owned(),
        Some(cluster_id) => format!("it says that it belongs to cluster {cluster_id} and is no member of it"),
    }
}

/// How far a follower is behind.
fn lag_of(follower: &KnownFollower) -> Option<String> {
    let entries = follower.lag_entries.filter(|entries| *entries > 0)?;
    let age = follower.lag_ms.map(|ms| format!(", the oldest of them {} old", duration(ms))).unwrap_or_default();
    Some(format!("{entries} entries{age}"))
}

/// The major and the minor number of a version.
fn release_of(version: &str) -> Option<(u64, u64)> {
    let mut numbers = version.split(['.', '-', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn joined(parts: impl IntoIterator<Item = String>) -> String {
    parts.into_iter().collect::<Vec<_>>().join("; ")
}

fn numbers(ids: &[u64]) -> String {
    ids.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

fn duration(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..120_000 => format!("{:.1} s", ms as f64 / 1000.0),
        _ => format!("{} min", ms / 60_000),
    }
}

fn bytes(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    if bytes < 10 * 1024 * MIB { format!("{} MiB", bytes / MIB) } else { format!("{} GiB", bytes / MIB / 1024) }
}
