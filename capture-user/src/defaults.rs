//! Lists that an operator can give, and those that hold when none is given.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use capture_flow::config::{Network, ServerPort};

use crate::args::{CoreList, NetworkList, PortList};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// Networks that IANA's special-purpose registries mark as not globally reachable. Zeek counts
/// these as local too (`Site::private_address_space`), together with their 6to4 forms.
const LOCAL_V4: [(Ipv4Addr, u8); 13] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// The same for IPv6.
const LOCAL_V6: [(Ipv6Addr, u8); 9] = [
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 0), 128),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 1), 128),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48),
    (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 48),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
];

/// The networks taken for ours when none are named.
#[must_use]
pub fn local_nets() -> Vec<Network> {
    let v4 = LOCAL_V4.iter().map(|&(addr, prefix_len)| Network { addr: addr.into(), prefix_len });
    let v6 = LOCAL_V6.iter().map(|&(addr, prefix_len)| Network { addr: addr.into(), prefix_len });
    v4.chain(v6).collect()
}

/// Parses `22/tcp,53/udp`; `none` is the empty list.
///
/// # Errors
/// Names the item that is none.
pub fn parse_server_ports(text: &str) -> Result<PortList, String> {
    let items = list(text);
    let mut ports = Vec::with_capacity(items.len());
    for item in items {
        let wrong = || format!("'{item}' is no port; write for example 22/tcp, 53/udp, 2905/sctp");
        let (port, protocol) = item.split_once('/').ok_or_else(wrong)?;
        let ip_proto = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => TCP,
            "udp" => UDP,
            "sctp" => SCTP,
            _ => return Err(wrong()),
        };
        ports.push(ServerPort { port: port.trim().parse().map_err(|_| wrong())?, ip_proto });
    }
    Ok(PortList(ports))
}

/// Parses `192.0.2.0/24,2001:db8::/32`; `none` is the empty list.
///
/// # Errors
/// Names the item that is none.
pub fn parse_networks(text: &str) -> Result<NetworkList, String> {
    list(text).into_iter().map(parse_network).collect::<Result<_, _>>().map(NetworkList)
}

fn parse_network(text: &str) -> Result<Network, String> {
    let wrong =
        || format!("'{text}' is no network; write for example 192.0.2.0/24 or 2001:db8::/32");
    let (addr, prefix_len) = match text.split_once('/') {
        Some((addr, len)) => (addr, Some(len.trim().parse::<u8>().map_err(|_| wrong())?)),
        None => (text, None),
    };
    let addr: IpAddr = addr.trim().parse().map_err(|_| wrong())?;
    let bits = if addr.is_ipv4() { 32 } else { 128 };
    let prefix_len = prefix_len.unwrap_or(bits);
    if prefix_len > bits {
        return Err(format!("'{text}': the prefix of this network is at most /{bits}"));
    }
    Ok(Network { addr, prefix_len })
}

/// Parses `2,3` or `4-7`.
///
/// # Errors
/// Names the item that is none.
pub fn parse_cores(text: &str) -> Result<CoreList, String> {
    /// More cores than any machine has, so that `0-99999999999` is a mistake and not a wait.
    const MOST: usize = 4096;
    let mut cores = Vec::new();
    for item in list(text) {
        let wrong = || format!("'{item}' is no core; write for example 2,3 or 4-7");
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let first: usize = first.trim().parse().map_err(|_| wrong())?;
        let last: usize = last.trim().parse().map_err(|_| wrong())?;
        if first > last || last >= MOST {
            return Err(wrong());
        }
        cores.extend(first..=last);
    }
    if cores.is_empty() {
        return Err("no core is named".to_owned());
    }
    let mut sorted = cores.clone();
    sorted.sort_unstable();
    if let Some(twice) = sorted.windows(2).find(|pair| pair.first() == pair.last()) {
        return Err(format!("core {} is named twice", twice.first().copied().unwrap_or_default()));
    }
    Ok(CoreList(cores))
}

fn list(text: &str) -> Vec<&str> {
    if text.trim().eq_ignore_ascii_case("none") {
        return Vec::new();
    }
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use capture_flow::config::FlowConfig;

    use super::*;

    #[test]
    fn zeek_has_73_ports() {
        assert_eq!(FlowConfig::stock_likely_server_ports().len(), 73);
    }

    #[test]
    fn port_lists() {
        let PortList(ports) = parse_server_ports("22/tcp, 53/UDP").expect("a list");
        assert_eq!(
            ports,
            [ServerPort { port: 22, ip_proto: TCP }, ServerPort { port: 53, ip_proto: UDP }]
        );
        assert_eq!(parse_server_ports("none"), Ok(PortList(Vec::new())));
        assert!(parse_server_ports("22").is_err());
        assert!(parse_server_ports("70000/tcp").is_err());
        assert!(parse_server_ports("22/quic").is_err());
    }

    #[test]
    fn network_lists() {
        let NetworkList(nets) = parse_networks("192.0.2.0/24,::1").expect("a list");
        assert_eq!(nets.len(), 2);
        assert_eq!(nets.last().map(|net| net.prefix_len), Some(128));
        assert!(parse_networks("10.0.0.0/33").is_err());
        assert!(parse_networks("10.0.0/8").is_err());
    }

    #[test]
    fn core_lists() {
        assert_eq!(parse_cores("2,4-6"), Ok(CoreList(vec![2, 4, 5, 6])));
        assert!(parse_cores("3,3").is_err());
        assert!(parse_cores("6-4").is_err());
        assert!(parse_cores("0-99999999").is_err());
        assert!(parse_cores("").is_err());
    }
}
