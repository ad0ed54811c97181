//! Whether a session matches: yes, no, or maybe.
//!
//! An answer that is to prove something must not call `no` what could have been `yes`. What
//! leaves a test open:
//!
//! - **The originator was guessed** (`direction_certain` is false). The whole filter is asked
//!   twice, as logged and with the ends swapped; where the answers differ, it is maybe.
//! - **`service` is null.** Nothing was recognised by content. That is `no` only if no payload
//!   was seen, else maybe: the sensor may have missed the telling bytes.
//! - **Fragments** of datagrams that never became complete: their ports, their service, and what
//!   session they belonged to are not known. Only addresses, protocol and link are certain.
//! - **Addresses and IP protocol** of frames that announce IP but could not be decoded.
//! - **Payload bytes** where Zeek leaves them unset: anything from 0 to the IP bytes.
//! - **Fragments that contradict each other** (`fragment_overlap`): what the receiver put together
//!   may be another protocol, between other ports, than what is in the row. Addresses are certain.
//! - **Both ends began it**: a TCP session with a SYN, or a SYN-ACK, from either side is asked as if
//!   the originator had been guessed.
//! - **Tags, MAC addresses and the interface** are those of the session's first frame. Where it has
//!   more, and the answer is to prove something, only `yes` is certain.
//! - **States, totals and durations** of sessions put together from two halves that leave it open
//!   (`join_certain` is false): more than one session may lie behind the row.
//! - **inbound, outbound, internal, external** where no local networks were configured.
//!
//! Totals and states are those of the row, that is, so far for a session that lives. Sessions
//! without IP (ARP and others) are `no` for questions about IP addresses.

use std::net::IpAddr;

use capture_flow::key::{Address, Protocol};
use capture_flow::record::Service;

use super::ast::{Cmp, Count, End, Expr, Locality, Net, Test, TextColumn};
use crate::row::{Row, RowEnd};

/// Kleene's third value beside true and false.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Truth {
    /// Certainly not.
    False,
    /// Cannot be told from the row.
    Maybe,
    /// Certainly.
    True,
}

impl Truth {
    /// Both hold.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        self.min(other)
    }

    /// At least one holds.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        self.max(other)
    }

    /// The same in every case, or maybe.
    #[must_use]
    pub(crate) fn agree(self, other: Self) -> Self {
        if self == other { self } else { Self::Maybe }
    }
}

impl std::ops::Not for Truth {
    type Output = Self;
    fn not(self) -> Self {
        match self {
            Self::False => Self::True,
            Self::Maybe => Self::Maybe,
            Self::True => Self::False,
        }
    }
}

impl From<bool> for Truth {
    fn from(value: bool) -> Self {
        if value { Self::True } else { Self::False }
    }
}

/// What a row is not trusted in, beyond what it says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Doubt {
    /// Which end began the session.
    pub direction: bool,
    /// Whether the row has all of the session: it may go on, or may have gone on where nobody
    /// saw it.
    pub goes_on: bool,
    /// Whether frames behind the first came with the same tags, MAC addresses and interface.
    pub link: bool,
}

/// Something that tests can be asked of.
pub(crate) trait Subject {
    /// Whether it passes one test.
    fn test(&self, test: &Test) -> Truth;
}

impl Expr {
    /// Whether the session matches.
    #[must_use]
    pub fn matches(&self, row: &Row) -> Truth {
        self.judge(row, Doubt::default())
    }

    /// Whether the session matches, doubting the row.
    #[must_use]
    pub fn judge(&self, row: &Row, doubt: Doubt) -> Truth {
        let goes_on = doubt.goes_on;
        let link = doubt.link && row.frames > 1;
        let as_logged = View { row, orig: &row.orig, resp: &row.resp, goes_on, link };
        let truth = self.eval(&as_logged);
        if row.direction_certain && !doubt.direction && !both_began(row) {
            return truth;
        }
        let swapped = View { row, orig: &row.resp, resp: &row.orig, goes_on, link };
        truth.agree(self.eval(&swapped))
    }

    /// The answer of one subject.
    pub(crate) fn eval(&self, subject: &impl Subject) -> Truth {
        match self {
            Self::And(parts) => parts.iter().fold(Truth::True, |truth, part| match truth {
                Truth::False => truth,
                _ => truth.and(part.eval(subject)),
            }),
            Self::Or(parts) => parts.iter().fold(Truth::False, |truth, part| match truth {
                Truth::True => truth,
                _ => truth.or(part.eval(subject)),
            }),
            Self::Not(inner) => !inner.eval(subject),
            Self::Test(test) => subject.test(test),
        }
    }
}

/// A row with its ends in one of the two orders.
struct View<'a> {
    row: &'a Row,
    orig: &'a RowEnd,
    resp: &'a RowEnd,
    goes_on: bool,
    /// The row may not tell of every frame's link layer.
    link: bool,
}

impl Subject for View<'_> {
    fn test(&self, test: &Test) -> Truth {
        match test {
            Test::Net(end, net) => self.ends(*end, |side| self.address(side, net)),
            Test::Port(end, first, last) => self.ends(*end, |side| self.port(side, *first, *last)),
            Test::Ipv4 => self.ip_version(IpAddr::is_ipv4),
            Test::Ipv6 => self.ip_version(IpAddr::is_ipv6),
            Test::Icmp => self.ip_protocol(|number| number == 1 || number == 58),
            Test::IpProto(wanted) => self.ip_protocol(|number| number == *wanted),
            Test::EtherProto(wanted) => (self.row.protocol == Protocol::Ether(*wanted)).into(),
            Test::Mac(end, mac) => self.ends(*end, |side| match side.addr {
                Address::Ip(_) => self.first_frames(side.l2_addr == Some(*mac)),
                Address::Mac(own) => (own == *mac).into(),
            }),
            Test::Vlan(None) => self.first_frames(self.row.vlan.is_some()),
            Test::Vlan(Some(id)) => {
                self.first_frames(self.row.vlan == Some(*id) || self.row.inner_vlan == Some(*id))
            }
            Test::Locality(locality) => self.locality(*locality),
            Test::State(_) | Test::Count(..) | Test::Duration(..)
                if self.row.is_fragments_only()
                    || !self.row.join_certain
                    || self.row.fragment_overlap =>
            {
                Truth::Maybe
            }
            Test::State(_) if self.goes_on => Truth::Maybe,
            Test::State(state) => (*self.row.conn_state == *state.as_str()).into(),
            Test::Service(service) => self.service(*service),
            Test::Count(count, end, cmp, value) => self.count(*count, *end, *cmp, *value),
            Test::Duration(cmp, nanos) => {
                // Zeek leaves a duration of no time unset.
                let so_far = (self.row.duration.unwrap_or(0.0) * 1e9).round();
                let wanted = *nanos as f64;
                if self.goes_on {
                    return in_range(*cmp, so_far, f64::INFINITY, wanted);
                }
                cmp.holds(so_far, wanted).into()
            }
            Test::Text(column, wanted) => match column {
                TextColumn::Uid => (*self.row.uid == **wanted).into(),
                TextColumn::Iface => self.first_frames(*self.row.iface == **wanted),
                TextColumn::Sensor => (*self.row.sensor == **wanted).into(),
            },
        }
    }
}

impl View<'_> {
    fn ends(&self, end: End, test: impl Fn(&RowEnd) -> Truth) -> Truth {
        match end {
            End::Any => test(self.orig).or(test(self.resp)),
            End::Both => test(self.orig).and(test(self.resp)),
            End::Orig => test(self.orig),
            End::Resp => test(self.resp),
        }
    }

    /// The answer to a question about the link of every frame, where the row has the first one's.
    fn first_frames(&self, truth: bool) -> Truth {
        if self.link && !truth { Truth::Maybe } else { truth.into() }
    }

    /// The answer to a question about IP for a session without it.
    fn without_ip(&self) -> Truth {
        if self.row.may_hide_ip() { Truth::Maybe } else { Truth::False }
    }

    fn address(&self, side: &RowEnd, net: &Net) -> Truth {
        match side.addr {
            Address::Ip(addr) => net.contains(addr).into(),
            Address::Mac(_) => self.without_ip(),
        }
    }

    fn ip_version(&self, is: impl Fn(&IpAddr) -> bool) -> Truth {
        match (&self.orig.addr, self.row.protocol) {
            (Address::Ip(addr), _) => is(addr).into(),
            // The EtherType names the version even where the rest could not be decoded.
            (_, Protocol::Ether(0x0800)) => is(&IpAddr::from([0; 4])).into(),
            (_, Protocol::Ether(0x86dd)) => is(&IpAddr::from([0; 16])).into(),
            _ => self.without_ip(),
        }
    }

    fn ip_protocol(&self, is: impl Fn(u8) -> bool) -> Truth {
        match self.row.protocol {
            _ if self.row.fragment_overlap => Truth::Maybe,
            Protocol::Ip(number) => is(number).into(),
            Protocol::Ether(_) => self.without_ip(),
        }
    }

    fn port(&self, side: &RowEnd, first: u16, last: u16) -> Truth {
        if self.row.fragment_overlap {
            return Truth::Maybe;
        }
        if !self.row.has_ports() {
            return self.without_ip();
        }
        if self.row.is_fragments_only() {
            return Truth::Maybe;
        }
        (first..=last).contains(&side.port).into()
    }

    fn locality(&self, locality: Locality) -> Truth {
        let (orig, resp) = locality.ends();
        let end = |side: &RowEnd, wanted: bool| match (side.local, side.addr) {
            (Some(local), _) => Truth::from(local == wanted),
            (None, Address::Ip(_)) => Truth::Maybe,
            (None, Address::Mac(_)) => self.without_ip(),
        };
        end(self.orig, orig).and(end(self.resp, resp))
    }

    fn service(&self, wanted: Service) -> Truth {
        match &self.row.service {
            _ if self.row.fragment_overlap => Truth::Maybe,
            // Several may be listed, as Zeek does.
            Some(service) if service.split(',').any(|one| one == wanted.as_str()) => Truth::True,
            _ if self.goes_on && self.row.has_ports() => Truth::Maybe,
            Some(_) => Truth::False,
            None if self.row.may_hide_ip() => Truth::Maybe,
            None if self.row.has_ports() && self.row.is_fragments_only() => Truth::Maybe,
            None if !self.row.has_ports() || self.no_payload() => Truth::False,
            None => Truth::Maybe,
        }
    }

    /// Whether the session certainly carried no payload.
    fn no_payload(&self) -> bool {
        let row = self.row;
        if row.missed_bytes > 0 {
            return false;
        }
        match row.protocol {
            // `d` is a packet with payload, `g` a gap where some was lost.
            Protocol::Ip(6) => !row.history.contains(['d', 'D', 'g', 'G', 't', 'T']),
            _ => {
                let (none, some) = self.bytes(End::Any);
                none == 0 && some == 0
            }
        }
    }

    /// The least and most payload bytes that the row admits.
    fn bytes(&self, end: End) -> (u64, u64) {
        let of = |side: &RowEnd| match side.bytes {
            Some(bytes) => (bytes, bytes),
            None => (0, side.ip_bytes),
        };
        self.sum(end, of)
    }

    fn sum(&self, end: End, of: impl Fn(&RowEnd) -> (u64, u64)) -> (u64, u64) {
        match end {
            End::Orig => of(self.orig),
            End::Resp => of(self.resp),
            End::Any | End::Both => {
                let (a, b) = (of(self.orig), of(self.resp));
                (a.0.saturating_add(b.0), a.1.saturating_add(b.1))
            }
        }
    }

    fn count(&self, count: Count, end: End, cmp: Cmp, value: u64) -> Truth {
        let (least, most) = match count {
            Count::Bytes => self.bytes(end),
            Count::Pkts => self.sum(end, |side| (side.pkts, side.pkts)),
        };
        in_range(cmp, least, if self.goes_on { u64::MAX } else { most }, value)
    }
}

/// Whether a number compares so that is known to lie between two.
fn in_range<T: PartialOrd + Copy>(cmp: Cmp, least: T, most: T, value: T) -> Truth {
    if least == most {
        return cmp.holds(least, value).into();
    }
    // Over a range an ordering is settled by its ends; equality only by falling outside.
    match cmp {
        Cmp::Eq | Cmp::Ne if least <= value && value <= most => Truth::Maybe,
        Cmp::Eq => Truth::False,
        Cmp::Ne => Truth::True,
        _ => Truth::from(cmp.holds(least, value)).agree(cmp.holds(most, value).into()),
    }
}

/// Whether both ends of a TCP session began it, or both answered: one of them may be somebody else
/// who wrote the other's address.
fn both_began(row: &Row) -> bool {
    let tcp = row.protocol == Protocol::TCP;
    let both = |upper, lower| row.history.contains(upper) && row.history.contains(lower);
    tcp && (both('S', 's') || both('H', 'h'))
}
