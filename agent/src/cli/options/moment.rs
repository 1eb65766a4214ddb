//! Moments: `2026-07-01T12:00:00Z`, `10m` (ago), or seconds since 1970.

use crate::cli::human;

/// Nanoseconds since 1970.
pub(crate) fn moment(text: &str) -> Result<i64, String> {
    const EXPECTED: &str = "expected a moment such as 2026-07-01T12:00:00Z, a time ago such as 10m or 1h30m, or seconds since 1970";
    let expected = || EXPECTED.to_owned();
    if let Some(ago) = duration(text) {
        return Ok(human::now().saturating_sub(ago));
    }
    if text.bytes().next().is_some_and(|byte| byte.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        let nanoseconds = format!("{fraction:0<9}").get(..9).and_then(|digits| digits.parse::<i64>().ok());
        let seconds = seconds.parse::<i64>().ok().and_then(|seconds| seconds.checked_mul(1_000_000_000));
        let sum =
            seconds.zip(nanoseconds).and_then(|(seconds, nanoseconds)| seconds.checked_add(nanoseconds));
        return sum.ok_or_else(expected);
    }
    let timestamp: jiff::Timestamp = text.parse().map_err(|_| expected())?;
    i64::try_from(timestamp.as_nanosecond()).map_err(|_| expected())
}

/// Nanoseconds of `1h30m`, `90s`, `2d`: whole numbers, each with its unit.
fn duration(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut seconds: i64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|character: char| !character.is_ascii_digit())?;
        let number: i64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = match rest.as_bytes().first()? {
            b's' => 1,
            b'm' => 60,
            b'h' => 3_600,
            b'd' => 86_400,
            _ => return None,
        };
        rest = &rest[1..];
        seconds = seconds.checked_add(number.checked_mul(unit)?)?;
    }
    if text.is_empty() { None } else { seconds.checked_mul(1_000_000_000) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_up_their_units() {
        for (text, seconds) in [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2d", 172_800), ("0s", 0)] {
            assert_eq!(duration(text), Some(seconds * 1_000_000_000), "{text}");
        }
        for text in ["", "m", "10", "10x", "1h-5m", "99999999999999d"] {
            assert_eq!(duration(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_moment_is_absolute_or_some_time_ago() {
        assert_eq!(moment("1970-01-01T00:00:01.5Z"), Ok(1_500_000_000));
        assert_eq!(moment("1970-01-01T01:00:00+01:00"), Ok(0));
        assert_eq!(moment("12"), Ok(12_000_000_000));
        assert_eq!(moment("12.25"), Ok(12_250_000_000));
        let minute_ago = moment("1m").unwrap();
        let ago = human::now() - minute_ago;
        assert!((60_000_000_000..70_000_000_000).contains(&ago), "{ago}");
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in ["", "yesterday", "2026-07-01", "1.2.3", "99999999999999999999", "9999-12-31T00:00:00Z"] {
            assert!(moment(text).is_err(), "{text:?}");
        }
    }
}
