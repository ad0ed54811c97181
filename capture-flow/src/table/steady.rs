//! The short way of nearly every frame: it belongs to a session in full swing and brings what
//! comes next, so that nothing changes but numbers.
//!
//! This is [`super::account`] with everything left out that cannot happen then. Whatever is not so
//! is noticed before anything was changed, and takes the long way from its beginning. A property
//! test holds the two ways to each other.

use crate::decode::{Addresses, Decoder, TcpGlance};
use crate::frame::Frame;
use crate::key::{BriefKey, FlowHash, PackedKey};
use crate::memory::Memory;
use crate::sink::Sink;
use crate::tcp::Segment;
use crate::timer::Class;

use super::core::Core;
use super::session::{Flags, NONE, Near};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// What a frame brings its session, between the stages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain {
    key: BriefKey,
    pub(super) hash: FlowHash,
    total_len: u32,
    payload_len: u32,
    /// `None` for UDP.
    tcp: Option<TcpGlance>,
    /// The session's slot: a guess.
    pub(super) slot: u32,
    /// Whether its sender is the key's low end.
    from_low: bool,
    /// Whether the capture holds the whole payload.
    whole: bool,
    /// Whether there is such a frame.
    pub(super) is_some: bool,
}

impl Plain {
    /// No such frame.
    pub(super) const NONE: Self = Self {
        key: BriefKey::NONE,
        hash: FlowHash(0),
        total_len: 0,
        payload_len: 0,
        tcp: None,
        slot: NONE,
        from_low: false,
        whole: false,
        is_some: false,
    };

    /// Whether it is TCP.
    #[inline]
    pub(super) const fn is_tcp(&self) -> bool {
        self.tcp.is_some()
    }
}

impl<M: Memory> Core<M> {
    /// First stage: what a frame brings. Its key goes to `wide` where it is not brief.
    #[inline]
    pub(super) fn look(
        &self,
        decoder: &Decoder,
        frame: &Frame<'_>,
        plain: &mut Plain,
        wide: &mut PackedKey,
    ) {
        let Some(glance) = decoder.glance(frame) else {
            plain.is_some = false;
            return;
        };
        let vlans = if self.vlan_in_key { glance.vlans } else { (0, 0) };
        let protocol = if glance.tcp.is_some() { TCP } else { UDP };
        let (src_port, dst_port) = (glance.src_port, glance.dst_port);
        let (key, from_low) = match glance.addrs {
            Addresses::V4(src, dst) => {
                PackedKey::of_v4((src, src_port), (dst, dst_port), protocol, vlans)
            }
            Addresses::V6(src, dst) => {
                let (src, dst) = (u128::from_be_bytes(*src), u128::from_be_bytes(*dst));
                PackedKey::of_v6((src, src_port), (dst, dst_port), protocol, vlans)
            }
        };
        let hash = self.hasher.hash_packed(&key);
        M::fetch(self.index.home_of(hash));
        plain.key = key.brief(hash);
        if !plain.key.is_whole() {
            *wide = key;
        }
        plain.hash = hash;
        plain.total_len = glance.total_len;
        plain.payload_len = glance.payload_len;
        plain.tcp = glance.tcp;
        plain.from_low = from_low;
        plain.whole = glance.whole;
        plain.is_some = true;
    }

    /// Last stage: counts a frame to its session in full swing. False if that is not all there is
    /// to do: then nothing was done.
    #[inline]
    pub(super) fn steady(
        &mut self,
        frame: &Frame<'_>,
        plain: &Plain,
        wide: &PackedKey,
        sink: &mut impl Sink,
    ) -> bool {
        let slot = plain.slot as usize;
        let Some(Near { hot, place, cruise }) = self.near.get_mut(slot) else { return false };
        if hot.key != plain.key || (!plain.key.is_whole() && self.cold[slot].key != *wide) {
            return false;
        }
        // It is not over, and the frame is the latest, of its session and of its row.
        let (now, limit) = (frame.ts, self.limits.of(hot.class));
        let is_late = now < self.latest_row && now < place.row_time;
        if hot.last_time + limit <= now
            || now < hot.last_time
            || is_late
            || hot.flags.has(Flags::LAST_TS_APART)
        {
            return false;
        }
        let is_orig = plain.from_low == hot.flags.has(Flags::ORIG_IS_LOW);
        let who = usize::from(!is_orig);
        // Or looked at to see which way round the session is.
        let detecting = hot.flags.has(Flags::DETECTING[who] | Flags::TURNS[who]);
        // The lower halves of the counters have room.
        let (Some(pkts), Some(ip_bytes), Some(frame_bytes)) = (
            hot.pkts[who].checked_add(1),
            hot.ip_bytes[who].checked_add(plain.total_len),
            hot.frame_bytes.checked_add(frame.wire_len),
        ) else {
            return false;
        };
        let counts = match (&plain.tcp, hot.class) {
            (Some(tcp), Class::Tcp | Class::TcpInteractive | Class::TcpHandshake) => {
                let has_data = plain.payload_len > 0;
                let segment = Segment {
                    seq: tcp.seq,
                    ack: tcp.ack,
                    flags: tcp.flags,
                    window: tcp.window,
                    len: plain.payload_len,
                    whole: plain.whole,
                    room: true,
                };
                !(has_data && detecting) && cruise.next_in_order(is_orig, &segment)
            }
            (None, Class::Udp) => {
                // A side's first datagram writes its letter.
                let headers = plain.total_len.wrapping_sub(plain.payload_len);
                !detecting && pkts > 1 && i64::from(headers) == plain.key.header_bytes()
            }
            _ => false,
        };
        if !counts {
            return false;
        }
        hot.last_time = now;
        hot.pkts[who] = pkts;
        hot.ip_bytes[who] = ip_bytes;
        hot.frame_bytes = frame_bytes;
        hot.flags.set(Flags::NEWS, true);
        self.stats.decoded += 1;
        if let Some(at) = frame.at {
            hot.flags.set(Flags::RECORDED, true);
            hot.pcap_offset = at.offset;
            hot.pcap_segment = at.segment as u32;
            self.recorded = at;
            sink.touch(at, plain.hash, &mut hot.mark);
        }
        self.keep_order(plain.slot);
        true
    }
}
