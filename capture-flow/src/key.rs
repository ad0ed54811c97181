//! What makes two frames one session.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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

impl Address {
    /// Whether it is a group's.
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        match self {
            Self::Ip(ip) => ip.is_multicast(),
            Self::Mac(mac) => mac.0[0] & 1 != 0,
        }
    }
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

    /// Whether Zeek's conn.log has sessions of this protocol between ends of this kind. It has none
    /// without IP, of carriers that it only looks into (IP-in-IP, GRE), and of headers with nothing
    /// behind them. Encrypted payload (ESP) and Mobile IPv6 signalling it has over IPv4 only: over
    /// IPv6 they are extension headers, behind which it does not go (IPAnalyzer::AnalyzePacket in
    /// src/packet_analysis/protocol/ip). Here such sessions exist where their frames would otherwise
    /// count to nothing.
    #[must_use]
    pub const fn is_in_zeeks_log(self, end: Address) -> bool {
        match self {
            Self::Ether(_) | Self::Ip(4 | 41 | 47 | 59) => false,
            Self::Ip(50 | 135) => matches!(end, Address::Ip(IpAddr::V4(_))),
            Self::Ip(_) => true,
        }
    }
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

/// The ICMP type that answers `icmp_type`, for the types that have one; Zeek puts it in the
/// responder's port and takes both for one session (src/packet_analysis/protocol/icmp).
#[must_use]
pub const fn icmp_counterpart(protocol: Protocol, icmp_type: u8) -> Option<u8> {
    match protocol {
        Protocol::ICMP => Some(match icmp_type {
            // Echo, timestamp, information, address mask, router advertisement.
            8 => 0,
            0 => 8,
            13 => 14,
            14 => 13,
            15 => 16,
            16 => 15,
            17 => 18,
            18 => 17,
            9 => 10,
            10 => 9,
            _ => return None,
        }),
        Protocol::ICMP6 => Some(match icmp_type {
            // Echo, multicast listener, router, neighbour, node information, home agent.
            128 => 129,
            129 => 128,
            130 => 131,
            131 => 130,
            133 => 134,
            134 => 133,
            135 => 136,
            136 => 135,
            139 => 140,
            140 => 139,
            144 => 145,
            145 => 144,
            _ => return None,
        }),
        _ => None,
    }
}

/// Marks a responder's port in a key as an ICMP code: types and codes are bytes, so a session
/// whose port is a code never meets one whose port is the answering type.
pub(crate) const ICMP_CODE_MARK: u16 = 0x100;

impl SessionKey {
    /// The key of a session as a row shows it: originator, responder, protocol.
    #[must_use]
    pub fn of_ends(
        orig: (Address, u16),
        resp: (Address, u16),
        protocol: Protocol,
        vlans: (u16, u16),
    ) -> Self {
        let one_way = matches!(protocol, Protocol::ICMP | Protocol::ICMP6)
            && icmp_counterpart(protocol, orig.1.min(255) as u8).is_none();
        let resp = if one_way { (resp.0, resp.1 | ICMP_CODE_MARK) } else { resp };
        Self::new(orig, resp, protocol, vlans)
    }
}

/// A keyed 64-bit hash of a [`SessionKey`].
///
/// Segment indexes find a session's frames under it, so the function is part of the disk format:
/// it depends only on the key and on the store's secret seed, which keeps an attacker from
/// aiming collisions at the table or at the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowHash(pub u64);

impl FlowHash {
    /// Under which indexes know the frames that could not be read, or not to their end: those
    /// that count to no session, and those that carry a tunnel whose inside could not be read.
    ///
    /// A session whose own hash is this number (one in 2⁶⁴) has its frames looked at in vain.
    pub const UNREAD: Self = Self(0);
}

/// Computes [`FlowHash`]es under one seed.
///
/// The key is laid out as 64-bit words; pairs of words, each mixed with a word of key material,
/// are multiplied to 128 bits and folded by exclusive or. The material comes from the seed by
/// the SplitMix64 sequence. Two multiplications for IPv4, four for IPv6.
#[derive(Clone, Copy, Debug)]
pub struct FlowHasher {
    material: [u64; 6],
}

/// High and low half of the 128-bit product, folded into one word.
#[inline]
const fn fold(a: u64, b: u64) -> u64 {
    let product = (a as u128) * (b as u128);
    (product as u64) ^ ((product >> 64) as u64)
}

impl FlowHasher {
    /// A hasher for the store with this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        let mut material = [0; 6];
        let mut state = seed;
        let mut i = 0;
        while i < material.len() {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = state;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            material[i] = word ^ (word >> 31);
            i += 1;
        }
        Self { material }
    }

    /// The hash of a key.
    #[inline]
    #[must_use]
    pub fn hash(&self, key: &SessionKey) -> FlowHash {
        self.hash_packed(&PackedKey::from(key))
    }

    #[inline]
    pub(crate) fn hash_packed(&self, key: &PackedKey) -> FlowHash {
        let [m0, m1, m2, m3, m4, m5] = self.material;
        let [a, b, c, d] = key.addrs;
        let ends = if key.is_short() { a } else { fold(a ^ m2, b ^ m3) ^ fold(c ^ m4, d ^ m5) };
        let mixed = fold(ends ^ m0, key.ports ^ m1);
        FlowHash(fold(mixed ^ m1, key.vlans ^ m0))
    }
}

/// The hash of one key; [`FlowHasher`] for many.
#[must_use]
pub fn flow_hash(key: &SessionKey, seed: u64) -> FlowHash {
    FlowHasher::new(seed).hash(key)
}

/// What kind of addresses a packed key holds.
const FAMILY_V4: u64 = 4;
const FAMILY_V6: u64 = 6;
const FAMILY_MAC: u64 = 1;
/// Ends of different kinds: no frame makes such a key, but the type allows it.
const FAMILY_MIXED: u64 = 15;

/// A session's key in two words. It is the whole key of a session over IPv4; of any other key it
/// holds the hash and the ports, and the [`PackedKey`] has to be compared as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BriefKey {
    addrs: u64,
    ports: u64,
}

/// Bit of [`BriefKey::ports`] that tells that it is not the whole key. No family has it.
const NOT_WHOLE: u64 = 0x80;

impl BriefKey {
    /// Nobody's.
    pub(crate) const NONE: Self = Self { addrs: 0, ports: 0 };

    /// Whether there is more to compare.
    #[inline]
    pub(crate) const fn is_whole(self) -> bool {
        self.ports & NOT_WHOLE == 0
    }

    /// Bytes of an IP header and of the eight that UDP and ICMP have.
    #[inline]
    pub(crate) const fn header_bytes(self) -> i64 {
        if self.ports & !NOT_WHOLE & 0xff == FAMILY_V4 { 28 } else { 48 }
    }

    /// The key, if this is all of it.
    #[inline]
    pub(crate) const fn whole(self) -> Option<PackedKey> {
        if !self.is_whole() {
            return None;
        }
        Some(PackedKey { addrs: [self.addrs, 0, 0, 0], ports: self.ports, vlans: 0 })
    }
}

/// A [`SessionKey`] as plain words, for comparing and hashing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PackedKey {
    /// IPv4: both addresses in the first word. Otherwise low end in two words, high end in two.
    addrs: [u64; 4],
    /// Low port, high port, protocol (bit 16 set for an EtherType), family.
    ports: u64,
    vlans: u64,
}

impl PackedKey {
    #[inline]
    const fn is_short(&self) -> bool {
        self.ports & 0xff == FAMILY_V4
    }

    /// The key in brief; `hash` is this key's.
    #[inline]
    pub(crate) const fn brief(&self, hash: FlowHash) -> BriefKey {
        if self.is_short() && self.vlans == 0 {
            BriefKey { addrs: self.addrs[0], ports: self.ports }
        } else {
            BriefKey { addrs: hash.0, ports: self.ports | NOT_WHOLE }
        }
    }

    /// The key of two ends in any order, and whether the first of them is its low end.
    #[inline]
    pub(crate) fn of(
        a: (IpAddr, u16),
        b: (IpAddr, u16),
        ip_proto: u8,
        vlans: (u16, u16),
    ) -> (Self, bool) {
        match (a.0, b.0) {
            (IpAddr::V4(x), IpAddr::V4(y)) => {
                Self::of_v4((u32::from(x), a.1), (u32::from(y), b.1), ip_proto, vlans)
            }
            _ => {
                let (a, b) = ((Address::Ip(a.0), a.1), (Address::Ip(b.0), b.1));
                let key = SessionKey::new(a, b, Protocol::Ip(ip_proto), vlans);
                (Self::from(&key), a <= b)
            }
        }
    }

    /// The same over IPv4.
    #[inline]
    pub(crate) fn of_v4(
        a: (u32, u16),
        b: (u32, u16),
        ip_proto: u8,
        vlans: (u16, u16),
    ) -> (Self, bool) {
        // Address and port as one number: one comparison.
        let (x, y) = (u64::from(a.0) << 16 | u64::from(a.1), u64::from(b.0) << 16 | u64::from(b.1));
        let (low, high) = (x.min(y), x.max(y));
        let key = Self {
            addrs: [(low >> 16) << 32 | high >> 16, 0, 0, 0],
            ports: ports(low as u16, high as u16, u32::from(ip_proto), FAMILY_V4),
            vlans: pack_vlans(vlans),
        };
        (key, x <= y)
    }

    /// The same over IPv6.
    #[inline]
    pub(crate) fn of_v6(
        a: (u128, u16),
        b: (u128, u16),
        ip_proto: u8,
        vlans: (u16, u16),
    ) -> (Self, bool) {
        let a_is_low = a <= b;
        let (low, high) = if a_is_low { (a, b) } else { (b, a) };
        let key = Self {
            addrs: [(low.0 >> 64) as u64, low.0 as u64, (high.0 >> 64) as u64, high.0 as u64],
            ports: ports(low.1, high.1, u32::from(ip_proto), FAMILY_V6),
            vlans: pack_vlans(vlans),
        };
        (key, a_is_low)
    }

    /// The low and the high end.
    pub(crate) fn ends(&self) -> [(Address, u16); 2] {
        let [a, b, c, d] = self.addrs;
        let ports = [(self.ports >> 48) as u16, (self.ports >> 32) as u16];
        let v4 = |bits: u64| Address::Ip(IpAddr::V4(Ipv4Addr::from(bits as u32)));
        let v6 = |high: u64, low: u64| {
            let bits = u128::from(high) << 64 | u128::from(low);
            Address::Ip(IpAddr::V6(Ipv6Addr::from(bits)))
        };
        let mac = |bits: u64| {
            let [_, _, mac @ ..] = bits.to_be_bytes();
            Address::Mac(MacAddr(mac))
        };
        let addrs = match self.ports & 0xff {
            FAMILY_V4 => [v4(a >> 32), v4(a)],
            FAMILY_V6 => [v6(a, b), v6(c, d)],
            _ => [mac(b), mac(d)],
        };
        [(addrs[0], ports[0]), (addrs[1], ports[1])]
    }

    pub(crate) fn protocol(&self) -> Protocol {
        let number = (self.ports >> 8) as u32 & 0x1_ffff;
        if number & 0x1_0000 == 0 {
            Protocol::Ip(number as u8)
        } else {
            Protocol::Ether(number as u16)
        }
    }
}

#[inline]
const fn ports(low: u16, high: u16, protocol: u32, family: u64) -> u64 {
    (low as u64) << 48 | (high as u64) << 32 | (protocol as u64) << 8 | family
}

#[inline]
const fn pack_vlans(vlans: (u16, u16)) -> u64 {
    (vlans.0 as u64) << 16 | vlans.1 as u64
}

fn words(address: Address) -> (u64, [u64; 2]) {
    match address {
        Address::Ip(IpAddr::V4(v4)) => (FAMILY_V4, [0, u64::from(u32::from(v4))]),
        Address::Ip(IpAddr::V6(v6)) => {
            let bits = u128::from(v6);
            (FAMILY_V6, [(bits >> 64) as u64, bits as u64])
        }
        Address::Mac(MacAddr([a, b, c, d, e, f])) => {
            (FAMILY_MAC, [0, u64::from_be_bytes([0, 0, a, b, c, d, e, f])])
        }
    }
}

impl From<&SessionKey> for PackedKey {
    #[inline]
    fn from(key: &SessionKey) -> Self {
        let protocol = match key.protocol {
            Protocol::Ip(number) => u32::from(number),
            Protocol::Ether(ether_type) => 0x1_0000 | u32::from(ether_type),
        };
        let (low_family, [a, b]) = words(key.low.0);
        let (high_family, [c, d]) = words(key.high.0);
        let family = if low_family == high_family { low_family } else { FAMILY_MIXED };
        let addrs = if family == FAMILY_V4 { [b << 32 | d, 0, 0, 0] } else { [a, b, c, d] };
        Self {
            addrs,
            ports: ports(key.low.1, key.high.1, protocol, family),
            vlans: pack_vlans(key.vlans),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(addr: &str, port: u16) -> (Address, u16) {
        (Address::Ip(addr.parse().unwrap()), port)
    }

    /// Stores written under one version of this function are read under the next: these values
    /// never change.
    #[test]
    fn hashes_are_part_of_the_disk_format() {
        let mac = |last| (Address::Mac(MacAddr([2, 0, 0, 0, 0, last])), 0);
        let keys = [
            SessionKey::new(end("10.0.0.1", 40000), end("10.0.0.2", 22), Protocol::TCP, (0, 0)),
            SessionKey::new(end("10.0.0.1", 40000), end("10.0.0.2", 22), Protocol::TCP, (7, 9)),
            SessionKey::new(end("2001:db8::1", 53), end("fe80::2", 5353), Protocol::UDP, (0, 0)),
            SessionKey::of_ends(end("10.0.0.1", 3), end("10.0.0.2", 1), Protocol::ICMP, (0, 0)),
            SessionKey::new(mac(1), mac(2), Protocol::Ether(0x0806), (0, 0)),
        ];
        let hashes = keys.map(|key| flow_hash(&key, 0x0123_4567_89ab_cdef).0);
        assert_eq!(
            hashes,
            [
                0xa246_2a0f_485b_9eb3,
                0x4100_6f4e_23e3_61c8,
                0x8cb2_c808_8aea_542c,
                0xa416_87ac_eeb3_f627,
                0xe8e7_56d3_daad_80e5,
            ]
        );
    }

    #[test]
    fn both_directions_have_one_key() {
        let (a, b) = (end("10.0.0.1", 40000), end("10.0.0.2", 22));
        assert_eq!(
            SessionKey::new(a, b, Protocol::TCP, (0, 0)),
            SessionKey::new(b, a, Protocol::TCP, (0, 0))
        );
        let ips = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let packed = PackedKey::from(&SessionKey::new(a, b, Protocol::TCP, (1, 2)));
        assert_eq!((packed, true), PackedKey::of((ips.0, 40000), (ips.1, 22), 6, (1, 2)));
        for (low, high) in [("fe80::1", "fe80::2"), ("fe80::", "fe80::"), ("::9", "9::")] {
            let (a, b): (Ipv6Addr, Ipv6Addr) = (low.parse().unwrap(), high.parse().unwrap());
            let bits = |ip: Ipv6Addr, port| (u128::from(ip), port);
            for (x, y) in [((a, 7), (b, 8)), ((b, 8), (a, 7)), ((a, 9), (b, 8))] {
                assert_eq!(
                    PackedKey::of((x.0.into(), x.1), (y.0.into(), y.1), 17, (3, 4)),
                    PackedKey::of_v6(bits(x.0, x.1), bits(y.0, y.1), 17, (3, 4))
                );
            }
        }
        assert_eq!((packed, false), PackedKey::of((ips.1, 22), (ips.0, 40000), 6, (1, 2)));
        assert_eq!(packed.ends(), [a, b]);
        assert_eq!(packed.protocol(), Protocol::TCP);
    }

    #[test]
    fn a_brief_key_tells_whether_it_is_whole() {
        let whole = SessionKey::new(end("1.2.3.4", 5), end("6.7.8.9", 10), Protocol::TCP, (0, 0));
        let key = PackedKey::from(&whole);
        assert_eq!(key.brief(FlowHash(7)).whole(), Some(key));
        for more in [
            SessionKey { vlans: (0, 9), ..whole },
            SessionKey::new(end("fe80::1", 5), end("fe80::2", 10), Protocol::TCP, (0, 0)),
        ] {
            let key = PackedKey::from(&more);
            assert_eq!(key.brief(FlowHash(7)).whole(), None);
            assert_ne!(key.brief(FlowHash(7)), key.brief(FlowHash(8)));
        }
        // What an empty slot holds is nobody's key.
        assert_ne!(BriefKey::default(), key.brief(FlowHash(0)));
    }

    #[test]
    fn a_code_is_not_a_counterpart() {
        // Destination unreachable (1) with code 3 one way, time exceeded (3) with code 1 the
        // other way: two sessions.
        let (a, b) = ("fe80::1", "fe80::2");
        assert_ne!(
            SessionKey::of_ends(end(a, 1), end(b, 3), Protocol::ICMP6, (0, 0)),
            SessionKey::of_ends(end(b, 3), end(a, 1), Protocol::ICMP6, (0, 0))
        );
        // Echo and its reply: one.
        assert_eq!(
            SessionKey::of_ends(end(a, 128), end(b, 129), Protocol::ICMP6, (0, 0)),
            SessionKey::of_ends(end(b, 129), end(a, 128), Protocol::ICMP6, (0, 0))
        );
    }
}
