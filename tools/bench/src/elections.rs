//! Checks that full load causes no election: heartbeats arrive in time even while the disks are busy.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::Verdict;
use crate::arguments::ElectionsArguments;
use crate::load::{self, LoadPlan, Measurement, Workload};
use crate::ours::OursCluster;
use crate::report::{Environment, publish};
use crate::statistics::{milliseconds, thousands};
use crate::target::{Leader, Target, VALUE_BYTES};
use crate::workspace::{Workspace, our_server};

const CLIENTS: usize = 256;
const KEYS: u64 = 100_000;
const WARM_UP: Duration = Duration::from_secs(2);
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Serialize)]
struct Figures {
    environment: Environment,
    minutes: f64,
    #[serde(flatten)]
    observed: Observed,
    #[serde(flatten)]
    measurement: Measurement,
}

/// What the nodes' metrics showed during the load. Terms only increase, so an election between two polls is
/// also seen.
#[derive(Default, Serialize)]
struct Observed {
    looks: u64,
    /// The node was too busy to respond. This is not an election.
    looks_unanswered: u64,
    /// Each (term, leader) that any node reported.
    views: BTreeSet<(u64, Option<u64>)>,
}

pub async fn run(arguments: &ElectionsArguments) -> Result<Verdict> {
    ensure!(arguments.minutes > 0.0, "--minutes must be more than 0, not {}", arguments.minutes);
    let options = our_server(&arguments.common)?;
    let environment = Environment::gather(&[&options.server])?;
    let workspace = Workspace::create(&arguments.common, "elections")?;
    let cluster = OursCluster::create(&options, &workspace.path("cluster")).await?;
    let leader = cluster.leader().await?;
    println!(
        "node {} leads in term {}; {CLIENTS} clients write for {} minutes",
        leader.id, leader.term, arguments.minutes
    );

    let plan = LoadPlan {
        workload: Workload::Write,
        clients: CLIENTS,
        warm_up: WARM_UP,
        measured: Duration::from_secs_f64(arguments.minutes * 60.0),
        key_count: KEYS,
        seed: 1,
    };
    let mut observed = Observed::default();
    let target = Target::ours(leader, CLIENTS);
    let pids = cluster.pids();
    let measurement = tokio::select! {
        measurement = load::run(&target, &plan, &pids) => measurement?,
        () = observed.watch(&cluster, leader) => unreachable!("the future ends only when it is dropped"),
    };
    // Without load every node must respond.
    let at_end = cluster.leader().await?;
    observed.views.insert((at_end.term, Some(at_end.id)));
    cluster.stop().await?;
    workspace.finish()?;

    let is_kept = observed.is_only(leader);
    let figures = Figures { environment, minutes: arguments.minutes, observed, measurement };
    let markdown = markdown(&figures, leader);
    publish(&arguments.common, "elections", &markdown, &figures, true)?;
    Ok(if is_kept { Verdict::Met } else { Verdict::PromiseBroken })
}

impl Observed {
    async fn watch(&mut self, cluster: &OursCluster, leader: Leader) {
        loop {
            for node_id in cluster.node_ids() {
                self.looks += 1;
                let Ok(metrics) = cluster.metrics(node_id).await else {
                    self.looks_unanswered += 1;
                    continue;
                };
                let view = (metrics.current_term, metrics.current_leader);
                if self.views.insert(view) && !is_view_of(view, leader) {
                    println!("node {node_id} now has (term, leader) {view:?}");
                }
            }
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }

    fn is_only(&self, leader: Leader) -> bool {
        self.views.iter().all(|view| is_view_of(*view, leader))
    }
}

fn is_view_of(view: (u64, Option<u64>), leader: Leader) -> bool {
    view == (leader.term, Some(leader.id))
}

fn markdown(figures: &Figures, leader: Leader) -> String {
    let Figures { observed, measurement, .. } = figures;
    let verdict = if observed.is_only(leader) {
        format!("**pass**: node {} led in term {} throughout, on all nodes", leader.id, leader.term)
    } else {
        format!(
            "**fail**: node {} led in term {} at first, but these were seen as (term, leader): {:?}",
            leader.id, leader.term, observed.views
        )
    };
    let mut text = format!(
        "## No election under full load\n\n{}\n\
         {CLIENTS} clients wrote values of {VALUE_BYTES} bytes for {} minutes: {verdict} ({} polls of \
         the nodes' metrics, {} without a response).\n\n\
         {} writes/s, p50 {} ms, p99 {} ms, at most {} ms; {} errors.\n",
        figures.environment.markdown(),
        figures.minutes,
        observed.looks,
        observed.looks_unanswered,
        thousands(measurement.operations_per_second),
        milliseconds(measurement.latency_us_p50 as f64),
        milliseconds(measurement.latency_us_p99 as f64),
        milliseconds(measurement.latency_us_max as f64),
        measurement.errors,
    );
    if let Some(first_error) = &measurement.first_error {
        text += &format!("\nThe first error: {first_error}\n");
    }
    text
}
