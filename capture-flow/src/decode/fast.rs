//! The path of nearly every frame: Ethernet with at most two tags, IPv4 without options or
//! fragmentation or IPv6 without extension headers, TCP, UDP or ICMP. One pass, no allocation,
//! no callback.
//!
//! It reads fixed-size arrays, so that each header costs one bounds check; etherparse's slices
//! read the same fields in the full decoder, and a property test holds the two to each other.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::checksum;
use super::transport::{Segment, proto};
use crate::frame::{Frame, LinkType};
use crate::key::MacAddr;
use crate::packet::{Checksum, Ip, Link, Net, Packet, TcpFlags, Transport};
use crate::tunnel;

pub(super) const ETHER_IPV4: u16 = 0x0800;
pub(super) const ETHER_IPV6: u16 = 0x86dd;
/// Customer and service tags.
pub(super) const ETHER_VLAN: u16 = 0x8100;
pub(super) const ETHER_QINQ: u16 = 0x88a8;

/// Version 4, a header of five words.
pub(super) const IPV4_WITHOUT_OPTIONS: u8 = 0x45;
/// More fragments, and the offset.
pub(super) const IPV4_FRAGMENT: u16 = 0x3fff;
pub(super) const IPV4_HEADER: usize = 20;
pub(super) const IPV6_HEADER: usize = 40;

/// Decodes a plain frame; `None` says that the frame needs the full decoder, not that anything
/// is wrong with it.
#[inline]
pub(super) fn decode<'a>(frame: &Frame<'a>, verify: bool) -> Option<Packet<'a>> {
    if frame.link != LinkType::ETHERNET {
        return None;
    }
    let (header, mut rest) = frame.bytes.split_first_chunk::<14>()?;
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *header;
    let mut link = Link {
        src: Some(MacAddr([s0, s1, s2, s3, s4, s5])),
        dst: Some(MacAddr([d0, d1, d2, d3, d4, d5])),
        vlan: None,
        inner_vlan: None,
        ether_type: u16::from_be_bytes([t0, t1]),
    };
    if matches!(link.ether_type, ETHER_VLAN | ETHER_QINQ) {
        link.vlan = Some(tag(&mut rest, &mut link.ether_type)?);
        if matches!(link.ether_type, ETHER_VLAN | ETHER_QINQ) {
            link.inner_vlan = Some(tag(&mut rest, &mut link.ether_type)?);
        }
    }

    let (ip, header_len) = match link.ether_type {
        ETHER_IPV4 => (ipv4(rest)?, IPV4_HEADER),
        ETHER_IPV6 => (ipv6(rest)?, IPV6_HEADER),
        _ => return None,
    };
    // What a snap length cut off lies behind what was captured.
    let missing = (frame.wire_len as usize).saturating_sub(frame.bytes.len());
    let total_len = ip.total_len as usize;
    if total_len <= header_len || total_len > rest.len().saturating_add(missing) {
        return None;
    }
    let captured = rest.get(header_len..)?;
    let len = total_len - header_len;
    let body = captured.get(..len).unwrap_or(captured);
    let (transport, payload, payload_len) = match ip.protocol {
        proto::TCP => tcp(body, len)?,
        proto::UDP => udp(body)?,
        _ => icmp(body, len)?,
    };
    let checksum =
        if verify { verified(&ip, rest, header_len, missing > 0)? } else { Checksum::Accepted };
    let net = Net::Ip { ip, transport, checksum, payload_len };
    Some(Packet { link, net, payload, depth: 0, owns_frame: true })
}

/// Verifies the IPv4 header and the transport; `None` leaves a wrong header to the full decoder.
#[inline(never)]
fn verified(ip: &Ip, packet: &[u8], header_len: usize, cut: bool) -> Option<Checksum> {
    let (header, captured) = packet.split_at_checked(header_len)?;
    if ip.src.is_ipv4() && !checksum::is_right(header) {
        return None;
    }
    let segment = Segment {
        src: ip.src,
        dst: ip.dst,
        protocol: ip.protocol,
        captured,
        len: (ip.total_len as usize).checked_sub(header_len)?,
        verify: true,
        cut,
    };
    Some(segment.read().ok()?.checksum)
}

/// Takes a tag off: its VLAN id, and the EtherType behind it.
#[inline(always)]
fn tag(rest: &mut &[u8], ether_type: &mut u16) -> Option<u16> {
    let (&[c0, c1, t0, t1], behind) = rest.split_first_chunk::<4>()?;
    *rest = behind;
    *ether_type = u16::from_be_bytes([t0, t1]);
    Some(u16::from_be_bytes([c0, c1]) & 0x0fff)
}

#[inline(always)]
fn ipv4(bytes: &[u8]) -> Option<Ip> {
    let header = bytes.first_chunk::<IPV4_HEADER>()?;
    let [first, _, l0, l1, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        *header;
    if first != IPV4_WITHOUT_OPTIONS
        || u16::from_be_bytes([f0, f1]) & IPV4_FRAGMENT != 0
        || !matches!(protocol, proto::TCP | proto::UDP | proto::ICMP)
    {
        return None;
    }
    Some(Ip {
        src: Ipv4Addr::new(s0, s1, s2, s3).into(),
        dst: Ipv4Addr::new(d0, d1, d2, d3).into(),
        protocol,
        total_len: u32::from(u16::from_be_bytes([l0, l1])),
    })
}

#[inline(always)]
fn ipv6(bytes: &[u8]) -> Option<Ip> {
    let header = bytes.first_chunk::<IPV6_HEADER>()?;
    let (&[first, _, _, _, l0, l1, protocol, _], addresses) = header.split_first_chunk::<8>()?;
    if first >> 4 != 6 || !matches!(protocol, proto::TCP | proto::UDP | proto::ICMP6) {
        return None;
    }
    let (src, dst) = addresses.split_first_chunk::<16>()?;
    Some(Ip {
        src: Ipv6Addr::from(*src).into(),
        dst: Ipv6Addr::from(*dst.first_chunk::<16>()?).into(),
        protocol,
        total_len: u32::from(u16::from_be_bytes([l0, l1])) + IPV6_HEADER as u32,
    })
}

#[inline(always)]
fn tcp(body: &[u8], len: usize) -> Option<(Transport, &[u8], u32)> {
    let header = body.first_chunk::<20>()?;
    let [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, offset, flags, w0, w1, ..] = *header;
    let header_len = usize::from(offset >> 4) * 4;
    if header_len < 20 {
        return None;
    }
    let payload = body.get(header_len..)?;
    let transport = Transport::Tcp {
        src_port: u16::from_be_bytes([s0, s1]),
        dst_port: u16::from_be_bytes([d0, d1]),
        seq: u32::from_be_bytes([q0, q1, q2, q3]),
        ack: u32::from_be_bytes([a0, a1, a2, a3]),
        flags: TcpFlags(flags & TcpFlags::ALL),
        window: u16::from_be_bytes([w0, w1]),
    };
    Some((transport, payload, (len - header_len) as u32))
}

#[inline(always)]
fn udp(body: &[u8]) -> Option<(Transport, &[u8], u32)> {
    let (&[s0, s1, d0, d1, l0, l1, _, _], payload) = body.split_first_chunk::<8>()?;
    let src_port = u16::from_be_bytes([s0, s1]);
    let dst_port = u16::from_be_bytes([d0, d1]);
    if tunnel::possible_over_udp(src_port, dst_port, payload) {
        return None;
    }
    let payload_len = u32::from(u16::from_be_bytes([l0, l1])).saturating_sub(8);
    Some((Transport::Udp { src_port, dst_port }, payload, payload_len))
}

#[inline(always)]
fn icmp(body: &[u8], len: usize) -> Option<(Transport, &[u8], u32)> {
    let (&[icmp_type, code, ..], payload) = body.split_first_chunk::<8>()?;
    Some((Transport::Icmp { icmp_type, code }, payload, (len - 8) as u32))
}
