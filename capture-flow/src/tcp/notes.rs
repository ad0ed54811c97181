//! The history: which letters are written, and when.

use crate::record::History;
use crate::sink::LetterTimes;
use crate::time::Nanos;

/// History letters as Zeek's Session::CheckHistory keeps them: most are noted once per role.
pub(crate) struct Notes<'a> {
    /// One bit per letter, the responder's 16 bits above the originator's.
    pub(crate) seen: &'a mut u32,
    pub(crate) history: &'a mut History,
    /// When letters were written.
    pub(crate) times: &'a mut LetterTimes,
    /// The frame's time.
    pub(crate) now: Nanos,
}

/// Bits of [`Notes::seen`].
pub(super) mod once {
    pub(in crate::tcp) const SYN: u32 = 0x1;
    pub(in crate::tcp) const FIN: u32 = 0x2;
    pub(in crate::tcp) const RST: u32 = 0x4;
    pub(in crate::tcp) const FIN_RST: u32 = 0x8;
    pub(in crate::tcp) const DATA: u32 = 0x10;
    pub(in crate::tcp) const ACK: u32 = 0x20;
    pub(in crate::tcp) const MULTI: u32 = 0x40;
}

impl Notes<'_> {
    /// Bits of [`Self::seen`] that only a session beyond its handshake has: data or a pure
    /// acknowledgement from either side.
    pub(crate) const BEYOND_HANDSHAKE: u32 = {
        let one_side = once::DATA | once::ACK;
        one_side | one_side << 16
    };

    /// Writes a letter: capital for the originator.
    pub(crate) fn push(&mut self, is_orig: bool, letter: u8) {
        self.write(if is_orig { letter } else { letter.to_ascii_lowercase() });
    }

    /// Writes a letter that is not there yet.
    pub(crate) fn push_once(&mut self, is_orig: bool, letter: u8) {
        let cased = if is_orig { letter } else { letter.to_ascii_lowercase() };
        if !self.history.as_str().as_bytes().contains(&cased) {
            self.write(cased);
        }
    }

    /// Writes a letter as it is.
    pub(crate) fn write(&mut self, letter: u8) {
        let place = self.history.as_str().len();
        self.times.note(place, self.now);
        self.history.push(letter);
    }

    /// Writes a letter the first time; true if it was there before.
    #[inline]
    pub(crate) fn repeated(&mut self, is_orig: bool, bit: u32, letter: u8) -> bool {
        let bit = if is_orig { bit } else { bit << 16 };
        if *self.seen & bit != 0 {
            return true;
        }
        *self.seen |= bit;
        self.push(is_orig, letter);
        false
    }

    /// Counts an event and writes its letter at the 1st, 10th, 100th… time.
    pub(crate) fn scaled(&mut self, is_orig: bool, count: &mut u32, letter: u8) {
        *count = count.saturating_add(1);
        if is_power_of_ten(*count) {
            self.push(is_orig, letter);
        }
    }
}

fn is_power_of_ten(count: u32) -> bool {
    matches!(
        count,
        1 | 10
            | 100
            | 1_000
            | 10_000
            | 100_000
            | 1_000_000
            | 10_000_000
            | 100_000_000
            | 1_000_000_000
    )
}
