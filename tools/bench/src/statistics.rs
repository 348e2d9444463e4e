//! Medians and spreads over rounds, and numbers formatted for people.

use serde::Serialize;

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `values` must not be empty.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Self { median, min: sorted[0], max: sorted[sorted.len() - 1] }
    }

    /// Formats the median, with the minimum and maximum in parentheses.
    pub fn text(self, format: impl Fn(f64) -> String) -> String {
        format!("{} ({}–{})", format(self.median), format(self.min), format(self.max))
    }
}

/// The values in the order of their first appearance.
pub fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

/// Formats `13641.4` as `13,641`.
pub fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

pub fn one_digit(number: f64) -> String {
    format!("{number:.1}")
}

pub fn two_digits(number: f64) -> String {
    format!("{number:.2}")
}

/// Formats microseconds as milliseconds with two decimals.
pub fn milliseconds(microseconds: f64) -> String {
    format!("{:.2}", microseconds / 1000.0)
}

/// Formats the bytes of several processes as mebibytes, such as `12, 13, 12`.
pub fn mebibytes(bytes: &[u64]) -> String {
    bytes.iter().map(|bytes| (bytes >> 20).to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_of_an_even_number_takes_the_middle_of_the_two() {
        let spread = Spread::of([4.0, 1.0, 2.0, 3.0]);
        assert_eq!((spread.median, spread.min, spread.max), (2.5, 1.0, 4.0));
        assert_eq!(Spread::of([7.0, 9.0, 8.0]).median, 8.0);
    }

    #[test]
    fn thousands_are_grouped_from_the_right() {
        assert_eq!(thousands(7.0), "7");
        assert_eq!(thousands(999.6), "1,000");
        assert_eq!(thousands(13_641.4), "13,641");
        assert_eq!(thousands(1_234_567.0), "1,234,567");
    }
}
