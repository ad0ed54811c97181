//! One measurement: a subject is started, a load passes, the subject is ended, and what it has
//! recorded is counted.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use super::generator::{self, Extent, Load, Sent};
use super::latency::{Latency, Watcher};
use super::line::Line;
use super::plan::Plan;
use super::progress::Progress;
use super::rate::Rate;
use super::running::Running;
use super::soak::{Sample, Samples};
use super::subject::Subject;
use super::usage::{Cores, Memory};

/// How long frames that are on their way are waited for (RFC 2544, section 23). libpcap hands a
/// last block of frames over only after a second.
const RESIDUE: Duration = Duration::from_secs(2);
/// How far a generator may stay behind what was asked.
const SHORT: f64 = 0.98;
/// Cores taken away by the host, or used by others, beyond which a figure is doubtful.
const DISTURBED: f64 = 0.05;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task<'a> {
    /// The subject.
    pub(crate) subject: &'a Subject,
    /// Frames a second to offer.
    pub(crate) rate: Rate,
    /// How much.
    pub(crate) extent: Extent,
    /// Which run it belongs to, from 1.
    pub(crate) run: u32,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Trial {
    /// The subject's label.
    pub(crate) subject: String,
    /// Which run it belongs to, from 1.
    pub(crate) run: u32,
    /// Frames a second that were asked for.
    pub(crate) asked: Rate,
    /// Frames a second that were offered.
    pub(crate) offered: f64,
    /// The load.
    pub(crate) sent: Sent,
    /// Frames that a reader found in what the subject wrote; where several programs ran, in what
    /// the one wrote that has the least.
    pub(crate) recorded: u64,
    /// Frames sent and not recorded. Below zero if there are more than were sent.
    pub(crate) lost: i64,
    /// By program.
    pub(crate) parts: Vec<PartFound>,
    /// Processor time of the subject's programs from the first frame until they came to rest.
    pub(crate) subject_seconds: f64,
    /// The same from their start to their end, what they do at the end included.
    pub(crate) subject_seconds_in_all: f64,
    /// Time in the kernel's softirq on the generator's and the subject's cores, from the first
    /// frame until the subject came to rest.
    pub(crate) softirq_seconds: f64,
    /// All time that these cores were busy meanwhile, less what the generator only waited.
    pub(crate) busy_seconds: f64,
    /// Memory of the subject's programs at most, mapped files included.
    pub(crate) peak_memory_bytes: u64,
    /// The part of it that is no file's, at the end of the load.
    pub(crate) anonymous_memory_bytes: u64,
    /// From arrival to record, if that was asked for and the subject writes what can be followed.
    pub(crate) latency: Option<Latency>,
    /// What was seen meanwhile, in a soak.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) samples: Vec<Sample>,
    /// What to know before believing the figures.
    pub(crate) notes: Vec<Note>,
}

/// What one program of a subject recorded.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PartFound {
    /// Its command line.
    command: String,
    /// Frames that the reader found.
    recorded: u64,
    /// The reader.
    reader: &'static str,
    /// Frames that the program says it lost.
    claims_lost: Option<u64>,
}

/// What to know before believing a figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub(crate) enum Note {
    /// The generator could not make the frames as fast as asked.
    GeneratorShort {
        /// Frames a second that it made.
        offered: f64,
    },
    /// The link itself refused frames.
    LinkRefused {
        /// How many.
        frames: u64,
    },
    /// More frames were recorded than sent.
    Surplus {
        /// How many.
        frames: u64,
    },
    /// A program says that it lost another number of frames than it did (those that the link
    /// refused it cannot know).
    ClaimDiffers {
        /// What it says.
        claims: u64,
        /// What is missing behind the link.
        missing: i64,
    },
    /// The subject was still at work when it was ended.
    NotAtRest,
    /// Others used the cores.
    Disturbed {
        /// In cores.
        cores: f64,
    },
    /// The host took the cores away.
    Stolen {
        /// In cores.
        cores: f64,
    },
    /// The load was ended early.
    Interrupted,
}

impl Note {
    /// As in the report.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::GeneratorShort { .. } => "generator_short",
            Self::LinkRefused { .. } => "link_refused",
            Self::Surplus { .. } => "surplus",
            Self::ClaimDiffers { .. } => "claim_differs",
            Self::NotAtRest => "not_at_rest",
            Self::Disturbed { .. } => "disturbed",
            Self::Stolen { .. } => "stolen",
            Self::Interrupted => "interrupted",
        }
    }
}

impl Trial {
    /// The part of the frames that were lost.
    pub(crate) fn loss(&self) -> f64 {
        self.lost as f64 / self.sent.frames as f64
    }

    /// Whether the generator did not make what was asked.
    pub(crate) fn generator_short(&self) -> bool {
        self.notes.iter().any(|note| matches!(note, Note::GeneratorShort { .. }))
    }

    /// Nanoseconds for each frame sent.
    pub(crate) fn ns_a_frame(&self, seconds: f64) -> f64 {
        seconds * 1e9 / self.sent.frames as f64
    }
}

/// Makes one measurement.
pub(crate) fn run(plan: &Plan, task: Task<'_>, progress: &Progress) -> Result<Trial> {
    let Task { subject, rate, .. } = task;
    measure(plan, task, progress)
        .with_context(|| format!("measuring {} at {rate} frames/s", subject.label))
}

fn measure(plan: &Plan, task: Task<'_>, progress: &Progress) -> Result<Trial> {
    let dir = tempfile::Builder::new()
        .prefix("stillwire-bench-")
        .tempdir_in(&plan.dir)
        .with_context(|| format!("making a directory in {}", plan.dir.display()))?;
    let load = Load { rate: task.rate, extent: task.extent, most: plan.most()? };
    progress.begin(&task, load.frames());
    let line = Line::new(plan)?;
    let mut running = Running::start(plan, task.subject, &line, dir.path())?;
    let mut notes = Vec::new();
    // What a program does at its start is none of the load's cost.
    running.rest(Duration::ZERO)?;

    let watched = plan.generator_cores.first().filter(|_| plan.latency);
    let watcher = watched.map(|core| Watcher::start(dir.path(), *core)).transpose()?;
    let cores: Vec<usize> = Cores::now()?.numbers();
    let ours = [plan.generator_cores.clone(), plan.subject_cores.clone()].concat();
    let then = Instant::now();
    let cores_then = Cores::now()?;
    let time_then = running.processor_time();
    let mut memory = Memory::default();
    let mut samples = Samples::new(plan.soak);
    let sent = generator::send(plan, &line, &load, &mut |frames| {
        memory = running.memory(memory);
        progress.sent(frames);
        samples.tick(frames, &mut running, memory);
    })?;
    if !running.rest(RESIDUE)? {
        notes.push(Note::NotAtRest);
    }
    let wall = then.elapsed().as_secs_f64();
    let cores_now = Cores::now()?;
    let subject_seconds = running.processor_time().saturating_sub(time_then).as_secs_f64();
    memory = running.memory(memory);
    let latency = watcher.map(Watcher::end).transpose()?.flatten();
    let samples = samples.end()?;
    progress.counting();
    let (done, in_all) = running.end()?;

    let used = cores_now.since(&cores_then, &ours);
    let everywhere = cores_now.since(&cores_then, &cores);
    let busy_seconds = (used.busy.as_secs_f64() - sent.waited_seconds).max(0.0);
    // The generator's cores are busy for as long as the load lasts, and softirq comes on top of
    // the subject's own time only.
    let known = sent.seconds * plan.generator_cores.len() as f64 + subject_seconds;
    let others = (everywhere.busy.as_secs_f64() - known).max(0.0) / wall;
    let stolen = everywhere.stolen.as_secs_f64() / wall;
    if others > DISTURBED {
        notes.push(Note::Disturbed { cores: others });
    }
    if stolen > DISTURBED {
        notes.push(Note::Stolen { cores: stolen });
    }
    for done in &done {
        let missing = (sent.frames - sent.refused_by_link) as i64 - done.found.frames as i64;
        if let Some(claims) = done.claims_lost.filter(|claims| *claims as i64 != missing) {
            notes.push(Note::ClaimDiffers { claims, missing });
        }
    }
    let parts: Vec<PartFound> = done
        .into_iter()
        .map(|done| PartFound {
            command: done.command,
            recorded: done.found.frames,
            reader: done.found.reader,
            claims_lost: done.claims_lost,
        })
        .collect();
    let recorded = parts.iter().map(|part| part.recorded).min().context("a subject of nothing")?;
    let lost = sent.frames as i64 - recorded as i64;
    if lost < 0 {
        notes.push(Note::Surplus { frames: lost.unsigned_abs() });
    }
    if sent.refused_by_link > 0 {
        notes.push(Note::LinkRefused { frames: sent.refused_by_link });
    }
    if sent.interrupted {
        notes.push(Note::Interrupted);
    }
    let offered = sent.rate();
    let slow = task.rate.per_second().is_some_and(|asked| offered < asked * SHORT);
    if slow || !(sent.interrupted || load.is_complete(sent.frames)) {
        notes.push(Note::GeneratorShort { offered });
    }
    if plan.keep {
        let kept = dir.keep();
        progress.say(&format!("kept what {} wrote in {}", task.subject.label, kept.display()));
    }
    Ok(Trial {
        subject: task.subject.label.clone(),
        run: task.run,
        asked: task.rate,
        offered,
        sent,
        recorded,
        lost,
        parts,
        subject_seconds,
        subject_seconds_in_all: in_all.as_secs_f64(),
        softirq_seconds: used.softirq.as_secs_f64(),
        busy_seconds,
        peak_memory_bytes: memory.peak_bytes,
        anonymous_memory_bytes: memory.anonymous_bytes,
        latency,
        samples,
        notes,
    })
}
