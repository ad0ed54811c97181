//! Heads of the ledger, kept in a second place: whoever cuts the ledger's end off, or replaces all
//! of it, would have to reach that place as well.
//!
//! A thread of its own writes them, since a place can be a disk far away that hangs: neither the
//! ledger nor a worker ever waits for it.

mod place;

use std::fs::File;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use capture_store::Store;
use capture_store::ledger::{Note, has_line};
use capture_store::time::to_rfc3339;
use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use tracing::{error, info, warn};

pub use place::{Place, parse_place};

use crate::confine::Kept;

/// How long the end of a run waits for a place that hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// A head on its way.
struct Head {
    /// The line to keep.
    text: String,
    /// The ledger, which must be on the disk before anything vouches for it: after a power loss
    /// the anchor would otherwise know a line that nobody ever cut off.
    ledger: Option<File>,
}

/// The flush thread's end.
pub struct Anchors {
    heads: Sender<Head>,
    done: Receiver<()>,
    thread: JoinHandle<()>,
    interval: Duration,
    sent: Option<Instant>,
    /// Whether the last head found the thread still busy with the one before.
    late: bool,
    notes: Sender<Note>,
}

impl Anchors {
    /// Starts the thread; `None` where there is no place to write to. A place that cannot be
    /// written to is said in the log and, through `notes`, in the ledger.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        places: &[Place],
        interval: Duration,
        store: &Store,
        notes: &Sender<Note>,
        kept: Kept,
    ) -> Result<Option<Self>> {
        if places.is_empty() {
            return Ok(None);
        }
        let (heads, incoming) = bounded(1);
        let (finished, done) = bounded(1);
        let mut keepers: Vec<Keeper> = places.iter().cloned().map(Keeper::new).collect();
        let (said, store) = (notes.clone(), store.clone());
        let work = move || {
            // What belongs to another user is opened before the capabilities go.
            keepers.iter_mut().for_each(|keeper| keeper.open(&said));
            kept.confine();
            keepers.iter().for_each(|keeper| keeper.compare(&store, &said));
            for head in incoming {
                keep(&head, &mut keepers, &said);
            }
            let _ = finished.send(());
        };
        let thread = thread::Builder::new()
            .name("anchor".to_owned())
            .spawn(work)
            .context("cannot start the thread that keeps the ledger's heads elsewhere")?;
        let notes = notes.clone();
        Ok(Some(Self { heads, done, thread, interval, sent: None, late: false, notes }))
    }

    /// Whether a head is to be kept now: at the start, and once an interval.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.sent.is_none_or(|sent| sent.elapsed() >= self.interval)
    }

    /// Hands a head over, without waiting.
    pub fn keep(&mut self, text: String, ledger: Option<File>) {
        self.sent = Some(Instant::now());
        match self.heads.try_send(Head { text, ledger }) {
            Ok(()) => self.late = false,
            Err(TrySendError::Full(_)) => {
                if !std::mem::replace(&mut self.late, true) {
                    let text = "an anchor takes longer than --anchor-interval: heads are left out";
                    warn!("{text}");
                    let _ = self.notes.send(Note::Said { text: text.to_owned() });
                }
            }
            Err(TrySendError::Disconnected(_)) => {
                error!("the thread that keeps anchors has failed");
            }
        }
    }

    /// Keeps the last head of the run and waits until it is kept, a few seconds at most.
    pub fn close(self, text: String, ledger: Option<File>) {
        let Self { heads, done, thread, .. } = self;
        let sent = heads.send_timeout(Head { text, ledger }, PATIENCE);
        drop(heads);
        if sent.is_ok() && done.recv_timeout(PATIENCE).is_ok() {
            let _ = thread.join();
        } else {
            error!("the last head of the ledger is not kept elsewhere: an anchor does not answer");
        }
    }
}

/// A place and how it fares.
struct Keeper {
    place: Place,
    failing: bool,
}

impl Keeper {
    fn new(place: Place) -> Self {
        Self { place, failing: false }
    }

    fn open(&mut self, notes: &Sender<Note>) {
        let opened = self.place.open();
        self.note(opened, notes);
    }

    /// Whether the ledger still has the line that was its head when the last anchor was kept. One
    /// that has not was cut off or replaced while no sensor ran; the ledger itself tells now.
    fn compare(&self, store: &Store, notes: &Sender<Note>) {
        let Some(last) = self.place.last_anchor(&store.identity().sensor_id) else { return };
        let text = match has_line(store, &last.head) {
            Ok(true) => return,
            Ok(false) => format!(
                "the ledger was cut off or replaced: line {} of the chain, its head by {}, is in \
                 the anchor {} and not in the ledger any more",
                last.seq,
                to_rfc3339(last.at),
                self.place
            ),
            Err(error) => format!("the ledger cannot be held against {}: {error}", self.place),
        };
        error!("{text}");
        let _ = notes.send(Note::Said { text });
    }

    fn note(&mut self, outcome: std::io::Result<()>, notes: &Sender<Note>) {
        let say = |text: String| {
            let _ = notes.send(Note::Said { text });
        };
        match outcome {
            Ok(()) if std::mem::take(&mut self.failing) => {
                let text = format!("the anchor {} can be written again", self.place);
                info!("{text}");
                say(text);
            }
            Ok(()) => {}
            Err(error) if !std::mem::replace(&mut self.failing, true) => {
                let text = format!("the anchor {} cannot be written: {error}", self.place);
                error!("{text}; capturing goes on");
                say(text);
            }
            Err(_) => {}
        }
    }
}

fn keep(head: &Head, keepers: &mut [Keeper], notes: &Sender<Note>) {
    if let Some(Err(error)) = head.ledger.as_ref().map(File::sync_data) {
        error!("the ledger cannot be brought to the disk, so no anchor is kept: {error}");
        return;
    }
    for keeper in keepers {
        let outcome = keeper.place.append(&head.text);
        keeper.note(outcome, notes);
    }
}

#[cfg(test)]
mod tests {
    use crossbeam::channel::unbounded;

    use super::*;

    /// A store that is gone again: nothing in these tests asks it.
    fn store() -> Store {
        let dir = tempfile::tempdir().expect("a directory");
        let made = capture_store::OwnedStore::open_or_create(&dir.path().join("s"), None);
        made.expect("a store").store().clone()
    }

    fn anchors(places: &[&str], notes: &Sender<Note>) -> Anchors {
        let places: Vec<Place> =
            places.iter().map(|text| parse_place(text).expect("a place")).collect();
        let started = Anchors::start(&places, Duration::ZERO, &store(), notes, Kept::nothing());
        started.expect("a thread").expect("there are places")
    }

    #[test]
    fn heads_are_appended_in_order_and_a_bad_place_is_said_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let good = dir.path().join("anchor");
        std::fs::write(&good, "cut off").expect("written");
        let bad = dir.path().join("no/such/directory");
        let (notes, said) = unbounded();
        let mut anchors = anchors(&[&good.to_string_lossy(), &bad.to_string_lossy()], &notes);
        assert!(anchors.is_due());
        anchors.keep("one".to_owned(), None);
        anchors.close("two".to_owned(), None);
        let kept = std::fs::read_to_string(&good).expect("readable");
        // The second may have come before the first was written.
        assert!(kept == "cut off\none\ntwo\n" || kept == "cut off\ntwo\n", "{kept}");
        let said: Vec<Note> = said.try_iter().collect();
        assert!(
            matches!(&said[..], [Note::Said { text }] if text.contains("no/such/directory")),
            "{said:?}"
        );
    }

    #[test]
    fn a_place_that_comes_back_is_used_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("later/anchor");
        let (notes, said) = unbounded();
        let mut keeper = Keeper::new(Place::File(place::AnchorFile::new(&path)));
        keeper.open(&notes);
        keep(
            &Head { text: "one".to_owned(), ledger: None },
            std::slice::from_mut(&mut keeper),
            &notes,
        );
        std::fs::create_dir(dir.path().join("later")).expect("a directory");
        keep(
            &Head { text: "two".to_owned(), ledger: None },
            std::slice::from_mut(&mut keeper),
            &notes,
        );
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), "two\n");
        // Moved away by a rotation: a new one is begun.
        std::fs::rename(&path, dir.path().join("later/old")).expect("moved");
        keep(
            &Head { text: "three".to_owned(), ledger: None },
            std::slice::from_mut(&mut keeper),
            &notes,
        );
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), "three\n");
        assert_eq!(said.try_iter().count(), 2, "failed, and mended");
    }

    #[test]
    fn nowhere_to_keep_anything_needs_no_thread() {
        let (notes, _) = unbounded();
        let none = Anchors::start(&[], Duration::ZERO, &store(), &notes, Kept::nothing());
        assert!(none.expect("nothing fails").is_none());
    }
}
