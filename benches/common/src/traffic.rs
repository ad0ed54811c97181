//! The frames of a traffic, one after the other.
//!
//! A traffic has so many sessions. In each round every session gets its next frame, in an order
//! that visits all of them and no two neighbours after each other; so at any moment all sessions
//! are equally far. Frames go both ways in turn, unless told otherwise. Addresses are those that
//! RFC 2544 (appendix C.2.2) sets aside for this: 198.18.x.y asks 198.19.0.1.

/// TCP: a handshake in three frames, then data, every byte of it in sequence and acknowledged.
pub const TCP: u32 = 6;
/// UDP: data from the first frame on.
pub const UDP: u32 = 17;

/// Frame lengths of a traffic, taken in turn: twelve, since the Internet's mix has seven small
/// frames to four middling and one large.
pub const POSITIONS: usize = 12;
/// The shortest frame, as captured: what Ethernet takes, without the checksum behind it.
pub const SHORTEST: u32 = 60;
/// The longest frame: as much as an IPv4 packet holds.
pub const LONGEST: u32 = 65_535 + ETHERNET;
/// Sessions at most: so many addresses and ports there are.
pub const MAX_SESSIONS: u32 = 1 << 30;

/// Where frames go that have a port to go to. No service is known by it.
pub const SERVER_PORT: u16 = 5001;
/// The first of the originators' ports; they use 16,384 from here on.
pub const FIRST_PORT: u16 = 32_768;
/// What frames are filled with.
pub const FILLER: u8 = b'x';

const ETHERNET: u32 = 14;
const IPV4: u32 = 20;
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const CLIENT_NET: [u8; 2] = [198, 18];
const SERVER: [u8; 4] = [198, 19, 0, 1];
const TIME_TO_LIVE: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000;
const WINDOW: u16 = 0xffff;
const PORT_BITS: u32 = 14;

const FIN: u16 = 0x01;
const SYN: u16 = 0x02;
const PSH: u16 = 0x08;
const ACK: u16 = 0x10;

/// Positions in a table that is read with a mask, as the kernel's verifier wants it.
const TABLE: usize = 16;
/// Data frames of one direction in a cycle of positions.
const HALF: usize = POSITIONS / 2;

/// What every frame of one length has in common.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Length as captured.
    pub frame_bytes: u32,
    /// Of these, what the transport carries.
    pub payload: u32,
    /// The IP packet's length.
    pub ip_bytes: u16,
    /// The IP header's checksum. The identification field balances the address, so it is the same
    /// for every session.
    pub ip_checksum: u16,
    /// The part of TCP's checksum that does not change from frame to frame.
    pub transport_sum: u32,
}

/// What frames a traffic is made of.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// [`TCP`] or [`UDP`].
    pub protocol: u32,
    /// 1 if frames go both ways.
    pub both_ways: u32,
    /// The longest frame.
    pub longest: u32,
    /// The frame lengths; only the first [`POSITIONS`] are used.
    shapes: [Shape; TABLE],
    /// TCP frames without data; as long as the others, by Ethernet's padding.
    bare: Shape,
    /// Payload of a direction's data frames in a cycle, by the first one's position modulo 2.
    cycle: [u32; 2],
    /// Payload of the first n data frames of a direction, by the first one's position and n.
    before: [u32; TABLE * 8],
}

const _: () = assert!(core::mem::size_of::<Shape>() == 16);
const _: () = assert!(core::mem::size_of::<Recipe>() == 12 + 16 * 17 + 8 + 4 * 128);

/// The position of a sender in its traffic.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    /// The first of its sessions.
    first: u32,
    /// How many it has.
    sessions: u32,
    /// How many all senders have.
    total: u32,
    /// From one session to the next; no divisor in common with `sessions`.
    stride: u32,
    /// Frames until a session is over and another one takes its place; 0 for never.
    per_session: u32,
    /// Number of the frame, in 32 bits; it stands in the payload.
    number: u32,
    /// From frame to frame.
    number_step: u32,
    /// Frames already made in this round.
    index: u32,
    /// `index` modulo [`POSITIONS`].
    index_phase: u32,
    /// The session, among those of this sender.
    session: u32,
    /// Frames that this session had before.
    round: u32,
    /// `round` modulo [`POSITIONS`].
    round_phase: u32,
    /// What sessions that are over have used up.
    base: u32,
    /// Data frames of this frame's direction before, in whole cycles and the rest.
    same_cycles: u32,
    same_rest: u32,
    /// The same for the other direction.
    other_cycles: u32,
    other_rest: u32,
    /// Only there so that there is no padding.
    spare: u32,
}

const _: () = assert!(core::mem::size_of::<Walk>() == 72);

/// The beginning of a frame: all that differs from frame to frame. Where UDP's header is shorter
/// than TCP's, the rest is payload and left alone.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Head {
    target_mac: [u8; 6],
    source_mac: [u8; 6],
    ether_type: [u8; 2],
    version: [u8; 2],
    ip_bytes: [u8; 2],
    identification: [u8; 2],
    fragment: [u8; 2],
    ttl_protocol: [u8; 2],
    ip_checksum: [u8; 2],
    source: [u8; 4],
    target: [u8; 4],
    source_port: [u8; 2],
    target_port: [u8; 2],
    transport: [u8; 20],
}

impl Head {
    /// Bytes of it.
    pub const LEN: usize = core::mem::size_of::<Self>();

    /// The beginning of a frame.
    #[must_use]
    pub fn of(frame: &mut [u8]) -> Option<&mut Self> {
        let bytes = frame.first_chunk_mut::<{ Self::LEN }>()?;
        // SAFETY: a Head is nothing but bytes, as many as the array has: no alignment, no padding,
        // every pattern a value. The borrow passes on.
        Some(unsafe { &mut *bytes.as_mut_ptr().cast::<Self>() })
    }
}

const _: () = assert!(Head::LEN == 58 && Head::LEN <= SHORTEST as usize);
const _: () = assert!(core::mem::align_of::<Head>() == 1);

impl Recipe {
    /// A traffic of frames with these lengths, taken in turn.
    ///
    /// `None` where a length is not between [`SHORTEST`] and [`LONGEST`].
    #[must_use]
    pub fn new(protocol: u32, both_ways: bool, lengths: &[u32; POSITIONS]) -> Option<Self> {
        let transport = if protocol == TCP { 20 } else { 8 };
        let headers = ETHERNET + IPV4 + transport;
        let mut recipe = Self {
            protocol,
            both_ways: u32::from(both_ways),
            longest: 0,
            shapes: [Shape::default(); TABLE],
            bare: Shape::new(protocol, headers, headers),
            cycle: [0; 2],
            before: [0; TABLE * 8],
        };
        for (shape, length) in recipe.shapes.iter_mut().zip(*lengths) {
            if !(SHORTEST..=LONGEST).contains(&length) {
                return None;
            }
            *shape = Shape::new(protocol, headers, length);
            recipe.longest = recipe.longest.max(length);
        }
        for position in 0..POSITIONS {
            let payload = |n: usize| recipe.shapes[(position + 2 * n) % POSITIONS].payload;
            let sum = |frames: usize| (0..frames).map(payload).sum::<u32>();
            for frames in 0..HALF {
                recipe.before[position * 8 + frames] = sum(frames);
            }
            recipe.cycle[position % 2] = sum(HALF);
        }
        Some(recipe)
    }

    /// Length of the frame that a sender makes next.
    #[inline(always)]
    #[must_use]
    pub fn frame_bytes(&self, walk: &Walk) -> u32 {
        self.shape(walk).frame_bytes
    }

    /// Writes the beginning of the frame that a sender makes next.
    #[inline(always)]
    pub fn write(&self, walk: &Walk, head: &mut Head) {
        let id = walk.id();
        let outward = self.outward(walk.round);
        let data = self.protocol == UDP || walk.round >= self.handshake();
        let shape = if data { self.shape(walk) } else { &self.bare };
        let client_low = (id >> PORT_BITS) as u16;
        let [high, low] = client_low.to_be_bytes();
        let client = [CLIENT_NET[0], CLIENT_NET[1], high, low];
        let client_port = FIRST_PORT | (id as u16 & ((1 << PORT_BITS) - 1));

        head.ether_type = [0x08, 0x00];
        head.version = [0x45, 0];
        head.ip_bytes = shape.ip_bytes.to_be_bytes();
        head.identification = (!client_low).to_be_bytes();
        head.fragment = DONT_FRAGMENT.to_be_bytes();
        head.ttl_protocol = [TIME_TO_LIVE, self.protocol as u8];
        head.ip_checksum = shape.ip_checksum.to_be_bytes();
        if outward {
            (head.source_mac, head.target_mac) = (CLIENT_MAC, SERVER_MAC);
            (head.source, head.target) = (client, SERVER);
            head.source_port = client_port.to_be_bytes();
            head.target_port = SERVER_PORT.to_be_bytes();
        } else {
            (head.source_mac, head.target_mac) = (SERVER_MAC, CLIENT_MAC);
            (head.source, head.target) = (SERVER, client);
            head.source_port = SERVER_PORT.to_be_bytes();
            head.target_port = client_port.to_be_bytes();
        }
        let number = walk.number.to_be_bytes();
        if self.protocol == UDP {
            // No checksum: IPv4 allows it, and no sensor has to believe one.
            let bytes = (shape.ip_bytes - IPV4 as u16).to_be_bytes();
            head.transport[..2].copy_from_slice(&bytes);
            head.transport[2..4].copy_from_slice(&[0, 0]);
            head.transport[4..8].copy_from_slice(&number);
            return;
        }
        let (sequence, acknowledged, flags) = self.segment(walk, id, outward);
        let mut sum = shape.transport_sum + u32::from(client_low) + u32::from(client_port);
        sum += words(sequence) + words(acknowledged) + u32::from(flags);
        if data {
            sum += words(walk.number);
        }
        let checksum = !folded(sum);
        head.transport[..4].copy_from_slice(&sequence.to_be_bytes());
        head.transport[4..8].copy_from_slice(&acknowledged.to_be_bytes());
        head.transport[8..10].copy_from_slice(&(0x5000 | flags).to_be_bytes());
        head.transport[10..12].copy_from_slice(&WINDOW.to_be_bytes());
        head.transport[12..14].copy_from_slice(&checksum.to_be_bytes());
        head.transport[14..16].copy_from_slice(&[0, 0]);
        head.transport[16..].copy_from_slice(&number);
    }

    /// Frames of a TCP session before its first data.
    #[inline(always)]
    fn handshake(&self) -> u32 {
        if self.both_ways == 0 { 1 } else { 3 }
    }

    /// Whether the originator sends the frame of a round.
    #[inline(always)]
    fn outward(&self, round: u32) -> bool {
        // A TCP handshake takes three frames, and then it is its originator's turn again.
        let turn = round + u32::from(self.protocol == TCP && round > 2);
        self.both_ways == 0 || turn & 1 == 0
    }

    #[inline(always)]
    fn shape(&self, walk: &Walk) -> &Shape {
        &self.shapes[wrapped(walk.index_phase + walk.round_phase) as usize & (TABLE - 1)]
    }

    /// Sequence number, acknowledged number and flags of a TCP frame.
    #[inline(always)]
    fn segment(&self, walk: &Walk, id: u32, outward: bool) -> (u32, u32, u16) {
        let originator = id.wrapping_mul(0x9e37_79b1);
        let (own, peer) =
            if outward { (originator, !originator) } else { (!originator, originator) };
        let (own_data, peer_data) = (own.wrapping_add(1), peer.wrapping_add(1));
        let last = walk.per_session != 0 && walk.round + 1 == walk.per_session;
        if self.both_ways == 0 {
            if walk.round == 0 {
                return (own, 0, SYN);
            }
            // The data frames follow each other, so they are those of both directions together.
            let sent = self.sent(walk.index_phase + 1, walk.same_cycles, walk.same_rest)
                + self.sent(walk.index_phase + 2, walk.other_cycles, walk.other_rest);
            let flags = ACK | PSH | if last { FIN } else { 0 };
            return (own_data.wrapping_add(sent), peer_data, flags);
        }
        match walk.round {
            0 => (own, 0, SYN),
            1 => (own, peer_data, SYN | ACK),
            2 => (own_data, peer_data, ACK),
            _ => {
                let (own_start, peer_start) = if outward { (3, 4) } else { (4, 3) };
                let sent =
                    self.sent(walk.index_phase + own_start, walk.same_cycles, walk.same_rest);
                let got =
                    self.sent(walk.index_phase + peer_start, walk.other_cycles, walk.other_rest);
                // Both sides end with their last frame; the second one has seen the first one's.
                let ends = last || (walk.per_session != 0 && walk.round + 2 == walk.per_session);
                let flags = ACK | PSH | if ends { FIN } else { 0 };
                let got = got.wrapping_add(u32::from(last && walk.round > 3));
                (own_data.wrapping_add(sent), peer_data.wrapping_add(got), flags)
            }
        }
    }

    /// Payload of so many data frames of a direction, of which the first stands at `position`.
    #[inline(always)]
    fn sent(&self, position: u32, cycles: u32, rest: u32) -> u32 {
        let position = wrapped(position) as usize & (TABLE - 1);
        let before = self.before[position * 8 + (rest as usize & 7)];
        cycles.wrapping_mul(self.cycle[position & 1]).wrapping_add(before)
    }
}

impl Shape {
    fn new(protocol: u32, headers: u32, frame_bytes: u32) -> Self {
        let payload = frame_bytes - headers;
        let ip_bytes = (frame_bytes - ETHERNET) as u16;
        // The address's lower half and the identification, its complement, make 0xffff together.
        let ip = 0x4500
            + u32::from(ip_bytes)
            + 0xffff
            + u32::from(DONT_FRAGMENT)
            + (u32::from(TIME_TO_LIVE) << 8 | protocol)
            + u32::from(u16::from_be_bytes(CLIENT_NET))
            + words(u32::from_be_bytes(SERVER));
        // Of the payload, four bytes are the frame's number.
        let filler = u32::from(u16::from_be_bytes([FILLER, FILLER]));
        let filled = payload.saturating_sub(4);
        let odd = filled % 2 * (u32::from(FILLER) << 8);
        let transport = u32::from(u16::from_be_bytes(CLIENT_NET))
            + words(u32::from_be_bytes(SERVER))
            + protocol
            + (u32::from(ip_bytes) - IPV4)
            + u32::from(SERVER_PORT)
            + 0x5000
            + u32::from(WINDOW)
            + filled / 2 * filler
            + odd;
        Self {
            frame_bytes,
            payload,
            ip_bytes,
            ip_checksum: !folded(ip),
            transport_sum: u32::from(folded(transport)),
        }
    }
}

impl Walk {
    /// The start of a sender with `sessions` sessions from number `first` on, of `total` that all
    /// senders have. It makes the frames `number`, `number + senders`, and so on.
    ///
    /// `None` without a session, or with more than there are addresses for.
    #[must_use]
    pub fn new(
        first: u32,
        sessions: u32,
        total: u32,
        per_session: u32,
        (number, senders): (u32, u32),
    ) -> Option<Self> {
        let inside = first.checked_add(sessions).is_some_and(|end| end <= total);
        (sessions > 0 && inside && total <= MAX_SESSIONS).then(|| Self {
            first,
            sessions,
            total,
            stride: stride(sessions),
            per_session,
            number,
            number_step: senders,
            ..Self::default()
        })
    }

    /// On to the next frame.
    #[inline(always)]
    pub fn step(&mut self, recipe: &Recipe) {
        self.number = self.number.wrapping_add(self.number_step);
        self.index += 1;
        if self.index < self.sessions {
            self.session += self.stride;
            if self.session >= self.sessions {
                self.session -= self.sessions;
            }
            self.index_phase = wrapped(self.index_phase + 1);
            return;
        }
        (self.index, self.index_phase, self.session) = (0, 0, 0);
        self.round += 1;
        self.round_phase = wrapped(self.round_phase + 1);
        if self.per_session != 0 && self.round >= self.per_session {
            (self.round, self.round_phase) = (0, 0);
            self.base = self.base.wrapping_add(self.total);
        }
        let data = self.round.saturating_sub(recipe.handshake());
        let (same, other) = if recipe.both_ways == 0 {
            // Taken as two directions in turn.
            (data.div_ceil(2), data / 2)
        } else {
            (data / 2, data.div_ceil(2))
        };
        let half = HALF as u32;
        (self.same_cycles, self.same_rest) = (same / half, same % half);
        (self.other_cycles, self.other_rest) = (other / half, other % half);
    }

    /// Which session it is, over all senders and all that are over.
    #[inline(always)]
    fn id(&self) -> u32 {
        self.base.wrapping_add(self.first).wrapping_add(self.session)
    }
}

/// A number without a common divisor with `sessions`, close to the golden section: sessions that
/// are visited one after the other lie far from each other.
fn stride(sessions: u32) -> u32 {
    let golden = (u64::from(sessions) * 618 / 1000) as u32;
    (golden.max(1)..sessions).find(|stride| divisor(*stride, sessions) == 1).unwrap_or(1)
}

/// The greatest common divisor.
fn divisor(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// A position below twice [`POSITIONS`] brought below it.
#[inline(always)]
fn wrapped(position: u32) -> u32 {
    if position >= POSITIONS as u32 { position - POSITIONS as u32 } else { position }
}

/// The two halves of a word as the Internet's checksum adds them.
#[inline(always)]
fn words(value: u32) -> u32 {
    (value >> 16) + (value & 0xffff)
}

/// Carries added back (RFC 1071).
#[inline(always)]
fn folded(sum: u32) -> u16 {
    let once = words(sum);
    words(once) as u16
}

#[cfg(test)]
mod tests;
