//! IPv6 extension headers.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::Ipv6HeaderSlice;

use super::bytes::{array, be16, be32, byte};
use super::ip::Place;
use super::transport::proto;
use super::undecodable::Undecodable;

const FRAGMENT_HEADER: usize = 8;
/// Destination option that carries a mobile node's home address (RFC 6275 section 6.3).
const HOME_ADDRESS: u8 = 201;

/// The headers in front of an IPv6 payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain {
    /// The sender: the home address of a mobile node where it says one.
    pub(super) src: Ipv6Addr,
    /// The receiver: the last stop of a routing header that has stops left.
    pub(super) dst: Ipv6Addr,
    /// Protocol of the payload.
    pub(super) next: u8,
    /// Bytes of all headers.
    pub(super) len: usize,
    /// The place of a fragment; its header is the last of the chain then.
    pub(super) fragment: Option<Place>,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{}{}", self.id, self.offset, if self.more { "…" } else { "" })
    }
}

impl Chain {
    /// Reads all extension headers behind the fixed one, which `bytes` begin with.
    pub(super) fn read(fixed: &Ipv6HeaderSlice<'_>, bytes: &[u8]) -> Result<Self, Undecodable> {
        let mut chain = Self {
            src: fixed.source_addr(),
            dst: fixed.destination_addr(),
            next: fixed.next_header().0,
            len: fixed.slice().len(),
            fragment: None,
        };
        chain.extend(bytes)?;
        Ok(chain)
    }

    /// Reads the extension headers at the start of a reassembled payload.
    pub(super) fn resume(
        src: IpAddr,
        dst: IpAddr,
        next: u8,
        payload: &[u8],
    ) -> Result<Self, Undecodable> {
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (src, dst) else {
            return Err(Undecodable::IpVersion);
        };
        let mut chain = Self { src, dst, next, len: 0, fragment: None };
        chain.extend(payload)?;
        Ok(chain)
    }

    /// Follows the chain from `self.len` on. It ends at the first header that is no extension
    /// header, at a fragment header (what follows it may not be here), and at ESP and mobility
    /// headers, whose payload is not readable.
    fn extend(&mut self, bytes: &[u8]) -> Result<(), Undecodable> {
        let (mut routed, mut homed) = (false, false);
        loop {
            let current = self.next;
            let rest = bytes.get(self.len..).ok_or(Undecodable::IpTruncated)?;
            let len = match current {
                proto::HOP_BY_HOP | proto::ROUTING | proto::DEST_OPTIONS => {
                    8 + 8 * usize::from(byte(rest, 1).ok_or(Undecodable::IpTruncated)?)
                }
                proto::FRAGMENT => FRAGMENT_HEADER,
                proto::AH => 8 + 4 * usize::from(byte(rest, 1).ok_or(Undecodable::IpTruncated)?),
                _ => return Ok(()),
            };
            let header = rest.get(..len).ok_or(Undecodable::IpTruncated)?;
            self.next = byte(header, 0).ok_or(Undecodable::IpTruncated)?;
            match current {
                proto::ROUTING if !routed => {
                    if let Some(last_stop) = last_stop(header) {
                        self.dst = last_stop;
                        routed = true;
                    }
                }
                proto::DEST_OPTIONS if !homed => {
                    if let Some(home) = home_address(header) {
                        self.src = home;
                        homed = true;
                    }
                }
                proto::FRAGMENT => {
                    let place = be16(header, 2).ok_or(Undecodable::IpTruncated)?;
                    self.fragment = Some(Place {
                        id: be32(header, 4).ok_or(Undecodable::IpTruncated)?,
                        offset: u32::from(place & 0xfff8),
                        more: place & 1 != 0,
                        repeated: self.len,
                    });
                    self.len += len;
                    return Ok(());
                }
                _ => {}
            }
            self.len += len;
        }
    }
}

/// The address a routing header leads to at last: type 0 (RFC 2460) with whole addresses and
/// type 2 (RFC 6275), while stops are left.
fn last_stop(header: &[u8]) -> Option<Ipv6Addr> {
    let (len, kind, left) = (byte(header, 1)?, byte(header, 2)?, byte(header, 3)?);
    let sound = match kind {
        0 => len >= 2 && len % 2 == 0,
        2 => len == 2,
        _ => false,
    };
    if !sound || left == 0 {
        return None;
    }
    array(header, header.len().checked_sub(16)?).map(Ipv6Addr::from)
}

fn home_address(header: &[u8]) -> Option<Ipv6Addr> {
    let mut at = 2;
    loop {
        match byte(header, at)? {
            // A single byte of padding.
            0 => at += 1,
            option => {
                let len = usize::from(byte(header, at + 1)?);
                if option == HOME_ADDRESS && len == 16 {
                    return array(header, at + 2).map(Ipv6Addr::from);
                }
                at += 2 + len;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(next: u8) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        bytes.extend([1; 16]);
        bytes.extend([2; 16]);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Chain, Undecodable> {
        let fixed = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| Undecodable::IpTruncated)?;
        Chain::read(&fixed, bytes)
    }

    #[test]
    fn a_chain_of_every_kind() {
        let mut bytes = fixed(proto::HOP_BY_HOP);
        bytes.extend([proto::DEST_OPTIONS, 0, 1, 4, 0, 0, 0, 0]);
        bytes.extend([proto::ROUTING, 2, 1, 0, HOME_ADDRESS, 16]);
        bytes.extend([7; 16]);
        bytes.extend([0; 2]);
        bytes.extend([proto::AH, 2, 0, 1, 0, 0, 0, 0]);
        bytes.extend([9; 16]);
        bytes.extend([proto::TCP, 1]);
        bytes.extend([0; 10]);
        let chain = read(&bytes).unwrap();
        assert_eq!(chain.next, proto::TCP);
        assert_eq!(chain.len, bytes.len());
        assert_eq!(chain.src, Ipv6Addr::from([7; 16]));
        assert_eq!(chain.dst, Ipv6Addr::from([9; 16]));
        assert!(chain.fragment.is_none());
        for cut in 0..bytes.len() {
            assert!(read(&bytes[..cut]).is_err(), "{cut} bytes are not the whole chain");
        }
    }

    #[test]
    fn a_routing_header_without_stops_left_changes_nothing() {
        let mut bytes = fixed(proto::ROUTING);
        bytes.extend([proto::UDP, 2, 0, 0, 0, 0, 0, 0]);
        bytes.extend([9; 16]);
        assert_eq!(read(&bytes).unwrap().dst, Ipv6Addr::from([2; 16]));
    }

    #[test]
    fn the_chain_ends_at_a_fragment_header() {
        let mut bytes = fixed(proto::FRAGMENT);
        bytes.extend([proto::DEST_OPTIONS, 0, 0x01, 0x01, 0, 0, 0, 5]);
        let chain = read(&bytes).unwrap();
        let place = chain.fragment.unwrap();
        assert_eq!((place.id, place.offset, place.more, place.repeated), (5, 256, true, 40));
        assert_eq!((chain.next, chain.len), (proto::DEST_OPTIONS, 48));
    }
}
