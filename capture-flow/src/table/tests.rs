//! The short way and the long one tell the same.

use std::collections::HashMap;

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;
use crate::frame::{IfaceId, LinkType, PcapPosition};
use crate::key::FlowHash;
use crate::sink::SessionUpdate;
use crate::time::NanosDelta;

/// Everything that a table tells.
#[derive(Debug, Default, PartialEq)]
struct Told {
    rows: Vec<String>,
    touches: Vec<(PcapPosition, FlowHash, u64)>,
}

impl Sink for Told {
    fn touch(&mut self, at: PcapPosition, flow: FlowHash, mark: &mut Mark) {
        mark.0 += 1;
        self.touches.push((at, flow, mark.0));
    }

    fn session(&mut self, update: SessionUpdate) {
        self.rows.push(format!("{update:?}"));
    }
}

/// What an end does next.
#[derive(Clone, Copy, Debug)]
enum Move {
    Handshake,
    Data,
    Ack,
    /// What was sent last, once more.
    Again,
    /// Data that leaves a hole.
    Hole,
    Fin,
    Reset,
    /// Any segment.
    Odd {
        flags: u8,
        seq: u16,
        ack: u16,
    },
    Datagram,
}

/// One frame.
#[derive(Clone, Copy, Debug)]
struct Step {
    wait_ms: i32,
    pair: u8,
    v6: bool,
    back: bool,
    next: Move,
    len: u16,
    closed_window: bool,
    cut: bool,
    recorded: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let wait_ms = prop_oneof![
        20 => 0..1_500,
        1 => prop::sample::select(vec![-3, -800, 6_000, 9_000, 61_000, 310_000, -8_000_000]),
    ];
    let next = prop_oneof![
        3 => Just(Move::Handshake),
        8 => Just(Move::Data),
        5 => Just(Move::Ack),
        5 => Just(Move::Datagram),
        1 => Just(Move::Again),
        1 => Just(Move::Hole),
        1 => Just(Move::Fin),
        1 => Just(Move::Reset),
        1 => (any::<u8>(), any::<u16>(), any::<u16>())
            .prop_map(|(flags, seq, ack)| Move::Odd { flags, seq, ack }),
    ];
    let rarely = prop::bool::weighted(0.04);
    (wait_ms, 0_u8..3, any::<bool>(), any::<bool>(), next, 0_u16..1400, (rarely, rarely, rarely))
        .prop_map(|(wait_ms, pair, v6, back, next, len, (closed_window, cut, lost))| Step {
            wait_ms,
            pair,
            v6,
            back,
            next,
            len,
            closed_window,
            cut,
            recorded: !lost,
        })
}

/// What the two ends of a connection have sent and acknowledged.
#[derive(Clone, Copy)]
struct Numbers {
    next: [u32; 2],
    acked: [u32; 2],
    shaken: u8,
}

fn frames(steps: &[Step], start: u32) -> Vec<(i64, u32, Vec<u8>, bool)> {
    let mut ms = 1_000_000_000_i64;
    let mut connections: HashMap<(u8, bool), Numbers> = HashMap::new();
    let frame = |step: &Step| {
        ms += i64::from(step.wait_ms);
        let mut numbers = *connections.entry((step.pair, step.v6)).or_insert(Numbers {
            next: [start, start.wrapping_add(7)],
            acked: [0; 2],
            shaken: 0,
        });
        let mut back = step.back;
        let mut flags = 0x10;
        let mut len = 0;
        let mut seq_ack = None;
        match step.next {
            Move::Handshake => {
                (flags, back) =
                    [(0x02, false), (0x12, true), (0x10, false)][usize::from(numbers.shaken % 3)];
                numbers.shaken = numbers.shaken.wrapping_add(1);
            }
            Move::Data | Move::Datagram => len = step.len,
            Move::Ack => {}
            Move::Again => {
                let me = usize::from(back);
                len = step.len.min(100);
                let seq = numbers.next[me].wrapping_sub(u32::from(len));
                seq_ack = Some((seq, numbers.acked[me]));
            }
            Move::Hole => {
                let me = usize::from(back);
                numbers.next[me] = numbers.next[me].wrapping_add(u32::from(step.len));
                len = 50;
            }
            Move::Fin => flags = 0x11,
            Move::Reset => flags = 0x14,
            Move::Odd { flags: odd, seq, ack } => {
                flags = odd;
                len = step.len;
                let me = usize::from(back);
                let near =
                    |number: u32, by: u16| number.wrapping_add(u32::from(by)).wrapping_sub(1 << 15);
                seq_ack = Some((near(numbers.next[me], seq), near(numbers.next[1 - me], ack)));
            }
        }
        let (me, you) = (usize::from(back), usize::from(!back));
        let (seq, ack) = seq_ack.unwrap_or_else(|| {
            let seq = numbers.next[me];
            let takes = u32::from(len) + u32::from(flags & 0x03 != 0);
            if !matches!(step.next, Move::Datagram) {
                numbers.next[me] = seq.wrapping_add(takes);
                numbers.acked[me] = numbers.next[you];
            }
            (seq, numbers.next[you])
        });
        connections.insert((step.pair, step.v6), numbers);

        // One pair speaks NTP, which turns sessions round: a client's messages, a server's.
        let ports = if step.pair == 2 { [123; 2] } else { [40_000 + u16::from(step.pair), 8081] };
        let ends = [(1_u8, ports[0]), (2, ports[1])];
        let (src, dst) = (ends[me], ends[you]);
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, src.0], [2, 0, 0, 0, 0, dst.0]);
        let ip = if step.v6 {
            let addr = |end: u8| [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, end];
            link.ipv6(addr(src.0), addr(dst.0), 64)
        } else {
            link.ipv4([10, 0, 0, src.0], [10, 0, 0, dst.0], 64)
        };
        let payload = vec![[0x63, 0x64][usize::from(len & 1)]; usize::from(len)];
        let mut bytes = Vec::new();
        if matches!(step.next, Move::Datagram) {
            ip.udp(src.1, dst.1).write(&mut bytes, &payload).unwrap();
        } else {
            let window = if step.closed_window { 0 } else { 500 };
            let mut tcp = ip.tcp(src.1, dst.1, seq, window);
            for (bit, set) in
                [0x01, 0x02, 0x04, 0x08].into_iter().map(|bit| (bit, flags & bit != 0))
            {
                tcp = match bit {
                    0x01 if set => tcp.fin(),
                    0x02 if set => tcp.syn(),
                    0x04 if set => tcp.rst(),
                    0x08 if set => tcp.psh(),
                    _ => tcp,
                };
            }
            if flags & 0x10 != 0 {
                tcp = tcp.ack(ack);
            }
            tcp.write(&mut bytes, &payload).unwrap();
        }
        let wire_len = bytes.len() as u32;
        if step.cut {
            bytes.truncate(bytes.len() - usize::from(len / 2));
        }
        (ms * 1_000_000, wire_len, bytes, step.recorded)
    };
    steps.iter().map(frame).collect()
}

/// What a table makes of frames, by the short way where it can, or by the long way alone.
fn told(frames: &[Frame<'_>], batch: Option<usize>, halves: bool) -> (Told, String) {
    let config = FlowConfig { halves, interim: NanosDelta::from_secs(20), ..FlowConfig::default() };
    let mut table = SessionTable::new(config).unwrap();
    let mut told = Told::default();
    match batch {
        Some(batch) => {
            for frames in frames.chunks(batch) {
                table.observe_batch(frames, &mut told);
            }
        }
        None => {
            for frame in frames {
                table.core.count_frames(std::slice::from_ref(frame));
                table.core.tick(frame.ts, &mut told);
                table.observe(frame, session::NONE, &mut told);
            }
        }
    }
    let end = frames.last().map_or(Nanos(0), |frame| frame.ts);
    table.finish(end, &mut told);
    (told, format!("{:?}", table.stats()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn both_ways_tell_the_same(
        steps in prop::collection::vec(step(), 1..300),
        start in prop_oneof![Just(1000_u32), Just(u32::MAX - 3000), any::<u32>()],
        batch in prop::sample::select(vec![1_usize, 5, 64, 300]),
        halves: bool,
    ) {
        let made = frames(&steps, start);
        let frames: Vec<Frame<'_>> = (0_u32..).zip(&made).map(|(number, (ts, wire_len, bytes, recorded))| Frame {
            ts: Nanos(*ts),
            wire_len: *wire_len,
            bytes,
            link: LinkType::ETHERNET,
            iface: IfaceId(0),
            at: recorded.then_some(PcapPosition { worker: 0, segment: 9, offset: number }),
        }).collect();
        prop_assert_eq!(told(&frames, Some(batch), halves), told(&frames, None, halves));
    }
}

/// Counters go on where their lower halves end.
#[test]
fn counters_carry() {
    let steps = [Step {
        wait_ms: 1,
        pair: 0,
        v6: false,
        back: false,
        next: Move::Datagram,
        len: 100,
        closed_window: false,
        cut: false,
        recorded: true,
    }; 12];
    let made = frames(&steps, 0);
    let mut table = SessionTable::new(FlowConfig::default()).unwrap();
    let mut told = Told::default();
    for (number, (ts, wire_len, bytes, _)) in made.iter().enumerate() {
        let frame = Frame {
            ts: Nanos(*ts),
            wire_len: *wire_len,
            bytes,
            link: LinkType::ETHERNET,
            iface: IfaceId(0),
            at: None,
        };
        table.observe_batch(&[frame], &mut told);
        if number == 5 {
            let hot = &mut table.core.near[0].hot;
            hot.pkts[0] += u32::MAX - 7;
            hot.ip_bytes[0] += u32::MAX - 800;
            hot.frame_bytes += u32::MAX - 1000;
        }
    }
    let (orig, record) = {
        let mut rows = Vec::<SessionUpdate>::new();
        table.finish(Nanos(made[11].0), &mut rows);
        let record = rows.remove(0).record;
        (record.orig, record)
    };
    assert_eq!(orig.pkts, 12 + u64::from(u32::MAX - 7));
    assert_eq!(orig.ip_bytes, 12 * 128 + u64::from(u32::MAX - 800));
    assert_eq!(record.frame_bytes, 12 * 142 + u64::from(u32::MAX - 1000));
    assert_eq!(record.history.as_str(), "D", "no letter a second time");
}
