//! Capture files as a source of frames: pcap and pcapng, gzip-compressed or not.
//!
//! Files are foreign input. Memory is bounded by one batch, whatever the file claims, and a file
//! that is cut off or damaged gives every frame in front of the damage before it reports it.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use capture_flow::frame::{IfaceId, LinkType};
use capture_flow::time::Nanos;
use flate2::bufread::MultiGzDecoder;
use pcap_parser::{PcapHeader, parse_pcap_header};

use super::pcapng::Section;
use super::{BATCH, Received, Source, SourceCounters, SourceError, SourceFrame};

/// Captured bytes of one frame at most: libpcap's own limit (`MAXIMUM_SNAPLEN`).
pub(super) const MAX_CAPTURED: u32 = 262_144;
/// Captured bytes after which a batch is closed early.
const BATCH_BYTES: usize = 1 << 20;
const READ_BUFFER: usize = 1 << 18;

/// First bytes of a classic pcap whose records have Kuznetzov's longer header, in either byte order,
/// and of one without.
const MODIFIED_LITTLE: &[u8] = &[0x34, 0xcd, 0xb2, 0xa1];
const MODIFIED_BIG: &[u8] = &[0xa1, 0xb2, 0xcd, 0x34];
const PLAIN_BIG: &[u8] = &[0xa1, 0xb2, 0xc3, 0xd4];

/// Gives interfaces that a file names their numbers in the run.
pub type NameInterface = Box<dyn FnMut(&str) -> IfaceId + Send>;

/// One capture file.
pub struct FileSource {
    stream: Stream,
    format: Format,
    interfaces: Interfaces,
    /// The captured bytes of the batch, one frame after the other.
    bytes: Vec<u8>,
    frames: Vec<Meta>,
    frames_total: u64,
    bytes_total: u64,
    /// Why the file cannot be read on; told once everything in front of it has been handed over.
    failure: Option<SourceError>,
    ended: bool,
}

/// A frame of the batch, its bytes lying in [`FileSource::bytes`].
#[derive(Clone, Copy)]
pub(super) struct Meta {
    pub(super) ts: Nanos,
    pub(super) wire_len: u32,
    pub(super) link: LinkType,
    pub(super) iface: IfaceId,
    pub(super) captured: usize,
}

enum Format {
    Pcap(Pcap),
    PcapNg(Section),
}

/// What a classic pcap's header says.
struct Pcap {
    header: PcapHeader,
    /// Records have a longer header (Kuznetzov's patch).
    is_modified: bool,
    link: LinkType,
    iface: IfaceId,
}

/// One step of a format's reader.
pub(super) enum Step {
    /// A frame; its bytes were appended to the batch.
    Frame(Meta),
    /// Something that is no frame.
    Other,
    /// The regular end of the file.
    End,
    /// The file cannot be read on; the text says what and where.
    Damaged(String),
}

/// Names of interfaces and what a file is called where it names none.
pub(super) struct Interfaces {
    pub(super) name: NameInterface,
    pub(super) file: String,
}

impl FileSource {
    /// Opens a capture file; `-` is standard input. `name_interface` gives every interface that
    /// the file names (or the file itself, where it names none) its number.
    ///
    /// # Errors
    /// [`SourceError::Io`] if it cannot be read, [`SourceError::BadFile`] if it is no capture.
    pub fn open(path: &Path, name_interface: NameInterface) -> Result<Self, SourceError> {
        let name = path.display().to_string();
        let consumed = Arc::new(AtomicU64::new(0));
        let io_error = |doing: &'static str| {
            let name = name.clone();
            move |source| SourceError::Io { doing, name, source }
        };
        let input: Box<dyn Read + Send> = if path == Path::new("-") {
            Box::new(io::stdin())
        } else {
            let file = File::open(path).map_err(io_error("open the capture file"))?;
            let kind = file.metadata().map_err(io_error("look at the capture file"))?;
            if kind.is_dir() {
                return Err(SourceError::BadFile {
                    name,
                    reason: "this is a directory; name the capture files in it".to_owned(),
                });
            }
            Box::new(file)
        };
        let counted = Counted { inner: input, count: Arc::clone(&consumed) };
        Self::read(counted, consumed, &name, path, name_interface)
    }

    fn read(
        input: Counted,
        consumed: Arc<AtomicU64>,
        name: &str,
        path: &Path,
        mut name_interface: NameInterface,
    ) -> Result<Self, SourceError> {
        let mut input = BufReader::with_capacity(READ_BUFFER, input);
        let mut start = Vec::with_capacity(2);
        let io_error = |source| SourceError::Io { doing: "read", name: name.to_owned(), source };
        (&mut input).take(2).read_to_end(&mut start).map_err(io_error)?;
        let gzip = start == [0x1f, 0x8b];
        let start = io::Cursor::new(start);
        let whole = BufReader::with_capacity(READ_BUFFER, start.chain(input));
        let inner: Box<dyn Read + Send> = if gzip {
            Box::new(BufReader::new(MultiGzDecoder::new(whole)))
        } else {
            Box::new(whole)
        };
        let mut stream = Stream { inner, offset: 0, consumed, name: name.to_owned(), broken: None };

        let bad = |reason: String| SourceError::BadFile { name: name.to_owned(), reason };
        let mut head = vec![0; 24];
        let got = stream.fill(&mut head)?;
        head.truncate(got);
        if got == 0 {
            return Err(bad(stream
                .broken
                .take()
                .unwrap_or_else(|| "the file is empty".to_owned())));
        }
        let base = path.file_name().filter(|_| path != Path::new("-"));
        let file = base.map_or("stdin".into(), std::ffi::OsStr::to_string_lossy).into_owned();
        let format = if Section::starts(&head) {
            Format::PcapNg(Section::new(head))
        } else {
            let is_modified = matches!(head.get(..4), Some(MODIFIED_LITTLE | MODIFIED_BIG));
            if let Some(magic) = head.get_mut(..4).filter(|magic| *magic == MODIFIED_BIG) {
                // The parser knows the patch in one byte order only; file headers are the same.
                magic.copy_from_slice(PLAIN_BIG);
            }
            let header = match parse_pcap_header(&head) {
                Ok((_, header)) => header,
                Err(pcap_parser::nom::Err::Incomplete(_)) => {
                    return Err(bad(format!("a pcap header takes 24 bytes, the file has {got}")));
                }
                Err(_) => {
                    return Err(bad(format!("this is no pcap or pcapng file{}", guess(&head))));
                }
            };
            // The upper bits of the word can say that frames end in a checksum and how long it
            // is (pcap-savefile(5)). It stays with the frame: what is above takes its length from
            // its own header.
            let link = LinkType((header.network.0 & 0xffff) as u16);
            Format::Pcap(Pcap { link, iface: name_interface(&file), is_modified, header })
        };
        Ok(Self {
            stream,
            format,
            interfaces: Interfaces { name: name_interface, file },
            bytes: Vec::new(),
            frames: Vec::with_capacity(BATCH),
            frames_total: 0,
            bytes_total: 0,
            failure: None,
            ended: false,
        })
    }

    /// Bytes of the file that were read so far, as they are on disk: a progress bar's measure.
    #[must_use]
    pub fn consumed(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.stream.consumed)
    }

    /// Reads frames until the batch is full, or as far as the file goes.
    fn fill_batch(&mut self) {
        self.bytes.clear();
        self.frames.clear();
        while self.frames.len() < BATCH && self.bytes.len() < BATCH_BYTES {
            let start = self.bytes.len();
            let step = match &mut self.format {
                Format::Pcap(pcap) => pcap.step(&mut self.stream, &mut self.bytes),
                Format::PcapNg(section) => {
                    section.step(&mut self.stream, &mut self.interfaces, &mut self.bytes)
                }
            };
            match step {
                Ok(Step::Frame(meta)) => self.frames.push(meta),
                Ok(Step::Other) => {}
                Ok(Step::End) => self.ended = true,
                Ok(Step::Damaged(reason)) => {
                    let reason = self.stream.broken.take().unwrap_or(reason);
                    let name = self.stream.name.clone();
                    self.failure = Some(SourceError::BadFile { name, reason });
                    self.ended = true;
                }
                Err(error) => {
                    self.bytes.truncate(start);
                    self.failure = Some(error);
                    self.ended = true;
                }
            }
            if self.ended {
                break;
            }
        }
    }
}

impl Source for FileSource {
    fn receive(
        &mut self,
        consume: &mut dyn FnMut(&[SourceFrame<'_>]),
    ) -> Result<Received, SourceError> {
        if self.ended {
            return self.failure.take().map_or(Ok(Received::End), Err);
        }
        self.fill_batch();
        if self.frames.is_empty() {
            return self.receive(consume);
        }
        let mut rest = self.bytes.as_slice();
        let mut parts: Vec<[&[u8]; 1]> = Vec::with_capacity(self.frames.len());
        for meta in &self.frames {
            let (bytes, after) = rest.split_at_checked(meta.captured).unwrap_or((rest, &[]));
            parts.push([bytes]);
            rest = after;
        }
        let frames: Vec<SourceFrame<'_>> = self
            .frames
            .iter()
            .zip(&parts)
            .map(|(meta, parts)| SourceFrame {
                ts: meta.ts,
                wire_len: meta.wire_len,
                link: meta.link,
                iface: meta.iface,
                parts,
            })
            .collect();
        self.frames_total += frames.len() as u64;
        self.bytes_total += self.bytes.len() as u64;
        consume(&frames);
        Ok(Received::Frames(frames.len()))
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn counters(&mut self) -> Result<SourceCounters, SourceError> {
        Ok(SourceCounters {
            frames: self.frames_total,
            bytes: self.bytes_total,
            ..SourceCounters::default()
        })
    }
}

impl Pcap {
    fn step(&self, stream: &mut Stream, bytes: &mut Vec<u8>) -> Result<Step, SourceError> {
        let at = stream.offset;
        let mut header = [0; 24];
        let header = &mut header[..if self.is_modified { 24 } else { 16 }];
        let got = stream.fill(header)?;
        if got == 0 && stream.broken.is_none() {
            return Ok(Step::End);
        }
        if got < header.len() {
            return Ok(Step::Damaged(format!("cut off in a record header at byte {at}")));
        }
        let [seconds, subsec, one_length, other_length] =
            [0, 4, 8, 12].map(|from| self.word(header, from));
        let (captured, wire_len) = self.lengths(one_length, other_length);
        if captured > MAX_CAPTURED {
            return Ok(Step::Damaged(format!(
                "damaged at byte {at}: a record claims {captured} bytes, no frame is longer than \
                 {MAX_CAPTURED}"
            )));
        }
        let start = bytes.len();
        let captured = captured as usize;
        if stream.extend(bytes, captured)? < captured {
            bytes.truncate(start);
            return Ok(Step::Damaged(format!("cut off in the record at byte {at}")));
        }
        let unit = if self.header.is_nanosecond_precision() { 1 } else { 1_000 };
        let subsec = i64::from(subsec).saturating_mul(unit);
        let seconds = i64::from(seconds).saturating_mul(1_000_000_000);
        Ok(Step::Frame(Meta {
            ts: Nanos(seconds.saturating_add(subsec)),
            wire_len: wire_len.max(captured as u32),
            link: self.link,
            iface: self.iface,
            captured,
        }))
    }

    fn word(&self, header: &[u8], from: usize) -> u32 {
        let word = header.get(from..from + 4).and_then(|word| <[u8; 4]>::try_from(word).ok());
        let word = word.unwrap_or_default();
        if self.header.is_bigendian() { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
    }

    /// Captured and original length of a record. Files before version 2.3 have them in the other
    /// order, those of 2.3 in either (libpcap's sf-pcap.c).
    fn lengths(&self, first: u32, second: u32) -> (u32, u32) {
        let version = (self.header.version_major, self.header.version_minor);
        let swapped = match version {
            (2, 3) => first > second,
            (2, minor) => minor < 3,
            (543, _) => true,
            _ => false,
        };
        if swapped { (second, first) } else { (first, second) }
    }
}

/// The file's bytes after decompression.
pub(super) struct Stream {
    inner: Box<dyn Read + Send>,
    /// Bytes taken from it so far.
    pub(super) offset: u64,
    consumed: Arc<AtomicU64>,
    name: String,
    /// Set when the compression, not the capture in it, is cut off or damaged.
    broken: Option<String>,
}

impl Stream {
    /// Reads until `buffer` is full or the file ends; returns how many bytes came.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError> {
        let mut filled = 0;
        while let Some(space) = buffer.get_mut(filled..).filter(|space| !space.is_empty()) {
            match self.inner.read(space) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::UnexpectedEof
                            | io::ErrorKind::InvalidData
                            | io::ErrorKind::InvalidInput
                    ) =>
                {
                    self.broken =
                        Some(format!("the gzip compression is cut off or damaged: {error}"));
                    break;
                }
                Err(source) => {
                    let name = self.name.clone();
                    return Err(SourceError::Io { doing: "read", name, source });
                }
            }
        }
        self.offset += filled as u64;
        Ok(filled)
    }

    /// Appends up to `len` bytes; returns how many came.
    pub(super) fn extend(&mut self, bytes: &mut Vec<u8>, len: usize) -> Result<usize, SourceError> {
        let start = bytes.len();
        bytes.resize(start + len, 0);
        let got = self.fill(bytes.get_mut(start..).unwrap_or_default())?;
        bytes.truncate(start + got);
        Ok(got)
    }

    /// Passes over `len` bytes; returns how many there were.
    pub(super) fn skip(&mut self, len: u64) -> Result<u64, SourceError> {
        let mut scratch = [0; 4096];
        let mut left = len;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(scratch.len());
            let got = self.fill(scratch.get_mut(..want).unwrap_or_default())?;
            left -= got as u64;
            if got < want {
                break;
            }
        }
        Ok(len - left)
    }

    /// Whether the compression around the file broke off.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }
}

/// Counts what is read through it.
struct Counted {
    inner: Box<dyn Read + Send>,
    count: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// Names the kind of file that was given instead, where its first bytes tell.
fn guess(head: &[u8]) -> &'static str {
    const KNOWN: [(&[u8], &str); 12] = [
        (b"\x1f\x8b", ": it is compressed twice, unpack it once with gunzip"),
        (
            b"\x28\xb5\x2f\xfd",
            ": it is compressed with zstd, pipe it in: zstdcat FILE | stillwired replay … -",
        ),
        (b"\xfd7zXZ", ": it is compressed with xz, pipe it in: xzcat FILE | stillwired replay … -"),
        (b"BZh", ": it is compressed with bzip2, pipe it in: bzcat FILE | stillwired replay … -"),
        (b"PK\x03\x04", ": it is a zip archive, unpack it first"),
        (b"snoop\0\0\0", ": it is a Solaris snoop file, convert it: editcap -F nsecpcap IN OUT"),
        (b"GMBU", ": it is a Network Monitor file, convert it: editcap -F nsecpcap IN OUT"),
        (b"RTSS", ": it is a Network Monitor file, convert it: editcap -F nsecpcap IN OUT"),
        (b"\x7fELF", ": it is a program"),
        (b"PAR1", ": it is a Parquet file"),
        (b"ARROW1", ": it is an Arrow file"),
        (b"#separator", ": it is a Zeek log"),
    ];
    for (magic, what) in KNOWN {
        if head.starts_with(magic) {
            return what;
        }
    }
    let text = head.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
    if text { ": it is text" } else { ": its first bytes are no format this program knows" }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
