//! Interfaces as the kernel sees them.
//!
//! Asked by netlink and never read from `/sys/class/net`: that shows the namespace in which
//! `/sys` was mounted, not the one in which the sensor runs.

mod ethtool;
mod netlink;
mod watch;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

pub use ethtool::Offloads;
use netlink::{attributes, u32_at, u64_at};
pub use watch::{LinkChange, LinkWatch};

/// Why an interface could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No interface of this name here.
    #[error("there is no interface {name} (in this network namespace; `ip link` lists them)")]
    NoSuchInterface {
        /// The name asked for.
        name: String,
    },
    /// The kernel refused.
    #[error("cannot {doing} {name}")]
    Io {
        /// What was being tried.
        doing: &'static str,
        /// On what.
        name: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
}

/// How an XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpHook {
    /// In the driver.
    Native,
    /// In the network stack, for any driver.
    Generic,
    /// In the NIC.
    Offloaded,
}

/// The XDP program of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpAttachment {
    /// Where it runs.
    pub hook: XdpHook,
    /// Its id (`bpftool prog show id …`).
    pub program_id: u32,
}

/// Frames and losses as the driver counts them, since the interface exists (`ip -s -s link`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NicCounters {
    /// Frames received.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames that arrived damaged.
    pub rx_errors: u64,
    /// Frames dropped in the driver or the stack for want of buffers or of a taker.
    pub rx_dropped: u64,
    /// Of the errors: overruns of the NIC's own ring.
    pub rx_over_errors: u64,
    /// Of the errors: overruns of the NIC's FIFO.
    pub rx_fifo_errors: u64,
    /// Frames that the NIC dropped for want of a buffer. In zero-copy mode a sensor that is too
    /// slow shows only here.
    pub rx_missed_errors: u64,
}

/// One interface at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index, in this network namespace.
    pub index: u32,
    /// Largest packet without its Ethernet header, in bytes.
    pub mtu: u32,
    /// Receive queues in use.
    pub rx_queues: u32,
    /// Receive queues that it can have at most.
    pub max_rx_queues: u32,
    /// Administratively up.
    pub up: bool,
    /// The wire carries a signal.
    pub carrier: bool,
    /// How often the carrier went or came.
    pub carrier_changes: u32,
    /// A loopback interface.
    pub loopback: bool,
    /// MAC address, empty for interfaces without.
    pub address: Vec<u8>,
    /// The driver's counters.
    pub counters: NicCounters,
    /// The XDP program that is attached, if there is one.
    pub xdp: Option<XdpAttachment>,
}

impl Link {
    /// Looks an interface up by its name.
    ///
    /// # Errors
    /// [`LinkError::NoSuchInterface`], or the kernel's refusal.
    pub fn by_name(name: &str) -> Result<Self, LinkError> {
        let missing = || LinkError::NoSuchInterface { name: name.to_owned() };
        let socket = rustix::net::socket_with(
            AddressFamily::INET,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|error| io_error("open a socket to look up", name, error.into()))?;
        let index = rustix::net::netdevice::name_to_index(&socket, name).map_err(|_| missing())?;
        Self::by_index(index).map_err(|error| match error {
            LinkError::NoSuchInterface { .. } => missing(),
            other => other,
        })
    }

    /// Looks at an interface whose index is known. One question and one answer, some tens of
    /// microseconds: cheap enough for every second, and it tells whether the XDP program is still
    /// the one we attached.
    ///
    /// # Errors
    /// [`LinkError::NoSuchInterface`] once the interface is gone, or the kernel's refusal.
    pub fn by_index(index: u32) -> Result<Self, LinkError> {
        // struct ifinfomsg: family, padding, type, index, flags, change.
        let mut request = [0_u8; 16];
        request[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut link = None;
        let name = format!("interface {index}");
        let read = |answer: &[u8]| link = Self::parse(answer);
        netlink::ask(netlink::RTM_GETLINK, false, &request, netlink::RTM_NEWLINK, read).map_err(
            |error| match error.raw_os_error() {
                Some(libc::ENODEV) => LinkError::NoSuchInterface { name: name.clone() },
                _ => io_error("look at", &name, error),
            },
        )?;
        let mut link = link.ok_or_else(|| {
            io_error("look at", &name, io::Error::other("the kernel's answer makes no sense"))
        })?;
        // netlink tells how many queues could be, the driver how many are.
        if let Some(in_use) = ethtool::Ethtool::open(&link.name)
            .and_then(|driver| driver.rx_queues())
            .ok()
            .filter(|queues| *queues > 0)
        {
            link.rx_queues = in_use;
        }
        Ok(link)
    }

    /// Whether both are the same interface, however it changed between.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.index == other.index
    }

    /// Whether frames can arrive: it is up, and the wire carries a signal.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.up && self.carrier
    }

    /// Offloads that change frames before the sensor sees them.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        ethtool::Ethtool::open(&self.name).map_or_else(|_| Offloads::default(), |d| d.offloads())
    }

    /// Whether the way to the rest of the world goes through this interface: capturing it would
    /// cut the host off.
    ///
    /// # Errors
    /// The kernel's refusal to list its routes.
    pub fn carries_default_route(&self) -> Result<bool, LinkError> {
        let mut carries = false;
        let read = |route: &[u8]| carries |= default_route_uses(route, self.index);
        // struct rtmsg, all zeros: both families, every table.
        netlink::ask(netlink::RTM_GETROUTE, true, &[0; 12], netlink::RTM_NEWROUTE, read)
            .map_err(|error| io_error("list the routes through", &self.name, error))?;
        Ok(carries)
    }

    /// Whether the interface has this address.
    ///
    /// # Errors
    /// The kernel's refusal to list its addresses.
    pub fn has_address(&self, address: std::net::IpAddr) -> Result<bool, LinkError> {
        const IFA_ADDRESS: u16 = 1;
        const IFA_LOCAL: u16 = 2;
        let bytes = match address {
            std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
            std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let mut has = false;
        // struct ifaddrmsg: family, prefix length, flags, scope, then the interface's index.
        let read = |entry: &[u8]| {
            let mut held = attributes(entry.get(8..).unwrap_or_default());
            has |= u32_at(entry, 4) == Some(self.index)
                && held
                    .any(|(kind, value)| matches!(kind, IFA_ADDRESS | IFA_LOCAL) && value == bytes);
        };
        netlink::ask(netlink::RTM_GETADDR, true, &[0; 8], netlink::RTM_NEWADDR, read)
            .map_err(|error| io_error("list the addresses of", &self.name, error))?;
        Ok(has)
    }

    /// Reads `struct ifinfomsg` and the attributes after it (`include/uapi/linux/if_link.h`).
    fn parse(message: &[u8]) -> Option<Self> {
        const IFLA_ADDRESS: u16 = 1;
        const IFLA_IFNAME: u16 = 3;
        const IFLA_MTU: u16 = 4;
        const IFLA_STATS64: u16 = 23;
        const IFLA_NUM_RX_QUEUES: u16 = 32;
        const IFLA_CARRIER: u16 = 33;
        const IFLA_CARRIER_CHANGES: u16 = 35;
        const IFLA_XDP: u16 = 43;
        const IFF_UP: u32 = 0x1;
        const IFF_LOOPBACK: u32 = 0x8;

        let flags = u32_at(message, 8)?;
        let mut link = Self {
            name: String::new(),
            index: u32_at(message, 4)?,
            mtu: 0,
            rx_queues: 1,
            max_rx_queues: 1,
            up: flags & IFF_UP != 0,
            carrier: false,
            carrier_changes: 0,
            loopback: flags & IFF_LOOPBACK != 0,
            address: Vec::new(),
            counters: NicCounters::default(),
            xdp: None,
        };
        for (kind, value) in attributes(message.get(16..)?) {
            match kind {
                IFLA_ADDRESS => link.address = value.to_vec(),
                IFLA_IFNAME => {
                    let name = value.split(|byte| *byte == 0).next().unwrap_or_default();
                    link.name = String::from_utf8_lossy(name).into_owned();
                }
                IFLA_MTU => link.mtu = u32_at(value, 0)?,
                IFLA_STATS64 => link.counters = NicCounters::parse(value)?,
                IFLA_NUM_RX_QUEUES => {
                    link.max_rx_queues = u32_at(value, 0)?.max(1);
                    link.rx_queues = link.max_rx_queues;
                }
                IFLA_CARRIER => link.carrier = value.first().is_some_and(|up| *up != 0),
                IFLA_CARRIER_CHANGES => link.carrier_changes = u32_at(value, 0)?,
                IFLA_XDP => link.xdp = XdpAttachment::parse(value),
                _ => {}
            }
        }
        Some(link)
    }
}

impl NicCounters {
    /// Reads `struct rtnl_link_stats64`.
    fn parse(stats: &[u8]) -> Option<Self> {
        let field = |number: usize| u64_at(stats, number * 8);
        Some(Self {
            rx_packets: field(0)?,
            rx_bytes: field(2)?,
            rx_errors: field(4)?,
            rx_dropped: field(6)?,
            rx_over_errors: field(11)?,
            rx_fifo_errors: field(14)?,
            rx_missed_errors: field(15)?,
        })
    }
}

impl XdpAttachment {
    /// Reads the attributes nested in `IFLA_XDP`.
    fn parse(nested: &[u8]) -> Option<Self> {
        const IFLA_XDP_ATTACHED: u16 = 2;
        const IFLA_XDP_PROG_ID: u16 = 4;
        const IFLA_XDP_DRV_PROG_ID: u16 = 5;
        let mut hook = None;
        let mut program_id = None;
        for (kind, value) in attributes(nested) {
            match kind {
                // XDP_ATTACHED_DRV, _SKB, _HW; _MULTI (4) is native beside another one.
                IFLA_XDP_ATTACHED => {
                    hook = match value.first()? {
                        0 => None,
                        2 => Some(XdpHook::Generic),
                        3 => Some(XdpHook::Offloaded),
                        _ => Some(XdpHook::Native),
                    }
                }
                // Where there are two, only the one in the driver can be ours.
                IFLA_XDP_DRV_PROG_ID => program_id = u32_at(value, 0),
                IFLA_XDP_PROG_ID if program_id.is_none() => program_id = u32_at(value, 0),
                _ => {}
            }
        }
        Some(Self { hook: hook?, program_id: program_id.unwrap_or(0) })
    }
}

/// Whether a route message (`struct rtmsg` and its attributes) is a default route through the
/// interface.
fn default_route_uses(route: &[u8], index: u32) -> bool {
    const RTA_OIF: u16 = 4;
    const RTA_MULTIPATH: u16 = 9;
    const RTN_UNICAST: u8 = 1;
    let (Some(prefix), Some(kind)) = (route.get(1), route.get(7)) else { return false };
    if *prefix != 0 || *kind != RTN_UNICAST {
        return false;
    }
    attributes(route.get(12..).unwrap_or_default()).any(|(kind, value)| match kind {
        RTA_OIF => u32_at(value, 0) == Some(index),
        RTA_MULTIPATH => next_hops(value).any(|hop| hop == index),
        _ => false,
    })
}

/// The interfaces of a route with several ways (`struct rtnexthop`: length, flags, hops, index).
fn next_hops(mut rest: &[u8]) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let length = usize::from(netlink::u16_at(rest, 0)?);
        let index = u32_at(rest, 4)?;
        rest = rest.get(length.max(8).next_multiple_of(4)..).unwrap_or_default();
        Some(index)
    })
}

/// Keeps an interface in promiscuous mode. The kernel counts who wants it and takes ours back when
/// the socket closes, however the sensor ends.
#[derive(Debug)]
pub struct Promiscuous {
    _membership: OwnedFd,
}

impl Promiscuous {
    /// Turns promiscuous mode on.
    ///
    /// # Errors
    /// Without CAP_NET_RAW, or once the interface is gone.
    pub fn on(link: &Link) -> Result<Self, LinkError> {
        let failed = |error: io::Error| io_error("turn promiscuous mode on for", &link.name, error);
        // Protocol 0: the socket receives no frame.
        let socket = rustix::net::socket_with(
            AddressFamily::PACKET,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|error| match error {
            Errno::PERM => failed(io::Error::new(
                io::ErrorKind::PermissionDenied,
                crate::privilege::explain_socket(),
            )),
            other => failed(other.into()),
        })?;
        let request = libc::packet_mreq {
            mr_ifindex: link.index.cast_signed(),
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        // SAFETY: the option takes a `packet_mreq` of the given size, which lives for the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_ADD_MEMBERSHIP,
                std::ptr::from_ref(&request).cast(),
                size_of_val(&request) as libc::socklen_t,
            )
        };
        if result < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        Ok(Self { _membership: socket })
    }
}

fn io_error(doing: &'static str, name: &str, source: io::Error) -> LinkError {
    LinkError::Io { doing, name: name.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_there() {
        let link = Link::by_name("lo").unwrap();
        assert_eq!(link.name, "lo");
        assert!(link.loopback && link.rx_queues >= 1, "{link:?}");
        assert!(!link.carries_default_route().unwrap());
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = Link::by_name("no-such-if0").unwrap_err();
        assert!(error.to_string().contains("no-such-if0"), "{error}");
        let error = Link::by_index(u32::MAX >> 1).unwrap_err();
        assert!(matches!(error, LinkError::NoSuchInterface { .. }), "{error:?}");
        let error = Link::by_name("a-name-that-is-far-too-long-for-an-interface").unwrap_err();
        assert!(matches!(error, LinkError::NoSuchInterface { .. }), "{error:?}");
    }

    #[test]
    fn a_default_route_is_one_without_a_prefix_through_the_interface() {
        // struct rtmsg with a prefix length and a type, then RTA_OIF.
        let route = |prefix: u8, kind: u8, oif: u32| {
            let mut bytes = vec![2, prefix, 0, 0, 254, 3, 0, kind, 0, 0, 0, 0, 8, 0, 4, 0];
            bytes.extend_from_slice(&oif.to_ne_bytes());
            bytes
        };
        assert!(default_route_uses(&route(0, 1, 7), 7));
        assert!(!default_route_uses(&route(0, 1, 8), 7), "another interface");
        assert!(!default_route_uses(&route(24, 1, 7), 7), "a network's route");
        assert!(!default_route_uses(&route(0, 7, 7), 7), "unreachable");
        assert!(!default_route_uses(&[2, 0], 7), "cut off");
    }
}
