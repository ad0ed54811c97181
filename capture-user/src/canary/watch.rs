//! Which canaries are believed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use capture_flow::time::{Nanos, NanosDelta};
use capture_store::key::PublicKey;
use capture_store::ledger;
use tracing::{info, warn};

use super::frame::Canary;
use super::inbox::{Arrived, Inbox};
use crate::silence::Heard;

/// How far a canary's time may be from its arrival: the clocks of two hosts, and the way.
const SKEW: NanosDelta = NanosDelta::from_secs(60);
/// Signatures verified at one look (fifty a second): a flood of forgeries takes no more of the
/// flush thread's time.
const AT_ONCE: usize = 8;
/// How often refused canaries are told.
const TELL: Duration = Duration::from_secs(60);

/// Why a canary is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Refusal {
    /// No `--canary` names its key, or its version is unknown.
    Unknown,
    /// Its signature is not the key's.
    Forged,
    /// A newer one, or itself, has been heard before.
    Replayed,
    /// Its time is too far from that of its arrival.
    Skewed,
    /// It came in a flood, and was not even looked at.
    Flood,
}

impl Refusal {
    const fn explain(self) -> &'static str {
        match self {
            Self::Unknown => "signed with a key that no --canary names",
            Self::Forged => "with a signature that does not hold",
            Self::Replayed => "heard before",
            Self::Skewed => {
                "whose time is more than 60 s from their arrival (replayed, or a clock is wrong)"
            }
            Self::Flood => "that came too fast to be looked at",
        }
    }
}

/// Canaries of one key on one interface.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// The newest one's own time: only newer ones count.
    newest: Nanos,
    /// When it arrived.
    last: Nanos,
    /// Since the last line.
    frames: u64,
    /// Since the run began.
    total: u64,
}

/// Verifies canaries and counts them for the ledger.
#[derive(Debug)]
pub struct Watch {
    keys: Vec<PublicKey>,
    known: BTreeMap<(String, [u8; 32]), Known>,
    refused: BTreeMap<(String, Refusal), u64>,
    overflow: u64,
    told: Option<Instant>,
    not_asked_for: bool,
}

impl Watch {
    /// Believes canaries that are signed with one of these keys.
    #[must_use]
    pub fn new(keys: Vec<PublicKey>) -> Self {
        Self {
            keys,
            known: BTreeMap::new(),
            refused: BTreeMap::new(),
            overflow: 0,
            told: None,
            not_asked_for: false,
        }
    }

    /// What the policy says about it.
    #[must_use]
    pub fn policy(&self) -> String {
        match self.keys.len() {
            0 => String::new(),
            _ => {
                let keys: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
                format!("; canaries of {} count as a sign of life", keys.join(", "))
            }
        }
    }

    /// Looks at what has come; `names` are the interfaces by number.
    pub fn look<'a>(&mut self, inboxes: impl Iterator<Item = &'a Inbox>, names: &[String]) {
        let mut overflow = 0_u64;
        let mut left = AT_ONCE;
        for inbox in inboxes {
            overflow = overflow.saturating_add(inbox.overflow());
            while left > 0
                && let Some(heard) = inbox.take()
            {
                left -= 1;
                let Some(iface) = names.get(usize::from(heard.iface.0)) else { continue };
                if let Err(refusal) = self.weigh(iface, &heard) {
                    self.refuse(iface, refusal, 1);
                }
            }
        }
        let more = overflow.saturating_sub(self.overflow);
        if more > 0 {
            self.overflow = overflow;
            self.refuse("", Refusal::Flood, more);
        }
    }

    fn weigh(&mut self, iface: &str, heard: &Arrived) -> Result<(), Refusal> {
        let canary = Canary::read(&heard.payload).ok_or(Refusal::Unknown)?;
        let key = self.keys.iter().find(|key| Canary::key_id(key) == canary.key);
        let key = *key.ok_or(Refusal::Unknown)?;
        // What costs least first.
        let entry = (iface.to_owned(), *key.as_bytes());
        let known = self.known.get(&entry);
        if known.is_some_and(|known| canary.at <= known.newest) {
            return Err(Refusal::Replayed);
        }
        let apart = (heard.at - canary.at).0.saturating_abs();
        if apart > SKEW.0 {
            return Err(Refusal::Skewed);
        }
        if !Canary::is_signed_by(&heard.payload, &key) {
            return Err(Refusal::Forged);
        }
        if known.is_none() {
            info!("{iface}: canary {key} is heard");
        }
        let (frames, total) = known.map_or((0, 0), |known| (known.frames, known.total));
        let known = Known {
            newest: canary.at,
            last: heard.at,
            frames: frames.saturating_add(1),
            total: total.saturating_add(1),
        };
        self.known.insert(entry, known);
        Ok(())
    }

    fn refuse(&mut self, iface: &str, refusal: Refusal, frames: u64) {
        if self.keys.is_empty() {
            if !std::mem::replace(&mut self.not_asked_for, true) {
                info!("canaries arrive on {iface}: --canary PUBKEY lets them count");
            }
            return;
        }
        let count = self.refused.entry((iface.to_owned(), refusal)).or_default();
        *count = count.saturating_add(frames);
    }

    /// What was refused, in words for the ledger, once a minute at most.
    pub fn refusals(&mut self) -> Vec<String> {
        if self.refused.is_empty() || self.told.is_some_and(|told| told.elapsed() < TELL) {
            return Vec::new();
        }
        self.told = Some(Instant::now());
        let refused = std::mem::take(&mut self.refused);
        let told = refused.iter().map(|((iface, refusal), frames)| {
            let place = if iface.is_empty() { String::new() } else { format!("{iface}: ") };
            let text = format!("{place}{frames} canaries did not count: {}", refusal.explain());
            warn!("{text}");
            text
        });
        told.collect()
    }

    /// What interfaces have said, if nothing but canaries counts.
    #[must_use]
    pub fn only_canaries(&self, heard: Vec<Heard>) -> Vec<Heard> {
        let canaries = heard.into_iter().map(|Heard { iface, .. }| {
            let known = self.known.iter().filter(|((place, _), _)| *place == iface);
            let (frames, latest) =
                known.fold((0_u64, Nanos::MIN), |(frames, latest), (_, known)| {
                    (frames.saturating_add(known.total), latest.max(known.last))
                });
            Heard { iface, frames, latest }
        });
        canaries.collect()
    }

    /// What a line of the ledger says: the canaries since the last line that was written.
    #[must_use]
    pub fn line(&self) -> Vec<ledger::Canary> {
        let heard = self.known.iter().filter(|(_, known)| known.frames > 0);
        heard
            .map(|((iface, key), known)| ledger::Canary {
                iface: iface.clone(),
                key: self
                    .keys
                    .iter()
                    .find(|known| known.as_bytes() == key)
                    .map_or_else(String::new, ToString::to_string),
                frames: known.frames,
                last: known.last,
            })
            .collect()
    }

    /// That line was written.
    pub fn settle(&mut self) {
        self.known.values_mut().for_each(|known| known.frames = 0);
    }
}

#[cfg(test)]
mod tests {
    use capture_flow::frame::{Frame, IfaceId, LinkType};
    use capture_store::key::SecretKey;

    use super::*;
    use crate::canary::{DESTINATION, ETHER_TYPE};

    const SECOND: i64 = 1_000_000_000;

    struct Lab {
        key: SecretKey,
        watch: Watch,
        inbox: Inbox,
        now: Nanos,
    }

    impl Lab {
        fn new() -> Self {
            let key = SecretKey::ephemeral().expect("a key");
            let watch = Watch::new(vec![key.public()]);
            Self { key, watch, inbox: Inbox::default(), now: Nanos(1_000 * SECOND) }
        }

        fn hear(&self, iface: u16, payload: &[u8]) {
            let mut bytes = DESTINATION.to_vec();
            bytes.extend_from_slice(&[2, 0, 0, 0, 0, 1]);
            bytes.extend_from_slice(&ETHER_TYPE.to_be_bytes());
            bytes.extend_from_slice(payload);
            self.inbox.offer(&Frame {
                ts: self.now,
                wire_len: 110,
                bytes: &bytes,
                link: LinkType::ETHERNET,
                iface: IfaceId(iface),
                at: None,
            });
        }

        /// Interfaces on which canaries were believed, once for each.
        fn believed(&mut self) -> Vec<String> {
            let names = ["a".to_owned(), "b".to_owned()];
            let before = self.watch.line();
            for _ in 0..16 {
                self.watch.look(std::iter::once(&self.inbox), &names);
            }
            let known = |canary: &ledger::Canary| {
                before.iter().find(|known| known.iface == canary.iface).map_or(0, |k| k.frames)
            };
            let line = self.watch.line().into_iter();
            line.flat_map(|canary| {
                let more = canary.frames - known(&canary);
                std::iter::repeat_n(canary.iface, more as usize)
            })
            .collect()
        }

        fn canary(&self, after: i64) -> [u8; crate::canary::CANARY_LEN] {
            Canary::sign(1, Nanos(self.now.0 + after), &self.key)
        }
    }

    #[test]
    fn a_true_canary_counts_once_on_each_interface() {
        let mut lab = Lab::new();
        let canary = lab.canary(0);
        lab.hear(0, &canary);
        lab.hear(0, &canary);
        lab.hear(1, &canary);
        assert_eq!(lab.believed(), ["a", "b"]);
        let line = lab.watch.line();
        let told: Vec<_> = line.iter().map(|c| (c.iface.as_str(), c.frames, c.last)).collect();
        assert_eq!(told, [("a", 1, lab.now), ("b", 1, lab.now)]);
        assert_eq!(line[0].key, lab.key.public().to_string());
        lab.watch.settle();
        assert_eq!(lab.watch.line(), []);
        assert_eq!(lab.watch.refusals().len(), 1, "the repetition");
    }

    #[test]
    fn an_old_a_forged_and_a_strange_canary_do_not_count() {
        let mut lab = Lab::new();
        let first = lab.canary(0);
        lab.hear(0, &first);
        assert_eq!(lab.believed(), ["a"]);
        lab.now = Nanos(lab.now.0 + 10 * SECOND);
        lab.hear(0, &first);
        // Signed before the one that counted, and not heard then.
        lab.hear(0, &lab.canary(-15 * SECOND));
        // From times that cannot be.
        lab.hear(0, &lab.canary(-61 * SECOND));
        lab.hear(0, &lab.canary(61 * SECOND));
        let mut forged = lab.canary(0);
        forged[31] ^= 1;
        lab.hear(0, &forged);
        let stranger = SecretKey::ephemeral().expect("a key");
        lab.hear(0, &Canary::sign(1, lab.now, &stranger));
        let mut newer = lab.canary(0);
        newer[4] = 2;
        lab.hear(0, &newer);
        assert_eq!(lab.believed(), [""; 0]);
        assert_eq!(lab.watch.line()[0].frames, 1);
        let told = lab.watch.refusals().join("\n");
        for word in ["a: 1 canaries", "signature", "before", "60 s", "no --canary"] {
            assert!(told.contains(word), "{told}");
        }
        assert_eq!(lab.watch.refusals(), [""; 0], "not again so soon");
        // One that comes late, but in time.
        lab.hear(0, &lab.canary(-5 * SECOND));
        assert_eq!(lab.believed(), ["a"]);
    }

    #[test]
    fn a_flood_is_bounded_and_counted() {
        let mut lab = Lab::new();
        for _ in 0..1000 {
            lab.hear(0, &lab.canary(0));
        }
        assert_eq!(lab.believed(), ["a"]);
        let told = lab.watch.refusals().join("\n");
        assert!(told.contains("936 canaries"), "{told}");
    }
}
