//! FTP (RFC 959): the greeting begins as SMTP's does, so it takes a word in it or the client's
//! first command to tell them apart.

use super::{Look, begins, mentions};
use crate::record::Service;

/// The server greeted with 220.
const GREETED: u8 = 1;
/// The client sent a command that FTP shares with others (POP3 has USER).
const COMMANDED: u8 = 2;

const COMMANDS: [&[u8]; 8] =
    [b"USER ", b"user ", b"AUTH TLS", b"AUTH SSL", b"FEAT\r\n", b"SYST\r\n", b"OPTS ", b"HOST "];

/// A whole first line that greets.
pub(super) fn greeting(bytes: &[u8]) -> Option<&[u8]> {
    let line = bytes.split(|byte| *byte == b'\n').next()?;
    let whole = line.len() < bytes.len();
    (whole && matches!(line, [b'2', b'2', b'0', b' ' | b'-', ..])).then_some(line)
}

pub(super) fn stream(bytes: &[u8], hints: u8) -> Look {
    if let Some(line) = greeting(bytes) {
        return if mentions(line, b"FTP") || hints & COMMANDED != 0 {
            Look::yes(Service::Ftp)
        } else {
            Look::hint(GREETED)
        };
    }
    if matches!(
        [begins(bytes, b"220 "), begins(bytes, b"220-")],
        [None | Some(true), _] | [_, None | Some(true)]
    ) {
        return Look::more();
    }
    let mut more = false;
    for command in COMMANDS {
        match begins(bytes, command) {
            Some(true) if hints & GREETED != 0 => return Look::yes(Service::Ftp),
            Some(true) => return Look::hint(COMMANDED),
            None => more = true,
            Some(false) => {}
        }
    }
    Look { more, ..Look::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greeting_and_command_in_either_order() {
        assert_eq!(stream(b"220 FTP server ready\r\n", 0).service, Some(Service::Ftp));
        let greeted = stream(b"220 welcome\r\n", 0);
        assert!(greeted.service.is_none());
        assert_eq!(stream(b"USER me\r\n", greeted.hints).service, Some(Service::Ftp));
        let commanded = stream(b"USER me\r\n", 0);
        assert_eq!(stream(b"220 welcome\r\n", commanded.hints).service, Some(Service::Ftp));
        assert!(stream(b"22", 0).more && stream(b"220 wel", 0).more && stream(b"US", 0).more);
        assert!(!stream(b"+OK POP3\r\n", 0).more);
    }
}
