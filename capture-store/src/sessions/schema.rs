//! The columns of the session log.
//!
//! Counts and ports are signed (Int64, Int32): Spark has no unsigned types and reads UINT64 as a
//! decimal, and no count comes near 2⁶³.
//!
//! Times are nanoseconds in UTC, as the frames' are: DuckDB, pyarrow and DataFusion read them as
//! they are. Spark has microseconds; it refuses such a column (SPARK-40819) unless
//! `spark.sql.legacy.parquet.nanosAsLong` is true (3.3.2, 3.4 and later), and then gives a long
//! that `timestamp_micros(ts div 1000)` turns into a timestamp.
//!
//! Sealed files leave `sensor` to their partition key of that name; open tails have it.

use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, new_null_array};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;

/// Columns that files of early stores lack: they are read there as empty, or where they cannot be, as
/// this.
const ADDED_LATER: [(&str, bool); 2] = [("fragment_overlap", false), ("join_certain", true)];

/// The time zone of every time column.
pub(super) const UTC: &str = "UTC";

/// The columns, in order.
#[must_use]
pub fn schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| Arc::new(Schema::new(fields())));
    SCHEMA.clone()
}

/// The columns' names, in order.
pub fn column_names() -> impl Iterator<Item = String> {
    let schema = schema();
    (0..schema.fields().len()).map(move |at| schema.field(at).name().clone())
}

/// Whether files of early stores may lack a column.
pub(super) fn is_added_later(name: &str) -> bool {
    added_later(name).is_some()
}

fn added_later(name: &str) -> Option<bool> {
    ADDED_LATER.iter().find(|(added, _)| *added == name).map(|(_, value)| *value)
}

/// The batch of an older or newer program with the columns of this one, in their order.
///
/// # Errors
/// A column is missing that every file has, or one has another type.
pub(super) fn adapt(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let ours = schema();
    if batch.schema() == ours {
        return Ok(batch.clone());
    }
    let columns: Result<Vec<_>, _> =
        ours.fields().iter().map(|field| column_or_default(batch, field)).collect();
    RecordBatch::try_new(ours, columns?)
}

/// A column of a batch, or what it reads as in files that are older than the column.
///
/// # Errors
/// It is missing although every file has it, or has another type.
pub(super) fn column_or_default(
    batch: &RecordBatch,
    field: &Field,
) -> Result<ArrayRef, ArrowError> {
    let (name, of) = (field.name(), field.data_type());
    match (batch.column_by_name(name), added_later(name)) {
        (Some(column), _) if column.data_type().equals_datatype(of) => Ok(Arc::clone(column)),
        (Some(_), _) => Err(ArrowError::SchemaError(format!("column {name} has another type"))),
        (None, None) => Err(ArrowError::SchemaError(format!("there is no column {name}"))),
        (None, Some(_)) if field.is_nullable() => Ok(new_null_array(of, batch.num_rows())),
        (None, Some(value)) => Ok(Arc::new(BooleanArray::from(vec![value; batch.num_rows()]))),
    }
}

/// Fields of `pcap_first` and `pcap_last`.
pub(super) fn position_fields() -> Fields {
    Fields::from(vec![
        Field::new("worker", DataType::Int32, false),
        Field::new("segment", DataType::Int64, false),
        Field::new("offset", DataType::Int64, false),
    ])
}

/// The field within `tunnel_parents`.
pub(super) fn parent_field() -> Field {
    Field::new("element", DataType::Utf8, false)
}

fn fields() -> Vec<Field> {
    let time = || DataType::Timestamp(TimeUnit::Nanosecond, Some(UTC.into()));
    let text = || DataType::Utf8;
    let must = |name: &str, of: DataType| Field::new(name, of, false);
    let may = |name: &str, of: DataType| Field::new(name, of, true);
    vec![
        must("ts", time()),
        must("last_ts", time()),
        may("duration", DataType::Float64),
        must("uid", text()),
        must("sensor", text()),
        must("iface", text()),
        must("orig_h", text()),
        must("orig_p", DataType::Int32),
        must("resp_h", text()),
        must("resp_p", DataType::Int32),
        must("proto", text()),
        may("ip_proto", DataType::Int32),
        may("service", text()),
        must("conn_state", text()),
        must("history", text()),
        may("orig_bytes", DataType::Int64),
        may("resp_bytes", DataType::Int64),
        must("orig_pkts", DataType::Int64),
        must("resp_pkts", DataType::Int64),
        must("orig_ip_bytes", DataType::Int64),
        must("resp_ip_bytes", DataType::Int64),
        must("missed_bytes", DataType::Int64),
        may("local_orig", DataType::Boolean),
        may("local_resp", DataType::Boolean),
        may("vlan", DataType::Int32),
        may("inner_vlan", DataType::Int32),
        may("orig_l2_addr", text()),
        may("resp_l2_addr", text()),
        may("tunnel_parents", DataType::List(Arc::new(parent_field()))),
        may("community_id", text()),
        must("direction_certain", DataType::Boolean),
        must("update", DataType::Int64),
        must("final", DataType::Boolean),
        must("end_reason", text()),
        must("frames", DataType::Int64),
        must("frame_bytes", DataType::Int64),
        may("server_name", text()),
        may("alpn", text()),
        must("fragment_overlap", DataType::Boolean),
        must("join_certain", DataType::Boolean),
        must("flushed_at", time()),
        may("pcap_first", DataType::Struct(position_fields())),
        may("pcap_last", DataType::Struct(position_fields())),
    ]
}
