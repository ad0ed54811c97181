//! A sensor whose sight is taken away on purpose, and what its ledger says about it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use capture_flow::time::{Nanos, NanosDelta};
use capture_store::ledger::{Blind, BlindCause, LedgerLine, imbalances};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::{Ended, Program, await_until};
use crate::traffic::{Frames, Pace};
use crate::{Account, Wire, outside, sensor};

/// By how much the ledger may have a blind time begin too early: two of its intervals.
const SLACK: NanosDelta = NanosDelta::from_secs(2);

/// A moment before and one after something was done: it happened in between.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// It had not been done.
    pub before: Nanos,
    /// It was done.
    pub after: Nanos,
}

/// Does something and says when.
///
/// # Errors
/// What it fails with.
pub fn when<T>(act: impl FnOnce() -> Result<T>) -> Result<(Moment, T)> {
    let before = capture_user::live::clock();
    let done = act()?;
    Ok((Moment { before, after: capture_user::live::clock() }, done))
}

/// Takes the sensor's XDP program off its interface, as an operator with the wrong id would.
///
/// # Errors
/// Where bpftool fails.
pub fn detach(wire: &Wire) -> Result<()> {
    let shown = wire.sensor.run("bpftool", &["--json", "link", "show"])?;
    let links: serde_json::Value = serde_json::from_str(&shown)?;
    let xdp = wire.sensor.run("ip", &["--json", "link", "show", Wire::SENSOR])?;
    let xdp: serde_json::Value = serde_json::from_str(&xdp)?;
    let program = &xdp[0]["xdp"]["prog"]["id"];
    let link = links.as_array().into_iter().flatten().find(|link| link["prog_id"] == *program);
    let id = link.map(|link| link["id"].to_string()).unwrap_or_default();
    wire.sensor.run("bpftool", &["link", "detach", "id", &id]).map(drop)
}

/// Has the kernel refuse the next of these system calls (separated by commas) that the sensor's first
/// worker makes, with this error; comes back when it has.
///
/// # Errors
/// Where strace fails, or the call does not come.
pub fn fail_once(sensor: &Program, calls: &str, error: &str) -> Result<()> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", sensor.id()))?;
    let worker = tasks.flatten().find(|task| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "worker-0\n")
    });
    let worker = worker.context("no worker")?.file_name().to_string_lossy().into_owned();
    let mut strace = std::process::Command::new("strace");
    // One thread alone: its counter of calls is its own.
    strace.args(["-p", &worker, "-e", &format!("trace={calls}")]);
    strace.args(["-e", &format!("inject={calls}:error={error}:when=1")]);
    let mut strace = Program::start(&mut strace)?;
    strace.await_stderr("(INJECTED)")?;
    if strace.runs()? {
        // It ends by itself with the thread that it looks at, perhaps just now.
        let _ = strace.signal(Signal::INT);
    }
    strace.wait()?;
    Ok(())
}

/// A sensor on a wire, and what was sent while it could see.
#[derive(Debug)]
pub struct Watched {
    /// The wire.
    pub wire: Wire,
    /// The sensor; `None` once it was ended.
    pub program: Option<Program>,
    store: PathBuf,
    /// Removed with this value; `None` where the store is somewhere else.
    _dir: Option<TempDir>,
    /// Frames that the sensor must have recorded.
    seen: u64,
}

impl Watched {
    /// Starts a sensor on a wire, with a store of its own.
    ///
    /// # Errors
    /// Where it does not come up.
    pub fn start(wire: Wire, args: &[&str]) -> Result<Self> {
        let dir = sensor::store_dir()?;
        let store = dir.path().join("store");
        let mut all = vec!["--packet-budget", "1GiB", "--segment-size", "16MiB"];
        all.extend(args);
        let watched = Self::start_in(wire, &[Wire::SENSOR], &store, &all)?;
        Ok(Self { _dir: Some(dir), ..watched })
    }

    /// Starts a sensor on interfaces of the wire's sensor namespace, with a store that is somewhere.
    ///
    /// # Errors
    /// Where it does not come up.
    pub fn start_in(wire: Wire, interfaces: &[&str], store: &Path, args: &[&str]) -> Result<Self> {
        let program = Some(sensor::capture_on(&wire.sensor, interfaces, store, args)?);
        Ok(Self { wire, program, store: store.to_owned(), _dir: None, seen: 0 })
    }

    /// See [`fail_once`].
    ///
    /// # Errors
    /// Those of it, or that the sensor has ended.
    pub fn fail_once(&self, calls: &str, error: &str) -> Result<()> {
        fail_once(self.program.as_ref().context("it has ended")?, calls, error)
    }

    /// Sends frames that the sensor must record.
    ///
    /// # Errors
    /// Where they cannot be sent.
    pub fn sees(&mut self) -> Result<()> {
        self.seen += self.send()?;
        Ok(())
    }

    /// Sends frames that it may record or not.
    ///
    /// # Errors
    /// Where they cannot be sent.
    pub fn send(&self) -> Result<u64> {
        let frames = Frames { count: 500, bytes: 80, flows: 50, pace: Pace::Gap(20) };
        Ok(frames.send(&self.wire)?.carried)
    }

    /// The lines of the ledger so far.
    ///
    /// # Errors
    /// Where one cannot be read.
    pub fn lines(&self) -> Result<Vec<LedgerLine>> {
        let lines = sensor::ledger(&self.store)?.into_iter();
        lines.map(|line| serde_json::from_value(line).context("a line of the ledger")).collect()
    }

    /// What the ledger says about a cause, oldest first.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn blind(&self, cause: BlindCause) -> Result<Vec<Blind>> {
        let blind = self.lines()?.into_iter().flat_map(|line| line.blind);
        Ok(blind.filter(|blind| blind.cause == cause).collect())
    }

    /// Waits until a cause stands in the ledger that was there after something was done.
    ///
    /// # Errors
    /// If it does not come.
    pub fn await_blind(&self, cause: BlindCause, since: Moment) -> Result<()> {
        await_until(&format!("{} in the ledger", cause.as_str()), || {
            let there = self.blind(cause)?.iter().any(|blind| blind.to >= since.after);
            Ok(there.then_some(()))
        })
    }

    /// Waits until the ledger says that nothing is blind any more, after something was done that
    /// blinded it or mended that. Returns when it saw again: after that was done, and before this
    /// found it in the ledger.
    ///
    /// # Errors
    /// If that does not happen.
    pub fn await_sight(&self, cause: BlindCause, since: Moment) -> Result<Moment> {
        await_until(&format!("the end of {} in the ledger", cause.as_str()), || {
            let lines = self.lines()?;
            let told = lines.iter().flat_map(|line| &line.blind);
            let was = told.filter(|blind| blind.cause == cause && blind.to >= since.before).count();
            let sees = |line: &LedgerLine| {
                line.to > since.after && line.blind.iter().all(|blind| blind.to < line.to)
            };
            let sight = Moment { before: since.before, after: capture_user::live::clock() };
            Ok((was > 0 && lines.last().is_some_and(sees)).then_some(sight))
        })
    }

    /// Holds what the ledger says about a cause against what was done: from before it was begun
    /// until it was ended, and no longer than until that was seen; without a hole in it.
    ///
    /// # Errors
    /// Says what does not fit.
    pub fn encloses(&self, cause: BlindCause, begun: Moment, ended: Moment) -> Result<Vec<Blind>> {
        self.encloses_times(self.blind(cause)?, begun, ended)
    }

    /// As [`Watched::encloses`], for some of the times.
    ///
    /// # Errors
    /// Says what does not fit.
    pub fn encloses_times(
        &self,
        mut blind: Vec<Blind>,
        begun: Moment,
        ended: Moment,
    ) -> Result<Vec<Blind>> {
        let told = format!("{begun:?} to {ended:?}: {blind:?}");
        blind.retain(|blind| blind.to >= begun.before && blind.from <= ended.after);
        blind.sort_by_key(|blind| blind.from);
        let first = blind.first().with_context(|| format!("not in the ledger: {told}"))?;
        ensure!(first.from <= begun.after, "it begins too late: {told}");
        ensure!(first.from >= begun.before - SLACK, "it begins too early: {told}");
        let mut covered = first.from;
        for time in &blind {
            ensure!(time.from <= covered, "there is a hole at {covered}: {told}");
            covered = covered.max(time.to);
        }
        ensure!(covered >= ended.before, "it ends too early: {told}");
        ensure!(covered <= ended.after, "it ends too late: {told}");
        Ok(blind)
    }

    /// Ends the sensor in order.
    ///
    /// # Errors
    /// Where it does not end.
    pub fn stop(&mut self) -> Result<Ended> {
        self.program.take().context("it has ended already")?.interrupt()
    }

    /// After the end: every line balances by itself and all of them together, and what the sensor
    /// could see is recorded to the frame, as foreign eyes count it.
    ///
    /// # Errors
    /// Says what does not fit.
    pub fn has_all(&self, but_for: u64) -> Result<()> {
        for line in self.lines()? {
            let found = imbalances(&line);
            ensure!(found.is_empty(), "{found:?} in {line:?}");
        }
        let account = Account::of(&self.store)?;
        account.balances()?;
        let recorded = outside::recorded_frames(&self.store)?;
        ensure!(recorded == account.written, "{recorded} are recorded: {account:?}");
        let expected = self.seen..=self.seen + but_for;
        ensure!(expected.contains(&recorded), "{recorded} are recorded, not {expected:?}");
        Ok(())
    }
}
