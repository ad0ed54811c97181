//! Moments as text: RFC 3339 in UTC with nine decimals, as the ledger and the JSON output use.

use capture_flow::time::Nanos;
use jiff::Timestamp;

/// Nanoseconds in an hour.
pub(crate) const HOUR_NS: i64 = 3_600_000_000_000;

/// The moment as `2007-02-02T06:25:00.000000000Z`.
#[must_use]
pub fn to_rfc3339(at: Nanos) -> String {
    let at = timestamp(at);
    format!("{at:.9}")
}

/// Reads an RFC 3339 moment; `None` where it is none or does not fit.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<Nanos> {
    let at: Timestamp = text.parse().ok()?;
    i64::try_from(at.as_nanosecond()).ok().map(Nanos)
}

/// The UTC date of a moment as `YYYY-MM-DD` and its hour.
pub(crate) fn date_and_hour(at: Nanos) -> (String, u8) {
    let at = jiff::tz::Offset::UTC.to_datetime(timestamp(at));
    (at.date().to_string(), u8::try_from(at.hour()).unwrap_or(0))
}

/// Every `Nanos` lies within the years 1677 to 2262, which a `Timestamp` covers.
fn timestamp(at: Nanos) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(at.0)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The wall clock.
#[must_use]
pub fn now() -> Nanos {
    Nanos(i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX))
}

/// For `#[serde(with = …)]` on a [`Nanos`].
pub mod rfc3339 {
    use capture_flow::time::Nanos;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes the moment as text.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(at: &Nanos, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::to_rfc3339(*at))
    }

    /// Reads the moment back.
    ///
    /// # Errors
    /// Text that is no RFC 3339 moment.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Nanos, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        super::parse_rfc3339(&text)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is not an RFC 3339 time")))
    }

    /// The same for a moment that may be missing.
    pub mod option {
        use super::{Nanos, rfc3339_text};
        use serde::{Deserialize, Deserializer, Serializer, de::Error};

        /// Writes the moment as text, or null.
        ///
        /// # Errors
        /// Those of the serializer.
        pub fn serialize<S: Serializer>(at: &Option<Nanos>, s: S) -> Result<S::Ok, S::Error> {
            match at {
                Some(at) => s.serialize_str(&rfc3339_text(*at)),
                None => s.serialize_none(),
            }
        }

        /// Reads the moment back.
        ///
        /// # Errors
        /// Text that is no RFC 3339 moment.
        pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Nanos>, D::Error> {
            let Some(text) = Option::<String>::deserialize(d)? else { return Ok(None) };
            super::super::parse_rfc3339(&text)
                .map(Some)
                .ok_or_else(|| D::Error::custom(format!("{text:?} is not an RFC 3339 time")))
        }
    }

    fn rfc3339_text(at: Nanos) -> String {
        super::to_rfc3339(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prints_nine_decimals() {
        assert_eq!(to_rfc3339(Nanos(1_170_397_500_000_000_001)), "2007-02-02T06:25:00.000000001Z");
        assert_eq!(date_and_hour(Nanos(1_170_397_500_000_000_001)), ("2007-02-02".into(), 6));
    }

    proptest! {
        #[test]
        fn every_moment_survives_the_text(ns in any::<i64>()) {
            prop_assert_eq!(parse_rfc3339(&to_rfc3339(Nanos(ns))), Some(Nanos(ns)));
        }
    }
}
