//! TLS (RFC 8446, back to SSL 3) and DTLS (RFC 6347): the first handshake message of either end,
//! and the names in a ClientHello (RFC 6066, RFC 7301).

use super::{Look, name};
use crate::decode::bytes::{be16, byte};
use crate::record::{Service, ServiceDetail};

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;
/// RFC 5246 allows a record this long; RFC 8446 less.
const MAX_RECORD: u16 = 16_384 + 2_048;

const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;

pub(super) fn stream(bytes: &[u8]) -> Look {
    match (byte(bytes, 0), byte(bytes, 1), byte(bytes, 2)) {
        (Some(HANDSHAKE), None, _) | (Some(HANDSHAKE), Some(3), None) => return Look::more(),
        (Some(HANDSHAKE), Some(3), Some(0..=4)) => {}
        _ => return Look::no(),
    }
    let (Some(len), Some(kind)) = (be16(bytes, 3), byte(bytes, RECORD_HEADER)) else {
        return Look::more();
    };
    if len == 0 || len > MAX_RECORD {
        return Look::no();
    }
    match kind {
        SERVER_HELLO => Look::yes(Service::Tls),
        CLIENT_HELLO => {
            let (message, _) = unwrap_records(bytes);
            let hello = client_hello(&message);
            Look {
                service: Some(Service::Tls),
                more: matches!(hello, Hello::More),
                detail: hello.names(),
                hints: 0,
            }
        }
        _ => Look::no(),
    }
}

/// DTLS: a handshake message of the first epoch. Later ones are encrypted.
pub(super) fn datagram(bytes: &[u8]) -> Option<Look> {
    const HEADER: usize = 13;
    const HELLO_VERIFY_REQUEST: u8 = 3;
    const MESSAGE: usize = 12;
    let version = be16(bytes, 1)?;
    if byte(bytes, 0)? != HANDSHAKE
        || !matches!(version, 0xfeff | 0xfefd | 0xfefc)
        || be16(bytes, 3)? != 0
    {
        return None;
    }
    let message = bytes.get(HEADER..)?.get(..usize::from(be16(bytes, 11)?))?;
    // Type, length, sequence number, then the place of this fragment.
    let (kind, body) = (byte(message, 0)?, message.get(MESSAGE..)?);
    let look = Look::yes(Service::Tls);
    match kind {
        // A message in one piece repeats its length as the fragment's.
        CLIENT_HELLO if message.get(1..4) == message.get(9..12) => {
            let detail = extensions(body, true).map(names);
            Some(Look { detail: detail.and_then(told), ..look })
        }
        CLIENT_HELLO | SERVER_HELLO | HELLO_VERIFY_REQUEST => Some(look),
        _ => None,
    }
}

/// The handshake bytes of the records at the start, whole or cut off.
fn unwrap_records(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut message = Vec::with_capacity(bytes.len());
    while let (Some(HANDSHAKE), Some(len)) = (byte(bytes, 0), be16(bytes, 3)) {
        let body = bytes.get(RECORD_HEADER..).unwrap_or(&[]);
        let Some(whole) = body.get(..usize::from(len)).filter(|record| !record.is_empty()) else {
            message.extend_from_slice(body);
            return (message, false);
        };
        message.extend_from_slice(whole);
        bytes = body.get(usize::from(len)..).unwrap_or(&[]);
    }
    (message, true)
}

/// A ClientHello read from its first byte.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hello {
    /// Read to its end.
    Whole(ServiceDetail),
    /// Cut off, so far as it goes a ClientHello.
    More,
    /// Something else.
    No,
}

impl Hello {
    /// The names it told, if any.
    pub(super) fn names(self) -> Option<ServiceDetail> {
        match self {
            Self::Whole(detail) => told(detail),
            _ => None,
        }
    }
}

fn told(detail: ServiceDetail) -> Option<ServiceDetail> {
    (detail.server_name.is_some() || detail.alpn.is_some()).then_some(detail)
}

/// Reads a handshake message without record headers.
pub(super) fn client_hello(bytes: &[u8]) -> Hello {
    let (Some(kind), Some(high), Some(low)) = (byte(bytes, 0), byte(bytes, 1), be16(bytes, 2))
    else {
        return Hello::More;
    };
    if kind != CLIENT_HELLO {
        return Hello::No;
    }
    let len = usize::from(high) << 16 | usize::from(low);
    let body = bytes.get(MESSAGE_HEADER..).unwrap_or(&[]);
    let Some(body) = body.get(..len) else { return Hello::More };
    extensions(body, false).map_or(Hello::No, |extensions| Hello::Whole(names(extensions)))
}

/// The extensions behind version, random, session ID, in DTLS a cookie, cipher suites and
/// compression methods.
fn extensions(body: &[u8], has_cookie: bool) -> Option<&[u8]> {
    let mut at = 34;
    at += 1 + usize::from(byte(body, at)?);
    if has_cookie {
        at += 1 + usize::from(byte(body, at)?);
    }
    at += 2 + usize::from(be16(body, at)?);
    at += 1 + usize::from(byte(body, at)?);
    if at == body.len() {
        // SSL 3 and old TLS clients send none.
        return Some(&[]);
    }
    let len = usize::from(be16(body, at)?);
    body.get(at + 2..)?.get(..len)
}

fn names(mut extensions: &[u8]) -> ServiceDetail {
    let mut detail = ServiceDetail::default();
    while let (Some(kind), Some(len)) = (be16(extensions, 0), be16(extensions, 2)) {
        let rest = extensions.get(4..).unwrap_or(&[]);
        let Some(content) = rest.get(..usize::from(len)) else { break };
        match kind {
            SERVER_NAME => detail.server_name = server_name(content),
            ALPN => detail.alpn = alpn(content),
            _ => {}
        }
        extensions = rest.get(usize::from(len)..).unwrap_or(&[]);
    }
    detail
}

fn server_name(content: &[u8]) -> Option<Box<str>> {
    const HOST_NAME: u8 = 0;
    // A list that in practice has one entry: type, length, name.
    if byte(content, 2)? != HOST_NAME {
        return None;
    }
    let len = usize::from(be16(content, 3)?);
    name(content.get(5..)?.get(..len)?)
}

fn alpn(content: &[u8]) -> Option<Box<str>> {
    let mut list = content.get(2..)?;
    let mut text = String::new();
    while let Some(len) = byte(list, 0) {
        let protocol = name(list.get(1..)?.get(..usize::from(len))?)?;
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&protocol);
        list = list.get(1 + usize::from(len)..)?;
    }
    (!text.is_empty()).then(|| text.into_boxed_str())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A ClientHello message for `host`, offering h2 and http/1.1.
    pub(in crate::service) fn hello(host: &str) -> Vec<u8> {
        let mut extensions = Vec::new();
        let host = host.as_bytes();
        extensions.extend(SERVER_NAME.to_be_bytes());
        extensions.extend((host.len() as u16 + 5).to_be_bytes());
        extensions.extend((host.len() as u16 + 3).to_be_bytes());
        extensions.push(0);
        extensions.extend((host.len() as u16).to_be_bytes());
        extensions.extend(host);
        extensions.extend(b"\x00\x10\x00\x0e\x00\x0c\x02h2\x08http/1.1");
        let mut body = vec![3, 3];
        body.extend([9; 32]);
        body.extend([0, 0, 2, 0x13, 1, 1, 0]);
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        let mut message = vec![CLIENT_HELLO];
        message.extend(&(body.len() as u32).to_be_bytes()[1..]);
        message.extend(body);
        message
    }

    pub(in crate::service) fn record(message: &[u8]) -> Vec<u8> {
        let mut bytes = vec![HANDSHAKE, 3, 1];
        bytes.extend((message.len() as u16).to_be_bytes());
        bytes.extend(message);
        bytes
    }

    fn expected() -> ServiceDetail {
        ServiceDetail { server_name: Some("example.com".into()), alpn: Some("h2,http/1.1".into()) }
    }

    #[test]
    fn names_of_a_client_hello() {
        let look = stream(&record(&hello("example.com")));
        assert_eq!((look.service, look.detail), (Some(Service::Tls), Some(expected())));
        assert!(!look.more);
    }

    #[test]
    fn a_hello_in_two_records() {
        let message = hello("example.com");
        let (first, second) = message.split_at(20);
        let bytes = [record(first), record(second)].concat();
        assert_eq!(stream(&bytes).detail, Some(expected()));
    }

    #[test]
    fn every_prefix_waits_for_the_rest() {
        let bytes = record(&hello("example.com"));
        for cut in 1..bytes.len() {
            let look = stream(&bytes[..cut]);
            assert!(look.more && look.detail.is_none(), "{cut}");
            assert_eq!(look.service.is_some(), cut > RECORD_HEADER);
        }
    }

    #[test]
    fn a_hello_without_extensions_has_no_names() {
        let mut body = vec![3, 0];
        body.extend([9; 32]);
        body.extend([0, 0, 2, 0, 5, 1, 0]);
        let mut message = vec![CLIENT_HELLO, 0, 0, body.len() as u8];
        message.extend(body);
        let look = stream(&record(&message));
        assert!(look.service.is_some() && look.detail.is_none() && !look.more);
    }

    #[test]
    fn names_of_a_dtls_hello() {
        let hello = hello("example.com");
        // The cookie's length goes behind the empty session ID.
        let mut body = hello[4..].to_vec();
        body.insert(35, 0);
        let len = [0, 0, body.len() as u8];
        let mut bytes =
            vec![HANDSHAKE, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, body.len() as u8 + 12];
        bytes.push(CLIENT_HELLO);
        bytes.extend(len);
        bytes.extend([0; 5]);
        bytes.extend(len);
        bytes.extend(&body);
        let look = datagram(&bytes).unwrap();
        assert_eq!((look.service, look.detail), (Some(Service::Tls), Some(expected())));
        for cut in 0..bytes.len() {
            assert!(datagram(&bytes[..cut]).is_none());
        }
        bytes[4] = 1;
        assert!(datagram(&bytes).is_none(), "an encrypted epoch");
    }

    #[test]
    fn a_name_that_is_no_text_is_left_out() {
        let look = stream(&record(&hello("exa\u{7}mple")));
        assert_eq!(look.detail.unwrap().server_name, None);
    }
}
