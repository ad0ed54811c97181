//! Which idle limit a session is under.
//!
//! Sessions under the same limit stand in one list in the order in which they came under it or
//! last moved, so that the next to expire is at or near its head: adding, moving and expiring
//! take constant time whatever the number of sessions.

use crate::config::Timeouts;
use crate::time::{Nanos, NanosDelta};

/// A list of sessions under one limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Class {
    /// TCP attempt without an answer: a fixed deadline from its SYN.
    #[default]
    TcpAttempt,
    /// TCP, closed: a fixed deadline from the close.
    TcpClosing,
    /// TCP, closed by a side whose first segment that was: a fixed deadline from the close.
    TcpPartlyClosed,
    /// TCP, one side closed, the other reset or never seen: looked at every few seconds.
    TcpLingering,
    /// TCP before its handshake is done: idle limit.
    TcpHandshake,
    /// TCP: idle limit.
    Tcp,
    /// TCP to a port where people sit and think (FTP, SSH, Telnet, rlogin): a long idle limit.
    TcpInteractive,
    /// UDP: idle limit.
    Udp,
    /// UDP to a DNS port: looked at every ten seconds.
    Dns,
    /// ICMP: idle limit.
    Icmp,
    /// Anything else over IP: idle limit.
    Other,
    /// Frames without IP: idle limit.
    Link,
}

impl Class {
    pub(crate) const COUNT: usize = 12;
    pub(crate) const ALL: [Self; Self::COUNT] = [
        Self::TcpAttempt,
        Self::TcpClosing,
        Self::TcpPartlyClosed,
        Self::TcpLingering,
        Self::TcpHandshake,
        Self::Tcp,
        Self::TcpInteractive,
        Self::Udp,
        Self::Dns,
        Self::Icmp,
        Self::Other,
        Self::Link,
    ];

    /// Whether the limit is a moment of its own instead of a time of silence.
    #[inline]
    pub(crate) const fn has_deadline(self) -> bool {
        matches!(
            self,
            Self::TcpAttempt
                | Self::TcpClosing
                | Self::TcpPartlyClosed
                | Self::TcpLingering
                | Self::Dns
        )
    }
}

/// How often Zeek's DNS analyzer looks whether a session fell silent (`dns_session_timeout`),
/// and how long the silence must be: a second less, so that a query with a quick answer ends at
/// the first look.
pub(crate) const DNS_LOOK: NanosDelta = NanosDelta::from_secs(10);
pub(crate) const DNS_SILENCE: NanosDelta = NanosDelta::from_secs(9);
/// First and further looks at a TCP session of which one side closed (`tcp_SYN_timeout`,
/// `tcp_session_timer`), and the silence asked for (`tcp_connection_linger`).
const LINGER_FIRST_LOOK: NanosDelta = NanosDelta::from_secs(5);
const LINGER_LOOK: NanosDelta = NanosDelta::from_secs(6);
const LINGER_SILENCE: NanosDelta = NanosDelta::from_secs(5);
/// Idle limit of interactive TCP sessions (scripts/base/protocols/conn/inactivity.zeek).
const INTERACTIVE: NanosDelta = NanosDelta::from_secs(3600);

/// Ports to which a TCP session is taken for an interactive one.
pub(crate) const fn is_interactive_port(port: u16) -> bool {
    matches!(port, 21 | 22 | 23 | 513)
}

/// Ports on which Zeek's DNS analyzer listens.
pub(crate) const fn is_dns_port(port: u16) -> bool {
    matches!(port, 53 | 137 | 5353 | 5355)
}

/// Port on which Zeek's NTP analyzer listens.
pub(crate) const NTP_PORT: u16 = 123;

/// Idle limits by class.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdleLimits([NanosDelta; Class::COUNT]);

impl IdleLimits {
    pub(crate) fn new(timeouts: &Timeouts) -> Self {
        Self(Class::ALL.map(|class| match class {
            Class::TcpAttempt => timeouts.tcp_attempt,
            Class::TcpClosing => timeouts.tcp_close,
            Class::TcpPartlyClosed => timeouts.tcp_partial_close,
            Class::TcpLingering => LINGER_LOOK,
            // Zeek sets the limit of UDP until the handshake is done.
            Class::TcpHandshake | Class::Udp => timeouts.udp_inactivity,
            Class::Tcp => timeouts.tcp_inactivity,
            Class::TcpInteractive => timeouts.tcp_inactivity.max(INTERACTIVE),
            Class::Dns => DNS_LOOK,
            Class::Icmp => timeouts.icmp_inactivity,
            Class::Other | Class::Link => timeouts.other_inactivity,
        }))
    }

    #[inline]
    pub(crate) fn of(&self, class: Class) -> NanosDelta {
        self.0[class as usize]
    }

    /// An eighth of the limit, in units of 2^30 ns, less than nine hours.
    #[inline]
    pub(crate) fn eighth_of(&self, class: Class) -> u16 {
        (self.of(class).0 >> 33).clamp(0, (1 << 15) - 1) as u16
    }
}

/// When Zeek looks whether a TCP session lingers: 5 s after it began and 6 s after one side closed,
/// and every 6 s from then on (TCPSessionAdapter::ExpireTimer, ConnectionClosed).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Looks([Nanos; 2]);

impl Looks {
    /// Of a session that began at `start`.
    pub(crate) fn new(start: Nanos) -> Self {
        Self([start + LINGER_FIRST_LOOK; 2])
    }

    /// One side closed at `closed`.
    pub(crate) fn close(&mut self, closed: Nanos) {
        self.0[1] = closed + LINGER_LOOK;
    }

    /// The first look that finds the session silent for long enough.
    pub(crate) fn last(&self, silent_since: Nanos) -> Nanos {
        let ripe = silent_since + LINGER_SILENCE;
        let [one, other] = self.0.map(|first| {
            let late = (ripe - first).0;
            if late < 0 {
                return first;
            }
            let looks = late / LINGER_LOOK.0 + 1;
            first + NanosDelta(looks.saturating_mul(LINGER_LOOK.0))
        });
        one.min(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_come_after_enough_silence() {
        let s = |seconds| Nanos::from_parts(seconds, 0);
        let mut looks = Looks::new(s(0));
        assert_eq!(looks.last(s(-1)), s(5));
        assert_eq!(looks.last(s(0)), s(11));
        assert_eq!(looks.last(s(5)), s(11));
        assert_eq!(looks.last(s(6)), s(17));
        // Two rows of looks: 5, 11, 17… and 9, 15, 21…
        looks.close(s(3));
        assert_eq!([3, 4, 6, 10].map(|silent| looks.last(s(silent))), [9, 11, 15, 17].map(s));
    }

    #[test]
    fn classes_are_numbered_in_order() {
        for (at, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, at);
        }
    }
}
