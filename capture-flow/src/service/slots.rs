//! A fixed number of buffers for messages that arrive in pieces.

use super::BUDGET;

/// A session's claim to a slot. It lapses when the slot is taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ticket {
    /// 0 is no claim.
    number: u32,
}

/// The pieces of one session.
#[derive(Debug, Default)]
pub(super) struct Slot {
    owner: Ticket,
    sides: [Vec<u8>; 2],
    /// QUIC: the connection ID that the keys come from.
    pub(super) connection_id: Vec<u8>,
    /// QUIC: which parts of the first side have arrived, as (begin, end).
    pub(super) arrived: Vec<(u16, u16)>,
}

impl Slot {
    pub(super) fn bytes(&self, side: usize) -> &[u8] {
        self.sides.get(side).map_or(&[], Vec::as_slice)
    }

    /// Appends, up to the budget.
    pub(super) fn append(&mut self, side: usize, bytes: &[u8]) {
        if let Some(buffer) = self.sides.get_mut(side) {
            let room = BUDGET.saturating_sub(buffer.len());
            buffer.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        }
    }

    /// The first side's buffer, to be filled in any order.
    pub(super) fn buffer_mut(&mut self) -> &mut Vec<u8> {
        &mut self.sides[0]
    }

    /// Swaps what the sides have sent.
    pub(super) fn turn(&mut self) {
        self.sides.swap(0, 1);
    }

    fn clear(&mut self, owner: Ticket) {
        self.owner = owner;
        self.sides.iter_mut().for_each(Vec::clear);
        self.connection_id.clear();
        self.arrived.clear();
    }
}

/// The slots of one worker, handed out in turn.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    last: u32,
    limit: u32,
}

impl Slots {
    pub(super) fn new(limit: u32) -> Self {
        Self { slots: Vec::new(), last: 0, limit: limit.max(1) }
    }

    fn place(&self, ticket: Ticket) -> usize {
        (ticket.number % self.limit) as usize
    }

    pub(super) fn get(&self, ticket: Ticket) -> Option<&Slot> {
        self.slots.get(self.place(ticket)).filter(|slot| is_held(slot, ticket))
    }

    pub(super) fn get_mut(&mut self, ticket: Ticket) -> Option<&mut Slot> {
        let place = self.place(ticket);
        self.slots.get_mut(place).filter(|slot| is_held(slot, ticket))
    }

    /// Keeps bytes in the session's slot, or in the next one.
    pub(super) fn keep(&mut self, ticket: Ticket, side: usize, bytes: &[u8]) -> Ticket {
        let ticket = self.claim(ticket);
        if let Some(slot) = self.get_mut(ticket) {
            slot.append(side, bytes);
        }
        ticket
    }

    /// The session's slot, or the next one: it takes over from the oldest claim.
    pub(super) fn claim(&mut self, ticket: Ticket) -> Ticket {
        if self.get(ticket).is_some() {
            return ticket;
        }
        self.last = self.last.wrapping_add(1).max(1);
        let ticket = Ticket { number: self.last };
        let place = self.place(ticket);
        if place >= self.slots.len() {
            self.slots.resize_with(place + 1, Slot::default);
        }
        if let Some(slot) = self.slots.get_mut(place) {
            slot.clear(ticket);
        }
        ticket
    }

    /// Gives the slot back; its memory stays for the next claim.
    pub(super) fn release(&mut self, ticket: Ticket) {
        if let Some(slot) = self.get_mut(ticket) {
            slot.clear(Ticket::default());
        }
    }
}

fn is_held(slot: &Slot, ticket: Ticket) -> bool {
    ticket.number != 0 && slot.owner == ticket
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_claim_lapses() {
        let mut slots = Slots::new(2);
        let first = slots.keep(Ticket::default(), 0, b"first");
        let second = slots.keep(Ticket::default(), 1, b"second");
        assert_eq!(slots.get(first).unwrap().bytes(0), b"first");
        let third = slots.keep(Ticket::default(), 0, b"third");
        assert!(slots.get(first).is_none());
        assert_eq!(slots.get(second).unwrap().bytes(1), b"second");
        assert_eq!(slots.get(third).unwrap().bytes(0), b"third");
        slots.release(third);
        assert!(slots.get(third).is_none());
        assert!(slots.get(Ticket::default()).is_none());
    }

    #[test]
    fn a_slot_holds_no_more_than_the_budget() {
        let mut slots = Slots::new(1);
        let ticket = slots.keep(Ticket::default(), 0, &[0; BUDGET - 1]);
        slots.keep(ticket, 0, &[0; 100]);
        assert_eq!(slots.get(ticket).unwrap().bytes(0).len(), BUDGET);
    }
}
