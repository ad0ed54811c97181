//! The loop of a live worker: one core, one queue of every captured interface.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use capture_flow::time::{Nanos, NanosDelta};
use crossbeam::channel::Sender;

use crate::account::SourceCounts;
use crate::source::{Received, Source, SourceError, wait};
use crate::worker::Pipeline;

/// How long an idle worker sleeps at most: its timers run on, and a stalled driver is kicked.
const IDLE: Duration = Duration::from_millis(100);
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
    /// A source gives no more frames.
    SourceEnded {
        /// The worker.
        worker: u16,
        /// Which of its sources.
        source: usize,
        /// Why.
        error: SourceError,
    },
}

/// How a worker is told to end.
#[derive(Clone)]
pub struct Stop {
    /// Set when XDP is detached: drain what is there, then end.
    pub flag: Arc<AtomicBool>,
    /// Readable from then on, so that nobody sleeps through it.
    pub fd: Arc<OwnedFd>,
}

/// What a worker remembers about an open source.
#[derive(Clone, Copy, Debug)]
struct Tap {
    /// Its place among the worker's sources, those that have ended included.
    number: usize,
    /// Every frame that arrived before this moment was taken.
    seen_through: Nanos,
}

/// One live worker.
pub struct LiveWorker<S> {
    number: u16,
    /// Open sources, and in the same order what is known about each.
    sources: Vec<S>,
    taps: Vec<Tap>,
    counts: Vec<SourceCounts>,
    pipeline: Pipeline,
    stop: Stop,
    events: Sender<Event>,
}

impl<S: Source> LiveWorker<S> {
    /// A worker over its sources.
    pub fn new(
        number: u16,
        sources: Vec<S>,
        pipeline: Pipeline,
        stop: Stop,
        events: Sender<Event>,
    ) -> Self {
        let counts = vec![SourceCounts::default(); sources.len()];
        let taps = (0..sources.len()).map(|number| Tap { number, seen_through: Nanos(0) });
        Self { number, taps: taps.collect(), sources, counts, pipeline, stop, events }
    }

    /// Works until it is told to stop and every ring is drained, or no source is left.
    ///
    /// # Errors
    /// The kernel refuses to let it wait for frames.
    pub fn run(mut self) -> std::io::Result<()> {
        let mut asked = Nanos(0);
        let mut drained_since: Option<Nanos> = None;
        let mut outcome = Ok(());
        while !self.sources.is_empty() {
            let now = clock();
            if now - asked >= ASK || now < asked {
                asked = now;
                self.ask();
            }
            let idle = self.receive(now);
            if !idle {
                drained_since = None;
                continue;
            }
            self.pipeline.advance(now);
            self.publish(now);
            if self.stop.flag.load(Ordering::Acquire) {
                if now - *drained_since.get_or_insert(now) >= DRAINED {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            } else {
                // Whatever ends the watch, the sessions and the open segment are written out.
                outcome = wait(&self.sources, self.stop.fd.as_fd(), IDLE).map(drop);
                if outcome.is_err() {
                    break;
                }
            }
        }
        self.ask();
        self.pipeline.finish(&self.counts, clock());
        outcome
    }

    /// One batch from every source; returns whether none had any frame.
    fn receive(&mut self, now: Nanos) -> bool {
        let mut idle = true;
        let mut ended = None;
        let Self { sources, taps, counts, pipeline, .. } = self;
        for (place, (source, tap)) in sources.iter_mut().zip(taps).enumerate() {
            let Some(count) = counts.get_mut(tap.number) else {
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
                Ok(Received::End) => ended = Some((place, None)),
                Err(error) => ended = Some((place, Some(error))),
            }
        }
        if !idle {
            self.publish(now);
        }
        if let Some((place, error)) = ended {
            self.end_source(place, error);
        }
        idle
    }

    /// Goes on without a source.
    #[cold]
    fn end_source(&mut self, place: usize, error: Option<SourceError>) {
        if place >= self.sources.len() || place >= self.taps.len() {
            return;
        }
        self.sources.remove(place);
        let source = self.taps.remove(place).number;
        if let Some(error) = error {
            let _ = self.events.send(Event::SourceEnded { worker: self.number, source, error });
        }
    }

    fn publish(&self, now: Nanos) {
        let seen_through = self.taps.iter().map(|tap| tap.seen_through).min();
        self.pipeline.publish(&self.counts, now, seen_through.unwrap_or(now));
    }

    /// Asks every source for its own counters, and notices one that has failed.
    fn ask(&mut self) {
        let mut failed = None;
        for (place, (source, tap)) in self.sources.iter_mut().zip(&self.taps).enumerate() {
            match source.counters() {
                Ok(own) => {
                    if let Some(count) = self.counts.get_mut(tap.number) {
                        count.own = own;
                    }
                }
                Err(error) => failed = Some((place, error)),
            }
        }
        if let Some((place, error)) = failed {
            self.end_source(place, Some(error));
        }
    }
}

/// The machine's clock.
#[must_use]
pub fn clock() -> Nanos {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
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
    use crate::worker::{Shared, WhenFull};

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

    fn worker(sources: Vec<Scripted>) -> (LiveWorker<Scripted>, Arc<Shared>, Stop, Events) {
        let shared = Arc::new(Shared::new(0, sources.len()));
        let recorder = Recorder::new(0, Arc::new(Lane::new(0)), Supply::Ahead, 65_535);
        let flow = FlowConfig { table_bytes: 1 << 20, ..FlowConfig::default() };
        let pipeline = Pipeline::new(flow, recorder, Arc::clone(&shared), WhenFull::Lose);
        let fd = rustix::event::eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd");
        let stop = Stop { flag: Arc::new(AtomicBool::new(false)), fd: Arc::new(fd) };
        let (events_in, events) = unbounded();
        let pipeline = pipeline.expect("a pipeline");
        (LiveWorker::new(0, sources, pipeline, stop.clone(), events_in), shared, stop, events)
    }

    type Events = crossbeam::channel::Receiver<Event>;

    #[test]
    fn what_lies_in_the_rings_at_the_stop_is_taken_and_counted() {
        let (worker, shared, stop, events) =
            worker(vec![Scripted { left: 500, fails: false }, Scripted { left: 20, fails: false }]);
        // Told to stop before it even began: it drains all the same.
        stop.flag.store(true, Ordering::Release);
        worker.run().expect("no error");
        let counts = shared.counters.read();
        assert_eq!(counts.received, 520);
        assert_eq!(counts.dropped[DropReason::NoSegment.index()], 520);
        assert_eq!(counts.imbalance(), 0);
        let frames: Vec<u64> = counts.sources.iter().map(|source| source.frames).collect();
        assert_eq!(frames, [500, 20]);
        assert!(counts.sources.iter().all(|source| source.own.ring_full == 7));
        assert_eq!(counts.complete_through, Nanos::MAX);
        assert!(events.is_empty());
    }

    #[test]
    fn a_source_that_fails_leaves_the_others_their_worker() {
        let (worker, shared, stop, events) =
            worker(vec![Scripted { left: 3, fails: true }, Scripted { left: 100, fails: false }]);
        let thread = std::thread::spawn(move || worker.run());
        let Event::SourceEnded { worker, source, .. } = events.recv().expect("an event");
        assert_eq!((worker, source), (0, 0));
        stop.flag.store(true, Ordering::Release);
        thread.join().expect("no panic").expect("no error");
        assert_eq!(shared.counters.read().received, 103);
    }

    #[test]
    fn a_worker_without_a_source_ends() {
        let (worker, shared, _stop, events) = worker(vec![Scripted { left: 3, fails: true }]);
        worker.run().expect("no error");
        assert_eq!(shared.counters.read().received, 3);
        assert_eq!(events.len(), 1);
    }
}
