//! What came out, for people and for tools.

use std::io::{self, Write};

use serde_json::json;

use super::{KeySource, Report};
use crate::output::bytes;
use crate::terminal::{Look, Paint};
use crate::text::visible;
use crate::times::{Clock, rfc3339};

/// Most findings, open files and declarations listed for people; the JSON has them all.
const LISTED: usize = 40;

/// One object in one line.
///
/// # Errors
/// Those of the output.
pub fn write_json(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let object = json!({
        "store": report.store,
        "sensor": report.sensor,
        "sensor_id": report.sensor_id,
        "verdict": if report.is_whole() { "whole" } else { "findings" },
        "key": report.key.as_ref().map(|(key, source)| json!({
            "public_key": key, "source": source,
        })),
        "in_use": report.in_use,
        "ledger": {
            "lines": report.lines,
            "unsigned": report.unsigned,
            "runs": report.runs,
            "from": report.span.map(|(from, _)| rfc3339(from)),
            "to": report.span.map(|(_, to)| rfc3339(to)),
            "seq": report.head.as_ref().map(|head| head.seq),
            "head": report.head.as_ref().map(|head| &head.hash),
        },
        "files": {
            "verified": report.files, "bytes": report.bytes, "retired": report.retired,
        },
        "open": report.open,
        "anchors": report.anchors,
        "declared": report.declared,
        "findings": report.findings.listed,
        "more_findings": report.findings.more,
    });
    serde_json::to_writer(&mut *out, &object)?;
    out.write_all(b"\n")
}

/// A summary, and every finding in a line.
///
/// # Errors
/// Those of the output.
pub fn write_text(
    report: &Report,
    clock: &Clock,
    look: &Look,
    out: &mut impl Write,
) -> io::Result<()> {
    let title = format!("{}  {}", visible(&report.sensor), visible(&report.store));
    write!(out, "{}", look.paint(Paint::Heading, title))?;
    writeln!(out, "{}", if report.in_use { "  (its sensor is running)" } else { "" })?;
    summary(report, clock, look, out)?;
    for declared in report.declared.iter().take(LISTED) {
        writeln!(out, "declared {}", visible(declared))?;
    }
    more(report.declared.len(), "of these", out)?;
    for finding in report.findings.listed.iter().take(LISTED) {
        let what = format!("{}: {}", visible(&finding.place), visible(&finding.what));
        writeln!(out, "{}  {what}", look.paint(Paint::Bad, "WRONG  "))?;
    }
    more(report.findings.listed.len(), "findings", out)?;
    let count = report.findings.listed.len() as u64 + report.findings.more;
    match count {
        0 => writeln!(
            out,
            "{}",
            look.paint(Paint::Good, "whole: the store is as its sensor wrote it")
        ),
        1 => writeln!(out, "{}", look.paint(Paint::Bad, "1 finding")),
        _ => writeln!(out, "{}", look.paint(Paint::Bad, format!("{count} findings"))),
    }
}

fn summary(report: &Report, clock: &Clock, look: &Look, out: &mut impl Write) -> io::Result<()> {
    if let Some((key, source)) = &report.key {
        writeln!(out, "key      {key}  {}", look.paint(Paint::Faint, explain(*source)))?;
    }
    write!(out, "ledger   {} lines of {} runs", report.lines, report.runs)?;
    if let Some((from, to)) = report.span {
        write!(out, ", {} to {}", clock.short(from), clock.short(to))?;
    }
    if report.unsigned > 0 {
        write!(out, ", {} of them without a signature", report.unsigned)?;
    }
    writeln!(out)?;
    if let Some(head) = &report.head {
        writeln!(out, "head     line {} of the chain, {}", head.seq, head.hash)?;
    }
    write!(out, "files    {} sealed files with {} verified", report.files, bytes(report.bytes))?;
    writeln!(out, ", {} removed to keep the budgets", report.retired)?;
    for anchor in &report.anchors {
        write!(out, "anchors  {}: {}", visible(&anchor.path), anchor.anchors)?;
        if let (Some(seq), Some(at)) = (anchor.last_seq, anchor.last_at) {
            write!(out, ", the last one of line {seq} at {}", clock.short(at))?;
        }
        writeln!(out)?;
    }
    for open in report.open.iter().take(LISTED) {
        writeln!(out, "open     {}: open, not sealed yet", visible(&open.path))?;
    }
    more(report.open.len(), "open files", out)
}

fn more(count: usize, what: &str, out: &mut impl Write) -> io::Result<()> {
    match count.checked_sub(LISTED) {
        None | Some(0) => Ok(()),
        Some(more) => writeln!(out, "and {more} more {what}: --format json lists them all"),
    }
}

fn explain(source: KeySource) -> &'static str {
    match source {
        KeySource::Given => "as given",
        KeySource::Anchor => "named by the anchors",
        KeySource::Store => {
            "named by the store itself: --public-key or --anchor proves that it is the sensor's"
        }
    }
}
