//! `stillwire-bench disk`: how fast the sensor writes packets. The burst rate, into segments that
//! are ready, against memcpy into the same memory; the sustained rate, with preparing, sealing and
//! retiring, against what the disk itself takes.
//!
//! It runs the sensor's own recorder, preparer and sealer. Frames come as fast as segments do: a
//! capture would drop them instead of waiting.

mod burst;
mod device;
mod frames;
mod notes;
mod progress;
mod report;
mod sustained;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use anyhow::{Result, bail, ensure};
use capture_user::config::SEGMENTS_IN_USE;
use capture_user::units::{self, Bytes};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::measure::{self, Circumstances, Sample};
use crate::pipeline::{Format, check_sizes};

pub use burst::Burst;
pub use sustained::Sustained;

use device::Writing;
use frames::Chunks;
use progress::Progress;
use sustained::Bed;

/// What becomes of old segments while new ones are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Ring {
    /// They stay: a disk that fills
    Fresh,
    /// They are removed to keep the budget: the ring has wrapped
    Wrapped,
}

impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fresh => "fresh",
            Self::Wrapped => "wrapped",
        })
    }
}

/// `stillwire-bench disk`
#[derive(Debug, Args)]
#[command(after_long_help = "\
Burst: frames into segments that are ready. memcpy, the recorder, and the recorder with its notes take
turns, segment by segment, each in memory that was prepared alike.

Sustained: from preparing the first segment until every one is hashed, indexed and synced. Two ways of writing
as much to the same disk, and the sensor, take turns. On tmpfs there is no device to compare with.

The table shows medians, and in brackets the least and the most of the repetitions.

Examples:
  stillwire-bench disk --core 1
  stillwire-bench disk --dir /dev/shm --dir /srv/stillwire --bytes 8GiB
  stillwire-bench disk --dir /srv --sizes 1514 --rings wrapped --repetitions 9 --format json")]
pub struct DiskArgs {
    /// Where to write, a directory of its own in each; can be repeated
    #[arg(long = "dir", value_name = "DIR", default_value = "/dev/shm")]
    pub dirs: Vec<PathBuf>,

    /// Bytes of a frame, without check sum
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_value = "64,512,1514,9000")]
    pub sizes: Vec<usize>,

    /// Bytes of packets in each repetition; a wrapped ring holds as many
    #[arg(long, value_name = "BYTES", default_value = "2GiB", value_parser = units::parse_bytes)]
    pub bytes: u64,

    /// Repetitions
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repetitions: u32,

    /// Bytes of a segment
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = units::parse_bytes)]
    pub segment_size: u64,

    /// Whether old segments stay, or go while new ones are written
    #[arg(
        long,
        value_enum,
        value_name = "RING",
        value_delimiter = ',',
        default_value = "fresh,wrapped"
    )]
    pub rings: Vec<Ring>,

    /// Sessions to which the frames belong in turn
    #[arg(long, value_name = "N", default_value_t = 100_000,
          value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub sessions: u32,

    /// Core of the thread that writes frames; the threads that prepare and seal go where they like
    #[arg(long, value_name = "N")]
    pub core: Option<usize>,

    /// How results are printed
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// How everything is measured.
#[derive(Clone, Debug)]
struct Way {
    bytes: u64,
    repetitions: usize,
    segment_bytes: u64,
    sessions: usize,
    core: Option<usize>,
}

/// The sustained rate of one size of frames and one kind of ring, in pairs.
#[derive(Clone, Debug, Serialize)]
pub struct Pairs {
    /// Whether old segments stay.
    pub ring: Ring,
    /// Bytes a second of large writes past the page cache; none on a memory filesystem.
    pub direct: Sample,
    /// Bytes a second of write and fsync; none on a memory filesystem.
    pub cached: Sample,
    /// The sensor, in the same order.
    pub sensor: Vec<Sustained>,
}

impl Pairs {
    fn of(&self, field: impl Fn(&Sustained) -> f64) -> Sample {
        Sample { values: self.sensor.iter().map(field).collect() }
    }

    /// The sensor's bytes a second.
    #[must_use]
    pub fn rate(&self) -> Sample {
        self.of(|one| one.rate)
    }
}

/// Everything about one size of frames in one directory.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// Where.
    pub dir: PathBuf,
    /// Whether that is memory.
    pub is_memory: bool,
    /// Bytes of a frame.
    pub frame_bytes: usize,
    /// Into segments that are ready.
    pub burst: Burst,
    /// Until everything is where it stays.
    pub sustained: Vec<Pairs>,
}

/// Runs the measurement.
///
/// # Errors
/// An argument that cannot be, a disk that cannot be used, or the engine lost frames.
pub fn run(args: &DiskArgs) -> Result<ExitCode> {
    let way = check(args)?;
    let circumstances = Circumstances::now();
    let is_text = args.format == Format::Text;
    if is_text {
        report::heading(&circumstances);
    }
    let steps = args.dirs.len() * args.sizes.len() * (1 + args.rings.len()) * way.repetitions;
    let progress = Progress::new(steps as u64);
    let mut cases = Vec::new();
    for dir in &args.dirs {
        let is_memory = device::is_memory(dir)?;
        if is_text {
            progress.print(|| report::burst_heading(dir, is_memory));
        }
        let from = cases.len();
        for &frame_bytes in &args.sizes {
            let dir = dir.clone();
            progress.now(format!("{} burst of {frame_bytes} bytes", dir.display()));
            let burst =
                on_core_of(&way, || burst::measure(&dir, frame_bytes, &way, || progress.step()))?;
            let case = Case { dir, is_memory, frame_bytes, burst, sustained: Vec::new() };
            if is_text {
                progress.print(|| report::burst(&case));
            }
            cases.push(case);
        }
        if is_text {
            progress.print(report::sustained_heading);
        }
        for case in &mut cases[from..] {
            for &ring in &args.rings {
                let pairs = sustain(case, ring, &way, &progress)?;
                if is_text {
                    progress.print(|| report::sustained(case.frame_bytes, &pairs));
                }
                case.sustained.push(pairs);
            }
        }
    }
    progress.end();
    if !is_text {
        report::json(&circumstances, &cases)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn check(args: &DiskArgs) -> Result<Way> {
    check_sizes(&args.sizes, args.segment_size)?;
    // A ring that holds less than what is in use keeps no budget.
    let least = args.segment_size.saturating_mul(2 * SEGMENTS_IN_USE);
    ensure!(
        args.bytes >= least,
        "--bytes: with segments of {} at least {}; give more, or a smaller --segment-size",
        Bytes(args.segment_size),
        Bytes(least)
    );
    Ok(Way {
        bytes: args.bytes,
        repetitions: args.repetitions as usize,
        segment_bytes: args.segment_size,
        sessions: args.sessions as usize,
        core: args.core,
    })
}

/// Runs `work` on a thread of its own, pinned if that was asked for, so that the threads that are
/// started later may run anywhere.
fn on_core_of<T: Send>(way: &Way, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            way.core.map_or(Ok(()), measure::pin)?;
            work()
        });
        worker.join().unwrap_or_else(|_| bail!("the thread that measures failed"))
    })
}

/// Measures the sustained rate and the device in turn.
fn sustain(case: &Case, ring: Ring, way: &Way, progress: &Progress) -> Result<Pairs> {
    let Case { dir, is_memory, frame_bytes, .. } = case;
    let chunks = Chunks::new(*frame_bytes);
    let mut pairs =
        Pairs { ring, direct: Sample::default(), cached: Sample::default(), sensor: Vec::new() };
    let say = |what: &str| {
        progress.now(format!("{} {what}, {frame_bytes} bytes, {ring} ring", dir.display()));
    };
    let wrapped = match ring {
        Ring::Fresh => None,
        Ring::Wrapped => {
            say("the ring is filled");
            let bed = Bed::new(dir, ring)?;
            bed.run(&chunks, way)?;
            Some(bed)
        }
    };
    for repetition in 0..way.repetitions {
        let device = |pairs: &mut Pairs| -> Result<()> {
            if !is_memory {
                say("direct writes");
                let rate = device::write(dir, way.bytes, way.segment_bytes, Writing::Direct)?;
                pairs.direct.values.push(rate);
                say("write and fsync");
                let rate = device::write(dir, way.bytes, way.segment_bytes, Writing::Cached)?;
                pairs.cached.values.push(rate);
            }
            Ok(())
        };
        let sensor = |pairs: &mut Pairs| -> Result<()> {
            say("the sensor's segments");
            let fresh;
            let bed = match &wrapped {
                Some(bed) => bed,
                None => {
                    fresh = Bed::new(dir, ring)?;
                    &fresh
                }
            };
            device::settle(bed.path())?;
            pairs.sensor.push(bed.run(&chunks, way)?);
            Ok(())
        };
        // A disk that gets slower or faster favours neither.
        if repetition % 2 == 0 {
            device(&mut pairs)?;
            sensor(&mut pairs)?;
        } else {
            sensor(&mut pairs)?;
            device(&mut pairs)?;
        }
        progress.step();
    }
    Ok(pairs)
}

/// Where a directory is, for messages.
fn name_of(dir: &Path, is_memory: bool) -> String {
    format!("{}{}", dir.display(), if is_memory { " (memory)" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way() -> Way {
        Way { bytes: 40 << 20, repetitions: 2, segment_bytes: 4 << 20, sessions: 1000, core: None }
    }

    #[test]
    fn every_frame_of_a_burst_is_recorded() {
        let dir = tempfile::tempdir().expect("a directory");
        for size in [64, 1514, 9000] {
            let mut done = 0;
            let burst = burst::measure(dir.path(), size, &way(), || done += 1);
            let burst = burst.expect("a measurement");
            assert_eq!(done, 2);
            for sample in [&burst.memcpy, &burst.append, &burst.noted] {
                assert_eq!(sample.values.len(), 2);
                assert!(sample.least() > 0.0);
            }
            // Nothing is left behind.
            assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
        }
    }

    #[test]
    fn a_wrapped_ring_retires_as_much_as_it_takes_in() {
        let dir = tempfile::tempdir().expect("a directory");
        let chunks = Chunks::new(1514);
        let bed = Bed::new(dir.path(), Ring::Wrapped).expect("a store");
        bed.run(&chunks, &way()).expect("the first lap");
        let lap = bed.run(&chunks, &way()).expect("the second lap");
        assert!((8..=12).contains(&lap.retired), "{lap:?}");
        let bed = Bed::new(dir.path(), Ring::Fresh).expect("a store");
        assert_eq!(bed.run(&chunks, &way()).expect("a lap").retired, 0);
    }

    #[test]
    fn a_device_is_measured_where_there_is_one() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        for path in [Writing::Direct, Writing::Cached] {
            let rate = device::write(dir.path(), 8 << 20, 4 << 20, path).expect("written");
            assert!(rate > 0.0);
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
    }
}
