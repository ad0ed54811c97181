//! What the machine can do for memory that is read in no order: the session table's wishes
//! ([`capture_flow::memory`]) told to processor and kernel.

use std::ffi::c_void;

use capture_flow::memory::Memory;
use rustix::mm::Advice;
use tracing::debug;

/// Bytes of a cache line.
const LINE: usize = 64;
/// Bytes of a page.
const PAGE: usize = 4096;

/// This machine's memory.
#[derive(Clone, Copy, Debug)]
pub enum Machine {}

impl Memory for Machine {
    #[inline]
    fn fetch<T>(place: &T) {
        let start = std::ptr::from_ref(place).cast::<u8>();
        for at in (0..size_of::<T>()).step_by(LINE) {
            prefetch(start.wrapping_add(at));
        }
    }

    fn settle(start: *const u8, bytes: usize) {
        advise(start, bytes, Advice::LinuxHugepage);
    }

    /// From Linux 5.14 on; before, pages come as they are touched.
    fn populate(start: *const u8, bytes: usize) {
        advise(start, bytes, Advice::LinuxPopulateWrite);
    }
}

/// Tells the kernel something about the session table's memory.
fn advise(start: *const u8, bytes: usize, advice: Advice) {
    // Whole pages inside; where they begin and end is the kernel's business.
    let inside = start.align_offset(PAGE);
    let Some(len) = bytes.checked_sub(inside).map(|len| len & !(PAGE - 1)) else { return };
    let first = start.wrapping_add(inside).cast_mut().cast::<c_void>();
    // SAFETY: both kinds of advice that are given change no content and unmap nothing: of which
    // size pages should be, and that they should be present and writable, wherever that is. A range
    // that is not mapped is an error.
    if let Err(error) = unsafe { rustix::mm::madvise(first, len, advice) } {
        debug!("{advice:?} is refused for {len} bytes of the session table: {error}");
    }
}

/// Asks for the cache line of a byte that will be read soon, wherever it is.
#[inline]
pub fn prefetch(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that every x86-64 knows: it reads nothing into the program and never faults,
    // wherever it points.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_memory_can_be_settled() {
        let memory = vec![7_u8; 5 << 20];
        for (from, len) in [(0, memory.len()), (1, 4 << 20), (5, 100), (PAGE, 0)] {
            Machine::settle(memory[from..].as_ptr(), len);
            Machine::populate(memory[from..].as_ptr(), len);
        }
        Machine::fetch(&memory[PAGE]);
        assert!(memory.iter().all(|byte| *byte == 7), "nothing changed");
    }
}
