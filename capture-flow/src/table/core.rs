//! The table itself: slots, lookup, timers, eviction.

use std::fmt;
use std::marker::PhantomData;

use crate::config::{ConfigError, FlowConfig, Network, Timeouts};
use crate::frame::{Frame, PcapPosition};
use crate::key::{BriefKey, FlowHash, FlowHasher, PackedKey};
use crate::memory::Memory;
use crate::record::{RowReason, Uid};
use crate::service::Services;
use crate::sink::Sink;
use crate::stats::FlowStats;
use crate::tcp::{Cruise, Tcp};
use crate::time::{Nanos, NanosDelta};
use crate::timer::{Class, DNS_LOOK, DNS_SILENCE, IdleLimits};
use crate::uid::UidSource;

use super::index::{self, Index};
use super::lists::{ByLimit, ByRow, List};
use super::session::{self, Cold, Flags, Kind, Links, NONE, Near};
use super::steady::Plain;
use super::tuple::Tuple;

/// Bytes that one session takes, its share of the index included.
pub(super) const BYTES_PER_SESSION: usize = session::BYTES + index::BYTES_PER_SESSION;

/// Sessions that one frame's time may expire or give a row: what is left waits for the next
/// frame, so that no frame takes unbounded work. Sessions that are found by a frame of their own
/// expire then whatever is left.
const WORK_PER_FRAME: usize = 300;

/// Sessions that can have a partly received first message at once.
const SERVICE_SLOTS: u32 = 1024;

/// One session in so many may have data beyond a hole, and these many may in any table. Such a
/// session takes a kilobyte or less besides.
const HOLED_SHARE: usize = 16;
const HOLED_LEAST: u32 = 64;

/// Times farther ahead of the clock than this belong to another clock: a capture with a step
/// in its time, or a forged one.
const OTHER_CLOCK: NanosDelta = NanosDelta::from_secs(2 * 3600);

/// A frame that is older than one that came before it by no more than this is nothing unusual:
/// sources are polled in turn, and the engine's clock moves while frames are on their way.
const MOST_BEHIND: NanosDelta = NanosDelta::from_secs(1);

/// Frames that came out of order by more than that.
#[derive(Clone, Copy, Debug)]
struct Late {
    /// The earliest time of one.
    earliest: Nanos,
    /// Every session has had a row since they came once no session's row is as old as this.
    until: Nanos,
}

/// Ports that servers own, one bit each.
pub(super) struct ServerPorts {
    tcp: Box<[u64; 1024]>,
    udp: Box<[u64; 1024]>,
}

impl fmt::Debug for ServerPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |bits: &[u64; 1024]| bits.iter().map(|word| word.count_ones()).sum::<u32>();
        write!(f, "ServerPorts({} tcp, {} udp)", count(&self.tcp), count(&self.udp))
    }
}

impl ServerPorts {
    fn new(config: &FlowConfig) -> Self {
        let mut ports = Self { tcp: Box::new([0; 1024]), udp: Box::new([0; 1024]) };
        for port in &config.likely_server_ports {
            let bits = match port.ip_proto {
                6 => &mut ports.tcp,
                17 => &mut ports.udp,
                _ => continue,
            };
            bits[usize::from(port.port >> 6)] |= 1 << (port.port & 63);
        }
        ports
    }

    pub(super) fn tcp(&self, port: u16) -> bool {
        self.tcp[usize::from(port >> 6)] >> (port & 63) & 1 == 1
    }

    pub(super) fn udp(&self, port: u16) -> bool {
        self.udp[usize::from(port >> 6)] >> (port & 63) & 1 == 1
    }
}

/// Everything but the decoder.
#[derive(Debug)]
pub(super) struct Core<M> {
    pub(super) hasher: FlowHasher,
    pub(super) vlan_in_key: bool,
    /// Whether other workers may see the other direction of a session.
    pub(super) halves: bool,
    pub(super) server_ports: ServerPorts,
    pub(super) local_nets: Vec<Network>,
    pub(super) timeouts: Timeouts,
    pub(super) uids: UidSource,
    pub(super) services: Services,
    /// A session's parts lie at its slot in each of these.
    pub(super) near: Vec<Near>,
    pub(super) tcp: Vec<Tcp>,
    pub(super) cold: Vec<Cold>,
    pub(super) stats: FlowStats,
    pub(super) clock: Nanos,
    /// TCP sessions with data beyond a hole, and how many there may be: their ranges lie outside
    /// the table's own memory.
    pub(super) holed: u32,
    pub(super) max_holed: u32,
    pub(super) limits: IdleLimits,
    interim: NanosDelta,
    pub(super) index: Index,
    /// Slots to use again, linked through `limit.next`.
    free: u32,
    capacity: usize,
    by_limit: [List<ByLimit>; Class::COUNT],
    by_row: List<ByRow>,
    /// No session has been given a row later than this.
    pub(super) latest_row: Nanos,
    /// Where the frame lies that was recorded last: a session keeps half of a segment's number.
    pub(super) recorded: PcapPosition,
    /// No session expires and none is due a row before this.
    next_due: Nanos,
    /// How much older than its session's `row_time` a frame without a row may be, late ones
    /// aside.
    behind: NanosDelta,
    /// Late frames, and those that came while not every session had had a row since the first:
    /// were they one, frames that come late all the time would leave nothing complete for ever.
    late: [Option<Late>; 2],
    memory: PhantomData<M>,
}

/// Room for `capacity` of a part, touched only as sessions come.
fn room<M: Memory, T>(capacity: usize) -> Vec<T> {
    let part: Vec<T> = Vec::with_capacity(capacity);
    M::settle(part.as_ptr().cast(), capacity.saturating_mul(size_of::<T>()));
    part
}

impl<M: Memory> Core<M> {
    pub(super) fn new(config: FlowConfig) -> Result<Self, ConfigError> {
        let capacity = config.table_bytes / BYTES_PER_SESSION;
        if capacity == 0 {
            return Err(ConfigError::TableTooSmall {
                given: config.table_bytes,
                least: BYTES_PER_SESSION,
            });
        }
        if capacity >= NONE as usize {
            return Err(ConfigError::TableTooLarge {
                given: config.table_bytes,
                most: (NONE as usize - 1).saturating_mul(BYTES_PER_SESSION),
            });
        }
        Ok(Self {
            hasher: FlowHasher::new(config.hash_seed),
            vlan_in_key: config.vlan_in_key,
            halves: config.halves,
            server_ports: ServerPorts::new(&config),
            local_nets: config.local_nets,
            timeouts: config.timeouts,
            uids: UidSource::new(config.uid_seed, config.worker),
            services: Services::new(SERVICE_SLOTS.min(capacity as u32)),
            near: room::<M, _>(capacity),
            tcp: room::<M, _>(capacity),
            cold: room::<M, _>(capacity),
            stats: FlowStats { capacity: capacity as u64, ..FlowStats::default() },
            clock: Nanos::MIN,
            holed: 0,
            max_holed: (capacity / HOLED_SHARE) as u32 + HOLED_LEAST,
            limits: IdleLimits::new(&config.timeouts),
            interim: config.interim,
            index: Index::new::<M>(capacity),
            free: NONE,
            capacity,
            by_limit: std::array::from_fn(|_| List::default()),
            by_row: List::default(),
            latest_row: Nanos::MIN,
            recorded: PcapPosition { worker: config.worker, segment: 0, offset: 0 },
            next_due: Nanos::MAX,
            behind: NanosDelta(0),
            late: [None; 2],
            memory: PhantomData,
        })
    }

    /// Has the memory of every session that there will be made present.
    pub(super) fn populate(&self) {
        fn part<M: Memory, T>(part: &Vec<T>) {
            let bytes = part.capacity().saturating_mul(size_of::<T>());
            M::populate(part.as_ptr().cast(), bytes);
        }
        part::<M, _>(&self.near);
        part::<M, _>(&self.tcp);
        part::<M, _>(&self.cold);
    }

    #[inline]
    pub(super) fn count_frames(&mut self, frames: &[Frame<'_>]) {
        self.stats.frames += frames.len() as u64;
        self.stats.frame_bytes += frames.iter().map(|frame| u64::from(frame.wire_len)).sum::<u64>();
    }

    pub(super) fn uid(&self, slot: u32) -> Uid {
        self.uids.uid(self.cold[slot as usize].serial)
    }

    /// Second stage: sends for the cache lines of a frame's session, and tells its slot: a guess.
    #[inline]
    pub(super) fn fetch_session(&self, plain: &Plain) -> u32 {
        let likely = if plain.is_some { self.index.likely(plain.hash) } else { None };
        let Some(slot) = likely else { return NONE };
        if let Some(near) = self.near.get(slot as usize) {
            M::fetch(&near.hot);
            if plain.is_tcp() {
                M::fetch(&near.cruise);
            }
        }
        slot
    }

    /// Whether a slot holds the living session of a key.
    #[inline]
    fn holds(&self, slot: u32, tuple: &Tuple, brief: BriefKey) -> bool {
        self.near.get(slot as usize).is_some_and(|near| near.hot.key == brief)
            && (brief.is_whole() || self.cold[slot as usize].key == tuple.key)
    }

    /// The living session of a key; `guess` may be its slot.
    #[inline]
    pub(super) fn find(&self, tuple: &Tuple, guess: u32) -> Option<u32> {
        let brief = tuple.key.brief(tuple.hash);
        if self.holds(guess, tuple, brief) {
            return Some(guess);
        }
        self.index.find(tuple.hash, |slot| self.holds(slot, tuple, brief))
    }

    /// The key of a session.
    #[inline]
    pub(super) fn key(&self, slot: u32) -> PackedKey {
        self.near[slot as usize].hot.key.whole().unwrap_or_else(|| self.cold[slot as usize].key)
    }

    /// The hash of a session's key.
    pub(super) fn hash(&self, slot: u32) -> FlowHash {
        self.hasher.hash_packed(&self.key(slot))
    }

    /// A free slot, made free by eviction if need be.
    pub(super) fn take_slot(&mut self, sink: &mut impl Sink) -> u32 {
        if self.free == NONE && self.near.len() >= self.capacity {
            self.evict(sink);
        }
        let slot = if self.free == NONE {
            self.near.push(Near::default());
            self.tcp.push(Tcp::default());
            self.cold.push(Cold::default());
            (self.near.len() - 1) as u32
        } else {
            let slot = self.free;
            self.free = self.near[slot as usize].place.limit.next;
            slot
        };
        self.stats.sessions += 1;
        slot
    }

    /// Puts a filled slot where it is found, expires and gets rows.
    pub(super) fn enter(&mut self, slot: u32, hash: FlowHash) {
        let hot = &mut self.near[slot as usize].hot;
        hot.moved = coarse(self.clock);
        let class = hot.class;
        self.index.insert(hash, slot);
        self.set_row_time(slot, self.clock);
        self.by_limit[class as usize].push_back(&mut self.near, slot);
        self.by_row.push_back(&mut self.near, slot);
        self.next_due = self.next_due.min(self.due(slot)).min(self.clock + self.interim);
    }

    /// Takes a session out of the table.
    fn leave(&mut self, slot: u32) {
        let hash = self.hash(slot);
        let hot = &mut self.near[slot as usize].hot;
        let class = hot.class;
        // Nobody finds it here any more.
        hot.key = BriefKey::default();
        self.index.remove(hash, slot);
        self.by_limit[class as usize].remove(&mut self.near, slot);
        self.by_row.remove(&mut self.near, slot);
        // Gives back what the session holds outside the table.
        if Kind::of(class) == Kind::Tcp {
            let tcp = &mut self.tcp[slot as usize];
            self.holed -= u32::from(tcp.has_holes());
            *tcp = Tcp::default();
            self.near[slot as usize].cruise = Cruise::default();
        }
        let cold = &mut self.cold[slot as usize];
        cold.parents = None;
        cold.detail = None;
        self.near[slot as usize].place.limit = Links { prev: NONE, next: self.free };
        self.free = slot;
        self.stats.sessions -= 1;
    }

    /// Writes a session's last row and lets go of it.
    pub(super) fn end(&mut self, slot: u32, reason: RowReason, sink: &mut impl Sink) {
        if reason == RowReason::Evicted {
            self.stats.evicted += 1;
        }
        self.write_row(slot, reason, sink);
        self.leave(slot);
    }

    /// When a session expires if no further frame comes.
    #[inline]
    pub(super) fn due(&self, slot: u32) -> Nanos {
        let hot = &self.near[slot as usize].hot;
        if hot.class.has_deadline() {
            self.near[slot as usize].place.deadline
        } else {
            hot.last_time + self.limits.of(hot.class)
        }
    }

    #[inline]
    fn is_of_other_clock(&self, time: Nanos, now: Nanos) -> bool {
        time > now + OTHER_CLOCK
    }

    /// Whether a session is over at `now`, or else when to ask again.
    fn over(&mut self, slot: u32, now: Nanos) -> Result<RowReason, Nanos> {
        let due = self.due(slot);
        let hot = &self.near[slot as usize].hot;
        if self.is_of_other_clock(hot.last_time, now) {
            return Ok(RowReason::Timeout);
        }
        if due > now {
            return Err(due);
        }
        match hot.class {
            Class::TcpLingering => {
                // Frames since the last look move the next one.
                let look = self.cold[slot as usize].looks.last(hot.last_time);
                if look > now {
                    return Err(self.look_again(slot, look));
                }
                Ok(RowReason::Closed)
            }
            Class::TcpClosing | Class::TcpPartlyClosed => Ok(RowReason::Closed),
            Class::Dns if now - hot.last_time < DNS_SILENCE => {
                Err(self.look_again(slot, now + DNS_LOOK))
            }
            _ => Ok(RowReason::Timeout),
        }
    }

    fn look_again(&mut self, slot: u32, when: Nanos) -> Nanos {
        self.near[slot as usize].place.deadline = when;
        let class = self.near[slot as usize].hot.class;
        self.by_limit[class as usize].move_to_back(&mut self.near, slot);
        when
    }

    /// Ends a session that a frame found after its time. True if it ended.
    #[inline]
    pub(super) fn end_if_over(&mut self, slot: u32, now: Nanos, sink: &mut impl Sink) -> bool {
        let hot = &self.near[slot as usize].hot;
        if self.due(slot) > now && !self.is_of_other_clock(hot.last_time, now) {
            return false;
        }
        match self.over(slot, now) {
            Ok(reason) => {
                self.end(slot, reason, sink);
                true
            }
            Err(due) => {
                self.next_due = self.next_due.min(due);
                false
            }
        }
    }

    /// Moves a session to the list of another class.
    pub(super) fn set_class(&mut self, slot: u32, class: Class) {
        let old = std::mem::replace(&mut self.near[slot as usize].hot.class, class);
        self.by_limit[old as usize].remove(&mut self.near, slot);
        self.by_limit[class as usize].push_back(&mut self.near, slot);
        self.near[slot as usize].hot.moved = coarse(self.clock);
        self.next_due = self.next_due.min(self.due(slot));
    }

    /// Keeps a busy session near the end of its list. Not on every frame: the lists need to be in
    /// order to an eighth of the limit only, since a session found at its list's head is asked
    /// again.
    #[inline]
    pub(super) fn keep_order(&mut self, slot: u32) {
        let hot = &mut self.near[slot as usize].hot;
        let age = coarse(self.clock).wrapping_sub(hot.moved);
        if age > self.limits.eighth_of(hot.class) && !hot.class.has_deadline() {
            hot.moved = coarse(self.clock);
            let class = hot.class;
            self.by_limit[class as usize].move_to_back(&mut self.near, slot);
        }
    }

    /// Notes a frame that is older than its session's last row.
    #[inline]
    pub(super) fn note_time(&mut self, slot: u32, ts: Nanos) {
        if ts < self.latest_row {
            let row_time = self.near[slot as usize].place.row_time;
            if ts < row_time {
                self.note_late(ts, row_time);
            }
        }
    }

    /// A session whose row is of `row_time` has a frame of `ts` that no row tells of.
    #[cold]
    fn note_late(&mut self, ts: Nanos, row_time: Nanos) {
        let behind = row_time - ts;
        if behind <= MOST_BEHIND {
            self.behind = self.behind.max(behind);
            return;
        }
        let oldest =
            self.by_row.head().map_or(Nanos::MAX, |slot| self.near[slot as usize].place.row_time);
        let [first, second] = &mut self.late;
        if first.is_none_or(|late| oldest > late.until) {
            *first = second.take();
        }
        let late = if first.is_none() { first } else { second };
        let earliest = late.map_or(ts, |late| late.earliest.min(ts));
        *late = Some(Late { earliest, until: self.clock.max(self.latest_row) });
    }

    /// Notes that a session, about to be the last in the order of rows, has a row of now, or is
    /// new. Frames do not come in order, the rows' times stay so: the first of the list tells
    /// how far every session has a row.
    #[inline]
    fn set_row_time(&mut self, slot: u32, now: Nanos) {
        let mut row_time = now;
        if now < self.latest_row {
            self.note_late(now, self.latest_row);
            if self.latest_row - now <= MOST_BEHIND {
                row_time = self.latest_row;
            }
        }
        self.near[slot as usize].place.row_time = row_time;
        self.latest_row = self.latest_row.max(row_time);
    }

    /// Moves the clock and does what is due.
    #[inline]
    pub(super) fn tick(&mut self, now: Nanos, sink: &mut impl Sink) {
        let stepped_back = self.clock > now + OTHER_CLOCK;
        self.clock = now;
        if stepped_back {
            self.latest_row = now;
        }
        if now >= self.next_due || stepped_back {
            self.run_timers(now, sink);
        }
    }

    #[cold]
    fn run_timers(&mut self, now: Nanos, sink: &mut impl Sink) {
        let mut work = 0;
        let mut next_due = Nanos::MAX;
        for class in Class::ALL {
            while let Some(slot) = self.by_limit[class as usize].head() {
                work += 1;
                if work > WORK_PER_FRAME {
                    next_due = now;
                    break;
                }
                match self.over(slot, now) {
                    Ok(reason) => self.end(slot, reason, sink),
                    Err(due) => {
                        // A session that moved on makes room for the next head.
                        if self.by_limit[class as usize].head() == Some(slot) {
                            next_due = next_due.min(due);
                            break;
                        }
                        next_due = next_due.min(due);
                    }
                }
            }
        }
        while let Some(slot) = self.by_row.head() {
            let row_time = self.near[slot as usize].place.row_time;
            let due = row_time + self.interim;
            if now < due && !self.is_of_other_clock(row_time, now) {
                next_due = next_due.min(due);
                break;
            }
            work += 1;
            if work > WORK_PER_FRAME {
                next_due = now;
                break;
            }
            let hot = &mut self.near[slot as usize].hot;
            // A session that moved long ago stays so: half the circle of `moved` is the past.
            if coarse(now).wrapping_sub(hot.moved) > OLD {
                hot.moved = coarse(now).wrapping_sub(OLD);
            }
            if hot.flags.has(Flags::NEWS) {
                self.write_row(slot, RowReason::Interim, sink);
            }
            self.set_row_time(slot, now);
            self.by_row.move_to_back(&mut self.near, slot);
        }
        self.next_due = next_due;
    }

    /// Ends the session that has been idle for the longest time, to an eighth of its limit.
    #[cold]
    fn evict(&mut self, sink: &mut impl Sink) {
        let heads = self.by_limit.iter().filter_map(List::head);
        let oldest = heads.min_by_key(|&slot| self.last_ts(slot));
        let Some(slot) = oldest else { return };
        let now = self.clock;
        let reason = self.over(slot, now).unwrap_or(RowReason::Evicted);
        self.end(slot, reason, sink);
    }

    /// Ends every session.
    pub(super) fn finish(&mut self, now: Nanos, sink: &mut impl Sink) {
        self.clock = now;
        while let Some(slot) = self.by_row.head() {
            self.end(slot, RowReason::Shutdown, sink);
        }
        self.next_due = Nanos::MAX;
        self.late = [None; 2];
    }

    pub(super) fn complete_through(&self, now: Nanos) -> Nanos {
        let Some(head) = self.by_row.head() else { return now };
        let row_time = self.near[head as usize].place.row_time;
        let late = self.late.iter().flatten().filter(|late| row_time <= late.until);
        let late = late.map(|late| late.earliest).min().unwrap_or(Nanos::MAX);
        now.min(row_time - self.behind).min(late)
    }

    /// The time of a session's last frame.
    #[inline]
    pub(super) fn last_ts(&self, slot: u32) -> Nanos {
        let hot = &self.near[slot as usize].hot;
        if hot.flags.has(Flags::LAST_TS_APART) {
            self.cold[slot as usize].last_ts
        } else {
            hot.last_time
        }
    }

    /// Sets the time of a session's last frame, after its `last_time` was set.
    #[inline]
    pub(super) fn set_last_ts(&mut self, slot: u32, last_ts: Nanos) {
        let hot = &mut self.near[slot as usize].hot;
        let apart = hot.last_time != last_ts;
        hot.flags.set(Flags::LAST_TS_APART, apart);
        if apart {
            self.cold[slot as usize].last_ts = last_ts;
        }
    }
}

/// Time in units of 2^30 ns, about a second; only differences mean anything, and only those of
/// less than half the circle.
#[inline]
fn coarse(time: Nanos) -> u16 {
    (time.0 >> 30) as u16
}

/// Half of what [`coarse`] can tell, nine hours.
const OLD: u16 = 1 << 15;
