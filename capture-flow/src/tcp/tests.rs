use super::*;
use crate::record::History;
use crate::sink::LetterTimes;
use crate::time::Nanos;

/// A session driven by hand: sequence numbers relative to the two initial ones.
struct Session {
    tcp: Tcp,
    rare: [Rare; 2],
    seen: u32,
    history: History,
    times: LetterTimes,
    isn: [u32; 2],
}

const SYN: u8 = TcpFlags::SYN;
const ACK: u8 = TcpFlags::ACK;
const FIN: u8 = TcpFlags::FIN;
const RST: u8 = TcpFlags::RST;

impl Session {
    fn new(isn: [u32; 2]) -> Self {
        let (history, times) = (History::default(), LetterTimes::default());
        Self { tcp: Tcp::default(), rare: Default::default(), seen: 0, history, times, isn }
    }

    fn established(isn: [u32; 2]) -> Self {
        let mut session = Self::new(isn);
        session.say(true, SYN, 0, 0, 0);
        session.say(false, SYN | ACK, 0, 1, 0);
        session.say(true, ACK, 1, 1, 0);
        session
    }

    fn segment(&self, is_orig: bool, flags: u8, seq: u32, ack: u32, len: u32) -> Segment {
        let (me, you) = (usize::from(!is_orig), usize::from(is_orig));
        Segment {
            seq: self.isn[me].wrapping_add(seq),
            ack: if flags & ACK == 0 { 0 } else { self.isn[you].wrapping_add(ack) },
            flags: TcpFlags(flags),
            window: 100,
            len,
            whole: true,
            room: true,
        }
    }

    fn say(&mut self, is_orig: bool, flags: u8, seq: u32, ack: u32, len: u32) -> Effect {
        let segment = self.segment(is_orig, flags, seq, ack, len);
        let mut notes = Notes {
            seen: &mut self.seen,
            history: &mut self.history,
            times: &mut self.times,
            now: Nanos::default(),
        };
        self.tcp.segment(is_orig, &segment, &mut notes, &mut self.rare)
    }

    fn outcome(&self) -> (&str, ConnState, [u64; 2], u64) {
        let history = self.history.as_str();
        (history, self.tcp.conn_state(history), self.tcp.sizes(), self.tcp.missed_bytes)
    }
}

/// Near the end of sequence space, so that everything wraps.
const WRAP: [u32; 2] = [u32::MAX - 3, u32::MAX - 1];

#[test]
fn a_normal_session_across_the_wrap() {
    let mut session = Session::established(WRAP);
    session.say(true, ACK, 1, 1, 10);
    session.say(false, ACK, 1, 11, 20);
    session.say(true, FIN | ACK, 11, 21, 0);
    let effect = session.say(false, FIN | ACK, 21, 12, 0);
    assert!(effect.closing);
    session.say(true, ACK, 12, 22, 0);
    assert_eq!(session.outcome(), ("ShADdFf", ConnState::SF, [10, 20], 0));
    assert!(session.tcp.both_closed());
}

#[test]
fn an_acknowledged_hole_is_missed_bytes() {
    let mut session = Session::established(WRAP);
    session.say(true, ACK, 1, 1, 10);
    session.say(true, ACK, 21, 1, 10);
    session.say(false, ACK, 1, 31, 0);
    assert_eq!(session.outcome(), ("ShADaG", ConnState::S1, [30, 0], 10));
}

#[test]
fn a_hole_that_fills_is_none() {
    let mut session = Session::established(WRAP);
    for seq in [21, 11, 1] {
        session.say(true, ACK, seq, 1, 10);
    }
    assert!(!session.tcp.has_holes());
    session.say(false, ACK, 1, 31, 0);
    // Data below what was sent counts as sent again.
    assert_eq!(session.outcome(), ("ShADTa", ConnState::S1, [30, 0], 0));
}

#[test]
fn without_room_a_hole_is_forgotten() {
    let mut session = Session::established(WRAP);
    let segment = Segment { room: false, ..session.segment(true, ACK, 21, 1, 10) };
    let mut notes = Notes {
        seen: &mut session.seen,
        history: &mut session.history,
        times: &mut session.times,
        now: Nanos::default(),
    };
    session.tcp.segment(true, &segment, &mut notes, &mut session.rare);
    session.say(false, ACK, 1, 31, 0);
    assert!(!session.tcp.has_holes());
    assert_eq!(session.outcome().3, 0);
}

#[test]
fn resets_by_who_sent_them() {
    let mut session = Session::new([5, 6]);
    session.say(true, SYN, 0, 0, 0);
    session.say(false, RST | ACK, 0, 1, 0);
    assert_eq!(session.outcome(), ("Sr", ConnState::REJ, [0, 0], 0));

    let mut session = Session::new([5, 6]);
    session.say(true, SYN, 0, 0, 0);
    assert!(session.say(true, RST, 1, 0, 0).closing);
    assert_eq!(session.outcome(), ("SR", ConnState::RSTOS0, [0, 0], 0));

    let mut session = Session::established([5, 6]);
    session.say(true, RST, 1, 0, 0);
    assert_eq!(session.outcome().1, ConnState::RSTO);
    let mut session = Session::established([5, 6]);
    session.say(false, RST, 1, 0, 0);
    assert_eq!(session.outcome().1, ConnState::RSTR);
}

#[test]
fn a_syn_that_comes_after_its_answer_turns_the_roles() {
    let mut session = Session::new([50, 60]);
    // The answerer is taken for the originator, so its numbers come first.
    session.say(true, SYN | ACK, 0, 1, 0);
    let effect = session.say(false, SYN, 0, 0, 0);
    assert!(effect.flipped);
    session.isn.swap(0, 1);
    session.say(true, ACK, 1, 1, 0);
    assert_eq!(session.outcome(), ("Hs^A", ConnState::S1, [0, 0], 0));
}

#[test]
fn reuse_is_a_syn_with_a_new_number_or_after_a_close() {
    let mut session = Session::established([5, 6]);
    let same = session.segment(true, SYN, 0, 0, 0);
    let new = session.segment(true, SYN, 100, 0, 0);
    assert!(!session.tcp.is_reuse(&same));
    assert!(session.tcp.is_reuse(&new));
    assert!(!session.tcp.is_reuse(&session.segment(true, ACK, 100, 0, 0)));
    session.say(true, RST, 1, 0, 0);
    assert!(session.tcp.is_reuse(&same));
}

#[test]
fn repeated_events_are_noted_at_powers_of_ten() {
    let mut session = Session::established([5, 6]);
    session.say(true, ACK, 1, 1, 10);
    for _ in 0..100 {
        session.say(true, ACK, 1, 1, 10);
    }
    assert_eq!(session.history.as_str(), "ShADTTT");
}
