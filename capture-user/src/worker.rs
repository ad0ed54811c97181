//! One core's loop: frames come in batches, are recorded, and become sessions.

use std::array;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, Thread};
use std::time::Duration;

use capture_flow::config::ConfigError;
use capture_flow::config::FlowConfig;
use capture_flow::frame::{Frame, PcapPosition};
use capture_flow::key::FlowHash;
use capture_flow::sink::{Mark, SessionUpdate, Sink};
use capture_flow::stats::FlowStats;
use capture_flow::table::SessionTable;
use capture_flow::time::Nanos;
use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;

use crate::account::{Progress, SourceCounts, WorkerCounters};
use crate::canary::{ETHER_TYPE, Inbox};
use crate::memory::Machine;
use crate::recorder::Recorder;
use crate::source::{BATCH, SourceFrame};

/// Session updates that wait for the flush thread, at most.
pub const HAND_OFF: usize = 1 << 16;
/// Frames in several pieces are put together here; more than a batch of them needs it to grow.
const JUMBO_BYTES: usize = 1 << 20;

/// What a worker shares with the flush thread and the status line.
pub struct Shared {
    /// Its number.
    pub worker: u16,
    /// Its counters.
    pub counters: CachePadded<WorkerCounters>,
    /// Session updates on their way to the flush thread.
    pub updates: ArrayQueue<SessionUpdate>,
    /// Canaries on their way to the flush thread.
    pub canaries: Inbox,
    ended: AtomicBool,
    /// Nanoseconds of processor time that the worker took; told at its end.
    on_core_ns: AtomicU64,
}

impl Shared {
    /// Nothing counted, nothing on its way, for a worker with places for so many sources.
    #[must_use]
    pub fn new(worker: u16, sources: usize) -> Self {
        Self {
            worker,
            counters: CachePadded::new(WorkerCounters::new(sources)),
            updates: ArrayQueue::new(HAND_OFF),
            canaries: Inbox::default(),
            ended: AtomicBool::new(false),
            on_core_ns: AtomicU64::new(0),
        }
    }

    /// The worker has done its work: notes the processor time that it took for it.
    pub fn note_time_on_core(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.on_core_ns.store(ns, Ordering::Relaxed);
    }

    /// The processor time that the worker took; nothing before its end.
    #[must_use]
    pub fn time_on_core(&self) -> Duration {
        Duration::from_nanos(self.on_core_ns.load(Ordering::Relaxed))
    }

    /// The worker has ended: it shows no sign of life any more.
    pub fn set_ended(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Whether the worker has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

/// The processor time that the calling thread has taken so far.
#[must_use]
pub fn time_on_core() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// What happens to a session update when the hand-off is full.
pub enum WhenFull {
    /// It is lost, and counted: a live worker never waits.
    Lose,
    /// The flush thread is woken and waited for: a replay loses nothing, as long as it lives.
    Wait(Taker),
}

/// The thread that takes session updates, as whoever waits for it sees it.
#[derive(Clone, Debug)]
pub struct Taker {
    thread: Thread,
    life: Weak<()>,
}

impl Taker {
    /// `life` has an owner as long as the thread lives.
    #[must_use]
    pub fn new(thread: Thread, life: Weak<()>) -> Self {
        Self { thread, life }
    }

    /// Lets it take something; false if it is dead and will not.
    fn wait(&self) -> bool {
        self.thread.unpark();
        thread::yield_now();
        self.life.strong_count() > 0
    }
}

/// What a worker does with frames, wherever they come from: they are recorded, their sessions
/// accounted, and every batch is published.
pub struct Pipeline {
    table: SessionTable<Machine>,
    recorder: Recorder,
    shared: Arc<Shared>,
    when_full: WhenFull,
    rows_lost: u64,
    jumbo: Vec<u8>,
}

/// Takes what the table finds out.
struct HandOff<'a> {
    recorder: &'a mut Recorder,
    shared: &'a Shared,
    when_full: &'a WhenFull,
    rows_lost: &'a mut u64,
}

impl Sink for HandOff<'_> {
    #[inline]
    fn touch(&mut self, at: PcapPosition, flow: FlowHash, mark: &mut Mark) {
        self.recorder.touch(at, flow, mark);
    }

    fn without_ip(&mut self, ether_type: u16, frame: &Frame<'_>) {
        if ether_type == ETHER_TYPE {
            self.shared.canaries.offer(frame);
        }
    }

    fn session(&mut self, update: SessionUpdate) {
        let mut update = update;
        while let Err(refused) = self.shared.updates.push(update) {
            match self.when_full {
                WhenFull::Wait(taker) if taker.wait() => update = refused,
                WhenFull::Wait(_) | WhenFull::Lose => {
                    *self.rows_lost += 1;
                    return;
                }
            }
        }
    }
}

impl Pipeline {
    /// A pipeline without sessions.
    ///
    /// # Errors
    /// A session rule that cannot be used.
    pub fn new(
        flow: FlowConfig,
        recorder: Recorder,
        shared: Arc<Shared>,
        when_full: WhenFull,
    ) -> Result<Self, ConfigError> {
        let table = SessionTable::in_memory(flow)?;
        let jumbo = Vec::with_capacity(JUMBO_BYTES);
        Ok(Self { table, recorder, shared, when_full, rows_lost: 0, jumbo })
    }

    /// Has the memory of every session that there will be made present, so that a burst of new ones
    /// finds it there.
    pub fn populate(&self) {
        self.table.populate();
    }

    /// Takes a batch of frames: each is recorded, then accounted to its session. The hot path:
    /// no allocation, no lock, no system call, no log.
    pub fn take(&mut self, frames: &[SourceFrame<'_>]) {
        let mut rest = frames;
        while !rest.is_empty() {
            // A piece lies in one segment; nearly always it is the whole batch.
            let room = self.recorder.room(rest);
            let (piece, later) = rest.split_at(room.frames.clamp(1, rest.len()));
            rest = later;

            self.jumbo.clear();
            for frame in piece.iter().filter(|frame| frame.parts.len() != 1) {
                frame.parts.iter().for_each(|part| self.jumbo.extend_from_slice(part));
            }
            let mut jumbo = self.jumbo.as_slice();

            let mut flat: [Frame<'_>; BATCH] = array::from_fn(|place| {
                let Some(frame) = piece.get(place) else { return NO_FRAME };
                let bytes = match frame.parts {
                    [whole] => whole,
                    _ => jumbo.split_off(..frame.captured_len()).unwrap_or_default(),
                };
                Frame {
                    ts: frame.ts,
                    wire_len: frame.wire_len,
                    bytes,
                    link: frame.link,
                    iface: frame.iface,
                    at: None,
                }
            });
            let flat = flat.get_mut(..piece.len()).unwrap_or_default();
            // The frames are copied while the memory of their sessions is on its way.
            self.table.look_ahead(flat);
            for (frame, source) in flat.iter_mut().zip(piece) {
                frame.at = self.recorder.record(source, room.refused);
            }
            let mut sink = HandOff {
                recorder: &mut self.recorder,
                shared: &self.shared,
                when_full: &self.when_full,
                rows_lost: &mut self.rows_lost,
            };
            self.table.observe_batch(flat, &mut sink);
            self.recorder.publish();
        }
    }

    /// Moves the sessions' timers while the wire is quiet.
    pub fn advance(&mut self, now: Nanos) {
        let mut sink = HandOff {
            recorder: &mut self.recorder,
            shared: &self.shared,
            when_full: &self.when_full,
            rows_lost: &mut self.rows_lost,
        };
        self.table.advance(now, &mut sink);
    }

    /// Lets others see the counters. `now` is the engine's clock; every frame that arrived before
    /// `seen_through` has been taken.
    pub fn publish(&self, sources: &[SourceCounts], now: Nanos, seen_through: Nanos) {
        self.publish_complete(sources, now, self.table.complete_through(seen_through));
    }

    fn publish_complete(&self, sources: &[SourceCounts], now: Nanos, complete_through: Nanos) {
        self.shared.counters.publish(&Progress {
            record: self.recorder.counts(),
            flow: self.table.stats(),
            rows_lost: self.rows_lost,
            sources,
            engine_now: now,
            complete_through,
        });
    }

    /// The end of the run: every session is written out, every segment handed to be sealed. What
    /// arrived before `through` was taken; [`Nanos::MAX`] where nothing is left, so that this
    /// worker keeps nobody waiting any more.
    pub fn finish(&mut self, sources: &[SourceCounts], now: Nanos, through: Nanos) {
        let mut sink = HandOff {
            recorder: &mut self.recorder,
            shared: &self.shared,
            when_full: &self.when_full,
            rows_lost: &mut self.rows_lost,
        };
        self.table.finish(now, &mut sink);
        self.recorder.finish();
        self.publish_complete(sources, now, through);
    }

    /// Changes what happens when the hand-off is full.
    pub fn set_when_full(&mut self, when_full: WhenFull) {
        self.when_full = when_full;
    }

    /// The table's counters.
    #[must_use]
    pub fn stats(&self) -> &FlowStats {
        self.table.stats()
    }

    /// The recorder.
    pub fn recorder(&mut self) -> &mut Recorder {
        &mut self.recorder
    }
}

/// An empty place in a batch.
const NO_FRAME: Frame<'static> = Frame {
    ts: Nanos(0),
    wire_len: 0,
    bytes: &[],
    link: capture_flow::frame::LinkType::ETHERNET,
    iface: capture_flow::frame::IfaceId(0),
    at: None,
};

/// A replay's clock: the worker says how far packet time has come, and waits until the flush
/// thread has written everything up to there. So a replay writes the same whenever it runs.
#[derive(Debug, Default)]
pub struct ReplayClock {
    asked: AtomicU64,
    done: AtomicU64,
}

impl ReplayClock {
    /// Asks the flush thread to close the interval and waits until it did. `is_alive` tells
    /// whether there still is one; returns false if there is not.
    pub fn tick(&self, flush: &Thread, is_alive: impl Fn() -> bool) -> bool {
        let ticket = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        while self.done.load(Ordering::Acquire) < ticket {
            if !is_alive() {
                return false;
            }
            flush.unpark();
            thread::park_timeout(Duration::from_millis(1));
        }
        true
    }

    /// The latest tick asked for, if it is not done yet.
    #[must_use]
    pub fn pending(&self) -> Option<u64> {
        let asked = self.asked.load(Ordering::Acquire);
        (self.done.load(Ordering::Acquire) < asked).then_some(asked)
    }

    /// The flush thread has done what this tick asked for.
    pub fn finished(&self, ticket: u64, worker: &Thread) {
        self.done.store(ticket, Ordering::Release);
        worker.unpark();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use capture_flow::frame::{IfaceId, LinkType};
    use capture_flow::time::NanosDelta;

    use super::*;
    use crate::keeper::Lane;
    use crate::recorder::Supply;

    /// UDP between 10.0.0.1 and an address of its own for every `n`.
    fn frame(n: u32) -> [u8; 60] {
        let mut frame = [0; 60];
        frame[12..15].copy_from_slice(&[8, 0, 0x45]);
        frame[17] = 46;
        frame[22..24].copy_from_slice(&[64, 17]);
        frame[26..30].copy_from_slice(&[10, 0, 0, 1]);
        frame[30..34].copy_from_slice(&(0x0b00_0000 + n).to_be_bytes());
        frame[34..39].copy_from_slice(&[0x9c, 0x40, 0x27, 0x0f, 0]);
        frame[39] = 26;
        frame
    }

    fn pipeline(shared: &Arc<Shared>) -> Pipeline {
        let recorder = Recorder::new(0, Arc::new(Lane::new(0)), Supply::Ahead, 65_535);
        let flow = FlowConfig { table_bytes: 1 << 20, ..FlowConfig::default() };
        Pipeline::new(flow, recorder, Arc::clone(shared), WhenFull::Lose).expect("a pipeline")
    }

    pub(crate) fn feed(pipeline: &mut Pipeline, sessions: std::ops::Range<u32>) {
        feed_from(Nanos(0), pipeline, sessions);
    }

    /// One frame of every session, a nanosecond apart.
    pub(crate) fn feed_from(start: Nanos, pipeline: &mut Pipeline, sessions: std::ops::Range<u32>) {
        for n in sessions {
            let bytes = frame(n);
            // In two pieces, as a jumbo frame comes.
            let (head, tail) = bytes.split_at(20);
            let parts = [head, tail];
            pipeline.take(&[SourceFrame {
                ts: start + NanosDelta(i64::from(n)),
                wire_len: 60,
                link: LinkType::ETHERNET,
                iface: IfaceId(0),
                parts: &parts,
            }]);
        }
    }

    #[test]
    fn rows_that_the_hand_off_cannot_take_are_counted() {
        let shared = Arc::new(Shared::new(0, 0));
        let mut pipeline = pipeline(&shared);
        let sessions = u32::try_from(HAND_OFF).expect("small") + 1_000;
        feed(&mut pipeline, 0..sessions);
        pipeline.finish(&[], Nanos(i64::from(sessions)), Nanos::MAX);
        let counts = shared.counters.read();
        assert_eq!(counts.created, u64::from(sessions));
        assert_eq!(counts.rows, u64::from(sessions));
        assert_eq!(counts.rows_lost, 1_000);
        assert_eq!(shared.updates.len(), HAND_OFF);
        assert_eq!(counts.imbalance(), 0);
        assert_eq!(counts.decoded, u64::from(sessions), "pieces are put together");
    }

    #[test]
    fn a_replay_waits_for_the_flush_thread_and_loses_nothing() {
        let shared = Arc::new(Shared::new(0, 0));
        let mut pipeline = pipeline(&shared);
        let sessions = u32::try_from(HAND_OFF).expect("small") + 1_000;
        let (theirs, alive) = (Arc::clone(&shared), Arc::new(()));
        let life = Arc::downgrade(&alive);
        let flush = thread::spawn(move || {
            let _alive = alive;
            let mut rows = 0;
            while rows < sessions {
                match theirs.updates.pop() {
                    Some(_) => rows += 1,
                    None => thread::yield_now(),
                }
            }
        });
        pipeline.set_when_full(WhenFull::Wait(Taker::new(flush.thread().clone(), life)));
        feed(&mut pipeline, 0..sessions);
        pipeline.finish(&[], Nanos(i64::from(sessions)), Nanos::MAX);
        flush.join().expect("every row came");
        assert_eq!(shared.counters.read().rows_lost, 0);
    }

    #[test]
    fn nobody_waits_for_a_flush_thread_that_is_dead_and_its_rows_are_counted() {
        let shared = Arc::new(Shared::new(0, 0));
        let mut pipeline = pipeline(&shared);
        let alive = Arc::new(());
        let life = Arc::downgrade(&alive);
        let flush = thread::spawn(move || drop(alive));
        let thread = flush.thread().clone();
        flush.join().expect("no panic");
        pipeline.set_when_full(WhenFull::Wait(Taker::new(thread, life)));
        let sessions = u32::try_from(HAND_OFF).expect("small") + 10;
        feed(&mut pipeline, 0..sessions);
        pipeline.finish(&[], Nanos(i64::from(sessions)), Nanos::MAX);
        assert_eq!(shared.counters.read().rows_lost, 10);
    }

    #[test]
    fn a_tick_waits_until_it_is_done_and_no_longer_than_the_flush_thread_lives() {
        let clock = Arc::new(ReplayClock::default());
        let (theirs, worker) = (Arc::clone(&clock), thread::current());
        let flush = thread::spawn(move || {
            let mut done = 0;
            while done < 3 {
                match theirs.pending() {
                    Some(ticket) => {
                        done += 1;
                        theirs.finished(ticket, &worker);
                    }
                    None => thread::yield_now(),
                }
            }
        });
        for _ in 0..3 {
            assert!(clock.tick(flush.thread(), || true));
        }
        assert_eq!(clock.pending(), None);
        let handle = flush.thread().clone();
        flush.join().expect("no panic");
        assert!(!clock.tick(&handle, || false));
    }
}
