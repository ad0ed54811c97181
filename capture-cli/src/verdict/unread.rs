//! Frames that could not be read: the question must not take them for nothing.
//!
//! The sensor notes them in the segments' indexes under a name of their own
//! ([`FlowHash::UNREAD`]). Here they are looked at again: what can be said of their addresses
//! decides whether the filter rules them out.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Context as _;
use capture_flow::decode::{Unread, UnreadReason, unread};
use capture_flow::frame::{Frame, IfaceId, PcapPosition};
use capture_flow::key::{Address, FlowHash, MacAddr};
use capture_flow::time::{Nanos, NanosDelta};
use capture_store::Store;
use capture_store::index::{SegmentRef, segments};
use capture_store::key::PublicKey;
use capture_store::ledger::{FileProblem, LedgerLine, Vouched, check_files};
use capture_store::pcap::SegmentReader;

use crate::filter::{End, Expr, Net, Subject, Test, Truth};
use crate::packets::scan_segment;
use crate::progress::Bytes;

/// A frame can be counted in the line after the one that its time falls into.
const LATE: NanosDelta = NanosDelta::from_secs(1);

/// A frame that counts to no session, or carries a tunnel whose inside counts to none.
#[derive(Clone, Debug)]
pub struct UnreadFrame {
    /// The store it is in, by its place in the list asked.
    pub store: usize,
    /// When it arrived.
    pub ts: Nanos,
    /// Its bytes on the wire.
    pub wire_len: u32,
    /// Where it lies.
    pub at: PcapPosition,
    /// What could not be read in it, and why. Empty where the frame alone does not tell.
    pub parts: Vec<Unread>,
}

impl UnreadFrame {
    /// Whether the filter leaves open that the frame belongs to a session that matches. Never a
    /// certain yes: there is no such session.
    #[must_use]
    pub fn could_match(&self, filter: &Expr) -> bool {
        let could = |part: &Part<'_>| {
            let sent = filter.eval(part);
            sent.agree(filter.eval(&Part { swapped: true, ..*part })) != Truth::False
        };
        let any = Part { unread: None, swapped: false };
        match self.parts.as_slice() {
            [] => could(&any),
            parts => parts.iter().any(|unread| could(&Part { unread: Some(unread), ..any })),
        }
    }

    /// Why it could not be read, for people.
    #[must_use]
    pub fn why(&self) -> String {
        let reasons: BTreeSet<String> =
            self.parts.iter().map(|part| part.reason.to_string()).collect();
        match reasons.len() {
            0 => "could not be read together with frames before it".to_owned(),
            _ => reasons.into_iter().collect::<Vec<_>>().join("; "),
        }
    }

    /// Whether it counts to the session of a tunnel, and only the inside to none.
    fn is_of_tunnel(&self) -> bool {
        let inside = |part: &Unread| !matches!(part.reason, UnreadReason::Frame(_));
        !self.parts.is_empty() && self.parts.iter().all(inside)
    }

    /// The ends that it shows: those of the innermost header that names any.
    #[must_use]
    pub fn ends(&self) -> Option<(Address, Address)> {
        let ip = self.parts.iter().rev().find_map(|part| part.ip);
        if let Some(ip) = ip {
            return Some((Address::Ip(ip.src), Address::Ip(ip.dst)));
        }
        let link = |part: &Unread| Some((part.link.src?, part.link.dst?));
        let (src, dst) = self.parts.iter().rev().find_map(link)?;
        Some((Address::Mac(src), Address::Mac(dst)))
    }

    /// Ports of those ends.
    #[must_use]
    pub fn ports(&self) -> Option<(u16, u16)> {
        self.parts.iter().rev().find_map(|part| part.ip)?.ports
    }

    /// The IP protocol, where it is known.
    #[must_use]
    pub fn protocol(&self) -> Option<u8> {
        self.parts.iter().rev().find_map(|part| part.ip)?.protocol
    }
}

/// Something unread, seen from one end or the other; without it, anything at all.
#[derive(Clone, Copy)]
struct Part<'a> {
    unread: Option<&'a Unread>,
    swapped: bool,
}

impl Part<'_> {
    /// Source and destination, or the other way round, as a test wants them.
    fn ends<T: Copy>(&self, end: End, ends: Option<(T, T)>, test: impl Fn(T) -> bool) -> Truth {
        let Some((src, dst)) = ends else { return Truth::Maybe };
        let (orig, resp) = if self.swapped { (dst, src) } else { (src, dst) };
        match end {
            End::Any => test(orig) || test(resp),
            End::Both => test(orig) && test(resp),
            End::Orig => test(orig),
            End::Resp => test(resp),
        }
        .into()
    }

    fn address(&self, end: End, net: &Net) -> Truth {
        let ip = self.unread.and_then(|unread| unread.ip).filter(|ip| ip.is_certain);
        self.ends(end, ip.map(|ip| (ip.src, ip.dst)), |addr: IpAddr| net.contains(addr))
    }

    fn mac(&self, end: End, mac: MacAddr) -> Truth {
        let link = self.unread.and_then(|unread| Some((unread.link.src?, unread.link.dst?)));
        self.ends(end, link, |addr| addr == mac)
    }

    fn port(&self, end: End, first: u16, last: u16) -> Truth {
        let ip = self.unread.and_then(|unread| unread.ip);
        match ip.and_then(|ip| ip.protocol) {
            Some(6 | 17 | 33 | 132 | 136) | None => {}
            Some(_) => return Truth::False,
        }
        self.ends(end, ip.and_then(|ip| ip.ports), |port| (first..=last).contains(&port))
    }

    fn protocol(&self, is: impl Fn(u8) -> bool) -> Truth {
        let ip = self.unread.and_then(|unread| unread.ip);
        ip.and_then(|ip| ip.protocol).map_or(Truth::Maybe, |protocol| is(protocol).into())
    }

    fn version(&self, wanted: u8) -> Truth {
        let Some(unread) = self.unread else { return Truth::Maybe };
        let version = match (unread.ip.map(|ip| ip.src), unread.link.ether_type) {
            (Some(IpAddr::V4(_)), _) | (None, 0x0800) => 4,
            (Some(IpAddr::V6(_)), _) | (None, 0x86dd) => 6,
            (None, _) => return Truth::Maybe,
        };
        (version == wanted).into()
    }

    fn tag(&self, is: impl Fn(u16) -> bool) -> Truth {
        let Some(unread) = self.unread else { return Truth::Maybe };
        let link = &unread.link;
        if link.vlan.into_iter().chain(link.inner_vlan).any(is) {
            return Truth::True;
        }
        // An IP header ends the link layer: there are no further tags.
        if unread.ip.is_some() { Truth::False } else { Truth::Maybe }
    }
}

impl Subject for Part<'_> {
    fn test(&self, test: &Test) -> Truth {
        match test {
            Test::Net(end, net) => self.address(*end, net),
            Test::Port(end, first, last) => self.port(*end, *first, *last),
            Test::Ipv4 => self.version(4),
            Test::Ipv6 => self.version(6),
            Test::Icmp => self.protocol(|number| number == 1 || number == 58),
            Test::IpProto(wanted) => self.protocol(|number| number == *wanted),
            Test::EtherProto(_) => {
                // A session of its EtherType is one without IP.
                let ip = self.unread.is_some_and(|unread| {
                    unread.ip.is_some() || matches!(unread.link.ether_type, 0x0800 | 0x86dd)
                });
                if ip { Truth::False } else { Truth::Maybe }
            }
            Test::Mac(end, mac) => self.mac(*end, *mac),
            Test::Vlan(None) => self.tag(|_| true),
            Test::Vlan(Some(id)) => self.tag(|tag| tag == *id),
            Test::Locality(_)
            | Test::State(_)
            | Test::Service(_)
            | Test::Count(..)
            | Test::Duration(..)
            | Test::Text(..) => Truth::Maybe,
        }
    }
}

/// The unread frames of a window.
#[derive(Debug, Default)]
pub(super) struct UnreadFrames {
    /// Those within the window, by time.
    pub(super) frames: Vec<UnreadFrame>,
    /// Frames that the ledger counted around the window and that no segment shows: their packets
    /// were dropped, retired or lost.
    pub(super) missing: u64,
    /// What could not be read.
    pub(super) damage: Vec<String>,
    /// Segments of those that the answer rests on, by worker and sequence: were they others, they
    /// could show less.
    pub(super) segments: BTreeSet<(u16, u64)>,
}

/// Finds the unread frames of one store within a window, and says how many cannot be found.
/// Packets up to `retired` were removed to keep the budget.
///
/// # Errors
/// A directory cannot be read.
pub(super) fn find(
    store: &Store,
    place: usize,
    lines: &[LedgerLine],
    (from, to): (Nanos, Nanos),
    retired: Option<Nanos>,
) -> anyhow::Result<UnreadFrames> {
    let mut found = UnreadFrames::default();
    let touching = || lines.iter().filter(|line| line.overlaps(from, to));
    let counted = touching().map(undecodable).fold(0, u64::saturating_add);
    // The lines reach beyond the window, and so must the frames that they counted.
    let begin = touching().map(|line| line.from).min().unwrap_or(from).min(from);
    let end = touching().map(|line| line.to).max().unwrap_or(to).max(to);
    let (first, last) = (begin - LATE, end + LATE);
    let seed = store.identity().hash_seed();
    // With the bytes that may be read, where the index still tells that.
    let mut unsure: Vec<(SegmentRef, u64)> = Vec::new();
    let mut frames: Vec<UnreadFrame> = Vec::new();
    for segment in segments(store)? {
        let index = match segment.index() {
            Ok(index) => index,
            Err(error) => {
                // Retired meanwhile, or damaged: the frames themselves can still be read.
                if segment.pcap_path().exists() {
                    found.damage.push(format!("the index of {}: {error}", name(&segment)));
                    unsure.push((segment, u64::MAX));
                }
                continue;
            }
        };
        let header = *index.header();
        if header.frames == 0 || !header.overlaps(first, last) {
            continue;
        }
        let offsets = match index.postings(FlowHash::UNREAD) {
            Ok(postings) => postings.offsets,
            Err(error) => {
                found.damage.push(format!("the index of {}: {error}", name(&segment)));
                unsure.push((segment, header.pcap_len));
                continue;
            }
        };
        let len = header.pcap_len;
        if let Err(error) = look_at(&segment, place, len, &offsets, (first, last), &mut frames) {
            found.damage.push(format!("{}: {error:#}", name(&segment)));
        }
        // Its journal was full, or its sensor did not note such frames yet.
        if header.unnoted > 0 || (offsets.is_empty() && counted > 0) {
            unsure.push((segment, len));
        }
    }
    // Only where the indexes do not tell are whole segments read.
    // Only those within the lines' own time answer for what the lines counted: others would hide
    // frames that are missing.
    let shown = |frames: &[UnreadFrame]| {
        let of_lines =
            |frame: &&UnreadFrame| !frame.is_of_tunnel() && (begin..=end).contains(&frame.ts);
        frames.iter().filter(of_lines).count() as u64
    };
    let enough = |frames: &[UnreadFrame]| shown(frames) >= counted;
    let told = found.damage.is_empty() && enough(&frames);
    for (segment, len) in unsure.into_iter().filter(|_| !told) {
        let mut offsets = Vec::new();
        let scanned = scan_segment(&segment, len, seed, |at| offsets.push(at.offset));
        offsets.sort_unstable();
        offsets.dedup();
        frames.retain(|f| (f.at.worker, f.at.segment) != (segment.worker, segment.sequence));
        let scanned = scanned
            .and_then(|()| look_at(&segment, place, len, &offsets, (first, last), &mut frames));
        if let Err(error) = scanned {
            found.damage.push(format!("{}: {error:#}", name(&segment)));
        }
    }
    frames.sort_by_key(|frame| (frame.ts, frame.at));
    // Frames that carry a tunnel count beside the others, and only for each other.
    let hidden = touching().map(hiding).fold(0, u64::saturating_add);
    // Where packets of the window were retired, what is left proves nothing about what is gone.
    found.missing = match retired {
        Some(through) if through >= from => counted.saturating_add(hidden),
        _ => {
            let of_tunnels =
                |frame: &&UnreadFrame| frame.is_of_tunnel() && (begin..=end).contains(&frame.ts);
            let found = frames.iter().filter(of_tunnels).count() as u64;
            let missing = counted.saturating_sub(shown(&frames));
            missing.saturating_add(hidden.saturating_sub(found))
        }
    };
    let shown = frames.iter().filter(|frame| (begin..=end).contains(&frame.ts));
    found.segments = shown.map(|frame| (frame.at.worker, frame.at.segment)).collect();
    frames.retain(|frame| from <= frame.ts && frame.ts <= to);
    found.frames = frames;
    Ok(found)
}

/// What is wrong with segments, by worker and sequence: those that are sealed must be what the
/// ledger says. The packets of an open one can be changed, which TAMPER.md says.
pub(super) fn check_segments(
    store: &Store,
    key: Option<&PublicKey>,
    vouched: &Vouched,
    segments: &BTreeSet<(u16, u64)>,
    from: Nanos,
) -> anyhow::Result<Vec<String>> {
    let root = store.layout().root();
    let sealed: Vec<String> = segments
        .iter()
        .map(|(worker, sequence)| {
            let dir = store.layout().worker(*worker);
            SegmentRef { worker: *worker, sequence: *sequence, dir }.pcap_path()
        })
        .filter(|path| path.with_extension("idx").exists())
        .map(|path| path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned())
        .collect();
    let unknown = sealed.iter().map(String::as_str).filter(|path| vouched.get(path).is_none());
    let late = Vouched::late(store, key, unknown, from).context("cannot read the ledger")?;
    let (mut due, mut wrong) = (Vec::new(), Vec::new());
    for path in &sealed {
        match vouched.get(path).or_else(|| late.get(path)) {
            Some(file) => due.push(file),
            None => wrong.push(format!("{path}: {}", FileProblem::Unknown)),
        }
    }
    let progress = Bytes::new("verifying segments", due.iter().map(|file| file.bytes).sum());
    let outcomes = check_files(store, &due, |bytes| progress.advance(bytes));
    progress.done();
    for (file, outcome) in outcomes {
        wrong.extend(outcome.err().map(|problem| format!("{}: {problem}", file.path)));
    }
    wrong.sort();
    Ok(wrong)
}

/// Frames of a line that count to no session.
fn undecodable(line: &LedgerLine) -> u64 {
    let frames = line.workers.iter().flat_map(|worker| worker.undecodable.values());
    frames.copied().fold(0, u64::saturating_add)
}

/// Frames of a line that count to the session of a tunnel whose inside counts to none.
fn hiding(line: &LedgerLine) -> u64 {
    let frames = line.workers.iter().flat_map(|worker| worker.inner_unread.values());
    frames.copied().fold(0, u64::saturating_add)
}

fn look_at(
    segment: &SegmentRef,
    store: usize,
    committed: u64,
    offsets: &[u32],
    (from, to): (Nanos, Nanos),
    frames: &mut Vec<UnreadFrame>,
) -> anyhow::Result<()> {
    if offsets.is_empty() {
        return Ok(());
    }
    let reader = SegmentReader::open(&segment.pcap_path(), committed)?;
    let mut bytes = Vec::new();
    for offset in offsets {
        let record = reader.record_at(u64::from(*offset), &mut bytes)?;
        if record.ts() < from || record.ts() > to {
            continue;
        }
        let frame = Frame {
            ts: record.ts(),
            wire_len: record.wire_len,
            bytes: &bytes,
            link: reader.header().link_type,
            iface: IfaceId(0),
            at: None,
        };
        let at =
            PcapPosition { worker: segment.worker, segment: segment.sequence, offset: *offset };
        let (ts, wire_len) = (record.ts(), record.wire_len);
        frames.push(UnreadFrame { store, ts, wire_len, at, parts: unread(&frame) });
    }
    Ok(())
}

fn name(segment: &SegmentRef) -> String {
    format!("segment w{:02}/{:020}", segment.worker, segment.sequence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use capture_flow::frame::LinkType;

    fn frame(bytes: &[u8]) -> UnreadFrame {
        let whole = Frame {
            ts: Nanos(0),
            wire_len: bytes.len() as u32,
            bytes,
            link: LinkType::ETHERNET,
            iface: IfaceId(0),
            at: None,
        };
        let at = PcapPosition { worker: 0, segment: 1, offset: 24 };
        UnreadFrame { store: 0, ts: Nanos(0), wire_len: 60, at, parts: unread(&whole) }
    }

    /// TCP from 10.0.0.1 to 192.0.2.7, its header cut off behind so many bytes.
    fn cut(transport: &[u8]) -> UnreadFrame {
        let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0];
        bytes.push(20 + transport.len() as u8);
        bytes.extend([0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 192, 0, 2, 7]);
        bytes.extend(transport);
        frame(&bytes)
    }

    fn could(frame: &UnreadFrame, filter: &str) -> bool {
        frame.could_match(&crate::filter::parse(filter).expect("a filter").expr)
    }

    #[test]
    fn addresses_that_can_be_read_decide() {
        let frame = cut(&[0, 1]);
        assert!(!frame.parts.is_empty(), "it could not be read");
        for open in ["", "host 192.0.2.7", "resp host 192.0.2.7 and tcp port 22", "service ssh"] {
            assert!(could(&frame, open), "{open}");
        }
        // Whoever sent it need not have begun the session.
        assert!(could(&frame, "orig host 192.0.2.7"));
        for ruled_out in
            ["host 192.0.2.8", "udp", "ip6", "arp", "orig host 10.0.0.1 and resp host 10.0.0.9"]
        {
            assert!(!could(&frame, ruled_out), "{ruled_out}");
        }
        assert!(!could(&frame, "not host 192.0.2.7"));
    }

    #[test]
    fn ports_that_can_be_read_decide() {
        let frame = cut(&[0x9c, 0x40, 0, 22, 0]);
        assert_eq!(frame.ports(), Some((40_000, 22)));
        assert!(could(&frame, "resp host 192.0.2.7 and tcp port 22"));
        assert!(!could(&frame, "resp host 192.0.2.7 and tcp port 80"));
    }

    #[test]
    fn nothing_rules_out_what_shows_nothing() {
        let frame = frame(&[1, 2, 3]);
        for open in ["host 192.0.2.7", "not host 192.0.2.7", "arp", "vlan 5", "udp port 53"] {
            assert!(could(&frame, open), "{open}");
        }
        assert!(could(&UnreadFrame { parts: Vec::new(), ..frame }, "host 192.0.2.7"));
    }
}
