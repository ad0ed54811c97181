//! Whose segment it is, and under which key its sessions are known.

use std::num::NonZeroU32;

/// Names a run in few bytes: see [`crate::RunId::tag`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunTag(pub NonZeroU32);

/// What a segment says about the run that fills it. Early segments say nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// The run: sessions of another one have no frames here, even if their key and time match.
    pub run: Option<RunTag>,
    /// Whether VLAN tags were part of the sessions' key.
    pub vlan_in_key: Option<bool>,
}

/// Whether it is known if tags were part of the key.
const VLAN_KNOWN: u64 = 1 << 1;
/// Whether they were.
const VLAN_IN_KEY: u64 = 1 << 2;

impl Provenance {
    /// A word of flags that leaves bit 0 and bits 3 to 31 alone.
    pub(crate) fn bits(self) -> u64 {
        let vlan = match self.vlan_in_key {
            None => 0,
            Some(false) => VLAN_KNOWN,
            Some(true) => VLAN_KNOWN | VLAN_IN_KEY,
        };
        vlan | self.run.map_or(0, |run| u64::from(run.0.get()) << 32)
    }

    /// Reads [`Self::bits`]; zero, as in early files, knows nothing.
    pub(crate) fn of_bits(bits: u64) -> Self {
        Self {
            run: NonZeroU32::new((bits >> 32) as u32).map(RunTag),
            vlan_in_key: (bits & VLAN_KNOWN != 0).then_some(bits & VLAN_IN_KEY != 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Provenance::of_bits(0), Provenance::default());
        let runs = [None, NonZeroU32::new(1), NonZeroU32::new(u32::MAX)];
        for run in runs.map(|run| run.map(RunTag)) {
            for vlan_in_key in [None, Some(false), Some(true)] {
                let provenance = Provenance { run, vlan_in_key };
                assert_eq!(Provenance::of_bits(provenance.bits()), provenance);
                assert_eq!(provenance.bits() & 0xffff_fff9, 0, "room for other flags");
            }
        }
    }
}
