//! Whole frames through the decoder.

use super::*;
use crate::config::Timeouts;
use crate::frame::LinkType;
use crate::packet::{Net, Transport};
use crate::time::NanosDelta;
use etherparse::PacketBuilder;
use proptest::prelude::*;

/// Remembers what it was shown.
#[derive(Default)]
struct Seen {
    packets: Vec<Shown>,
    owned_frames: usize,
    incomplete: usize,
    refused: usize,
}

#[derive(Debug, PartialEq)]
struct Shown {
    link: Link,
    net: Net,
    payload: Vec<u8>,
    depth: u8,
    owns_frame: bool,
    earlier: usize,
}

impl Shown {
    fn of(packet: &Packet<'_>, earlier: usize) -> Self {
        Self {
            link: packet.link,
            net: packet.net,
            payload: packet.payload.to_vec(),
            depth: packet.depth,
            owns_frame: packet.owns_frame,
            earlier,
        }
    }

    fn ports(&self) -> Option<(u16, u16)> {
        match self.net {
            Net::Ip { transport: Transport::Tcp { src_port, dst_port, .. }, .. }
            | Net::Ip { transport: Transport::Udp { src_port, dst_port }, .. } => {
                Some((src_port, dst_port))
            }
            _ => None,
        }
    }

    fn protocol(&self) -> Option<u8> {
        match self.net {
            Net::Ip { ip, .. } => Some(ip.protocol),
            Net::None => None,
        }
    }
}

impl PacketVisitor for Seen {
    fn packet(&mut self, packet: &Packet<'_>, earlier: &[HeldFrame]) -> Counted {
        let shown = Shown::of(packet, earlier.len());
        self.owned_frames +=
            usize::from(packet.owns_frame) + earlier.iter().filter(|f| f.owns_frame).count();
        let responder_port = shown.ports().map_or(0, |(_, dst)| dst);
        self.packets.push(shown);
        Counted { responder_port, tunnel_refused: false }
    }

    fn refuse_tunnel(&mut self) {
        self.refused += 1;
    }

    fn incomplete(&mut self, datagram: &IncompleteDatagram<'_>) {
        self.incomplete += datagram.frames.iter().filter(|f| f.owns_frame).count();
    }
}

fn config(checksums: Checksums) -> FlowConfig {
    FlowConfig {
        timeouts: Timeouts::default(),
        interim: NanosDelta::from_secs(60),
        checksums,
        likely_server_ports: Vec::new(),
        local_nets: Vec::new(),
        vlan_in_key: false,
        halves: false,
        community_id_seed: 0,
        table_bytes: 0,
        fragment_bytes: 20_000,
        hash_seed: 0,
        uid_seed: 0,
        worker: 0,
    }
}

fn decoder() -> Decoder {
    Decoder::new(&config(Checksums::Ignore))
}

fn frame(link: LinkType, bytes: &[u8]) -> Frame<'_> {
    Frame { ts: Nanos(0), wire_len: bytes.len() as u32, bytes, link, iface: IfaceId(0), at: None }
}

fn decode(link: LinkType, bytes: &[u8]) -> (Result<Decoded, Undecodable>, Seen) {
    let mut seen = Seen::default();
    let result = decoder().decode(&frame(link, bytes), &mut seen);
    (result, seen)
}

fn ethernet(bytes: &[u8]) -> Seen {
    let (result, seen) = decode(LinkType::ETHERNET, bytes);
    assert_eq!(result, Ok(Decoded::Counted));
    assert_eq!(seen.owned_frames, 1);
    seen
}

fn built<F: FnOnce(&mut Vec<u8>)>(write: F) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes);
    bytes
}

fn udp4(payload: &[u8]) -> Vec<u8> {
    udp4_to(2000, payload)
}

fn udp4_to(port: u16, payload: &[u8]) -> Vec<u8> {
    built(|bytes| {
        PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1000, port)
            .write(bytes, payload)
            .unwrap();
    })
}

fn tcp6(payload: &[u8]) -> Vec<u8> {
    built(|bytes| {
        PacketBuilder::ethernet2([1; 6], [2; 6])
            .single_vlan(7.try_into().unwrap())
            .ipv6([1; 16], [2; 16], 64)
            .tcp(1000, 80, 5, 6)
            .syn()
            .write(bytes, payload)
            .unwrap();
    })
}

fn icmp4() -> Vec<u8> {
    built(|bytes| {
        PacketBuilder::ethernet2([1; 6], [2; 6])
            .double_vlan(7.try_into().unwrap(), 8.try_into().unwrap())
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .icmpv4_echo_request(1, 2)
            .write(bytes, b"ping")
            .unwrap();
    })
}

/// An IPv4 packet with any payload.
fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let header = etherparse::Ipv4Header::new(
        payload.len() as u16,
        64,
        protocol.into(),
        [192, 168, 0, 1],
        [192, 168, 0, 2],
    )
    .unwrap();
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend(payload);
    bytes
}

fn in_ethernet(ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2; 6];
    bytes.extend([1; 6]);
    bytes.extend(ether_type.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn ip_of(frame: &[u8]) -> &[u8] {
    &frame[14..]
}

#[test]
fn plain_frames_decode_alike_on_both_paths() {
    for bytes in [udp4(b"hello"), tcp6(b"hello"), icmp4()] {
        let whole = frame(LinkType::ETHERNET, &bytes);
        let fast = decoder().fast(&whole).unwrap();
        assert_eq!(ethernet(&bytes).packets, [Shown::of(&fast, 0)]);
    }
}

#[test]
fn tags_addresses_and_lengths() {
    let bytes = tcp6(b"hello");
    let packet = &ethernet(&bytes).packets[0];
    assert_eq!(packet.link.vlan, Some(7));
    assert_eq!(packet.link.src, Some(crate::key::MacAddr([1; 6])));
    assert_eq!(packet.link.ether_type, 0x86dd);
    assert!(matches!(packet.net, Net::Ip { ip, payload_len: 5, .. } if ip.total_len == 65));
    let packet = &ethernet(&icmp4()).packets[0];
    assert_eq!((packet.link.vlan, packet.link.inner_vlan), (Some(7), Some(8)));
}

#[test]
fn frames_without_ip_are_packets_of_their_own() {
    for ether_type in [0x0806, 0x88cc, 0x1234, 38, 1501] {
        let seen = ethernet(&in_ethernet(ether_type, &[0; 46]));
        assert_eq!(seen.packets[0].net, Net::None, "{ether_type:x}");
    }
}

#[test]
fn snap_leads_to_ip() {
    let inner = udp4(b"x");
    let mut llc = vec![0xaa, 0xaa, 3, 0, 0, 0, 8, 0];
    llc.extend(ip_of(&inner));
    let seen = ethernet(&in_ethernet(llc.len() as u16, &llc));
    assert_eq!(seen.packets[0].ports(), Some((1000, 2000)));
}

#[test]
fn link_headers_lead_to_the_same_packet() {
    let udp = udp4(b"hello");
    let ip = ip_of(&udp);
    let with = |header: &[u8]| [header, ip].concat();
    let label = [0, 0, 0x10, 64];
    let bottom = [0, 0, 0x11, 64];
    let fabric_path = [&[9; 12][..], &[0x89, 0x03, 0, 0]].concat();
    let cases = [
        (LinkType::RAW, with(&[])),
        (LinkType::NULL, with(&[2, 0, 0, 0])),
        (LinkType::LOOP, with(&[0, 0, 0, 2])),
        (LinkType::PPP, with(&[0x00, 0x21])),
        (LinkType::PPP, with(&[0xff, 0x03, 0x00, 0x21])),
        (LinkType::PPP_SERIAL, with(&[0xff, 0x03, 0x00, 0x21])),
        (LinkType::C_HDLC, with(&[0x0f, 0x00, 0x08, 0x00])),
        (LinkType::PPP_WITH_DIR, with(&[1, 0xff, 0x03, 0x00, 0x21])),
        (LinkType::PPPOE, with(&[0x11, 0, 0, 1, 0, 9, 0x00, 0x21])),
        (LinkType::LINUX_SLL, with(&[0, 0, 0, 1, 0, 6, 1, 1, 1, 1, 1, 1, 0, 0, 8, 0])),
        (LinkType::LINUX_SLL2, with(&[8, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 6, 1, 1, 1, 1, 1, 1, 0, 0])),
        (
            LinkType::FDDI,
            with(&[0x50, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 0xaa, 0xaa, 3, 0, 0, 0, 8, 0]),
        ),
        (LinkType::NFLOG, with(&[2, 0, 0, 0, 5, 0, 10, 0, 7, 0, 0, 0, 99, 0, 9, 0])),
        (LinkType::ETHERNET, in_ethernet(0x8847, &with(&[label, bottom].concat()))),
        (LinkType::ETHERNET, in_ethernet(0x8864, &with(&[0x11, 0, 0, 1, 0, 9, 0, 0x21]))),
        (LinkType::ETHERNET, in_ethernet(0x8926, &with(&[0, 1, 2, 3, 8, 0]))),
        (LinkType::ETHERNET, in_ethernet(0x9100, &with(&[0, 1, 8, 0]))),
        (LinkType::ETHERNET, in_ethernet(0x88e7, &[&[0; 4], &udp[..]].concat())),
        (LinkType::ETHERNET, [&fabric_path, &udp[..]].concat()),
    ];
    for (link, bytes) in cases {
        let (result, seen) = decode(link, &bytes);
        assert_eq!(result, Ok(Decoded::Counted), "{link:?}");
        assert_eq!(seen.packets[0].ports(), Some((1000, 2000)), "{link:?}");
        assert_eq!(seen.packets[0].payload, b"hello");
    }
    let (result, _) = decode(LinkType(147), &udp);
    assert_eq!(result, Err(Undecodable::LinkType));
}

#[test]
fn radiotap_and_aggregates() {
    let udp = udp4(b"hello");
    let snap = [&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0], ip_of(&udp)].concat();
    let mut subframe = vec![5; 12];
    subframe.extend((snap.len() as u16).to_be_bytes());
    subframe.extend(&snap);
    subframe.resize(subframe.len().next_multiple_of(4), 0);
    let mut bytes = vec![0, 0, 8, 0, 0, 0, 0, 0];
    bytes.extend([0x88, 0, 0, 0]);
    bytes.extend([1; 20]);
    bytes.extend([0x80, 0]);
    bytes.extend(&subframe);
    bytes.extend(&subframe);
    let (result, seen) = decode(LinkType::IEEE802_11_RADIO, &bytes);
    assert_eq!(result, Ok(Decoded::Counted));
    assert_eq!((seen.packets.len(), seen.owned_frames), (2, 1));
    assert_eq!(seen.packets[1].ports(), Some((1000, 2000)));
}

#[test]
fn an_aggregate_of_a_fragment_and_a_packet_has_one_owner() {
    let udp = udp4(&[7; 100]);
    let fragment = &fragments4(ip_of(&udp), 40)[0];
    let mut bytes = vec![0x88, 0, 0, 0];
    bytes.extend([1; 20]);
    bytes.extend([0x80, 0]);
    for inner in [ip_of(fragment), ip_of(&udp)] {
        let snap = [&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0], inner].concat();
        bytes.extend([5; 12]);
        bytes.extend((snap.len() as u16).to_be_bytes());
        bytes.extend(&snap);
        let header = 26;
        bytes.resize(header + (bytes.len() - header).next_multiple_of(4), 0);
    }
    let mut decoder = decoder();
    let mut seen = Seen::default();
    let result = decoder.decode(&frame(LinkType::IEEE802_11, &bytes), &mut seen);
    assert_eq!(result, Ok(Decoded::Counted));
    decoder.finish(&mut seen);
    assert_eq!(seen.owned_frames + seen.incomplete, 1);
}

#[test]
fn lengths_decide_what_is_undecodable() {
    let bytes = udp4(b"hello");
    let check = |edit: &dyn Fn(&mut Vec<u8>), reason| {
        let mut bytes = bytes.clone();
        edit(&mut bytes);
        let (result, seen) = decode(LinkType::ETHERNET, &bytes);
        assert_eq!(result, Err(reason));
        assert!(seen.packets.is_empty());
    };
    check(&|b| b.truncate(13), Undecodable::LinkTruncated);
    check(&|b| b.truncate(14), Undecodable::IpTruncated);
    check(&|b| b.truncate(33), Undecodable::IpTruncated);
    check(&|b| b.truncate(46), Undecodable::IpLengthBeyondFrame);
    check(&|b| b[14] = 0x55, Undecodable::IpVersion);
    check(&|b| b[14] = 0x44, Undecodable::IpHeaderLength);
    check(&|b| b[17] = 19, Undecodable::IpHeaderLength);
    check(&|b| b[17] = 27, Undecodable::TransportTruncated);
}

#[test]
fn a_snap_length_loses_payload_not_lengths() {
    let bytes = udp4(&[7; 500]);
    let mut cut = frame(LinkType::ETHERNET, &bytes[..60]);
    cut.wire_len = bytes.len() as u32;
    let packet = decoder().fast(&cut).unwrap();
    assert_eq!(packet.payload.len(), 60 - 42);
    assert!(matches!(packet.net, Net::Ip { ip, payload_len: 500, .. } if ip.total_len == 528));
}

#[test]
fn a_length_left_out_by_offload_counts_what_was_captured() {
    let mut bytes = udp4(b"hello");
    bytes[16] = 0;
    bytes[17] = 0;
    assert!(matches!(
        ethernet(&bytes).packets[0].net,
        Net::Ip { ip, payload_len: 5, .. } if ip.total_len == 0
    ));
    let mut seen = Seen::default();
    let result = Decoder::new(&config(Checksums::Verify))
        .decode(&frame(LinkType::ETHERNET, &bytes), &mut seen);
    assert_eq!(result, Err(Undecodable::IpLengthZero));
}

#[test]
fn checksums_are_verified_when_told() {
    use crate::packet::Checksum;
    let verify = || Decoder::new(&config(Checksums::Verify));
    let mut bytes = udp4(b"hello");
    assert!(verify().fast(&frame(LinkType::ETHERNET, &bytes)).is_some());
    *bytes.last_mut().unwrap() ^= 1;
    let bad = verify().fast(&frame(LinkType::ETHERNET, &bytes)).unwrap();
    assert!(matches!(bad.net, Net::Ip { checksum: Checksum::Bad, .. }));
    bytes[22] ^= 1;
    assert!(verify().fast(&frame(LinkType::ETHERNET, &bytes)).is_none());
    let mut seen = Seen::default();
    let result = verify().decode(&frame(LinkType::ETHERNET, &bytes), &mut seen);
    assert_eq!(result, Err(Undecodable::IpChecksum));
}

#[test]
fn an_ip_tunnel_shows_only_what_it_carries() {
    let inner = udp4(b"hello");
    let gre = |protocol: u16, payload: &[u8]| {
        let mut bytes = vec![0, 0];
        bytes.extend(protocol.to_be_bytes());
        bytes.extend(payload);
        ipv4(47, &bytes)
    };
    for carrier in [
        ipv4(4, ip_of(&inner)),
        gre(0x0800, ip_of(&inner)),
        gre(0x6558, &inner),
        gre(0x0800, &gre(0x0800, ip_of(&inner))),
    ] {
        let seen = ethernet(&in_ethernet(0x0800, &carrier));
        assert_eq!(seen.packets.len(), 1);
        assert_eq!(seen.packets[0].ports(), Some((1000, 2000)));
        assert!(seen.packets[0].owns_frame);
    }
    // Nothing inside that could be counted: the carrier itself is.
    let three_deep = gre(0x0800, &gre(0x0800, &gre(0x0800, ip_of(&inner))));
    for (carrier, protocol) in [
        (gre(0x0800, b""), 47),
        (gre(0x6558, &in_ethernet(0x0806, &[0; 28])), 47),
        (ipv4(4, b"no IP"), 4),
        (three_deep, 47),
        (ipv4(50, &[1; 30]), 50),
    ] {
        let seen = ethernet(&in_ethernet(0x0800, &carrier));
        assert_eq!(seen.packets.len(), 1);
        assert_eq!(seen.packets[0].protocol(), Some(protocol));
    }
}

#[test]
fn a_udp_tunnel_shows_both_layers() {
    let inner = udp4(b"hello");
    let vxlan = |inner: &[u8]| udp4_to(4789, &[&[8, 0, 0, 0, 0, 0, 1, 0], inner].concat());
    let bytes = vxlan(&inner);
    assert!(decoder().fast(&frame(LinkType::ETHERNET, &bytes)).is_none());
    let seen = ethernet(&bytes);
    assert_eq!(seen.packets.len(), 2);
    assert_eq!(seen.packets[0].ports(), Some((1000, 4789)));
    assert_eq!((seen.packets[1].depth, seen.packets[1].owns_frame), (1, false));
    assert_eq!(seen.packets[1].ports(), Some((1000, 2000)));
    // Two tunnels are opened, not a third.
    assert_eq!(ethernet(&vxlan(&vxlan(&vxlan(&inner)))).packets.len(), 3);
    // A port alone does not make a tunnel.
    let seen = ethernet(&udp4_to(4789, b"something else"));
    assert_eq!((seen.packets.len(), seen.refused), (1, 1));
}

#[test]
fn gre_over_udp_and_mpls_over_gre() {
    let inner = udp4(b"hello");
    let seen = ethernet(&udp4_to(4754, &[&[0, 0, 8, 0], ip_of(&inner)].concat()));
    assert_eq!(seen.packets.len(), 2);
    assert_eq!(seen.packets[1].ports(), Some((1000, 2000)));
    let labelled = [&[0, 0, 0x88, 0x47, 0, 0, 0x11, 64], ip_of(&inner)].concat();
    let seen = ethernet(&in_ethernet(0x0800, &ipv4(47, &labelled)));
    assert_eq!(seen.packets[0].ports(), Some((1000, 2000)));
}

#[test]
fn gtp_is_not_looked_for_in_gtp() {
    let gtp =
        |inner: &[u8]| udp4_to(2152, &[&[0x30, 255, 0, 9, 0, 0, 0, 1], ip_of(inner)].concat());
    let seen = ethernet(&gtp(&gtp(&udp4(b"hello"))));
    assert_eq!((seen.packets.len(), seen.refused), (2, 1));
}

#[test]
fn a_cut_tunnel_still_shows_what_it_carries() {
    let inner = udp4(&[7; 400]);
    for carrier in [
        in_ethernet(0x0800, &ipv4(4, ip_of(&inner))),
        in_ethernet(0x0800, &ipv4(47, &[&[0, 0, 8, 0], ip_of(&inner)].concat())),
    ] {
        let mut cut = frame(LinkType::ETHERNET, &carrier[..100]);
        cut.wire_len = carrier.len() as u32;
        let mut seen = Seen::default();
        assert_eq!(decoder().decode(&cut, &mut seen), Ok(Decoded::Counted));
        assert_eq!(seen.packets[0].ports(), Some((1000, 2000)));
    }
}

/// The fragments of an IPv4 packet, each in its own Ethernet frame.
fn fragments4(packet: &[u8], size: usize) -> Vec<Vec<u8>> {
    let (header, payload) = packet.split_at(20);
    let count = payload.len().div_ceil(size);
    payload
        .chunks(size)
        .enumerate()
        .map(|(i, part)| {
            let mut header = header.to_vec();
            header[2..4].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
            let place = (i * size / 8) as u16 | if i + 1 < count { 0x2000 } else { 0 };
            header[6..8].copy_from_slice(&place.to_be_bytes());
            in_ethernet(0x0800, &[header, part.to_vec()].concat())
        })
        .collect()
}

fn run(decoder: &mut Decoder, frames: &[Vec<u8>]) -> (Vec<Result<Decoded, Undecodable>>, Seen) {
    let mut seen = Seen::default();
    let results = frames
        .iter()
        .map(|bytes| decoder.decode(&frame(LinkType::ETHERNET, bytes), &mut seen))
        .collect();
    (results, seen)
}

#[test]
fn fragments_become_one_packet() {
    let packet = udp4(&[7; 100]);
    let mut decoder = decoder();
    let (results, seen) = run(&mut decoder, &fragments4(ip_of(&packet), 40));
    assert_eq!(results, [Ok(Decoded::Held), Ok(Decoded::Held), Ok(Decoded::Counted)]);
    assert_eq!((seen.packets.len(), seen.owned_frames), (1, 3));
    assert_eq!(seen.packets[0].earlier, 2);
    assert!(matches!(
        seen.packets[0].net,
        Net::Ip { ip, payload_len: 100, .. } if ip.total_len == 128
    ));
}

#[test]
fn a_fragmented_carrier_gives_its_frames_to_what_it_carries() {
    let inner = udp4(&[7; 200]);
    let carrier = ipv4(47, &[&[0, 0, 8, 0], ip_of(&inner)].concat());
    let (_, seen) = run(&mut decoder(), &fragments4(&carrier, 80));
    assert_eq!((seen.packets.len(), seen.owned_frames), (1, 3));
    assert_eq!(seen.packets[0].ports(), Some((1000, 2000)));
}

#[test]
fn fragments_within_a_fragmented_carrier_lose_no_frame() {
    let inner = udp4(&[7; 200]);
    let frames: Vec<_> = fragments4(ip_of(&inner), 80)
        .iter()
        .enumerate()
        .flat_map(|(i, part)| {
            let mut carrier = ipv4(47, &[&[0, 0, 8, 0], ip_of(part)].concat());
            carrier[5] = i as u8;
            fragments4(&carrier, 48)
        })
        .collect();
    let (_, seen) = run(&mut decoder(), &frames);
    assert_eq!((seen.packets.len(), seen.owned_frames), (1, frames.len()));
    assert_eq!(seen.packets[0].payload, [7; 200]);
}

#[test]
fn incomplete_datagrams_are_reported() {
    let packet = udp4(&[7; 100]);
    let mut decoder = decoder();
    let frames = fragments4(ip_of(&packet), 40);
    let (_, mut seen) = run(&mut decoder, &frames[..2]);
    decoder.advance(Nanos(59_000_000_000), &mut seen);
    assert_eq!(seen.incomplete, 0);
    decoder.advance(Nanos(60_000_000_000), &mut seen);
    assert_eq!(seen.incomplete, 2);
}

#[test]
fn an_atomic_ipv6_fragment_counts_without_its_header() {
    let whole = tcp6(b"hello");
    let tcp = &whole[58..];
    let mut bytes = vec![0x60, 0, 0, 0, 0, (tcp.len() + 8) as u8, 44, 64];
    bytes.extend([1; 16]);
    bytes.extend([2; 16]);
    bytes.extend([6, 0, 0, 0, 0, 0, 0, 9]);
    bytes.extend(tcp);
    let seen = ethernet(&in_ethernet(0x86dd, &bytes));
    assert_eq!(seen.packets[0].ports(), Some((1000, 80)));
    assert!(matches!(
        seen.packets[0].net,
        Net::Ip { ip, payload_len: 5, .. } if ip.total_len == 40 + 25
    ));
}

/// Seeds that the properties mutate: one frame of every kind above.
fn seeds() -> Vec<Vec<u8>> {
    let udp = udp4(&[7; 100]);
    let inner = udp4(b"hello");
    let mut seeds = vec![
        udp4(b"hello"),
        tcp6(b"hello"),
        icmp4(),
        in_ethernet(0x0800, &ipv4(4, ip_of(&inner))),
        in_ethernet(0x0800, &ipv4(47, &[&[0, 0, 0x65, 0x58], &inner[..]].concat())),
        udp4_to(4789, &[&[8, 0, 0, 0, 0, 0, 1, 0], &inner[..]].concat()),
        udp4_to(6081, &[&[0, 0, 0x65, 0x58, 0, 0, 1, 0], &inner[..]].concat()),
        udp4_to(2152, &[&[0x30, 255, 0, 9, 0, 0, 0, 1], ip_of(&inner)].concat()),
        in_ethernet(0x0806, &[0; 46]),
    ];
    seeds.extend(fragments4(ip_of(&udp), 40));
    seeds
}

prop_compose! {
    /// A valid frame with a few bytes changed, perhaps cut or extended.
    fn mutated()(
        which in any::<prop::sample::Index>(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        len in prop_oneof![4 => Just(None), 1 => (0usize..200).prop_map(Some)],
    ) -> Vec<u8> {
        let seeds = seeds();
        let mut bytes = which.get(&seeds).clone();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(len) = len {
            bytes.resize(len, 0);
        }
        bytes
    }
}

fn any_link() -> impl Strategy<Value = LinkType> {
    prop_oneof![
        3 => Just(LinkType::ETHERNET),
        1 => prop::sample::select(vec![0, 9, 10, 12, 50, 51, 101, 104, 105, 108, 113, 127, 204, 228, 239, 276, 1000])
            .prop_map(LinkType),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// What the fast path takes, the full decoder reads the same way.
    #[test]
    fn both_paths_agree(bytes in mutated(), extra in 0u32..100, verify in any::<bool>()) {
        let checksums = if verify { Checksums::Verify } else { Checksums::Ignore };
        let mut frame = frame(LinkType::ETHERNET, &bytes);
        frame.wire_len += extra;
        let mut decoder = Decoder::new(&config(checksums));
        if let Some(fast) = decoder.fast(&frame) {
            let mut seen = Seen::default();
            prop_assert_eq!(decoder.decode(&frame, &mut seen), Ok(Decoded::Counted));
            prop_assert_eq!(seen.packets, [Shown::of(&fast, 0)]);
        }
    }

    /// Every frame is owned by one packet, given up with its datagram, or undecodable.
    #[test]
    fn no_frame_is_lost_or_counted_twice(
        frames in proptest::collection::vec((mutated(), any_link(), 0u32..100), 1..40),
    ) {
        let mut decoder = decoder();
        let mut seen = Seen::default();
        let mut undecodable = 0;
        for (i, (bytes, link, extra)) in frames.iter().enumerate() {
            let mut frame = frame(*link, bytes);
            frame.wire_len += extra;
            frame.ts = Nanos(i as i64 * 10_000_000_000);
            decoder.advance(frame.ts, &mut seen);
            let before = seen.packets.len();
            match decoder.decode(&frame, &mut seen) {
                Ok(Decoded::Counted) => prop_assert!(seen.packets.len() > before),
                Ok(Decoded::Held) => prop_assert_eq!(seen.packets.len(), before),
                Err(_) => {
                    undecodable += 1;
                    prop_assert_eq!(seen.packets.len(), before);
                }
            }
        }
        decoder.finish(&mut seen);
        prop_assert_eq!(seen.owned_frames + seen.incomplete + undecodable, frames.len());
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        link in any_link(),
    ) {
        let _ = decode(link, &bytes);
    }
}
