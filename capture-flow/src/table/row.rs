//! From a session to its row.

use crate::key::{Address, Protocol};
use crate::record::{ConnState, RowReason, SessionRecord, Side};
use crate::sink::{SessionUpdate, Sink};
use crate::time::NanosDelta;

use super::core::Core;
use super::session::{Kind, Transport};

impl Core {
    /// Hands the sink a row of the session as it stands.
    pub(super) fn write_row(&mut self, slot: u32, reason: RowReason, sink: &mut impl Sink) {
        let uid = self.uid(slot);
        let kind = self.kind(slot);
        let hot = &mut self.hot[slot as usize];
        let cold = &mut self.cold[slot as usize];
        hot.news = false;

        let duration = hot.last_time - cold.start;
        let duration = (duration > NanosDelta::ZERO).then_some(duration);
        let mut half = None;
        let (bytes, conn_state, missed_bytes) = match &hot.transport {
            Transport::Tcp(tcp) => {
                half = tcp.half().map(Box::new);
                (tcp.sizes(), tcp.conn_state(cold.history.as_str()), tcp.missed_bytes)
            }
            Transport::Datagram(datagram) => {
                let state = if kind == Kind::Udp { datagram.udp_state() } else { ConnState::OTH };
                (datagram.bytes, state, 0)
            }
        };
        let protocol = hot.key.protocol();
        let [low, high] = hot.key.ends();
        let ends = if hot.orig_is_low { [low, high] } else { [high, low] };
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
                pkts: hot.pkts[who],
                ip_bytes: hot.ip_bytes[who],
                local,
            }
        };
        let record = SessionRecord {
            uid,
            iface: cold.iface,
            ts: cold.first_ts,
            last_ts: hot.last_ts,
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
            direction_certain: !hot.direction_guessed,
            fragment_overlap: cold.fragment_overlap,
            join_certain: true,
            update: cold.update,
            reason,
            frames: hot.frames,
            frame_bytes: hot.frame_bytes,
            pcap_first: cold.pcap_first,
            pcap_last: hot.pcap_last,
            flushed_at: self.clock,
        };
        cold.update = cold.update.saturating_add(1);
        self.stats.rows += 1;
        if reason == RowReason::Interim {
            self.stats.interim_rows += 1;
        }
        sink.session(SessionUpdate {
            record,
            flow: hot.hash,
            start: cold.start,
            last_time: hot.last_time,
            bytes,
            letter_times: cold.letter_times,
            half,
        });
    }
}
