//! What two halves of a conversation say together.

use crate::datagram::udp_state;
use crate::key::Protocol;
use crate::packet::TcpFlags;
use crate::record::{ConnState, History, SessionRecord, Side};
use crate::sink::{LetterTimes, SessionUpdate};
use crate::tcp::{HalfStream, Missed, Notes, Rare, Segment, Tcp};
use crate::time::{Nanos, NanosDelta};

/// One letter of a history, without its case: who sent the frame, and when.
#[derive(Clone, Copy, Debug)]
struct Letter {
    at: Nanos,
    letter: u8,
    /// 0: the first half's sender. 1: the second's.
    sender: usize,
}

/// Silence after which one worker takes a session for over of which one side closed, and by which a
/// frame after it begins another one: the least of its limits.
const CLOSED_FOR: NanosDelta = NanosDelta::from_secs(5);

/// Places in a history that a side writes a letter for once only.
const ONCE: &[u8] = b"ADIQ";

fn sender_side(update: &SessionUpdate) -> (&Side, u64) {
    let record = &update.record;
    if record.orig.pkts > 0 {
        (&record.orig, update.bytes[0])
    } else {
        (&record.resp, update.bytes[1])
    }
}

fn letters(update: &SessionUpdate, sender: usize) -> impl Iterator<Item = Letter> + '_ {
    let text = update.record.history.as_str();
    text.bytes().enumerate().filter(|(_, letter)| *letter != b'^').map(move |(place, letter)| {
        let at = update.letter_times.get(place);
        Letter { at, letter: letter.to_ascii_uppercase(), sender }
    })
}

/// Two sessions of one worker, one after the other, that were one: a half that seemed over.
pub(super) fn merge_in_turn(before: &SessionUpdate, after: &SessionUpdate) -> SessionUpdate {
    let mut whole = after.clone();
    let record = &mut whole.record;
    let old = &before.record;
    record.uid = old.uid;
    record.iface = old.iface;
    record.ts = old.ts;
    record.last_ts = record.last_ts.max(old.last_ts);
    record.pcap_first = old.pcap_first.or(record.pcap_first);
    record.pcap_last = record.pcap_last.or(old.pcap_last);
    record.frames = record.frames.saturating_add(old.frames);
    record.frame_bytes = record.frame_bytes.saturating_add(old.frame_bytes);
    record.missed_bytes = record.missed_bytes.saturating_add(old.missed_bytes);
    record.fragment_overlap |= old.fragment_overlap;
    record.join_certain &= old.join_certain;
    // Numbers that begin anew cannot be held against the other end's acknowledgements.
    let goes_on = |half: &mut Box<HalfStream>| {
        before.half.as_ref().is_some_and(|before| half.continues(before))
    };
    whole.half = whole.half.take_if(goes_on);
    record.service = old.service.or(record.service);
    record.detail = old.detail.clone().or_else(|| record.detail.take());
    // The roles of the first one hold.
    let (sent, bytes) = sender_side(after);
    let sent = *sent;
    let orig_sent = old.orig.pkts > 0;
    record.orig = old.orig;
    record.resp = old.resp;
    let side = if orig_sent { &mut record.orig } else { &mut record.resp };
    side.pkts = side.pkts.saturating_add(sent.pkts);
    side.ip_bytes = side.ip_bytes.saturating_add(sent.ip_bytes);
    whole.bytes = before.bytes;
    let sum = &mut whole.bytes[usize::from(!orig_sent)];
    *sum = sum.saturating_add(bytes);
    whole.start = before.start;
    whole.last_time = before.last_time.max(after.last_time);

    let mut history = History::default();
    let mut times = LetterTimes::default();
    let mut seen = Vec::new();
    let turned = old.history.as_str().starts_with('^');
    let mut notes =
        Notes { seen: &mut 0, history: &mut history, times: &mut times, now: whole.start };
    if turned {
        notes.write(b'^');
    }
    for letter in letters(before, 0).chain(letters(after, 0)) {
        if ONCE.contains(&letter.letter) && seen.contains(&letter.letter) {
            continue;
        }
        seen.push(letter.letter);
        notes.now = letter.at;
        notes.push(orig_sent, letter.letter);
    }
    whole.record.history = history;
    whole.letter_times = times;
    finish_times(&mut whole.record, whole.start, whole.last_time, whole.bytes);
    whole
}

/// Duration and payload bytes as a row shows them.
fn finish_times(record: &mut SessionRecord, start: Nanos, last: Nanos, bytes: [u64; 2]) {
    let duration = last - start;
    record.duration = (duration > NanosDelta::ZERO).then_some(duration);
    record.orig.bytes = record.duration.map(|_| bytes[0]);
    record.resp.bytes = record.duration.map(|_| bytes[1]);
}

/// The two directions of a conversation as one worker would have told them.
pub(super) fn merge_directions(a: &SessionUpdate, b: &SessionUpdate) -> SessionRecord {
    // Frames at the same moment: the one that opens comes first.
    let opens = |update: &SessionUpdate| update.record.history.as_str().contains(['S', 's']);
    let b_first = b.start < a.start || (b.start == a.start && opens(b) && !opens(a));
    let (first, second) = if b_first { (b, a) } else { (a, b) };
    let mut all: Vec<Letter> = letters(first, 0).chain(letters(second, 1)).collect();
    all.sort_by_key(|letter| letter.at);

    let tcp = first.record.protocol == Protocol::TCP;
    let by = |wanted: u8| all.iter().find(|l| l.letter == wanted).map(|l| l.sender);
    let (opener, answerer) = if tcp { (by(b'S'), by(b'H')) } else { (None, None) };
    let first_is_orig = first.record.orig.pkts > 0;
    let orig_sender = match (opener, answerer) {
        (Some(opener), _) => opener,
        (None, Some(answerer)) => 1 - answerer,
        (None, None) => usize::from(!first_is_orig),
    };
    let turned = match (opener, answerer) {
        (Some(_), _) => false,
        (None, Some(_)) => true,
        (None, None) => first.record.history.as_str().starts_with('^'),
    };

    let halves = [first, second];
    let (orig, orig_bytes) = sender_side(halves[orig_sender]);
    let (resp, resp_bytes) = sender_side(halves[1 - orig_sender]);
    let bytes = [orig_bytes, resp_bytes];
    let mut record = first.record.clone();
    record.orig = *orig;
    record.resp = *resp;
    // Both link addresses are those of the first frame.
    let (sent, heard) = if first_is_orig {
        (first.record.orig.l2_addr, first.record.resp.l2_addr)
    } else {
        (first.record.resp.l2_addr, first.record.orig.l2_addr)
    };
    (record.orig.l2_addr, record.resp.l2_addr) =
        if orig_sender == 0 { (sent, heard) } else { (heard, sent) };
    let other = &second.record;
    record.ts = record.ts.min(other.ts);
    record.frames = record.frames.saturating_add(other.frames);
    record.frame_bytes = record.frame_bytes.saturating_add(other.frame_bytes);
    record.missed_bytes = record.missed_bytes.saturating_add(other.missed_bytes);
    record.fragment_overlap |= other.fragment_overlap;
    record.join_certain &= other.join_certain;
    record.service = record.service.or(other.service);
    record.detail = record.detail.or_else(|| other.detail.clone());
    record.tunnel_parents = record.tunnel_parents.or_else(|| other.tunnel_parents.clone());
    record.pcap_first = record.pcap_first.or(other.pcap_first);
    if other.last_ts >= record.last_ts {
        record.pcap_last = other.pcap_last.or(record.pcap_last);
    }
    record.last_ts = record.last_ts.max(other.last_ts);
    let known = opener.is_some() || answerer.is_some();
    record.direction_certain = known || (!tcp && first.record.direction_certain);

    let mut last_time = first.last_time.max(second.last_time);
    if tcp {
        let (mut history, state) = replay(&all, orig_sender, turned);
        let is_complete = opener.is_some() && answerer.is_some();
        for (sender, missed) in missed(halves, is_complete).into_iter().enumerate() {
            record.missed_bytes = record.missed_bytes.saturating_add(missed.bytes);
            // A hole gets its letter when it is acknowledged, which nobody knows any more.
            for _ in (0..10).filter(|power| missed.gaps >= 10_u32.pow(*power)) {
                history.push(if sender == orig_sender { b'G' } else { b'g' });
            }
            record.join_certain &= missed.is_known && missed.gaps == 0;
        }
        record.join_certain &= is_one_session(&record, halves, &all);
        record.history = history;
        record.conn_state = state;
        if state == ConnState::SF {
            // Frames after both sides closed leave the duration alone.
            let closed = |sender: usize| {
                let mut fins = all.iter().filter(|l| l.letter == b'F' && l.sender == sender);
                fins.next().map(|l| l.at)
            };
            if let (Some(one), Some(other)) = (closed(0), closed(1)) {
                last_time = last_time.min(one.max(other));
            }
        }
    } else {
        let mut history = History::default();
        if turned {
            history.push(b'^');
        }
        for letter in &all {
            let is_orig = letter.sender == orig_sender;
            history.push(if is_orig { letter.letter } else { letter.letter.to_ascii_lowercase() });
        }
        record.history = history;
        if first.record.protocol == Protocol::UDP {
            let active = |update: &SessionUpdate| {
                matches!(update.record.conn_state, ConnState::S0 | ConnState::SHR | ConnState::SF)
            };
            let active = [active(halves[orig_sender]), active(halves[1 - orig_sender])];
            record.conn_state = udp_state(active);
        }
    }
    finish_times(&mut record, first.start.min(second.start), last_time, bytes);
    record
}

/// What is missing of what each half sent. Where the handshake was not seen, one worker counts
/// nothing as missed.
fn missed(halves: [&SessionUpdate; 2], is_complete: bool) -> [Missed; 2] {
    let nothing = [Missed { is_known: true, ..Missed::default() }; 2];
    if !is_complete {
        return nothing;
    }
    match halves.map(|half| half.half.as_deref()) {
        [Some(first), Some(second)] => [first.missed(second), second.missed(first)],
        _ => nothing.map(|missed| Missed { is_known: false, ..missed }),
    }
}

/// Whether one worker would have told one session with these letters in this order. What it would
/// have taken for the next session on the same ends may be in this one, where neither half alone
/// shows that the one before was over.
fn is_one_session(record: &SessionRecord, halves: [&SessionUpdate; 2], all: &[Letter]) -> bool {
    let places =
        halves.iter().all(|half| half.record.history.as_str().len() <= LetterTimes::CAPACITY);
    let only = |letters: &[u8]| all.iter().all(|letter| letters.contains(&letter.letter));
    // Refused, and tried again at once.
    let tried_again = only(b"SR") && record.orig.pkts > 1 && record.resp.pkts > 1;
    let mut ends = all.iter().filter(|letter| b"FRI".contains(&letter.letter));
    let lingers = ends.next().is_some_and(|end| record.last_ts - end.at >= CLOSED_FOR);
    places && !tried_again && !lingers
}

/// History and state of a TCP session, from its letters in order.
fn replay(all: &[Letter], orig_sender: usize, turned: bool) -> (History, ConnState) {
    let mut history = History::default();
    let mut tcp = Tcp::default();
    let mut scratch = (0, History::default(), LetterTimes::default());
    // A SYN that comes after its SYN-ACK turns the roles around when it comes.
    let first_is_late_answer = all.first().is_some_and(|l| l.letter == b'H') && !turned;
    let mut rare = <[Rare; 2]>::default();
    let mut swapped = first_is_late_answer;
    if turned {
        history.push(b'^');
    }
    for letter in all {
        let is_orig = (letter.sender == orig_sender) != swapped;
        if letter.letter == b'W' && tcp.leaves_window_out(is_orig) {
            continue;
        }
        history.push(if is_orig { letter.letter } else { letter.letter.to_ascii_lowercase() });
        let Some(segment) = typical_segment(letter.letter) else { continue };
        let (seen, scratch_history, times) = &mut scratch;
        let mut notes = Notes { seen, history: scratch_history, times, now: letter.at };
        let effect = tcp.segment(is_orig, &segment, &mut notes, &mut rare);
        if effect.flipped {
            history.push(b'^');
            swapped = false;
        }
    }
    let state = tcp.conn_state(history.as_str());
    (history, state)
}

/// The plainest segment for which Zeek would write a letter; `None` for letters that tell nothing
/// about the state.
fn typical_segment(letter: u8) -> Option<Segment> {
    let (flags, seq, len) = match letter {
        b'S' => (TcpFlags::SYN, 0, 0),
        b'H' => (TcpFlags::SYN | TcpFlags::ACK, 0, 0),
        b'A' => (TcpFlags::ACK, 1, 0),
        b'D' => (TcpFlags::ACK, 1, 1),
        b'F' => (TcpFlags::FIN | TcpFlags::ACK, 1, 0),
        b'R' => (TcpFlags::RST | TcpFlags::ACK, 1, 0),
        b'I' => (TcpFlags::FIN | TcpFlags::RST, 1, 0),
        b'Q' => (TcpFlags::SYN | TcpFlags::FIN, 0, 0),
        _ => return None,
    };
    Some(Segment { seq, ack: 1, flags: TcpFlags(flags), window: 1, len, whole: true, room: true })
}
