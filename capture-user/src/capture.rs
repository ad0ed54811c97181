//! `stillwired capture`: interfaces through the engine, until told to stop.

mod probe;
mod supervise;

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use capture_common::StampClock;
use crossbeam::channel::{Receiver, Sender, unbounded};
use rustix::event::EventfdFlags;
use rustix::thread::CpuSet;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{info, warn};

use crate::config::CaptureConfig;
use crate::link::{Link, Promiscuous};
use crate::live::{Event, LiveWorker, Stop};
use crate::program::{Attached, Program};
use crate::recorder::{Recorder, Supply};
use crate::run::{FlushThread, Run};
use crate::source::af_xdp::{AfXdp, AfXdpConfig, Backend};
use crate::worker::{Pipeline, WhenFull};
use probe::KernelProbe;
use supervise::stop_workers;

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
