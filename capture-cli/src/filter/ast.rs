//! A filter as a tree, and how it is printed.
//!
//! The printed form is canonical: reading it back gives the same tree.

use std::fmt;
use std::net::IpAddr;

use capture_flow::key::MacAddr;
use capture_flow::record::{ConnState, Service};

/// A question about one session.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// All of them; with none, everything matches.
    And(Vec<Expr>),
    /// Any of them.
    Or(Vec<Expr>),
    /// The opposite.
    Not(Box<Expr>),
    /// A single test.
    Test(Test),
}

/// Which end of the session a test looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// Either end.
    #[default]
    Any,
    /// The originator (`src`, `orig`).
    Orig,
    /// The responder (`dst`, `resp`).
    Resp,
    /// Both ends (`src and dst`).
    Both,
}

/// An IP network; a host is one with every bit given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    addr: IpAddr,
    prefix_len: u8,
}

impl Net {
    /// One address.
    #[must_use]
    pub fn host(addr: IpAddr) -> Self {
        Self { addr, prefix_len: Self::width(addr) }
    }

    /// The network of `addr` with so many leading bits; `None` where the address has fewer.
    /// Bits behind the prefix are cleared.
    #[must_use]
    pub fn new(addr: IpAddr, prefix_len: u8) -> Option<Self> {
        if prefix_len > Self::width(addr) {
            return None;
        }
        Some(Self { addr: Self::masked(addr, prefix_len), prefix_len })
    }

    /// The lowest address.
    #[must_use]
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// Leading bits that count.
    #[must_use]
    pub fn prefix_len(&self) -> u8 {
        self.prefix_len
    }

    /// Whether it is a single address.
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.prefix_len == Self::width(self.addr)
    }

    /// Whether the address lies inside. IPv4 and IPv6 never match each other.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.addr.is_ipv4() == addr.is_ipv4() && Self::masked(addr, self.prefix_len) == self.addr
    }

    fn width(addr: IpAddr) -> u8 {
        if addr.is_ipv4() { 32 } else { 128 }
    }

    fn masked(addr: IpAddr, prefix_len: u8) -> IpAddr {
        match addr {
            IpAddr::V4(v4) => {
                let host_bits = 32u32.saturating_sub(u32::from(prefix_len));
                let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
                IpAddr::V4((u32::from(v4) & mask).into())
            }
            IpAddr::V6(v6) => {
                let host_bits = 128u32.saturating_sub(u32::from(prefix_len));
                let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
                IpAddr::V6((u128::from(v6) & mask).into())
            }
        }
    }
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cmp {
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `=`
    Eq,
    /// `!=`
    Ne,
    /// `>=`
    Ge,
    /// `>`
    Gt,
}

impl Cmp {
    /// Whether `left CMP right` holds.
    #[must_use]
    pub fn holds<T: PartialOrd + Copy>(self, left: T, right: T) -> bool {
        match self {
            Self::Lt => left < right,
            Self::Le => left <= right,
            Self::Eq => left == right,
            Self::Ne => left != right,
            Self::Ge => left >= right,
            Self::Gt => left > right,
        }
    }

    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lt => "<",
            Self::Le => "<=",
            Self::Eq => "=",
            Self::Ne => "!=",
            Self::Ge => ">=",
            Self::Gt => ">",
        }
    }
}

/// A count that a session has per end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Payload bytes (`orig_bytes`, `resp_bytes`).
    Bytes,
    /// Packets.
    Pkts,
}

/// Where a session goes, seen from the configured local networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locality {
    /// Originator outside, responder inside.
    Inbound,
    /// Originator inside, responder outside.
    Outbound,
    /// Both inside.
    Internal,
    /// Both outside.
    External,
}

impl Locality {
    /// Every one of them.
    pub const ALL: [Self; 4] = [Self::Inbound, Self::Outbound, Self::Internal, Self::External];

    /// The keyword.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
            Self::Internal => "internal",
            Self::External => "external",
        }
    }

    /// Whether originator and responder are local in such a session.
    #[must_use]
    pub const fn ends(self) -> (bool, bool) {
        match self {
            Self::Inbound => (false, true),
            Self::Outbound => (true, false),
            Self::Internal => (true, true),
            Self::External => (false, false),
        }
    }
}

/// A text column that is compared as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextColumn {
    /// The session's identity.
    Uid,
    /// Interface.
    Iface,
    /// Sensor.
    Sensor,
}

impl TextColumn {
    /// The keyword.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Uid => "uid",
            Self::Iface => "iface",
            Self::Sensor => "sensor",
        }
    }
}

/// One test.
#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    /// `host`, `net`.
    Net(End, Net),
    /// `port`, `portrange`: first and last port.
    Port(End, u16, u16),
    /// `ip`.
    Ipv4,
    /// `ip6`.
    Ipv6,
    /// `icmp`: the protocol column's `icmp`, of either IP version, as in Zeek.
    Icmp,
    /// `proto N` and the names of IP protocols.
    IpProto(u8),
    /// `ether proto N`, `arp`: sessions of frames without IP.
    EtherProto(u16),
    /// `ether host`.
    Mac(End, MacAddr),
    /// `vlan`, `vlan N`: outer or inner tag.
    Vlan(Option<u16>),
    /// `inbound` and friends.
    Locality(Locality),
    /// `state`.
    State(ConnState),
    /// `service`.
    Service(Service),
    /// `bytes`, `pkts`, of one end or (with `Any`) of both together.
    Count(Count, End, Cmp, u64),
    /// `duration`, in nanoseconds.
    Duration(Cmp, i64),
    /// `uid`, `iface`, `sensor`.
    Text(TextColumn, String),
}

impl fmt::Display for End {
    /// With a space behind it, nothing for either end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "",
            Self::Orig => "orig ",
            Self::Resp => "resp ",
            Self::Both => "orig and resp ",
        })
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_host() {
            self.addr.fmt(f)
        } else {
            write!(f, "{}/{}", self.addr, self.prefix_len)
        }
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (parts, word) = match self {
            Self::And(parts) => (parts, " and "),
            Self::Or(parts) => (parts, " or "),
            Self::Not(inner) => {
                f.write_str("not ")?;
                return inner.fmt_as_part(f);
            }
            Self::Test(test) => return test.fmt(f),
        };
        for (number, part) in parts.iter().enumerate() {
            if number > 0 {
                f.write_str(word)?;
            }
            part.fmt_as_part(f)?;
        }
        Ok(())
    }
}

impl Expr {
    /// The expression that every session matches.
    #[must_use]
    pub const fn everything() -> Self {
        Self::And(Vec::new())
    }

    /// Whether it is [`Expr::everything`].
    #[must_use]
    pub fn is_everything(&self) -> bool {
        matches!(self, Self::And(parts) if parts.is_empty())
    }

    /// `and` and `or` bind alike, so inside another expression they always need parentheses.
    fn fmt_as_part(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::And(_) | Self::Or(_) => write!(f, "({self})"),
            Self::Not(_) | Self::Test(_) => write!(f, "{self}"),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(end, net) if net.is_host() => write!(f, "{end}host {net}"),
            Self::Net(end, net) => write!(f, "{end}net {net}"),
            Self::Port(end, first, last) if first == last => write!(f, "{end}port {first}"),
            Self::Port(end, first, last) => write!(f, "{end}portrange {first}-{last}"),
            Self::Ipv4 => f.write_str("ip"),
            Self::Ipv6 => f.write_str("ip6"),
            Self::Icmp => f.write_str("icmp"),
            Self::IpProto(6) => f.write_str("tcp"),
            Self::IpProto(17) => f.write_str("udp"),
            Self::IpProto(58) => f.write_str("icmp6"),
            Self::IpProto(132) => f.write_str("sctp"),
            Self::IpProto(number) => write!(f, "proto {number}"),
            Self::EtherProto(0x0806) => f.write_str("arp"),
            Self::EtherProto(number) => write!(f, "ether proto {number:#06x}"),
            Self::Mac(end, mac) => write!(f, "ether {end}host {mac}"),
            Self::Vlan(None) => f.write_str("vlan"),
            Self::Vlan(Some(id)) => write!(f, "vlan {id}"),
            Self::Locality(locality) => f.write_str(locality.as_str()),
            Self::State(state) => write!(f, "state {}", state.as_str()),
            Self::Service(service) => write!(f, "service {}", service.as_str()),
            Self::Count(Count::Bytes, end, cmp, value) => {
                write!(f, "{end}bytes {} {value}", cmp.as_str())
            }
            Self::Count(Count::Pkts, end, cmp, value) => {
                write!(f, "{end}pkts {} {value}", cmp.as_str())
            }
            Self::Duration(cmp, nanos) => {
                write!(f, "duration {} ", cmp.as_str())?;
                fmt_duration(f, *nanos)
            }
            Self::Text(column, text) => write!(f, "{} \"{text}\"", column.as_str()),
        }
    }
}

fn fmt_duration(f: &mut fmt::Formatter<'_>, nanos: i64) -> fmt::Result {
    const UNITS: [(i64, &str); 4] =
        [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us"), (1, "ns")];
    for (size, unit) in UNITS {
        if nanos % size == 0 {
            return write!(f, "{}{unit}", nanos / size);
        }
    }
    Ok(())
}
