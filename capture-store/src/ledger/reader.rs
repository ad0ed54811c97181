//! Reads the ledger, whatever state it is in.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use capture_flow::time::Nanos;

use crate::layout;
use crate::store::Store;

use super::line::LedgerLine;
use super::writer::LINE_LIMIT;

/// A line that is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The day file.
    pub path: PathBuf,
    /// The line in it, from 1.
    pub line: u64,
    /// What is wrong.
    pub why: String,
    /// Whether it is the unfinished end of the file: a line being written, or torn by a kill.
    pub torn_end: bool,
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LedgerRead {
    /// Lines whose interval overlaps the window, in the order of the chain.
    pub lines: Vec<LedgerLine>,
    /// What could not be read.
    pub damage: Vec<Damage>,
}

/// Reads the lines whose interval overlaps the window (both ends included).
///
/// # Errors
/// A file cannot be read. Damaged lines are no error but part of the answer.
pub fn read(store: &Store, from: Nanos, to: Nanos) -> io::Result<LedgerRead> {
    let dir = store.layout().ledger(&store.identity().sensor);
    let day = |at| {
        let path = store.layout().ledger_day(&store.identity().sensor, at);
        path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let (first, last) = (day(from), day(to));
    let mut read = LedgerRead::default();
    for name in layout::names_in(&dir)? {
        if !name.ends_with(".ndjson") || name < first {
            continue;
        }
        read_day(&dir.join(&name), from, to, &mut read)?;
        // A line lies in the file of its end, so one that reaches out of the window lies in the
        // next file that there is.
        if name > last {
            break;
        }
    }
    read.lines.sort_by_key(|line| line.seq);
    Ok(read)
}

fn read_day(path: &Path, from: Nanos, to: Nanos, read: &mut LedgerRead) -> io::Result<()> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut text = Vec::new();
    for number in 1.. {
        text.clear();
        if (&mut reader).take(LINE_LIMIT).read_until(b'\n', &mut text)? == 0 {
            break;
        }
        let whole = text.last() == Some(&b'\n');
        match serde_json::from_slice::<LedgerLine>(&text) {
            Ok(line) => {
                if line.overlaps(from, to) {
                    read.lines.push(line);
                }
            }
            Err(error) => read.damage.push(Damage {
                path: path.to_owned(),
                line: number,
                why: error.to_string(),
                torn_end: !whole,
            }),
        }
    }
    Ok(())
}
