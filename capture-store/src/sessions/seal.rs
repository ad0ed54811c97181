//! An open tail becomes a Parquet file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::{concat_batches, sort_to_indices, take_record_batch};
use arrow::datatypes::TimestampNanosecondType;
use capture_flow::time::Nanos;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::layout::{self, Layout, TEMPORARY};
use crate::ledger::{Note, OpenTail, SealedFile, check_tail};
use crate::segment::DAMAGED;

use super::live;
use super::schema::schema;

/// Rows of a row group: what a query skips or reads as a whole.
const ROW_GROUP_ROWS: usize = 1 << 16;
/// Rows of a page: what a query skips within a row group.
const PAGE_ROWS: usize = 1 << 13;
/// Columns that a question names a value of: with a Bloom filter, row groups without the value
/// are not read.
const ASKED_FOR: [&str; 5] = ["uid", "orig_h", "resp_h", "proto", "community_id"];

/// The column that sealed files have in their path and metadata.
pub(super) const SENSOR: &str = "sensor";
/// The sensor's name in a file's metadata.
pub(super) const SENSOR_KEY: &str = "stillwire.sensor";

/// Why an open tail is not sealed. It stays, is read as it is, and the next start seals it.
#[derive(Debug, thiserror::Error)]
pub enum SealSessionsError {
    /// The kernel's answer.
    #[error("cannot seal {path}")]
    Io {
        /// The open tail.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Arrow's or Parquet's answer.
    #[error("cannot write {path} as Parquet")]
    Parquet {
        /// The open tail.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: ParquetError,
    },
    /// It has content, but not one row of it can be read. It is out of the way now: another try
    /// would find nothing.
    #[error("not one row can be read of {bytes} bytes in {path}; they are kept in {aside}")]
    Unreadable {
        /// The open tail.
        path: PathBuf,
        /// What it was renamed to.
        aside: PathBuf,
        /// Its size.
        bytes: u64,
    },
}

/// A sealed file of the session log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedSessions {
    /// The file, for the ledger: its path within the store, size, hash, rows and times.
    pub file: SealedFile,
    /// Rows in it.
    pub rows: u64,
    /// Bytes behind the last whole batch of the open tail: rows that a kill or a power loss tore.
    pub torn_bytes: u64,
    /// Bytes before it that are damaged. The open tail is kept aside then.
    pub damaged_bytes: u64,
    /// When the newest row was flushed.
    pub last_flushed_at: Nanos,
}

impl SealedSessions {
    /// Bytes of the open tail that could not be read.
    #[must_use]
    pub fn unread_bytes(&self) -> u64 {
        self.torn_bytes.saturating_add(self.damaged_bytes)
    }
}

/// An open tail that nobody writes to any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingSeal {
    layout: Layout,
    sensor: String,
    path: PathBuf,
    /// What was written to it, as far as that is known.
    expected: Option<Box<OpenTail>>,
}

impl PendingSeal {
    pub(crate) fn new(layout: &Layout, sensor: &str, path: PathBuf) -> Self {
        Self { layout: layout.clone(), sensor: sensor.to_owned(), path, expected: None }
    }

    /// Knows what was written to the file.
    pub(crate) fn expecting(self, expected: Option<OpenTail>) -> Self {
        Self { expected: expected.map(Box::new), ..self }
    }

    /// What the ledger is to be told if the file is not what was written to it: somebody else, or
    /// the disk, has changed it. It is sealed all the same, for what is there.
    #[must_use]
    pub fn altered(&self) -> Option<Note> {
        let expected = self.expected.as_ref()?;
        let found = check_tail(self.layout.root(), expected);
        found.err().map(|_| Note::Altered { path: expected.path.clone(), doubt: None })
    }

    /// The open tail.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the rows as Parquet, sorted by `ts`, into the partition of the hour in which they
    /// were flushed, and removes the open tail. `None` if there is no row in it. May be repeated
    /// after it failed or was killed at any point.
    ///
    /// # Errors
    /// See [`SealSessionsError`].
    pub fn seal(&self) -> Result<Option<SealedSessions>, SealSessionsError> {
        self.seal_and_tell(|_| ())
    }

    /// The same, and calls `tell` once it is sealed but for the open tail, which still lies there:
    /// after a kill in between, the recovery tells of it. It may be called again if that step fails
    /// and is repeated.
    ///
    /// # Errors
    /// See [`SealSessionsError`].
    pub fn seal_and_tell(
        &self,
        tell: impl FnOnce(&SealedFile),
    ) -> Result<Option<SealedSessions>, SealSessionsError> {
        let io = |source| SealSessionsError::Io { path: self.path.clone(), source };
        let content =
            File::open(&self.path).and_then(|mut file| live::read(&mut file)).map_err(io)?;
        if content.batches.iter().all(|batch| batch.num_rows() == 0) {
            let bytes = content.torn_bytes.saturating_add(content.damaged_bytes);
            if bytes == 0 {
                layout::remove_if_there(&self.path).map_err(io)?;
                return Ok(None);
            }
            let aside = self.keep_aside().map_err(io)?;
            return Err(SealSessionsError::Unreadable { path: self.path.clone(), aside, bytes });
        }
        let parquet = |source| SealSessionsError::Parquet { path: self.path.clone(), source };
        let rows = sorted(&content.batches).map_err(parquet)?;
        let (first_ts, _) = range(&rows, "ts");
        let (_, last_ts) = range(&rows, "last_ts");
        let (first_flushed, last_flushed_at) = range(&rows, "flushed_at");
        let dir = self.layout.partition(&self.sensor, first_flushed);
        layout::create_dir(&dir).map_err(io)?;
        let name = self.path.with_extension("parquet");
        let target = dir.join(name.file_name().unwrap_or_default());
        let mut temporary = target.clone().into_os_string();
        temporary.push(TEMPORARY);
        let temporary = PathBuf::from(temporary);
        let sealed = self.write(&rows, &temporary).and_then(|file| {
            file.sync_all().map_err(io)?;
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(File::open(&temporary).map_err(io)?).map_err(io)?;
            let bytes = file.metadata().map_err(io)?.len();
            std::fs::rename(&temporary, &target).map_err(io)?;
            Ok((bytes, hasher.finalize()))
        });
        let (bytes, hash) = sealed.inspect_err(|_| {
            // The first error is the one worth telling.
            let _ = layout::remove_if_there(&temporary);
        })?;
        layout::sync_dir(&dir).map_err(io)?;
        let file = SealedFile {
            path: self.within_store(&target),
            bytes,
            blake3: Some(hash.to_hex().to_string()),
            items: rows.num_rows() as u64,
            first_ts,
            last_ts,
        };
        tell(&file);
        if content.damaged_bytes == 0 {
            layout::remove_if_there(&self.path).map_err(io)?;
        } else {
            self.keep_aside().map_err(io)?;
        }
        Ok(Some(SealedSessions {
            file,
            rows: rows.num_rows() as u64,
            torn_bytes: content.torn_bytes,
            damaged_bytes: content.damaged_bytes,
            last_flushed_at,
        }))
    }

    /// What is damaged stays for whoever can read more of it.
    fn keep_aside(&self) -> io::Result<PathBuf> {
        let aside = self.path.with_extension(DAMAGED);
        std::fs::rename(&self.path, &aside)?;
        Ok(aside)
    }

    /// The file that this tail was sealed into before, for the ledger; `None` where it cannot be
    /// read.
    pub(crate) fn sealed_as(&self, parquet: &Path) -> Option<SealedFile> {
        let (items, first_ts, last_ts) = super::extent(parquet)?;
        let file = File::open(parquet).ok()?;
        let bytes = file.metadata().ok()?.len();
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file).ok()?;
        let blake3 = Some(hasher.finalize().to_hex().to_string());
        let path = self.within_store(parquet);
        Some(SealedFile { path, bytes, blake3, items, first_ts, last_ts })
    }

    fn within_store(&self, path: &Path) -> String {
        let path = path.strip_prefix(self.layout.root()).unwrap_or(path);
        path.to_string_lossy().into_owned()
    }

    fn write(&self, rows: &RecordBatch, path: &Path) -> Result<File, SealSessionsError> {
        let io = |source| SealSessionsError::Io { path: self.path.clone(), source };
        let parquet = |source| match source {
            // So that a full disk is called one.
            ParquetError::External(error) => match error.downcast::<io::Error>() {
                Ok(error) => io(*error),
                Err(error) => SealSessionsError::Parquet {
                    path: self.path.clone(),
                    source: ParquetError::External(error),
                },
            },
            source => SealSessionsError::Parquet { path: self.path.clone(), source },
        };
        layout::remove_if_there(path).map_err(io)?;
        let file = layout::create_new(path).map_err(io)?;
        let rows = without_sensor(rows).map_err(parquet)?;
        let mut writer = ArrowWriter::try_new(file, rows.schema(), Some(properties(&self.sensor)))
            .map_err(parquet)?;
        writer.write(&rows).map_err(parquet)?;
        writer.into_inner().map_err(parquet)
    }
}

fn properties(sensor: &str) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_created_by(format!("stillwire {}", env!("CARGO_PKG_VERSION")))
        .set_key_value_metadata(Some(vec![KeyValue::new(SENSOR_KEY.to_owned(), sensor.to_owned())]))
        // Column 0 is `ts`.
        .set_sorting_columns(Some(vec![SortingColumn {
            column_idx: 0,
            descending: false,
            nulls_first: false,
        }]));
    for name in ASKED_FOR {
        let column = ColumnPath::from(name);
        properties = properties
            .set_column_bloom_filter_fpp(column.clone(), 0.01)
            .set_column_bloom_filter_max_ndv(column, ROW_GROUP_ROWS as u64);
    }
    // Hardly any value comes twice: a dictionary would only be built and thrown away.
    properties.set_column_dictionary_enabled(ColumnPath::from("uid"), false).build()
}

/// Takes the column `sensor` out: it is the partition key of that name, and pyarrow refuses to
/// read a directory as one table whose files have a key's column, too. The name itself, which
/// the path has only as far as paths allow, is kept in the file's metadata.
fn without_sensor(rows: &RecordBatch) -> Result<RecordBatch, ParquetError> {
    let columns = rows.schema();
    let kept = columns.fields().iter().enumerate().filter(|(_, field)| field.name() != SENSOR);
    let places: Vec<usize> = kept.map(|(place, _)| place).collect();
    Ok(rows.project(&places)?)
}

fn sorted(batches: &[RecordBatch]) -> Result<RecordBatch, ParquetError> {
    let rows = concat_batches(&schema(), batches)?;
    let order = sort_to_indices(rows.column(0), None, None)?;
    Ok(take_record_batch(&rows, &order)?)
}

/// The least and the greatest moment of a time column.
fn range(rows: &RecordBatch, name: &str) -> (Nanos, Nanos) {
    let column = rows.column_by_name(name);
    let values = column.and_then(|column| column.as_primitive_opt::<TimestampNanosecondType>());
    values.map_or((Nanos::MAX, Nanos::MIN), |values| {
        values.values().iter().fold((Nanos::MAX, Nanos::MIN), |(low, high), at| {
            (low.min(Nanos(*at)), high.max(Nanos(*at)))
        })
    })
}

/// Every Parquet file of the session log by its name without extension, which it shares with the
/// open tail that it came from. Reads the directories of three levels below `sessions`.
pub(crate) fn sealed_names(layout: &Layout) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for sensor in partitions(&layout.sessions(), "sensor=")? {
        for date in partitions(&sensor, "date=")? {
            for hour in partitions(&date, "hour=")? {
                for name in layout::names_in(&hour)? {
                    if let Some(stem) = name.strip_suffix(".parquet") {
                        found.insert(stem.to_owned(), hour.join(&name));
                    }
                }
            }
        }
    }
    Ok(found)
}

/// The partition directories of one level.
pub(crate) fn partitions(dir: &Path, prefix: &str) -> io::Result<Vec<PathBuf>> {
    let names = layout::names_in(dir)?;
    Ok(names.iter().filter(|name| name.starts_with(prefix)).map(|name| dir.join(name)).collect())
}
