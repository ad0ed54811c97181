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
