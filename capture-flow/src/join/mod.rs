//! One conversation, one record, also where two workers each saw a part of it.
//!
//! Where the two directions of a session arrive on queues or interfaces of different workers,
//! each worker has a session in which one side is silent. Such halves meet here under the hash of
//! their key. Sessions of which one worker saw both sides pass through at once.

mod conversation;
mod merge;

use std::collections::{HashMap, VecDeque};

use crate::key::{Address, FlowHash};
use crate::record::{RowReason, SessionRecord, Uid};
use crate::sink::SessionUpdate;
use crate::time::{Nanos, NanosDelta};

use conversation::{Conversation, Direction, Followed, Interrupted};

/// Bounds of a [`Joiner`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinConfig {
    /// Workers whose updates arrive.
    pub workers: u16,
    /// How long half a session may wait for its other half before it gets a row, on the engine's
    /// clock.
    pub wait: NanosDelta,
    /// How long half a session that is over may wait for its other half before that row is its
    /// last, and a session of which a half fell silent for that half to go on: a little longer than
    /// the idle limit of an unanswered session and than the interim interval, within which a half
    /// must show itself.
    pub linger: NanosDelta,
    /// Conversations held at once, in up to two kilobytes each. Those of which one half alone is
    /// known are let go first. Of sixteen times as many that went on it is remembered under which
    /// identity and number.
    pub capacity: usize,
}

/// How many interrupted conversations are remembered for each that may be held.
const REMEMBERED: usize = 16;

impl Default for JoinConfig {
    fn default() -> Self {
        Self {
            workers: 1,
            wait: NanosDelta::from_secs(5),
            linger: NanosDelta::from_secs(65),
            capacity: 1 << 18,
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

/// Conversations of which one half is known.
const LONE: usize = 0;
/// Conversations of which both are.
const JOINED: usize = 1;

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
    /// Conversations in the order in which they came or were joined, for eviction; stale entries
    /// are skipped.
    arrivals: [VecDeque<(FlowHash, u64)>; 2],
    /// Beginnings of sessions whose row waits, and until when: only those that are earlier than
    /// all that came after them.
    waiting: VecDeque<(Nanos, Nanos)>,
    interrupted: HashMap<FlowHash, Interrupted>,
    /// Sessions that left a conversation under whose rows theirs were: the least number of their
    /// next row.
    renumbered: HashMap<Uid, u32>,
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
            arrivals: [VecDeque::new(), VecDeque::new()],
            waiting: VecDeque::new(),
            interrupted: HashMap::new(),
            renumbered: HashMap::new(),
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
        let (flow, now) = (update.flow, update.record.flushed_at);
        let Some(sender) = sender else {
            if self.config.workers > 1 {
                self.leave(flow, update.record.uid, now);
            }
            self.stats.records += 1;
            out(self.renumber(update.record));
            return;
        };
        if let Some(known) = self.held.get_mut(&flow) {
            match known.is_followed_by(sender, &update) {
                Followed::No => {}
                Followed::Perhaps => known.is_doubted = true,
                Followed::Yes => self.let_go(flow, now, out),
            }
        }
        if !self.held.contains_key(&flow) {
            self.make_room(now, out);
            let serial = self.next_serial;
            self.next_serial += 1;
            self.arrivals[LONE].push_back((flow, serial));
            // A half that goes on, or that was missing, belongs to the conversation that was let go
            // early.
            let before = self.interrupted.remove(&flow);
            let before = before.filter(|b| update.record.update > 0 || !b.known[sender]);
            let new = Conversation {
                directions: [None, None],
                // Rows of it may have been written before it was half of anything.
                uid: before
                    .map(|before| before.uid)
                    .or((update.record.update > 0).then_some(update.record.uid)),
                update: before.map_or(update.record.update, |before| before.update),
                before,
                due: None,
                ended: now,
                is_doubted: false,
                has_row: before.is_some(),
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
            empty => *empty = Some(Direction::new(update)),
        }
        let both = conversation.is_joined();
        if alone && both {
            self.stats.joined += 1;
            self.arrivals[JOINED].push_back((flow, conversation.serial));
        }
        let over = conversation.directions.iter().flatten().all(Direction::is_final);
        conversation.ended = now;
        if !conversation.has_row && (over || !both) {
            // Its first row waits: for the other half, or for either half to go on after all.
            self.wait(flow, ts, now);
            return;
        }
        // What is in the log goes on there at once: no frame of it waits to be told of.
        conversation.due = over.then_some(now + self.config.wait);
        if let Some(due) = conversation.due {
            self.looks[WAITING].push_back((due, flow, conversation.serial));
        }
        if let Some(record) = conversation.row(RowReason::Interim, now) {
            self.stats.records += 1;
            out(record);
        }
    }

    /// Promises a row of a conversation that began at `ts`, unless one is promised already: a half
    /// that is told of again and again keeps nobody waiting longer than one that is told of once.
    fn wait(&mut self, flow: FlowHash, ts: Nanos, now: Nanos) {
        let Some(conversation) = self.held.get_mut(&flow) else { return };
        let mut due = match conversation.due {
            Some(due) if !conversation.reported => due,
            _ => {
                let due = now + self.config.wait;
                conversation.due = Some(due);
                self.looks[WAITING].push_back((due, flow, conversation.serial));
                due
            }
        };
        conversation.reported = false;
        while let Some((later, _)) = self.waiting.pop_back_if(|&mut (_, earliest)| earliest >= ts) {
            due = due.max(later);
        }
        self.waiting.push_back((due, ts));
    }

    /// A worker that saw half a session sees both sides of it now: it goes its own way, and what
    /// is left of the conversation another.
    fn leave(&mut self, flow: FlowHash, uid: Uid, now: Nanos) {
        if let Some(before) = self.interrupted.get(&flow).filter(|before| before.uid == uid) {
            self.renumbered.insert(uid, before.update);
            self.interrupted.remove(&flow);
        }
        let Some(conversation) = self.held.get_mut(&flow) else { return };
        if !conversation.directions.iter().flatten().any(|direction| direction.knows(uid)) {
            return;
        }
        for slot in &mut conversation.directions {
            *slot = slot.take().and_then(|direction| direction.without(uid));
        }
        if conversation.uid == Some(uid) {
            // Its rows go on with it.
            self.renumbered.insert(uid, conversation.update);
            conversation.uid = None;
            conversation.before = None;
        }
        let mut rest = conversation.directions.iter().flatten().flat_map(|rest| &rest.parts);
        match rest.next() {
            Some(part) => {
                let ts = part.record.ts;
                if conversation.uid.is_none() {
                    conversation.update = part.record.update;
                    conversation.has_row = false;
                }
                self.arrivals[LONE].push_back((flow, conversation.serial));
                self.wait(flow, ts, now);
            }
            None => {
                self.held.remove(&flow);
                self.stats.held -= 1;
            }
        }
    }

    /// A row of a session whose rows were half of a conversation's for a while.
    fn renumber(&mut self, mut record: SessionRecord) -> SessionRecord {
        if let Some(next) = self.renumbered.get_mut(&record.uid) {
            record.update = record.update.max(*next);
            *next = record.update.saturating_add(1);
            if record.reason.is_final() {
                self.renumbered.remove(&record.uid);
            }
        }
        record
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
        let last = conversation.ended + self.config.linger;
        if reason.is_final() && conversation.may_go_on() && now < last {
            reason = RowReason::Interim;
            conversation.due = Some(last);
            self.looks[LINGERING].push_back((last, flow, serial));
        }
        if (reason.is_final() || !conversation.reported)
            && let Some(record) = conversation.row(reason, now)
        {
            self.stats.records += 1;
            out(record);
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
            let room = self.config.capacity.saturating_mul(REMEMBERED);
            if !reason.is_final() && self.interrupted.len() < room {
                self.interrupted.insert(flow, conversation.interrupt(record.uid));
            }
            self.stats.records += 1;
            out(record);
        }
    }

    /// Keeps the number of conversations within bounds: the oldest goes with what is known, one that
    /// lingers before one of which half is known, and that before one that was joined.
    fn make_room(&mut self, now: Nanos, out: &mut impl FnMut(SessionRecord)) {
        while self.held.len() >= self.config.capacity.max(1) {
            // Those that are over as far as is known lose least.
            if let Some((due, flow, serial)) = self.looks[LINGERING].pop_front() {
                let lingers = |held: &Conversation| held.serial == serial && held.due == Some(due);
                if self.held.get(&flow).is_some_and(lingers) {
                    self.stats.evicted += 1;
                    self.let_go(flow, now, out);
                }
                continue;
            }
            let Some((queue, (flow, serial))) = self.next_to_go() else { return };
            let known = self
                .held
                .get(&flow)
                .is_some_and(|held| held.serial == serial && held.is_joined() == (queue == JOINED));
            if known {
                self.stats.evicted += 1;
                self.let_go(flow, now, out);
            }
        }
    }

    fn next_to_go(&mut self) -> Option<(usize, (FlowHash, u64))> {
        [LONE, JOINED]
            .into_iter()
            .find_map(|queue| Some((queue, self.arrivals[queue].pop_front()?)))
    }

    /// Drops entries of conversations that are gone, so that the lists stay as long as what is
    /// held.
    fn forget_stale(&mut self) {
        let held = &self.held;
        for (queue, arrivals) in self.arrivals.iter_mut().enumerate() {
            if arrivals.len() > 2 * held.len() + 64 {
                arrivals.retain(|(flow, serial)| {
                    held.get(flow).is_some_and(|known| {
                        known.serial == *serial && known.is_joined() == (queue == JOINED)
                    })
                });
            }
        }
    }

    /// Lets go of everything: no further update will come.
    pub fn finish(&mut self, now: Nanos, out: &mut impl FnMut(SessionRecord)) {
        while let Some((_, (flow, serial))) = self.next_to_go() {
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
