//! The sessions of one worker.
//!
//! A batch of frames goes through three stages, so that the memory of one frame's session is on
//! its way while others are worked on: take a glance at the headers of every frame, hash its key
//! and send for the index's line; find each one's likely session and send for every line that
//! accounting will need; then account them in order. Only the last stage changes anything, so the
//! first two may guess. Nearly every frame is accounted in a few steps (`steady`), the others by
//! the whole book (`account`, `stream`).

mod account;
mod core;
mod index;
mod lists;
mod row;
mod session;
mod steady;
mod stream;
mod tuple;

use crate::config::{ConfigError, FlowConfig};
use crate::decode::{Counted, Decoded, Decoder, HeldFrame, IncompleteDatagram, PacketVisitor};
use crate::frame::Frame;
use crate::key::{FlowHash, PackedKey};
use crate::memory::{AnyMemory, Memory};
use crate::packet::{Net, Packet};
use crate::record::Uid;
use crate::sink::{Mark, Sink};
use crate::stats::FlowStats;
use crate::time::Nanos;

use account::Origin;
use core::Core;
use steady::Plain;

/// Frames in flight between the stages.
const PIPELINE: usize = 64;

/// Sessions that surround a packet: no decoder opens more tunnels in each other.
const MAX_PARENTS: usize = 16;

/// The sessions of one worker: a fixed number of them at most, in memory that grows no further
/// once that number has been reached.
///
/// `M` is how memory can be asked for things; see [`crate::memory`].
#[derive(Debug)]
pub struct SessionTable<M = AnyMemory> {
    decoder: Decoder,
    core: Core<M>,
    /// Frames between the stages, and those of their keys that are not brief.
    plain: Box<[Plain; PIPELINE]>,
    wide: Box<[PackedKey; PIPELINE]>,
    /// Frames that were looked at ahead of [`SessionTable::observe_batch`].
    ahead: Ahead,
    /// Where the recorder keeps the number of [`FlowHash::UNREAD`].
    unread: Mark,
}

/// Frames that were looked at: how many, and where the first of them lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ahead {
    count: usize,
    first: usize,
}

impl Ahead {
    fn of(frames: &[Frame<'_>]) -> Self {
        let first = frames.first().map_or(0, |frame| frame.bytes.as_ptr().addr());
        Self { count: frames.len(), first }
    }
}

impl SessionTable {
    /// An empty table in plain memory.
    ///
    /// # Errors
    /// A field of the configuration that cannot be used.
    pub fn new(config: FlowConfig) -> Result<Self, ConfigError> {
        Self::in_memory(config)
    }

    /// Bytes that one session takes, its share of the index included.
    #[must_use]
    pub const fn bytes_per_session() -> usize {
        core::BYTES_PER_SESSION
    }
}

impl<M: Memory> SessionTable<M> {
    /// An empty table.
    ///
    /// # Errors
    /// A field of the configuration that cannot be used.
    pub fn in_memory(config: FlowConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let decoder = Decoder::new(&config);
        Ok(Self {
            decoder,
            core: Core::new(config)?,
            plain: Box::new([Plain::NONE; PIPELINE]),
            wide: Box::new([PackedKey::default(); PIPELINE]),
            ahead: Ahead::default(),
            unread: Mark::default(),
        })
    }

    /// Has all of the table's memory made present now, so that no frame waits for it later.
    pub fn populate(&self) {
        self.core.populate();
    }

    /// Looks at the frames that [`Self::observe_batch`] will be given next, and sends for the
    /// memory of their sessions. It changes nothing, and may be left out: whoever has something
    /// else to do with the frames does it in between, while that memory is on its way. Where the
    /// frames lie in the record need not be known yet.
    pub fn look_ahead(&mut self, frames: &[Frame<'_>]) {
        let Some(chunk) = frames.chunks(PIPELINE).next() else { return };
        self.look(chunk);
        self.ahead = Ahead::of(chunk);
    }

    /// The first two stages.
    #[inline]
    fn look(&mut self, chunk: &[Frame<'_>]) {
        for ((plain, wide), frame) in self.plain.iter_mut().zip(self.wide.iter_mut()).zip(chunk) {
            self.core.look(&self.decoder, frame, plain, wide);
        }
        for plain in self.plain.iter_mut().take(chunk.len()) {
            plain.slot = self.core.fetch_session(plain);
        }
    }

    /// Accounts a batch of frames, in order, all of them recorded by one worker or not at all.
    /// Each frame's own time moves the timers.
    pub fn observe_batch(&mut self, frames: &[Frame<'_>], sink: &mut impl Sink) {
        for chunk in frames.chunks(PIPELINE) {
            if std::mem::take(&mut self.ahead) != Ahead::of(chunk) {
                self.look(chunk);
            }
            self.core.count_frames(chunk);
            for (place, frame) in chunk.iter().enumerate() {
                self.core.tick(frame.ts, sink);
                let (plain, wide) = (&self.plain[place], &self.wide[place]);
                if !self.core.steady(frame, plain, wide, sink) {
                    self.observe(frame, plain.slot, sink);
                }
            }
        }
        self.refresh_stats();
    }

    /// Accounts any frame. `guess` may be the slot of its session.
    #[inline(never)]
    fn observe(&mut self, frame: &Frame<'_>, guess: u32, sink: &mut impl Sink) {
        let plain = self.decoder.fast(frame);
        match plain.and_then(|packet| Some((packet, self.core.tuple(&packet)?))) {
            Some((packet, tuple)) => {
                self.core.packet(&packet, &tuple, guess, &Origin::of(frame), sink);
            }
            None => self.decode(frame, sink),
        }
    }

    #[inline(never)]
    fn decode(&mut self, frame: &Frame<'_>, sink: &mut impl Sink) {
        let Self { decoder, core, unread, .. } = self;
        let before = *decoder.inner_stats();
        let mut visitor = Visitor::new(core, Origin::of(frame), sink);
        decoder.advance(frame.ts, &mut visitor);
        let mut is_unread = false;
        let decoded = decoder.decode(frame, &mut visitor);
        if let Some(ether_type) = visitor.without_ip {
            sink.without_ip(ether_type, frame);
        }
        match decoded {
            Ok(Decoded::Counted) => {}
            Ok(Decoded::Held) => core.stats.held += 1,
            Err(reason) => {
                is_unread = true;
                if let Some(count) = core.stats.undecodable.get_mut(reason.index()) {
                    *count += 1;
                }
            }
        }
        let inner = decoder.inner_stats();
        let hides = *inner != before;
        if hides && !is_unread {
            let undecodable = inner.undecodable != before.undecodable;
            core.stats.inner_undecodable += u64::from(undecodable);
            core.stats.inner_too_deep += u64::from(!undecodable);
        }
        // Who asks what was on the wire must be shown the frames of which nobody can tell.
        if (is_unread || hides)
            && let Some(at) = frame.at
        {
            sink.touch(at, FlowHash::UNREAD, unread);
        }
    }

    /// Moves the timers while the wire is quiet. `now` is the engine's clock.
    pub fn advance(&mut self, now: Nanos, sink: &mut impl Sink) {
        let Self { decoder, core, .. } = self;
        let origin = Origin::nowhere(now);
        decoder.advance(now, &mut Visitor::new(core, origin, sink));
        core.tick(now, sink);
        self.refresh_stats();
    }

    /// Writes every session out: the run is over.
    pub fn finish(&mut self, now: Nanos, sink: &mut impl Sink) {
        let Self { decoder, core, .. } = self;
        let origin = Origin::nowhere(now);
        decoder.finish(&mut Visitor::new(core, origin, sink));
        core.finish(now, sink);
        self.refresh_stats();
    }

    /// The engine time before which every frame's session has a row with that frame counted.
    #[must_use]
    pub fn complete_through(&self, now: Nanos) -> Nanos {
        let held = self.decoder.oldest_held().unwrap_or(Nanos::MAX);
        self.core.complete_through(now).min(held)
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> &FlowStats {
        &self.core.stats
    }

    fn refresh_stats(&mut self) {
        let fragments = self.decoder.fragment_stats();
        self.core.stats.datagrams_incomplete = fragments.expired + fragments.evicted;
        self.core.stats.datagrams_inconsistent = fragments.inconsistent;
    }
}

/// Accounts the packets of one frame that took the long way through the decoder.
struct Visitor<'a, M, S> {
    core: &'a mut Core<M>,
    origin: Origin,
    sink: &'a mut S,
    /// Sessions of the packets around the next one, outermost first.
    parents: [Uid; MAX_PARENTS],
    depth: usize,
    /// Session counted last.
    last: u32,
    /// EtherType of a frame that carries something else than IP.
    without_ip: Option<u16>,
}

impl<'a, M: Memory, S: Sink> Visitor<'a, M, S> {
    fn new(core: &'a mut Core<M>, origin: Origin, sink: &'a mut S) -> Self {
        let last = session::NONE;
        let parents = [Uid::default(); MAX_PARENTS];
        Self { core, origin, sink, parents, depth: 0, last, without_ip: None }
    }
}

impl<M: Memory, S: Sink> PacketVisitor for Visitor<'_, M, S> {
    fn packet(&mut self, packet: &Packet<'_>, earlier: &[HeldFrame]) -> Counted {
        self.depth = usize::from(packet.depth).min(MAX_PARENTS);
        if packet.net == Net::None {
            self.without_ip = Some(packet.link.ether_type);
        }
        if !packet.owns_frame && tuple::is_empty_header(packet) {
            return Counted::default();
        }
        let parents = self.parents.get(..self.depth).unwrap_or(&[]);
        let tuple = self.core.any_tuple(packet);
        let slot = self.core.any_packet(packet, &tuple, &self.origin, earlier, parents, self.sink);
        self.last = slot;
        if let Some(parent) = self.parents.get_mut(self.depth) {
            *parent = self.core.uid(slot);
        }
        self.core.counted(slot)
    }

    fn refuse_tunnel(&mut self) {
        if self.last != session::NONE {
            self.core.refuse_tunnel(self.last);
        }
    }

    fn incomplete(&mut self, datagram: &IncompleteDatagram<'_>) {
        self.core.incomplete(datagram, self.origin.ts, self.sink);
    }
}

#[cfg(test)]
mod tests;
