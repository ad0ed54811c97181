//! Frames in memory as the AF_XDP source finds them, to be copied over and over.

use capture_flow::frame::{IfaceId, LinkType};
use capture_flow::time::Nanos;
use capture_store::pcap::{RECORD_HEADER_LEN, RecordHeader};
use capture_user::source::SourceFrame;

use crate::pipeline::ring::{CHUNK, HEADROOM, PIECE};
use crate::traffic::{Speech, Traffic};

/// Chunks of the ring, as the sensor's own default.
const CHUNKS: usize = 8192;

/// Memory with frames in it. Each has its pcap record header right in front of it, so that a plain
/// copy writes the very bytes that the segment writer writes.
pub(super) struct Chunks {
    memory: Vec<u8>,
    pieces: usize,
    frame_bytes: usize,
}

impl Chunks {
    /// Frames of so many bytes in a ring of chunks.
    pub(super) fn new(frame_bytes: usize) -> Self {
        let traffic = Traffic::new(Speech::Udp, CHUNKS as u64, frame_bytes);
        let pieces = frame_bytes.div_ceil(PIECE);
        let frames = CHUNKS / pieces;
        let mut memory = vec![0; frames * pieces * CHUNK];
        for (turn, chunks) in (0..).zip(memory.chunks_mut(pieces * CHUNK)) {
            for chunk in chunks.chunks_mut(CHUNK) {
                traffic.fill(&mut chunk[HEADROOM..]);
            }
            traffic.write(turn, &mut chunks[HEADROOM..]);
            let len = frame_bytes as u32;
            let header = RecordHeader::new(ARRIVAL, len, len).encode();
            chunks[HEADROOM - RECORD_HEADER_LEN..HEADROOM].copy_from_slice(&header);
        }
        Self { memory, pieces, frame_bytes }
    }

    /// The pieces of each frame one after the other, with so many bytes of what is in front of it.
    fn pieces(&self, in_front: usize) -> Vec<&[u8]> {
        let mut left = 0;
        let mut pieces = Vec::new();
        for (index, chunk) in self.memory.chunks(CHUNK).enumerate() {
            let first = index % self.pieces == 0;
            if first {
                left = self.frame_bytes;
            }
            let here = left.min(PIECE);
            let start = if first { HEADROOM - in_front } else { HEADROOM };
            pieces.push(&chunk[start..HEADROOM + here]);
            left -= here;
        }
        pieces
    }

    /// The pieces of each frame, for [`Chunks::frames`].
    pub(super) fn parts(&self) -> Vec<&[u8]> {
        self.pieces(0)
    }

    /// The frames, as the recorder takes them.
    pub(super) fn frames<'a>(&self, parts: &'a [&'a [u8]]) -> Vec<SourceFrame<'a>> {
        let frame = |parts| SourceFrame {
            ts: ARRIVAL,
            wire_len: self.frame_bytes as u32,
            link: LinkType::ETHERNET,
            iface: IfaceId(0),
            parts,
        };
        parts.chunks(self.pieces).map(frame).collect()
    }

    /// What memcpy takes: the same pieces, with the record header in front of the first.
    pub(super) fn records(&self) -> Vec<&[u8]> {
        self.pieces(RECORD_HEADER_LEN)
    }

    /// How many pieces a frame has.
    pub(super) fn pieces_each(&self) -> usize {
        self.pieces
    }

    /// Bytes of a record in the segment.
    pub(super) fn record_bytes(&self) -> usize {
        RECORD_HEADER_LEN + self.frame_bytes
    }
}

/// When every frame arrived: what is measured does not look at it.
const ARRIVAL: Nanos = Nanos(1_700_000_000_000_000_000);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memcpy_and_the_recorder_are_given_the_same_bytes() {
        for bytes in [64, 1514, 1776, 1777, 9000] {
            let chunks = Chunks::new(bytes);
            let parts = chunks.parts();
            let frames = chunks.frames(&parts);
            let records = chunks.records();
            assert_eq!(frames.len() * chunks.pieces_each(), records.len());
            for (frame, record) in frames.iter().zip(records.chunks(chunks.pieces_each())) {
                let len = frame.wire_len;
                let mut expected = RecordHeader::new(frame.ts, len, len).encode().to_vec();
                expected.extend(frame.parts.concat());
                assert_eq!(record.concat(), expected);
                assert_eq!(expected.len(), chunks.record_bytes());
                assert_eq!(frame.captured_len(), bytes);
            }
        }
    }
}
