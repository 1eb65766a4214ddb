//! Numbers as people read them: sizes, ages, shortened ids and names. Rounding is the one docker taught.

use std::time::{SystemTime, UNIX_EPOCH};

/// The first twelve digits of an id.
pub(super) fn short_id(id: &str) -> &str {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.get(..12).unwrap_or(id)
}

/// `docker.io/library/nginx:1.27` is `nginx:1.27` to people.
pub(super) fn familiar(reference: &str) -> &str {
    let name = reference.strip_prefix("docker.io/").unwrap_or(reference);
    name.strip_prefix("library/").unwrap_or(name)
}

/// Powers of a thousand, as images and traffic are counted: `187MB`.
pub(super) fn decimal_size(bytes: u64) -> String {
    size(bytes, 1000, &["B", "kB", "MB", "GB", "TB", "PB", "EB"], 3)
}

/// Powers of 1024, as memory is counted: `12.5MiB`.
pub(super) fn binary_size(bytes: u64) -> String {
    size(bytes, 1024, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"], 4)
}

fn size(bytes: u64, base: u64, units: &[&str], digits: usize) -> String {
    let mut value = bytes as f64;
    for (position, unit) in units.iter().enumerate() {
        let text = significant(value, digits);
        // 999.9 kB rounds to 1000 kB, which is 1 MB.
        let fits = text.parse::<f64>().is_ok_and(|rounded| rounded < base as f64);
        if fits || position + 1 == units.len() {
            return text + unit;
        }
        value /= base as f64;
    }
    unreachable!("the last unit takes every value")
}

/// At most so many significant digits, without zeros at the end of the fraction.
fn significant(value: f64, digits: usize) -> String {
    let before = if value < 1.0 { 1 } else { value.log10().floor() as usize + 1 };
    let text = format!("{value:.*}", digits.saturating_sub(before));
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Nanoseconds since 1970.
pub(super) fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
}

/// How long ago a moment was, both in nanoseconds since 1970: `3 minutes`. A moment to come counts as now.
pub(super) fn age(moment: i64, now: i64) -> String {
    let seconds = now.saturating_sub(moment).max(0) / 1_000_000_000;
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", hours / 24 / 365),
    }
}

/// `3 minutes ago`; empty for 0, which stands for a moment that has not come.
pub(super) fn ago(moment: i64, now: i64) -> String {
    if moment == 0 { String::new() } else { format!("{} ago", age(moment, now)) }
}

/// RFC 3339 with nine digits of the second, so that moments line up below each other.
pub(super) fn timestamp(moment: i64) -> String {
    format!(
        "{:.9}",
        jiff::Timestamp::from_nanosecond(i128::from(moment)).expect("64 bits of nanoseconds fit")
    )
}

/// As `timestamp`; `None` for 0, which stands for a moment that has not come or is not known.
pub(super) fn timestamp_if_any(moment: i64) -> Option<String> {
    (moment != 0).then(|| timestamp(moment))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_images_count_in_thousands_with_three_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1_050, "1.05kB"),
            (45_800_000, "45.8MB"),
            (187_400_000, "187MB"),
            (999_900, "1MB"),
            (1_100_000_000, "1.1GB"),
            (u64::MAX, "18.4EB"),
        ] {
            assert_eq!(decimal_size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn sizes_of_memory_count_in_1024_with_four_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (64 << 20, "64MiB"),
            (13_107_200, "12.5MiB"),
            (25_129_541_632, "23.4GiB"),
            (1_073_741_823, "1GiB"),
            (1_071_000_000, "1021MiB"),
        ] {
            assert_eq!(binary_size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn ages_round_as_people_do() {
        const SECOND: i64 = 1_000_000_000;
        for (seconds, text) in [
            (-5, "Less than a second"),
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (180, "3 minutes"),
            (3_599, "59 minutes"),
            (3_600, "About an hour"),
            (2 * 3_600, "2 hours"),
            (47 * 3_600, "47 hours"),
            (48 * 3_600, "2 days"),
            (15 * 86_400, "2 weeks"),
            (90 * 86_400, "3 months"),
            (800 * 86_400, "2 years"),
        ] {
            let now = 1_800_000_000 * SECOND;
            assert_eq!(age(now - seconds * SECOND, now), text, "{seconds} s");
        }
        assert_eq!(ago(0, 5), "");
        assert_eq!(ago(SECOND, 61 * SECOND), "About a minute ago");
    }

    #[test]
    fn moments_have_nine_digits_of_the_second() {
        assert_eq!(timestamp(1_767_225_600_120_000_000), "2026-01-01T00:00:00.120000000Z");
        assert_eq!(timestamp_if_any(0), None);
    }

    #[test]
    fn names_and_ids_are_cut_as_docker_does() {
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short_id("abc"), "abc");
        assert_eq!(familiar("docker.io/library/nginx:1.27"), "nginx:1.27");
        assert_eq!(familiar("docker.io/grafana/grafana:11"), "grafana/grafana:11");
        assert_eq!(familiar("localhost:5000/library/x"), "localhost:5000/library/x");
    }
}
