//! Being told when a link changes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use super::netlink::{self, RTM_DELLINK, RTM_NEWLINK};
use super::{Link, LinkError, io_error};

/// The multicast group of changes to links (`RTMGRP_LINK`, `include/uapi/linux/rtnetlink.h`).
const LINK_CHANGES: u32 = 1;
/// The kernel's messages about one link are a few KiB; a cut one is still a sign to look.
const MESSAGE_BYTES: usize = 32 * 1024;

/// What became of a link.
#[derive(Debug)]
pub enum LinkChange {
    /// It is like this now. Its receive queues are those that could be, not those in use.
    Changed(Box<Link>),
    /// It is gone.
    Gone(Box<Link>),
    /// Something was missed: any link may have changed.
    Missed,
}

/// Tells of changes to the links of this network namespace.
///
/// Detaching an XDP program by its link, and a carrier whose loss the kernel reports late, are not
/// told at once or at all: who must know looks at intervals as well.
#[derive(Debug)]
pub struct LinkWatch {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl LinkWatch {
    /// Is told of every change from now on. Needs no privilege.
    ///
    /// # Errors
    /// The kernel's refusal to open or bind the socket.
    pub fn open() -> Result<Self, LinkError> {
        let failed = |error: Errno| io_error("watch for changes of", "the links", error.into());
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)
            .map_err(failed)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, LINK_CHANGES)).map_err(failed)?;
        Ok(Self { socket, buffer: vec![0; MESSAGE_BYTES] })
    }

    /// Hands over what has changed since the last call, in order. Does not wait.
    pub fn changes(&mut self, mut each: impl FnMut(LinkChange)) {
        loop {
            let received =
                rustix::net::recv(&self.socket, self.buffer.as_mut_slice(), RecvFlags::empty());
            let received = match received {
                Ok((received, _)) => received,
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => continue,
                // ENOBUFS: more has changed than the socket could hold.
                Err(Errno::NOBUFS) => {
                    each(LinkChange::Missed);
                    continue;
                }
                Err(_) => {
                    each(LinkChange::Missed);
                    return;
                }
            };
            for message in netlink::messages(self.buffer.get(..received).unwrap_or_default()) {
                each(message.map_or(LinkChange::Missed, |(kind, body)| Self::read(kind, body)));
            }
        }
    }

    /// Bridges and wireless drivers send messages of the same kind that tell little of the link:
    /// of another family, or without its name. They are signs to look.
    fn read(kind: u16, body: &[u8]) -> LinkChange {
        let whole = body.first() == Some(&0);
        match (kind, Link::parse(body).filter(|link| whole && !link.name.is_empty())) {
            (RTM_NEWLINK, Some(link)) => LinkChange::Changed(Box::new(link)),
            (RTM_DELLINK, Some(link)) => LinkChange::Gone(Box::new(link)),
            _ => LinkChange::Missed,
        }
    }
}

impl AsFd for LinkWatch {
    /// Readable when there are changes.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
