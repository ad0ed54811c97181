//! The companion's filters: reading one, and asking a row.
#![allow(missing_docs)]

use std::hint::black_box;
use std::net::IpAddr;

use capture_cli::filter::{Truth, parse};
use capture_cli::row::{Row, RowEnd};
use capture_flow::key::{Address, Protocol};
use capture_flow::time::Nanos;
use criterion::{Criterion, criterion_group, criterion_main};

const FILTERS: [(&str, &str); 3] = [
    ("a host", "host 192.0.2.7"),
    ("a net and ports", "orig net 10.0.0.0/8 and tcp and port 22 or port 443"),
    (
        "of everything",
        "(host 192.0.2.7 or net 198.51.100.0/24) and not (udp or icmp) and bytes > 10 and state SF \
         and service ssh and duration < 10s",
    ),
];

/// 10.0.0.1:40000 → 192.0.2.7:22, ssh, 100 bytes out and 300 back in 2.5 s.
fn row() -> Row {
    let end = |addr: &str, port, bytes, local| RowEnd {
        addr: Address::Ip(addr.parse::<IpAddr>().expect("an address")),
        port,
        l2_addr: None,
        bytes: Some(bytes),
        pkts: 3,
        ip_bytes: 500,
        local: Some(local),
    };
    Row {
        ts: Nanos(0),
        last_ts: Nanos(2_500_000_000),
        duration: Some(2.5),
        uid: "C0000000000000001A".into(),
        sensor: "s1".into(),
        iface: "eth0".into(),
        orig: end("10.0.0.1", 40_000, 100, true),
        resp: end("192.0.2.7", 22, 300, false),
        proto: "tcp".into(),
        protocol: Protocol::TCP,
        service: Some("ssh".into()),
        server_name: None,
        alpn: None,
        conn_state: "SF".into(),
        history: "ShADadFf".into(),
        missed_bytes: 0,
        vlan: None,
        inner_vlan: None,
        tunnel_parents: None,
        community_id: None,
        direction_certain: true,
        fragment_overlap: false,
        join_certain: true,
        update: 0,
        is_final: true,
        end_reason: "closed".into(),
        frames: 6,
        frame_bytes: 1000,
        flushed_at: Nanos(3_000_000_000),
        pcap_first: None,
        pcap_last: None,
    }
}

fn filter(c: &mut Criterion) {
    let row = row();
    let mut group = c.benchmark_group("filter");
    for (name, text) in FILTERS {
        let parsed = parse(text).expect("a filter").expr;
        assert_eq!(parsed.matches(&row), Truth::True, "{text}");
        group.bench_function(format!("read: {name}"), |b| b.iter(|| parse(black_box(text))));
        group.bench_function(format!("ask a row: {name}"), |b| {
            b.iter(|| parsed.matches(black_box(&row)));
        });
    }
    group.finish();
}

criterion_group!(benches, filter);
criterion_main!(benches);
