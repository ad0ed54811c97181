//! One kind of traffic through each part of the engine by itself, and through all of it.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use capture_flow::config::FlowConfig;
use capture_flow::decode::Decoder;
use capture_flow::frame::{Frame, LinkType, PcapPosition};
use capture_flow::key::FlowHash;
use capture_flow::sink::{Mark, SessionUpdate, Sink};
use capture_flow::table::SessionTable;
use capture_flow::time::Nanos;
use capture_user::account::SourceCounts;
use capture_user::memory::Machine;
use capture_user::source::{BATCH, SourceFrame};
use capture_user::worker::{Pipeline, Shared, WhenFull};
use serde::Serialize;

use super::feed::Feed;
use super::ring::Ring;
use crate::measure::Sample;
use crate::traffic::{Speech, Traffic};

/// Turns that every session has before anything is measured: the handshake is done, and nobody
/// looks for the service any more.
const WARM_CYCLES: u64 = 9;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What sessions speak.
    pub speech: Speech,
    /// How many there are.
    pub sessions: u64,
    /// Bytes of a frame.
    pub frame_bytes: usize,
}

/// How it is measured.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// Frames in each repetition of each stage.
    pub frames: u64,
    /// How often every stage is repeated.
    pub repetitions: usize,
    /// Chunks of the ring.
    pub chunks: usize,
    /// Where segments are written.
    pub dir: &'a Path,
    /// Bytes of a segment.
    pub segment_bytes: u64,
}

/// Nanoseconds a frame.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Stages {
    /// Making a batch of frames out of chunks, which every other figure contains.
    pub hand_over: Sample,
    /// That, and reading headers.
    pub decode: Sample,
    /// That, and the session table.
    pub table: Sample,
    /// Hand-over and recording, without the table.
    pub record: Sample,
    /// The engine: all of it, in the very code of a worker.
    pub engine: Sample,
    /// Bytes that the table sets aside for a session.
    pub bytes_per_session: usize,
    /// Bytes by which the process grew while the engine's table filled, for each session.
    pub resident_per_session: f64,
}

impl Stages {
    /// What reading headers takes by itself.
    #[must_use]
    pub fn only_decode(&self) -> Sample {
        self.decode.without(&self.hand_over)
    }

    /// What the session table takes by itself.
    #[must_use]
    pub fn only_table(&self) -> Sample {
        self.table.without(&self.decode)
    }

    /// What copying into the segment takes by itself.
    #[must_use]
    pub fn only_record(&self) -> Sample {
        self.record.without(&self.hand_over)
    }

    /// What is left of the engine: notes in the journal, counters, and what the parts cost each
    /// other.
    #[must_use]
    pub fn rest(&self) -> Sample {
        self.engine.without(&self.table).without(&self.only_record())
    }
}

/// Takes what a table finds out, and looks at nothing.
#[derive(Default)]
struct Nowhere {
    touched: u64,
}

impl Sink for Nowhere {
    #[inline]
    fn touch(&mut self, at: PcapPosition, _: FlowHash, _: &mut Mark) {
        self.touched = self.touched.wrapping_add(u64::from(at.offset));
    }

    fn session(&mut self, update: SessionUpdate) {
        drop(black_box(update));
    }
}

/// The frames of a batch as the session table takes them.
fn flat<'a>(frames: &[SourceFrame<'a>], buffer: &'a [u8]) -> [Frame<'a>; BATCH] {
    let mut flat = [Frame {
        ts: Nanos(0),
        wire_len: 0,
        bytes: &[],
        link: LinkType::ETHERNET,
        iface: capture_flow::frame::IfaceId(0),
        at: None,
    }; BATCH];
    for (slot, frame) in flat.iter_mut().zip(frames) {
        let bytes = match frame.parts {
            [whole] => whole,
            _ => buffer.get(..frame.captured_len()).unwrap_or_default(),
        };
        let at = Some(PcapPosition { worker: 0, segment: 1, offset: 24 });
        let (ts, wire_len) = (frame.ts, frame.wire_len);
        *slot = Frame { ts, wire_len, bytes, link: frame.link, iface: frame.iface, at };
    }
    flat
}

/// Puts a case through all stages.
///
/// # Errors
/// No memory for the table, no segment, or the engine did not take every frame as it should.
pub fn run(case: &Case, way: &Way<'_>) -> Result<Stages> {
    let traffic = Traffic::new(case.speech, case.sessions, case.frame_bytes);
    let mut stages =
        Stages { bytes_per_session: SessionTable::bytes_per_session(), ..Stages::default() };
    // Every session fits, with nothing to spare.
    let flow = FlowConfig {
        table_bytes: case.sessions as usize * SessionTable::bytes_per_session(),
        ..FlowConfig::default()
    };
    let warm = match case.speech {
        // Until the table is full.
        Speech::New => case.sessions + case.sessions / 4,
        _ => case.sessions * WARM_CYCLES,
    };

    let mut bare = Ring::new(traffic, way.chunks);
    let decoder = Decoder::new(&flow);

    let mut table_ring = Ring::new(traffic, way.chunks);
    let mut table = SessionTable::<Machine>::in_memory(flow.clone())?;
    let mut nowhere = Nowhere::default();
    // A jumbo frame in one piece, since that is the recorder's work.
    let whole = {
        let mut whole = vec![0; traffic.frame_bytes()];
        traffic.fill(&mut whole);
        traffic.write(0, &mut whole);
        whole
    };

    let mut feed = Feed::new(way.dir, 0, way.segment_bytes)?;
    let mut recorder = feed.recorder();

    let shared = Arc::new(Shared::new(1, 1));
    let mut engine_ring = Ring::new(traffic, way.chunks);
    let mut engine_feed = Feed::new(way.dir, 1, way.segment_bytes)?;
    let engine_recorder = engine_feed.recorder();
    let mut engine = Pipeline::new(flow, engine_recorder, Arc::clone(&shared), WhenFull::Lose)?;
    let mut counts = [SourceCounts::default()];

    let mut failure = Ok(());
    let mut keep = |outcome: Result<()>| {
        if failure.is_ok() {
            failure = outcome;
        }
    };
    let mut engine_run = |ring: &mut Ring, frames: u64, keep: &mut dyn FnMut(Result<()>)| {
        let now = ring.now();
        ring.time(
            frames,
            || {
                while shared.updates.pop().is_some() {}
                keep(engine_feed.refill());
            },
            |frames| {
                engine.take(frames);
                let bytes = frames.iter().map(|frame| u64::from(frame.wire_len)).sum::<u64>();
                counts[0].frames += frames.len() as u64;
                counts[0].wire_bytes += bytes;
                engine.publish(&counts, now, now);
            },
        )
    };

    let before = resident_bytes();
    engine_run(&mut engine_ring, warm, &mut keep);
    let grown = resident_bytes().saturating_sub(before);
    stages.resident_per_session = grown as f64 / case.sessions as f64;
    table_ring.time(
        warm,
        || (),
        |frames| table.observe_batch(&flat(frames, &whole)[..frames.len()], &mut nowhere),
    );

    for _ in 0..way.repetitions {
        stages.hand_over.values.push(bare.time(
            way.frames,
            || (),
            |frames| {
                black_box(frames);
            },
        ));
        stages.decode.values.push(bare.time(
            way.frames,
            || (),
            |frames| {
                for frame in &flat(frames, &whole)[..frames.len()] {
                    black_box(decoder.glance(frame));
                }
            },
        ));
        stages.table.values.push(table_ring.time(
            way.frames,
            || (),
            |frames| table.observe_batch(&flat(frames, &whole)[..frames.len()], &mut nowhere),
        ));
        stages.record.values.push(bare.time(
            way.frames,
            || keep(feed.refill()),
            |frames| {
                let mut rest = frames;
                while !rest.is_empty() {
                    let room = recorder.room(rest);
                    let (piece, later) = rest.split_at(room.frames.clamp(1, rest.len()));
                    for frame in piece {
                        black_box(recorder.record(frame, room.refused));
                    }
                    rest = later;
                }
                recorder.publish();
            },
        ));
        stages.engine.values.push(engine_run(&mut engine_ring, way.frames, &mut keep));
    }
    black_box(nowhere.touched);
    failure?;
    check(case, &shared, engine.stats().created, engine_ring.turn())?;
    Ok(stages)
}

/// A bench that lost frames, or that had another number of sessions, measured something else.
fn check(case: &Case, shared: &Shared, created: u64, frames: u64) -> Result<()> {
    let counts = shared.counters.read();
    ensure!(counts.received == frames, "{} of {frames} frames were received", counts.received);
    ensure!(counts.recorded == frames, "{} of {frames} frames were recorded", counts.recorded);
    ensure!(counts.decoded == frames, "{} of {frames} frames were decoded", counts.decoded);
    ensure!(counts.unindexed == 0, "{} frames are in no index", counts.unindexed);
    let expected = if case.speech == Speech::New { frames } else { case.sessions };
    ensure!(created == expected, "{created} sessions began instead of {expected}");
    Ok(())
}

/// Memory that this process has.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    // Without the segments, which are mapped files.
    let anonymous = text.lines().find_map(|line| line.strip_prefix("Anonymous:"));
    let number = anonymous.and_then(|rest| rest.split_whitespace().next());
    number.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
}
