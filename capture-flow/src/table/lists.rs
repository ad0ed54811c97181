//! Lists of sessions, linked through their places.

use super::session::{Links, NONE, Near, Place};

/// Which of a session's links a list runs through.
pub(super) trait Through {
    fn links(place: &mut Place) -> &mut Links;
}

/// Sessions under one idle limit.
#[derive(Debug)]
pub(super) struct ByLimit;

impl Through for ByLimit {
    #[inline]
    fn links(place: &mut Place) -> &mut Links {
        &mut place.limit
    }
}

/// Sessions in the order of their last row.
#[derive(Debug)]
pub(super) struct ByRow;

impl Through for ByRow {
    #[inline]
    fn links(place: &mut Place) -> &mut Links {
        &mut place.interim
    }
}

/// A first-in first-out list.
#[derive(Debug)]
pub(super) struct List<T> {
    head: u32,
    tail: u32,
    through: std::marker::PhantomData<T>,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { head: NONE, tail: NONE, through: std::marker::PhantomData }
    }
}

impl<T: Through> List<T> {
    #[inline]
    pub(super) fn head(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    pub(super) fn push_back(&mut self, near: &mut [Near], slot: u32) {
        *T::links(&mut near[slot as usize].place) = Links { prev: self.tail, next: NONE };
        if self.tail == NONE {
            self.head = slot;
        } else {
            T::links(&mut near[self.tail as usize].place).next = slot;
        }
        self.tail = slot;
    }

    pub(super) fn remove(&mut self, near: &mut [Near], slot: u32) {
        let Links { prev, next } = std::mem::take(T::links(&mut near[slot as usize].place));
        if prev == NONE {
            self.head = next;
        } else {
            T::links(&mut near[prev as usize].place).next = next;
        }
        if next == NONE {
            self.tail = prev;
        } else {
            T::links(&mut near[next as usize].place).prev = prev;
        }
    }

    pub(super) fn move_to_back(&mut self, near: &mut [Near], slot: u32) {
        if self.tail != slot {
            self.remove(near, slot);
            self.push_back(near, slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_keeps_its_order() {
        let mut near: [Near; 4] = Default::default();
        let mut list = List::<ByLimit>::default();
        for slot in 0..4 {
            list.push_back(&mut near, slot);
        }
        list.remove(&mut near, 2);
        list.move_to_back(&mut near, 0);
        let mut order = Vec::new();
        while let Some(slot) = list.head() {
            order.push(slot);
            list.remove(&mut near, slot);
        }
        assert_eq!(order, [1, 3, 0]);
    }
}
