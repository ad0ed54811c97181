//! The columns of a session: one list for every format and for sorting.

use std::borrow::Cow;
use std::cmp::Ordering;

use capture_flow::frame::PcapPosition;
use capture_flow::time::Nanos;
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use crate::row::Row;
use crate::times::rfc3339;

/// A value in a column.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Unset.
    Null,
    /// True or false.
    Bool(bool),
    /// A count, a port, an id.
    Count(u64),
    /// Seconds.
    Seconds(f64),
    /// A moment.
    Time(Nanos),
    /// Text.
    Text(Cow<'a, str>),
    /// Several texts.
    List(Vec<&'a str>),
    /// A place in the segments.
    Position(PcapPosition),
}

/// A column: its name in the store and in every machine format, and its value in a row.
pub struct Column {
    /// Name.
    pub name: &'static str,
    value: fn(&Row) -> Value<'_>,
}

impl Column {
    /// The value in a row.
    #[must_use]
    pub fn of<'a>(&self, row: &'a Row) -> Value<'a> {
        (self.value)(row)
    }
}

fn text(text: &str) -> Value<'_> {
    Value::Text(Cow::Borrowed(text))
}

fn shown<'a>(what: impl std::fmt::Display) -> Value<'a> {
    Value::Text(Cow::Owned(what.to_string()))
}

fn or_null<T>(value: Option<T>, known: impl FnOnce(T) -> Value<'static>) -> Value<'static> {
    value.map_or(Value::Null, known)
}

fn text_or_null(value: Option<&str>) -> Value<'_> {
    value.map_or(Value::Null, text)
}

macro_rules! columns {
    ($($name:literal: $row:ident => $value:expr;)*) => {
        /// Every column, in the order of the store.
        pub const COLUMNS: &[Column] = &[$(Column { name: $name, value: |$row| $value }),*];
    };
}

columns! {
    "ts": row => Value::Time(row.ts);
    "last_ts": row => Value::Time(row.last_ts);
    "duration": row => or_null(row.duration, Value::Seconds);
    "uid": row => text(&row.uid);
    "sensor": row => text(&row.sensor);
    "iface": row => text(&row.iface);
    "orig_h": row => shown(row.orig.addr);
    "orig_p": row => Value::Count(row.orig.port.into());
    "resp_h": row => shown(row.resp.addr);
    "resp_p": row => Value::Count(row.resp.port.into());
    "proto": row => text(&row.proto);
    "ip_proto": row => or_null(row.ip_proto(), |n| Value::Count(n.into()));
    "service": row => text_or_null(row.service.as_deref());
    "server_name": row => text_or_null(row.server_name.as_deref());
    "alpn": row => text_or_null(row.alpn.as_deref());
    "conn_state": row => text(&row.conn_state);
    "history": row => text(&row.history);
    "orig_bytes": row => or_null(row.orig.bytes, Value::Count);
    "resp_bytes": row => or_null(row.resp.bytes, Value::Count);
    "orig_pkts": row => Value::Count(row.orig.pkts);
    "resp_pkts": row => Value::Count(row.resp.pkts);
    "orig_ip_bytes": row => Value::Count(row.orig.ip_bytes);
    "resp_ip_bytes": row => Value::Count(row.resp.ip_bytes);
    "missed_bytes": row => Value::Count(row.missed_bytes);
    "local_orig": row => or_null(row.orig.local, Value::Bool);
    "local_resp": row => or_null(row.resp.local, Value::Bool);
    "vlan": row => or_null(row.vlan, |id| Value::Count(id.into()));
    "inner_vlan": row => or_null(row.inner_vlan, |id| Value::Count(id.into()));
    "orig_l2_addr": row => or_null(row.orig.l2_addr, shown);
    "resp_l2_addr": row => or_null(row.resp.l2_addr, shown);
    "tunnel_parents": row => match &row.tunnel_parents {
        Some(parents) => Value::List(parents.iter().map(|uid| &**uid).collect()),
        None => Value::Null,
    };
    "community_id": row => text_or_null(row.community_id.as_deref());
    "direction_certain": row => Value::Bool(row.direction_certain);
    "fragment_overlap": row => Value::Bool(row.fragment_overlap);
    "join_certain": row => Value::Bool(row.join_certain);
    "update": row => Value::Count(row.update.into());
    "final": row => Value::Bool(row.is_final);
    "end_reason": row => text(&row.end_reason);
    "frames": row => Value::Count(row.frames);
    "frame_bytes": row => Value::Count(row.frame_bytes);
    "flushed_at": row => Value::Time(row.flushed_at);
    "pcap_first": row => or_null(row.pcap_first, Value::Position);
    "pcap_last": row => or_null(row.pcap_last, Value::Position);
}

/// Sums that exist for sorting only.
const SUMS: [Column; 2] = [
    Column {
        name: "bytes",
        value: |row| {
            let of = |bytes: Option<u64>| bytes.unwrap_or(0);
            Value::Count(of(row.orig.bytes).saturating_add(of(row.resp.bytes)))
        },
    },
    Column { name: "pkts", value: |row| Value::Count(row.orig.pkts.saturating_add(row.resp.pkts)) },
];

/// What rows are ordered by.
#[derive(Clone, Copy)]
pub struct Order {
    column: fn(&Row) -> Value<'_>,
    descending: bool,
}

impl Order {
    /// Time, then identity: the order without `--sort`.
    pub const TIME: Self = Self { column: |row| Value::Time(row.ts), descending: false };

    /// Reads `--sort`: a column, `bytes` or `pkts`; with `-` before it, the largest first.
    ///
    /// # Errors
    /// The names that exist.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, descending) = match text.strip_prefix('-') {
            Some(name) => (name, true),
            None => (text, false),
        };
        let mut all = COLUMNS.iter().chain(&SUMS);
        match all.find(|column| column.name == name) {
            Some(column) => Ok(Self { column: column.value, descending }),
            None => {
                let names: Vec<_> = COLUMNS.iter().chain(&SUMS).map(|c| c.name).collect();
                Err(format!("no column `{name}`; there are {}", names.join(", ")))
            }
        }
    }

    /// Which of two rows comes first. Unset values come last in either direction; equal ones in
    /// the order of time and identity, so that the order is always the same.
    #[must_use]
    pub fn compare(&self, a: &Row, b: &Row) -> Ordering {
        let (left, right) = ((self.column)(a), (self.column)(b));
        let by_value = match (&left, &right) {
            (Value::Null, Value::Null) => Ordering::Equal,
            (Value::Null, _) => Ordering::Greater,
            (_, Value::Null) => Ordering::Less,
            _ if self.descending => compare(&right, &left),
            _ => compare(&left, &right),
        };
        by_value.then_with(|| a.ts.cmp(&b.ts)).then_with(|| a.uid.cmp(&b.uid))
    }
}

fn compare(a: &Value<'_>, b: &Value<'_>) -> Ordering {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Count(a), Value::Count(b)) => a.cmp(b),
        (Value::Seconds(a), Value::Seconds(b)) => a.total_cmp(b),
        (Value::Time(a), Value::Time(b)) => a.cmp(b),
        (Value::Text(a), Value::Text(b)) => a.cmp(b),
        (Value::List(a), Value::List(b)) => a.cmp(b),
        (Value::Position(a), Value::Position(b)) => a.cmp(b),
        _ => Ordering::Equal,
    }
}

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_none(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Count(value) => serializer.serialize_u64(*value),
            Self::Seconds(value) => serializer.serialize_f64(*value),
            Self::Time(at) => serializer.serialize_str(&rfc3339(*at)),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(texts) => {
                let mut list = serializer.serialize_seq(Some(texts.len()))?;
                for text in texts {
                    list.serialize_element(text)?;
                }
                list.end()
            }
            Self::Position(at) => {
                let mut map = serializer.serialize_map(Some(3))?;
                map.serialize_entry("worker", &at.worker)?;
                map.serialize_entry("segment", &at.segment)?;
                map.serialize_entry("offset", &at.offset)?;
                map.end()
            }
        }
    }
}

/// A row as a JSON object: every column, unset ones as null.
impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(COLUMNS.len()))?;
        for column in COLUMNS {
            map.serialize_entry(column.name, &column.of(self))?;
        }
        map.end()
    }
}
