//! How long a frame takes from its arrival until it can be read in the capture file: a thread
//! follows the files while they grow and looks at each record's time of arrival.
//!
//! What it sees is an upper bound: it looks once in a while, and it needs a core to do so. At rates
//! near a subject's limit it would take part in what it measures.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use hdrhistogram::Histogram;
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// How often it looks.
const LOOK: Duration = Duration::from_micros(500);
/// How often it looks for new files.
const SEARCH: Duration = Duration::from_millis(10);
/// Bytes read at a time.
const BITE: usize = 32 << 10;
/// The longest record there is, as libpcap has it.
const LONGEST: u32 = 262_144;
/// Longer than any load's frames are held back, in nanoseconds.
const MOST_NS: u64 = 600_000_000_000;
const FILE_HEADER: u64 = 24;
const RECORD_HEADER: usize = 16;

/// Times from arrival to record, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Latency {
    /// Frames that were seen.
    pub(crate) frames: u64,
    /// Half of them took no longer.
    pub(crate) p50_us: f64,
    /// Nine tenths took no longer.
    pub(crate) p90_us: f64,
    /// 99 of 100 took no longer.
    pub(crate) p99_us: f64,
    /// 999 of 1000 took no longer.
    pub(crate) p999_us: f64,
    /// None took longer.
    pub(crate) max_us: f64,
}

/// Follows what is written below a directory.
#[derive(Debug)]
pub(crate) struct Watcher {
    over: Arc<AtomicBool>,
    watching: Option<JoinHandle<Result<Histogram<u64>>>>,
}

impl Watcher {
    /// Starts to follow every capture file below `dir`, from a core that the subject does not use.
    pub(crate) fn start(dir: &Path, core: usize) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let histogram = Histogram::new_with_bounds(1, MOST_NS, 3)
            .map_err(|error| anyhow!("making a histogram: {error}"))?;
        let mut follower =
            Follower { dir: dir.to_owned(), since_ns: now_ns(), files: BTreeMap::new(), histogram };
        let asked = Arc::clone(&over);
        let watching = std::thread::spawn(move || {
            let mut only = CpuSet::new();
            only.set(core);
            sched_setaffinity(None, &only).context("moving to a core")?;
            follower.follow(&asked)?;
            Ok(follower.histogram)
        });
        Ok(Self { over, watching: Some(watching) })
    }

    /// What it has seen; `None` if the subject writes nothing that it can read.
    pub(crate) fn end(mut self) -> Result<Option<Latency>> {
        self.over.store(true, Ordering::SeqCst);
        let watching = self.watching.take().context("the watcher is over already")?;
        let histogram = watching.join().map_err(|_| anyhow!("the watcher has failed"))??;
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Ok((!histogram.is_empty()).then(|| Latency {
            frames: histogram.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: at(1.0),
        }))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

struct Follower {
    dir: PathBuf,
    /// Records from before are not of this load.
    since_ns: u64,
    /// Files by name; those that are no capture (yet) have no tail.
    files: BTreeMap<PathBuf, Tail>,
    histogram: Histogram<u64>,
}

impl Follower {
    fn follow(&mut self, over: &AtomicBool) -> Result<()> {
        let mut searched: Option<Instant> = None;
        while !over.load(Ordering::SeqCst) {
            if searched.is_none_or(|then| then.elapsed() > SEARCH) {
                search(&self.dir.clone(), &mut self.files)?;
                searched = Some(Instant::now());
            }
            for tail in self.files.values_mut() {
                tail.read_on(self.since_ns, &mut self.histogram)?;
            }
            // Nothing tells when somebody writes into a mapped file.
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// Opens what is new below a directory.
fn search(dir: &Path, files: &mut BTreeMap<PathBuf, Tail>) -> Result<()> {
    // What vanishes meanwhile is nothing to follow.
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            search(&path, files)?;
        } else if !files.contains_key(&path)
            && let Ok(file) = File::open(&path)
        {
            files.insert(path, Tail::new(file));
        }
    }
    Ok(())
}

/// A capture file and how far it was read.
struct Tail {
    file: File,
    /// Nanoseconds in a unit of the second time field; 0 while the file has no header.
    unit_ns: u64,
    position: u64,
    bite: Vec<u8>,
}

impl Tail {
    fn new(file: File) -> Self {
        Self { file, unit_ns: 0, position: FILE_HEADER, bite: vec![0; BITE] }
    }

    /// Takes in the records that were added since.
    fn read_on(&mut self, since_ns: u64, histogram: &mut Histogram<u64>) -> Result<()> {
        if self.unit_ns == 0 {
            let mut magic = [0; 4];
            let read = self.file.read_at(&mut magic, 0)?;
            self.unit_ns = match u32::from_le_bytes(magic) {
                0xa1b2_c3d4 if read == 4 => 1000,
                0xa1b2_3c4d if read == 4 => 1,
                _ => return Ok(()),
            };
        }
        loop {
            let read = self.file.read_at(&mut self.bite, self.position)?;
            // Whatever is there now was there at this time.
            let now = now_ns();
            let bite = self.bite.get(..read).unwrap_or_default();
            let mut taken = 0;
            while let Some((arrival_ns, next)) = record(bite, taken, self.unit_ns) {
                // Room that was made ahead holds zeros, or a record of an earlier use.
                if arrival_ns < since_ns || (next > bite.len() && read < BITE) {
                    break;
                }
                let latency = now.saturating_sub(arrival_ns).clamp(1, MOST_NS);
                histogram.saturating_record(latency);
                taken = next;
            }
            if taken == 0 {
                return Ok(());
            }
            self.position += taken as u64;
        }
    }
}

/// When the record at a place arrived, and where the next one begins; `None` if there is none.
fn record(bytes: &[u8], at: usize, unit_ns: u64) -> Option<(u64, usize)> {
    let header: &[u8; RECORD_HEADER] = bytes.get(at..)?.first_chunk()?;
    let word =
        |place: usize| header.get(place..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let (seconds, fraction, captured) = (word(0)?, word(4)?, word(8)?);
    if captured == 0 || captured > LONGEST {
        return None;
    }
    let arrival_ns = u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * unit_ns;
    Some((arrival_ns, at + RECORD_HEADER + captured as usize))
}

/// UTC, as capture files have it.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    (now.tv_sec * 1_000_000_000 + now.tv_nsec).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn put(file: &mut File, at_ns: u64, bytes: u32) {
        let words = [(at_ns / 1_000_000_000) as u32, (at_ns % 1_000_000_000) as u32, bytes, bytes];
        let mut record: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        record.resize(RECORD_HEADER + bytes as usize, 7);
        file.write_all(&record).unwrap();
    }

    #[test]
    fn records_are_seen_when_they_are_whole_and_of_this_load() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.pcap");
        let mut file = File::create(&path).unwrap();
        let mut histogram = Histogram::new_with_bounds(1, MOST_NS, 3).unwrap();
        let mut tail = Tail::new(File::open(&path).unwrap());
        let since = now_ns();
        tail.read_on(since, &mut histogram).unwrap();

        let mut header = 0xa1b2_3c4d_u32.to_le_bytes().to_vec();
        header.resize(FILE_HEADER as usize, 0);
        file.write_all(&header).unwrap();
        for _ in 0..1000 {
            put(&mut file, since, 1514);
        }
        tail.read_on(since, &mut histogram).unwrap();
        assert_eq!(histogram.len(), 1000);
        assert!(histogram.max() < 60_000_000_000, "{}", histogram.max());

        // Half a record, then the rest of it; then what an earlier use has left, and zeros.
        file.write_all(&[0; 7]).unwrap();
        file.set_len(FILE_HEADER + 1000 * 1530).unwrap();
        use std::io::{Seek, SeekFrom};
        file.seek(SeekFrom::End(0)).unwrap();
        put(&mut file, since, 60);
        put(&mut file, since - 1, 60);
        file.write_all(&[0; 4096]).unwrap();
        for _ in 0..2 {
            tail.read_on(since, &mut histogram).unwrap();
            assert_eq!(histogram.len(), 1001);
        }
    }

    #[test]
    fn a_directory_is_followed_into_its_folders() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("w00")).unwrap();
        fs::write(dir.path().join("w00/1.pcap"), "").unwrap();
        fs::write(dir.path().join("log"), "no capture").unwrap();
        let mut files = BTreeMap::new();
        search(dir.path(), &mut files).unwrap();
        search(dir.path(), &mut files).unwrap();
        assert_eq!(files.len(), 2);
    }
}
