//! Frames sent by an AF_XDP socket of this program: slower than the kernel's own, but of any
//! length.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench_common::Head;
use rustix::thread::{CpuSet, sched_setaffinity};
use xsk_rs::config::{
    BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig,
};
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket, TxQueue, Umem};

use super::{Load, Sent};
use crate::drops::line::Line;
use crate::drops::plan::Plan;
use crate::drops::stop;
use crate::drops::traffic::Traffic;

/// Bytes of a piece of memory; longer frames take several.
const CHUNK: u32 = 4096;
/// Pieces of memory. In copy mode every call walks through the ring: a small one is faster.
const CHUNKS: u32 = 1024;
/// Frames handed over at once. The kernel takes 32 in a call.
const BATCH: usize = 32;
/// How often the counters are looked at.
const TICK: Duration = Duration::from_millis(100);
/// `XDP_PKT_CONTD`: the frame goes on in the next descriptor (include/uapi/linux/if_xdp.h).
const CONTINUES: u32 = 1;

/// Puts a load on the link.
pub(super) fn send(
    plan: &Plan,
    line: &Line,
    load: &Load,
    tick: &mut (dyn FnMut(u64) + Send),
) -> Result<Sent> {
    let (iface, site) = line.sender()?;
    let core = *plan.generator_cores.first().context("no core for the generator")?;
    let mut sent = site.enter(|| {
        // On a thread of its own: this one would stay on the core.
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let mut only = CpuSet::new();
                only.set(core);
                sched_setaffinity(None, &only).with_context(|| format!("moving to core {core}"))?;
                let mut sender = Sender::bind(iface)
                    .with_context(|| format!("opening an AF_XDP socket to send by {iface}"))?;
                sender.send(&plan.traffic, load, tick)
            });
            match sending.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    })?;
    ensure!(sent.frames > 0, "the generator has sent no frame");
    sent.refused_by_link = line.sent(sent.frames)?.refused;
    Ok(sent)
}

/// A socket that only sends.
struct Sender {
    tx: TxQueue,
    completion: CompQueue,
    _rx: RxQueue,
    _fill: FillQueue,
    umem: Umem,
    free: VecDeque<FrameDesc>,
    /// Pieces that the kernel has.
    out: usize,
}

impl Sender {
    fn bind(iface: &str) -> io::Result<Self> {
        let umem = UmemConfig::builder()
            .frame_size(FrameSize::new(CHUNK).map_err(io::Error::other)?)
            .comp_queue_size(QueueSize::new(CHUNKS).map_err(io::Error::other)?)
            .build()
            .map_err(io::Error::other)?;
        let count = NonZeroU32::new(CHUNKS).ok_or(io::ErrorKind::InvalidInput)?;
        let (umem, descriptors) = Umem::new(umem, count, false).map_err(io::Error::other)?;
        let config = SocketConfig::builder()
            .tx_queue_size(QueueSize::new(CHUNKS).map_err(io::Error::other)?)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(BindFlags::XDP_COPY | BindFlags::XDP_USE_SG)
            .build();
        let name: Interface = iface.parse().map_err(io::Error::other)?;
        // SAFETY: the duty is about several sockets sharing a UMEM and a queue. This UMEM was made
        // for this one socket.
        let (tx, rx, rings) =
            unsafe { Socket::new(config, &umem, &name, 0) }.map_err(io::Error::other)?;
        let (fill, completion) =
            rings.ok_or_else(|| io::Error::other("the queue is bound already"))?;
        Ok(Self { tx, completion, _rx: rx, _fill: fill, umem, free: descriptors.into(), out: 0 })
    }

    /// Sends a load at its pace.
    fn send(
        &mut self,
        traffic: &Traffic,
        load: &Load,
        tick: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Sent> {
        let mut walk = traffic.walk(0, 1).context("a traffic without sessions")?;
        let mut frame = traffic.blank();
        let goal = load.frames();
        let (mut sent, mut batch) = (Sent::default(), Vec::with_capacity(BATCH));
        let begun = Instant::now();
        let mut ticked = begun;
        let (mut last, mut idle_since) = (begun, None);
        while sent.frames < goal {
            let at_once = match load.rate.per_second() {
                Some(rate) => {
                    // Those whose moment has come; a slow load goes frame by frame.
                    let due = (begun.elapsed().as_secs_f64() * rate) as u64 + 1;
                    due.saturating_sub(sent.frames).min(BATCH as u64)
                }
                None => BATCH as u64,
            };
            let at_once = at_once.min(goal - sent.frames);
            for _ in 0..at_once {
                let bytes = traffic.recipe.frame_bytes(&walk) as usize;
                let head = Head::of(&mut frame).context("a frame without room for its headers")?;
                traffic.recipe.write(&walk, head);
                walk.step(&traffic.recipe);
                self.put(frame.get(..bytes).unwrap_or(&frame), &mut batch)?;
            }
            if batch.is_empty() {
                idle_since.get_or_insert_with(Instant::now);
                std::hint::spin_loop();
            } else {
                let waited = idle_since.take().map_or(Duration::ZERO, |since| since.elapsed());
                sent.waited_seconds += waited.as_secs_f64();
                self.hand_over(&mut batch)?;
                sent.frames += at_once;
                last = Instant::now();
            }
            if ticked.elapsed() > TICK {
                ticked = Instant::now();
                tick(sent.frames);
                sent.interrupted = stop::asked();
                let late = load.deadline().is_some_and(|deadline| begun.elapsed() > deadline);
                if late || sent.interrupted {
                    break;
                }
            }
        }
        sent.seconds = last.duration_since(begun).as_secs_f64();
        while self.out > 0 {
            self.collect()?;
        }
        Ok(sent)
    }

    /// Copies a frame into free pieces of memory.
    fn put(&mut self, frame: &[u8], batch: &mut Vec<FrameDesc>) -> Result<()> {
        let mut parts = frame.chunks(CHUNK as usize - self.headroom()).peekable();
        while let Some(part) = parts.next() {
            let mut piece = loop {
                if let Some(piece) = self.free.pop_front() {
                    break piece;
                }
                // All memory is in the kernel's hands, or in this batch.
                self.hand_over(batch)?;
                self.collect()?;
            };
            // SAFETY: a piece of this UMEM that neither ring has: it was free.
            let mut data = unsafe { self.umem.data_mut(&mut piece) };
            let mut cursor = data.cursor();
            cursor.set_pos(0);
            cursor.write_all(part).context("filling a piece of memory")?;
            piece.set_options(if parts.peek().is_some() { CONTINUES } else { 0 });
            batch.push(piece);
        }
        Ok(())
    }

    /// Bytes of a piece that no frame uses.
    fn headroom(&self) -> usize {
        // The kernel's XDP_PACKET_HEADROOM, which xsk-rs leaves free in front of every frame.
        256
    }

    /// Gives filled pieces to the kernel and has it send them.
    fn hand_over(&mut self, batch: &mut Vec<FrameDesc>) -> Result<()> {
        // SAFETY: pieces of this UMEM in nobody's hands but ours. The ring has room for all there
        // are.
        let given = unsafe { self.tx.produce(batch) };
        ensure!(given == batch.len(), "the ring has no room for its own memory");
        self.out += given;
        batch.clear();
        self.collect()
    }

    /// Has the kernel send, and takes back what it has sent.
    fn collect(&mut self) -> Result<()> {
        if self.out == 0 {
            return Ok(());
        }
        self.tx.wakeup().context("sending")?;
        let mut done = [FrameDesc::default(); BATCH];
        loop {
            // SAFETY: the ring and the memory belong together, they were made in `bind`.
            let taken = unsafe { self.completion.consume(&mut done) };
            self.out -= taken;
            self.free.extend(done.iter().take(taken));
            if taken < BATCH {
                return Ok(());
            }
        }
    }
}
