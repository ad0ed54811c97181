//! Sessions without a handshake: UDP, ICMP, other IP protocols, frames without IP.
//!
//! Zeek's rules: UDPSessionAdapter, ICMPSessionAdapter and UnknownIPTransport in
//! src/packet_analysis/protocol.

use crate::record::ConnState;

/// What the two ends sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Datagram {
    /// Payload bytes of originator and responder.
    pub(crate) bytes: [u64; 2],
    /// Whether the originator, the responder sent anything that counts.
    pub(crate) active: [bool; 2],
    /// Frames with a wrong checksum.
    pub(crate) bad_checksums: [u32; 2],
}

impl Datagram {
    /// The bit of [`crate::tcp::Notes`] under which UDP notes data from one side.
    pub(crate) const DATA: u32 = 0x1;

    /// Counts a datagram's payload.
    #[inline]
    pub(crate) fn count(&mut self, is_orig: bool, payload_len: u32) {
        let who = usize::from(!is_orig);
        self.bytes[who] = self.bytes[who].saturating_add(u64::from(payload_len));
        self.active[who] = true;
    }

    /// Zeek's conn_state of a UDP session.
    pub(crate) const fn udp_state(&self) -> ConnState {
        match self.active {
            [true, true] => ConnState::SF,
            [true, false] => ConnState::S0,
            [false, true] => ConnState::SHR,
            [false, false] => ConnState::OTH,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_tells_who_spoke() {
        let mut datagram = Datagram::default();
        assert_eq!(datagram.udp_state(), ConnState::OTH);
        datagram.count(false, 7);
        assert_eq!(datagram.udp_state(), ConnState::SHR);
        datagram.count(true, 0);
        assert_eq!(datagram.udp_state(), ConnState::SF);
        assert_eq!(datagram.bytes, [0, 7]);
    }
}
