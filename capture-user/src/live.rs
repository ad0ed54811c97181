//! The loop of a live worker: one core, and the queues that it was given.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use capture_flow::time::{Nanos, NanosDelta};
use crossbeam::channel::{Receiver, Sender};

use crate::account::SourceCounts;
use crate::blind::Blindness;
use crate::source::{Received, Source, SourceCounters, SourceError, Woken, wait};
use crate::worker::{Pipeline, Taker, WhenFull};

/// How long an idle worker sleeps at most: its timers run on, a stalled driver is kicked, and it
/// shows that it lives.
pub const IDLE: Duration = Duration::from_millis(100);
/// A worker that has not come round for so long was stalled. Longer than all that it does by
/// itself (the sleep above) or must bear in a healthy machine: others on its core, and the kernel
/// that holds up whoever writes much, for 200 ms at a time (`MAX_PAUSE` in its
/// `mm/page-writeback.c`). Shorter than any interval of the ledger that is usual.
pub const STALL: NanosDelta = NanosDelta::from_millis(500);
/// How often a worker asks its sources for their own counters, and for errors.
const ASK: NanosDelta = NanosDelta::from_millis(10);
/// How long after the stop a ring must have been empty to be taken for drained: longer than the
/// kernel takes to finish the frames that it had begun when XDP was detached.
const DRAINED: NanosDelta = NanosDelta::from_millis(50);
/// A frame is in the ring this long after its stamp, at the latest, unless its core is starved.
const IN_KERNEL: NanosDelta = NanosDelta::from_millis(250);

/// What a worker tells the engine.
#[derive(Debug)]
pub enum Event {
    /// A source gives no more frames. What was taken from it has been published.
    SourceEnded {
        /// The worker.
        worker: u16,
        /// Its place among the worker's sources.
        place: usize,
        /// Until when every frame that arrived was taken from it.
        since: Nanos,
        /// Why.
        error: SourceError,
    },
    /// The worker did not run for a while.
    Stalled {
        /// The worker.
        worker: u16,
        /// When it last ran.
        from: Nanos,
        /// When it ran again.
        to: Nanos,
    },
}

/// A source that a worker is to receive from.
#[derive(Debug)]
pub struct Assignment<S> {
    /// Its place among the worker's sources. One that takes the place of a source that has ended
    /// goes on with that one's counters.
    pub place: usize,
    /// The source.
    pub source: S,
}

/// What a worker hears from the engine.
pub struct Orders<S> {
    /// Set when XDP is detached: drain what is there, then end.
    pub stop: Arc<AtomicBool>,
    /// Sources to receive from.
    pub sources: Receiver<Assignment<S>>,
    /// Who takes the last rows, once somebody does: many come at once, and none is to be lost.
    pub taker: Arc<OnceLock<Taker>>,
    /// Readable (an eventfd) when there is anything to hear, so that nobody sleeps through it.
    pub bell: Arc<OwnedFd>,
    /// Who must know that it has news of blind times.
    pub blind: Arc<Blindness>,
}

/// What a worker remembers about an open source.
#[derive(Clone, Copy, Debug)]
struct Tap {
    /// Its place among the worker's counters, which outlive it.
    place: usize,
    /// Every frame that arrived before this moment was taken.
    seen_through: Nanos,
    /// What the sources before it at its place have counted.
    before: SourceCounters,
}

/// When a worker last came round.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// By the machine's clock, which can be set.
    wall: Nanos,
    /// By one that cannot, and that runs while the machine sleeps.
    boot: Nanos,
}

impl Round {
    fn now(wall: Nanos) -> Self {
        Self { wall, boot: since_boot() }
    }
}

/// One live worker.
pub struct LiveWorker<S> {
    number: u16,
    /// Open sources, and in the same order what is known about each.
    sources: Vec<S>,
    taps: Vec<Tap>,
    /// By place.
    counts: Vec<SourceCounts>,
    pipeline: Pipeline,
    orders: Orders<S>,
    events: Sender<Event>,
    round: Round,
}

impl<S: Source> LiveWorker<S> {
    /// A worker that waits for its first source.
    pub fn new(number: u16, pipeline: Pipeline, orders: Orders<S>, events: Sender<Event>) -> Self {
        Self {
            number,
            sources: Vec::new(),
            taps: Vec::new(),
            counts: Vec::new(),
            pipeline,
            orders,
            events,
            round: Round::now(clock()),
        }
    }

    /// Works until it is told to stop and every ring is drained. A worker without a source waits
    /// for the next one.
    ///
    /// # Errors
    /// The kernel refuses to let it wait for frames.
    pub fn run(mut self) -> std::io::Result<()> {
        let mut drained_since: Option<Nanos> = None;
        let mut outcome = Ok(());
        self.take_orders(clock());
        loop {
            let now = clock();
            if now - self.round.wall >= ASK || now < self.round.wall {
                self.come_round(now);
            }
            let idle = self.receive(now);
            if !idle {
                drained_since = None;
                continue;
            }
            self.pipeline.advance(now);
            self.publish(now);
            if self.orders.stop.load(Ordering::Acquire) {
                if now - *drained_since.get_or_insert(now) >= DRAINED {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            } else {
                // Whatever ends the watch, the sessions and the open segment are written out.
                match wait(&self.sources, self.orders.bell.as_fd(), IDLE) {
                    Ok(Woken::Called) => self.take_orders(clock()),
                    Ok(_) => {}
                    Err(error) => {
                        outcome = Err(error);
                        break;
                    }
                }
            }
        }
        let now = clock();
        self.ask(now);
        // Nothing arrives any more: now there is time to wait.
        if let Some(taker) = self.orders.taker.get() {
            self.pipeline.set_when_full(WhenFull::Wait(taker.clone()));
        }
        // Where it ends before its time, frames that had arrived are still in the rings.
        let through = if outcome.is_ok() { Nanos::MAX } else { self.seen_through(now) };
        self.pipeline.finish(&self.counts, now, through);
        outcome
    }

    /// What is done now and then, however busy the worker is. Notices that it was kept from it.
    fn come_round(&mut self, now: Nanos) {
        let before = std::mem::replace(&mut self.round, Round::now(now));
        if self.round.boot - before.boot >= STALL {
            let (worker, from) = (self.number, before.wall.min(now));
            self.orders.blind.expect_news();
            let _ = self.events.send(Event::Stalled { worker, from, to: now });
        }
        self.take_orders(now);
        self.ask(now);
    }

    /// Takes over the sources that it was given.
    #[cold]
    fn take_orders(&mut self, now: Nanos) {
        // Silences the bell; that it was not rung is no error.
        let _ = rustix::io::read(&*self.orders.bell, &mut [0_u8; 8]);
        for Assignment { place, source } in self.orders.sources.try_iter() {
            if self.counts.len() <= place {
                self.counts.resize(place.saturating_add(1), SourceCounts::default());
            }
            let before = self.counts.get(place).map_or_else(SourceCounters::default, |c| c.own);
            self.sources.push(source);
            // What arrived before it was open was not for it to take.
            self.taps.push(Tap { place, seen_through: now - IN_KERNEL, before });
        }
    }

    /// One batch from every source; returns whether none had any frame.
    fn receive(&mut self, now: Nanos) -> bool {
        let mut idle = true;
        let mut ended = None;
        let Self { sources, taps, counts, pipeline, .. } = self;
        for (position, (source, tap)) in sources.iter_mut().zip(taps).enumerate() {
            let Some(count) = counts.get_mut(tap.place) else {
                continue;
            };
            let received = source.receive(&mut |frames| {
                pipeline.take(frames);
                let bytes = frames.iter().map(|frame| u64::from(frame.wire_len)).sum::<u64>();
                count.frames = count.frames.wrapping_add(frames.len() as u64);
                count.wire_bytes = count.wire_bytes.wrapping_add(bytes);
                if let Some(last) = frames.last() {
                    count.last_ts = last.ts;
                }
            });
            match received {
                Ok(Received::Frames(_)) => {
                    idle = false;
                    tap.seen_through = tap.seen_through.max(count.last_ts).min(now);
                }
                Ok(Received::Idle) => {
                    // No later than now: a clock that was set back takes its promises with it.
                    tap.seen_through = tap.seen_through.max(now - IN_KERNEL).min(now);
                }
                Ok(Received::End) => ended = Some((position, None)),
                Err(error) => ended = Some((position, Some(error))),
            }
        }
        if !idle {
            self.publish(now);
        }
        if let Some((position, error)) = ended {
            self.end_source(position, error, now);
        }
        idle
    }

    /// Goes on without a source.
    #[cold]
    fn end_source(&mut self, position: usize, error: Option<SourceError>, now: Nanos) {
        if position >= self.sources.len() || position >= self.taps.len() {
            return;
        }
        drop(self.sources.remove(position));
        let Tap { place, seen_through: since, .. } = self.taps.remove(position);
        if error.is_some() {
            self.orders.blind.expect_news();
        }
        self.publish(now);
        if let Some(error) = error {
            let worker = self.number;
            let _ = self.events.send(Event::SourceEnded { worker, place, since, error });
        }
    }

    fn publish(&self, now: Nanos) {
        self.pipeline.publish(&self.counts, now, self.seen_through(now));
    }

    /// Every frame that arrived before this moment was taken.
    fn seen_through(&self, now: Nanos) -> Nanos {
        let seen_through = self.taps.iter().map(|tap| tap.seen_through).min();
        seen_through.unwrap_or(now - IN_KERNEL)
    }

    /// Asks every source for its own counters, and notices one that has failed.
    fn ask(&mut self, now: Nanos) {
        let mut failed = None;
        for (position, (source, tap)) in self.sources.iter_mut().zip(&self.taps).enumerate() {
            match source.counters() {
                Ok(own) => {
                    if let Some(count) = self.counts.get_mut(tap.place) {
                        count.own = own.after(&tap.before);
                    }
                }
                Err(error) => failed = Some((position, error)),
            }
        }
        if let Some((position, error)) = failed {
            self.end_source(position, Some(error), now);
        }
    }
}

/// The machine's clock.
#[must_use]
pub fn clock() -> Nanos {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    Nanos(now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec))
}

/// Time since the machine was started, that which it slept included: a clock that nobody sets.
#[must_use]
pub fn since_boot() -> Nanos {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Nanos(now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec))
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;

    use capture_flow::config::FlowConfig;
    use capture_flow::frame::{IfaceId, LinkType};
    use capture_store::drops::DropReason;
    use crossbeam::channel::unbounded;
    use rustix::event::EventfdFlags;

    use super::*;
    use crate::keeper::Lane;
    use crate::recorder::{Recorder, Supply};
    use crate::source::{SourceCounters, SourceFrame};
    use crate::worker::tests::feed_from;
    use crate::worker::{HAND_OFF, Shared, WhenFull};

    /// Gives so many frames, then nothing, or an error.
    struct Scripted {
        left: u64,
        fails: bool,
    }

    impl Source for Scripted {
        fn receive(
            &mut self,
            consume: &mut dyn FnMut(&[SourceFrame<'_>]),
        ) -> Result<Received, SourceError> {
            if self.left == 0 && self.fails {
                return Err(SourceError::InterfaceGone { iface: "x".to_owned() });
            }
            if self.left == 0 {
                return Ok(Received::Idle);
            }
            self.left -= 1;
            let parts: [&[u8]; 1] = [&[0; 60]];
            consume(&[SourceFrame {
                ts: clock(),
                wire_len: 60,
                link: LinkType::ETHERNET,
                iface: IfaceId(0),
                parts: &parts,
            }]);
            Ok(Received::Frames(1))
        }

        fn readiness(&self) -> Option<BorrowedFd<'_>> {
            None
        }

        fn counters(&mut self) -> Result<SourceCounters, SourceError> {
            Ok(SourceCounters { ring_full: 7, ..SourceCounters::default() })
        }
    }

    /// A worker, and what its engine holds.
    struct Bench {
        worker: LiveWorker<Scripted>,
        shared: Arc<Shared>,
        stop: Arc<AtomicBool>,
        sources: crossbeam::channel::Sender<Assignment<Scripted>>,
        taker: Arc<OnceLock<Taker>>,
        bell: Arc<OwnedFd>,
        events: Receiver<Event>,
    }

    fn worker(sources: Vec<Scripted>) -> Bench {
        let shared = Arc::new(Shared::new(0, sources.len()));
        let recorder = Recorder::new(0, Arc::new(Lane::new(0)), Supply::Ahead, 65_535);
        let flow = FlowConfig { table_bytes: 1 << 20, ..FlowConfig::default() };
        let pipeline = Pipeline::new(flow, recorder, Arc::clone(&shared), WhenFull::Lose);
        let bell = Arc::new(rustix::event::eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd"));
        let stop = Arc::new(AtomicBool::new(false));
        let (sources_in, sources_out) = unbounded();
        for (place, source) in sources.into_iter().enumerate() {
            sources_in.send(Assignment { place, source }).expect("open");
        }
        let taker = Arc::new(OnceLock::new());
        let orders = Orders {
            stop: Arc::clone(&stop),
            sources: sources_out,
            taker: Arc::clone(&taker),
            bell: Arc::clone(&bell),
            blind: Arc::default(),
        };
        let (events_in, events) = unbounded();
        let worker = LiveWorker::new(0, pipeline.expect("a pipeline"), orders, events_in);
        Bench { worker, shared, stop, sources: sources_in, taker, bell, events }
    }

    fn ring(bell: &OwnedFd) {
        rustix::io::write(bell, &1_u64.to_ne_bytes()).expect("an eventfd");
    }

    #[test]
    fn what_lies_in_the_rings_at_the_stop_is_taken_and_counted() {
        let bench =
            worker(vec![Scripted { left: 500, fails: false }, Scripted { left: 20, fails: false }]);
        // Told to stop before it even began: it drains all the same.
        bench.stop.store(true, Ordering::Release);
        bench.worker.run().expect("no error");
        let counts = bench.shared.counters.read();
        assert_eq!(counts.received, 520);
        assert_eq!(counts.dropped[DropReason::NoSegment.index()], 520);
        assert_eq!(counts.imbalance(), 0);
        let frames: Vec<u64> = counts.sources.iter().map(|source| source.frames).collect();
        assert_eq!(frames, [500, 20]);
        assert!(counts.sources.iter().all(|source| source.own.ring_full == 7));
        assert_eq!(counts.complete_through, Nanos::MAX);
        assert!(bench.events.is_empty());
    }

    #[test]
    fn the_last_sessions_wait_for_whoever_takes_them() {
        let Bench { mut worker, shared, stop, taker, .. } = worker(Vec::new());
        // What the table has no room for fills the hand-off; what it holds comes at the end.
        let sessions = u32::try_from(HAND_OFF).expect("small") + 100;
        feed_from(clock(), &mut worker.pipeline, 0..sessions);
        assert!(worker.pipeline.stats().sessions > 100);
        assert!(!shared.updates.is_full());
        let (theirs, alive) = (Arc::clone(&shared), Arc::new(()));
        let life = Arc::downgrade(&alive);
        let flush = std::thread::spawn(move || {
            let _alive = alive;
            let mut rows = 0;
            while rows < sessions {
                if rows == 0 {
                    // Until the worker asks for room.
                    std::thread::park();
                }
                match theirs.updates.pop() {
                    Some(_) => rows += 1,
                    None => std::thread::yield_now(),
                }
            }
        });
        taker.set(Taker::new(flush.thread().clone(), life)).expect("the first");
        stop.store(true, Ordering::Release);
        worker.run().expect("no error");
        flush.join().expect("every row came");
        assert_eq!(shared.counters.read().rows_lost, 0);
    }

    #[test]
    fn a_source_that_fails_leaves_the_others_their_worker() {
        let Bench { worker, shared, stop, events, .. } =
            worker(vec![Scripted { left: 3, fails: true }, Scripted { left: 100, fails: false }]);
        let thread = std::thread::spawn(move || worker.run());
        let event = events.recv().expect("an event");
        assert!(matches!(event, Event::SourceEnded { worker: 0, place: 0, .. }), "{event:?}");
        stop.store(true, Ordering::Release);
        thread.join().expect("no panic").expect("no error");
        assert_eq!(shared.counters.read().received, 103);
    }

    #[test]
    fn a_worker_without_a_source_waits_for_the_next_and_counts_on() {
        let Bench { worker, shared, stop, sources, bell, events, .. } =
            worker(vec![Scripted { left: 3, fails: true }]);
        let thread = std::thread::spawn(move || worker.run());
        for round in 1..=2 {
            let event = events.recv().expect("an event");
            assert!(matches!(event, Event::SourceEnded { place: 0, .. }), "{event:?}");
            // Published before it was told.
            assert_eq!(shared.counters.read().sources[0].frames, 3 * round);
            let source = Scripted { left: 3, fails: round == 1 };
            sources.send(Assignment { place: 0, source }).expect("it listens");
            ring(&bell);
        }
        while shared.counters.read().received < 9 {
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Release);
        ring(&bell);
        thread.join().expect("no panic").expect("no error");
        let counts = shared.counters.read();
        assert_eq!(counts.received, 9);
        assert_eq!(counts.imbalance(), 0);
    }

    #[test]
    fn a_worker_that_was_kept_from_its_round_says_so() {
        let Bench { mut worker, events, .. } = worker(Vec::new());
        let now = clock();
        worker.come_round(now);
        assert!(events.is_empty());
        worker.round.boot = worker.round.boot - STALL;
        worker.round.wall = now - STALL;
        worker.come_round(now);
        let event = events.try_recv().expect("an event");
        let Event::Stalled { worker: 0, from, to } = event else { panic!("{event:?}") };
        assert_eq!((from, to), (now - STALL, now));
    }
}
