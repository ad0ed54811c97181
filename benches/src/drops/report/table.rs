//! The tables on the terminal.

use capture_user::units::{Bytes, Grouped, Rate};

use super::{Line, Ratio, Report};
use crate::drops::rate;
use crate::drops::search::Throughput;
use crate::drops::trial::Note;

/// Prints what was measured, and below it what the marks mean.
pub(crate) fn print(report: &Report) {
    // A search asks for rates that say nothing to anybody; all are at its flood.
    let searched = !report.throughput().is_empty();
    let lines: Vec<&Line> =
        report.lines().iter().filter(|line| !searched || line.asked == rate::Rate::Flood).collect();
    print_lines(&lines);
    print_latency(&lines);
    if searched {
        print_throughput(report.throughput());
    }
    if !report.ratios().is_empty() {
        print_ratios(report.ratios());
    }
    print_marks(&lines);
    for failure in report.failures() {
        println!("not measured: {failure}");
    }
}

fn print_lines(lines: &[&Line]) {
    let mut rows = Table::new(&[
        "subject",
        "asked",
        "offered",
        "sent",
        "lost",
        "lost %",
        "subject ns",
        "softirq ns",
        "all ns",
        "memory",
        "",
    ]);
    for line in lines {
        let ns = |value: f64| format!("{value:.0}");
        rows.push([
            line.subject.clone(),
            line.asked.to_string(),
            line.offered.show(|rate| Rate(rate).to_string()),
            Grouped(line.sent).to_string(),
            grouped(line.lost),
            line.loss_percent.show(|percent| format!("{percent:.4}")),
            line.subject_ns.show(ns),
            line.softirq_ns.show(ns),
            line.busy_ns.show(ns),
            line.peak_memory_bytes.show(|bytes| Bytes(bytes as u64).to_string()),
            line.notes.iter().map(mark).collect(),
        ]);
    }
    rows.print();
}

fn print_latency(lines: &[&Line]) {
    let mut rows = Table::new(&["arrival to record, µs", "offered", "p50", "p99", "p99.9", "max"]);
    for line in lines {
        let Some(latency) = &line.latency else { continue };
        let us = |value: f64| format!("{value:.0}");
        rows.push([
            line.subject.clone(),
            line.offered.show(|rate| Rate(rate).to_string()),
            latency.p50_us.show(us),
            latency.p99_us.show(us),
            latency.p999_us.show(us),
            latency.max_us.show(us),
        ]);
    }
    rows.print();
}

fn print_throughput(found: &[Throughput]) {
    let mut rows =
        Table::new(&["highest rate without loss", "by run, frames a second", "steps", ""]);
    let mut subjects: Vec<&str> = found.iter().map(|found| found.subject.as_str()).collect();
    subjects.dedup();
    for subject in subjects {
        let own: Vec<&Throughput> = found.iter().filter(|found| found.subject == subject).collect();
        let rates: Vec<String> =
            own.iter().map(|found| Rate(found.loss_free).to_string()).collect();
        let steps: u32 = own.iter().map(|found| found.steps).sum();
        let limited = own.iter().any(|found| found.generator_limited);
        rows.push([
            subject.to_owned(),
            rates.join("  "),
            steps.to_string(),
            if limited { "no more could be offered".to_owned() } else { String::new() },
        ]);
    }
    rows.print();
}

fn print_ratios(ratios: &[Ratio]) {
    let mut rows = Table::new(&["ratio, median of the runs", "", "runs"]);
    for ratio in ratios {
        rows.push([
            format!("{}: {} / {}", ratio.what, ratio.subject, ratio.against),
            ratio.ratio.show(|value| format!("{value:.2}")),
            ratio.runs.to_string(),
        ]);
    }
    rows.print();
}

fn print_marks(lines: &[&Line]) {
    let mut seen = String::new();
    for note in lines.iter().flat_map(|line| &line.notes) {
        if !seen.contains(mark(note)) {
            seen.push(mark(note));
            println!("{}  {}", mark(note), explain(note));
        }
    }
}

/// Rows under headings; the first column and the last to the left, figures to the right.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()] }
    }

    fn push<const N: usize>(&mut self, row: [String; N]) {
        self.rows.push(row.into());
    }

    fn print(&self) {
        if self.rows.len() == 1 {
            return;
        }
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        for row in &self.rows {
            let mut text = String::new();
            for (column, cell) in row.iter().enumerate() {
                let padding = " ".repeat(width(column).saturating_sub(cell.chars().count()));
                let left = column == 0 || column + 1 == row.len();
                let parts =
                    if left { [cell.as_str(), &padding] } else { [&padding, cell.as_str()] };
                text.extend(parts);
                text.push_str("  ");
            }
            println!("{}", text.trim_end());
        }
        println!();
    }
}

fn grouped(number: i64) -> String {
    let digits = Grouped(number.unsigned_abs()).to_string();
    if number < 0 { format!("-{digits}") } else { digits }
}

/// A letter for the table's last column.
fn mark(note: &Note) -> char {
    match note {
        Note::GeneratorShort { .. } => 'g',
        Note::LinkRefused { .. } => 'r',
        Note::Surplus { .. } => 'S',
        Note::ClaimDiffers { .. } => 'c',
        Note::NotAtRest => 'w',
        Note::Disturbed { .. } => 'd',
        Note::Stolen { .. } => 'h',
        Note::Interrupted => 'i',
    }
}

/// What a mark means.
fn explain(note: &Note) -> &'static str {
    match note {
        Note::GeneratorShort { .. } => {
            "the generator could not make frames as fast as asked: read `offered`"
        }
        Note::LinkRefused { .. } => {
            "the link itself refused some of the frames: they count as lost"
        }
        Note::Surplus { .. } => {
            "more frames were recorded than sent: some twice, or some that are not ours"
        }
        Note::ClaimDiffers { .. } => {
            "the program claims to have lost another number of frames than it did"
        }
        Note::NotAtRest => "the subject was still at work when it was ended",
        Note::Disturbed { .. } => {
            "something else used the cores meanwhile: the figures are doubtful"
        }
        Note::Stolen { .. } => "the host took the cores away meanwhile: the figures are doubtful",
        Note::Interrupted => "the load was ended early",
    }
}
