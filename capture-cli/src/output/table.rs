//! Sessions for people: as many columns as the terminal has room for, the telling ones first.

use std::io::{self, Write};

use unicode_width::UnicodeWidthStr;

use crate::row::{Row, RowEnd};
use crate::terminal::{Look, Paint};
use crate::text::visible;
use crate::times::{Clock, length};

/// A column of the table.
struct Column {
    title: &'static str,
    right: bool,
    /// The higher, the sooner it makes room for others.
    rank: u8,
    cell: fn(&Row, &Clock) -> String,
}

const fn left(title: &'static str, rank: u8, cell: fn(&Row, &Clock) -> String) -> Column {
    Column { title, right: false, rank, cell }
}

const fn right(title: &'static str, rank: u8, cell: fn(&Row, &Clock) -> String) -> Column {
    Column { title, right: true, rank, cell }
}

const COLUMNS: [Column; 12] = [
    left("time", 0, |row, clock| clock.short(row.ts).to_string()),
    right("duration", 4, |row, _| row.duration.map_or_else(|| "-".to_owned(), length)),
    left("proto", 1, |row, _| visible(&row.proto).into_owned()),
    left("originator", 0, |row, _| end(row, &row.orig)),
    left("responder", 0, |row, _| {
        let mark = if row.direction_certain { "" } else { " ?" };
        format!("{}{mark}", end(row, &row.resp))
    }),
    left("service", 2, |row, _| row.service.as_deref().map_or("-".into(), visible).into_owned()),
    left("state", 3, |row, _| {
        let open = if row.is_final { "" } else { " …" };
        format!("{}{open}", visible(&row.conn_state))
    }),
    right("sent", 5, |row, _| row.orig.bytes.map_or_else(|| "-".to_owned(), bytes)),
    right("received", 5, |row, _| row.resp.bytes.map_or_else(|| "-".to_owned(), bytes)),
    right("packets", 6, |row, _| row.orig.pkts.saturating_add(row.resp.pkts).to_string()),
    left("uid", 2, |row, _| visible(&row.uid).into_owned()),
    left("server name", 7, |row, _| {
        row.server_name.as_deref().map_or("".into(), visible).into_owned()
    }),
];

/// Space between columns.
const GAP: usize = 2;

pub(super) fn write(
    rows: &[Row],
    clock: &Clock,
    look: &Look,
    out: &mut impl Write,
) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut columns: Vec<(&Column, Vec<String>, usize)> = COLUMNS
        .iter()
        .map(|column| {
            let cells: Vec<_> = rows.iter().map(|row| (column.cell)(row, clock)).collect();
            let widest = cells.iter().map(|cell| cell.width()).max().unwrap_or(0);
            (column, cells, widest.max(column.title.width()))
        })
        // A column in which nothing stands only takes room.
        .filter(|(_, cells, _)| cells.iter().any(|cell| !cell.is_empty()))
        .collect();
    if let Some(width) = look.width {
        make_room(&mut columns, width);
    }
    let last = columns.len().saturating_sub(1);
    for (number, (column, _, width)) in columns.iter().enumerate() {
        let title = pad(column.title, *width, column.right, number == last);
        write!(out, "{}", look.paint(Paint::Heading, title))?;
        out.write_all(if number == last { b"\n" } else { b"  " })?;
    }
    for line in 0..rows.len() {
        for (number, (column, cells, width)) in columns.iter().enumerate() {
            let cell = cells.get(line).map_or("", String::as_str);
            out.write_all(pad(cell, *width, column.right, number == last).as_bytes())?;
            out.write_all(if number == last { b"\n" } else { b"  " })?;
        }
    }
    Ok(())
}

/// Takes out the least telling columns until the rest fits. Time and the two ends stay: a
/// terminal too narrow for them wraps.
fn make_room(columns: &mut Vec<(&Column, Vec<String>, usize)>, width: usize) {
    loop {
        let total: usize = columns.iter().map(|(_, _, w)| w + GAP).sum();
        if total <= width.saturating_add(GAP) {
            return;
        }
        let dispensable = columns.iter().enumerate().filter(|(_, (column, _, _))| column.rank > 0);
        let Some((at, _)) = dispensable.max_by_key(|(_, (column, _, _))| column.rank) else {
            return;
        };
        columns.remove(at);
    }
}

fn pad(text: &str, width: usize, right: bool, last: bool) -> String {
    let fill = " ".repeat(width.saturating_sub(text.width()));
    match (right, last) {
        (true, _) => format!("{fill}{text}"),
        (false, true) => text.to_owned(),
        (false, false) => format!("{text}{fill}"),
    }
}

/// An end as people write it: address and port, for ICMP the address alone.
fn end(row: &Row, end: &RowEnd) -> String {
    match (row.has_ports(), end.addr) {
        (true, capture_flow::key::Address::Ip(std::net::IpAddr::V6(addr))) => {
            format!("[{addr}]:{}", end.port)
        }
        (true, addr) => format!("{addr}:{}", end.port),
        (false, addr) => addr.to_string(),
    }
}

/// Bytes for people, in powers of 1000.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    // 999.95 would be printed as 1000.0.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn bytes_read_well() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
