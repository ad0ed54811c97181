//! Which session a packet belongs to.

use std::net::{IpAddr, Ipv4Addr};

use crate::key::{
    Address, FlowHash, ICMP_CODE_MARK, MacAddr, PackedKey, Protocol, SessionKey, icmp_counterpart,
};
use crate::memory::Memory;
use crate::packet::{Link, Net, Packet, TcpFlags, Transport as Header};

use super::core::Core;
use super::session::Kind;

/// IPv6's "no next header": Zeek opens no session for it.
const NO_NEXT_HEADER: u8 = 59;

/// Which session a packet belongs to, and which way it went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tuple {
    pub(super) key: PackedKey,
    pub(super) hash: FlowHash,
    /// Whether its sender is the key's low end.
    pub(super) from_low: bool,
    pub(super) kind: Kind,
}

impl<M: Memory> Core<M> {
    #[inline]
    fn vlans(&self, link: &Link) -> (u16, u16) {
        if self.vlan_in_key {
            (link.vlan.unwrap_or(0), link.inner_vlan.unwrap_or(0))
        } else {
            (0, 0)
        }
    }

    /// The tuple of a packet over IP.
    #[inline]
    pub(super) fn tuple(&self, packet: &Packet<'_>) -> Option<Tuple> {
        let Net::Ip { ip, transport, .. } = &packet.net else { return None };
        let (src_port, dst_port, kind) = match *transport {
            Header::Tcp { src_port, dst_port, .. } => (src_port, dst_port, Kind::Tcp),
            Header::Udp { src_port, dst_port } => (src_port, dst_port, Kind::Udp),
            Header::Icmp { icmp_type, code } => {
                let answer = icmp_counterpart(Protocol::Ip(ip.protocol), icmp_type);
                let peer = answer.map_or(u16::from(code) | ICMP_CODE_MARK, u16::from);
                (u16::from(icmp_type), peer, Kind::Icmp)
            }
            // Zeek keys these without ports.
            Header::Sctp { .. } | Header::Other => (0, 0, Kind::Other),
        };
        let vlans = self.vlans(&packet.link);
        let (key, from_low) =
            PackedKey::of((ip.src, src_port), (ip.dst, dst_port), ip.protocol, vlans);
        Some(Tuple { key, hash: self.hasher.hash_packed(&key), from_low, kind })
    }

    /// The tuple of any packet.
    pub(super) fn any_tuple(&self, packet: &Packet<'_>) -> Tuple {
        self.tuple(packet).unwrap_or_else(|| {
            let link = &packet.link;
            let end = |mac: Option<MacAddr>| (Address::Mac(mac.unwrap_or_default()), 0);
            self.tuple_of(
                end(link.src),
                end(link.dst),
                Protocol::Ether(link.ether_type),
                link,
                Kind::Link,
            )
        })
    }

    pub(super) fn tuple_of(
        &self,
        src: (Address, u16),
        dst: (Address, u16),
        protocol: Protocol,
        link: &Link,
        kind: Kind,
    ) -> Tuple {
        let key = PackedKey::from(&SessionKey::new(src, dst, protocol, self.vlans(link)));
        Tuple { key, hash: self.hasher.hash_packed(&key), from_low: src <= dst, kind }
    }

    /// Zeek's guess that the sender of a session's first packet is its responder
    /// (TCPAnalyzer::WantConnection, UDPAnalyzer::WantConnection).
    pub(super) fn sender_is_server(&self, packet: &Packet<'_>) -> bool {
        let Net::Ip { ip, transport, .. } = &packet.net else { return false };
        if ip.dst == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return false;
        }
        match *transport {
            Header::Tcp { src_port, dst_port, flags, .. } => {
                let syn = flags.has(TcpFlags::SYN);
                if (syn && !flags.has(TcpFlags::ACK)) || !self.server_ports.tcp(src_port) {
                    return false;
                }
                // Two plausible servers: the lower port, but never on a SYN-ACK, which a scanner
                // may have forged.
                !self.server_ports.tcp(dst_port) || (!syn && src_port < dst_port)
            }
            Header::Udp { src_port, dst_port } => {
                self.server_ports.udp(src_port) && !self.server_ports.udp(dst_port)
            }
            _ => false,
        }
    }
}

/// Whether a packet is an IPv6 header with nothing behind it, such as a Teredo bubble. Inside a
/// tunnel it is no session of its own; elsewhere it is, since its frame must count somewhere.
pub(super) fn is_empty_header(packet: &Packet<'_>) -> bool {
    matches!(packet.net, Net::Ip { ip, .. } if ip.protocol == NO_NEXT_HEADER)
}
