//! A glance at a frame: the few header fields that a session in full swing needs, of the frames
//! that nearly all are. What a glance does not take in, [`super::fast`] reads.

use super::transport::proto;
use crate::frame::{Frame, LinkType};
use crate::packet::TcpFlags;
use crate::tunnel;

use super::fast::{
    ETHER_IPV4, ETHER_IPV6, ETHER_QINQ, ETHER_VLAN, IPV4_FRAGMENT, IPV4_HEADER,
    IPV4_WITHOUT_OPTIONS, IPV6_HEADER,
};

const ETHERNET: usize = 14;
const TAG: usize = 4;
const UDP: usize = 8;
const TCP: usize = 20;

/// TCP or UDP over IPv4 or IPv6, plainly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glance<'a> {
    /// Both addresses as they stand in the header.
    pub(crate) addrs: Addresses<'a>,
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
    /// Outer and inner VLAN id, 0 where there is none.
    pub(crate) vlans: (u16, u16),
    /// Bytes by the IP header.
    pub(crate) total_len: u32,
    /// Bytes above the transport by the headers, captured or not.
    pub(crate) payload_len: u32,
    /// Whether the capture holds all of them.
    pub(crate) whole: bool,
    /// `None` for UDP.
    pub(crate) tcp: Option<TcpGlance>,
}

/// The addresses of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Addresses<'a> {
    /// Source and destination.
    V4(u32, u32),
    /// Source and destination.
    V6(&'a [u8; 16], &'a [u8; 16]),
}

/// What TCP adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcpGlance {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: TcpFlags,
    pub(crate) window: u16,
}

/// Takes a glance at a frame; `None` says that there is more to it, or less.
#[inline(always)]
pub(super) fn glance<'a>(frame: &Frame<'a>) -> Option<Glance<'a>> {
    if frame.link != LinkType::ETHERNET {
        return None;
    }
    let (&[.., t0, t1], mut rest) = frame.bytes.split_first_chunk::<ETHERNET>()?;
    let mut ether_type = u16::from_be_bytes([t0, t1]);
    let mut vlans = (0, 0);
    if matches!(ether_type, ETHER_VLAN | ETHER_QINQ) {
        (vlans.0, ether_type, rest) = tag(rest)?;
        if matches!(ether_type, ETHER_VLAN | ETHER_QINQ) {
            (vlans.1, ether_type, rest) = tag(rest)?;
        }
    }
    let missing = (frame.wire_len as usize).saturating_sub(frame.bytes.len());
    match ether_type {
        ETHER_IPV4 => {
            let header = rest.first_chunk::<IPV4_HEADER>()?;
            let [first, _, l0, l1, _, _, f0, f1, _, protocol, _, _, addrs @ ..] = *header;
            if first != IPV4_WITHOUT_OPTIONS || u16::from_be_bytes([f0, f1]) & IPV4_FRAGMENT != 0 {
                return None;
            }
            let [s0, s1, s2, s3, d0, d1, d2, d3] = addrs;
            let addrs = Addresses::V4(
                u32::from_be_bytes([s0, s1, s2, s3]),
                u32::from_be_bytes([d0, d1, d2, d3]),
            );
            let total_len = usize::from(u16::from_be_bytes([l0, l1]));
            transport(rest, missing, IPV4_HEADER, total_len, protocol, addrs, vlans)
        }
        ETHER_IPV6 => {
            let header = rest.first_chunk::<IPV6_HEADER>()?;
            let (&[first, _, _, _, l0, l1, protocol, _], addrs) =
                header.split_first_chunk::<8>()?;
            if first >> 4 != 6 {
                return None;
            }
            let (src, dst) = addrs.split_first_chunk::<16>()?;
            let addrs = Addresses::V6(src, dst.first_chunk()?);
            let total_len = usize::from(u16::from_be_bytes([l0, l1])) + IPV6_HEADER;
            transport(rest, missing, IPV6_HEADER, total_len, protocol, addrs, vlans)
        }
        _ => None,
    }
}

/// Takes a tag off: its VLAN id, the EtherType behind it, and what follows.
#[inline(always)]
fn tag(bytes: &[u8]) -> Option<(u16, u16, &[u8])> {
    let (&[c0, c1, t0, t1], rest) = bytes.split_first_chunk::<TAG>()?;
    Some((u16::from_be_bytes([c0, c1]) & 0x0fff, u16::from_be_bytes([t0, t1]), rest))
}

/// Goes on behind an IP header of `header` bytes; `missing` bytes of the frame were cut off.
#[inline(always)]
fn transport<'a>(
    packet: &'a [u8],
    missing: usize,
    header: usize,
    total_len: usize,
    protocol: u8,
    addrs: Addresses<'a>,
    vlans: (u16, u16),
) -> Option<Glance<'a>> {
    if total_len > packet.len() + missing {
        return None;
    }
    let body = packet.get(header..total_len.min(packet.len()))?;
    let (&[s0, s1, d0, d1, l0, l1, _, _], payload) = body.split_first_chunk::<UDP>()?;
    let (src_port, dst_port) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
    let (payload_len, captured, tcp) = match protocol {
        proto::UDP => {
            if tunnel::possible_over_udp(src_port, dst_port, payload) {
                return None;
            }
            let len = usize::from(u16::from_be_bytes([l0, l1])).saturating_sub(UDP);
            (len, payload.len(), None)
        }
        proto::TCP => {
            let &[_, _, _, _, q0, q1, q2, q3, a0, a1, a2, a3, offset, flags, w0, w1, ..] =
                body.first_chunk::<TCP>()?;
            let header_len = usize::from(offset >> 4) * 4;
            let captured = body.len().checked_sub(header_len)?;
            if header_len < TCP {
                return None;
            }
            let tcp = TcpGlance {
                seq: u32::from_be_bytes([q0, q1, q2, q3]),
                ack: u32::from_be_bytes([a0, a1, a2, a3]),
                flags: TcpFlags(flags & TcpFlags::ALL),
                window: u16::from_be_bytes([w0, w1]),
            };
            (total_len - header - header_len, captured, Some(tcp))
        }
        _ => return None,
    };
    Some(Glance {
        addrs,
        src_port,
        dst_port,
        vlans,
        total_len: total_len as u32,
        payload_len: payload_len as u32,
        whole: captured >= payload_len,
        tcp,
    })
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::decode::fast;
    use crate::packet::{Net, Packet, Transport};

    /// What a glance must show of a packet.
    fn agrees(glance: &Glance<'_>, packet: &Packet<'_>) -> bool {
        let Net::Ip { ip, transport, payload_len, .. } = packet.net else { return false };
        let (src, dst): (IpAddr, IpAddr) = match glance.addrs {
            Addresses::V4(src, dst) => (Ipv4Addr::from(src).into(), Ipv4Addr::from(dst).into()),
            Addresses::V6(src, dst) => (Ipv6Addr::from(*src).into(), Ipv6Addr::from(*dst).into()),
        };
        let (src_port, dst_port) = (glance.src_port, glance.dst_port);
        let same_transport = match glance.tcp {
            Some(TcpGlance { seq, ack, flags, window }) => {
                transport == Transport::Tcp { src_port, dst_port, seq, ack, flags, window }
            }
            None => transport == Transport::Udp { src_port, dst_port },
        };
        let vlans = (packet.link.vlan.unwrap_or(0), packet.link.inner_vlan.unwrap_or(0));
        let whole = packet.payload.len() as u64 >= u64::from(payload_len);
        same_transport
            && (src, dst) == (ip.src, ip.dst)
            && vlans == glance.vlans
            && glance.total_len == ip.total_len
            && glance.payload_len == payload_len
            && glance.whole == whole
    }

    /// A frame that is plain but for what is changed.
    fn plain(tags: usize, v6: bool, tcp: bool, payload: usize) -> Vec<u8> {
        let mut bytes = vec![2; 12];
        for _ in 0..tags {
            bytes.extend([0x81, 0, 0, 7]);
        }
        let transport = payload + if tcp { 20 } else { 8 };
        let protocol = if tcp { 6 } else { 17 };
        if v6 {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, transport as u8, protocol, 64]);
            bytes.extend([9; 32]);
        } else {
            let len = transport as u8 + 20;
            bytes.extend([8, 0, 0x45, 0, 0, len, 0, 0, 0, 0, 64, protocol, 0, 0]);
            bytes.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        }
        if tcp {
            bytes.extend([0x9c, 0x40, 0, 22, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x18, 1, 1, 0, 0, 0, 0]);
        } else {
            bytes.extend([0x9c, 0x40, 0, 99, 0, payload as u8 + 8, 0, 0]);
        }
        bytes.resize(bytes.len() + payload, b'x');
        bytes
    }

    proptest! {
        /// A glance takes in what the plain path reads of TCP and UDP, to the bit, and nothing
        /// else.
        #[test]
        fn shows_what_the_plain_path_reads(
            tags in 0_usize..3, v6: bool, tcp: bool, payload in 0_usize..60,
            changes in prop::collection::vec((0_usize..80, any::<u8>()), 0..3),
            cut in prop_oneof![3 => Just(usize::MAX), 1 => 0_usize..100], padding in 0_usize..20,
        ) {
            let mut bytes = plain(tags, v6, tcp, payload);
            bytes.resize(bytes.len() + padding, 0);
            for (at, value) in changes {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            let wire_len = bytes.len() as u32;
            bytes.truncate(cut);
            let frame = Frame {
                ts: crate::time::Nanos(0),
                wire_len,
                bytes: &bytes,
                link: LinkType::ETHERNET,
                iface: crate::frame::IfaceId(0),
                at: None,
            };
            match (glance(&frame), fast::decode(&frame, false)) {
                (Some(glance), Some(packet)) => prop_assert!(agrees(&glance, &packet)),
                (None, None) => {}
                (None, Some(packet)) => {
                    let icmp =
                        matches!(packet.net, Net::Ip { transport: Transport::Icmp { .. }, .. });
                    prop_assert!(icmp, "{:?}", packet);
                }
                (Some(glance), None) => prop_assert!(false, "{:?}", glance),
            }
        }
    }

    #[test]
    fn frames_of_no_more_than_headers_are_seen() {
        for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
            let bytes = plain(1, v6, tcp, 0);
            let frame = Frame {
                ts: crate::time::Nanos(0),
                wire_len: bytes.len() as u32,
                bytes: &bytes,
                link: LinkType::ETHERNET,
                iface: crate::frame::IfaceId(0),
                at: None,
            };
            let seen = glance(&frame).expect("plain");
            assert_eq!((seen.payload_len, seen.whole, seen.tcp.is_some()), (0, true, tcp));
        }
    }
}
