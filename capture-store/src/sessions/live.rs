//! The open tail: an Arrow IPC stream that grows batch by batch.
//!
//! Each batch is handed to the kernel in one write, so a reader or a kill sees whole messages or
//! a cut last one. Before Arrow decodes anything, the messages' frames are walked and everything
//! behind the first one that is not whole is left out and reported.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::root_as_message;
use arrow::ipc::writer::StreamEncoder;

use crate::layout;

use super::schema::schema;

/// An open tail as its writer holds it.
pub(super) struct LiveWriter {
    file: File,
    encoder: StreamEncoder,
    len: u64,
}

impl LiveWriter {
    /// Creates the file; its first write also carries the schema.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let encoder = StreamEncoder::try_new(&schema()).map_err(io::Error::other)?;
        Ok(Self { file: layout::create_new(path)?, encoder, len: 0 })
    }

    /// Appends a batch, all of it or nothing.
    pub(super) fn append(&mut self, batch: &RecordBatch) -> io::Result<()> {
        let buffers = self.encoder.encode(batch).map_err(io::Error::other)?;
        let bytes = buffers.iter().map(Buffer::as_slice).collect::<Vec<_>>().concat();
        if let Err(error) = self.file.write_all(&bytes) {
            // A full disk takes a part; the next batch must not follow a torn one.
            self.file.set_len(self.len)?;
            self.file.seek(SeekFrom::Start(self.len))?;
            if self.len == 0 {
                // The schema went with the batch: the next try has to write it again.
                self.encoder = StreamEncoder::try_new(&schema()).map_err(io::Error::other)?;
            }
            return Err(error);
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Bytes in the file.
    pub(super) fn len(&self) -> u64 {
        self.len
    }
}

/// What an open tail holds.
pub(super) struct LiveContent {
    pub(super) batches: Vec<RecordBatch>,
    /// Bytes behind the last whole batch.
    pub(super) torn_bytes: u64,
}

/// Reads every whole batch.
pub(super) fn read(file: &mut File) -> io::Result<LiveContent> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(decode(&bytes))
}

/// Decodes every whole batch at the beginning of `bytes`.
pub(super) fn decode(bytes: &[u8]) -> LiveContent {
    let mut batches = Vec::new();
    let whole = whole_messages(bytes);
    let mut good = 0;
    // Arrow checks what it decodes, but a batch that lies about its buffers can make it panic.
    if let Some(first) = whole.first() {
        let decoded = super::scan::guarded(|| -> Result<(), ArrowError> {
            good = *first;
            let reader =
                StreamReader::try_new(Cursor::new(&bytes[..*whole.last().unwrap_or(first)]), None)?;
            if reader.schema() != schema() {
                good = 0;
                return Err(ArrowError::SchemaError("the columns are others".to_owned()));
            }
            for (batch, end) in reader.zip(whole.iter().skip(1)) {
                batches.push(batch?);
                good = *end;
            }
            Ok(())
        });
        if let Err(why) = decoded {
            tracing::warn!("an open tail of the session log is damaged: {why}");
        }
    }
    LiveContent { batches, torn_bytes: (bytes.len() - good) as u64 }
}

/// Where each whole message at the beginning of `bytes` ends.
///
/// A message is 0xffffffff, the length of its metadata, the metadata, and a body whose length the
/// metadata tell (Arrow columnar format, "Encapsulated message format").
fn whole_messages(bytes: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut at = 0_usize;
    while let Some(end) = message_end(bytes, at) {
        ends.push(end);
        at = end;
    }
    ends
}

fn message_end(bytes: &[u8], at: usize) -> Option<usize> {
    let (head, rest) = bytes.get(at..)?.split_first_chunk::<8>()?;
    let [a, b, c, d, len @ ..] = *head;
    if [a, b, c, d] != [0xff; 4] {
        return None;
    }
    let len = usize::try_from(i32::from_le_bytes(len)).ok().filter(|len| *len > 0)?;
    let message = root_as_message(rest.get(..len)?).ok()?;
    let body = usize::try_from(message.bodyLength()).ok()?;
    let end = at.checked_add(8)?.checked_add(len)?.checked_add(body)?;
    (end <= bytes.len()).then_some(end)
}
