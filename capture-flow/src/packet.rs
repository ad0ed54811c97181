//! What decoding hands to the session table: one accountable packet.
//!
//! A frame yields one packet per layer that Zeek gives a session: usually one, two for a tunnel
//! whose outer layer counts. A datagram that arrived in fragments yields one packet when it is
//! complete.

use std::net::IpAddr;

use crate::key::MacAddr;

/// The link layer around a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Sender; `None` where the link has no addresses.
    pub src: Option<MacAddr>,
    /// Receiver.
    pub dst: Option<MacAddr>,
    /// Outer VLAN id.
    pub vlan: Option<u16>,
    /// Inner VLAN id.
    pub inner_vlan: Option<u16>,
    /// EtherType after all tags; 0 where there is none (802.3 with LLC).
    pub ether_type: u16,
}

/// The IP layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub src: IpAddr,
    /// Destination address; for a routing header with segments left, the final one.
    pub dst: IpAddr,
    /// Protocol number of the transport, after any IPv6 extension headers.
    pub protocol: u8,
    /// Total length by the header, after reassembly: what Zeek adds to `*_ip_bytes`.
    pub total_len: u32,
}

/// Outcome of a transport checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// Verified and right, or not to be verified (policy, truncated, fragment, none sent).
    #[default]
    Accepted,
    /// Verified and wrong. Zeek keeps the session but counts nothing; TCP and UDP get the
    /// history letter `C`, ICMP does not.
    Bad,
    /// The transport header contradicts itself (a TCP data offset below 20 bytes or beyond the
    /// segment). Zeek keeps the session but counts nothing and notes nothing in the history.
    Malformed,
}

/// TCP flags in wire order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
    /// The six flags of RFC 793.
    pub const ALL: u8 = 0x3f;

    /// Whether any of the given bits is set.
    #[must_use]
    pub const fn has(self, bits: u8) -> bool {
        self.0 & bits != 0
    }
}

/// The transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
        /// Sequence number.
        seq: u32,
        /// Acknowledgement number.
        ack: u32,
        /// Flags.
        flags: TcpFlags,
        /// Window as sent, unscaled.
        window: u16,
    },
    /// UDP.
    Udp {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
    },
    /// ICMP or ICMPv6 (told apart by [`Ip::protocol`]).
    Icmp {
        /// Type.
        icmp_type: u8,
        /// Code.
        code: u8,
    },
    /// SCTP. The ports are for the Community ID; Zeek keys such sessions without ports.
    Sctp {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
    },
    /// Any other protocol.
    Other,
}

/// The part above the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// An IP packet.
    Ip {
        /// Its IP header.
        ip: Ip,
        /// Its transport header.
        transport: Transport,
        /// Whether the transport checksum allows counting it.
        checksum: Checksum,
        /// Payload bytes above the transport by the headers' lengths, captured or not.
        payload_len: u32,
    },
    /// A frame without IP: the link layer is all there is.
    None,
}

/// One packet to account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Link layer of the frame (the last fragment's, for a reassembled datagram).
    pub link: Link,
    /// IP and above.
    pub net: Net,
    /// Captured payload above the transport header; shorter than `payload_len` where a snap
    /// length cut it.
    pub payload: &'a [u8],
    /// How many of the frame's packets lie around this one (0 = the outermost).
    pub depth: u8,
    /// Whether the frame's wire bytes count to this packet's session: true for exactly one packet
    /// of each frame.
    pub owns_frame: bool,
}
