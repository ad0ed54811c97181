//! DHCP (RFC 2131) and DHCPv6 (RFC 8415).

use crate::decode::bytes::{be16, be32, byte};
use crate::record::Service;

pub(super) fn datagram(bytes: &[u8]) -> Option<Service> {
    (is_v4(bytes) || is_v6(bytes)).then_some(Service::Dhcp)
}

fn is_v4(bytes: &[u8]) -> bool {
    const MAGIC: u32 = 0x6382_5363;
    matches!(byte(bytes, 0), Some(1 | 2))
        && byte(bytes, 2).is_some_and(|address_len| address_len <= 16)
        && be32(bytes, 236) == Some(MAGIC)
}

/// A message whose options fill it exactly and name the client, the server or a relayed message.
fn is_v6(bytes: &[u8]) -> bool {
    const CLIENT: u16 = 1;
    const SERVER: u16 = 2;
    const RELAYED: u16 = 9;
    const LAST_OPTION: u16 = 300;
    let mut at = match byte(bytes, 0) {
        Some(1..=11) => 4,
        Some(12 | 13) => 34,
        _ => return false,
    };
    let mut named = false;
    while at < bytes.len() {
        let (Some(option), Some(len)) = (be16(bytes, at), be16(bytes, at + 2)) else {
            return false;
        };
        if option == 0 || option > LAST_OPTION {
            return false;
        }
        named |= matches!(option, CLIENT | SERVER | RELAYED) && len > 2;
        at += 4 + usize::from(len);
    }
    named && at == bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v4_by_its_magic() {
        let mut bytes = vec![0; 240];
        bytes[0] = 1;
        bytes[2] = 6;
        bytes[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
        assert_eq!(datagram(&bytes), Some(Service::Dhcp));
        bytes[239] = 0;
        assert_eq!(datagram(&bytes), None);
    }

    #[test]
    fn v6_by_its_options() {
        let solicit = [1, 7, 7, 7, 0, 1, 0, 4, 1, 2, 3, 4, 0, 8, 0, 2, 0, 0];
        assert_eq!(datagram(&solicit), Some(Service::Dhcp));
        assert_eq!(datagram(&solicit[..17]), None);
        assert_eq!(datagram(&[1, 7, 7, 7]), None);
    }
}
