//! `stillwire-bench pipeline`: what a frame costs on its way from memory through header decoding,
//! session table and segment writer to the journal's note, on one core.
//!
//! It runs the code of a worker itself ([`capture_user::worker::Pipeline`]), on frames in memory as
//! the AF_XDP source would hand them over. Only the frames' arrival (the kernel's work) and the
//! preparing of segments (another thread's work) are left out of the time.

mod feed;
mod report;
pub(crate) mod ring;
mod stages;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use capture_store::segment::SegmentSpec;
use clap::{Args, ValueEnum};

use crate::measure::{self, Circumstances};
use crate::traffic::{Speech, Traffic};

pub use feed::Feed;
pub use ring::Ring;
pub use stages::{Case, Stages, Way, run as run_case};

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table to read
    #[default]
    Text,
    /// One object with every repetition, and the machine
    Json,
}

/// `stillwire-bench pipeline`
#[derive(Debug, Args)]
#[command(after_long_help = "\
Every session has one frame in each cycle, in an order of the cycle's own: with many sessions no
session's memory is near when its frame comes. All stages are measured in turn in each repetition;
the table shows medians, and in brackets the smallest and the largest sum.

Examples:
  stillwire-bench pipeline --core 1
  stillwire-bench pipeline --sessions 1000,100000,1000000,4000000 --speech udp,tcp
  stillwire-bench pipeline --sessions 100000 --sizes 64,512,1514,9000 --format json")]
pub struct PipelineArgs {
    /// Numbers of sessions
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1000,100000,1000000",
          value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub sessions: Vec<u64>,

    /// Bytes of a frame, without check sum
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_value = "64")]
    pub sizes: Vec<usize>,

    /// What sessions speak
    #[arg(long, value_enum, value_delimiter = ',', default_value = "udp,tcp")]
    pub speech: Vec<Speech>,

    /// Frames in each repetition of each stage
    #[arg(long, value_name = "N", default_value_t = 1_000_000,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub frames: u64,

    /// Repetitions
    #[arg(long, value_name = "N", default_value_t = 7,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repetitions: u32,

    /// Core to run on
    #[arg(long, value_name = "N")]
    pub core: Option<usize>,

    /// Chunks of the ring of frames, as the sensor's --ring-size
    #[arg(long, value_name = "N", default_value_t = 8192)]
    pub ring_size: usize,

    /// Where segments are written; memory, unless the disk is what is to be measured
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    pub dir: PathBuf,

    /// Bytes of a segment
    #[arg(long, value_name = "BYTES", default_value = "256MiB",
          value_parser = capture_user::units::parse_bytes)]
    pub segment_size: u64,

    /// How results are printed
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Whether frames and segments can be of these sizes.
///
/// # Errors
/// Names the option and what it takes.
pub(crate) fn check_sizes(sizes: &[usize], segment_size: u64) -> Result<()> {
    for bytes in sizes {
        ensure!(
            (Traffic::LEAST_BYTES..=ring::MOST_BYTES).contains(bytes),
            "--sizes: {bytes} is not between {} and {}",
            Traffic::LEAST_BYTES,
            ring::MOST_BYTES
        );
    }
    ensure!(
        (1 << 22..=SegmentSpec::MAX_BYTES).contains(&segment_size),
        "--segment-size: at least 4MiB and below 4GiB"
    );
    Ok(())
}

/// Runs the measurement.
///
/// # Errors
/// An argument that cannot be, no place for segments, or the engine lost frames.
pub fn run(args: &PipelineArgs) -> Result<ExitCode> {
    check_sizes(&args.sizes, args.segment_size)?;
    ensure!((64..=1 << 20).contains(&args.ring_size), "--ring-size: between 64 and 1048576");
    if let Some(core) = args.core {
        measure::pin(core)?;
    }
    let way = Way {
        frames: args.frames,
        repetitions: args.repetitions as usize,
        chunks: args.ring_size,
        dir: &args.dir,
        segment_bytes: args.segment_size,
    };
    let circumstances = Circumstances::now();
    if args.format == Format::Text {
        report::heading(&circumstances);
    }
    let mut results = Vec::new();
    for &speech in &args.speech {
        for &frame_bytes in &args.sizes {
            for &sessions in &args.sessions {
                let case = Case { speech, sessions, frame_bytes };
                let stages = run_case(&case, &way)?;
                if args.format == Format::Text {
                    report::line(&case, &stages);
                }
                results.push((case, stages));
            }
        }
    }
    if args.format == Format::Json {
        report::json(&circumstances, &results)?;
    }
    Ok(ExitCode::SUCCESS)
}
