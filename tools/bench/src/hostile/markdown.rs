//! The section of the report.

use super::{Figures, RowFigures, RowOutcome, stage};
use crate::report::Goal;
use crate::statistics::{mebibytes, milliseconds, thousands};

impl Figures {
    pub fn markdown(&self) -> String {
        let goals = self.goals();
        let (met, missed): (Vec<Goal>, Vec<Goal>) = goals.into_iter().partition(Goal::is_met);
        let mut text = format!(
            "## Hostile and odd clients\n\n{}\nEach load took at most {} s, with {}× the clients and keys. {} goals were met, {} missed.\n\n",
            self.environment.markdown(),
            self.seconds,
            self.scale,
            met.len(),
            missed.len(),
        );
        if !missed.is_empty() {
            text += &Goal::table(&missed);
            text += "\n";
        }
        text += "| load | elections during, after | gap ms | p99 ms | memory MiB | expected MiB | peak MiB, node 1, 2, 3 | requests \
                 | other cores |\n\
                 | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
        for row in &self.rows {
            text += &row.markdown();
        }
        text += "\n";
        for row in &self.rows {
            let RowOutcome::Measured(figures) = &row.outcome else { continue };
            for note in &figures.notes {
                text += &format!("- `{}`: {note}\n", row.name);
            }
        }
        text
    }
}

impl RowFigures {
    fn markdown(&self) -> String {
        match &self.outcome {
            RowOutcome::Failed(error) => {
                format!("| `{}` | **failed**: {} | | | | | | | |\n", self.name, error.replace(['\n', '|'], " "))
            }
            RowOutcome::Measured(figures) => format!(
                "| `{}` | {}, {} | {} | {} | {} | {} | {} | {} | {:.2} |\n",
                self.name,
                figures.elections_during,
                figures.elections_after,
                milliseconds(figures.probe.gap_us as f64),
                milliseconds(figures.probe.us_p99 as f64),
                mebibytes(&[figures.growth_bytes()]),
                mebibytes(&[figures.expected_bytes]),
                mebibytes(&figures.peak_bytes),
                figures.became(),
                figures.other_cores,
            ),
        }
    }
}

impl stage::Figures {
    /// The outcomes of the load's requests.
    pub fn became(&self) -> String {
        let counts = &self.counts;
        let number = |count: u64| thousands(count as f64);
        let mut parts: Vec<String> =
            counts.by_status.iter().map(|(status, count)| format!("{status}: {}", number(*count))).collect();
        let unanswered = counts.sent.saturating_sub(counts.answered());
        let others = [
            ("unknown outcome", counts.unknown),
            ("unanswered", unanswered),
            ("closed by the node", counts.closed),
            ("not connected", counts.not_connected),
        ];
        parts.extend(
            others.iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{what}: {}", number(*count))),
        );
        match parts.len() {
            0 => format!("{} connections", number(counts.connected)),
            _ => parts.join(", "),
        }
    }
}
