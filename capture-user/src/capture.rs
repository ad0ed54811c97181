//! `stillwired capture`: interfaces through the engine, until told to stop.

mod crew;
mod interface;
mod kernel;
mod made;
mod placement;
mod supervise;

use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use capture_common::StampClock;
use rustix::thread::CpuSet;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use tracing::{info, warn};

use crate::canary;
use crate::config::CaptureConfig;
use crate::interval::Probe;
use crate::keeper::{Preparer, Sealer};
use crate::link::{Link, LinkError, LinkWatch};
use crate::run::Run;
use crate::silence::SignsOfLife;
use crew::{Crew, SPARE_PLACES};
use interface::{Captured, TakeError, Tools};
use kernel::KernelSide;
use made::MadeQueues;
use supervise::{Signals, Supervisor};

/// Records interfaces until it is told to stop.
///
/// # Errors
/// It could not begin, or did not end in order, and why.
pub fn capture(mut config: CaptureConfig) -> Result<ExitCode> {
    let links = config
        .interfaces
        .iter()
        .map(|name| check_interface(name, &config))
        .collect::<Result<Vec<_>>>()?;
    // Registered before anything is set up, so that an early signal ends the run cleanly too.
    let signals = watch_signals().context("cannot watch for signals")?;
    let made = config.common.simulation.and_then(|simulation| simulation.capture);
    let workers = match &made {
        // As many queues as there are cores for.
        Some(_) => config.cores.as_ref().map_or(1, |cores| cores.len() as u32),
        None => links.iter().map(|link| link.rx_queues.max(1)).max().unwrap_or(1),
    };
    let workers = u16::try_from(workers).context("more receive queues than workers can be")?;
    let sources: Vec<usize> = (0..u32::from(workers))
        .map(|worker| links.iter().filter(|link| worker < link.rx_queues.max(1)).count())
        .map(|sources| sources.saturating_add(SPARE_PLACES))
        .collect();
    let queues = match &made {
        Some(_) => sources.len(),
        None => links.iter().map(|link| link.rx_queues.max(1) as usize).sum(),
    };
    config.share_memory(sources.len(), queues)?;
    let config = &config;
    let run = Run::open(&config.common, crate::live::clock(), &sources)?;
    if let Some(simulation) = &config.common.simulation {
        warn!("SIMULATION, {simulation}: nothing that this run writes is evidence");
    }
    let begun = begin(config, &run, &links, sources.len()).inspect_err(|_| run.give_up());
    let (supervisor, preparer, sealer) = begun?;
    supervisor.run(config, &run, signals, preparer, sealer)
}

/// Starts every thread, or leaves none running.
fn begin(
    config: &CaptureConfig,
    run: &Run,
    links: &[Link],
    workers: usize,
) -> Result<(Supervisor, Preparer, Sealer)> {
    let space = config.common.space(run.held(), workers)?;
    let cores = choose_cores(config, links, workers)?;
    let preparer = run.start_preparer(space.segment)?;
    let sealer = match run.start_sealer(space) {
        Ok(sealer) => sealer,
        Err(failure) => {
            preparer.stop();
            return Err(failure);
        }
    };
    match start(config, run, links, &cores) {
        Ok(supervisor) => Ok((supervisor, preparer, sealer)),
        Err(failure) => {
            preparer.stop();
            if let Err(unsealed) = sealer.stop() {
                warn!("{unsealed}");
            }
            Err(failure)
        }
    }
}

fn watch_signals() -> std::io::Result<Signals> {
    let (read, write) = UnixStream::pair()?;
    SignalDelivery::with_pipe(read, write, SignalOnly, ending_signals())
}

/// Starts the workers, attaches XDP, opens the sockets, and begins the account.
fn start(config: &CaptureConfig, run: &Run, links: &[Link], cores: &[usize]) -> Result<Supervisor> {
    // Before the first look, so that nothing is missed in between.
    let watch = LinkWatch::open()?;
    let kernel = KernelSide::new(run.workers.clone(), config.ring_size);
    let mut crew = Crew::start(run, cores)?;
    let mut interfaces = Vec::with_capacity(links.len());
    let mut tools = Tools { config, crew: &mut crew, kernel: &kernel };
    let taken = links.iter().enumerate().try_for_each(|(number, link)| {
        // Numbered in the order of the command line.
        let captured = Captured::new(number, run.names.number(&link.name), link)?;
        kernel.add(&link.name, captured.program());
        interfaces.push(captured);
        interfaces.last_mut().map_or(Ok(()), |captured| captured.take(link, true, &mut tools))
    });
    let taken: Result<(), TakeError> = taken;
    let made = config.common.simulation.and_then(|simulation| simulation.capture);
    let made = made.map(|made| MadeQueues::open(&made, config, run, &mut crew)).transpose();
    let begun = taken.map_err(anyhow::Error::from).and(made);
    let flush = begun.and_then(|made| {
        let clock = match interfaces.first() {
            Some(captured) => clock_name(captured.program().clock()),
            None => "user",
        };
        // Every queue has its socket: from here on the sensor watches.
        kernel.begin();
        let probe: Box<dyn Probe> = match &made {
            Some(made) => Box::new(made.clone()),
            None => Box::new(kernel.clone()),
        };
        let signs = SignsOfLife::new(config.silence_limit);
        let signs = if config.canary_required { signs.only_canaries() } else { signs };
        let canaries = canary::Watch::new(config.canaries.clone());
        let watches = crate::live::clock();
        run.blind.notice_through(watches);
        let flush = run.start_flush(watches, clock, probe, signs, canaries)?;
        Ok((flush, made, watches))
    });
    let (flush, made, watches) = match flush {
        Ok(begun) => begun,
        Err(error) => {
            interfaces.iter().for_each(Captured::detach);
            crew.dismiss();
            return Err(error);
        }
    };
    crew.rows_go_to(flush.taker());
    // Whoever waits to hear that it captures finds the run in the ledger.
    flush.await_first_line();
    // What blinds it from the begin of the first interval on is looked for, however long that took.
    interfaces.iter_mut().for_each(|captured| captured.announce(watches));
    if config.heal {
        run.kept.confine_to_mending();
    } else {
        run.kept.confine();
    }
    if made.is_some() {
        info!("capturing frames that the sensor makes itself; workers on cores {cores:?}");
    }
    let begun = Instant::now();
    Ok(Supervisor::new(interfaces, crew, kernel, watch, flush, begun).with_made(made))
}

/// The signals that end a run in order. A hangup that whoever started the program told it to
/// ignore (`nohup`) stays ignored.
fn ending_signals() -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let mut signals = vec![SIGINT, SIGTERM];
    if ignored & (1 << (SIGHUP - 1)) == 0 {
        signals.push(SIGHUP);
    }
    signals
}

/// Whether an interface can and may be captured.
fn check_interface(name: &str, config: &CaptureConfig) -> Result<Link> {
    let link = Link::by_name(name)?;
    if let Some(refusal) = refusal(&link, config)? {
        bail!(refusal);
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

/// Why an interface must be left to the host, if it must.
fn refusal(link: &Link, config: &CaptureConfig) -> Result<Option<String>, LinkError> {
    if config.allow_host_interface {
        return Ok(None);
    }
    let carries = if link.carries_default_route()? {
        "this machine's default route"
    } else if carries_operator(link) {
        "your own connection"
    } else {
        return Ok(None);
    };
    Ok(Some(format!(
        "{} carries {carries}: capturing takes every frame away from this machine and would cut it \
         off; choose an interface that receives a mirror or a tap, or say --allow-host-interface",
        link.name
    )))
}

/// Whether the operator's own SSH connection ends at the interface.
pub(crate) fn carries_operator(link: &Link) -> bool {
    let connection = std::env::var("SSH_CONNECTION").unwrap_or_default();
    // Client address and port, server address and port.
    let server = connection.split(' ').nth(2).and_then(|server| server.parse().ok());
    server.is_some_and(|server| link.has_address(server).unwrap_or(false))
}

/// The core of each worker: those that were named, in order and from the start again where there
/// are more workers; otherwise the best of those that this process may use.
fn choose_cores(config: &CaptureConfig, links: &[Link], workers: usize) -> Result<Vec<usize>> {
    let allowed = rustix::thread::sched_getaffinity(None).context("cannot ask for usable cores")?;
    let all: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    let chosen = match &config.cores {
        Some(cores) => {
            if let Some(core) = cores.iter().find(|core| !all.contains(core)) {
                bail!("--cores: core {core} is not among those that may be used here: {all:?}");
            }
            cores
        }
        None => &all,
    };
    if workers > chosen.len() {
        warn!(
            "{workers} receive queues share {} cores; `ethtool -L IF combined {}` would give each \
             its own",
            chosen.len(),
            chosen.len()
        );
    }
    Ok(match &config.cores {
        Some(cores) => cores.iter().copied().cycle().take(workers).collect(),
        None => placement::choose(links, workers, &all),
    })
}

fn clock_name(clock: StampClock) -> &'static str {
    match clock {
        StampClock::Tai => "tai",
        StampClock::Monotonic => "monotonic",
    }
}
