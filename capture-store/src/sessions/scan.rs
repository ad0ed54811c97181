//! Reads the session log: sealed files and open tails, as little of them as the question needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch, StringArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int32Type, Schema, TimestampNanosecondType};
use arrow::error::ArrowError;
use capture_flow::time::Nanos;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowPredicate, ArrowPredicateFn, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
    RowFilter,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::statistics::Statistics;

use crate::layout;
use crate::store::Store;

use super::guard::guarded;
use super::live;
use super::schema::{column_or_default, is_added_later, schema};
use super::seal::{SENSOR, SENSOR_KEY};

/// Rows of a batch handed to the visitor.
const BATCH_ROWS: usize = 8192;

/// What somebody vouches for of a session log, by paths within the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trusted {
    /// Sealed files.
    pub sealed: BTreeSet<String>,
    /// Open tails, each with the bytes that are vouched for.
    pub tails: BTreeMap<String, u64>,
}

/// Which files to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Which {
    /// All there are.
    #[default]
    All,
    /// Those that somebody vouches for, no further than that.
    Trusted(Arc<Trusted>),
    /// The other sealed files, and all of the open tails.
    Others(Arc<Trusted>),
}

impl Which {
    fn takes_sealed(&self, path: &str) -> bool {
        match self {
            Self::All => true,
            Self::Trusted(trusted) => trusted.sealed.contains(path),
            Self::Others(trusted) => !trusted.sealed.contains(path),
        }
    }

    /// How many bytes of an open tail to read; `None` to leave it out. `sealed` is the file that
    /// was made of it, where there is one.
    fn bytes_of_tail(&self, path: &str, sealed: Option<&str>) -> Option<u64> {
        match self {
            Self::All => sealed.is_none().then_some(u64::MAX),
            Self::Trusted(trusted) => {
                let is_sealed = sealed.is_some_and(|sealed| trusted.sealed.contains(sealed));
                trusted.tails.get(path).copied().filter(|_| !is_sealed)
            }
            Self::Others(_) => Some(u64::MAX),
        }
    }
}

/// What to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Which files.
    pub which: Which,
    /// Only rows of sessions with a moment in this window (both ends included).
    pub window: Option<(Nanos, Nanos)>,
    /// Only these columns, in the order of the schema; all where it is `None`.
    pub columns: Option<Vec<String>>,
    /// Addresses as the columns have them: rows and row groups in which none of them is an end of a
    /// session may be skipped. Others may still come; the caller's filter decides. Empty for
    /// no such restriction.
    pub hosts: Vec<String>,
    /// Ranges of ports: rows with none of them at either end may be skipped, unless they show no ports
    /// at all, or ports that are not certain (`fragment_overlap`). Empty for no such restriction.
    pub ports: Vec<(u16, u16)>,
    /// Values of the column `proto` whose rows are wanted whatever their ends.
    pub whatever_ends: Vec<String>,
    /// Session identities: row groups without any of them may be skipped, likewise.
    pub uids: Vec<String>,
}

/// The torn end of an open tail: a write in progress, or what a kill left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The open tail.
    pub path: PathBuf,
    /// Bytes behind its last whole batch.
    pub bytes: u64,
}

/// What a scan read and what it could not read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanReport {
    /// Rows handed to the visitor.
    pub rows: u64,
    /// Files, open tails included.
    pub files: u64,
    /// Row groups in the Parquet files.
    pub row_groups: u64,
    /// Row groups that were not read because they hold nothing for the question.
    pub row_groups_skipped: u64,
    /// Open tails with a torn end.
    pub torn: Vec<TornTail>,
    /// Files that could not be read, and why. What was read of them before was visited.
    pub damaged: Vec<(PathBuf, String)>,
}

/// Why a scan could not even begin.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// A directory cannot be read.
    #[error("cannot read the session log")]
    Io(#[from] io::Error),
    /// A column that there is none of.
    #[error("there is no column {0:?}")]
    NoSuchColumn(String),
}

/// Calls `visit` with batches of rows until it breaks off. The batches are in no order; a session
/// can have several rows, of which the one with the highest `update` counts.
///
/// # Errors
/// See [`ScanError`]. A file that cannot be read is no error but part of the report.
pub fn scan(
    store: &Store,
    what: &Scan,
    mut visit: impl FnMut(RecordBatch) -> ControlFlow<()>,
) -> Result<ScanReport, ScanError> {
    let plan = Plan::new(what)?;
    let mut report = ScanReport::default();
    // Open tails first, and kept open: one that is sealed meanwhile is among the Parquet files.
    let live_dir = store.layout().live();
    let mut tails = Vec::new();
    for name in layout::names_in(&live_dir)? {
        let Some(stem) = name.strip_suffix(".arrows") else { continue };
        match File::open(live_dir.join(&name)) {
            Ok(file) => tails.push((stem.to_owned(), live_dir.join(&name), file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => report.damaged.push((live_dir.join(&name), error.to_string())),
        }
    }
    let root = store.layout().root();
    let within =
        |path: &Path| path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned();
    let sealed = super::seal::sealed_names(store.layout())?;
    for path in sealed.values().filter(|path| what.which.takes_sealed(&within(path))) {
        report.files += 1;
        match read_sealed(path, &plan, &mut report, &mut visit) {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => return Ok(report),
            Err(why) => report.damaged.push((path.clone(), why)),
        }
    }
    for (stem, path, file) in tails {
        let made = sealed.get(&stem).map(|path| within(path));
        let Some(bytes) = what.which.bytes_of_tail(&within(&path), made.as_deref()) else {
            continue;
        };
        report.files += 1;
        let content = match live::read(file.take(bytes)) {
            Ok(content) => content,
            Err(error) => {
                report.damaged.push((path, error.to_string()));
                continue;
            }
        };
        if content.torn_bytes > 0 {
            report.torn.push(TornTail { path: path.clone(), bytes: content.torn_bytes });
        }
        if content.damaged_bytes > 0 {
            let why = format!("{} bytes in its midst are no rows", content.damaged_bytes);
            report.damaged.push((path.clone(), why));
        }
        for batch in content.batches {
            match plan.hand_over(&batch, &mut report, &mut visit) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return Ok(report),
                Err(error) => report.damaged.push((path.clone(), error.to_string())),
            }
        }
    }
    Ok(report)
}

/// A scan whose columns exist.
struct Plan<'a> {
    what: &'a Scan,
    /// Names of the columns to read: those asked for, and those that the window is checked by.
    read: Vec<String>,
    /// Names of the columns to hand over.
    columns: Vec<String>,
}

impl<'a> Plan<'a> {
    fn new(what: &'a Scan) -> Result<Self, ScanError> {
        let all: Vec<String> = super::schema::column_names().collect();
        let Some(asked) = &what.columns else {
            return Ok(Self { what, read: all.clone(), columns: all });
        };
        if let Some(unknown) = asked.iter().find(|name| !all.contains(name)) {
            return Err(ScanError::NoSuchColumn(unknown.clone()));
        }
        let windowed = what.window.is_some();
        let needed =
            |name: &String| asked.contains(name) || windowed && (name == "ts" || name == "last_ts");
        let read = all.iter().filter(|name| needed(name)).cloned().collect();
        let columns = all.into_iter().filter(|name| asked.contains(name)).collect();
        Ok(Self { what, read, columns })
    }

    /// Puts the column `sensor` back in its place and those that an old file has not, where they
    /// are asked for.
    fn complete(&self, batch: &RecordBatch, sensor: &str) -> Result<RecordBatch, ArrowError> {
        let ours = schema();
        let (mut fields, mut columns) = (Vec::new(), Vec::new());
        for name in &self.read {
            let field = ours.field_with_name(name)?;
            columns.push(if name == SENSOR {
                let sensors = std::iter::repeat_n(sensor, batch.num_rows());
                Arc::new(StringArray::from_iter_values(sensors))
            } else {
                column_or_default(batch, field)?
            });
            fields.push(field.clone());
        }
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
    }

    /// Hands over the rows within the window.
    fn hand_over(
        &self,
        batch: &RecordBatch,
        report: &mut ScanReport,
        visit: &mut impl FnMut(RecordBatch) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ArrowError> {
        let mut kept = batch.clone();
        if let Some((from, to)) = self.what.window {
            let time = |name: &str| {
                let column = batch.column_by_name(name);
                column
                    .and_then(|column| column.as_primitive_opt::<TimestampNanosecondType>())
                    .ok_or_else(|| ArrowError::SchemaError(format!("there is no time {name}")))
            };
            let (ts, last_ts) = (time("ts")?, time("last_ts")?);
            let inside: BooleanArray = (ts.values().iter())
                .zip(last_ts.values())
                .map(|(ts, last_ts)| Some(*ts <= to.0 && *last_ts >= from.0))
                .collect();
            kept = filter_record_batch(batch, &inside)?;
        }
        if kept.num_rows() == 0 {
            return Ok(ControlFlow::Continue(()));
        }
        let places: Result<Vec<usize>, ArrowError> =
            self.columns.iter().map(|name| kept.schema().index_of(name)).collect();
        let kept = kept.project(&places?)?;
        report.rows += kept.num_rows() as u64;
        Ok(visit(kept))
    }

    /// Whether a row group can hold a row within the window, by its statistics.
    fn may_overlap(&self, group: &RowGroupMetaData) -> bool {
        let Some((from, to)) = self.what.window else { return true };
        let begins = bounds(group, "ts").is_none_or(|(earliest, _)| earliest <= to.0);
        let ends = bounds(group, "last_ts").is_none_or(|(_, latest)| latest >= from.0);
        begins && ends
    }

    /// Whether a row group can hold a row with the hosts and identities asked for, by its Bloom
    /// filters.
    fn may_match(
        &self,
        builder: &ParquetRecordBatchReaderBuilder<File>,
        group: usize,
    ) -> Result<bool, ParquetError> {
        let Scan { hosts, whatever_ends, uids, .. } = self.what;
        let may_hold =
            |columns: &[&str], values: &[String]| may_hold(builder, group, columns, values);
        if !uids.is_empty() && !may_hold(&["uid"], uids)? {
            return Ok(false);
        }
        Ok(hosts.is_empty()
            || may_hold(&["orig_h", "resp_h"], hosts)?
            || may_hold(&["proto"], whatever_ends)?)
    }

    /// What decides about rows before all their columns are read: the cheaper columns first.
    fn row_filter(&self, builder: &ParquetRecordBatchReaderBuilder<File>) -> RowFilter {
        let Scan { window, hosts, ports, whatever_ends, .. } = self.what;
        let mut predicates: Vec<Box<dyn ArrowPredicate>> = Vec::new();
        let mut add =
            |columns: &[&str], wanted: Box<dyn Fn(&RecordBatch) -> BooleanArray + Send>| {
                let there = columns.iter().filter_map(|name| builder.schema().index_of(name).ok());
                let mask = ProjectionMask::roots(builder.parquet_schema(), there);
                predicates
                    .push(Box::new(ArrowPredicateFn::new(mask, move |batch| Ok(wanted(&batch)))));
            };
        if let Some(window) = *window {
            add(&["ts", "last_ts"], Box::new(move |batch| within(batch, window)));
        }
        if !ports.is_empty() {
            let (ports, protos) = (ports.clone(), whatever_ends.clone());
            let columns = ["orig_p", "resp_p", "proto", "fragment_overlap"];
            add(&columns, Box::new(move |batch| has_ports(batch, &ports, &protos)));
        }
        if !hosts.is_empty() {
            let (hosts, protos) = (hosts.clone(), whatever_ends.clone());
            add(
                &["orig_h", "resp_h", "proto"],
                Box::new(move |batch| {
                    let is_host = has_text(batch, &["orig_h", "resp_h"], &hosts);
                    let is_proto = has_text(batch, &["proto"], &protos);
                    (0..batch.num_rows()).map(|row| Some(is_host(row) || is_proto(row))).collect()
                }),
            );
        }
        RowFilter::new(predicates)
    }
}

/// The rows that have a moment in a window. A file without such columns is found out where its rows
/// are handed over.
fn within(batch: &RecordBatch, (from, to): (Nanos, Nanos)) -> BooleanArray {
    let time =
        |name: &str| batch.column_by_name(name)?.as_primitive_opt::<TimestampNanosecondType>();
    let (Some(ts), Some(last_ts)) = (time("ts"), time("last_ts")) else {
        return vec![true; batch.num_rows()].into();
    };
    let both = ts.values().iter().zip(last_ts.values());
    both.map(|(ts, last_ts)| Some(*ts <= to.0 && *last_ts >= from.0)).collect()
}

/// The rows that have a port in one of these ranges, or may have one. See [`Scan::ports`].
fn has_ports(batch: &RecordBatch, ranges: &[(u16, u16)], protos: &[String]) -> BooleanArray {
    let port = |name: &str| batch.column_by_name(name)?.as_primitive_opt::<Int32Type>();
    let (Some(orig), Some(resp)) = (port("orig_p"), port("resp_p")) else {
        return vec![true; batch.num_rows()].into();
    };
    let overlap =
        batch.column_by_name("fragment_overlap").and_then(|column| column.as_boolean_opt());
    let is_proto = has_text(batch, &["proto"], protos);
    let wanted = |port: i32| {
        ranges.iter().any(|(first, last)| (i32::from(*first)..=i32::from(*last)).contains(&port))
    };
    let both = orig.values().iter().zip(resp.values());
    both.enumerate()
        .map(|(row, (orig, resp))| {
            let certain = (*orig, *resp) != (0, 0)
                && overlap.is_none_or(|overlap| overlap.is_valid(row) && !overlap.value(row));
            Some(wanted(*orig) || wanted(*resp) || !certain || is_proto(row))
        })
        .collect()
}

/// Whether a row has one of these values in one of these columns of text.
fn has_text<'a>(
    batch: &'a RecordBatch,
    columns: &[&str],
    values: &'a [String],
) -> impl Fn(usize) -> bool + 'a {
    let text = |name: &&str| batch.column_by_name(name)?.as_string_opt::<i32>();
    let columns: Vec<&StringArray> = columns.iter().filter_map(text).collect();
    move |row| {
        columns.iter().any(|column| {
            let found = column.value(row);
            values.iter().any(|value| value == found)
        })
    }
}

/// The least and the greatest value of a column of 64-bit numbers in a row group.
fn bounds(group: &RowGroupMetaData, name: &str) -> Option<(i64, i64)> {
    let column = group.columns().iter().find(|c| c.column_path().string() == name)?;
    match column.statistics()? {
        Statistics::Int64(values) => Some((*values.min_opt()?, *values.max_opt()?)),
        _ => None,
    }
}

/// Rows of a Parquet file, its earliest `ts` and its latest `last_ts`; `None` where it cannot be
/// read.
pub(crate) fn extent(path: &Path) -> Option<(u64, Nanos, Nanos)> {
    let file = File::open(path).ok()?;
    let builder = guarded(|| ParquetRecordBatchReaderBuilder::try_new(file)).ok()?;
    let mut extent = (0_u64, Nanos::MAX, Nanos::MIN);
    for group in builder.metadata().row_groups() {
        extent.0 = extent.0.saturating_add(u64::try_from(group.num_rows()).ok()?);
        extent.1 = extent.1.min(Nanos(bounds(group, "ts")?.0));
        extent.2 = extent.2.max(Nanos(bounds(group, "last_ts")?.1));
    }
    Some(extent)
}

fn read_sealed(
    path: &Path,
    plan: &Plan<'_>,
    report: &mut ScanReport,
    visit: &mut impl FnMut(RecordBatch) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        // Retired between the look into the directory and now.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(ControlFlow::Continue(()));
        }
        Err(error) => return Err(error.to_string()),
    };
    let mut sensor = String::new();
    let opened = guarded(|| {
        // Parquet's own types are ours; the Arrow types beside them are for pyarrow.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options)?;
        let mut groups = Vec::new();
        for group in 0..builder.metadata().num_row_groups() {
            report.row_groups += 1;
            if plan.may_overlap(builder.metadata().row_group(group))
                && plan.may_match(&builder, group)?
            {
                groups.push(group);
            } else {
                report.row_groups_skipped += 1;
            }
        }
        let metadata = builder.metadata().file_metadata().key_value_metadata();
        let entry = metadata.and_then(|all| all.iter().find(|entry| entry.key == SENSOR_KEY));
        sensor = entry.and_then(|entry| entry.value.clone()).unwrap_or_default();
        let roots = plan.read.iter().map(String::as_str).filter(|name| *name != SENSOR);
        let there = |name: &&str| {
            !is_added_later(name) || builder.schema().column_with_name(name).is_some()
        };
        let places: Result<Vec<usize>, ArrowError> =
            roots.filter(there).map(|name| place_of(builder.schema(), name)).collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), places?);
        let filter = plan.row_filter(&builder);
        let builder = builder.with_row_groups(groups).with_projection(mask).with_row_filter(filter);
        builder.with_batch_size(BATCH_ROWS).build()
    });
    let mut reader = opened?;
    loop {
        let Some(batch) = guarded(|| reader.next().transpose())? else {
            return Ok(ControlFlow::Continue(()));
        };
        let flow = plan
            .complete(&batch, &sensor)
            .and_then(|batch| plan.hand_over(&batch, report, visit))
            .map_err(|error| error.to_string())?;
        if flow.is_break() {
            return Ok(flow);
        }
    }
}

/// Where a file has a column of the log, which must have the log's type.
fn place_of(file: &Schema, name: &str) -> Result<usize, ArrowError> {
    let place = file.index_of(name)?;
    let ours = schema();
    if !file.field(place).data_type().equals_datatype(ours.field_with_name(name)?.data_type()) {
        return Err(ArrowError::SchemaError(format!("column {name} has another type")));
    }
    Ok(place)
}

/// Whether any of the values can be in one of the columns of a row group, by its Bloom filters.
fn may_hold(
    builder: &ParquetRecordBatchReaderBuilder<File>,
    group: usize,
    columns: &[&str],
    values: &[String],
) -> Result<bool, ParquetError> {
    if values.is_empty() {
        return Ok(false);
    }
    let all = builder.metadata().row_group(group).columns();
    for name in columns {
        let Some(place) = all.iter().position(|c| c.column_path().string() == *name) else {
            return Ok(true);
        };
        match builder.get_row_group_column_bloom_filter(group, place)? {
            None => return Ok(true),
            Some(filter) => {
                if values.iter().any(|value| filter.check(&value.as_str())) {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}
