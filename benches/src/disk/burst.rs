//! How fast frames get into segments that are ready, against memcpy into the same memory.

use std::hint::black_box;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use capture_store::mapped::MappedFile;
use capture_user::recorder::Recorder;
use capture_user::source::{BATCH, SourceFrame};
use serde::Serialize;

use super::Way;
use super::frames::Chunks;
use super::notes::Noting;
use crate::measure::{Sample, on_core};
use crate::pipeline::Feed;

/// Bytes a second.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Burst {
    /// Copying whole records, piece by piece, into a file mapped and populated as a segment is.
    pub memcpy: Sample,
    /// The recorder, without notes.
    pub append: Sample,
    /// The recorder with a note in the journal for each frame: what a worker does.
    pub noted: Sample,
}

/// Bytes and the seconds that they took.
#[derive(Default)]
struct Taken {
    bytes: f64,
    seconds: f64,
}

impl Taken {
    fn rate(&self) -> f64 {
        self.bytes / self.seconds
    }
}

/// Fills segments that are ready, `way.bytes` in each repetition. The three take turns, segment by
/// segment, and every segment is a fresh one, prepared outside of the time.
pub(super) fn measure(
    dir: &Path,
    frame_bytes: usize,
    way: &Way,
    mut done: impl FnMut(),
) -> Result<Burst> {
    let chunks = Chunks::new(frame_bytes);
    let parts = chunks.parts();
    let frames = chunks.frames(&parts);
    let records = chunks.records();
    // What surely fits: the recorder changes the segment a batch early.
    let room = (way.segment_bytes as usize) / chunks.record_bytes();
    let count = room.saturating_sub(2 * BATCH) / BATCH * BATCH;
    ensure!(count > 0, "--segment-size: too small for frames of {frame_bytes} bytes");
    let bytes = (count * chunks.record_bytes()) as f64;
    let rounds = way.bytes.div_ceil(way.segment_bytes).max(1);

    let copies = tempfile::Builder::new()
        .prefix("stillwire-bench-")
        .tempdir_in(dir)
        .with_context(|| format!("--dir: cannot write to {}", dir.display()))?;
    let mut feed = Feed::new(dir, 0, way.segment_bytes)?;
    let mut recorder = feed.recorder();
    let mut noting = Noting::new(way.sessions);
    let mut burst = Burst::default();
    for _ in 0..way.repetitions {
        let mut taken: [Taken; 3] = Default::default();
        for round in 0..rounds {
            for turn in 0..3 {
                // Whoever goes first finds the caches as nobody else does: all do in turn.
                let who = ((round + turn) % 3) as usize;
                let seconds = match who {
                    0 => {
                        let file = copies.path().join("memcpy");
                        let seconds = memcpy(&file, way.segment_bytes, &records, &chunks, count)?;
                        std::fs::remove_file(&file).context("cannot remove a copy")?;
                        seconds
                    }
                    _ => {
                        feed.refill()?;
                        let notes = (who == 2).then_some(&mut noting);
                        record(&mut recorder, &frames, count, notes)?
                    }
                };
                taken[who].bytes += bytes;
                taken[who].seconds += seconds;
            }
        }
        let [memcpy, append, noted] = taken;
        burst.memcpy.values.push(memcpy.rate());
        burst.append.values.push(append.rate());
        burst.noted.values.push(noted.rate());
        done();
    }
    feed.refill()?;
    Ok(burst)
}

/// Copies `count` records one behind the other; the seconds that took.
fn memcpy(
    path: &Path,
    bytes: u64,
    records: &[&[u8]],
    chunks: &Chunks,
    count: usize,
) -> Result<f64> {
    let mut file = MappedFile::create(path, bytes as usize)
        .with_context(|| format!("cannot prepare {}", path.display()))?;
    let memory = file.bytes_mut();
    let pieces = records.iter().cycle().take(count * chunks.pieces_each());
    let begun = on_core();
    let mut at = 0;
    for piece in pieces {
        let end = at + piece.len();
        memory[at..end].copy_from_slice(piece);
        at = end;
    }
    let taken = on_core().saturating_sub(begun);
    black_box(memory);
    Ok(taken.as_secs_f64())
}

/// Records `count` frames in a segment that is ready; the seconds that took.
fn record(
    recorder: &mut Recorder,
    frames: &[SourceFrame<'_>],
    count: usize,
    mut notes: Option<&mut Noting>,
) -> Result<f64> {
    let before = recorder.counts().frames;
    let begun = on_core();
    for batch in frames.chunks(BATCH).cycle().take(count / BATCH) {
        let mut rest = batch;
        while !rest.is_empty() {
            let room = recorder.room(rest);
            let (piece, later) = rest.split_at(room.frames.clamp(1, rest.len()));
            match &mut notes {
                Some(notes) => notes.record(recorder, piece, room.refused),
                None => {
                    for frame in piece {
                        black_box(recorder.record(frame, room.refused));
                    }
                }
            }
            rest = later;
        }
        recorder.publish();
    }
    let taken = on_core().saturating_sub(begun);
    let recorded = recorder.counts().frames - before;
    ensure!(recorded == count as u64, "{recorded} of {count} frames were recorded");
    recorder.finish();
    Ok(taken.as_secs_f64())
}
