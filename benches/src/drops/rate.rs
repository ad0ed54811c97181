//! Frames a second, as people write them.

use std::fmt;

use capture_user::units;
use serde::{Serialize, Serializer};

/// How fast frames are offered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rate {
    /// So many a second.
    PerSecond(f64),
    /// As many as can be made.
    Flood,
}

/// Rates given on the command line (a type of its own, so that clap takes the list as one value).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RateList(pub(crate) Vec<Rate>);

impl Rate {
    /// Frames a second, where there is a number.
    pub(crate) fn per_second(self) -> Option<f64> {
        match self {
            Self::PerSecond(rate) => Some(rate),
            Self::Flood => None,
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PerSecond(rate) => units::Rate(*rate).fmt(f),
            Self::Flood => f.pad("flood"),
        }
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::PerSecond(rate) => serializer.serialize_f64(*rate),
            Self::Flood => serializer.serialize_str("flood"),
        }
    }
}

/// Reads `800000`, `800k`, `1.2M` or `flood`.
pub(crate) fn parse_rate(text: &str) -> Result<Rate, String> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("flood") {
        return Ok(Rate::Flood);
    }
    let (number, scale) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1e3),
        Some((at, 'M' | 'm')) => (&text[..at], 1e6),
        _ => (text, 1.0),
    };
    match number.parse::<f64>() {
        // Less than a frame a second is no load, and nothing makes more than a thousand million.
        Ok(rate) if (1.0..=1e9).contains(&(rate * scale)) => Ok(Rate::PerSecond(rate * scale)),
        _ => Err(format!("'{text}' is no rate; write for example 800k, 1.2M or flood")),
    }
}

/// Reads rates separated by commas.
pub(crate) fn parse_rates(text: &str) -> Result<RateList, String> {
    text.split(',').map(parse_rate).collect::<Result<_, _>>().map(RateList)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_they_are_printed() {
        for (text, rate) in [("1", 1.0), ("800k", 8e5), ("1.2M", 1.2e6), (" 64000 ", 64e3)] {
            assert_eq!(parse_rate(text), Ok(Rate::PerSecond(rate)), "{text}");
        }
        assert_eq!(parse_rate("Flood"), Ok(Rate::Flood));
        for text in ["", "k", "0", "-1k", "1e30", "NaN", "1.5 pps", "inf", "ük"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
        let list = parse_rates("100k,flood").unwrap();
        assert_eq!(list.0, [Rate::PerSecond(1e5), Rate::Flood]);
        assert!(parse_rates("100k,,flood").is_err());
    }
}
