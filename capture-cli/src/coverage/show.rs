//! Coverage for people and for tools.

use std::io::{self, Write};

use capture_flow::time::Nanos;
use serde_json::{Value, json};

use super::{Coverage, Gap, covered, length};
use crate::terminal::{Look, Paint};
use crate::text::visible;
use crate::times::{Clock, length as lasting, rfc3339};

/// Most gaps listed for people; the JSON has them all.
const LISTED: usize = 40;

/// One object: the window as all sensors together cover it, then each sensor.
///
/// # Errors
/// Those of the output.
pub fn write_json(sensors: &[Coverage], out: &mut impl Write) -> io::Result<()> {
    let window = whole_window(sensors);
    let (covered_ns, window_ns) = covered(window, sensors.iter().flat_map(|sensor| &sensor.gaps));
    let mut gaps: Vec<&Gap> = sensors.iter().flat_map(|sensor| &sensor.gaps).collect();
    gaps.sort_by_key(|gap| (gap.from, gap.to));
    let object = json!({
        "from": window.map(|(from, _)| rfc3339(from)),
        "to": window.map(|(_, to)| rfc3339(to)),
        "window_s": seconds(window_ns),
        "covered_s": seconds(covered_ns),
        "frames_lost": gaps.iter().fold(0u64, |sum, gap| sum.saturating_add(gap.frames_lost)),
        "gaps": gaps.iter().map(|gap| gap_json(gap)).collect::<Vec<_>>(),
        "sensors": sensors.iter().map(sensor_json).collect::<Vec<_>>(),
    });
    serde_json::to_writer(&mut *out, &object)?;
    out.write_all(b"\n")
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// A gap as an object.
#[must_use]
pub fn gap_json(gap: &Gap) -> Value {
    json!({
        "from": rfc3339(gap.from),
        "to": rfc3339(gap.to),
        "reason": gap.reason.as_str(),
        "frames_lost": gap.frames_lost,
        "detail": gap.detail,
        "sensor": gap.sensor,
        "packets_only": gap.packets_only,
    })
}

fn sensor_json(sensor: &Coverage) -> Value {
    let (covered_ns, window_ns) = sensor.covered();
    let totals = sensor.totals.iter().map(|((name, queue), totals)| {
        json!({
            "name": name, "queue": queue, "seen": totals.seen, "received": totals.received,
            "passed": totals.passed, "lost": totals.lost,
        })
    });
    json!({
        "sensor": sensor.sensor,
        "window_s": seconds(window_ns),
        "covered_s": seconds(covered_ns),
        "lines": sensor.lines,
        "complete_through": sensor.complete_through.map(rfc3339),
        "packets_retired_through": sensor.packets_retired_through.map(rfc3339),
        "sources": totals.collect::<Vec<_>>(),
        "frames": sensor.kept,
    })
}

/// From the earliest to the latest moment that any sensor was asked about.
fn whole_window(sensors: &[Coverage]) -> Option<(Nanos, Nanos)> {
    sensors.iter().filter_map(|sensor| sensor.window).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}

/// A strip of time for each sensor, then its gaps and its totals.
///
/// # Errors
/// Those of the output.
pub fn write_text(
    sensors: &[Coverage],
    clock: &Clock,
    look: &Look,
    out: &mut impl Write,
) -> io::Result<()> {
    for (number, sensor) in sensors.iter().enumerate() {
        if number > 0 {
            writeln!(out)?;
        }
        one(sensor, clock, look, out)?;
    }
    Ok(())
}

/// The strip of one sensor and its gaps, without the totals.
///
/// # Errors
/// Those of the output.
pub fn write_short(
    sensor: &Coverage,
    clock: &Clock,
    look: &Look,
    out: &mut impl Write,
) -> io::Result<()> {
    let name = visible(&sensor.sensor);
    let Some((from, to)) = sensor.window else {
        return writeln!(out, "{name}: the ledger is empty; no sensor has run");
    };
    heading(sensor, from, to, clock, look, out)?;
    gaps(sensor, clock, look, out)
}

fn one(sensor: &Coverage, clock: &Clock, look: &Look, out: &mut impl Write) -> io::Result<()> {
    let name = visible(&sensor.sensor);
    let Some((from, to)) = sensor.window else {
        return writeln!(out, "{name}: the ledger is empty; no sensor has run");
    };
    heading(sensor, from, to, clock, look, out)?;
    gaps(sensor, clock, look, out)?;
    totals(sensor, look, out)?;
    if let Some(at) = sensor.packets_retired_through {
        writeln!(out, "packets up to {} were retired to keep the budget", clock.long(at))?;
    }
    if let Some(at) = sensor.complete_through {
        writeln!(out, "the session log is complete through {}", clock.long(at))?;
    }
    Ok(())
}

/// Who, when, the strip, and how much of it is covered.
fn heading(
    sensor: &Coverage,
    from: Nanos,
    to: Nanos,
    clock: &Clock,
    look: &Look,
    out: &mut impl Write,
) -> io::Result<()> {
    let (covered_ns, window_ns) = sensor.covered();
    let name = visible(&sensor.sensor);
    let name = look.paint(Paint::Heading, &name);
    writeln!(out, "{name}  {} to {}", clock.long(from), clock.long(to))?;
    strip(sensor, from, to, look, out)?;
    let paint = if covered_ns == window_ns { Paint::Good } else { Paint::Warn };
    let summary = format!(
        "{} covered: {} of {}",
        percent(covered_ns, window_ns),
        lasting(seconds(covered_ns)),
        lasting(seconds(window_ns))
    );
    write!(out, "{}", look.paint(paint, summary))?;
    writeln!(out, ", {}", frames_lost(sensor.frames_lost()))
}

/// Rounded down: only a window without any gap is 100 % covered.
fn percent(part: u64, whole: u64) -> String {
    if part == whole {
        return "100 %".to_owned();
    }
    let share = (part as f64 / whole.max(1) as f64 * 1000.0).floor().min(999.0) / 10.0;
    format!("{share:.1} %")
}

fn frames_lost(frames: u64) -> String {
    match frames {
        0 => "no frames known lost".to_owned(),
        1 => "1 frame lost".to_owned(),
        _ => format!("{frames} frames lost"),
    }
}

/// What a cell of the strip shows: the worst that happened in its time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    Covered,
    Lossy,
    Blind,
}

impl Cell {
    const fn look(self) -> (char, Paint) {
        match self {
            Self::Covered => ('█', Paint::Good),
            Self::Lossy => ('▒', Paint::Warn),
            Self::Blind => ('·', Paint::Bad),
        }
    }
}

fn cells(sensor: &Coverage, from: Nanos, to: Nanos, width: usize) -> Vec<Cell> {
    let mut cells = vec![Cell::Covered; width];
    let whole = length(from, to).max(1);
    let place = |at: Nanos| {
        let share = u128::from(length(from, at)) * width as u128 / u128::from(whole);
        usize::try_from(share).unwrap_or(width).min(width.saturating_sub(1))
    };
    for gap in &sensor.gaps {
        let cell = if gap.reason.is_blind() { Cell::Blind } else { Cell::Lossy };
        let (first, last) = (place(gap.from), place(gap.to));
        // A gap that ends where a cell begins does not touch that cell.
        let last = if last > first && gap.to < to {
            last.max(first + 1) - usize::from(on_edge(from, gap.to, whole, width))
        } else {
            last
        };
        for slot in cells.iter_mut().take(last + 1).skip(first) {
            *slot = (*slot).max(cell);
        }
    }
    cells
}

fn on_edge(from: Nanos, at: Nanos, whole: u64, width: usize) -> bool {
    (u128::from(length(from, at)) * width as u128).is_multiple_of(u128::from(whole))
}

fn strip(
    sensor: &Coverage,
    from: Nanos,
    to: Nanos,
    look: &Look,
    out: &mut impl Write,
) -> io::Result<()> {
    let cells = cells(sensor, from, to, look.width());
    for group in cells.chunk_by(|a, b| a == b) {
        let Some(cell) = group.first() else { continue };
        let (sign, paint) = cell.look();
        let text: String = std::iter::repeat_n(sign, group.len()).collect();
        write!(out, "{}", look.paint(paint, text))?;
    }
    writeln!(out)?;
    if cells.iter().any(|cell| *cell != Cell::Covered) {
        writeln!(out, "{}", look.paint(Paint::Faint, "█ covered  ▒ something lost  · blind"))?;
    }
    Ok(())
}

fn gaps(sensor: &Coverage, clock: &Clock, look: &Look, out: &mut impl Write) -> io::Result<()> {
    for gap in sensor.gaps.iter().take(LISTED) {
        let paint = if gap.reason.is_blind() { Paint::Bad } else { Paint::Warn };
        write!(
            out,
            "  {} to {}  {:>12}  {}",
            clock.short(gap.from),
            clock.short(gap.to),
            lasting(seconds(length(gap.from, gap.to))),
            look.paint(paint, gap.reason.explain())
        )?;
        if !gap.detail.is_empty() {
            write!(out, ": {}", visible(&gap.detail))?;
        }
        if gap.frames_lost > 0 {
            write!(out, " ({} frames)", gap.frames_lost)?;
        }
        if gap.packets_only {
            write!(out, " (the packets alone)")?;
        }
        writeln!(out)?;
    }
    let more = sensor.gaps.len().saturating_sub(LISTED);
    if more > 0 {
        writeln!(out, "  and {more} more gaps: --format json lists them all")?;
    }
    Ok(())
}

fn totals(sensor: &Coverage, look: &Look, out: &mut impl Write) -> io::Result<()> {
    for ((name, queue), totals) in &sensor.totals {
        let place = match queue {
            Some(queue) => format!("{} queue {queue}", visible(name)),
            None => visible(name).into_owned(),
        };
        write!(out, "{place}: {} frames seen, {} received", totals.seen, totals.received)?;
        if totals.passed > 0 {
            write!(out, ", {} passed to the host", totals.passed)?;
        }
        let paint = if totals.lost > 0 { Paint::Warn } else { Paint::Faint };
        writeln!(out, ", {}", look.paint(paint, format!("{} lost", totals.lost)))?;
    }
    let kept = &sensor.kept;
    writeln!(
        out,
        "workers: {} frames decoded, {} undecodable, {} written, {} not written; {} session rows",
        kept.decoded, kept.undecodable, kept.written, kept.dropped, kept.rows
    )
}
