//! Several readings of the same thing.

use serde::Serialize;

/// The middle one of several readings, and how far they lie apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// Half of the readings are below.
    pub(crate) median: f64,
    /// The least.
    pub(crate) min: f64,
    /// The greatest.
    pub(crate) max: f64,
}

impl Spread {
    /// Of some readings; all zero if there are none.
    pub(crate) fn of(readings: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = readings.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else {
            return Self::default();
        };
        let middle = |at: usize| sorted.get(at).copied().unwrap_or_default();
        let half = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            middle(half)
        } else {
            f64::midpoint(middle(half - 1), middle(half))
        };
        Self { median, min: *min, max: *max }
    }

    /// The median, and behind it the range if there is one.
    pub(crate) fn show(&self, write: impl Fn(f64) -> String) -> String {
        let (median, min, max) = (write(self.median), write(self.min), write(self.max));
        if min == max { median } else { format!("{median} ({min} to {max})") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Spread::of([]), Spread::default());
        assert_eq!(Spread::of([3.0]), Spread { median: 3.0, min: 3.0, max: 3.0 });
        assert_eq!(Spread::of([9.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 9.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 9.0]).median, 3.0);
        let whole = |value: f64| format!("{value:.0}");
        assert_eq!(Spread::of([9.0, 1.0, 2.0]).show(whole), "2 (1 to 9)");
        assert_eq!(Spread::of([2.2, 2.1]).show(whole), "2");
    }
}
