//! The maps that the program shares with user space. Their sizes here are placeholders: the
//! loader sets them to the interface's number of queues.

use core::ptr;

use aya_ebpf::macros::map;
use aya_ebpf::maps::{PerCpuArray, XskMap};
use capture_common::QueueCounters;

/// One AF_XDP socket per receive queue ([`capture_common::SOCKETS`]).
#[map]
pub(crate) static SOCKETS: XskMap = XskMap::with_max_entries(1, 0);

/// What happened to the frames of each queue ([`capture_common::COUNTERS`]).
#[map]
static COUNTERS: PerCpuArray<QueueCounters> = PerCpuArray::with_max_entries(2, 0);

/// The queues known at load time ([`capture_common::QUEUES`]).
#[unsafe(no_mangle)]
static QUEUES: u32 = 1;

/// The counters of a queue on this CPU. A queue that was added after loading shares the last
/// place with all its like: its frames are counted, though not by queue.
#[inline(always)]
pub(crate) fn counters(queue: u32) -> Option<&'static mut QueueCounters> {
    // SAFETY: a plain read of a static. Volatile because the loader rewrites the value in the
    // object, behind the compiler's back.
    let known = unsafe { ptr::read_volatile(&raw const QUEUES) };
    let place = COUNTERS.get_ptr_mut(queue.min(known))?;
    // SAFETY: a live map value, aligned to eight bytes by the kernel. The place is this CPU's
    // own, and an XDP program is not interrupted by another run of itself on its CPU.
    Some(unsafe { &mut *place })
}
