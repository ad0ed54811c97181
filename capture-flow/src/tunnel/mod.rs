//! Tunnels: which packets carry another packet, and where it begins.
//!
//! Ports and content checks are Zeek's (src/packet_analysis/protocol and
//! scripts/base/packet-protocols). A tunnel over UDP is recognised by the responder's port, and
//! Teredo and AYIYA by content on any port; a session that breaks its tunnel's format is not
//! tried again.

mod gre;
mod udp;

pub(crate) use gre::{gre, is_strange as is_strange_gre};
pub(crate) use udp::{is_gtp_port, over_udp, possible_over_udp};

use crate::decode::bytes::{be16, byte};
use crate::decode::transport::proto;
use crate::decode::walk::Step;

/// What a packet on a tunnel's port holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Enclosed<'a> {
    /// Another packet.
    Step(Step<'a>),
    /// The tunnel's own signalling.
    Nothing,
    /// A form of the tunnel that is not understood: it may carry a packet.
    Unknown,
    /// Something else: the session is no tunnel.
    Refused,
}

/// The packet in IP-in-IP (protocol 4) or 6in4 (41). It must have the announced version and fill
/// its carrier exactly. `missing` bytes of the carrier were cut off by the capture.
pub(crate) fn ip_in_ip(protocol: u8, bytes: &[u8], missing: usize) -> Option<Step<'_>> {
    let version = if protocol == proto::IPV4 { 4 } else { 6 };
    is_whole_ip(version, bytes, missing).then_some(Step::Ip(bytes))
}

/// How the length an IP header claims compares with the bytes that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Exact,
    /// More bytes than claimed.
    Loose,
    /// No such header, or fewer bytes than claimed.
    No,
}

fn ip_fit(version: u8, bytes: &[u8], missing: usize) -> Fit {
    let fixed = if version == 4 { 20 } else { 40 };
    if bytes.len() < fixed || byte(bytes, 0).map(|first| first >> 4) != Some(version) {
        return Fit::No;
    }
    let claimed = match version {
        4 => be16(bytes, 2).map(usize::from),
        _ => be16(bytes, 4).map(|len| usize::from(len) + 40),
    };
    let on_wire = bytes.len().saturating_add(missing);
    match claimed {
        Some(claimed) if claimed == on_wire => Fit::Exact,
        Some(claimed) if claimed < on_wire => Fit::Loose,
        _ => Fit::No,
    }
}

fn is_whole_ip(version: u8, bytes: &[u8], missing: usize) -> bool {
    ip_fit(version, bytes, missing) == Fit::Exact
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_ip_must_fill_its_carrier() {
        let mut bytes = vec![0x45, 0, 0, 24];
        bytes.resize(24, 0);
        assert!(ip_in_ip(4, &bytes, 0).is_some());
        assert!(ip_in_ip(41, &bytes, 0).is_none());
        bytes.push(0);
        assert!(ip_in_ip(4, &bytes, 0).is_none());
        assert!(ip_in_ip(4, &bytes[..23], 0).is_none());
        assert!(ip_in_ip(4, &bytes[..23], 1).is_some(), "the capture cut a byte off");
        let mut bytes = vec![0x60, 0, 0, 0, 0, 2];
        bytes.resize(42, 0);
        assert!(ip_in_ip(41, &bytes, 0).is_some());
        assert!(ip_in_ip(41, &bytes[..41], 0).is_none());
    }
}
