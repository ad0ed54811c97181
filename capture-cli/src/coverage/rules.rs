//! The rules by which a part of a window is not covered.

use std::collections::{BTreeMap, BTreeSet};

use capture_flow::time::{Nanos, NanosDelta};
use capture_store::DropReason;
use capture_store::ledger::{
    Blind, BlindCause, Damage, Interface, LedgerLine, LedgerRead, Nic, Note, imbalances,
};
use capture_store::recover::RecoveryReport;

use super::rings::Rings;
use super::{AskedAt, Coverage, Gap, Kept, Reason, length};
use crate::times::Window;

/// How long after its last line a run without a clean stop counts as alive, where the store's lock
/// does not tell. Lines come every second; a busy machine may be late.
const ALIVE: NanosDelta = NanosDelta::from_secs(30);
/// How long a process that holds the lock may have been suspended. What is older was left by a run
/// that died, and another one holds the lock now.
const SUSPENDED: NanosDelta = NanosDelta::from_secs(3600);

/// How long a session may wait for its next row where no line says how long it did: far more than
/// any interim interval that makes sense.
const LONGEST_WAIT: NanosDelta = NanosDelta::from_secs(3600);
/// Why something is missing although the sensor had it, or where it was meanwhile.
const RESTARTED: &str = "the machine was restarted";
/// How late a driver may tell what its NIC counted: some ask the hardware every two seconds.
const NIC_LAG: NanosDelta = NanosDelta::from_secs(2);

/// How long after its end a line may be written, its counters read meanwhile. What claims more is
/// another clock: packet time in a replay, or a clock that was stepped.
const WRITING: NanosDelta = NanosDelta::from_secs(60);

pub(super) fn coverage(sensor: &str, read: &LedgerRead, window: Window, at: AskedAt) -> Coverage {
    let LedgerRead { lines, damage, other_notes } = read;
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
        }
        of_notes(&line.notes, &mut gaps, &mut coverage);
    }
    // A clock that was set back can have made a line of later earlier than the window.
    for (_, notes) in other_notes {
        of_notes(notes, &mut gaps, &mut coverage);
    }
    let runs = runs(lines);
    for run in &runs {
        of_run(run, &mut gaps);
    }
    between_lines(&runs, lines, damage, at, &mut gaps);
    set_back(lines, &mut gaps);
    left_out(&runs, &mut gaps);
    of_damage(damage, &mut gaps);
    coverage.gaps = gaps.joined();
    coverage
}

/// Gaps within a window.
struct Gaps<'a> {
    sensor: &'a str,
    from: Nanos,
    to: Nanos,
    /// Each with what it has in common with those that it may be joined with.
    found: Vec<(String, Gap)>,
}

impl Gaps<'_> {
    /// Notes a gap, cut to the window; one outside is dropped.
    fn add(&mut self, span: (Nanos, Nanos), reason: Reason, frames_lost: u64, place: String) {
        self.add_with(span, reason, frames_lost, place, "", false);
    }

    /// The same for a gap with more to say about it than where it was.
    fn add_with(
        &mut self,
        span: (Nanos, Nanos),
        reason: Reason,
        frames_lost: u64,
        place: String,
        more: &str,
        packets_only: bool,
    ) {
        let (from, to) = (span.0.max(self.from), span.1.min(self.to));
        if from > to {
            return;
        }
        let detail = match (place.is_empty(), more.is_empty()) {
            (_, true) => place.clone(),
            (true, false) => more.to_owned(),
            (false, false) => format!("{place}: {more}"),
        };
        let sensor = self.sensor.to_owned();
        let gap = Gap { from, to, reason, frames_lost, detail, sensor, packets_only };
        self.found.push((place, gap));
    }

    /// In the order of time, with those that continue each other made one.
    fn joined(self) -> Vec<Gap> {
        let mut open: BTreeMap<(Reason, bool, String), Gap> = BTreeMap::new();
        let mut done = Vec::new();
        let mut found = self.found;
        found.sort_by_key(|(_, gap)| (gap.from, gap.to));
        for (place, gap) in found {
            let key = (gap.reason, gap.packets_only, place);
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

/// When a line's counters had been read: what it counted happened no later.
fn read_by(line: &LedgerLine) -> Nanos {
    let written = line.written_at;
    let plausible = line.mode == "capture" && written - line.to < WRITING;
    if plausible { written.max(line.to) } else { line.to }
}

/// What the lines of a run say was missed in their intervals.
fn of_run(run: &Run<'_>, gaps: &mut Gaps<'_>) {
    let mut rings = Rings::default();
    let mut promised: Option<Nanos> = None;
    for line in &run.lines {
        let span = (line.from, read_by(line));
        for interface in &line.interfaces {
            let name = interface.name.as_str();
            for queue in &interface.queues {
                if let Some(loss) = rings.loss(name, queue, (line.from, line.to)) {
                    let place = format!("{name} queue {}", queue.queue);
                    gaps.add((loss.since, span.1), Reason::RingLoss, loss.frames, place);
                }
            }
            of_interface(line, interface, span, gaps);
        }
        for blind in &line.blind {
            let more = blind.detail.as_str();
            gaps.add_with(
                (blind.from, blind.to),
                blind.cause.into(),
                0,
                place_of(blind),
                more,
                false,
            );
        }
        of_workers(line, span, gaps);
        // A row tells of frames from as long ago as its session was not written. What the line
        // before promised had its row by then.
        let unwritten = promised.unwrap_or(match line.interval {
            0 => line.from,
            _ => line.from - LONGEST_WAIT,
        });
        for (reason, rows) in line.rows.lost.iter().filter(|(_, rows)| **rows > 0) {
            let detail = format!("{rows} by {}", reason.as_str());
            gaps.add((unwritten.min(line.from), span.1), Reason::RowsLost, 0, detail);
        }
        promised = line.complete_through.or(promised);
        if let Some(clock) = line.clock.as_ref().filter(|clock| clock.stepped_ns != 0) {
            let by = crate::times::length(clock.stepped_ns as f64 / 1e9);
            // A clock that was set back shows some time twice.
            let from = line.from.min(line.to + NanosDelta(clock.stepped_ns));
            gaps.add((from, span.1), Reason::ClockStepped, 0, format!("by {by}"));
        }
        for file in line.files.iter().filter(|file| file.cut) {
            gaps.add((line.to, line.to), Reason::CaptureCut, 0, file.name.clone());
        }
        for wrong in imbalances(line) {
            let missing = wrong.left.abs_diff(wrong.right);
            let account = format!("{}: {}", wrong.account, wrong.equation);
            gaps.add(span, Reason::Unaccounted, missing, account);
        }
    }
}

fn of_interface(
    line: &LedgerLine,
    interface: &Interface,
    span: (Nanos, Nanos),
    gaps: &mut Gaps<'_>,
) {
    let name = &interface.name;
    let link = &interface.link;
    // Where the sensor says from when to when, that is better than the whole line.
    let told = line.blind.iter().any(|blind| {
        matches!(blind.cause, BlindCause::LinkDown | BlindCause::InterfaceGone)
            && blind.iface.as_ref().is_none_or(|iface| iface == name)
    });
    if !told && (!link.up || link.down_ns > 0 || link.changes > 0) {
        gaps.add((line.from, line.to), Reason::LinkDown, 0, name.clone());
    }
    let nic = (span.0 - NIC_LAG, span.1);
    if let Some(lost) = interface.nic.as_ref().map(Nic::lost).filter(|lost| *lost > 0) {
        gaps.add(nic, Reason::NicLoss, lost, name.clone());
    }
    for queue in &interface.queues {
        let place = || format!("{name} queue {}", queue.queue);
        let xdp = &queue.xdp;
        if xdp.no_socket > 0 || queue.worker.is_none() {
            gaps.add(span, Reason::NoSocket, xdp.no_socket, place());
        }
        if xdp.aborted > 0 {
            gaps.add(span, Reason::XdpAborted, xdp.aborted, place());
        }
        if xdp.passed > 0 {
            gaps.add(span, Reason::ExcludedByPolicy, xdp.passed, place());
        }
    }
}

/// Where a cause is.
fn place_of(blind: &Blind) -> String {
    let mut place = blind.iface.clone().unwrap_or_default();
    let mut add = |what: &str, number: Option<u32>| {
        if let Some(number) = number {
            let space = if place.is_empty() { "" } else { " " };
            place = format!("{place}{space}{what} {number}");
        }
    };
    add("queue", blind.queue);
    add("worker", blind.worker.map(u32::from));
    place
}

fn of_workers(line: &LedgerLine, span: (Nanos, Nanos), gaps: &mut Gaps<'_>) {
    for worker in &line.workers {
        let unread = worker.unread() > 0;
        for (reason, frames) in worker.dropped.iter().filter(|(_, frames)| **frames > 0) {
            // A frame that was decoded is in its session although no segment has it. One that was
            // not is nowhere; and what fails on the disk under the segments may fail on the
            // session log beside them.
            let only = matches!(reason, DropReason::NoSegment | DropReason::TooLarge) && !unread;
            let why = reason.explain().to_owned();
            gaps.add_with(span, Reason::PacketsNotWritten, *frames, why, "", only);
        }
    }
    let evicted = line.workers.iter().fold(0_u64, |sum, w| sum.saturating_add(w.evicted));
    if evicted > 0 {
        let more = format!("{evicted} sessions or more were written out early");
        gaps.add_with(span, Reason::TableOverflow, 0, String::new(), &more, false);
    }
}

/// What a line says about other times.
fn of_notes(notes: &[Note], gaps: &mut Gaps<'_>, coverage: &mut Coverage) {
    for note in notes {
        of_recovery(note, gaps);
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

/// What was found missing after an unclean end.
fn of_recovery(note: &Note, gaps: &mut Gaps<'_>) {
    match note {
        Note::LogCut { path, bytes, doubt } => {
            let more = format!("{bytes} bytes of {path} were not on the disk");
            let place = RESTARTED.to_owned();
            gaps.add_with((doubt.from, doubt.to), Reason::RowsLost, 0, place, &more, false);
        }
        Note::Altered { path, doubt: Some(doubt) } => {
            gaps.add((doubt.from, doubt.to), Reason::SessionsChanged, 0, path.clone());
        }
        Note::Recovered(report) => {
            if let Some(lost) = &report.frames_lost_in {
                // Rows are another record: what is lost of them is told by itself.
                let (frames, why) = (report.frames_lost, RESTARTED.to_owned());
                gaps.add_with(
                    (lost.from, lost.to),
                    Reason::PacketsNotWritten,
                    frames,
                    why,
                    "",
                    true,
                );
            }
        }
        _ => {}
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

/// How the run before a time without a sensor ended.
#[derive(Clone, Copy)]
struct Before<'a> {
    died: bool,
    boot_id: Option<&'a str>,
}

impl Before<'_> {
    /// Whether the machine was restarted until a later run began.
    fn restarted(self, next: Option<&Run<'_>>) -> bool {
        let next = next.and_then(Run::boot_id);
        self.boot_id.zip(next).is_some_and(|(before, next)| before != next)
    }
}

impl Run<'_> {
    /// Which start of the machine its lines were written in.
    fn boot_id(&self) -> Option<&str> {
        self.lines.iter().find_map(|line| line.boot_id.as_deref())
    }

    /// What it found when it began, after an unclean end.
    fn recovered(&self) -> Option<&RecoveryReport> {
        let notes = self.lines.iter().take(1).flat_map(|line| &line.notes);
        notes
            .filter_map(|note| if let Note::Recovered(report) = note { Some(report) } else { None })
            .next_back()
    }

    fn captures(&self) -> bool {
        self.lines.iter().any(|line| line.mode == "capture")
    }
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
        run.lines.push(line);
    }
    for run in &mut runs {
        run.lines.sort_by_key(|line| line.interval);
        // The last word counts: a frame that came late takes a promise back.
        if let Some(through) = run.lines.iter().rev().find_map(|line| line.complete_through) {
            run.complete = through;
        }
        if run.clean {
            run.complete = run.to;
        }
    }
    runs.sort_by_key(|run| (run.from, run.to));
    runs
}

/// The time that no line speaks of, and the ends of runs.
fn between_lines(
    runs: &[Run<'_>],
    lines: &[LedgerLine],
    damage: &[Damage],
    at: AskedAt,
    gaps: &mut Gaps<'_>,
) {
    // Missing lines within a run: the intervals are numbered and join end to begin.
    for run in runs {
        for pair in run.lines.windows(2) {
            let [before, after] = pair else { continue };
            if after.from > before.to || after.interval > before.interval.saturating_add(1) {
                let (reason, detail) = hole(damage);
                gaps.add((before.to, after.from.max(before.to)), reason, 0, detail);
            }
        }
    }
    let newest = lines.last().map(|line| &line.run);
    let mut reached = gaps.from;
    let mut before = Before { died: false, boot_id: None };
    // Where a sensor captures, only that covers its wire: a file replayed into its store says
    // nothing of the time in which it did not run.
    let captures = runs.iter().any(Run::captures);
    let mut counted = runs.iter().filter(|run| run.captures() || !captures).peekable();
    while let Some(run) = counted.next() {
        if run.from > reached {
            idle((reached, run.from), before, Some(run), gaps);
        }
        let is_newest = run.lines.first().map(|line| &line.run) == newest;
        let silent_for = at.now - run.to;
        let alive = !run.clean
            && is_newest
            && match at.is_written {
                Some(written) => written && silent_for < SUSPENDED,
                None => silent_for < ALIVE,
            };
        if !run.clean && run.complete < run.to {
            let ended = Before { died: true, boot_id: run.boot_id() };
            let reason = match counted.peek() {
                _ if alive => Reason::NotYet,
                next if ended.restarted(next.copied()) => Reason::MachineRestarted,
                _ => Reason::UncleanEnd,
            };
            gaps.add((run.complete, run.to), reason, 0, String::new());
        }
        if alive && run.to < gaps.to {
            gaps.add((run.to, gaps.to), Reason::NotYet, 0, String::new());
            reached = gaps.to;
        }
        reached = reached.max(run.to);
        before = Before { died: !run.clean && !alive, boot_id: run.boot_id() };
    }
    if reached < gaps.to || runs.is_empty() {
        // A sensor that has just begun has no line yet.
        let begun = if at.is_written == Some(true) { at.now - ALIVE } else { Nanos::MAX };
        let begun = begun.max(reached);
        if begun > reached {
            idle((reached, gaps.to.min(begun)), before, None, gaps);
        }
        if begun <= gaps.to {
            gaps.add((begun, gaps.to), Reason::NotYet, 0, String::new());
        }
    }
}

/// Runs in the order in which they were written, of which one began before the one before it had
/// ended: the clock was set back while no sensor ran. That time exists twice, and how long nobody
/// watched in between is not known.
fn set_back(lines: &[LedgerLine], gaps: &mut Gaps<'_>) {
    let mut before: Option<(&LedgerLine, Nanos)> = None;
    for line in lines.iter().filter(|line| line.mode == "capture") {
        before = match before {
            Some((run, end)) if run.run == line.run => Some((run, end.max(line.to))),
            Some((_, end)) if line.from < end => {
                let place = "between two runs".to_owned();
                gaps.add((line.from, end), Reason::ClockStepped, 0, place);
                Some((line, line.to.max(end)))
            }
            _ => Some((line, line.to)),
        };
    }
}

/// Interfaces that were captured in a part of the window, by a run that another followed without
/// them.
fn left_out(runs: &[Run<'_>], gaps: &mut Gaps<'_>) {
    let inside = |line: &&&LedgerLine| line.overlaps(gaps.from, gaps.to);
    let names = |run: &Run<'_>| -> BTreeSet<String> {
        let lines = run.lines.iter().filter(inside);
        lines.flat_map(|line| &line.interfaces).map(|interface| interface.name.clone()).collect()
    };
    let captured: Vec<_> = runs
        .iter()
        .filter(|run| run.captures() && run.from <= gaps.to && run.to >= gaps.from)
        .map(|run| ((run.from, run.to), names(run)))
        .collect();
    let all: BTreeSet<String> = captured.iter().flat_map(|(_, names)| names.clone()).collect();
    for (span, names) in captured.iter().filter(|(_, names)| !names.is_empty()) {
        for name in all.difference(names) {
            let place = format!("{name} was not captured");
            gaps.add(*span, Reason::NoSensor, 0, place);
        }
    }
}

/// Time without a run: how the one before it ended says why.
fn idle(span: (Nanos, Nanos), before: Before<'_>, next: Option<&Run<'_>>, gaps: &mut Gaps<'_>) {
    // The run before may lie in front of the window: the one behind says what it found.
    let found = next.and_then(Run::recovered);
    let died = before.died || found.is_some();
    let restarted = before.restarted(next) || found.is_some_and(|found| found.rebooted);
    let (reason, place) = match (died, restarted) {
        (true, true) => (Reason::MachineRestarted, ""),
        (true, false) => (Reason::UncleanEnd, ""),
        (false, true) => (Reason::NoSensor, RESTARTED),
        (false, false) => (Reason::NoSensor, ""),
    };
    gaps.add(span, reason, 0, place.to_owned());
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
        let holes = gaps.found.iter().any(|(_, gap)| {
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
