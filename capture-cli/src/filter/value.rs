//! Identifiers of a filter: addresses, ports, protocols, names.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use capture_flow::key::MacAddr;
use capture_flow::record::{ConnState, Service};

use super::ast::{End, Expr, Net, Test, TextColumn};
use super::error::{FilterError, nearest};
use super::names;

/// What an identifier is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An address or a network, whichever it looks like.
    Address,
    Host,
    Net,
    Port,
    PortRange,
    Mac,
    Proto,
    EtherProto,
    Vlan,
    State,
    Service,
    Text(TextColumn),
}

impl Kind {
    /// What is expected, for messages.
    pub(super) fn what(&self) -> &'static str {
        match self {
            Self::Address => "an address",
            Self::Host => "a host's address",
            Self::Net => "a network",
            Self::Port => "a port",
            Self::PortRange => "a range of ports",
            Self::Mac => "a MAC address",
            Self::Proto => "a protocol",
            Self::EtherProto => "an EtherType",
            Self::Vlan => "a VLAN id",
            Self::State => "a state",
            Self::Service => "a service",
            Self::Text(TextColumn::Uid) => "a session's uid",
            Self::Text(TextColumn::Iface) => "an interface",
            Self::Text(TextColumn::Sensor) => "a sensor",
        }
    }
}

/// What a word without any qualifier must be, if it is an identifier at all.
pub(super) fn guess(word: &str) -> Option<Kind> {
    let address = word.split('/').next().unwrap_or(word);
    if address.parse::<IpAddr>().is_ok() {
        Some(Kind::Address)
    } else if mac(word).is_some() {
        Some(Kind::Mac)
    } else if is_uid(word) {
        Some(Kind::Text(TextColumn::Uid))
    } else {
        None
    }
}

/// Whether a word looks like a session's identity: `C` and 16 or 17 base62 digits, among which
/// there need not be a numeral. No keyword is that long.
#[must_use]
pub fn is_uid(word: &str) -> bool {
    (17..=18).contains(&word.len())
        && word.starts_with('C')
        && word.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// The test that an identifier asks for.
pub(super) fn test(
    kind: &Kind,
    end: End,
    text: &str,
    span: &Range<usize>,
) -> Result<Expr, FilterError> {
    let wrong = || FilterError::new(span.clone(), format!("`{text}` is not {}", kind.what()));
    let test = match kind {
        Kind::Address if text.contains('/') => return net(end, text, span),
        Kind::Address | Kind::Host => match text.parse::<IpAddr>() {
            Ok(address) => Test::Net(end, Net::host(address)),
            Err(_) => return Err(not_an_address(text, span, wrong())),
        },
        Kind::Net => return net(end, text, span),
        Kind::Port => {
            let port = port(text).ok_or_else(|| not_a_port(text, wrong()))?;
            Test::Port(end, port, port)
        }
        Kind::PortRange => {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (Some(first), Some(last)) = (port(first), port(last)) else {
                return Err(wrong().help("for example `portrange 6000-6010`"));
            };
            if first > last {
                return Err(wrong().help(format!("did you mean `{last}-{first}`?")));
            }
            Test::Port(end, first, last)
        }
        Kind::Mac => Test::Mac(
            end,
            mac(text).ok_or_else(|| wrong().help("for example `ether host 02:00:00:aa:bb:cc`"))?,
        ),
        Kind::Proto => return proto(text).ok_or_else(|| not_a_protocol(text, wrong())),
        Kind::EtherProto => {
            let number = names::whole(text).and_then(|n| u16::try_from(n).ok());
            return match number.or_else(|| names::number(&names::ETHER_TYPES, text)) {
                Some(number) => Ok(ether_proto(number)),
                None if text.eq_ignore_ascii_case("ip") => Ok(Expr::Test(Test::Ipv4)),
                None if text.eq_ignore_ascii_case("ip6") => Ok(Expr::Test(Test::Ipv6)),
                None => Err(wrong().help("for example `ether proto 0x88cc` or `ether proto lldp`")),
            };
        }
        Kind::Vlan => match names::whole(text) {
            Some(id) if id < 4096 => Test::Vlan(Some(id as u16)),
            _ => return Err(wrong().help("a VLAN id is a number from 0 to 4095")),
        },
        Kind::State => {
            let state = ConnState::ALL.into_iter().find(|s| s.as_str().eq_ignore_ascii_case(text));
            Test::State(state.ok_or_else(|| {
                let all: Vec<_> = ConnState::ALL.iter().map(|s| s.as_str()).collect();
                wrong().help(format!("the states are {}", all.join(" ")))
            })?)
        }
        Kind::Service => Test::Service(service(text).ok_or_else(|| {
            let all: Vec<_> = Service::ALL.iter().map(|s| s.as_str()).collect();
            wrong().help(format!("recognised by content are {}", all.join(" ")))
        })?),
        Kind::Text(column) => Test::Text(*column, text.to_owned()),
    };
    Ok(Expr::Test(test))
}

/// `net ADDRESS mask MASK`.
pub(super) fn masked(
    text: &str,
    mask: IpAddr,
    span: Range<usize>,
    end: End,
) -> Result<Expr, FilterError> {
    let (Ok(IpAddr::V4(address)), IpAddr::V4(mask)) = (text.parse(), mask) else {
        return Err(FilterError::new(span, "a mask needs IPv4 addresses on both sides")
            .help("write `net ADDRESS/BITS`"));
    };
    let bits = u32::from(mask);
    if bits.leading_ones() + bits.trailing_zeros() < 32 {
        return Err(FilterError::new(span, format!("{mask} is no mask: its bits have a hole")));
    }
    checked_net(end, IpAddr::V4(address), bits.leading_ones() as u8, &span)
}

fn net(end: End, text: &str, span: &Range<usize>) -> Result<Expr, FilterError> {
    let wrong = || {
        FilterError::new(span.clone(), format!("`{text}` is not a network"))
            .help("for example `net 10.0.0.0/8`, `net 192.168` or `net 2001:db8::/32`")
    };
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| wrong())?)),
        None => (text, None),
    };
    if let Ok(address) = address.parse::<IpAddr>() {
        let whole = if address.is_ipv4() { 32 } else { 128 };
        return checked_net(end, address, bits.unwrap_or(whole), span);
    }
    // pcap's short forms: one, two or three octets, eight bits each.
    let mut octets = [0u8; 4];
    let parts: Vec<&str> = address.split('.').collect();
    if parts.len() > 3 {
        return Err(wrong());
    }
    for (slot, part) in octets.iter_mut().zip(&parts) {
        *slot = part.parse().map_err(|_| wrong())?;
    }
    let bits = bits.unwrap_or(8 * parts.len() as u8);
    checked_net(end, IpAddr::V4(Ipv4Addr::from(octets)), bits, span)
}

fn checked_net(
    end: End,
    address: IpAddr,
    bits: u8,
    span: &Range<usize>,
) -> Result<Expr, FilterError> {
    let Some(net) = Net::new(address, bits) else {
        return Err(FilterError::new(span.clone(), format!("/{bits} is longer than the address")));
    };
    if net.addr() != address {
        return Err(FilterError::new(span.clone(), "bits are set behind the network's prefix")
            .help(format!("did you mean `net {net}` or `host {address}`?")));
    }
    Ok(Expr::Test(Test::Net(end, net)))
}

fn not_an_address(text: &str, span: &Range<usize>, wrong: FilterError) -> FilterError {
    if text.split_once('/').is_some_and(|(a, _)| a.parse::<IpAddr>().is_ok()) {
        wrong.help(format!("did you mean `net {text}`?"))
    } else if mac(text).is_some() {
        wrong.help(format!("did you mean `ether host {text}`?"))
    } else if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        wrong.help("an IPv4 address has four numbers from 0 to 255")
    } else if text.contains(':') {
        wrong.help("an IPv6 address looks like 2001:db8::1")
    } else {
        FilterError::new(span.clone(), format!("`{text}` is a name, and names are not resolved"))
            .help("what a name meant then cannot be known now: give its address")
    }
}

fn not_a_port(text: &str, wrong: FilterError) -> FilterError {
    if text.contains('-') && !text.starts_with('-') {
        wrong.help(format!("did you mean `portrange {text}`?"))
    } else if text.bytes().all(|b| b.is_ascii_digit()) {
        wrong.help("a port is a number from 0 to 65535")
    } else if guess(text) == Some(Kind::Address) {
        wrong.help(format!("did you mean `host {text}`?"))
    } else if let Some(name) = nearest(text, names::PORTS.map(|(name, _)| name)) {
        wrong.help(format!("did you mean `{name}`?"))
    } else {
        wrong.help("give the number")
    }
}

fn not_a_protocol(text: &str, wrong: FilterError) -> FilterError {
    match nearest(text, names::IP_PROTOCOLS.map(|(name, _)| name)) {
        Some(name) => wrong.help(format!("did you mean `{name}`?")),
        None => wrong.help("give its number from 0 to 255, or an EtherType by `ether proto`"),
    }
}

fn port(text: &str) -> Option<u16> {
    names::whole(text)
        .and_then(|number| u16::try_from(number).ok())
        .or_else(|| names::number(&names::PORTS, text))
}

fn proto(text: &str) -> Option<Expr> {
    let number = names::whole(text).and_then(|number| u8::try_from(number).ok());
    if let Some(number) = number {
        return Some(Expr::Test(Test::IpProto(number)));
    }
    match text.to_ascii_lowercase().as_str() {
        "icmp" => return Some(Expr::Test(Test::Icmp)),
        "ip" => return Some(Expr::Test(Test::Ipv4)),
        "ip6" => return Some(Expr::Test(Test::Ipv6)),
        _ => {}
    }
    names::number(&names::IP_PROTOCOLS, text)
        .map(|number| Expr::Test(Test::IpProto(number)))
        .or_else(|| names::number(&names::ETHER_TYPES, text).map(ether_proto))
}

/// The EtherTypes of IP are its versions, under which the sessions are found.
fn ether_proto(number: u16) -> Expr {
    Expr::Test(match number {
        0x0800 => Test::Ipv4,
        0x86dd => Test::Ipv6,
        other => Test::EtherProto(other),
    })
}

/// A service by its name; Zeek calls TLS `ssl`.
pub(crate) fn service(text: &str) -> Option<Service> {
    if text.eq_ignore_ascii_case("ssl") {
        return Some(Service::Tls);
    }
    Service::ALL.into_iter().find(|s| s.as_str().eq_ignore_ascii_case(text))
}

/// A MAC address, `aa:bb:cc:dd:ee:ff` or with dashes.
pub(crate) fn mac(text: &str) -> Option<MacAddr> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let mut octets = [0u8; 6];
    let mut parts = text.split(separator);
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || part.len() > 2 || part.starts_with('+') {
            return None;
        }
        *octet = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(MacAddr(octets))
}
