//! Link layers: everything between a frame's first byte and its IP header.

use etherparse::{Ethernet2HeaderSlice, SingleVlanHeaderSlice};

use super::bytes::{array, be16, be32, byte};
use super::pseudo;
use super::undecodable::Undecodable;
use super::walk::Step;
use crate::frame::LinkType;
use crate::key::MacAddr;
use crate::packet::Link;

/// Cisco FabricPath puts this many bytes in front of an Ethernet frame.
const FABRIC_PATH_HEADER: usize = 16;
const FDDI_HEADER: usize = 13;
const SLL_HEADER: usize = 16;
const SLL2_HEADER: usize = 20;
const PPPOE_HEADER: usize = 6;
const MPLS_LABEL: usize = 4;

/// EtherTypes below this are lengths of an 802.3 frame.
const FIRST_ETHER_TYPE: u16 = 1536;

const PPP_IPV4: u16 = 0x0021;
const PPP_IPV6: u16 = 0x0057;
const PPP_MPLS: u16 = 0x0281;

fn rest(bytes: &[u8], from: usize) -> &[u8] {
    bytes.get(from..).unwrap_or(&[])
}

/// The first header of a capture's link type.
pub(super) fn begin<'a>(
    link: &mut Link,
    link_type: LinkType,
    bytes: &'a [u8],
) -> Result<Step<'a>, Undecodable> {
    match link_type {
        LinkType::ETHERNET => Ok(Step::Ethernet(bytes)),
        LinkType::RAW
        | LinkType::RAW_BSD
        | LinkType::RAW_OPENBSD
        | LinkType::IPV4
        | LinkType::IPV6 => Ok(Step::Ip(bytes)),
        LinkType::NULL | LinkType::LOOP => null(bytes),
        LinkType::PPP => ppp_frame(bytes),
        LinkType::PPP_SERIAL | LinkType::C_HDLC => hdlc(link, bytes),
        LinkType::PPP_WITH_DIR => ppp_frame(rest(bytes, 1)),
        LinkType::PPPOE => pppoe(bytes),
        LinkType::FDDI => fddi(link, bytes),
        LinkType::LINUX_SLL => sll(link, bytes),
        LinkType::LINUX_SLL2 => sll2(link, bytes),
        LinkType::IEEE802_11 => Ok(Step::Wireless(bytes)),
        LinkType::IEEE802_11_RADIO => radiotap(bytes),
        LinkType::NFLOG => nflog(bytes),
        LinkType::ATM_RFC1483 => Ok(llc(link, bytes)),
        LinkType::PPP_PPPD => {
            // The direction stands in the place of the HDLC address.
            let protocol = be16(bytes, 2).ok_or(Undecodable::LinkTruncated)?;
            Ok(Step::Ppp(protocol, rest(bytes, 4)))
        }
        LinkType::PRISM => pseudo::prism(bytes),
        LinkType::IEEE802_11_AVS => pseudo::avs(bytes),
        LinkType::PPI => pseudo::ppi(bytes),
        LinkType::PKTAP => pseudo::pktap(bytes),
        LinkType::PFLOG => pseudo::pflog(bytes),
        LinkType::ENC => pseudo::enc(bytes),
        _ => Err(Undecodable::LinkType),
    }
}

/// An Ethernet header.
pub(super) fn ethernet<'a>(link: &mut Link, bytes: &'a [u8]) -> Result<Step<'a>, Undecodable> {
    let header = Ethernet2HeaderSlice::from_slice(bytes).map_err(|_| Undecodable::LinkTruncated)?;
    let ether_type = header.ether_type().0;
    if ether_type == 0x8903 {
        return Ok(Step::Ethernet(rest(bytes, FABRIC_PATH_HEADER)));
    }
    link.dst = Some(MacAddr(header.destination()));
    link.src = Some(MacAddr(header.source()));
    Ok(type_or_length(link, ether_type, rest(bytes, header.slice().len())))
}

/// The field behind the addresses or a tag: an EtherType, or the length of an LLC frame.
fn type_or_length<'a>(link: &mut Link, field: u16, bytes: &'a [u8]) -> Step<'a> {
    if field >= FIRST_ETHER_TYPE {
        link.ether_type = field;
        return Step::EtherType(field, bytes);
    }
    link.ether_type = 0;
    // What lies behind the length is padding.
    Step::Llc(bytes.get(..usize::from(field)).unwrap_or(bytes))
}

/// What an EtherType announces.
pub(super) fn ether_type<'a>(
    link: &mut Link,
    ether_type: u16,
    bytes: &'a [u8],
) -> Result<Step<'a>, Undecodable> {
    match ether_type {
        0x0800 | 0x86dd => Ok(Step::Ip(bytes)),
        // Customer, service and the older provider tags.
        0x8100 | 0x88a8 | 0x9100 => vlan(link, bytes),
        0x8847 | 0x8848 => mpls(bytes),
        0x8864 => pppoe(bytes),
        // IEEE 802.1ah: the I-tag ends with the customer's Ethernet header.
        0x88e7 => Ok(Step::Ethernet(bytes.get(4..).ok_or(Undecodable::LinkTruncated)?)),
        // VN-tag.
        0x8926 => {
            let inner = be16(bytes, 4).ok_or(Undecodable::LinkTruncated)?;
            Ok(type_or_length(link, inner, rest(bytes, 6)))
        }
        _ => Ok(Step::NoIp),
    }
}

fn vlan<'a>(link: &mut Link, bytes: &'a [u8]) -> Result<Step<'a>, Undecodable> {
    let tag = SingleVlanHeaderSlice::from_slice(bytes).map_err(|_| Undecodable::LinkTruncated)?;
    let id = Some(tag.vlan_identifier().value());
    if link.vlan.is_none() {
        link.vlan = id;
    } else {
        // Zeek keeps the outermost and the innermost of three tags.
        link.inner_vlan = id;
    }
    Ok(type_or_length(link, tag.ether_type().0, rest(bytes, tag.slice().len())))
}

/// LLC. Only a SNAP header with an EtherType leads on.
pub(super) fn llc<'a>(link: &mut Link, bytes: &'a [u8]) -> Step<'a> {
    if bytes.get(..2) != Some(&[0xaa, 0xaa]) {
        return Step::NoIp;
    }
    // An unnumbered frame has one control byte, the others two.
    let snap = match byte(bytes, 2) {
        Some(control) if control & 0x03 == 0x03 => rest(bytes, 3),
        _ => rest(bytes, 4),
    };
    match (array(snap, 0), be16(snap, 3)) {
        (Some([0, 0, 0]), Some(ether_type)) => {
            link.ether_type = ether_type;
            Step::EtherType(ether_type, rest(snap, 5))
        }
        _ => Step::NoIp,
    }
}

/// A label stack. What it carries is not said: IP is told by its version, and anything else
/// (pseudowires) has no session.
fn mpls(bytes: &[u8]) -> Result<Step<'_>, Undecodable> {
    let mut at = 0;
    loop {
        let bottom = byte(bytes, at + 2).ok_or(Undecodable::LinkTruncated)? & 1 != 0;
        at += MPLS_LABEL;
        if bottom {
            break;
        }
    }
    let inner = bytes.get(at..).ok_or(Undecodable::LinkTruncated)?;
    match byte(inner, 0).map(|first| first >> 4) {
        Some(4 | 6) => Ok(Step::Ip(inner)),
        _ => Ok(Step::NoIp),
    }
}

fn pppoe(bytes: &[u8]) -> Result<Step<'_>, Undecodable> {
    let protocol = be16(bytes, PPPOE_HEADER).ok_or(Undecodable::LinkTruncated)?;
    Ok(Step::Ppp(protocol, rest(bytes, PPPOE_HEADER + 2)))
}

/// HDLC framing: of PPP, or by its address field of Cisco (RFC 1547 section 4.3.1), which names
/// the protocol by EtherType.
fn hdlc<'a>(link: &mut Link, bytes: &'a [u8]) -> Result<Step<'a>, Undecodable> {
    const CISCO_UNICAST: u8 = 0x0f;
    const CISCO_BROADCAST: u8 = 0x8f;
    let protocol = be16(bytes, 2).ok_or(Undecodable::LinkTruncated)?;
    let payload = rest(bytes, 4);
    if !matches!(byte(bytes, 0), Some(CISCO_UNICAST | CISCO_BROADCAST)) {
        return Ok(Step::Ppp(protocol, payload));
    }
    link.ether_type = protocol;
    Ok(Step::EtherType(protocol, payload))
}

/// PPP with or without HDLC-like framing.
fn ppp_frame(bytes: &[u8]) -> Result<Step<'_>, Undecodable> {
    let header = if bytes.get(..2) == Some(&[0xff, 0x03]) { 2 } else { 0 };
    let protocol = be16(bytes, header).ok_or(Undecodable::LinkTruncated)?;
    Ok(Step::Ppp(protocol, rest(bytes, header + 2)))
}

/// What a PPP protocol number announces.
pub(super) fn ppp(protocol: u16, bytes: &[u8]) -> Result<Step<'_>, Undecodable> {
    match protocol {
        PPP_IPV4 | PPP_IPV6 => Ok(Step::Ip(bytes)),
        PPP_MPLS => mpls(bytes),
        _ => Ok(Step::NoIp),
    }
}

/// BSD loopback: an address family in the capturing machine's byte order.
fn null(bytes: &[u8]) -> Result<Step<'_>, Undecodable> {
    let family = be32(bytes, 0).ok_or(Undecodable::LinkTruncated)?;
    let family = if family > 0xffff { family.swap_bytes() } else { family };
    Ok(pseudo::family_of(family, rest(bytes, 4)))
}

fn fddi<'a>(link: &mut Link, bytes: &'a [u8]) -> Result<Step<'a>, Undecodable> {
    let (Some(dst), Some(src)) = (array(bytes, 1), array(bytes, 7)) else {
        return Err(Undecodable::LinkTruncated);
    };
    link.dst = Some(MacAddr(dst));
    link.src = Some(MacAddr(src));
    Ok(Step::Llc(rest(bytes, FDDI_HEADER)))
}

/// Linux cooked capture: only the sender's address is known.
fn sll<'a>(link: &mut Link, bytes: &'a [u8]) -> Result<Step<'a>, Undecodable> {
    let (Some(address_len), Some(field)) = (be16(bytes, 4), be16(bytes, 14)) else {
        return Err(Undecodable::LinkTruncated);
    };
    if address_len == 6 {
        link.src = array(bytes, 6).map(MacAddr);
    }
    cooked(link, field, rest(bytes, SLL_HEADER))
}

fn sll2<'a>(link: &mut Link, bytes: &'a [u8]) -> Result<Step<'a>, Undecodable> {
    let (Some(field), Some(address_len), Some(payload)) =
        (be16(bytes, 0), byte(bytes, 11), bytes.get(SLL2_HEADER..))
    else {
        return Err(Undecodable::LinkTruncated);
    };
    if address_len == 6 {
        link.src = array(bytes, 12).map(MacAddr);
    }
    cooked(link, field, payload)
}

/// The protocol field of a cooked capture: an EtherType, or a number of Linux's own.
fn cooked<'a>(link: &mut Link, field: u16, bytes: &'a [u8]) -> Result<Step<'a>, Undecodable> {
    const LLC: u16 = 4;
    match field {
        LLC => Ok(Step::Llc(bytes)),
        field if field >= FIRST_ETHER_TYPE => {
            link.ether_type = field;
            Ok(Step::EtherType(field, bytes))
        }
        _ => Ok(Step::NoIp),
    }
}

fn radiotap(bytes: &[u8]) -> Result<Step<'_>, Undecodable> {
    let len = array(bytes, 2).map(u16::from_le_bytes).ok_or(Undecodable::LinkTruncated)?;
    let frame = bytes.get(usize::from(len)..).ok_or(Undecodable::LinkTruncated)?;
    // The header cannot be shorter than its fixed part.
    if len < 8 { Err(Undecodable::LinkMalformed) } else { Ok(Step::Wireless(frame)) }
}

/// Linux netfilter log: the packet is one of several type-length-value fields, whose numbers are
/// in the capturing machine's byte order.
fn nflog(bytes: &[u8]) -> Result<Step<'_>, Undecodable> {
    const PAYLOAD: u16 = 9;
    const VERSION: u8 = 0;
    if byte(bytes, 1).ok_or(Undecodable::LinkTruncated)? != VERSION {
        return Err(Undecodable::LinkMalformed);
    }
    let mut fields = rest(bytes, 4);
    loop {
        let len = array(fields, 0).map(u16::from_le_bytes).ok_or(Undecodable::LinkTruncated)?;
        let kind = array(fields, 2).map(u16::from_le_bytes).ok_or(Undecodable::LinkTruncated)?;
        let len = usize::from(len);
        if len < 4 {
            return Err(Undecodable::LinkMalformed);
        }
        if kind == PAYLOAD {
            let family = byte(bytes, 0);
            let packet = rest(fields, 4);
            return Ok(if matches!(family, Some(2 | 10)) { Step::Ip(packet) } else { Step::NoIp });
        }
        fields = fields.get(len.next_multiple_of(4)..).ok_or(Undecodable::LinkTruncated)?;
    }
}
