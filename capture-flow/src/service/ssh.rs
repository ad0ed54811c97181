//! SSH: both ends begin with their version (RFC 4253 section 4.2).

use super::{Look, begins};
use crate::record::Service;

pub(super) fn stream(bytes: &[u8]) -> Look {
    match [&b"SSH-2."[..], b"SSH-1."].map(|prefix| begins(bytes, prefix)) {
        [Some(true), _] | [_, Some(true)] => Look::yes(Service::Ssh),
        [Some(false), Some(false)] => Look::no(),
        _ => Look::more(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(stream(b"SSH-2.0-OpenSSH_9.2\r\n").service, Some(Service::Ssh));
        assert_eq!(stream(b"SSH-1.99-x").service, Some(Service::Ssh));
        assert!(stream(b"SSH").more);
        let other = stream(b"SSX");
        assert!(other.service.is_none() && !other.more);
    }
}
