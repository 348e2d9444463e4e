//! Draws the figures of `compare` as SVG: one question a plot, with the median of each point and its spread.
//!
//! The figures span two orders of magnitude, and the ratio of the systems is what counts. Hence the axis is
//! logarithmic: equal ratios have equal distances. A style sheet holds the colors, so that the same file suits
//! light and dark pages; plotting libraries write a color into each element. The output depends on the figures
//! alone.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::Verdict;
use crate::arguments::PlotArguments;
use crate::compare::{Point, Record, spread};
use crate::report::Environment;
use crate::statistics::{Spread, distinct, thousands};
use crate::target::System;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
/// The edges of the area between the axes.
const LEFT: f64 = 84.0;
const RIGHT: f64 = WIDTH - 20.0;
const TOP: f64 = 76.0;
const BOTTOM: f64 = HEIGHT - 84.0;
/// Distance between the points of two systems in one column.
const SERIES_GAP: f64 = 12.0;

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#1f2328}.title{font-size:16px;font-weight:600}.note{font-size:11px}\
.value{font-size:11px;stroke:#fff;stroke-width:3px;paint-order:stroke}.back{fill:#fff}.grid{stroke:#d1d9e0}.line{fill:none;stroke-width:1.5;stroke-opacity:.5}\
.whisker{fill:none;stroke-width:1.5}.s0{stroke:#0969da}.s1{stroke:#bc4c00}.s2{stroke:#8250df}\
.m0{fill:#0969da}.m1{fill:#bc4c00}.m2{fill:#8250df}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.value{stroke:#0d1117}.back{fill:#0d1117}.grid{stroke:#3d444d}\
.s0{stroke:#4493f8}.s1{stroke:#f0883e}.s2{stroke:#ab7df8}.m0{fill:#4493f8}.m1{fill:#f0883e}.m2{fill:#ab7df8}}";

/// What `plot` reads of the file that `compare --json` writes.
#[derive(Deserialize)]
struct Figures {
    environment: Environment,
    records: Vec<Record>,
}

/// A question that one plot answers.
struct Question {
    file_name: &'static str,
    title: &'static str,
    axis: &'static str,
    figure: fn(&Record) -> f64,
    format: fn(f64) -> String,
}

const QUESTIONS: [Question; 3] = [
    Question {
        file_name: "throughput.svg",
        title: "Throughput: more is better",
        axis: "operations per second",
        figure: |record| record.measurement.operations_per_second,
        format: thousands,
    },
    Question {
        file_name: "p99.svg",
        title: "99th percentile of latency: less is better",
        axis: "milliseconds",
        figure: |record| record.measurement.latency_us_p99 as f64 / 1000.0,
        format: |milliseconds| format!("{milliseconds:.1}"),
    },
    Question {
        file_name: "server-cpu.svg",
        title: "CPU time of all three nodes: less is better",
        axis: "µs per operation",
        figure: |record| record.measurement.server_cpu_us_per_operation,
        format: thousands,
    },
];

struct Plot<'a> {
    title: &'a str,
    axis: &'a str,
    note: &'a str,
    series: Vec<&'a str>,
    columns: Vec<Column<'a>>,
    format: fn(f64) -> String,
}

/// One load.
struct Column<'a> {
    /// Adjacent columns of a group share a label, and their points are connected.
    group: &'a str,
    label: String,
    /// One for each series; `None` if the load was not measured on that system.
    points: Vec<Option<Spread>>,
}

/// Draws the figures in a JSON file again.
pub fn run(arguments: &PlotArguments) -> Result<Verdict> {
    let path = &arguments.json;
    let json = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let figures: Figures = serde_json::from_slice(&json)
        .with_context(|| format!("`{}` is not a file written by `compare --json`", path.display()))?;
    write_all(&arguments.plots(), &figures.environment, &figures.records)?;
    Ok(Verdict::Met)
}

/// Writes a plot for each question into `directory`, and creates the directory if it is missing.
pub fn write_all(directory: &Path, environment: &Environment, records: &[Record]) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot create `{}`", directory.display()))?;
    for question in &QUESTIONS {
        let path = directory.join(question.file_name);
        let svg = question.svg(environment, records).with_context(|| format!("cannot draw `{}`", path.display()))?;
        std::fs::write(&path, svg).with_context(|| format!("cannot write `{}`", path.display()))?;
        println!("plot: {}", path.display());
    }
    Ok(())
}

impl Question {
    fn svg(&self, environment: &Environment, records: &[Record]) -> Result<String> {
        let systems: Vec<System> = distinct(records.iter().map(|record| record.system));
        let points: Vec<Point> = distinct(records.iter().map(|record| record.point));
        let columns = points.iter().map(|&point| Column {
            group: point.name(),
            label: point.label(),
            points: systems.iter().map(|&system| spread(records, system, point, self.figure)).collect(),
        });
        let note = environment.caption();
        let plot = Plot {
            title: self.title,
            axis: self.axis,
            note: &note,
            series: systems.iter().map(|system| system.name()).collect(),
            columns: columns.collect(),
            format: self.format,
        };
        plot.svg()
    }
}

impl Plot<'_> {
    fn svg(&self) -> Result<String> {
        let spreads: Vec<Spread> = self.columns.iter().flat_map(|column| &column.points).flatten().copied().collect();
        let min = Spread::of(spreads.iter().map(|spread| spread.min)).min;
        let max = Spread::of(spreads.iter().map(|spread| spread.max)).max;
        ensure!(min > 0.0 && max.is_finite(), "a logarithmic axis needs figures above 0, got {min} to {max}");
        let scale = Scale { ticks: ticks(min, max) };
        let title = escape(self.title);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n\
             <rect class=\"back\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n"
        );
        svg += &text(LEFT, 24.0, "start", "title", self.title);
        svg += &self.legend();
        svg += &self.axes(&scale);
        for series in 0..self.series.len() {
            svg += &self.lines(&scale, series);
            for (index, column) in self.columns.iter().enumerate() {
                if let Some(spread) = column.points[series] {
                    svg += &self.point(&scale, series, index, spread);
                }
            }
        }
        svg += &text(LEFT, HEIGHT - 26.0, "start", "note", "Points: median of the rounds. Bars: minimum to maximum.");
        svg += &text(LEFT, HEIGHT - 10.0, "start", "note", self.note);
        Ok(svg + "</svg>\n")
    }

    fn legend(&self) -> String {
        let entry = |(series, name): (usize, &&str)| {
            let x = LEFT + 180.0 * series as f64;
            marker(series, x + 5.0, 47.0) + &text(x + 16.0, 51.0, "start", "key", name)
        };
        self.series.iter().enumerate().map(entry).collect()
    }

    fn axes(&self, scale: &Scale) -> String {
        let mut svg = String::new();
        for &tick in &scale.ticks {
            let y = scale.y(tick);
            svg += &format!("<path class=\"grid\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/>\n");
            svg += &text(LEFT - 8.0, y + 4.0, "end", "tick", &tick_label(tick));
        }
        let middle = (TOP + BOTTOM) / 2.0;
        svg += &format!(
            "<g transform=\"rotate(-90 16 {middle})\">\n{}</g>\n",
            text(16.0, middle + 4.0, "middle", "axis", &format!("{} (logarithmic)", self.axis))
        );
        for (index, column) in self.columns.iter().enumerate() {
            svg += &text(self.center(index), BOTTOM + 18.0, "middle", "tick", &column.label);
        }
        svg += &text(LEFT - 8.0, BOTTOM + 18.0, "end", "axis", "clients");
        let mut first = 0;
        for group in self.columns.chunk_by(|one, next| one.group == next.group) {
            let x = (self.center(first) + self.center(first + group.len() - 1)) / 2.0;
            svg += &text(x, BOTTOM + 36.0, "middle", "axis", group[0].group);
            first += group.len();
        }
        svg
    }

    /// Connects the medians of one series within each group.
    fn lines(&self, scale: &Scale, series: usize) -> String {
        let mut svg = String::new();
        let mut group = None;
        let mut line = Vec::new();
        let mut end = |line: &mut Vec<String>| {
            if line.len() > 1 {
                svg += &format!("<polyline class=\"line s{series}\" points=\"{}\"/>\n", line.join(" "));
            }
            line.clear();
        };
        for (index, column) in self.columns.iter().enumerate() {
            if group.replace(column.group) != Some(column.group) {
                end(&mut line);
            }
            if let Some(spread) = column.points[series] {
                line.push(format!("{:.1},{:.1}", self.x(series, index), scale.y(spread.median)));
            }
        }
        end(&mut line);
        svg
    }

    fn point(&self, scale: &Scale, series: usize, index: usize, spread: Spread) -> String {
        let column = &self.columns[index];
        let description = format!(
            "{}, {}, clients {}: {}",
            self.series[series],
            column.group,
            column.label,
            spread.text(self.format)
        );
        let (x, y) = (self.x(series, index), scale.y(spread.median));
        let (left, bottom, top) = (x - 4.0, scale.y(spread.min), scale.y(spread.max));
        // The outer sides are free; a series in the middle has room above it.
        let (label_x, label_y, anchor) = match series {
            0 => (x - 8.0, y + 4.0, "end"),
            _ if series + 1 == self.series.len() => (x + 8.0, y + 4.0, "start"),
            _ => (x, top - 8.0, "middle"),
        };
        format!(
            "<g class=\"point\"><title>{}</title>\n\
             <path class=\"whisker s{series}\" d=\"M{left:.1} {bottom:.1}h8m-4 0V{top:.1}m-4 0h8\"/>\n{}{}</g>\n",
            escape(&description),
            marker(series, x, y),
            text(label_x, label_y, anchor, "value", &(self.format)(spread.median)),
        )
    }

    fn center(&self, index: usize) -> f64 {
        LEFT + (RIGHT - LEFT) * (index as f64 + 0.5) / self.columns.len() as f64
    }

    fn x(&self, series: usize, index: usize) -> f64 {
        self.center(index) + SERIES_GAP * (series as f64 - (self.series.len() as f64 - 1.0) / 2.0)
    }
}

/// The vertical axis.
struct Scale {
    ticks: Vec<f64>,
}

impl Scale {
    fn y(&self, value: f64) -> f64 {
        let (first, last) = (self.ticks[0], self.ticks[self.ticks.len() - 1]);
        BOTTOM - (BOTTOM - TOP) * (value / first).ln() / (last / first).ln()
    }
}

/// 1, 2 and 5 times powers of ten, from the last that is at most `min` to the first above `max`.
fn ticks(min: f64, max: f64) -> Vec<f64> {
    let exponents = min.log10().floor() as i32 - 1..=max.log10().ceil() as i32 + 1;
    let all: Vec<f64> =
        exponents.flat_map(|exponent| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(exponent))).collect();
    let first = all.iter().rposition(|tick| *tick <= min).unwrap_or(0);
    let last = all.iter().position(|tick| *tick > max).unwrap_or(all.len() - 1);
    all[first..=last].to_vec()
}

fn tick_label(tick: f64) -> String {
    if tick >= 1.0 { thousands(tick) } else { format!("{tick}") }
}

/// The systems differ in shape as well as in color.
fn marker(series: usize, x: f64, y: f64) -> String {
    match series {
        0 => format!("<circle class=\"m0\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"/>\n"),
        1 => format!("<rect class=\"m1\" x=\"{:.1}\" y=\"{:.1}\" width=\"8\" height=\"8\"/>\n", x - 4.0, y - 4.0),
        _ => format!("<path class=\"m2\" d=\"M{:.1} {:.1}h10l-5 -9z\"/>\n", x - 5.0, y + 4.5),
    }
}

fn text(x: f64, y: f64, anchor: &str, class: &str, content: &str) -> String {
    let content = escape(content);
    format!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>\n")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use roxmltree::{Document, Node};

    use super::*;
    use crate::compare::tests::raw_record;

    fn column(group: &'static str, label: &str, points: [Option<(f64, f64, f64)>; 2]) -> Column<'static> {
        let spread = |(min, median, max)| Spread { median, min, max };
        Column { group, label: label.to_owned(), points: points.map(|point| point.map(spread)).to_vec() }
    }

    fn with_class<'a, 'input>(document: &'a Document<'input>, class: &str) -> Vec<Node<'a, 'input>> {
        document.descendants().filter(|node| node.attribute("class") == Some(class)).collect()
    }

    /// Every point of the input is in the plot once, with its spread, and labels are escaped.
    ///
    /// Method: draw three loads on two systems, one of which was not measured under the last load, with markup
    /// in all labels; parse the plot, and compare what it says with the input.
    #[test]
    fn every_point_is_drawn_and_labels_are_escaped() {
        let plot = Plot {
            title: "a & b",
            axis: "<ms>",
            note: "R&D </svg>",
            series: vec!["ours <1>", "\"theirs\" & 'more'"],
            columns: vec![
                column("write", "1", [Some((900.0, 1000.0, 1100.0)), Some((700.0, 800.0, 1500.0))]),
                column("write", "16", [Some((7000.0, 8000.0, 9000.0)), Some((4000.0, 4000.0, 4000.0))]),
                column("<read>", "64", [Some((40_000.0, 45_000.0, 50_000.0)), None]),
            ],
            format: thousands,
        };
        let svg = plot.svg().unwrap();
        assert_eq!(svg, plot.svg().unwrap(), "the output is deterministic");
        let document = Document::parse(&svg).unwrap();
        let points = with_class(&document, "point");
        let titles: Vec<_> = points.iter().map(|point| point.first_element_child().unwrap().text().unwrap()).collect();
        assert_eq!(
            titles,
            [
                "ours <1>, write, clients 1: 1,000 (900–1,100)",
                "ours <1>, write, clients 16: 8,000 (7,000–9,000)",
                "ours <1>, <read>, clients 64: 45,000 (40,000–50,000)",
                "\"theirs\" & 'more', write, clients 1: 800 (700–1,500)",
                "\"theirs\" & 'more', write, clients 16: 4,000 (4,000–4,000)",
            ]
        );
        assert_eq!(
            (with_class(&document, "m0").len(), with_class(&document, "m1").len()),
            (3 + 1, 2 + 1),
            "and a key each"
        );
        let heights: Vec<f64> = with_class(&document, "m0")
            .iter()
            .skip(1)
            .map(|mark| mark.attribute("cy").unwrap().parse().unwrap())
            .collect();
        assert!(heights.is_sorted_by(|one, next| one > next), "more is higher up: {heights:?}");
        assert!(heights.iter().all(|y| (TOP..=BOTTOM).contains(y)), "outside of the axes: {heights:?}");
        let texts: Vec<_> =
            document.descendants().filter(|node| node.has_tag_name("text")).map(|node| node.text()).collect();
        for label in ["a & b", "<ms> (logarithmic)", "R&D </svg>", "ours <1>", "write", "<read>"] {
            assert!(texts.contains(&Some(label)), "{label} is missing among {texts:?}");
        }
    }

    /// A figure that has no place on the axis is an error, not a plot without it.
    #[test]
    fn figures_of_zero_are_rejected() {
        let columns = vec![column("write", "1", [Some((0.0, 1.0, 2.0)), None])];
        let plot = Plot { title: "", axis: "", note: "", series: vec!["one", "two"], columns, format: thousands };
        let error = plot.svg().unwrap_err().to_string();
        assert!(error.contains("above 0, got 0 to 2"), "{error}");
    }

    #[test]
    fn ticks_enclose_the_figures() {
        assert_eq!(ticks(774.0, 50_366.0), [500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5]);
        assert_eq!(ticks(2.0, 2.0), [2.0, 5.0]);
        assert_eq!(ticks(0.3, 0.9), [0.2, 0.5, 1.0]);
    }

    /// The file that `compare --json` writes is enough to draw all plots.
    #[test]
    fn plots_are_drawn_from_raw_figures() {
        let json = serde_json::json!({
            "environment": {
                "date": "2026-11-23 09:52 UTC", "command": "", "revision": "b0ba54e", "versions": [], "rustc": "",
                "kernel": "", "cpu": "A&B", "cores": 2,
            },
            "goals": [],
            "records": [
                raw_record(1, "ours", 100), raw_record(1, "etcd", 50), raw_record(2, "etcd", 70), raw_record(2, "ours", 140),
            ],
        });
        let figures: Figures = serde_json::from_value(json).unwrap();
        let drawn = QUESTIONS.map(|question| question.svg(&figures.environment, &figures.records).unwrap());
        assert!(drawn[0].contains("raft-key-value, write, clients 16: 120 (100–140)"), "{}", drawn[0]);
        assert!(drawn[0].contains("etcd, write, clients 16: 60 (50–70)"), "{}", drawn[0]);
        assert!(drawn[1].contains("2.5 (2.5–2.5)"), "{}", drawn[1]);
        assert!(drawn[2].contains("2026-11-23 09:52 UTC, A&amp;B (2 cores), revision b0ba54e"), "{}", drawn[2]);
    }
}
