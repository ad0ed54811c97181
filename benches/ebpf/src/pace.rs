//! Waiting for a frame's moment.
//!
//! In the program, since each call of `BPF_PROG_TEST_RUN` takes the kernel some 25 ms to prepare:
//! many short runs would be no pace at all.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use bench_common::{FRACTION_BITS, Maker, PATIENT_LOOKS};

/// Without a pace, the clock is looked at once in so many frames.
const SELDOM: u64 = 64;

/// Waits until the next frame is due, and notes the time. `false` if it is not due yet after all
/// the looks at the clock that one run of the program may take, or if no more frame is wanted.
#[inline(always)]
pub(crate) fn wait(maker: &mut Maker) -> bool {
    if maker.made.frames >= maker.pace.goal {
        return false;
    }
    let flood = maker.pace.interval == 0;
    if flood && maker.made.first_ns != 0 && !maker.made.frames.is_multiple_of(SELDOM) {
        return true;
    }
    let mut now = clock();
    if maker.made.first_ns == 0 {
        maker.made.first_ns = now;
        maker.pace.start_ns = now;
    }
    if !flood {
        let due = maker.pace.start_ns + (maker.pace.due >> FRACTION_BITS);
        let begun = now;
        // The verifier walks through all of it: so many looks are what it takes (a loop by the
        // kernel's helper would need debugging information in the object).
        for _ in 0..PATIENT_LOOKS {
            if now >= due {
                break;
            }
            now = clock();
        }
        maker.made.waited_ns += now - begun;
        if now < due {
            return false;
        }
        let late = now - due;
        if late > maker.pace.patience_ns {
            maker.made.forgiven_ns += late;
            maker.pace.start_ns += late;
        }
        maker.pace.due += maker.pace.interval;
    }
    maker.made.last_ns = now;
    true
}

#[inline(always)]
fn clock() -> u64 {
    // SAFETY: takes nothing, reads a clock (kernel 4.1).
    unsafe { bpf_ktime_get_ns() }
}
