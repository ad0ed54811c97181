//! The command line, as typed: what is valid and what it means is decided in [`crate::config`].

use std::path::PathBuf;
use std::time::Duration;

use capture_flow::config::{Checksums, Network, ServerPort};
use capture_store::key::PublicKey;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::anchor::{Place, parse_place};
use crate::defaults;
use crate::simulate::SimulateArgs;
use crate::units;

/// Stillwire's sensor: records every frame and every session, and accounts for each.
#[derive(Debug, Parser)]
#[command(name = "stillwired", version, about, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage. \
    Ask the store with `stillwire sessions`, `stillwire packets`, `stillwire coverage`.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `stillwired` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Record what arrives on network interfaces
    Capture(Box<CaptureArgs>),
    /// Put capture files through the same engine, without privileges
    Replay(Box<ReplayArgs>),
    /// Speak on a wire at intervals, so that a sensor knows that the wire is alive
    Canary(CanaryArgs),
    /// Look at this machine with a sensor's eyes, and say what to change
    Doctor(DoctorArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page (of a subcommand, if one is named)
    Man {
        /// The subcommand
        subcommand: Option<String>,
    },
}

/// Reads a public key.
fn parse_public_key(text: &str) -> Result<PublicKey, &'static str> {
    PublicKey::parse(text.trim()).ok_or("a public key has 64 hexadecimal digits")
}

/// How frames reach user space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Native if the driver can, else generic
    #[default]
    Auto,
    /// In the driver, before the kernel's network stack
    Native,
    /// In the kernel's generic XDP hook: works everywhere, slower
    Generic,
}

/// What to do about transport checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ChecksumArg {
    /// Count every frame: offloads make captured checksums wrong
    #[default]
    Ignore,
    /// As Zeek by default: a bad one creates a session but counts for nothing
    Verify,
}

impl From<ChecksumArg> for Checksums {
    fn from(arg: ChecksumArg) -> Self {
        match arg {
            ChecksumArg::Ignore => Self::Ignore,
            ChecksumArg::Verify => Self::Verify,
        }
    }
}

/// `stillwired capture`
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  Record a mirror port, with at most 200 GiB of packets:
    stillwired capture --iface eth1 --store /var/lib/stillwire --packet-budget 200GiB

  Both directions of a tap, one port each, for ten minutes:
    stillwired capture --iface tap0 --iface tap1 --store /srv/wire --duration 10min

  Prove later that nothing was cut off, with a file on another machine and a key on a stick:
    stillwired capture --iface eth1 --store /srv/wire --anchor /mnt/other/wire.anchor \
        --key /media/stick/sensor.key

  Look first whether the machine is fit:
    stillwired doctor --iface eth1

  Find out what limits it: real frames without a disk, then made frames into the disk:
    stillwired capture --iface eth1 --store /srv/trial --simulate disk --duration 1min
    stillwired capture --store /srv/trial --simulate capture --duration 1min
    stillwired capture --store /srv/trial --simulate capture --simulate-rate 1.5Mpps \
        --simulate-frame 64B --simulate-sessions 100000 --duration 1min

What blinds the sensor (a link or interface that goes, an XDP program that is taken off or replaced,
a queue without a socket, a process that is held up, a disk that takes nothing, a silent wire) is
noticed and stands in the ledger with its times. What can be mended is: an interface that comes back
is taken again, a removed program is put back, a new queue gets a socket. Somebody else's XDP program
is never touched. For that, one thread keeps CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON and
CAP_IPC_LOCK; --no-heal gives them up as well.

Stopping: SIGINT or SIGTERM ends cleanly. XDP is detached first, the frames that had already
arrived are recorded, then everything is sealed. A second signal is noted and changes nothing:
hurrying would lose what has been received. SIGKILL loses nothing that was committed; the next
start recovers it and writes the gap into the ledger.")]
pub struct CaptureArgs {
    /// Interface to record; repeat it or separate names by commas
    #[arg(
        short,
        long = "iface",
        value_name = "IF",
        required_unless_present = "simulate",
        value_delimiter = ','
    )]
    pub interfaces: Vec<String>,

    /// The store and what goes into it
    #[command(flatten)]
    pub store: StoreArgs,

    /// Stop after this time
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub duration: Option<Duration>,

    /// Stop once this many frames have been received; frames that arrive until the stop takes
    /// effect are kept as well
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Cores for the workers, such as 2,3 or 4-7; by default each gets one beside the core that takes
    /// its queue's interrupts, or the allowed ones in order where there are none
    #[arg(long, value_name = "LIST", value_parser = defaults::parse_cores, help_heading = "Receiving")]
    pub cores: Option<CoreList>,

    /// How frames are taken from the interface
    #[arg(long, value_enum, default_value_t, help_heading = "Receiving")]
    pub mode: Mode,

    /// Memory that the sensor may take: half of it for sessions, one part in 32 for frames that wait
    /// to be recorded. The more, the longer a burst it takes without loss. By default an eighth of the
    /// machine's, at most 2GiB for each receive queue
    #[arg(long, value_name = "BYTES", value_parser = units::parse_bytes, help_heading = "Memory")]
    pub memory: Option<u64>,

    /// Frames that can wait at each receive queue, a power of two, instead of what --memory gives
    #[arg(long, value_name = "N", help_heading = "Memory")]
    pub ring_size: Option<u32>,

    /// Bytes of one receive buffer: 2048 or 4096; larger frames span several
    #[arg(long, value_name = "BYTES", default_value = "2048", value_parser = units::parse_bytes, help_heading = "Receiving")]
    pub frame_size: u64,

    /// Take the interface even if this machine's own traffic goes through it; XDP then takes
    /// that traffic away from the machine
    #[arg(long, help_heading = "Receiving")]
    pub allow_host_interface: bool,

    /// How long an interface may be without any frame before the ledger calls it blind; `none`
    /// for ever. Silence alone cannot tell a still wire from a dead tap
    #[arg(long, value_name = "TIME|none", default_value = "60s", value_parser = units::parse_silence_limit, help_heading = "Watching")]
    pub silence_limit: SilenceLimit,

    /// Public key of a canary (`stillwired canary` prints it) whose frames count as a sign of life;
    /// repeat it or separate keys by commas
    #[arg(long = "canary", value_name = "PUBKEY", value_delimiter = ',', value_parser = parse_public_key, help_heading = "Watching")]
    pub canaries: Vec<PublicKey>,

    /// Nothing but a canary ends silence: an interface without one for --silence-limit is blind,
    /// whatever else arrives there
    #[arg(long, help_heading = "Watching")]
    pub canary_required: bool,

    /// Give up every privilege once capturing, so that what blinds the sensor is recorded but not
    /// mended; the run ends when no interface is left
    #[arg(long, help_heading = "Watching")]
    pub no_heal: bool,

    /// Session rules
    #[command(flatten)]
    pub sessions: SessionArgs,

    /// What is only simulated
    #[command(flatten)]
    pub simulation: SimulateArgs,
}

/// `stillwired replay`
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  stillwired replay --store /tmp/wire incident.pcap
  zcat day1.pcap.gz | stillwired replay --store /tmp/wire - day2.pcapng

pcap (micro- and nanoseconds, either byte order) and pcapng are read, gzip-compressed or not.
Time is the packets' time. A file that is cut off is used up to the cut; the exit code is then 1.")]
pub struct ReplayArgs {
    /// Capture files, in the order in which to replay them; - is standard input
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,

    /// The store and what goes into it
    #[command(flatten)]
    pub store: StoreArgs,

    /// Stop after this many frames
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Session rules
    #[command(flatten)]
    pub sessions: SessionArgs,
}

/// Cores given on the command line (a type of its own, so that clap takes the list as one value).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreList(pub Vec<usize>);

/// The longest silence that means nothing, given on the command line; `None` for any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SilenceLimit(pub Option<Duration>);

/// Networks given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkList(pub Vec<Network>);

/// Server ports given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortList(pub Vec<ServerPort>);

/// What both `capture` and `replay` take about the store.
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// Directory of the store; made if it does not exist
    #[arg(short, long, value_name = "DIR", env = "STILLWIRE_STORE")]
    pub store: PathBuf,

    /// Name of this sensor in the store; by default the host's name
    #[arg(long, value_name = "NAME", help_heading = "Store")]
    pub sensor: Option<String>,

    /// File with the secret key that signs the ledger; made if it does not exist. By default
    /// sensor.key in the store. Elsewhere, the store can be copied and shared without it
    #[arg(long, value_name = "FILE", help_heading = "Store")]
    pub key: Option<PathBuf>,

    /// Keep the ledger's signed head in a second place as well, at the start, at intervals and at
    /// the end: a file on another disk or host, syslog: for this host's syslog, or
    /// syslog:HOST[:PORT] for another's, by UDP. Repeat it for several
    #[arg(long = "anchor", value_name = "WHERE", value_parser = parse_place, help_heading = "Store")]
    pub anchors: Vec<Place>,

    /// Time between two anchors
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = units::parse_duration, help_heading = "Store")]
    pub anchor_interval: Duration,

    /// Bytes that packets may take on disk, such as 200GiB; the oldest go first. By default
    /// 70 % of what the filesystem can give
    #[arg(long, value_name = "BYTES", value_parser = units::parse_bytes, help_heading = "Store")]
    pub packet_budget: Option<u64>,

    /// Bytes that the session log may take on disk. By default 20 % of what the filesystem can
    /// give
    #[arg(long, value_name = "BYTES", value_parser = units::parse_bytes, help_heading = "Store")]
    pub session_budget: Option<u64>,

    /// Bytes of one packet segment, 1MiB to 2GiB; by default 256MiB, less where the budget is
    /// small
    #[arg(long, value_name = "BYTES", value_parser = units::parse_bytes, help_heading = "Store")]
    pub segment_size: Option<u64>,

    /// Record at most this many bytes of each frame; by default frames are recorded whole
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(14..=262_144), help_heading = "Store")]
    pub snaplen: Option<u32>,

    /// Time that one line of the ledger spans
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = units::parse_duration, help_heading = "Store")]
    pub ledger_interval: Duration,

    /// No status line and no summary; warnings still appear
    #[arg(short, long)]
    pub quiet: bool,
}

/// How frames become sessions.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sessions")]
pub struct SessionArgs {
    /// Silence that ends an established TCP session
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub tcp_timeout: Option<Duration>,

    /// How long an unanswered SYN is waited for
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub tcp_attempt_timeout: Option<Duration>,

    /// How long a TCP session that both sides closed is kept
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub tcp_close_timeout: Option<Duration>,

    /// How long a TCP session that one side closed is kept
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub tcp_partial_close_timeout: Option<Duration>,

    /// How long a TCP session is kept after a reset
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub tcp_reset_timeout: Option<Duration>,

    /// Silence that ends a UDP session
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub udp_timeout: Option<Duration>,

    /// Silence that ends an ICMP session
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub icmp_timeout: Option<Duration>,

    /// Silence that ends any other session
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub other_timeout: Option<Duration>,

    /// How long an incomplete IP datagram is kept
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub fragment_timeout: Option<Duration>,

    /// How often a session that goes on gets a row
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = units::parse_duration)]
    pub interim: Duration,

    /// Transport checksums
    #[arg(long, value_enum, default_value_t)]
    pub checksums: ChecksumArg,

    /// Ports taken for the server's where a session's start was not seen, such as
    /// 22/tcp,53/udp; `none` for no such guess. By default Zeek's 73
    #[arg(long, value_name = "LIST", value_parser = defaults::parse_server_ports)]
    pub likely_server_ports: Option<PortList>,

    /// Networks that are ours, such as 192.0.2.0/24,2001:db8::/32; `none` for none. By default
    /// the special-purpose ranges that are not routed on the Internet
    #[arg(long, value_name = "LIST", value_parser = defaults::parse_networks)]
    pub local_nets: Option<NetworkList>,

    /// Keep sessions with equal addresses apart where their VLAN tags differ
    #[arg(long)]
    pub vlan_in_key: bool,

    /// Seed of the Community ID
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub community_id_seed: u16,

    /// Memory for one worker's sessions; it fixes how many are held at once. By default half of
    /// --memory for a capture, 512MiB for a replay
    #[arg(long, value_name = "BYTES", value_parser = units::parse_bytes, help_heading = "Memory")]
    pub table_memory: Option<u64>,

    /// Memory for one worker's incomplete IP datagrams. By default a small part of --memory for a
    /// capture, 16MiB for a replay
    #[arg(long, value_name = "BYTES", value_parser = units::parse_bytes, help_heading = "Memory")]
    pub fragment_memory: Option<u64>,
}

/// `stillwired canary`
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  On any host of the watched segment:
    stillwired canary --iface eth0
  On the sensor, with the public key that it prints:
    stillwired capture --iface tap0 --store /srv/wire --canary 5d3f…c1

A canary is a frame of 110 bytes to a group address of its own (EtherType 0x88b5), signed, numbered
and dated. Silence alone cannot tell a still wire from a dead tap; a canary that arrives can. The
key is made on first use and stays on the host. Clocks may differ by a minute at most. Needs
CAP_NET_RAW to start, and nothing afterwards. SIGINT or SIGTERM ends it.")]
pub struct CanaryArgs {
    /// Interface to speak on
    #[arg(short, long = "iface", value_name = "IF")]
    pub interface: String,

    /// Time between two canaries; shorter than the sensor's --silence-limit by a good deal
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = units::parse_duration)]
    pub interval: Duration,

    /// File with the secret key; made if it does not exist
    #[arg(long, value_name = "FILE", default_value = "/var/lib/stillwire/canary.key")]
    pub key: PathBuf,

    /// Stop after so many
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

/// `stillwired doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Interface to look at; repeat it or separate names by commas. By default every one
    #[arg(short, long = "iface", value_name = "IF", value_delimiter = ',')]
    pub interfaces: Vec<String>,

    /// Store to look at
    #[arg(short, long, value_name = "DIR", env = "STILLWIRE_STORE")]
    pub store: Option<PathBuf>,
}
