//! NTP (RFC 5905). The header has no magic number, so every field must make sense.

use crate::decode::bytes::{be32, byte};
use crate::record::Service;

/// 2000-01-01 in NTP's first era; later eras begin at 0 again in 2036.
const YEAR_2000: u32 = 3_155_673_600;
const YEAR_2060_NEXT_ERA: u32 = 763_000_000;

pub(super) fn datagram(bytes: &[u8]) -> Option<Service> {
    // Without extensions, or with a 16, 20 or 32 byte digest and its key number.
    if !matches!(bytes.len(), 48 | 68 | 72 | 84) {
        return None;
    }
    let first = byte(bytes, 0)?;
    let (version, mode) = ((first >> 3) & 7, first & 7);
    let stratum = byte(bytes, 1)?;
    let poll = byte(bytes, 2)? as i8;
    let precision = byte(bytes, 3)? as i8;
    if !(1..=4).contains(&version) || stratum > 16 || !(-6..=17).contains(&poll) || precision > 0 {
        return None;
    }
    let transmitted = be32(bytes, 40)?;
    let plausible = |time: u32| time >= YEAR_2000 || (1..YEAR_2060_NEXT_ERA).contains(&time);
    let sound = match mode {
        // Symmetric peers, servers and broadcasters tell the time.
        1 | 2 | 4 | 5 => plausible(transmitted) && root_is_near(bytes),
        // Clients may hide theirs behind a random number, but then everything else is empty.
        3 => {
            transmitted != 0
                && (plausible(transmitted) || bytes.get(4..40)?.iter().all(|byte| *byte == 0))
                && root_is_near(bytes)
        }
        _ => false,
    };
    sound.then_some(Service::Ntp)
}

/// Delay and dispersion to the root, in units of 1/65536 s, are at most 16 s (MAXDISP), doubled
/// to be lenient.
fn root_is_near(bytes: &[u8]) -> bool {
    let limit = 32 << 16;
    be32(bytes, 4).is_some_and(|delay| delay <= limit)
        && be32(bytes, 8).is_some_and(|dispersion| dispersion <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(first: u8, transmitted: u32) -> [u8; 48] {
        let mut bytes = [0; 48];
        bytes[0] = first;
        bytes[2] = 6;
        bytes[3] = 0xec;
        bytes[40..44].copy_from_slice(&transmitted.to_be_bytes());
        bytes
    }

    #[test]
    fn clients_and_servers() {
        assert_eq!(datagram(&packet(0x23, 0xe000_0000)), Some(Service::Ntp));
        assert_eq!(datagram(&packet(0x24, 0xe000_0000)), Some(Service::Ntp));
        // A random transmit time in an otherwise empty request.
        assert_eq!(datagram(&packet(0x23, 0x5000_0000)), Some(Service::Ntp));
        assert_eq!(datagram(&packet(0x24, 0x5000_0000)), None);
        assert_eq!(datagram(&packet(0x23, 0)), None);
        assert_eq!(datagram(&packet(0x26, 0xe000_0000)), None);
        assert_eq!(datagram(&packet(0x23, 0xe000_0000)[..47]), None);
    }
}
