use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

/// A frame as a test expects it: time, wire length, bytes, link type, interface.
type Seen = (i64, u32, Vec<u8>, u16, u16);

fn read_all(content: &[u8]) -> Result<(Vec<Seen>, Option<String>), SourceError> {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(content).expect("written");
    let mut names: Vec<String> = Vec::new();
    let naming = move |name: &str| {
        let known = names.iter().position(|known| known == name);
        let id = known.unwrap_or_else(|| {
            names.push(name.to_owned());
            names.len() - 1
        });
        IfaceId(u16::try_from(id).expect("few interfaces"))
    };
    let mut source = FileSource::open(file.path(), Box::new(naming))?;
    let mut seen = Vec::new();
    let damage = loop {
        let got = source.receive(&mut |frames| {
            for frame in frames {
                let bytes = frame.parts.concat();
                seen.push((frame.ts.0, frame.wire_len, bytes, frame.link.0, frame.iface.0));
            }
        });
        match got {
            Ok(Received::Frames(_)) => {}
            Ok(Received::End) => break None,
            Ok(Received::Idle) => panic!("a file is never idle"),
            Err(SourceError::BadFile { reason, .. }) => break Some(reason),
            Err(error) => return Err(error),
        }
    };
    Ok((seen, damage))
}

struct Words {
    big_endian: bool,
    bytes: Vec<u8>,
}

impl Words {
    fn new(big_endian: bool) -> Self {
        Self { big_endian, bytes: Vec::new() }
    }

    fn u16(mut self, value: u16) -> Self {
        let bytes = if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        self.bytes.extend(bytes);
        self
    }

    fn u32(mut self, value: u32) -> Self {
        let bytes = if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        self.bytes.extend(bytes);
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }
}

fn pcap(big_endian: bool, magic: u32, network: u32, records: &[(u32, u32, &[u8])]) -> Vec<u8> {
    let mut file =
        Words::new(big_endian).u32(magic).u16(2).u16(4).u32(0).u32(0).u32(65_535).u32(network);
    for (seconds, fraction, bytes) in records {
        let len = u32::try_from(bytes.len()).expect("short");
        file = file.u32(*seconds).u32(*fraction).u32(len).u32(len + 10).raw(bytes);
    }
    file.bytes
}

fn block(big_endian: bool, kind: u32, body: &[u8]) -> Vec<u8> {
    let padding = vec![0; body.len().next_multiple_of(4) - body.len()];
    let len = u32::try_from(12 + body.len() + padding.len()).expect("short");
    Words::new(big_endian).u32(kind).u32(len).raw(body).raw(&padding).u32(len).bytes
}

fn pcapng(big_endian: bool) -> Vec<u8> {
    let words = || Words::new(big_endian);
    let section = words().u32(0x1a2b_3c4d).u16(1).u16(0).u32(u32::MAX).u32(u32::MAX).bytes;
    let ethernet = words()
        .u16(1)
        .u16(0)
        .u32(0)
        .u16(2)
        .u16(3)
        .raw(b"up0\0")
        .u16(9)
        .u16(1)
        .raw(&[9, 0, 0, 0])
        .u16(0)
        .u16(0)
        .bytes;
    let raw_ip = words().u16(101).u16(0).u32(4).u16(9).u16(1).raw(&[0x80 | 10, 0, 0, 0]).bytes;
    let packet = |interface: u32, units: u32, bytes: &[u8]| {
        let len = u32::try_from(bytes.len()).expect("short");
        let padding = vec![0; bytes.len().next_multiple_of(4) - bytes.len()];
        words().u32(interface).u32(0).u32(units).u32(len).u32(len).raw(bytes).raw(&padding).bytes
    };
    let mut file = block(big_endian, 0x0a0d_0d0a, &section);
    file.extend(block(big_endian, 1, &ethernet));
    file.extend(block(big_endian, 1, &raw_ip));
    file.extend(block(big_endian, 6, &packet(0, 5, &[1, 2, 3])));
    // A block of an unknown kind, longer than one read, is passed over.
    file.extend(block(big_endian, 0x0bad, &[7; 10_000]));
    file.extend(block(big_endian, 6, &packet(1, 512, &[4, 5, 6, 7])));
    file.extend(block(big_endian, 3, &words().u32(3).raw(&[8, 9, 10]).bytes));
    file
}

#[test]
fn pcap_in_both_orders_and_resolutions() {
    for big_endian in [false, true] {
        let records: [(u32, u32, &[u8]); 2] = [(1, 5, &[1, 2, 3]), (2, 6, &[4])];
        let (seen, damage) = read_all(&pcap(big_endian, 0xa1b2_c3d4, 1, &records)).expect("a pcap");
        assert_eq!(damage, None);
        assert_eq!(
            seen,
            [(1_000_005_000, 13, vec![1, 2, 3], 1, 0), (2_000_006_000, 11, vec![4], 1, 0)]
        );
        let (seen, _) = read_all(&pcap(big_endian, 0xa1b2_3c4d, 1, &records)).expect("a pcap");
        assert_eq!(seen.first().map(|frame| frame.0), Some(1_000_000_005));
    }
}

/// Writes each record with the longer header of Kuznetzov's patch.
fn modified(big_endian: bool, records: &[(u32, u32, &[u8])]) -> Vec<u8> {
    let mut file = pcap(big_endian, 0xa1b2_cd34, 1, &[]);
    for record in records {
        let plain = pcap(big_endian, 0xa1b2_cd34, 1, &[*record]);
        file.extend(&plain[24..40]);
        // Interface, protocol, packet type, padding.
        file.extend([9; 8]);
        file.extend(&plain[40..]);
    }
    file
}

#[test]
fn patched_and_old_pcaps_are_read() {
    let records: [(u32, u32, &[u8]); 2] = [(1, 5, &[1, 2, 3]), (2, 6, &[4])];
    let expected = [(1_000_005_000, 13, vec![1, 2, 3], 1, 0), (2_000_006_000, 11, vec![4], 1, 0)];
    for big_endian in [false, true] {
        let (seen, damage) = read_all(&modified(big_endian, &records)).expect("a pcap");
        assert_eq!((seen.as_slice(), damage), (expected.as_slice(), None), "{big_endian}");
        // Versions 2.2 and 2.3 with the two lengths in the other order, 2.3 in this one, too.
        for (minor, swapped) in [(2, true), (3, true), (3, false)] {
            let mut old = pcap(big_endian, 0xa1b2_c3d4, 1, &records);
            old[if big_endian { 7 } else { 6 }] = minor;
            if swapped {
                for at in [24 + 8, 24 + 16 + 3 + 8] {
                    let (one, other) = old[at..at + 8].split_at_mut(4);
                    one.swap_with_slice(other);
                }
            }
            let (seen, damage) = read_all(&old).expect("a pcap");
            assert_eq!((seen.as_slice(), damage), (expected.as_slice(), None), "2.{minor}");
        }
    }
}

#[test]
fn checksum_bits_in_the_link_type_are_not_the_link_type() {
    let (seen, _) =
        read_all(&pcap(false, 0xa1b2_c3d4, 0x2400_0071, &[(0, 0, &[1])])).expect("a pcap");
    assert_eq!(seen.first().map(|frame| frame.3), Some(113));
}

#[test]
fn pcapng_with_several_interfaces() {
    for big_endian in [false, true] {
        let (seen, damage) = read_all(&pcapng(big_endian)).expect("a pcapng");
        assert_eq!(damage, None);
        let file_iface = 1;
        assert_eq!(
            seen,
            [
                (5, 3, vec![1, 2, 3], 1, 0),
                (500_000_000, 4, vec![4, 5, 6, 7], 101, file_iface),
                (500_000_000, 3, vec![8, 9, 10], 1, 0),
            ]
        );
    }
}

#[test]
fn gzip_is_unpacked_and_its_cut_noticed() {
    let plain = pcap(false, 0xa1b2_c3d4, 1, &[(1, 0, &[1; 500]), (2, 0, &[2; 500])]);
    let mut packer = GzEncoder::new(Vec::new(), Compression::none());
    packer.write_all(&plain).expect("packed");
    let packed = packer.finish().expect("packed");
    let (seen, damage) = read_all(&packed).expect("a pcap");
    assert_eq!((seen.len(), damage), (2, None));
    let (seen, damage) = read_all(&packed[..700]).expect("a pcap");
    assert_eq!(seen.len(), 1);
    assert!(damage.expect("damage").contains("gzip"));
}

#[test]
fn every_cut_gives_what_lies_before_it() {
    let classic = pcap(false, 0xa1b2_3c4d, 1, &[(1, 0, &[1; 9]), (2, 0, &[2; 30]), (3, 0, &[3])]);
    for whole in [classic, pcapng(false)] {
        let (all, _) = read_all(&whole).expect("a capture");
        for cut in 1..whole.len() {
            match read_all(&whole[..cut]) {
                Ok((seen, damage)) => {
                    assert_eq!(seen, all[..seen.len()]);
                    // Between two records nothing shows that the file once was longer.
                    assert!(damage.is_some() || seen.len() < all.len());
                }
                Err(SourceError::BadFile { .. }) => assert!(cut < 24),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn a_record_that_claims_too_much_is_damage() {
    let mut file = pcap(false, 0xa1b2_c3d4, 1, &[(1, 0, &[1])]);
    file.extend([0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0]);
    let (seen, damage) = read_all(&file).expect("a pcap");
    assert_eq!(seen.len(), 1);
    assert!(damage.expect("damage").contains("claims 2147483647 bytes"));
}

#[test]
fn what_is_no_capture_is_called_by_its_name() {
    let reason = |content: &[u8]| match read_all(content) {
        Err(SourceError::BadFile { reason, .. }) => reason,
        other => panic!("taken for a capture: {other:?}"),
    };
    assert!(reason(b"").contains("empty"));
    assert!(reason(b"hello, this is a text file, not a capture\n").contains("text"));
    assert!(
        reason(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0\x01\0\0\0").contains("program")
    );
    assert!(reason(b"PK\x03\x04\x14\0\0\0\x08\0zzzzzzzzzzzzzzzzzzzz").contains("zip"));
    assert!(reason(&[0xd4, 0xc3, 0xb2, 0xa1, 2, 0]).contains("24 bytes"));
}

/// Gives so many bytes, then the disk fails.
struct FailingDisk {
    content: io::Cursor<Vec<u8>>,
}

impl Read for FailingDisk {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.content.read(buffer)? {
            0 => Err(io::Error::from_raw_os_error(libc::EIO)),
            read => Ok(read),
        }
    }
}

#[test]
fn frames_read_before_a_failure_of_the_disk_are_used() {
    let mut content = 0xa1b2_3c4d_u32.to_le_bytes().to_vec();
    content.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0]);
    for _ in 0..3 {
        content.extend([1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0xaa, 0xbb, 0xcc, 0xdd]);
    }
    // In the midst of the third.
    content.truncate(content.len() - 2);
    let consumed = Arc::new(AtomicU64::new(0));
    let disk = FailingDisk { content: io::Cursor::new(content) };
    let input = Counted { inner: Box::new(disk), count: Arc::clone(&consumed) };
    let naming = Box::new(|_: &str| IfaceId(0));
    let path = Path::new("failing.pcap");
    let mut source = FileSource::read(input, consumed, "failing.pcap", path, naming);
    let source = source.as_mut().expect("its header can be read");
    let mut frames = 0;
    let received = source.receive(&mut |batch| frames = batch.len());
    assert!(matches!(received, Ok(Received::Frames(2))), "{received:?}");
    assert_eq!((frames, source.counters().expect("counted").bytes), (2, 8));
    let ended = source.receive(&mut |_| panic!("there is no frame left"));
    assert!(matches!(ended, Err(SourceError::Io { .. })), "{ended:?}");
    assert!(matches!(source.receive(&mut |_| ()), Ok(Received::End)), "the error is told once");
}
