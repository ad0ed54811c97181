//! Half a session: what one direction tells of gaps, and what both tell together.

/// The streams of a session as the only end that was heard tells them. Numbers are relative to
/// its own stream, which starts at 1, unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HalfStream {
    /// Sequence number of its SYN on the wire, or what it must have been.
    pub(super) start_seq: u32,
    /// One past the last byte seen.
    pub(super) seen: u64,
    /// One past its FIN.
    pub(super) fin_seq: Option<u64>,
    /// Whether there was memory to follow which bytes came.
    pub(super) is_followed: bool,
    /// What did not come, `[from, to)`, ascending.
    pub(super) holes: Box<[(u64, u64)]>,
    /// Earlier holes beyond those that are remembered, and their bytes.
    pub(super) given_up: (u32, u64),
    /// The highest number of the other end's stream that it acknowledged, as on the wire.
    pub(super) acked: Option<u32>,
}

/// Payload of one end that the other acknowledged and that never came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Missed {
    /// Holes.
    pub(crate) gaps: u32,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Whether that is all.
    pub(crate) is_known: bool,
}

impl HalfStream {
    /// Whether two halves are of one stream: the later one goes on where the earlier began.
    pub(crate) fn continues(&self, earlier: &Self) -> bool {
        self.start_seq == earlier.start_seq
    }

    /// What is missing of this stream, by the acknowledgements of the other end. One worker
    /// counts a hole when it is acknowledged (TCP_Reassembler::Undelivered): what came only
    /// afterwards, it misses nevertheless.
    pub(crate) fn missed(&self, peer: &Self) -> Missed {
        let Some(acked) = peer.acked else {
            return Missed { is_known: self.is_followed, ..Missed::default() };
        };
        // The number nearest to what was seen.
        let near = self.start_seq.wrapping_add(self.seen as u32);
        let distance = i64::from(acked.wrapping_sub(near) as i32);
        let mut acked = self.seen.saturating_add_signed(distance);
        if let Some(fin) = self.fin_seq {
            acked = acked.min(fin.saturating_sub(1));
        }
        let (mut gaps, mut bytes) = self.given_up;
        let behind = (acked > self.seen).then_some((self.seen, acked));
        for &(from, to) in self.holes.iter().chain(&behind) {
            let missing = to.min(acked).saturating_sub(from);
            gaps = gaps.saturating_add(u32::from(missing > 0));
            bytes = bytes.saturating_add(missing);
        }
        Missed { gaps, bytes, is_known: self.is_followed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(seen: u64, holes: &[(u64, u64)]) -> HalfStream {
        HalfStream {
            start_seq: u32::MAX - 10,
            seen,
            is_followed: true,
            holes: holes.into(),
            ..HalfStream::default()
        }
    }

    fn receiver(acked: u64) -> HalfStream {
        HalfStream { acked: Some((u32::MAX - 10).wrapping_add(acked as u32)), ..sender(1, &[]) }
    }

    #[test]
    fn acknowledged_holes_are_missed() {
        let stream = sender(1_000, &[(100, 150), (500, 700)]);
        for (acked, gaps, bytes) in [
            (1_000, 2, 250),
            // Half of the second hole.
            (600, 2, 150),
            (150, 1, 50),
            (100, 0, 0),
            // Data behind everything that was seen.
            (1_010, 3, 260),
        ] {
            let missed = stream.missed(&receiver(acked));
            assert_eq!(missed, Missed { gaps, bytes, is_known: true }, "{acked}");
        }
        assert_eq!(stream.missed(&sender(1, &[])).bytes, 0, "nothing was acknowledged");
    }

    #[test]
    fn a_fin_is_no_data() {
        let stream = HalfStream { fin_seq: Some(1_001), ..sender(1_000, &[]) };
        assert_eq!(stream.missed(&receiver(1_001)).bytes, 0);
        let stream = HalfStream { fin_seq: Some(1_051), ..sender(1_000, &[]) };
        assert_eq!(stream.missed(&receiver(1_051)).bytes, 50);
    }

    #[test]
    fn numbers_wrap_more_than_once() {
        let five_gib = 5 << 30;
        let stream = sender(five_gib, &[(five_gib - 10, five_gib - 5)]);
        assert_eq!(stream.missed(&receiver(five_gib)).bytes, 5);
        assert_eq!(stream.missed(&receiver(five_gib - 7)).bytes, 3);
    }

    #[test]
    fn a_stream_that_was_not_followed_knows_nothing() {
        let stream = HalfStream { is_followed: false, ..sender(1_000, &[]) };
        assert!(!stream.missed(&receiver(1_000)).is_known);
    }
}
