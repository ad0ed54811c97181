//! GRE (RFC 2784, 2890), PPTP's enhanced GRE (RFC 2637), NVGRE (RFC 7637), ERSPAN and Aruba's
//! wireless bridging over it.

use super::is_whole_ip;
use crate::decode::bytes::{be16, byte};
use crate::decode::walk::Step;

const CHECKSUM: u16 = 0x8000;
const ROUTING: u16 = 0x4000;
const KEY: u16 = 0x2000;
const SEQUENCE: u16 = 0x1000;
const ACKNOWLEDGEMENT: u16 = 0x0080;
const RESERVED: u16 = 0x0078;
const VERSION: u16 = 0x0007;

const ETHERNET_BRIDGING: u16 = 0x6558;
const ERSPAN_1_2: u16 = 0x88be;
const ERSPAN_3: u16 = 0x22eb;
const PPTP: u16 = 0x880b;
const MPLS: u16 = 0x8847;
const MPLS_UPSTREAM: u16 = 0x8848;

const ETHERNET_HEADER: usize = 14;
const ERSPAN_2_HEADER: usize = 8;
const ERSPAN_3_HEADER: usize = 12;
const ERSPAN_3_SUBHEADER: usize = 8;
/// PPP with HDLC-like framing.
const PPP_HEADER: usize = 4;

/// The packet in a GRE packet, of which `missing` bytes were cut off by the capture; `None` where
/// there is none or the header is not understood.
/// `missing` bytes of it were cut off by the capture.
pub(crate) fn gre(bytes: &[u8], missing: usize) -> Option<Step<'_>> {
    let flags = be16(bytes, 0)?;
    let protocol = be16(bytes, 2)?;
    // Routing was taken out of the standard, and its length is not said in the fixed header.
    if flags & (ROUTING | RESERVED) != 0 {
        return None;
    }
    let optional = [CHECKSUM, KEY, SEQUENCE, ACKNOWLEDGEMENT];
    let header_len = 4 + 4 * optional.into_iter().filter(|flag| flags & flag != 0).count();
    let payload = bytes.get(header_len..)?;
    match flags & VERSION {
        0 => plain(protocol, flags, payload),
        1 if protocol == PPTP => pptp(payload, missing),
        _ => None,
    }
}

/// Whether a packet is GRE of a form that [`gre`] does not understand, and may carry another.
pub(crate) fn is_strange(bytes: &[u8]) -> bool {
    let (Some(flags), Some(protocol)) = (be16(bytes, 0), be16(bytes, 2)) else { return false };
    let version_is_known = match flags & VERSION {
        0 => true,
        1 => protocol == PPTP,
        _ => false,
    };
    flags & (ROUTING | RESERVED) != 0 || !version_is_known
}

fn plain(protocol: u16, flags: u16, payload: &[u8]) -> Option<Step<'_>> {
    let ethernet = |header_len: usize| {
        let frame = payload.get(header_len..)?;
        (frame.len() >= ETHERNET_HEADER).then_some(Step::Ethernet(frame))
    };
    match protocol {
        ETHERNET_BRIDGING => ethernet(0),
        // Type I has no header of its own; type II comes with a sequence number.
        ERSPAN_1_2 => ethernet(if flags & SEQUENCE != 0 { ERSPAN_2_HEADER } else { 0 }),
        ERSPAN_3 => {
            let subheader = byte(payload, ERSPAN_3_HEADER - 1)? & 1 != 0;
            ethernet(ERSPAN_3_HEADER + if subheader { ERSPAN_3_SUBHEADER } else { 0 })
        }
        MPLS | MPLS_UPSTREAM => Some(Step::EtherType(protocol, payload)),
        _ if is_aruba(protocol) => Some(Step::Wireless(payload)),
        // Whatever the protocol field says, Zeek looks for an IP header.
        _ => Some(Step::Ip(payload)),
    }
}

/// Aruba access points number their radios here (0x8200, 0x8210, …, 0x8370, and 0x9000).
fn is_aruba(protocol: u16) -> bool {
    let numbered = protocol & 0x0f == 0
        && (protocol & 0x8200 == 0x8200 || (protocol & 0x8300 == 0x8300 && protocol <= 0x8370));
    numbered || protocol == 0x9000
}

fn pptp(payload: &[u8], missing: usize) -> Option<Step<'_>> {
    let version = match be16(payload, 2)? {
        0x0021 => 4,
        0x0057 => 6,
        _ => return None,
    };
    let packet = payload.get(PPP_HEADER..)?;
    is_whole_ip(version, packet, missing).then_some(Step::Ip(packet))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(flags: u16, protocol: u16, rest: &[u8]) -> Vec<u8> {
        let mut bytes = flags.to_be_bytes().to_vec();
        bytes.extend(protocol.to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    #[test]
    fn optional_fields_are_skipped() {
        let bytes = packet(CHECKSUM | KEY | SEQUENCE, 0x0800, &[0; 12]);
        assert!(matches!(gre(&bytes, 0), Some(Step::Ip([]))));
        assert!(gre(&bytes[..15], 0).is_none());
    }

    #[test]
    fn erspan_headers() {
        for (flags, protocol, header) in
            [(0, ERSPAN_1_2, 0), (SEQUENCE, ERSPAN_1_2, 12), (0, ERSPAN_3, 12)]
        {
            let bytes = packet(flags, protocol, &vec![0; header + 20]);
            assert!(
                matches!(gre(&bytes, 0), Some(Step::Ethernet(frame)) if frame.len() == 20),
                "{protocol:x}"
            );
        }
        let mut with_subheader = vec![0; 40];
        with_subheader[11] = 1;
        assert!(matches!(
            gre(&packet(0, ERSPAN_3, &with_subheader), 0),
            Some(Step::Ethernet(frame)) if frame.len() == 20
        ));
    }

    #[test]
    fn pptp_carries_whole_ip_packets() {
        let mut inner = vec![0xff, 0x03, 0x00, 0x21, 0x45, 0, 0, 20];
        inner.resize(24, 0);
        let mut bytes = packet(KEY | SEQUENCE | 1, PPTP, &[0; 8]);
        bytes.extend(&inner);
        assert!(matches!(gre(&bytes, 0), Some(Step::Ip(ip)) if ip.len() == 20));
        bytes.push(0);
        assert!(gre(&bytes, 0).is_none());
    }

    #[test]
    fn what_is_not_understood_is_left_alone() {
        assert!(gre(&packet(ROUTING, 0x0800, &[0; 40]), 0).is_none());
        assert!(gre(&packet(0x0008, 0x0800, &[0; 40]), 0).is_none());
        assert!(gre(&packet(2, 0x0800, &[0; 40]), 0).is_none());
        assert!(gre(&[], 0).is_none());
    }

    #[test]
    fn aruba_radios() {
        assert!(is_aruba(0x8200) && is_aruba(0x8370) && is_aruba(0x9000));
        assert!(!is_aruba(0x0800) && !is_aruba(0x86dd) && !is_aruba(0x8847));
    }
}
