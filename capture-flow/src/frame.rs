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
    /// PPP, with or without HDLC framing.
    pub const PPP: Self = Self(9);
    /// FDDI.
    pub const FDDI: Self = Self(10);
    /// Raw IP as BSD systems other than OpenBSD number it.
    pub const RAW_BSD: Self = Self(12);
    /// Raw IP as OpenBSD numbers it.
    pub const RAW_OPENBSD: Self = Self(14);
    /// PPP in HDLC-like framing.
    pub const PPP_SERIAL: Self = Self(50);
    /// PPPoE session frames without the Ethernet header.
    pub const PPPOE: Self = Self(51);
    /// ATM with LLC (RFC 1483).
    pub const ATM_RFC1483: Self = Self(100);
    /// Raw IP, version 4 or 6.
    pub const RAW: Self = Self(101);
    /// Cisco HDLC.
    pub const C_HDLC: Self = Self(104);
    /// IEEE 802.11 without a radio header.
    pub const IEEE802_11: Self = Self(105);
    /// OpenBSD loopback: as NULL, but in network byte order.
    pub const LOOP: Self = Self(108);
    /// OpenBSD's view inside IPsec.
    pub const ENC: Self = Self(109);
    /// Linux cooked capture.
    pub const LINUX_SLL: Self = Self(113);
    /// OpenBSD's packet filter log.
    pub const PFLOG: Self = Self(117);
    /// IEEE 802.11 behind a Prism header.
    pub const PRISM: Self = Self(119);
    /// IEEE 802.11 behind a radiotap header.
    pub const IEEE802_11_RADIO: Self = Self(127);
    /// IEEE 802.11 behind an AVS header.
    pub const IEEE802_11_AVS: Self = Self(163);
    /// PPP as pppd writes it: the direction in place of the HDLC address.
    pub const PPP_PPPD: Self = Self(166);
    /// Any link type behind Per-Packet Information.
    pub const PPI: Self = Self(192);
    /// PPP with a direction byte.
    pub const PPP_WITH_DIR: Self = Self(204);
    /// Raw IPv4.
    pub const IPV4: Self = Self(228);
    /// Raw IPv6.
    pub const IPV6: Self = Self(229);
    /// Linux netfilter log.
    pub const NFLOG: Self = Self(239);
    /// Any link type behind the header of Apple's packet tap.
    pub const PKTAP: Self = Self(258);
    /// Linux cooked capture, version 2.
    pub const LINUX_SLL2: Self = Self(276);
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
