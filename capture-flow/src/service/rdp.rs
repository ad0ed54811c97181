//! RDP: an X.224 connection request or confirmation in a TPKT (MS-RDPBCGR section 2.2.1). Other
//! protocols over TPKT (S7, H.323) lack the negotiation and the cookie.

use super::{Look, mentions};
use crate::decode::bytes::{array, be16, byte};
use crate::record::Service;

pub(super) fn stream(bytes: &[u8]) -> Look {
    const REQUEST: u8 = 0xe0;
    const CONFIRM: u8 = 0xd0;
    const HEADER: usize = 11;
    match (byte(bytes, 0), byte(bytes, 1)) {
        (None, _) => return Look::more(),
        (Some(3), None | Some(0)) => {}
        _ => return Look::no(),
    }
    let (Some(len), Some(indicator), Some(code)) = (be16(bytes, 2), byte(bytes, 4), byte(bytes, 5))
    else {
        return Look::more();
    };
    let len = usize::from(len);
    if !(HEADER..=512).contains(&len)
        || usize::from(indicator) + 5 != len
        || !matches!(code & 0xf0, REQUEST | CONFIRM)
    {
        return Look::no();
    }
    let Some(whole) = bytes.get(..len) else { return Look::more() };
    let data = whole.get(HEADER..).unwrap_or(&[]);
    let negotiation = data.len().checked_sub(8).and_then(|at| array::<4>(data, at));
    let negotiates = matches!(negotiation, Some([1..=3, _, 8, 0]));
    if negotiates || data.is_empty() || mentions(data, b"Cookie: ") {
        Look::yes(Service::Rdp)
    } else {
        Look::no()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_confirmations() {
        let request =
            b"\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00";
        let confirm =
            b"\x03\x00\x00\x13\x0e\xd0\x00\x00\x12\x34\x00\x02\x1f\x08\x00\x02\x00\x00\x00";
        for bytes in [request, confirm] {
            assert_eq!(stream(bytes).service, Some(Service::Rdp));
            for cut in 0..bytes.len() {
                assert!(stream(&bytes[..cut]).more);
            }
        }
        let mut cookie =
            b"\x03\x00\x00\x25\x20\xe0\x00\x00\x00\x00\x00Cookie: mstshash=user".to_vec();
        cookie.resize(0x25, b'\n');
        assert_eq!(stream(&cookie).service, Some(Service::Rdp));
        // S7 names its endpoints instead.
        let s7 = b"\x03\x00\x00\x16\x11\xe0\x00\x00\x00\x01\x00\xc0\x01\x0a\xc1\x02\x01\x00\xc2\x02\x01\x02";
        assert!(stream(s7).service.is_none() && !stream(s7).more);
    }
}
