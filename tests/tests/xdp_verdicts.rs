//! The XDP program's verdicts as a table, through `BPF_PROG_TEST_RUN`: the kernel runs the program
//! on a frame of our making and gives back what became of it.
//!
//! `STILLWIRE_XDP_OBJECT` names another object to be tested: `scripts/build-ebpf --check` does so
//! for the object of a toolchain that is not the one of the committed object.

use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use capture_common::{FrameStamp, QueueCounters, StampClock};
use capture_flow::frame::IfaceId;
use capture_user::link::Link;
use capture_user::program::{AttachMode, OBJECT, Program};
use capture_user::source::af_xdp::{AfXdp, AfXdpConfig};
use rustix::time::{ClockId, DynamicClockId, clock_gettime, clock_gettime_dynamic};
use stillwire_tests::Wire;

/// `include/uapi/linux/bpf.h`.
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

/// The wire has so many queues; the program is told of one less, as if the last had been added
/// while the sensor ran.
const QUEUES: u32 = 3;
const KNOWN: u32 = QUEUES - 1;
/// The queue with a socket. The other known queue has none.
const SERVED: u32 = 0;
const UNSERVED: u32 = 1;
const ADDED: u32 = 2;

/// The part of `union bpf_attr` that belongs to `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    verdict: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// `struct xdp_md`; here the places are offsets from the start of the metadata.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct XdpContext {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// What became of a frame.
struct Outcome {
    verdict: u32,
    metadata: Vec<u8>,
    frame: Vec<u8>,
}

/// Everything a table of verdicts needs, in a namespace of its own.
struct Bench {
    program: Program,
    ifindex: u32,
    _socket: AfXdp,
}

impl Bench {
    fn new(clock: StampClock) -> Result<Self> {
        let other;
        let object = match std::env::var_os("STILLWIRE_XDP_OBJECT") {
            Some(path) => {
                other = std::fs::read(&path).with_context(|| format!("reading {path:?}"))?;
                &other
            }
            None => OBJECT,
        };
        let link = Link::by_name(Wire::SENSOR)?;
        ensure!(link.rx_queues == QUEUES, "{link:?}");
        let program = Program::load_object(object, &link.name, KNOWN, clock)?;
        let config =
            AfXdpConfig { iface: IfaceId(0), queue: SERVED, ring_size: 64, frame_size: 2048 };
        let socket = AfXdp::open(&config, &link, &program, AttachMode::Generic)?;
        Ok(Self { program, ifindex: link.index, _socket: socket })
    }

    /// Runs the program once. The data begins with `metadata` bytes that are not the frame's.
    fn run(&self, queue: u32, metadata: u32, data: &[u8]) -> Result<Outcome> {
        let mut out = vec![0_u8; data.len() + 4096];
        let context = XdpContext {
            data: metadata,
            data_end: data.len() as u32,
            ingress_ifindex: self.ifindex,
            rx_queue_index: queue,
            ..XdpContext::default()
        };
        let mut after = XdpContext::default();
        let mut run = TestRun {
            program: self.program.with_fd(|fd| fd.as_raw_fd())?.cast_unsigned(),
            data_size_in: data.len() as u32,
            data_size_out: out.len() as u32,
            data_in: data.as_ptr() as u64,
            data_out: out.as_mut_ptr() as u64,
            repeat: 1,
            context_size_in: size_of::<XdpContext>() as u32,
            context_size_out: size_of::<XdpContext>() as u32,
            context_in: &raw const context as u64,
            context_out: &raw mut after as u64,
            ..TestRun::default()
        };
        const BPF_PROG_TEST_RUN: libc::c_int = 10;
        // SAFETY: the attributes are those of the command, and every pointer in them is to memory
        // of the stated size that lives for the call.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut run, size_of::<TestRun>())
        };
        if result < 0 {
            return Err(io::Error::last_os_error()).context("BPF_PROG_TEST_RUN");
        }
        out.truncate(run.data_size_out as usize);
        let frame = out.split_off(after.data as usize);
        Ok(Outcome { verdict: run.verdict, metadata: out, frame })
    }

    /// Runs the program once and gives what it has counted meanwhile, by queue.
    fn counted(
        &self,
        queue: u32,
        metadata: u32,
        data: &[u8],
    ) -> Result<(Outcome, Vec<QueueCounters>)> {
        let before = self.program.counters()?;
        let outcome = self.run(queue, metadata, data)?;
        let after = self.program.counters()?;
        let counted = after
            .iter()
            .zip(&before)
            .map(|(after, before)| QueueCounters {
                seen: after.seen - before.seen,
                seen_bytes: after.seen_bytes - before.seen_bytes,
                steered: after.steered - before.steered,
                passed: after.passed - before.passed,
                no_socket: after.no_socket - before.no_socket,
                aborted: after.aborted - before.aborted,
                unstamped: after.unstamped - before.unstamped,
            })
            .collect();
        Ok((outcome, counted))
    }

    /// The clock that the program stamps with.
    fn clock(&self) -> u64 {
        let time = match self.program.clock() {
            StampClock::Monotonic => clock_gettime(ClockId::Monotonic),
            StampClock::Tai => clock_gettime_dynamic(DynamicClockId::Tai).expect("a TAI clock"),
        };
        (time.tv_sec * 1_000_000_000 + time.tv_nsec).cast_unsigned()
    }
}

/// Whole and broken frames, by what they are.
fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let ethernet = |ether_type: u16| {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        frame.extend_from_slice(&ether_type.to_be_bytes());
        frame
    };
    let ipv4 = |protocol: u8, payload: usize| {
        let mut frame = ethernet(0x0800);
        let total = (20 + payload) as u16;
        frame.extend_from_slice(&[0x45, 0]);
        frame.extend_from_slice(&total.to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        // The payload counts up, so that a byte in the wrong place shows.
        frame.extend((0..payload).map(|byte| byte as u8));
        frame
    };
    let cut = |mut frame: Vec<u8>, len: usize| {
        frame.truncate(len);
        frame
    };
    vec![
        ("nothing but an Ethernet header", ethernet(0x0800)),
        ("cut in the first byte of IPv4", cut(ipv4(6, 40), 15)),
        ("cut inside the IPv4 header", cut(ipv4(6, 40), 14 + 11)),
        ("cut inside the TCP header", cut(ipv4(6, 40), 14 + 20 + 7)),
        ("cut inside the IPv6 header", cut([ethernet(0x86dd), vec![0x60; 40]].concat(), 14 + 23)),
        ("cut inside a VLAN tag", cut([ethernet(0x8100), vec![0, 7, 8, 0]].concat(), 14 + 3)),
        ("ARP", [ethernet(0x0806), vec![0; 28]].concat()),
        ("an IPv4 header that claims options it has not", {
            let mut frame = cut(ipv4(17, 26), 14 + 20);
            frame[14] = 0x4f;
            frame
        }),
        ("60 bytes, the smallest on a wire", ipv4(17, 26)),
        ("1514 bytes, the largest without jumbo", ipv4(17, 1480)),
        ("jumbo, in several buffers", ipv4(17, 9000 - 34)),
    ]
}

/// Runs a test inside the sensor's namespace of a wire with enough queues, with each clock.
fn bench(test: impl Fn(&Bench) -> Result<()> + Sync) {
    let wire = Wire::with().queues(QUEUES).mtu(9000).build().expect("a wire");
    for clock in [StampClock::Tai, StampClock::Monotonic] {
        if let Err(error) = wire.sensor.enter(|| test(&Bench::new(clock)?)) {
            panic!("{clock:?}: {error:?}");
        }
    }
}

#[test]
fn a_queue_with_a_socket_gets_every_frame_stamped() {
    bench(|bench| {
        for (what, frame) in frames() {
            let start = bench.clock();
            let (outcome, counted) = bench.counted(SERVED, 0, &frame).context(what)?;
            let end = bench.clock();
            assert_eq!(outcome.verdict, XDP_REDIRECT, "{what}");
            assert_eq!(outcome.frame, frame, "{what}: the frame has changed");
            let len = frame.len() as u64;
            let expected =
                QueueCounters { seen: 1, seen_bytes: len, steered: 1, ..QueueCounters::default() };
            assert_eq!(counted, by_queue(SERVED, expected), "{what}");
            let stamp = read_stamp(&outcome.metadata);
            assert_eq!(stamp.magic, FrameStamp::MAGIC, "{what}");
            assert_eq!(stamp.rx_queue, SERVED, "{what}");
            assert!((start..=end).contains(&stamp.arrival_ns), "{what}: {stamp:?}");
        }
        Ok(())
    });
}

#[test]
fn a_queue_without_a_socket_passes_every_frame_as_it_came() {
    bench(|bench| {
        // A known queue counts in its own place, one that was added in the place behind the last.
        for (queue, place) in [(UNSERVED, UNSERVED), (ADDED, KNOWN)] {
            for (what, frame) in frames() {
                let (outcome, counted) = bench.counted(queue, 0, &frame).context(what)?;
                assert_eq!(outcome.verdict, XDP_PASS, "{what}");
                assert_eq!(outcome.frame, frame, "{what}: the frame has changed");
                assert!(outcome.metadata.is_empty(), "{what}: metadata was left behind");
                let expected = QueueCounters {
                    seen: 1,
                    seen_bytes: frame.len() as u64,
                    no_socket: 1,
                    ..QueueCounters::default()
                };
                assert_eq!(counted, by_queue(place, expected), "{what} on queue {queue}");
            }
        }
        Ok(())
    });
}

#[test]
fn a_frame_without_room_for_a_stamp_is_steered_and_counted_as_unstamped() {
    bench(|bench| {
        // As much metadata as the kernel takes for a frame leaves no room for ours. How much that
        // is has changed between kernels.
        let frame = frames().swap_remove(8).1;
        let with = |taken: u32| [vec![0x5a; taken as usize], frame.clone()].concat();
        let taken = (0..=252)
            .rev()
            .step_by(4)
            .find(|taken| bench.run(UNSERVED, *taken, &with(*taken)).is_ok())
            .context("the kernel takes no metadata at all")?;
        let (outcome, counted) = bench.counted(SERVED, taken, &with(taken))?;
        assert_eq!(outcome.verdict, XDP_REDIRECT);
        assert_eq!(outcome.frame, frame);
        assert_eq!(outcome.metadata, vec![0x5a; taken as usize], "somebody else's metadata");
        let expected = QueueCounters {
            seen: 1,
            seen_bytes: frame.len() as u64,
            steered: 1,
            unstamped: 1,
            ..QueueCounters::default()
        };
        assert_eq!(counted, by_queue(SERVED, expected));
        Ok(())
    });
}

fn by_queue(place: u32, counters: QueueCounters) -> Vec<QueueCounters> {
    let mut all = vec![QueueCounters::default(); KNOWN as usize + 1];
    all[place as usize] = counters;
    all
}

fn read_stamp(metadata: &[u8]) -> FrameStamp {
    assert_eq!(metadata.len(), FrameStamp::LEN, "{metadata:?}");
    let word = |at: usize| metadata[at..].first_chunk().copied().expect("four more bytes");
    let [low, high] = [0, 4].map(|at| u64::from(u32::from_le_bytes(word(at))));
    FrameStamp {
        arrival_ns: high << 32 | low,
        magic: u32::from_le_bytes(word(8)),
        rx_queue: u32::from_le_bytes(word(12)),
    }
}
