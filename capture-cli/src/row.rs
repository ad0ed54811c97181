//! A row of the session log as the companion reads it.

use std::sync::Arc;

use capture_flow::frame::PcapPosition;
use capture_flow::key::{Address, MacAddr, Protocol, SessionKey};
use capture_flow::time::Nanos;

/// What one end of a session is and sent.
#[derive(Clone, Debug, PartialEq)]
pub struct RowEnd {
    /// Address.
    pub addr: Address,
    /// Port, or what Zeek puts there for ICMP.
    pub port: u16,
    /// Link-layer address of its first frame.
    pub l2_addr: Option<MacAddr>,
    /// Payload bytes; unset as in Zeek.
    pub bytes: Option<u64>,
    /// Packets.
    pub pkts: u64,
    /// Bytes by the IP headers.
    pub ip_bytes: u64,
    /// Whether it is in the configured local networks.
    pub local: Option<bool>,
}

/// One row: the newest that is known of a session.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// First frame.
    pub ts: Nanos,
    /// Last frame so far.
    pub last_ts: Nanos,
    /// Zeek's duration in seconds.
    pub duration: Option<f64>,
    /// Identity.
    pub uid: Box<str>,
    /// Sensor.
    pub sensor: Arc<str>,
    /// Interface.
    pub iface: Arc<str>,
    /// The end taken for the originator.
    pub orig: RowEnd,
    /// The end taken for the responder.
    pub resp: RowEnd,
    /// `tcp`, `udp`, `icmp`, `arp`, …, as logged.
    pub proto: Arc<str>,
    /// The same as a number.
    pub protocol: Protocol,
    /// Application protocol.
    pub service: Option<Arc<str>>,
    /// Name that the client asked for.
    pub server_name: Option<Box<str>>,
    /// Application protocols that the client offered.
    pub alpn: Option<Box<str>>,
    /// Zeek's state.
    pub conn_state: Arc<str>,
    /// Zeek's history.
    pub history: Box<str>,
    /// Payload bytes acknowledged but not seen.
    pub missed_bytes: u64,
    /// Outer VLAN id.
    pub vlan: Option<u16>,
    /// Inner VLAN id.
    pub inner_vlan: Option<u16>,
    /// Sessions of the tunnels around it.
    pub tunnel_parents: Option<Box<[Box<str>]>>,
    /// Community ID.
    pub community_id: Option<Box<str>>,
    /// False where the originator is a guess.
    pub direction_certain: bool,
    /// Whether fragments of one of its datagrams contradicted each other.
    pub fragment_overlap: bool,
    /// False where two workers saw a direction each and that leaves open what one would have told.
    pub join_certain: bool,
    /// 0, 1, 2…
    pub update: u32,
    /// Whether the session is over.
    pub is_final: bool,
    /// Why the row was written.
    pub end_reason: Arc<str>,
    /// Frames that count to this session alone.
    pub frames: u64,
    /// Their bytes on the wire.
    pub frame_bytes: u64,
    /// When the row was written.
    pub flushed_at: Nanos,
    /// Where its first frame lies.
    pub pcap_first: Option<PcapPosition>,
    /// Where its last frame lies.
    pub pcap_last: Option<PcapPosition>,
}

/// EtherTypes of frames that may have carried IP that nobody could read, so that every question
/// about IP stays open: IP itself where its header is none, MPLS with an unknown payload (a label
/// does not say what follows), and MACsec, which encrypts. PPPoE is not among them: what carries
/// IP there is decoded, the rest is PPP's own traffic.
pub const MAY_HIDE_IP: [Protocol; 5] = [
    Protocol::Ether(0x0800),
    Protocol::Ether(0x86dd),
    Protocol::Ether(0x8847),
    Protocol::Ether(0x8848),
    Protocol::Ether(0x88e5),
];

impl Row {
    /// The key under which segment indexes know the session's frames. `vlan_in_key` as the sensor
    /// was told.
    #[must_use]
    pub fn key(&self, vlan_in_key: bool) -> SessionKey {
        let vlans = if vlan_in_key {
            (self.vlan.unwrap_or(0), self.inner_vlan.unwrap_or(0))
        } else {
            (0, 0)
        };
        let ends = [&self.orig, &self.resp].map(|end| (end.addr, end.port));
        if self.is_fragments_only() {
            // Their ports are unknown, not zero: ICMP's type and code among them.
            SessionKey::new(ends[0], ends[1], self.protocol, vlans)
        } else {
            SessionKey::of_ends(ends[0], ends[1], self.protocol, vlans)
        }
    }

    /// The IP protocol number; `None` without IP.
    #[must_use]
    pub fn ip_proto(&self) -> Option<u8> {
        match self.protocol {
            Protocol::Ip(number) => Some(number),
            Protocol::Ether(_) => None,
        }
    }

    /// Whether its protocol has ports (TCP, UDP, DCCP, SCTP, UDP-Lite).
    #[must_use]
    pub fn has_ports(&self) -> bool {
        matches!(self.protocol, Protocol::Ip(6 | 17 | 33 | 132 | 136))
    }

    /// Whether it stands for datagrams of which only fragments came: frames without a packet.
    /// Their addresses and protocol are known, everything behind the IP header is not, and what
    /// they belong to may be another session in the log.
    #[must_use]
    pub fn is_fragments_only(&self) -> bool {
        // A session of packets with bad checksums alone counts none either, but has ports and a
        // history.
        let packets = self.orig.pkts.saturating_add(self.resp.pkts);
        let ports = u32::from(self.orig.port) + u32::from(self.resp.port);
        self.ip_proto().is_some() && packets == 0 && ports == 0 && self.history.is_empty()
    }

    /// Whether the row may not have all of its session: it was not over, or was written out early.
    #[must_use]
    pub fn may_go_on(&self) -> bool {
        !self.is_final || matches!(&*self.end_reason, "evicted" | "shutdown")
    }

    /// Whether its frames are of [`MAY_HIDE_IP`].
    #[must_use]
    pub fn may_hide_ip(&self) -> bool {
        MAY_HIDE_IP.contains(&self.protocol)
    }
}
