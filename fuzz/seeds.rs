//! Writes the seed corpora: a few frames and messages of each kind, so that a fresh fuzzing run
//! starts behind the length checks.

use std::fs;
use std::path::Path;

use etherparse::{IpNumber, Ipv4Header, PacketBuilder};

fn frame(flags: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![flags, 0];
    out.extend((bytes.len() as u16).to_be_bytes());
    out.extend(bytes);
    out
}

fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2([1; 6], [2; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1000, port)
        .write(&mut bytes, payload)
        .expect("a Vec takes every byte");
    bytes
}

fn tcp(flags: &str, seq: u32, ack: u32, payload: &[u8], back: bool) -> Vec<u8> {
    let (mut src, mut dst) = (([1; 16], 4000), ([2; 16], 443));
    if back {
        std::mem::swap(&mut src, &mut dst);
    }
    let mut step = PacketBuilder::ethernet2([1; 6], [2; 6])
        .single_vlan(7.try_into().expect("a VLAN id"))
        .ipv6(src.0, dst.0, 64)
        .tcp(src.1, dst.1, seq, 1000);
    for flag in flags.chars() {
        step = match flag {
            'S' => step.syn(),
            'F' => step.fin(),
            'R' => step.rst(),
            _ => step.ack(ack),
        };
    }
    let mut bytes = Vec::new();
    step.write(&mut bytes, payload).expect("a Vec takes every byte");
    bytes
}

fn ipv4(protocol: IpNumber, payload: &[u8], place: u16) -> Vec<u8> {
    let header = Ipv4Header::new(payload.len() as u16, 64, protocol, [10, 0, 0, 3], [10, 0, 0, 4])
        .expect("a short payload");
    let mut bytes = header.to_bytes().to_vec();
    bytes[6..8].copy_from_slice(&place.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn ethernet(ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1; 12];
    bytes.extend(ether_type.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn main() -> std::io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let inner = udp(53, b"inner payload");
    let ip = &inner[14..];
    let ip6 = tcp("S", 5, 0, b"", false)[18..].to_vec();
    let with = |header: &[u8], rest: &[u8]| [header, rest].concat();
    let frames: Vec<(&str, Vec<(u8, Vec<u8>)>)> = vec![
        ("plain", vec![(0, inner.clone()), (0, tcp("S", 5, 0, b"", false))]),
        (
            "gre",
            vec![(
                0,
                ethernet(
                    0x800,
                    &ipv4(
                        IpNumber::GRE,
                        &with(&[0x10, 0, 0x88, 0xbe, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], &inner),
                        0,
                    ),
                ),
            )],
        ),
        (
            "pptp",
            vec![(
                0,
                ethernet(
                    0x800,
                    &ipv4(
                        IpNumber::GRE,
                        &with(&[0x30, 1, 0x88, 0x0b, 0, 0, 0, 1, 0, 0, 0, 1, 0xff, 3, 0, 0x21], ip),
                        0,
                    ),
                ),
            )],
        ),
        (
            "ip-in-ip",
            vec![
                (0, ethernet(0x800, &ipv4(IpNumber::IPV4, ip, 0))),
                (0, ethernet(0x800, &ipv4(IpNumber::IPV6, &ip6, 0))),
            ],
        ),
        ("vxlan", vec![(0, udp(4789, &with(&[8, 0, 0, 0, 0, 0, 1, 0], &inner)))]),
        (
            "geneve",
            vec![(0, udp(6081, &with(&[1, 0, 0x65, 0x58, 0, 0, 1, 0, 0, 1, 0, 0], &inner)))],
        ),
        (
            "gtp",
            vec![(
                0,
                udp(2152, &with(&[0x34, 255, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0xc0, 1, 0, 0, 0], ip)),
            )],
        ),
        ("teredo", vec![(0, udp(3544, &with(&[0, 0, 1, 2, 3, 4, 5, 6], &ip6)))]),
        (
            "ayiya",
            vec![(
                0,
                udp(
                    5072,
                    &with(&[with(&[0x44, 0x52, 0x11, 41, 0, 0, 0, 0], &[0; 36])].concat(), &ip6),
                ),
            )],
        ),
        (
            "fragments",
            vec![
                (
                    0,
                    ethernet(
                        0x800,
                        &ipv4(
                            IpNumber::UDP,
                            &with(&[3, 232, 0, 53, 0, 40, 0, 0], &[7; 24]),
                            0x2000,
                        ),
                    ),
                ),
                (0, ethernet(0x800, &ipv4(IpNumber::UDP, &[7; 8], 4))),
            ],
        ),
        (
            "link-types",
            vec![
                (1, with(&[2, 0, 0, 0], ip)),
                (2, with(&[0xff, 3, 0, 0x21], ip)),
                (7, ip.to_vec()),
                (6, with(&[0x11, 0, 0, 1, 0, 9, 0, 0x21], ip)),
                (10, with(&[0, 0, 0, 1, 0, 6, 1, 1, 1, 1, 1, 1, 0, 0, 8, 0], ip)),
                (
                    11,
                    with(
                        &with(&[0, 0, 8, 0, 0, 0, 0, 0, 8, 0, 0, 0], &[1; 20]),
                        &with(&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0], ip),
                    ),
                ),
                (13, with(&[2, 0, 0, 0, 4, 0, 9, 0], ip)),
                (14, with(&[8, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 6, 1, 1, 1, 1, 1, 1, 0, 0], ip)),
            ],
        ),
        (
            "tags",
            vec![
                (0, ethernet(0x8847, &with(&[0, 0, 0x10, 64, 0, 0, 0x11, 64], ip))),
                (0, ethernet(0x8864, &with(&[0x11, 0, 0, 1, 0, 9, 0, 0x21], ip))),
                (0, ethernet(0x88e7, &with(&[0; 4], &inner))),
                (0, ethernet(0x8926, &with(&[0, 1, 2, 3, 8, 0], ip))),
                (0, ethernet(0x0806, &[0; 28])),
            ],
        ),
    ];
    for (name, list) in &frames {
        let mut bytes = vec![0];
        for (flags, one) in list {
            bytes.extend(frame(*flags, one));
        }
        fs::write(root.join("decode").join(name), bytes)?;
    }

    let conversation = [
        (0, tcp("S", 100, 0, b"", false)),
        (0, tcp("SA", 500, 101, b"", true)),
        (0, tcp("A", 101, 501, b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", false)),
        (0, tcp("A", 501, 138, b"HTTP/1.1 200 OK\r\n\r\n", true)),
        (0, tcp("FA", 138, 520, b"", false)),
        (0, tcp("FA", 520, 139, b"", true)),
        (0, tcp("R", 139, 0, b"", false)),
    ];
    let mut bytes = vec![0];
    for (flags, one) in &conversation {
        bytes.extend(frame(*flags, one));
    }
    fs::write(root.join("table").join("tcp"), bytes)?;
    let mut bytes = vec![0];
    bytes.extend(frame(0, &udp(53, b"question")));
    bytes.extend(frame(0, &ethernet(0x0806, &[0; 28])));
    bytes.extend(frame(0, &udp(4789, &with(&[8, 0, 0, 0, 0, 0, 1, 0], &inner))));
    fs::write(root.join("table").join("datagrams"), bytes)?;

    let hello = b"\x16\x03\x01\x00\x46\x01\x00\x00\x42\x03\x03ABCDEFGHIJKLMNOPQRSTUVWXYZ012345\
        \x00\x00\x02\x13\x01\x01\x00\x00\x17\x00\x00\x00\x0a\x00\x08\x00\x00\x05h.com\
        \x00\x10\x00\x05\x00\x03\x02h2";
    let messages: [(&str, u8, &[u8]); 10] = [
        ("tls", 0, hello),
        ("http", 0, b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"),
        ("ssh", 0, b"SSH-2.0-OpenSSH_9.2\r\n"),
        ("ftp", 2, b"220 FTP ready\r\n"),
        ("smtp", 0, b"EHLO example.com\r\n"),
        ("smb", 0, b"\x00\x00\x00\x20\xfeSMB"),
        ("rdp", 0, b"\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00"),
        ("dns", 1, b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01"),
        ("quic", 1, b"\xc3\x00\x00\x00\x01\x0812345678\x00\x00\x18\x00\x00\x00\x02abcdefghijklmnopqrst"),
        ("ntp", 1, b"\x23\x00\x06\xec\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xe0\x00\x00\x00\x00\x00\x00\x01"),
    ];
    for (name, flags, message) in messages {
        fs::write(root.join("service").join(name), frame(flags, message))?;
    }
    Ok(())
}
