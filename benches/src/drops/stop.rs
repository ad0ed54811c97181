//! Being asked to stop, and having a thread come back from a long call into the kernel.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};

static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();
static WOKEN: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on SIGINT and SIGTERM ask to stop; the measurement under way is taken down in order.
pub(crate) fn listen() -> Result<()> {
    let flag = ASKED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(flag)).context("waiting for signals")?;
    }
    Ok(())
}

/// Whether the bench was asked to stop.
pub(crate) fn asked() -> bool {
    ASKED.get().is_some_and(|flag| flag.load(Ordering::SeqCst))
}

/// From now on [`wake`] interrupts a thread's call into the kernel instead of ending the process.
pub(super) fn wake_by_signal() -> Result<()> {
    if WOKEN.get().is_none() {
        let flag = WOKEN.get_or_init(Arc::default);
        signal_hook::flag::register(SIGUSR1, Arc::clone(flag)).context("waiting for signals")?;
    }
    Ok(())
}

/// Interrupts what a thread of this process does in the kernel. A thread that is gone, or not
/// there yet (number 0), is left alone.
pub(super) fn wake(thread: i32) {
    if thread <= 0 {
        return;
    }
    // SAFETY: takes three numbers. The signal only sets a flag (`wake_by_signal`), whichever
    // thread of this process gets it.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, SIGUSR1) };
    // The only way to fail is that the thread has ended, which is what was wanted.
    debug_assert!(result == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH));
}
