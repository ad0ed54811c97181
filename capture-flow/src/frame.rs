//! A frame as the engine hands it in.

use crate::time::Nanos;

/// How to read a frame's first byte: the LINKTYPE_ values of pcap that `replay` meets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LinkType(pub u16);

impl LinkType {
    /// BSD loopback.
    pub const NULL: Self = Self(0);
    /// Ethernet, the only link type of a live sensor.
    pub const ETHERNET: Self = Self(1);
}

/// Index of a captured interface within one run; the engine knows its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfaceId(pub u16);

/// Where a frame lies in the store: the way back from a session to its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PcapPosition {
    /// Worker whose ring holds the segment (`pcap/wNN`).
    pub worker: u16,
    /// Segment sequence number within that ring.
    pub segment: u64,
    /// Byte offset of the frame's pcap record header in the segment.
    pub offset: u32,
}

/// One received frame.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Arrival time.
    pub ts: Nanos,
    /// Length on the wire in bytes; `bytes` may hold less where a snap length cut it.
    pub wire_len: u32,
    /// The captured bytes.
    pub bytes: &'a [u8],
    /// How to read them.
    pub link: LinkType,
    /// Where the frame arrived.
    pub iface: IfaceId,
    /// Where it was recorded; `None` if it could not be kept.
    pub at: Option<PcapPosition>,
}
