//! The path of nearly every frame: Ethernet with at most two tags, IPv4 without fragmentation or
//! IPv6 without extension headers, TCP, UDP or ICMP. One pass, no allocation, no callback.

use etherparse::{Ethernet2HeaderSlice, Ipv4HeaderSlice, Ipv6HeaderSlice, SingleVlanHeaderSlice};

use super::checksum;
use super::transport::{Segment, proto};
use crate::frame::{Frame, LinkType};
use crate::key::MacAddr;
use crate::packet::{Ip, Link, Net, Packet, Transport};
use crate::tunnel;

const ETHERNET_HEADER: usize = 14;
const VLAN_HEADER: usize = 4;
const IPV6_HEADER: usize = 40;

const ETHER_IPV4: u16 = 0x0800;
const ETHER_IPV6: u16 = 0x86dd;
/// Customer and service tags.
const ETHER_VLAN: u16 = 0x8100;
const ETHER_QINQ: u16 = 0x88a8;

/// Decodes a plain frame; `None` says that the frame needs the full decoder, not that anything
/// is wrong with it.
#[inline]
pub(super) fn decode<'a>(frame: &Frame<'a>, verify: bool) -> Option<Packet<'a>> {
    if frame.link != LinkType::ETHERNET {
        return None;
    }
    let ethernet = Ethernet2HeaderSlice::from_slice(frame.bytes).ok()?;
    let mut link = Link {
        src: Some(MacAddr(ethernet.source())),
        dst: Some(MacAddr(ethernet.destination())),
        vlan: None,
        inner_vlan: None,
        ether_type: ethernet.ether_type().0,
    };
    let mut rest = frame.bytes.get(ETHERNET_HEADER..)?;
    if matches!(link.ether_type, ETHER_VLAN | ETHER_QINQ) {
        let tag = SingleVlanHeaderSlice::from_slice(rest).ok()?;
        link.vlan = Some(tag.vlan_identifier().value());
        link.ether_type = tag.ether_type().0;
        rest = rest.get(VLAN_HEADER..)?;
        if matches!(link.ether_type, ETHER_VLAN | ETHER_QINQ) {
            let tag = SingleVlanHeaderSlice::from_slice(rest).ok()?;
            link.inner_vlan = Some(tag.vlan_identifier().value());
            link.ether_type = tag.ether_type().0;
            rest = rest.get(VLAN_HEADER..)?;
        }
    }

    // Bytes of `rest` on the wire: what a snap length cut off lies behind what was captured.
    let missing = (frame.wire_len as usize).saturating_sub(frame.bytes.len());
    let on_wire = rest.len().saturating_add(missing);
    let (ip, header_len) = match link.ether_type {
        ETHER_IPV4 => ipv4(rest, verify)?,
        ETHER_IPV6 => ipv6(rest)?,
        _ => return None,
    };
    let total_len = ip.total_len as usize;
    if total_len <= header_len || total_len > on_wire {
        return None;
    }
    let segment = Segment {
        src: ip.src,
        dst: ip.dst,
        protocol: ip.protocol,
        captured: rest.get(header_len..)?,
        len: total_len - header_len,
        verify,
        cut: missing > 0,
    };
    let read = segment.read().ok()?;
    if let Transport::Udp { src_port, dst_port } = read.transport
        && tunnel::possible_over_udp(src_port, dst_port, read.payload)
    {
        return None;
    }
    Some(Packet {
        link,
        net: Net::Ip {
            ip,
            transport: read.transport,
            checksum: read.checksum,
            payload_len: read.payload_len,
        },
        payload: read.payload,
        depth: 0,
        owns_frame: true,
    })
}

#[inline]
fn ipv4(bytes: &[u8], verify: bool) -> Option<(Ip, usize)> {
    let header = Ipv4HeaderSlice::from_slice(bytes).ok()?;
    let protocol = header.protocol().0;
    if header.is_fragmenting_payload() || !is_plain(protocol, proto::ICMP) {
        return None;
    }
    if verify && !checksum::is_right(header.slice()) {
        return None;
    }
    let ip = Ip {
        src: header.source_addr().into(),
        dst: header.destination_addr().into(),
        protocol,
        total_len: u32::from(header.total_len()),
    };
    Some((ip, header.slice().len()))
}

#[inline]
fn ipv6(bytes: &[u8]) -> Option<(Ip, usize)> {
    let header = Ipv6HeaderSlice::from_slice(bytes).ok()?;
    let protocol = header.next_header().0;
    if !is_plain(protocol, proto::ICMP6) {
        return None;
    }
    let ip = Ip {
        src: header.source_addr().into(),
        dst: header.destination_addr().into(),
        protocol,
        total_len: u32::from(header.payload_length()) + IPV6_HEADER as u32,
    };
    Some((ip, IPV6_HEADER))
}

#[inline]
fn is_plain(protocol: u8, icmp: u8) -> bool {
    protocol == proto::TCP || protocol == proto::UDP || protocol == icmp
}
