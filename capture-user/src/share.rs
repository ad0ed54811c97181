//! One number says how much memory a sensor may take; here it is shared out.
//!
//! Half of it are sessions. A quarter are buffers that frames wait in, so that a burst which is faster
//! than a worker is not lost. The kernel has every page of them present and pinned before a queue is
//! received, also when an interface comes back, and a sensor that waits for memory is blind: that takes
//! a fraction of a second, and some where the machine is virtual and its host has to find the memory
//! first. The rest is for incomplete datagrams, for rows on their way to the log and for sealing.
//! Segments are files: the page cache holds them, beside this.

use crate::units::Bytes;

/// The least that a worker can do with.
pub const LEAST: u64 = 16 << 20;
/// What a worker gets at most unless more is asked for.
const USUAL_MOST: u64 = 2 << 30;
/// The part of the machine's memory that a sensor takes unless told otherwise: one in so many.
const USUAL_PART: u64 = 8;
/// The part of it that frames wait in: one in so many.
const BUFFERS: u64 = 4;
/// Slots of a receive ring.
pub const RING_SIZES: std::ops::RangeInclusive<u32> = 64..=1 << 20;
/// For one worker's incomplete datagrams.
const FRAGMENTS: std::ops::RangeInclusive<u64> = 1 << 20..=16 << 20;

/// What each gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Frames that can wait at each receive queue, a power of two.
    pub ring_size: u32,
    /// Bytes for the sessions of each worker.
    pub table: u64,
    /// Bytes for the incomplete datagrams of each worker.
    pub fragments: u64,
}

impl Shares {
    /// Shares `memory` out among so many workers that receive so many queues in all, with receive
    /// buffers of `frame_size` bytes.
    #[must_use]
    pub fn of(memory: u64, workers: usize, queues: usize, frame_size: u32) -> Self {
        let each = memory / (workers.max(1) as u64);
        let slots = memory / BUFFERS / (queues.max(1) as u64) / u64::from(frame_size.max(1));
        let slots = u32::try_from(slots).unwrap_or(u32::MAX);
        let slots = slots.clamp(*RING_SIZES.start(), *RING_SIZES.end());
        Self {
            // The largest power of two that fits.
            ring_size: 1 << slots.ilog2(),
            table: each / 2,
            fragments: (each / 64).clamp(*FRAGMENTS.start(), *FRAGMENTS.end()),
        }
    }
}

/// What a sensor with so many workers takes of a machine's memory unless told otherwise.
#[must_use]
pub fn usual(machine: u64, workers: usize) -> u64 {
    let workers = workers.max(1) as u64;
    (machine / USUAL_PART).clamp(LEAST * workers, USUAL_MOST.saturating_mul(workers))
}

/// The memory of this machine, or of the control group that the process is confined to.
#[must_use]
pub fn of_machine() -> u64 {
    let info = rustix::system::sysinfo();
    let machine = info.totalram.saturating_mul(u64::from(info.mem_unit));
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = group.and_then(|text| text.trim().parse::<u64>().ok());
    machine.min(limit.unwrap_or(u64::MAX))
}

/// Says what a sensor with these shares can hold.
#[must_use]
pub fn describe(memory: u64, shares: &Shares) -> String {
    let sessions = shares.table / capture_flow::table::SessionTable::bytes_per_session() as u64;
    format!(
        "memory {}: {} frames can wait at each queue, each worker holds {sessions} sessions",
        Bytes(memory),
        shares.ring_size,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_is_shared_among_workers_and_queues() {
        let one = Shares::of(2 * GIB, 1, 1, 2048);
        assert_eq!(one, Shares { ring_size: 1 << 18, table: GIB, fragments: 16 << 20 });
        let tap = Shares::of(2 * GIB, 2, 4, 2048);
        assert_eq!(tap, Shares { ring_size: 1 << 16, table: GIB / 2, fragments: 16 << 20 });
        assert_eq!(Shares::of(2 * GIB, 1, 1, 4096).ring_size, 1 << 17);
    }

    #[test]
    fn no_more_is_given_than_there_is() {
        for memory in [LEAST, LEAST + 1, 100 << 20, 3 * GIB, 100 * GIB] {
            for (workers, queues) in [(1, 1), (1, 2), (4, 4), (8, 16)] {
                let memory = memory * workers as u64;
                let shares = Shares::of(memory, workers, queues, 2048);
                let rings = u64::from(shares.ring_size) * 2048 * queues as u64;
                let tables = (shares.table + shares.fragments) * workers as u64;
                assert!(rings + tables <= memory, "{memory} {workers} {queues}: {shares:?}");
                assert!(shares.ring_size.is_power_of_two());
            }
        }
    }

    #[test]
    fn a_sensor_leaves_most_of_the_machine_to_others() {
        assert_eq!(usual(24 * GIB, 1), 2 * GIB);
        assert_eq!(usual(24 * GIB, 2), 3 * GIB);
        assert_eq!(usual(GIB, 1), GIB / 8);
        assert_eq!(usual(0, 3), 3 * LEAST);
        assert!(of_machine() > 0);
    }
}
