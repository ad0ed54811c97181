//! The blocks of a pcapng file (draft-ietf-opsawg-pcapng).

use capture_flow::frame::{IfaceId, LinkType};
use capture_flow::time::Nanos;
use pcap_parser::{Block, InterfaceDescriptionBlock, OptionCode, parse_block_be, parse_block_le};

use super::SourceError;
use super::file::{Interfaces, MAX_CAPTURED, Meta, Step, Stream};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
/// Obsolete, but found in old files.
const PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

/// Bytes of one block that is looked into, at most: a frame, its options, and room to spare.
/// Blocks of other kinds are passed over, whatever their length.
const MAX_BLOCK: u32 = 4 << 20;
/// Interfaces of one section at most.
const MAX_INTERFACES: usize = 4096;

/// The section being read.
pub(super) struct Section {
    big_endian: bool,
    interfaces: Vec<Interface>,
    /// First bytes of the file, read to find out its format.
    pushed_back: Vec<u8>,
    block: Vec<u8>,
    last_ts: Nanos,
}

#[derive(Clone, Copy)]
struct Interface {
    link: LinkType,
    id: IfaceId,
    snaplen: u32,
    resolution: Resolution,
    offset_s: i64,
}

/// Units per second: `if_tsresol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Resolution {
    binary: bool,
    exponent: u8,
}

impl Resolution {
    fn from_option(byte: u8) -> Self {
        Self { binary: byte & 0x80 != 0, exponent: byte & 0x7f }
    }

    /// `units` of this resolution in nanoseconds, saturating.
    fn nanos(self, units: u64) -> i64 {
        let units = u128::from(units);
        let exponent = u32::from(self.exponent);
        let nanos = if self.binary {
            // 2^64 units times 10^9 fit 128 bits; the exponent is below 128.
            (units * 1_000_000_000) >> exponent
        } else if exponent <= 9 {
            units.saturating_mul(10u128.pow(9 - exponent))
        } else {
            10u128.checked_pow(exponent - 9).map_or(0, |scale| units / scale)
        };
        i64::try_from(nanos).unwrap_or(i64::MAX)
    }
}

impl Section {
    /// Whether a file that begins with these bytes is pcapng.
    pub(super) fn starts(head: &[u8]) -> bool {
        head.starts_with(&SECTION_HEADER.to_be_bytes())
    }

    /// Starts reading; `head` are the first bytes of the file, already taken from the stream.
    pub(super) fn new(head: Vec<u8>) -> Self {
        Self {
            big_endian: false,
            interfaces: Vec::new(),
            pushed_back: head,
            block: Vec::new(),
            last_ts: Nanos(0),
        }
    }

    /// Reads one block; a frame's bytes are appended to `bytes`.
    pub(super) fn step(
        &mut self,
        stream: &mut Stream,
        names: &mut Interfaces,
        bytes: &mut Vec<u8>,
    ) -> Result<Step, SourceError> {
        self.block.clear();
        self.block.append(&mut self.pushed_back);
        let at = stream.offset - self.block.len() as u64;
        let damaged = |what: &str| Ok(Step::Damaged(format!("{what} at byte {at}")));

        // Type and length, and for a section header the word that tells the byte order of both.
        self.need(stream, 12)?;
        if self.block.is_empty() && !stream.is_broken() {
            return Ok(Step::End);
        }
        if self.block.len() < 12 {
            return damaged("cut off in the block");
        }
        let is_section = Self::starts(&self.block);
        if is_section {
            self.big_endian = match self.block.get(8..12) {
                Some([0x1a, 0x2b, 0x3c, 0x4d]) => true,
                Some([0x4d, 0x3c, 0x2b, 0x1a]) => false,
                _ => return damaged("damaged: no byte order in the section header"),
            };
        }
        let kind = self.u32_at(0);
        let len = self.u32_at(4);
        if len < 12 || !len.is_multiple_of(4) {
            return damaged("damaged: impossible length in the block");
        }
        let looked_into = matches!(
            kind,
            SECTION_HEADER | INTERFACE_DESCRIPTION | PACKET | SIMPLE_PACKET | ENHANCED_PACKET
        );
        if !looked_into {
            let rest = u64::from(len).saturating_sub(self.block.len() as u64);
            // A block shorter than what the format needed to know was pushed back too far.
            if stream.skip(rest)? < rest {
                return damaged("cut off in the block");
            }
            return self.give_back(len);
        }
        if len > MAX_BLOCK {
            return damaged("damaged: impossible length in the block");
        }
        let len_bytes = len as usize;
        self.need(stream, len_bytes)?;
        if self.block.len() < len_bytes {
            return damaged("cut off in the block");
        }
        let over = self.block.split_off(len_bytes);
        let step = self.read_block(kind, is_section, names, bytes);
        self.pushed_back = over;
        match step {
            Some(step) => Ok(step),
            None => damaged("damaged: contradictory block"),
        }
    }

    /// Keeps what was read beyond a block of `len` bytes for the next one.
    fn give_back(&mut self, len: u32) -> Result<Step, SourceError> {
        let len = (len as usize).min(self.block.len());
        self.pushed_back = self.block.split_off(len);
        Ok(Step::Other)
    }

    /// Reads until the block holds `len` bytes or the file ends.
    fn need(&mut self, stream: &mut Stream, len: usize) -> Result<(), SourceError> {
        if let Some(missing) = len.checked_sub(self.block.len()) {
            stream.extend(&mut self.block, missing)?;
        }
        Ok(())
    }

    fn u32_at(&self, at: usize) -> u32 {
        let word = self.block.get(at..at + 4).and_then(|word| <[u8; 4]>::try_from(word).ok());
        let word = word.unwrap_or_default();
        if self.big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
    }

    /// What a whole block says; `None` if it contradicts itself.
    fn read_block(
        &mut self,
        kind: u32,
        is_section: bool,
        names: &mut Interfaces,
        bytes: &mut Vec<u8>,
    ) -> Option<Step> {
        if is_section {
            self.interfaces.clear();
            return Some(Step::Other);
        }
        if kind == PACKET {
            return self.packet(bytes);
        }
        let parse = if self.big_endian { parse_block_be } else { parse_block_le };
        let (_, block) = parse(&self.block).ok()?;
        match block {
            Block::InterfaceDescription(description) => {
                if self.interfaces.len() >= MAX_INTERFACES {
                    return None;
                }
                let interface = interface(&description, self.big_endian, names);
                self.interfaces.push(interface);
                Some(Step::Other)
            }
            Block::EnhancedPacket(packet) => {
                let interface = *self.interfaces.get(usize::try_from(packet.if_id).ok()?)?;
                let data = packet.data.get(..packet.caplen as usize)?;
                let units = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                let wire_len = packet.origlen;
                let ts = interface.time(units);
                self.last_ts = ts;
                frame(interface, ts, wire_len, data, bytes)
            }
            Block::SimplePacket(packet) => {
                let interface = *self.interfaces.first()?;
                let limit = if interface.snaplen == 0 { u32::MAX } else { interface.snaplen };
                let captured = packet.origlen.min(limit) as usize;
                let data = packet.data.get(..captured)?;
                // Such a block carries no time: the last one known is the nearest.
                frame(interface, self.last_ts, packet.origlen, data, bytes)
            }
            _ => Some(Step::Other),
        }
    }

    /// An obsolete Packet Block: interface (2 bytes), drops (2), time (8), captured and original
    /// length (4 each), data.
    fn packet(&mut self, bytes: &mut Vec<u8>) -> Option<Step> {
        let id = self.block.get(8..10).and_then(|id| <[u8; 2]>::try_from(id).ok())?;
        let id = if self.big_endian { u16::from_be_bytes(id) } else { u16::from_le_bytes(id) };
        let interface = *self.interfaces.get(usize::from(id))?;
        if self.block.len() < 32 {
            return None;
        }
        let units = u64::from(self.u32_at(12)) << 32 | u64::from(self.u32_at(16));
        let captured = self.u32_at(20) as usize;
        let wire_len = self.u32_at(24);
        let data = self.block.get(28..self.block.len() - 4)?.get(..captured)?;
        let ts = interface.time(units);
        self.last_ts = ts;
        frame(interface, ts, wire_len, data, bytes)
    }
}

impl Interface {
    fn time(&self, units: u64) -> Nanos {
        let offset = self.offset_s.saturating_mul(1_000_000_000);
        Nanos(self.resolution.nanos(units).saturating_add(offset))
    }
}

fn interface(
    description: &InterfaceDescriptionBlock<'_>,
    big_endian: bool,
    names: &mut Interfaces,
) -> Interface {
    let offset = description
        .options
        .iter()
        .find(|option| option.code == OptionCode::IfTsoffset)
        .and_then(|option| option.value.get(..8))
        .and_then(|value| <[u8; 8]>::try_from(value).ok())
        .unwrap_or_default();
    let offset_s = if big_endian { i64::from_be_bytes(offset) } else { i64::from_le_bytes(offset) };
    let named = description.if_name().and_then(Result::ok).map(str::trim);
    let name = match named {
        Some(name) if !name.is_empty() => name,
        _ => &names.file,
    };
    Interface {
        link: LinkType((description.linktype.0 & 0xffff) as u16),
        id: (names.name)(name),
        snaplen: description.snaplen,
        resolution: Resolution::from_option(description.if_tsresol),
        offset_s,
    }
}

fn frame(
    interface: Interface,
    ts: Nanos,
    wire_len: u32,
    data: &[u8],
    bytes: &mut Vec<u8>,
) -> Option<Step> {
    let captured = u32::try_from(data.len()).ok().filter(|&len| len <= MAX_CAPTURED)?;
    bytes.extend_from_slice(data);
    Some(Step::Frame(Meta {
        ts,
        wire_len: wire_len.max(captured),
        link: interface.link,
        iface: interface.id,
        captured: data.len(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolutions() {
        let of = |byte: u8, units: u64| Resolution::from_option(byte).nanos(units);
        assert_eq!(of(6, 1_500_000), 1_500_000_000);
        assert_eq!(of(9, 7), 7);
        assert_eq!(of(0, 2), 2_000_000_000);
        assert_eq!(of(12, 5_000), 5);
        assert_eq!(of(0x80 | 10, 512), 500_000_000);
        assert_eq!(of(0x80 | 127, u64::MAX), 0);
        assert_eq!(of(127, u64::MAX), 0);
        assert_eq!(of(0, u64::MAX), i64::MAX);
    }
}
