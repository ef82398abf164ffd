//! Durations as Go writes them: `5s`, `1m30s`, `1.5h`.

use std::time::Duration;

const UNITS: [(&str, f64); 7] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// Reads one; all of its parts are added.
///
/// # Errors
/// When it isn't one.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration, like 500ms or 1m30s");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut seconds, mut rest) = (0.0, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| c != '.' && !c.is_ascii_digit());
        let (number, after) = rest.split_at(digits.ok_or_else(wrong)?);
        let end = after.find(|c: char| c == '.' || c.is_ascii_digit());
        let (unit, after) = after.split_at(end.unwrap_or(after.len()));
        let (_, factor) = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(wrong)?;
        seconds += number.parse::<f64>().map_err(|_| wrong())? * factor;
        rest = after;
    }
    // Go counts nanoseconds in 64 bits: 292 years, within what clocks have.
    let is_gos = |duration: &Duration| i64::try_from(duration.as_nanos()).is_ok();
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !text.is_empty() && is_gos(&duration) => Ok(duration),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_added() {
        let milliseconds = |text| parse(text).expect(text).as_millis();
        assert_eq!(milliseconds("5s"), 5000);
        assert_eq!(milliseconds("500ms"), 500);
        assert_eq!(milliseconds("1m30.5s"), 90_500);
        assert_eq!(milliseconds("0"), 0);
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "", "5", "s", "-5s", "5 s", "5x", "1e300h", "..s", "5s5", "2562048h",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
