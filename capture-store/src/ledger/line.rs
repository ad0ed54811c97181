//! What a ledger line says.
//!
//! All counts are of the line's interval alone, never running totals, so that a line can be read
//! by itself.

use std::collections::BTreeMap;

use capture_flow::time::Nanos;
use serde::{Deserialize, Serialize};

use crate::drops::{DropReason, RowLossReason};
use crate::recover::RecoveryReport;
use crate::segment::SealedSegment;
use crate::store::RunId;

/// One interval of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LedgerLine {
    /// Version of the line's format.
    pub v: u32,
    /// Place in the store's chain, from 0; set by the writer.
    #[serde(default)]
    pub seq: u64,
    /// BLAKE3 of the line before, in hex; 64 zeros for the first; set by the writer.
    #[serde(default)]
    pub prev: String,
    /// The sensor.
    pub sensor: String,
    /// The run.
    pub run: RunId,
    /// Place of the interval in the run, from 0.
    pub interval: u64,
    /// Begin of the interval, by the engine's clock (packet time in a replay).
    #[serde(with = "crate::time::rfc3339")]
    pub from: Nanos,
    /// End of the interval, the begin of the next one.
    #[serde(with = "crate::time::rfc3339")]
    pub to: Nanos,
    /// When the line was written, by the wall clock.
    #[serde(with = "crate::time::rfc3339")]
    pub written_at: Nanos,
    /// Every session with a frame before this moment has a row in the session log.
    #[serde(with = "crate::time::rfc3339::option", default)]
    pub complete_through: Option<Nanos>,
    /// The kernel's name for the time since the machine was started
    /// (`/proc/sys/kernel/random/boot_id`): another one than in the line before means that the
    /// machine was restarted in between. Set by the writer, unless it is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Where frames come from: `capture` or `replay`.
    pub mode: String,
    /// Captured interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Replayed files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<ReplayedFile>,
    /// Workers.
    pub workers: Vec<Worker>,
    /// Session rows.
    pub rows: Rows,
    /// The clock that frames are stamped by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Clock>,
    /// The longest time without a frame on all interfaces together, if it reached into this
    /// interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence: Option<Silence>,
    /// Times in which the sensor could not see, each cut to this line's interval unless the
    /// cause reaches back before it was noticed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blind: Vec<Blind>,
    /// Canaries that arrived in the interval.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub canaries: Vec<Canary>,
    /// The session log's files that are not sealed yet, as far as their rows are committed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tails: Vec<OpenTail>,
    /// What else happened.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Note>,
    /// The sensor's signature over the text before this field, in hex; set by the writer. The
    /// last field, always.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sig: String,
}

impl LedgerLine {
    /// Version of the line's format that this build writes.
    pub const VERSION: u32 = 1;

    /// A line of a run without any counts yet.
    #[must_use]
    pub fn new(sensor: &str, run: &RunId, interval: u64, from: Nanos, to: Nanos) -> Self {
        Self {
            v: Self::VERSION,
            seq: 0,
            prev: String::new(),
            sensor: sensor.to_owned(),
            run: run.clone(),
            interval,
            from,
            to,
            written_at: Nanos(0),
            complete_through: None,
            boot_id: None,
            mode: "capture".to_owned(),
            interfaces: Vec::new(),
            files: Vec::new(),
            workers: Vec::new(),
            rows: Rows::default(),
            clock: None,
            silence: None,
            blind: Vec::new(),
            canaries: Vec::new(),
            tails: Vec::new(),
            notes: Vec::new(),
            sig: String::new(),
        }
    }

    /// Whether the interval has a moment in common with the window (both ends included).
    #[must_use]
    pub fn overlaps(&self, from: Nanos, to: Nanos) -> bool {
        self.from <= to && self.to >= from
    }

    /// Frames lost anywhere in the interval: by ring, or recorded nowhere.
    #[must_use]
    pub fn frames_lost(&self) -> u64 {
        let rings = self.interfaces.iter().flat_map(|i| &i.queues).map(|q| q.ring_losses);
        let nics = self.interfaces.iter().filter_map(|i| i.nic.as_ref()).map(Nic::lost);
        let drops = self.workers.iter().flat_map(|worker| worker.dropped.values().copied());
        rings.chain(nics).chain(drops).fold(0, u64::saturating_add)
    }
}

/// One captured interface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// How frames are taken from it: `native-zerocopy`, `native-copy`, `generic`, ….
    pub backend: String,
    /// Its link.
    pub link: Link,
    /// What the NIC counts; missing where its driver tells nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic: Option<Nic>,
    /// Its receive queues.
    pub queues: Vec<Queue>,
}

/// The state of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Whether it was up with carrier at the end of the interval.
    pub up: bool,
    /// How often that changed within the interval.
    #[serde(default)]
    pub changes: u64,
    /// Nanoseconds of the interval in which it was down.
    #[serde(default)]
    pub down_ns: u64,
}

/// What the NIC and its driver count (the interface's standard counters).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames dropped by the driver or the stack. What the XDP program takes may be among
    /// them on some drivers, so it is evidence and no term of an equation.
    pub rx_dropped: u64,
    /// Frames lost for lack of buffers in the NIC.
    pub rx_missed: u64,
    /// Frames received damaged.
    pub rx_errors: u64,
}

impl Nic {
    /// Frames that the NIC had and the XDP program did not get, for certain.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.rx_missed.saturating_add(self.rx_errors)
    }
}

/// One receive queue and its socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// Its number.
    pub queue: u32,
    /// Worker that owns it; missing where no socket serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<u16>,
    /// What the XDP program did.
    pub xdp: Xdp,
    /// Frames between program and worker at the begin of the interval.
    #[serde(default)]
    pub in_ring_before: u64,
    /// Frames between program and worker at its end; 0 in the last line of a clean run.
    #[serde(default)]
    pub in_ring_after: u64,
    /// Whole frames that the worker took out of the ring.
    pub received: u64,
    /// Frames that were steered and never came.
    pub ring_losses: u64,
    /// What the kernel says about those.
    pub socket: Socket,
}

/// What the XDP program counted: `seen = steered + passed + no_socket + aborted`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xdp {
    /// Frames that entered it.
    pub seen: u64,
    /// Their bytes.
    pub seen_bytes: u64,
    /// Redirected to a socket.
    pub steered: u64,
    /// Passed to the host by rule: excluded by policy.
    pub passed: u64,
    /// Passed to the host because no socket serves the queue.
    pub no_socket: u64,
    /// Not handled.
    pub aborted: u64,
    /// Among the steered ones, those without a stamp.
    pub unstamped: u64,
}

/// The socket's counters (`XDP_STATISTICS`). They overlap and explain; they are not added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// Lost: oversize, or no buffer in copy mode.
    pub rx_dropped: u64,
    /// Lost: the receive ring was full.
    pub rx_ring_full: u64,
    /// Failed refills of the pool; repeats `rx_dropped` in copy mode.
    pub rx_fill_ring_empty_descs: u64,
    /// Descriptors that the kernel refused.
    pub rx_invalid_descs: u64,
}

/// A replayed file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayedFile {
    /// Its name, without directories.
    pub name: String,
    /// Frames read in the interval.
    pub received: u64,
    /// Whether it ends in the middle of a frame; everything before was used.
    #[serde(default)]
    pub cut: bool,
}

/// One worker: `received = decoded + undecodable = written + dropped`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// Its number.
    pub worker: u16,
    /// Frames taken from its queues or files.
    pub received: u64,
    /// Frames that count to a session (fragments that wait included).
    pub decoded: u64,
    /// Frames that count to none, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub undecodable: BTreeMap<String, u64>,
    /// Frames among the decoded ones that carry a tunnel of which something counts to no session,
    /// by reason: in no equation, since the frame itself counts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inner_unread: BTreeMap<String, u64>,
    /// Frames in segments.
    pub written: u64,
    /// Bytes of those as captured, without headers.
    pub written_bytes: u64,
    /// Frames in no segment, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dropped: BTreeMap<DropReason, u64>,
    /// Sessions in the table at the end of the interval.
    #[serde(default)]
    pub sessions: u64,
    /// Sessions written out early because the table was full.
    #[serde(default)]
    pub evicted: u64,
    /// Frames that no index knows, because a journal was full.
    #[serde(default)]
    pub unindexed: u64,
}

impl Worker {
    /// Frames that tell less than was on the wire: they count to no session, or something in them
    /// does.
    #[must_use]
    pub fn unread(&self) -> u64 {
        let frames = self.undecodable.values().chain(self.inner_unread.values());
        frames.copied().fold(0, u64::saturating_add)
    }
}

/// Session rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows {
    /// Rows committed to the session log.
    pub written: u64,
    /// Rows that reached no log, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lost: BTreeMap<RowLossReason, u64>,
}

/// The clock that frames are stamped by.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Clock {
    /// `tai`, `monotonic`, `hardware`, `user` or `packet`.
    pub source: String,
    /// Nanoseconds by which the wall clock moved against the monotonic one within the interval,
    /// beyond what slewing explains.
    #[serde(default)]
    pub stepped_ns: i64,
}

/// A time without any frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// Its last frame before.
    #[serde(with = "crate::time::rfc3339")]
    pub from: Nanos,
    /// Its first frame after, or the end of the interval.
    #[serde(with = "crate::time::rfc3339")]
    pub to: Nanos,
}

/// A time in which the sensor could not see, or could not keep what it saw.
///
/// Frames that are known to be lost are counted elsewhere in the line; this is about times of
/// which nothing is known. A cause that lasts is in every line until it is mended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blind {
    /// Its first moment: no later than the cause, as far as that can be known.
    #[serde(with = "crate::time::rfc3339")]
    pub from: Nanos,
    /// Its last moment: the end of the cause, or of the interval.
    #[serde(with = "crate::time::rfc3339")]
    pub to: Nanos,
    /// Why.
    pub cause: BlindCause,
    /// The interface, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iface: Option<String>,
    /// Its queue, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<u32>,
    /// The worker, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<u16>,
    /// What an operator should know beyond that.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Why the sensor could not see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlindCause {
    /// The link was down or without carrier.
    LinkDown,
    /// The interface was removed.
    InterfaceGone,
    /// The XDP program was taken off the interface.
    XdpRemoved,
    /// Somebody else's XDP program is on the interface.
    XdpReplaced,
    /// A receive queue appeared that no socket serves.
    QueueUnserved,
    /// A queue's socket failed.
    SourceFailed,
    /// A worker, or the whole process, did not run.
    WorkerStalled,
    /// A worker ended.
    WorkerEnded,
    /// No frame for longer than the silence limit, and no canary either.
    Silent,
    /// Segments could not be written or sealed.
    SegmentsUnwritable,
    /// The session log could not be written, so that rows wait in memory.
    LogBehind,
    /// A simulation: the frames were made by the sensor itself, or went to no disk.
    Simulated,
}

impl BlindCause {
    /// Every cause.
    pub const ALL: [Self; 12] = [
        Self::LinkDown,
        Self::InterfaceGone,
        Self::XdpRemoved,
        Self::XdpReplaced,
        Self::QueueUnserved,
        Self::SourceFailed,
        Self::WorkerStalled,
        Self::WorkerEnded,
        Self::Silent,
        Self::SegmentsUnwritable,
        Self::LogBehind,
        Self::Simulated,
    ];

    /// The name in the ledger.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LinkDown => "link_down",
            Self::InterfaceGone => "interface_gone",
            Self::XdpRemoved => "xdp_removed",
            Self::XdpReplaced => "xdp_replaced",
            Self::QueueUnserved => "queue_unserved",
            Self::SourceFailed => "source_failed",
            Self::WorkerStalled => "worker_stalled",
            Self::WorkerEnded => "worker_ended",
            Self::Silent => "silent",
            Self::SegmentsUnwritable => "segments_unwritable",
            Self::LogBehind => "log_behind",
            Self::Simulated => "simulated",
        }
    }
}

/// Signed frames by which another host of the segment shows that the wire is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// Where they arrived.
    pub iface: String,
    /// Public key of the sender, in hex.
    pub key: String,
    /// How many arrived in the interval, with a signature that holds.
    pub frames: u64,
    /// When the last one arrived.
    #[serde(with = "crate::time::rfc3339")]
    pub last: Nanos,
}

/// A file that grows: what is in it so far will not change any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenTail {
    /// Path within the store.
    pub path: String,
    /// Bytes committed.
    pub bytes: u64,
    /// BLAKE3 of those, in hex.
    pub blake3: String,
}

/// A file whose content will not change any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedFile {
    /// Path within the store.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of its content, in hex; missing where policy spared it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    /// Frames or rows in it.
    pub items: u64,
    /// Earliest frame in it, or earliest `ts` of its rows.
    #[serde(with = "crate::time::rfc3339")]
    pub first_ts: Nanos,
    /// Latest frame, or latest `last_ts`.
    #[serde(with = "crate::time::rfc3339")]
    pub last_ts: Nanos,
}

impl SealedFile {
    /// The two files of a sealed segment: its packets and its index.
    #[must_use]
    pub fn of_segment(segment: &SealedSegment) -> [Self; 2] {
        let name = |extension| {
            let name = crate::layout::segment_name(segment.sequence, extension);
            format!("pcap/w{:02}/{name}", segment.worker)
        };
        let file = |extension, bytes, hash: Option<blake3::Hash>| Self {
            path: name(extension),
            bytes,
            blake3: hash.map(|hash| hash.to_hex().to_string()),
            items: segment.frames,
            first_ts: segment.first_ts,
            last_ts: segment.last_ts,
        };
        [
            file(crate::segment::PCAP, segment.pcap_bytes, segment.pcap_hash),
            file(crate::segment::INDEX, segment.index_bytes, Some(segment.index_hash)),
        ]
    }
}

/// Time in which rows that the log had are not to be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubt {
    /// Every session with a frame before this moment has a row all the same.
    #[serde(with = "crate::time::rfc3339")]
    pub from: Nanos,
    /// End of the last interval that the run wrote a line of.
    #[serde(with = "crate::time::rfc3339")]
    pub to: Nanos,
}

/// Something that happened in the interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum Note {
    /// The run began.
    Start {
        /// The program and its version.
        program: String,
        /// What was recorded and what was left out, in words.
        policy: String,
        /// BLAKE3 of `sensor.json`, in hex: the run is bound to this identity.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        identity: Option<String>,
    },
    /// The run ended in order: everything is sealed. Without this note in a run's last line, it
    /// ended uncleanly.
    CleanStop,
    /// An earlier run ended uncleanly and was recovered.
    Recovered(RecoveryReport),
    /// A file was sealed.
    Sealed(SealedFile),
    /// A file was removed to keep a budget.
    Retired(SealedFile),
    /// A file of the session log was not any more what the sensor had written, before it was
    /// sealed.
    Altered {
        /// The open tail's path within the store.
        path: String,
        /// What is in doubt by that, where a recovery found it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        doubt: Option<Doubt>,
    },
    /// A file of the session log is shorter than it had been, and the machine was restarted: its
    /// end was not on the disk yet.
    LogCut {
        /// The open tail's path within the store.
        path: String,
        /// Bytes that are not there.
        bytes: u64,
        /// What is lost with them.
        doubt: Doubt,
    },
    /// The chain's last line was torn; `prev` hashes what is left of it.
    TornLine {
        /// Bytes of the torn line.
        bytes: u64,
    },
    /// Anything else that an operator should see.
    Said {
        /// The words.
        text: String,
    },
}
