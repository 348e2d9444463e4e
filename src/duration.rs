//! Durations as requests and the command line write them: an integer and a unit, such as `30s`.

use std::time::Duration;

use crate::config::{TTL_MS_MAX, TTL_MS_MIN};

/// Parses a duration such as `0s`, `500ms`, `30s`, `5m`, `12h` or `7d`, in milliseconds; `None` if it is invalid.
pub fn milliseconds(text: &str) -> Option<u64> {
    let number_end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 3600 * 1000,
        "d" => 24 * 3600 * 1000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit_ms)
}

/// Parses a TTL, in milliseconds.
///
/// # Errors
///
/// What a TTL must be, if it is none, or is not from [`TTL_MS_MIN`] to [`TTL_MS_MAX`].
pub fn ttl_ms(text: &str) -> Result<u64, &'static str> {
    milliseconds(text)
        .filter(|ttl_ms| (TTL_MS_MIN..=TTL_MS_MAX).contains(ttl_ms))
        .ok_or("a TTL must be an integer and a unit, such as 500ms, 30s, 5m, 12h or 7d, from 100ms to 3650d")
}

/// Writes a TTL, rounded up to a millisecond.
pub(crate) fn ttl_text(ttl: Duration) -> String {
    format!("{}ms", ttl.as_nanos().div_ceil(1_000_000))
}
