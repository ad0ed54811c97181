//! The rules by which a part of a window is not covered.

use std::collections::BTreeMap;

use capture_flow::time::{Nanos, NanosDelta};
use capture_store::ledger::{Damage, LedgerLine, Nic, Note, imbalances};

use super::{Coverage, Gap, Kept, Reason, length};
use crate::times::Window;

/// How long after its last line a run without a clean stop counts as alive. Lines come every
/// second; a busy machine may be late.
const ALIVE: NanosDelta = NanosDelta::from_secs(30);

pub(super) fn coverage(
    sensor: &str,
    lines: &[LedgerLine],
    damage: &[Damage],
    window: Window,
    now: Nanos,
) -> Coverage {
    let mut coverage = Coverage { sensor: sensor.to_owned(), ..Coverage::default() };
    let first = lines.iter().map(|line| line.from).min();
    let last = lines.iter().map(|line| line.to).max();
    coverage.complete_through = lines.iter().filter_map(|line| line.complete_through).max();
    let (Some(from), Some(to)) = (window.from.or(first), window.to.or(last)) else {
        return coverage;
    };
    if from > to {
        return coverage;
    }
    coverage.window = Some((from, to));
    let mut gaps = Gaps { sensor, from, to, found: Vec::new() };
    for line in lines {
        if line.overlaps(from, to) {
            coverage.lines += 1;
            count(line, &mut coverage);
            of_line(line, &mut gaps);
        }
        of_notes(line, &mut gaps, &mut coverage);
    }
    between_lines(lines, damage, now, &mut gaps);
    of_damage(damage, &mut gaps);
    coverage.gaps = gaps.joined();
    coverage
}

/// Gaps within a window.
struct Gaps<'a> {
    sensor: &'a str,
    from: Nanos,
    to: Nanos,
    found: Vec<Gap>,
}

impl Gaps<'_> {
    /// Notes a gap, cut to the window; one outside is dropped.
    fn add(&mut self, span: (Nanos, Nanos), reason: Reason, frames_lost: u64, detail: String) {
        let (from, to) = (span.0.max(self.from), span.1.min(self.to));
        if from > to {
            return;
        }
        let sensor = self.sensor.to_owned();
        self.found.push(Gap { from, to, reason, frames_lost, detail, sensor });
    }

    /// In the order of time, with those that continue each other made one.
    fn joined(self) -> Vec<Gap> {
        let mut open: BTreeMap<(Reason, String), Gap> = BTreeMap::new();
        let mut done = Vec::new();
        let mut found = self.found;
        found.sort_by_key(|gap| (gap.from, gap.to));
        for gap in found {
            let key = (gap.reason, gap.detail.clone());
            match open.get_mut(&key) {
                Some(before) if gap.from <= before.to => {
                    before.to = before.to.max(gap.to);
                    before.frames_lost = before.frames_lost.saturating_add(gap.frames_lost);
                }
                _ => done.extend(open.insert(key, gap)),
            }
        }
        done.extend(open.into_values());
        done.sort_by_key(|gap| (gap.from, gap.to, gap.reason));
        done
    }
}

/// What a line itself says was missed in its interval.
fn of_line(line: &LedgerLine, gaps: &mut Gaps<'_>) {
    let span = (line.from, line.to);
    for interface in &line.interfaces {
        let name = &interface.name;
        if !interface.link.up || interface.link.down_ns > 0 || interface.link.changes > 0 {
            gaps.add(span, Reason::LinkDown, 0, name.clone());
        }
        if let Some(lost) = interface.nic.as_ref().map(Nic::lost).filter(|lost| *lost > 0) {
            gaps.add(span, Reason::NicLoss, lost, name.clone());
        }
        for queue in &interface.queues {
            let place = format!("{name} queue {}", queue.queue);
            if queue.ring_losses > 0 {
                gaps.add(span, Reason::RingLoss, queue.ring_losses, place.clone());
            }
            if queue.xdp.no_socket > 0 || queue.worker.is_none() {
                gaps.add(span, Reason::NoSocket, queue.xdp.no_socket, place.clone());
            }
            if queue.xdp.aborted > 0 {
                gaps.add(span, Reason::XdpAborted, queue.xdp.aborted, place);
            }
        }
    }
    for worker in &line.workers {
        for (reason, frames) in worker.dropped.iter().filter(|(_, frames)| **frames > 0) {
            let why = reason.explain().to_owned();
            gaps.add(span, Reason::PacketsNotWritten, *frames, why);
        }
    }
    for (reason, rows) in line.rows.lost.iter().filter(|(_, rows)| **rows > 0) {
        gaps.add(span, Reason::RowsLost, 0, format!("{rows} by {}", reason.as_str()));
    }
    if let Some(clock) = line.clock.as_ref().filter(|clock| clock.stepped_ns != 0) {
        let by = crate::times::length(clock.stepped_ns as f64 / 1e9);
        gaps.add(span, Reason::ClockStepped, 0, format!("by {by}"));
    }
    for file in line.files.iter().filter(|file| file.cut) {
        gaps.add((line.to, line.to), Reason::CaptureCut, 0, file.name.clone());
    }
    for wrong in imbalances(line) {
        let missing = wrong.left.abs_diff(wrong.right);
        gaps.add(
            span,
            Reason::Unaccounted,
            missing,
            format!("{}: {}", wrong.account, wrong.equation),
        );
    }
}

/// What a line says about other times.
fn of_notes(line: &LedgerLine, gaps: &mut Gaps<'_>, coverage: &mut Coverage) {
    for note in &line.notes {
        let Note::Retired(file) = note else { continue };
        if file.first_ts > file.last_ts {
            continue;
        }
        if file.path.starts_with("sessions/") {
            gaps.add((file.first_ts, file.last_ts), Reason::SessionsRetired, 0, String::new());
        } else if file.path.starts_with("pcap/") {
            coverage.packets_retired_through =
                coverage.packets_retired_through.max(Some(file.last_ts));
        }
    }
}

/// A run as its lines show it.
struct Run<'a> {
    from: Nanos,
    to: Nanos,
    /// Begin of the time of which some session may have no row: the run's end if it ended
    /// cleanly.
    complete: Nanos,
    clean: bool,
    lines: Vec<&'a LedgerLine>,
}

fn runs(lines: &[LedgerLine]) -> Vec<Run<'_>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    for line in lines {
        let clean = line.notes.iter().any(|note| matches!(note, Note::CleanStop));
        let at = *known.entry(line.run.as_str()).or_insert(runs.len());
        let fresh = Run {
            from: line.from,
            to: line.to,
            complete: line.from,
            clean: false,
            lines: Vec::new(),
        };
        if at == runs.len() {
            runs.push(fresh);
        }
        let Some(run) = runs.get_mut(at) else { continue };
        run.from = run.from.min(line.from);
        run.to = run.to.max(line.to);
        run.clean |= clean;
        run.complete = run.complete.max(line.complete_through.unwrap_or(run.complete));
        run.lines.push(line);
    }
    for run in &mut runs {
        run.lines.sort_by_key(|line| line.interval);
        if run.clean {
            run.complete = run.to;
        }
    }
    runs.sort_by_key(|run| (run.from, run.to));
    runs
}

/// The time that no line speaks of, and the ends of runs.
fn between_lines(lines: &[LedgerLine], damage: &[Damage], now: Nanos, gaps: &mut Gaps<'_>) {
    let runs = runs(lines);
    // Missing lines within a run: the intervals are numbered and join end to begin.
    for run in &runs {
        for pair in run.lines.windows(2) {
            let [before, after] = pair else { continue };
            if after.from > before.to || after.interval > before.interval.saturating_add(1) {
                let (reason, detail) = hole(damage);
                gaps.add((before.to, after.from.max(before.to)), reason, 0, detail);
            }
        }
    }
    let newest = runs.iter().map(|run| run.to).max();
    let mut reached = gaps.from;
    let mut died: Option<Nanos> = None;
    for run in &runs {
        if run.from > reached {
            idle((reached, run.from), died, gaps);
        }
        let alive = !run.clean && Some(run.to) == newest && (now - run.to).0 < ALIVE.0;
        if !run.clean && run.complete < run.to {
            let reason = if alive { Reason::NotYet } else { Reason::UncleanEnd };
            gaps.add((run.complete, run.to), reason, 0, String::new());
        }
        if alive && run.to < gaps.to {
            gaps.add((run.to, gaps.to), Reason::NotYet, 0, String::new());
            reached = gaps.to;
        }
        reached = reached.max(run.to);
        died = (!run.clean && !alive).then_some(run.to);
    }
    if reached < gaps.to || runs.is_empty() {
        idle((reached, gaps.to), died, gaps);
    }
}

/// Time without a run: what came before decides how it began.
fn idle(span: (Nanos, Nanos), died: Option<Nanos>, gaps: &mut Gaps<'_>) {
    let reason = match died {
        Some(at) if at == span.0 => Reason::UncleanEnd,
        _ => Reason::NoSensor,
    };
    gaps.add(span, reason, 0, String::new());
}

/// What a hole in a run's lines is called.
fn hole(damage: &[Damage]) -> (Reason, String) {
    match damage.iter().find(|damage| !damage.torn_end) {
        Some(damage) => (Reason::LedgerDamaged, place(damage)),
        None => (Reason::LineMissing, String::new()),
    }
}

fn place(damage: &Damage) -> String {
    let name = damage.path.file_name().unwrap_or_default().to_string_lossy();
    format!("{name} line {}", damage.line)
}

/// A line that cannot be read leaves a hole which the other rules find, unless it was its run's
/// last or only one: the day it belongs to is all that is known then. The unfinished end of a
/// file is a line being written.
fn of_damage(damage: &[Damage], gaps: &mut Gaps<'_>) {
    for damage in damage.iter().filter(|damage| !damage.torn_end) {
        let holes = gaps.found.iter().any(|gap| {
            gap.reason == Reason::LedgerDamaged
                || (gap.reason.is_blind() && length(gap.from, gap.to) > 0)
        });
        if !holes {
            gaps.add((gaps.from, gaps.to), Reason::LedgerDamaged, 0, place(damage));
        }
    }
}

fn count(line: &LedgerLine, coverage: &mut Coverage) {
    let add = |total: &mut u64, more: u64| *total = total.saturating_add(more);
    for interface in &line.interfaces {
        for queue in &interface.queues {
            let key = (interface.name.clone(), Some(queue.queue));
            let totals = coverage.totals.entry(key).or_default();
            add(&mut totals.seen, queue.xdp.seen);
            add(&mut totals.received, queue.received);
            add(&mut totals.passed, queue.xdp.passed);
            add(&mut totals.lost, queue.ring_losses);
            add(&mut totals.lost, queue.xdp.no_socket);
            add(&mut totals.lost, queue.xdp.aborted);
        }
        if let Some(lost) = interface.nic.as_ref().map(Nic::lost).filter(|lost| *lost > 0) {
            let totals = coverage.totals.entry((interface.name.clone(), None)).or_default();
            add(&mut totals.lost, lost);
        }
    }
    for file in &line.files {
        let totals = coverage.totals.entry((file.name.clone(), None)).or_default();
        add(&mut totals.seen, file.received);
        add(&mut totals.received, file.received);
    }
    let Kept { decoded, undecodable, written, dropped, rows } = &mut coverage.kept;
    for worker in &line.workers {
        add(decoded, worker.decoded);
        add(written, worker.written);
        worker.undecodable.values().for_each(|frames| add(undecodable, *frames));
        worker.dropped.values().for_each(|frames| add(dropped, *frames));
    }
    add(rows, line.rows.written);
}
