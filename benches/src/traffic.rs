//! Frames made in memory: a fixed number of sessions that send in random order, in both directions.
//!
//! A turn is one frame. In each cycle every session has one turn, and each cycle has an order of
//! its own. So a session's memory is always as cold as the number of sessions makes it, and what
//! a session sends follows from the number of the cycle: nothing has to be remembered of millions
//! of sessions, which would push the engine's own memory out of the caches.

use std::fmt;

use capture_flow::time::{Nanos, NanosDelta};
use clap::ValueEnum;

/// Cycles in which a TCP session shakes hands.
const HANDSHAKE: u64 = 3;

/// What sessions speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Speech {
    /// UDP over IPv4, datagrams both ways
    Udp,
    /// TCP over IPv4: a handshake, then data in order both ways
    Tcp,
    /// UDP over IPv6, datagrams both ways
    Udp6,
    /// UDP over IPv4, every frame a new session: no session ever has a second one
    New,
}

impl fmt::Display for Speech {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Udp6 => "udp6",
            Self::New => "new",
        })
    }
}

/// An Ethernet header between two stations.
const ETHERNET: [u8; 14] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;
const TCP: usize = 20;
/// A payload that no protocol begins with.
const PAYLOAD: u8 = 0xa5;

/// Traffic of a kind.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    speech: Speech,
    sessions: u64,
    frame_bytes: usize,
    /// The number of bits that name every session, and a mask of as many.
    bits: u32,
}

/// A frame's addresses and ports.
struct Ends {
    host: u32,
    host_port: u16,
    server: u32,
    server_port: u16,
    to_server: bool,
}

impl Traffic {
    /// Frames of `frame_bytes` (at least [`Traffic::LEAST_BYTES`]) between so many pairs.
    #[must_use]
    pub fn new(speech: Speech, sessions: u64, frame_bytes: usize) -> Self {
        let sessions = sessions.max(1);
        let bits = (u64::BITS - (sessions - 1).leading_zeros()).max(2);
        Self { speech, sessions, frame_bytes: frame_bytes.max(Self::LEAST_BYTES), bits }
    }

    /// Headers of every kind and a byte of payload fit.
    pub const LEAST_BYTES: usize = 64;

    /// Sessions that there are.
    #[must_use]
    pub fn sessions(&self) -> u64 {
        self.sessions
    }

    /// Bytes of each frame.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        self.frame_bytes
    }

    /// When the frame of a turn arrives: back to back on 10 Gbit/s Ethernet, with preamble, check
    /// sum and gap.
    #[must_use]
    pub fn arrival(&self, turn: u64) -> Nanos {
        const BEGIN: i64 = 1_700_000_000_000_000_000;
        Nanos(BEGIN.saturating_add((turn as f64 * self.wire_time_ns()) as i64))
    }

    /// The time that a frame takes on 10 Gbit/s Ethernet.
    #[must_use]
    pub fn wire_time_ns(&self) -> f64 {
        (self.frame_bytes + 24) as f64 * 0.8
    }

    /// The time that one cycle takes.
    #[must_use]
    pub fn cycle_time(&self) -> NanosDelta {
        self.arrival(self.sessions) - self.arrival(0)
    }

    /// Writes the payload that all frames share.
    pub fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(PAYLOAD);
    }

    /// Writes the headers of a turn's frame; `bytes` is at least as long as all of them.
    pub fn write(&self, turn: u64, bytes: &mut [u8]) {
        let (cycle, place) = (turn / self.sessions, turn % self.sessions);
        let (session, cycle) = match self.speech {
            // A number that never comes again.
            Speech::New => (turn, 0),
            _ => (self.shuffled(place, cycle), cycle),
        };
        let ends = Self::ends(session, cycle);
        match self.speech {
            Speech::Udp | Speech::New => self.udp(&ends, bytes),
            Speech::Udp6 => self.udp6(&ends, bytes),
            Speech::Tcp => self.tcp(&ends, cycle, session, bytes),
        }
    }

    fn ends(session: u64, cycle: u64) -> Ends {
        // 24 bits of address, the rest in the port: 2^40 pairs.
        let host = 0x0a00_0000 | (session as u32 & 0x00ff_ffff);
        let host_port = 0x8000 | (session >> 24) as u16;
        let server = 0xac10_0000 | (session as u32 & 0xff);
        Ends { host, host_port, server, server_port: 4433, to_server: (cycle ^ session) & 1 == 0 }
    }

    /// The session that has the `place`-th turn of a cycle: a permutation of all of them, cut out
    /// of one of a power of two.
    fn shuffled(&self, place: u64, cycle: u64) -> u64 {
        let mask = (1_u64 << self.bits) - 1;
        let half = self.bits.div_ceil(2);
        let key = cycle.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 7;
        let mut at = place;
        loop {
            // Each step has an inverse among numbers of so many bits.
            at = (at ^ key) & mask;
            at = at.wrapping_mul(0xd6e8_feb8_6659_fd93) & mask;
            at ^= at >> half;
            at = at.wrapping_mul(0xca5a_8263_9512_1157) & mask;
            at ^= at >> half;
            if at < self.sessions {
                return at;
            }
        }
    }

    fn udp(&self, ends: &Ends, bytes: &mut [u8]) {
        let Some((head, _)) = bytes.split_first_chunk_mut::<{ 14 + IPV4 + UDP }>() else { return };
        let len = (self.frame_bytes - 14) as u16;
        head[..14].copy_from_slice(&ETHERNET);
        ipv4(ends, 17, len, &mut head[14..]);
        ports(ends, &mut head[14 + IPV4..]);
        head[38..40].copy_from_slice(&(len - IPV4 as u16).to_be_bytes());
        head[40..42].fill(0);
    }

    fn udp6(&self, ends: &Ends, bytes: &mut [u8]) {
        let Some((head, _)) = bytes.split_first_chunk_mut::<{ 14 + IPV6 + UDP }>() else { return };
        let len = (self.frame_bytes - 14 - IPV6) as u16;
        head[..12].copy_from_slice(&ETHERNET[..12]);
        head[12..18].copy_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
        head[18..20].copy_from_slice(&len.to_be_bytes());
        head[20..22].copy_from_slice(&[17, 64]);
        let (src, dst) =
            if ends.to_server { (ends.host, ends.server) } else { (ends.server, ends.host) };
        for (at, end) in [(22, src), (38, dst)] {
            let addr = 0x2001_0db8_u128 << 96 | u128::from(end);
            head[at..at + 16].copy_from_slice(&addr.to_be_bytes());
        }
        ports(ends, &mut head[14 + IPV6..]);
        head[58..60].copy_from_slice(&len.to_be_bytes());
        head[60..62].fill(0);
    }

    fn tcp(&self, ends: &Ends, cycle: u64, session: u64, bytes: &mut [u8]) {
        const SYN: u8 = 0x02;
        const ACK: u8 = 0x10;
        let Some((head, _)) = bytes.split_first_chunk_mut::<{ 14 + IPV4 + TCP }>() else { return };
        let data = (self.frame_bytes - 14 - IPV4 - TCP) as u64;
        // The two ends send in turn, so each has sent in every second cycle since the handshake.
        let sent = cycle.saturating_sub(HANDSHAKE);
        let first_to_server = (HANDSHAKE ^ session) & 1 == 0;
        let (ahead, behind) = (sent.div_ceil(2), sent / 2);
        let (of_host, of_server) = if first_to_server { (ahead, behind) } else { (behind, ahead) };
        let host_seq = 1_u32.wrapping_add((of_host * data) as u32);
        let server_seq = 1_u32.wrapping_add((of_server * data) as u32);
        let (to_server, seq, ack, flags, data) = match cycle {
            0 => (true, 0, 0, SYN, 0),
            1 => (false, 0, 1, SYN | ACK, 0),
            2 => (true, 1, 1, ACK, 0),
            _ if ends.to_server => (true, host_seq, server_seq, ACK, data),
            _ => (false, server_seq, host_seq, ACK, data),
        };
        let ends = Ends { to_server, ..*ends };
        head[..14].copy_from_slice(&ETHERNET);
        // Frames of the handshake are padded.
        ipv4(&ends, 6, (IPV4 + TCP) as u16 + data as u16, &mut head[14..]);
        ports(&ends, &mut head[14 + IPV4..]);
        head[38..42].copy_from_slice(&seq.to_be_bytes());
        head[42..46].copy_from_slice(&ack.to_be_bytes());
        head[46..54].copy_from_slice(&[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    }
}

fn ipv4(ends: &Ends, protocol: u8, len: u16, head: &mut [u8]) {
    let (src, dst) =
        if ends.to_server { (ends.host, ends.server) } else { (ends.server, ends.host) };
    head[..2].copy_from_slice(&[0x45, 0]);
    head[2..4].copy_from_slice(&len.to_be_bytes());
    head[4..12].copy_from_slice(&[0, 0, 0x40, 0, 64, protocol, 0, 0]);
    head[12..16].copy_from_slice(&src.to_be_bytes());
    head[16..20].copy_from_slice(&dst.to_be_bytes());
}

fn ports(ends: &Ends, head: &mut [u8]) {
    let (src, dst) = if ends.to_server {
        (ends.host_port, ends.server_port)
    } else {
        (ends.server_port, ends.host_port)
    };
    head[..2].copy_from_slice(&src.to_be_bytes());
    head[2..4].copy_from_slice(&dst.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use capture_flow::config::FlowConfig;
    use capture_flow::frame::{Frame, IfaceId, LinkType};
    use capture_flow::record::ConnState;
    use capture_flow::sink::SessionUpdate;
    use capture_flow::table::SessionTable;

    use super::*;

    #[test]
    fn every_session_has_one_turn_in_a_cycle() {
        for sessions in [1, 3, 64, 1000] {
            let traffic = Traffic::new(Speech::Udp, sessions, 64);
            for cycle in 0..4 {
                let seen: HashSet<u64> =
                    (0..sessions).map(|place| traffic.shuffled(place, cycle)).collect();
                assert_eq!(seen.len() as u64, sessions);
            }
        }
    }

    /// The engine itself says whether the frames are what they should be.
    fn sessions_of(speech: Speech, cycles: u64) -> Vec<SessionUpdate> {
        const SESSIONS: u64 = 100;
        let traffic = Traffic::new(speech, SESSIONS, 100);
        let mut table = SessionTable::new(FlowConfig::default()).expect("a table");
        let mut rows = Vec::<SessionUpdate>::new();
        for turn in 0..cycles * SESSIONS {
            let mut bytes = [0; 100];
            traffic.fill(&mut bytes);
            traffic.write(turn, &mut bytes);
            let frame = Frame {
                ts: traffic.arrival(turn),
                wire_len: 100,
                bytes: &bytes,
                link: LinkType::ETHERNET,
                iface: IfaceId(0),
                at: None,
            };
            table.observe_batch(&[frame], &mut rows);
        }
        table.finish(traffic.arrival(cycles * SESSIONS), &mut rows);
        assert_eq!(table.stats().undecodable_frames(), 0);
        rows
    }

    #[test]
    fn tcp_sessions_are_whole_and_in_order() {
        let rows = sessions_of(Speech::Tcp, 13);
        assert_eq!(rows.len(), 100);
        for row in rows {
            assert_eq!(row.record.conn_state, ConnState::S1);
            assert_eq!(row.record.missed_bytes, 0);
            assert_eq!((row.record.orig.pkts, row.record.resp.pkts), (7, 6));
            assert_eq!(row.bytes, [5 * 46; 2]);
            assert!(["ShADd", "ShAdD"].contains(&row.record.history.as_str()));
        }
    }

    #[test]
    fn datagrams_go_both_ways() {
        for (speech, payload) in [(Speech::Udp, 58), (Speech::Udp6, 38)] {
            let rows = sessions_of(speech, 10);
            assert_eq!(rows.len(), 100);
            for row in rows {
                assert_eq!((row.record.orig.pkts, row.record.resp.pkts), (5, 5));
                assert_eq!(row.bytes, [5 * payload; 2]);
            }
        }
    }

    #[test]
    fn a_new_session_for_every_frame() {
        assert_eq!(sessions_of(Speech::New, 3).len(), 300);
    }
}
