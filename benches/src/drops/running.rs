//! A subject at work: its programs, what belongs to each, and its end.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use stillwire_tests::Program;
use stillwire_tests::process::{Ended, await_until};

use super::line::Line;
use super::plan::Plan;
use super::stop;
use super::subject::{Collector, Found, Harvest, Part, Place, Ready, Subject};
use super::usage::{self, Memory};

/// A subject rests when it uses less than this part of a core.
const RESTING: f64 = 0.05;
/// For so long.
const REST: Duration = Duration::from_millis(400);

/// A subject's programs; killed when dropped.
pub(super) struct Running<'a> {
    line: &'a Line,
    plan: &'a Plan,
    members: Vec<Member<'a>>,
}

/// One program at work.
struct Member<'a> {
    part: &'a Part,
    dir: PathBuf,
    program: Program,
    collector: Option<Collector>,
    harvest: Harvest,
}

/// One program that has ended.
pub(super) struct Done {
    /// Its command line.
    pub(super) command: String,
    /// What a reader found in what it wrote.
    pub(super) found: Found,
    /// Frames that it says it lost, if it says so.
    pub(super) claims_lost: Option<u64>,
}

impl<'a> Running<'a> {
    /// Starts a subject's programs, each with a directory of its own, and waits until all of them
    /// receive.
    pub(super) fn start(
        plan: &'a Plan,
        subject: &'a Subject,
        line: &'a Line,
        dir: &Path,
    ) -> Result<Self> {
        let mut running = Self { line, plan, members: Vec::new() };
        for (number, part) in subject.parts.iter().enumerate() {
            let dir = dir.join(number.to_string());
            fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
            running.add(part, dir)?;
        }
        Ok(running)
    }

    fn add(&mut self, part: &'a Part, dir: PathBuf) -> Result<()> {
        let collector = part.collector(self.line)?;
        let before = self.line.listeners()?;
        let words = part.command(&self.place(&dir)?)?;
        let mut command = self.line.subject_command(&self.plan.subject_cores, &words);
        let mut program = Program::start(&mut command)?;
        match part.ready() {
            Ready::Says(text) => program.await_stderr(text)?,
            Ready::Listens => await_until("the subject to listen on the interface", || {
                if !program.runs()? {
                    bail!("it ended before it listened on the interface\n{}", program.stderr()?);
                }
                let now = self.line.listeners()?;
                let listens = now.sockets > before.sockets || (now.xdp && !before.xdp);
                Ok(listens.then_some(()))
            })?,
        }
        let harvest = part.harvest(self.plan.soak);
        self.members.push(Member { part, dir, program, collector, harvest });
        Ok(())
    }

    fn place<'b>(&'b self, dir: &'b Path) -> Result<Place<'b>> {
        Ok(Place {
            iface: self.line.receiver(),
            dir,
            stillwired: &self.plan.stillwired,
            sessions: self.plan.traffic.about.sessions,
            budget: self.plan.soak.then(|| self.plan.budget()).transpose()?,
        })
    }

    fn ids(&self) -> Vec<u32> {
        self.members.iter().map(|member| member.program.id()).collect()
    }

    /// Processor time of all its programs since they were started.
    pub(super) fn processor_time(&self) -> Duration {
        usage::processor_time(&self.ids())
    }

    /// Its memory now, with the greatest of what was seen before.
    pub(super) fn memory(&self, before: Memory) -> Memory {
        let now = usage::memory(&self.ids());
        Memory {
            peak_bytes: now.peak_bytes.max(before.peak_bytes),
            anonymous_bytes: now.anonymous_bytes,
        }
    }

    /// Counts the capture files that are finished. How many frames were found so far, by the
    /// program that has the least.
    pub(super) fn harvest(&mut self) -> Result<u64> {
        let mut least = None;
        for member in &mut self.members {
            member.harvest.take(&member.dir, &[member.program.id()])?;
            let frames = member.harvest.frames();
            least = Some(least.map_or(frames, |least: u64| least.min(frames)));
        }
        Ok(least.unwrap_or(0))
    }

    /// Waits until the subject has nothing to do any more, and for some time at least. `false` if
    /// it had to the last.
    pub(super) fn rest(&mut self, least: Duration) -> Result<bool> {
        let begun = Instant::now();
        loop {
            let then = Instant::now();
            let used = self.processor_time();
            // Rest cannot be announced: it is that nothing happens for a while.
            std::thread::sleep(REST);
            for member in &mut self.members {
                let program = &mut member.program;
                ensure!(program.runs()?, "it ended by itself\n{}", program.stderr()?);
            }
            let used = self.processor_time().saturating_sub(used).as_secs_f64();
            let resting = used < RESTING * then.elapsed().as_secs_f64();
            if resting && begun.elapsed() >= least {
                return Ok(true);
            }
            if begun.elapsed() > self.plan.settle || stop::asked() {
                return Ok(false);
            }
        }
    }

    /// Asks every program to end, waits for that, and has what they recorded counted. With it, the
    /// processor time of all of them from their start to their end.
    pub(super) fn end(mut self) -> Result<(Vec<Done>, Duration)> {
        let members = std::mem::take(&mut self.members);
        let before = usage::ended_time();
        let mut ended = Vec::with_capacity(members.len());
        for Member { part, dir, program, collector, harvest } in members {
            let how = end(part, program, &self.place(&dir)?)?;
            ended.push((part, dir, how, collector, harvest));
        }
        let time = usage::ended_time().saturating_sub(before);
        let done = ended.into_iter().map(|(part, dir, ended, collector, mut harvest)| {
            let place = self.place(&dir)?;
            let words: Vec<OsString> = part.command(&place)?;
            let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
            Ok(Done {
                command: words.join(" "),
                found: part.found(&place, &ended, collector, &mut harvest)?,
                claims_lost: part.claims(&place, &ended),
            })
        });
        Ok((done.collect::<Result<_>>()?, time))
    }
}

/// Asks a program to end in the way that it wants to be asked.
fn end(part: &Part, program: Program, place: &Place<'_>) -> Result<Ended> {
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
}
