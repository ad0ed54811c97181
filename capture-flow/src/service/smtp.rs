//! SMTP (RFC 5321): a greeting that says so, or a client that introduces itself.

use super::{Look, begins, ftp, mentions};
use crate::record::Service;

pub(super) fn stream(bytes: &[u8], _hints: u8) -> Look {
    let mut more = false;
    for command in [&b"EHLO "[..], b"HELO ", b"ehlo ", b"helo "] {
        match begins(bytes, command) {
            Some(true) => return Look::yes(Service::Smtp),
            None => more = true,
            Some(false) => {}
        }
    }
    if ftp::greeting(bytes).is_some_and(|line| mentions(line, b"SMTP")) {
        return Look::yes(Service::Smtp);
    }
    Look { more, ..Look::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_end_tells() {
        assert_eq!(stream(b"EHLO there\r\n", 0).service, Some(Service::Smtp));
        assert_eq!(stream(b"220 mx ESMTP ready\r\n", 0).service, Some(Service::Smtp));
        assert!(stream(b"EH", 0).more);
        assert!(stream(b"220 mx ready\r\n", 0).service.is_none());
    }
}
