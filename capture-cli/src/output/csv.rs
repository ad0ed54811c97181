//! CSV (RFC 4180) with a header; unset values are empty, lists are joined by spaces.

use std::borrow::Cow;
use std::io::{self, Write};

use crate::columns::{COLUMNS, Value};
use crate::row::Row;
use crate::text::visible;
use crate::times::rfc3339;

pub(super) fn write(rows: &[Row], out: &mut impl Write) -> io::Result<()> {
    let mut writer = csv::WriterBuilder::new().from_writer(out);
    writer.write_record(COLUMNS.iter().map(|column| column.name))?;
    for row in rows {
        writer.write_record(COLUMNS.iter().map(|column| cell(column.of(row)).into_owned()))?;
    }
    writer.flush()
}

fn cell(value: Value<'_>) -> Cow<'_, str> {
    match value {
        Value::Null => Cow::Borrowed(""),
        Value::Bool(value) => Cow::Borrowed(if value { "true" } else { "false" }),
        Value::Count(value) => value.to_string().into(),
        Value::Seconds(value) => value.to_string().into(),
        Value::Time(at) => rfc3339(at).into(),
        Value::Text(text) => match visible(&text) {
            Cow::Borrowed(_) => text,
            Cow::Owned(safe) => safe.into(),
        },
        Value::List(texts) => texts.join(" ").into(),
        Value::Position(at) => format!("w{:02}/{}:{}", at.worker, at.segment, at.offset).into(),
    }
}
