use capture_flow::join::JoinConfig;
use capture_flow::sink::SessionUpdate;
use capture_flow::stats::FlowStats;
use capture_store::OwnedStore;
use capture_store::ledger::{LedgerLine, read};
use capture_store::sessions::LogPolicy;
use capture_store::store::RunId;
use crossbeam::channel::unbounded;

use super::*;
use crate::account::{Progress, RecordCounts};
use crate::interval::NoKernel;
use crate::keeper::Lane;
use crate::recorder::{Recorder, Supply};
use crate::worker::tests::feed;
use crate::worker::{Pipeline, WhenFull};

const SECOND: i64 = 1_000_000_000;

/// A flush thread's work without a thread, and the store that it writes.
struct Bench {
    _dir: tempfile::TempDir,
    store: OwnedStore,
    run: Run,
}

fn bench(workers: u16) -> Bench {
    let dir = tempfile::tempdir().expect("a directory");
    let store = OwnedStore::open_or_create(&dir.path().join("store"), None).expect("a store");
    let id = RunId::parse("20260101T000000Z-00000000").expect("a run");
    let workers: Vec<_> = (0..workers).map(|number| Arc::new(Shared::new(number, 0))).collect();
    let (seals, unsealed) = unbounded();
    let flush = Flush {
        joiner: Joiner::new(JoinConfig::default()),
        log: SessionLog::new(&store, &id, LogPolicy::default()),
        ledger: LedgerWriter::open(&store).expect("a ledger"),
        intervals: Intervals::new("s", &id, "capture", "tai", Nanos(0)),
        probe: Box::new(NoKernel),
        blind: Arc::default(),
        signs: SignsOfLife::default(),
        canaries: canary::Watch::new(Vec::new()),
        news: unbounded().1,
        seals,
        unsealed,
        notes: unbounded().1,
        names: Arc::default(),
        files: Arc::default(),
        totals: Arc::default(),
        anchors: None,
        interval: NanosDelta::from_secs(1),
        workers,
    };
    Bench { _dir: dir, store, run: Run::new(flush) }
}

impl Bench {
    /// A worker has got so far.
    fn worker(&self, number: usize, complete: i64, rows_lost: u64) {
        self.run.flush.workers[number].counters.publish(&Progress {
            record: &RecordCounts::default(),
            flow: &FlowStats::default(),
            rows_lost,
            sources: &[],
            engine_now: Nanos(complete * SECOND),
            complete_through: Nanos(complete * SECOND),
        });
    }

    fn lines(&self) -> Vec<LedgerLine> {
        read(self.store.store(), Nanos::MIN, Nanos::MAX).expect("a ledger").lines
    }
}

/// Rows of so many sessions.
fn updates(sessions: u32) -> Vec<SessionUpdate> {
    let shared = Arc::new(Shared::new(0, 0));
    let recorder = Recorder::new(0, Arc::new(Lane::new(0)), Supply::Ahead, 65_535);
    let flow = capture_flow::config::FlowConfig::default();
    let pipeline = Pipeline::new(flow, recorder, Arc::clone(&shared), WhenFull::Lose);
    let mut pipeline = pipeline.expect("a pipeline");
    feed(&mut pipeline, 0..sessions);
    pipeline.finish(&[], Nanos(i64::from(sessions)), Nanos::MAX);
    std::iter::from_fn(|| shared.updates.pop()).collect()
}

#[test]
fn a_promise_that_a_worker_takes_back_is_not_kept_up() {
    let mut bench = bench(1);
    for (at, complete) in [(100, 90), (102, 40), (103, 95)] {
        bench.worker(0, complete, 0);
        // Rows that a line must tell of: it is written at once.
        bench.run.flush.totals.rows.fetch_add(1, Ordering::Relaxed);
        bench.run.close(Nanos(at * SECOND), false, false);
    }
    let said: Vec<_> = bench.lines().iter().map(|line| line.complete_through).collect();
    assert_eq!(said, [90, 40, 95].map(|at| Some(Nanos(at * SECOND))));
}

#[test]
fn what_may_have_blinded_the_sensor_without_being_noticed_is_not_promised() {
    let mut bench = bench(1);
    let blind = Arc::clone(&bench.run.flush.blind);
    let mut close = |at: i64, complete: i64| {
        bench.worker(0, complete, 0);
        bench.run.flush.totals.rows.fetch_add(1, Ordering::Relaxed);
        bench.run.close(Nanos(at * SECOND), false, false);
        bench.lines().last().and_then(|line| line.complete_through).map(|at| at.0 / SECOND)
    };
    blind.expect_news();
    assert_eq!(close(50, 45), None, "nothing was promised before");
    blind.took_news(1);
    // Nobody looks: a replay.
    assert_eq!(close(100, 90), Some(90));
    blind.notice_through(Nanos(92 * SECOND));
    assert_eq!(close(102, 95), Some(92), "the last look");
    // A worker goes on after something that it has sent news of.
    blind.expect_news();
    blind.notice_through(Nanos(103 * SECOND));
    assert_eq!(close(104, 104), Some(92));
    blind.took_news(1);
    assert_eq!(close(106, 105), Some(103));
    blind.notice_through(Nanos::MAX);
    assert_eq!(close(108, 107), Some(107));
}

#[test]
fn a_worker_that_has_ended_keeps_nobody_waiting() {
    let mut bench = bench(2);
    bench.worker(0, 30, 0);
    bench.worker(1, 90, 0);
    bench.run.close(Nanos(100 * SECOND), false, false);
    bench.run.flush.workers[0].set_ended();
    bench.run.flush.totals.rows.fetch_add(1, Ordering::Relaxed);
    bench.run.close(Nanos(102 * SECOND), false, false);
    let said: Vec<_> = bench.lines().iter().map(|line| line.complete_through).collect();
    assert_eq!(said, [30, 90].map(|at| Some(Nanos(at * SECOND))));
}

#[test]
fn a_stop_that_lost_rows_is_not_clean_and_promises_nothing() {
    for lost in [0, 3] {
        let mut bench = bench(1);
        bench.worker(0, 50, 0);
        bench.run.close(Nanos(100 * SECOND), false, false);
        bench.worker(0, 101, lost);
        bench.run.finish(Nanos(101 * SECOND), true).expect("written");
        let lines = read(bench.store.store(), Nanos::MIN, Nanos::MAX).expect("a ledger").lines;
        let last = lines.last().expect("a line");
        assert_eq!(last.notes.contains(&Note::CleanStop), lost == 0);
        let complete = if lost == 0 { 101 } else { 50 };
        assert_eq!(last.complete_through, Some(Nanos(complete * SECOND)));
    }
}

#[test]
fn more_rows_at_once_than_may_wait_are_committed_on_the_way() {
    let mut bench = bench(1);
    let update = updates(1).pop().expect("a row");
    let rows = u64::try_from(LogPolicy::default().waiting_rows).expect("small") + 10;
    let (_, mut out) = bench.run.out();
    for _ in 0..rows {
        out.row(&update.record);
    }
    let totals = &bench.run.flush.totals;
    assert_eq!(totals.rows_unwritable.load(Ordering::Relaxed), 0);
    assert!(bench.run.commit(Nanos(0)));
    assert_eq!(bench.run.flush.totals.rows.load(Ordering::Relaxed), rows);
}

#[test]
fn every_line_vouches_for_the_open_tail() {
    let mut bench = bench(1);
    bench.worker(0, 90, 0);
    let update = updates(1).pop().expect("a row");
    bench.run.out().1.row(&update.record);
    bench.run.close(Nanos(100 * SECOND), false, false);
    // A quiet time, which is told by itself once something happens.
    bench.run.close(Nanos(102 * SECOND), false, false);
    assert_eq!(bench.lines().len(), 1, "it can wait");
    bench.run.out().1.row(&update.record);
    bench.run.close(Nanos(103 * SECOND), false, false);
    let lines = bench.lines();
    assert_eq!(lines.len(), 3);
    assert!(lines.iter().all(|line| line.tails.len() == 1), "{lines:#?}");
}
