//! What is known of a conversation of which workers saw halves.

use crate::key::Protocol;
use crate::record::{RowReason, SessionRecord, Uid};
use crate::sink::SessionUpdate;
use crate::time::{Nanos, NanosDelta};

use super::merge::{merge_directions, merge_in_turn};

/// How much later than a conversation seemed to be over a half may go on in answer to a frame of the
/// other that is in no row yet.
const ANSWER: NanosDelta = NanosDelta::from_secs(1);

/// Whether a conversation is followed by another one on the same ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Followed {
    No,
    /// It was just over when the frame came, unless another one, not yet told of, came before.
    Perhaps,
    Yes,
}

/// One direction of a conversation. One worker has one session of it after the other, and where
/// frames go to another worker from some moment on, several have one at once.
#[derive(Debug)]
pub(super) struct Direction {
    /// What it was, put together from sessions that are over.
    pub(super) before: Option<SessionUpdate>,
    /// The newest update of each other session, of which the last came last. Never empty.
    pub(super) parts: Vec<SessionUpdate>,
}

impl Direction {
    pub(super) fn new(update: SessionUpdate) -> Self {
        Self { before: None, parts: vec![update] }
    }

    pub(super) fn knows(&self, uid: Uid) -> bool {
        self.parts.iter().any(|part| part.record.uid == uid)
    }

    pub(super) fn take_in(&mut self, update: SessionUpdate) {
        match self.parts.iter_mut().find(|part| part.record.uid == update.record.uid) {
            Some(known) if known.record.update > update.record.update => {}
            Some(known) => *known = update,
            None => {
                self.parts.push(update);
                let newest = self.parts.len() - 1;
                for over in self.parts.extract_if(..newest, |part| part.record.reason.is_final()) {
                    self.before = Some(match self.before.take() {
                        Some(before) => merge_in_turn(&before, &over),
                        None => over,
                    });
                }
            }
        }
    }

    /// The direction without a session; `None` if there is nothing else.
    pub(super) fn without(mut self, uid: Uid) -> Option<Self> {
        self.parts.retain(|part| part.record.uid != uid);
        if self.parts.is_empty() {
            self.parts.extend(self.before.take());
        }
        (!self.parts.is_empty()).then_some(self)
    }

    pub(super) fn whole(&self) -> Option<SessionUpdate> {
        let mut all = self.before.iter().chain(&self.parts);
        let first = all.next()?.clone();
        Some(all.fold(first, |whole, part| merge_in_turn(&whole, part)))
    }

    pub(super) fn is_final(&self) -> bool {
        self.parts.iter().all(|part| part.record.reason.is_final())
    }
}

/// A conversation of which halves are known.
#[derive(Debug)]
pub(super) struct Conversation {
    /// By sender: the key's low and high end.
    pub(super) directions: [Option<Direction>; 2],
    /// The identity under which its rows are written, once there was one.
    pub(super) uid: Option<Uid>,
    pub(super) update: u32,
    /// What was known of it when it was let go early.
    pub(super) before: Option<Interrupted>,
    /// When it is looked at again.
    pub(super) due: Option<Nanos>,
    /// When its last known half ended.
    pub(super) ended: Nanos,
    /// Whether what belongs to it could not be told.
    pub(super) is_doubted: bool,
    /// Whether it has a row in the log.
    pub(super) has_row: bool,
    /// Whether a row holds everything known.
    pub(super) reported: bool,
    /// Tells this conversation from an earlier one under the same key.
    pub(super) serial: u64,
}

/// A conversation that was let go although a half goes on. What its other half said is forgotten
/// until that half speaks again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interrupted {
    pub(super) uid: Uid,
    /// Number of its next row.
    pub(super) update: u32,
    /// By sender: whether that half was known, and whether it was over.
    pub(super) known: [bool; 2],
    pub(super) over: [bool; 2],
}

impl Conversation {
    pub(super) fn is_joined(&self) -> bool {
        self.directions.iter().all(Option::is_some)
    }

    /// Whether a half that is over as far as is known can turn out to go on, or to be there at all:
    /// one that fell silent for its idle limit may have spoken again before the other one's ended,
    /// and shows that only with its next row.
    pub(super) fn may_go_on(&self) -> bool {
        let mut parts = self.directions.iter().flatten().flat_map(|direction| &direction.parts);
        !self.is_joined() || parts.any(|part| part.record.reason == RowReason::Timeout)
    }

    /// Whether a half that was known once is forgotten and not over.
    pub(super) fn lacks_a_half(&self) -> bool {
        let lacks = |at: usize| {
            self.directions[at].is_none()
                && self.before.is_some_and(|before| before.known[at] && !before.over[at])
        };
        lacks(0) || lacks(1)
    }

    /// What is remembered of it when it is let go.
    pub(super) fn interrupt(&self, uid: Uid) -> Interrupted {
        let (known, over) = self.before.map_or(([false; 2], [false; 2]), |b| (b.known, b.over));
        let [low, high] = &self.directions;
        let is_known = [low, high].map(Option::is_some);
        let is_over = [low, high].map(|half| half.as_ref().is_some_and(Direction::is_final));
        Interrupted {
            uid,
            update: self.update,
            known: [known[0] | is_known[0], known[1] | is_known[1]],
            over: [over[0] | is_over[0], over[1] | is_over[1]],
        }
    }

    /// What an update of a session that is not known yet is to this conversation: one worker would
    /// have taken its first frame for the conversation's if that was still alive then. While a half
    /// is alive its totals cannot be told apart, and the conversation goes on.
    pub(super) fn is_followed_by(&self, sender: usize, update: &SessionUpdate) -> Followed {
        let mut parts = self.directions.iter().flatten().flat_map(|direction| &direction.parts);
        let is_alive = |part: &SessionUpdate| {
            !part.record.reason.is_final() || part.record.uid == update.record.uid
        };
        if parts.any(is_alive) {
            return Followed::No;
        }
        // Another SYN of one side, once all is over, is never the same session's.
        let again = self.directions[sender].is_some();
        if again && update.record.history.as_str().starts_with(['S', 's']) {
            return Followed::Yes;
        }
        let parts = self.directions.iter().flatten().flat_map(|direction| &direction.parts);
        match parts.map(|part| part.due).max() {
            Some(due) if update.record.ts > due + ANSWER => Followed::Yes,
            Some(due) if update.record.ts >= due => Followed::Perhaps,
            _ => Followed::No,
        }
    }

    /// Why it is over, or [`RowReason::Interim`] if it is not.
    pub(super) fn end_reason(&self) -> RowReason {
        if self.lacks_a_half() {
            return RowReason::Interim;
        }
        let mut latest = None;
        for part in self.directions.iter().flatten().flat_map(|direction| &direction.parts) {
            let record = &part.record;
            if !record.reason.is_final() {
                return RowReason::Interim;
            }
            if latest.is_none_or(|(ts, _)| record.last_ts >= ts) {
                latest = Some((record.last_ts, record.reason));
            }
        }
        latest.map_or(RowReason::Interim, |(_, reason)| reason)
    }

    /// The next row.
    pub(super) fn row(&mut self, reason: RowReason, now: Nanos) -> Option<SessionRecord> {
        let mut record = match &self.directions {
            [Some(low), Some(high)] => merge_directions(&low.whole()?, &high.whole()?),
            [Some(one), None] | [None, Some(one)] => {
                let mut record = one.whole()?.record;
                // The other half was there once, or must have been.
                record.join_certain &= self.before.is_none() && !is_answer_alone(&record);
                record
            }
            [None, None] => return None,
        };
        record.join_certain &= !self.is_doubted;
        record.uid = *self.uid.get_or_insert(record.uid);
        record.update = self.update;
        self.update = self.update.saturating_add(1);
        self.has_row = true;
        self.reported = true;
        record.reason = reason;
        record.flushed_at = now;
        Some(record)
    }
}

/// Whether TCP was joined in the middle: what the frame answers may be in the record before.
fn is_answer_alone(record: &SessionRecord) -> bool {
    let shows_start = record.history.as_str().contains(['S', 's', 'H', 'h']);
    record.protocol == Protocol::TCP && !shows_start
}
