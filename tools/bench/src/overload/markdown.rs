//! The section of the report.

use super::{Figures, KEYS, Latency, Overload, PEAK_WARM_UP, PeakPoint};
use crate::arguments::Receivers;
use crate::report::Goal;
use crate::statistics::{mebibytes, milliseconds, thousands};
use crate::target::VALUE_BYTES;

impl Figures {
    pub fn markdown(&self) -> String {
        let receivers = match self.receivers {
            Receivers::All => "to all three nodes in turn",
            Receivers::Leader => "to the leader only",
        };
        format!(
            "## Offered {}× what it can carry\n\n{}\n\
             Three nodes, each limited to {} of a core by a CPU control group. The load is `PUT /v1/kv/{{key}}` with \
             values of {VALUE_BYTES} bytes over {} keys. The peak is the highest throughput of closed-loop clients, spread \
             over all nodes. Requests then become due at {}× the peak for {} s in {} parts, evenly spread over time and \
             independent of earlier outcomes, and go {receivers}. The closed loop with the clients of the peak runs before \
             and after each part, and the part is compared with the mean of the two. {} connections send them; a request that finds no free connection \
             within a second is not sent.\n\n{}\n{}\n{}\n{}\n{}",
            self.factor,
            self.environment.markdown(),
            self.node_cores,
            thousands(KEYS as f64),
            self.factor,
            self.overload.seconds,
            self.parts.len(),
            thousands(f64::from(self.connections)),
            Goal::table(&self.goals),
            self.peak_table(),
            self.parts_table(),
            self.overload.tables(),
            self.beside(),
        )
    }

    fn peak_table(&self) -> String {
        let mut table = format!(
            "Closed loops to find the peak, each after {} s of warm-up:\n\n\
             | clients | writes/s | p50 ms | p99 ms | max ms | server CPU µs/write | other cores | errors |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- |\n",
            PEAK_WARM_UP.as_secs()
        );
        for point in &self.peak {
            let measurement = &point.measurement;
            table += &format!(
                "| {} | {} | {:.2} | {} |\n",
                point.clients,
                measurement.cells(),
                measurement.other_cpu_cores,
                measurement.errors,
            );
        }
        table
    }

    fn parts_table(&self) -> String {
        let rate = |point: &PeakPoint| thousands(point.measurement.operations_per_second);
        let rows = self.parts.iter().map(|part| {
            let (before, after) = (rate(&part.before), rate(&part.after));
            format!("| {before} | {} | {after} | {:.2} |\n", thousands(part.done_per_second), part.ratio())
        });
        let head = "Parts of the overload, in writes/s:\n\n\
                    | peak before | overload | peak after | overload ÷ mean of the peaks |\n\
                    | --- | --- | --- | --- |\n";
        std::iter::once(head.to_owned()).chain(rows).collect()
    }

    fn beside(&self) -> String {
        let overload = &self.overload;
        let nodes: Vec<String> = overload.node_cores_used.iter().map(|cores| format!("{cores:.2}")).collect();
        let mut text = format!(
            "- memory of the nodes: {} MiB before, at most {} MiB\n\
             - cores used by the nodes: {}; by the load: {:.2}, which was at most {} ms behind its schedule; \
             by other processes: {:.2}\n\
             - `GET /metrics`: {} polls, {} without a response, the slowest took {} ms\n\
             - (term, leader): ({}, {}) after the measurement of the peak, and since then on any node: {:?}\n",
            mebibytes(&self.memory.bytes_first),
            mebibytes(&self.memory.bytes_max),
            nodes.join(", "),
            overload.load_cores_used,
            milliseconds(overload.schedule_late_us_max as f64),
            overload.other_cores_used,
            self.views.looks,
            self.views.looks_unanswered,
            milliseconds(self.views.slowest_us as f64),
            self.term,
            self.leader_id,
            self.views.seen,
        );
        let codes: Vec<String> = overload
            .refusals_by_code
            .iter()
            .map(|(code, count)| format!("{} `{code}`", thousands(*count as f64)))
            .collect();
        if !codes.is_empty() {
            text += &format!("- rejections: {}\n", codes.join(", "));
        }
        if let Some(first_error) = &overload.first_error {
            text += &format!("- first request that was neither done nor rejected: {first_error}\n");
        }
        text
    }
}

impl Overload {
    fn tables(&self) -> String {
        let row = |what: &str, count: u64| {
            let part = count as f64 * 100.0 / self.offered as f64;
            format!("| {what} | {} | {} | {part:.1} % |\n", thousands(count as f64), thousands(self.per_second(count)))
        };
        let latency = |what: &str, latency: &Latency| {
            if latency.count == 0 {
                return format!("| {what} | – | – | – | – |\n");
            }
            let [p50, p90, p99, max] = [latency.us_p50, latency.us_p90, latency.us_p99, latency.us_max]
                .map(|latency_us| milliseconds(latency_us as f64));
            format!("| {what} | {p50} | {p90} | {p99} | {max} |\n")
        };
        let in_a_second = self.done_in_a_second();
        [
            "Overload:\n\n| requests | | per second | |\n| --- | --- | --- | --- |\n".to_owned(),
            row("offered", self.offered),
            row("not sent", self.counts.not_sent),
            row("sent", self.counts.sent()),
            row("… done", self.counts.done),
            row("… rejected, not applied", self.counts.refused),
            row("… unknown", self.counts.unknown),
            row("… other responses", self.counts.other),
            row("… broken", self.counts.broken),
            format!(
                "\nDone per second: minimum {}, median {}, maximum {}.\n\n",
                thousands(in_a_second.min),
                thousands(in_a_second.median),
                thousands(in_a_second.max),
            ),
            "| latency | p50 ms | p90 ms | p99 ms | max ms |\n| --- | --- | --- | --- | --- |\n".to_owned(),
            latency("done", &self.done_latency),
            latency("done, from its due time", &self.done_latency_since_due),
            latency("rejected", &self.refused_latency),
        ]
        .concat()
    }
}
