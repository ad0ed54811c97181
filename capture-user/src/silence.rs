//! When a wire that says nothing is taken for a dead one.

use std::collections::BTreeMap;

use capture_flow::time::{Nanos, NanosDelta};
use capture_store::ledger::BlindCause;
use tracing::{info, warn};

use crate::blind::{Blindness, Subject};

/// What has come from one interface so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Its name.
    pub iface: String,
    /// Frames.
    pub frames: u64,
    /// When the latest of them came; [`Nanos::MIN`] if there was none.
    pub latest: Nanos,
}

/// The last sign of life of each captured interface, and the rule about them: one that has given
/// none for longer than the limit is blind since, for all that anybody can know.
#[derive(Debug, Default)]
pub struct SignsOfLife {
    limit: Option<NanosDelta>,
    /// When watching began; with the first look if nothing else was said.
    begun: Option<Nanos>,
    /// Whether nothing but a canary is a sign.
    only_canaries: bool,
    /// By interface: frames at the last look, and when it last gave a sign.
    known: BTreeMap<String, (u64, Nanos)>,
}

impl SignsOfLife {
    /// No sign yet. Without a limit silence says nothing.
    #[must_use]
    pub fn new(limit: Option<NanosDelta>) -> Self {
        Self { limit, ..Self::default() }
    }

    /// The same, where nothing but a canary that is believed is a sign.
    #[must_use]
    pub fn only_canaries(self) -> Self {
        Self { only_canaries: true, ..self }
    }

    /// Whether nothing but a canary is a sign.
    #[must_use]
    pub fn are_only_canaries(&self) -> bool {
        self.only_canaries
    }

    fn sign(&self) -> &'static str {
        if self.only_canaries { "canary" } else { "frame" }
    }

    /// Watching begins at this moment.
    pub fn begin(&mut self, at: Nanos) {
        self.begun = Some(at);
    }

    /// The rule in words, to follow what else the policy says.
    #[must_use]
    pub fn policy(&self) -> String {
        self.limit.map_or_else(
            || "; silence of any length is taken for a still wire".to_owned(),
            |limit| {
                let (sign, limit) = (self.sign(), limit.as_secs_f64());
                format!("; no {sign} for longer than {limit} s counts as blind")
            },
        )
    }

    /// Weighs the silence of each interface at `now`.
    pub fn look(&mut self, heard: Vec<Heard>, now: Nanos, blindness: &Blindness) {
        let Some(limit) = self.limit else { return };
        for Heard { iface, frames, latest } in heard {
            let begun = (0, self.begun.unwrap_or(now));
            let (known, last) = self.known.get(&iface).copied().unwrap_or(begun);
            // The clock may have been set back.
            self.known.insert(iface.clone(), (frames, last.min(now)));
            if blindness.hides(&iface) {
                // That is told by itself.
                self.see(&iface, now, now, blindness);
            } else if frames != known {
                self.see(&iface, latest, now, blindness);
            }
            let (_, last) = self.known.get(&iface).copied().unwrap_or((frames, now));
            if now - last > limit {
                let (sign, limit) = (self.sign(), limit.as_secs_f64());
                let detail = format!("no {sign} for longer than {limit} s");
                let silent = Subject::interface(BlindCause::Silent, &iface);
                if blindness.begin(silent, last, &detail) {
                    warn!("{iface} is silent: {detail}; is the tap still there?");
                }
            }
        }
    }

    /// An interface gave a sign of life at a moment: a frame, or anything else that only a live
    /// wire brings.
    pub fn see(&mut self, iface: &str, at: Nanos, now: Nanos, blindness: &Blindness) {
        let Some((_, last)) = self.known.get_mut(iface) else { return };
        *last = (*last).max(at.min(now));
        let silent = Subject::interface(BlindCause::Silent, iface);
        if blindness.end(&silent, *last).is_some() {
            info!("{iface} is silent no longer");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: NanosDelta = NanosDelta(60);

    /// Looks at two interfaces at a moment, given when each had its latest frame, and how many:
    /// which are silent?
    fn look(
        signs: &mut SignsOfLife,
        blindness: &Blindness,
        now: i64,
        frames: [(i64, u64); 2],
    ) -> Vec<String> {
        let heard = ["a", "b"].into_iter().zip(frames).map(|(name, (latest, frames))| Heard {
            iface: name.to_owned(),
            frames,
            latest: Nanos(latest),
        });
        signs.look(heard.collect(), Nanos(now), blindness);
        let silent = blindness.now().into_iter().filter(|s| s.cause == BlindCause::Silent);
        silent.filter_map(|subject| subject.iface).collect()
    }

    const NONE: (i64, u64) = (i64::MIN, 0);

    #[test]
    fn each_interface_is_silent_by_itself() {
        let (mut signs, blindness) = (SignsOfLife::new(Some(LIMIT)), Blindness::default());
        let heard = (120, 7);
        assert_eq!(look(&mut signs, &blindness, 100, [NONE, NONE]), [""; 0], "just begun");
        assert_eq!(look(&mut signs, &blindness, 160, [heard, NONE]), [""; 0]);
        assert_eq!(look(&mut signs, &blindness, 161, [heard, NONE]), ["b"]);
        assert_eq!(look(&mut signs, &blindness, 181, [heard, NONE]), ["b", "a"]);
        // A frame ends it, at its own time.
        assert_eq!(look(&mut signs, &blindness, 200, [heard, (190, 1)]), ["a"]);
        let told = blindness.told(Nanos(0), Nanos(200));
        let times = told.blind.iter().map(|blind| (blind.from.0, blind.to.0));
        assert_eq!(times.collect::<Vec<_>>(), [(100, 190), (120, 200)]);
    }

    #[test]
    fn a_known_blindness_is_no_silence_and_begins_the_count_anew() {
        let (mut signs, blindness) = (SignsOfLife::new(Some(LIMIT)), Blindness::default());
        let gone = Subject::interface(BlindCause::InterfaceGone, "a");
        look(&mut signs, &blindness, 100, [(100, 1), (100, 1)]);
        blindness.begin(gone.clone(), Nanos(130), "");
        assert_eq!(look(&mut signs, &blindness, 300, [(100, 1), (300, 2)]), [""; 0]);
        blindness.end(&gone, Nanos(301));
        assert_eq!(look(&mut signs, &blindness, 360, [(100, 1), (360, 3)]), [""; 0]);
        assert_eq!(look(&mut signs, &blindness, 361, [(100, 1), (360, 3)]), ["a"]);
    }

    #[test]
    fn without_a_limit_nothing_is_silent() {
        let (mut signs, blindness) = (SignsOfLife::new(None), Blindness::default());
        look(&mut signs, &blindness, 0, [NONE, NONE]);
        assert_eq!(look(&mut signs, &blindness, 1_000, [NONE, NONE]), [""; 0]);
        assert!(signs.policy().contains("any length"));
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_old_frame_a_new_one() {
        let (mut signs, blindness) = (SignsOfLife::new(Some(LIMIT)), Blindness::default());
        look(&mut signs, &blindness, 1_000, [NONE, NONE]);
        look(&mut signs, &blindness, 1_000, [(1_000, 1), (1_000, 1)]);
        assert_eq!(look(&mut signs, &blindness, 10, [(1_000, 1), (1_000, 1)]), [""; 0]);
        assert_eq!(look(&mut signs, &blindness, 70, [(1_000, 1), (70, 2)]), [""; 0]);
        assert_eq!(look(&mut signs, &blindness, 71, [(1_000, 1), (70, 2)]), ["a"]);
    }
}
