//! The flush thread: joins what several workers saw of one session, writes the session log,
//! closes the ledger's intervals.

mod clocks;
mod end;
mod thread;
mod weigh;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use capture_flow::join::Joiner;
use capture_flow::record::SessionRecord;
use capture_flow::time::{Nanos, NanosDelta};
use capture_store::ledger::{BlindCause, LedgerWriter, Note};
use capture_store::sessions::{CommitError, PendingSeal, SealedSessions, SessionLog};
use crossbeam::channel::{Receiver, Sender};
use tracing::{error, warn};

use crate::account::WorkerCounts;
use crate::anchor::Anchors;
use crate::blind::{Blindness, Subject};
use crate::canary;
use crate::chain;
use crate::heartbeat::Heartbeats;
use crate::interval::{Closing, Intervals, Probe, Reading};
use crate::keeper::KeeperNews;
use crate::names::InterfaceNames;
use crate::silence::SignsOfLife;
use crate::worker::{ReplayClock, Shared};

use clocks::{Quiet, WallClock};
pub use end::End;
pub use thread::FlushThread;
use weigh::weigh;

/// How often the hand-offs are emptied while a capture runs.
const LOOK: Duration = Duration::from_millis(20);
/// How often the live tail of the session log is committed.
const COMMIT: Duration = Duration::from_secs(1);

/// Rows that wait for no commit: fewer than the log can hold (`LogPolicy::waiting_rows`), so that
/// none is lost only because many come at once.
const MOST_WAITING: usize = 1 << 16;

/// What the flush thread lets others see.
#[derive(Debug, Default)]
pub struct FlushTotals {
    /// Session rows committed.
    pub rows: AtomicU64,
    /// Session rows that the log could not take.
    pub rows_unwritable: AtomicU64,
    /// Frames lost between the XDP program and the workers.
    pub ring_losses: AtomicU64,
    /// Lines of the ledger whose equations did not hold.
    pub imbalances: AtomicU64,
    /// Whether the ledger could not be written the last time.
    pub ledger_fails: AtomicBool,
}

/// Replayed files in the order of the worker's sources, and whether each is cut off.
pub type ReplayedFiles = Arc<Mutex<Vec<(String, bool)>>>;

/// Everything the flush thread works with.
pub struct Flush {
    /// The workers, by number.
    pub workers: Vec<Arc<Shared>>,
    /// Joins halves of sessions.
    pub joiner: Joiner,
    /// Where rows go.
    pub log: SessionLog,
    /// Where lines go.
    pub ledger: LedgerWriter,
    /// The open interval.
    pub intervals: Intervals,
    /// The kernel's side of the account.
    pub probe: Box<dyn Probe>,
    /// Times in which the sensor could not see.
    pub blind: Arc<Blindness>,
    /// When interfaces last gave a sign of life.
    pub signs: SignsOfLife,
    /// Which canaries are believed.
    pub canaries: canary::Watch,
    /// Where heads of the ledger are kept besides.
    pub anchors: Option<Anchors>,
    /// What the keeper did.
    pub news: Receiver<KeeperNews>,
    /// Files of the session log for the keeper to seal.
    pub seals: Sender<PendingSeal>,
    /// The same, as the keeper takes them: those that came after its end.
    pub unsealed: Receiver<PendingSeal>,
    /// What else shall be in the next line.
    pub notes: Receiver<Note>,
    /// Interfaces by number.
    pub names: Arc<InterfaceNames>,
    /// Replayed files, if any.
    pub files: ReplayedFiles,
    /// What others see.
    pub totals: Arc<FlushTotals>,
    /// Length of an interval.
    pub interval: NanosDelta,
}

/// Where rows go on their way out.
struct Out<'a> {
    log: &'a mut SessionLog,
    names: &'a InterfaceNames,
    known: &'a mut Vec<String>,
    totals: &'a FlushTotals,
    /// Whether rows were to be committed before their time and could not be.
    relief_fails: &'a mut bool,
}

impl Out<'_> {
    fn row(&mut self, record: &SessionRecord) {
        let number = usize::from(record.iface.0);
        if number >= self.known.len() {
            *self.known = self.names.all();
        }
        let name = self.known.get(number).map_or("", String::as_str);
        if self.log.append(record, name).is_err() {
            self.totals.rows_unwritable.fetch_add(1, Ordering::Relaxed);
        }
        // More rows may come at once than may wait: at the end of a run all that there are.
        if self.log.waiting_rows() >= MOST_WAITING && !*self.relief_fails {
            let rows = self.log.commit().unwrap_or_else(|failure| {
                // The next commit that is due says why.
                *self.relief_fails = true;
                failure.committed
            });
            self.totals.rows.fetch_add(rows, Ordering::Relaxed);
        }
    }
}

/// The state of the thread itself.
struct Run {
    flush: Flush,
    quiet: Quiet,
    hearts: Heartbeats,
    known: Vec<String>,
    /// Whether the session log could not be written the last time, and when it last could.
    log_fails: bool,
    log_written: Nanos,
    /// Whether rows were to be committed before their time and could not be.
    relief_fails: bool,
    held_notes: Vec<Note>,
    committed_at: Instant,
    /// When a line was last offered to the ledger.
    tried_at: Instant,
    /// The line of a quiet time that may go on.
    waiting: Option<Closing>,
    /// Watched while live; a replay's time is the packets'.
    wall: Option<WallClock>,
    complete_through: Option<Nanos>,
}

impl Flush {
    /// Works until `stop` is set and the workers have ended; then everything still on its way is
    /// written, and the last line says so. `begun` is called once the first line is written;
    /// `clock` gives the engine's time.
    ///
    /// # Errors
    /// The session log or the last line could not be written.
    pub fn capture(
        self,
        stop: &End,
        begun: impl FnOnce(),
        clock: impl Fn() -> Nanos,
    ) -> Result<()> {
        let mut run = Run::new(self);
        run.wall = Some(WallClock::read());
        run.begin();
        begun();
        loop {
            // Before the hand-offs are emptied: workers have ended by then.
            let stopping = stop.is_set();
            let now = clock().min(stop.at());
            run.look(now);
            run.hear_canaries();
            if stop.at() == Nanos::MAX {
                run.watch(now);
            }
            if stopping {
                return run.finish(now, stop.in_order());
            }
            if run.committed_at.elapsed() >= COMMIT {
                run.commit(now);
                run.seal_due(now);
            }
            let open_since = run.flush.intervals.from();
            if now - open_since >= run.flush.interval {
                if run.may_try() {
                    run.close(now, false, false);
                }
            } else if now < open_since {
                // The wall clock was set back: the line of what was says by how much.
                run.close(open_since, false, false);
                run.flush.intervals.begin_at(now);
                run.waiting = None;
                run.flush.blind.clock_was_set_back(now);
            }
            std::thread::park_timeout(LOOK);
        }
    }

    /// The same for a replay: time is what the worker says, and nothing happens in between.
    ///
    /// # Errors
    /// The session log or the last line could not be written.
    pub fn replay(self, stop: &End, clock: &ReplayClock, worker: &Thread) -> Result<()> {
        let mut run = Run::new(self);
        loop {
            let stopping = stop.is_set();
            let ticket = clock.pending();
            run.empty_hand_offs();
            if let Some(ticket) = ticket {
                let now = run.replay_time();
                run.look(now);
                run.close(now, false, false);
                run.seal_due(now);
                clock.finished(ticket, worker);
            } else if stopping {
                let now = run.replay_time();
                run.look(now);
                return run.finish(now, stop.in_order());
            } else {
                std::thread::park_timeout(LOOK);
            }
        }
    }
}

impl Run {
    fn new(mut flush: Flush) -> Self {
        // What is said already comes first: the start, and what was recovered.
        let held_notes = flush.notes.try_iter().collect();
        let from = flush.intervals.from();
        flush.signs.begin(from);
        Self {
            flush,
            quiet: Quiet::default(),
            hearts: Heartbeats::default(),
            known: Vec::new(),
            log_fails: false,
            log_written: from,
            relief_fails: false,
            held_notes,
            committed_at: Instant::now(),
            tried_at: Instant::now(),
            waiting: None,
            wall: None,
            complete_through: None,
        }
    }

    /// The first line, at once: from here on whatever lies open in the store is known to be of a
    /// run, and none that somebody else put there.
    fn begin(&mut self) {
        self.close(self.flush.intervals.from(), false, false);
    }

    /// Whether a line may be tried now: one that the disk refused is not tried again at every look.
    fn may_try(&self) -> bool {
        !self.flush.totals.ledger_fails.load(Ordering::Relaxed) || self.tried_at.elapsed() >= COMMIT
    }

    /// Takes every row there is, and lets the joiner's time run.
    fn look(&mut self, now: Nanos) {
        self.empty_hand_offs();
        let (joiner, mut out) = self.out();
        joiner.advance(now, &mut |record| out.row(&record));
        let workers = self.flush.workers.iter();
        let sources = workers.flat_map(|worker| worker.counters.read().sources);
        let latest = sources.map(|source| source.last_ts).filter(|ts| *ts > Nanos::MIN).max();
        self.quiet.look(latest, now);
    }

    /// Notices workers that do not run and interfaces that are silent.
    fn watch(&mut self, now: Nanos) {
        let Flush { workers, blind, signs, canaries, probe, .. } = &mut self.flush;
        self.hearts.look(workers, now, blind);
        let counts: Vec<_> = workers.iter().map(|worker| worker.counters.read()).collect();
        let mut heard = probe.heard(&counts);
        if signs.are_only_canaries() {
            heard = canaries.only_canaries(heard);
        }
        signs.look(heard, now, blind);
    }

    /// Takes the canaries that have come.
    fn hear_canaries(&mut self) {
        let Flush { workers, canaries, names, .. } = &mut self.flush;
        canaries.look(workers.iter().map(|worker| &worker.canaries), &names.all());
        let refused = canaries.refusals().into_iter().map(|text| Note::Said { text });
        self.held_notes.extend(refused);
    }

    fn out(&mut self) -> (&mut Joiner, Out<'_>) {
        let out = Out {
            log: &mut self.flush.log,
            names: &self.flush.names,
            known: &mut self.known,
            totals: &self.flush.totals,
            relief_fails: &mut self.relief_fails,
        };
        (&mut self.flush.joiner, out)
    }

    fn empty_hand_offs(&mut self) {
        for worker in self.flush.workers.clone() {
            let (joiner, mut out) = self.out();
            while let Some(update) = worker.updates.pop() {
                joiner.offer(worker.worker, update, &mut |record| out.row(&record));
            }
        }
    }

    /// The time of a replay: the worker's.
    fn replay_time(&self) -> Nanos {
        let times = self.flush.workers.iter().map(|worker| worker.counters.read().engine_now);
        times.max().unwrap_or_default().max(self.flush.intervals.from())
    }

    /// Makes rows readable: every one taken is in the open tail afterwards, or waits because the
    /// disk does not take it. Says whether none waits.
    fn commit(&mut self, now: Nanos) -> bool {
        self.committed_at = Instant::now();
        let committed = self.flush.log.commit();
        self.note_commit(committed, now)
    }

    fn note_commit(&mut self, committed: Result<u64, CommitError>, now: Nanos) -> bool {
        let behind = Subject::sensor(BlindCause::LogBehind);
        match committed {
            Ok(rows) => {
                self.flush.totals.rows.fetch_add(rows, Ordering::Relaxed);
                self.log_written = now;
                self.relief_fails = false;
                if std::mem::take(&mut self.log_fails) {
                    self.flush.blind.end(&behind, now);
                    warn!("the session log can be written again");
                }
                true
            }
            Err(failure) => {
                self.flush.totals.rows.fetch_add(failure.committed, Ordering::Relaxed);
                let cause = chain(&failure);
                self.flush.blind.begin(behind, self.log_written.min(now), &cause);
                if !std::mem::replace(&mut self.log_fails, true) {
                    error!("the session log cannot be written, rows wait: {cause}");
                }
                false
            }
        }
    }

    /// Notices workers whose frames of this interval were not all written, and those whose frames
    /// are written again.
    fn note_unwritten(&mut self, counts: &[WorkerCounts]) {
        let from = self.flush.intervals.from();
        for (worker, dropped) in self.flush.intervals.unwritten(counts) {
            let unwritable = Subject::worker(BlindCause::SegmentsUnwritable, worker);
            if dropped.is_empty() {
                self.flush.blind.end(&unwritable, from);
            } else {
                let reasons: Vec<&str> = dropped.keys().map(|reason| reason.as_str()).collect();
                self.flush.blind.begin(unwritable, from, &reasons.join(", "));
            }
        }
    }

    /// Hands the keeper the files of the session log that are to be sealed.
    fn seal_due(&mut self, now: Nanos) {
        for pending in self.flush.log.take_due(now) {
            if let Err(unsent) = self.flush.seals.send(pending) {
                // Nobody seals any more; the next start will.
                drop(unsent);
            }
        }
    }

    /// Closes the interval at `now`: reads every counter, weighs them, writes the line.
    fn close(&mut self, now: Nanos, at_rest: bool, clean: bool) {
        // What the workers say first, then the rows: so that every row that a worker's
        // `complete_through` promises is in the log before the line repeats the promise.
        let mut counts: Vec<WorkerCounts> = Vec::with_capacity(self.flush.workers.len());
        let workers = self.flush.workers.clone();
        let interfaces = self.flush.probe.read(&mut || {
            counts = workers.iter().map(|worker| worker.counters.read()).collect();
        });
        self.empty_hand_offs();
        let before = self.complete_through;
        let noticed = self.flush.blind.noticed_through().or(before);
        // Rows that wait in memory are not in the log: nothing new is promised then.
        // A worker that ended by itself gets no further: what it took with it is a blind time of
        // its own, from where it got to.
        let reached = counts.iter().zip(&workers).map(|(counts, worker)| {
            if worker.has_ended() { Nanos::MAX } else { counts.complete_through }
        });
        let through = reached.min();
        if self.commit(now) {
            // At the end every session is over and every row written.
            // A worker that ended in order promises everything; one that panicked stays where it
            // was, at the end too. The clock may have been set back since the last line.
            let through =
                through.map(|through| self.flush.joiner.complete_through(through.min(now)));
            // Nor is a promise kept up that a worker takes back: a frame that came late may be the
            // first of a session which has no row yet.
            // Nor more than has been looked at: what blinded the sensor meanwhile is not told yet.
            self.complete_through =
                through.zip(noticed).map(|(at, noticed)| at.min(now).min(noticed));
        } else {
            self.complete_through = self.complete_through.min(through);
            if at_rest {
                // They were in memory only, and nobody will write them any more.
                let waiting = self.flush.log.waiting_rows() as u64;
                self.flush.totals.rows_unwritable.fetch_add(waiting, Ordering::Relaxed);
            }
        }
        self.note_unwritten(&counts);
        let mut reading = Reading {
            workers: counts,
            interfaces,
            files: self.flush.files.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            rows_written: self.flush.totals.rows.load(Ordering::Relaxed),
            rows_unwritable: self.flush.totals.rows_unwritable.load(Ordering::Relaxed),
            complete_through: self.complete_through,
            stepped_ns: self.wall.map_or(0, |wall| wall.stepped_ns()),
            at_rest,
        };
        for news in self.flush.news.try_iter() {
            match news {
                KeeperNews::Sealed(files) => {
                    self.held_notes.extend(files.into_iter().map(Note::Sealed));
                }
                KeeperNews::Retired(files) => {
                    self.held_notes.extend(files.into_iter().map(Note::Retired));
                }
                KeeperNews::Said(text) => self.held_notes.push(Note::Said { text }),
                KeeperNews::Altered(note) => self.held_notes.push(note),
            }
        }
        self.held_notes.extend(self.flush.notes.try_iter());
        let mut notes = self.held_notes.clone();
        if at_rest && !self.flush.intervals.rows_lost(&reading).is_empty() {
            // The last sessions are not all in the log: no more is promised than before.
            self.complete_through = before.min(self.complete_through);
            reading.complete_through = self.complete_through;
        } else if clean {
            notes.push(Note::CleanStop);
        }
        let make = |run: &Self, reading: Reading, notes: Vec<Note>| {
            let told = run.flush.blind.told(run.flush.intervals.from(), now);
            let longest = run.quiet.longest;
            (run.flush.intervals.close(now, reading, longest, &told, notes), told)
        };
        let (mut closing, mut told) = make(self, reading.clone(), notes.clone());
        if closing.can_wait() {
            self.waiting = Some(closing);
            return;
        }
        if let Some(quiet) = self.waiting.take()
            && !closing.quiet
            && self.write_quiet(quiet)
        {
            (closing, told) = make(self, reading, notes);
        }
        closing.line.canaries = self.flush.canaries.line();
        closing.line.tails = self.flush.log.tails();
        self.tried_at = Instant::now();
        match self.flush.ledger.append(&mut closing.line) {
            Ok(_) => {
                weigh(&self.flush.totals, &closing.line);
                self.held_notes.clear();
                self.quiet.longest = None;
                self.flush.blind.settle(&told);
                self.flush.canaries.settle();
                self.wall = self.wall.map(|_| WallClock::read());
                self.flush.intervals.written(closing);
                self.keep_head();
                if self.flush.totals.ledger_fails.swap(false, Ordering::Relaxed) {
                    warn!("the ledger can be written again");
                }
            }
            // The interval stays open: the next line will span it.
            Err(failure) => {
                if at_rest {
                    weigh(&self.flush.totals, &closing.line);
                }
                if !self.flush.totals.ledger_fails.swap(true, Ordering::Relaxed) {
                    error!("the ledger cannot be written: {}", chain(&failure));
                }
            }
        }
    }

    /// Writes a line that could wait until something happened: what happens then is told of no
    /// longer a time than it took. Says whether it is written.
    fn write_quiet(&mut self, mut quiet: Closing) -> bool {
        // It may become the newest line there is: it vouches for the open tail like any other.
        quiet.line.tails = self.flush.log.tails();
        let written = quiet.line.from == self.flush.intervals.from()
            && self.flush.ledger.append(&mut quiet.line).is_ok();
        if written {
            weigh(&self.flush.totals, &quiet.line);
            self.flush.intervals.written(quiet);
        }
        written
    }

    /// Has the ledger's head kept elsewhere, when it is time.
    fn keep_head(&mut self) {
        let Flush { ledger, anchors, .. } = &mut self.flush;
        let Some(anchors) = anchors.as_mut().filter(|anchors| anchors.is_due()) else { return };
        match ledger.anchor().and_then(|head| Ok((head, ledger.handle()?))) {
            Ok((Some(head), ledger)) => anchors.keep(head, ledger),
            Ok((None, _)) => {}
            Err(failure) => error!("the ledger's head cannot be kept: {}", chain(&failure)),
        }
    }

    /// The workers have ended: everything is written and sealed.
    fn finish(mut self, now: Nanos, in_order: bool) -> Result<()> {
        self.empty_hand_offs();
        let (joiner, mut out) = self.out();
        joiner.finish(now, &mut |record| out.row(&record));
        let mut failed = None;
        let mut unsealed: Vec<PendingSeal> = self.flush.unsealed.try_iter().collect();
        match self.flush.log.close() {
            Ok((rows, pending)) => {
                self.note_commit(Ok(rows), now);
                unsealed.extend(pending);
            }
            Err(failure) => {
                self.flush.totals.rows.fetch_add(failure.committed, Ordering::Relaxed);
                failed = Some(anyhow::Error::new(failure));
            }
        }
        for pending in unsealed {
            let ledger = &self.flush.ledger;
            if let Some(altered) = pending.altered() {
                error!("{} was changed by somebody", pending.path().display());
                ledger.owe(std::slice::from_ref(&altered));
                self.held_notes.push(altered);
            }
            match pending.seal_and_tell(|file| ledger.owe(&[Note::Sealed(file.clone())])) {
                Ok(sealed) => {
                    let unread = sealed.as_ref().map_or(0, SealedSessions::unread_bytes);
                    if unread > 0 {
                        let name = pending.path().display();
                        let text = format!("{name}: {unread} bytes are no rows that can be read");
                        self.held_notes.push(Note::Said { text });
                    }
                    self.held_notes.extend(sealed.map(|sealed| Note::Sealed(sealed.file)));
                }
                Err(failure) => failed = Some(anyhow::Error::new(failure)),
            }
        }
        self.close(now, true, failed.is_none() && in_order);
        anyhow::ensure!(
            !self.flush.totals.ledger_fails.load(Ordering::Relaxed),
            "the last lines of the ledger could not be written (see above)"
        );
        self.flush.ledger.sync()?;
        if let Some(anchors) = self.flush.anchors.take()
            && let Some(head) = self.flush.ledger.anchor()?
        {
            anchors.close(head, None);
        }
        match failed {
            None => Ok(()),
            Some(failure) => {
                Err(failure.context("the session log is not sealed; the next start seals it"))
            }
        }
    }
}

#[cfg(test)]
mod tests;
