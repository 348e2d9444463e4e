//! Commands about the cluster: `status`, `cluster status` and `leader`.

use std::io;
use std::time::Duration;

use futures_util::future::{join, join_all};
use raft_key_value::client::{ClusterAnswer, ClusterMember};
use raft_key_value::{ClientError, ExampleClient};
use serde::Serialize;

use super::arguments::Connector;
use super::failure::{Failure, verdict};
use super::output::{Output, printable};

/// Deadline for the metrics of a node, and again for the reads that show whether it serves requests.
const STATUS_DEADLINE: Duration = Duration::from_secs(3);

/// The status of an endpoint; only the error if it cannot be reached.
#[derive(Debug, Default, Serialize)]
struct NodeStatus {
    endpoint: String,
    reachable: bool,
    /// Whether it serves linearizable reads.
    serves: bool,
    node: Option<u64>,
    /// A leader that no majority follows is a `leader without majority`.
    role: Option<String>,
    /// The leader that it follows or is, with a majority.
    leader: Option<u64>,
    term: Option<u64>,
    applied: Option<u64>,
    revision: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// `status`
pub async fn status(mut output: Output, connector: &Connector, endpoints: &[String]) -> Result<(), Failure> {
    let found = join_all(endpoints.iter().map(|endpoint| status_of(connector, endpoint))).await;
    let written = write_status(&mut output, &found).map_err(Failure::Output);
    let all_serve = match found.iter().filter(|node| !node.serves).count() {
        0 => Ok(()),
        useless => Err(Failure::Unavailable(format!("{useless} of {} endpoints do not serve requests", found.len()))),
    };
    verdict(written, all_serve)
}

fn write_status(output: &mut Output, found: &[NodeStatus]) -> io::Result<()> {
    if output.is_json() {
        found.iter().try_for_each(|node| output.line(node, ""))?;
    } else {
        let names = ["ENDPOINT", "NODE", "ROLE", "LEADER", "TERM", "APPLIED", "REVISION", "SERVES"];
        let mut rows = vec![names.map(str::to_owned).to_vec()];
        rows.extend(found.iter().map(row_of));
        output.table(&rows)?;
    }
    output.flush()
}

async fn status_of(connector: &Connector, endpoint: &str) -> NodeStatus {
    let unknown = NodeStatus { endpoint: endpoint.to_owned(), ..NodeStatus::default() };
    let ask = async {
        let client = connector.connect([endpoint])?;
        let client = client.with_deadline(STATUS_DEADLINE).with_retry_deadline(Duration::ZERO);
        let metrics = client.metrics().await?;
        // A node of an older version does not have it, and may take itself for the leader although it is not.
        let own = client.node_status().await.ok();
        // Any listing shows the revision of the node; a linearizable one also shows whether its cluster serves
        // requests.
        let listing = || client.list("").keys_only().page_size(1);
        let (stale, listed) = join(listing().stale().page(), listing().page()).await;
        let revision = listed.as_ref().or(stale.as_ref()).ok().map(|page| page.revision);
        Ok::<_, ClientError>((metrics, own, revision, listed.err()))
    };
    match ask.await {
        Err(error) => NodeStatus { error: Some(error.to_string()), ..unknown },
        Ok((metrics, own, revision, error)) => NodeStatus {
            reachable: true,
            serves: error.is_none(),
            node: Some(metrics.id),
            role: Some(match &own {
                Some(own) if metrics.state.is_leader() && !own.leads() => "leader without majority".to_owned(),
                _ => format!("{:?}", metrics.state).to_lowercase(),
            }),
            leader: own.map_or(metrics.current_leader, |own| own.leader),
            term: Some(metrics.current_term),
            applied: metrics.last_applied.map(|log_id| log_id.index),
            revision,
            error: error.map(|error| error.to_string()),
            ..unknown
        },
    }
}

fn row_of(node: &NodeStatus) -> Vec<String> {
    let number = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
    let serves = node.error.as_ref().map_or("yes".to_owned(), |error| format!("no: {}", printable(error)));
    vec![
        node.endpoint.clone(),
        number(node.node),
        node.role.clone().unwrap_or_else(|| "-".to_owned()),
        number(node.leader),
        number(node.term),
        number(node.applied),
        number(node.revision),
        serves,
    ]
}

/// `leader`
pub async fn leader(client: &ExampleClient, mut output: Output, id: u64) -> Result<(), Failure> {
    let leader = client.transfer_leader(id).await?;
    let text = format!("node {} at {} leads in term {}", leader.id, printable(&leader.address), leader.term);
    output.result(&leader, &text)
}

/// `cluster status`
pub async fn cluster_status(client: &ExampleClient, mut output: Output) -> Result<(), Failure> {
    let cluster = client.cluster().await?;
    let written = write_cluster(&mut output, &cluster).map_err(Failure::Output);
    let complete = cluster.partial.clone().map_or(Ok(()), |partial| Err(Failure::Unavailable(printable(&partial))));
    verdict(written, complete)
}

fn write_cluster(output: &mut Output, cluster: &ClusterAnswer) -> io::Result<()> {
    if output.is_json() {
        output.line(cluster, "")?;
        return output.flush();
    }
    let word = |word: &Option<String>| word.as_deref().map_or("-".to_owned(), printable);
    let leader = cluster.leader.map_or("no known leader".to_owned(), |leader| format!("leader {leader}"));
    output.line(&(), format!("cluster {}, {leader}, term {}", word(&cluster.cluster_id), cluster.term))?;
    let level = cluster.format_level.map_or("-".to_owned(), |level| level.to_string());
    output.line(&(), format!("format level {level}"))?;
    let names = [
        "NODE",
        "ROLE",
        "ADDRESS",
        "VERSION",
        "REACHABLE",
        "APPLIED",
        "LAG",
        "LAG TIME",
        "SYNC P99",
        "DISK USED",
        "DISK FREE",
        "QUOTA",
        "CLOCK",
    ];
    let mut rows = vec![names.map(str::to_owned).to_vec()];
    rows.extend(cluster.members.iter().map(cluster_row));
    output.table(&rows)?;
    output.flush()
}

fn cluster_row(member: &ClusterMember) -> Vec<String> {
    fn shown<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
        value.map_or_else(|| "-".to_owned(), show)
    }
    let milliseconds = |us: u64| format!("{:.1} ms", us as f64 / 1000.0);
    let percent = |(used, quota): (u64, u64)| format!("{:.0}%", used as f64 * 100.0 / quota as f64);
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    vec![
        member.id.to_string(),
        format!("{:?}", member.role).to_lowercase(),
        printable(&member.address),
        shown(member.version.as_deref(), printable),
        if member.reachable { "yes" } else { "no" }.to_owned(),
        shown(member.applied_index, |index| index.to_string()),
        shown(member.lag_entries, |entries| entries.to_string()),
        shown(member.lag_ms, |ms| format!("{ms} ms")),
        shown(member.fsync_p99_us, milliseconds),
        shown(member.disk_used_bytes, mib),
        shown(member.disk_free_bytes, mib),
        shown(member.quota_used_bytes.zip(member.quota_bytes), percent),
        shown(member.clock_offset_ms, |ms| format!("{ms:+} ms")),
    ]
}
