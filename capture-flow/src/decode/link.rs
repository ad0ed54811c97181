//! Link layers: everything between a frame's first byte and its IP header.

use super::bytes::be16;
use super::undecodable::Undecodable;
use super::walk::Step;
use crate::frame::LinkType;
use crate::key::MacAddr;
use crate::packet::Link;

use super::bytes::array;

const ETHERNET_HEADER: usize = 14;

/// The first header of a capture's link type.
pub(super) fn begin(link_type: LinkType, bytes: &[u8]) -> Result<Step<'_>, Undecodable> {
    match link_type {
        LinkType::ETHERNET => Ok(Step::Ethernet(bytes)),
        LinkType::RAW
        | LinkType::RAW_BSD
        | LinkType::RAW_OPENBSD
        | LinkType::IPV4
        | LinkType::IPV6 => Ok(Step::Ip(bytes)),
        _ => Err(Undecodable::LinkType),
    }
}

/// An Ethernet header.
pub(super) fn ethernet<'a>(link: &mut Link, bytes: &'a [u8]) -> Result<Step<'a>, Undecodable> {
    let (Some(dst), Some(src), Some(ether_type)) =
        (array(bytes, 0), array(bytes, 6), be16(bytes, 12))
    else {
        return Err(Undecodable::LinkTruncated);
    };
    link.dst = Some(MacAddr(dst));
    link.src = Some(MacAddr(src));
    link.ether_type = ether_type;
    let rest = bytes.get(ETHERNET_HEADER..).unwrap_or(&[]);
    Ok(Step::EtherType(ether_type, rest))
}

/// What an EtherType announces.
pub(super) fn ether_type<'a>(
    link: &mut Link,
    ether_type: u16,
    bytes: &'a [u8],
) -> Result<Step<'a>, Undecodable> {
    match ether_type {
        0x0800 | 0x86dd => Ok(Step::Ip(bytes)),
        0x8100 | 0x88a8 | 0x9100 => vlan(link, bytes),
        _ => Ok(Step::NoIp),
    }
}

fn vlan<'a>(link: &mut Link, bytes: &'a [u8]) -> Result<Step<'a>, Undecodable> {
    let (Some(tag), Some(ether_type)) = (be16(bytes, 0), be16(bytes, 2)) else {
        return Err(Undecodable::LinkTruncated);
    };
    let id = Some(tag & 0x0fff);
    if link.vlan.is_none() {
        link.vlan = id;
    } else {
        // Zeek keeps the outermost and the innermost of three tags.
        link.inner_vlan = id;
    }
    link.ether_type = ether_type;
    Ok(Step::EtherType(ether_type, bytes.get(4..).unwrap_or(&[])))
}
