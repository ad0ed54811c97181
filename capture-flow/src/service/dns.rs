//! DNS (RFC 1035) and what shares its format: mDNS, LLMNR, NetBIOS names. Over TCP a length comes
//! first.

use super::Look;
use crate::decode::bytes::{be16, be32, byte};
use crate::record::Service;

const HEADER: usize = 12;
const MAX_NAME: usize = 255;

pub(super) fn stream(bytes: &[u8]) -> Look {
    let Some(len) = be16(bytes, 0) else { return Look::more() };
    if usize::from(len) <= HEADER {
        return Look::no();
    }
    let message = bytes.get(2..).unwrap_or(&[]);
    match message.get(..usize::from(len)) {
        Some(message) if is_message(message) => Look::yes(Service::Dns),
        Some(_) => Look::no(),
        // A long answer is told by its beginning.
        None if message.len() >= HEADER => match (is_header(message), first_question(message)) {
            (true, Question::Sound) => Look::yes(Service::Dns),
            (true, Question::CutOff) => Look::more(),
            _ => Look::no(),
        },
        None => Look::more(),
    }
}

pub(super) fn datagram(bytes: &[u8]) -> Option<Service> {
    is_message(bytes).then_some(Service::Dns)
}

fn is_message(bytes: &[u8]) -> bool {
    is_header(bytes) && matches!(first_question(bytes), Question::Sound)
}

fn is_header(bytes: &[u8]) -> bool {
    let (Some(flags), Some(questions), Some(answers), Some(authorities), Some(additional)) =
        (be16(bytes, 2), be16(bytes, 4), be16(bytes, 6), be16(bytes, 8), be16(bytes, 10))
    else {
        return false;
    };
    let opcode = (flags >> 11) & 0xf;
    let records = u32::from(answers) + u32::from(authorities) + u32::from(additional);
    // Opcodes 7 and 8 are NetBIOS's refreshes.
    matches!(opcode, 0 | 1 | 2 | 4..=8)
        && questions <= 32
        && records <= 512
        && (questions > 0 || answers > 0)
}

enum Question {
    Sound,
    CutOff,
    Wrong,
}

/// Checks the first entry: a question, or a record where there is none.
fn first_question(bytes: &[u8]) -> Question {
    let mut at = HEADER;
    loop {
        match byte(bytes, at) {
            None => return Question::CutOff,
            Some(0) => {
                at += 1;
                break;
            }
            Some(len @ 1..=63) => at += 1 + usize::from(len),
            Some(_) => return Question::Wrong,
        }
        if at - HEADER > MAX_NAME {
            return Question::Wrong;
        }
    }
    let (Some(kind), Some(class)) = (be16(bytes, at), be16(bytes, at + 2)) else {
        return Question::CutOff;
    };
    // The upper bit of the class is mDNS's.
    let known = (matches!(kind, 1..=265 | 32_768 | 32_769 | 65_280..=65_534))
        && matches!(class & 0x7fff, 1 | 3 | 4 | 254 | 255);
    if !known {
        return Question::Wrong;
    }
    if be16(bytes, 4) == Some(0) && (be32(bytes, at + 4).is_none() || be16(bytes, at + 8).is_none())
    {
        return Question::CutOff;
    }
    Question::Sound
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query() -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(b"\x07example\x03com\x00\x00\x01\x00\x01");
        bytes
    }

    #[test]
    fn a_query_is_recognised_whole() {
        let query = query();
        assert_eq!(datagram(&query), Some(Service::Dns));
        for cut in 0..query.len() {
            assert_eq!(datagram(&query[..cut]), None);
        }
    }

    #[test]
    fn over_tcp_in_pieces() {
        let query = query();
        let mut bytes = (query.len() as u16).to_be_bytes().to_vec();
        bytes.extend(&query);
        assert_eq!(stream(&bytes).service, Some(Service::Dns));
        for cut in 0..bytes.len() {
            assert!(stream(&bytes[..cut]).more, "{cut}");
        }
        // The announced length may lie far behind what has arrived.
        bytes[0] = 0x10;
        assert_eq!(stream(&bytes).service, Some(Service::Dns));
    }

    #[test]
    fn other_formats_are_not_dns() {
        assert_eq!(datagram(&[0; 40]), None);
        assert_eq!(datagram(&[0xff; 40]), None);
        assert_eq!(datagram(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"), None);
    }
}
