//! Parts of `capture-flow`: decoding, session table, services, Community ID, joining.
#![allow(missing_docs)]

use std::hint::black_box;
use std::time::Duration;

use capture_flow::community_id::CommunityId;
use capture_flow::config::FlowConfig;
use capture_flow::decode::{
    Counted, Decoded, Decoder, HeldFrame, IncompleteDatagram, PacketVisitor,
};
use capture_flow::frame::{Frame, IfaceId, LinkType, PcapPosition};
use capture_flow::join::{JoinConfig, Joiner};
use capture_flow::key::FlowHash;
use capture_flow::packet::Packet;
use capture_flow::record::Service;
use capture_flow::service::{Carrier, Detector, Services};
use capture_flow::sink::{Mark, SessionUpdate, Sink};
use capture_flow::table::SessionTable;
use capture_flow::time::Nanos;
use capture_user::memory::Machine;
use capture_user::source::{BATCH, SourceFrame};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use stillwire_benches::pipeline::Ring;
use stillwire_benches::traffic::{Speech, Traffic};

/// Chunks of a ring of frames: as the sensor's default.
const CHUNKS: usize = 8192;
const SESSIONS: u64 = 100_000;

/// Takes what a table finds out, and looks at nothing.
struct Nowhere;

impl Sink for Nowhere {
    #[inline]
    fn touch(&mut self, at: PcapPosition, _: FlowHash, _: &mut Mark) {
        black_box(at);
    }

    fn session(&mut self, update: SessionUpdate) {
        drop(black_box(update));
    }
}

/// Counts packets, whatever they carry.
#[derive(Default)]
struct Packets(u64);

impl PacketVisitor for Packets {
    fn packet(&mut self, packet: &Packet<'_>, _: &[HeldFrame]) -> Counted {
        self.0 += 1;
        black_box(packet);
        Counted { responder_port: VXLAN, tunnel_refused: false }
    }

    fn refuse_tunnel(&mut self) {}

    fn incomplete(&mut self, _: &IncompleteDatagram<'_>) {}
}

fn frame(bytes: &[u8]) -> Frame<'_> {
    let (ts, wire_len) = (Nanos(1_700_000_000_000_000_000), bytes.len() as u32);
    Frame { ts, wire_len, bytes, link: LinkType::ETHERNET, iface: IfaceId(0), at: None }
}

/// The first frame of a kind of traffic.
fn bytes_of(speech: Speech, len: usize) -> Vec<u8> {
    let traffic = Traffic::new(speech, 1, len);
    let mut bytes = vec![0; len];
    traffic.fill(&mut bytes);
    traffic.write(0, &mut bytes);
    bytes
}

const VXLAN: u16 = 4789;

/// A frame in a VXLAN tunnel over UDP over IPv4.
fn in_vxlan(inner: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    let len = (20 + 8 + 8 + inner.len()) as u16;
    bytes.extend([0x45, 0]);
    bytes.extend(len.to_be_bytes());
    bytes.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    bytes.extend(50_000_u16.to_be_bytes());
    bytes.extend(VXLAN.to_be_bytes());
    bytes.extend((len - 20).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend([8, 0, 0, 0, 0, 0, 1, 0]);
    bytes.extend(inner);
    bytes
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(1));
    let mut decoder = Decoder::new(&FlowConfig::default());
    for (name, speech) in [("udp", Speech::Udp), ("tcp", Speech::Tcp), ("udp6", Speech::Udp6)] {
        let bytes = bytes_of(speech, 64);
        assert!(decoder.fast(&frame(&bytes)).is_some());
        group.bench_function(format!("glance/{name}"), |b| {
            b.iter(|| decoder.glance(black_box(&frame(&bytes))).is_some());
        });
        group.bench_function(format!("fast/{name}"), |b| {
            b.iter(|| black_box(decoder.fast(black_box(&frame(&bytes)))));
        });
        group.bench_function(format!("walk/{name}"), |b| {
            let mut packets = Packets::default();
            b.iter(|| decoder.decode(black_box(&frame(&bytes)), &mut packets));
        });
    }
    let tunnel = in_vxlan(&bytes_of(Speech::Udp, 64));
    let mut packets = Packets::default();
    assert_eq!(decoder.decode(&frame(&tunnel), &mut packets), Ok(Decoded::Counted));
    assert_eq!(packets.0, 2, "the tunnel is not opened");
    group.bench_function("walk/vxlan", |b| {
        b.iter(|| decoder.decode(black_box(&frame(&tunnel)), &mut packets));
    });
    group.finish();
}

/// The frames of a batch as the session table takes them.
fn flat<'a>(frames: &[SourceFrame<'a>]) -> [Frame<'a>; BATCH] {
    let mut flat = [frame(&[]); BATCH];
    for (slot, source) in flat.iter_mut().zip(frames) {
        let bytes = source.parts.first().copied().unwrap_or_default();
        let at = Some(PcapPosition { worker: 0, segment: 1, offset: 24 });
        let (ts, wire_len) = (source.ts, source.wire_len);
        *slot = Frame { ts, wire_len, bytes, link: source.link, iface: source.iface, at };
    }
    flat
}

fn table(c: &mut Criterion) {
    let mut group = c.benchmark_group("table");
    group.throughput(Throughput::Elements(1));
    for (name, speech) in [
        ("udp, 100k sessions", Speech::Udp),
        ("tcp, 100k sessions", Speech::Tcp),
        ("new sessions into a full table of 100k", Speech::New),
    ] {
        let config = FlowConfig {
            table_bytes: SESSIONS as usize * SessionTable::bytes_per_session(),
            ..FlowConfig::default()
        };
        let mut table = SessionTable::<Machine>::in_memory(config).expect("a table");
        let mut ring = Ring::new(Traffic::new(speech, SESSIONS, 64), CHUNKS);
        let mut run = |frames: u64| {
            ring.time(
                frames,
                || (),
                |batch| table.observe_batch(&flat(batch)[..batch.len()], &mut Nowhere),
            )
        };
        // Handshakes are over and services looked for, or the table is full.
        run(9 * SESSIONS);
        group.bench_function(name, |b| {
            // The frames' arrival is not in the time.
            b.iter_custom(|frames| Duration::from_secs_f64(run(frames) * frames as f64 / 1e9));
        });
    }
    group.finish();
}

fn community_id(c: &mut Criterion) {
    let mut group = c.benchmark_group("community ID");
    for (name, low, high) in
        [("IPv4", "10.0.0.1", "192.0.2.7"), ("IPv6", "2001:db8::1", "2001:db8:7::2")]
    {
        let ends = [low, high].map(|addr| addr.parse().expect("an address"));
        group.bench_function(name, |b| {
            b.iter(|| CommunityId::new(0, 6, black_box((ends[0], 40_000)), (ends[1], 443)));
        });
    }
    group.finish();
}

/// A TLS record with the first message of a client that asks for `host`.
fn client_hello(host: &str) -> Vec<u8> {
    let with_len = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
    let entry = [&[0][..], &with_len(host.as_bytes())].concat();
    let server_name = [&[0, 0][..], &with_len(&with_len(&entry))].concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend(with_len(&server_name));
    let mut message = vec![1, 0];
    message.extend(with_len(&body));
    [&[22, 3, 1][..], &with_len(&message)].concat()
}

/// Some first bytes, who sends them, and what they show.
type Turn = (&'static str, Carrier, bool, Vec<u8>, Option<Service>);

fn service(c: &mut Criterion) {
    let mut group = c.benchmark_group("service");
    let query =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01";
    let turns: [Turn; 5] = [
        ("tls", Carrier::Tcp, true, client_hello("www.example.com"), Some(Service::Tls)),
        (
            "http",
            Carrier::Tcp,
            true,
            b"GET /index.html HTTP/1.1\r\nHost: www.example.com\r\n\r\n".to_vec(),
            Some(Service::Http),
        ),
        // The other end has to say so, too.
        ("ssh, one end", Carrier::Tcp, false, b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec(), None),
        ("dns", Carrier::Udp, true, query.to_vec(), Some(Service::Dns)),
        ("unknown", Carrier::Tcp, true, vec![0xa5; 1400], None),
    ];
    for (name, carrier, from_originator, bytes, expected) in turns {
        let mut services = Services::new(64);
        let mut observe = || {
            let mut detector = Detector::default();
            services.observe(&mut detector, carrier, from_originator, 0, black_box(&bytes));
            detector.service()
        };
        if expected.is_some() {
            assert_eq!(observe(), expected, "{name}");
        }
        group.bench_function(name, |b| b.iter(&mut observe));
    }
    group.finish();
}

/// Rows of the same sessions by two workers, of which each saw one direction.
fn halves(sessions: u64) -> Vec<(u16, SessionUpdate)> {
    const LEN: usize = 100;
    let traffic = Traffic::new(Speech::Tcp, sessions, LEN);
    let mut rows = Vec::new();
    for worker in 0..2_u16 {
        let config = FlowConfig { worker, halves: true, ..FlowConfig::default() };
        let mut table = SessionTable::new(config).expect("a table");
        let mut found = Vec::<SessionUpdate>::new();
        for turn in 0..9 * sessions {
            let mut bytes = [0; LEN];
            traffic.fill(&mut bytes);
            traffic.write(turn, &mut bytes);
            let to_server = u16::from_be_bytes([bytes[36], bytes[37]]) == 4433;
            if to_server == (worker == 0) {
                let here = Frame { ts: traffic.arrival(turn), ..frame(&bytes) };
                table.observe_batch(&[here], &mut found);
            }
        }
        table.finish(traffic.arrival(9 * sessions), &mut found);
        assert_eq!(found.len() as u64, sessions);
        rows.extend(found.into_iter().map(|update| (worker, update)));
    }
    rows
}

fn join(c: &mut Criterion) {
    const SESSIONS: u64 = 10_000;
    let rows = halves(SESSIONS);
    let joined = |rows: Vec<(u16, SessionUpdate)>| {
        let mut joiner = Joiner::new(JoinConfig { workers: 2, ..JoinConfig::default() });
        let mut records = 0_u64;
        for (worker, update) in rows {
            joiner.offer(worker, update, &mut |record| {
                records += 1;
                black_box(record);
            });
        }
        (joiner.stats().joined, records)
    };
    assert_eq!(joined(rows.clone()).0, SESSIONS, "halves find each other");
    let mut group = c.benchmark_group("join");
    group.throughput(Throughput::Elements(SESSIONS));
    group.sample_size(20);
    group.bench_function("halves of two workers", |b| {
        b.iter_batched(|| rows.clone(), joined, BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, decode, table, community_id, service, join);
criterion_main!(benches);
