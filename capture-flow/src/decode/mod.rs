//! From a frame's first byte to the packets that sessions count.
//!
//! What yields a packet, and what a packet counts, follows Zeek (src/packet_analysis/protocol,
//! src/IP.cc and src/Frag.cc of its sources), with one addition: where Zeek notes a "weird" and
//! moves on, every frame is still accounted for. It is owned by exactly one packet, or it is held
//! as a fragment and owned by the datagram's packet later, or it is undecodable for a named
//! reason.
//!
//! A plain frame takes [`Decoder::fast`]: one pass, no callback. Everything else takes
//! [`Decoder::decode`].

pub(crate) mod bytes;
mod checksum;
mod fast;
mod glance;
mod ip;
mod ip6;
mod link;
mod pseudo;
pub(crate) mod transport;
mod undecodable;
mod unread;
pub(crate) mod walk;
mod wireless;

#[cfg(test)]
mod tests;

pub use glance::Glance;
pub(crate) use glance::{Addresses, TcpGlance};
pub use undecodable::Undecodable;
pub use unread::{Unread, UnreadIp, UnreadReason, unread};

use walk::{Found, Step, Walk};

use crate::config::{Checksums, FlowConfig};
use crate::fragment::{FragmentStats, FragmentTable};
use crate::frame::{Frame, IfaceId, PcapPosition};
use crate::packet::{Link, Packet};
use crate::time::Nanos;
use std::net::IpAddr;

/// A frame that came before the one being decoded: an earlier fragment of the same datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldFrame {
    /// Arrival time.
    pub ts: Nanos,
    /// Length on the wire in bytes.
    pub wire_len: u32,
    /// Where it arrived.
    pub iface: IfaceId,
    /// Where it was recorded.
    pub at: Option<PcapPosition>,
    /// Whether its wire bytes still count to nothing: false for a fragment inside a tunnel whose
    /// outer packet already counted the frame.
    pub owns_frame: bool,
    /// Whether fragments of the datagram that it is of contradicted each other.
    pub inconsistent: bool,
}

/// A datagram that will not be complete any more.
#[derive(Clone, Copy, Debug)]
pub struct IncompleteDatagram<'a> {
    /// Link layer of its first frame.
    pub link: Link,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Protocol number of the transport, as the first fragment seen has it.
    pub protocol: u8,
    /// Its frames in arrival order.
    pub frames: &'a [HeldFrame],
}

/// What a session knows about the packet it just counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// The responder's port: tunnels over UDP are recognised by it.
    pub responder_port: u16,
    /// Whether [`PacketVisitor::refuse_tunnel`] was called for this session before.
    pub tunnel_refused: bool,
}

/// Receives the packets of a frame, the outermost first.
pub trait PacketVisitor {
    /// A packet to count. `earlier` are the frames of the other fragments of its datagram and of
    /// the datagrams around it, which belong to its session, too.
    fn packet(&mut self, packet: &Packet<'_>, earlier: &[HeldFrame]) -> Counted;

    /// The packet counted last came on a tunnel's port without being one: Zeek tries no further
    /// on that session.
    fn refuse_tunnel(&mut self);

    /// A datagram that was given up: its frames belong to no packet.
    fn incomplete(&mut self, datagram: &IncompleteDatagram<'_>);
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// The visitor got its packet.
    Counted,
    /// It is a fragment; the visitor gets the datagram when it is complete or given up.
    Held,
}

/// What tunnels carried that was not counted by itself; the packet around it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InnerStats {
    /// Inner frames that could not be decoded.
    pub undecodable: u64,
    /// Tunnels left unopened because they lay too deep in others.
    pub too_deep: u64,
}

/// Decodes the frames of one worker.
#[derive(Debug)]
pub struct Decoder {
    verify: bool,
    fragments: FragmentTable,
    inner: InnerStats,
}

impl Decoder {
    /// A decoder with no fragments held.
    #[must_use]
    pub fn new(config: &FlowConfig) -> Self {
        Self {
            verify: config.checksums == Checksums::Verify,
            fragments: FragmentTable::new(config.fragment_bytes, config.timeouts.fragment),
            inner: InnerStats::default(),
        }
    }

    /// Decodes a plain frame: Ethernet with at most two VLAN tags, IPv4 without fragmentation or
    /// IPv6 without extension headers, TCP, UDP or ICMP, no tunnel. `None` says that the frame
    /// needs [`Self::decode`], not that anything is wrong with it.
    #[inline]
    #[must_use]
    pub fn fast<'a>(&self, frame: &Frame<'a>) -> Option<Packet<'a>> {
        fast::decode(frame, self.verify)
    }

    /// Takes a glance at a frame whose checksums nobody asked to verify: the fields that a session
    /// in full swing needs. `None` says that the frame needs [`Self::fast`] or [`Self::decode`].
    #[inline]
    #[must_use]
    pub fn glance<'a>(&self, frame: &Frame<'a>) -> Option<Glance<'a>> {
        if self.verify { None } else { glance::glance(frame) }
    }

    /// Decodes any frame.
    ///
    /// # Errors
    /// The reason why the frame yields no packet at all; no packet of it was visited then.
    pub fn decode(
        &mut self,
        frame: &Frame<'_>,
        visitor: &mut impl PacketVisitor,
    ) -> Result<Decoded, Undecodable> {
        let mut walk = Walk::new(frame, self.verify, &mut self.fragments, &mut self.inner, visitor);
        let found = walk.walk(Step::LinkType(frame.link, frame.bytes));
        if walk.counted > 0 {
            return Ok(Decoded::Counted);
        }
        match found? {
            Found::Held => Ok(Decoded::Held),
            // Outside a tunnel a walk that finds nothing has counted the frame itself.
            Found::Counted | Found::Nothing => Ok(Decoded::Counted),
        }
    }

    /// Gives up the datagrams whose time ran out before `now`.
    pub fn advance(&mut self, now: Nanos, visitor: &mut impl PacketVisitor) {
        self.fragments.expire(now, |datagram| visitor.incomplete(datagram));
    }

    /// Gives up every incomplete datagram: the run ends.
    pub fn finish(&mut self, visitor: &mut impl PacketVisitor) {
        self.fragments.finish(|datagram| visitor.incomplete(datagram));
    }

    /// Arrival of the oldest frame that is held as a fragment.
    #[must_use]
    pub fn oldest_held(&self) -> Option<Nanos> {
        self.fragments.oldest_arrival()
    }

    /// What happened to fragmented datagrams so far.
    #[must_use]
    pub fn fragment_stats(&self) -> &FragmentStats {
        self.fragments.stats()
    }

    /// What tunnels carried uncounted so far.
    #[must_use]
    pub fn inner_stats(&self) -> &InnerStats {
        &self.inner
    }
}
