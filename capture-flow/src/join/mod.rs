//! One conversation, one record, also where two workers each saw a part of it.
//!
//! Where the two directions of a session arrive on queues or interfaces of different workers,
//! each worker has a session in which one side is silent. Such halves meet here under the hash of
//! their key. Sessions of which one worker saw both sides pass through at once.

mod merge;

use std::collections::{HashMap, VecDeque};

use crate::key::{Address, FlowHash};
use crate::record::{RowReason, SessionRecord, Uid};
use crate::sink::SessionUpdate;
use crate::time::{Nanos, NanosDelta};

use merge::{merge_directions, merge_in_turn};

/// Bounds of a [`Joiner`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinConfig {
    /// Workers whose updates arrive.
    pub workers: u16,
    /// How long half a session may wait for its other half before it gets a row, on the engine's
    /// clock.
    pub wait: NanosDelta,
    /// How long half a session that is over may wait for its other half before that row is its
    /// last: a little longer than the idle limit of an unanswered session and than the interim
    /// interval, within which the other half must show itself.
    pub linger: NanosDelta,
    /// Conversations held at once.
    pub capacity: usize,
}

impl Default for JoinConfig {
    fn default() -> Self {
        Self {
            workers: 1,
            wait: NanosDelta::from_secs(5),
            linger: NanosDelta::from_secs(65),
            capacity: 1 << 16,
        }
    }
}

/// What a [`Joiner`] counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JoinStats {
    /// Updates offered.
    pub updates: u64,
    /// Records let go.
    pub records: u64,
    /// Conversations of which both halves were found.
    pub joined: u64,
    /// Conversations let go early because too many were held.
    pub evicted: u64,
    /// Conversations held right now.
    pub held: u64,
}

/// One direction of a conversation: what it was before the worker began a new session on it, and
/// the latest update.
#[derive(Debug)]
struct Direction {
    before: Option<SessionUpdate>,
    latest: SessionUpdate,
}

impl Direction {
    fn take_in(&mut self, update: SessionUpdate) {
        if update.record.uid != self.latest.record.uid {
            let ended = std::mem::replace(&mut self.latest, update);
            self.before = Some(match self.before.take() {
                Some(before) => merge_in_turn(&before, &ended),
                None => ended,
            });
        } else if update.record.update >= self.latest.record.update {
            self.latest = update;
        }
    }

    fn whole(&self) -> SessionUpdate {
        match &self.before {
            Some(before) => merge_in_turn(before, &self.latest),
            None => self.latest.clone(),
        }
    }

    fn is_final(&self) -> bool {
        self.latest.record.reason.is_final()
    }
}

/// A conversation of which halves are known.
#[derive(Debug)]
struct Conversation {
    /// By sender: the key's low and high end.
    directions: [Option<Direction>; 2],
    /// The identity under which its rows are written, once there was one.
    uid: Option<Uid>,
    update: u32,
    /// When it is looked at again.
    due: Option<Nanos>,
    /// When its last known half ended.
    ended: Nanos,
    /// Whether a row holds everything known.
    reported: bool,
    /// Tells this conversation from an earlier one under the same key.
    serial: u64,
}

/// Queue of conversations that wait for their row.
const WAITING: usize = 0;
/// Queue of conversations that are over as far as is known.
const LINGERING: usize = 1;

/// Turns the updates of several workers into the rows of the session log.
#[derive(Debug)]
pub struct Joiner {
    config: JoinConfig,
    stats: JoinStats,
    held: HashMap<FlowHash, Conversation>,
    /// Conversations that are owed a look, by time: those that wait for a row, and those that
    /// linger. Stale entries are skipped.
    looks: [VecDeque<(Nanos, FlowHash, u64)>; 2],
    /// Conversations in the order in which they came, for eviction; stale entries are skipped.
    arrivals: VecDeque<(FlowHash, u64)>,
    /// Beginnings of sessions whose row waits, and until when: only those that are earlier than
    /// all that came after them.
    waiting: VecDeque<(Nanos, Nanos)>,
    next_serial: u64,
}

impl Joiner {
    /// A joiner that holds nothing yet.
    #[must_use]
    pub fn new(config: JoinConfig) -> Self {
        Self {
            config,
            stats: JoinStats::default(),
            held: HashMap::new(),
            looks: [VecDeque::new(), VecDeque::new()],
            arrivals: VecDeque::new(),
            waiting: VecDeque::new(),
            next_serial: 0,
        }
    }

    /// Takes an update of one worker; `out` receives what can be written now.
    pub fn offer(
        &mut self,
        worker: u16,
        update: SessionUpdate,
        out: &mut impl FnMut(SessionRecord),
    ) {
        debug_assert!(worker < self.config.workers.max(1));
        self.stats.updates += 1;
        let sender = if self.config.workers > 1 { lone_sender(&update.record) } else { None };
        let Some(sender) = sender else {
            self.stats.records += 1;
            out(update.record);
            return;
        };
        let (flow, now) = (update.flow, update.record.flushed_at);
        if self.held.get(&flow).is_some_and(|held| held.is_followed_by(sender, &update)) {
            self.let_go(flow, now, out);
        }
        if !self.held.contains_key(&flow) {
            self.make_room(now, out);
            let serial = self.next_serial;
            self.next_serial += 1;
            self.arrivals.push_back((flow, serial));
            let new = Conversation {
                directions: [None, None],
                uid: None,
                // Not 0 only where the conversation was let go early: its rows keep their numbers.
                update: update.record.update,
                due: None,
                ended: now,
                reported: false,
                serial,
            };
            self.held.insert(flow, new);
            self.stats.held += 1;
        }
        let Some(conversation) = self.held.get_mut(&flow) else { return };
        let ts = update.record.ts;
        let alone = conversation.directions.iter().flatten().count() < 2;
        match &mut conversation.directions[sender] {
            Some(direction) => direction.take_in(update),
            empty => *empty = Some(Direction { before: None, latest: update }),
        }
        let both = conversation.directions.iter().flatten().count() == 2;
        self.stats.joined += u64::from(alone && both);
        let over = conversation.directions.iter().flatten().all(Direction::is_final);
        conversation.ended = now;
        conversation.reported = both && !over;
        if conversation.reported {
            conversation.due = None;
            if let Some(record) = conversation.row(RowReason::Interim, now) {
                self.stats.records += 1;
                out(record);
            }
            return;
        }
        // Wait: for the other half, or for either half to go on after all.
        let due = now + self.config.wait;
        conversation.due = Some(due);
        self.looks[WAITING].push_back((due, flow, conversation.serial));
        while self.waiting.back().is_some_and(|&(_, earliest)| earliest >= ts) {
            self.waiting.pop_back();
        }
        self.waiting.push_back((due, ts));
    }

    /// Lets go of what has waited long enough. `now` is the engine's clock.
    pub fn advance(&mut self, now: Nanos, out: &mut impl FnMut(SessionRecord)) {
        for queue in [WAITING, LINGERING] {
            while let Some(&(due, flow, serial)) = self.looks[queue].front() {
                if due > now {
                    break;
                }
                self.looks[queue].pop_front();
                self.look(due, flow, serial, now, out);
            }
        }
        while self.waiting.front().is_some_and(|&(due, _)| due <= now) {
            self.waiting.pop_front();
        }
        self.forget_stale();
    }

    /// Writes the row that a conversation is owed, and lets go of it if it is over.
    fn look(
        &mut self,
        due: Nanos,
        flow: FlowHash,
        serial: u64,
        now: Nanos,
        out: &mut impl FnMut(SessionRecord),
    ) {
        let Some(conversation) = self.held.get_mut(&flow) else { return };
        if conversation.serial != serial || conversation.due != Some(due) {
            return;
        }
        conversation.due = None;
        let mut reason = conversation.end_reason();
        let both = conversation.directions.iter().all(Option::is_some);
        let last = conversation.ended + self.config.linger;
        if reason.is_final() && !both && now < last {
            reason = RowReason::Interim;
            conversation.due = Some(last);
            self.looks[LINGERING].push_back((last, flow, serial));
        }
        if reason.is_final() || !conversation.reported {
            conversation.reported = true;
            if let Some(record) = conversation.row(reason, now) {
                self.stats.records += 1;
                out(record);
            }
        }
        if reason.is_final() {
            self.held.remove(&flow);
            self.stats.held -= 1;
        }
    }

    /// Writes what is known of a conversation, and forgets it.
    fn let_go(&mut self, flow: FlowHash, now: Nanos, out: &mut impl FnMut(SessionRecord)) {
        let Some(mut conversation) = self.held.remove(&flow) else { return };
        self.stats.held -= 1;
        let reason = conversation.end_reason();
        if let Some(record) = conversation.row(reason, now) {
            self.stats.records += 1;
            out(record);
        }
    }

    /// Keeps the number of conversations within bounds: the oldest goes with what is known.
    fn make_room(&mut self, now: Nanos, out: &mut impl FnMut(SessionRecord)) {
        while self.held.len() >= self.config.capacity.max(1) {
            let Some((flow, serial)) = self.arrivals.pop_front() else { return };
            let known = self.held.get(&flow).is_some_and(|held| held.serial == serial);
            if known {
                self.stats.evicted += 1;
                self.let_go(flow, now, out);
            }
        }
    }

    /// Drops entries of conversations that are gone, so that the lists stay as long as what is
    /// held.
    fn forget_stale(&mut self) {
        if self.arrivals.len() > 2 * self.held.len() + 64 {
            let held = &self.held;
            self.arrivals.retain(|(flow, serial)| {
                held.get(flow).is_some_and(|conversation| conversation.serial == *serial)
            });
        }
    }

    /// Lets go of everything: no further update will come.
    pub fn finish(&mut self, now: Nanos, out: &mut impl FnMut(SessionRecord)) {
        while let Some((flow, serial)) = self.arrivals.pop_front() {
            if self.held.get(&flow).is_some_and(|conversation| conversation.serial == serial) {
                self.let_go(flow, now, out);
            }
        }
        self.looks.iter_mut().for_each(VecDeque::clear);
        self.waiting.clear();
    }

    /// The engine time before which every session that was offered has been let go, given that
    /// the workers' own tables are complete through `workers`.
    #[must_use]
    pub fn complete_through(&self, workers: Nanos) -> Nanos {
        self.waiting.front().map_or(workers, |&(_, earliest)| workers.min(earliest))
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> &JoinStats {
        &self.stats
    }
}

impl Conversation {
    /// Whether an update begins the next conversation on the same ends: every half of this one
    /// is over, and the update's half begins with a SYN of its own. While a half is alive its
    /// totals cannot be told apart, and the conversation goes on.
    fn is_followed_by(&self, sender: usize, update: &SessionUpdate) -> bool {
        let new = self.directions[sender]
            .as_ref()
            .is_some_and(|known| known.latest.record.uid != update.record.uid);
        let opens = update.record.history.as_str().starts_with(['S', 's']);
        new && opens && self.directions.iter().flatten().all(Direction::is_final)
    }

    /// Why it is over, or [`RowReason::Interim`] if it is not.
    fn end_reason(&self) -> RowReason {
        let mut latest = None;
        for direction in self.directions.iter().flatten() {
            let record = &direction.latest.record;
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
    fn row(&mut self, reason: RowReason, now: Nanos) -> Option<SessionRecord> {
        let mut record = match &self.directions {
            [Some(low), Some(high)] => merge_directions(&low.whole(), &high.whole()),
            [Some(one), None] | [None, Some(one)] => one.whole().record,
            [None, None] => return None,
        };
        record.uid = *self.uid.get_or_insert(record.uid);
        record.update = self.update;
        self.update = self.update.saturating_add(1);
        record.reason = reason;
        record.flushed_at = now;
        Some(record)
    }
}

/// The end that alone was heard in this session: 0 for the key's low end, 1 for the high one;
/// `None` where both were, or neither, and for frames without IP, which have no sides to miss.
fn lone_sender(record: &SessionRecord) -> Option<usize> {
    if matches!(record.orig.addr, Address::Mac(_)) {
        return None;
    }
    let (sender, other) = match (record.orig.pkts, record.resp.pkts) {
        (0, 0) => return None,
        (_, 0) => (&record.orig, &record.resp),
        (0, _) => (&record.resp, &record.orig),
        _ => return None,
    };
    Some(usize::from((sender.addr, sender.port) > (other.addr, other.port)))
}
