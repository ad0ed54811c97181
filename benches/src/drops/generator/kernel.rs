//! Frames made in the kernel: an XDP program that `BPF_PROG_TEST_RUN` runs on live frames and that
//! redirects them to the link. Nothing is copied and no socket is in between, so one core makes
//! several million frames a second.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Array, DevMap, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{ProgramError, TestRun, TestRunAttrs, TestRunOptions, Xdp};
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader};
use bench_common::{
    FRACTION_BITS, GENERATE, MAKER, Made, Maker, OUTLET, PATIENT_LOOKS, Pace, RECIPE,
};
use capture_user::link::Link;
use rustix::thread::{CpuSet, gettid, sched_setaffinity};

use super::{Extent, Load, Sent};
use crate::drops::line::Line;
use crate::drops::object;
use crate::drops::plan::Plan;
use crate::drops::stop;

/// How often the counters are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Frames of a batch: the receiving end gets them at once, when the batch is over. The kernel's
/// own default, and what a NIC's driver takes in one poll.
const BATCH: u32 = 64;
/// A batch of a slow load spans no more than this, so that slow is not the same as in bursts.
const BATCH_SPAN: Duration = Duration::from_micros(100);
/// How far a core may run after its plan before it gives the time up. What it makes up for comes
/// faster than asked, and must fit into a subject's ring: at 2.5 million a second this is 5,000
/// frames, while the default ring of AF_XDP holds 8,192.
const PATIENCE: Duration = Duration::from_millis(2);
/// The same where it is about the frames and not about the pace.
const LONG_PATIENCE: Duration = Duration::from_millis(50);
/// A look at the clock takes no less.
const LOOK: Duration = Duration::from_nanos(10);
/// The longest frame that the kernel takes for this: a page, less the room around the frame. It
/// differs a little between kernels; this is what every one takes.
const LONGEST: u32 = 3_200;

/// Puts a load on the link.
pub(super) fn send(
    plan: &Plan,
    line: &Line,
    load: &Load,
    tick: &mut (dyn FnMut(u64) + Send),
) -> Result<Sent> {
    ensure!(
        plan.traffic.recipe.longest <= LONGEST,
        "the generator in the kernel makes frames of up to {LONGEST} bytes; --generator af-xdp makes \
         larger ones"
    );
    let (outlet, site) = line.sender()?;
    let (made, interrupted) = site.enter(|| {
        let mut generator = Generator::new(plan, outlet, load)?;
        generator.run(plan, load, tick)
    })?;
    ensure!(made.frames > 0, "the generator has made no frame");
    ensure!(
        made.refused == 0 && made.misshapen == 0,
        "the generator could not send all of its frames: {made:?}"
    );
    let counted = line.sent(made.frames)?;
    Ok(Sent {
        frames: made.frames,
        refused_by_link: counted.refused,
        seconds: seconds(made.last_ns.saturating_sub(made.first_ns)),
        waited_seconds: seconds(made.waited_ns),
        behind_seconds: seconds(made.forgiven_ns),
        interrupted,
    })
}

fn seconds(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64()
}

/// The loaded program with its maps, ready to go.
struct Generator {
    ebpf: Ebpf,
    makers: PerCpuArray<MapData, Maker>,
    /// For each core how often it runs the program.
    shares: Vec<(usize, u64)>,
}

/// What a core's thread lets the others know.
#[derive(Default)]
struct Worker {
    thread: AtomicI32,
    stop: AtomicBool,
}

impl Generator {
    fn new(plan: &Plan, outlet: &str, load: &Load) -> Result<Self> {
        let index = Link::by_name(outlet)?.index;
        let mut ebpf = EbpfLoader::new()
            .load(&object::bytes()?)
            .context("loading the generator's program (it needs Linux 5.18 or newer)")?;
        let mut take = |name: &str| {
            ebpf.take_map(name).with_context(|| format!("no map {name} in the object"))
        };
        let mut recipe: Array<_, bench_common::Recipe> = take(RECIPE)?.try_into()?;
        recipe.set(0, plan.traffic.recipe, 0).context("handing over the recipe")?;
        let mut devices: DevMap<_> = take(OUTLET)?.try_into()?;
        devices.set(0, index, None, 0).with_context(|| format!("sending by {outlet}"))?;
        let mut makers: PerCpuArray<_, Maker> = take(MAKER)?.try_into()?;

        let cores = &plan.generator_cores;
        let senders = u32::try_from(cores.len()).context("so many cores")?;
        let cpus = nr_cpus().map_err(|(what, error)| anyhow::Error::new(error).context(what))?;
        let mut values = vec![Maker::default(); cpus];
        let total = load.frames();
        let mut shares = Vec::with_capacity(cores.len());
        for (number, core) in (0..senders).zip(cores) {
            let maker =
                values.get_mut(*core).with_context(|| format!("there is no core {core}"))?;
            maker.walk = plan
                .traffic
                .walk(number, senders)
                .context("fewer sessions than cores that make frames")?;
            let share = |number: u32| total * u64::from(number) / u64::from(senders);
            let goal = share(number + 1) - share(number);
            maker.pace = Pace { goal, ..pace(load, senders) };
            shares.push((*core, goal.saturating_mul(turns(&maker.pace))));
        }
        makers.set(0, PerCpuValues::try_from(values)?, 0).context("setting the pace")?;
        let xdp: &mut Xdp = ebpf.program_mut(GENERATE).context("no program")?.try_into()?;
        xdp.load().context("loading the generator's program (it needs Linux 5.18 or newer)")?;
        Ok(Self { ebpf, makers, shares })
    }

    /// Lets every core make its frames. Whether it was ended before that.
    fn run(
        &mut self,
        plan: &Plan,
        load: &Load,
        tick: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(Made, bool)> {
        stop::wake_by_signal()?;
        let xdp: &Xdp = self.ebpf.program(GENERATE).context("no program")?.try_into()?;
        xdp.fd().context("the program is not loaded")?.as_fd();
        let workers: Vec<_> = self.shares.iter().map(|_| Arc::new(Worker::default())).collect();
        let deadline = load.deadline();
        let begun = Instant::now();
        let mut interrupted = false;
        std::thread::scope(|scope| -> Result<()> {
            let (done, finished) = channel();
            for ((core, turns), worker) in self.shares.iter().zip(&workers) {
                let job = Job {
                    xdp,
                    frame: plan.traffic.blank(),
                    core: *core,
                    turns: *turns,
                    batch: batch(load, self.shares.len()),
                };
                let (worker, done) = (Arc::clone(worker), done.clone());
                scope.spawn(move || job.work(&worker, &done));
            }
            drop(done);
            let mut outcome = Ok(());
            loop {
                match finished.recv_timeout(TICK) {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => outcome = outcome.and(Err(error)),
                    Err(RecvTimeoutError::Timeout) => tick(self.made()?.frames),
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                let stopped = stop::asked();
                interrupted |= stopped;
                if stopped
                    || outcome.is_err()
                    || deadline.is_some_and(|deadline| begun.elapsed() > deadline)
                {
                    for worker in &workers {
                        worker.stop.store(true, Ordering::SeqCst);
                        stop::wake(worker.thread.load(Ordering::SeqCst));
                    }
                }
            }
            outcome
        })?;
        Ok((self.made()?, interrupted))
    }

    /// What all cores have made so far.
    fn made(&self) -> Result<Made> {
        let all = self.makers.get(&0, 0).context("reading the generator's counters")?;
        Ok(all.iter().filter(|maker| maker.made.first_ns != 0).fold(
            Made::default(),
            |sum, maker| {
                let made = &maker.made;
                Made {
                    frames: sum.frames + made.frames,
                    bytes: sum.bytes + made.bytes,
                    refused: sum.refused + made.refused,
                    misshapen: sum.misshapen + made.misshapen,
                    first_ns: if sum.first_ns == 0 {
                        made.first_ns
                    } else {
                        sum.first_ns.min(made.first_ns)
                    },
                    last_ns: sum.last_ns.max(made.last_ns),
                    waited_ns: sum.waited_ns + made.waited_ns,
                    forgiven_ns: sum.forgiven_ns + made.forgiven_ns,
                }
            },
        ))
    }
}

/// What a core's thread has to do.
struct Job<'a> {
    xdp: &'a Xdp,
    frame: Vec<u8>,
    core: usize,
    turns: u64,
    batch: u32,
}

impl Job<'_> {
    fn work(&self, worker: &Worker, done: &Sender<Result<()>>) {
        worker.thread.store(gettid().as_raw_nonzero().get(), Ordering::SeqCst);
        // Whoever waits for the result is gone only after this thread.
        let _ = done.send(self.make(worker));
    }

    /// Runs the program on its core, at least once for each frame.
    fn make(&self, worker: &Worker) -> Result<()> {
        let mut only = CpuSet::new();
        only.set(self.core);
        sched_setaffinity(None, &only).with_context(|| format!("moving to core {}", self.core))?;
        let mut left = self.turns;
        while left > 0 && !worker.stop.load(Ordering::SeqCst) {
            let repeat = u32::try_from(left).unwrap_or(u32::MAX);
            let options = TestRunOptions {
                data_in: Some(&self.frame),
                repeat,
                attrs: TestRunAttrs::new().xdp_live_frames(self.batch),
                ..TestRunOptions::default()
            };
            match self.xdp.test_run(options) {
                Ok(_) => left -= u64::from(repeat),
                Err(ProgramError::SyscallError(error))
                    if error.io_error.raw_os_error() == Some(libc::EINTR) =>
                {
                    // How far it came, its counters tell. A signal that was not ours leaves the
                    // load incomplete, and that shows.
                    if !worker.stop.load(Ordering::SeqCst) {
                        bail!("the generator was interrupted by a signal that is not the bench's");
                    }
                    break;
                }
                Err(error) => {
                    return Err(error).context(
                        "running the generator's program on live frames (Linux 5.18 or newer, root)",
                    );
                }
            }
        }
        Ok(())
    }
}

/// The pace of each of some cores that share a load.
fn pace(load: &Load, senders: u32) -> Pace {
    let interval = load.rate.per_second().map_or(0.0, |rate| {
        let ns = 1e9 * f64::from(senders) / rate;
        (ns * f64::from(1_u32 << FRACTION_BITS)).round().max(1.0)
    });
    let patience = match load.extent {
        Extent::Lasting(_) => PATIENCE,
        Extent::Frames(_) => LONG_PATIENCE,
    };
    Pace { interval: interval as u64, patience_ns: patience.as_nanos() as u64, ..Pace::default() }
}

/// Runs of the program for each frame: in most loads one, in slow ones some more, since a run does
/// not wait for long.
fn turns(pace: &Pace) -> u64 {
    (pace.interval >> FRACTION_BITS) / (u64::from(PATIENT_LOOKS) * LOOK.as_nanos() as u64) + 1
}

/// Frames in a batch of each of some cores.
fn batch(load: &Load, senders: usize) -> u32 {
    let Some(rate) = load.rate.per_second() else { return BATCH };
    let frames = rate / senders as f64 * BATCH_SPAN.as_secs_f64();
    (frames as u32).clamp(1, BATCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drops::rate::Rate;

    fn load(rate: Rate) -> Load {
        Load { rate, extent: Extent::Lasting(Duration::from_secs(10)), most: u64::MAX }
    }

    #[test]
    fn the_pace_of_all_cores_together_is_the_rate() {
        let of = |rate, senders| pace(&load(Rate::PerSecond(rate)), senders).interval;
        assert_eq!(of(1e6, 1), 1000 << FRACTION_BITS);
        assert_eq!(of(1e6, 4), 4000 << FRACTION_BITS);
        assert_eq!(pace(&load(Rate::Flood), 1).interval, 0);
    }

    #[test]
    fn a_slow_load_gets_enough_turns() {
        let of = |rate| turns(&pace(&load(Rate::PerSecond(rate)), 1));
        assert_eq!(of(1e6), 1);
        assert_eq!(of(12_300.0), 1);
        // A millisecond from frame to frame, and no more than 82 microseconds of waiting for sure.
        assert_eq!(of(1000.0), 13);
        assert_eq!(turns(&pace(&load(Rate::Flood), 1)), 1);
    }

    #[test]
    fn slow_loads_come_in_small_batches() {
        assert_eq!(batch(&load(Rate::PerSecond(1000.0)), 1), 1);
        assert_eq!(batch(&load(Rate::PerSecond(200_000.0)), 1), 20);
        assert_eq!(batch(&load(Rate::PerSecond(200_000.0)), 2), 10);
        assert_eq!(batch(&load(Rate::PerSecond(5e6)), 1), BATCH);
        assert_eq!(batch(&load(Rate::Flood), 1), BATCH);
    }
}
