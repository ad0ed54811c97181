//! One row of the session log with typed fields.

use std::borrow::Cow;

use capture_flow::community_id;
use capture_flow::frame::PcapPosition;
use capture_flow::key::{Address, MacAddr, Protocol, SessionKey};
use capture_flow::record::{Service, SessionRecord};
use capture_flow::time::{Nanos, NanosDelta};

/// A session row: every column, borrowed from a batch or owned.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionRow<'a> {
    /// First frame.
    pub ts: Nanos,
    /// Last frame so far.
    pub last_ts: Nanos,
    /// Seconds, as Zeek derives it.
    pub duration: Option<f64>,
    /// Identity of the session.
    pub uid: Cow<'a, str>,
    /// The sensor's name.
    pub sensor: Cow<'a, str>,
    /// Interface of the first frame.
    pub iface: Cow<'a, str>,
    /// Originator's address.
    pub orig_h: Cow<'a, str>,
    /// Originator's port or ICMP type.
    pub orig_p: u16,
    /// Responder's address.
    pub resp_h: Cow<'a, str>,
    /// Responder's port, ICMP counterpart type or code.
    pub resp_p: u16,
    /// `tcp`, `udp`, `icmp`, `unknown_transport`, `arp`, `lldp` or an EtherType.
    pub proto: Cow<'a, str>,
    /// IANA protocol number; missing without IP.
    pub ip_proto: Option<u8>,
    /// Application protocol by content.
    pub service: Option<Cow<'a, str>>,
    /// Zeek's state.
    pub conn_state: Cow<'a, str>,
    /// Zeek's history.
    pub history: Cow<'a, str>,
    /// Payload bytes of the originator.
    pub orig_bytes: Option<u64>,
    /// Payload bytes of the responder.
    pub resp_bytes: Option<u64>,
    /// Packets of the originator.
    pub orig_pkts: u64,
    /// Packets of the responder.
    pub resp_pkts: u64,
    /// IP bytes of the originator.
    pub orig_ip_bytes: u64,
    /// IP bytes of the responder.
    pub resp_ip_bytes: u64,
    /// Payload bytes acknowledged but never seen.
    pub missed_bytes: u64,
    /// Whether the originator is local.
    pub local_orig: Option<bool>,
    /// Whether the responder is local.
    pub local_resp: Option<bool>,
    /// Outer VLAN id.
    pub vlan: Option<u16>,
    /// Inner VLAN id.
    pub inner_vlan: Option<u16>,
    /// Originator's link-layer address.
    pub orig_l2_addr: Option<Cow<'a, str>>,
    /// Responder's link-layer address.
    pub resp_l2_addr: Option<Cow<'a, str>>,
    /// Sessions of the tunnels around it, outermost first; empty without a tunnel.
    pub tunnel_parents: Vec<Cow<'a, str>>,
    /// Community ID.
    pub community_id: Option<Cow<'a, str>>,
    /// False where the originator is a guess.
    pub direction_certain: bool,
    /// 0, 1, 2… over the rows of the session.
    pub update: u32,
    /// Whether the session is over.
    pub is_final: bool,
    /// Why the row was written.
    pub end_reason: Cow<'a, str>,
    /// Frames that count to this session alone.
    pub frames: u64,
    /// Bytes of those frames.
    pub frame_bytes: u64,
    /// Server name that the client asked for.
    pub server_name: Option<Cow<'a, str>>,
    /// Application protocols that the client offered.
    pub alpn: Option<Cow<'a, str>>,
    /// Whether fragments of one of its datagrams contradicted each other.
    pub fragment_overlap: bool,
    /// False where two workers saw a direction each and that leaves open what one would have told.
    pub join_certain: bool,
    /// When the engine let go of the row.
    pub flushed_at: Nanos,
    /// Where the first frame lies.
    pub pcap_first: Option<PcapPosition>,
    /// Where the last frame lies.
    pub pcap_last: Option<PcapPosition>,
}

/// What a row needs beyond its record.
#[derive(Clone, Copy, Debug)]
pub struct RowNames<'a> {
    /// The sensor's name.
    pub sensor: &'a str,
    /// The interface's name.
    pub iface: &'a str,
    /// Seed of the Community ID.
    pub community_id_seed: u16,
}

/// EtherTypes with a name of their own in the column `proto`.
const ETHER_NAMES: [(u16, &str); 2] = [(0x0806, "arp"), (0x88cc, "lldp")];

impl<'a> SessionRow<'a> {
    /// The row of a record.
    #[must_use]
    pub fn of(record: &'a SessionRecord, names: &RowNames<'a>) -> Self {
        let detail = record.detail.as_deref();
        let mac = |mac: Option<MacAddr>| mac.map(|mac| Cow::Owned(mac.to_string()));
        let name = |text: Option<&'a str>| text.map(Cow::Borrowed);
        Self {
            ts: record.ts,
            last_ts: record.last_ts,
            duration: record.duration.map(NanosDelta::as_secs_f64),
            uid: record.uid.to_string().into(),
            sensor: names.sensor.into(),
            iface: names.iface.into(),
            orig_h: record.orig.addr.to_string().into(),
            orig_p: record.orig.port,
            resp_h: record.resp.addr.to_string().into(),
            resp_p: record.resp.port,
            proto: proto_name(record.protocol),
            ip_proto: match record.protocol {
                Protocol::Ip(number) => Some(number),
                Protocol::Ether(_) => None,
            },
            service: name(record.service.map(Service::as_str)),
            conn_state: record.conn_state.as_str().into(),
            history: record.history.as_str().into(),
            orig_bytes: record.orig.bytes,
            resp_bytes: record.resp.bytes,
            orig_pkts: record.orig.pkts,
            resp_pkts: record.resp.pkts,
            orig_ip_bytes: record.orig.ip_bytes,
            resp_ip_bytes: record.resp.ip_bytes,
            missed_bytes: record.missed_bytes,
            local_orig: record.orig.local,
            local_resp: record.resp.local,
            vlan: record.vlan,
            inner_vlan: record.inner_vlan,
            orig_l2_addr: mac(record.orig.l2_addr),
            resp_l2_addr: mac(record.resp.l2_addr),
            tunnel_parents: record
                .tunnel_parents
                .iter()
                .flatten()
                .map(|parent| Cow::Owned(parent.to_string()))
                .collect(),
            community_id: community_id::of(record, names.community_id_seed)
                .map(|id| id.to_string().into()),
            direction_certain: record.direction_certain,
            update: record.update,
            is_final: record.reason.is_final(),
            end_reason: record.reason.as_str().into(),
            frames: record.frames,
            frame_bytes: record.frame_bytes,
            server_name: name(detail.and_then(|detail| detail.server_name.as_deref())),
            alpn: name(detail.and_then(|detail| detail.alpn.as_deref())),
            fragment_overlap: record.fragment_overlap,
            join_certain: record.join_certain,
            flushed_at: record.flushed_at,
            pcap_first: record.pcap_first,
            pcap_last: record.pcap_last,
        }
    }

    /// The same row, independent of the batch.
    #[must_use]
    pub fn into_owned(self) -> SessionRow<'static> {
        let own = |text: Cow<'a, str>| Cow::Owned(text.into_owned());
        let maybe = |text: Option<Cow<'a, str>>| text.map(|text| Cow::Owned(text.into_owned()));
        SessionRow {
            uid: own(self.uid),
            sensor: own(self.sensor),
            iface: own(self.iface),
            orig_h: own(self.orig_h),
            resp_h: own(self.resp_h),
            proto: own(self.proto),
            service: maybe(self.service),
            conn_state: own(self.conn_state),
            history: own(self.history),
            orig_l2_addr: maybe(self.orig_l2_addr),
            resp_l2_addr: maybe(self.resp_l2_addr),
            tunnel_parents: self.tunnel_parents.into_iter().map(own).collect(),
            community_id: maybe(self.community_id),
            end_reason: own(self.end_reason),
            server_name: maybe(self.server_name),
            alpn: maybe(self.alpn),
            ts: self.ts,
            last_ts: self.last_ts,
            duration: self.duration,
            orig_p: self.orig_p,
            resp_p: self.resp_p,
            ip_proto: self.ip_proto,
            orig_bytes: self.orig_bytes,
            resp_bytes: self.resp_bytes,
            orig_pkts: self.orig_pkts,
            resp_pkts: self.resp_pkts,
            orig_ip_bytes: self.orig_ip_bytes,
            resp_ip_bytes: self.resp_ip_bytes,
            missed_bytes: self.missed_bytes,
            local_orig: self.local_orig,
            local_resp: self.local_resp,
            vlan: self.vlan,
            inner_vlan: self.inner_vlan,
            direction_certain: self.direction_certain,
            update: self.update,
            is_final: self.is_final,
            frames: self.frames,
            frame_bytes: self.frame_bytes,
            fragment_overlap: self.fragment_overlap,
            join_certain: self.join_certain,
            flushed_at: self.flushed_at,
            pcap_first: self.pcap_first,
            pcap_last: self.pcap_last,
        }
    }

    /// Whether the session has a moment in common with the window (both ends included).
    #[must_use]
    pub fn overlaps(&self, from: Nanos, to: Nanos) -> bool {
        self.ts <= to && self.last_ts >= from
    }

    /// What the ends spoke; `None` for a damaged row.
    #[must_use]
    pub fn protocol(&self) -> Option<Protocol> {
        if let Some(number) = self.ip_proto {
            return Some(Protocol::Ip(number));
        }
        let named = ETHER_NAMES.iter().find(|(_, name)| *name == self.proto);
        named
            .map(|(number, _)| *number)
            .or_else(|| u16::from_str_radix(self.proto.strip_prefix("0x")?, 16).ok())
            .map(Protocol::Ether)
    }

    /// The session's key, from which [`capture_flow::key::FlowHasher`] gives the hash that
    /// segment indexes know it by. `vlan_in_key` as the sensor was told. `None` for a damaged row.
    #[must_use]
    pub fn key(&self, vlan_in_key: bool) -> Option<SessionKey> {
        let vlans = if vlan_in_key {
            (self.vlan.unwrap_or(0), self.inner_vlan.unwrap_or(0))
        } else {
            (0, 0)
        };
        Some(SessionKey::of_ends(
            (parse_address(&self.orig_h)?, self.orig_p),
            (parse_address(&self.resp_h)?, self.resp_p),
            self.protocol()?,
            vlans,
        ))
    }
}

/// What the column `proto` says: Zeek's name of a transport (scripts/base/init-bare.zeek,
/// `transport_proto`), or of what a frame without IP is.
#[must_use]
pub fn proto_name(protocol: Protocol) -> Cow<'static, str> {
    match protocol {
        Protocol::TCP => "tcp".into(),
        Protocol::UDP => "udp".into(),
        Protocol::ICMP | Protocol::ICMP6 => "icmp".into(),
        Protocol::Ip(_) => "unknown_transport".into(),
        Protocol::Ether(number) => match ETHER_NAMES.iter().find(|(known, _)| *known == number) {
            Some((_, name)) => (*name).into(),
            None => format!("0x{number:04x}").into(),
        },
    }
}

/// Reads an address column.
fn parse_address(text: &str) -> Option<Address> {
    if let Ok(ip) = text.parse() {
        return Some(Address::Ip(ip));
    }
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(Address::Mac(MacAddr(bytes)))
}
