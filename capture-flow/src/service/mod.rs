//! Which application protocol a session speaks, told by content on any port.
//!
//! The first bytes of each direction decide; TCP segments may be split anywhere. State is
//! bounded twice over: a [`Detector`] is a few bytes in each session, and messages that arrive in
//! pieces wait in a fixed number of slots that all sessions of a worker share. When the slots run
//! out the oldest is taken over: that session keeps its service and may lack a name.

mod dhcp;
mod dns;
mod ftp;
mod http;
mod ntp;
mod quic;
mod rdp;
mod slots;
mod smb;
mod smtp;
mod ssh;
mod tls;

use crate::record::{Service, ServiceDetail};
use slots::{Slots, Ticket};

/// Bytes of one direction that are looked at: a TLS ClientHello with post-quantum keys has about
/// 2,000.
const BUDGET: usize = 4096;

/// Datagrams of one direction that are looked at.
const DATAGRAMS: u16 = 4;

/// What carries the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// A stream.
    Tcp,
    /// Datagrams.
    Udp,
}

/// What a payload told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finding {
    /// The service, the first time it is known.
    pub service: Option<Service>,
    /// Names, once they are known; this can be later than the service.
    pub detail: Option<Box<ServiceDetail>>,
}

/// What is known of one session's service. Lives in the session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detector {
    ticket: Ticket,
    /// Per direction: the stream offset expected next, or datagrams seen.
    next: [u16; 2],
    done: [bool; 2],
    service: Option<Service>,
    hints: u8,
}

impl Detector {
    /// Whether nothing more will be found, so that payload need not be shown any more.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done == [true, true]
    }

    /// Whether payload of one direction can still tell something.
    #[must_use]
    pub fn wants(&self, from_originator: bool) -> bool {
        !self.done[usize::from(!from_originator)]
    }

    /// The service found so far.
    #[must_use]
    pub fn service(&self) -> Option<Service> {
        self.service
    }
}

/// What one protocol makes of the first bytes of one direction.
#[derive(Debug, Default)]
struct Look {
    service: Option<Service>,
    detail: Option<ServiceDetail>,
    /// More bytes could tell more.
    more: bool,
    hints: u8,
}

impl Look {
    fn no() -> Self {
        Self::default()
    }

    fn more() -> Self {
        Self { more: true, ..Self::default() }
    }

    fn yes(service: Service) -> Self {
        Self { service: Some(service), ..Self::default() }
    }

    fn hint(hints: u8) -> Self {
        Self { hints, ..Self::default() }
    }
}

/// Whether `bytes` begin with `prefix`, as far as they go.
fn begins(bytes: &[u8], prefix: &[u8]) -> Option<bool> {
    match bytes.get(..prefix.len()) {
        Some(start) => Some(start == prefix),
        None if prefix.starts_with(bytes) => None,
        None => Some(false),
    }
}

/// Whether `text` contains `word` in upper or lower case.
fn mentions(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word))
}

/// A name from the wire as text: printable ASCII only, so that it can be shown anywhere.
fn name(bytes: &[u8]) -> Option<Box<str>> {
    let sound = !bytes.is_empty() && bytes.len() <= 255 && bytes.iter().all(u8::is_ascii_graphic);
    std::str::from_utf8(bytes).ok().filter(|_| sound).map(Into::into)
}

/// Finds services for the sessions of one worker.
#[derive(Debug)]
pub struct Services {
    slots: Slots,
}

impl Services {
    /// `slots` sessions at once can have a message that arrived in part only; each holds at most
    /// about 8 KiB.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        Self { slots: Slots::new(slots) }
    }

    /// Looks at a payload. `offset` is where it lies in the direction's stream (0 for the first
    /// byte seen) and is ignored for UDP.
    pub fn observe(
        &mut self,
        detector: &mut Detector,
        carrier: Carrier,
        from_originator: bool,
        offset: u32,
        payload: &[u8],
    ) -> Option<Finding> {
        let side = usize::from(!from_originator);
        if payload.is_empty() || detector.done[side] {
            return None;
        }
        let look = match carrier {
            Carrier::Tcp => self.segment(detector, side, offset, payload)?,
            Carrier::Udp => self.datagram(detector, side, payload),
        };
        detector.hints |= look.hints;
        if look.service.is_some() && !look.more {
            // The other direction could only add a name, and it knows none where this one is
            // the client's.
            let named = matches!(look.service, Some(Service::Tls | Service::Http | Service::Quic));
            detector.done[side] = true;
            detector.done[1 - side] |= !named || look.detail.is_some();
        }
        if detector.is_done() {
            self.slots.release(detector.ticket);
        }
        let service = look.service.filter(|_| detector.service.is_none());
        detector.service = detector.service.or(look.service);
        let detail = look.detail.map(Box::new);
        (service.is_some() || detail.is_some()).then_some(Finding { service, detail })
    }

    /// Lets the originator and the responder of a stream change places: the session took each for
    /// the other so far.
    pub fn turn(&mut self, detector: &mut Detector) {
        detector.next.swap(0, 1);
        detector.done.swap(0, 1);
        if let Some(slot) = self.slots.get_mut(detector.ticket) {
            slot.turn();
        }
    }

    fn segment(
        &mut self,
        detector: &mut Detector,
        side: usize,
        offset: u32,
        payload: &[u8],
    ) -> Option<Look> {
        let next = u32::from(detector.next[side]);
        if offset > next {
            // Bytes are missing: what follows cannot be read from its beginning.
            detector.done[side] = true;
            return None;
        }
        let fresh = payload.get((next - offset) as usize..).filter(|rest| !rest.is_empty())?;
        let kept = self.slots.get(detector.ticket).map_or(0, |slot| slot.bytes(side).len());
        if kept != usize::from(detector.next[side]) {
            // The slot was taken over by another session.
            detector.done[side] = true;
            return None;
        }
        let room = BUDGET - kept.min(BUDGET);
        let fresh = fresh.get(..room).unwrap_or(fresh);
        let whole = if kept == 0 {
            fresh
        } else {
            let slot = self.slots.get_mut(detector.ticket)?;
            slot.append(side, fresh);
            slot.bytes(side)
        };
        let mut look = look_at_stream(whole, detector.service, detector.hints);
        let len = whole.len();
        look.more &= len < BUDGET;
        if look.more {
            if kept == 0 {
                detector.ticket = self.slots.keep(detector.ticket, side, fresh);
            }
            detector.next[side] = len as u16;
        } else {
            detector.done[side] = true;
        }
        Some(look)
    }

    fn datagram(&mut self, detector: &mut Detector, side: usize, payload: &[u8]) -> Look {
        detector.next[side] += 1;
        if detector.next[side] >= DATAGRAMS {
            detector.done[side] = true;
        }
        if let Some(look) = quic::datagram(payload, &mut self.slots, &mut detector.ticket) {
            return look;
        }
        if let Some(look) = tls::datagram(payload) {
            return look;
        }
        if detector.service.is_some() {
            return Look::no();
        }
        let found = [dns::datagram, dhcp::datagram, ntp::datagram]
            .into_iter()
            .find_map(|recognise| recognise(payload));
        found.map_or_else(Look::no, Look::yes)
    }
}

/// Asks every stream protocol in turn. None of their beginnings is also another's.
fn look_at_stream(bytes: &[u8], known: Option<Service>, hints: u8) -> Look {
    let mut more = false;
    let protocols: [fn(&[u8], u8) -> Look; 8] = [
        |bytes, _| tls::stream(bytes),
        |bytes, _| http::stream(bytes),
        |bytes, _| ssh::stream(bytes),
        |bytes, _| smb::stream(bytes),
        |bytes, _| rdp::stream(bytes),
        smtp::stream,
        ftp::stream,
        |bytes, _| dns::stream(bytes),
    ];
    let mut left_hints = 0;
    for look_at in protocols {
        let look = look_at(bytes, hints);
        if look.service.is_some() && (known.is_none() || known == look.service) {
            return look;
        }
        more |= look.more;
        left_hints |= look.hints;
    }
    Look { more, hints: left_hints, ..Look::default() }
}

#[cfg(test)]
mod tests;
