//! Frames in memory as the AF_XDP source finds them: in chunks of 2048 bytes, behind their stamp,
//! one after the other around a ring.

use std::hint::black_box;
use std::time::Duration;

use capture_flow::frame::{IfaceId, LinkType};
use capture_flow::time::Nanos;
use capture_user::memory;
use capture_user::source::{BATCH, SourceFrame};

use crate::measure::on_core;
use crate::traffic::Traffic;

/// Bytes of a chunk, and of those in front of the frame: the kernel's headroom and the stamp's.
pub(crate) const CHUNK: usize = 2048;
pub(crate) const HEADROOM: usize = 272;
const STAMP: usize = 16;
/// Bytes of a frame in one chunk.
pub(crate) const PIECE: usize = CHUNK - HEADROOM;
/// Pieces of the largest frame.
const PIECES: usize = 6;

/// The largest frame that a ring takes: a jumbo frame.
pub(crate) const MOST_BYTES: usize = 9018;
const _: () = assert!(MOST_BYTES <= PIECE * PIECES);

/// Chunks with frames in them, as a receive ring and its memory hold them.
pub struct Ring {
    memory: Vec<u8>,
    traffic: Traffic,
    pieces: usize,
    frames: usize,
    /// The turn of the next frame.
    turn: u64,
}

impl Ring {
    /// A ring of so many chunks (8192 is the sensor's own default).
    #[must_use]
    pub fn new(traffic: Traffic, chunks: usize) -> Self {
        let pieces = traffic.frame_bytes().div_ceil(PIECE);
        // Whole batches, and at least one.
        let frames = (chunks / pieces / BATCH).max(1) * BATCH;
        let mut memory = vec![0; frames * pieces * CHUNK];
        for chunk in memory.chunks_mut(CHUNK) {
            traffic.fill(&mut chunk[HEADROOM..]);
        }
        Self { memory, traffic, pieces, frames, turn: 0 }
    }

    /// Frames that one filling holds.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// The turn of the next frame.
    #[must_use]
    pub fn turn(&self) -> u64 {
        self.turn
    }

    /// When the next frame arrives.
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.traffic.arrival(self.turn)
    }

    /// Lets the next frames arrive: writes every byte of them, as the kernel does.
    fn fill(&mut self) {
        let len = self.traffic.frame_bytes();
        for chunks in self.memory.chunks_mut(self.pieces * CHUNK) {
            let ts = self.traffic.arrival(self.turn);
            chunks[HEADROOM - STAMP..HEADROOM - 8].copy_from_slice(&ts.0.to_ne_bytes());
            let mut left = len;
            for chunk in chunks.chunks_mut(CHUNK) {
                let here = left.min(PIECE);
                self.traffic.fill(&mut chunk[HEADROOM..HEADROOM + here]);
                left -= here;
            }
            self.traffic.write(self.turn, &mut chunks[HEADROOM..]);
            self.turn += 1;
        }
    }

    /// Hands every frame of the ring to `consume`, in batches.
    #[inline]
    fn hand_over(&self, mut consume: impl FnMut(&[SourceFrame<'_>])) {
        let len = self.traffic.frame_bytes();
        for batch in self.memory.chunks(BATCH * self.pieces * CHUNK) {
            for chunk in batch.chunks(CHUNK) {
                memory::prefetch(chunk.as_ptr().wrapping_add(HEADROOM - STAMP));
            }
            let mut parts: [&[u8]; BATCH * PIECES] = [&[]; BATCH * PIECES];
            let mut left = len;
            for (index, (part, chunk)) in parts.iter_mut().zip(batch.chunks(CHUNK)).enumerate() {
                if index % self.pieces == 0 {
                    left = len;
                }
                let here = left.min(PIECE);
                *part = &chunk[HEADROOM..HEADROOM + here];
                left -= here;
            }
            let mut frames = [SourceFrame {
                ts: Nanos(0),
                wire_len: len as u32,
                link: LinkType::ETHERNET,
                iface: IfaceId(0),
                parts: &[],
            }; BATCH];
            let chunks = batch.chunks(self.pieces * CHUNK);
            for ((frame, parts), chunks) in
                frames.iter_mut().zip(parts.chunks(self.pieces)).zip(chunks)
            {
                let mut stamp = [0; 8];
                stamp.copy_from_slice(&chunks[HEADROOM - STAMP..HEADROOM - 8]);
                frame.ts = Nanos(i64::from_ne_bytes(stamp));
                frame.parts = parts;
            }
            consume(black_box(&frames));
        }
    }

    /// Lets `count` frames arrive (rounded up to whole rings) and takes the time that `consume`
    /// needs for them, without the time of their arrival. `between` is called before each ring,
    /// outside the time taken. Returns the time for one frame, in nanoseconds.
    pub fn time(
        &mut self,
        count: u64,
        mut between: impl FnMut(),
        mut consume: impl FnMut(&[SourceFrame<'_>]),
    ) -> f64 {
        let mut taken = Duration::ZERO;
        let mut frames = 0;
        while frames < count {
            self.fill();
            between();
            let begun = on_core();
            self.hand_over(&mut consume);
            taken += on_core().saturating_sub(begun);
            frames += self.frames as u64;
        }
        taken.as_nanos() as f64 / frames.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::Speech;

    #[test]
    fn frames_come_whole_and_in_order() {
        for bytes in [64, 1514, 1776, 1777, 9000] {
            let traffic = Traffic::new(Speech::Udp, 10, bytes);
            let mut ring = Ring::new(traffic, 256);
            let mut turn = 0;
            ring.time(
                1000,
                || (),
                |frames| {
                    for frame in frames {
                        let mut expected = vec![0; bytes];
                        traffic.fill(&mut expected);
                        traffic.write(turn, &mut expected);
                        assert_eq!(frame.parts.concat(), expected);
                        assert_eq!(frame.ts, traffic.arrival(turn));
                        turn += 1;
                    }
                },
            );
            assert!(turn >= 1000);
            assert_eq!(ring.turn(), turn);
        }
    }
}
