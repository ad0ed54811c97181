//! Whole frames through the decoder.

mod fragments;
mod lengths;
mod link;
mod properties;
mod tunnels;

use super::*;
use crate::config::Timeouts;
use crate::frame::LinkType;
use crate::packet::{Net, Transport};
use crate::time::NanosDelta;
use etherparse::PacketBuilder;

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
