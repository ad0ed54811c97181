//! The full decoder: from header to header until a packet is counted or nothing can be.

use super::undecodable::Undecodable;
use super::{Decoded, HeldFrame, PacketVisitor, ip, link};
use crate::frame::{Frame, LinkType};
use crate::packet::{Link, Net, Packet};

/// Headers below IP around each other before a frame is given up: more than any network nests.
const MAX_STEPS: usize = 32;

/// What begins at a place in a frame.
#[derive(Clone, Copy)]
pub(super) enum Step<'a> {
    /// A capture's link layer.
    LinkType(LinkType, &'a [u8]),
    /// An Ethernet header.
    Ethernet(&'a [u8]),
    /// What an EtherType announces.
    EtherType(u16, &'a [u8]),
    /// An IP header of either version.
    Ip(&'a [u8]),
    /// Nothing that a session over IP could count.
    NoIp,
}

/// One frame being decoded.
pub(super) struct Walk<'v, V> {
    pub(super) visitor: &'v mut V,
    pub(super) verify: bool,
    /// The link layer read so far.
    pub(super) link: Link,
    /// Bytes that were on the wire behind what was captured.
    pub(super) missing: usize,
    /// Packets of this frame that were counted.
    pub(super) counted: u8,
}

impl<'v, V: PacketVisitor> Walk<'v, V> {
    pub(super) fn new(frame: &Frame<'_>, verify: bool, visitor: &'v mut V) -> Self {
        Self {
            visitor,
            verify,
            link: Link::default(),
            missing: (frame.wire_len as usize).saturating_sub(frame.bytes.len()),
            counted: 0,
        }
    }

    pub(super) fn run(mut self, frame: &Frame<'_>) -> Result<Decoded, Undecodable> {
        self.walk(Step::LinkType(frame.link, frame.bytes))
    }

    fn walk(&mut self, first: Step<'_>) -> Result<Decoded, Undecodable> {
        let mut step = first;
        for _ in 0..MAX_STEPS {
            step = match step {
                Step::LinkType(link_type, bytes) => link::begin(link_type, bytes)?,
                Step::Ethernet(bytes) => link::ethernet(&mut self.link, bytes)?,
                Step::EtherType(ether_type, bytes) => {
                    link::ether_type(&mut self.link, ether_type, bytes)?
                }
                Step::Ip(bytes) => return ip::packet(self, bytes),
                Step::NoIp => {
                    self.count(Net::None, &[], &[]);
                    return Ok(Decoded::Counted);
                }
            };
        }
        Err(Undecodable::TooDeep)
    }

    /// Hands a packet to the visitor.
    pub(super) fn count(
        &mut self,
        net: Net,
        payload: &[u8],
        earlier: &[HeldFrame],
    ) -> super::Counted {
        let packet = Packet {
            link: self.link,
            net,
            payload,
            depth: self.counted,
            owns_frame: self.counted == 0,
        };
        self.counted = self.counted.saturating_add(1);
        self.visitor.packet(&packet, earlier)
    }
}
