//! Community ID version 1: a hash of a session's ends that many tools compute alike
//! (corelight/community-id-spec).

use std::fmt;
use std::net::IpAddr;

use sha1::{Digest, Sha1};

use crate::decode::transport::proto;
use crate::key::{Address, Protocol};
use crate::record::SessionRecord;

/// ICMP message types that answer each other.
const ICMP_PAIRS: [(u16, u16); 5] = [(0, 8), (9, 10), (13, 14), (15, 16), (17, 18)];
/// The same for ICMPv6.
const ICMP6_PAIRS: [(u16, u16); 6] =
    [(128, 129), (130, 131), (133, 134), (135, 136), (139, 140), (144, 145)];

/// A session's Community ID. Prints as `1:` and base64; [`CommunityId::hex`] is the other form
/// of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CommunityId([u8; 20]);

/// The Community ID of a session; `None` for one without IP.
#[must_use]
pub fn of(record: &SessionRecord, seed: u16) -> Option<CommunityId> {
    let (Address::Ip(src), Address::Ip(dst), Protocol::Ip(protocol)) =
        (record.orig.addr, record.resp.addr, record.protocol)
    else {
        return None;
    };
    Some(CommunityId::new(seed, protocol, (src, record.orig.port), (dst, record.resp.port)))
}

impl CommunityId {
    /// The ID of a session between two ends. For ICMP the first port is the type and the second
    /// the type that answers it, or the code. Ports count for TCP, UDP, SCTP and ICMP only.
    #[must_use]
    pub fn new(seed: u16, protocol: u8, src: (IpAddr, u16), dst: (IpAddr, u16)) -> Self {
        let (mut low, mut high) = (src, dst);
        let pairs: &[(u16, u16)] = match protocol {
            proto::ICMP => &ICMP_PAIRS,
            proto::ICMP6 => &ICMP6_PAIRS,
            _ => &[],
        };
        let answer = pairs.iter().find_map(|&(a, b)| match src.1 {
            kind if kind == a => Some(b),
            kind if kind == b => Some(a),
            _ => None,
        });
        if let Some(answer) = answer {
            high.1 = answer;
        }
        // A message that nothing answers has one direction only, which is kept.
        let one_way = matches!(protocol, proto::ICMP | proto::ICMP6) && answer.is_none();
        if !one_way && high < low {
            std::mem::swap(&mut low, &mut high);
        }
        let mut hash = Sha1::new();
        hash.update(seed.to_be_bytes());
        for (address, _) in [low, high] {
            match address {
                IpAddr::V4(address) => hash.update(address.octets()),
                IpAddr::V6(address) => hash.update(address.octets()),
            }
        }
        hash.update([protocol, 0]);
        if matches!(protocol, proto::ICMP | proto::TCP | proto::UDP | proto::ICMP6 | proto::SCTP) {
            hash.update(low.1.to_be_bytes());
            hash.update(high.1.to_be_bytes());
        }
        Self(hash.finalize().into())
    }

    /// The form without base64.
    #[must_use]
    pub fn hex(&self) -> impl fmt::Display {
        Hex(*self)
    }
}

impl fmt::Display for CommunityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        f.write_str("1:")?;
        for group in self.0.chunks(3) {
            let mut bytes = [0; 4];
            for (to, from) in bytes.iter_mut().skip(1).zip(group) {
                *to = *from;
            }
            let bits = u32::from_be_bytes(bytes);
            for place in 0..4 {
                let digit = (bits >> (18 - 6 * place)) & 0x3f;
                let shown = if place <= group.len() { DIGITS[digit as usize] } else { b'=' };
                fmt::Write::write_char(f, char::from(shown))?;
            }
        }
        Ok(())
    }
}

struct Hex(CommunityId);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("1:")?;
        self.0.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(protocol: u8, src: (&str, u16), dst: (&str, u16)) -> CommunityId {
        CommunityId::new(
            0,
            protocol,
            (src.0.parse().unwrap(), src.1),
            (dst.0.parse().unwrap(), dst.1),
        )
    }

    #[test]
    fn both_directions_have_one_id() {
        for protocol in [6, 17, 132, 46] {
            let there = id(protocol, ("10.0.0.1", 1000), ("10.0.0.2", 80));
            let back = id(protocol, ("10.0.0.2", 80), ("10.0.0.1", 1000));
            assert_eq!(there, back);
        }
        assert_eq!(
            id(1, ("10.0.0.1", 8), ("10.0.0.2", 0)),
            id(1, ("10.0.0.2", 0), ("10.0.0.1", 8))
        );
        assert_ne!(
            id(1, ("10.0.0.1", 3), ("10.0.0.2", 1)),
            id(1, ("10.0.0.2", 3), ("10.0.0.1", 1))
        );
    }

    #[test]
    fn other_protocols_have_no_ports() {
        assert_eq!(
            id(46, ("10.0.0.1", 1), ("10.0.0.2", 2)),
            id(46, ("10.0.0.1", 0), ("10.0.0.2", 0))
        );
        assert_ne!(
            id(6, ("10.0.0.1", 1), ("10.0.0.2", 2)),
            id(6, ("10.0.0.1", 0), ("10.0.0.2", 0))
        );
    }

    #[test]
    fn base64_is_padded() {
        let text = id(6, ("::1", 1), ("::2", 2)).to_string();
        assert_eq!(text.len(), 2 + 28);
        assert!(text.starts_with("1:") && text.ends_with('=') && !text.ends_with("=="));
        assert_eq!(id(6, ("::1", 1), ("::2", 2)).hex().to_string().len(), 42);
    }
}
