//! One end of a TCP session: its state and its sequence numbers.

use super::reassembly::MAX_DATA_WITHOUT_FURTHER_ACKS;
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

/// One end, as far as its every segment needs it: 48 bytes, so that both ends and what they share
/// are two cache lines. Sequence numbers as on the wire, with the number of times they wrapped.
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

/// What data in order changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    last_seq: u32,
    delivered: Relative,
}

/// What an acknowledgement of data that was seen changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acknowledged {
    ack_seq: u32,
    trimmed: Relative,
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

    /// What becomes of its numbers if it sends the next `len` bytes of its stream from `seq` on,
    /// the bytes before them having been seen and acknowledged in due time. `None` if they are
    /// others, or if there is more to it.
    #[inline]
    pub(super) fn next_data(&self, seq: u32, len: u32) -> Option<Sent> {
        if seq != self.last_seq {
            return None;
        }
        if len == 0 {
            return Some(Sent { last_seq: seq, delivered: self.delivered });
        }
        let last_seq = seq.checked_add(len)?;
        let (from, underflow) = self.relative_seq(seq);
        let delivered = from.wrapping_add(u64::from(len));
        let is_next = from >= self.acknowledged()
            && from >= self.trimmed.0
            && from <= self.delivered.0
            && delivered > self.delivered.0
            && delivered - self.trimmed.0 <= MAX_DATA_WITHOUT_FURTHER_ACKS
            && len < TOO_LARGE_SEQ_DELTA as u32;
        (is_next && !underflow && !self.no_data_acked())
            .then_some(Sent { last_seq, delivered: Relative(delivered) })
    }

    /// Takes what [`Self::next_data`] gave.
    #[inline]
    pub(super) fn take_data(&mut self, sent: Sent) {
        self.last_seq = sent.last_seq;
        self.delivered = sent.delivered;
    }

    /// What becomes of its numbers if the other end acknowledges up to `ack`, all of which was
    /// seen. `None` if there is more to it.
    #[inline]
    pub(super) fn next_ack(&self, ack: u32) -> Option<Acknowledged> {
        let (relative, underflow) = self.relative_ack(ack);
        let goes_back = ack < self.ack_seq || distance(self.ack_seq, ack) < 0;
        if goes_back || ack == 0 || underflow || relative > self.delivered.0 {
            return None;
        }
        Some(Acknowledged { ack_seq: ack, trimmed: Relative(relative.max(self.trimmed.0)) })
    }

    /// Takes what [`Self::next_ack`] gave.
    #[inline]
    pub(super) fn take_ack(&mut self, acknowledged: Acknowledged) {
        self.ack_seq = acknowledged.ack_seq;
        self.trimmed = acknowledged.trimmed;
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
