//! A second look at a frame that could not be read: what can be said about it all the same.
//!
//! Who asks whether something was on the wire must know of such frames, and must be able to leave
//! out those whose addresses say that they are none of it.

use std::net::IpAddr;

use etherparse::Ipv6HeaderSlice;

use super::bytes::{array, be16, byte};
use super::ip6::Chain;
use super::transport::proto;
use super::walk::{Step, Walk};
use super::{Counted, HeldFrame, IncompleteDatagram, InnerStats, PacketVisitor, Undecodable};
use crate::fragment::FragmentTable;
use crate::frame::Frame;
use crate::packet::{Link, Net, Packet, Transport};
use crate::time::NanosDelta;

/// Why something on the wire was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnreadReason {
    /// The frame itself.
    #[error("{0}")]
    Frame(Undecodable),
    /// What a tunnel in it carries; the tunnel is a session of its own.
    #[error("inside a tunnel: {0}")]
    Inner(Undecodable),
    /// A tunnel that lies too deep in others.
    #[error("more tunnels in each other than are opened")]
    TooManyTunnels,
    /// A tunnel that was not opened, because its session was not taken for one or its form is not
    /// known.
    #[error("a tunnel that was not opened")]
    Unopened,
}

/// What can be said about something that was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Why not.
    pub reason: UnreadReason,
    /// The link layer as far as it was read; inside a tunnel the tunnel's own, which is mostly none.
    pub link: Link,
    /// The IP header, if there is one.
    pub ip: Option<UnreadIp>,
}

/// What an IP header says whose packet was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnreadIp {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// False where headers that could not be read might name other ends.
    pub is_certain: bool,
    /// Protocol of the transport, where all headers before it could be read.
    pub protocol: Option<u8>,
    /// Source and destination port.
    pub ports: Option<(u16, u16)>,
}

/// Looks at a frame alone. Empty where nothing is wrong with it by itself: what made it unreadable
/// lay in frames before it.
#[must_use]
pub fn unread(frame: &Frame<'_>) -> Vec<Unread> {
    // Which end is the responder, by whose port tunnels are known, and whether checksums were to
    // be right are not known here.
    for verify in [false, true] {
        for responder_sent in [false, true] {
            let found = look(frame, verify, responder_sent);
            if !found.is_empty() {
                return found;
            }
        }
    }
    // All of it can be read: then a tunnel in it was not opened, or it is a fragment of something.
    let mut all = Vec::new();
    for responder_sent in [false, true] {
        match look_inside(frame, responder_sent) {
            Some(found) => all.extend(found),
            None => return Vec::new(),
        }
    }
    all
}

/// What tunnels in the frame carry; `None` where that is a fragment, of which the frame alone
/// does not tell what it is a part of.
fn look_inside(frame: &Frame<'_>, responder_sent: bool) -> Option<Vec<Unread>> {
    let mut fragments = FragmentTable::new(1 << 20, NanosDelta::from_secs(1));
    let mut inner = InnerStats::default();
    let mut ports = Ports { responder_sent };
    let mut walk = Walk::new(frame, false, &mut fragments, &mut inner, &mut ports);
    walk.unread = Some(Vec::new());
    walk.shows_inside = true;
    // Nothing is wrong with the frame: that was looked at before.
    let _ = walk.walk(Step::LinkType(frame.link, frame.bytes));
    let found = walk.unread.take().unwrap_or_default();
    (fragments.stats().fragments == 0).then_some(found)
}

fn look(frame: &Frame<'_>, verify: bool, responder_sent: bool) -> Vec<Unread> {
    let mut fragments = FragmentTable::new(1 << 20, NanosDelta::from_secs(1));
    let mut inner = InnerStats::default();
    let mut ports = Ports { responder_sent };
    let mut walk = Walk::new(frame, verify, &mut fragments, &mut inner, &mut ports);
    walk.unread = Some(Vec::new());
    let found = walk.walk(Step::LinkType(frame.link, frame.bytes));
    if let Err(reason) = found
        && walk.counted == 0
    {
        walk.note_unread(UnreadReason::Frame(reason));
    }
    walk.unread.take().unwrap_or_default()
}

/// Takes one end of every packet for the responder.
struct Ports {
    responder_sent: bool,
}

impl PacketVisitor for Ports {
    fn packet(&mut self, packet: &Packet<'_>, _: &[HeldFrame]) -> Counted {
        let responder_port = match packet.net {
            Net::Ip { transport: Transport::Udp { src_port, dst_port }, .. } => {
                if self.responder_sent { src_port } else { dst_port }
            }
            _ => 0,
        };
        Counted { responder_port, tunnel_refused: false }
    }

    fn refuse_tunnel(&mut self) {}

    fn incomplete(&mut self, _: &IncompleteDatagram<'_>) {}
}

/// What the fixed part of an IP header says, whatever is wrong with the packet.
pub(super) fn glimpse(bytes: &[u8]) -> Option<UnreadIp> {
    match byte(bytes, 0)? >> 4 {
        4 => {
            let address = |at| array::<4>(bytes, at).map(IpAddr::from);
            let header_len = usize::from(byte(bytes, 0)? & 0x0f) * 4;
            let protocol = byte(bytes, 9)?;
            let is_first = be16(bytes, 6)? & 0x1fff == 0;
            let ports = (is_first && header_len >= 20)
                .then(|| ports(protocol, bytes.get(header_len..)?))
                .flatten();
            let (src, dst) = (address(12)?, address(16)?);
            Some(UnreadIp { src, dst, is_certain: true, protocol: Some(protocol), ports })
        }
        6 => {
            let fixed = Ipv6HeaderSlice::from_slice(bytes).ok()?;
            let Ok(chain) = Chain::read(&fixed, bytes) else {
                let (src, dst) = (fixed.source_addr().into(), fixed.destination_addr().into());
                return Some(UnreadIp { src, dst, is_certain: false, protocol: None, ports: None });
            };
            let is_first = chain.fragment.is_none_or(|place| place.offset == 0);
            let ports = is_first.then(|| ports(chain.next, bytes.get(chain.len..)?)).flatten();
            let (src, dst) = (chain.src.into(), chain.dst.into());
            // A later fragment has none of the extension headers that follow the first one's.
            let is_extension = matches!(
                chain.next,
                proto::HOP_BY_HOP | proto::ROUTING | proto::DEST_OPTIONS | proto::AH
            );
            let protocol = (!is_extension).then_some(chain.next);
            Some(UnreadIp { src, dst, is_certain: true, protocol, ports })
        }
        _ => None,
    }
}

fn ports(protocol: u8, transport: &[u8]) -> Option<(u16, u16)> {
    // TCP, UDP, DCCP, SCTP, UDP-Lite.
    matches!(protocol, 6 | 17 | 33 | 132 | 136)
        .then(|| Some((be16(transport, 0)?, be16(transport, 2)?)))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{IfaceId, LinkType};
    use crate::time::Nanos;

    /// Ethernet and IPv4 from 10.0.0.1 to 192.0.2.7, TCP by the header.
    fn tcp(transport: &[u8], total_len: u16) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
        frame.extend(total_len.to_be_bytes());
        frame.extend([0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 192, 0, 2, 7]);
        frame.extend(transport);
        frame
    }

    fn look_at(bytes: &[u8]) -> Vec<Unread> {
        unread(&Frame {
            ts: Nanos(0),
            wire_len: bytes.len() as u32,
            bytes,
            link: LinkType::ETHERNET,
            iface: IfaceId(0),
            at: None,
        })
    }

    #[test]
    fn a_transport_header_that_is_cut_off_still_has_addresses_and_perhaps_ports() {
        let found = look_at(&tcp(&[0x9c, 0x40, 0, 22, 0, 0], 26));
        let [unread] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(unread.reason, UnreadReason::Frame(Undecodable::TransportTruncated));
        let ip = unread.ip.expect("an IP header");
        assert_eq!(ip.dst, IpAddr::from([192, 0, 2, 7]));
        assert_eq!((ip.protocol, ip.ports), (Some(6), Some((40_000, 22))));
        let found = look_at(&tcp(&[0x9c], 21));
        assert_eq!(found[0].ip.expect("an IP header").ports, None);
    }

    #[test]
    fn a_length_beyond_the_frame_leaves_the_addresses() {
        let found = look_at(&tcp(&[0; 20], 1400));
        assert_eq!(found[0].reason, UnreadReason::Frame(Undecodable::IpLengthBeyondFrame));
        assert_eq!(found[0].ip.expect("an IP header").src, IpAddr::from([10, 0, 0, 1]));
    }

    #[test]
    fn a_frame_that_ends_in_its_header_tells_its_link_layer() {
        let found = look_at(&tcp(&[], 20)[..24]);
        assert_eq!(found[0].reason, UnreadReason::Frame(Undecodable::IpTruncated));
        assert_eq!(found[0].ip, None);
        assert_eq!(found[0].link.ether_type, 0x0800);
        assert_eq!(look_at(&[1, 2, 3])[0].link, Link::default());
    }

    #[test]
    fn what_a_tunnel_hides_is_told_beside_the_tunnel() {
        // GRE carrying an IPv4 header that promises more than there is.
        let mut frame = tcp(&[], 20 + 4 + 20);
        frame[23] = 47;
        frame.extend([0, 0, 8, 0]);
        frame.extend_from_slice(&tcp(&[], 1400)[14..]);
        let found = look_at(&frame);
        let [unread] = found.as_slice() else { panic!("{found:?}") };
        assert!(matches!(unread.reason, UnreadReason::Inner(_)), "{unread:?}");
        assert_eq!(unread.ip.expect("an IP header").dst, IpAddr::from([192, 0, 2, 7]));
    }

    #[test]
    fn a_sound_frame_has_nothing_to_tell() {
        let mut segment = [0; 20];
        segment[12] = 0x50;
        let mut frame = tcp(&segment, 40);
        let header = etherparse::Ipv4Header::from_slice(&frame[14..]).expect("a header").0;
        frame[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
        assert_eq!(look_at(&frame), []);
        // A sensor that was told to verify checksums has not read this one.
        frame[24] ^= 1;
        assert_eq!(look_at(&frame)[0].reason, UnreadReason::Frame(Undecodable::IpChecksum));
    }
}
