//! IP datagrams that arrive in pieces, put together in bounded memory so that their session can
//! be told and their lengths counted.
//!
//! The rules are Zeek's (src/Frag.cc): a datagram is known by its addresses and identification;
//! where fragments overlap, the bytes that came first win; it is complete when the bytes from 0
//! on reach the end that its last fragment claims. Zeek keeps an incomplete datagram for ever by
//! default; here it is given up after a while, or when memory runs out, the oldest first, and its
//! frames are reported.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;

use crate::decode::{HeldFrame, IncompleteDatagram};
use crate::packet::Link;
use crate::time::{Nanos, NanosDelta};

/// The longest payload that an IP total length can express.
const MAX_LEN: u32 = 65_535;

/// Bytes charged for a datagram and for each piece beside the payload itself: map entries, list
/// nodes, the frame's position.
const DATAGRAM_OVERHEAD: usize = 320;
const PIECE_OVERHEAD: usize = 128;

/// What fragments of one datagram share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DatagramKey {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) id: u32,
}

/// One fragment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fragment<'a> {
    pub(crate) key: DatagramKey,
    pub(crate) link: Link,
    /// Protocol of what was fragmented.
    pub(crate) protocol: u8,
    /// Length of the headers that every fragment repeats.
    pub(crate) header_len: u32,
    /// Where `data` lies in the datagram's payload.
    pub(crate) offset: u32,
    /// Whether more fragments follow this one.
    pub(crate) more: bool,
    pub(crate) data: &'a [u8],
    pub(crate) frame: HeldFrame,
    /// Frames that brought the rest of this fragment, itself put together from fragments of a
    /// tunnel around it.
    pub(crate) earlier: &'a [HeldFrame],
}

/// A datagram put together.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) protocol: u8,
    pub(crate) header_len: u32,
    pub(crate) payload: Vec<u8>,
    /// The frames before the one that completed it.
    pub(crate) earlier: Vec<HeldFrame>,
}

/// What became of a fragment.
#[derive(Debug)]
pub(crate) enum Added {
    /// The datagram is complete.
    Whole(Whole),
    /// It waits for the rest.
    Held,
    /// The fragment reaches beyond the longest datagram.
    TooLong,
}

/// What happened to datagrams so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentStats {
    /// Fragments received.
    pub fragments: u64,
    /// Datagrams put together.
    pub reassembled: u64,
    /// Datagrams given up because their time ran out or the run ended.
    pub expired: u64,
    /// Datagrams given up because memory ran out.
    pub evicted: u64,
    /// Fragments that repeated bytes already received.
    pub overlapping: u64,
    /// Fragments that contradicted bytes, or an end, already received.
    pub inconsistent: u64,
}

#[derive(Debug)]
struct Datagram {
    serial: u64,
    first_seen: Nanos,
    link: Link,
    protocol: u8,
    header_len: u32,
    /// Length of the payload by its last fragment; 0 while that is unknown.
    end: u32,
    /// Bytes received, by where they begin; none overlaps another.
    pieces: BTreeMap<u32, Box<[u8]>>,
    /// How far the bytes reach from 0 without a hole.
    reach: u32,
    frames: Vec<HeldFrame>,
    /// Whether its fragments contradicted each other.
    inconsistent: bool,
    charged: usize,
}

/// The incomplete datagrams of one worker.
#[derive(Debug)]
pub(crate) struct FragmentTable {
    limit: usize,
    timeout: NanosDelta,
    charged: usize,
    datagrams: HashMap<DatagramKey, Datagram>,
    /// Datagrams in the order in which they began. An entry whose datagram is gone is stale.
    order: VecDeque<(u64, DatagramKey)>,
    next_serial: u64,
    stats: FragmentStats,
}

impl FragmentTable {
    pub(crate) fn new(limit: usize, timeout: NanosDelta) -> Self {
        Self {
            limit,
            timeout,
            charged: 0,
            datagrams: HashMap::new(),
            order: VecDeque::new(),
            next_serial: 0,
            stats: FragmentStats::default(),
        }
    }

    pub(crate) fn stats(&self) -> &FragmentStats {
        &self.stats
    }

    /// Arrival of the oldest datagram that is still incomplete.
    pub(crate) fn oldest_arrival(&self) -> Option<Nanos> {
        let mut waiting = self.order.iter().filter_map(|(_, key)| self.datagrams.get(key));
        waiting.next().map(|datagram| datagram.first_seen)
    }

    /// Takes in a fragment; datagrams that must make room go to `give_up`.
    pub(crate) fn add(
        &mut self,
        fragment: &Fragment<'_>,
        mut give_up: impl FnMut(&IncompleteDatagram<'_>),
    ) -> Added {
        let len = u32::try_from(fragment.data.len()).unwrap_or(u32::MAX);
        let upper = fragment.offset.saturating_add(len);
        if upper.saturating_add(fragment.header_len) > MAX_LEN {
            return Added::TooLong;
        }
        self.stats.fragments += 1;
        let serial = self.next_serial;
        let datagram = self.datagrams.entry(fragment.key).or_insert_with(|| {
            self.next_serial += 1;
            self.order.push_back((serial, fragment.key));
            self.charged += DATAGRAM_OVERHEAD;
            Datagram::new(serial, fragment)
        });
        let before = datagram.charged;
        let overlap = datagram.take_in(fragment, upper);
        self.charged = self.charged.saturating_add(datagram.charged.saturating_sub(before));
        match overlap {
            Overlap::None => {}
            Overlap::Same => self.stats.overlapping += 1,
            Overlap::Contradicts => {
                self.stats.inconsistent += 1;
                datagram.inconsistent = true;
            }
        }
        if datagram.is_complete() {
            if let Some(datagram) = self.datagrams.remove(&fragment.key) {
                self.charged = self.charged.saturating_sub(datagram.charged);
                self.stats.reassembled += 1;
                self.drop_stale();
                return Added::Whole(datagram.into_whole(fragment.earlier));
            }
        } else {
            datagram.frames.extend_from_slice(fragment.earlier);
            datagram.frames.push(fragment.frame);
        }
        while self.charged > self.limit && self.give_up_oldest(&mut give_up) {
            self.stats.evicted += 1;
        }
        Added::Held
    }

    /// Gives up datagrams that began longer than the time limit before `now`.
    pub(crate) fn expire(&mut self, now: Nanos, mut give_up: impl FnMut(&IncompleteDatagram<'_>)) {
        while let Some((_, key)) = self.oldest() {
            let due = self.datagrams.get(&key).is_none_or(|d| now - d.first_seen >= self.timeout);
            if !due {
                break;
            }
            self.give_up_oldest(&mut give_up);
            self.stats.expired += 1;
        }
    }

    /// Gives up everything: the run ends.
    pub(crate) fn finish(&mut self, mut give_up: impl FnMut(&IncompleteDatagram<'_>)) {
        while self.give_up_oldest(&mut give_up) {
            self.stats.expired += 1;
        }
    }

    /// The oldest datagram still incomplete.
    fn oldest(&mut self) -> Option<(u64, DatagramKey)> {
        self.drop_stale();
        self.order.front().copied()
    }

    fn drop_stale(&mut self) {
        while let Some((serial, key)) = self.order.front() {
            if self.datagrams.get(key).is_some_and(|d| d.serial == *serial) {
                break;
            }
            self.order.pop_front();
        }
        // Completed datagrams behind a slow one: without this the list would grow while one
        // datagram waits.
        if self.order.len() > 2 * self.datagrams.len() + 64 {
            let datagrams = &self.datagrams;
            self.order
                .retain(|(serial, key)| datagrams.get(key).is_some_and(|d| d.serial == *serial));
        }
    }

    fn give_up_oldest(&mut self, give_up: &mut impl FnMut(&IncompleteDatagram<'_>)) -> bool {
        let Some((_, key)) = self.oldest() else { return false };
        self.order.pop_front();
        let Some(mut datagram) = self.datagrams.remove(&key) else { return false };
        datagram.mark_frames();
        self.charged = self.charged.saturating_sub(datagram.charged);
        give_up(&IncompleteDatagram {
            link: datagram.link,
            src: key.src,
            dst: key.dst,
            protocol: datagram.protocol,
            frames: &datagram.frames,
        });
        true
    }
}

enum Overlap {
    None,
    Same,
    Contradicts,
}

impl Datagram {
    fn new(serial: u64, fragment: &Fragment<'_>) -> Self {
        Self {
            serial,
            first_seen: fragment.frame.ts,
            link: fragment.link,
            protocol: fragment.protocol,
            header_len: fragment.header_len,
            end: 0,
            pieces: BTreeMap::new(),
            reach: 0,
            frames: Vec::new(),
            inconsistent: false,
            charged: DATAGRAM_OVERHEAD,
        }
    }

    fn take_in(&mut self, fragment: &Fragment<'_>, upper: u32) -> Overlap {
        let mut overlap = Overlap::None;
        // Zeek puts fragments together whatever their protocol, IPv4 hosts only those of one. In
        // IPv6 it is the first fragment's alone that counts.
        if fragment.protocol != self.protocol && fragment.key.src.is_ipv4() {
            overlap = Overlap::Contradicts;
        }
        if fragment.offset == 0 {
            self.protocol = fragment.protocol;
        }
        if !fragment.more && self.end != 0 && upper != self.end {
            overlap = Overlap::Contradicts;
        }
        // An end once claimed only ever moves up.
        if !fragment.more || (self.end != 0 && upper > self.end) {
            self.end = self.end.max(upper);
        }
        self.charged += PIECE_OVERHEAD * (1 + fragment.earlier.len());
        match self.insert(fragment.offset, fragment.data) {
            Overlap::None => overlap,
            Overlap::Same if matches!(overlap, Overlap::None) => Overlap::Same,
            Overlap::Same => overlap,
            Overlap::Contradicts => Overlap::Contradicts,
        }
    }

    /// Stores the bytes that no earlier fragment brought.
    fn insert(&mut self, offset: u32, data: &[u8]) -> Overlap {
        let end = offset.saturating_add(data.len() as u32);
        let mut overlap = Overlap::None;
        let mut gaps = Vec::new();
        let mut at = offset;
        // Pieces never overlap, so only the last one that begins before `offset` can reach into
        // the new bytes, and every one that begins inside them does.
        let reaching = self
            .pieces
            .range(..offset)
            .next_back()
            .into_iter()
            .chain(self.pieces.range(offset..end));
        for (&start, piece) in reaching {
            let stop = start.saturating_add(piece.len() as u32);
            let (from, to) = (start.max(offset), stop.min(end));
            if from >= to {
                continue;
            }
            let old = piece.get((from - start) as usize..(to - start) as usize);
            let new = data.get((from - offset) as usize..(to - offset) as usize);
            if old != new {
                overlap = Overlap::Contradicts;
            } else if matches!(overlap, Overlap::None) {
                overlap = Overlap::Same;
            }
            if at < from {
                gaps.push((at, from));
            }
            at = at.max(to);
        }
        if at < end {
            gaps.push((at, end));
        }
        for (from, to) in gaps {
            if let Some(bytes) = data.get((from - offset) as usize..(to - offset) as usize) {
                self.charged += bytes.len() + PIECE_OVERHEAD;
                self.pieces.insert(from, bytes.into());
            }
        }
        while let Some(next) = self.pieces.get(&self.reach) {
            self.reach = self.reach.saturating_add(next.len() as u32);
        }
        overlap
    }

    /// Whether the bytes from 0 on reach the claimed end. Bytes beyond a hole behind that end
    /// are left out; bytes that reach past the end without a hole extend it.
    fn is_complete(&self) -> bool {
        self.end != 0 && self.reach >= self.end
    }

    /// Lets its frames tell their session that it is not certain what they said. A fragment can
    /// only contradict an earlier one, so there is a frame to tell it.
    fn mark_frames(&mut self) {
        if self.inconsistent {
            self.frames.iter_mut().for_each(|frame| frame.inconsistent = true);
        }
    }

    fn into_whole(mut self, last: &[HeldFrame]) -> Whole {
        self.mark_frames();
        self.frames.extend_from_slice(last);
        let mut payload = Vec::with_capacity(self.reach as usize);
        for (_, piece) in self.pieces.range(..self.reach) {
            payload.extend_from_slice(piece);
        }
        Whole {
            protocol: self.protocol,
            header_len: self.header_len,
            payload,
            earlier: self.frames,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(id: u32) -> DatagramKey {
        DatagramKey { src: [10, 0, 0, 1].into(), dst: [10, 0, 0, 2].into(), id }
    }

    fn frame(ts: i64) -> HeldFrame {
        HeldFrame {
            ts: Nanos(ts),
            wire_len: 100,
            iface: crate::frame::IfaceId(0),
            at: None,
            owns_frame: true,
            inconsistent: false,
        }
    }

    fn fragment(id: u32, offset: u32, data: &[u8], more: bool) -> Fragment<'_> {
        Fragment {
            key: key(id),
            link: Link::default(),
            protocol: 17,
            header_len: 20,
            offset,
            more,
            data,
            frame: frame(0),
            earlier: &[],
        }
    }

    fn table(limit: usize) -> FragmentTable {
        FragmentTable::new(limit, NanosDelta::from_secs(60))
    }

    fn never(_: &IncompleteDatagram<'_>) {
        panic!("nothing should be given up");
    }

    #[test]
    fn any_order_gives_the_same_datagram() {
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
            let mut table = table(100_000);
            let all = [
                fragment(1, 0, b"abcdefgh", true),
                fragment(1, 8, b"ijklmnop", true),
                fragment(1, 16, b"qrs", false),
            ];
            for (place, which) in order.into_iter().enumerate() {
                match table.add(&all[which], never) {
                    Added::Whole(whole) => {
                        assert_eq!(place, 2);
                        assert_eq!(whole.payload, b"abcdefghijklmnopqrs");
                        assert_eq!(whole.earlier.len(), 2);
                    }
                    Added::Held => assert!(place < 2),
                    Added::TooLong => panic!("not too long"),
                }
            }
            assert_eq!((table.charged, table.datagrams.len()), (0, 0));
            assert_eq!(table.stats().reassembled, 1);
        }
    }

    #[test]
    fn first_bytes_win_and_contradictions_are_counted() {
        let mut table = table(100_000);
        assert!(matches!(table.add(&fragment(1, 0, b"aaaaaaaa", true), never), Added::Held));
        assert!(matches!(table.add(&fragment(1, 0, b"aaaaaaaa", true), never), Added::Held));
        assert_eq!(table.stats().overlapping, 1);
        let Added::Whole(whole) = table.add(&fragment(1, 4, b"bbbbbbbb", false), never) else {
            panic!("complete");
        };
        assert_eq!(whole.payload, b"aaaaaaaabbbb");
        assert_eq!(table.stats().inconsistent, 1);
    }

    #[test]
    fn frames_know_that_their_datagram_is_inconsistent() {
        for (second, told) in [(b"aaaaaaaa", false), (b"aaaabaaa", true)] {
            let mut table = table(100_000);
            table.add(&fragment(1, 0, b"aaaaaaaa", true), never);
            table.add(&fragment(1, 0, second, true), never);
            let Added::Whole(whole) = table.add(&fragment(1, 8, b"z", false), never) else {
                panic!("complete");
            };
            assert_eq!(whole.earlier.iter().map(|f| f.inconsistent).collect::<Vec<_>>(), [told; 2]);
            table.add(&fragment(2, 8, b"aaaaaaaa", true), never);
            table.add(&fragment(2, 8, second, true), never);
            let mut given_up = Vec::new();
            table.finish(|d| given_up.extend(d.frames.iter().map(|f| f.inconsistent)));
            assert_eq!(given_up, [told; 2]);
        }
    }

    #[test]
    fn an_end_that_moves_up_is_inconsistent() {
        let mut table = table(100_000);
        table.add(&fragment(1, 8, b"x", false), never);
        table.add(&fragment(1, 8, b"xyz", false), never);
        assert_eq!(table.stats().inconsistent, 1);
        assert!(matches!(
            table.add(&fragment(1, 0, b"abcdefgh", true), never),
            Added::Whole(Whole { payload, .. }) if payload == b"abcdefghxyz"
        ));
    }

    #[test]
    fn beyond_the_longest_datagram_is_refused() {
        let mut table = table(100_000);
        let data = [0; 100];
        assert!(matches!(table.add(&fragment(1, 65_480, &data, false), never), Added::TooLong));
        assert_eq!(table.datagrams.len(), 0);
    }

    #[test]
    fn memory_is_bounded_and_every_frame_reported() {
        let mut table = table(10_000);
        let data = [0; 500];
        let mut reported = 0;
        for id in 0..1000 {
            table.add(&fragment(id, 0, &data, true), |d| reported += d.frames.len());
            assert!(table.charged <= 10_000);
        }
        table.finish(|d| reported += d.frames.len());
        assert_eq!(reported, 1000);
        assert_eq!((table.charged, table.order.len()), (0, 0));
    }

    #[test]
    fn a_datagram_larger_than_all_memory_is_given_up() {
        let mut table = table(100);
        let mut reported = 0;
        table.add(&fragment(1, 0, &[0; 500], true), |d| reported += d.frames.len());
        assert_eq!((reported, table.charged), (1, 0));
    }

    #[test]
    fn time_runs_out() {
        let mut table = table(100_000);
        table.add(&fragment(1, 0, b"abcdefgh", true), never);
        table.expire(Nanos(59_999_999_999), never);
        let mut reported = 0;
        table.expire(Nanos(60_000_000_000), |d| reported += d.frames.len());
        assert_eq!((reported, table.stats().expired), (1, 1));
    }

    #[test]
    fn the_order_list_stays_short_behind_a_slow_datagram() {
        let mut table = table(1_000_000);
        table.add(&fragment(u32::MAX, 0, b"abcdefgh", true), never);
        for id in 0..10_000 {
            table.add(&fragment(id, 0, b"abcdefgh", true), never);
            table.add(&fragment(id, 8, b"z", false), never);
        }
        assert!(table.order.len() < 200);
    }

    proptest! {
        #[test]
        fn random_fragments_never_break_the_accounts(
            pieces in proptest::collection::vec((0u32..4, 0u32..40, 0usize..64, any::<bool>(), any::<u8>()), 1..80),
            limit in 500usize..20_000,
        ) {
            let mut table = table(limit);
            let mut reported = 0;
            for (id, eighths, len, more, fill) in &pieces {
                let data = vec![*fill; *len];
                match table.add(&fragment(*id, eighths * 8, &data, *more), |d| reported += d.frames.len()) {
                    Added::Whole(whole) => reported += whole.earlier.len() + 1,
                    Added::Held | Added::TooLong => {}
                }
                prop_assert!(table.charged <= limit);
            }
            table.finish(|d| reported += d.frames.len());
            prop_assert_eq!(reported, pieces.len());
            prop_assert_eq!(table.charged, 0);
        }

        #[test]
        fn disjoint_pieces_in_any_order_give_the_payload(
            payload in proptest::collection::vec(any::<u8>(), 9..600),
            order in any::<u64>(),
        ) {
            let mut cuts: Vec<_> = payload.chunks(8).enumerate().collect();
            let len = cuts.len();
            for i in 0..len {
                cuts.swap(i, (order.rotate_left(i as u32) % len as u64) as usize);
            }
            let mut table = table(1_000_000);
            let mut whole = None;
            for (i, data) in cuts {
                if let Added::Whole(done) = table.add(&fragment(1, 8 * i as u32, data, i + 1 < len), never) {
                    whole = Some(done);
                }
            }
            prop_assert_eq!(whole.map(|w| w.payload), Some(payload));
        }
    }
}
