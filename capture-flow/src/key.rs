//! What makes two frames one session.

use std::fmt;
use std::net::IpAddr;

/// A link-layer address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The address of one end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// Session over IP.
    Ip(IpAddr),
    /// Session without IP (ARP, LLDP, …).
    Mac(MacAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Mac(mac) => mac.fmt(f),
        }
    }
}

/// What a session speaks above the link or above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// IANA protocol number in an IP header.
    Ip(u8),
    /// EtherType of a frame without IP.
    Ether(u16),
}

impl Protocol {
    /// TCP over IP.
    pub const TCP: Self = Self::Ip(6);
    /// UDP over IP.
    pub const UDP: Self = Self::Ip(17);
    /// ICMP over IPv4.
    pub const ICMP: Self = Self::Ip(1);
    /// ICMPv6.
    pub const ICMP6: Self = Self::Ip(58);
}

/// A session's key: the two ends in a fixed order (the smaller first, so that both directions
/// give the same key), the protocol, and the VLAN tags where the sensor was told that tags
/// separate networks (`--vlan-in-key`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// The smaller (address, port).
    pub low: (Address, u16),
    /// The larger (address, port).
    pub high: (Address, u16),
    /// Protocol between them.
    pub protocol: Protocol,
    /// Outer and inner VLAN id, 0 unless tags are part of the key.
    pub vlans: (u16, u16),
}

impl SessionKey {
    /// The key of a session between two ends, whichever of them spoke first.
    #[must_use]
    pub fn new(
        a: (Address, u16),
        b: (Address, u16),
        protocol: Protocol,
        vlans: (u16, u16),
    ) -> Self {
        let (low, high) = if a <= b { (a, b) } else { (b, a) };
        Self { low, high, protocol, vlans }
    }
}

/// A keyed 64-bit hash of a [`SessionKey`].
///
/// Segment indexes find a session's frames under it, so the function is part of the disk format:
/// it depends only on the key and on the store's secret seed, which keeps an attacker from
/// aiming collisions at the table or at the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowHash(pub u64);
