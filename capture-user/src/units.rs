//! Sizes and lengths of time as people write and read them.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

use crate::args::SilenceLimit;

/// Why a text is not the value it should be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UnitError {
    /// No number in front.
    #[error("'{text}' does not start with a number; write for example {example}")]
    NoNumber {
        /// What was given.
        text: String,
        /// What would be accepted.
        example: &'static str,
    },
    /// The letters after the number mean nothing here.
    #[error("'{unit}' is no unit of {what}; known are {known}")]
    UnknownUnit {
        /// What was given.
        unit: String,
        /// What is measured.
        what: &'static str,
        /// The units there are.
        known: &'static str,
    },
    /// The value does not fit.
    #[error("'{text}' is too large")]
    TooLarge {
        /// What was given.
        text: String,
    },
}

/// Splits `12.5GiB` into the number's digits, its decimals and the unit.
fn split<'t>(text: &'t str, example: &'static str) -> Result<(u64, &'t str, &'t str), UnitError> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    let no_number = || UnitError::NoNumber { text: text.to_owned(), example };
    if whole.is_empty() || decimals.contains('.') {
        return Err(no_number());
    }
    let whole = whole.parse::<u64>().map_err(|_| UnitError::TooLarge { text: text.to_owned() })?;
    Ok((whole, decimals, unit.trim()))
}

/// `whole.decimals` times `scale`, rounded down.
fn scaled(whole: u64, decimals: &str, scale: u64) -> Option<u64> {
    // More decimals than this change no unit there is.
    let decimals = decimals.get(..18).unwrap_or(decimals);
    let places = u32::try_from(decimals.len()).ok()?;
    let fraction = if decimals.is_empty() { 0 } else { decimals.parse::<u64>().ok()? };
    let scale = u128::from(scale);
    let fraction = u128::from(fraction).checked_mul(scale)? / 10u128.checked_pow(places)?;
    let value = u128::from(whole).checked_mul(scale)?.checked_add(fraction)?;
    u64::try_from(value).ok()
}

/// Parses a number of bytes: `4096`, `64KiB`, `1.5GiB`, `2TB`. `K`, `M`, `G`, `T` alone are the
/// binary ones, as `fallocate` and `dd` have them.
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    let (whole, decimals, unit) = split(text, "512MiB, 10GiB or 2TB")?;
    let scale: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "p" | "pib" => 1 << 50,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "pb" => 1_000_000_000_000_000,
        _ => {
            return Err(UnitError::UnknownUnit {
                unit: unit.to_owned(),
                what: "size",
                known: "B, KiB, MiB, GiB, TiB, KB, MB, GB, TB",
            });
        }
    };
    scaled(whole, decimals, scale).ok_or_else(|| UnitError::TooLarge { text: text.to_owned() })
}

/// How much comes in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameRate {
    /// So many frames.
    Frames(u64),
    /// So many bits of frames.
    Bits(u64),
}

/// Parses a rate: `1.5Mpps`, `200kpps`, `10Gbit`, `800Mbit/s`; a number alone is of frames.
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_frame_rate(text: &str) -> Result<FrameRate, UnitError> {
    let (whole, decimals, unit) = split(text, "1.5Mpps or 10Gbit/s")?;
    let unit = unit.to_ascii_lowercase();
    let (prefix, bits) = match unit.strip_suffix("pps") {
        Some(prefix) => (prefix, false),
        None => match unit.strip_suffix("/s").unwrap_or(&unit).strip_suffix("bit") {
            Some(prefix) => (prefix, true),
            None => (unit.as_str(), false),
        },
    };
    let scale = match prefix {
        "" => 1,
        "k" => 1_000,
        "m" => 1_000_000,
        "g" => 1_000_000_000,
        _ => {
            let known = "pps, kpps, Mpps, bit/s, kbit/s, Mbit/s, Gbit/s";
            return Err(UnitError::UnknownUnit { unit, what: "rate", known });
        }
    };
    let rate = scaled(whole, decimals, scale)
        .ok_or_else(|| UnitError::TooLarge { text: text.to_owned() })?;
    Ok(if bits { FrameRate::Bits(rate) } else { FrameRate::Frames(rate) })
}

/// Parses a length of time: `30` (seconds), `500ms`, `5min`, `1.5h`, `2d`.
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let (whole, decimals, unit) = split(text, "30s, 500ms, 5min or 1h")?;
    let scale: u64 = match unit.to_ascii_lowercase().as_str() {
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "" | "s" | "sec" => 1_000_000_000,
        "m" | "min" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "d" => 86_400_000_000_000,
        _ => {
            return Err(UnitError::UnknownUnit {
                unit: unit.to_owned(),
                what: "time",
                known: "ns, us, ms, s, min, h, d",
            });
        }
    };
    // Times become signed nanoseconds later on.
    match scaled(whole, decimals, scale) {
        Some(ns) if i64::try_from(ns).is_ok() => Ok(Duration::from_nanos(ns)),
        _ => Err(UnitError::TooLarge { text: text.to_owned() }),
    }
}

/// Parses a length of time, or `none`.
///
/// # Errors
/// As [`parse_duration`].
pub fn parse_silence_limit(text: &str) -> Result<SilenceLimit, UnitError> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(SilenceLimit(None));
    }
    parse_duration(text).map(|limit| SilenceLimit(Some(limit)))
}

/// Prints a number of bytes in binary units: `1.5 GiB`.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = scale_down(self.0 as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"]);
        f.pad(&text)
    }
}

/// Prints a rate in decimal units: `1.25 M` (the caller adds `pps` or `bit/s`).
#[derive(Clone, Copy, Debug)]
pub struct Rate(pub f64);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&scale_down(self.0, 1000.0, &["", "k", "M", "G", "T"]))
    }
}

/// A number with its digits in groups of three: `1,234,567`.
#[derive(Clone, Copy, Debug)]
pub struct Grouped(pub u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::with_capacity(digits.len() + digits.len() / 3);
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        f.pad(&text)
    }
}

fn scale_down(value: f64, step: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut last = "";
    for (i, unit) in units.iter().enumerate() {
        last = unit;
        if value < step || i + 1 == units.len() {
            break;
        }
        value /= step;
    }
    let decimals = if last == units.first().copied().unwrap_or("") || value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {last}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("64KiB"), Ok(65_536));
        assert_eq!(parse_bytes("1.5g"), Ok(1_610_612_736));
        assert_eq!(parse_bytes("2 TB"), Ok(2_000_000_000_000));
        assert!(parse_bytes("").is_err());
        assert!(parse_bytes("GiB").is_err());
        assert!(parse_bytes("1.2.3M").is_err());
        assert!(parse_bytes("10 parsecs").is_err());
        assert!(parse_bytes("-1").is_err());
        assert!(parse_bytes("99999999999999999999").is_err());
        assert!(parse_bytes("20000PiB").is_err());
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5h"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("0.25s"), Ok(Duration::from_millis(250)));
        assert!(parse_duration("9999999d").is_err());
        assert!(parse_duration("soon").is_err());
    }

    #[test]
    fn rates() {
        assert_eq!(parse_frame_rate("200"), Ok(FrameRate::Frames(200)));
        assert_eq!(parse_frame_rate("1.5Mpps"), Ok(FrameRate::Frames(1_500_000)));
        assert_eq!(parse_frame_rate("10 Gbit/s"), Ok(FrameRate::Bits(10_000_000_000)));
        assert_eq!(parse_frame_rate("800Mbit"), Ok(FrameRate::Bits(800_000_000)));
        assert!(parse_frame_rate("Mpps").is_err());
        assert!(parse_frame_rate("5 MiB/s").is_err());
        assert!(parse_frame_rate("99999999999Gpps").is_err());
    }

    #[test]
    fn printed() {
        assert_eq!(Bytes(1_610_612_736).to_string(), "1.50 GiB");
        assert_eq!(Bytes(999).to_string(), "999 B");
        assert_eq!(Rate(2_500_000.0).to_string(), "2.50 M");
        assert_eq!(Rate(0.0).to_string(), "0");
        assert_eq!(Grouped(1_234_567).to_string(), "1,234,567");
        assert_eq!(Grouped(12).to_string(), "12");
    }
}
