//! One measurement: a subject is started, a load passes, the subject is ended, and what it has
//! recorded is counted.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use stillwire_tests::Program;
use stillwire_tests::process::{Ended, await_until};

use super::generator::{self, Extent, Load, Sent};
use super::latency::{Latency, Watcher};
use super::line::Line;
use super::plan::Plan;
use super::progress::Progress;
use super::rate::Rate;
use super::stop;
use super::subject::{Collector, Part, Place, Ready, Subject};
use super::usage::{self, Cores, Memory};

/// A subject rests when it uses less than this part of a core.
const RESTING: f64 = 0.05;
/// For so long.
const REST: Duration = Duration::from_millis(400);
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
    let load = Load { rate: task.rate, extent: task.extent, most: plan.room()?.max(1) };
    progress.begin(&task, load.frames());
    let line = Line::new(plan)?;
    let before_start = usage::ended_time();
    let mut running = Running::start(plan, task.subject, &line, dir.path())?;
    let mut notes = Vec::new();
    // What a program does at its start is none of the load's cost.
    running.rest(Duration::ZERO, plan.settle)?;

    let watched = plan.generator_cores.first().filter(|_| plan.latency);
    let watcher = watched.map(|core| Watcher::start(dir.path(), *core)).transpose()?;
    let cores: Vec<usize> = Cores::now()?.numbers();
    let ours = [plan.generator_cores.clone(), plan.subject_cores.clone()].concat();
    let then = Instant::now();
    let cores_then = Cores::now()?;
    let time_then = running.processor_time();
    let mut memory = Memory::default();
    let sent = generator::send(plan, &line, &load, &mut |frames| {
        memory = running.memory(memory);
        progress.sent(frames);
    })?;
    if !running.rest(RESIDUE, plan.settle)? {
        notes.push(Note::NotAtRest);
    }
    let wall = then.elapsed().as_secs_f64();
    let cores_now = Cores::now()?;
    let subject_seconds = running.processor_time().saturating_sub(time_then).as_secs_f64();
    memory = running.memory(memory);
    let latency = watcher.map(Watcher::end).transpose()?.flatten();
    progress.counting();
    let (ended, collectors) = running.end(task.subject, &place(plan, &line, dir.path()))?;
    let in_all = usage::ended_time().saturating_sub(before_start).as_secs_f64();

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
    let mut parts = Vec::new();
    for ((part, ended), collector) in task.subject.parts.iter().zip(&ended).zip(collectors) {
        let place = place(plan, &line, dir.path());
        let found = part.found(&place, ended, collector)?;
        let claims_lost = part.claims(&place, ended);
        let missing = (sent.frames - sent.refused_by_link) as i64 - found.frames as i64;
        if let Some(claims) = claims_lost.filter(|claims| *claims as i64 != missing) {
            notes.push(Note::ClaimDiffers { claims, missing });
        }
        let command = part.command(&place)?;
        let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
        parts.push(PartFound {
            command: words.join(" "),
            recorded: found.frames,
            reader: found.reader,
            claims_lost,
        });
    }
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
        subject_seconds_in_all: in_all,
        softirq_seconds: used.softirq.as_secs_f64(),
        busy_seconds,
        peak_memory_bytes: memory.peak_bytes,
        anonymous_memory_bytes: memory.anonymous_bytes,
        latency,
        notes,
    })
}

fn place<'a>(plan: &'a Plan, line: &'a Line, dir: &'a Path) -> Place<'a> {
    let sessions = plan.traffic.about.sessions;
    Place { iface: line.receiver(), dir, stillwired: &plan.stillwired, sessions }
}

/// A subject at work; killed when dropped.
struct Running {
    programs: Vec<Program>,
    ids: Vec<u32>,
    collectors: Vec<Option<Collector>>,
}

impl Running {
    /// Starts a subject's programs and waits until all of them receive.
    fn start(plan: &Plan, subject: &Subject, line: &Line, dir: &Path) -> Result<Self> {
        let mut running = Self { programs: Vec::new(), ids: Vec::new(), collectors: Vec::new() };
        for part in &subject.parts {
            running.start_part(plan, part, line, dir)?;
        }
        Ok(running)
    }

    fn start_part(&mut self, plan: &Plan, part: &Part, line: &Line, dir: &Path) -> Result<()> {
        self.collectors.push(part.collector(line)?);
        let before = line.listeners()?;
        let words = part.command(&place(plan, line, dir))?;
        let mut program = Program::start(&mut line.subject_command(&plan.subject_cores, &words))?;
        match part.ready() {
            Ready::Says(text) => program.await_stderr(text)?,
            Ready::Listens => await_until("the subject to listen on the interface", || {
                if !program.runs()? {
                    bail!("it ended before it listened on the interface\n{}", program.stderr()?);
                }
                let now = line.listeners()?;
                let listens = now.sockets > before.sockets || (now.xdp && !before.xdp);
                Ok(listens.then_some(()))
            })
            .with_context(|| program.stderr().unwrap_or_default())?,
        }
        self.ids.push(program.id());
        self.programs.push(program);
        Ok(())
    }

    fn processor_time(&self) -> Duration {
        usage::processor_time(&self.ids)
    }

    /// Its memory now, with the greatest of what was seen before.
    fn memory(&self, before: Memory) -> Memory {
        let now = usage::memory(&self.ids);
        Memory {
            peak_bytes: now.peak_bytes.max(before.peak_bytes),
            anonymous_bytes: now.anonymous_bytes,
        }
    }

    /// Waits until the subject has nothing to do any more, and for some time at least. `false` if
    /// it had to the last.
    fn rest(&mut self, least: Duration, patience: Duration) -> Result<bool> {
        let begun = Instant::now();
        loop {
            let then = Instant::now();
            let used = self.processor_time();
            // Rest cannot be announced: it is that nothing happens for a while.
            std::thread::sleep(REST);
            for program in &mut self.programs {
                ensure!(program.runs()?, "it ended by itself\n{}", program.stderr()?);
            }
            let used = self.processor_time().saturating_sub(used).as_secs_f64();
            let resting = used < RESTING * then.elapsed().as_secs_f64();
            if resting && begun.elapsed() >= least {
                return Ok(true);
            }
            if begun.elapsed() > patience || stop::asked() {
                return Ok(false);
            }
        }
    }

    /// Asks every program to end, and waits for that.
    fn end(
        self,
        subject: &Subject,
        place: &Place<'_>,
    ) -> Result<(Vec<Ended>, Vec<Option<Collector>>)> {
        let ended = self
            .programs
            .into_iter()
            .zip(&subject.parts)
            .map(|(program, part)| {
                let ended = match part.end_command(place) {
                    Some(mut command) => {
                        stillwire_tests::netns::run(&mut command)?;
                        program.wait()?
                    }
                    None => program.interrupt()?,
                };
                ensure!(
                    part.ended_well(&ended),
                    "it ended with {:?}\n{}{}",
                    ended.code,
                    ended.stdout,
                    ended.stderr
                );
                Ok(ended)
            })
            .collect::<Result<_>>()?;
        Ok((ended, self.collectors))
    }
}
