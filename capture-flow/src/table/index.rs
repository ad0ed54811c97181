//! The way from a hash to a session's slot.
//!
//! Buckets of one cache line hold ten 16-bit tags and ten 32-bit slot numbers. A slot that does
//! not fit its home bucket goes to the next one with room, and every bucket it passed counts it,
//! so that a lookup knows when to stop and a removal leaves nothing behind.

use crate::key::FlowHash;
use crate::memory::Memory;

/// Slots in a bucket: as many as a cache line holds.
const WIDTH: usize = 10;
/// Slots in a bucket on average when the table is full.
const TARGET_LOAD: usize = 7;

/// A tag that no hash has: the place is free.
const FREE: u16 = 0;

#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
struct Bucket {
    tags: [u16; WIDTH],
    /// Slots whose search passes this bucket; sticks at its largest value.
    passed: u32,
    slots: [u32; WIDTH],
}

impl Bucket {
    /// The place of the first tag that fits. All tags are compared at once: which place it is
    /// cannot be foretold, and a loop that ends anywhere costs more than what it compares.
    #[inline]
    fn first_with(&self, tag: u16) -> Option<usize> {
        let mut fits = 0_u32;
        for (place, other) in self.tags.iter().enumerate() {
            fits |= u32::from(*other == tag) << place;
        }
        (fits != 0).then(|| fits.trailing_zeros() as usize)
    }
}

/// Finds slots by hash. The caller compares the keys.
#[derive(Debug)]
pub(super) struct Index {
    buckets: Vec<Bucket>,
}

/// Bytes of the index for each session that the table can hold, rounded up.
pub(super) const BYTES_PER_SESSION: usize = size_of::<Bucket>().div_ceil(TARGET_LOAD);

impl Index {
    /// An empty index for `capacity` slots.
    pub(super) fn new<M: Memory>(capacity: usize) -> Self {
        let count = capacity.div_ceil(TARGET_LOAD).max(1);
        let mut buckets: Vec<Bucket> = Vec::with_capacity(count);
        // Before it is touched for the first time.
        M::settle(buckets.as_ptr().cast(), count.saturating_mul(size_of::<Bucket>()));
        buckets.resize(count, Bucket::default());
        Self { buckets }
    }

    #[inline]
    fn tag(hash: FlowHash) -> u16 {
        (hash.0 as u16).max(1)
    }

    /// The hash's upper half, scaled to the number of buckets.
    #[inline]
    fn home(&self, hash: FlowHash) -> usize {
        (((hash.0 >> 32) * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline]
    fn next(&self, at: usize) -> usize {
        if at + 1 == self.buckets.len() { 0 } else { at + 1 }
    }

    /// The cache line at which [`Self::find`] begins.
    #[inline]
    pub(super) fn home_of(&self, hash: FlowHash) -> &impl Sized {
        &self.buckets[self.home(hash)]
    }

    /// The first slot whose tag fits, without looking further: what a lookup will most likely
    /// end at.
    #[inline]
    pub(super) fn likely(&self, hash: FlowHash) -> Option<u32> {
        let bucket = &self.buckets[self.home(hash)];
        let place = bucket.first_with(Self::tag(hash))?;
        bucket.slots.get(place).copied()
    }

    /// The slot under `hash` that `is_it` recognises.
    #[inline]
    pub(super) fn find(&self, hash: FlowHash, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let tag = Self::tag(hash);
        let mut at = self.home(hash);
        for _ in 0..self.buckets.len() {
            let bucket = &self.buckets[at];
            for place in 0..WIDTH {
                if bucket.tags[place] == tag && is_it(bucket.slots[place]) {
                    return Some(bucket.slots[place]);
                }
            }
            if bucket.passed == 0 {
                return None;
            }
            at = self.next(at);
        }
        None
    }

    /// Adds a slot. There is always room: the buckets hold more than the table's capacity.
    pub(super) fn insert(&mut self, hash: FlowHash, slot: u32) {
        let tag = Self::tag(hash);
        let mut at = self.home(hash);
        for _ in 0..self.buckets.len() {
            let bucket = &mut self.buckets[at];
            if let Some(place) = bucket.tags.iter().position(|&tag| tag == FREE) {
                bucket.tags[place] = tag;
                bucket.slots[place] = slot;
                return;
            }
            bucket.passed = bucket.passed.saturating_add(1);
            at = self.next(at);
        }
        debug_assert!(false, "more slots than the index was made for");
    }

    /// Takes a slot out.
    pub(super) fn remove(&mut self, hash: FlowHash, slot: u32) {
        let tag = Self::tag(hash);
        let mut at = self.home(hash);
        for _ in 0..self.buckets.len() {
            let bucket = &mut self.buckets[at];
            let place =
                (0..WIDTH).find(|&place| bucket.tags[place] == tag && bucket.slots[place] == slot);
            if let Some(place) = place {
                bucket.tags[place] = FREE;
                return;
            }
            if bucket.passed != u32::MAX {
                bucket.passed = bucket.passed.saturating_sub(1);
            }
            at = self.next(at);
        }
        debug_assert!(false, "slot not in the index");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::AnyMemory;
    use proptest::prelude::*;

    proptest! {
        /// Any order of insertions and removals leaves exactly what was not removed, whatever
        /// the collisions.
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec((0_u64..4, 0_u32..64), 1..400)) {
            let mut index = Index::new::<AnyMemory>(64);
            let mut present = std::collections::BTreeMap::new();
            for (home, slot) in steps {
                // Few homes and few tags: buckets overflow.
                let hash = FlowHash(home << 62 | u64::from(slot % 3));
                if present.remove(&slot).is_some_and(|old| { index.remove(old, slot); true }) {
                    continue;
                }
                index.insert(hash, slot);
                present.insert(slot, hash);
            }
            for slot in 0..64 {
                for home in 0..4 {
                    let hash = FlowHash(home << 62 | u64::from(slot % 3));
                    // As a caller compares keys: of a slot under another hash the key is another.
                    let is_it = |other| other == slot && present.get(&other) == Some(&hash);
                    let found = index.find(hash, is_it);
                    let expected = (present.get(&slot) == Some(&hash)).then_some(slot);
                    prop_assert_eq!(found, expected);
                }
            }
            for (slot, hash) in &present {
                index.remove(*hash, *slot);
            }
            prop_assert!(index.buckets.iter().all(|bucket| bucket.passed == 0));
        }
    }
}
