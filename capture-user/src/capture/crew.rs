//! The workers of a capture: started once, given queues, told to stop.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use crossbeam::channel::{Receiver, Sender, unbounded};
use rustix::event::EventfdFlags;
use rustix::thread::CpuSet;
use tracing::warn;

use crate::live::{Assignment, Event, LiveWorker, Orders};
use crate::recorder::{Recorder, Supply};
use crate::run::{Run, panic_text};
use crate::source::Source;
use crate::source::af_xdp::OpenError;
use crate::worker::{Pipeline, Taker, WhenFull, time_on_core};

/// Sources that a worker has places for beyond those of the start: queues that appear later, or
/// that another worker has left.
pub(super) const SPARE_PLACES: usize = 64;

/// What a worker receives from. One call of a table's function for each batch of frames.
pub(super) type LiveSource = Box<dyn Source + Send>;

/// A receive queue: the number of its interface, and its own.
pub(super) type QueueOf = (usize, u32);

/// The workers.
pub(super) struct Crew {
    workers: Vec<Member>,
    /// How many sources each has counters for.
    places: Vec<usize>,
    stop: Arc<AtomicBool>,
    /// Who takes the last rows.
    taker: Arc<OnceLock<Taker>>,
    events: Receiver<Event>,
    /// Whether one has panicked: its segment is open, and nobody seals it.
    panicked: bool,
}

/// One worker.
struct Member {
    core: usize,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    sources: Sender<Assignment<LiveSource>>,
    bell: Arc<OwnedFd>,
    /// Which queue each place is for. A queue that gets another socket keeps its place.
    places: Vec<QueueOf>,
}

/// Why a queue has no socket.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServeError {
    /// The socket could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Opening it failed in a way that nobody foresaw.
    #[error("the socket could not be opened: {0}")]
    Failed(String),
    /// Nobody can take it.
    #[error("no worker is left to receive it; restart the sensor")]
    NoWorker,
    /// The worker has as many sources as it has counters for.
    #[error("worker {worker} has no place for one more queue; restart the sensor")]
    NoPlace {
        /// The worker.
        worker: u16,
    },
}

impl Crew {
    /// Starts one worker on each core. None has a source yet.
    ///
    /// # Errors
    /// A session rule that cannot be used, or a thread that cannot be started.
    pub(super) fn start(run: &Run, cores: &[usize]) -> Result<Self> {
        let (events_in, events) = unbounded();
        let (begun_in, begun) = unbounded::<Result<()>>();
        let places = run.workers.iter().map(|worker| worker.counters.places()).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let taker = Arc::default();
        let workers = Vec::new();
        let mut crew = Self { workers, places, stop, taker, events, panicked: false };
        for (number, core) in (0_u16..).zip(cores) {
            let member = match crew.start_one(run, number, *core, &events_in, &begun_in) {
                Ok(member) => member,
                Err(error) => {
                    crew.dismiss();
                    return Err(error);
                }
            };
            crew.workers.push(member);
            // One after the other: each pins itself and takes its memory.
            let begun = begun.recv().unwrap_or_else(|_| Err(anyhow!("a worker did not begin")));
            if let Err(error) = begun {
                crew.dismiss();
                return Err(error);
            }
        }
        Ok(crew)
    }

    fn start_one(
        &self,
        run: &Run,
        number: u16,
        core: usize,
        events: &Sender<Event>,
        begun: &Sender<Result<()>>,
    ) -> Result<Member> {
        let shared = run.workers.get(usize::from(number)).context("a worker without a place")?;
        let lane = run.lanes.get(usize::from(number)).context("a worker without a lane")?;
        let recorder = Recorder::new(number, Arc::clone(lane), Supply::Ahead, run.snaplen());
        let (flow, shared, kept) = (run.flow(number), Arc::clone(shared), run.kept);
        let (events, begun) = (events.clone(), begun.clone());
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .context("cannot make the descriptor that wakes a worker")?;
        let bell = Arc::new(bell);
        let (sources, sources_out) = unbounded();
        let orders = Orders {
            stop: Arc::clone(&self.stop),
            sources: sources_out,
            taker: Arc::clone(&self.taker),
            bell: Arc::clone(&bell),
            blind: Arc::clone(&run.blind),
        };
        let work = move || {
            if let Err(error) = pin(core) {
                warn!(worker = number, "cannot be pinned to core {core}: {error}");
            }
            kept.confine();
            // The session table is first touched here, so that its memory is this core's.
            match Pipeline::new(flow, recorder, Arc::clone(&shared), WhenFull::Lose) {
                Ok(pipeline) => {
                    pipeline.populate();
                    let _ = begun.send(Ok(()));
                    drop(begun);
                    // What it took to get ready is none of a frame's.
                    let ready = time_on_core();
                    let outcome = LiveWorker::new(number, pipeline, orders, events).run();
                    shared.note_time_on_core(time_on_core().saturating_sub(ready));
                    outcome
                }
                Err(error) => {
                    let _ = begun.send(Err(error.into()));
                    Ok(())
                }
            }
        };
        let thread = thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(work)
            .context("cannot start a worker")?;
        Ok(Member { core, thread: Some(thread), sources, bell, places: Vec::new() })
    }

    /// The worker that shall receive a queue: the same numbers meet, so that a queue of one
    /// interface shares its worker with that queue of every other. Where that worker has ended,
    /// the next one takes its place.
    pub(super) fn worker_for(&self, queue: u32) -> Option<u16> {
        let count = self.workers.len();
        let first = queue as usize % count.max(1);
        let found = (0..count)
            .map(|step| (first + step) % count)
            .find(|number| self.workers.get(*number).is_some_and(Member::runs))?;
        u16::try_from(found).ok()
    }

    /// Has a worker receive a queue from now on, and says at which of the worker's places. `open`
    /// opens the socket, and tells what the caller wants to know of it; it is called on the
    /// worker's core, so that its memory is near.
    ///
    /// # Errors
    /// What `open` said, or that the worker has no place left.
    pub(super) fn give<T: Send>(
        &mut self,
        worker: u16,
        queue: QueueOf,
        open: impl FnOnce() -> Result<(LiveSource, T), OpenError> + Send,
    ) -> Result<(usize, T), ServeError> {
        let most = self.places.get(usize::from(worker)).copied().unwrap_or(0);
        let member = self.workers.get_mut(usize::from(worker)).ok_or(ServeError::NoWorker)?;
        let known = member.places.iter().position(|known| *known == queue);
        let place = known.unwrap_or(member.places.len());
        if place >= most {
            return Err(ServeError::NoPlace { worker });
        }
        let core = member.core;
        let opened = thread::scope(|scope| {
            let opening = scope.spawn(move || {
                // It works from anywhere, only not as fast.
                let _ = pin(core);
                open()
            });
            opening.join()
        });
        let (source, told) =
            opened.map_err(|panic| ServeError::Failed(panic_text(&*panic).to_owned()))??;
        if known.is_none() {
            member.places.push(queue);
        }
        let sent = member.sources.send(Assignment { place, source });
        sent.map_err(|_| ServeError::NoWorker)?;
        member.ring();
        Ok((place, told))
    }

    /// The queue that is received at a place of a worker.
    pub(super) fn queue_at(&self, worker: u16, place: usize) -> Option<QueueOf> {
        self.workers.get(usize::from(worker))?.places.get(place).copied()
    }

    /// What workers have told since the last call.
    pub(super) fn events(&self) -> Vec<Event> {
        self.events.try_iter().collect()
    }

    /// Whether a worker still works.
    pub(super) fn any_runs(&self) -> bool {
        self.workers.iter().any(Member::runs)
    }

    /// The workers that have ended since the last call, and why; in order is no reason.
    pub(super) fn ended(&mut self) -> Vec<(u16, Option<String>)> {
        let stopping = self.stop.load(Ordering::Acquire);
        let mut ended = Vec::new();
        for (number, member) in (0_u16..).zip(&mut self.workers) {
            let Some(thread) = member.thread.take_if(|thread| thread.is_finished()) else {
                continue;
            };
            ended.push((
                number,
                match thread.join() {
                    Ok(Ok(())) if stopping => None,
                    Ok(Ok(())) => Some("nobody told it to".to_owned()),
                    Ok(Err(error)) => Some(error.to_string()),
                    Err(panic) => {
                        self.panicked = true;
                        Some(format!("it failed: {}", panic_text(&*panic)))
                    }
                },
            ));
        }
        ended
    }

    /// Whether a worker left its segment open for the next start to recover.
    pub(super) fn left_open(&self) -> bool {
        self.panicked
    }

    /// Whoever takes rows is there: the last ones, of which many come at once, wait for it.
    pub(super) fn rows_go_to(&self, taker: Taker) {
        // There is one for the whole run.
        let _ = self.taker.set(taker);
    }

    /// Tells the workers to drain their rings and to end.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.workers.iter().for_each(Member::ring);
    }

    /// Ends the workers of a capture that does not begin.
    pub(super) fn dismiss(mut self) {
        self.stop();
        for member in &mut self.workers {
            if let Some(thread) = member.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

impl Member {
    fn runs(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    fn ring(&self) {
        // Cannot fail short of 2^64 calls.
        let _ = rustix::io::write(&*self.bell, &1_u64.to_ne_bytes());
    }
}

fn pin(core: usize) -> rustix::io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set)
}
