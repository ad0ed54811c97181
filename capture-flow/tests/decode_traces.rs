//! Every capture of `shared/traces` through the decoder and the service detection, which the
//! project cannot contain: nothing panics, no frame is lost, and what Zeek counts in its
//! sessions is what the decoder hands out.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use capture_flow::config::{Checksums, FlowConfig};
use capture_flow::decode::{
    Counted, Decoded, Decoder, HeldFrame, IncompleteDatagram, PacketVisitor,
};
use capture_flow::frame::{Frame, IfaceId, LinkType};
use capture_flow::packet::{Checksum, Net, Packet, Transport};
use capture_flow::service::{Carrier, Detector, Services};
use capture_flow::time::Nanos;
use pcap_parser::traits::PcapNGPacketBlock;
use pcap_parser::{Block, PcapBlockOwned, PcapError, create_reader};

fn traces() -> Option<PathBuf> {
    let path = std::env::var_os("STILLWIRE_TRACES").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/traces")),
        PathBuf::from,
    );
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("skipped: {} is absent (set STILLWIRE_TRACES)", path.display());
    None
}

struct Recorded {
    link: LinkType,
    wire_len: u32,
    bytes: Vec<u8>,
}

/// The frames of a capture up to the first byte that is no capture any more.
fn frames(path: &Path) -> Vec<Recorded> {
    let mut raw = std::fs::read(path).expect("a readable capture");
    if path.extension().is_some_and(|ext| ext == "gz") {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(raw.as_slice())
            .read_to_end(&mut plain)
            .expect("a whole gzip file");
        raw = plain;
    }
    let mut frames = Vec::new();
    let mut link = LinkType::ETHERNET;
    let mut interfaces = Vec::new();
    let Ok(mut reader) = create_reader(4 << 20, raw.as_slice()) else { return frames };
    loop {
        let used = match reader.next() {
            Ok((used, block)) => {
                let mut push = |link, wire_len, data: &[u8]| {
                    frames.push(Recorded { link, wire_len, bytes: data.to_vec() });
                };
                match block {
                    PcapBlockOwned::LegacyHeader(header) => {
                        link = LinkType(header.network.0 as u16);
                    }
                    PcapBlockOwned::Legacy(record) => push(link, record.origlen, record.data),
                    PcapBlockOwned::NG(Block::SectionHeader(_)) => interfaces.clear(),
                    PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                        interfaces.push(LinkType(interface.linktype.0 as u16));
                    }
                    PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                        if let Some(link) = interfaces.get(packet.if_id as usize) {
                            push(*link, packet.origlen, packet.packet_data());
                        }
                    }
                    PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
                        if let Some(link) = interfaces.first() {
                            push(*link, packet.origlen, packet.packet_data());
                        }
                    }
                    PcapBlockOwned::NG(_) => {}
                }
                used
            }
            Err(PcapError::Incomplete(_)) => {
                if reader.refill().is_err() || reader.data().is_empty() || reader.reader_exhausted()
                {
                    break;
                }
                continue;
            }
            Err(_) => break,
        };
        reader.consume(used);
    }
    frames
}

/// The two ends in a fixed order.
type Key = (String, (IpAddr, u16), (IpAddr, u16));

#[derive(Debug, Default, PartialEq, Eq, Clone)]
struct Sum {
    packets: u64,
    ip_bytes: u64,
}

#[derive(Default)]
struct Tally {
    sums: BTreeMap<Key, Sum>,
    responders: BTreeMap<Key, (u16, bool)>,
    detectors: BTreeMap<Key, (Detector, [u32; 2])>,
    found: Vec<String>,
    last: Option<Key>,
    likely: Vec<(u16, u8)>,
    owned: usize,
    incomplete: usize,
}

fn key(proto: &str, a: (IpAddr, u16), b: (IpAddr, u16)) -> Key {
    if a <= b { (proto.into(), a, b) } else { (proto.into(), b, a) }
}

/// Protocols that Zeek writes no session for.
fn is_logged(protocol: u8) -> bool {
    !matches!(protocol, 4 | 41 | 47 | 50 | 59 | 135)
}

impl Tally {
    fn is_likely(&self, port: u16, protocol: u8) -> bool {
        self.likely.contains(&(port, protocol))
    }

    fn detect(&mut self, key: &Key, carrier: Carrier, from_low: bool, payload: &[u8]) {
        let (detector, offsets) = self.detectors.entry(key.clone()).or_default();
        let side = usize::from(!from_low);
        let mut services = Services::new(4);
        let found = services.observe(detector, carrier, from_low, offsets[side], payload);
        offsets[side] += payload.len() as u32;
        let Some(found) = found else { return };
        self.found.extend(found.service.map(|service| service.as_str().to_owned()));
        self.found.extend(found.detail.and_then(|detail| detail.server_name).map(String::from));
    }
}

impl PacketVisitor for Tally {
    fn packet(&mut self, packet: &Packet<'_>, earlier: &[HeldFrame]) -> Counted {
        self.owned +=
            usize::from(packet.owns_frame) + earlier.iter().filter(|f| f.owns_frame).count();
        let Net::Ip { ip, transport, checksum, .. } = packet.net else {
            return Counted::default();
        };
        let (proto, src_port, dst_port) = match transport {
            Transport::Tcp { src_port, dst_port, .. } => ("tcp", src_port, dst_port),
            Transport::Udp { src_port, dst_port } => ("udp", src_port, dst_port),
            Transport::Icmp { .. } => ("icmp", 0, 0),
            Transport::Sctp { .. } | Transport::Other => ("unknown_transport", 0, 0),
        };
        if !is_logged(ip.protocol) {
            return Counted::default();
        }
        let key = key(proto, (ip.src, src_port), (ip.dst, dst_port));
        let flipped =
            self.is_likely(src_port, ip.protocol) && !self.is_likely(dst_port, ip.protocol);
        let responder = if flipped { src_port } else { dst_port };
        let (responder_port, tunnel_refused) =
            *self.responders.entry(key.clone()).or_insert((responder, false));
        let sum = self.sums.entry(key.clone()).or_default();
        if checksum == Checksum::Accepted {
            sum.packets += 1;
            sum.ip_bytes += u64::from(ip.total_len);
        }
        let carrier = match proto {
            "tcp" => Some(Carrier::Tcp),
            "udp" => Some(Carrier::Udp),
            _ => None,
        };
        if let Some(carrier) = carrier {
            self.detect(&key, carrier, (ip.src, src_port) == key.1, packet.payload);
        }
        self.last = Some(key);
        Counted { responder_port, tunnel_refused }
    }

    fn refuse_tunnel(&mut self) {
        if let Some(responder) = self.last.as_ref().and_then(|key| self.responders.get_mut(key)) {
            responder.1 = true;
        }
    }

    fn incomplete(&mut self, datagram: &IncompleteDatagram<'_>) {
        self.incomplete += datagram.frames.iter().filter(|f| f.owns_frame).count();
    }
}

fn decode(path: &Path, checksums: Checksums, likely: Vec<(u16, u8)>) -> Tally {
    let config = FlowConfig { checksums, fragment_bytes: 1 << 20, ..FlowConfig::default() };
    let mut decoder = Decoder::new(&config);
    let mut tally = Tally { likely, ..Tally::default() };
    let frames = frames(path);
    let mut undecodable = 0;
    for (number, recorded) in frames.iter().enumerate() {
        let frame = Frame {
            ts: Nanos(number as i64),
            wire_len: recorded.wire_len,
            bytes: &recorded.bytes,
            link: recorded.link,
            iface: IfaceId(0),
            at: None,
        };
        let before = tally.owned;
        match decoder.decode(&frame, &mut tally) {
            Ok(Decoded::Counted) => {
                assert!(tally.owned > before, "{} frame {number}", path.display());
            }
            Ok(Decoded::Held) => {}
            Err(_) => undecodable += 1,
        }
    }
    decoder.finish(&mut tally);
    assert_eq!(
        tally.owned + tally.incomplete + undecodable,
        frames.len(),
        "every frame of {} has one owner",
        path.display()
    );
    tally
}

#[test]
fn every_capture_passes_through() {
    let Some(traces) = traces() else { return };
    let mut captures = 0;
    for folder in ["hostile", "zeek"] {
        for entry in std::fs::read_dir(traces.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|ext| ext == "json") {
                continue;
            }
            for checksums in [Checksums::Ignore, Checksums::Verify] {
                decode(&path, checksums, Vec::new());
            }
            captures += 1;
        }
    }
    println!("{captures} captures");
    assert!(captures > 0);
}

#[derive(serde::Deserialize)]
struct Case {
    trace: String,
    expected: String,
    checksums: String,
    likely_server_ports: Vec<String>,
}

#[derive(serde::Deserialize)]
struct Row {
    proto: String,
    #[serde(rename = "id.orig_h")]
    orig_h: IpAddr,
    #[serde(rename = "id.orig_p")]
    orig_p: u16,
    #[serde(rename = "id.resp_h")]
    resp_h: IpAddr,
    #[serde(rename = "id.resp_p")]
    resp_p: u16,
    orig_pkts: Option<u64>,
    resp_pkts: Option<u64>,
    orig_ip_bytes: Option<u64>,
    resp_ip_bytes: Option<u64>,
}

#[test]
fn packets_are_those_that_zeek_counts() {
    let Some(traces) = traces() else { return };
    let cases: Vec<Case> =
        serde_json::from_str(&std::fs::read_to_string(traces.join("zeek.json")).unwrap()).unwrap();
    let mut different = Vec::new();
    for case in &cases {
        let checksums =
            if case.checksums == "verify" { Checksums::Verify } else { Checksums::Ignore };
        let likely = case
            .likely_server_ports
            .iter()
            .filter_map(|port| {
                let (port, proto) = port.split_once('/')?;
                Some((port.parse().ok()?, if proto == "tcp" { 6 } else { 17 }))
            })
            .collect();
        let tally = decode(&traces.join(&case.trace), checksums, likely);
        let rows: Vec<Row> =
            serde_json::from_str(&std::fs::read_to_string(traces.join(&case.expected)).unwrap())
                .unwrap();
        let mut expected: BTreeMap<Key, Sum> = BTreeMap::new();
        for row in &rows {
            let ports = match row.proto.as_str() {
                "tcp" | "udp" => (row.orig_p, row.resp_p),
                _ => (0, 0),
            };
            let key = key(&row.proto, (row.orig_h, ports.0), (row.resp_h, ports.1));
            let sum = expected.entry(key).or_default();
            sum.packets += row.orig_pkts.unwrap_or(0) + row.resp_pkts.unwrap_or(0);
            sum.ip_bytes += row.orig_ip_bytes.unwrap_or(0) + row.resp_ip_bytes.unwrap_or(0);
        }
        println!("{}: {} keys, services {:?}", case.trace, expected.len(), tally.found);
        for key in expected.keys().chain(tally.sums.keys()) {
            let (theirs, ours) = (expected.get(key), tally.sums.get(key));
            if theirs != ours {
                different.push(format!("{}: {key:?}: Zeek {theirs:?}, here {ours:?}", case.trace));
            }
        }
    }
    different.dedup();
    assert!(different.is_empty(), "{} differences:\n{}", different.len(), different.join("\n"));
}
