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
                wait(&self.sources, self.stop.fd.as_fd(), IDLE)?;
            }
        }
        self.ask();
        self.pipeline.finish(&self.counts, clock());
        Ok(())
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
                    tap.seen_through = tap.seen_through.max(count.last_ts.min(now));
                }
                Ok(Received::Idle) => {
                    tap.seen_through = tap.seen_through.max(now - IN_KERNEL);
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
