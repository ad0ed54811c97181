//! Tunnels: which packets carry another packet, and where it begins.

/// UDP ports on which Zeek expects a tunnel (scripts/base/frameworks/tunnels and
/// scripts/base/packet-protocols): GTP-C and GTP-U, Teredo, VXLAN, AYIYA, GENEVE.
pub(crate) const GTP_C: u16 = 2123;
pub(crate) const GTP_U: u16 = 2152;
pub(crate) const TEREDO: u16 = 3544;
pub(crate) const VXLAN: u16 = 4789;
pub(crate) const AYIYA: u16 = 5072;
pub(crate) const GENEVE: u16 = 6081;

const fn is_tunnel_port(port: u16) -> bool {
    matches!(port, GTP_C | GTP_U | TEREDO | VXLAN | AYIYA | GENEVE)
}

/// Whether a UDP packet may carry a tunnel, so that it needs the full decoder. Cheap, and never
/// wrong in saying no.
#[inline]
pub(crate) fn possible_over_udp(src_port: u16, dst_port: u16, _payload: &[u8]) -> bool {
    is_tunnel_port(src_port) || is_tunnel_port(dst_port)
}
