//! What the table keeps of a session: the part every frame touches, and the rest.

use crate::datagram::Datagram;
use crate::frame::{IfaceId, PcapPosition};
use crate::key::{FlowHash, MacAddr, PackedKey};
use crate::record::{History, ServiceDetail, Uid};
use crate::service::Detector;
use crate::sink::{LetterTimes, Mark};
use crate::tcp::Tcp;
use crate::time::Nanos;
use crate::timer::Class;

/// No slot.
pub(super) const NONE: u32 = u32::MAX;

/// Neighbours in a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Links {
    pub(super) prev: u32,
    pub(super) next: u32,
}

impl Default for Links {
    fn default() -> Self {
        Self { prev: NONE, next: NONE }
    }
}

/// How a session is accounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    Tcp,
    Udp,
    Icmp,
    /// Another protocol over IP, or a datagram that never became complete.
    #[default]
    Other,
    /// A frame without IP.
    Link,
}

/// What a session's kind keeps.
#[derive(Debug)]
pub(super) enum Transport {
    Tcp(Tcp),
    Datagram(Datagram),
}

impl Default for Transport {
    fn default() -> Self {
        Self::Datagram(Datagram::default())
    }
}

/// The part that every frame of a session reads and writes: two cache lines, and a third for
/// where the frame lies; TCP and the counters of its ends follow.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Hot {
    // First line: what a lookup reads.
    pub(super) key: PackedKey,
    pub(super) hash: FlowHash,
    /// Neighbours under the same limit.
    pub(super) limit: Links,
    // Second line: what every frame counts.
    pub(super) last_ts: Nanos,
    /// Zeek's last_time: without frames that failed their checksum or came after the close.
    pub(super) last_time: Nanos,
    pub(super) pkts: [u64; 2],
    pub(super) ip_bytes: [u64; 2],
    pub(super) mark: Mark,
    /// When the session last moved within its list, in units of 2^30 ns.
    pub(super) moved: u32,
    /// History letters noted, see [`crate::tcp::Notes`].
    pub(super) seen: u32,
    // Third line.
    pub(super) pcap_last: Option<PcapPosition>,
    pub(super) frames: u64,
    pub(super) frame_bytes: u64,
    pub(super) kind: Kind,
    pub(super) class: Class,
    /// Whether the originator is the key's low end.
    pub(super) orig_is_low: bool,
    /// Whether frames came since the last row.
    pub(super) news: bool,
    /// Whether payload of originator and responder is still shown to the service detector.
    pub(super) detecting: [bool; 2],
    pub(super) tunnel_refused: bool,
    /// Whether the class has the long idle limit of interactive sessions.
    pub(super) interactive: bool,
    /// Whether the originator was guessed.
    pub(super) direction_guessed: bool,
    // Further lines.
    pub(super) transport: Transport,
    /// When the class has a deadline: that.
    pub(super) deadline: Nanos,
    /// Up to when every frame of the session is in a row.
    pub(super) row_time: Nanos,
    /// Neighbours in the order of `row_time`.
    pub(super) interim: Links,
}

/// The part that only the first frame and a row touch.
#[derive(Debug, Default)]
pub(super) struct Cold {
    /// Zeek's start: the frame that completed the first packet.
    pub(super) start: Nanos,
    /// The first frame, which may be an earlier fragment.
    pub(super) first_ts: Nanos,
    pub(super) serial: u64,
    pub(super) update: u32,
    pub(super) iface: IfaceId,
    pub(super) vlan: Option<u16>,
    pub(super) inner_vlan: Option<u16>,
    /// Whether fragments of one of its datagrams contradicted each other.
    pub(super) fragment_overlap: bool,
    /// Link-layer addresses of originator and responder.
    pub(super) l2: [Option<MacAddr>; 2],
    pub(super) pcap_first: Option<PcapPosition>,
    pub(super) history: History,
    pub(super) letter_times: LetterTimes,
    pub(super) parents: Option<Box<[Uid]>>,
    pub(super) detector: Detector,
    pub(super) detail: Option<Box<ServiceDetail>>,
}
