//! The AF_XDP source on real wires: everything that is sent arrives once, whole and in order, and
//! what a ring had no room for is missing to the frame.

use std::time::Duration;

use anyhow::{Result, ensure};
use capture_common::QueueCounters;
use capture_flow::frame::IfaceId;
use capture_flow::time::Nanos;
use capture_user::args::Mode;
use capture_user::link::Link;
use capture_user::program::{AttachMode, Program, ProgramError};
use capture_user::source::af_xdp::{AfXdp, AfXdpConfig, Backend, OpenError};
use capture_user::source::{Received, Source, SourceCounters, SourceFrame, wait};
use rustix::event::{EventfdFlags, eventfd};
use stillwire_tests::traffic::{Frames, Pace};
use stillwire_tests::{Wire, traffic};

/// Longer than the kernel ever holds a frame back, and only waited for where something is wrong or
/// nothing more is to come.
const QUIET: Duration = Duration::from_millis(300);

/// What a test keeps of a frame.
struct Kept {
    ts: Nanos,
    len: usize,
    source_port: u16,
    parts: usize,
}

impl Kept {
    fn of(frame: &SourceFrame<'_>) -> Self {
        let bytes = frame.parts.concat();
        assert_eq!(bytes.len(), frame.wire_len as usize);
        let payload = bytes.get(42..).unwrap_or_default();
        assert!(payload.iter().all(|byte| *byte == b'x'), "the payload is not what was sent");
        let source_port = u16::from_be_bytes([bytes[34], bytes[35]]);
        Self { ts: frame.ts, len: bytes.len(), source_port, parts: frame.parts.len() }
    }
}

/// A program and a socket on every queue of the wire's sensor end.
struct Receiver {
    // The order of the fields is the order of dropping: the program is detached first.
    program: Program,
    sources: Vec<AfXdp>,
}

impl Receiver {
    fn open(mode: Mode, ring_size: u32) -> Result<Self> {
        let link = Link::by_name(Wire::SENSOR)?;
        let program = Program::load(&link.name, link.rx_queues)?;
        let attached = program.attach(&link, mode)?;
        let sources = (0..link.rx_queues)
            .map(|queue| {
                let config = AfXdpConfig { iface: IfaceId(0), queue, ring_size, frame_size: 2048 };
                AfXdp::open(&config, &link, &program, attached.mode)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { program, sources })
    }

    /// Everything that has come, by queue, until the wire is quiet.
    fn everything(&mut self) -> Result<Vec<Vec<Kept>>> {
        let never = eventfd(0, EventfdFlags::CLOEXEC)?;
        let mut kept: Vec<Vec<Kept>> = self.sources.iter().map(|_| Vec::new()).collect();
        let mut last_chance = false;
        loop {
            let mut idle = true;
            for (source, kept) in self.sources.iter_mut().zip(&mut kept) {
                let received = source.receive(&mut |frames| {
                    kept.extend(frames.iter().map(Kept::of));
                })?;
                idle &= received == Received::Idle;
            }
            if !idle {
                last_chance = false;
            } else if last_chance {
                return Ok(kept);
            } else {
                wait(&self.sources, std::os::fd::AsFd::as_fd(&never), QUIET)?;
                last_chance = true;
            }
        }
    }

    fn counters(&mut self) -> Result<(QueueCounters, SourceCounters)> {
        let mut seen = QueueCounters::default();
        for queue in self.program.counters()? {
            assert_eq!(
                queue.seen,
                queue.steered + queue.passed + queue.no_socket + queue.aborted,
                "a frame left without an outcome, or with two: {queue:?}"
            );
            seen.seen += queue.seen;
            seen.seen_bytes += queue.seen_bytes;
            seen.steered += queue.steered;
            seen.no_socket += queue.no_socket;
            seen.unstamped += queue.unstamped;
        }
        let mut sum = SourceCounters::default();
        for source in &mut self.sources {
            let counters = source.counters()?;
            sum.frames += counters.frames;
            sum.bytes += counters.bytes;
            sum.unstamped += counters.unstamped;
            sum.malformed += counters.malformed;
            sum.ring_full += counters.ring_full;
            sum.dropped += counters.dropped;
        }
        Ok((seen, sum))
    }
}

fn frames(count: u64, bytes: u32) -> Frames {
    Frames { count, bytes, flows: 16, pace: Pace::Flood }
}

/// Sends over a wire and expects every frame of it once, whole, stamped, in order.
fn all_arrive(wire: &Wire, mode: Mode, sent: Frames) -> Result<()> {
    wire.sensor.enter(|| {
        let mut receiver = Receiver::open(mode, 8192)?;
        let start = now();
        let carried = sent.send(wire)?;
        ensure!(carried.refused == 0, "the wire refused frames: {carried:?}");
        let kept = receiver.everything()?;
        let end = now();
        let total: usize = kept.iter().map(Vec::len).sum();
        let (seen, received) = receiver.counters()?;
        assert_eq!(total as u64, sent.count, "{seen:?} {received:?}");
        assert_eq!(seen.seen, sent.count);
        assert_eq!(seen.seen_bytes, sent.count * u64::from(sent.bytes));
        assert_eq!(seen.steered, sent.count);
        assert_eq!((seen.unstamped, received.unstamped), (0, 0));
        assert_eq!(received.frames, sent.count);
        assert_eq!(received.bytes, seen.seen_bytes);
        assert_eq!((received.ring_full, received.dropped, received.malformed), (0, 0, 0));
        for queue in &kept {
            let mut last = start;
            for frame in queue {
                assert_eq!(frame.len, sent.bytes as usize);
                assert_eq!(frame.parts > 1, sent.bytes > 2048 - 272, "{} parts", frame.parts);
                assert!(frame.ts >= last, "{} after {last}", frame.ts);
                last = frame.ts;
            }
            assert!(last <= end, "{last} is later than {end}");
        }
        // trafgen deals the frames out to the flows in turn: each got the same.
        for flow in 0..sent.flows {
            let port = traffic::FIRST_PORT + flow;
            let of_flow = kept.iter().flatten().filter(|frame| frame.source_port == port).count();
            assert_eq!(of_flow as u64, sent.count / u64::from(sent.flows), "flow {port}");
        }
        Ok(())
    })
}

fn now() -> Nanos {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    Nanos(time.tv_sec * 1_000_000_000 + time.tv_nsec)
}

#[test]
fn frames_of_64_bytes_arrive() {
    let wire = Wire::new().unwrap();
    all_arrive(&wire, Mode::Native, frames(4000, 64)).unwrap();
}

#[test]
fn frames_of_1514_bytes_arrive() {
    let wire = Wire::new().unwrap();
    all_arrive(&wire, Mode::Native, frames(4000, 1514)).unwrap();
}

#[test]
fn jumbo_frames_arrive_whole_whatever_the_batch_cuts() {
    let wire = Wire::with().mtu(9000).build().unwrap();
    // Six pieces each: 64 descriptors of a batch always end in the middle of one.
    all_arrive(&wire, Mode::Native, frames(800, 9000)).unwrap();
}

#[test]
fn frames_over_two_queues_arrive() {
    let wire = Wire::with().queues(2).spread_by_flow().build().unwrap();
    for bytes in [64, 1514] {
        all_arrive(&wire, Mode::Native, frames(4000, bytes)).unwrap();
    }
}

#[test]
fn the_generic_hook_takes_every_size_too() {
    let wire = Wire::with().mtu(9000).build().unwrap();
    for bytes in [64, 1514, 9000] {
        all_arrive(&wire, Mode::Generic, frames(800, bytes)).unwrap();
    }
}

#[test]
fn what_the_ring_had_no_room_for_is_missing_to_the_frame() {
    for bytes in [64, 9000] {
        let wire = Wire::with().mtu(9000).build().unwrap();
        wire.sensor
            .enter(|| {
                let mut receiver = Receiver::open(Mode::Native, 64)?;
                let sent = frames(4000, bytes).send(&wire)?;
                let kept = receiver.everything()?;
                let (seen, received) = receiver.counters()?;
                assert_eq!(seen.seen, sent.carried);
                assert_eq!(received.frames as usize, kept[0].len());
                assert!(kept.iter().flatten().all(|frame| frame.len == bytes as usize));
                let lost = seen.steered - received.frames;
                assert!(lost > 0, "64 slots have held {} frames", sent.carried);
                assert_eq!(lost, received.ring_full + received.dropped, "{received:?}");
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn an_overflow_does_not_stop_the_ring() {
    let wire = Wire::new().unwrap();
    wire.sensor
        .enter(|| {
            let mut receiver = Receiver::open(Mode::Native, 64)?;
            frames(4000, 64).send(&wire)?;
            receiver.everything()?;
            for _ in 0..3 {
                let few = frames(48, 64);
                few.send(&wire)?;
                assert_eq!(receiver.everything()?[0].len(), 48);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn the_backend_says_what_it_is() {
    let wire = Wire::new().unwrap();
    wire.sensor
        .enter(|| {
            let receiver = Receiver::open(Mode::Auto, 64)?;
            let expected =
                Backend { attached: AttachMode::Native, zero_copy: false, multi_buffer: true };
            assert_eq!(receiver.sources[0].backend(), expected);
            assert_eq!(expected.to_string(), "native XDP, copy");
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_queue_that_was_left_can_be_taken_again_at_once() {
    let wire = Wire::new().unwrap();
    for _ in 0..3 {
        all_arrive(&wire, Mode::Native, frames(1600, 64)).unwrap();
    }
}

#[test]
fn an_interface_that_is_removed_is_noticed() {
    let wire = Wire::new().unwrap();
    wire.sensor
        .enter(|| {
            let mut receiver = Receiver::open(Mode::Native, 64)?;
            wire.sensor.run("ip", &["link", "del", Wire::SENSOR])?;
            let first = receiver.sources[0].counters();
            assert!(first.is_ok(), "what was counted is still told: {first:?}");
            let error = receiver.sources[0].receive(&mut |_| {}).unwrap_err();
            assert!(error.to_string().contains("tap0 is gone"), "{error}");
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_program_that_was_taken_off_is_noticed() {
    let wire = Wire::new().unwrap();
    wire.sensor
        .enter(|| {
            let receiver = Receiver::open(Mode::Native, 64)?;
            let program = &receiver.program;
            let index = Link::by_name(Wire::SENSOR)?.index;
            assert!(program.is_attached(&Link::by_index(index)?));
            let links = stillwire_tests::netns::run(
                std::process::Command::new("bpftool").args(["link", "list"]),
            )?;
            // "7: xdp  prog 42" on the line of its own
            let ours = format!("xdp  prog {}", program.id());
            let line = links.lines().find(|line| line.trim_end().ends_with(&ours));
            let id = line.and_then(|line| line.split(':').next()).expect("our link is listed");
            wire.sensor.run("bpftool", &["link", "detach", "id", id])?;
            assert!(!program.is_attached(&Link::by_index(index)?));
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_second_program_is_refused_and_names_the_first() {
    let wire = Wire::new().unwrap();
    wire.sensor
        .enter(|| {
            let first = Receiver::open(Mode::Native, 64)?;
            let link = Link::by_name(Wire::SENSOR)?;
            for mode in [Mode::Auto, Mode::Native, Mode::Generic] {
                let second = Program::load(&link.name, link.rx_queues)?;
                let error = second.attach(&link, mode).unwrap_err();
                let ProgramError::Occupied { program_id, .. } = &error else {
                    panic!("{mode:?}: {error:?}")
                };
                assert_eq!(*program_id, Some(first.program.id()), "{mode:?}");
                assert!(error.to_string().contains("bpftool net show dev tap0"), "{error}");
            }
            // The failed attempts have not disturbed the first.
            assert!(first.program.is_attached(&Link::by_name(Wire::SENSOR)?));
            Ok(())
        })
        .unwrap();
}

#[test]
fn too_few_queues_for_the_peer_leave_the_generic_hook() {
    let wire = Wire::new().unwrap();
    wire.sensor
        .enter(|| {
            // The peer of this one has two transmit queues, it has one receive queue.
            let add = "link add odd0 numrxqueues 1 numtxqueues 1 type veth \
                       peer name odd1 numrxqueues 2 numtxqueues 2";
            wire.sensor.run("ip", &add.split_whitespace().collect::<Vec<_>>())?;
            let link = Link::by_name("odd0")?;
            let program = Program::load(&link.name, link.rx_queues)?;
            let error = program.attach(&link, Mode::Native).unwrap_err();
            assert!(error.to_string().contains("queues"), "{error}");
            let attached = program.attach(&link, Mode::Auto)?;
            assert_eq!(attached.mode, AttachMode::Generic);
            assert!(attached.fallback.is_some_and(|reason| reason.contains("queues")));
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_queue_that_is_taken_is_not_shared() {
    let wire = Wire::new().unwrap();
    wire.sensor
        .enter(|| {
            let _first = Receiver::open(Mode::Native, 64)?;
            let link = Link::by_name(Wire::SENSOR)?;
            let second = Program::load(&link.name, link.rx_queues)?;
            let config =
                AfXdpConfig { iface: IfaceId(0), queue: 0, ring_size: 64, frame_size: 2048 };
            let error = AfXdp::open(&config, &link, &second, AttachMode::Native).unwrap_err();
            assert!(matches!(error, OpenError::Occupied { .. }), "{error:?}");
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_queue_that_does_not_exist_is_refused() {
    let wire = Wire::new().unwrap();
    wire.sensor
        .enter(|| {
            let link = Link::by_name(Wire::SENSOR)?;
            let program = Program::load(&link.name, 8)?;
            let config =
                AfXdpConfig { iface: IfaceId(0), queue: 7, ring_size: 64, frame_size: 2048 };
            let error = AfXdp::open(&config, &link, &program, AttachMode::Generic).unwrap_err();
            assert!(error.to_string().contains("tap0 queue 7"), "{error}");
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_driver_without_native_xdp_leaves_the_generic_hook() {
    let wire = Wire::new().unwrap();
    wire.sensor
        .enter(|| {
            let link = Link::by_name("lo")?;
            let program = Program::load(&link.name, link.rx_queues)?;
            let error = program.attach(&link, Mode::Native).unwrap_err();
            assert!(error.to_string().contains("--mode generic"), "{error}");
            let attached = program.attach(&link, Mode::Auto)?;
            assert_eq!(attached.mode, AttachMode::Generic);
            assert!(attached.fallback.is_some_and(|reason| reason.contains("no native XDP")));
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_link_that_goes_down_and_comes_back_is_received_from_again() {
    let wire = Wire::new().unwrap();
    let turn = |way: &str| wire.sensor.run("ip", &["link", "set", Wire::SENSOR, way]).unwrap();
    turn("down");
    wire.sensor
        .enter(|| {
            let mut receiver = Receiver::open(Mode::Native, 64)?;
            for _ in 0..2 {
                turn("up");
                frames(48, 64).send(&wire)?;
                assert_eq!(receiver.everything()?[0].len(), 48);
                turn("down");
                assert!(receiver.everything()?[0].is_empty());
            }
            let (seen, received) = receiver.counters()?;
            assert_eq!((seen.seen, seen.steered, received.frames), (96, 96, 96));
            Ok(())
        })
        .unwrap();
}
