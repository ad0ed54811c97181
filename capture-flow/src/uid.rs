//! Session identities.

use crate::record::Uid;

/// Hands out identities that no other run, sensor or worker hands out.
///
/// The upper 36 of the 100 bits are the run's own, from its random seed. The lower 64 are the
/// worker's number and a count, sent through a bijection keyed with the rest of the seed: never
/// twice the same within a run, and no reader can tell sessions' order or number from them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UidSource {
    prefix: u128,
    key: u64,
    worker: u64,
}

/// Bits of an identity that count sessions and workers.
const COUNTED_BITS: u32 = 64;
/// Bits of those that count one worker's sessions.
const SERIAL_BITS: u32 = 48;

impl UidSource {
    pub(crate) fn new(seed: u128, worker: u16) -> Self {
        let run_bits = Uid::BITS - COUNTED_BITS;
        let prefix = (seed >> (u128::BITS - run_bits)) << COUNTED_BITS;
        Self { prefix, key: seed as u64, worker: u64::from(worker) << SERIAL_BITS }
    }

    /// The identity of this worker's `serial`-th session.
    pub(crate) fn uid(&self, serial: u64) -> Uid {
        let serial = serial & ((1 << SERIAL_BITS) - 1);
        // Xor, multiplication by an odd number and xor-shift each have an inverse, so distinct
        // counts stay distinct (finalizer of SplitMix64).
        let mut word = (self.worker | serial) ^ self.key;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        Uid(self.prefix | u128::from(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn workers_and_serials_stay_apart() {
        let seed = 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef;
        let mut seen = HashSet::new();
        for worker in [0, 1, 65_535] {
            let source = UidSource::new(seed, worker);
            for serial in 0..1000 {
                assert!(seen.insert(source.uid(serial)));
            }
        }
        assert_ne!(UidSource::new(1, 0).uid(0), UidSource::new(2, 0).uid(0));
        assert_ne!(UidSource::new(1 << 127, 0).uid(0), UidSource::new(0, 0).uid(0));
        let text = UidSource::new(seed, 0).uid(0).to_string();
        assert!(text.starts_with('C') && text.len() == 18);
    }
}
