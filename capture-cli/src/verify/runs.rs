//! The runs of a ledger: how each begins and ends.

use std::collections::HashMap;

use capture_flow::time::{Nanos, NanosDelta};
use capture_store::RunId;
use capture_store::ledger::{Head, LedgerLine, Note};
use capture_store::recover::RecoveryReport;
use capture_store::time::{now, to_rfc3339};

use super::{Finding, Findings, Kind, Report};

/// A running capture writes a line at least every ten seconds; this long without one is too long.
const STALLED: NanosDelta = NanosDelta::from_secs(60);

/// What is known of one run.
#[derive(Debug)]
struct Run {
    first_seq: u64,
    last_seq: u64,
    /// The line that says that it ended in order.
    clean_seq: Option<u64>,
    /// Whether its first line says that it began.
    begun: bool,
    /// What it was bound to.
    identity: Option<String>,
    to: Nanos,
    /// When its last line was written, if it is a capture: those write a line every ten seconds.
    capture_written_at: Option<Nanos>,
    first_place: String,
    last_place: String,
    /// Whether it found files that an earlier run had left open.
    recovered: bool,
}

impl Run {
    /// Whether it has written no line for too long, if it is a capture.
    fn is_stalled(&self) -> bool {
        self.capture_written_at.is_some_and(|at| now() - at > STALLED)
    }
}

/// All runs.
#[derive(Debug, Default)]
pub(super) struct Runs {
    runs: HashMap<RunId, Run>,
    recoveries: Vec<String>,
    /// Files that a recovery could not use and set aside, or bytes that it found torn.
    pub(super) set_aside: bool,
}

impl Runs {
    /// Takes a line, wherever it stands in the chain.
    pub(super) fn add(&mut self, line: &LedgerLine, place: &str) {
        let clean = line.notes.contains(&Note::CleanStop);
        let identity = line.notes.iter().find_map(|note| match note {
            Note::Start { identity, .. } => Some(identity.clone()),
            _ => None,
        });
        let mut recovered_here = false;
        for note in &line.notes {
            if let Note::Recovered(report) = note {
                recovered_here |=
                    report.segments > 0 || report.live_files > 0 || report.unfinished > 0;
                self.set_aside |= report.bytes_lost > 0 || report.torn_bytes > 0;
                self.recoveries.push(recovered(report, place));
            }
            if let Note::LogCut { path, bytes, doubt } = note {
                self.recoveries.push(format!(
                    "{place}: {bytes} bytes of {path} were not on the disk when the machine was \
                     restarted: sessions since {} may be missing",
                    to_rfc3339(doubt.from)
                ));
            }
        }
        let run = self.runs.entry(line.run.clone()).or_insert_with(|| Run {
            first_seq: u64::MAX,
            last_seq: 0,
            clean_seq: None,
            begun: false,
            identity: None,
            to: line.to,
            capture_written_at: None,
            first_place: String::new(),
            last_place: String::new(),
            recovered: false,
        });
        run.recovered |= recovered_here;
        if line.seq < run.first_seq {
            run.first_seq = line.seq;
            place.clone_into(&mut run.first_place);
            run.begun = identity.is_some();
        }
        if line.seq >= run.last_seq {
            run.last_seq = line.seq;
            run.to = line.to;
            run.capture_written_at = (line.mode == "capture").then_some(line.written_at);
            place.clone_into(&mut run.last_place);
        }
        if clean {
            run.clean_seq = Some(line.seq);
        }
        if let Some(identity) = identity {
            run.identity = identity;
        }
    }

    /// Whether the newest one goes on, if a process holds the store: it has not ended in order, and
    /// was not killed before that process began.
    pub(super) fn newest_goes_on(&self) -> bool {
        let newest = self.runs.values().max_by_key(|run| run.last_seq);
        newest.is_some_and(|run| run.clean_seq.is_none() && !run.is_stalled())
    }

    /// What is wrong with them, and what they themselves say. `identity` is the hash of
    /// `sensor.json` as it is.
    pub(super) fn conclude(
        &self,
        identity: &str,
        head: Option<&Head>,
        report: &mut Report,
        findings: &mut Findings,
    ) {
        let mut runs: Vec<_> = self.runs.iter().collect();
        runs.sort_by_key(|(_, run)| run.first_seq);
        report.runs = runs.len() as u64;
        report.declared.extend(self.recoveries.iter().cloned());
        left_open(&runs, findings);
        for (id, run) in &runs {
            if !run.begun {
                let what = format!("the first line of run {id} does not say that it began");
                findings.add(Kind::Line, &run.first_place, what);
            }
            if run.clean_seq.is_some_and(|clean| clean < run.last_seq) {
                let what = format!("run {id} goes on after its end");
                findings.add(Kind::Line, &run.last_place, what);
            }
            if run.clean_seq.is_some() {
                continue;
            }
            let at = to_rfc3339(run.to);
            if head.is_some_and(|head| head.run != **id) {
                report.declared.push(format!(
                    "{}: run {id} ended after {at} without a clean stop; the next run goes on from \
                     there",
                    run.last_place
                ));
            } else if report.in_use {
                if run.is_stalled() {
                    let what = format!(
                        "a process holds the store, but run {id} has written no line since {at}: \
                         its sensor hangs, or the end was cut off and somebody else holds the lock"
                    );
                    findings.add(Kind::End, &run.last_place, what);
                }
            } else {
                let what = format!(
                    "the ledger ends at {at} without a clean stop of run {id}: the sensor was \
                     killed, or the end was cut off"
                );
                findings.add(Kind::End, &run.last_place, what);
            }
        }
        if runs.is_empty() && !report.in_use {
            findings.add(Kind::End, "ledger", "the ledger is empty");
        }
        identities(&runs, identity, report.key.is_some(), findings);
    }
}

/// A run that ended in order left nothing open: what the next one recovers, somebody put there.
fn left_open(runs: &[(&RunId, &Run)], findings: &mut Findings) {
    for pair in runs.windows(2) {
        let [(before, ended), (_, run)] = [pair[0], pair[1]];
        if run.recovered && ended.clean_seq == Some(ended.last_seq) {
            let what = format!(
                "files were left open although run {before} had ended in order: somebody put them \
                 there, or a run was killed before its first line"
            );
            findings.add(Kind::LeftOpen, &run.first_place, what);
        }
    }
    if let Some((_, first)) = runs.first().filter(|(_, run)| run.recovered) {
        let what = "files were left open before the first run";
        findings.add(Kind::LeftOpen, &first.first_place, what);
    }
}

/// Every run is bound to the same `sensor.json`, and that is the one that is there.
fn identities(runs: &[(&RunId, &Run)], now: &str, keyed: bool, findings: &mut Findings) {
    let mut before: Option<(&RunId, &str)> = None;
    for (id, run) in runs {
        let Some(identity) = &run.identity else { continue };
        if let Some((earlier, expected)) = before.filter(|(_, expected)| expected != identity) {
            let what =
                format!("sensor.json was changed between run {earlier} ({expected}) and run {id}");
            findings.add(Kind::Identity, &run.first_place, what);
        }
        before = Some((id, identity));
    }
    let place = "sensor.json".to_owned();
    match before {
        Some((_, expected)) if expected == now => {}
        Some((id, expected)) => findings.listed.push(Finding {
            kind: Kind::Identity,
            place,
            what: format!("it was changed: run {id} began with {expected}, it is {now} now"),
        }),
        None if keyed && !runs.is_empty() => findings.listed.push(Finding {
            kind: Kind::Identity,
            place,
            what: "no run is bound to it: it could be anybody's".to_owned(),
        }),
        None => {}
    }
}

fn recovered(report: &RecoveryReport, place: &str) -> String {
    let lost = report.all_bytes_lost();
    let mut text = format!(
        "{place}: recovered after an unclean end{}: {} segments with {} frames, {} rows",
        if report.rebooted { " and a restart of the machine" } else { "" },
        report.segments,
        report.frames,
        report.rows
    );
    if lost > 0 {
        text.push_str(&format!("; {lost} bytes lost"));
    }
    if report.frames_lost > 0 {
        text.push_str(&format!("; about {} frames lost", report.frames_lost));
    }
    for left in &report.left {
        text.push_str("; left as it is: ");
        text.push_str(left);
    }
    text
}
