//! `stillwired capture`: interfaces through the engine, until told to stop.

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use capture_common::StampClock;
use capture_store::ledger::{Nic, Note};
use crossbeam::channel::{Receiver, Sender, unbounded};
use rustix::event::EventfdFlags;
use rustix::thread::CpuSet;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{error, info, warn};

use crate::chain;
use crate::config::CaptureConfig;
use crate::interval::{InterfaceReading, Probe, QueueReading};
use crate::keeper::{Preparer, Sealer};
use crate::link::{Link, Promiscuous};
use crate::live::{Event, LiveWorker, Stop};
use crate::program::{Attached, Program};
use crate::recorder::{Recorder, Supply};
use crate::run::{FlushThread, Run, panic_text};
use crate::source::BATCH;
use crate::source::af_xdp::{AfXdp, AfXdpConfig, Backend};
use crate::status::Status;
use crate::worker::{Pipeline, WhenFull};

/// How often the engine looks at its threads, at signals and at the clock.
const LOOK: Duration = Duration::from_millis(25);
/// How often it looks whether XDP still is where it was put.
const LOOK_AT_XDP: Duration = Duration::from_secs(1);

/// One captured interface.
struct Captured {
    link: Link,
    program: Arc<Program>,
    attached: Attached,
    /// Whether frames still come from it.
    alive: bool,
    /// Frames for other stations are received as long as this lives.
    _promiscuous: Promiscuous,
}

/// What a worker reports once its sockets are open.
type Opened = Result<Vec<Backend>>;

/// A running worker.
struct WorkerThread {
    number: u16,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

/// Records interfaces until it is told to stop.
///
/// # Errors
/// It could not begin, or did not end in order, and why.
pub fn capture(config: &CaptureConfig) -> Result<ExitCode> {
    let links = config
        .interfaces
        .iter()
        .map(|name| check_interface(name, config))
        .collect::<Result<Vec<_>>>()?;
    // Registered before anything is set up, so that an early signal ends the run cleanly too.
    let signals = Signals::new([SIGINT, SIGTERM]).context("cannot watch for signals")?;
    let workers = links.iter().map(|link| link.rx_queues.max(1)).max().unwrap_or(1);
    let workers = u16::try_from(workers).context("more receive queues than workers can be")?;
    let sources: Vec<usize> = (0..u32::from(workers))
        .map(|worker| links.iter().filter(|link| worker < link.rx_queues.max(1)).count())
        .collect();
    let run = Run::open(&config.common, crate::live::clock(), &sources)?;
    let space = config.common.space(run.held(), sources.len())?;
    // Numbered in the order of the command line.
    for link in &links {
        let _ = run.names.number(&link.name);
    }
    let cores = choose_cores(config, sources.len())?;
    let preparer = run.start_preparer(space.segment)?;
    let sealer = match run.start_sealer(space) {
        Ok(sealer) => sealer,
        Err(failure) => {
            preparer.stop();
            return Err(failure);
        }
    };
    let running = match Running::start(config, &run, links, &cores) {
        Ok(running) => running,
        Err(failure) => {
            preparer.stop();
            sealer.stop()?;
            return Err(failure);
        }
    };
    running.run(config, &run, signals, preparer, sealer)
}

/// Whether an interface can and may be captured.
fn check_interface(name: &str, config: &CaptureConfig) -> Result<Link> {
    let link = Link::by_name(name)?;
    if !config.allow_host_interface {
        let carries = link.carries_default_route()?;
        if carries || carries_operator(&link) {
            bail!(
                "{name} carries {}: capturing takes every frame away from this machine and would \
                 cut it off; choose an interface that receives a mirror or a tap, or say \
                 --allow-host-interface",
                if carries { "this machine's default route" } else { "your own connection" }
            );
        }
    }
    if !link.up {
        warn!("{name} is down: nothing will arrive until `ip link set {name} up`");
    } else if !link.carrier {
        warn!("{name} has no carrier: is the cable or the mirror's other end there?");
    }
    let offloads = link.offloads();
    if offloads.rx_vlan {
        info!(
            "{name}: VLAN tags may be stripped before frames arrive; `ethtool -K {name} rxvlan off` \
             keeps them"
        );
    }
    if offloads.lro {
        warn!(
            "{name}: large receive offload merges frames; `ethtool -K {name} lro off` keeps them"
        );
    }
    Ok(link)
}

/// Whether the operator's own SSH connection ends at the interface.
pub(crate) fn carries_operator(link: &Link) -> bool {
    let connection = std::env::var("SSH_CONNECTION").unwrap_or_default();
    // Client address and port, server address and port.
    let server = connection.split(' ').nth(2).and_then(|server| server.parse().ok());
    server.is_some_and(|server| link.has_address(server).unwrap_or(false))
}

/// The core of each worker: those that were named, or those that this process may use, in order
/// and from the start again where there are more workers.
fn choose_cores(config: &CaptureConfig, workers: usize) -> Result<Vec<usize>> {
    let allowed = rustix::thread::sched_getaffinity(None).context("cannot ask for usable cores")?;
    let all: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    let chosen = match &config.cores {
        Some(cores) => {
            if let Some(core) = cores.iter().find(|core| !all.contains(core)) {
                bail!("--cores: core {core} is not among those that may be used here: {all:?}");
            }
            cores.clone()
        }
        None => all,
    };
    if workers > chosen.len() {
        warn!(
            "{workers} receive queues share {} cores; `ethtool -L IF combined {}` would give each \
             its own",
            chosen.len(),
            chosen.len()
        );
    }
    Ok((0..workers).filter_map(|worker| chosen.get(worker % chosen.len()).copied()).collect())
}

/// A capture under way.
struct Running {
    interfaces: Vec<Captured>,
    workers: Vec<WorkerThread>,
    stop: Stop,
    events: Receiver<Event>,
    /// Which interface and queue each source of each worker is.
    sources: Vec<Vec<(usize, u32)>>,
    flush: FlushThread,
    started: Instant,
}

impl Running {
    /// Attaches XDP, starts the workers, and begins the account.
    fn start(config: &CaptureConfig, run: &Run, links: Vec<Link>, cores: &[usize]) -> Result<Self> {
        let mut interfaces = Vec::with_capacity(links.len());
        for link in links {
            let mut program = Program::load(&link.name, link.rx_queues.max(1))?;
            let promiscuous = Promiscuous::on(&link)?;
            let attached = program.attach(&link, config.mode)?;
            if let Some(reason) = &attached.fallback {
                warn!("{}: generic XDP is used, since {reason}", link.name);
            }
            interfaces.push(Captured {
                link,
                program: Arc::new(program),
                attached,
                alive: true,
                _promiscuous: promiscuous,
            });
        }
        let stop = Stop { flag: Arc::new(AtomicBool::new(false)), fd: Arc::new(eventfd()?) };
        let (events_in, events) = unbounded();
        let mut sources = Vec::new();
        let mut workers = Vec::new();
        let mut backends: Vec<Vec<Backend>> = Vec::new();
        let (opened_in, opened) = unbounded::<(u16, Opened)>();
        let mut failure = None;
        for (number, core) in (0_u16..).zip(cores) {
            let (taps, worker) = Self::start_worker(
                config,
                run,
                &interfaces,
                number,
                *core,
                &stop,
                &events_in,
                &opened_in,
            )?;
            sources.push(taps);
            workers.push(worker);
            // One after the other: each thread pins itself, takes its memory, opens its sockets.
            match opened.recv() {
                Ok((_, Ok(backend))) => backends.push(backend),
                Ok((_, Err(error))) => failure = Some(error),
                Err(_) => failure = Some(anyhow!("a worker ended before it began")),
            }
            if failure.is_some() {
                break;
            }
        }
        let started = match failure {
            None => {
                let probe = KernelProbe::new(&interfaces, &sources, &backends, config);
                let clock = interfaces
                    .first()
                    .map_or(StampClock::Monotonic, |captured| captured.program.clock());
                // Every queue has its socket: from here on the sensor watches.
                run.start_flush(crate::live::clock(), clock_name(clock), Box::new(probe))
            }
            Some(error) => Err(error),
        };
        let flush = match started {
            Ok(flush) => flush,
            Err(error) => {
                interfaces.iter().for_each(|captured| captured.program.detach());
                stop_workers(&stop);
                for mut worker in workers {
                    if let Some(thread) = worker.thread.take() {
                        let _ = thread.join();
                    }
                }
                return Err(error);
            }
        };
        for (number, captured) in interfaces.iter().enumerate() {
            let backend = sources.iter().zip(&backends).find_map(|(taps, backends)| {
                let place = taps.iter().position(|(interface, _)| *interface == number)?;
                backends.get(place).copied()
            });
            if let Some(backend) = backend {
                info!(
                    "capturing {}: {backend}, {} receive queues",
                    captured.link.name,
                    captured.link.rx_queues.max(1)
                );
            }
        }
        run.kept.confine();
        Ok(Self { interfaces, workers, stop, events, sources, flush, started: Instant::now() })
    }

    #[allow(clippy::too_many_arguments)]
    fn start_worker(
        config: &CaptureConfig,
        run: &Run,
        interfaces: &[Captured],
        number: u16,
        core: usize,
        stop: &Stop,
        events: &Sender<Event>,
        opened: &Sender<(u16, Opened)>,
    ) -> Result<(Vec<(usize, u32)>, WorkerThread)> {
        let queue = u32::from(number);
        let taps: Vec<_> = interfaces
            .iter()
            .enumerate()
            .filter(|(_, captured)| queue < captured.link.rx_queues.max(1))
            .map(|(interface, captured)| {
                let config = AfXdpConfig {
                    iface: run.names.number(&captured.link.name),
                    queue,
                    ring_size: config.ring_size,
                    frame_size: config.frame_size,
                };
                let program = Arc::clone(&captured.program);
                (interface, config, captured.link.clone(), program, captured.attached.mode)
            })
            .collect();
        let sources = taps.iter().map(|(interface, ..)| (*interface, queue)).collect();
        let shared = run.workers.get(usize::from(number)).context("a worker without a place")?;
        let lane = run.lanes.get(usize::from(number)).context("a worker without a lane")?;
        let recorder = Recorder::new(number, Arc::clone(lane), Supply::Ahead, run.snaplen());
        let (flow, shared) = (run.flow(number), Arc::clone(shared));
        let (stop, events, opened, kept) = (stop.clone(), events.clone(), opened.clone(), run.kept);
        let work = move || {
            if let Err(error) = pin(core) {
                warn!(worker = number, "cannot be pinned to core {core}: {error}");
            }
            // The session table and the rings are first touched here, so that their memory is
            // this core's.
            let begun = Pipeline::new(flow, recorder, shared, WhenFull::Lose)
                .map_err(anyhow::Error::new)
                .and_then(|pipeline| {
                    let sockets: Result<Vec<AfXdp>, _> = taps
                        .iter()
                        .map(|(_, config, link, program, mode)| {
                            AfXdp::open(config, link, program, *mode)
                        })
                        .collect();
                    Ok((pipeline, sockets?))
                });
            kept.confine();
            // The programs are detached by whoever holds them last, which shall not be a worker.
            drop(taps);
            match begun {
                Ok((pipeline, sockets)) => {
                    let backends = sockets.iter().map(AfXdp::backend).collect();
                    let _ = opened.send((number, Ok(backends)));
                    LiveWorker::new(number, sockets, pipeline, stop, events).run()
                }
                Err(error) => {
                    let _ = opened.send((number, Err(error)));
                    Ok(())
                }
            }
        };
        let thread = thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(work)
            .context("cannot start a worker")?;
        Ok((sources, WorkerThread { number, thread: Some(thread) }))
    }

    /// Watches over the capture until it ends, then ends it in order.
    fn run(
        mut self,
        config: &CaptureConfig,
        run: &Run,
        mut signals: Signals,
        preparer: Preparer,
        sealer: Sealer,
    ) -> Result<ExitCode> {
        let mut status = Status::new(config.common.quiet);
        let mut healthy = true;
        let mut looked_at_xdp = Instant::now();
        loop {
            if let Some(signal) = signals.pending().next() {
                status.clear();
                info!("{} received, stopping", signal_name(signal));
                break;
            }
            if self.is_enough(config, run) {
                break;
            }
            healthy &= self.note_events(run);
            healthy &= self.note_ended_workers(run);
            if looked_at_xdp.elapsed() >= LOOK_AT_XDP {
                looked_at_xdp = Instant::now();
                healthy &= self.note_lost_programs(run);
            }
            if !self.flush.is_alive() || !preparer.is_alive() || !sealer.is_alive() {
                status.clear();
                error!("a thread of the engine has failed; stopping while the record is whole");
                healthy = false;
                break;
            }
            if self.interfaces.iter().all(|captured| !captured.alive) {
                status.clear();
                error!("no interface is left to capture; stopping");
                healthy = false;
                break;
            }
            if self.workers.iter().all(|worker| worker.thread.is_none()) {
                status.clear();
                error!("no worker is left; stopping");
                healthy = false;
                break;
            }
            status.show(&run.totals());
            thread::sleep(LOOK);
        }
        // XDP first, then the workers drain what already lies in the rings: at the end every
        // frame that the program steered is either received or lost, and counted as such.
        self.flush.announce_end(crate::live::clock());
        self.interfaces.iter().for_each(|captured| captured.program.detach());
        stop_workers(&self.stop);
        while self.workers.iter().any(WorkerThread::runs) {
            if signals.pending().next().is_some() {
                status.clear();
                info!("already stopping; frames that were received are being written");
            }
            thread::sleep(Duration::from_millis(5));
        }
        healthy &= self.note_events(run);
        let in_order = self.note_ended_workers(run);
        healthy &= in_order;
        status.clear();
        healthy &= !preparer.stop();
        let sealed = sealer.stop();
        let flushed = self.flush.stop(in_order && sealed.is_ok());
        run.say_farewell(config.common.quiet);
        sealed?;
        flushed?;
        Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn is_enough(&self, config: &CaptureConfig, run: &Run) -> bool {
        config.duration.is_some_and(|duration| self.started.elapsed() >= duration)
            || config.count.is_some_and(|count| run.counts().received >= count)
    }

    /// Says what workers reported; false if anything went wrong.
    fn note_events(&mut self, run: &Run) -> bool {
        let mut fine = true;
        for event in self.events.try_iter() {
            let Event::SourceEnded { worker, source, error } = event;
            fine = false;
            error!("{}; the other sources go on", chain(&error));
            let _ = run.notes.send(Note::Said { text: chain(&error) });
            let taps = self.sources.get(usize::from(worker));
            if let Some((interface, _)) = taps.and_then(|taps| taps.get(source))
                && let Some(captured) = self.interfaces.get_mut(*interface)
            {
                captured.alive = false;
            }
        }
        fine
    }

    /// Notices workers that ended although nobody told them; false if there are any.
    fn note_ended_workers(&mut self, run: &Run) -> bool {
        let stopping = self.stop.flag.load(Ordering::Acquire);
        let mut fine = true;
        for worker in &mut self.workers {
            let Some(thread) = worker.thread.take_if(|thread| thread.is_finished()) else {
                continue;
            };
            let text = match thread.join() {
                Ok(Ok(())) if stopping => continue,
                Ok(Ok(())) => "it has no source left".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(panic) => format!("it failed: {}", panic_text(&*panic)),
            };
            fine = false;
            let text = format!("worker {} has ended: {text}", worker.number);
            error!("{text}");
            let _ = run.notes.send(Note::Said { text });
        }
        fine
    }

    /// Notices programs that somebody took off their interface; false if there are any.
    fn note_lost_programs(&mut self, run: &Run) -> bool {
        let mut fine = true;
        for captured in self.interfaces.iter_mut().filter(|captured| captured.alive) {
            let Ok(now) = Link::by_index(captured.link.index) else {
                // Gone: its sockets say so themselves.
                continue;
            };
            if !captured.program.is_attached(&now) {
                fine = false;
                captured.alive = false;
                let text = format!(
                    "the XDP program was taken off {}: nothing is captured there any more; start \
                     again to put it back",
                    captured.link.name
                );
                error!("{text}");
                let _ = run.notes.send(Note::Said { text });
            }
        }
        fine
    }
}

impl WorkerThread {
    fn runs(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

/// Tells the workers to drain their rings and to end.
fn stop_workers(stop: &Stop) {
    stop.flag.store(true, Ordering::Release);
    // Cannot fail short of 2^64 stops.
    let _ = rustix::io::write(&*stop.fd, &1_u64.to_ne_bytes());
}

fn eventfd() -> Result<OwnedFd> {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .context("cannot make the descriptor that stops the workers")
}

fn pin(core: usize) -> rustix::io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set)
}

fn clock_name(clock: StampClock) -> &'static str {
    match clock {
        StampClock::Tai => "tai",
        StampClock::Monotonic => "monotonic",
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        SIGINT => "SIGINT",
        _ => "SIGTERM",
    }
}

/// Reads the kernel's side of the account.
struct KernelProbe {
    interfaces: Vec<ProbedInterface>,
    /// Frames that the rings and a worker's hands can hold.
    capacity: u64,
}

struct ProbedInterface {
    name: String,
    index: u32,
    backend: String,
    program: Arc<Program>,
    /// Worker and source by queue.
    served_by: Vec<Option<(u16, usize)>>,
    /// NIC counters and carrier changes when the run began.
    at_start: (Nic, u64),
    last: InterfaceReading,
}

impl KernelProbe {
    fn new(
        interfaces: &[Captured],
        sources: &[Vec<(usize, u32)>],
        backends: &[Vec<Backend>],
        config: &CaptureConfig,
    ) -> Self {
        let interfaces = interfaces.iter().enumerate().map(|(number, captured)| {
            let mut backend = captured.attached.mode.to_string();
            let mut served_by = Vec::new();
            for queue in 0..captured.link.rx_queues.max(1) {
                let place =
                    |taps: &Vec<(usize, u32)>| taps.iter().position(|tap| *tap == (number, queue));
                let served =
                    (0_u16..).zip(sources).find_map(|(worker, taps)| Some((worker, place(taps)?)));
                if let Some((worker, source)) = served
                    && let Some(found) =
                        backends.get(usize::from(worker)).and_then(|all| all.get(source))
                {
                    let copy = if found.zero_copy { "zerocopy" } else { "copy" };
                    backend = format!("{}-{copy}", found.attached);
                }
                served_by.push(served);
            }
            ProbedInterface {
                name: captured.link.name.clone(),
                index: captured.link.index,
                backend,
                program: Arc::clone(&captured.program),
                served_by,
                at_start: (nic(&captured.link), u64::from(captured.link.carrier_changes)),
                last: InterfaceReading::default(),
            }
        });
        // Receive ring, the batch in the worker's hands, and as much that the kernel has
        // redirected but not yet put into the ring.
        let capacity = u64::from(config.ring_size) + 2 * BATCH as u64;
        Self { interfaces: interfaces.collect(), capacity }
    }
}

impl Probe for KernelProbe {
    fn read(&mut self, workers: &mut dyn FnMut()) -> Vec<InterfaceReading> {
        let before: Vec<_> =
            self.interfaces.iter().map(|interface| interface.program.counters()).collect();
        workers();
        let capacity = self.capacity;
        let read = self
            .interfaces
            .iter_mut()
            .zip(before)
            .map(|(interface, before)| interface.read(&before.unwrap_or_default(), capacity));
        read.collect()
    }
}

impl ProbedInterface {
    fn read(
        &mut self,
        before: &[capture_common::QueueCounters],
        capacity: u64,
    ) -> InterfaceReading {
        let mut now = InterfaceReading {
            name: self.name.clone(),
            backend: self.backend.clone(),
            ..InterfaceReading::default()
        };
        match Link::by_index(self.index) {
            Ok(link) => {
                now.up = link.up && link.carrier;
                now.carrier_changes =
                    u64::from(link.carrier_changes).saturating_sub(self.at_start.1);
                let (then, total) = (self.at_start.0, nic(&link));
                now.nic = Some(Nic {
                    rx_packets: total.rx_packets.saturating_sub(then.rx_packets),
                    rx_bytes: total.rx_bytes.saturating_sub(then.rx_bytes),
                    rx_dropped: total.rx_dropped.saturating_sub(then.rx_dropped),
                    rx_missed: total.rx_missed.saturating_sub(then.rx_missed),
                    rx_errors: total.rx_errors.saturating_sub(then.rx_errors),
                });
            }
            // Gone: its last counts stay.
            Err(_) => {
                now.nic = self.last.nic;
                now.carrier_changes = self.last.carrier_changes;
            }
        }
        let counters = self
            .program
            .counters()
            .unwrap_or_else(|_| self.last.queues.iter().map(|queue| queue.xdp).collect());
        now.queues = (0_u32..)
            .zip(counters)
            .map(|(queue, xdp)| {
                let steered = before.get(queue as usize).map_or(xdp.steered, |then| then.steered);
                QueueReading {
                    queue,
                    served_by: self.served_by.get(queue as usize).copied().flatten(),
                    steered_before: steered,
                    xdp,
                    capacity,
                }
            })
            // The last one stands for queues that were added since; it says something only once
            // there are any.
            .filter(|queue| queue.served_by.is_some() || queue.xdp.seen > 0)
            .collect();
        self.last = now.clone();
        now
    }
}

fn nic(link: &Link) -> Nic {
    let counters = &link.counters;
    Nic {
        rx_packets: counters.rx_packets,
        rx_bytes: counters.rx_bytes,
        rx_dropped: counters.rx_dropped,
        rx_missed: counters.rx_missed_errors.saturating_add(counters.rx_fifo_errors),
        rx_errors: counters.rx_errors,
    }
}
