//! The arrival time of each frame, in the metadata area directly in front of it.

use core::ptr;

use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_ktime_get_tai_ns, bpf_xdp_adjust_meta};
use aya_ebpf::programs::XdpContext;
use capture_common::{FrameStamp, StampClock};

/// Which clock to read ([`capture_common::STAMP_CLOCK`]).
#[unsafe(no_mangle)]
static STAMP_CLOCK: u32 = StampClock::Monotonic as u32;

/// Puts the stamp in front of the frame. `false` where the driver has no metadata area: the frame
/// stays as it was.
#[inline(always)]
pub(crate) fn write(ctx: &XdpContext, rx_queue: u32) -> bool {
    // The helper moves the start of the metadata area or refuses.
    // SAFETY: the context is the one the kernel called us with, and of the frame's bounds, which
    // the helper invalidates, nothing is kept across the call.
    if unsafe { bpf_xdp_adjust_meta(ctx.ctx, -(FrameStamp::LEN as i32)) } != 0 {
        return false;
    }
    let start = ctx.metadata();
    if start + FrameStamp::LEN > ctx.metadata_end() {
        // Cannot happen after the call above; the verifier wants the question asked.
        return false;
    }
    let stamp = FrameStamp { arrival_ns: now(), magic: FrameStamp::MAGIC, rx_queue };
    // SAFETY: [start, start + LEN) lies in the metadata area, by the check above, and belongs to
    // this run of the program alone. Drivers align frames as they like, hence unaligned.
    unsafe { ptr::write_unaligned(start as *mut FrameStamp, stamp) };
    true
}

#[inline(always)]
fn now() -> u64 {
    // Volatile because the loader rewrites the value in the object, behind the compiler's back. The
    // verifier knows the value and leaves the other branch out, so that a kernel without the helper
    // still takes the program.
    // SAFETY: a plain read of a static, which nobody writes while the program runs.
    let clock = unsafe { ptr::read_volatile(&raw const STAMP_CLOCK) };
    if clock == StampClock::Tai as u32 {
        // SAFETY: takes nothing, reads a clock (kernel 6.1).
        unsafe { bpf_ktime_get_tai_ns() }
    } else {
        // SAFETY: takes nothing, reads a clock (kernel 4.1).
        unsafe { bpf_ktime_get_ns() }
    }
}
