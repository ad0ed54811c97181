//! Transport headers: what Zeek takes from them, and when it does not believe them.

use std::net::IpAddr;

use etherparse::{TcpHeaderSlice, UdpHeaderSlice};

use super::bytes::{be16, be32, byte};
use super::checksum;
use super::undecodable::Undecodable;
use crate::packet::{Checksum, TcpFlags, Transport};

/// IANA protocol numbers that get special treatment.
pub(crate) mod proto {
    pub(crate) const HOP_BY_HOP: u8 = 0;
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const IPV4: u8 = 4;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const IPV6: u8 = 41;
    pub(crate) const ROUTING: u8 = 43;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const GRE: u8 = 47;
    pub(crate) const AH: u8 = 51;
    pub(crate) const ICMP6: u8 = 58;
    pub(crate) const NO_NEXT: u8 = 59;
    pub(crate) const DEST_OPTIONS: u8 = 60;
    pub(crate) const SCTP: u8 = 132;
}

const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;
const VXLAN_PORT: u16 = 4789;

/// An IP payload on its way to a transport decoder.
#[derive(Clone, Copy)]
pub(crate) struct Segment<'a> {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) protocol: u8,
    /// Captured bytes behind the IP headers; link-layer padding may follow the payload.
    pub(crate) captured: &'a [u8],
    /// Payload length by the IP header. 0 where segmentation offload left the length out: the
    /// captured bytes count then.
    pub(crate) len: usize,
    /// Whether transport checksums are to be verified.
    pub(crate) verify: bool,
    /// Whether the capture cut this frame short.
    pub(crate) cut: bool,
}

/// A transport header, read.
#[derive(Clone, Copy)]
pub(crate) struct Read<'a> {
    pub(crate) transport: Transport,
    pub(crate) checksum: Checksum,
    pub(crate) payload: &'a [u8],
    pub(crate) payload_len: u32,
}

impl<'a> Segment<'a> {
    fn payload_len(&self) -> usize {
        if self.len == 0 { self.captured.len() } else { self.len }
    }

    /// The captured bytes without padding.
    fn body(&self) -> &'a [u8] {
        self.captured.get(..self.payload_len()).unwrap_or(self.captured)
    }

    /// Reads the transport header.
    ///
    /// Zeek reads a header when the IP length leaves room for it and it was captured
    /// (IPBasedAnalyzer::CheckHeaderTrunc).
    #[inline]
    pub(crate) fn read(&self) -> Result<Read<'a>, Undecodable> {
        match self.protocol {
            proto::TCP => self.tcp(),
            proto::UDP => self.udp(),
            proto::ICMP | proto::ICMP6 => self.icmp(),
            proto::SCTP => Ok(self.sctp()),
            _ => Ok(self.other(Transport::Other)),
        }
    }

    #[inline]
    fn tcp(&self) -> Result<Read<'a>, Undecodable> {
        let body = self.body();
        let Ok(header) = TcpHeaderSlice::from_slice(body) else {
            return self.tcp_malformed();
        };
        let header_len = header.slice().len();
        let bytes = header.slice();
        Ok(Read {
            transport: Transport::Tcp {
                src_port: header.source_port(),
                dst_port: header.destination_port(),
                seq: header.sequence_number(),
                ack: header.acknowledgment_number(),
                flags: TcpFlags(byte(bytes, 13).unwrap_or(0) & TcpFlags::ALL),
                window: header.window_size(),
            },
            checksum: self.verified(body, true),
            payload: body.get(header_len..).unwrap_or(&[]),
            payload_len: self.payload_len().saturating_sub(header_len) as u32,
        })
    }

    /// TCP whose first 20 bytes are there but whose data offset is impossible, or whose options
    /// are cut off: Zeek creates the session and leaves it at that.
    #[cold]
    fn tcp_malformed(&self) -> Result<Read<'a>, Undecodable> {
        let body = self.body();
        let field16 = |at| be16(body, at).ok_or(Undecodable::TransportTruncated);
        let field32 = |at| be32(body, at).ok_or(Undecodable::TransportTruncated);
        // The urgent pointer is the last field: with it, the fixed header is whole.
        field16(18)?;
        Ok(Read {
            transport: Transport::Tcp {
                src_port: field16(0)?,
                dst_port: field16(2)?,
                seq: field32(4)?,
                ack: field32(8)?,
                flags: TcpFlags(byte(body, 13).unwrap_or(0) & TcpFlags::ALL),
                window: field16(14)?,
            },
            checksum: Checksum::Malformed,
            payload: &[],
            payload_len: 0,
        })
    }

    #[inline]
    fn udp(&self) -> Result<Read<'a>, Undecodable> {
        let body = self.body();
        let header =
            UdpHeaderSlice::from_slice(body).map_err(|_| Undecodable::TransportTruncated)?;
        // Over IPv4 a sender may leave the checksum out, over IPv6 only in a tunnel (RFC 6936);
        // Zeek knows of VXLAN.
        let optional = self.src.is_ipv4() || header.destination_port() == VXLAN_PORT;
        let verified = self.verified(body, header.checksum() != 0 || !optional);
        Ok(Read {
            transport: Transport::Udp {
                src_port: header.source_port(),
                dst_port: header.destination_port(),
            },
            checksum: verified,
            payload: body.get(UDP_HEADER..).unwrap_or(&[]),
            // Zeek counts the length that UDP itself claims.
            payload_len: u32::from(header.length()).saturating_sub(UDP_HEADER as u32),
        })
    }

    #[inline]
    fn icmp(&self) -> Result<Read<'a>, Undecodable> {
        let body = self.body();
        let payload = body.get(ICMP_HEADER..).ok_or(Undecodable::TransportTruncated)?;
        let (Some(icmp_type), Some(code)) = (byte(body, 0), byte(body, 1)) else {
            return Err(Undecodable::TransportTruncated);
        };
        Ok(Read {
            transport: Transport::Icmp { icmp_type, code },
            checksum: self.verified(body, true),
            payload,
            payload_len: self.payload_len().saturating_sub(ICMP_HEADER) as u32,
        })
    }

    fn sctp(&self) -> Read<'a> {
        let body = self.body();
        match (be16(body, 0), be16(body, 2)) {
            (Some(src_port), Some(dst_port)) => self.other(Transport::Sctp { src_port, dst_port }),
            _ => self.other(Transport::Other),
        }
    }

    fn other(&self, transport: Transport) -> Read<'a> {
        Read {
            transport,
            checksum: Checksum::Accepted,
            payload: self.body(),
            payload_len: self.payload_len() as u32,
        }
    }

    #[inline]
    fn verified(&self, body: &[u8], present: bool) -> Checksum {
        // A segment that was not captured whole cannot be verified.
        if !self.verify || !present || self.cut || self.captured.len() < self.payload_len() {
            return Checksum::Accepted;
        }
        let right = if self.protocol == proto::ICMP {
            checksum::is_right(body)
        } else {
            checksum::is_right_with_pseudo_header(self.src, self.dst, self.protocol, body)
        };
        if right { Checksum::Accepted } else { Checksum::Bad }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(protocol: u8, captured: &[u8], len: usize) -> Segment<'_> {
        Segment {
            src: IpAddr::from([10, 0, 0, 1]),
            dst: IpAddr::from([10, 0, 0, 2]),
            protocol,
            captured,
            len,
            verify: false,
            cut: false,
        }
    }

    fn tcp_bytes() -> Vec<u8> {
        let mut header = etherparse::TcpHeader::new(4000, 80, 7, 1024);
        header.syn = true;
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(b"hello");
        bytes
    }

    #[test]
    fn padding_is_not_payload() {
        let mut bytes = tcp_bytes();
        bytes.extend([0; 10]);
        let read = segment(proto::TCP, &bytes, 25).read().unwrap();
        assert_eq!((read.payload, read.payload_len), (&b"hello"[..], 5));
    }

    #[test]
    fn a_cut_capture_keeps_the_length_on_the_wire() {
        let bytes = tcp_bytes();
        let read = segment(proto::TCP, &bytes[..22], 1480).read().unwrap();
        assert_eq!((read.payload.len(), read.payload_len), (2, 1460));
    }

    #[test]
    fn zero_length_falls_back_to_what_was_captured() {
        let bytes = tcp_bytes();
        assert_eq!(segment(proto::TCP, &bytes, 0).read().unwrap().payload_len, 5);
    }

    #[test]
    fn impossible_data_offset_is_malformed_not_lost() {
        let mut bytes = tcp_bytes();
        for offset in [0x10, 0xf0] {
            bytes[12] = offset;
            let read = segment(proto::TCP, &bytes, 25).read().unwrap();
            assert_eq!(read.checksum, Checksum::Malformed);
            assert!(matches!(read.transport, Transport::Tcp { src_port: 4000, .. }));
        }
        assert!(segment(proto::TCP, &bytes[..19], 25).read().is_err());
    }

    #[test]
    fn udp_counts_its_own_length() {
        let bytes = [0, 53, 0x10, 0, 0, 20, 0, 0, 1, 2, 3];
        let read = segment(proto::UDP, &bytes, 11).read().unwrap();
        assert_eq!((read.payload.len(), read.payload_len), (3, 12));
        let bytes = [0, 53, 0x10, 0, 0, 0, 0, 0];
        assert_eq!(segment(proto::UDP, &bytes, 8).read().unwrap().payload_len, 0);
        assert!(segment(proto::UDP, &bytes[..7], 8).read().is_err());
    }

    #[test]
    fn checksums_are_verified_only_when_told_and_possible() {
        let bytes = tcp_bytes();
        let mut verify = segment(proto::TCP, &bytes, 25);
        verify.verify = true;
        assert_eq!(verify.read().unwrap().checksum, Checksum::Bad);
        verify.cut = true;
        assert_eq!(verify.read().unwrap().checksum, Checksum::Accepted);
    }
}
