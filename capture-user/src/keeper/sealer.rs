//! The thread that seals what is full and keeps the disk budgets.
//!
//! What cannot be sealed, for the disk is full or fails, stays as it is, can be read, and is tried
//! again until it is sealed: at once when a budget made room, else after a pause.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use capture_store::OwnedStore;
use capture_store::ledger::{Note, SealedFile};
use capture_store::segment::{FilledSegment, SealPolicy, SealedSegment};
use capture_store::sessions::{PendingSeal, SealSessionsError, SealedSessions};
use crossbeam::channel::{Receiver, Sender};
use tracing::{error, warn};

use super::{KeeperNews, LOOK, Lane, step_back};

/// How often budgets are looked at when nothing was sealed.
const BUDGETS: Duration = Duration::from_secs(10);
/// The first pause before what could not be sealed is tried again. It doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The thread that seals segments and files of the session log.
pub struct Sealer {
    stop: Arc<AtomicBool>,
    unsealed: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Sealer {
    /// Starts the thread. It seals the lanes' segments and the files of the session log that come
    /// through `sessions`. `after` is called whenever sealing was tried, and once in a while when
    /// nothing was: it keeps the budgets, and says whether it made room.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        store: Arc<OwnedStore>,
        lanes: &[Arc<Lane>],
        sessions: Receiver<PendingSeal>,
        policy: SealPolicy,
        news: Sender<KeeperNews>,
        mut after: impl FnMut(&Sender<KeeperNews>) -> bool + Send + 'static,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let unsealed = Arc::new(AtomicUsize::new(0));
        let sealing = Sealing {
            store,
            lanes: lanes.to_vec(),
            sessions,
            policy,
            news,
            waiting: VecDeque::new(),
            retry_at: Instant::now(),
            pause: FIRST_PAUSE,
            unsealed: Arc::clone(&unsealed),
        };
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("sealer".to_owned())
            .spawn(move || {
                step_back();
                sealing.run(&stopped, &mut after);
            })
            .context("cannot start the thread that seals segments")?;
        lanes.iter().for_each(|lane| lane.wakes(thread.thread()));
        Ok(Self { stop, unsealed, thread })
    }

    /// Seals what is still there and ends the thread.
    ///
    /// # Errors
    /// Files were left unsealed: they can be read, and the next start seals them.
    pub fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        let died = self.thread.join().is_err();
        let unsealed = self.unsealed.load(Ordering::Acquire);
        anyhow::ensure!(!died, "the thread that seals segments failed; the next start seals them");
        anyhow::ensure!(
            unsealed == 0,
            "{unsealed} files could not be sealed (see above); the next start seals them"
        );
        Ok(())
    }

    /// Whether the thread runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }
}

/// A file that could not be sealed yet.
enum Unsealed {
    Segment(Box<FilledSegment>),
    Sessions(PendingSeal),
}

/// What the sealing thread works on.
struct Sealing {
    store: Arc<OwnedStore>,
    lanes: Vec<Arc<Lane>>,
    sessions: Receiver<PendingSeal>,
    policy: SealPolicy,
    news: Sender<KeeperNews>,
    /// What could not be sealed, oldest first. Not empty means that the trouble was told.
    waiting: VecDeque<Unsealed>,
    retry_at: Instant,
    pause: Duration,
    /// How many of them there are, for others to see.
    unsealed: Arc<AtomicUsize>,
}

impl Sealing {
    fn run(mut self, stop: &AtomicBool, after: &mut impl FnMut(&Sender<KeeperNews>) -> bool) {
        let mut looked: Option<Instant> = None;
        loop {
            // Before the queues are emptied: what is filled after a stop nobody would seal.
            let stopping = stop.load(Ordering::Acquire);
            let mut tried = self.seal_new();
            if stopping || Instant::now() >= self.retry_at {
                tried |= self.seal_waiting();
            }
            if tried || looked.is_none_or(|at| at.elapsed() >= BUDGETS) {
                looked = Some(Instant::now());
                self.store.forget_told();
                if after(&self.news) {
                    self.seal_waiting();
                }
            }
            if stopping {
                return;
            }
            if !tried {
                thread::park_timeout(LOOK);
            }
        }
    }

    /// Seals what has come since the last look; says whether anything had.
    fn seal_new(&mut self) -> bool {
        let mut any = false;
        for lane in self.lanes.clone() {
            while let Some(segment) = lane.take_filled() {
                any = true;
                self.seal_or_wait(Unsealed::Segment(Box::new(segment)));
            }
        }
        while let Ok(pending) = self.sessions.try_recv() {
            any = true;
            if let Some(altered) = pending.altered() {
                error!("{} was changed by somebody", pending.path().display());
                self.store.owe(std::slice::from_ref(&altered));
                let _ = self.news.send(KeeperNews::Altered(altered));
            }
            self.seal_or_wait(Unsealed::Sessions(pending));
        }
        any
    }

    fn seal_or_wait(&mut self, file: Unsealed) {
        let Err(Refused { file, cause }) = self.seal(file) else { return };
        if self.waiting.is_empty() {
            error!("{cause}; it stays readable and is tried again");
            self.say(format!("{cause}; what cannot be sealed is tried again"));
            self.pause = FIRST_PAUSE;
            self.retry_at = Instant::now() + self.pause;
        } else {
            warn!("{cause}; it waits, too");
        }
        self.waiting.push_back(file);
        self.unsealed.store(self.waiting.len(), Ordering::Release);
    }

    /// Tries what waits once more, until one fails again: the next time another one is the first.
    /// Says whether there was anything.
    fn seal_waiting(&mut self) -> bool {
        let before = self.waiting.len();
        while let Some(file) = self.waiting.pop_front() {
            if let Err(refused) = self.seal(file) {
                self.waiting.push_back(refused.file);
                break;
            }
        }
        let left = self.waiting.len();
        self.unsealed.store(left, Ordering::Release);
        if before > 0 && left == 0 {
            let text = "everything that could not be sealed is sealed now";
            warn!("{text}");
            self.say(text.to_owned());
        }
        self.pause = if left == before { (self.pause * 2).min(LONGEST_PAUSE) } else { FIRST_PAUSE };
        self.retry_at = Instant::now() + self.pause;
        before > 0
    }

    /// Seals a file, or gives it back with the reason.
    fn seal(&self, file: Unsealed) -> Result<(), Refused> {
        match file {
            Unsealed::Segment(segment) => {
                let owe = |sealed: &SealedSegment| self.owe(&SealedFile::of_segment(sealed));
                match segment.seal_and_tell(&self.policy, owe) {
                    Ok(sealed) => {
                        self.sealed(sealed.iter().flat_map(SealedFile::of_segment).collect());
                        Ok(())
                    }
                    Err(failure) => {
                        let cause = crate::chain(&failure);
                        Err(Refused { file: Unsealed::Segment(failure.segment), cause })
                    }
                }
            }
            Unsealed::Sessions(pending) => match pending.seal_and_tell(|file| {
                self.owe(std::slice::from_ref(file));
            }) {
                Ok(sealed) => {
                    let unread = sealed.as_ref().map_or(0, SealedSessions::unread_bytes);
                    if unread > 0 {
                        let name = pending.path().display();
                        self.say(format!("{name}: {unread} bytes are no rows that can be read"));
                    }
                    self.sealed(sealed.into_iter().map(|sealed| sealed.file).collect());
                    Ok(())
                }
                // Another try would find no more than this one.
                Err(unreadable @ SealSessionsError::Unreadable { .. }) => {
                    let text = crate::chain(&unreadable);
                    error!("{text}");
                    self.say(text);
                    Ok(())
                }
                Err(failure) => {
                    let cause = crate::chain(&failure);
                    Err(Refused { file: Unsealed::Sessions(pending), cause })
                }
            },
        }
    }

    /// Has the ledger told of sealed files by a later run, should this one be killed.
    fn owe(&self, files: &[SealedFile]) {
        let notes: Vec<Note> = files.iter().cloned().map(Note::Sealed).collect();
        self.store.owe(&notes);
    }

    /// Has the ledger told of sealed files by this run's next line.
    fn sealed(&self, files: Vec<SealedFile>) {
        if !files.is_empty() {
            let _ = self.news.send(KeeperNews::Sealed(files));
        }
    }

    fn say(&self, text: String) {
        let _ = self.news.send(KeeperNews::Said(text));
    }
}

/// A file that could not be sealed, and why.
struct Refused {
    file: Unsealed,
    cause: String,
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use capture_flow::frame::LinkType;
    use capture_flow::time::Nanos;
    use capture_store::segment::{SegmentSpec, prepare};
    use crossbeam::channel::unbounded;

    use super::*;

    const QUICK: SealPolicy = SealPolicy { sync: false, hash: true };

    struct Lab {
        dir: tempfile::TempDir,
        store: Arc<OwnedStore>,
        lane: Arc<Lane>,
        said: Receiver<KeeperNews>,
        news: Sender<KeeperNews>,
        sessions: Receiver<PendingSeal>,
        _seals: Sender<PendingSeal>,
    }

    impl Lab {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let store = OwnedStore::open_or_create(&dir.path().join("store"), None);
            let store = Arc::new(store.expect("a store"));
            store.next_sequence(0).expect("a directory for the worker");
            let (news, said) = unbounded();
            let (seals, sessions) = unbounded();
            let lane = Arc::new(Lane::new(0));
            Self { dir, store, lane, said, news, sessions, _seals: seals }
        }

        fn start(&self, after: impl FnMut(&Sender<KeeperNews>) -> bool + Send + 'static) -> Sealer {
            let (store, lanes) = (Arc::clone(&self.store), [Arc::clone(&self.lane)]);
            let (sessions, news) = (self.sessions.clone(), self.news.clone());
            Sealer::start(store, &lanes, sessions, QUICK, news, after).expect("a thread")
        }

        /// Hands the sealer a segment with a frame.
        fn fill(&self, sequence: u64) {
            let spec = SegmentSpec::new(0, SegmentSpec::MIN_BYTES, LinkType::ETHERNET);
            let prepared = prepare(&self.store.layout().worker(0), sequence, &spec);
            let mut segment = prepared.expect("a segment").activate();
            segment.append(Nanos(1), 3, &[&[1, 2, 3]]).expect("room");
            self.lane.fill(segment.finish());
        }

        fn index(&self, sequence: u64) -> PathBuf {
            self.store.layout().worker(0).join(format!("{sequence:020}.idx"))
        }

        /// What was told, in order: how many files were sealed, or in words.
        fn told(&self) -> Vec<Result<usize, String>> {
            let told = self.said.try_iter().filter_map(|news| match news {
                KeeperNews::Sealed(files) => Some(Ok(files.len())),
                KeeperNews::Said(text) => Some(Err(text)),
                KeeperNews::Retired(_) | KeeperNews::Altered(_) => None,
            });
            told.collect()
        }
    }

    #[test]
    fn what_is_filled_is_sealed() {
        let lab = Lab::new();
        let sealer = lab.start(|_| false);
        (1..=5).for_each(|sequence| lab.fill(sequence));
        sealer.stop().expect("everything is sealed");
        // Packets and index of each.
        assert_eq!(lab.told(), vec![Ok(2); 5]);
        assert!((1..=5).all(|sequence| lab.index(sequence).is_file()));
    }

    #[test]
    fn what_cannot_be_sealed_waits_for_room_and_is_told_at_its_begin_and_its_end() {
        let lab = Lab::new();
        // In the way of the first index, until the budgets make room.
        let in_the_way = lab.index(1);
        std::fs::create_dir(&in_the_way).expect("a directory");
        (1..=2).for_each(|sequence| lab.fill(sequence));
        let (made_room, waits) = unbounded();
        let mut looks = 0;
        let sealer = lab.start(move |_| {
            looks += 1;
            let made = looks == 1;
            if made {
                std::fs::remove_dir(&in_the_way).expect("removed");
                made_room.send(()).expect("somebody waits");
            }
            made
        });
        waits.recv().expect("the budgets were looked at");
        sealer.stop().expect("everything is sealed");
        let told = lab.told();
        assert!(matches!(&told[0], Err(text) if text.contains("tried again")), "{told:?}");
        assert_eq!(told[1..3], [Ok(2), Ok(2)]);
        assert!(matches!(&told[3], Err(text) if text.contains("sealed now")), "{told:?}");
        assert_eq!(told.len(), 4);
        assert!(lab.index(1).is_file());
    }

    #[test]
    fn what_is_unsealed_at_the_end_is_an_error_and_no_loss() {
        let lab = Lab::new();
        std::fs::create_dir(lab.index(1)).expect("a directory");
        lab.fill(1);
        let sealer = lab.start(|_| false);
        let error = sealer.stop().expect_err("one is not sealed").to_string();
        assert!(error.contains("1 files"), "{error}");
        std::fs::remove_dir(lab.index(1)).expect("removed");
        let Lab { dir, store, .. } = lab;
        drop(store);
        let store = OwnedStore::open_or_create(&dir.path().join("store"), None).expect("a store");
        assert_eq!(store.recovery().frames, 1);
    }
}
