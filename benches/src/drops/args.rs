//! The command line of `drops`, as typed: what is valid is decided in [`super::plan`].

use std::path::PathBuf;
use std::time::Duration;

use capture_user::args::CoreList;
use capture_user::defaults::parse_cores;
use capture_user::units::parse_duration;
use clap::{Args, ValueEnum};

use super::generator::Maker;
use super::rate::{Rate, RateList, parse_rate, parse_rates};

/// What to find out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// The loss at each of some rates
    #[default]
    Ladder,
    /// The highest rate without loss, by halving (RFC 2544)
    Search,
    /// A load that lasts: files are counted and make room while it goes on
    Soak,
}

/// `stillwire-bench drops`
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  How a sensor and tcpdump do at three rates, on a link of the bench's own:
    stillwire-bench drops --subject stillwire,tcpdump --rates 100k,500k,flood

  Any other program:
    stillwire-bench drops --subject 'mine=cmd:mycap -i {iface} -w {file}' --rates 100k

Subjects: stillwire, bare (receives by AF_XDP and discards), tcpdump, dumpcap, netsniff-ng, argus,
softflowd. Words behind a name are options for it ('tcpdump -B 4096'). In a template stand {iface}
for the interface, {file} for the capture file to write and {dir} for a directory of its own.

Needs root: it makes network namespaces and a link between them, and touches nothing else.")]
pub(crate) struct DropsArgs {
    /// A capture program; repeat it or separate names by commas
    #[arg(
        short,
        long = "subject",
        value_name = "SUBJECT",
        default_value = "stillwire,bare,tcpdump"
    )]
    pub(crate) subjects: Vec<String>,

    /// What to find out
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) mode: Mode,

    /// For the ladder: frames a second to offer, such as 100k, 1.2M or flood (as many as can be made), in a list
    #[arg(short, long, value_name = "LIST", default_value = "100k,500k,1M,flood", value_parser = parse_rates)]
    pub(crate) rates: RateList,

    /// How long each load lasts
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub(crate) duration: Duration,

    /// Frames of each load, instead of a duration
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) frames: Option<u64>,

    /// How often everything is measured; the subjects take turns
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) runs: u32,

    /// For the search: how near to find the rate, as a part of it
    #[arg(long, value_name = "PERCENT", default_value = "1", value_parser = parse_percent, help_heading = "Search")]
    pub(crate) resolution: f64,

    /// For the search: loss that still counts as none
    #[arg(long, value_name = "PERCENT", default_value = "0", value_parser = parse_percent, help_heading = "Search")]
    pub(crate) tolerance: f64,

    /// For the search: a rate counts as lossy if so many loads in a row were
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100), help_heading = "Search")]
    pub(crate) attempts: u32,

    /// Follow the capture files while they grow, and measure the time from a frame's arrival to
    /// its record; takes a part of a generator's core, so it belongs to moderate rates
    #[arg(long)]
    pub(crate) latency: bool,

    /// What is sent
    #[command(flatten)]
    pub(crate) traffic: TrafficArgs,

    /// What makes the frames: kernel, af-xdp, trafgen, tcpreplay, 'tcpreplay FILE', or a template
    /// 'cmd:program …' with {rate}, {seconds}, {frames}, {bytes}, {sessions}, {iface} and {report}
    #[arg(short, long, value_name = "GENERATOR", default_value = "kernel", value_parser = super::generator::parse_maker, help_heading = "Where")]
    pub(crate) generator: Maker,

    /// Measure on this interface instead of a link of the bench's own
    #[arg(short, long, value_name = "IF", help_heading = "Where")]
    pub(crate) iface: Option<String>,

    /// The interface that frames leave by, if it is on this machine
    #[arg(long, value_name = "IF", requires = "iface", help_heading = "Where")]
    pub(crate) send_iface: Option<String>,

    /// Cores that make frames; the kernel receives them on the same ones
    #[arg(long, value_name = "LIST", default_value = "0", value_parser = parse_cores, help_heading = "Where")]
    pub(crate) generator_cores: CoreList,

    /// Cores for the subjects; by default all others
    #[arg(long, value_name = "LIST", value_parser = parse_cores, help_heading = "Where")]
    pub(crate) subject_cores: Option<CoreList>,

    /// Receive queues of the link
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64), help_heading = "Where")]
    pub(crate) queues: u32,

    /// Directory for what the subjects write; by default in memory (/dev/shm) where there is room
    #[arg(long, value_name = "DIR", help_heading = "Where")]
    pub(crate) dir: Option<PathBuf>,

    /// Keep what the subjects write
    #[arg(long, help_heading = "Where")]
    pub(crate) keep: bool,

    /// The sensor; by default `stillwired` beside this program, or in PATH
    #[arg(long, value_name = "FILE", help_heading = "Where")]
    pub(crate) stillwired: Option<PathBuf>,

    /// How long to wait for a subject that does not come to rest after its load
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = parse_duration)]
    pub(crate) settle: Duration,

    /// Write everything measured to a file, as JSON (- is standard output)
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) json: Option<PathBuf>,

    /// Write a row for each measurement to a file, as comma-separated values (- is standard output)
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) csv: Option<PathBuf>,

    /// Draw the loss against the offered rate
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) svg: Option<PathBuf>,

    /// No table and no progress
    #[arg(short, long, help_heading = "Output")]
    pub(crate) quiet: bool,
}

/// Reads a part in per cent.
fn parse_percent(text: &str) -> Result<f64, String> {
    match text.trim().trim_end_matches('%').trim_end().parse::<f64>() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent / 100.0),
        _ => Err(format!("'{text}' is no part in per cent")),
    }
}

/// Which protocol the frames carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// Datagrams
    #[default]
    Udp,
    /// Handshakes, then data in sequence
    Tcp,
}

/// What frames are sent.
#[derive(Debug, Args)]
#[command(next_help_heading = "Traffic")]
pub(crate) struct TrafficArgs {
    /// Length of a frame as captured (without the checksum behind it), or imix
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = super::traffic::parse_size)]
    pub(crate) size: super::traffic::Size,

    /// Sessions at the same time; each gets a frame in turn
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(bench_common::traffic::MAX_SESSIONS)))]
    pub(crate) sessions: u32,

    /// Frames until a session is over and another takes its place; 0 for never
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) session_frames: u32,

    /// What the frames carry
    #[arg(long, value_enum, default_value_t)]
    pub(crate) protocol: Protocol,

    /// Frames go one way only
    #[arg(long)]
    pub(crate) one_way: bool,
}

/// `stillwire-bench bare`
#[derive(Debug, Args)]
pub(crate) struct BareArgs {
    /// Interface
    #[arg(long, value_name = "IF")]
    pub(crate) iface: String,

    /// Slots of the receive ring
    #[arg(long, value_name = "N", default_value_t = 8192)]
    pub(crate) ring_size: u32,
}

/// `stillwire-bench frames`
#[derive(Debug, Args)]
pub(crate) struct FramesArgs {
    /// Capture file to write
    #[arg(short, long, value_name = "FILE")]
    pub(crate) write: PathBuf,

    /// How many frames
    #[arg(short, long, value_name = "N")]
    pub(crate) count: u64,

    /// Their pace in the file
    #[arg(short, long, value_name = "RATE", default_value = "100k", value_parser = parse_rate)]
    pub(crate) rate: Rate,

    /// What frames
    #[command(flatten)]
    pub(crate) traffic: TrafficArgs,
}
