//! One end of a TCP session: its state and its sequence numbers.

use super::cruise::End;
use super::{Segment, TOO_LARGE_SEQ_DELTA};

/// Zeek's states of an end (TCP_Endpoint.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum EndState {
    /// Nothing seen from it.
    #[default]
    Inactive,
    /// Its SYN was seen.
    SynSent,
    /// Its SYN-ACK was seen, but no SYN before.
    SynAckSent,
    /// It was seen, but not its SYN.
    Partial,
    /// The handshake is done.
    Established,
    /// Its FIN was seen.
    Closed,
    /// Its RST was seen.
    Reset,
}

impl EndState {
    #[inline]
    pub(super) const fn is_handshake(self) -> bool {
        matches!(self, Self::Inactive | Self::SynSent | Self::SynAckSent)
    }
}

/// One end: 48 bytes, so that both ends and what they share are two cache lines. Sequence numbers
/// as on the wire, with the number of times they wrapped.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Endpoint {
    pub(crate) state: EndState,
    pub(super) prev_state: EndState,
    pub(crate) did_close: bool,
    pub(super) did_eof: bool,
    pub(super) fin_seen: bool,
    /// No longer follows which bytes arrived: Zeek's limits on unacknowledged data were reached.
    pub(super) skip: bool,
    /// Sequence number of the SYN, or what it must have been.
    pub(super) start_seq: u32,
    /// One past the highest sequence number sent.
    last_seq: u32,
    /// Highest sequence number that the other end acknowledged.
    ack_seq: u32,
    seq_wraps: u32,
    ack_wraps: u32,
    pub(super) gaps: u32,
    /// Relative number up to which everything was seen or given up.
    pub(super) delivered: Relative,
    /// Relative number up to which everything was acknowledged or given up.
    pub(super) trimmed: Relative,
}

/// What few segments of an end need. It lies where rows are made from.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rare {
    /// Relative number one past the FIN.
    pub(super) fin_seq: u64,
    /// Relative numbers of the last SYN, FIN and RST: a new number is worth a new letter.
    pub(super) last_syn: u64,
    pub(super) last_fin: u64,
    pub(super) last_rst: u64,
    pub(crate) bad_checksums: u32,
    pub(super) retransmissions: u32,
    pub(super) zero_windows: u32,
    /// While nothing was heard of it: the highest of its numbers that the other end acknowledged, as
    /// on the wire.
    pub(super) unheard_acked: Option<u32>,
}

/// A relative sequence number; the stream starts at 1, behind the SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Relative(pub(super) u64);

impl Default for Relative {
    fn default() -> Self {
        Self(1)
    }
}

/// The distance from `from` to `to` in sequence space.
#[inline]
fn distance(from: u32, to: u32) -> i32 {
    to.wrapping_sub(from) as i32
}

/// The later of two numbers of one stream.
pub(super) fn later(one: u32, other: u32) -> u32 {
    if distance(one, other) > 0 { other } else { one }
}

impl Endpoint {
    #[inline]
    fn full(seq: u32, wraps: u32) -> u64 {
        u64::from(wraps) << 32 | u64::from(seq)
    }

    fn init(&mut self, start: u32, last: u32) {
        self.start_seq = start;
        self.ack_seq = start;
        self.last_seq = last;
    }

    /// Sets the numbers up where this segment is the first to tell them (init_endpoint).
    #[inline]
    pub(super) fn begin(&mut self, syn: bool, seq: u32, past: u32) {
        match self.state {
            EndState::Inactive if syn => self.init(seq, past),
            // As if a SYN had been seen, and the segment not to be taken for a repetition.
            EndState::Inactive => self.init(seq.wrapping_sub(1), seq),
            EndState::SynSent | EndState::SynAckSent if syn && seq != self.start_seq => {
                self.init(seq, past);
            }
            EndState::Established | EndState::Partial if syn => self.init(seq, past),
            // The reset may have been forged: the SYN tells better.
            EndState::Reset if syn && self.prev_state == EndState::Inactive => {
                self.init(seq, past);
            }
            _ => {}
        }
    }

    /// Sets the numbers up from the other end's acknowledgement (init_peer).
    pub(super) fn begin_from_ack(&mut self, ack: u32) {
        let start = ack.wrapping_sub(1);
        self.init(start, start);
    }

    /// The relative number of a sequence number sent, and whether it lies before the start.
    #[inline]
    pub(super) fn relative_seq(&self, seq: u32) -> (u64, bool) {
        self.relative(seq, self.last_seq, self.seq_wraps)
    }

    /// The same for an acknowledgement of this end's data.
    #[inline]
    pub(super) fn relative_ack(&self, ack: u32) -> (u64, bool) {
        self.relative(ack, self.ack_seq, self.ack_wraps)
    }

    #[inline]
    fn relative(&self, seq: u32, last: u32, mut wraps: u32) -> (u64, bool) {
        let delta = distance(last, seq);
        if delta < 0 {
            if wraps > 0 && seq > last {
                wraps -= 1;
            }
        } else if delta > 0 && seq < last {
            wraps = wraps.saturating_add(1);
        }
        if wraps == 0 {
            let delta = distance(self.start_seq, seq);
            return (i64::from(delta) as u64, delta < 0);
        }
        (Self::full(seq, wraps).wrapping_sub(u64::from(self.start_seq)), false)
    }

    /// The relative number up to which this end's data was acknowledged.
    pub(super) fn acknowledged(&self) -> u64 {
        // A start set up anew behind the acknowledgement: nothing of the new stream was acknowledged.
        Self::full(self.ack_seq, self.ack_wraps).saturating_sub(u64::from(self.start_seq))
    }

    /// Takes an acknowledgement of this end's data (update_ack_seq).
    #[inline]
    pub(super) fn update_ack(&mut self, ack: u32) {
        let delta = distance(self.ack_seq, ack);
        if delta <= 0 || (ack == 0 && delta > TOO_LARGE_SEQ_DELTA) {
            return;
        }
        if ack < self.ack_seq {
            self.ack_wraps = self.ack_wraps.saturating_add(1);
        }
        self.ack_seq = ack;
    }

    /// Takes the end of a segment (update_last_seq). True if the segment brought data again.
    #[inline]
    pub(super) fn update_last(&mut self, past: u32, segment: &Segment) -> bool {
        let delta = distance(self.last_seq, past);
        let jump = !(-TOO_LARGE_SEQ_DELTA..=TOO_LARGE_SEQ_DELTA).contains(&delta);
        if (segment.syn() || segment.rst()) && jump {
            return false;
        }
        let only_fin = segment.fin() && self.last_seq == self.start_seq.wrapping_add(1);
        if !only_fin {
            if self.state == EndState::Reset {
                return false;
            }
            if delta <= 0 {
                return segment.len > 0;
            }
        }
        if past < self.last_seq {
            self.seq_wraps = self.seq_wraps.saturating_add(1);
        }
        self.last_seq = past;
        false
    }

    /// Whether it is established, nothing ended it, and the bytes it sends are followed.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.state == EndState::Established && !self.did_close && !self.fin_seen && !self.skip
    }

    /// The end in full swing, and whether data of it was acknowledged; `None` if its numbers are
    /// not simply those of a stream of which all was seen.
    #[inline]
    pub(super) fn cruise(&self) -> Option<(End, bool)> {
        let sent = self.full_last().wrapping_sub(u64::from(self.start_seq));
        // Before the first wrap a number that lies behind the start looks as if it lay before it.
        let ceiling = match self.seq_wraps {
            0 => self.start_seq.saturating_add(i32::MAX as u32),
            _ => u32::MAX,
        };
        let is_steady = self.is_open()
            && self.seq_wraps == self.ack_wraps
            && self.start_seq <= self.ack_seq
            && self.ack_seq <= self.last_seq
            && self.last_seq <= ceiling
            && self.delivered.0 == sent
            && self.trimmed.0 == self.acknowledged();
        let end = End::new(self.last_seq, self.ack_seq, ceiling);
        is_steady.then_some((end, !self.no_data_acked()))
    }

    /// Takes over what was counted in full swing.
    #[inline]
    pub(super) fn land(&mut self, end: &End) {
        self.last_seq = end.seq;
        self.ack_seq = end.ack;
        self.delivered = Relative(self.full_last().wrapping_sub(u64::from(self.start_seq)));
        self.trimmed = Relative(self.acknowledged());
    }

    /// One past the highest number sent, with its wraps.
    pub(super) fn full_last(&self) -> u64 {
        Self::full(self.last_seq, self.seq_wraps)
    }

    pub(super) fn no_data_acked(&self) -> bool {
        self.acknowledged() <= 1
    }

    /// Payload bytes by sequence numbers (TCP_Endpoint::Size), without the rule for half-open
    /// sessions, which [`super::Tcp::size`] adds.
    pub(super) fn size(&self) -> u64 {
        let last = self.full_last();
        let ack = Self::full(self.ack_seq, self.ack_wraps);
        let size = last.max(ack).wrapping_sub(u64::from(self.start_seq));
        // Numbers that a RST set up can lie before the start: Zeek then prints a number near
        // 2^64, which no reader can want.
        let size = if (size as i64) < 0 { 0 } else { size };
        let size = size.saturating_sub(1);
        if self.fin_seen { size.saturating_sub(1) } else { size }
    }
}
