//! What only ethtool's ioctl tells: how many queues are in use, and which offloads change frames.
//!
//! Layouts and numbers: Linux `include/uapi/linux/ethtool.h`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;
const ETH_FLAG_LRO: u32 = 1 << 15;

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// `struct ethtool_value`.
#[repr(C)]
#[derive(Default)]
struct Value {
    command: u32,
    data: u32,
}

/// Offloads that make the captured frames differ from those on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// The NIC takes the VLAN tag out of received frames (`rxvlan`).
    pub rx_vlan: bool,
    /// The NIC merges received TCP segments (`lro`).
    pub lro: bool,
    /// The kernel merges received segments (`gro`): after native XDP, before generic XDP.
    pub gro: bool,
}

/// A door to the driver of one interface.
pub(super) struct Ethtool {
    socket: OwnedFd,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl Ethtool {
    /// # Errors
    /// A name that no interface can have, or no socket.
    pub(super) fn open(interface: &str) -> io::Result<Self> {
        let mut name = [0; libc::IFNAMSIZ];
        if interface.len() >= name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in name.iter_mut().zip(interface.bytes()) {
            *to = from.cast_signed();
        }
        let socket = rustix::net::socket_with(
            AddressFamily::INET,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok(Self { socket, name })
    }

    /// Receive queues in use; an error where the driver does not tell.
    pub(super) fn rx_queues(&self) -> io::Result<u32> {
        let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
        self.ask(&mut channels)?;
        Ok(channels.rx.saturating_add(channels.combined))
    }

    /// Offloads; those that the driver does not tell are off.
    pub(super) fn offloads(&self) -> Offloads {
        let value = |command| {
            let mut value = Value { command, data: 0 };
            self.ask(&mut value).map_or(0, |()| value.data)
        };
        let flags = value(ETHTOOL_GFLAGS);
        Offloads {
            rx_vlan: flags & ETH_FLAG_RXVLAN != 0,
            lro: flags & ETH_FLAG_LRO != 0,
            gro: value(ETHTOOL_GGRO) != 0,
        }
    }

    fn ask<T: Question>(&self, question: &mut T) -> io::Result<()> {
        // SAFETY: `ifreq` is plain data for which all zeros is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name = self.name;
        request.ifr_ifru.ifru_data = std::ptr::from_mut(question).cast();
        let socket = self.socket.as_raw_fd();
        // SAFETY: SIOCETHTOOL writes an answer of the size that belongs to the command at the start
        // of `question`, live for the call; only structures of exactly that size are a `Question`.
        let result = unsafe { libc::ioctl(socket, libc::SIOCETHTOOL as _, &mut request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// A structure that an ethtool command reads and fills.
trait Question {}
impl Question for Channels {}
impl Question for Value {}
