//! Waiting until the log is complete.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use capture_flow::time::{Nanos, NanosDelta};
use capture_store::Store;
use capture_store::ledger::{self, LedgerRead};

use crate::coverage::{AskedAt, Coverage, Reason};
use crate::times::Window;

/// How far back the ledger is read to learn how far behind the log usually is.
const RECENT: NanosDelta = NanosDelta::from_secs(180);
/// What a busy machine may take on top.
const SPARE: NanosDelta = NanosDelta::from_secs(2);

/// When the window will be covered by the look of it; `None` where waiting does not help.
pub(super) fn ask_again_at(
    read: &LedgerRead,
    coverage: &Coverage,
    to: Nanos,
    now: Nanos,
) -> Option<Nanos> {
    coverage.gaps.iter().find(|gap| gap.reason == Reason::NotYet)?;
    let newest = read.lines.iter().map(|line| line.to).max()?;
    let recent = read.lines.iter().filter(|line| newest - line.to < RECENT);
    let behind = |line: &ledger::LedgerLine| Some(line.to - line.complete_through?);
    let lag = recent.filter_map(behind).max().unwrap_or(NanosDelta(0));
    Some((to + lag + SPARE).max(now + SPARE))
}

/// Waits until the logs of all sensors that run are complete through `to`, `limit` at most.
/// Says whether they are.
///
/// # Errors
/// A ledger cannot be read or watched.
pub fn wait(stores: &[Store], to: Nanos, limit: Duration) -> anyhow::Result<bool> {
    let begun = Instant::now();
    for store in stores {
        let sensor = &store.identity().sensor;
        let dir = store.layout().ledger(sensor);
        let mut changes = Changes::of(&dir)?;
        loop {
            let now = now();
            let at = AskedAt::of(store, now);
            let from = to.min(now) - RECENT;
            let read = ledger::read(store, from, Nanos::MAX)
                .with_context(|| format!("cannot read {}", dir.display()))?;
            let window = Window { from: Some(to.min(now)), to: Some(to) };
            let coverage = Coverage::of(sensor, &read, window, at);
            if !coverage.gaps.iter().any(|gap| gap.reason == Reason::NotYet) {
                break;
            }
            let left = limit.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            changes.wait(left)?;
        }
    }
    Ok(true)
}

/// The wall clock.
#[must_use]
pub fn now() -> Nanos {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let ns = since.map_or(0, |passed| passed.as_nanos());
    Nanos(i64::try_from(ns).unwrap_or(i64::MAX))
}

/// No ledger that is written stands still for so long: a quiet one has a line every ten seconds,
/// and one that is not written any more must be seen to be so.
const LOOK: Duration = Duration::from_secs(5);

/// Changes of the files in a directory.
#[cfg(target_os = "linux")]
struct Changes {
    inotify: rustix::fd::OwnedFd,
}

#[cfg(target_os = "linux")]
impl Changes {
    fn of(dir: &Path) -> anyhow::Result<Self> {
        use rustix::fs::inotify;
        let watch = || -> rustix::io::Result<_> {
            let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            let events = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE;
            inotify::add_watch(&fd, dir, events)?;
            Ok(fd)
        };
        let inotify = watch().with_context(|| format!("cannot watch {}", dir.display()))?;
        Ok(Self { inotify })
    }

    /// Until something changed, `most` at most.
    fn wait(&mut self, most: Duration) -> anyhow::Result<()> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let most = most.min(LOOK);
        let timeout = Timespec {
            tv_sec: i64::try_from(most.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: most.subsec_nanos().into(),
        };
        poll(&mut [PollFd::new(&self.inotify, PollFlags::IN)], Some(&timeout))
            .context("cannot wait for the ledger")?;
        let mut events = [0; 4096];
        while rustix::io::read(&self.inotify, &mut events).is_ok_and(|read| read > 0) {}
        Ok(())
    }
}

/// Where there is no inotify: looks twice a second.
#[cfg(not(target_os = "linux"))]
struct Changes;

#[cfg(not(target_os = "linux"))]
impl Changes {
    fn of(_: &Path) -> anyhow::Result<Self> {
        Ok(Self)
    }

    fn wait(&mut self, most: Duration) -> anyhow::Result<()> {
        std::thread::sleep(most.min(LOOK).min(Duration::from_millis(500)));
        Ok(())
    }
}
