//! Moments as analysts write them.

use std::fmt;

use capture_flow::time::Nanos;
use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;

use crate::filter::names;

/// Why a time could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TimeError {
    /// Not one of the forms.
    #[error("`{text}` is not a time; {why}")]
    Form {
        /// As given.
        text: String,
        /// What to write instead.
        why: String,
    },
    /// `--from` lies behind `--to`.
    #[error("the window ends before it begins: --from is {from}, --to is {to}")]
    Backwards {
        /// Beginning, in the zone of the question.
        from: String,
        /// End.
        to: String,
    },
    /// No such zone.
    #[error("`{0}` is not a time zone; for example UTC, local, Europe/Berlin or +02:00")]
    Zone(String),
}

/// Which end of a window a time stands for: a whole day begins or ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// `--from`.
    From,
    /// `--to`.
    To,
}

/// A closed span of time; without an edge it reaches as far as the store does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First moment.
    pub from: Option<Nanos>,
    /// Last moment.
    pub to: Option<Nanos>,
}

impl Window {
    /// All time.
    pub const ALWAYS: Self = Self { from: None, to: None };

    /// First moment, or the earliest there is.
    #[must_use]
    pub fn start(&self) -> Nanos {
        self.from.unwrap_or(Nanos::MIN)
    }

    /// Last moment, or the latest there is.
    #[must_use]
    pub fn end(&self) -> Nanos {
        self.to.unwrap_or(Nanos::MAX)
    }

    /// Whether something that lasted from `first` to `last` falls into it.
    #[must_use]
    pub fn overlaps(&self, first: Nanos, last: Nanos) -> bool {
        first <= self.end() && last >= self.start()
    }
}

/// Reads and writes times in one zone, against one idea of now.
#[derive(Clone, Debug)]
pub struct Clock {
    now: Timestamp,
    zone: TimeZone,
}

impl Clock {
    /// A clock that stands at `now`.
    #[must_use]
    pub fn new(now: Timestamp, zone: TimeZone) -> Self {
        Self { now, zone }
    }

    /// The machine's time in the zone of that name: IANA name, offset, `UTC` or `local`.
    ///
    /// # Errors
    /// [`TimeError::Zone`].
    pub fn system(zone: Option<&str>) -> Result<Self, TimeError> {
        let zone = match zone {
            None => TimeZone::system(),
            Some(name) if name.eq_ignore_ascii_case("local") => TimeZone::system(),
            Some(name) => offset(name)
                .or_else(|| TimeZone::get(name).ok())
                .ok_or_else(|| TimeError::Zone(name.to_owned()))?,
        };
        Ok(Self { now: Timestamp::now(), zone })
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Nanos {
        nanos(self.now).unwrap_or(Nanos::MAX)
    }

    /// The window between two times as given, either of which may be missing.
    ///
    /// # Errors
    /// [`TimeError`] for an unreadable time or a window that runs backwards.
    pub fn window(&self, from: Option<&str>, to: Option<&str>) -> Result<Window, TimeError> {
        let from = from.map(|text| self.read(text, Edge::From)).transpose()?;
        let to = to.map(|text| self.read(text, Edge::To)).transpose()?;
        match (from, to) {
            (Some(from), Some(to)) if from > to => Err(TimeError::Backwards {
                from: self.long(from).to_string(),
                to: self.long(to).to_string(),
            }),
            _ => Ok(Window { from, to }),
        }
    }

    /// Reads one time: RFC 3339, `2007-02-02 06:25[:30[.5]]`, `2007-02-02`, `06:25`,
    /// `yesterday 11:25`, `today`, `now`, `-15m`, `now-1h30m`, seconds since the epoch.
    ///
    /// A day alone means its first moment as `--from` and its last as `--to`.
    ///
    /// # Errors
    /// [`TimeError::Form`], also for a local time that a change of clocks left out or repeated.
    pub fn read(&self, text: &str, edge: Edge) -> Result<Nanos, TimeError> {
        let trimmed = text.trim();
        let fail = |why: &str| TimeError::Form { text: text.to_owned(), why: why.to_owned() };
        let lower = trimmed.to_ascii_lowercase();
        if let Some(moment) = self.relative(&lower) {
            return moment.ok_or_else(|| fail("it is out of range"));
        }
        let digits = lower.strip_prefix('@').unwrap_or(&lower);
        if digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') && !digits.is_empty() {
            if digits == lower && looks_like_date(digits) {
                return Err(fail("write 2007-02-02 for a day, or @SECONDS since the epoch"));
            }
            let number = names::decimal(digits, 1_000_000_000);
            return number.map(Nanos).ok_or_else(|| fail("it is out of range"));
        }
        if let Ok(moment) = trimmed.parse::<Timestamp>() {
            return nanos(moment).ok_or_else(|| fail("it is out of range"));
        }
        let (date, rest) = self.date(&lower).ok_or_else(|| fail(FORMS))?;
        let rest = rest.trim_start_matches([' ', 't']);
        let whole_day = rest.is_empty();
        let time = if whole_day {
            Time::midnight()
        } else {
            clock_time(rest).ok_or_else(|| fail(FORMS))?
        };
        if whole_day && edge == Edge::To {
            let next = date.tomorrow().map_err(|_| fail("it is out of range"))?;
            let next = self.moment(next.to_datetime(Time::midnight()), true);
            return next.map(|n| Nanos(n.0.saturating_sub(1))).map_err(|why| fail(&why));
        }
        self.moment(date.to_datetime(time), whole_day).map_err(|why| fail(&why))
    }

    /// `now`, `-15m`, `now-15m`, `now+5m`; `None` if it is none of these.
    fn relative(&self, text: &str) -> Option<Option<Nanos>> {
        let rest = text.strip_prefix("now").map(str::trim_start);
        let offset = match rest {
            Some("") => return Some(Some(self.now())),
            Some(offset) => offset,
            None => text,
        };
        let (sign, length) = match offset.strip_prefix('-') {
            Some(length) => (-1, length),
            None => (1, offset.strip_prefix('+')?),
        };
        let length = names::duration(length.trim_start())?;
        Some(length.checked_mul(sign).and_then(|by| self.now().0.checked_add(by)).map(Nanos))
    }

    /// The day that the text begins with, and what follows it. A time alone is today's.
    fn date<'t>(&self, text: &'t str) -> Option<(Date, &'t str)> {
        let today = self.now.to_zoned_datetime(self.zone.clone()).date();
        if let Some(rest) = text.strip_prefix("yesterday") {
            return Some((today.yesterday().ok()?, rest));
        }
        if let Some(rest) = text.strip_prefix("today") {
            return Some((today, rest));
        }
        if let Some(head) = text.get(..10)
            && let Ok(date) = head.parse::<Date>()
        {
            return Some((date, text.get(10..)?));
        }
        clock_time(text).map(|_| (today, text))
    }

    /// The moment of a local time. The beginning of a day that has no midnight is its first
    /// moment; any other time must exist exactly once.
    fn moment(&self, local: DateTime, day: bool) -> Result<Nanos, String> {
        let ambiguous = self.zone.to_ambiguous_zoned_datetime(local);
        if ambiguous.is_ambiguous() && !day {
            return Err(format!(
                "the clocks changed then, so it happened twice or not at all: \
                 give the offset, for example {}+01:00",
                local.strftime("%Y-%m-%dT%H:%M:%S")
            ));
        }
        let zoned = ambiguous.compatible().map_err(|_| "it is out of range".to_owned())?;
        nanos(zoned.timestamp()).ok_or_else(|| "it is out of range".to_owned())
    }

    /// How a table shows a moment: local, to the millisecond.
    #[must_use]
    pub fn short(&self, at: Nanos) -> Shown {
        self.shown(at, "%Y-%m-%d %H:%M:%S%.3f")
    }

    /// How a sentence shows a moment: local, to the second, with its offset.
    #[must_use]
    pub fn long(&self, at: Nanos) -> Shown {
        self.shown(at, "%Y-%m-%d %H:%M:%S%.f %:z")
    }

    /// How prose shows a moment: local, to the millisecond, with its offset.
    #[must_use]
    pub fn prose(&self, at: Nanos) -> Shown {
        let whole = at.0.rem_euclid(1_000_000_000) < 1_000_000;
        self.shown(at, if whole { "%Y-%m-%d %H:%M:%S %:z" } else { "%Y-%m-%d %H:%M:%S%.3f %:z" })
    }

    /// The zone as a heading names it.
    #[must_use]
    pub fn zone_name(&self) -> String {
        match self.zone.iana_name() {
            Some(name) => name.to_owned(),
            None => self.now.to_zoned_datetime(self.zone.clone()).strftime("%:z").to_string(),
        }
    }

    /// A moment in a form of the caller's (strftime).
    pub(crate) fn stamp(&self, at: Nanos, format: &str) -> String {
        self.shown(at, format).0
    }

    fn shown(&self, at: Nanos, format: &str) -> Shown {
        Shown(match timestamp(at) {
            // jiff leaves out a fraction of zero under %.f, and keeps %.3f.
            Some(moment) => {
                moment.to_zoned_datetime(self.zone.clone()).strftime(format).to_string()
            }
            None => at.to_string(),
        })
    }
}

/// A moment as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown(String);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// RFC 3339, UTC, nine decimals: the form of every machine format. Moments that no calendar
/// holds (a hostile capture can carry them) are printed as seconds.
#[must_use]
pub fn rfc3339(at: Nanos) -> String {
    match timestamp(at) {
        Some(moment) => format!("{moment:.9}"),
        None => at.to_string(),
    }
}

const FORMS: &str = "for example 2007-02-02T06:25:00Z, `2007-02-02 06:25`, 06:25, -15m, \
                     `yesterday 11:25`, now or 1170397500.25";

fn timestamp(at: Nanos) -> Option<Timestamp> {
    Timestamp::from_nanosecond(i128::from(at.0)).ok()
}

fn nanos(moment: Timestamp) -> Option<Nanos> {
    i64::try_from(moment.as_nanosecond()).ok().map(Nanos)
}

/// `2007` and `20070202` are more likely a slip than seconds since 1970.
fn looks_like_date(digits: &str) -> bool {
    matches!(digits.len(), 4 | 8) && (digits.starts_with("19") || digits.starts_with("20"))
}

/// `6:25`, `06:25`, `06:25:30`, `06:25:30.5`.
fn clock_time(text: &str) -> Option<Time> {
    let mut parts = text.split(':');
    let hour = parts.next()?;
    let minute = parts.next()?;
    let seconds = parts.next().unwrap_or("0");
    let short = |part: &str, most: usize| (1..=most).contains(&part.len());
    if parts.next().is_some() || !short(hour, 2) || minute.len() != 2 {
        return None;
    }
    let seconds = names::decimal(seconds, 1_000_000_000)?;
    let (second, nanosecond) = (seconds / 1_000_000_000, seconds % 1_000_000_000);
    let (second, nanosecond) = (i8::try_from(second).ok()?, i32::try_from(nanosecond).ok()?);
    Time::new(hour.parse().ok()?, minute.parse().ok()?, second, nanosecond).ok()
}

/// A fixed offset, `+02:00` or `-0530`.
fn offset(text: &str) -> Option<TimeZone> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+')?),
    };
    let digits = digits.replace(':', "");
    if !(digits.len() == 2 || digits.len() == 4) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let hours: i32 = digits.get(..2)?.parse().ok()?;
    let minutes: i32 = digits.get(2..).filter(|m| !m.is_empty()).map_or(Ok(0), str::parse).ok()?;
    let seconds = sign * (hours * 3600 + minutes * 60);
    Some(TimeZone::fixed(jiff::tz::Offset::from_seconds(seconds).ok()?))
}

/// A length of time for people: `340 ms`, `2.5 s`, `4 min 10 s`, `3 h 20 min`, `2 d 4 h`.
#[must_use]
pub fn length(seconds: f64) -> String {
    let whole = seconds.abs().round() as u64;
    match whole {
        _ if seconds.abs() < 0.001 => format!("{:.0} µs", seconds * 1e6),
        _ if seconds.abs() < 1.0 => format!("{:.0} ms", seconds * 1e3),
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86400, whole % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(zone: &str) -> Clock {
        let zone = TimeZone::get(zone).expect("zone");
        Clock::new("2007-02-03T12:00:00Z".parse().expect("time"), zone)
    }

    fn utc(text: &str) -> String {
        rfc3339(clock("UTC").read(text, Edge::From).unwrap_or_else(|e| panic!("{e}")))
    }

    #[test]
    fn every_form_is_read() {
        assert_eq!(utc("2007-02-02T06:25:00Z"), "2007-02-02T06:25:00.000000000Z");
        assert_eq!(utc("2007-02-02T08:25:00.5+02:00"), "2007-02-02T06:25:00.500000000Z");
        assert_eq!(utc("2007-02-02 06:25"), "2007-02-02T06:25:00.000000000Z");
        assert_eq!(utc("2007-02-02T06:25:07.25"), "2007-02-02T06:25:07.250000000Z");
        assert_eq!(utc("2007-02-02"), "2007-02-02T00:00:00.000000000Z");
        assert_eq!(utc("6:25"), "2007-02-03T06:25:00.000000000Z");
        assert_eq!(utc("06:25:30"), "2007-02-03T06:25:30.000000000Z");
        assert_eq!(utc("yesterday 11:25"), "2007-02-02T11:25:00.000000000Z");
        assert_eq!(utc("today"), "2007-02-03T00:00:00.000000000Z");
        assert_eq!(utc("-15m"), "2007-02-03T11:45:00.000000000Z");
        assert_eq!(utc("now-1h30m"), "2007-02-03T10:30:00.000000000Z");
        assert_eq!(utc("now + 1s"), "2007-02-03T12:00:01.000000000Z");
        assert_eq!(utc("now"), "2007-02-03T12:00:00.000000000Z");
        assert_eq!(utc("1170397500.123456789"), "2007-02-02T06:25:00.123456789Z");
        assert_eq!(utc("@20070202"), "1970-08-21T07:03:22.000000000Z");
        assert_eq!(utc("0"), "1970-01-01T00:00:00.000000000Z");
    }

    #[test]
    fn a_day_ends_with_its_last_moment() {
        let berlin = clock("Europe/Berlin");
        let window = berlin.window(Some("2007-02-02"), Some("2007-02-02")).expect("a window");
        assert_eq!(rfc3339(window.start()), "2007-02-01T23:00:00.000000000Z");
        assert_eq!(rfc3339(window.end()), "2007-02-02T22:59:59.999999999Z");
    }

    #[test]
    fn times_are_local_to_the_zone() {
        let berlin = clock("Europe/Berlin");
        let at = berlin.read("2007-07-02 06:25", Edge::From).expect("a time");
        assert_eq!(rfc3339(at), "2007-07-02T04:25:00.000000000Z");
        assert_eq!(berlin.short(at).to_string(), "2007-07-02 06:25:00.000");
        assert_eq!(berlin.long(at).to_string(), "2007-07-02 06:25:00 +02:00");
    }

    #[test]
    fn a_local_time_that_is_not_one_moment_is_refused() {
        let berlin = clock("Europe/Berlin");
        for text in ["2007-03-25 02:30", "2007-10-28 02:30"] {
            let error = berlin.read(text, Edge::From).expect_err(text).to_string();
            assert!(error.contains("offset"), "{error}");
        }
    }

    #[test]
    fn slips_are_refused() {
        let clock = clock("UTC");
        for text in [
            "",
            "2007",
            "20070202",
            "25:00",
            "06:61",
            "-15x",
            "yesterdayish",
            "2007-02-30",
            "noon",
            "99999999999999999999",
            "-99999999w",
            "2007-02-02 6",
            "1e9",
            "--15m",
            "é007-02-02",
        ] {
            assert!(clock.read(text, Edge::From).is_err(), "{text}");
        }
        assert!(matches!(
            clock.window(Some("-5m"), Some("-10m")),
            Err(TimeError::Backwards { .. })
        ));
        assert!(matches!(Clock::system(Some("Mars/Base")), Err(TimeError::Zone(_))));
        assert!(Clock::system(Some("+02:00")).is_ok());
        assert!(Clock::system(Some("-0530")).is_ok());
    }

    #[test]
    fn lengths_read_well() {
        assert_eq!(length(0.25), "250 ms");
        assert_eq!(length(2.5), "2.5 s");
        assert_eq!(length(250.0), "4 min 10 s");
        assert_eq!(length(12000.0), "3 h 20 min");
        assert_eq!(length(187200.0), "2 d 4 h");
    }
}
