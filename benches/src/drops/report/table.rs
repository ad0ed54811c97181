//! The table on the terminal.

use capture_user::units::{Bytes, Grouped, Rate};

use super::Line;
use crate::drops::trial::Note;

/// Prints the lines under their headings, and below it what the marks mean.
pub(crate) fn print(lines: &[Line]) {
    let headings = [
        "subject",
        "asked",
        "offered",
        "sent",
        "lost",
        "lost %",
        "subject ns",
        "softirq ns",
        "both ns",
        "memory",
        "",
    ];
    let mut rows = vec![headings.map(str::to_owned)];
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
    let widths = (0..headings.len()).map(|column| {
        rows.iter()
            .map(|row| row.get(column).map_or(0, |cell| cell.chars().count()))
            .max()
            .unwrap_or(0)
    });
    let widths: Vec<usize> = widths.collect();
    for row in &rows {
        let mut text = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            // The subject to the left, figures to the right.
            let left = column == 0 || column + 1 == row.len();
            let parts = if left { [cell, padding.as_str()] } else { [padding.as_str(), cell] };
            text.push_str(parts[0]);
            text.push_str(parts[1]);
            text.push_str("  ");
        }
        println!("{}", text.trim_end());
    }
    println!();
    let mut seen = String::new();
    for note in lines.iter().flat_map(|line| &line.notes) {
        if !seen.contains(mark(note)) {
            seen.push(mark(note));
            println!("{}  {}", mark(note), explain(note));
        }
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
