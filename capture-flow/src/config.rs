//! What an operator can choose about sessions.

use std::net::IpAddr;

use crate::time::NanosDelta;

/// Idle limits, Zeek's defaults (scripts/base/init-bare.zeek).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// An unanswered TCP SYN (`tcp_attempt_delay`).
    pub tcp_attempt: NanosDelta,
    /// TCP after both sides closed (`tcp_close_delay`).
    pub tcp_close: NanosDelta,
    /// TCP after a reset (`tcp_reset_delay`).
    pub tcp_reset: NanosDelta,
    /// TCP closed by one side only (`tcp_partial_close_delay`).
    pub tcp_partial_close: NanosDelta,
    /// Established, silent TCP (`tcp_inactivity_timeout`).
    pub tcp_inactivity: NanosDelta,
    /// Silent UDP (`udp_inactivity_timeout`).
    pub udp_inactivity: NanosDelta,
    /// Silent ICMP (`icmp_inactivity_timeout`).
    pub icmp_inactivity: NanosDelta,
    /// Any other silent session (`unknown_ip_inactivity_timeout`), and sessions without IP.
    pub other_inactivity: NanosDelta,
    /// How long an incomplete IP datagram is kept.
    pub fragment: NanosDelta,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_attempt: NanosDelta::from_secs(5),
            tcp_close: NanosDelta::from_secs(5),
            tcp_reset: NanosDelta::from_secs(5),
            tcp_partial_close: NanosDelta::from_secs(3),
            tcp_inactivity: NanosDelta::from_secs(300),
            udp_inactivity: NanosDelta::from_secs(60),
            icmp_inactivity: NanosDelta::from_secs(60),
            other_inactivity: NanosDelta::from_secs(60),
            fragment: NanosDelta::from_secs(60),
        }
    }
}

/// What to do about transport checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksums {
    /// Count the frame whatever its checksum: offloads make captured checksums wrong.
    #[default]
    Ignore,
    /// Zeek's default: a frame with a bad checksum creates a session but counts for nothing.
    Verify,
}

/// An IP network in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    /// Any address in the network.
    pub addr: IpAddr,
    /// Leading bits that count.
    pub prefix_len: u8,
}

/// A port that servers usually own, used to guess the originator of a session whose start was
/// not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerPort {
    /// The port.
    pub port: u16,
    /// IANA protocol number (6, 17, 132).
    pub ip_proto: u8,
}

impl ServerPort {
    /// A TCP port.
    #[must_use]
    pub const fn tcp(port: u16) -> Self {
        Self { port, ip_proto: 6 }
    }

    /// A UDP port.
    #[must_use]
    pub const fn udp(port: u16) -> Self {
        Self { port, ip_proto: 17 }
    }
}

/// The TCP ports of a stock Zeek's `likely_server_ports` (the union over its default scripts).
const STOCK_TCP_PORTS: [u16; 49] = [
    21, 22, 25, 53, 79, 80, 81, 88, 135, 139, 143, 389, 443, 445, 465, 502, 514, 563, 585, 587,
    614, 631, 636, 989, 990, 992, 993, 995, 1080, 1434, 1883, 2811, 3128, 3268, 3306, 3389, 5222,
    5223, 5269, 5432, 6379, 6666, 6667, 6668, 6669, 8000, 8080, 8888, 20000,
];

/// The UDP ports of a stock Zeek's `likely_server_ports`.
const STOCK_UDP_PORTS: [u16; 24] = [
    53, 67, 88, 123, 137, 161, 162, 389, 443, 514, 1812, 2123, 2152, 3389, 3544, 4011, 4754, 4789,
    5060, 5072, 5353, 5355, 6081, 20000,
];

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The table could not hold a single session.
    #[error("table_bytes: {given} bytes hold no session, at least {least} are needed")]
    TableTooSmall {
        /// Bytes asked for.
        given: usize,
        /// Bytes that the smallest table takes.
        least: usize,
    },
    /// The table could hold more sessions than its 32-bit numbers can name.
    #[error("table_bytes: {given} bytes are more than a table can use, at most {most}")]
    TableTooLarge {
        /// Bytes asked for.
        given: usize,
        /// Bytes that the largest table takes.
        most: usize,
    },
    /// A length of time that must be positive is not.
    #[error("{field}: must be longer than zero")]
    NotPositive {
        /// Name of the field.
        field: &'static str,
    },
    /// A network whose prefix is longer than its address.
    #[error("local_nets: {network}/{prefix_len}: prefix longer than the address")]
    PrefixTooLong {
        /// The network's address.
        network: IpAddr,
        /// The prefix length given.
        prefix_len: u8,
    },
}

/// Everything a session table needs to know.
#[derive(Clone, Debug)]
pub struct FlowConfig {
    /// Idle limits.
    pub timeouts: Timeouts,
    /// How often a living session gets a row.
    pub interim: NanosDelta,
    /// Transport checksums.
    pub checksums: Checksums,
    /// Ports taken for the responder's.
    pub likely_server_ports: Vec<ServerPort>,
    /// Networks that are ours.
    pub local_nets: Vec<Network>,
    /// Whether VLAN tags separate sessions with equal addresses.
    pub vlan_in_key: bool,
    /// Whether other workers may see the other direction of this worker's sessions, so that half
    /// a TCP session must not be taken for an attempt without an answer.
    pub halves: bool,
    /// Seed of the Community ID (0 unless a site agreed on another).
    pub community_id_seed: u16,
    /// Memory for one worker's sessions, in bytes: it fixes how many are held at once.
    pub table_bytes: usize,
    /// Memory for one worker's incomplete datagrams, in bytes.
    pub fragment_bytes: usize,
    /// The store's secret seed for [`crate::key::FlowHash`].
    pub hash_seed: u64,
    /// Random per run; keeps session identities apart across restarts and sensors.
    pub uid_seed: u128,
    /// The worker's number, part of every identity it hands out.
    pub worker: u16,
}

impl FlowConfig {
    /// The ports that a stock Zeek takes for a server's.
    #[must_use]
    pub fn stock_likely_server_ports() -> Vec<ServerPort> {
        let tcp = STOCK_TCP_PORTS.into_iter().map(ServerPort::tcp);
        tcp.chain(STOCK_UDP_PORTS.into_iter().map(ServerPort::udp)).collect()
    }

    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// The first field that cannot be used. The table's size is checked where it is built.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let times = [
            ("tcp_attempt", self.timeouts.tcp_attempt),
            ("tcp_close", self.timeouts.tcp_close),
            ("tcp_reset", self.timeouts.tcp_reset),
            ("tcp_partial_close", self.timeouts.tcp_partial_close),
            ("tcp_inactivity", self.timeouts.tcp_inactivity),
            ("udp_inactivity", self.timeouts.udp_inactivity),
            ("icmp_inactivity", self.timeouts.icmp_inactivity),
            ("other_inactivity", self.timeouts.other_inactivity),
            ("fragment", self.timeouts.fragment),
            ("interim", self.interim),
        ];
        for (field, time) in times {
            if time <= NanosDelta::ZERO {
                return Err(ConfigError::NotPositive { field });
            }
        }
        for network in &self.local_nets {
            let longest = if network.addr.is_ipv4() { 32 } else { 128 };
            if network.prefix_len > longest {
                return Err(ConfigError::PrefixTooLong {
                    network: network.addr,
                    prefix_len: network.prefix_len,
                });
            }
        }
        Ok(())
    }
}

/// Zeek's defaults, a table of 64 MiB, and seeds of zero: a sensor sets its own.
impl Default for FlowConfig {
    fn default() -> Self {
        Self {
            timeouts: Timeouts::default(),
            interim: NanosDelta::from_secs(60),
            checksums: Checksums::default(),
            likely_server_ports: Self::stock_likely_server_ports(),
            local_nets: Vec::new(),
            vlan_in_key: false,
            halves: false,
            community_id_seed: 0,
            table_bytes: 64 << 20,
            fragment_bytes: 8 << 20,
            hash_seed: 0,
            uid_seed: 0,
            worker: 0,
        }
    }
}

impl Network {
    /// Whether an address lies in the network.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self.addr, addr) {
            (IpAddr::V4(net), IpAddr::V4(addr)) => {
                let shift = 32_u32.saturating_sub(u32::from(self.prefix_len));
                (u32::from(net) ^ u32::from(addr)).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(net), IpAddr::V6(addr)) => {
                let shift = 128_u32.saturating_sub(u32::from(self.prefix_len));
                (u128::from(net) ^ u128::from(addr)).checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(addr: &str, prefix_len: u8) -> Network {
        Network { addr: addr.parse().unwrap(), prefix_len }
    }

    #[test]
    fn networks_hold_what_their_prefix_says() {
        assert!(network("10.1.2.3", 8).contains("10.200.0.1".parse().unwrap()));
        assert!(!network("10.1.2.3", 16).contains("10.2.0.1".parse().unwrap()));
        assert!(network("0.0.0.0", 0).contains("255.1.2.3".parse().unwrap()));
        assert!(!network("0.0.0.0", 0).contains("::1".parse().unwrap()));
        assert!(network("10.1.2.3", 32).contains("10.1.2.3".parse().unwrap()));
        assert!(network("fe80::", 10).contains("febf::1".parse().unwrap()));
        assert!(!network("fe80::", 10).contains("fec0::1".parse().unwrap()));
        assert!(network("::", 0).contains("fec0::1".parse().unwrap()));
    }

    #[test]
    fn a_field_that_cannot_be_used_is_named() {
        assert_eq!(FlowConfig::default().validate(), Ok(()));
        let config = FlowConfig { interim: NanosDelta::ZERO, ..FlowConfig::default() };
        assert_eq!(config.validate(), Err(ConfigError::NotPositive { field: "interim" }));
        let config =
            FlowConfig { local_nets: vec![network("10.0.0.0", 33)], ..FlowConfig::default() };
        assert!(matches!(config.validate(), Err(ConfigError::PrefixTooLong { .. })));
    }
}
