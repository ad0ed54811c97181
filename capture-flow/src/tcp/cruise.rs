//! A TCP session in full swing, as far as its next segment needs it.
//!
//! While both ends are established, nothing is missing between them and what they acknowledge is
//! what was seen, an end is two numbers: all the others follow. So a segment that brings what comes
//! next touches half a cache line, and [`Tcp`] lies still until something else comes.

use super::endpoint::Endpoint;
use super::notes::once;
use super::reassembly::MAX_DATA_WITHOUT_FURTHER_ACKS;
use super::{ORIG, RESP, Segment, Tcp};
use crate::packet::TcpFlags;

/// One end in full swing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct End {
    /// One past the highest sequence number sent. All data before it was seen.
    pub(super) seq: u32,
    /// Highest sequence number that the other end acknowledged, in the same lap as `seq`.
    pub(super) ack: u32,
    /// The last value of `seq` of this lap that needs no thought.
    ceiling: u32,
}

/// Both ends in full swing; or nothing, where [`Cruise::is_on`] denies it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cruise {
    /// Originator and responder.
    ends: [End; 2],
    /// Which segments of which end write no letter any more; see [`Cruise::letters`].
    letters: u8,
}

/// Data of the originator may come, and mere acknowledgements.
const DATA: u8 = 0x01;
const ACK: u8 = 0x02;
/// How far left of the originator's bits the responder's are.
const OF_RESP: u32 = 2;
/// The session is in full swing.
const ON: u8 = 0x80;

impl Cruise {
    /// Whether this says anything: otherwise [`Tcp`] does.
    #[inline]
    pub(crate) const fn is_on(&self) -> bool {
        self.letters & ON != 0
    }

    /// Both ends; only where [`Self::is_on`].
    #[inline]
    pub(super) const fn ends(&self) -> &[End; 2] {
        &self.ends
    }

    /// Accounts a segment that brings what comes next, and acknowledges what came:
    /// [`Tcp::segment`] would write no letter and change no state. False if it is anything else;
    /// nothing was changed then.
    #[inline]
    pub(crate) fn next_in_order(&mut self, is_orig: bool, segment: &Segment) -> bool {
        const CONTROL: u8 = TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST | TcpFlags::ACK;
        let letter = if segment.len > 0 { DATA } else { ACK };
        let needed = ON | if is_orig { letter } else { letter << OF_RESP };
        if self.letters & needed != needed
            || segment.flags.0 & CONTROL != TcpFlags::ACK
            || segment.window == 0
            || !(segment.whole || segment.len == 0)
        {
            return false;
        }
        let [orig, resp] = &mut self.ends;
        let (me, you) = if is_orig { (orig, resp) } else { (resp, orig) };
        let Some(past) = segment.seq.checked_add(segment.len) else { return false };
        let is_next = segment.seq == me.seq
            && past <= me.ceiling
            // Cannot be less: both are of one lap.
            && u64::from(past.wrapping_sub(me.ack)) <= MAX_DATA_WITHOUT_FURTHER_ACKS;
        let acknowledges = you.ack <= segment.ack && segment.ack <= you.seq && segment.ack != 0;
        if !is_next || !acknowledges {
            return false;
        }
        me.seq = past;
        you.ack = segment.ack;
        true
    }
}

impl Tcp {
    /// The session in full swing, if that is all there is to it now.
    #[inline]
    pub(crate) fn cruise(&self) -> Cruise {
        let steady = self.first_seen == [true, true] && !self.has_holes();
        let ends = if steady { self.ends.each_ref().map(Endpoint::cruise) } else { [None, None] };
        let [Some((orig, orig_data)), Some((resp, resp_data))] = ends else {
            return Cruise::default();
        };
        let letters = self.letters(ORIG, orig_data) | self.letters(RESP, resp_data) << OF_RESP;
        Cruise { ends: [orig, resp], letters: letters | ON }
    }

    /// The segments of one end that write no letter any more. `data` tells whether data of it
    /// was acknowledged before.
    #[inline]
    fn letters(&self, who: usize, data: bool) -> u8 {
        let seen = self.seen >> if who == ORIG { 0 } else { 16 };
        let data = if data && seen & once::DATA != 0 { DATA } else { 0 };
        data | if seen & once::ACK != 0 { ACK } else { 0 }
    }

    /// Takes over what was counted in full swing.
    #[inline]
    pub(crate) fn land(&mut self, cruise: &Cruise) {
        if cruise.is_on() {
            for (end, now) in self.ends.iter_mut().zip(cruise.ends()) {
                end.land(now);
            }
        }
    }
}

impl End {
    #[inline]
    pub(super) const fn new(seq: u32, ack: u32, ceiling: u32) -> Self {
        Self { seq, ack, ceiling }
    }
}
