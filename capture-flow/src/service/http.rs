//! HTTP/1 (RFC 9112): a request line or a status line.

use super::{Look, begins, name};
use crate::record::{Service, ServiceDetail};

const METHODS: [&[u8]; 17] = [
    b"GET ",
    b"POST ",
    b"HEAD ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"CONNECT ",
    b"TRACE ",
    b"PATCH ",
    b"PROPFIND ",
    b"PROPPATCH ",
    b"MKCOL ",
    b"COPY ",
    b"MOVE ",
    b"LOCK ",
    b"UNLOCK ",
    b"REPORT ",
];

pub(super) fn stream(bytes: &[u8]) -> Look {
    match begins(bytes, b"HTTP/1.") {
        Some(true) => return Look::yes(Service::Http),
        None => return Look::more(),
        Some(false) => {}
    }
    let mut possible = false;
    for method in METHODS {
        match begins(bytes, method) {
            Some(true) => return request(bytes),
            None => possible = true,
            Some(false) => {}
        }
    }
    Look { more: possible, ..Look::default() }
}

fn request(bytes: &[u8]) -> Look {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or(&[]);
    if first.len() == bytes.len() {
        return Look::more();
    }
    let version = first.strip_suffix(b"\r").unwrap_or(first);
    if !version.windows(8).any(|window| window == b" HTTP/1.") {
        return Look::no();
    }
    let mut look = Look { more: true, ..Look::yes(Service::Http) };
    // The last piece has no end yet.
    let mut lines = lines.peekable();
    while let Some(line) = lines.next() {
        let ended = lines.peek().is_some();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if !ended {
            break;
        }
        if line.is_empty() {
            look.more = false;
            break;
        }
        let host = line.get(..5).filter(|field| field.eq_ignore_ascii_case(b"host:"));
        if host.is_some() {
            let server_name = name(line.get(5..).unwrap_or(&[]).trim_ascii());
            look.detail =
                server_name.map(|host| ServiceDetail { server_name: Some(host), alpn: None });
            look.more = false;
            break;
        }
    }
    look
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_and_host() {
        let look = stream(b"GET /a b HTTP/1.1\r\nAccept: x\r\nHost:  example.com:8080 \r\n\r\n");
        assert_eq!(look.service, Some(Service::Http));
        assert_eq!(look.detail.unwrap().server_name.as_deref(), Some("example.com:8080"));
        assert!(!look.more);
    }

    #[test]
    fn pieces() {
        assert!(stream(b"GE").more);
        assert!(stream(b"GET /").more);
        let look = stream(b"GET / HTTP/1.0\r\nHos");
        assert!(look.service.is_some() && look.more && look.detail.is_none());
        assert!(!stream(b"GET / HTTP/1.0\r\n\r\n").more);
        assert!(stream(b"HTTP/1.1 200 OK").service.is_some());
        assert!(stream(b"GET me a coffee\r\n").service.is_none());
        let other = stream(b"XYZ");
        assert!(other.service.is_none() && !other.more);
    }
}
