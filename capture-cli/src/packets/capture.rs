//! Writes capture files: nanosecond pcap, or pcapng where frames have several link types.
//!
//! Formats: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng, both little-endian.

use std::io::{self, Write};

use capture_flow::frame::LinkType;
use capture_store::pcap::{FileHeader, MAX_SNAPLEN, RecordHeader};

/// pcapng block types.
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
/// Option `if_tsresol`, one byte: 9 means nanoseconds.
const IF_TSRESOL: u16 = 9;

/// A capture file being written.
pub(super) struct CaptureWriter<'w, W: Write> {
    out: &'w mut W,
    /// The interfaces of a pcapng; empty for classic pcap.
    interfaces: Vec<LinkType>,
}

impl<'w, W: Write> CaptureWriter<'w, W> {
    /// Begins a file that can hold frames of these link types, each with the snap length it was
    /// recorded with. One of them, or none, gives classic pcap.
    pub(super) fn begin(out: &'w mut W, links: &[(LinkType, u32)]) -> io::Result<Self> {
        if let [] | [_] = links {
            let (link_type, snaplen) =
                links.first().copied().unwrap_or((LinkType::ETHERNET, MAX_SNAPLEN));
            out.write_all(&FileHeader { snaplen, link_type }.encode())?;
            return Ok(Self { out, interfaces: Vec::new() });
        }
        // Byte-order magic, version 1.0, section length unknown.
        let mut body = 0x1a2b_3c4d_u32.to_le_bytes().to_vec();
        body.extend_from_slice(&[1, 0, 0, 0]);
        body.extend_from_slice(&u64::MAX.to_le_bytes());
        write_block(out, SECTION, &[&body])?;
        for (link, snaplen) in links {
            let mut body = u32::from(link.0).to_le_bytes().to_vec();
            body.extend_from_slice(&snaplen.to_le_bytes());
            body.extend_from_slice(&IF_TSRESOL.to_le_bytes());
            body.extend_from_slice(&[1, 0, 9, 0, 0, 0]);
            // End of options.
            body.extend_from_slice(&[0; 4]);
            write_block(out, INTERFACE, &[&body])?;
        }
        Ok(Self { out, interfaces: links.iter().map(|(link, _)| *link).collect() })
    }

    /// Adds a frame.
    pub(super) fn frame(
        &mut self,
        link: LinkType,
        record: &RecordHeader,
        frame: &[u8],
    ) -> io::Result<()> {
        if self.interfaces.is_empty() {
            self.out.write_all(&record.encode())?;
            return self.out.write_all(frame);
        }
        let interface = self.interfaces.iter().position(|known| *known == link).unwrap_or(0) as u32;
        let ns = u64::try_from(record.ts().0).unwrap_or(0);
        let fields = [interface, (ns >> 32) as u32, ns as u32, record.captured, record.wire_len];
        let mut head = [0; 20];
        for (place, field) in head.as_chunks_mut::<4>().0.iter_mut().zip(fields) {
            *place = field.to_le_bytes();
        }
        write_block(self.out, ENHANCED_PACKET, &[&head, frame])
    }

    /// Ends the file.
    pub(super) fn finish(self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A block: type, length, body padded to 32 bits, length again.
fn write_block(out: &mut impl Write, kind: u32, body: &[&[u8]]) -> io::Result<()> {
    let len: usize = body.iter().map(|part| part.len()).sum();
    let padding = len.next_multiple_of(4) - len;
    // A frame is at most 256 KiB.
    let total = (12 + len + padding) as u32;
    out.write_all(&kind.to_le_bytes())?;
    out.write_all(&total.to_le_bytes())?;
    for part in body {
        out.write_all(part)?;
    }
    out.write_all(&[0; 3][..padding])?;
    out.write_all(&total.to_le_bytes())
}
