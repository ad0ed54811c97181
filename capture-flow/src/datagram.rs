//! Sessions without a handshake: UDP, ICMP, other IP protocols, frames without IP.
//!
//! Zeek's rules: UDPSessionAdapter, ICMPSessionAdapter and UnknownIPTransport in
//! src/packet_analysis/protocol.

use crate::record::ConnState;

/// Zeek's conn_state of a UDP session: whether the originator and the responder sent anything that
/// counts.
pub(crate) const fn udp_state(active: [bool; 2]) -> ConnState {
    match active {
        [true, true] => ConnState::SF,
        [true, false] => ConnState::S0,
        [false, true] => ConnState::SHR,
        [false, false] => ConnState::OTH,
    }
}
