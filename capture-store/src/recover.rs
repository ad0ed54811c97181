//! What a new start does about what the last run left open.
//!
//! Every step leaves the store in a state from which the next start goes on, so a recovery that
//! is killed is simply repeated: a segment counts as sealed once its index exists, and its
//! journal is removed last; an open tail is removed only when its Parquet file is there. What was
//! done is owed to the ledger from then on, whether or not this start comes to write a line.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use capture_flow::time::Nanos;
use serde::{Deserialize, Serialize};

use crate::index::{self, IndexHeader, SegmentIndex};
use crate::journal::{self, Notes, Snapshot};
use crate::key::PublicKey;
use crate::layout::{self, TEMPORARY};
use crate::ledger::{Doubt, LastRun, Note, OpenTail, Owed, SealedFile};
use crate::pcap::{FILE_HEADER_LEN, ReadError, SegmentReader};
use crate::segment::{DAMAGED, INDEX, JOURNAL, PCAP, SealedSegment, finish_files};
use crate::sessions::{PendingSeal, partitions, sealed_names};
use crate::store::Store;
use crate::time::{now, to_rfc3339};

/// What was recovered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryReport {
    /// Segments that were open and are sealed now.
    pub segments: u64,
    /// Frames in them.
    pub frames: u64,
    /// Bytes of packets in them, headers included.
    pub bytes: u64,
    /// Frames that were whole although their batch had not been committed; among `frames`.
    pub uncommitted_frames: u64,
    /// Bytes that the journals had committed but that are not there: only a power loss or a
    /// damaged disk takes them.
    pub bytes_lost: u64,
    /// Whether the machine was restarted since the run before, so that pages may be missing.
    pub rebooted: bool,
    /// Frames that the ledger had counted as written and that are in no segment, about: only a
    /// power loss takes them.
    #[serde(default)]
    pub frames_lost: u64,
    /// From when on they were received, and until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames_lost_in: Option<Doubt>,
    /// Bytes of the session log that the ledger had vouched for but that are not there.
    #[serde(default)]
    pub log_bytes_lost: u64,
    /// Live tails of the session log that were sealed.
    pub live_files: u64,
    /// Rows in them.
    pub rows: u64,
    /// Files whose sealing was killed before its last step: they are sealed now.
    #[serde(default)]
    pub unfinished: u64,
    /// Bytes that were no whole batch of rows, which were left out.
    pub torn_bytes: u64,
    /// Files without content that were removed.
    pub removed: u64,
    /// Files that could not be recovered and were left as they are, each with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<String>,
    /// The last sign of life of the run that ended uncleanly: its last frame or row.
    #[serde(with = "crate::time::rfc3339::option", default)]
    pub last_sign: Option<Nanos>,
    /// When the recovery ran: until then no sensor was watching.
    #[serde(with = "crate::time::rfc3339::option", default)]
    pub recovered_at: Option<Nanos>,
}

impl RecoveryReport {
    /// Whether anything had been left open: the last run did not end in order.
    #[must_use]
    pub fn was_unclean(&self) -> bool {
        self.segments > 0
            || self.live_files > 0
            || self.unfinished > 0
            || !self.left.is_empty()
            || self.frames_lost > 0
            || self.log_bytes_lost > 0
    }

    /// Bytes of packets and of the session log that are known to be lost.
    #[must_use]
    pub fn all_bytes_lost(&self) -> u64 {
        let packets = self.bytes_lost;
        packets.saturating_add(self.torn_bytes).saturating_add(self.log_bytes_lost)
    }

    /// Tells the ledger how far the recovery has come: should it be killed, that much is known.
    fn tell(&self, owed: &Owed) {
        if self.was_unclean() {
            owed.inherit(&[Note::Recovered(self.clone())]);
        }
    }

    fn saw(&mut self, at: Nanos) {
        self.last_sign = Some(self.last_sign.map_or(at, |last| last.max(at)));
    }

    fn leave(&mut self, path: &Path, why: &dyn Error) {
        let mut text = format!("{}: {why}", path.display());
        let mut cause = why.source();
        while let Some(why) = cause {
            text.push_str(&format!(": {why}"));
            cause = why.source();
        }
        tracing::warn!("not recovered: {text}");
        self.left.push(text);
    }
}

/// Seals whatever is open. Only the holder of the store's lock may call it.
pub(crate) fn recover(store: &Store, owed: &Owed, key: &PublicKey) -> io::Result<RecoveryReport> {
    let mut report = RecoveryReport { recovered_at: Some(now()), ..RecoveryReport::default() };
    let layout = store.layout();
    let last = LastRun::find(layout, &store.identity().sensor, key)?;
    report.rebooted = last.as_ref().is_some_and(LastRun::was_before_restart);
    for name in layout::names_in(&layout.pcap())? {
        if let Some(worker) = layout::worker_of(&name) {
            recover_worker(worker, &layout.worker(worker), &mut report, owed)?;
        }
    }
    if let Some(last) = last.as_ref().filter(|last| report.rebooted && !last.is_clean()) {
        miss_frames(last, &mut report, owed)?;
    }
    recover_sessions(store, &mut report, owed, last.as_ref())?;
    for dir in [layout.root().to_owned(), layout.ledger(&store.identity().sensor)] {
        remove_temporary(&dir, &mut report)?;
    }
    report.tell(owed);
    Ok(report)
}

fn remove_temporary(dir: &Path, report: &mut RecoveryReport) -> io::Result<()> {
    for name in layout::names_in(dir)? {
        if name.ends_with(TEMPORARY) {
            report.removed += u64::from(layout::remove_if_there(&dir.join(name))?);
        }
    }
    Ok(())
}

fn recover_worker(
    worker: u16,
    dir: &Path,
    report: &mut RecoveryReport,
    owed: &Owed,
) -> io::Result<()> {
    remove_temporary(dir, report)?;
    let names = layout::names_in(dir)?;
    let sequences_with = |extension: &str| -> Vec<u64> {
        let parsed = names.iter().filter_map(|name| layout::parse_segment_name(name));
        parsed.filter(|(_, found)| *found == extension).map(|(sequence, _)| sequence).collect()
    };
    let (packets, mut sealed, journals) =
        (sequences_with(PCAP), sequences_with(INDEX), sequences_with(JOURNAL));
    for sequence in &journals {
        let place = Place::new(worker, *sequence, dir);
        if sealed.contains(sequence) && packets.contains(sequence) {
            // Sealed but for this last step. An index that cannot be read is made anew.
            let Some(segment) = place.sealed() else {
                sealed.retain(|sealed| sealed != sequence);
                continue;
            };
            report.unfinished += 1;
            owed.inherit(&SealedFile::of_segment(&segment).map(Note::Sealed));
        } else if packets.contains(sequence) {
            continue;
        }
        // Or it was made before its segment was.
        report.removed += u64::from(layout::remove_if_there(&place.journal)?);
    }
    // A retirement that was killed between its two steps; the newest name must stay.
    let newest = names.iter().filter_map(|name| layout::parse_segment_name(name)).max();
    for sequence in &sealed {
        if !packets.contains(sequence) && newest.is_some_and(|(newest, _)| newest > *sequence) {
            let path = dir.join(layout::segment_name(*sequence, INDEX));
            report.removed += u64::from(layout::remove_if_there(&path)?);
        }
    }
    for sequence in packets {
        if !sealed.contains(&sequence) {
            let place = Place::new(worker, sequence, dir);
            if let Err(error) = recover_segment(&place, report, owed) {
                report.leave(&place.pcap, &error);
            }
            report.tell(owed);
        }
    }
    Ok(())
}

/// Where the parts of a segment lie.
struct Place {
    worker: u16,
    sequence: u64,
    dir: PathBuf,
    pcap: PathBuf,
    journal: PathBuf,
}

impl Place {
    fn new(worker: u16, sequence: u64, dir: &Path) -> Self {
        let path = |extension| dir.join(layout::segment_name(sequence, extension));
        let dir = dir.to_owned();
        Self { worker, sequence, pcap: path(PCAP), journal: path(JOURNAL), dir }
    }

    /// What the ledger is to be told of a segment that is sealed; `None` where it cannot be read.
    fn sealed(&self) -> Option<SealedSegment> {
        let index = SegmentIndex::open(&self.dir, self.sequence).ok()?;
        let bytes = std::fs::read(self.pcap.with_extension(INDEX)).ok()?;
        let hash = hash_of(&File::open(&self.pcap).ok()?, index.header().pcap_len).ok()?;
        Some(SealedSegment::new(index.header(), &bytes, Some(hash)))
    }
}

/// What a scan over a segment's records finds.
struct Found {
    end: u64,
    frames: u64,
    uncommitted: u64,
    first_ts: Nanos,
    last_ts: Nanos,
}

/// The hash of a file's first bytes.
fn hash_of(mut file: &File, bytes: u64) -> io::Result<blake3::Hash> {
    file.rewind()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file.take(bytes))?;
    Ok(hasher.finalize())
}

fn recover_segment(
    place: &Place,
    report: &mut RecoveryReport,
    owed: &Owed,
) -> Result<(), ReadError> {
    // Without a usable journal the records still tell where the segment ends.
    let journal = Snapshot::read(&place.journal, None).ok();
    let committed = journal.as_ref().map_or(0, |journal| journal.progress.committed);
    let reader = match SegmentReader::open(&place.pcap, u64::MAX) {
        Ok(reader) => reader,
        // Created, and killed before its header was there.
        Err(ReadError::NotPcap) if committed <= FILE_HEADER_LEN as u64 => {
            return Ok(remove_empty(place, report)?);
        }
        Err(error) => return Err(error),
    };
    let found = scan(&reader, committed)?;
    if found.frames == 0 && committed <= FILE_HEADER_LEN as u64 {
        return Ok(remove_empty(place, report)?);
    }
    // Notes of frames behind the committed end, too, as far as the frames are there.
    let notes = match &journal {
        Some(_) => Snapshot::read(&place.journal, Some(found.end)).map(|journal| journal.notes),
        None => Ok(Notes::default()),
    };
    let (notes, complete) = notes.map_or((Notes::default(), false), |notes| (notes, true));
    let unnoted = match &journal {
        // Its last batch was recorded but perhaps not noted yet.
        Some(journal) if complete => journal.progress.unnoted.saturating_add(found.uncommitted),
        _ => found.frames,
    };
    let header = IndexHeader {
        worker: place.worker,
        sequence: place.sequence,
        link_type: reader.header().link_type,
        snaplen: reader.header().snaplen,
        created: journal.as_ref().map_or_else(now, |journal| journal.fixed.created),
        pcap_len: found.end,
        frames: found.frames,
        first_ts: found.first_ts,
        last_ts: found.last_ts,
        unnoted,
        recovered: true,
        provenance: journal.as_ref().map(|journal| journal.fixed.provenance).unwrap_or_default(),
    };
    let index = index::encode(&header, notes);
    let file = OpenOptions::new().read(true).write(true).open(&place.pcap)?;
    let torn = committed.saturating_sub(found.end);
    // A recovery that was killed has perhaps cut the segment already, and kept what was behind.
    if torn > 0 && file.metadata()?.len() > found.end {
        // Only a power loss leaves holes. What lies behind the first one is no part of a readable
        // segment any more, but somebody may still want it.
        keep_aside(&file, found.end, torn, &place.pcap.with_extension(DAMAGED))?;
    }
    let sealed = SealedSegment::new(&header, &index, Some(hash_of(&file, found.end)?));
    let tell = || owed.inherit(&SealedFile::of_segment(&sealed).map(Note::Sealed));
    finish_files(&file, &place.pcap, &place.journal, &header, &index, true, tell)?;
    report.segments += 1;
    report.frames += found.frames;
    report.bytes += found.end;
    report.uncommitted_frames += found.uncommitted;
    report.bytes_lost += torn;
    report.rebooted |=
        journal.as_ref().is_some_and(|journal| journal.fixed.boot_id != journal::boot_id());
    if found.frames > 0 {
        report.saw(found.last_ts);
    }
    Ok(())
}

fn scan(reader: &SegmentReader, committed: u64) -> Result<Found, ReadError> {
    let mut found = Found {
        end: FILE_HEADER_LEN as u64,
        frames: 0,
        uncommitted: 0,
        first_ts: Nanos::MAX,
        last_ts: Nanos::MIN,
    };
    found.end = reader.scan(|offset, record, _| {
        found.frames += 1;
        found.uncommitted += u64::from(u64::from(offset) >= committed);
        found.first_ts = found.first_ts.min(record.ts());
        found.last_ts = found.last_ts.max(record.ts());
        true
    })?;
    Ok(found)
}

/// Copies a part of a file into one of its own.
fn keep_aside(mut file: &File, from: u64, bytes: u64, to: &Path) -> io::Result<()> {
    layout::remove_if_there(to)?;
    let mut aside = layout::create_new(to)?;
    file.seek(SeekFrom::Start(from))?;
    io::copy(&mut file.take(bytes), &mut aside)?;
    aside.sync_all()
}

fn remove_empty(place: &Place, report: &mut RecoveryReport) -> io::Result<()> {
    report.removed += u64::from(layout::remove_if_there(&place.pcap)?);
    report.removed += u64::from(layout::remove_if_there(&place.journal)?);
    Ok(())
}

/// What the ledger counts and no segment has.
fn miss_frames(last: &LastRun, report: &mut RecoveryReport, owed: &Owed) -> io::Result<()> {
    let known = owed.inherited();
    let is_told = |note: &Note| matches!(note, Note::Recovered(before) if before.frames_lost > 0);
    // A start that failed has told it already.
    if !known.iter().any(is_told)
        && let Some(frames) = last.frames_lost(&known)?
    {
        report.frames_lost = frames.lost;
        report.frames_lost_in = Some(Doubt { from: frames.from, to: frames.to });
    }
    Ok(())
}

/// Tells of an open tail if it is not what the last line says.
fn doubt_tail(
    store: &Store,
    last: &LastRun,
    tail: &OpenTail,
    report: &mut RecoveryReport,
    owed: &Owed,
) -> io::Result<()> {
    let Some(broken) = last.broken(store.layout().root(), tail)? else { return Ok(()) };
    let (path, bytes, doubt) = (tail.path.clone(), broken.missing, broken.doubt);
    let note = if report.rebooted && broken.is_cut {
        tracing::warn!(
            "{bytes} bytes of {path} were not on the disk when the machine was restarted: sessions \
             since {} may be missing",
            to_rfc3339(doubt.from)
        );
        Note::LogCut { path, bytes, doubt }
    } else {
        tracing::error!("{path} is not what the sensor had written: somebody has changed it");
        Note::Altered { path, doubt: Some(doubt) }
    };
    // A start that failed has told it already.
    if !owed.inherited().contains(&note) {
        if let Note::LogCut { bytes, .. } = note {
            report.log_bytes_lost = report.log_bytes_lost.saturating_add(bytes);
        }
        owed.inherit(&[note]);
    }
    Ok(())
}

fn recover_sessions(
    store: &Store,
    report: &mut RecoveryReport,
    owed: &Owed,
    last: Option<&LastRun>,
) -> io::Result<()> {
    let layout = store.layout();
    // A killed sealing leaves its temporary file in the partition.
    for sensor in partitions(&layout.sessions(), "sensor=")? {
        for date in partitions(&sensor, "date=")? {
            for hour in partitions(&date, "hour=")? {
                remove_temporary(&hour, report)?;
            }
        }
    }
    let sealed = sealed_names(layout)?;
    // Open tails must begin with what the last line says about them.
    let tails = last.map(LastRun::tails).unwrap_or_default();
    for (last, tail) in
        last.iter().flat_map(|last| last.tails().iter().map(move |tail| (last, tail)))
    {
        let stem = Path::new(&tail.path).file_stem().unwrap_or_default().to_string_lossy();
        if !layout.root().join(&tail.path).exists() && !sealed.contains_key(&*stem) {
            doubt_tail(store, last, tail, report, owed)?;
        }
    }
    let live = layout.live();
    for name in layout::names_in(&live)? {
        let Some(stem) = name.strip_suffix(".arrows") else { continue };
        let path = live.join(&name);
        let expected = tails.iter().find(|tail| layout.root().join(&tail.path) == path).cloned();
        let pending = PendingSeal::new(layout, &store.identity().sensor, path.clone());
        let was_open = expected.is_some();
        // Its sealing was killed before the last step, so nobody told the ledger. A file that
        // cannot be read is written again.
        let found = sealed.get(stem).and_then(|parquet| pending.sealed_as(parquet));
        // Beside a tail that the last line vouches for, only a sealing that the sensor owes is
        // its own; any other is made again from the tail.
        let owes = |file: &SealedFile| owed.inherited().contains(&Note::Sealed(file.clone()));
        if let Some(file) = found.filter(|file| !was_open || owes(file)) {
            report.unfinished += 1;
            owed.inherit(&[Note::Sealed(file)]);
            report.removed += u64::from(layout::remove_if_there(&path)?);
            continue;
        }
        if let (Some(last), Some(tail)) = (last, &expected) {
            doubt_tail(store, last, tail, report, owed)?;
        }
        match pending.seal_and_tell(|file| owed.inherit(&[Note::Sealed(file.clone())])) {
            Ok(Some(sealed)) => {
                report.live_files += 1;
                report.rows += sealed.rows;
                report.torn_bytes += sealed.unread_bytes();
                report.saw(sealed.last_flushed_at);
            }
            Ok(None) => report.removed += 1,
            Err(error) => report.leave(&path, &error),
        }
        report.tell(owed);
    }
    Ok(())
}
