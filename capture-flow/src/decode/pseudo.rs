//! What capture tools put in front of a link layer to tell more than the wire did: radio
//! measurements, the interface, the firewall's verdict.
//!
//! The formats are those of <https://www.tcpdump.org/linktypes.html>.

use super::bytes::{array, be32, byte};
use super::undecodable::Undecodable;
use super::walk::Step;
use crate::frame::LinkType;

const PRISM_HEADER: usize = 144;
/// First word of an AVS header, versions 1 and 2.
const AVS_MAGIC: [u32; 2] = [0x8021_1001, 0x8021_1002];
const ENC_HEADER: usize = 12;

fn behind(bytes: &[u8], header: usize) -> Result<&[u8], Undecodable> {
    bytes.get(header..).ok_or(Undecodable::LinkTruncated)
}

fn le32(bytes: &[u8], offset: usize) -> Result<u32, Undecodable> {
    array(bytes, offset).map(u32::from_le_bytes).ok_or(Undecodable::LinkTruncated)
}

/// The length that a header gives itself, which its fixed part must fit in.
fn own_length(len: u32, fixed: u32) -> Result<usize, Undecodable> {
    if len < fixed { Err(Undecodable::LinkMalformed) } else { Ok(len as usize) }
}

/// Prism monitoring header in front of IEEE 802.11, or the AVS header that the same drivers wrote
/// later under the same link type.
pub(super) fn prism(bytes: &[u8]) -> Result<Step<'_>, Undecodable> {
    let first = be32(bytes, 0).ok_or(Undecodable::LinkTruncated)?;
    if AVS_MAGIC.contains(&first) {
        return avs(bytes);
    }
    Ok(Step::Wireless(behind(bytes, PRISM_HEADER)?))
}

/// AVS monitoring header: magic, length.
pub(super) fn avs(bytes: &[u8]) -> Result<Step<'_>, Undecodable> {
    let len = be32(bytes, 4).ok_or(Undecodable::LinkTruncated)?;
    Ok(Step::Wireless(behind(bytes, own_length(len, 8)?)?))
}

/// Per-Packet Information: version, flags, length, and the link type that follows.
pub(super) fn ppi(bytes: &[u8]) -> Result<Step<'_>, Undecodable> {
    let len = array(bytes, 2).map(u16::from_le_bytes).ok_or(Undecodable::LinkTruncated)?;
    let link = le32(bytes, 4)?;
    next(link, behind(bytes, own_length(len.into(), 8)?)?)
}

/// Apple's packet tap: length, kind of record, the link type that follows.
pub(super) fn pktap(bytes: &[u8]) -> Result<Step<'_>, Undecodable> {
    const PACKET: u32 = 1;
    let (len, kind, link) = (le32(bytes, 0)?, le32(bytes, 4)?, le32(bytes, 8)?);
    let packet = behind(bytes, own_length(len, 12)?)?;
    if kind == PACKET { next(link, packet) } else { Ok(Step::NoIp) }
}

fn next(link: u32, bytes: &[u8]) -> Result<Step<'_>, Undecodable> {
    let link = u16::try_from(link).map_err(|_| Undecodable::LinkType)?;
    Ok(Step::LinkType(LinkType(link), bytes))
}

/// OpenBSD's packet filter log: length without padding, address family.
pub(super) fn pflog(bytes: &[u8]) -> Result<Step<'_>, Undecodable> {
    let (Some(len), Some(family)) = (byte(bytes, 0), byte(bytes, 1)) else {
        return Err(Undecodable::LinkTruncated);
    };
    let packet = behind(bytes, own_length(len.into(), 2)?.next_multiple_of(4))?;
    Ok(family_of(u32::from(family), packet))
}

/// OpenBSD's view inside IPsec: address family in the capturing machine's byte order, SPI, flags.
pub(super) fn enc(bytes: &[u8]) -> Result<Step<'_>, Undecodable> {
    let family = be32(bytes, 0).ok_or(Undecodable::LinkTruncated)?;
    let family = if family > 0xffff { family.swap_bytes() } else { family };
    Ok(family_of(family, behind(bytes, ENC_HEADER)?))
}

/// What an address family announces.
pub(super) fn family_of(family: u32, bytes: &[u8]) -> Step<'_> {
    match family {
        // AF_INET, and AF_INET6 of Linux, NetBSD/OpenBSD, FreeBSD and macOS.
        2 | 10 | 24 | 28 | 30 => Step::Ip(bytes),
        _ => Step::NoIp,
    }
}
