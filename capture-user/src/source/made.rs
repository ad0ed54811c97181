//! Frames that the sensor makes itself, in memory: a simulated capture.
//!
//! UDP over IPv4 between addresses that RFC 2544 (appendix C.2.2) sets aside for this: 198.18.x.y
//! asks 198.19.0.1. Every session has its turn, and answers in every second round. Of a frame in the
//! memory of a batch only what differs is written anew, so that making one costs little beside what
//! the engine does with it.

use std::array;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use capture_flow::frame::{IfaceId, LinkType};
use capture_flow::time::{Nanos, NanosDelta};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::{BATCH, Received, Source, SourceCounters, SourceError, SourceFrame};
use crate::live::clock;

/// What the source is called where an interface would have its name.
pub const NAME: &str = "simulated";
/// Bytes of the smallest frame: Ethernet's own, without the checksum behind it.
pub const LEAST_BYTES: u32 = 60;
/// Bytes of the largest frame: a jumbo frame.
pub const MOST_BYTES: u32 = 9018;
/// Sessions at most, over all queues: so many addresses and ports there are.
pub const MOST_SESSIONS: u64 = 1 << 30;

/// The shortest time for which a worker is let sleep until the next frame is due.
const LEAST_SLEEP_NS: u64 = 50_000;
/// How long it is let sleep when nothing more will come.
const LONGEST_SLEEP_NS: u64 = 10_000_000;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;
/// Ethernet to a station from another, and IPv4 to the end of what never changes.
const HEAD: [u8; ETHERNET + 10] = [
    2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, // Ethernet
    0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, // IPv4: don't fragment, 64 hops, UDP
];
const SERVER: u32 = 0xc613_0001;
const CLIENT_NET: u32 = 0xc612_0000;
const SERVER_PORT: u16 = 5001;
const FIRST_PORT: u16 = 0x8000;
/// A payload that no protocol begins with.
const PAYLOAD: u8 = 0xa5;

/// The frames of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of each, as captured.
    pub frame_bytes: u32,
    /// The number of its first session, and how many it has.
    pub first_session: u64,
    /// How many sessions it has, one at least.
    pub sessions: u64,
    /// Frames a second; `None` for as many as the worker takes.
    pub per_second: Option<u64>,
    /// Frames in all; `None` for no end.
    pub limit: Option<u64>,
    /// Frames that wait for the worker at most, as in a receive ring: of those that are due at a
    /// given rate, more are lost.
    pub ring_size: u32,
}

/// What the maker of frames and the account of the run know of each other.
#[derive(Debug, Default)]
pub struct Wire {
    offered: AtomicU64,
    ended: AtomicBool,
}

impl Wire {
    /// Frames that were sent into the ring, whatever became of them.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.offered.load(Ordering::Acquire)
    }

    /// Nothing is sent any more; what is in the ring can still be taken.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }
}

/// A queue of made frames.
#[derive(Debug)]
pub struct Made {
    traffic: Traffic,
    iface: IfaceId,
    wire: Arc<Wire>,
    /// A batch of frames.
    memory: Vec<u8>,
    /// The IPv4 header's sum without the addresses.
    sum: u32,
    /// When the first frame was due; the rate counts from there.
    begun: Option<Instant>,
    /// Frames that were taken from the ring or lost there.
    gone: u64,
    lost: u64,
    frames: u64,
    /// The session whose turn it is, among the queue's own, and whether it answers.
    turn: u64,
    answers: bool,
    timer: OwnedFd,
}

impl Made {
    /// A queue from which nothing has been taken.
    ///
    /// # Errors
    /// The kernel gives no timer.
    pub fn new(traffic: Traffic, iface: IfaceId, wire: Arc<Wire>) -> Result<Self, SourceError> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )
        .map_err(|error| failed("make a timer", error))?;
        let bytes = traffic.frame_bytes.clamp(LEAST_BYTES, MOST_BYTES);
        let sessions = traffic.sessions.clamp(1, MOST_SESSIONS);
        let traffic = Traffic { frame_bytes: bytes, sessions, ..traffic };
        let mut memory = vec![PAYLOAD; BATCH * bytes as usize];
        let mut sum = 0;
        for frame in memory.chunks_mut(bytes as usize) {
            sum = write_head(frame, bytes);
        }
        Ok(Self {
            traffic,
            iface,
            wire,
            memory,
            sum,
            begun: None,
            gone: 0,
            lost: 0,
            frames: 0,
            turn: 0,
            answers: false,
            timer,
        })
    }

    /// How many frames can be taken now, and how long ago the first of them arrived.
    fn waiting(&mut self) -> (u64, u64) {
        let most = self.traffic.limit.unwrap_or(u64::MAX);
        let ended = self.wire.ended.load(Ordering::Acquire);
        let offered = self.wire.offered.load(Ordering::Relaxed);
        let Some(rate) = self.traffic.per_second else {
            // The ring is never empty and never overflows.
            let more = if ended { 0 } else { most.saturating_sub(offered).min(BATCH as u64) };
            self.wire.offered.store(offered.saturating_add(more), Ordering::Release);
            return (more, more);
        };
        let begun = *self.begun.get_or_insert_with(Instant::now);
        let due = u128::from(rate).saturating_mul(begun.elapsed().as_nanos()) / 1_000_000_000;
        let due = u64::try_from(due).unwrap_or(u64::MAX).min(most);
        let offered = if ended { offered } else { due.max(offered) };
        self.wire.offered.store(offered, Ordering::Release);
        let waiting = offered.saturating_sub(self.gone);
        let kept = waiting.min(u64::from(self.traffic.ring_size));
        let lost = waiting.saturating_sub(kept);
        self.lost = self.lost.saturating_add(lost);
        self.gone = self.gone.saturating_add(lost);
        (kept, kept.saturating_mul(period_ns(rate)))
    }

    /// Has the timer wake the worker when a frame is due.
    fn wake_later(&self) -> Result<(), SourceError> {
        let offered = self.wire.offered.load(Ordering::Relaxed);
        let more_comes = self.traffic.limit.is_none_or(|limit| offered < limit);
        let sleep = match self.traffic.per_second {
            Some(rate) if more_comes => period_ns(rate).max(LEAST_SLEEP_NS),
            _ => LONGEST_SLEEP_NS,
        };
        let sleep = sleep.min(LONGEST_SLEEP_NS.max(LEAST_SLEEP_NS));
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: 0, tv_nsec: sleep as i64 },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)
            .map(|_| ())
            .map_err(|error| failed("set the timer", error))
    }

    /// Writes what is different in the next frames.
    fn write(&mut self, count: usize) {
        let Self { traffic, memory, sum, turn, answers, .. } = self;
        for frame in memory.chunks_mut(traffic.frame_bytes as usize).take(count) {
            let session = traffic.first_session + *turn;
            let client = CLIENT_NET | (session as u32 & 0xffff);
            let port = FIRST_PORT | ((session >> 16) as u16 & 0x3fff);
            let ends = if *answers {
                (SERVER, client, SERVER_PORT, port)
            } else {
                (client, SERVER, port, SERVER_PORT)
            };
            write_ends(frame, ends, *sum);
            *turn += 1;
            if *turn == traffic.sessions {
                *turn = 0;
                *answers = !*answers;
            }
        }
    }
}

/// Writes what all frames have in common; returns its part of the IPv4 header's sum.
fn write_head(frame: &mut [u8], bytes: u32) -> u32 {
    const PORTS_END: usize = ETHERNET + IPV4 + 4;
    let ip_bytes = bytes as u16 - ETHERNET as u16;
    let Some((head, _)) = frame.split_first_chunk_mut::<{ ETHERNET + IPV4 + UDP }>() else {
        return 0;
    };
    head[..HEAD.len()].copy_from_slice(&HEAD);
    head[16..18].copy_from_slice(&ip_bytes.to_be_bytes());
    // Without a checksum, which IPv4 allows.
    head[PORTS_END..PORTS_END + 2].copy_from_slice(&(ip_bytes - IPV4 as u16).to_be_bytes());
    head[PORTS_END + 2..].fill(0);
    let words = head[ETHERNET..ETHERNET + 10].chunks_exact(2);
    words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum()
}

/// Writes the addresses, the ports, and the checksum that goes with them.
#[inline]
fn write_ends(frame: &mut [u8], (src, dst, from, to): (u32, u32, u16, u16), sum: u32) {
    let Some((head, _)) = frame.split_first_chunk_mut::<{ ETHERNET + IPV4 + UDP }>() else {
        return;
    };
    let sum = sum + (src >> 16) + (src & 0xffff) + (dst >> 16) + (dst & 0xffff);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    head[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    head[26..30].copy_from_slice(&src.to_be_bytes());
    head[30..34].copy_from_slice(&dst.to_be_bytes());
    head[34..36].copy_from_slice(&from.to_be_bytes());
    head[36..38].copy_from_slice(&to.to_be_bytes());
}

fn period_ns(per_second: u64) -> u64 {
    1_000_000_000 / per_second.max(1)
}

fn failed(doing: &'static str, error: rustix::io::Errno) -> SourceError {
    SourceError::Io { doing, name: NAME.to_owned(), source: error.into() }
}

impl Source for Made {
    fn receive(
        &mut self,
        consume: &mut dyn FnMut(&[SourceFrame<'_>]),
    ) -> Result<Received, SourceError> {
        let (waiting, age_ns) = self.waiting();
        let count = usize::try_from(waiting).unwrap_or(BATCH).min(BATCH);
        if count == 0 {
            self.wake_later()?;
            return Ok(Received::Idle);
        }
        self.write(count);
        let oldest = clock() - NanosDelta(i64::try_from(age_ns).unwrap_or(0));
        // At full speed, a nanosecond apart up to now.
        let apart = self.traffic.per_second.map_or(1, period_ns);
        let apart = i64::try_from(apart).unwrap_or(0);
        let bytes = self.traffic.frame_bytes;
        let mut memory = self.memory.chunks(bytes as usize);
        let parts: [[&[u8]; 1]; BATCH] = array::from_fn(|_| [memory.next().unwrap_or_default()]);
        let mut frames = [SourceFrame {
            ts: Nanos(0),
            wire_len: bytes,
            link: LinkType::ETHERNET,
            iface: self.iface,
            parts: &[],
        }; BATCH];
        let mut ts = oldest;
        for (frame, parts) in frames.iter_mut().zip(&parts) {
            (frame.ts, frame.parts) = (ts, parts);
            ts = ts + NanosDelta(apart);
        }
        consume(frames.get(..count).unwrap_or_default());
        self.gone = self.gone.saturating_add(count as u64);
        self.frames = self.frames.saturating_add(count as u64);
        Ok(Received::Frames(count))
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.timer.as_fd())
    }

    fn counters(&mut self) -> Result<SourceCounters, SourceError> {
        Ok(SourceCounters {
            frames: self.frames,
            bytes: self.frames.saturating_mul(u64::from(self.traffic.frame_bytes)),
            ring_full: self.lost,
            ..SourceCounters::default()
        })
    }
}

#[cfg(test)]
#[path = "made_tests.rs"]
mod tests;
