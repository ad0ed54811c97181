//! The full decoder: from header to header until a packet is counted or nothing can be.

use super::undecodable::Undecodable;
use super::unread::{Unread, UnreadIp, UnreadReason, glimpse};
use super::{
    Counted, HeldFrame, IncompleteDatagram, InnerStats, PacketVisitor, ip, link, wireless,
};
use crate::fragment::FragmentTable;
use crate::frame::{Frame, LinkType};
use crate::packet::{Link, Net, Packet};
use crate::time::NanosDelta;

/// Headers below IP around each other before a frame is given up: more than any network nests.
const MAX_STEPS: usize = 32;

/// Tunnels around each other before the innermost is left unopened (Zeek's `Tunnel::max_depth`).
const MAX_TUNNELS: u8 = 2;

/// Packets of one frame that are told of the frames before it: one for each tunnel layer, and some.
/// A made-up aggregate could hold thousands, each of which would be noted under every fragment.
const MAX_TOLD: u8 = 8;

/// What begins at a place in a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step<'a> {
    /// A capture's link layer.
    LinkType(LinkType, &'a [u8]),
    /// An Ethernet header.
    Ethernet(&'a [u8]),
    /// What an EtherType announces.
    EtherType(u16, &'a [u8]),
    /// An LLC header.
    Llc(&'a [u8]),
    /// What a PPP protocol number announces.
    Ppp(u16, &'a [u8]),
    /// An IEEE 802.11 header.
    Wireless(&'a [u8]),
    /// The subframes of an 802.11 A-MSDU.
    Subframes(&'a [u8]),
    /// An IP header of either version.
    Ip(&'a [u8]),
    /// Nothing that a session over IP could count.
    NoIp,
}

/// What became of what a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// At least one packet was counted.
    Counted,
    /// A fragment, now held.
    Held,
    /// Inside a tunnel: a frame without IP. The packet around it stands for it.
    Nothing,
}

/// One frame being decoded.
pub(super) struct Walk<'w, V> {
    pub(super) visitor: &'w mut V,
    pub(super) fragments: &'w mut FragmentTable,
    pub(super) inner: &'w mut InnerStats,
    pub(super) verify: bool,
    /// The link layer read so far.
    pub(super) link: Link,
    /// Bytes that were on the wire behind what was captured.
    pub(super) missing: usize,
    /// Packets of this frame that were counted.
    pub(super) counted: u8,
    /// Whether the frame has its owner: a packet, or the datagram it is a fragment of.
    owned: bool,
    /// Tunnels opened on the way here.
    tunnels: u8,
    /// Whether the innermost of them is GTP.
    pub(super) in_gtp: bool,
    /// Frames that brought the other fragments of the datagrams being decoded, one in another:
    /// every packet in them is told of these, and the first owns them.
    pub(super) earlier: Vec<HeldFrame>,
    /// What this frame is if it turns out to be a fragment.
    held: HeldFrame,
    /// What could not be read, where somebody asks for that; the table does not.
    pub(super) unread: Option<Vec<Unread>>,
    /// Whether that asks for what tunnels carry, although it can be read.
    pub(super) shows_inside: bool,
    /// The IP header of what could not be read.
    unread_ip: Option<UnreadIp>,
}

/// Tells whether there was a packet of IP.
struct SeesIp(bool);

impl PacketVisitor for SeesIp {
    fn packet(&mut self, packet: &Packet<'_>, _: &[HeldFrame]) -> Counted {
        self.0 |= packet.net != Net::None;
        Counted::default()
    }

    fn refuse_tunnel(&mut self) {}

    fn incomplete(&mut self, _: &IncompleteDatagram<'_>) {}
}

impl<'w, V: PacketVisitor> Walk<'w, V> {
    pub(super) fn new(
        frame: &Frame<'_>,
        verify: bool,
        fragments: &'w mut FragmentTable,
        inner: &'w mut InnerStats,
        visitor: &'w mut V,
    ) -> Self {
        Self {
            visitor,
            fragments,
            inner,
            verify,
            link: Link::default(),
            missing: (frame.wire_len as usize).saturating_sub(frame.bytes.len()),
            counted: 0,
            owned: false,
            tunnels: 0,
            in_gtp: false,
            earlier: Vec::new(),
            held: HeldFrame {
                ts: frame.ts,
                wire_len: frame.wire_len,
                iface: frame.iface,
                at: frame.at,
                owns_frame: true,
                inconsistent: false,
            },
            unread: None,
            shows_inside: false,
            unread_ip: None,
        }
    }

    /// Whether what a tunnel carries would be read as IP, if it were opened. Counts nothing.
    #[cold]
    pub(super) fn would_read(&self, step: Step<'_>, missing: usize) -> bool {
        if self.tunnels >= MAX_TUNNELS {
            // Nobody looks that deep.
            return true;
        }
        let nothing = Frame {
            ts: self.held.ts,
            wire_len: 0,
            bytes: &[],
            link: LinkType::ETHERNET,
            iface: self.held.iface,
            at: None,
        };
        let mut fragments = FragmentTable::new(1 << 16, NanosDelta::from_secs(1));
        let mut inner = InnerStats::default();
        let mut seen = SeesIp(false);
        let mut walk = Walk::new(&nothing, self.verify, &mut fragments, &mut inner, &mut seen);
        walk.missing = missing;
        // No deeper than the others.
        walk.tunnels = self.tunnels + 1;
        let found = walk.walk(step);
        matches!(found, Ok(Found::Held)) || seen.0
    }

    /// A tunnel here carries, or may carry, something that nobody reads.
    #[cold]
    pub(super) fn leave_unopened(&mut self) {
        self.inner.undecodable += 1;
        self.note_unread(UnreadReason::Unopened);
    }

    /// Follows the headers from `first` on.
    pub(super) fn walk(&mut self, first: Step<'_>) -> Result<Found, Undecodable> {
        let mut step = first;
        for _ in 0..MAX_STEPS {
            step = match step {
                Step::LinkType(link_type, bytes) => link::begin(&mut self.link, link_type, bytes)?,
                Step::Ethernet(bytes) => link::ethernet(&mut self.link, bytes)?,
                Step::EtherType(ether_type, bytes) => {
                    link::ether_type(&mut self.link, ether_type, bytes)?
                }
                Step::Llc(bytes) => link::llc(&mut self.link, bytes),
                Step::Ppp(protocol, bytes) => link::ppp(protocol, bytes)?,
                Step::Wireless(bytes) => wireless::header(&mut self.link, bytes)?,
                Step::Subframes(bytes) => return self.subframes(bytes),
                Step::Ip(bytes) => {
                    if self.shows_inside && self.tunnels > 0 {
                        self.unread_ip = glimpse(bytes);
                        self.note_unread(UnreadReason::Unopened);
                    }
                    let found = ip::packet(self, bytes);
                    if found.is_err() && self.unread.is_some() {
                        self.unread_ip = glimpse(bytes);
                    }
                    return found;
                }
                Step::NoIp if self.tunnels > 0 => return Ok(Found::Nothing),
                Step::NoIp => {
                    self.count(Net::None, &[]);
                    return Ok(Found::Counted);
                }
            };
        }
        Err(Undecodable::TooDeep)
    }

    /// Each subframe of an A-MSDU is a frame of its own within this one.
    fn subframes(&mut self, bytes: &[u8]) -> Result<Found, Undecodable> {
        let outer = self.link;
        let mut found = Err(Undecodable::LinkTruncated);
        for subframe in wireless::subframes(bytes) {
            self.link = outer;
            wireless::subframe_addresses(&mut self.link, subframe.header);
            match (self.walk(Step::Llc(subframe.payload)), &found) {
                (Ok(Found::Counted), _) => found = Ok(Found::Counted),
                (one, Err(_)) => found = one,
                (_, Ok(_)) => {}
            }
        }
        found
    }

    /// Follows what a tunnel carries. The capture cut off `missing` bytes behind it.
    ///
    /// An inner frame that cannot be decoded is no loss: the packet around it is counted, and the
    /// reason is counted beside it.
    pub(super) fn enter(&mut self, step: Step<'_>, missing: usize, is_gtp: bool) -> Found {
        if self.tunnels >= MAX_TUNNELS {
            self.inner.too_deep += 1;
            self.note_unread(UnreadReason::TooManyTunnels);
            return Found::Nothing;
        }
        let link = std::mem::take(&mut self.link);
        let missing = std::mem::replace(&mut self.missing, missing);
        let in_gtp = std::mem::replace(&mut self.in_gtp, is_gtp);
        self.tunnels += 1;
        let found = self.walk(step);
        if let Err(reason) = found {
            self.note_unread(UnreadReason::Inner(reason));
        }
        self.tunnels -= 1;
        self.in_gtp = in_gtp;
        self.missing = missing;
        self.link = link;
        found.unwrap_or_else(|_| {
            self.inner.undecodable += 1;
            Found::Nothing
        })
    }

    /// Notes what could not be read here, for whoever asks.
    #[cold]
    pub(super) fn note_unread(&mut self, reason: UnreadReason) {
        let ip = self.unread_ip.take();
        let link = if reason == UnreadReason::TooManyTunnels { Link::default() } else { self.link };
        if let Some(unread) = &mut self.unread {
            unread.push(Unread { reason, link, ip });
        }
    }

    /// The frame as a fragment.
    pub(super) fn as_fragment(&self) -> HeldFrame {
        HeldFrame { owns_frame: !self.owned, ..self.held }
    }

    /// The frame and those before it wait for the rest of their datagram.
    pub(super) fn hold(&mut self) -> Found {
        self.owned = true;
        self.disown_earlier();
        Found::Held
    }

    /// The frames before this one have their owner, too.
    pub(super) fn disown_earlier(&mut self) {
        self.earlier.iter_mut().for_each(|frame| frame.owns_frame = false);
    }

    /// Hands a packet to the visitor.
    pub(super) fn count(&mut self, net: Net, payload: &[u8]) -> Counted {
        let packet =
            Packet { link: self.link, net, payload, depth: self.counted, owns_frame: !self.owned };
        self.owned = true;
        let told = if self.counted < MAX_TOLD { self.earlier.as_slice() } else { &[] };
        self.counted = self.counted.saturating_add(1);
        let counted = self.visitor.packet(&packet, told);
        self.disown_earlier();
        counted
    }
}
