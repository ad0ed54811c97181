//! How rows are written down.

mod csv;
mod json;
mod table;
mod zeek;

use std::io::{self, Write};

use crate::row::Row;
use crate::terminal::Look;
use crate::times::Clock;

pub(crate) use table::bytes;

/// A format of `sessions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// One array of objects
    Json,
    /// One object a line
    Ndjson,
    /// Comma-separated values with a header
    Csv,
    /// Zeek's conn.log, tab-separated
    Zeek,
    /// Zeek's conn.log as JSON, one object a line
    ZeekJson,
}

/// Rows that a format has no place for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Omitted {
    /// Sessions that Zeek has none for: without IP, and those that stand for a carrier here.
    pub no_session_in_zeek: u64,
}

/// Writes the rows in order.
///
/// # Errors
/// Those of the output.
pub fn write(
    format: Format,
    rows: &[Row],
    clock: &Clock,
    look: &Look,
    out: &mut impl Write,
) -> io::Result<Omitted> {
    match format {
        Format::Table => table::write(rows, clock, look, out)?,
        Format::Json => json::array(rows, out)?,
        Format::Ndjson => json::lines(rows, out)?,
        Format::Csv => csv::write(rows, out)?,
        Format::Zeek => return zeek::tsv(rows, clock, out),
        Format::ZeekJson => return zeek::json(rows, out),
    }
    Ok(Omitted::default())
}
