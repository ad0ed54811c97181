//! The bare receiver: takes frames by AF_XDP and discards them, and nothing else. What it reaches
//! is what the link and the kernel give; what a sensor falls short of it is the sensor's own cost.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::EbpfLoader;
use aya::maps::XskMap;
use aya::programs::Xdp;
use aya::programs::xdp::XdpMode;
use bench_common::{DISCARD, SOCKETS};
use capture_user::link::Link;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xsk_rs::config::{
    BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig,
};
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket, TxQueue, Umem};

use super::args::BareArgs;
use super::object;
use super::stop;
use super::subject::BareCount;

/// What it writes once it receives.
pub(super) const READY: &str = "receiving";

/// Frames taken at once.
const BATCH: usize = 64;
/// How long it sleeps at most before it looks whether to stop.
const NAP: Duration = Duration::from_millis(50);
/// Bytes of a piece of memory; longer frames take several.
const CHUNK: u32 = 2048;
/// Nothing is ever sent, but xsk-rs always sets up these two rings: the smallest will do.
const UNUSED_RING: u32 = 2;

/// Receives until it is asked to stop, then prints how much it was.
pub(crate) fn run(args: &BareArgs) -> Result<ExitCode> {
    stop::listen()?;
    let link = Link::by_name(&args.iface)?;
    let mut ebpf = EbpfLoader::new()
        .map_max_entries(SOCKETS, link.rx_queues)
        .load(&object::bytes()?)
        .context("loading the program")?;
    let map = ebpf.take_map(SOCKETS).context("no map of sockets in the object")?;
    let mut sockets: XskMap<_> = map.try_into()?;
    let xdp: &mut Xdp = ebpf.program_mut(DISCARD).context("no program")?.try_into()?;
    xdp.load().context("loading the program")?;
    xdp.attach_to_if_index(link.index, XdpMode::Driver)
        .or_else(|_| xdp.attach_to_if_index(link.index, XdpMode::Skb))
        .with_context(|| format!("attaching the program to {}", link.name))?;
    let mut queues = Vec::new();
    for queue in 0..link.rx_queues {
        let receiver = Receiver::bind(&link.name, queue, args.ring_size)
            .with_context(|| format!("binding to queue {queue} of {}", link.name))?;
        sockets.set(queue, receiver.rx.fd().as_raw_fd(), 0).context("steering frames")?;
        queues.push(receiver);
    }
    eprintln!("{READY} on {}", link.name);
    receive(&mut queues)?;
    drop(ebpf);
    let mut count = BareCount { frames: 0, bytes: 0, ring_full: 0, dropped: 0 };
    for queue in &queues {
        let kernel = queue.rx.fd().xdp_statistics().context("reading the socket's counters")?;
        count.frames += queue.frames;
        count.bytes += queue.bytes;
        count.ring_full += kernel.rx_ring_full();
        count.dropped += kernel.rx_dropped();
    }
    println!("{}", serde_json::to_string(&count)?);
    Ok(ExitCode::SUCCESS)
}

/// Takes frames as long as there are any, sleeps when there are none.
fn receive(queues: &mut [Receiver]) -> Result<()> {
    let nap = Timespec::try_from(NAP).context("a nap")?;
    loop {
        let mut idle = true;
        for queue in &mut *queues {
            idle &= queue.discard() == 0;
        }
        if !idle {
            continue;
        }
        if stop::asked() {
            return Ok(());
        }
        let mut waiting: Vec<_> = queues
            .iter()
            .map(|queue| PollFd::from_borrowed_fd(queue.fd(), PollFlags::IN))
            .collect();
        match poll(&mut waiting, Some(&nap)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for frames"),
        }
    }
}

/// The socket of one queue.
struct Receiver {
    rx: RxQueue,
    fill: FillQueue,
    _tx: TxQueue,
    _completion: CompQueue,
    _umem: Umem,
    batch: [FrameDesc; BATCH],
    frames: u64,
    bytes: u64,
}

impl Receiver {
    fn bind(iface: &str, queue: u32, ring: u32) -> io::Result<Self> {
        let zero_copy = BindFlags::XDP_ZEROCOPY | BindFlags::XDP_USE_NEED_WAKEUP;
        Self::bind_as(iface, queue, ring, zero_copy | BindFlags::XDP_USE_SG).or_else(|_| {
            Self::bind_as(iface, queue, ring, BindFlags::XDP_COPY | BindFlags::XDP_USE_SG)
        })
    }

    fn bind_as(iface: &str, queue: u32, ring: u32, flags: BindFlags) -> io::Result<Self> {
        // A zero-copy driver keeps as many pieces in its own ring.
        let chunks =
            if flags.contains(BindFlags::XDP_ZEROCOPY) { ring.saturating_mul(2) } else { ring };
        let umem = UmemConfig::builder()
            .frame_size(FrameSize::new(CHUNK).map_err(io::Error::other)?)
            .fill_queue_size(QueueSize::new(chunks).map_err(io::Error::other)?)
            .comp_queue_size(QueueSize::new(UNUSED_RING).map_err(io::Error::other)?)
            .build()
            .map_err(io::Error::other)?;
        let count = NonZeroU32::new(chunks).ok_or(io::ErrorKind::InvalidInput)?;
        let (umem, descriptors) = Umem::new(umem, count, false).map_err(io::Error::other)?;
        let config = SocketConfig::builder()
            .rx_queue_size(QueueSize::new(ring).map_err(io::Error::other)?)
            .tx_queue_size(QueueSize::new(UNUSED_RING).map_err(io::Error::other)?)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(flags)
            .build();
        let name: Interface = iface.parse().map_err(io::Error::other)?;
        // SAFETY: the duty is about several sockets sharing a UMEM and a queue. This UMEM was made
        // for this one socket, and the program is ours, not libxdp's.
        let (tx, rx, rings) =
            unsafe { Socket::new(config, &umem, &name, queue) }.map_err(io::Error::other)?;
        let (mut fill, completion) =
            rings.ok_or_else(|| io::Error::other("the queue is bound already"))?;
        // SAFETY: the descriptors are all of this UMEM's, and none has been given away before.
        let given = unsafe { fill.produce(&descriptors) };
        if given < descriptors.len() {
            return Err(io::Error::other("the fill ring has no room for all of the memory"));
        }
        let batch = [FrameDesc::default(); BATCH];
        Ok(Self {
            rx,
            fill,
            _tx: tx,
            _completion: completion,
            _umem: umem,
            batch,
            frames: 0,
            bytes: 0,
        })
    }

    /// Takes what is there and gives the memory back at once. How many pieces it was.
    fn discard(&mut self) -> usize {
        // SAFETY: the ring and the memory belong together, they were made in `bind_as`.
        let taken = unsafe { self.rx.consume(&mut self.batch) };
        let pieces = self.batch.get(..taken).unwrap_or_default();
        if pieces.is_empty() {
            return 0;
        }
        for piece in pieces {
            self.frames += u64::from(!piece.has_more_frames());
            self.bytes += piece.lengths().data() as u64;
        }
        // SAFETY: pieces of this memory that were just taken from the receive ring. The fill ring
        // has room for all there are.
        unsafe { self.fill.produce(pieces) };
        if self.fill.needs_wakeup() {
            // A receive of nothing wakes the driver. One that cannot just now is woken by the
            // next poll.
            let _ = rustix::net::recv(self.fd(), &mut [0_u8; 0], rustix::net::RecvFlags::DONTWAIT);
        }
        taken
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket is open as long as its queues are alive, and `rx` is ours.
        unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) }
    }
}
