//! What one packet does to its session.

use crate::datagram::Datagram;
use crate::decode::{Counted, HeldFrame, IncompleteDatagram};
use crate::frame::{Frame, IfaceId, PcapPosition};
use crate::key::{Address, Protocol};
use crate::packet::{Checksum, Link, Net, Packet, TcpFlags, Transport as Header};
use crate::record::{History, RowReason, Service, Uid};
use crate::service::Carrier;
use crate::sink::{Mark, Sink};
use crate::tcp::{Effect, EndState, Notes, Segment, Tcp};
use crate::time::Nanos;
use crate::timer::{Class, is_dns_port, is_interactive_port, linger_look};

use super::core::Core;
use super::session::{Cold, Hot, Kind, Transport};
use super::tuple::Tuple;

/// History of a session that began with a SYN-ACK.
const SYN_ACK_FROM_ORIG: &str = "H";

/// What a packet may count for.
struct Counting {
    checksum: Checksum,
    payload_len: u32,
    /// Whether the capture holds the whole payload.
    whole: bool,
    total_len: u32,
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

impl Core {
    /// Counts a packet to its session, which begins if there is none. Returns the session's slot.
    pub(super) fn packet(
        &mut self,
        packet: &Packet<'_>,
        tuple: &Tuple,
        origin: &Origin,
        earlier: &[HeldFrame],
        parents: &[Uid],
        sink: &mut impl Sink,
    ) -> u32 {
        let segment = segment(packet);
        let mut found = self.find(tuple);
        if let Some(slot) = found
            && self.end_if_over(slot, origin.ts, sink)
        {
            found = None;
        }
        if let (Some(slot), Some(segment)) = (found, &segment)
            && let Transport::Tcp(tcp) = &self.hot[slot as usize].transport
            && tcp.is_reuse(segment)
        {
            self.end(slot, RowReason::Replaced, sink);
            found = None;
        }
        let slot = match found {
            Some(slot) => slot,
            None => self.begin(packet, tuple, origin, earlier, sink),
        };
        if !parents.is_empty() {
            self.note_parents(slot, parents);
        }

        for held in earlier {
            self.held_frame(slot, held, sink);
        }
        self.frame(slot, origin, packet.owns_frame, sink);

        let is_orig = tuple.from_low == self.hot[slot as usize].orig_is_low;
        let Net::Ip { ip, checksum, payload_len, .. } = packet.net else {
            let hot = &mut self.hot[slot as usize];
            hot.pkts[usize::from(!is_orig)] += 1;
            hot.last_time = origin.ts;
            self.keep_order(slot);
            return slot;
        };
        let whole = packet.payload.len() as u64 >= u64::from(payload_len);
        match (&mut self.hot[slot as usize].transport, segment) {
            (Transport::Tcp(_), Some(segment)) => {
                let counted = Counting { checksum, payload_len, whole, total_len: ip.total_len };
                self.tcp(slot, is_orig, &segment, &counted, packet.payload, origin.ts);
            }
            (Transport::Datagram(_), None) => {
                let counted = Counting { checksum, payload_len, whole, total_len: ip.total_len };
                self.datagram(slot, is_orig, &counted, packet.payload, origin.ts);
            }
            // A datagram without ports met a session of the same key in another guise: it is
            // counted as a frame, and there is nothing more to learn from it.
            _ => {}
        }
        self.keep_order(slot);
        slot
    }

    /// Counts a frame of a session, whatever it holds.
    #[inline]
    fn frame(&mut self, slot: u32, origin: &Origin, owned: bool, sink: &mut impl Sink) {
        self.note_time(slot, origin.ts);
        let hot = &mut self.hot[slot as usize];
        hot.news = true;
        hot.last_ts = hot.last_ts.max(origin.ts);
        if owned {
            hot.frames += 1;
            hot.frame_bytes += u64::from(origin.wire_len);
            self.stats.decoded += 1;
        }
        if let Some(at) = origin.at {
            hot.pcap_last = Some(at);
            sink.touch(at, hot.hash, &mut hot.mark);
        }
    }

    /// Counts a frame that waited for the rest of its datagram.
    fn held_frame(&mut self, slot: u32, held: &HeldFrame, sink: &mut impl Sink) {
        self.frame(slot, &Origin::held(held), held.owns_frame, sink);
        self.cold[slot as usize].fragment_overlap |= held.inconsistent;
        if held.owns_frame {
            self.stats.held = self.stats.held.saturating_sub(1);
        }
    }

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
        let hot = &mut self.hot[slot as usize];
        let [_, resp] = {
            let [low, high] = hot.key.ends();
            if hot.orig_is_low { [low, high] } else { [high, low] }
        };
        hot.class = match tuple.kind {
            // Until a segment tells more, and for good if its checksum is wrong.
            Kind::Tcp => Class::TcpAttempt,
            Kind::Udp if is_dns_port(resp.1) && self.server_ports.udp(resp.1) => Class::Dns,
            Kind::Udp => Class::Udp,
            Kind::Icmp => Class::Icmp,
            Kind::Other | Kind::Link => Class::Other,
        };
        hot.deadline = match hot.class {
            Class::Dns => origin.ts + crate::timer::DNS_LOOK,
            _ => origin.ts + self.timeouts.tcp_attempt,
        };
        if tuple.kind == Kind::Tcp {
            hot.transport = Transport::Tcp(Tcp::new(self.halves));
        }
        self.enter(slot);
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
        self.hot[slot as usize] = Hot {
            key: tuple.key,
            hash: tuple.hash,
            last_ts: first.ts,
            last_time: start,
            mark: Mark::default(),
            kind: tuple.kind,
            orig_is_low,
            detecting: [matches!(tuple.kind, Kind::Tcp | Kind::Udp); 2],
            direction_guessed: flip || tuple.kind == Kind::Tcp,
            ..Hot::default()
        };
        self.cold[slot as usize] = Cold {
            start,
            first_ts: first.ts.min(start),
            serial,
            iface: first.iface,
            vlan: link.vlan,
            inner_vlan: link.inner_vlan,
            l2,
            pcap_first: first.at,
            history,
            ..Cold::default()
        };
        slot
    }

    fn tcp(
        &mut self,
        slot: u32,
        is_orig: bool,
        segment: &Segment,
        counted: &Counting,
        payload: &[u8],
        ts: Nanos,
    ) {
        let hot = &mut self.hot[slot as usize];
        let cold = &mut self.cold[slot as usize];
        let Transport::Tcp(tcp) = &mut hot.transport else { return };
        let mut notes = Notes {
            seen: &mut hot.seen,
            history: &mut cold.history,
            times: &mut cold.letter_times,
            now: ts,
        };
        match counted.checksum {
            Checksum::Accepted => {}
            Checksum::Bad => {
                tcp.bad_checksum(is_orig, &mut notes);
                return;
            }
            Checksum::Malformed => return,
        }
        if !tcp.both_closed() {
            hot.last_time = ts;
        }
        // Zeek since 5.1: an acknowledgement or data right after a lone SYN-ACK, from either side,
        // tells that it was no scan but that the SYN was missed.
        let control = segment.flags.has(TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST);
        let missed_syn =
            tcp.only_syn_ack() && !control && notes.history.as_str() == SYN_ACK_FROM_ORIG;
        if missed_syn {
            tcp.flip_after_syn_ack();
            // The SYN-ACK stays at the beginning, whatever is written in front of it.
            *notes.history = History::default();
            notes.now = cold.start;
            notes.write(b'^');
            notes.write(b'h');
            notes.now = ts;
        }
        let is_orig = is_orig != missed_syn;
        let had_holes = tcp.has_holes();
        let segment = &Segment { room: self.holed < self.max_holed, ..*segment };
        let mut effect = tcp.segment(is_orig, segment, &mut notes);
        self.holed += u32::from(tcp.has_holes());
        self.holed -= u32::from(had_holes);
        effect.state_changed |= missed_syn;
        let established =
            tcp.orig().state == EndState::Established && tcp.resp().state == EndState::Established;
        if effect.flipped || missed_syn {
            hot.orig_is_low = !hot.orig_is_low;
            hot.pkts.swap(0, 1);
            hot.ip_bytes.swap(0, 1);
            cold.l2.swap(0, 1);
            hot.detecting.swap(0, 1);
            self.services.turn(&mut cold.detector);
        }
        if missed_syn {
            hot.direction_guessed = false;
        }
        if segment.flags.has(TcpFlags::SYN) {
            // A SYN tells who began, and so does its answer.
            let syn_ack = segment.flags.has(TcpFlags::ACK);
            if syn_ack != is_orig || effect.flipped {
                hot.direction_guessed = false;
            }
            if !is_orig && established && effect.state_changed {
                let [low, high] = hot.key.ends();
                let resp = if hot.orig_is_low { high } else { low };
                hot.interactive |= is_interactive_port(resp.1);
            }
        }
        // Zeek decides before the roles swap, so that the SYN counts to the responder.
        let who = usize::from(!is_orig);
        hot.pkts[who] += 1;
        hot.ip_bytes[who] += u64::from(counted.total_len);
        let from_orig = is_orig != effect.flipped;
        if let Some(offset) = effect.payload_offset
            && hot.detecting[usize::from(!from_orig)]
        {
            effect.state_changed |= self.detect(slot, Carrier::Tcp, from_orig, offset, payload);
        }
        let goes_on = self.halves && self.hot[slot as usize].class == Class::TcpAttempt;
        if effect.state_changed || goes_on {
            self.reclass_tcp(slot, &effect, ts);
        }
    }

    /// Shows payload to the service detector. True if the idle limit may be another now.
    #[inline(never)]
    fn detect(
        &mut self,
        slot: u32,
        carrier: Carrier,
        is_orig: bool,
        offset: u32,
        payload: &[u8],
    ) -> bool {
        let hot = &mut self.hot[slot as usize];
        let cold = &mut self.cold[slot as usize];
        let found = self.services.observe(&mut cold.detector, carrier, is_orig, offset, payload);
        hot.detecting = [cold.detector.wants(true), cold.detector.wants(false)];
        let Some(found) = found else { return false };
        if found.detail.is_some() {
            cold.detail = found.detail;
        }
        let interactive = matches!(found.service, Some(Service::Ssh | Service::Ftp));
        let news = interactive && carrier == Carrier::Tcp && !hot.interactive;
        hot.interactive |= news;
        news
    }

    /// Puts a TCP session whose state changed under the limit that holds now.
    fn reclass_tcp(&mut self, slot: u32, effect: &Effect, ts: Nanos) {
        let start = self.cold[slot as usize].start;
        let hot = &mut self.hot[slot as usize];
        let Transport::Tcp(tcp) = &hot.transport else { return };
        let old = hot.class;
        if old == Class::TcpClosing {
            return;
        }
        let (orig, resp) = (tcp.orig(), tcp.resp());
        let reset = orig.state == EndState::Reset || resp.state == EndState::Reset;
        let unseen = orig.state == EndState::Inactive || resp.state == EndState::Inactive;
        // Where another worker may see the other side, an originator that goes on had an answer,
        // and who answers may have to wait for more.
        let half = self.halves
            && (hot.seen & Notes::BEYOND_HANDSHAKE != 0 || orig.state == EndState::SynAckSent);
        let attempt = matches!(orig.state, EndState::SynSent | EndState::SynAckSent)
            && resp.state == EndState::Inactive
            && !half;
        let (class, deadline) = if effect.closing {
            let grace = if reset { self.timeouts.tcp_reset } else { self.timeouts.tcp_close };
            (Class::TcpClosing, hot.last_time + grace)
        } else if attempt {
            if old == Class::TcpAttempt {
                return;
            }
            (Class::TcpAttempt, ts + self.timeouts.tcp_attempt)
        } else if (orig.did_close || resp.did_close) && (reset || unseen || tcp.both_closed()) {
            (Class::TcpLingering, linger_look(start, hot.last_time))
        } else if effect.partly_closed {
            (Class::TcpPartlyClosed, hot.last_time + self.timeouts.tcp_partial_close)
        } else if old == Class::TcpPartlyClosed && !tcp.both_closed() {
            return;
        } else if hot.interactive {
            (Class::TcpInteractive, hot.deadline)
        } else if tcp.handshake_done() || half {
            (Class::Tcp, hot.deadline)
        } else {
            (Class::TcpHandshake, hot.deadline)
        };
        hot.deadline = deadline;
        if class != old {
            self.set_class(slot, class);
        }
    }

    fn datagram(
        &mut self,
        slot: u32,
        is_orig: bool,
        counted: &Counting,
        payload: &[u8],
        ts: Nanos,
    ) {
        let hot = &mut self.hot[slot as usize];
        let cold = &mut self.cold[slot as usize];
        let Transport::Datagram(datagram) = &mut hot.transport else { return };
        let who = usize::from(!is_orig);
        let mut notes = Notes {
            seen: &mut hot.seen,
            history: &mut cold.history,
            times: &mut cold.letter_times,
            now: ts,
        };
        let udp = hot.kind == Kind::Udp;
        match counted.checksum {
            Checksum::Accepted => {}
            Checksum::Bad if udp => {
                notes.scaled(is_orig, &mut datagram.bad_checksums[who], b'C');
                return;
            }
            Checksum::Bad | Checksum::Malformed => return,
        }
        hot.last_time = ts;
        match hot.kind {
            Kind::Udp => {
                notes.repeated(is_orig, Datagram::DATA, b'D');
                datagram.count(is_orig, counted.payload_len);
            }
            Kind::Icmp => datagram.count(is_orig, counted.payload_len),
            _ => {}
        }
        let detecting = udp && hot.detecting[who] && !payload.is_empty();
        // Zeek counts what it hands to the layer above, and a packet cut by the snap length goes
        // there only over UDP.
        if udp || counted.whole {
            hot.pkts[who] += 1;
            hot.ip_bytes[who] += u64::from(counted.total_len);
        }
        if detecting {
            self.detect(slot, Carrier::Udp, is_orig, 0, payload);
        }
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
        let mut found = self.find(&tuple);
        if let Some(slot) = found
            && self.end_if_over(slot, now, sink)
        {
            found = None;
        }
        let slot = found.unwrap_or_else(|| {
            let slot = self.start_slot(&tuple, &datagram.link, first.ts, &first, false, sink);
            // The idle limit runs from now: the frames are as old as the datagram's time limit.
            let hot = &mut self.hot[slot as usize];
            hot.class = Class::Other;
            hot.last_time = now;
            self.enter(slot);
            slot
        });
        for held in datagram.frames {
            self.held_frame(slot, held, sink);
        }
    }

    /// What the decoder asks about a session.
    pub(super) fn counted(&self, slot: u32) -> Counted {
        let hot = &self.hot[slot as usize];
        let [low, high] = hot.key.ends();
        let resp = if hot.orig_is_low { high } else { low };
        Counted { responder_port: resp.1, tunnel_refused: hot.tunnel_refused }
    }

    pub(super) fn refuse_tunnel(&mut self, slot: u32) {
        self.hot[slot as usize].tunnel_refused = true;
    }
}

/// The TCP segment in a packet.
#[inline]
fn segment(packet: &Packet<'_>) -> Option<Segment> {
    let Net::Ip { transport: Header::Tcp { seq, ack, flags, window, .. }, payload_len, .. } =
        packet.net
    else {
        return None;
    };
    let whole = packet.payload.len() as u64 >= u64::from(payload_len);
    Some(Segment { seq, ack, flags, window, len: payload_len, whole, room: true })
}
