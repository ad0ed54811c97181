//! What one packet does to its session.

use crate::decode::{Counted, HeldFrame, IncompleteDatagram};
use crate::frame::{Frame, IfaceId, PcapPosition};
use crate::key::{Address, FlowHash, Protocol};
use crate::memory::Memory;
use crate::packet::{Checksum, Link, Net, Packet};
use crate::record::{History, RowReason, Service, Uid};
use crate::service::Carrier;
use crate::sink::{Mark, Sink};
use crate::tcp::{Cruise, Notes, Segment, Tcp};
use crate::time::Nanos;
use crate::timer::{Class, Looks, NTP_PORT, is_dns_port};

use super::core::Core;
use super::row::whole;
use super::session::{Cold, Flags, Hot, Kind};
use super::tuple::Tuple;

/// What a packet may count for.
pub(super) struct Counting {
    pub(super) checksum: Checksum,
    pub(super) payload_len: u32,
    /// Whether the capture holds the whole payload.
    pub(super) whole: bool,
    pub(super) total_len: u32,
}

/// Where a frame came from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) ts: Nanos,
    wire_len: u32,
    iface: IfaceId,
    at: Option<PcapPosition>,
}

impl Origin {
    #[inline]
    pub(super) fn of(frame: &Frame<'_>) -> Self {
        Self { ts: frame.ts, wire_len: frame.wire_len, iface: frame.iface, at: frame.at }
    }

    /// No frame at all: a moment.
    pub(super) fn nowhere(ts: Nanos) -> Self {
        Self { ts, wire_len: 0, iface: IfaceId::default(), at: None }
    }

    fn held(frame: &HeldFrame) -> Self {
        Self { ts: frame.ts, wire_len: frame.wire_len, iface: frame.iface, at: frame.at }
    }
}

/// Adds to the lower half of a counter; the upper half takes what it carries.
#[inline]
pub(super) fn add(low: &mut u32, high: &mut u32, more: u32) {
    let (sum, carries) = low.overflowing_add(more);
    *low = sum;
    if carries {
        *high = high.saturating_add(1);
    }
}

impl<M: Memory> Core<M> {
    /// Counts a packet to its session, which begins if there is none. `guess` may be its slot.
    /// Returns the session's slot.
    #[inline]
    pub(super) fn packet(
        &mut self,
        packet: &Packet<'_>,
        tuple: &Tuple,
        guess: u32,
        origin: &Origin,
        sink: &mut impl Sink,
    ) -> u32 {
        let slot = self.session_of(packet, tuple, guess, origin, &[], sink);
        self.count(slot, packet, tuple, origin, &[], sink);
        slot
    }

    /// The same for a packet in a tunnel, or one that was put together of fragments.
    #[inline(never)]
    pub(super) fn any_packet(
        &mut self,
        packet: &Packet<'_>,
        tuple: &Tuple,
        origin: &Origin,
        earlier: &[HeldFrame],
        parents: &[Uid],
        sink: &mut impl Sink,
    ) -> u32 {
        let guess = super::session::NONE;
        let slot = self.session_of(packet, tuple, guess, origin, earlier, sink);
        if !parents.is_empty() {
            self.note_parents(slot, parents);
        }
        self.count(slot, packet, tuple, origin, earlier, sink);
        slot
    }

    /// The session of a packet, begun if need be.
    #[inline]
    fn session_of(
        &mut self,
        packet: &Packet<'_>,
        tuple: &Tuple,
        guess: u32,
        origin: &Origin,
        earlier: &[HeldFrame],
        sink: &mut impl Sink,
    ) -> u32 {
        if let Some(slot) = self.find(tuple, guess)
            && !self.end_if_over(slot, origin.ts, sink)
            && !self.end_if_reused(slot, packet, sink)
        {
            return slot;
        }
        self.begin(packet, tuple, origin, earlier, sink)
    }

    /// Counts a packet to a session.
    #[inline]
    fn count(
        &mut self,
        slot: u32,
        packet: &Packet<'_>,
        tuple: &Tuple,
        origin: &Origin,
        earlier: &[HeldFrame],
        sink: &mut impl Sink,
    ) {
        let mut last_ts = self.last_ts(slot);
        let mut frames = 0;
        for held in earlier {
            last_ts = last_ts.max(held.ts);
            frames += i64::from(held.owns_frame);
            self.held_frame(slot, tuple.hash, held, sink);
        }
        last_ts = last_ts.max(origin.ts);
        frames += i64::from(packet.owns_frame);
        self.frame(slot, tuple.hash, origin, packet.owns_frame, sink);

        let hot = &mut self.near[slot as usize].hot;
        let is_orig = tuple.from_low == hot.flags.has(Flags::ORIG_IS_LOW);
        let counts = if let Net::Ip { ip, checksum, payload_len, .. } = packet.net {
            let whole = packet.payload.len() as u64 >= u64::from(payload_len);
            let counted = Counting { checksum, payload_len, whole, total_len: ip.total_len };
            match (Kind::of(hot.class), Segment::of(packet)) {
                (Kind::Tcp, Some(segment)) => {
                    self.tcp(slot, is_orig, &segment, &counted, packet.payload, origin.ts)
                }
                // A datagram without ports met a session of the same key in another guise: it is
                // counted as a frame, and there is nothing more to learn from it.
                (Kind::Tcp, None) | (_, Some(_)) => false,
                (kind, None) => {
                    self.datagram(slot, kind, is_orig, &counted, packet.payload, origin.ts)
                }
            }
        } else {
            hot.last_time = origin.ts;
            let carry = &mut self.cold[slot as usize].carry;
            let who = usize::from(!is_orig);
            add(&mut hot.pkts[who], &mut carry.pkts[who], 1);
            true
        };
        let apart = frames - i64::from(counts);
        if apart != 0 {
            self.cold[slot as usize].frames_apart += apart;
        }
        self.set_last_ts(slot, last_ts);
        self.keep_order(slot);
    }

    /// Counts a frame of a session, whatever it holds.
    #[inline]
    fn frame(
        &mut self,
        slot: u32,
        hash: FlowHash,
        origin: &Origin,
        owned: bool,
        sink: &mut impl Sink,
    ) {
        self.note_time(slot, origin.ts);
        let hot = &mut self.near[slot as usize].hot;
        hot.flags.set(Flags::NEWS, true);
        if owned {
            let carry = &mut self.cold[slot as usize].carry;
            add(&mut hot.frame_bytes, &mut carry.frame_bytes, origin.wire_len);
            self.stats.decoded += 1;
        }
        if let Some(at) = origin.at {
            hot.flags.set(Flags::RECORDED, true);
            hot.pcap_offset = at.offset;
            hot.pcap_segment = at.segment as u32;
            self.recorded = at;
            sink.touch(at, hash, &mut hot.mark);
        }
    }

    /// Counts a frame that waited for the rest of its datagram.
    fn held_frame(&mut self, slot: u32, hash: FlowHash, held: &HeldFrame, sink: &mut impl Sink) {
        self.frame(slot, hash, &Origin::held(held), held.owns_frame, sink);
        self.cold[slot as usize].fragment_overlap |= held.inconsistent;
        if held.owns_frame {
            self.stats.held = self.stats.held.saturating_sub(1);
        }
    }

    #[inline(never)]
    fn begin(
        &mut self,
        packet: &Packet<'_>,
        tuple: &Tuple,
        origin: &Origin,
        earlier: &[HeldFrame],
        sink: &mut impl Sink,
    ) -> u32 {
        let flip = self.sender_is_server(packet);
        let first = earlier.first().map_or(*origin, Origin::held);
        let slot = self.start_slot(tuple, &packet.link, origin.ts, &first, flip, sink);
        let resp = self.ends(slot)[1];
        let hot = &mut self.near[slot as usize].hot;
        hot.class = match tuple.kind {
            // Until a segment tells more, and for good if its checksum is wrong.
            Kind::Tcp => Class::TcpAttempt,
            Kind::Udp if is_dns_port(resp.1) && self.server_ports.udp(resp.1) => Class::Dns,
            Kind::Udp => Class::Udp,
            Kind::Icmp => Class::Icmp,
            Kind::Other => Class::Other,
            Kind::Link => Class::Link,
        };
        self.near[slot as usize].place.deadline = match hot.class {
            Class::Dns => origin.ts + crate::timer::DNS_LOOK,
            _ => origin.ts + self.timeouts.tcp_attempt,
        };
        if tuple.kind == Kind::Tcp {
            self.tcp[slot as usize] = Tcp::new(self.halves);
            self.near[slot as usize].cruise = Cruise::default();
        }
        // Half a session does not know what was said before.
        let hot = &mut self.near[slot as usize].hot;
        let turns = hot.class == Class::Dns
            || (hot.class == Class::Udp && resp.1 == NTP_PORT && self.server_ports.udp(NTP_PORT));
        hot.flags.set(Flags::TURNS[0] | Flags::TURNS[1], turns && !self.halves);
        self.enter(slot, tuple.hash);
        slot
    }

    /// Fills a slot for a new session and leaves its class to the caller.
    fn start_slot(
        &mut self,
        tuple: &Tuple,
        link: &Link,
        start: Nanos,
        first: &Origin,
        flip: bool,
        sink: &mut impl Sink,
    ) -> u32 {
        let slot = self.take_slot(sink);
        let serial = self.stats.created;
        self.stats.created += 1;
        let [low, high] = tuple.key.ends();
        // Ends that are equal have one direction only.
        let orig_is_low = low == high || tuple.from_low != flip;
        let mut history = History::default();
        let mut l2 = [link.src, link.dst];
        if flip {
            history.push(b'^');
            l2.swap(0, 1);
        }
        let mut flags = Flags::default();
        flags.set(Flags::ORIG_IS_LOW, orig_is_low);
        for direction in Flags::DETECTING {
            flags.set(direction, matches!(tuple.kind, Kind::Tcp | Kind::Udp));
        }
        self.near[slot as usize].hot = Hot {
            key: tuple.key.brief(tuple.hash),
            mark: Mark::default(),
            last_time: start,
            flags,
            ..Hot::default()
        };
        self.cold[slot as usize] = Cold {
            key: tuple.key,
            start,
            first_ts: first.ts.min(start),
            looks: Looks::new(start),
            serial,
            iface: first.iface,
            vlan: link.vlan,
            inner_vlan: link.inner_vlan,
            direction_guessed: flip || tuple.kind == Kind::Tcp,
            l2,
            pcap_first: first.at,
            history,
            ..Cold::default()
        };
        self.set_last_ts(slot, first.ts);
        slot
    }

    /// The originator's end and the responder's.
    pub(super) fn ends(&self, slot: u32) -> [(Address, u16); 2] {
        let [low, high] = self.key(slot).ends();
        let orig_is_low = self.near[slot as usize].hot.flags.has(Flags::ORIG_IS_LOW);
        if orig_is_low { [low, high] } else { [high, low] }
    }

    /// Ends a session on whose ends a new one begins. True if it ended.
    #[inline]
    fn end_if_reused(&mut self, slot: u32, packet: &Packet<'_>, sink: &mut impl Sink) -> bool {
        let Some(segment) = Segment::of(packet).filter(Segment::syn) else { return false };
        let reused = Kind::of(self.near[slot as usize].hot.class) == Kind::Tcp
            && self.tcp[slot as usize].is_reuse(&segment);
        if reused {
            self.end(slot, RowReason::Replaced, sink);
        }
        reused
    }

    /// Counts what a datagram carries. True if it is one of the session's packets.
    #[inline]
    fn datagram(
        &mut self,
        slot: u32,
        kind: Kind,
        is_orig: bool,
        counted: &Counting,
        payload: &[u8],
        ts: Nanos,
    ) -> bool {
        let may_turn = counted.checksum == Checksum::Accepted
            && self.near[slot as usize].hot.flags.has(Flags::TURNS[usize::from(!is_orig)]);
        let turns = may_turn && self.turns_round(slot, is_orig, payload);
        let hot = &mut self.near[slot as usize].hot;
        let cold = &mut self.cold[slot as usize];
        let who = usize::from(!is_orig);
        let udp = kind == Kind::Udp;
        let mut notes = Notes {
            // Which letters were written shows in the counters.
            seen: &mut 0,
            history: &mut cold.history,
            times: &mut cold.letter_times,
            now: ts,
        };
        match counted.checksum {
            Checksum::Accepted => {}
            Checksum::Bad if udp => {
                notes.scaled(is_orig, &mut cold.rare[who].bad_checksums, b'C');
                return false;
            }
            Checksum::Bad | Checksum::Malformed => return false,
        }
        hot.last_time = ts;
        if udp && hot.pkts[who] == 0 && cold.carry.pkts[who] == 0 {
            notes.push_once(is_orig, b'D');
        }
        if turns {
            notes.write(b'^');
        }
        let detecting = udp && !payload.is_empty() && hot.flags.has(Flags::DETECTING[who]);
        // Zeek counts what it hands to the layer above, and of ICMP that is not what a snap length
        // cut (ICMPAnalyzer::DeliverPacket).
        let counts = kind != Kind::Icmp || counted.whole;
        if turns {
            let headers = hot.key.header_bytes();
            let taken = |who: usize| {
                whole(cold.carry.ip_bytes[who], hot.ip_bytes[who]) as i64
                    - (whole(cold.carry.pkts[who], hot.pkts[who]) as i64).saturating_mul(headers)
            };
            let more = taken(0).saturating_sub(taken(1));
            // Payload stays where it is, and so does this datagram.
            cold.payload_apart[0] = cold.payload_apart[0].saturating_add(more);
            cold.payload_apart[1] = cold.payload_apart[1].saturating_sub(more);
            hot.pkts.swap(0, 1);
            hot.ip_bytes.swap(0, 1);
            cold.carry.pkts.swap(0, 1);
            cold.carry.ip_bytes.swap(0, 1);
        }
        if counts {
            add(&mut hot.pkts[who], &mut cold.carry.pkts[who], 1);
            add(&mut hot.ip_bytes[who], &mut cold.carry.ip_bytes[who], counted.total_len);
        }
        if matches!(kind, Kind::Udp | Kind::Icmp) {
            // What rows take for payload, and what there is.
            let taken =
                if counts { i64::from(counted.total_len) - hot.key.header_bytes() } else { 0 };
            let apart = i64::from(counted.payload_len) - taken;
            if apart != 0 {
                cold.payload_apart[who] += apart;
            }
        }
        if detecting {
            self.detect(slot, Carrier::Udp, is_orig, 0, payload);
        }
        if turns {
            self.turn_ends(slot);
        }
        counts
    }

    /// Whether a message tells that its session is the other way round: the first DNS message is an
    /// answer, and not to a group (DNS_Interpreter::ParseMessage in src/analyzer/protocol/dns); the
    /// originator speaks as an NTP server, or the responder as a client, once each
    /// (NTP_Flow::proc_ntp_message in src/analyzer/protocol/ntp).
    #[cold]
    fn turns_round(&mut self, slot: u32, is_orig: bool, payload: &[u8]) -> bool {
        const DNS_HEADER: usize = 12;
        const DNS_ANSWER: u8 = 0x80;
        const NTP_MESSAGE: usize = 48;
        const NTP_CLIENT: u8 = 3;
        const NTP_SERVER: u8 = 4;
        let [_, (resp, _)] = self.ends(slot);
        let hot = &mut self.near[slot as usize].hot;
        if hot.class == Class::Dns {
            let Some(flags) = payload.get(2).filter(|_| payload.len() >= DNS_HEADER) else {
                return false;
            };
            hot.flags.set(Flags::TURNS[0] | Flags::TURNS[1], false);
            return is_orig && flags & DNS_ANSWER != 0 && !resp.is_multicast();
        }
        let Some(mode) = payload.first().filter(|_| payload.len() >= NTP_MESSAGE) else {
            return false;
        };
        let turns = mode & 0x07 == if is_orig { NTP_SERVER } else { NTP_CLIENT };
        if turns {
            hot.flags.set(Flags::TURNS[usize::from(!is_orig)], false);
        }
        turns
    }

    /// Swaps the roles of a session's ends, but for what they sent.
    pub(super) fn turn_ends(&mut self, slot: u32) {
        let (hot, cold) = (&mut self.near[slot as usize].hot, &mut self.cold[slot as usize]);
        hot.flags.set(Flags::ORIG_IS_LOW, !hot.flags.has(Flags::ORIG_IS_LOW));
        cold.l2.swap(0, 1);
        let [orig, resp] = Flags::DETECTING.map(|direction| hot.flags.has(direction));
        hot.flags.set(Flags::DETECTING[0], resp);
        hot.flags.set(Flags::DETECTING[1], orig);
        self.services.turn(&mut cold.detector);
    }

    /// Shows payload to the service detector. True if it found an interactive service.
    #[inline(never)]
    pub(super) fn detect(
        &mut self,
        slot: u32,
        carrier: Carrier,
        is_orig: bool,
        offset: u32,
        payload: &[u8],
    ) -> bool {
        let hot = &mut self.near[slot as usize].hot;
        let cold = &mut self.cold[slot as usize];
        let found = self.services.observe(&mut cold.detector, carrier, is_orig, offset, payload);
        hot.flags.set(Flags::DETECTING[0], cold.detector.wants(true));
        hot.flags.set(Flags::DETECTING[1], cold.detector.wants(false));
        let Some(found) = found else { return false };
        if found.detail.is_some() {
            cold.detail = found.detail;
        }
        matches!(found.service, Some(Service::Ssh | Service::Ftp))
    }

    /// Adds the sessions around a tunnelled packet that are not known yet.
    fn note_parents(&mut self, slot: u32, parents: &[Uid]) {
        /// Parents that one session is given: a session that hops from tunnel to tunnel is
        /// hostile or a matter of routing, and its row has to stay small.
        const MAX: usize = 8;
        let known = &mut self.cold[slot as usize].parents;
        let old = known.as_deref().unwrap_or(&[]);
        if old.len() >= MAX || parents.iter().all(|parent| old.contains(parent)) {
            return;
        }
        let new = parents.iter().filter(|parent| !old.contains(parent));
        let all: Vec<Uid> = old.iter().chain(new).copied().take(MAX).collect();
        *known = Some(all.into_boxed_slice());
    }

    /// Counts the frames of a datagram that never became complete: to a session without ports,
    /// since only the first fragment knows them.
    pub(super) fn incomplete(
        &mut self,
        datagram: &IncompleteDatagram<'_>,
        now: Nanos,
        sink: &mut impl Sink,
    ) {
        let Some(first) = datagram.frames.first() else { return };
        let first = Origin::held(first);
        let (src, dst) = (Address::Ip(datagram.src), Address::Ip(datagram.dst));
        let protocol = Protocol::Ip(datagram.protocol);
        let tuple = self.tuple_of((src, 0), (dst, 0), protocol, &datagram.link, Kind::Other);
        let mut found = self.find(&tuple, super::session::NONE);
        if let Some(slot) = found
            && self.end_if_over(slot, now, sink)
        {
            found = None;
        }
        let slot = found.unwrap_or_else(|| {
            let slot = self.start_slot(&tuple, &datagram.link, first.ts, &first, false, sink);
            // The idle limit runs from now: the frames are as old as the datagram's time limit.
            let hot = &mut self.near[slot as usize].hot;
            hot.class = Class::Other;
            hot.last_time = now;
            self.set_last_ts(slot, first.ts);
            self.enter(slot, tuple.hash);
            slot
        });
        let mut last_ts = self.last_ts(slot);
        for held in datagram.frames {
            last_ts = last_ts.max(held.ts);
            self.cold[slot as usize].frames_apart += i64::from(held.owns_frame);
            self.held_frame(slot, tuple.hash, held, sink);
        }
        self.set_last_ts(slot, last_ts);
    }

    /// What the decoder asks about a session.
    pub(super) fn counted(&self, slot: u32) -> Counted {
        let [_, resp] = self.ends(slot);
        let tunnel_refused = self.cold[slot as usize].tunnel_refused;
        Counted { responder_port: resp.1, tunnel_refused }
    }

    pub(super) fn refuse_tunnel(&mut self, slot: u32) {
        self.cold[slot as usize].tunnel_refused = true;
    }
}
