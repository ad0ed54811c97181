//! The files of packets and sessions, against what the ledger says about them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use capture_store::Store;
use capture_store::ledger::{FileProblem, Head, SealedFile, Vouched, check_files, check_tail};

use super::walk::Walk;
use super::{Findings, Kind, OpenFile, Report};
use crate::progress::Bytes;

/// What there is and what was found out about it.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Files on the disk by their path within the store; `None` for the size of what is no file.
    there: BTreeMap<String, Option<u64>>,
    /// Sealed files that are as they should be, by path.
    whole: BTreeMap<String, u64>,
    /// What is wrong with others.
    wrong: BTreeMap<String, FileProblem>,
    /// What is wrong with open files of the session log.
    tails: BTreeMap<String, FileProblem>,
    set_aside: bool,
}

impl Files {
    /// Lists what is there.
    pub(super) fn look(store: &Store) -> io::Result<Self> {
        let mut files = Self::default();
        files.list(store)?;
        Ok(files)
    }

    fn list(&mut self, store: &Store) -> io::Result<()> {
        self.there.clear();
        let root = store.layout().root();
        for dir in [store.layout().pcap(), store.layout().sessions()] {
            walk_dir(root, &dir, 0, &mut self.there)?;
        }
        Ok(())
    }

    /// Checks every file that the ledger says is there, all cores at it.
    pub(super) fn check(&mut self, store: &Store, vouched: &Vouched) {
        // What is wrong stays wrong; what is missing may have been removed by the sensor.
        let is_due = |file: &&SealedFile| {
            let wrong = self.wrong.get(&file.path);
            !self.whole.contains_key(&file.path)
                && wrong.is_none_or(|problem| *problem == FileProblem::Missing)
        };
        // One whose removal was cut short by a kill may still be there.
        let is_there = |file: &&SealedFile| {
            !vouched.is_retired(&file.path) || self.there.contains_key(&file.path)
        };
        let due: Vec<&SealedFile> = vouched.sealed().filter(is_there).filter(is_due).collect();
        let progress = Bytes::new("verifying files", due.iter().map(|file| file.bytes).sum());
        let outcomes = check_files(store, &due, |bytes| progress.advance(bytes));
        progress.done();
        for (file, outcome) in outcomes {
            match outcome {
                Ok(()) => {
                    self.wrong.remove(&file.path);
                    self.whole.insert(file.path.clone(), file.bytes);
                }
                Err(problem) => {
                    self.wrong.insert(file.path.clone(), problem);
                }
            }
        }
    }

    /// Checks the open files of the session log, as far as the newest line vouches for them.
    pub(super) fn check_tails(&mut self, store: &Store, vouched: &Vouched, in_use: bool) {
        self.tails.clear();
        for tail in vouched.tails() {
            let Err(problem) = check_tail(store.layout().root(), tail) else { continue };
            // Sealed since, which the next line of a running sensor says.
            if problem == FileProblem::Missing && (in_use || vouched.is_sealed(tail)) {
                continue;
            }
            self.tails.insert(tail.path.clone(), problem);
        }
    }

    /// Whether a line that a running sensor is about to write could explain something.
    pub(super) fn is_unsettled(&self, walk: &Walk<'_>) -> bool {
        let missing = self.wrong.iter().any(|(path, problem)| {
            *problem == FileProblem::Missing && !walk.vouched.is_retired(path)
        });
        let unknown = self.there.keys().any(|path| {
            is_sealed(path, &self.there) && {
                walk.vouched.get(path).is_none() || walk.vouched.is_retired(path)
            }
        });
        missing || unknown
    }

    /// Looks again at what the ledger has said since.
    pub(super) fn settle(&mut self, store: &Store, vouched: &Vouched) {
        // What is gone now and was not retired shows as missing below.
        let _ = self.list(store);
        self.wrong.retain(|path, problem| !is_gone(path, problem, vouched));
        self.check(store, vouched);
    }

    /// What is wrong, and what is open.
    pub(super) fn conclude(
        mut self,
        vouched: &Vouched,
        head: Option<&Head>,
        report: &mut Report,
        findings: &mut Findings,
    ) {
        self.wrong.retain(|path, problem| !is_gone(path, problem, vouched));
        for path in vouched.altered() {
            let what = "the sensor found that it was not what it had written, before it was sealed";
            findings.add(Kind::FileChanged, path, what);
        }
        for (path, problem) in &self.tails {
            let kind = match problem {
                FileProblem::Missing => Kind::FileMissing,
                _ => Kind::FileChanged,
            };
            findings.add(kind, path, format!("it was open and is not what was in it: {problem}"));
        }
        for path in vouched.sealed_again() {
            let what = "it was sealed again with another content: a changed file was put where a \
                        recovery takes it for an unsealed one";
            findings.add(Kind::FileChanged, path, what);
        }
        for (path, problem) in &self.wrong {
            let kind = match problem {
                FileProblem::Missing => Kind::FileMissing,
                FileProblem::Unknown => Kind::FileUnknown,
                FileProblem::NotHashed | FileProblem::Unreadable(_) | FileProblem::BadPath => {
                    Kind::FileUnchecked
                }
                _ => Kind::FileChanged,
            };
            findings.add(kind, path, problem.to_string());
        }
        report.retired = vouched.retired();
        report.files = self.whole.len() as u64;
        report.bytes = self.whole.values().fold(0, |sum, bytes| sum.saturating_add(*bytes));
        let standing = Standing::of(vouched, head, report.in_use, self.set_aside);
        for (path, bytes) in &self.there {
            if vouched.get(path).is_some() {
                if vouched.is_retired(path) && self.whole.contains_key(path) && !report.in_use {
                    report.declared.push(format!(
                        "{path} is still there: it was to be removed to keep a budget"
                    ));
                }
                continue;
            }
            let Some(bytes) = *bytes else {
                findings.add(Kind::FileUnknown, path, FileProblem::NotAFile.to_string());
                continue;
            };
            match standing.weigh(path, vouched) {
                Ok(()) => report.open.push(OpenFile { path: path.clone(), bytes }),
                Err((kind, what)) => findings.add(kind, path, what),
            }
        }
    }

    /// Whether recoveries set files aside.
    pub(super) fn allow_set_aside(&mut self, allowed: bool) {
        self.set_aside = allowed;
    }
}

/// Which files that no line knows can be there all the same.
struct Standing<'a> {
    /// The run whose files may be open: it goes on, or was killed.
    run: Option<&'a str>,
    /// By directory of a worker, the highest number that a line knows.
    sealed: BTreeMap<&'a str, &'a str>,
    set_aside: bool,
}

impl<'a> Standing<'a> {
    fn of(vouched: &'a Vouched, head: Option<&'a Head>, in_use: bool, set_aside: bool) -> Self {
        let run = head.filter(|head| in_use || !head.clean).map(|head| head.run.as_str());
        let mut sealed = BTreeMap::new();
        for path in vouched.paths() {
            if let Some((dir, name)) = path.rsplit_once('/') {
                let stem = name.split('.').next().unwrap_or_default();
                let highest = sealed.entry(dir).or_insert(stem);
                // Numbers have leading zeros: they sort as text.
                *highest = (*highest).max(stem);
            }
        }
        Self { run, sealed, set_aside }
    }

    fn weigh(&self, path: &str, vouched: &Vouched) -> Result<(), (Kind, &'static str)> {
        const UNKNOWN: &str = "no line of the ledger knows it";
        if vouched.is_retired(path) {
            return Err((Kind::FileUnknown, "the ledger says that it was removed"));
        }
        let (dir, name) = path.rsplit_once('/').unwrap_or_default();
        let stem = name.split('.').next().unwrap_or_default();
        if name.ends_with(".damaged") && self.set_aside {
            return Ok(());
        }
        let Some(run) = self.run else {
            return Err(if is_open(path) {
                (Kind::LeftOpen, "it is open although the last run ended in order")
            } else {
                (Kind::FileUnknown, UNKNOWN)
            });
        };
        let plausible = if dir.starts_with("pcap/") {
            let newer = self.sealed.get(dir).is_none_or(|highest| stem > *highest);
            newer && stem.len() == 20 && stem.bytes().all(|c| c.is_ascii_digit())
        } else {
            stem.strip_prefix(run).is_some_and(|rest| rest.starts_with('-'))
        };
        if plausible {
            return Ok(());
        }
        Err(if is_open(path) {
            (Kind::LeftOpen, "it is open, but not of the last run")
        } else {
            (Kind::FileUnknown, UNKNOWN)
        })
    }
}

/// Whether a file is missing because the sensor has removed it.
fn is_gone(path: &str, problem: &FileProblem, vouched: &Vouched) -> bool {
    *problem == FileProblem::Missing && vouched.is_retired(path)
}

/// Whether a name is one of a file that is still being written.
fn is_open(path: &str) -> bool {
    [".idx.open", ".arrows", ".tmp"].iter().any(|end| path.ends_with(end))
}

/// Whether a file is one that was sealed: a journal beside a segment says that it was not.
fn is_sealed(path: &str, there: &BTreeMap<String, Option<u64>>) -> bool {
    match path.strip_suffix(".pcap").or_else(|| path.strip_suffix(".idx")) {
        Some(stem) => !there.contains_key(&format!("{stem}.idx.open")),
        None => path.ends_with(".parquet"),
    }
}

/// Every file below a directory; the store's are three directories deep at most.
fn walk_dir(
    root: &Path,
    dir: &Path,
    depth: u32,
    there: &mut BTreeMap<String, Option<u64>>,
) -> io::Result<()> {
    const DEEPEST: u32 = 8;
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() && depth < DEEPEST => {
                walk_dir(root, &path, depth + 1, there)?;
            }
            Ok(metadata) => {
                there.insert(relative, metadata.is_file().then_some(metadata.len()));
            }
            // Sealed or removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_with_a_journal_is_not_sealed() {
        let mut there = BTreeMap::new();
        there.insert("pcap/w00/1.pcap".to_owned(), Some(1));
        assert!(is_sealed("pcap/w00/1.pcap", &there));
        there.insert("pcap/w00/1.idx.open".to_owned(), Some(1));
        assert!(!is_sealed("pcap/w00/1.pcap", &there));
        assert!(is_sealed("sessions/a/b.parquet", &there));
        assert!(!is_sealed("sessions/live/b.arrows", &there));
    }

    #[test]
    fn only_files_of_a_run_that_goes_on_or_was_killed_may_be_open() {
        let sealed = BTreeMap::from([("pcap/w00", "00000000000000000003")]);
        let vouched = Vouched::default();
        let alive = Standing { run: Some("R-1"), sealed, set_aside: false };
        for fine in [
            "pcap/w00/00000000000000000004.pcap",
            "pcap/w00/00000000000000000004.idx.open",
            "pcap/w01/00000000000000000001.pcap",
            "sessions/live/R-1-000002.arrows",
        ] {
            assert_eq!(alive.weigh(fine, &vouched), Ok(()), "{fine}");
        }
        for (wrong, kind) in [
            ("pcap/w00/00000000000000000002.pcap", Kind::FileUnknown),
            ("pcap/w00/00000000000000000002.idx.open", Kind::LeftOpen),
            ("pcap/w00/notes.txt", Kind::FileUnknown),
            ("sessions/live/R-10-000002.arrows", Kind::LeftOpen),
            ("sessions/live/x.damaged", Kind::FileUnknown),
        ] {
            assert_eq!(alive.weigh(wrong, &vouched).unwrap_err().0, kind, "{wrong}");
        }
    }
}
