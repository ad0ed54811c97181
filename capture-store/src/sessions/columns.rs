//! Rows into batches and back.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, BooleanBuilder, Float64Array, Float64Builder,
    Int32Array, Int32Builder, Int64Array, Int64Builder, ListArray, ListBuilder, RecordBatch,
    StringArray, StringBuilder, StructArray, TimestampNanosecondArray, TimestampNanosecondBuilder,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{Float64Type, Int32Type, Int64Type, TimestampNanosecondType};
use arrow::error::ArrowError;
use capture_flow::frame::PcapPosition;
use capture_flow::time::Nanos;

use super::row::SessionRow;
use super::schema::{UTC, parent_field, position_fields, schema};

/// A column of the type that one kind of field needs.
trait Column: Default {
    fn finish(&mut self) -> ArrayRef;
}

/// Positions, column by column.
#[derive(Default)]
struct Positions {
    worker: Int32Builder,
    segment: Int64Builder,
    offset: Int64Builder,
    there: Vec<bool>,
}

impl Positions {
    fn push(&mut self, at: Option<PcapPosition>) {
        let zero = PcapPosition { worker: 0, segment: 0, offset: 0 };
        let place = at.unwrap_or(zero);
        self.worker.append_value(i32::from(place.worker));
        self.segment.append_value(count(place.segment));
        self.offset.append_value(i64::from(place.offset));
        self.there.push(at.is_some());
    }
}

impl Column for Positions {
    fn finish(&mut self) -> ArrayRef {
        let there = std::mem::take(&mut self.there);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.worker.finish()),
            Arc::new(self.segment.finish()),
            Arc::new(self.offset.finish()),
        ];
        Arc::new(StructArray::new(position_fields(), columns, Some(NullBuffer::from(there))))
    }
}

macro_rules! column {
    ($($builder:ty),*) => {$(
        impl Column for $builder {
            fn finish(&mut self) -> ArrayRef {
                Arc::new(<$builder>::finish(self))
            }
        }
    )*};
}
column!(StringBuilder, Int32Builder, Int64Builder, Float64Builder, BooleanBuilder);

/// Moments in UTC.
#[derive(Default)]
struct Moments(TimestampNanosecondBuilder);

impl Column for Moments {
    fn finish(&mut self) -> ArrayRef {
        Arc::new(self.0.finish().with_timezone(UTC))
    }
}

/// Lists of session identities.
struct Parents(ListBuilder<StringBuilder>);

impl Default for Parents {
    fn default() -> Self {
        Self(ListBuilder::new(StringBuilder::new()).with_field(parent_field()))
    }
}

impl Column for Parents {
    fn finish(&mut self) -> ArrayRef {
        Arc::new(self.0.finish())
    }
}

/// A count as its column has it. No real count reaches 2⁶³.
fn count(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A count as it is meant. A negative one is damage and reads as zero.
fn uncount(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

macro_rules! batch_of_rows {
    ($($name:ident: $builder:ty,)*) => {
        /// Rows on their way into a batch.
        #[derive(Default)]
        pub(super) struct Columns {
            rows: usize,
            $($name: $builder,)*
        }

        impl Columns {
            /// Ends the batch and begins the next.
            pub(super) fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
                self.rows = 0;
                // In the order of the schema.
                RecordBatch::try_new(schema(), vec![$(Column::finish(&mut self.$name),)*])
            }
        }
    };
}

batch_of_rows! {
    ts: Moments,
    last_ts: Moments,
    duration: Float64Builder,
    uid: StringBuilder,
    sensor: StringBuilder,
    iface: StringBuilder,
    orig_h: StringBuilder,
    orig_p: Int32Builder,
    resp_h: StringBuilder,
    resp_p: Int32Builder,
    proto: StringBuilder,
    ip_proto: Int32Builder,
    service: StringBuilder,
    conn_state: StringBuilder,
    history: StringBuilder,
    orig_bytes: Int64Builder,
    resp_bytes: Int64Builder,
    orig_pkts: Int64Builder,
    resp_pkts: Int64Builder,
    orig_ip_bytes: Int64Builder,
    resp_ip_bytes: Int64Builder,
    missed_bytes: Int64Builder,
    local_orig: BooleanBuilder,
    local_resp: BooleanBuilder,
    vlan: Int32Builder,
    inner_vlan: Int32Builder,
    orig_l2_addr: StringBuilder,
    resp_l2_addr: StringBuilder,
    tunnel_parents: Parents,
    community_id: StringBuilder,
    direction_certain: BooleanBuilder,
    update: Int64Builder,
    is_final: BooleanBuilder,
    end_reason: StringBuilder,
    frames: Int64Builder,
    frame_bytes: Int64Builder,
    server_name: StringBuilder,
    alpn: StringBuilder,
    fragment_overlap: BooleanBuilder,
    join_certain: BooleanBuilder,
    flushed_at: Moments,
    pcap_first: Positions,
    pcap_last: Positions,
}

impl Columns {
    /// Rows in the batch so far.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Adds a row.
    pub(super) fn push(&mut self, row: &SessionRow<'_>) {
        self.rows += 1;
        self.ts.0.append_value(row.ts.0);
        self.last_ts.0.append_value(row.last_ts.0);
        self.duration.append_option(row.duration);
        self.uid.append_value(&row.uid);
        self.sensor.append_value(&row.sensor);
        self.iface.append_value(&row.iface);
        self.orig_h.append_value(&row.orig_h);
        self.orig_p.append_value(i32::from(row.orig_p));
        self.resp_h.append_value(&row.resp_h);
        self.resp_p.append_value(i32::from(row.resp_p));
        self.proto.append_value(&row.proto);
        self.ip_proto.append_option(row.ip_proto.map(i32::from));
        self.service.append_option(row.service.as_deref());
        self.conn_state.append_value(&row.conn_state);
        self.history.append_value(&row.history);
        self.orig_bytes.append_option(row.orig_bytes.map(count));
        self.resp_bytes.append_option(row.resp_bytes.map(count));
        self.orig_pkts.append_value(count(row.orig_pkts));
        self.resp_pkts.append_value(count(row.resp_pkts));
        self.orig_ip_bytes.append_value(count(row.orig_ip_bytes));
        self.resp_ip_bytes.append_value(count(row.resp_ip_bytes));
        self.missed_bytes.append_value(count(row.missed_bytes));
        self.local_orig.append_option(row.local_orig);
        self.local_resp.append_option(row.local_resp);
        self.vlan.append_option(row.vlan.map(i32::from));
        self.inner_vlan.append_option(row.inner_vlan.map(i32::from));
        self.orig_l2_addr.append_option(row.orig_l2_addr.as_deref());
        self.resp_l2_addr.append_option(row.resp_l2_addr.as_deref());
        for parent in &row.tunnel_parents {
            self.tunnel_parents.0.values().append_value(parent);
        }
        self.tunnel_parents.0.append(!row.tunnel_parents.is_empty());
        self.community_id.append_option(row.community_id.as_deref());
        self.direction_certain.append_value(row.direction_certain);
        self.update.append_value(i64::from(row.update));
        self.is_final.append_value(row.is_final);
        self.end_reason.append_value(&row.end_reason);
        self.frames.append_value(count(row.frames));
        self.frame_bytes.append_value(count(row.frame_bytes));
        self.server_name.append_option(row.server_name.as_deref());
        self.alpn.append_option(row.alpn.as_deref());
        self.fragment_overlap.append_value(row.fragment_overlap);
        self.join_certain.append_value(row.join_certain);
        self.flushed_at.0.append_value(row.flushed_at.0);
        self.pcap_first.push(row.pcap_first);
        self.pcap_last.push(row.pcap_last);
    }
}

/// The column of a name, with the type that it must have.
struct Named<'a>(&'a RecordBatch);

impl<'a> Named<'a> {
    fn find(&self, name: &str) -> Result<&'a ArrayRef, ArrowError> {
        self.0
            .column_by_name(name)
            .ok_or_else(|| ArrowError::SchemaError(format!("there is no column {name}")))
    }

    fn wrong(name: &str) -> ArrowError {
        ArrowError::SchemaError(format!("column {name} has another type"))
    }

    fn text(&self, name: &str) -> Result<&'a StringArray, ArrowError> {
        self.find(name)?.as_string_opt::<i32>().ok_or_else(|| Self::wrong(name))
    }

    fn time(&self, name: &str) -> Result<&'a TimestampNanosecondArray, ArrowError> {
        let column = self.find(name)?.as_primitive_opt::<TimestampNanosecondType>();
        column.ok_or_else(|| Self::wrong(name))
    }

    fn int(&self, name: &str) -> Result<&'a Int32Array, ArrowError> {
        self.find(name)?.as_primitive_opt::<Int32Type>().ok_or_else(|| Self::wrong(name))
    }

    fn long(&self, name: &str) -> Result<&'a Int64Array, ArrowError> {
        self.find(name)?.as_primitive_opt::<Int64Type>().ok_or_else(|| Self::wrong(name))
    }

    fn float(&self, name: &str) -> Result<&'a Float64Array, ArrowError> {
        self.find(name)?.as_primitive_opt::<Float64Type>().ok_or_else(|| Self::wrong(name))
    }

    fn flag(&self, name: &str) -> Result<&'a BooleanArray, ArrowError> {
        self.find(name)?.as_boolean_opt().ok_or_else(|| Self::wrong(name))
    }

    fn list(&self, name: &str) -> Result<&'a ListArray, ArrowError> {
        self.find(name)?.as_list_opt::<i32>().ok_or_else(|| Self::wrong(name))
    }

    fn positions(&self, name: &str) -> Result<PositionColumn<'a>, ArrowError> {
        let column = self.find(name)?.as_struct_opt().ok_or_else(|| Self::wrong(name))?;
        let part = |part: &str| column.column_by_name(part).ok_or_else(|| Self::wrong(name));
        Ok(PositionColumn {
            column,
            worker: part("worker")?.as_primitive_opt().ok_or_else(|| Self::wrong(name))?,
            segment: part("segment")?.as_primitive_opt().ok_or_else(|| Self::wrong(name))?,
            offset: part("offset")?.as_primitive_opt().ok_or_else(|| Self::wrong(name))?,
        })
    }
}

struct PositionColumn<'a> {
    column: &'a StructArray,
    worker: &'a Int32Array,
    segment: &'a Int64Array,
    offset: &'a Int64Array,
}

impl PositionColumn<'_> {
    fn get(&self, row: usize) -> Option<PcapPosition> {
        if self.column.is_null(row) {
            return None;
        }
        Some(PcapPosition {
            worker: u16::try_from(self.worker.value(row)).ok()?,
            segment: u64::try_from(self.segment.value(row)).ok()?,
            offset: u32::try_from(self.offset.value(row)).ok()?,
        })
    }
}

impl<'a> SessionRow<'a> {
    /// Calls `visit` with each row of a batch that has all columns.
    ///
    /// # Errors
    /// A column is missing or has another type.
    pub fn for_each(
        batch: &'a RecordBatch,
        mut visit: impl FnMut(SessionRow<'a>),
    ) -> Result<(), ArrowError> {
        fn text<'a>(column: &'a StringArray, row: usize) -> Cow<'a, str> {
            Cow::Borrowed(if column.is_null(row) { "" } else { column.value(row) })
        }
        fn maybe<'a>(column: &'a StringArray, row: usize) -> Option<Cow<'a, str>> {
            (!column.is_null(row)).then(|| Cow::Borrowed(column.value(row)))
        }
        let port = |column: &Int32Array, row| u16::try_from(column.value(row)).unwrap_or(0);
        let tag = |column: &Int32Array, row: usize| {
            if column.is_null(row) { None } else { u16::try_from(column.value(row)).ok() }
        };
        let long = |column: &Int64Array, row: usize| uncount(column.value(row));
        let may_long = |column: &Int64Array, row: usize| {
            (!column.is_null(row)).then(|| uncount(column.value(row)))
        };
        let flag =
            |column: &BooleanArray, row: usize| (!column.is_null(row)).then(|| column.value(row));
        let of = Named(batch);
        let (ts, last_ts, flushed_at) =
            (of.time("ts")?, of.time("last_ts")?, of.time("flushed_at")?);
        let duration = of.float("duration")?;
        let (uid, sensor, iface) = (of.text("uid")?, of.text("sensor")?, of.text("iface")?);
        let (orig_h, resp_h) = (of.text("orig_h")?, of.text("resp_h")?);
        let (orig_p, resp_p) = (of.int("orig_p")?, of.int("resp_p")?);
        let (proto, ip_proto, service) =
            (of.text("proto")?, of.int("ip_proto")?, of.text("service")?);
        let (conn_state, history) = (of.text("conn_state")?, of.text("history")?);
        let (orig_bytes, resp_bytes) = (of.long("orig_bytes")?, of.long("resp_bytes")?);
        let (orig_pkts, resp_pkts) = (of.long("orig_pkts")?, of.long("resp_pkts")?);
        let (orig_ip_bytes, resp_ip_bytes) = (of.long("orig_ip_bytes")?, of.long("resp_ip_bytes")?);
        let missed_bytes = of.long("missed_bytes")?;
        let (local_orig, local_resp) = (of.flag("local_orig")?, of.flag("local_resp")?);
        let (vlan, inner_vlan) = (of.int("vlan")?, of.int("inner_vlan")?);
        let (orig_l2, resp_l2) = (of.text("orig_l2_addr")?, of.text("resp_l2_addr")?);
        let tunnel_parents = of.list("tunnel_parents")?;
        let parents = tunnel_parents.values().as_string_opt::<i32>();
        let parents = parents.ok_or_else(|| Named::wrong("tunnel_parents"))?;
        let community_id = of.text("community_id")?;
        let direction_certain = of.flag("direction_certain")?;
        let (update, is_final, end_reason) =
            (of.long("update")?, of.flag("final")?, of.text("end_reason")?);
        let (frames, frame_bytes) = (of.long("frames")?, of.long("frame_bytes")?);
        let (server_name, alpn) = (of.text("server_name")?, of.text("alpn")?);
        let fragment_overlap = of.flag("fragment_overlap")?;
        let join_certain = of.flag("join_certain")?;
        let (first, last) = (of.positions("pcap_first")?, of.positions("pcap_last")?);
        for row in 0..batch.num_rows() {
            let (mut at, end) = match tunnel_parents.is_null(row) {
                true => (0, 0),
                false => {
                    let offsets = tunnel_parents.value_offsets();
                    (offsets[row] as usize, offsets[row + 1] as usize)
                }
            };
            let mut tunnel = Vec::new();
            while at < end {
                tunnel.push(text(parents, at));
                at += 1;
            }
            visit(SessionRow {
                ts: Nanos(ts.value(row)),
                last_ts: Nanos(last_ts.value(row)),
                duration: (!duration.is_null(row)).then(|| duration.value(row)),
                uid: text(uid, row),
                sensor: text(sensor, row),
                iface: text(iface, row),
                orig_h: text(orig_h, row),
                orig_p: port(orig_p, row),
                resp_h: text(resp_h, row),
                resp_p: port(resp_p, row),
                proto: text(proto, row),
                ip_proto: tag(ip_proto, row).and_then(|number| u8::try_from(number).ok()),
                service: maybe(service, row),
                conn_state: text(conn_state, row),
                history: text(history, row),
                orig_bytes: may_long(orig_bytes, row),
                resp_bytes: may_long(resp_bytes, row),
                orig_pkts: long(orig_pkts, row),
                resp_pkts: long(resp_pkts, row),
                orig_ip_bytes: long(orig_ip_bytes, row),
                resp_ip_bytes: long(resp_ip_bytes, row),
                missed_bytes: long(missed_bytes, row),
                local_orig: flag(local_orig, row),
                local_resp: flag(local_resp, row),
                vlan: tag(vlan, row),
                inner_vlan: tag(inner_vlan, row),
                orig_l2_addr: maybe(orig_l2, row),
                resp_l2_addr: maybe(resp_l2, row),
                tunnel_parents: tunnel,
                community_id: maybe(community_id, row),
                direction_certain: flag(direction_certain, row).unwrap_or(false),
                update: u32::try_from(update.value(row)).unwrap_or(u32::MAX),
                is_final: flag(is_final, row).unwrap_or(false),
                end_reason: text(end_reason, row),
                frames: long(frames, row),
                frame_bytes: long(frame_bytes, row),
                server_name: maybe(server_name, row),
                alpn: maybe(alpn, row),
                fragment_overlap: flag(fragment_overlap, row).unwrap_or(false),
                join_certain: flag(join_certain, row).unwrap_or(false),
                flushed_at: Nanos(flushed_at.value(row)),
                pcap_first: first.get(row),
                pcap_last: last.get(row),
            });
        }
        Ok(())
    }
}
