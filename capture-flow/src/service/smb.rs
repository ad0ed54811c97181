//! SMB 1, 2 and 3, directly over TCP or after a NetBIOS session request.

use super::{Look, begins};
use crate::decode::bytes::{be16, byte};
use crate::record::Service;

pub(super) fn stream(mut bytes: &[u8]) -> Look {
    // RFC 1002 section 4.3.1: type, flags, length.
    const MESSAGE: u8 = 0x00;
    const REQUEST: u8 = 0x81;
    const POSITIVE_RESPONSE: u8 = 0x82;
    loop {
        let Some(kind) = byte(bytes, 0) else { return Look::more() };
        match kind {
            MESSAGE => break,
            REQUEST | POSITIVE_RESPONSE => {
                let Some(len) = be16(bytes, 2) else { return Look::more() };
                if byte(bytes, 1) != Some(0) || len > 256 {
                    return Look::no();
                }
                let Some(rest) = bytes.get(4 + usize::from(len)..) else { return Look::more() };
                bytes = rest;
            }
            _ => return Look::no(),
        }
    }
    let Some(message) = bytes.get(4..) else { return Look::more() };
    let prefixes = [&b"\xffSMB"[..], b"\xfeSMB", b"\xfdSMB"].map(|p| begins(message, p));
    if prefixes.contains(&Some(true)) {
        Look::yes(Service::Smb)
    } else if prefixes.contains(&None) {
        Look::more()
    } else {
        Look::no()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_and_after_netbios() {
        for version in [0xff, 0xfe, 0xfd] {
            let bytes = [0, 0, 0, 50, version, b'S', b'M', b'B'];
            assert_eq!(stream(&bytes).service, Some(Service::Smb));
            for cut in 0..bytes.len() {
                assert!(stream(&bytes[..cut]).more);
            }
        }
        let mut bytes = vec![0x82, 0, 0, 0];
        assert!(stream(&bytes).more);
        bytes.extend([0, 0, 0, 50, 0xff, b'S', b'M', b'B']);
        assert_eq!(stream(&bytes).service, Some(Service::Smb));
        assert!(!stream(b"\x00\x00\x00\x10abcd").more);
    }
}
