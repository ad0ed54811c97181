//! What the table keeps of a session, by how often it is needed: a line that every frame touches,
//! one beside it for TCP and for the session's place among the others, and the rest.

use crate::frame::{IfaceId, PcapPosition};
use crate::key::{BriefKey, MacAddr, PackedKey};
use crate::record::{History, ServiceDetail, Uid};
use crate::service::Detector;
use crate::sink::{LetterTimes, Mark};
use crate::tcp::{Cruise, Rare, Tcp};
use crate::time::Nanos;
use crate::timer::{Class, Looks};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Tcp,
    Udp,
    Icmp,
    /// Another protocol over IP, or a datagram that never became complete.
    Other,
    /// A frame without IP.
    Link,
}

impl Kind {
    /// A session's kind shows in its class.
    #[inline]
    pub(super) const fn of(class: Class) -> Self {
        match class {
            Class::TcpAttempt
            | Class::TcpClosing
            | Class::TcpPartlyClosed
            | Class::TcpLingering
            | Class::TcpHandshake
            | Class::Tcp
            | Class::TcpInteractive => Self::Tcp,
            Class::Udp | Class::Dns => Self::Udp,
            Class::Icmp => Self::Icmp,
            Class::Other => Self::Other,
            Class::Link => Self::Link,
        }
    }
}

/// What is true of a session or not, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flags(u8);

impl Flags {
    /// The originator is the key's low end.
    pub(super) const ORIG_IS_LOW: u8 = 0x01;
    /// Frames came since the last row.
    pub(super) const NEWS: u8 = 0x02;
    /// Payload of the originator, of the responder is still shown to the service detector.
    pub(super) const DETECTING: [u8; 2] = [0x04, 0x08];
    /// The last frame was recorded.
    pub(super) const RECORDED: u8 = 0x10;
    /// A message of the originator, of the responder can still turn the session round (NTP, DNS).
    pub(super) const TURNS: [u8; 2] = [0x40, 0x80];
    /// The last frame's time is not [`Hot::last_time`] but [`Cold::last_ts`].
    pub(super) const LAST_TS_APART: u8 = 0x20;

    #[inline]
    pub(super) const fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    #[inline]
    pub(super) const fn set(&mut self, bit: u8, value: bool) {
        if value {
            self.0 |= bit;
        } else {
            self.0 &= !bit;
        }
    }
}

/// The part that every frame of a session reads and writes, and all that a datagram needs: one
/// cache line. Counters are the lower halves of 64-bit ones; what they carry is in
/// [`Cold::carry`].
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Hot {
    pub(super) key: BriefKey,
    pub(super) mark: Mark,
    /// Zeek's last_time: without frames that failed their checksum or came after the close.
    pub(super) last_time: Nanos,
    pub(super) pkts: [u32; 2],
    pub(super) ip_bytes: [u32; 2],
    pub(super) frame_bytes: u32,
    /// Where the last frame lies: offset, and the lower half of the segment's number.
    pub(super) pcap_offset: u32,
    pub(super) pcap_segment: u32,
    /// When the session last moved within its list, in units of 2^30 ns.
    pub(super) moved: u16,
    pub(super) class: Class,
    pub(super) flags: Flags,
}

const _: () = assert!(size_of::<Hot>() == 64);

/// What puts a session in its place among the others: touched when it begins, ends, moves, and
/// by frames of classes with a deadline.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(32))]
pub(super) struct Place {
    /// Neighbours under the same limit.
    pub(super) limit: Links,
    /// Neighbours in the order of `row_time`.
    pub(super) interim: Links,
    /// Up to when every frame of the session is in a row.
    pub(super) row_time: Nanos,
    /// When the class has a deadline: that.
    pub(super) deadline: Nanos,
}

/// What lies side by side, since it is needed together: a line for every frame, and one that TCP
/// needs besides. A pair of lines shares the way through the page tables, which is a good part of
/// what reaching them costs.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub(super) struct Near {
    pub(super) hot: Hot,
    pub(super) place: Place,
    pub(super) cruise: Cruise,
}

const _: () = assert!(size_of::<Near>() == 128);

/// Upper halves of counters.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Carry {
    pub(super) pkts: [u32; 2],
    pub(super) ip_bytes: [u32; 2],
    pub(super) frame_bytes: u32,
}

/// The part that only the first frames, rare ones and a row touch.
#[derive(Debug, Default)]
pub(super) struct Cold {
    /// The key, where [`Hot::key`] is not all of it.
    pub(super) key: PackedKey,
    /// Zeek's start: the frame that completed the first packet.
    pub(super) start: Nanos,
    /// The first frame, which may be an earlier fragment.
    pub(super) first_ts: Nanos,
    /// The last frame, where [`Flags::LAST_TS_APART`] says so.
    pub(super) last_ts: Nanos,
    /// When to look whether it lingers, should one side close.
    pub(super) looks: Looks,
    pub(super) serial: u64,
    pub(super) update: u32,
    pub(super) iface: IfaceId,
    pub(super) vlan: Option<u16>,
    pub(super) inner_vlan: Option<u16>,
    /// Whether fragments of one of its datagrams contradicted each other.
    pub(super) fragment_overlap: bool,
    pub(super) tunnel_refused: bool,
    /// Whether the originator was guessed.
    pub(super) direction_guessed: bool,
    /// Link-layer addresses of originator and responder.
    pub(super) l2: [Option<MacAddr>; 2],
    pub(super) carry: Carry,
    /// Frames beyond those that are packets: fragments, frames that failed their checksum.
    pub(super) frames_apart: i64,
    /// Payload bytes of datagrams beyond what their IP lengths give.
    pub(super) payload_apart: [i64; 2],
    pub(super) rare: [Rare; 2],
    pub(super) pcap_first: Option<PcapPosition>,
    pub(super) history: History,
    pub(super) letter_times: LetterTimes,
    pub(super) parents: Option<Box<[Uid]>>,
    pub(super) detector: Detector,
    pub(super) detail: Option<Box<ServiceDetail>>,
}

/// Bytes of a session over all its parts.
pub(super) const BYTES: usize = size_of::<Near>() + size_of::<Tcp>() + size_of::<Cold>();
