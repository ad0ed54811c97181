//! What a TCP segment does to its session, and which idle limit the session is under then.

use crate::memory::Memory;
use crate::packet::{Checksum, Net, Packet, TcpFlags, Transport as Header};
use crate::record::History;
use crate::service::Carrier;
use crate::tcp::{Effect, EndState, Notes, Segment};
use crate::time::Nanos;
use crate::timer::{Class, is_interactive_port};

use super::account::{Counting, add};
use super::core::Core;
use super::session::{Flags, Near};

/// History of a session that began with a SYN-ACK.
const SYN_ACK_FROM_ORIG: &str = "H";

impl Segment {
    /// The TCP segment in a packet.
    #[inline]
    pub(super) fn of(packet: &Packet<'_>) -> Option<Self> {
        let Net::Ip { transport: Header::Tcp { seq, ack, flags, window, .. }, payload_len, .. } =
            packet.net
        else {
            return None;
        };
        let whole = packet.payload.len() as u64 >= u64::from(payload_len);
        Some(Self { seq, ack, flags, window, len: payload_len, whole, room: true })
    }
}

impl<M: Memory> Core<M> {
    /// Counts a segment. True if it is one of the session's packets.
    pub(super) fn tcp(
        &mut self,
        slot: u32,
        is_orig: bool,
        segment: &Segment,
        counted: &Counting,
        payload: &[u8],
        ts: Nanos,
    ) -> bool {
        let Near { hot, cruise, .. } = &mut self.near[slot as usize];
        let tcp = &mut self.tcp[slot as usize];
        tcp.land(cruise);
        let cold = &mut self.cold[slot as usize];
        let mut seen = tcp.seen;
        let mut notes = Notes {
            seen: &mut seen,
            history: &mut cold.history,
            times: &mut cold.letter_times,
            now: ts,
        };
        match counted.checksum {
            Checksum::Accepted => {}
            Checksum::Bad => {
                let count = &mut cold.rare[usize::from(!is_orig)].bad_checksums;
                notes.scaled(is_orig, count, b'C');
                return false;
            }
            Checksum::Malformed => return false,
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
            tcp.flip_after_syn_ack(&mut cold.rare);
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
        let mut effect = tcp.segment(is_orig, segment, &mut notes, &mut cold.rare);
        tcp.seen = seen;
        *cruise = tcp.cruise();
        self.holed += u32::from(tcp.has_holes());
        self.holed -= u32::from(had_holes);
        effect.state_changed |= missed_syn;
        if effect.flipped || missed_syn {
            hot.pkts.swap(0, 1);
            hot.ip_bytes.swap(0, 1);
            cold.carry.pkts.swap(0, 1);
            cold.carry.ip_bytes.swap(0, 1);
            self.turn_ends(slot);
        }
        let (hot, cold) = (&mut self.near[slot as usize].hot, &mut self.cold[slot as usize]);
        if missed_syn {
            cold.direction_guessed = false;
        }
        // Zeek decides before the roles swap, so that the SYN counts to the responder.
        let who = usize::from(!is_orig);
        add(&mut hot.pkts[who], &mut cold.carry.pkts[who], 1);
        add(&mut hot.ip_bytes[who], &mut cold.carry.ip_bytes[who], counted.total_len);
        let from_orig = is_orig != effect.flipped;
        let detecting = hot.flags.has(Flags::DETECTING[usize::from(!from_orig)]);
        if segment.flags.has(TcpFlags::SYN) {
            self.note_syn(slot, is_orig, segment, &effect);
        }
        if let Some(offset) = effect.payload_offset
            && detecting
            && self.detect(slot, Carrier::Tcp, from_orig, offset, payload)
        {
            let interactive = &mut self.tcp[slot as usize].interactive;
            effect.state_changed |= !*interactive;
            *interactive = true;
        }
        let goes_on = self.halves && self.near[slot as usize].hot.class == Class::TcpAttempt;
        if effect.state_changed || goes_on {
            self.reclass_tcp(slot, &effect, ts);
        }
        true
    }

    /// A SYN tells who began, and so does its answer.
    fn note_syn(&mut self, slot: u32, is_orig: bool, segment: &Segment, effect: &Effect) {
        let syn_ack = segment.flags.has(TcpFlags::ACK);
        if syn_ack != is_orig || effect.flipped {
            self.cold[slot as usize].direction_guessed = false;
        }
        let [_, resp] = self.ends(slot);
        let tcp = &mut self.tcp[slot as usize];
        let established =
            tcp.orig().state == EndState::Established && tcp.resp().state == EndState::Established;
        if !is_orig && established && effect.state_changed {
            tcp.interactive |= is_interactive_port(resp.1);
        }
    }

    /// Puts a TCP session whose state changed under the limit that holds now.
    #[inline(never)]
    fn reclass_tcp(&mut self, slot: u32, effect: &Effect, ts: Nanos) {
        let looks = &mut self.cold[slot as usize].looks;
        let Near { hot, place, .. } = &mut self.near[slot as usize];
        let tcp = &self.tcp[slot as usize];
        let old = hot.class;
        if effect.half_closed {
            looks.close(hot.last_time);
        }
        // A session that is over waits for the other side's close, and from then on anew.
        if old == Class::TcpClosing && !effect.closing {
            return;
        }
        let (orig, resp) = (tcp.orig(), tcp.resp());
        let reset = orig.state == EndState::Reset || resp.state == EndState::Reset;
        let unseen = orig.state == EndState::Inactive || resp.state == EndState::Inactive;
        // Where another worker may see the other side, an originator that goes on had an answer,
        // and who answers may have to wait for more.
        let half = self.halves
            && (tcp.seen & Notes::BEYOND_HANDSHAKE != 0 || orig.state == EndState::SynAckSent);
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
        } else if (orig.did_close || resp.did_close)
            && (reset || unseen || tcp.both_closed())
            && tcp.may_linger()
        {
            (Class::TcpLingering, looks.last(hot.last_time))
        } else if effect.partly_closed {
            (Class::TcpPartlyClosed, hot.last_time + self.timeouts.tcp_partial_close)
        } else if old == Class::TcpPartlyClosed && !tcp.both_closed() {
            return;
        } else if tcp.interactive {
            (Class::TcpInteractive, place.deadline)
        } else if tcp.handshake_done() || half {
            (Class::Tcp, place.deadline)
        } else {
            (Class::TcpHandshake, place.deadline)
        };
        place.deadline = deadline;
        // A list stands in the order of the deadlines.
        if class != old || effect.closing {
            self.set_class(slot, class);
        }
    }
}
