//! Records memory, terms and leaders during the load, and whether the nodes still respond to `/metrics`.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use super::open_loop::OpenLoop;
use crate::ours::OursCluster;
use crate::statistics::{mebibytes, milliseconds, thousands};
use crate::target::Leader;

const WATCH_INTERVAL: Duration = Duration::from_secs(1);
const METRICS_TIMEOUT: Duration = Duration::from_secs(5);
const SECONDS_PER_PROGRESS_LINE: u64 = 5;

/// Resident memory of each node.
#[derive(Serialize)]
pub struct Memory {
    pub bytes_first: Vec<u64>,
    pub bytes_max: Vec<u64>,
}

/// What the nodes' metrics showed. Terms only increase, so an election between two polls is also seen.
#[derive(Default, Serialize)]
pub struct Views {
    pub looks: u64,
    pub looks_unanswered: u64,
    /// Includes connecting. A poll without a response counts with the timeout.
    pub slowest_us: u64,
    /// Each (term, leader) that any node reported.
    pub seen: BTreeSet<(u64, Option<u64>)>,
}

impl Memory {
    pub fn new(cluster: &OursCluster) -> Result<Self> {
        let bytes = cluster.resident_bytes()?;
        Ok(Self { bytes_first: bytes.clone(), bytes_max: bytes })
    }

    /// Polls once a second, and prints progress from time to time.
    ///
    /// Ends only with an error: that of a node that has ended.
    pub async fn watch(&mut self, cluster: &OursCluster, load: &OpenLoop) -> Result<Infallible> {
        let mut progress = Progress::default();
        for second in 1.. {
            tokio::time::sleep_until((load.schedule.begin + second * WATCH_INTERVAL).into()).await;
            let bytes = cluster.resident_bytes()?;
            for (max, now) in self.bytes_max.iter_mut().zip(&bytes) {
                *max = (*max).max(*now);
            }
            if u64::from(second).is_multiple_of(SECONDS_PER_PROGRESS_LINE) {
                progress.print(load, &bytes)?;
            }
        }
        unreachable!("the interval never ends")
    }

    /// Memory growth of the node that grew most.
    pub fn growth_bytes_max(&self) -> u64 {
        let grown = self.bytes_first.iter().zip(&self.bytes_max).map(|(first, max)| max - first);
        grown.max().unwrap_or_default()
    }
}

/// Totals at the last line, so that the next one shows the difference.
#[derive(Default)]
struct Progress {
    done: u64,
    refused: u64,
}

impl Progress {
    fn print(&mut self, load: &OpenLoop, memory_bytes: &[u64]) -> Result<()> {
        let tally = load.tally()?;
        let counts = tally.counts;
        let per_second = |count: u64| thousands(count as f64 / SECONDS_PER_PROGRESS_LINE as f64);
        println!(
            "{:>4} s  done {}/s  rejected {}/s, p99 so far {} ms  not sent so far {}  memory {} MiB",
            load.schedule.begin.elapsed().as_secs(),
            per_second(counts.done - self.done),
            per_second(counts.refused - self.refused),
            milliseconds(tally.refused_us.value_at_quantile(0.99) as f64),
            thousands(counts.not_sent as f64),
            mebibytes(memory_bytes),
        );
        *self = Self { done: counts.done, refused: counts.refused };
        Ok(())
    }
}

impl Views {
    /// Polls one node a second, in turn, until it is dropped.
    pub async fn watch(&mut self, cluster: &OursCluster) -> Infallible {
        loop {
            for node_id in cluster.node_ids() {
                let next = tokio::time::Instant::now() + WATCH_INTERVAL;
                self.look(cluster, node_id).await;
                tokio::time::sleep_until(next).await;
            }
        }
    }

    /// Uses a new connection, as an operator would.
    pub async fn look(&mut self, cluster: &OursCluster, node_id: u64) {
        let asked = Instant::now();
        self.looks += 1;
        match tokio::time::timeout(METRICS_TIMEOUT, cluster.metrics(node_id)).await {
            Ok(Ok(metrics)) => {
                let view = (metrics.current_term, metrics.current_leader);
                if self.seen.insert(view) {
                    println!("node {node_id} has (term, leader) {view:?}");
                }
            }
            Ok(Err(_)) | Err(_) => self.looks_unanswered += 1,
        }
        self.slowest_us = self.slowest_us.max(asked.elapsed().as_micros() as u64);
    }

    /// A lower bound. Two leaders in the same term are impossible, and count too.
    pub fn elections(&self, leader: Leader) -> u64 {
        let last_term = self.seen.iter().map(|(term, _)| *term).max().unwrap_or(leader.term);
        let differs = self.seen.iter().any(|view| *view != (leader.term, Some(leader.id)));
        last_term.saturating_sub(leader.term).max(u64::from(differs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elections_are_counted_by_terms() {
        let leader = Leader { id: 1, term: 3, address: std::net::SocketAddr::from(([127, 0, 0, 1], 1)) };
        let elections = |seen: &[(u64, Option<u64>)]| {
            Views { seen: seen.iter().copied().collect(), ..Views::default() }.elections(leader)
        };
        assert_eq!(elections(&[]), 0);
        assert_eq!(elections(&[(3, Some(1))]), 0);
        assert_eq!(elections(&[(3, Some(1)), (5, Some(1))]), 2);
        assert_eq!(elections(&[(3, Some(1)), (3, None)]), 1);
    }
}
