//! IP headers: which bytes are the transport's.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::bytes::{array, be16, byte};
use super::checksum;
use super::transport::Segment;
use super::undecodable::Undecodable;
use super::walk::Walk;
use super::{Decoded, PacketVisitor};
use crate::packet::{Ip, Net};

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// An IP packet of either version.
pub(super) fn packet<V: PacketVisitor>(
    walk: &mut Walk<'_, V>,
    bytes: &[u8],
) -> Result<Decoded, Undecodable> {
    let (ip, header_len) = match byte(bytes, 0).map(|first| first >> 4) {
        None => return Err(Undecodable::IpTruncated),
        Some(4) => ipv4(bytes, walk.verify)?,
        Some(6) => ipv6(bytes)?,
        Some(_) => return Err(Undecodable::IpVersion),
    };
    let total_len = if ip.total_len != 0 {
        ip.total_len as usize
    } else if walk.verify {
        return Err(Undecodable::IpLengthZero);
    } else {
        // Segmentation offload leaves the length out; the captured bytes stand in for it.
        bytes.len()
    };
    if total_len > bytes.len().saturating_add(walk.missing) {
        return Err(Undecodable::IpLengthBeyondFrame);
    }
    if header_len > total_len {
        return Err(Undecodable::IpHeaderLength);
    }
    let captured = bytes.get(header_len..).ok_or(Undecodable::IpTruncated)?;
    let segment = Segment {
        src: ip.src,
        dst: ip.dst,
        protocol: ip.protocol,
        captured,
        len: total_len - header_len,
        verify: walk.verify,
        cut: walk.missing > 0,
    };
    let read = segment.read()?;
    let net = Net::Ip {
        ip,
        transport: read.transport,
        checksum: read.checksum,
        payload_len: read.payload_len,
    };
    walk.count(net, read.payload, &[]);
    Ok(Decoded::Counted)
}

fn ipv4(bytes: &[u8], verify: bool) -> Result<(Ip, usize), Undecodable> {
    if bytes.len() < IPV4_HEADER {
        return Err(Undecodable::IpTruncated);
    }
    let field = |at| be16(bytes, at).ok_or(Undecodable::IpTruncated);
    let header_len = usize::from(byte(bytes, 0).unwrap_or(0) & 0x0f) * 4;
    if header_len < IPV4_HEADER {
        return Err(Undecodable::IpHeaderLength);
    }
    let header = bytes.get(..header_len).ok_or(Undecodable::IpTruncated)?;
    if verify && !checksum::is_right(header) {
        return Err(Undecodable::IpChecksum);
    }
    let address = |at| array(bytes, at).map(Ipv4Addr::from).ok_or(Undecodable::IpTruncated);
    let ip = Ip {
        src: address(12)?.into(),
        dst: address(16)?.into(),
        protocol: byte(bytes, 9).ok_or(Undecodable::IpTruncated)?,
        total_len: u32::from(field(2)?),
    };
    Ok((ip, header_len))
}

fn ipv6(bytes: &[u8]) -> Result<(Ip, usize), Undecodable> {
    let address = |at| array(bytes, at).map(Ipv6Addr::from).ok_or(Undecodable::IpTruncated);
    let payload_len = be16(bytes, 4).ok_or(Undecodable::IpTruncated)?;
    let ip = Ip {
        src: address(8)?.into(),
        dst: address(24)?.into(),
        protocol: byte(bytes, 6).ok_or(Undecodable::IpTruncated)?,
        total_len: u32::from(payload_len) + IPV6_HEADER as u32,
    };
    Ok((ip, IPV6_HEADER))
}
