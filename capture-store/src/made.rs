//! What opening a store made, to be taken away again if nothing comes of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::layout::{self, Layout, SENSOR_FILE};

/// What an opening has made so far.
#[derive(Debug, Default)]
pub(crate) struct Made {
    /// Directories that were not there before, the innermost first.
    dirs: Vec<PathBuf>,
    /// Files at the top of the store that are this opening's. It has the lock if there is one.
    files: Vec<&'static str>,
}

impl Made {
    /// To be asked before anything is made at `path`.
    pub(crate) fn before(path: &Path) -> Self {
        let is_missing = |dir: &&Path| {
            let found = dir.symlink_metadata();
            found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        let dirs = path.ancestors().filter(|dir| !dir.as_os_str().is_empty());
        Self { dirs: dirs.take_while(is_missing).map(Path::to_owned).collect(), files: Vec::new() }
    }

    /// A file at the top of the store is made next, or is this opening's from now on.
    pub(crate) fn file(&mut self, name: &'static str) {
        self.files.push(name);
    }

    /// Removes what was made, unless it holds anything. What cannot be removed stays: it harms
    /// nobody.
    pub(crate) fn undo(&self, path: &Path) {
        let is_new = self.files.contains(&SENSOR_FILE) || !self.dirs.is_empty();
        if !is_new {
            return;
        }
        if !self.files.is_empty() {
            if !self.is_all(path, true) {
                return;
            }
            for name in &self.files {
                let _ = layout::remove_if_there(&path.join(name));
            }
            Layout::new(path).trees().iter().for_each(|dir| remove_empty(dir));
        }
        for dir in &self.dirs {
            let _ = fs::remove_dir(dir);
        }
    }

    /// Whether there is no file below a directory but those that were made at the `top`.
    fn is_all(&self, dir: &Path, top: bool) -> bool {
        let Ok(mut entries) = fs::read_dir(dir) else { return false };
        entries.all(|entry| {
            let Ok(entry) = entry else { return false };
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => self.is_all(&entry.path(), false),
                Ok(_) => top && self.files.iter().any(|name| entry.file_name() == *name),
                Err(_) => false,
            }
        })
    }
}

/// Removes a directory with those in it, as far as there is nothing else.
fn remove_empty(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}
