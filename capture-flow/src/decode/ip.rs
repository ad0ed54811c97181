//! IP packets: which bytes are the transport's, and what they carry.

use std::net::IpAddr;

use etherparse::err::ipv4;
use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice};

use super::bytes::byte;
use super::ip6::Chain;
use super::transport::{Read, Segment, proto};
use super::undecodable::Undecodable;
use super::walk::{Found, Step, Walk};
use super::{Counted, PacketVisitor, checksum};
use crate::fragment::{Added, DatagramKey, Fragment};
use crate::packet::{Checksum, Ip, Net, Transport};
use crate::tunnel::{self, Enclosed};

/// Where a packet's fragment belongs in its datagram.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) id: u32,
    pub(super) offset: u32,
    pub(super) more: bool,
    /// Length of the headers that every fragment repeats.
    pub(super) repeated: usize,
}

/// An IP header with its extension headers.
struct Header {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    /// Total length by the header; 0 where segmentation offload left it out.
    total_len: u32,
    header_len: usize,
    fragment: Option<Place>,
}

/// A transport's bytes, whole or put together.
struct Body<'a> {
    ip: Ip,
    captured: &'a [u8],
    /// Length by the IP header.
    len: usize,
    /// Bytes cut off behind `captured`.
    missing: usize,
}

/// An IP packet of either version.
pub(super) fn packet<V: PacketVisitor>(
    walk: &mut Walk<'_, V>,
    bytes: &[u8],
) -> Result<Found, Undecodable> {
    let header = match byte(bytes, 0).map(|first| first >> 4) {
        None => return Err(Undecodable::IpTruncated),
        Some(4) => ipv4(bytes)?,
        Some(6) => ipv6(bytes)?,
        Some(_) => return Err(Undecodable::IpVersion),
    };
    let total_len = match header.total_len {
        0 if walk.verify => return Err(Undecodable::IpLengthZero),
        // Segmentation offload leaves the length out; the captured bytes stand in for it.
        0 => bytes.len(),
        len => len as usize,
    };
    if total_len > bytes.len().saturating_add(walk.missing) {
        return Err(Undecodable::IpLengthBeyondFrame);
    }
    if header.header_len > total_len {
        return Err(Undecodable::IpHeaderLength);
    }
    let captured = bytes.get(header.header_len..).ok_or(Undecodable::IpTruncated)?;
    if header.src.is_ipv4()
        && walk.verify
        && !bytes.get(..header.header_len).is_some_and(checksum::is_right)
    {
        return Err(Undecodable::IpChecksum);
    }
    let body_len = total_len - header.header_len;
    let ip = Ip {
        src: header.src,
        dst: header.dst,
        protocol: header.protocol,
        total_len: header.total_len,
    };
    if let Some(place) = header.fragment {
        if bytes.len() >= total_len {
            let data = captured.get(..body_len).unwrap_or(captured);
            return fragment(walk, ip, place, data);
        }
        // A first fragment that was cut short tells its session; the others tell nothing.
        if place.offset != 0 {
            return Err(Undecodable::FragmentTruncated);
        }
    }
    // A length by the header of 0 tells the transport to count what was captured.
    let len = if header.total_len == 0 { 0 } else { body_len };
    let body = Body { ip, captured, len, missing: walk.missing };
    transport(walk, &body)
}

fn ipv4(bytes: &[u8]) -> Result<Header, Undecodable> {
    let header = Ipv4HeaderSlice::from_slice(bytes).map_err(|error| match error {
        ipv4::HeaderSliceError::Len(_) => Undecodable::IpTruncated,
        ipv4::HeaderSliceError::Content(_) => Undecodable::IpHeaderLength,
    })?;
    let header_len = header.slice().len();
    Ok(Header {
        src: header.source_addr().into(),
        dst: header.destination_addr().into(),
        protocol: header.protocol().0,
        total_len: u32::from(header.total_len()),
        header_len,
        fragment: header.is_fragmenting_payload().then(|| Place {
            id: u32::from(header.identification()),
            offset: u32::from(header.fragments_offset().byte_offset()),
            more: header.more_fragments(),
            repeated: header_len,
        }),
    })
}

fn ipv6(bytes: &[u8]) -> Result<Header, Undecodable> {
    let header = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| Undecodable::IpTruncated)?;
    let chain = Chain::read(&header, bytes)?;
    Ok(Header {
        src: chain.src.into(),
        dst: chain.dst.into(),
        protocol: chain.next,
        total_len: u32::from(header.payload_length()) + header.slice().len() as u32,
        header_len: chain.len,
        fragment: chain.fragment,
    })
}

fn fragment<V: PacketVisitor>(
    walk: &mut Walk<'_, V>,
    ip: Ip,
    place: Place,
    data: &[u8],
) -> Result<Found, Undecodable> {
    let fragment = Fragment {
        key: DatagramKey { src: ip.src, dst: ip.dst, id: place.id },
        link: walk.link,
        protocol: ip.protocol,
        header_len: place.repeated as u32,
        offset: place.offset,
        more: place.more,
        data,
        frame: walk.as_fragment(),
        earlier: &walk.earlier,
    };
    let visitor = &mut *walk.visitor;
    match walk.fragments.add(&fragment, |datagram| visitor.incomplete(datagram)) {
        Added::TooLong => Err(Undecodable::FragmentMalformed),
        Added::Held => Ok(walk.hold()),
        Added::Whole(whole) => {
            let around = std::mem::replace(&mut walk.earlier, whole.earlier);
            let mut ip = Ip {
                protocol: whole.protocol,
                total_len: whole.header_len.saturating_add(whole.payload.len() as u32),
                ..ip
            };
            let mut payload = whole.payload.as_slice();
            if ip.src.is_ipv6() {
                // The extension headers behind the fragment header became readable only now.
                // Where they cannot be read, the datagram still belongs to its addresses.
                if let Ok(chain) = Chain::resume(ip.src, ip.dst, whole.protocol, payload) {
                    ip.src = chain.src.into();
                    ip.dst = chain.dst.into();
                    ip.protocol = chain.next;
                    payload = payload.get(chain.len..).unwrap_or(&[]);
                }
            }
            let body = Body { ip, captured: payload, len: payload.len(), missing: 0 };
            let found = match transport(walk, &body) {
                // The datagram is complete but too short for its transport: its frames still
                // belong to the session between its addresses.
                Err(_) => {
                    count_other(walk, &body);
                    Ok(Found::Counted)
                }
                found => found,
            };
            // What follows in the frame is not of this datagram.
            walk.earlier = around;
            walk.disown_earlier();
            found
        }
    }
}

fn transport<V: PacketVisitor>(
    walk: &mut Walk<'_, V>,
    body: &Body<'_>,
) -> Result<Found, Undecodable> {
    let Body { ip, captured, len, missing } = *body;
    let segment = Segment {
        src: ip.src,
        dst: ip.dst,
        protocol: ip.protocol,
        captured,
        len,
        verify: walk.verify,
        cut: missing > 0,
    };
    // Of the payload itself, without link-layer padding.
    let cut_off = len.saturating_sub(captured.len());
    let carried = captured.get(..len).filter(|_| len != 0).unwrap_or(captured);
    match ip.protocol {
        proto::IPV4 | proto::IPV6 => {
            Ok(enclosed(walk, body, cut_off, tunnel::ip_in_ip(ip.protocol, carried, cut_off)))
        }
        proto::GRE => {
            let inside = tunnel::gre(carried, cut_off);
            if inside.is_none() && tunnel::is_strange_gre(carried) {
                walk.leave_unopened();
            }
            Ok(enclosed(walk, body, cut_off, inside))
        }
        proto::UDP => {
            let read = segment.read()?;
            let counted = count_read(walk, body, &read);
            if let Transport::Udp { src_port, dst_port } = read.transport
                && read.checksum == Checksum::Accepted
                && tunnel::possible_over_udp(src_port, dst_port, read.payload)
            {
                udp_tunnel(walk, counted, &read, cut_off);
            }
            Ok(Found::Counted)
        }
        _ => {
            let read = segment.read()?;
            count_read(walk, body, &read);
            Ok(Found::Counted)
        }
    }
}

fn count_read<V: PacketVisitor>(
    walk: &mut Walk<'_, V>,
    body: &Body<'_>,
    read: &Read<'_>,
) -> Counted {
    let net = Net::Ip {
        ip: body.ip,
        transport: read.transport,
        checksum: read.checksum,
        payload_len: read.payload_len,
    };
    walk.count(net, read.payload)
}

/// Counts a packet to the session between its addresses, whatever it carries.
fn count_other<V: PacketVisitor>(walk: &mut Walk<'_, V>, body: &Body<'_>) {
    let net = Net::Ip {
        ip: body.ip,
        transport: Transport::Other,
        checksum: Checksum::Accepted,
        payload_len: body.captured.len().max(body.len) as u32,
    };
    walk.count(net, body.captured);
}

/// What IP-in-IP or GRE carries. Zeek gives the outer layer no session; here it gets one only
/// where nothing inside could be counted, so that no frame is lost.
fn enclosed<V: PacketVisitor>(
    walk: &mut Walk<'_, V>,
    body: &Body<'_>,
    cut_off: usize,
    inside: Option<Step<'_>>,
) -> Found {
    let before = walk.counted;
    let found = match inside {
        Some(step) => walk.enter(step, cut_off, false),
        None => Found::Nothing,
    };
    if found == Found::Held {
        return found;
    }
    if walk.counted == before {
        count_other(walk, body);
    }
    Found::Counted
}

fn udp_tunnel<V: PacketVisitor>(
    walk: &mut Walk<'_, V>,
    counted: Counted,
    read: &Read<'_>,
    cut_off: usize,
) {
    let opened = !counted.tunnel_refused && open_udp(walk, counted, read, cut_off);
    let Transport::Udp { src_port, dst_port } = read.transport else { return };
    // One packet that is no tunnel's closes its session for all that follow, and whoever sends
    // the first one says which end the responder is. What comes all the same is not lost sight of.
    let carries = |walk: &Walk<'_, V>, port| {
        matches!(
            tunnel::over_udp(port, read.payload, cut_off),
            Enclosed::Step(step) if walk.would_read(step, cut_off)
        )
    };
    // Who looks at the frame again takes either end for the responder.
    let counts = !opened && walk.unread.is_none();
    if counts && (carries(walk, dst_port) || carries(walk, src_port)) {
        walk.leave_unopened();
    }
}

/// Opens a tunnel over UDP. False if there is none, as far as its session tells.
fn open_udp<V: PacketVisitor>(
    walk: &mut Walk<'_, V>,
    counted: Counted,
    read: &Read<'_>,
    cut_off: usize,
) -> bool {
    let is_gtp = tunnel::is_gtp_port(counted.responder_port);
    if is_gtp && walk.in_gtp {
        walk.visitor.refuse_tunnel();
        return false;
    }
    match tunnel::over_udp(counted.responder_port, read.payload, cut_off) {
        Enclosed::Step(step) => {
            walk.enter(step, cut_off, is_gtp);
            return true;
        }
        Enclosed::Unknown => {
            walk.leave_unopened();
            return true;
        }
        Enclosed::Nothing => {}
        Enclosed::Refused => walk.visitor.refuse_tunnel(),
    }
    false
}
