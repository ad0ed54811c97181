//! One sensor writes to a store at a time.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::layout::{FILE_MODE, LOCK_FILE};
use crate::time::{now, to_rfc3339};

use super::error::OpenError;

/// Takes the lock of the store that is at `path`, not of one that was removed meanwhile.
pub(super) fn take_lock(path: &Path) -> Result<File, OpenError> {
    const TRIES: usize = 16;
    let file = path.join(LOCK_FILE);
    let mut lock = try_lock(path, &file)?;
    for _ in 0..TRIES {
        let held = lock.metadata().map_err(|error| OpenError::io("look at", &file, error))?;
        if std::fs::metadata(&file).is_ok_and(|there| there.ino() == held.ino()) {
            break;
        }
        lock = try_lock(path, &file)?;
    }
    Ok(lock)
}

fn try_lock(path: &Path, file: &Path) -> Result<File, OpenError> {
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(file)
        .map_err(|error| OpenError::io("open", file, error))?;
    match lock_soon(&lock) {
        Ok(()) => {}
        Err(error) if error == rustix::io::Errno::WOULDBLOCK => {
            let mut holder = String::new();
            // Not knowing who it is does not change the answer.
            let _ = (&lock).take(256).read_to_string(&mut holder);
            let holder = holder.trim();
            let holder = if holder.is_empty() { "unknown process" } else { holder };
            return Err(OpenError::InUse { path: path.to_owned(), holder: holder.to_owned() });
        }
        Err(error) => return Err(OpenError::io("lock", file, error.into())),
    }
    let holder = format!("pid {}, since {}\n", std::process::id(), to_rfc3339(now()));
    lock.set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| lock.write_all(holder.as_bytes()))
        .map_err(|error| OpenError::io("write", file, error))?;
    Ok(lock)
}

/// Takes the lock, if need be after the moment for which a reader looked at it.
fn lock_soon(lock: &File) -> rustix::io::Result<()> {
    const TRIES: u32 = 10;
    for _ in 1..TRIES {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            other => return other,
        }
    }
    flock(lock, FlockOperation::NonBlockingLockExclusive)
}
