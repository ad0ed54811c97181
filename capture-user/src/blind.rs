//! Times in which the sensor could not see, on their way into the ledger.
//!
//! Whoever notices a cause begins it here, and ends it where it is mended: the thread that watches
//! over a capture, or the flush thread. Each line of the ledger takes what lies in its interval; a
//! time is forgotten only once a line that tells it to its end has been written.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use capture_flow::time::{Nanos, NanosDelta};
use capture_store::ledger::{Blind, BlindCause};

/// Times that are kept apart at most while no line can be written. Beyond, what comes and goes is
/// one time with what was before it: rather too long than too short.
const MOST: usize = 4096;

/// What cannot see, and why. Of each there is one time at once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// Why.
    pub cause: BlindCause,
    /// The interface, where it is one.
    pub iface: Option<String>,
    /// Its queue, where it is one.
    pub queue: Option<u32>,
    /// The worker, where it is one.
    pub worker: Option<u16>,
}

impl Subject {
    /// The whole sensor.
    #[must_use]
    pub fn sensor(cause: BlindCause) -> Self {
        Self { cause, iface: None, queue: None, worker: None }
    }

    /// An interface.
    #[must_use]
    pub fn interface(cause: BlindCause, name: &str) -> Self {
        Self { iface: Some(name.to_owned()), ..Self::sensor(cause) }
    }

    /// A receive queue.
    #[must_use]
    pub fn queue(cause: BlindCause, name: &str, queue: u32) -> Self {
        Self { queue: Some(queue), ..Self::interface(cause, name) }
    }

    /// A worker.
    #[must_use]
    pub fn worker(cause: BlindCause, worker: u16) -> Self {
        Self { worker: Some(worker), ..Self::sensor(cause) }
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(iface) = &self.iface {
            write!(f, "{iface}")?;
            if let Some(queue) = self.queue {
                write!(f, " queue {queue}")?;
            }
            write!(f, ": ")?;
        }
        if let Some(worker) = self.worker {
            write!(f, "worker {worker}: ")?;
        }
        f.write_str(self.cause.as_str())
    }
}

/// One time of one subject.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    from: Nanos,
    /// `None` while it lasts.
    to: Option<Nanos>,
    detail: String,
    /// Whether a line that was written has its beginning.
    told: bool,
}

/// Everything that is or was blind and has not been told to its end.
#[derive(Debug)]
pub struct Blindness {
    spans: Mutex<Spans>,
    noticed_through: AtomicI64,
    /// News that workers have sent and nobody has taken in yet.
    on_their_way: AtomicUsize,
}

impl Default for Blindness {
    /// Nothing is blind, and nobody has to look for it.
    fn default() -> Self {
        Self {
            spans: Mutex::default(),
            noticed_through: AtomicI64::new(Nanos::MAX.0),
            on_their_way: AtomicUsize::new(0),
        }
    }
}

#[derive(Debug, Default)]
struct Spans {
    number: u64,
    by_number: BTreeMap<u64, (Subject, Span)>,
}

/// What one line tells.
#[derive(Debug, Default)]
pub struct Told {
    /// For the line.
    pub blind: Vec<Blind>,
    /// Whether anything began or ended, so that the line cannot wait.
    pub news: bool,
    /// What a written line has settled: the time, and whether to its end.
    numbers: Vec<(u64, bool)>,
}

impl Blindness {
    /// Whatever began before this moment has been noticed; later things perhaps not yet.
    pub fn notice_through(&self, at: Nanos) {
        self.noticed_through.store(at.0, Ordering::Release);
    }

    /// A worker is about to send news of something that blinded it. To be called before it
    /// publishes that it got further.
    pub fn expect_news(&self) {
        self.on_their_way.fetch_add(1, Ordering::Release);
    }

    /// So many news have come, and what they tell of is begun here.
    pub fn took_news(&self, number: usize) {
        self.on_their_way.fetch_sub(number, Ordering::Release);
    }

    /// Until when everything that blinds has been noticed; `None` while there is news on its way, of
    /// times that are not known yet: no more can be promised than before. To be asked for after the
    /// workers' counters were read, and before [`Self::told`]: then that tells all of it.
    #[must_use]
    pub fn noticed_through(&self) -> Option<Nanos> {
        let through = Nanos(self.noticed_through.load(Ordering::Acquire));
        (self.on_their_way.load(Ordering::Acquire) == 0).then_some(through)
    }

    /// A cause is there, since `from` at the latest. Returns whether that is new; of one that is
    /// known the beginning stays, and `detail` replaces what was said.
    pub fn begin(&self, subject: Subject, from: Nanos, detail: &str) -> bool {
        let mut spans = self.spans();
        if let Some(span) = spans.open(&subject) {
            detail.clone_into(&mut span.detail);
            return false;
        }
        spans.add(subject, Span { from, to: None, detail: detail.to_owned(), told: false });
        true
    }

    /// A cause is gone, since `to` at the latest. Returns when it began, if it was there.
    pub fn end(&self, subject: &Subject, to: Nanos) -> Option<Nanos> {
        let mut spans = self.spans();
        let span = spans.open(subject)?;
        span.to = Some(to.max(span.from));
        Some(span.from)
    }

    /// A cause was there and is gone. Where the same is known already, its time grows.
    pub fn was(&self, subject: Subject, from: Nanos, to: Nanos, detail: &str) {
        let mut spans = self.spans();
        if spans.open(&subject).is_some() {
            return;
        }
        let to = to.max(from);
        let known = spans.by_number.values_mut().find(|(known, span)| {
            *known == subject && !span.told && span.from <= to && span.to >= Some(from)
        });
        if let Some((_, span)) = known {
            span.from = span.from.min(from);
            span.to = span.to.max(Some(to));
            return;
        }
        spans.add(subject, Span { from, to: Some(to), detail: detail.to_owned(), told: false });
    }

    /// The machine's clock was set back to `now`: nothing has begun or ended later.
    pub fn clock_was_set_back(&self, now: Nanos) {
        self.noticed_through.fetch_min(now.0, Ordering::AcqRel);
        for (_, span) in self.spans().by_number.values_mut() {
            span.from = span.from.min(now);
            span.to = span.to.map(|to| to.min(now));
        }
    }

    /// What is blind now.
    #[must_use]
    pub fn now(&self) -> Vec<Subject> {
        let spans = self.spans();
        let open = spans.by_number.values().filter(|(_, span)| span.to.is_none());
        open.map(|(subject, _)| subject.clone()).collect()
    }

    /// Whether nothing of an interface can be seen now.
    #[must_use]
    pub fn hides(&self, iface: &str) -> bool {
        let spans = self.spans();
        spans.by_number.values().any(|(subject, span)| {
            span.to.is_none()
                && subject.iface.as_deref() == Some(iface)
                && subject.queue.is_none()
                && subject.cause != BlindCause::Silent
        })
    }

    /// What the line of an interval says. A time that a line has begun to tell is cut to the
    /// interval; one that was noticed since may reach back.
    #[must_use]
    pub fn told(&self, from: Nanos, to: Nanos) -> Told {
        let mut told = Told::default();
        for (number, (subject, span)) in &self.spans().by_number {
            // Begun after the interval was closed: the next line's.
            if span.from > to {
                continue;
            }
            let begin = if span.told { span.from.max(from) } else { span.from };
            let end = span.to.map_or(to, |end| end.min(to));
            let over = span.to.is_some_and(|end| end <= to);
            told.news |= !span.told || over;
            told.numbers.push((*number, over));
            // Ended before the line that told it last did.
            if begin <= end {
                told.blind.push(Blind {
                    from: begin,
                    to: end,
                    cause: subject.cause,
                    iface: subject.iface.clone(),
                    queue: subject.queue,
                    worker: subject.worker,
                    detail: span.detail.clone(),
                });
            }
        }
        told
    }

    /// The line was written.
    pub fn settle(&self, told: &Told) {
        let mut spans = self.spans();
        for (number, over) in &told.numbers {
            if *over {
                spans.by_number.remove(number);
            } else if let Some((_, span)) = spans.by_number.get_mut(number) {
                span.told = true;
            }
        }
    }

    fn spans(&self) -> MutexGuard<'_, Spans> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spans {
    fn open(&mut self, subject: &Subject) -> Option<&mut Span> {
        let mut known = self.by_number.values_mut();
        let (_, span) = known.find(|(known, span)| known == subject && span.to.is_none())?;
        Some(span)
    }

    fn add(&mut self, subject: Subject, span: Span) {
        if self.by_number.len() >= MOST {
            let mut known = self.by_number.values_mut().rev();
            if let Some((_, known)) = known.find(|(known, _)| *known == subject) {
                known.from = known.from.min(span.from);
                known.to = span.to.map(|to| known.to.map_or(to, |known| known.max(to)));
                known.detail = span.detail;
                return;
            }
        }
        self.number = self.number.wrapping_add(1);
        self.by_number.insert(self.number, (subject, span));
    }
}

/// Nanoseconds of an interval that lie in one of an interface's times without a link.
#[must_use]
pub fn down_ns(blind: &[Blind], iface: &str, from: Nanos, to: Nanos) -> u64 {
    let mut times: Vec<(Nanos, Nanos)> = blind
        .iter()
        .filter(|blind| {
            matches!(blind.cause, BlindCause::LinkDown | BlindCause::InterfaceGone)
                && blind.iface.as_deref() == Some(iface)
        })
        .map(|blind| (blind.from.max(from), blind.to.min(to)))
        .collect();
    times.sort_unstable();
    let mut covered = from;
    let mut down = NanosDelta(0);
    for (begin, end) in times {
        let begin = begin.max(covered);
        if end > begin {
            down = NanosDelta(down.0.saturating_add((end - begin).0));
            covered = end;
        }
    }
    u64::try_from(down.0).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone() -> Subject {
        Subject::interface(BlindCause::InterfaceGone, "tap0")
    }

    /// The times that a line tells, in short.
    fn line(blindness: &Blindness, from: i64, to: i64, written: bool) -> (Vec<(i64, i64)>, bool) {
        let told = blindness.told(Nanos(from), Nanos(to));
        if written {
            blindness.settle(&told);
        }
        (told.blind.iter().map(|blind| (blind.from.0, blind.to.0)).collect(), told.news)
    }

    #[test]
    fn a_cause_is_in_every_line_until_it_is_mended() {
        let blindness = Blindness::default();
        assert!(blindness.begin(gone(), Nanos(5), "x"));
        assert!(!blindness.begin(gone(), Nanos(7), "y"), "it is known");
        // It reaches back, since it was noticed late; and it is news.
        assert_eq!(line(&blindness, 10, 20, true), (vec![(5, 20)], true));
        assert_eq!(line(&blindness, 20, 30, true), (vec![(20, 30)], false));
        assert_eq!(blindness.end(&gone(), Nanos(34)), Some(Nanos(5)));
        assert_eq!(blindness.end(&gone(), Nanos(35)), None);
        assert_eq!(line(&blindness, 30, 40, true), (vec![(30, 34)], true));
        assert_eq!(line(&blindness, 40, 50, true), (vec![], false));
    }

    #[test]
    fn a_line_that_was_not_written_has_told_nothing() {
        let blindness = Blindness::default();
        blindness.was(gone(), Nanos(12), Nanos(13), "");
        assert_eq!(line(&blindness, 10, 20, false), (vec![(12, 13)], true));
        assert_eq!(line(&blindness, 10, 30, true), (vec![(12, 13)], true));
        assert_eq!(line(&blindness, 30, 40, true), (vec![], false));
    }

    #[test]
    fn what_begins_after_the_interval_is_the_next_lines() {
        let blindness = Blindness::default();
        blindness.begin(gone(), Nanos(25), "");
        assert_eq!(line(&blindness, 10, 20, true), (vec![], false));
        blindness.end(&gone(), Nanos(45));
        // It is over, but not in this line.
        assert_eq!(line(&blindness, 20, 30, true), (vec![(25, 30)], true));
        assert_eq!(line(&blindness, 30, 40, true), (vec![(30, 40)], false));
        assert_eq!(line(&blindness, 40, 50, true), (vec![(40, 45)], true));
    }

    #[test]
    fn an_end_that_lies_in_a_line_already_written_adds_nothing() {
        let blindness = Blindness::default();
        blindness.begin(gone(), Nanos(5), "");
        assert_eq!(line(&blindness, 0, 10, true).0, [(5, 10)]);
        blindness.end(&gone(), Nanos(9));
        assert_eq!(line(&blindness, 10, 20, true), (vec![], true));
        assert_eq!(line(&blindness, 20, 30, true), (vec![], false));
    }

    #[test]
    fn a_clock_that_is_set_back_takes_the_times_with_it() {
        let blindness = Blindness::default();
        blindness.begin(gone(), Nanos(1_000), "");
        assert_eq!(line(&blindness, 990, 1_010, true).0, [(1_000, 1_010)]);
        blindness.clock_was_set_back(Nanos(500));
        assert_eq!(line(&blindness, 500, 510, true), (vec![(500, 510)], false));
        blindness.end(&gone(), Nanos(515));
        assert_eq!(line(&blindness, 510, 520, true), (vec![(510, 515)], true));
    }

    #[test]
    fn what_two_have_noticed_is_one_time() {
        let blindness = Blindness::default();
        blindness.begin(gone(), Nanos(5), "");
        blindness.end(&gone(), Nanos(20));
        blindness.was(gone(), Nanos(3), Nanos(18), "");
        blindness.was(gone(), Nanos(40), Nanos(41), "");
        assert_eq!(line(&blindness, 0, 50, true).0, [(3, 20), (40, 41)]);
    }

    #[test]
    fn an_interface_is_hidden_by_what_concerns_all_of_it() {
        let blindness = Blindness::default();
        blindness.begin(Subject::queue(BlindCause::QueueUnserved, "tap0", 1), Nanos(1), "");
        blindness.begin(Subject::interface(BlindCause::Silent, "tap0"), Nanos(1), "");
        blindness.begin(Subject::interface(BlindCause::LinkDown, "tap1"), Nanos(1), "");
        assert!(!blindness.hides("tap0") && blindness.hides("tap1"));
        assert_eq!(blindness.now().len(), 3);
    }

    #[test]
    fn a_link_that_flaps_while_nothing_can_be_written_takes_no_more_and_more_memory() {
        let blindness = Blindness::default();
        for at in 0..10_000 {
            blindness.begin(gone(), Nanos(10 * at), "");
            blindness.end(&gone(), Nanos(10 * at + 5));
        }
        let told = blindness.told(Nanos(0), Nanos(200_000));
        assert_eq!(told.blind.len(), MOST);
        assert_eq!(told.blind.last().map(|blind| blind.to), Some(Nanos(99_995)));
    }

    #[test]
    fn time_without_a_link_is_counted_once() {
        let blindness = Blindness::default();
        let down = |cause, from, to| {
            blindness.was(Subject::interface(cause, "tap0"), Nanos(from), Nanos(to), "");
        };
        down(BlindCause::LinkDown, 5, 15);
        down(BlindCause::InterfaceGone, 12, 18);
        down(BlindCause::XdpRemoved, 0, 30);
        let told = blindness.told(Nanos(10), Nanos(20));
        assert_eq!(down_ns(&told.blind, "tap0", Nanos(10), Nanos(20)), 8);
        assert_eq!(down_ns(&told.blind, "tap1", Nanos(10), Nanos(20)), 0);
    }
}
