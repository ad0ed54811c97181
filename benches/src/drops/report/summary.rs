//! All measurements of one subject at one rate, drawn together.

use serde::Serialize;

use super::Spread;
use crate::drops::latency::Latency;
use crate::drops::rate::Rate;
use crate::drops::trial::{Note, Trial};

/// One subject at one rate.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    /// The subject's label.
    pub(crate) subject: String,
    /// Frames a second that were asked for.
    pub(crate) asked: Rate,
    /// How often it was measured.
    pub(crate) runs: usize,
    /// Frames a second that were offered.
    pub(crate) offered: Spread,
    /// Frames sent in all runs.
    pub(crate) sent: u64,
    /// Frames lost in all runs.
    pub(crate) lost: i64,
    /// The lost part of the frames, in per cent.
    pub(crate) loss_percent: Spread,
    /// The subject's own processor time for each frame sent, in nanoseconds.
    pub(crate) subject_ns: Spread,
    /// Time in the kernel's softirq for each frame sent.
    pub(crate) softirq_ns: Spread,
    /// All time that the generator's and the subject's cores were busy for each frame sent, less
    /// what the generator only waited.
    pub(crate) busy_ns: Spread,
    /// Memory at most, mapped files included.
    pub(crate) peak_memory_bytes: Spread,
    /// From arrival to record in microseconds, if it was measured.
    pub(crate) latency: Option<LatencySpread>,
    /// What to know before believing it, from any of the runs.
    pub(crate) notes: Vec<Note>,
}

/// Latencies of several runs.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct LatencySpread {
    /// What half of the frames took at most.
    pub(crate) p50_us: Spread,
    /// What 99 of 100 took at most.
    pub(crate) p99_us: Spread,
    /// What 999 of 1000 took at most.
    pub(crate) p999_us: Spread,
    /// What the slowest took.
    pub(crate) max_us: Spread,
}

fn latency(group: &[&Trial]) -> Option<LatencySpread> {
    let measured: Vec<Latency> = group.iter().filter_map(|trial| trial.latency).collect();
    let of = |read: fn(&Latency) -> f64| Spread::of(measured.iter().map(read));
    (!measured.is_empty()).then(|| LatencySpread {
        p50_us: of(|latency| latency.p50_us),
        p99_us: of(|latency| latency.p99_us),
        p999_us: of(|latency| latency.p999_us),
        max_us: of(|latency| latency.max_us),
    })
}

/// Draws measurements together, in the order in which subjects and rates first appear.
pub(crate) fn summary(trials: &[Trial]) -> Vec<Line> {
    let mut groups: Vec<Vec<&Trial>> = Vec::new();
    for trial in trials {
        let same = |group: &&mut Vec<&Trial>| {
            group
                .first()
                .is_some_and(|first| first.subject == trial.subject && first.asked == trial.asked)
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(trial),
            None => groups.push(vec![trial]),
        }
    }
    // By subject, and within it by rate.
    let place = |label: &str| trials.iter().position(|trial| trial.subject == label);
    groups.sort_by_key(|group| group.first().and_then(|first| place(&first.subject)));
    groups.iter().filter_map(|group| line(group)).collect()
}

fn line(group: &[&Trial]) -> Option<Line> {
    let first = group.first()?;
    let of = |read: &dyn Fn(&Trial) -> f64| Spread::of(group.iter().map(|trial| read(trial)));
    let mut notes: Vec<Note> = Vec::new();
    for note in group.iter().flat_map(|trial| &trial.notes) {
        if !notes.iter().any(|have| std::mem::discriminant(have) == std::mem::discriminant(note)) {
            notes.push(note.clone());
        }
    }
    Some(Line {
        subject: first.subject.clone(),
        asked: first.asked,
        runs: group.len(),
        offered: of(&|trial| trial.offered),
        sent: group.iter().map(|trial| trial.sent.frames).sum(),
        lost: group.iter().map(|trial| trial.lost).sum(),
        loss_percent: of(&|trial| trial.loss() * 100.0),
        subject_ns: of(&|trial| trial.ns_a_frame(trial.subject_seconds)),
        softirq_ns: of(&|trial| trial.ns_a_frame(trial.softirq_seconds)),
        busy_ns: of(&|trial| trial.ns_a_frame(trial.busy_seconds)),
        peak_memory_bytes: of(&|trial| trial.peak_memory_bytes as f64),
        latency: latency(group),
        notes,
    })
}
