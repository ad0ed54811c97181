//! Any sequence of frames: no panic, and every frame has exactly one owner.
#![no_main]

use capture_flow::config::{Checksums, FlowConfig};
use capture_flow::decode::{
    Counted, Decoded, Decoder, HeldFrame, IncompleteDatagram, PacketVisitor,
};
use capture_flow::frame::{Frame, IfaceId, LinkType};
use capture_flow::packet::{Net, Packet, Transport};
use capture_flow::time::Nanos;
use libfuzzer_sys::fuzz_target;

#[derive(Default)]
struct Owners {
    packets: usize,
    owned: usize,
    incomplete: usize,
}

impl PacketVisitor for Owners {
    fn packet(&mut self, packet: &Packet<'_>, earlier: &[HeldFrame]) -> Counted {
        self.packets += 1;
        self.owned +=
            usize::from(packet.owns_frame) + earlier.iter().filter(|f| f.owns_frame).count();
        let responder_port = match packet.net {
            Net::Ip { transport: Transport::Udp { dst_port, .. }, .. } => dst_port,
            _ => 0,
        };
        Counted { responder_port, tunnel_refused: false }
    }

    fn refuse_tunnel(&mut self) {}

    fn incomplete(&mut self, datagram: &IncompleteDatagram<'_>) {
        self.incomplete += datagram.frames.iter().filter(|f| f.owns_frame).count();
    }
}

/// Link types with a decoder, and one without.
const LINKS: [u16; 16] = [1, 0, 9, 10, 12, 50, 51, 101, 105, 108, 113, 127, 204, 239, 276, 147];

// The input is a row of frames: flags, bytes missing, length (two bytes), bytes.
fuzz_target!(|data: &[u8]| {
    let checksums = match data.first() {
        Some(first) if first & 1 != 0 => Checksums::Verify,
        _ => Checksums::Ignore,
    };
    let config = FlowConfig { checksums, fragment_bytes: 20_000, ..FlowConfig::default() };
    let mut decoder = Decoder::new(&config);
    let mut owners = Owners::default();
    let (mut frames, mut undecodable) = (0, 0);
    let mut rest = data.get(1..).unwrap_or(&[]);
    while let [flags, missing, high, low, tail @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(tail.len());
        let (bytes, behind) = tail.split_at(len);
        rest = behind;
        let frame = Frame {
            ts: Nanos(frames as i64 * 7_000_000_000),
            wire_len: len as u32 + u32::from(*missing),
            bytes,
            link: LinkType(LINKS[usize::from(flags & 15)]),
            iface: IfaceId(0),
            at: None,
        };
        frames += 1;
        decoder.advance(frame.ts, &mut owners);
        let fast = decoder.fast(&frame);
        let before = owners.packets;
        match decoder.decode(&frame, &mut owners) {
            Ok(Decoded::Counted) => assert!(owners.packets > before),
            Ok(Decoded::Held) => assert!(fast.is_none() && owners.packets == before),
            Err(_) => {
                assert!(fast.is_none() && owners.packets == before);
                undecodable += 1;
            }
        }
    }
    decoder.finish(&mut owners);
    assert_eq!(owners.owned + owners.incomplete + undecodable, frames);
});
