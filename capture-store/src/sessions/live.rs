//! The open tail: an Arrow IPC stream that grows batch by batch.
//!
//! Each batch is handed to the kernel in one write, so a reader or a kill sees whole messages or
//! a cut last one. Before Arrow decodes anything, the messages' frames are walked. Where one is
//! damaged, the batches behind it are looked for and read; what was passed over is reported.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::LazyLock;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::{StreamEncoder, StreamWriter};
use arrow::ipc::{MessageHeader, root_as_message};

use crate::layout;

use super::schema::{adapt, schema};

/// An open tail as its writer holds it.
pub(super) struct LiveWriter {
    file: File,
    encoder: StreamEncoder,
    len: u64,
    /// Of what was written.
    hasher: blake3::Hasher,
    torn: bool,
}

impl LiveWriter {
    /// Creates the file; its first write also carries the schema.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let encoder = StreamEncoder::try_new(&schema()).map_err(io::Error::other)?;
        let (file, hasher) = (layout::create_new(path)?, blake3::Hasher::new());
        Ok(Self { file, encoder, len: 0, hasher, torn: false })
    }

    /// Appends a batch, all of it or nothing.
    pub(super) fn append(&mut self, batch: &RecordBatch) -> io::Result<()> {
        let appended = self.try_append(batch);
        if appended.is_err() && self.len == 0 {
            // The schema went with the batch: the next try has to write it again.
            self.encoder = StreamEncoder::try_new(&schema()).map_err(io::Error::other)?;
        }
        appended
    }

    fn try_append(&mut self, batch: &RecordBatch) -> io::Result<()> {
        let buffers = self.encoder.encode(batch).map_err(io::Error::other)?;
        let bytes = buffers.iter().map(Buffer::as_slice).collect::<Vec<_>>().concat();
        self.file.write_all(&bytes).inspect_err(|_| {
            // A full disk takes a part; the next batch must not follow a torn one.
            let cut = self.file.set_len(self.len);
            let cut = cut.and_then(|()| self.file.seek(SeekFrom::Start(self.len)));
            self.torn = cut.is_err();
        })?;
        self.len += bytes.len() as u64;
        self.hasher.update(&bytes);
        Ok(())
    }

    /// Whether a part of a batch is at the end and cannot be taken away: nothing must follow it.
    pub(super) fn is_torn(&self) -> bool {
        self.torn
    }

    /// Bytes in the file.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// BLAKE3 of them.
    pub(super) fn hash(&self) -> blake3::Hash {
        self.hasher.finalize()
    }

    /// Makes every further write fail, and leaves nothing to cut back.
    #[cfg(test)]
    pub(super) fn fail(&mut self) {
        self.file = File::options().write(true).open("/dev/full").unwrap();
    }
}

/// What an open tail holds.
#[derive(Default)]
pub(super) struct LiveContent {
    pub(super) batches: Vec<RecordBatch>,
    /// Bytes behind the last whole batch.
    pub(super) torn_bytes: u64,
    /// Bytes before it that are no batch.
    pub(super) damaged_bytes: u64,
}

/// Reads every whole batch.
pub(super) fn read(mut file: impl Read) -> io::Result<LiveContent> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(decode(&bytes))
}

/// Decodes every whole batch in `bytes`.
pub(super) fn decode(bytes: &[u8]) -> LiveContent {
    let mut content = LiveContent::default();
    let own = message_end(bytes, 0, MessageHeader::Schema).and_then(|end| bytes.get(..end));
    let schema = own.unwrap_or(&SCHEMA);
    // Behind the last message that was read.
    let mut good = own.map_or(0, <[u8]>::len);
    let mut at = good;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let read = decode_run(schema, rest, &mut content.batches);
        if read > 0 {
            content.damaged_bytes += (at - good) as u64;
            at += read;
            good = at;
            continue;
        }
        let next = (at + 1..bytes.len()).find(|at| batch_end(bytes, *at).is_some());
        let Some(next) = next else { break };
        at = next;
    }
    content.torn_bytes = (bytes.len() - good) as u64;
    content
}

/// A stream's beginning, for one whose own is damaged.
static SCHEMA: LazyLock<Vec<u8>> = LazyLock::new(|| {
    StreamWriter::try_new(Vec::new(), &schema()).map_or(Vec::new(), |begun| begun.get_ref().clone())
});

/// Decodes one batch after the other; returns how many bytes they take.
fn decode_run(schema: &[u8], bytes: &[u8], batches: &mut Vec<RecordBatch>) -> usize {
    let mut ends = Vec::new();
    while let Some(end) = batch_end(bytes, ends.last().copied().unwrap_or(0)) {
        ends.push(end);
    }
    let Some(whole) = ends.last().and_then(|end| bytes.get(..*end)) else { return 0 };
    let mut good = 0;
    // Arrow checks what it decodes, but a batch that lies about its buffers can make it panic.
    let decoded = super::guard::guarded(|| -> Result<(), ArrowError> {
        for (batch, end) in StreamReader::try_new(schema.chain(whole), None)?.zip(&ends) {
            batches.push(adapt(&batch?)?);
            good = *end;
        }
        Ok(())
    });
    if let Err(why) = decoded {
        tracing::warn!("an open tail of the session log is damaged: {why}");
    }
    good
}

/// Where the whole batch at `at` ends, if there is one.
fn batch_end(bytes: &[u8], at: usize) -> Option<usize> {
    message_end(bytes, at, MessageHeader::RecordBatch)
}

/// A message is 0xffffffff, the length of its metadata, the metadata, and a body whose length the
/// metadata tell (Arrow columnar format, "Encapsulated message format").
fn message_end(bytes: &[u8], at: usize, kind: MessageHeader) -> Option<usize> {
    let (head, rest) = bytes.get(at..)?.split_first_chunk::<8>()?;
    let [a, b, c, d, len @ ..] = *head;
    if [a, b, c, d] != [0xff; 4] {
        return None;
    }
    let len = usize::try_from(i32::from_le_bytes(len)).ok().filter(|len| *len > 0)?;
    let message = root_as_message(rest.get(..len)?).ok()?;
    if message.header_type() != kind {
        return None;
    }
    let body = usize::try_from(message.bodyLength()).ok()?;
    let end = at.checked_add(8)?.checked_add(len)?.checked_add(body)?;
    (end <= bytes.len()).then_some(end)
}
