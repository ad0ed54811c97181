//! Captures for the tests: reading them, and where the reference traces lie.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use capture_flow::frame::{Frame, IfaceId, LinkType, PcapPosition};
use capture_flow::key::FlowHash;
use capture_flow::record::SessionRecord;
use capture_flow::sink::{Mark, SessionUpdate, Sink};
use capture_flow::time::Nanos;
use pcap_parser::{Block, PcapBlockOwned, PcapError, create_reader};

/// A frame that owns its bytes.
#[derive(Clone, Debug)]
pub(crate) struct OwnedFrame {
    pub(crate) ts: Nanos,
    pub(crate) wire_len: u32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) link: LinkType,
    pub(crate) iface: IfaceId,
}

impl OwnedFrame {
    pub(crate) fn borrow(&self, number: usize) -> Frame<'_> {
        Frame {
            ts: self.ts,
            wire_len: self.wire_len,
            bytes: &self.bytes,
            link: self.link,
            iface: self.iface,
            at: Some(PcapPosition { worker: 0, segment: 0, offset: number as u32 }),
        }
    }
}

/// The folder with the reference traces, if this machine has it.
pub(crate) fn traces() -> Option<PathBuf> {
    let folder = std::env::var_os("STILLWIRE_TRACES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/traces"),
        PathBuf::from,
    );
    if folder.join("zeek.json").is_file() {
        return Some(folder);
    }
    // A second checkout beside the first one lies one folder deeper.
    let deeper = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/traces");
    deeper.join("zeek.json").is_file().then_some(deeper)
}

/// One interface of a pcapng section.
struct Interface {
    link: LinkType,
    snaplen: u32,
    /// Ticks a second, and seconds to add.
    resolution: u64,
    offset: i64,
}

/// The upper bits of pcap's link-type word may say how long the frame check sequence is: bit 26
/// that it is known, bits 28 to 31 its length in 16-bit words.
fn split_link_word(word: u32) -> (LinkType, usize) {
    let fcs = if word & 0x0400_0000 == 0 { 0 } else { (word >> 28) as usize * 2 };
    (LinkType(word as u16), fcs)
}

/// Every frame of a capture up to where it ends or breaks off.
pub(crate) fn read_capture(path: &Path) -> Vec<OwnedFrame> {
    let bytes = std::fs::read(path).unwrap();
    // pcap-parser's blocks do not carry every header field we need in every version, so the
    // classic header's magic and link word are read here.
    let mut reader = create_reader(1 << 20, std::io::Cursor::new(bytes)).unwrap();
    let mut frames = Vec::new();
    let mut interfaces: Vec<Interface> = Vec::new();
    let mut classic = (LinkType::ETHERNET, 0, 1000_u32);
    loop {
        match reader.next() {
            Ok((used, block)) => {
                match block {
                    PcapBlockOwned::LegacyHeader(header) => {
                        let (link, fcs) = split_link_word(header.network.0 as u32);
                        let scale = if header.is_nanosecond_precision() { 1 } else { 1000 };
                        classic = (link, fcs, scale);
                    }
                    PcapBlockOwned::Legacy(block) => {
                        let (link, fcs, scale) = classic;
                        let subsec = block.ts_usec.saturating_mul(scale);
                        let wire = block.origlen as usize;
                        let keep = block.data.len().min(wire.saturating_sub(fcs));
                        frames.push(OwnedFrame {
                            ts: Nanos::from_parts(i64::from(block.ts_sec), subsec),
                            wire_len: wire.saturating_sub(fcs) as u32,
                            bytes: block.data[..keep].to_vec(),
                            link,
                            iface: IfaceId(0),
                        });
                    }
                    PcapBlockOwned::NG(Block::SectionHeader(_)) => interfaces.clear(),
                    PcapBlockOwned::NG(Block::InterfaceDescription(block)) => {
                        interfaces.push(Interface {
                            link: LinkType(block.linktype.0 as u16),
                            snaplen: block.snaplen,
                            resolution: block.ts_resolution().unwrap_or(1_000_000),
                            offset: block.ts_offset(),
                        });
                    }
                    PcapBlockOwned::NG(Block::EnhancedPacket(block)) => {
                        let Some(interface) = interfaces.get(block.if_id as usize) else {
                            reader.consume(used);
                            continue;
                        };
                        let ticks = u64::from(block.ts_high) << 32 | u64::from(block.ts_low);
                        let seconds = ticks / interface.resolution;
                        let rest = u128::from(ticks % interface.resolution);
                        let subsec = rest * 1_000_000_000 / u128::from(interface.resolution);
                        let seconds = seconds as i64 + interface.offset;
                        let data = &block.data[..(block.caplen as usize).min(block.data.len())];
                        frames.push(OwnedFrame {
                            ts: Nanos::from_parts(seconds, subsec as u32),
                            wire_len: block.origlen,
                            bytes: data.to_vec(),
                            link: interface.link,
                            iface: IfaceId(block.if_id as u16),
                        });
                    }
                    PcapBlockOwned::NG(Block::SimplePacket(block)) => {
                        let Some(interface) = interfaces.first() else {
                            reader.consume(used);
                            continue;
                        };
                        let limit =
                            if interface.snaplen == 0 { u32::MAX } else { interface.snaplen };
                        let keep = block.origlen.min(limit) as usize;
                        frames.push(OwnedFrame {
                            ts: Nanos::default(),
                            wire_len: block.origlen,
                            bytes: block.data[..keep.min(block.data.len())].to_vec(),
                            link: interface.link,
                            iface: IfaceId(0),
                        });
                    }
                    PcapBlockOwned::NG(_) => {}
                }
                reader.consume(used);
            }
            Err(PcapError::Incomplete(_)) => {
                if reader.reader_exhausted() || reader.refill().is_err() {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    frames
}

/// Keeps everything that a table tells.
#[derive(Default)]
pub(crate) struct Collected {
    pub(crate) rows: Vec<SessionRecord>,
    pub(crate) updates: Vec<SessionUpdate>,
    pub(crate) touches: HashMap<PcapPosition, Vec<FlowHash>>,
}

impl Sink for Collected {
    fn touch(&mut self, at: PcapPosition, flow: FlowHash, mark: &mut Mark) {
        mark.0 += 1;
        self.touches.entry(at).or_default().push(flow);
    }

    fn session(&mut self, update: SessionUpdate) {
        self.rows.push(update.record.clone());
        self.updates.push(update);
    }
}
