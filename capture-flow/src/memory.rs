//! What the session table would like of the machine's memory.
//!
//! Millions of sessions lie in memory that no cache holds, so a frame's time is mostly that of
//! waiting for its session. Wishes shorten it, and none can be told the machine in safe Rust: the
//! engine knows how, the table only says what.

/// How memory can be asked for things. Every wish may be ignored: nothing changes but the time.
pub trait Memory {
    /// `place` will be read and written soon: its cache lines should be on their way.
    fn fetch<T>(place: &T);

    /// These bytes are a table for as long as the process lives, and are read in no order: large
    /// pages would spare the machine most of its way to them. Nothing reads `start`'s content.
    fn settle(start: *const u8, bytes: usize);

    /// These bytes will all be written some day, and whoever writes them then shall not have to
    /// wait for them to be there. Nothing reads `start`'s content, and nothing changes it.
    fn populate(start: *const u8, bytes: usize);
}

/// Memory that cannot be asked for anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnyMemory;

impl Memory for AnyMemory {
    #[inline]
    fn fetch<T>(_: &T) {}

    fn settle(_: *const u8, _: usize) {}

    fn populate(_: *const u8, _: usize) {}
}
