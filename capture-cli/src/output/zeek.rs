//! Zeek's conn.log.
//!
//! Columns and types are those of `Conn::Info` (scripts/base/protocols/conn/main.zeek), followed
//! by those that Zeek's policy scripts add: mac-logging, vlan-logging, community-id-logging. The
//! header and the values follow the writers (src/logging/writers/ascii/Ascii.cc and
//! src/threading/formatters/{Ascii,JSON}.cc): times and intervals with six decimals, `-` for
//! unset, `(empty)` for empty; in JSON unset fields are left out.

use std::fmt::Write as _;
use std::io::{self, Write};

use capture_flow::key::Protocol;
use capture_flow::time::Nanos;
use serde_json::{Number, Value as Json};

use super::Omitted;
use crate::row::Row;
use crate::times::Clock;

/// A value as Zeek types it.
enum Field<'a> {
    Unset,
    /// `time` and `interval`, in microseconds.
    Micros(i64),
    Text(&'a str),
    Owned(String),
    Count(u64),
    Bool(bool),
    Set(&'a [Box<str>]),
}

/// Name, Zeek's type, value.
type Column = (&'static str, &'static str, for<'a> fn(&'a Row) -> Field<'a>);

const COLUMNS: [Column; 27] = [
    ("ts", "time", |row| Field::Micros(micros(row.ts))),
    ("uid", "string", |row| Field::Text(&row.uid)),
    ("id.orig_h", "addr", |row| Field::Owned(row.orig.addr.to_string())),
    ("id.orig_p", "port", |row| Field::Count(port(row, row.orig.port))),
    ("id.resp_h", "addr", |row| Field::Owned(row.resp.addr.to_string())),
    ("id.resp_p", "port", |row| Field::Count(port(row, row.resp.port))),
    ("proto", "enum", |row| Field::Text(proto(row))),
    ("service", "string", service),
    ("duration", "interval", |row| {
        row.duration.map_or(Field::Unset, |s| Field::Micros((s * 1e6).round() as i64))
    }),
    ("orig_bytes", "count", |row| count(row.orig.bytes)),
    ("resp_bytes", "count", |row| count(row.resp.bytes)),
    ("conn_state", "string", |row| Field::Text(&row.conn_state)),
    ("local_orig", "bool", |row| row.orig.local.map_or(Field::Unset, Field::Bool)),
    ("local_resp", "bool", |row| row.resp.local.map_or(Field::Unset, Field::Bool)),
    ("missed_bytes", "count", |row| Field::Count(row.missed_bytes)),
    ("history", "string", |row| {
        if row.history.is_empty() { Field::Unset } else { Field::Text(&row.history) }
    }),
    ("orig_pkts", "count", |row| Field::Count(row.orig.pkts)),
    ("orig_ip_bytes", "count", |row| Field::Count(row.orig.ip_bytes)),
    ("resp_pkts", "count", |row| Field::Count(row.resp.pkts)),
    ("resp_ip_bytes", "count", |row| Field::Count(row.resp.ip_bytes)),
    ("tunnel_parents", "set[string]", |row| {
        row.tunnel_parents.as_deref().map_or(Field::Unset, Field::Set)
    }),
    ("ip_proto", "count", |row| count(row.ip_proto().map(u64::from))),
    ("orig_l2_addr", "string", |row| {
        row.orig.l2_addr.map_or(Field::Unset, |mac| Field::Owned(mac.to_string()))
    }),
    ("resp_l2_addr", "string", |row| {
        row.resp.l2_addr.map_or(Field::Unset, |mac| Field::Owned(mac.to_string()))
    }),
    ("vlan", "int", |row| count(row.vlan.map(u64::from))),
    ("inner_vlan", "int", |row| count(row.inner_vlan.map(u64::from))),
    ("community_id", "string", |row| row.community_id.as_deref().map_or(Field::Unset, Field::Text)),
];

fn count<'a>(value: Option<u64>) -> Field<'a> {
    value.map_or(Field::Unset, Field::Count)
}

/// Zeek reads no SCTP ports.
fn port(row: &Row, port: u16) -> u64 {
    if row.protocol == Protocol::Ip(132) { 0 } else { port.into() }
}

/// `transport_proto` knows these; everything else over IP is unknown to it.
fn proto(row: &Row) -> &'static str {
    match row.protocol {
        Protocol::TCP => "tcp",
        Protocol::UDP => "udp",
        Protocol::ICMP | Protocol::ICMP6 => "icmp",
        _ => "unknown_transport",
    }
}

/// Zeek calls TLS `ssl`.
fn service(row: &Row) -> Field<'_> {
    match row.service.as_deref() {
        None => Field::Unset,
        Some(text) if text.split(',').any(|one| one == "tls") => {
            let zeek: Vec<_> =
                text.split(',').map(|one| if one == "tls" { "ssl" } else { one }).collect();
            Field::Owned(zeek.join(","))
        }
        Some(text) => Field::Text(text),
    }
}

/// Microseconds, rounded to the nearest as printing a double with six decimals does.
fn micros(at: Nanos) -> i64 {
    at.0.saturating_add(500).div_euclid(1000)
}

fn seconds(micros: i64) -> String {
    let sign = if micros < 0 { "-" } else { "" };
    let micros = micros.unsigned_abs();
    format!("{sign}{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

/// conn.log holds sessions over IP only, not those that stand for a carrier here, and none for
/// datagrams that never became complete.
fn in_zeeks_log<'a>(rows: &'a [Row], omitted: &mut Omitted) -> Vec<&'a Row> {
    let kept: Vec<_> = rows
        .iter()
        .filter(|row| row.protocol.is_in_zeeks_log(row.orig.addr) && !row.is_fragments_only())
        .collect();
    omitted.no_session_in_zeek = (rows.len() - kept.len()) as u64;
    kept
}

/// The tab-separated form.
pub(super) fn tsv(rows: &[Row], clock: &Clock, out: &mut impl Write) -> io::Result<Omitted> {
    let now = clock.stamp(clock.now(), "%Y-%m-%d-%H-%M-%S");
    let joined =
        |pick: fn(&Column) -> &'static str| COLUMNS.iter().map(pick).collect::<Vec<_>>().join("\t");
    write!(
        out,
        "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n\
         #path\tconn\n#open\t{now}\n#fields\t{}\n#types\t{}\n",
        joined(|column| column.0),
        joined(|column| column.1)
    )?;
    let mut omitted = Omitted::default();
    let mut line = String::new();
    for row in in_zeeks_log(rows, &mut omitted) {
        line.clear();
        for (number, (_, _, value)) in COLUMNS.iter().enumerate() {
            if number > 0 {
                line.push('\t');
            }
            push_field(&mut line, &value(row));
        }
        line.push('\n');
        out.write_all(line.as_bytes())?;
    }
    writeln!(out, "#close\t{now}")?;
    Ok(omitted)
}

fn push_field(line: &mut String, field: &Field<'_>) {
    match field {
        Field::Unset => line.push('-'),
        Field::Micros(micros) => line.push_str(&seconds(*micros)),
        Field::Text(text) => push_text(line, text, ""),
        Field::Owned(text) => push_text(line, text, ""),
        Field::Count(count) => {
            let _ = write!(line, "{count}");
        }
        Field::Bool(value) => line.push(if *value { 'T' } else { 'F' }),
        Field::Set([]) => line.push_str("(empty)"),
        Field::Set(texts) => {
            for (number, text) in texts.iter().enumerate() {
                if number > 0 {
                    line.push(',');
                }
                push_text(line, text, ",");
            }
        }
    }
}

/// Text as Zeek's ASCII writer escapes it: whatever does not print or would be taken for
/// something else becomes `\xNN`.
fn push_text(line: &mut String, text: &str, separator: &str) {
    if text.is_empty() {
        line.push_str("(empty)");
        return;
    }
    let reserved = text == "-" || text == "(empty)";
    for (at, byte) in text.bytes().enumerate() {
        let prints = (0x20..0x7f).contains(&byte) && byte != b'\\';
        if !prints || separator.as_bytes().contains(&byte) || (reserved && at == 0) {
            let _ = write!(line, "\\x{byte:02x}");
        } else {
            line.push(char::from(byte));
        }
    }
}

/// The JSON form.
pub(super) fn json(rows: &[Row], out: &mut impl Write) -> io::Result<Omitted> {
    let mut omitted = Omitted::default();
    for row in in_zeeks_log(rows, &mut omitted) {
        out.write_all(b"{")?;
        let mut first = true;
        for (name, _, value) in &COLUMNS {
            let Some(value) = json_field(&value(row)) else { continue };
            if !first {
                out.write_all(b",")?;
            }
            first = false;
            write!(out, "\"{name}\":")?;
            serde_json::to_writer(&mut *out, &value)?;
        }
        out.write_all(b"}\n")?;
    }
    Ok(omitted)
}

fn json_field(field: &Field<'_>) -> Option<Json> {
    Some(match field {
        Field::Unset => return None,
        Field::Micros(micros) => Json::Number(Number::from_f64(*micros as f64 / 1e6)?),
        Field::Text(text) => Json::String((*text).to_owned()),
        Field::Owned(text) => Json::String(text.clone()),
        Field::Count(count) => Json::Number((*count).into()),
        Field::Bool(value) => Json::Bool(*value),
        Field::Set(texts) => {
            Json::Array(texts.iter().map(|text| Json::String(text.to_string())).collect())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::{Field, micros, push_field, seconds};
    use capture_flow::time::Nanos;

    fn written(field: &Field<'_>) -> String {
        let mut line = String::new();
        push_field(&mut line, field);
        line
    }

    #[test]
    fn values_are_written_as_zeeks_ascii_writer_does() {
        assert_eq!(written(&Field::Unset), "-");
        assert_eq!(written(&Field::Text("")), "(empty)");
        assert_eq!(written(&Field::Text("-")), "\\x2d");
        assert_eq!(written(&Field::Text("(empty)")), "\\x28empty)");
        assert_eq!(written(&Field::Text("a\tb\\c\u{e9}")), "a\\x09b\\x5cc\\xc3\\xa9");
        assert_eq!(written(&Field::Set(&["Ca,b".into(), "Cc".into()])), "Ca\\x2cb,Cc");
        assert_eq!(written(&Field::Set(&[])), "(empty)");
        assert_eq!(written(&Field::Bool(true)), "T");
    }

    #[test]
    fn times_have_six_decimals() {
        assert_eq!(seconds(micros(Nanos(1_170_396_000_123_456_499))), "1170396000.123456");
        assert_eq!(seconds(micros(Nanos(1_170_396_000_123_456_500))), "1170396000.123457");
        assert_eq!(seconds(micros(Nanos(-1_500_000_000))), "-1.500000");
        assert_eq!(seconds(0), "0.000000");
    }
}
