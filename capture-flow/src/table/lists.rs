//! Lists of sessions, linked through their places.

use super::session::{Links, NONE, Place};

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

    pub(super) fn push_back(&mut self, places: &mut [Place], slot: u32) {
        *T::links(&mut places[slot as usize]) = Links { prev: self.tail, next: NONE };
        if self.tail == NONE {
            self.head = slot;
        } else {
            T::links(&mut places[self.tail as usize]).next = slot;
        }
        self.tail = slot;
    }

    pub(super) fn remove(&mut self, places: &mut [Place], slot: u32) {
        let Links { prev, next } = std::mem::take(T::links(&mut places[slot as usize]));
        if prev == NONE {
            self.head = next;
        } else {
            T::links(&mut places[prev as usize]).next = next;
        }
        if next == NONE {
            self.tail = prev;
        } else {
            T::links(&mut places[next as usize]).prev = prev;
        }
    }

    pub(super) fn move_to_back(&mut self, places: &mut [Place], slot: u32) {
        if self.tail != slot {
            self.remove(places, slot);
            self.push_back(places, slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_keeps_its_order() {
        let mut places = [Place::default(); 4];
        let mut list = List::<ByLimit>::default();
        for slot in 0..4 {
            list.push_back(&mut places, slot);
        }
        list.remove(&mut places, 2);
        list.move_to_back(&mut places, 0);
        let mut order = Vec::new();
        while let Some(slot) = list.head() {
            order.push(slot);
            list.remove(&mut places, slot);
        }
        assert_eq!(order, [1, 3, 0]);
    }
}
