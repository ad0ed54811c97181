use capture_store::ledger::{BlindCause, imbalances};

use super::*;
use crate::blind::{Blindness, Subject};
use crate::source::SourceCounters;

fn intervals() -> Intervals {
    let run = RunId::parse("20260101T000000Z-00000000").expect("a run");
    Intervals::new("s", &run, "capture", "tai", Nanos(0))
}

fn reading(received: u64, steered: u64, full: u64, at_rest: bool) -> Reading {
    let own = SourceCounters { ring_full: full, ..SourceCounters::default() };
    let sources = vec![SourceCounts { frames: received, own, ..SourceCounts::default() }];
    let worker = WorkerCounts {
        sources,
        received,
        recorded: received,
        decoded: received,
        ..WorkerCounts::default()
    };
    let queue = QueueReading {
        queue: 0,
        worker: Some(0),
        places: vec![(0, 0)],
        closed: ClosedRing::default(),
        steered_before: steered,
        xdp: QueueCounters { seen: steered, steered, ..QueueCounters::default() },
        capacity: 64,
    };
    let interface = InterfaceReading {
        name: "eth0".to_owned(),
        queues: vec![queue],
        ..InterfaceReading::default()
    };
    Reading { workers: vec![worker], interfaces: vec![interface], at_rest, ..Reading::default() }
}

#[test]
fn lines_balance_while_frames_are_in_flight_and_at_the_end() {
    let mut intervals = intervals();
    let mut received = 0;
    let mut lost = 0;
    let steps = [
        (100, 130, 0, false),
        (400, 460, 10, false),
        (460, 1000, 500, false),
        (460, 1000, 530, true),
    ];
    for (step, (taken, steered, full, at_rest)) in (1..).zip(steps) {
        let after = reading(taken, steered, full, at_rest);
        let closing = intervals.close(Nanos(step), after, None, &Told::default(), Vec::new());
        assert_eq!(imbalances(&closing.line), []);
        for queue in &closing.line.interfaces[0].queues {
            received += queue.received;
            lost += queue.ring_losses;
        }
        assert_eq!(closing.line.from, intervals.from());
        intervals.written(closing);
    }
    assert_eq!((received, lost), (460, 540));
}

#[test]
fn a_frame_in_the_midst_of_the_program_waits_for_the_next_line() {
    let mut intervals = intervals();
    let mut after = reading(10, 10, 0, false);
    after.interfaces[0].queues[0].xdp.seen = 11;
    let closing = intervals.close(Nanos(1), after, None, &Told::default(), Vec::new());
    assert_eq!(imbalances(&closing.line), []);
    intervals.written(closing);
    let mut after = reading(11, 11, 0, true);
    after.interfaces[0].queues[0].xdp.seen = 12;
    let closing = intervals.close(Nanos(2), after, None, &Told::default(), Vec::new());
    assert_eq!(imbalances(&closing.line).len(), 1, "at rest nothing is excused");
}

#[test]
fn what_a_closed_socket_left_behind_is_lost_at_once() {
    let mut intervals = intervals();
    let first = reading(100, 130, 0, false);
    let closing = intervals.close(Nanos(1), first, None, &Told::default(), Vec::new());
    assert_eq!(closing.line.interfaces[0].queues[0].in_ring_after, 30);
    intervals.written(closing);
    // Closed with 20 frames in the ring; the next socket's are in flight already.
    let mut after = reading(130, 160, 0, false);
    let taken = SourceCounts { frames: 110, ..SourceCounts::default() };
    after.interfaces[0].queues[0].closed = ClosedRing::at(130, &taken);
    // And its worker ended: another one takes the queue.
    let mut other = after.workers[0].clone();
    other.sources = vec![SourceCounts::default(); 3];
    other.sources[2].frames = 20;
    other.received = 20;
    after.workers[0].sources[0].frames = 110;
    after.workers[0].received = 110;
    for worker in [&mut after.workers[0], &mut other] {
        (worker.recorded, worker.decoded) = (worker.received, worker.received);
    }
    after.workers.push(other);
    let queue = &mut after.interfaces[0].queues[0];
    (queue.worker, queue.places) = (Some(1), vec![(0, 0), (1, 2)]);
    let closing = intervals.close(Nanos(2), after, None, &Told::default(), Vec::new());
    let line = closing.line;
    assert_eq!(imbalances(&line), []);
    let queue = &line.interfaces[0].queues[0];
    assert_eq!((queue.received, queue.ring_losses, queue.in_ring_after), (30, 20, 10));
}

#[test]
fn blindness_is_told_at_once_and_gives_the_time_without_a_link() {
    let mut intervals = intervals();
    let quiet = || reading(5, 5, 0, false);
    let first = intervals.close(Nanos(10), quiet(), None, &Told::default(), Vec::new());
    intervals.written(first);
    let blindness = Blindness::default();
    let down = Subject::interface(BlindCause::LinkDown, "eth0");
    blindness.begin(down, Nanos(8), "");
    let told = blindness.told(Nanos(10), Nanos(20));
    let closing = intervals.close(Nanos(20), quiet(), None, &told, Vec::new());
    let line = &closing.line;
    assert_eq!((line.blind.len(), line.interfaces[0].link.down_ns), (1, 10));
    intervals.written(closing);
    blindness.settle(&told);
    let told = blindness.told(Nanos(20), Nanos(30));
    assert!(intervals.close(Nanos(30), quiet(), None, &told, Vec::new()).can_wait());
}

#[test]
fn quiet_intervals_are_folded_for_a_while() {
    let mut intervals = intervals();
    let first =
        intervals.close(Nanos(1), reading(5, 5, 0, false), None, &Told::default(), Vec::new());
    intervals.written(first);
    let quiet = || reading(5, 5, 0, false);
    assert!(intervals.close(Nanos(2), quiet(), None, &Told::default(), Vec::new()).can_wait());
    let said = vec![Note::Said { text: "x".to_owned() }];
    assert!(!intervals.close(Nanos(2), quiet(), None, &Told::default(), said).can_wait());
    let late = Nanos(1) + FOLD;
    let folded = intervals.close(late, quiet(), None, &Told::default(), Vec::new());
    assert_eq!((folded.line.from, folded.line.to), (Nanos(1), late));
    assert!(folded.quiet && !folded.can_wait());
    let active = reading(6, 6, 0, false);
    assert!(!intervals.close(Nanos(2), active, None, &Told::default(), Vec::new()).quiet);
}

#[test]
fn what_tunnels_hide_is_in_the_line_and_in_no_equation() {
    let mut intervals = intervals();
    let mut after = reading(10, 10, 0, false);
    let worker = &mut after.workers[0];
    (worker.inner_undecodable, worker.inner_too_deep) = (2, 5);
    let closing = intervals.close(Nanos(1), after, None, &Told::default(), Vec::new());
    assert_eq!(imbalances(&closing.line), []);
    let said = &closing.line.workers[0].inner_unread;
    assert_eq!((said["undecodable"], said["too_deep"]), (2, 5));
    intervals.written(closing);
    let mut after = reading(10, 10, 0, true);
    after.workers[0].inner_undecodable = 3;
    after.workers[0].inner_too_deep = 5;
    let closing = intervals.close(Nanos(2), after, None, &Told::default(), Vec::new());
    let line = closing.line;
    let said: Vec<_> = line.workers[0].inner_unread.iter().collect();
    assert_eq!(said, [(&"undecodable".to_owned(), &1)]);
}

#[test]
fn a_replayed_file_is_named_with_what_it_gave() {
    let mut intervals = intervals();
    let mut after = reading(5, 0, 0, false);
    after.interfaces.clear();
    after.files = vec![("a.pcap".to_owned(), false), ("b.pcap".to_owned(), false)];
    let closing = intervals.close(Nanos(1), after.clone(), None, &Told::default(), Vec::new());
    assert_eq!(imbalances(&closing.line), []);
    assert_eq!(closing.line.files.len(), 1);
    intervals.written(closing);
    after.files[0].1 = true;
    let closing = intervals.close(Nanos(2), after, None, &Told::default(), Vec::new());
    assert!(closing.line.files[0].cut);
}
