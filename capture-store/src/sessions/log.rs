//! The writing end of the session log.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use capture_flow::record::SessionRecord;
use capture_flow::time::Nanos;

use crate::drops::RowLossReason;
use crate::layout::{self, Layout};
use crate::ledger::OpenTail;
use crate::store::{OwnedStore, RunId};
use crate::time::HOUR_NS;

use super::columns::Columns;
use super::live::LiveWriter;
use super::row::{RowNames, SessionRow};
use super::seal::PendingSeal;

/// How the session log is cut into files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPolicy {
    /// Rows after which the open tail is sealed.
    pub seal_rows: u64,
    /// Rows that may wait in memory while the log cannot be written; more are lost, and counted.
    pub waiting_rows: usize,
    /// Seed of the Community ID.
    pub community_id_seed: u16,
}

impl Default for LogPolicy {
    fn default() -> Self {
        Self { seal_rows: 1 << 18, waiting_rows: 1 << 18, community_id_seed: 0 }
    }
}

/// Not every row could be committed. The others wait in memory for the next try.
#[derive(Debug, thiserror::Error)]
#[error("rows of the session log wait")]
pub struct CommitError {
    /// Rows that were committed before.
    pub committed: u64,
    /// What stopped the rest.
    #[source]
    pub cause: LogError,
}

/// Why rows could not be committed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The kernel's answer.
    #[error("cannot write the session log {path}")]
    Io {
        /// The open tail.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Rows that make no batch: a defect of this program.
    #[error("the rows make no batch")]
    Batch(#[from] ArrowError),
}

/// The file that rows go to.
struct Live {
    path: PathBuf,
    hour: i64,
    rows: u64,
    writer: LiveWriter,
}

/// Writes the session log of one run.
pub struct SessionLog {
    layout: Layout,
    sensor: String,
    run: RunId,
    policy: LogPolicy,
    next_file: u64,
    live: Option<Live>,
    filling: Columns,
    filling_hour: i64,
    ready: VecDeque<(i64, RecordBatch)>,
    ready_rows: usize,
    pending: Vec<PendingSeal>,
    /// Files handed out to be sealed, as they were then.
    rotated: Vec<OpenTail>,
}

impl SessionLog {
    /// Begins the log of a run. Writes nothing yet.
    #[must_use]
    pub fn new(store: &OwnedStore, run: &RunId, policy: LogPolicy) -> Self {
        Self {
            layout: store.layout().clone(),
            sensor: store.identity().sensor.clone(),
            run: run.clone(),
            policy,
            next_file: 0,
            live: None,
            filling: Columns::default(),
            filling_hour: 0,
            ready: VecDeque::new(),
            ready_rows: 0,
            pending: Vec::new(),
            rotated: Vec::new(),
        }
    }

    /// Takes a row; it is kept once [`SessionLog::commit`] says so.
    ///
    /// # Errors
    /// Too many rows wait already because the log cannot be written: this one is lost.
    pub fn append(&mut self, record: &SessionRecord, iface: &str) -> Result<(), RowLossReason> {
        if self.ready_rows + self.filling.rows() >= self.policy.waiting_rows {
            return Err(RowLossReason::LogUnwritable);
        }
        // A file holds the rows of one hour.
        let hour = hour_of(record.flushed_at);
        if hour != self.filling_hour && self.end_batch().is_err() {
            return Err(RowLossReason::LogUnwritable);
        }
        self.filling_hour = hour;
        let names = RowNames {
            sensor: &self.sensor,
            iface,
            community_id_seed: self.policy.community_id_seed,
        };
        self.filling.push(&SessionRow::of(record, &names));
        Ok(())
    }

    /// Rows taken and not committed yet.
    #[must_use]
    pub fn waiting_rows(&self) -> usize {
        self.ready_rows + self.filling.rows()
    }

    /// Bytes of the open tail.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.live.as_ref().map_or(0, |live| live.writer.len())
    }

    /// Writes the waiting rows to the open tail: readers see them, and a kill does not take them.
    /// Returns how many rows were committed; so does an error, and [`SessionLog::waiting_rows`]
    /// tells how many still wait.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn commit(&mut self) -> Result<u64, CommitError> {
        let mut committed = 0;
        match self.commit_ready(&mut committed) {
            Ok(()) => Ok(committed),
            Err(cause) => Err(CommitError { committed, cause }),
        }
    }

    fn commit_ready(&mut self, committed: &mut u64) -> Result<(), LogError> {
        self.end_batch()?;
        while let Some((hour, batch)) = self.ready.front() {
            let (hour, batch) = (*hour, batch.clone());
            if self.live.as_ref().is_some_and(|live| live.hour != hour) {
                self.rotate();
            }
            self.write(hour, &batch)?;
            *committed += batch.num_rows() as u64;
            self.ready_rows = self.ready_rows.saturating_sub(batch.num_rows());
            self.ready.pop_front();
            if self.live.as_ref().is_some_and(|live| live.rows >= self.policy.seal_rows) {
                self.rotate();
            }
        }
        Ok(())
    }

    /// Files that are not sealed yet, as far as their rows are committed.
    #[must_use]
    pub fn tails(&mut self) -> Vec<OpenTail> {
        let root = self.layout.root();
        self.rotated.retain(|tail| root.join(&tail.path).exists());
        let live = self.live.as_ref().map(|live| tail_of(&self.layout, live));
        self.rotated.iter().cloned().chain(live).collect()
    }

    /// Files that are due to be sealed at `now` (the engine's clock): full ones, and the open
    /// tail once its hour is over. Sealing may run on any thread, at any time; until then the
    /// rows are read from the open tail.
    #[must_use]
    pub fn take_due(&mut self, now: Nanos) -> Vec<PendingSeal> {
        if self.live.as_ref().is_some_and(|live| live.hour < hour_of(now)) {
            self.rotate();
        }
        std::mem::take(&mut self.pending)
    }

    /// Ends the run: commits what waits and hands out every file that is not sealed.
    ///
    /// # Errors
    /// The waiting rows could not be written; the files can still be had by trying again.
    pub fn close(&mut self) -> Result<(u64, Vec<PendingSeal>), CommitError> {
        let committed = self.commit()?;
        self.rotate();
        Ok((committed, std::mem::take(&mut self.pending)))
    }

    fn end_batch(&mut self) -> Result<(), LogError> {
        let rows = self.filling.rows();
        if rows > 0 {
            let batch = self.filling.finish()?;
            self.ready_rows += rows;
            self.ready.push_back((self.filling_hour, batch));
        }
        Ok(())
    }

    fn write(&mut self, hour: i64, batch: &RecordBatch) -> Result<(), LogError> {
        if self.live.is_none() {
            let name = format!("{}-{:06}.arrows", self.run, self.next_file);
            let path = self.layout.live().join(name);
            let writer = LiveWriter::create(&path)
                .map_err(|source| LogError::Io { path: path.clone(), source })?;
            self.next_file += 1;
            self.live = Some(Live { path, hour, rows: 0, writer });
        }
        let Some(live) = &mut self.live else { return Ok(()) };
        match live.writer.append(batch) {
            Ok(()) => {
                live.rows += batch.num_rows() as u64;
                Ok(())
            }
            Err(source) => {
                let path = live.path.clone();
                if live.writer.is_torn() {
                    // What comes behind a torn batch would be hard to find: it gets its own file.
                    self.rotate();
                }
                Err(LogError::Io { path, source })
            }
        }
    }

    fn rotate(&mut self) {
        let Some(live) = self.live.take() else { return };
        // Without a row there is nothing to seal; what was torn off waits for the next file.
        if live.rows > 0 || layout::remove_if_there(&live.path).is_err() {
            let tail = tail_of(&self.layout, &live);
            let pending = PendingSeal::new(&self.layout, &self.sensor, live.path);
            self.pending.push(pending.expecting(Some(tail.clone())));
            self.rotated.push(tail);
        }
    }
}

fn tail_of(layout: &Layout, live: &Live) -> OpenTail {
    let path = live.path.strip_prefix(layout.root()).unwrap_or(&live.path);
    OpenTail {
        path: path.to_string_lossy().into_owned(),
        bytes: live.writer.len(),
        blake3: live.writer.hash().to_hex().to_string(),
    }
}

impl std::fmt::Debug for SessionLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionLog")
            .field("run", &self.run)
            .field("waiting_rows", &self.waiting_rows())
            .finish_non_exhaustive()
    }
}

/// The hour since the epoch.
fn hour_of(at: Nanos) -> i64 {
    at.0.div_euclid(HOUR_NS)
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, StringArray,
        TimestampNanosecondArray, new_null_array,
    };
    use arrow::datatypes::DataType;

    use super::*;
    use crate::sessions::schema::{UTC, schema};
    use crate::sessions::{Scan, scan};

    /// A row without any meaning.
    fn batch() -> RecordBatch {
        let schema = schema();
        let columns = schema.fields().iter().map(|field| -> ArrayRef {
            match field.data_type() {
                DataType::Utf8 => Arc::new(StringArray::from(vec![""])),
                DataType::Int32 => Arc::new(Int32Array::from(vec![0])),
                DataType::Int64 => Arc::new(Int64Array::from(vec![0])),
                DataType::Float64 => Arc::new(Float64Array::from(vec![0.0])),
                DataType::Boolean => Arc::new(BooleanArray::from(vec![false])),
                DataType::Timestamp(..) => {
                    Arc::new(TimestampNanosecondArray::from(vec![0]).with_timezone(UTC))
                }
                other => new_null_array(other, 1),
            }
        });
        let columns = columns.collect();
        RecordBatch::try_new(schema, columns).unwrap()
    }

    fn commit(log: &mut SessionLog) -> Result<u64, CommitError> {
        log.ready.push_back((0, batch()));
        log.ready_rows += 1;
        log.commit()
    }

    #[test]
    fn what_follows_a_torn_batch_is_in_a_file_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let store = OwnedStore::open_or_create(&dir.path().join("store"), None).unwrap();
        let run = RunId::parse("20070202T060000Z-0badcafe").unwrap();
        let mut log = SessionLog::new(&store, &run, LogPolicy::default());
        assert_eq!(commit(&mut log).unwrap(), 1);
        let live = log.live.as_mut().unwrap();
        let torn = live.path.clone();
        live.writer.fail();
        assert_eq!(commit(&mut log).unwrap_err().committed, 0);
        // What the disk took of the batch and did not give back.
        let mut bytes = std::fs::read(&torn).unwrap();
        bytes.extend_from_slice(&[0xff; 40]);
        std::fs::write(&torn, bytes).unwrap();
        assert_eq!(commit(&mut log).unwrap(), 2, "the one that waited, too");
        let mut rows = 0;
        let report = scan(store.store(), &Scan::default(), |batch| {
            rows += batch.num_rows();
            ControlFlow::Continue(())
        });
        let report = report.unwrap();
        assert_eq!((rows, report.files, report.damaged.len()), (3, 2, 0));
        assert_eq!(report.torn.iter().map(|torn| torn.bytes).collect::<Vec<_>>(), [40]);
        let (_, pending) = log.close().unwrap();
        let sealed = pending.iter().map(|pending| pending.seal().unwrap().unwrap());
        assert_eq!(sealed.map(|s| (s.rows, s.torn_bytes)).collect::<Vec<_>>(), [(1, 40), (2, 0)]);
    }

    #[test]
    fn a_torn_file_without_a_row_goes_and_its_rows_wait() {
        let dir = tempfile::tempdir().unwrap();
        let store = OwnedStore::open_or_create(&dir.path().join("store"), None).unwrap();
        let run = RunId::parse("20070202T060000Z-0badcafe").unwrap();
        let mut log = SessionLog::new(&store, &run, LogPolicy::default());
        let path = store.layout().live().join("first.arrows");
        let mut writer = LiveWriter::create(&path).unwrap();
        writer.fail();
        log.live = Some(Live { path: path.clone(), hour: 0, rows: 0, writer });
        commit(&mut log).unwrap_err();
        assert!(!path.exists());
        assert_eq!(log.commit().unwrap(), 1);
        assert_eq!(log.close().unwrap().1.len(), 1);
    }
}
