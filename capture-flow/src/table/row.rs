//! From a session to its row.

use crate::datagram::udp_state;
use crate::frame::PcapPosition;
use crate::key::{Address, Protocol};
use crate::memory::Memory;
use crate::record::{ConnState, RowReason, SessionRecord, Side};
use crate::sink::{SessionUpdate, Sink};
use crate::time::NanosDelta;

use super::core::Core;
use super::session::{Flags, Kind, Near};

/// A counter of which the session keeps the halves apart.
pub(super) fn whole(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

impl<M: Memory> Core<M> {
    /// Hands the sink a row of the session as it stands.
    pub(super) fn write_row(&mut self, slot: u32, reason: RowReason, sink: &mut impl Sink) {
        let uid = self.uid(slot);
        let ends = self.ends(slot);
        let protocol = self.key(slot).protocol();
        let last_ts = self.last_ts(slot);
        let pcap_last = self.pcap_last(slot);
        let flow = self.hash(slot);
        let due = self.due(slot);
        let Near { hot, cruise, .. } = &mut self.near[slot as usize];
        let cold = &mut self.cold[slot as usize];
        let kind = Kind::of(hot.class);
        hot.flags.set(Flags::NEWS, false);

        let duration = hot.last_time - cold.start;
        let duration = (duration > NanosDelta::ZERO).then_some(duration);
        let pkts = [0, 1].map(|who| whole(cold.carry.pkts[who], hot.pkts[who]));
        let ip_bytes = [0, 1].map(|who| whole(cold.carry.ip_bytes[who], hot.ip_bytes[who]));
        let payload = [0, 1].map(|who| {
            // Headers of a known length, but for datagrams that were counted apart.
            let headers = (pkts[who] as i64).saturating_mul(hot.key.header_bytes());
            let bytes = (ip_bytes[who] as i64).saturating_sub(headers);
            bytes.saturating_add(cold.payload_apart[who]).max(0) as u64
        });
        let mut half = None;
        let (bytes, conn_state, missed_bytes) = match kind {
            Kind::Tcp => {
                let tcp = &mut self.tcp[slot as usize];
                tcp.land(cruise);
                half = tcp.half(&cold.rare).map(Box::new);
                (tcp.sizes(), tcp.conn_state(cold.history.as_str()), tcp.missed_bytes)
            }
            Kind::Udp => {
                // By who spoke in which role: roles can swap.
                let spoke = |letter: char| cold.history.as_str().contains(letter);
                (payload, udp_state([spoke('D'), spoke('d')]), 0)
            }
            Kind::Icmp => (payload, ConnState::OTH, 0),
            Kind::Other | Kind::Link => ([0, 0], ConnState::OTH, 0),
        };
        let frames = (pkts[0] + pkts[1]).saturating_add_signed(cold.frames_apart);
        let side = |who: usize| {
            let (addr, port) = ends[who];
            let local = match addr {
                Address::Ip(ip) if !self.local_nets.is_empty() => {
                    Some(self.local_nets.iter().any(|net| net.contains(ip)))
                }
                _ => None,
            };
            Side {
                addr,
                port: if matches!(protocol, Protocol::ICMP | Protocol::ICMP6) {
                    // Without the mark that tells a code from a type.
                    port & 0xff
                } else {
                    port
                },
                l2_addr: cold.l2[who],
                bytes: (duration.is_some() && kind != Kind::Link).then_some(bytes[who]),
                pkts: pkts[who],
                ip_bytes: ip_bytes[who],
                local,
            }
        };
        let record = SessionRecord {
            uid,
            iface: cold.iface,
            ts: cold.first_ts,
            last_ts,
            duration,
            orig: side(0),
            resp: side(1),
            protocol,
            service: cold.detector.service(),
            detail: cold.detail.clone(),
            conn_state,
            history: cold.history,
            missed_bytes,
            vlan: cold.vlan,
            inner_vlan: cold.inner_vlan,
            tunnel_parents: cold.parents.clone(),
            direction_certain: !cold.direction_guessed,
            fragment_overlap: cold.fragment_overlap,
            join_certain: true,
            update: cold.update,
            reason,
            frames,
            frame_bytes: whole(cold.carry.frame_bytes, hot.frame_bytes),
            pcap_first: cold.pcap_first,
            pcap_last,
            flushed_at: self.clock,
        };
        cold.update = cold.update.saturating_add(1);
        self.stats.rows += 1;
        if reason == RowReason::Interim {
            self.stats.interim_rows += 1;
        }
        sink.session(SessionUpdate {
            record,
            flow,
            start: cold.start,
            last_time: hot.last_time,
            due,
            bytes,
            letter_times: cold.letter_times,
            half,
        });
    }

    /// Where a session's last frame lies. Of its segment's number the session keeps one half; the
    /// other is that of the segment recorded to now, or next to it.
    fn pcap_last(&self, slot: u32) -> Option<PcapPosition> {
        let hot = &self.near[slot as usize].hot;
        let ahead = hot.pcap_segment.wrapping_sub(self.recorded.segment as u32) as i32;
        let segment = self.recorded.segment.wrapping_add_signed(i64::from(ahead));
        let offset = hot.pcap_offset;
        let at = PcapPosition { worker: self.recorded.worker, segment, offset };
        hot.flags.has(Flags::RECORDED).then_some(at)
    }
}
