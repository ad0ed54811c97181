//! Frames made by hand.

use capture_flow::frame::{IfaceId, LinkType};
use capture_flow::time::Nanos;
use etherparse::PacketBuilder;

use super::OwnedFrame;

/// TCP flags of a made segment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flags {
    pub(crate) syn: bool,
    pub(crate) ack: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
}

/// An end: the last byte of its address, and its port.
pub(crate) type End = (u8, u16);

fn frame(ts: Nanos, bytes: Vec<u8>) -> OwnedFrame {
    let wire_len = bytes.len() as u32;
    OwnedFrame { ts, wire_len, bytes, link: LinkType::ETHERNET, iface: IfaceId(0) }
}

fn ethernet(src: End, dst: End) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, src.0], [2, 0, 0, 0, 0, dst.0]).ipv4(
        [10, 0, 0, src.0],
        [10, 0, 0, dst.0],
        64,
    )
}

pub(crate) fn tcp(
    ts: Nanos,
    src: End,
    dst: End,
    seq: u32,
    ack: u32,
    flags: Flags,
    payload: &[u8],
) -> OwnedFrame {
    let mut builder = ethernet(src, dst).tcp(src.1, dst.1, seq, 1000);
    if flags.syn {
        builder = builder.syn();
    }
    if flags.ack {
        builder = builder.ack(ack);
    }
    if flags.fin {
        builder = builder.fin();
    }
    if flags.rst {
        builder = builder.rst();
    }
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    frame(ts, bytes)
}

pub(crate) fn udp(ts: Nanos, src: End, dst: End, payload: &[u8]) -> OwnedFrame {
    let mut bytes = Vec::new();
    ethernet(src, dst).udp(src.1, dst.1).write(&mut bytes, payload).unwrap();
    frame(ts, bytes)
}
