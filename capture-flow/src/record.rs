//! A session as it is written down.
//!
//! The columns and their meanings are Zeek's conn.log wherever Zeek has them.

use std::fmt;

use crate::frame::{IfaceId, PcapPosition};
use crate::key::{Address, MacAddr, Protocol, SessionKey};
use crate::time::{Nanos, NanosDelta};

/// A session's identity: prints as `C` and base62 digits, unique across restarts and sensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(pub u128);

/// Base62 digits after the `C`: enough for 102 bits.
const UID_DIGITS: usize = 17;

impl Uid {
    /// How many bits of the number the printed form carries.
    pub const BITS: u32 = 100;
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let mut text = [b'0'; UID_DIGITS + 1];
        let mut rest = self.0 & ((1 << Self::BITS) - 1);
        for digit in text.iter_mut().rev() {
            *digit = DIGITS[(rest % 62) as usize];
            rest /= 62;
        }
        text[0] = b'C';
        f.write_str(std::str::from_utf8(&text).unwrap_or("C"))
    }
}

/// Zeek's conn_state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(clippy::upper_case_acronyms)]
pub enum ConnState {
    /// Attempt seen, no reply.
    S0,
    /// Established, not terminated.
    S1,
    /// Established, close attempt by the originator seen, no reply from the responder.
    S2,
    /// Established, close attempt by the responder seen, no reply from the originator.
    S3,
    /// Normal establishment and termination.
    SF,
    /// Attempt rejected.
    REJ,
    /// Established, originator aborted.
    RSTO,
    /// Responder aborted.
    RSTR,
    /// Originator sent a SYN followed by a RST; no SYN-ACK from the responder.
    RSTOS0,
    /// Responder sent a SYN-ACK followed by a RST; no SYN from the originator.
    RSTRH,
    /// Originator sent a SYN followed by a FIN; no SYN-ACK from the responder.
    SH,
    /// Responder sent a SYN-ACK followed by a FIN; no SYN from the originator.
    SHR,
    /// No SYN seen: traffic picked up in the middle.
    #[default]
    OTH,
}

impl ConnState {
    /// Every state, in the order of Zeek's documentation.
    pub const ALL: [Self; 13] = [
        Self::S0,
        Self::S1,
        Self::SF,
        Self::REJ,
        Self::S2,
        Self::S3,
        Self::RSTO,
        Self::RSTR,
        Self::RSTOS0,
        Self::RSTRH,
        Self::SH,
        Self::SHR,
        Self::OTH,
    ];

    /// The text of the column.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::S0 => "S0",
            Self::S1 => "S1",
            Self::S2 => "S2",
            Self::S3 => "S3",
            Self::SF => "SF",
            Self::REJ => "REJ",
            Self::RSTO => "RSTO",
            Self::RSTR => "RSTR",
            Self::RSTOS0 => "RSTOS0",
            Self::RSTRH => "RSTRH",
            Self::SH => "SH",
            Self::SHR => "SHR",
            Self::OTH => "OTH",
        }
    }
}

/// Zeek's history letters, kept in line so that a record needs no allocation.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct History {
    letters: [u8; Self::CAPACITY],
    len: u8,
}

impl History {
    /// Letters that fit. Zeek logs each letter once per direction and the volume letters
    /// (`c g t w`) at powers of ten, so only a hostile or very long session needs more.
    pub const CAPACITY: usize = 39;

    /// Appends a letter (ASCII); drops it once the history is full.
    pub fn push(&mut self, letter: u8) {
        debug_assert!(letter.is_ascii());
        if let Some(slot) = self.letters.get_mut(usize::from(self.len)) {
            *slot = letter;
            self.len += 1;
        }
    }

    /// The letters so far.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only ASCII goes in, so this never falls back.
        std::str::from_utf8(&self.letters[..usize::from(self.len)]).unwrap_or("")
    }

    /// The letters so far, to be edited in place (a flip swaps their case).
    pub fn letters_mut(&mut self) -> &mut [u8] {
        &mut self.letters[..usize::from(self.len)]
    }
}

impl Default for History {
    fn default() -> Self {
        Self { letters: [0; Self::CAPACITY], len: 0 }
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// Application protocol, recognised by content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// Domain name system.
    Dns,
    /// Dynamic host configuration, v4 and v6.
    Dhcp,
    /// File transfer, control channel.
    Ftp,
    /// HTTP/1.x.
    Http,
    /// Network time.
    Ntp,
    /// QUIC.
    Quic,
    /// Remote desktop.
    Rdp,
    /// SMB 1, 2 and 3.
    Smb,
    /// Mail transfer.
    Smtp,
    /// Secure shell.
    Ssh,
    /// TLS.
    Tls,
}

impl Service {
    /// Every service.
    pub const ALL: [Self; 11] = [
        Self::Dns,
        Self::Dhcp,
        Self::Ftp,
        Self::Http,
        Self::Ntp,
        Self::Quic,
        Self::Rdp,
        Self::Smb,
        Self::Smtp,
        Self::Ssh,
        Self::Tls,
    ];

    /// The text of the column.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Dhcp => "dhcp",
            Self::Ftp => "ftp",
            Self::Http => "http",
            Self::Ntp => "ntp",
            Self::Quic => "quic",
            Self::Rdp => "rdp",
            Self::Smb => "smb",
            Self::Smtp => "smtp",
            Self::Ssh => "ssh",
            Self::Tls => "tls",
        }
    }
}

/// What a service's first bytes told beyond its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceDetail {
    /// Server name that the client asked for (TLS and QUIC SNI, HTTP Host).
    pub server_name: Option<Box<str>>,
    /// Application protocols that the client offered (TLS ALPN), comma-separated.
    pub alpn: Option<Box<str>>,
}

/// Why a row is the last (or not the last) of its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowReason {
    /// The session goes on; this row carries its totals so far.
    Interim,
    /// The protocol ended it (FIN, RST) and its grace time passed.
    Closed,
    /// It fell silent for its idle limit.
    Timeout,
    /// A new session began on the same key.
    Replaced,
    /// The table was full and this was the session idle for the longest time.
    Evicted,
    /// The sensor stopped.
    Shutdown,
}

impl RowReason {
    /// Every reason.
    pub const ALL: [Self; 6] =
        [Self::Interim, Self::Closed, Self::Timeout, Self::Replaced, Self::Evicted, Self::Shutdown];

    /// The text of the column.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Interim => "interim",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Replaced => "replaced",
            Self::Evicted => "evicted",
            Self::Shutdown => "shutdown",
        }
    }

    /// Whether the session is over.
    #[must_use]
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Interim)
    }
}

/// One end of a session and what it sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// Its address.
    pub addr: Address,
    /// Its port; for ICMP the type (originator) and counterpart type or code (responder).
    pub port: u16,
    /// Link-layer address in its first frame; `None` where the link has none.
    pub l2_addr: Option<MacAddr>,
    /// Payload bytes by Zeek's rule (TCP: sequence numbers). `None` where Zeek leaves it unset.
    pub bytes: Option<u64>,
    /// Frames sent.
    pub pkts: u64,
    /// Bytes by the IP header's total length.
    pub ip_bytes: u64,
    /// Whether the address lies in the configured local networks; `None` without any configured
    /// or for a link-layer address.
    pub local: Option<bool>,
}

/// One row of the session log.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionRecord {
    /// Identity, the same in every row of the session.
    pub uid: Uid,
    /// Interface of its first frame.
    pub iface: IfaceId,
    /// First frame.
    pub ts: Nanos,
    /// Last frame so far.
    pub last_ts: Nanos,
    /// Zeek's duration: leaves out frames after both sides closed; `None` where Zeek leaves it
    /// unset (no time passed).
    pub duration: Option<NanosDelta>,
    /// The end taken for the originator.
    pub orig: Side,
    /// The end taken for the responder.
    pub resp: Side,
    /// What they spoke.
    pub protocol: Protocol,
    /// Application protocol.
    pub service: Option<Service>,
    /// Names seen in its first bytes; boxed because most sessions have none.
    pub detail: Option<Box<ServiceDetail>>,
    /// State by Zeek's rules.
    pub conn_state: ConnState,
    /// History by Zeek's rules.
    pub history: History,
    /// Payload bytes that were acknowledged but never seen.
    pub missed_bytes: u64,
    /// Outer VLAN id in the first frame.
    pub vlan: Option<u16>,
    /// Inner VLAN id in the first frame.
    pub inner_vlan: Option<u16>,
    /// Sessions of the tunnels around it, outermost first.
    pub tunnel_parents: Option<Box<[Uid]>>,
    /// False where the originator is a guess.
    pub direction_certain: bool,
    /// Whether fragments of one of its datagrams overlapped and did not agree on the bytes or on the
    /// datagram's end, so that what the receiver made of it is not certain.
    pub fragment_overlap: bool,
    /// False where two workers saw a direction each and what they saw leaves open where the
    /// session began and ended, or what is missing and in which order it happened.
    pub join_certain: bool,
    /// 0, 1, 2… over the rows of the session.
    pub update: u32,
    /// Why the row was written, and whether it is the last.
    pub reason: RowReason,
    /// Frames that count to this session and to no other: summed over all sessions they are the
    /// frames decoded, while `pkts` follows Zeek (reassembled datagrams, both tunnel layers).
    pub frames: u64,
    /// Bytes of those frames on the wire.
    pub frame_bytes: u64,
    /// Where the first frame lies, if it was kept.
    pub pcap_first: Option<PcapPosition>,
    /// Where the last frame lies, if it was kept.
    pub pcap_last: Option<PcapPosition>,
    /// When the engine let go of this row (the engine's clock: wall time when live, packet time
    /// in a replay).
    pub flushed_at: Nanos,
}

impl SessionRecord {
    /// The key under which segment indexes know the session's frames. `vlan_in_key` says whether
    /// the sensor was told that VLAN tags separate networks.
    #[must_use]
    pub fn key(&self, vlan_in_key: bool) -> SessionKey {
        let vlans = if vlan_in_key {
            (self.vlan.unwrap_or(0), self.inner_vlan.unwrap_or(0))
        } else {
            (0, 0)
        };
        let orig = (self.orig.addr, self.orig.port);
        let resp = (self.resp.addr, self.resp.port);
        SessionKey::of_ends(orig, resp, self.protocol, vlans)
    }
}
