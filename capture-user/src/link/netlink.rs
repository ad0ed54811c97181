//! The little of rtnetlink that a sensor asks: one interface, the routes, and to be told when a
//! link changes.
//!
//! Written out here rather than taken from a crate, since it is a few requests and one walk over
//! attributes, and the crates bring an asynchronous runtime. Constants and layouts: Linux
//! `include/uapi/linux/{netlink,rtnetlink,if_link}.h`.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
pub(super) const RTM_GETLINK: u16 = 18;
pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_GETADDR: u16 = 22;
pub(super) const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_GETROUTE: u16 = 26;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const HEADER: usize = 16;
/// Nested attributes carry this flag in their type.
const TYPE_MASK: u16 = 0x3fff;

/// Sends one request and hands every answer's body (what follows the netlink header) to `each`.
///
/// # Errors
/// What the kernel answers, or a message that ends too early.
pub(super) fn ask(
    kind: u16,
    dump: bool,
    body: &[u8],
    answer: u16,
    mut each: impl FnMut(&[u8]),
) -> io::Result<()> {
    let socket = open()?;
    let length = u32::try_from(HEADER + body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let flags = NLM_F_REQUEST | if dump { NLM_F_DUMP } else { 0 };
    let mut request = Vec::with_capacity(HEADER + body.len());
    request.extend_from_slice(&length.to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(&flags.to_ne_bytes());
    request.extend_from_slice(&1_u32.to_ne_bytes()); // sequence: one request to a socket
    request.extend_from_slice(&0_u32.to_ne_bytes()); // port: the kernel's choice
    request.extend_from_slice(body);
    rustix::net::sendto(&socket, &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;

    // A dump's messages are at most 32 KiB, however many interfaces there are.
    let mut buffer = vec![0_u8; 64 * 1024];
    loop {
        let (received, _) = rustix::net::recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        for message in messages(buffer.get(..received).unwrap_or_default()) {
            let (kind, message) = message?;
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code = u32_at(message, 0).ok_or_else(cut)?.cast_signed();
                    return match code {
                        0 => Ok(()),
                        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                    };
                }
                found if found == answer => {
                    each(message);
                    if !dump {
                        return Ok(());
                    }
                }
                _ => {}
            }
        }
    }
}

/// Walks over the messages of one datagram: (type, body). An error is the last item.
pub(super) fn messages(mut rest: &[u8]) -> impl Iterator<Item = io::Result<(u16, &[u8])>> {
    std::iter::from_fn(move || {
        let (header, _) = rest.split_at_checked(HEADER)?;
        let length = u32_at(header, 0).unwrap_or(0) as usize;
        let kind = u16_at(header, 4).unwrap_or(0);
        let message = rest.get(HEADER..length);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        if message.is_none() {
            rest = &[];
        }
        Some(message.map(|message| (kind, message)).ok_or_else(cut))
    })
}

fn open() -> io::Result<OwnedFd> {
    // Protocol 0 is NETLINK_ROUTE. A socket for each question: the answers of one can never be
    // taken for those of another, and it follows the thread into its network namespace.
    Ok(rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "a netlink message is cut off")
}

/// Walks over attributes: (type, value). Ends at the first that does not fit.
pub(super) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_end_where_the_bytes_do() {
        let mut bytes = Vec::new();
        for (kind, body) in [(RTM_NEWLINK, &[1_u8, 2, 3][..]), (RTM_DELLINK, &[4; 8])] {
            bytes.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&[0; 10]);
            bytes.extend_from_slice(body);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let whole: Vec<_> = messages(&bytes).map(Result::unwrap).collect();
        assert_eq!(whole, [(RTM_NEWLINK, &[1, 2, 3][..]), (RTM_DELLINK, &[4; 8][..])]);
        for cut in 0..bytes.len() {
            let some: Vec<_> = messages(&bytes[..cut]).map_while(Result::ok).collect();
            assert_eq!(some, whole[..some.len()], "cut at {cut}");
        }
        // A length shorter than its own header must not be walked for ever.
        assert_eq!(messages(&[0; 64]).count(), 1);
    }

    #[test]
    fn attributes_end_where_the_bytes_do() {
        let mut bytes = Vec::new();
        for (kind, value) in [(3_u16, &b"lo\0"[..]), (0x8000 | 43, &[1, 2, 3, 4][..])] {
            bytes.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let whole: Vec<_> = attributes(&bytes).collect();
        assert_eq!(whole, [(3, &b"lo\0"[..]), (43, &[1, 2, 3, 4][..])]);
        for cut in 0..bytes.len() {
            let some: Vec<_> = attributes(&bytes[..cut]).collect();
            assert_eq!(some, whole[..some.len()], "cut at {cut}");
            assert!(some.len() < 2);
        }
        // A length shorter than its own header must not be walked for ever.
        assert_eq!(attributes(&[0, 0, 0, 0, 0, 0, 0, 0]).count(), 0);
    }
}
