//! Why a frame yields no packet.

/// Why a frame yields no packet. Each reason is a counter of its own.
///
/// A frame without IP that is otherwise sound is not among them: it yields a packet without an
/// IP layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u8)]
pub enum Undecodable {
    /// No decoder for the capture's link type.
    #[error("link type not supported")]
    LinkType,
    /// The link-layer header, a tag or a label stack is cut off.
    #[error("link-layer header cut off")]
    LinkTruncated,
    /// The link-layer header contradicts itself.
    #[error("link-layer header malformed")]
    LinkMalformed,
    /// More tags, labels and headers around each other than any network uses.
    #[error("too many nested headers")]
    TooDeep,
    /// The IP version is neither 4 nor 6.
    #[error("IP version neither 4 nor 6")]
    IpVersion,
    /// The IP header, or an IPv6 extension header, is cut off.
    #[error("IP header cut off")]
    IpTruncated,
    /// The IP header's lengths contradict each other.
    #[error("IP header lengths contradict each other")]
    IpHeaderLength,
    /// The IP header claims more bytes than were on the wire.
    #[error("IP length beyond the frame")]
    IpLengthBeyondFrame,
    /// The IP length is 0 (segmentation offload) and checksums are to be verified.
    #[error("IP length of zero while checksums are verified")]
    IpLengthZero,
    /// The IPv4 header checksum is wrong and checksums are to be verified.
    #[error("IPv4 header checksum wrong")]
    IpChecksum,
    /// The transport header is cut off.
    #[error("transport header cut off")]
    TransportTruncated,
    /// A fragment that is not the first and was not captured whole.
    #[error("fragment not captured whole")]
    FragmentTruncated,
    /// A fragment whose lengths contradict each other or reach beyond 65,535 bytes.
    #[error("fragment lengths contradict each other")]
    FragmentMalformed,
}

impl Undecodable {
    /// Every reason.
    pub const ALL: [Self; 13] = [
        Self::LinkType,
        Self::LinkTruncated,
        Self::LinkMalformed,
        Self::TooDeep,
        Self::IpVersion,
        Self::IpTruncated,
        Self::IpHeaderLength,
        Self::IpLengthBeyondFrame,
        Self::IpLengthZero,
        Self::IpChecksum,
        Self::TransportTruncated,
        Self::FragmentTruncated,
        Self::FragmentMalformed,
    ];

    /// The counter's name in the ledger.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LinkType => "link_type",
            Self::LinkTruncated => "link_truncated",
            Self::LinkMalformed => "link_malformed",
            Self::TooDeep => "too_deep",
            Self::IpVersion => "ip_version",
            Self::IpTruncated => "ip_truncated",
            Self::IpHeaderLength => "ip_header_length",
            Self::IpLengthBeyondFrame => "ip_length_beyond_frame",
            Self::IpLengthZero => "ip_length_zero",
            Self::IpChecksum => "ip_checksum",
            Self::TransportTruncated => "transport_truncated",
            Self::FragmentTruncated => "fragment_truncated",
            Self::FragmentMalformed => "fragment_malformed",
        }
    }

    /// The place of this reason in [`Self::ALL`], to index counters by.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lists_every_reason_in_order() {
        for (place, reason) in Undecodable::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), place);
        }
        let names: std::collections::HashSet<_> =
            Undecodable::ALL.into_iter().map(Undecodable::as_str).collect();
        assert_eq!(names.len(), Undecodable::ALL.len());
    }
}
