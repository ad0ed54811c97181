//! The measurement as it will be made: everything checked that can be checked before.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use capture_user::link::Link;
use capture_user::units::Bytes;

use super::args::{DropsArgs, Mode};
use super::generator::{Extent, Maker};
use super::rate::Rate;
use super::subject::{self, Subject};
use super::traffic::Traffic;
use super::usage::Cores;

/// Bytes that a capture file spends on a frame besides the frame: a pcapng block, generously.
const RECORD_BYTES: f64 = 48.0;
/// The part of the free space that one load may fill.
const SHARE: f64 = 0.6;

/// The link to measure on.
#[derive(Clone, Debug)]
pub(crate) enum On {
    /// One of the bench's own.
    Own {
        /// Receive queues.
        queues: u32,
    },
    /// One that there is.
    Real {
        /// The interface that subjects listen on.
        receiver: String,
        /// The interface that frames leave by, if it is of this machine.
        sender: Option<String>,
    },
}

/// How long a soak's files may lie around before they are counted.
const UNCOUNTED: Duration = Duration::from_secs(30);

/// What will be measured.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What to find out.
    pub(crate) mode: Mode,
    /// The subjects.
    pub(crate) subjects: Vec<Subject>,
    /// Frames a second to offer.
    pub(crate) rates: Vec<Rate>,
    /// How much a load is.
    pub(crate) extent: Extent,
    /// How often everything is measured.
    pub(crate) runs: u32,
    /// How near the search comes, as a part of the rate.
    pub(crate) resolution: f64,
    /// Loss that counts as none, as a part of what was sent.
    pub(crate) tolerance: f64,
    /// Loads at one rate until it counts as lossy.
    pub(crate) attempts: u32,
    /// What is sent.
    pub(crate) traffic: Traffic,
    /// Cores that make frames.
    pub(crate) generator_cores: Vec<usize>,
    /// Cores for the subjects.
    pub(crate) subject_cores: Vec<usize>,
    /// The link to measure on.
    pub(crate) on: On,
    /// What makes the frames.
    pub(crate) maker: Maker,
    /// Where subjects write.
    pub(crate) dir: PathBuf,
    /// The sensor's program.
    pub(crate) stillwired: PathBuf,
    /// How long to wait for a subject to come to rest.
    pub(crate) settle: Duration,
    /// Loads last: what is counted makes room.
    pub(crate) soak: bool,
    /// Measure the time from arrival to record.
    pub(crate) latency: bool,
    /// Keep what the subjects write.
    pub(crate) keep: bool,
    /// No table and no progress.
    pub(crate) quiet: bool,
}

impl Plan {
    /// Checks what was asked for.
    pub(crate) fn new(args: &DropsArgs) -> Result<Self> {
        let traffic = Traffic::new(&args.traffic)?;
        let subjects = subject::parse(&args.subjects)?;
        ensure!(!subjects.is_empty(), "no subject");
        let there = Cores::now()?.numbers();
        let generator_cores = checked(&args.generator_cores.0, &there)?;
        let subject_cores = match &args.subject_cores {
            Some(cores) => checked(&cores.0, &there)?,
            None => there.into_iter().filter(|core| !generator_cores.contains(core)).collect(),
        };
        ensure!(
            !subject_cores.is_empty(),
            "no core is left for the subjects: fewer --generator-cores, or the same ones as \
             --subject-cores"
        );
        let dir = args.dir.clone().unwrap_or_else(default_dir);
        let stillwired = match &args.stillwired {
            Some(path) => path.clone(),
            None => beside_this("stillwired").unwrap_or_else(|| PathBuf::from("stillwired")),
        };
        let plan = Self {
            mode: args.mode,
            subjects,
            rates: args.rates.0.clone(),
            extent: match args.frames {
                Some(frames) => Extent::Frames(frames),
                None => Extent::Lasting(args.duration),
            },
            runs: args.runs,
            resolution: args.resolution,
            tolerance: args.tolerance,
            attempts: args.attempts,
            traffic,
            generator_cores,
            subject_cores,
            on: link(args)?,
            maker: args.generator.clone(),
            dir,
            stillwired,
            settle: args.settle,
            soak: args.mode == Mode::Soak,
            latency: args.latency,
            keep: args.keep,
            quiet: args.quiet,
        };
        plan.check_programs()?;
        plan.check_room()?;
        Ok(plan)
    }

    /// Frames that one load may have at most, for want of room.
    pub(crate) fn room(&self) -> Result<u64> {
        let filesystem = rustix::fs::statvfs(&self.dir)
            .with_context(|| format!("looking at {}", self.dir.display()))?;
        let free = filesystem.f_bavail.saturating_mul(filesystem.f_frsize) as f64;
        let frame = self.traffic.about.mean_frame_bytes + RECORD_BYTES;
        let programs = self.subjects.iter().map(|subject| subject.parts.len()).max().unwrap_or(1);
        Ok((free * SHARE / frame / programs as f64) as u64)
    }

    /// Frames that one load may have at most.
    pub(crate) fn most(&self) -> Result<u64> {
        if self.soak { Ok(u64::MAX) } else { Ok(self.room()?.max(1)) }
    }

    /// Bytes that the packets of one program may take in a soak, if it keeps within a budget.
    pub(crate) fn budget(&self) -> Result<u64> {
        let frame = self.traffic.about.mean_frame_bytes + RECORD_BYTES;
        Ok((self.room()? as f64 * frame) as u64)
    }

    /// A load that cannot be recorded for want of room says nothing about its subject.
    fn check_room(&self) -> Result<()> {
        let room = self.room()?;
        let fastest = self.rates.iter().filter_map(|rate| rate.per_second()).fold(0.0, f64::max);
        let wanted = match self.extent {
            // Until it is counted and has made room.
            _ if self.soak => fastest * UNCOUNTED.as_secs_f64(),
            Extent::Lasting(duration) => fastest * duration.as_secs_f64(),
            Extent::Frames(frames) => frames as f64,
        };
        let bytes = wanted * (self.traffic.about.mean_frame_bytes + RECORD_BYTES);
        ensure!(
            wanted <= room as f64,
            "{} has no room for a load of {wanted:.0} frames (some {}): a shorter --duration, or \
             another --dir",
            self.dir.display(),
            Bytes(bytes as u64)
        );
        Ok(())
    }

    /// Every program is there, or the error says how to get it.
    fn check_programs(&self) -> Result<()> {
        let mut missing = Vec::new();
        for part in self.subjects.iter().flat_map(|subject| &subject.parts) {
            if part.is_stillwire() {
                ensure!(
                    found(&self.stillwired),
                    "there is no stillwired beside this program nor in PATH: build it (cargo build \
                     --release --bin stillwired) or name it with --stillwired"
                );
            }
            missing
                .extend(part.needs().into_iter().filter(|(program, _)| !found(Path::new(program))));
        }
        let always = [("ip", "iproute2"), ("ethtool", "ethtool"), ("taskset", "util-linux")];
        for (program, package) in always.into_iter().chain(self.maker.needs()) {
            if !found(Path::new(program)) {
                missing.push((program.to_owned(), package));
            }
        }
        missing.sort();
        missing.dedup();
        if missing.is_empty() {
            return Ok(());
        }
        let programs: Vec<_> = missing.iter().map(|(program, _)| program.as_str()).collect();
        let mut packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
        packages.sort_unstable();
        packages.dedup();
        bail!(
            "missing: {}; on Debian or Ubuntu: apt-get install --no-install-recommends {}",
            programs.join(", "),
            packages.join(" ")
        )
    }
}

/// The link, which must not be one that this machine lives on.
fn link(args: &DropsArgs) -> Result<On> {
    let Some(receiver) = &args.iface else { return Ok(On::Own { queues: args.queues }) };
    for iface in [Some(receiver), args.send_iface.as_ref()].into_iter().flatten() {
        ensure!(
            !Link::by_name(iface)?.carries_default_route()?,
            "{iface} carries this machine's own traffic (the default route): a load does not \
             belong there"
        );
    }
    Ok(On::Real { receiver: receiver.clone(), sender: args.send_iface.clone() })
}

fn checked(cores: &[usize], there: &[usize]) -> Result<Vec<usize>> {
    for core in cores {
        ensure!(there.contains(core), "there is no core {core} here: they are {there:?}");
    }
    Ok(cores.to_vec())
}

/// Memory, where there is enough of it: how fast a disk is is another question.
fn default_dir() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let roomy = rustix::fs::statvfs(memory)
        .is_ok_and(|fs| fs.f_bavail.saturating_mul(fs.f_frsize) > 2 << 30);
    if roomy { memory.to_owned() } else { std::env::temp_dir() }
}

/// A program that was built together with this one.
fn beside_this(name: &str) -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.with_file_name(name);
    path.exists().then_some(path)
}

/// Whether a program can be started, by its path or from PATH. (`sbin` belongs to root's PATH,
/// though not everywhere to that of sudo.)
fn found(program: &Path) -> bool {
    if program.components().count() > 1 {
        return program.exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}
