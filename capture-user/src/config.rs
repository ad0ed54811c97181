//! What a run shall do: the command line after everything about it was checked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use capture_flow::config::{FlowConfig, Timeouts};
use capture_flow::time::NanosDelta;
use capture_store::key::PublicKey;
use tracing::{info, warn};

use crate::anchor::Place;
use crate::args::{CaptureArgs, Mode, ReplayArgs, SessionArgs, StoreArgs};
use crate::defaults;
use crate::share::{self, RING_SIZES, Shares};
use crate::simulate::Simulation;
use crate::units::Bytes;

/// Smallest and largest packet segment.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=2 << 30;
/// A segment where nothing else is asked for and the budget allows it.
const DEFAULT_SEGMENT_BYTES: u64 = 256 << 20;
/// Memory for a replay's sessions and incomplete datagrams unless it is given. A capture has its
/// shares.
const REPLAY_TABLE: u64 = 512 << 20;
const REPLAY_FRAGMENTS: u64 = 16 << 20;
/// A segment that lies in memory for good, where nothing else is asked for: three of a worker's are
/// more than any cache holds.
const MEMORY_SEGMENT_BYTES: u64 = 64 << 20;
/// Segments of one worker that are in use at the same time: one being filled, two ready, one
/// being sealed.
pub const SEGMENTS_IN_USE: u64 = 4;

/// What `capture` shall do.
#[derive(Clone, Debug)]
pub struct CaptureConfig {
    /// What it shares with `replay`.
    pub common: Config,
    /// Interfaces by name, each once.
    pub interfaces: Vec<String>,
    /// How frames are taken.
    pub mode: Mode,
    /// Cores for the workers, if they were chosen.
    pub cores: Option<Vec<usize>>,
    /// Memory that the sensor may take, if that was said.
    memory: Option<u64>,
    /// Frames that can wait at each receive queue, a power of two. Known once memory is shared out
    /// ([`CaptureConfig::share_memory`]).
    pub ring_size: u32,
    /// What was given instead of a share: frames that can wait at each queue, bytes for each
    /// worker's sessions, for its incomplete datagrams.
    given: (Option<u32>, Option<u64>, Option<u64>),
    /// Bytes of a receive buffer.
    pub frame_size: u32,
    /// Whether an interface that the host itself uses may be taken.
    pub allow_host_interface: bool,
    /// Stop after this time.
    pub duration: Option<Duration>,
    /// Stop after this many frames.
    pub count: Option<u64>,
    /// Whether what blinds the sensor is mended where that is possible.
    pub heal: bool,
    /// How long an interface may be without any frame before it counts as blind; `None` for ever.
    pub silence_limit: Option<NanosDelta>,
    /// Whose canaries are believed.
    pub canaries: Vec<PublicKey>,
    /// Whether nothing but a canary ends silence.
    pub canary_required: bool,
}

/// What `replay` shall do.
#[derive(Clone, Debug)]
pub struct ReplayConfig {
    /// What it shares with `capture`.
    pub common: Config,
    /// Files in order.
    pub files: Vec<PathBuf>,
    /// Stop after this many frames.
    pub count: Option<u64>,
}

/// What both need.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of the store.
    pub store: PathBuf,
    /// The sensor's name, if one was given.
    pub sensor: Option<String>,
    /// Where heads of the ledger are kept besides.
    pub anchors: Vec<Place>,
    /// How often.
    pub anchor_interval: Duration,
    /// Where the ledger's secret key is kept, if not in the store.
    pub key: Option<PathBuf>,
    /// Bytes for packets, if they were given.
    packet_budget: Option<u64>,
    /// Bytes for the session log, if they were given.
    session_budget: Option<u64>,
    /// Bytes of a segment, if they were given.
    segment_bytes: Option<u64>,
    /// Bytes kept of each frame, if not all.
    pub snaplen: Option<u32>,
    /// Time that one ledger line spans.
    pub ledger_interval: NanosDelta,
    /// No status line and no summary.
    pub quiet: bool,
    /// What is only simulated, if anything is.
    pub simulation: Option<Simulation>,
    /// Rules for sessions. Seeds and worker numbers are the engine's to fill in.
    pub flow: FlowConfig,
}

/// Bytes on disk that a run may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// For packets and their indexes.
    pub packets: u64,
    /// For the session log.
    pub sessions: u64,
    /// Of one segment.
    pub segment: u64,
}

impl Space {
    /// What an operator should know who has given away more than there is.
    fn larger_than(&self, available: u64) -> Option<String> {
        let budgets = self.packets.saturating_add(self.sessions);
        (budgets > available).then(|| {
            format!(
                "the budgets (packets {}, log {}) are larger than what the disk has for them, {}: \
                 it will be full, and frames lost, before the oldest are removed; lower \
                 --packet-budget or --session-budget",
                Bytes(self.packets),
                Bytes(self.sessions),
                Bytes(available)
            )
        })
    }
}

impl CaptureConfig {
    /// Checks the arguments of `capture`.
    ///
    /// # Errors
    /// Names the argument and what it can be.
    pub fn new(args: CaptureArgs) -> Result<Self> {
        let simulation = Simulation::new(&args.simulation, !args.interfaces.is_empty())?;
        let mut interfaces: Vec<String> = Vec::new();
        for name in args.interfaces {
            let name = name.trim().to_owned();
            // IFNAMSIZ, and what the kernel refuses in names (dev_valid_name).
            let valid = !name.is_empty()
                && name.len() < 16
                && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
            if !valid {
                bail!("--iface: '{name}' cannot be the name of an interface; `ip link` lists them");
            }
            if interfaces.contains(&name) {
                bail!("--iface: {name} is named twice");
            }
            interfaces.push(name);
        }
        if let Some(slots) = args.ring_size
            && !(slots.is_power_of_two() && RING_SIZES.contains(&slots))
        {
            bail!(
                "--ring-size: {slots} is not a power of two from {} to {}; {} is near",
                RING_SIZES.start(),
                RING_SIZES.end(),
                slots.clamp(*RING_SIZES.start(), *RING_SIZES.end()).next_power_of_two()
            );
        }
        if !matches!(args.frame_size, 2048 | 4096) {
            bail!("--frame-size: a receive buffer has 2048 or 4096 bytes, not {}", args.frame_size);
        }
        if args.duration.is_some_and(|duration| duration.is_zero()) {
            bail!("--duration: must be longer than nothing");
        }
        if args.silence_limit.0.is_some_and(|limit| limit.is_zero()) {
            bail!("--silence-limit: must be longer than nothing; `none` turns the rule off");
        }
        if args.canary_required && args.canaries.is_empty() {
            bail!("--canary-required: there is no canary to wait for; name its key with --canary");
        }
        if args.canary_required && args.silence_limit.0.is_none() {
            bail!("--canary-required: says nothing with --silence-limit none");
        }
        Ok(Self {
            common: Config { simulation, ..Config::new(args.store, &args.sessions)? },
            interfaces,
            mode: args.mode,
            cores: args.cores.map(|list| list.0),
            memory: args.memory,
            ring_size: 0,
            given: (args.ring_size, args.sessions.table_memory, args.sessions.fragment_memory),
            frame_size: args.frame_size as u32,
            allow_host_interface: args.allow_host_interface,
            duration: args.duration,
            count: args.count,
            heal: !args.no_heal,
            silence_limit: args.silence_limit.0.map(delta),
            canaries: args.canaries,
            canary_required: args.canary_required,
        })
    }
}

impl CaptureConfig {
    /// Shares out the memory that the sensor may take, now that it is known how many workers receive
    /// how many queues in all. What was given for a part goes before its share.
    ///
    /// # Errors
    /// It is too little for so many workers.
    pub fn share_memory(&mut self, workers: usize, queues: usize) -> Result<()> {
        let memory = match self.memory {
            Some(memory) => memory,
            None => share::usual(share::of_machine(), workers),
        };
        let least = share::LEAST.saturating_mul(workers.max(1) as u64);
        if memory < least {
            bail!(
                "--memory: {} is too little: {workers} workers need {} at least",
                Bytes(memory),
                Bytes(least)
            );
        }
        let stock = Shares::of(memory, workers, queues, self.frame_size);
        let (ring_size, table, fragments) = self.given;
        let shares = Shares {
            ring_size: ring_size.unwrap_or(stock.ring_size),
            table: table.unwrap_or(stock.table),
            fragments: fragments.unwrap_or(stock.fragments),
        };
        self.ring_size = shares.ring_size;
        self.common.flow.table_bytes = to_usize("table-memory", shares.table)?;
        self.common.flow.fragment_bytes = to_usize("fragment-memory", shares.fragments)?;
        info!("{}", share::describe(memory, &shares));
        Ok(())
    }
}

impl ReplayConfig {
    /// Checks the arguments of `replay`.
    ///
    /// # Errors
    /// Names the argument and what it can be.
    pub fn new(args: ReplayArgs) -> Result<Self> {
        if args.files.iter().filter(|file| *file == Path::new("-")).count() > 1 {
            bail!("standard input (-) can be replayed only once");
        }
        Ok(Self {
            common: Config::new(args.store, &args.sessions)?,
            files: args.files,
            count: args.count,
        })
    }
}

impl Config {
    fn new(args: StoreArgs, sessions: &SessionArgs) -> Result<Self> {
        if let Some(bytes) = args.segment_size
            && !SEGMENT_BYTES.contains(&bytes)
        {
            bail!(
                "--segment-size: {} is not between {} and {}",
                Bytes(bytes),
                Bytes(*SEGMENT_BYTES.start()),
                Bytes(*SEGMENT_BYTES.end())
            );
        }
        if let Some(name) = &args.sensor
            && (name.is_empty() || name.len() > 64 || name.contains(char::is_control))
        {
            bail!("--sensor: a name has 1 to 64 bytes and no control characters");
        }
        let ledger_interval = delta(args.ledger_interval);
        if ledger_interval < NanosDelta::from_millis(100) {
            bail!("--ledger-interval: at least 100ms");
        }
        Ok(Self {
            store: args.store,
            sensor: args.sensor,
            anchors: args.anchors,
            anchor_interval: args.anchor_interval,
            key: args.key,
            packet_budget: args.packet_budget,
            session_budget: args.session_budget,
            segment_bytes: args.segment_size,
            snaplen: args.snaplen,
            ledger_interval,
            quiet: args.quiet,
            simulation: None,
            flow: flow_config(sessions)?,
        })
    }

    /// Decides how much of the disk under the store the run may use: what was asked for, or a
    /// share of what the filesystem can give (free space and what the store already holds).
    ///
    /// # Errors
    /// The filesystem cannot be asked, or the budget holds less than the segments that `workers`
    /// workers have in use at the same time.
    pub fn space(&self, held: u64, workers: usize) -> Result<Space> {
        let stat = rustix::fs::statvfs(&self.store)
            .with_context(|| format!("cannot ask for the space under {}", self.store.display()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let available = free.saturating_add(held);
        let space = self.space_of(available, workers)?;
        if let Some(warning) = space.larger_than(available) {
            warn!("{warning}");
        }
        Ok(space)
    }

    fn space_of(&self, available: u64, workers: usize) -> Result<Space> {
        let share = |percent: u64| (available / 100).saturating_mul(percent);
        let packets = self.packet_budget.unwrap_or_else(|| share(70));
        let sessions = self.session_budget.unwrap_or_else(|| share(20));
        if self.simulation.is_some_and(|simulation| simulation.disk) {
            // They lie in memory, and none of it is given back until the end.
            let segment = self.segment_bytes.unwrap_or(MEMORY_SEGMENT_BYTES);
            return Ok(Space { packets, sessions, segment });
        }
        let in_use = SEGMENTS_IN_USE.saturating_mul(workers.max(1) as u64);
        let segment = self.segment_bytes.unwrap_or_else(|| {
            // At least as many again for the past.
            let fits = packets / in_use.saturating_mul(2);
            let fits = fits & !(*SEGMENT_BYTES.start() - 1);
            fits.clamp(*SEGMENT_BYTES.start(), DEFAULT_SEGMENT_BYTES)
        });
        let least = segment.saturating_mul(in_use.saturating_add(1));
        if packets < least {
            bail!(
                "--packet-budget: {} is too little: {workers} workers with segments of {} need {} \
                 at least; give more, free some space, or choose a smaller --segment-size",
                Bytes(packets),
                Bytes(segment),
                Bytes(least)
            );
        }
        Ok(Space { packets, sessions, segment })
    }

    /// Bytes of a segment for a replay of about `input` bytes: a whole one is allocated and
    /// cleared, so a small capture gets small ones.
    #[must_use]
    pub fn replay_segment(&self, space: Space, input: Option<u64>) -> u64 {
        if self.segment_bytes.is_some() {
            return space.segment;
        }
        let (least, most) = (*SEGMENT_BYTES.start(), space.segment.max(*SEGMENT_BYTES.start()));
        // Record headers grow by nothing, but pcapng has larger ones and gzip hides the size.
        input
            .map_or(most, |bytes| bytes.saturating_add(bytes / 4).next_multiple_of(least))
            .clamp(least, most)
    }
}

fn flow_config(args: &SessionArgs) -> Result<FlowConfig> {
    let stock = Timeouts::default();
    let or = |given: Option<Duration>, stock: NanosDelta| given.map_or(stock, delta);
    let timeouts = Timeouts {
        tcp_attempt: or(args.tcp_attempt_timeout, stock.tcp_attempt),
        tcp_close: or(args.tcp_close_timeout, stock.tcp_close),
        tcp_reset: or(args.tcp_reset_timeout, stock.tcp_reset),
        tcp_partial_close: or(args.tcp_partial_close_timeout, stock.tcp_partial_close),
        tcp_inactivity: or(args.tcp_timeout, stock.tcp_inactivity),
        udp_inactivity: or(args.udp_timeout, stock.udp_inactivity),
        icmp_inactivity: or(args.icmp_timeout, stock.icmp_inactivity),
        other_inactivity: or(args.other_timeout, stock.other_inactivity),
        fragment: or(args.fragment_timeout, stock.fragment),
    };
    Ok(FlowConfig {
        timeouts,
        interim: delta(args.interim),
        checksums: args.checksums.into(),
        likely_server_ports: args
            .likely_server_ports
            .clone()
            .map_or_else(FlowConfig::stock_likely_server_ports, |list| list.0),
        local_nets: args.local_nets.clone().map_or_else(defaults::local_nets, |list| list.0),
        vlan_in_key: args.vlan_in_key,
        // Known once the queues are.
        halves: false,
        community_id_seed: args.community_id_seed,
        table_bytes: to_usize("table-memory", args.table_memory.unwrap_or(REPLAY_TABLE))?,
        fragment_bytes: to_usize(
            "fragment-memory",
            args.fragment_memory.unwrap_or(REPLAY_FRAGMENTS),
        )?,
        hash_seed: 0,
        uid_seed: 0,
        worker: 0,
    })
}

fn to_usize(name: &str, bytes: u64) -> Result<usize> {
    usize::try_from(bytes).with_context(|| format!("--{name}: more than this machine addresses"))
}

fn delta(duration: Duration) -> NanosDelta {
    NanosDelta(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn capture(args: &[&str]) -> Result<CaptureConfig> {
        let base = ["stillwired", "capture", "--store", "/nowhere"];
        let cli = Cli::try_parse_from(base.iter().chain(args))?;
        match cli.command {
            Command::Capture(args) => CaptureConfig::new(*args),
            _ => bail!("not a capture"),
        }
    }

    fn message(args: &[&str]) -> String {
        capture(args).expect_err("refused").to_string()
    }

    #[test]
    fn interfaces_are_named_once_each() {
        let config = capture(&["-i", "a,b", "--iface", "c"]).expect("valid");
        assert_eq!(config.interfaces, ["a", "b", "c"]);
        assert!(message(&["-i", "a,a"]).contains("twice"));
        assert!(message(&["-i", "no/such"]).contains("--iface"));
        assert!(message(&["-i", "a-name-that-is-too-long"]).contains("--iface"));
    }

    #[test]
    fn an_error_names_the_argument() {
        assert!(message(&["-i", "a", "--ring-size", "1000"]).contains("1024 is near"));
        assert!(message(&["-i", "a", "--ring-size", "32"]).contains("--ring-size"));
        assert!(message(&["-i", "a", "--frame-size", "1500"]).contains("--frame-size"));
        assert!(message(&["-i", "a", "--segment-size", "1k"]).contains("--segment-size"));
        assert!(message(&["-i", "a", "--sensor", ""]).contains("--sensor"));
        assert!(message(&["-i", "a", "--local-nets", "10/8"]).contains("10/8"));
        assert!(message(&["-i", "a", "--duration", "0"]).contains("--duration"));
        assert!(capture(&["-i", "a", "--ring-size", "64"]).is_ok());
        let mut little = capture(&["-i", "a", "--memory", "20MiB"]).expect("valid");
        let error = little.share_memory(2, 2).expect_err("too little").to_string();
        assert!(error.contains("--memory") && error.contains("32"), "{error}");
    }

    #[test]
    fn a_part_that_is_given_goes_before_its_share() {
        let given = ["-i", "a", "--memory", "1GiB", "--table-memory", "8MiB", "--ring-size", "64"];
        let mut config = capture(&given).expect("valid");
        config.share_memory(1, 1).expect("enough");
        assert_eq!((config.ring_size, config.common.flow.table_bytes), (64, 8 << 20));
        let mut config = capture(&["-i", "a", "--memory", "1GiB"]).expect("valid");
        config.share_memory(1, 1).expect("enough");
        assert_eq!((config.ring_size, config.common.flow.table_bytes), (1 << 17, 512 << 20));
    }

    #[test]
    fn a_canary_that_is_required_has_a_key_and_a_limit() {
        let key = capture_store::key::SecretKey::ephemeral().expect("a key").public().to_string();
        assert!(message(&["-i", "a", "--canary", "12"]).contains("64 hexadecimal digits"));
        assert!(message(&["-i", "a", "--canary-required"]).contains("--canary"));
        let required = ["-i", "a", "--canary", &key, "--canary-required"];
        let config = capture(&required).expect("valid");
        assert!(config.canary_required && config.canaries.len() == 1);
        let never = [&required[..], &["--silence-limit", "none"]].concat();
        assert!(message(&never).contains("--silence-limit"));
        let both = format!("{key},{key}");
        assert_eq!(capture(&["-i", "a", "--canary", &both]).expect("valid").canaries.len(), 2);
    }

    #[test]
    fn silence_has_a_limit_unless_it_shall_have_none() {
        let limit = |args: &[&str]| capture(args).map(|config| config.silence_limit);
        assert_eq!(limit(&["-i", "a"]).expect("valid"), Some(NanosDelta::from_secs(60)));
        let given = limit(&["-i", "a", "--silence-limit", "5min"]).expect("valid");
        assert_eq!(given, Some(NanosDelta::from_secs(300)));
        assert_eq!(limit(&["-i", "a", "--silence-limit", "none"]).expect("valid"), None);
        assert!(message(&["-i", "a", "--silence-limit", "0s"]).contains("--silence-limit"));
        assert!(message(&["-i", "a", "--silence-limit", "never"]).contains("--silence-limit"));
    }

    #[test]
    fn space_is_a_share_unless_it_is_given() {
        let gib = 1 << 30;
        let config = capture(&["-i", "a"]).expect("valid").common;
        let space = config.space_of(100 * gib, 2).expect("fits");
        assert_eq!(space.packets, 100 * gib / 100 * 70);
        assert_eq!(space.segment, DEFAULT_SEGMENT_BYTES);
        // A small disk gets small segments.
        let space = config.space_of(gib, 2).expect("fits");
        assert!(space.segment * 16 <= space.packets);
        assert!(config.space_of(8 << 20, 2).is_err());
        let given = capture(&["-i", "a", "--packet-budget", "1GiB", "--segment-size", "256MiB"]);
        let error = given.expect("valid").common.space_of(100 * gib, 1).expect_err("too little");
        assert!(error.to_string().contains("--packet-budget"));
    }

    #[test]
    fn budgets_that_the_disk_cannot_hold_are_told() {
        let gib = 1 << 30;
        let given = ["-i", "a", "--packet-budget", "90GiB", "--session-budget", "20GiB"];
        let space = capture(&given).expect("valid").common.space_of(100 * gib, 1).expect("fits");
        let warning = space.larger_than(100 * gib).expect("110 are more than 100");
        assert!(warning.contains("--packet-budget") && warning.contains("100"), "{warning}");
        assert_eq!(space.larger_than(110 * gib), None);
        let stock = capture(&["-i", "a"]).expect("valid").common.space_of(100 * gib, 1);
        assert_eq!(stock.expect("fits").larger_than(100 * gib), None);
    }

    #[test]
    fn a_small_replay_gets_small_segments() {
        let config = capture(&["-i", "a"]).expect("valid").common;
        let space = Space { packets: 1 << 40, sessions: 1 << 40, segment: 256 << 20 };
        assert_eq!(config.replay_segment(space, Some(1000)), 1 << 20);
        assert_eq!(config.replay_segment(space, Some(1 << 40)), 256 << 20);
        assert_eq!(config.replay_segment(space, None), 256 << 20);
    }
}
