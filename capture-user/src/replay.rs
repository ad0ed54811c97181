//! `stillwired replay`: capture files through the engine, by packet time.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use anyhow::{Context, Result, anyhow};
use capture_flow::frame::LinkType;
use capture_flow::time::{Nanos, NanosDelta};
use capture_store::ledger::BlindCause;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing::{error, info, warn};

use crate::account::SourceCounts;
use crate::blind::Subject;
use crate::config::ReplayConfig;
use crate::flush::FlushThread;
use crate::keeper::Sealer;
use crate::recorder::{OnDemand, Recorder, Supply};
use crate::run::Run;
use crate::source::file::FileSource;
use crate::source::{Received, Source, SourceError, SourceFrame};
use crate::worker::{Pipeline, ReplayClock, WhenFull};

/// Replays files into a store.
///
/// # Errors
/// Nothing was replayed, or not everything, and why.
pub fn replay(config: &ReplayConfig) -> Result<ExitCode> {
    check_files(&config.files)?;
    let bytes = total_bytes(&config.files);
    let run = Run::open(&config.common, crate::live::clock(), &[config.files.len()])?;
    let (sealer, mut replay) = begin(&run, config, bytes).inspect_err(|_| run.give_up())?;
    let outcome = replay.files(&run);
    let finished = replay.finish();
    replay.progress.finish_and_clear();
    let flush = replay.flush.take();
    drop(replay);
    // In this order: what was filled is sealed, then the last line of the ledger names it.
    let sealed = sealer.stop();
    let flushed = match flush {
        Some(flush) => flush.stop(sealed.is_ok()),
        // Not one frame: nothing was written.
        None => {
            run.give_up();
            Ok(())
        }
    };
    run.say_farewell(config.common.quiet);
    let whole = outcome?;
    finished?;
    sealed?;
    flushed?;
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn begin<'a>(
    run: &Run,
    config: &'a ReplayConfig,
    bytes: Option<u64>,
) -> Result<(Sealer, Replay<'a>)> {
    let space = config.common.space(run.held(), 1)?;
    let replay = Replay::new(run, config, config.common.replay_segment(space, bytes), bytes)?;
    Ok((run.start_sealer(space)?, replay))
}

/// Opens every regular file before anything is written, so that a mistyped name or a file that
/// is no capture changes nothing in the store.
fn check_files(files: &[std::path::PathBuf]) -> Result<()> {
    for file in files {
        let regular = fs::metadata(file).is_ok_and(|kind| kind.is_file());
        if file != Path::new("-") && (regular || !file.exists() || file.is_dir()) {
            FileSource::open(file, Box::new(|_| capture_flow::frame::IfaceId(0)))?;
        }
    }
    Ok(())
}

/// Bytes of all files; `None` if one cannot tell.
fn total_bytes(files: &[std::path::PathBuf]) -> Option<u64> {
    files.iter().try_fold(0_u64, |sum, file| {
        let kind = fs::metadata(file).ok().filter(fs::Metadata::is_file)?;
        Some(sum.saturating_add(kind.len()))
    })
}

/// Files that follow each other more closely than this are taken for pieces of one capture.
const JOINT: NanosDelta = NanosDelta::from_secs(1);

/// A replay under way.
struct Replay<'a> {
    config: &'a ReplayConfig,
    pipeline: Pipeline,
    clock: Arc<ReplayClock>,
    /// Started with the first frame, whose time begins the first interval.
    flush: Option<FlushThread>,
    counts: Vec<SourceCounts>,
    now: Nanos,
    next_tick: Nanos,
    frames: u64,
    progress: ProgressBar,
}

impl<'a> Replay<'a> {
    fn new(run: &Run, config: &'a ReplayConfig, segment: u64, bytes: Option<u64>) -> Result<Self> {
        let clock = Arc::new(ReplayClock::default());
        let lane = run.lanes.first().context("a replay has one worker")?;
        let shared = run.workers.first().context("a replay has one worker")?;
        let making = run.making(0, lane, segment)?;
        let demand = OnDemand {
            dir: making.dir,
            next_sequence: making.next_sequence,
            spec: run.segment_spec(0, segment, LinkType::ETHERNET),
        };
        let recorder = Recorder::new(0, Arc::clone(lane), Supply::OnDemand(demand), run.snaplen());
        let pipeline = Pipeline::new(run.flow(0), recorder, Arc::clone(shared), WhenFull::Lose)?;
        Ok(Self {
            config,
            pipeline,
            clock,
            flush: None,
            counts: vec![SourceCounts::default(); config.files.len()],
            now: Nanos::MIN,
            next_tick: Nanos::MIN,
            frames: 0,
            progress: progress_bar(bytes, config.common.quiet),
        })
    }

    /// Replays every file; says whether all of them were whole.
    fn files(&mut self, run: &Run) -> Result<bool> {
        let mut whole = true;
        for (number, path) in self.config.files.iter().enumerate() {
            let name = path.file_name().map_or_else(
                || path.display().to_string(),
                |name| name.to_string_lossy().into_owned(),
            );
            run.files.lock().unwrap_or_else(PoisonError::into_inner).push((name, false));
            let names = Arc::clone(&run.names);
            let source = FileSource::open(path, Box::new(move |name| names.number(name)));
            let damage = match source {
                Ok(mut source) => self.file(run, number, &mut source)?,
                Err(error @ SourceError::BadFile { .. }) => Some(error),
                Err(error) => return Err(error.into()),
            };
            if let Some(damage) = damage {
                whole = false;
                self.progress.suspend(|| {
                    error!("{damage}; everything before it was used");
                });
                Self::note_cut(run, number);
            }
            if self.is_enough() {
                break;
            }
        }
        Ok(whole)
    }

    /// The ledger says that a file was not read to its end.
    fn note_cut(run: &Run, number: usize) {
        let mut files = run.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, cut)) = files.get_mut(number) {
            *cut = true;
        }
    }

    fn is_enough(&self) -> bool {
        self.config.count.is_some_and(|count| self.frames >= count)
    }

    /// Replays one file; returns what is wrong with it, if anything is.
    fn file(
        &mut self,
        run: &Run,
        number: usize,
        source: &mut FileSource,
    ) -> Result<Option<SourceError>> {
        let consumed = source.consumed();
        let before = self.progress.position();
        let mut first = true;
        while !self.is_enough() {
            let limit = self.config.count.map(|count| count.saturating_sub(self.frames));
            let limit =
                limit.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
            let mut failed = None;
            let received = source.receive(&mut |frames| {
                let frames = frames.get(..frames.len().min(limit)).unwrap_or_default();
                if std::mem::take(&mut first) {
                    self.say_if_backwards(number, frames);
                    self.note_time_between(run, number, frames);
                }
                failed = self.batch(run, number, frames).err();
            });
            if let Some(error) = failed {
                return Err(error);
            }
            match received {
                Ok(Received::Frames(_) | Received::Idle) => {}
                Ok(Received::End) => break,
                Err(damage @ SourceError::BadFile { .. }) => return Ok(Some(damage)),
                Err(error) => {
                    Self::note_cut(run, number);
                    return Err(error.into());
                }
            }
            self.progress.set_position(before.saturating_add(consumed.load(Ordering::Relaxed)));
        }
        Ok(None)
    }

    fn say_if_backwards(&self, number: usize, frames: &[SourceFrame<'_>]) {
        let earlier = frames.first().is_some_and(|frame| frame.ts < self.now);
        if number > 0 && earlier {
            let name = self.config.files.get(number).map(|path| path.display().to_string());
            self.progress.suspend(|| {
                warn!(
                    "{} begins before the file in front of it ends: name files in the order of \
                     their time",
                    name.unwrap_or_default()
                );
            });
        }
    }

    /// No file tells what was on the wire between the last one and this one.
    fn note_time_between(&self, run: &Run, number: usize, frames: &[SourceFrame<'_>]) {
        let Some(first) = frames.iter().map(|frame| frame.ts).min() else { return };
        if self.flush.is_some() && first - self.now >= JOINT {
            let name = self.config.files.get(number).and_then(|path| path.file_name());
            let name = name.unwrap_or_default().to_string_lossy();
            let detail = format!("no replayed file has this time; the next is {name}");
            run.blind.was(Subject::sensor(BlindCause::Silent), self.now, first, &detail);
        }
    }

    fn batch(&mut self, run: &Run, number: usize, frames: &[SourceFrame<'_>]) -> Result<()> {
        let Some(newest) = frames.iter().map(|frame| frame.ts).max() else {
            return Ok(());
        };
        if self.flush.is_none() {
            let oldest = frames.iter().map(|frame| frame.ts).min().unwrap_or(newest);
            self.start_flush(run, oldest)?;
        }
        self.now = self.now.max(newest);
        self.pipeline.take(frames);
        self.flush_lives()?;
        if let Some(count) = self.counts.get_mut(number) {
            let bytes = frames.iter().map(|frame| u64::from(frame.wire_len)).sum::<u64>();
            count.frames = count.frames.saturating_add(frames.len() as u64);
            count.wire_bytes = count.wire_bytes.saturating_add(bytes);
            count.last_ts = self.now;
        }
        self.frames = self.frames.saturating_add(frames.len() as u64);
        if let Some(failure) = self.pipeline.recorder().take_error() {
            return Err(anyhow::Error::new(failure).context("the replay stopped here"));
        }
        if self.now >= self.next_tick {
            self.pipeline.publish(&self.counts, self.now, self.now);
            self.next_tick = self.now + self.config.common.ledger_interval;
            self.tick()?;
        }
        Ok(())
    }

    fn start_flush(&mut self, run: &Run, from: Nanos) -> Result<()> {
        let flush = run.start_replay_flush(from, Arc::clone(&self.clock))?;
        self.pipeline.set_when_full(WhenFull::Wait(flush.taker()));
        self.next_tick = from + self.config.common.ledger_interval;
        self.flush = Some(flush);
        // The first line, before anything lies open in the store that no run is known for.
        self.tick()
    }

    fn flush_lives(&self) -> Result<()> {
        match &self.flush {
            Some(flush) if !flush.is_alive() => Err(anyhow!("the flush thread ended early")),
            _ => Ok(()),
        }
    }

    fn tick(&self) -> Result<()> {
        if let Some(flush) = &self.flush {
            self.clock.tick(flush.thread(), || flush.is_alive());
        }
        self.flush_lives()
    }

    /// The end of the last file: every session is over.
    fn finish(&mut self) -> Result<()> {
        if self.flush.is_none() {
            info!("no frame in any file: nothing was replayed");
            return Ok(());
        }
        self.pipeline.finish(&self.counts, self.now, Nanos::MAX);
        Ok(())
    }
}

fn progress_bar(bytes: Option<u64>, quiet: bool) -> ProgressBar {
    let (bar, template) = match bytes {
        Some(bytes) => {
            (ProgressBar::new(bytes), "{wide_bar} {percent:>3} %  {bytes_per_sec}  {eta} left")
        }
        None => (ProgressBar::new_spinner(), "{spinner} {bytes} read  {bytes_per_sec}"),
    };
    // Drawn only where standard error is a terminal.
    bar.set_draw_target(if quiet {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    });
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
