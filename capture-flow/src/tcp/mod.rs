//! TCP by Zeek's rules: what a segment does to the two ends, the history and the byte counts.
//!
//! The rules are those of TCPSessionAdapter, TCP_Endpoint and TCP_Reassembler in Zeek's sources
//! (src/packet_analysis/protocol/tcp, src/analyzer/protocol/tcp); the payload itself is never
//! kept, only which sequence numbers were seen.

mod cruise;
mod endpoint;
mod half;
mod notes;
mod reassembly;

pub(crate) use cruise::Cruise;
pub(crate) use endpoint::{EndState, Endpoint, Rare};
pub use half::HalfStream;
pub(crate) use half::Missed;
pub(crate) use notes::Notes;

use crate::packet::TcpFlags;
use crate::record::ConnState;
use notes::once;
use reassembly::OutOfOrder;

/// A jump in sequence numbers that Zeek does not believe of a SYN or a RST.
const TOO_LARGE_SEQ_DELTA: i32 = 1 << 20;

/// One segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: TcpFlags,
    pub(crate) window: u16,
    /// Payload bytes by the headers.
    pub(crate) len: u32,
    /// Whether the capture holds all of them.
    pub(crate) whole: bool,
    /// Whether there is memory for one more session with data beyond a hole.
    pub(crate) room: bool,
}

impl Segment {
    #[inline]
    pub(crate) fn syn(&self) -> bool {
        self.flags.has(TcpFlags::SYN)
    }

    #[inline]
    fn fin(&self) -> bool {
        self.flags.has(TcpFlags::FIN)
    }

    #[inline]
    fn rst(&self) -> bool {
        self.flags.has(TcpFlags::RST)
    }

    #[inline]
    fn has_ack(&self) -> bool {
        self.flags.has(TcpFlags::ACK)
    }

    /// Sequence numbers the segment takes: SYN and FIN one each, data unless it is a RST's.
    #[inline]
    fn seq_len(&self) -> u32 {
        let data = if self.rst() { 0 } else { self.len };
        data.wrapping_add(u32::from(self.syn())).wrapping_add(u32::from(self.fin()))
    }
}

/// What a segment changed beyond counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effect {
    /// The roles were swapped: a SYN came after its SYN-ACK.
    pub(crate) flipped: bool,
    /// A state changed, so the idle limits may have.
    pub(crate) state_changed: bool,
    /// One side closed and the session goes away soon (`tcp_close_delay`).
    pub(crate) closing: bool,
    /// One side closed whose first segment this was (`tcp_partial_close_delay`).
    pub(crate) partly_closed: bool,
    /// One side closed, the other not yet: Zeek looks from then on, too, whether it lingers.
    pub(crate) half_closed: bool,
    /// Where the segment's payload lies in its stream, if it is in order to be read.
    pub(crate) payload_offset: Option<u32>,
}

/// The TCP half of a session, but for what few segments need ([`Rare`]): two cache lines. A session
/// in full swing has its numbers in a [`Cruise`].
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Tcp {
    /// Originator and responder.
    ends: [Endpoint; 2],
    /// Payload that was acknowledged but never seen, both directions.
    pub(crate) missed_bytes: u64,
    /// Sequence ranges beyond a hole; none for a session in order.
    beyond: Option<Box<OutOfOrder>>,
    /// History letters noted, see [`Notes`].
    pub(crate) seen: u32,
    partial: bool,
    /// Whether any segment was seen from the originator, the responder.
    first_seen: [bool; 2],
    close_deferred: bool,
    /// An end aborted it while it was open: Zeek looks no more whether it lingers.
    aborted: bool,
    handshake_done: bool,
    /// Whether another worker may see the other direction.
    halves: bool,
    /// Whether the session has the long idle limit of interactive ones.
    pub(crate) interactive: bool,
}

const _: () = assert!(size_of::<Tcp>() == 128);

const ORIG: usize = 0;
const RESP: usize = 1;

impl Tcp {
    /// A session of which nothing was seen yet. `halves` says whether another worker may see one
    /// of its directions.
    pub(crate) fn new(halves: bool) -> Self {
        Self { halves, ..Self::default() }
    }

    #[inline]
    pub(crate) fn orig(&self) -> &Endpoint {
        &self.ends[ORIG]
    }

    #[inline]
    pub(crate) fn resp(&self) -> &Endpoint {
        &self.ends[RESP]
    }

    /// Whether both sides closed: later frames leave the duration alone.
    #[inline]
    pub(crate) fn both_closed(&self) -> bool {
        self.ends[ORIG].did_close && self.ends[RESP].did_close
    }

    /// Whether the handshake came as far as Zeek asks before it grants the long idle limit.
    #[inline]
    pub(crate) fn handshake_done(&self) -> bool {
        self.handshake_done
    }

    /// Whether Zeek looks from time to time whether it lingers, one side having closed
    /// (`is_active`, which ConnectionReset takes away).
    #[inline]
    pub(crate) fn may_linger(&self) -> bool {
        !self.aborted
    }

    /// Whether data beyond a hole is remembered, outside the table's own memory.
    #[inline]
    pub(crate) fn has_holes(&self) -> bool {
        self.beyond.is_some()
    }

    /// Whether this segment begins a new session on the same ends (TCPSessionAdapter::IsReuse).
    #[inline]
    pub(crate) fn is_reuse(&self, segment: &Segment) -> bool {
        if !segment.syn() {
            return false;
        }
        let [orig, resp] = &self.ends;
        let starter = if segment.has_ack() {
            if orig.state != EndState::Inactive {
                return false;
            }
            resp
        } else {
            orig
        };
        if orig.did_close || resp.did_close {
            return true;
        }
        if segment.seq == starter.start_seq {
            return false;
        }
        let reversed_handshake = !segment.has_ack()
            && starter.state == EndState::SynAckSent
            && resp.state == EndState::Inactive
            && segment.seq == resp.start_seq;
        !reversed_handshake
    }

    /// Accounts a segment.
    pub(crate) fn segment(
        &mut self,
        is_orig: bool,
        segment: &Segment,
        notes: &mut Notes<'_>,
        rare: &mut [Rare; 2],
    ) -> Effect {
        let mut effect = Effect::default();
        // Roles can swap on the way: `me` follows the end, not the role.
        let mut me = usize::from(!is_orig);
        let you = 1 - me;
        let role = is_orig;

        self.set_partial_status(me, segment);
        let past = segment.seq.wrapping_add(segment.seq_len());
        self.ends[me].begin(segment.syn(), segment.seq, past);
        let (rel_seq, underflow) = self.ends[me].relative_seq(segment.seq);
        note_flags(&mut rare[me], role, segment, rel_seq, notes);
        self.note_window(&mut rare[me], role, segment, notes);

        if segment.fin() {
            self.ends[me].fin_seen = true;
            rare[me].fin_seq = rel_seq.wrapping_add(u64::from(segment.seq_len()));
        }

        let mut rel_ack = 0;
        if segment.has_ack() {
            let peer = &mut self.ends[you];
            if peer.state == EndState::Inactive {
                if self.halves && !segment.rst() {
                    let known = rare[you].unheard_acked.get_or_insert(segment.ack);
                    *known = endpoint::later(*known, segment.ack);
                }
                rel_ack = 1;
                peer.begin_from_ack(segment.ack);
            } else {
                let (relative, underflow) = peer.relative_ack(segment.ack);
                if !underflow {
                    rel_ack = relative;
                    if !segment.rst() {
                        peer.update_ack(segment.ack);
                    }
                }
            }
        }

        if self.ends[me].update_last(past, segment) {
            notes.scaled(role, &mut rare[me].retransmissions, b'T');
        }
        let before = (self.ends[ORIG].state, self.ends[RESP].state);
        let do_close = self.advance_state(&mut me, role, segment, notes, rare, &mut effect);
        let you = 1 - me;
        effect.state_changed |= before != (self.ends[ORIG].state, self.ends[RESP].state);

        if segment.has_ack() {
            self.ack_received(you, rel_ack, notes, &rare[you], &mut effect);
        }
        self.first_seen[usize::from(!role)] = true;

        if segment.len > 0 && !segment.rst() && !underflow && segment.whole {
            let data_seq = rel_seq.wrapping_add(u64::from(segment.syn()));
            effect.payload_offset = u32::try_from(data_seq.wrapping_sub(1)).ok();
            self.data_sent(me, data_seq, u64::from(segment.len), segment.room);
        }
        self.check_eof(me, &mut effect);
        if do_close {
            self.connection_closed(me, &mut effect);
        }
        effect
    }

    /// Whether a SYN-ACK is all there is so far: a scan, or a session whose SYN was missed.
    #[inline]
    pub(crate) fn only_syn_ack(&self) -> bool {
        self.ends[ORIG].state == EndState::SynAckSent && self.ends[RESP].state == EndState::Inactive
    }

    /// Swaps the roles of a session whose SYN-ACK was followed by an acknowledgement or data, as
    /// no scan's is.
    pub(crate) fn flip_after_syn_ack(&mut self, rare: &mut [Rare; 2]) {
        self.flip(rare);
        self.set_state(RESP, EndState::Established);
    }

    fn set_partial_status(&mut self, me: usize, segment: &Segment) {
        if self.first_seen[me] {
            return;
        }
        if me == ORIG {
            self.partial = !segment.syn() || segment.has_ack();
        } else if !self.partial {
            self.partial = !segment.syn();
        }
    }

    /// A zero window is worth a letter unless it comes with or after a reset, or after the peer
    /// said that it has nothing more to send.
    fn note_window(&self, end: &mut Rare, role: bool, segment: &Segment, notes: &mut Notes<'_>) {
        if segment.window == 0 && !segment.rst() && !self.leaves_window_out(role) {
            notes.scaled(role, &mut end.zero_windows, b'W');
        }
    }

    /// Whether a zero window of this end says nothing any more.
    pub(crate) fn leaves_window_out(&self, is_orig: bool) -> bool {
        let me = usize::from(!is_orig);
        self.ends[1 - me].state == EndState::Closed || self.ends[me].state == EndState::Reset
    }

    /// The state machine (UpdateStateMachine and its parts). True if the end closes.
    fn advance_state(
        &mut self,
        me: &mut usize,
        role: bool,
        segment: &Segment,
        notes: &mut Notes<'_>,
        rare: &mut [Rare; 2],
        effect: &mut Effect,
    ) -> bool {
        let you = 1 - *me;
        match self.ends[*me].state {
            EndState::Inactive => self.when_inactive(me, role, segment, notes, rare, effect),
            EndState::SynSent | EndState::SynAckSent => {
                if segment.fin() {
                    self.set_state(*me, EndState::Closed);
                }
                if segment.rst() {
                    self.set_state(*me, EndState::Reset);
                    self.aborted = true;
                }
                segment.fin() || segment.rst()
            }
            EndState::Established | EndState::Partial => self.when_established(*me, you, segment),
            EndState::Closed => {
                if !segment.rst() || self.ends[you].state == EndState::Closed {
                    return false;
                }
                self.set_state(*me, EndState::Reset);
                !self.ends[*me].did_close
            }
            EndState::Reset => false,
        }
    }

    fn when_inactive(
        &mut self,
        me: &mut usize,
        role: bool,
        segment: &Segment,
        notes: &mut Notes<'_>,
        rare: &mut [Rare; 2],
        effect: &mut Effect,
    ) -> bool {
        let mut do_close = false;
        let mut you = 1 - *me;
        if segment.syn() {
            if role {
                let state =
                    if segment.has_ack() { EndState::SynAckSent } else { EndState::SynSent };
                self.set_state(*me, state);
            } else {
                let reversed = !segment.has_ack()
                    && self.ends[you].state == EndState::SynAckSent
                    && segment.seq == self.ends[*me].start_seq;
                if reversed {
                    self.flip(rare);
                    std::mem::swap(me, &mut you);
                    notes.write(b'^');
                    effect.flipped = true;
                    self.set_state(you, EndState::Established);
                    self.first_seen[ORIG] = true;
                }
                if self.ends[you].state == EndState::SynSent {
                    self.set_state(you, EndState::Established);
                }
                self.set_state(*me, EndState::Established);
            }
        }
        if segment.fin() {
            self.set_state(*me, EndState::Closed);
            do_close = true;
        }
        if segment.rst() {
            self.set_state(*me, EndState::Reset);
            do_close = true;
        }
        if self.ends[*me].state == EndState::Inactive {
            let eccentric_ack =
                !role && segment.len == 0 && self.ends[ORIG].state == EndState::SynSent;
            if eccentric_ack {
                // Some stacks acknowledge a SYN before they answer it.
            } else if segment.has_ack() && self.ends[you].state == EndState::Established {
                // Only the first SYN is missing.
                self.set_state(*me, EndState::Established);
                self.partial = false;
                self.first_seen[usize::from(!role)] = true;
            } else {
                self.set_state(*me, EndState::Partial);
            }
        }
        do_close
    }

    fn when_established(&mut self, me: usize, you: usize, segment: &Segment) -> bool {
        let mut do_close = false;
        if segment.syn()
            && !segment.has_ack()
            && self.ends[me].state == EndState::Partial
            && self.ends[you].state == EndState::Inactive
        {
            self.set_state(me, EndState::SynSent);
        }
        if segment.fin() && !segment.rst() {
            self.set_state(me, EndState::Closed);
            let peer = &self.ends[you];
            if peer.state == EndState::Reset && peer.prev_state == EndState::Closed {
                // The peer sent a FIN and then a RST: a normal end after all.
                self.set_state(you, EndState::Closed);
            }
            do_close = true;
        }
        if segment.rst() {
            self.set_state(me, EndState::Reset);
            do_close = true;
            let peer = &self.ends[you];
            self.aborted |=
                peer.state != EndState::Reset || peer.prev_state != EndState::Established;
        }
        do_close
    }

    fn set_state(&mut self, who: usize, state: EndState) {
        let peer_in_handshake = self.ends[1 - who].state.is_handshake();
        let end = &mut self.ends[who];
        if end.state == state {
            return;
        }
        if !state.is_handshake() && end.state.is_handshake() && peer_in_handshake {
            self.handshake_done = true;
        }
        end.prev_state = end.state;
        end.state = state;
    }

    fn flip(&mut self, rare: &mut [Rare; 2]) {
        self.ends.swap(ORIG, RESP);
        rare.swap(ORIG, RESP);
        self.first_seen.swap(ORIG, RESP);
        if let Some(beyond) = &mut self.beyond {
            beyond.swap();
        }
        self.partial = false;
    }

    /// One end will send no more (ConnectionClosed), unless data is still on its way.
    fn connection_closed(&mut self, me: usize, effect: &mut Effect) {
        if self.data_pending(me) {
            self.close_deferred = true;
            return;
        }
        self.close_deferred = false;
        if self.ends[me].did_close {
            return;
        }
        self.ends[me].did_close = true;
        effect.state_changed = true;
        let (end, peer) = (&self.ends[me], &self.ends[1 - me]);
        if end.state == EndState::Reset || peer.did_close || peer.state == EndState::Inactive {
            effect.closing = true;
        } else {
            effect.partly_closed = end.prev_state == EndState::Inactive;
            effect.half_closed = !effect.partly_closed;
        }
    }

    fn check_eof(&mut self, me: usize, effect: &mut Effect) {
        let end = &self.ends[me];
        let ended = end.fin_seen || matches!(end.state, EndState::Closed | EndState::Reset);
        if end.did_eof || !ended || self.data_pending(me) {
            return;
        }
        self.ends[me].did_eof = true;
        if self.close_deferred {
            self.connection_closed(me, effect);
            self.close_deferred = false;
        }
    }

    /// Zeek's conn_state (scripts/base/protocols/conn/main.zeek).
    pub(crate) fn conn_state(&self, history: &str) -> ConnState {
        use EndState::{Closed, Established, Inactive, Partial, Reset, SynAckSent, SynSent};
        let [orig, resp] = &self.ends;
        let orig_inactive = matches!(orig.state, Inactive | Partial);
        let resp_inactive = matches!(resp.state, Inactive | Partial);
        match (orig.state, resp.state) {
            (SynSent | SynAckSent, Reset) => ConnState::REJ,
            (Reset, Reset) if orig.size() == 0 && resp.size() == 0 => ConnState::REJ,
            (_, Reset) if orig_inactive => ConnState::RSTRH,
            (_, Reset) => ConnState::RSTR,
            (Reset, _) if resp_inactive && reset_after_syn(history) => ConnState::RSTOS0,
            (Reset, _) if resp_inactive => ConnState::OTH,
            (Reset, _) => ConnState::RSTO,
            (Closed, Closed) => ConnState::SF,
            (Closed, _) if resp_inactive => ConnState::SH,
            (Closed, _) => ConnState::S2,
            (_, Closed) if orig_inactive => ConnState::SHR,
            (_, Closed) => ConnState::S3,
            (SynSent, Inactive) => ConnState::S0,
            (Established, Established) => ConnState::S1,
            _ => ConnState::OTH,
        }
    }
}

/// Writes the letters of a segment's flags.
#[inline]
fn note_flags(end: &mut Rare, role: bool, segment: &Segment, rel_seq: u64, notes: &mut Notes<'_>) {
    let control = segment.flags.0 & (TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST);
    match control {
        0 => {
            if segment.len > 0 {
                notes.repeated(role, once::DATA, b'D');
            } else if segment.has_ack() {
                notes.repeated(role, once::ACK, b'A');
            }
        }
        TcpFlags::SYN => {
            let letter = if segment.has_ack() { b'H' } else { b'S' };
            if notes.repeated(role, once::SYN, letter) && rel_seq != end.last_syn {
                notes.push(role, letter);
            }
            end.last_syn = rel_seq;
        }
        TcpFlags::FIN => {
            // A FIN's own number lies behind the segment's data.
            let fin = rel_seq.wrapping_add(u64::from(segment.len));
            if notes.repeated(role, once::FIN, b'F') && fin != end.last_fin {
                notes.push(role, b'F');
            }
            end.last_fin = fin;
        }
        TcpFlags::RST => {
            if notes.repeated(role, once::RST, b'R') && rel_seq != end.last_rst {
                notes.push(role, b'R');
            }
            end.last_rst = rel_seq;
        }
        _ if segment.fin() && segment.rst() => {
            notes.repeated(role, once::FIN_RST, b'I');
        }
        _ => {
            notes.repeated(role, once::MULTI, b'Q');
        }
    }
}

/// A SYN, then a RST before anything else that the originator could send.
fn reset_after_syn(history: &str) -> bool {
    let history = history.strip_prefix('^').unwrap_or(history);
    let Some(rest) = history.strip_prefix('S') else { return false };
    rest.bytes().find(|letter| b"HAFGIQR".contains(letter)) == Some(b'R')
}

#[cfg(test)]
mod tests;
