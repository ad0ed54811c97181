//! Counting capture files, at the end or while they are being written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use stillwire_tests::outside;

use crate::drops::usage;

/// What was counted of one program's files.
#[derive(Debug, Default)]
pub(crate) struct Harvest {
    frames: u64,
    /// Files that were counted and are still there.
    counted: BTreeSet<PathBuf>,
    /// Files may be removed once they are counted.
    removes: bool,
    /// Any file was counted.
    any: bool,
}

impl Harvest {
    /// Nothing counted yet. `removes`: files go once they are counted, to make room; not those of a
    /// program that keeps house itself.
    pub(super) fn new(removes: bool) -> Self {
        Self { removes, ..Self::default() }
    }

    /// Frames counted so far.
    pub(crate) fn frames(&self) -> u64 {
        self.frames
    }

    /// Counts what the processes have finished.
    pub(crate) fn take(&mut self, dir: &Path, processes: &[u32]) -> Result<()> {
        let open = usage::open_files(processes);
        let finished: Vec<PathBuf> = self
            .uncounted(dir)?
            .into_iter()
            // One that was opened after the list was made may just be a new one.
            .filter(|path| !open.contains(path) && !usage::open_files(processes).contains(path))
            .collect();
        self.count(finished)
    }

    /// Counts the rest, once nobody writes any more. `None` if there was never anything to count.
    pub(super) fn finish(&mut self, dir: &Path) -> Result<Option<u64>> {
        self.count(self.uncounted(dir)?)?;
        if !self.removes {
            ensure_whole(&self.counted)?;
        }
        Ok(self.any.then_some(self.frames))
    }

    fn uncounted(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        let mut found = captures(dir)?;
        found.retain(|path| !self.counted.contains(path));
        Ok(found)
    }

    fn count(&mut self, files: Vec<PathBuf>) -> Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        self.frames += outside::frames_in(&files)?;
        self.any = true;
        for path in files {
            if self.removes {
                fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            } else {
                self.counted.insert(path);
            }
        }
        Ok(())
    }
}

/// The sensor numbers its segments: if one was retired before it was counted, its number is
/// missing. Other names say nothing.
fn ensure_whole(files: &BTreeSet<PathBuf>) -> Result<()> {
    let mut folders: BTreeMap<&Path, Vec<u64>> = BTreeMap::new();
    for path in files {
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        if let (Some(folder), Some(number)) = (path.parent(), number) {
            folders.entry(folder).or_default().push(number);
        }
    }
    for (folder, mut numbers) in folders {
        numbers.sort_unstable();
        for pair in numbers.windows(2) {
            let follows = pair.first().zip(pair.get(1)).is_some_and(|(a, b)| a + 1 == *b);
            ensure!(
                follows,
                "segments between {pair:?} in {} were gone before they could be counted: more room \
                 (--dir), or a lower rate",
                folder.display()
            );
        }
    }
    Ok(())
}

/// Files that begin as capture files do, whatever they are called.
fn captures(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(captures(&path)?);
        } else if is_capture(&path).with_context(|| format!("reading {}", path.display()))? {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn is_capture(path: &Path) -> io::Result<bool> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        // Its owner has renamed or removed it meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        // A socket, say.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut magic = Vec::new();
    file.take(4).read_to_end(&mut magic)?;
    // pcap in either byte order, with micro- and nanoseconds; pcapng.
    const MAGIC: [[u8; 4]; 5] = [
        [0xd4, 0xc3, 0xb2, 0xa1],
        [0xa1, 0xb2, 0xc3, 0xd4],
        [0x4d, 0x3c, 0xb2, 0xa1],
        [0xa1, 0xb2, 0x3c, 0x4d],
        [0x0a, 0x0d, 0x0d, 0x0a],
    ];
    Ok(MAGIC.iter().any(|known| magic == known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capture_files_are_known_by_their_first_bytes() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("below")).unwrap();
        fs::write(dir.path().join("b"), [0xd4, 0xc3, 0xb2, 0xa1, 2, 0]).unwrap();
        fs::write(dir.path().join("below/a.ng"), [0x0a, 0x0d, 0x0d, 0x0a]).unwrap();
        fs::write(dir.path().join("log.pcap"), "no capture").unwrap();
        fs::write(dir.path().join("empty"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("control")).unwrap();
        let found = captures(dir.path()).unwrap();
        let names: Vec<_> =
            found.iter().map(|path| path.strip_prefix(dir.path()).unwrap()).collect();
        assert_eq!(names, [Path::new("b"), Path::new("below/a.ng")]);
        assert!(!is_capture(&dir.path().join("gone")).unwrap());
    }

    #[test]
    fn a_segment_that_was_retired_uncounted_is_missed() {
        let files = |names: &[&str]| names.iter().map(PathBuf::from).collect();
        ensure_whole(&files(&["w00/0007.pcap", "w00/0008.pcap", "w01/0003.pcap"])).unwrap();
        ensure_whole(&files(&["capture.pcap", "other.pcap"])).unwrap();
        let error = ensure_whole(&files(&["w00/0007.pcap", "w00/0009.pcap"])).unwrap_err();
        assert!(error.to_string().contains("[7, 9]"), "{error}");
    }

    #[test]
    fn files_in_use_are_left_for_later() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.pcap");
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(&[0xd4, 0xc3, 0xb2, 0xa1]).unwrap();
        let open = usage::open_files(&[std::process::id()]);
        assert!(open.contains(&path), "{open:?}");
        drop(file);
        assert!(!usage::open_files(&[std::process::id()]).contains(&path));
    }
}
